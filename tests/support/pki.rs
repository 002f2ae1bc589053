//! Certificate authorities, and what they sign.

#![allow(dead_code, reason = "each of its users needs another part")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "nothing from outside comes here")]

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};

/// The name that servers are asked for.
pub const SERVER: &str = "api.example";
/// When certificates end: the first moment of 2040, in seconds since 1970.
pub const EXPIRY: u64 = 2_208_988_800;

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    #[must_use]
    pub fn server(&self) -> Identity {
        self.sign(&params(SERVER))
    }

    /// One that has ended long ago.
    #[must_use]
    pub fn expired_server(&self) -> Identity {
        let mut params = params(SERVER);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(&params)
    }

    #[must_use]
    pub fn client(&self) -> Identity {
        let mut params = params("client.example");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Identity {
    /// Signed by itself, and nobody's CA: as those that an API Gateway makes for itself.
    #[must_use]
    pub fn self_signed(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: params(name).self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Puts it into two files of a directory.
    #[must_use]
    pub fn put(&self, directory: &Path, name: &str) -> [PathBuf; 2] {
        [("pem", &self.certificate), ("key", &self.key)].map(|(kind, text)| {
            let path = directory.join(format!("{name}.{kind}"));
            fs::write(&path, text).unwrap();
            path
        })
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}
