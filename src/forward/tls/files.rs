//! What TLS needs, read from files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use super::{Config, PROVIDER};

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub struct Error {
    /// Which one: its key in the configuration.
    pub key: &'static str,
    pub path: PathBuf,
    pub problem: Problem,
}

#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("no such file; put it there, or name another")]
    Missing,
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("not PEM: {0}")]
    NotPem(pem::Error),
    #[error("no certificate in PEM is in it; it begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    #[error("no private key in PEM is in it; it begins with -----BEGIN PRIVATE KEY-----, and is not encrypted")]
    NoKey,
    #[error("not the key of the certificate in {}; use the pair that was made together", .0.display())]
    OtherKey(PathBuf),
    #[error("cannot be used: {0}")]
    Unusable(rustls::Error),
    #[error("a certificate in it cannot be a CA's: {0}")]
    NoCa(rustls::Error),
    #[error("TLS cannot be had: {0}")]
    Verifier(rustls::server::VerifierBuilderError),
}

/// What was in the files.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) server: Arc<ServerConfig>,
    /// When the certificate ends, if it does, and if that can be told.
    pub(super) expiry: Option<UnixTime>,
}

/// Whether the files are there and fit each other.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(config: &Config) -> Result<(), Error> {
    load(config).map(drop)
}

/// Reads all files.
pub(super) fn load(config: &Config) -> Result<Loaded, Error> {
    let wrong = |key, path: &Path, problem| Error { key, path: path.to_owned(), problem };
    let bad_certificate = |problem| wrong("certificate", &config.certificate, problem);
    let bad_key = |problem| wrong("key", &config.key, problem);
    let chain = certificates(&config.certificate).map_err(bad_certificate)?;
    let expiry = chain.first().and_then(expiry);
    let key = private_key(&config.key).map_err(bad_key)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(config.min_version.allowed())
        .map_err(|error| bad_certificate(Problem::Unusable(error)))?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let bad = |problem| wrong("client_ca", path, problem);
            let mut trusted = RootCertStore::empty();
            for certificate in certificates(path).map_err(bad)? {
                trusted.add(certificate).map_err(|error| bad(Problem::NoCa(error)))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), Arc::clone(&PROVIDER));
            builder.with_client_cert_verifier(verifier.build().map_err(|error| bad(Problem::Verifier(error)))?)
        }
    };
    let mut server = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => bad_key(Problem::OtherKey(config.certificate.clone())),
        rustls::Error::InvalidCertificate(_) => bad_certificate(Problem::Unusable(error)),
        error => bad_key(Problem::Unusable(error)),
    })?;
    server.alpn_protocols = config.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    Ok(Loaded { server: Arc::new(server), expiry })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(Problem::NotPem)?;
    if found.is_empty() { Err(Problem::NoCertificate) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => Problem::NoKey,
        error => Problem::NotPem(error),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Problem::Missing,
        _ => Problem::Unreadable(error),
    };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Problem::Unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// When a certificate ends. Who verifies it at the end of all days learns that: the dates come first, before it is
/// asked who has signed it.
fn expiry(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let usage = KeyUsage::server_auth();
    match certificate.verify_for_usage(&[], &[], &[], END_OF_DAYS, usage, None, None) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after),
        _ => None,
    }
}

/// 9999-12-31, by which a certificate says that it does not end (RFC 5280 section 4.1.2.5).
const END_OF_DAYS: UnixTime = UnixTime::since_unix_epoch(std::time::Duration::from_secs(253_402_300_799));
/// A chain has some 10 KB, all public CAs have 300.
const MOST_BYTES: u64 = 1 << 20;
