//! Listeners with TLS, and clients of theirs.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use egret::forward::{Config, Listener, tls};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::pki::{Authority, Identity, SERVER};
use crate::target::{config, start};

/// A directory of its own, removed with it.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("egret-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A listener in front of one target, which no check disturbs.
pub struct Front {
    pub listener: Listener,
    pub address: SocketAddr,
    pub config: Config,
    pub target: TcpListener,
    pub authority: Authority,
    pub directory: Directory,
}

impl Front {
    pub async fn start(adjust: impl FnOnce(&mut Config, &Path)) -> Self {
        let (authority, directory) = (Authority::new("the servers' CA"), Directory::new());
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = config(&[target.local_addr().unwrap()]);
        config.group.health.interval = Duration::from_secs(3600);
        config.check.port = Some(1);
        let [certificate, key] = authority.server().put(&directory.0, "server");
        config.tls = Some(tls::Config {
            certificate,
            key,
            client_ca: None,
            min_version: tls::Version::default(),
            alpn: Vec::new(),
        });
        adjust(&mut config, &directory.0);
        let (listener, address) = start(config.clone());
        Self { listener, address, config, target, authority, directory }
    }

    /// As [`Self::start`], for clients with a certificate of this authority.
    pub async fn mutual(clients: &str) -> Self {
        Self::start(|config, directory| {
            let path = directory.join("clients.pem");
            fs::write(&path, clients).unwrap();
            config.tls.as_mut().unwrap().client_ca = Some(path);
        })
        .await
    }

    pub fn client(&self) -> Client {
        Client { trusted: self.authority.pem(), ..Client::default() }
    }

    /// A client's connection, and its other end.
    pub async fn connect(&self, client: &Client) -> (TlsStream<TcpStream>, TcpStream) {
        let (stream, accepted) = tokio::join!(client.connect(self.address), self.target.accept());
        (stream.unwrap(), accepted.unwrap().0)
    }

    /// How many connections were made to the target.
    pub fn reached(&self) -> u64 {
        self.listener.report().group.targets[0].counters.connections_opened
    }
}

/// What a client believes and shows.
#[derive(Default)]
pub struct Client {
    /// A CA's certificate, in PEM.
    pub trusted: String,
    pub identity: Option<Identity>,
    pub alpn: Vec<Vec<u8>>,
    /// Not TLS 1.3.
    pub old: bool,
}

impl Client {
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        self.connect_on(TcpStream::connect(address).await?).await
    }

    pub async fn connect_on(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let mut trusted = RootCertStore::empty();
        trusted.add(CertificateDer::from_pem_slice(self.trusted.as_bytes()).unwrap()).unwrap();
        let versions: &[&SupportedProtocolVersion] = if self.old { &[&TLS12] } else { &[&TLS13] };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(trusted);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols.clone_from(&self.alpn);
        let name = ServerName::try_from(SERVER).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// The certificate that a listener shows.
pub fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

pub fn der(identity: &Identity) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()
}

pub fn assert_reset(result: io::Result<usize>) {
    assert_eq!(result.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
}
