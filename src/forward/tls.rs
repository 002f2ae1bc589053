//! TLS towards clients: a listener ends it, and relays what was in it.
//!
//! Owns what a listener shows (certificate and key, and whose clients may come in), and how it follows the files that
//! this is in: `files` reads them, `certificates` looks after them, `client` is a connection that came by TLS. Towards
//! targets there is no TLS but in health checks (`target`), which encrypt and believe everybody.
//!
//! TLS 1.3 (RFC 8446) and 1.2 (RFC 5246) by rustls, with the cryptography of ring. It never renegotiates, takes no early
//! data, and compresses nothing.

mod certificates;
mod client;
mod files;
pub(super) mod target;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::version::{TLS12, TLS13};

pub(super) use certificates::Certificates;
pub use certificates::Report;
pub(super) use client::{Client, shake_hands};
pub use files::{Error, check};

/// What a listener shows to its clients, and demands of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A file with the certificate, and after it those that lead to its CA, in PEM.
    pub certificate: PathBuf,
    /// A file with the certificate's private key, in PEM.
    pub key: PathBuf,
    /// A file of certificates in PEM: clients need one that is signed by one of these, or is among them.
    pub client_ca: Option<PathBuf>,
    pub min_version: Version,
    /// The protocols to agree upon within the handshake (RFC 7301), the best one first; none: that is left out.
    pub alpn: Vec<String>,
}

/// The least that clients have to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Tls12,
    Tls13,
}

impl Version {
    fn allowed(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => VERSIONS,
            Self::Tls13 => &VERSIONS[..1],
        }
    }
}

static VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// Named in each place, since a build with AWS has another one beside it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
