//! TLS towards a target that is checked: whoever it is.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::PROVIDER;
use crate::balance::CheckError;

/// Shakes hands with a target. `host` is the name that it is asked for; an address, with or without a port, is no name.
/// `Ok(None)` says that this host cannot.
///
/// # Errors
/// What is wrong with the target.
pub(in crate::forward) async fn connect(
    stream: TcpStream,
    address: SocketAddr,
    host: Option<&str>,
) -> Result<Option<TlsStream<TcpStream>>, CheckError> {
    let Ok(config) = &*CONFIG else { return Ok(None) };
    let name = host.map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
    let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
    let name = name.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    stream.map(Some).map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => CheckError::Reset,
        _ => CheckError::Tls,
    })
}

static CONFIG: LazyLock<Result<Arc<ClientConfig>, Error>> = LazyLock::new(|| {
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_safe_default_protocol_versions()?;
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth();
    // Each check is to see all of a handshake.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
});

/// Believes everybody, as the health checks of a network load balancer do: targets are named by their addresses, and
/// have certificates for the clients' use, or of their own making.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}
