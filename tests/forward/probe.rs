//! What health checks find out.

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use egret::balance::CheckError;
use egret::forward::{Check, HttpQuestion, Question};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ServerConfig, SupportedProtocolVersion, version};

use crate::pki::Authority;
use crate::tls_support::der;

const SOON: Duration = Duration::from_secs(5);

/// Answers one connection with this, and gives what it was asked.
async fn answering(answer: &'static [u8]) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let count = stream.read(&mut asked).await.unwrap();
        stream.write_all(answer).await.unwrap();
        asked.truncate(count);
        String::from_utf8_lossy(&asked).into_owned()
    });
    (address, asked)
}

fn http() -> Check {
    let question = HttpQuestion {
        path: "/health?deep=1".to_owned(),
        host: Some("api.example".to_owned()),
        matcher: vec![200..=299, 401..=401],
    };
    Check { question: Question::Http(question), port: None, proxy_protocol: None }
}

#[tokio::test]
async fn http_check_asks_for_the_path_of_the_host() {
    let (address, asked) = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(http().ask(address, SOON).await, Ok(Some(())));
    let asked = asked.await.unwrap().to_lowercase();
    assert!(asked.starts_with("get /health?deep=1 http/1.1\r\n"), "{asked}");
    assert!(asked.contains("\r\nhost: api.example\r\n"), "{asked}");
}

#[tokio::test]
async fn http_check_goes_by_the_matcher() {
    for (answer, expected) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"[..], Ok(Some(()))),
        (b"HTTP/1.0 401 Unauthorized\r\n\r\nwho?", Ok(Some(()))),
        (b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", Err(CheckError::Status(302))),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Err(CheckError::Status(503))),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Err(CheckError::Malformed)),
        (b"", Err(CheckError::Reset)),
    ] {
        let (address, _asked) = answering(answer).await;
        assert_eq!(http().ask(address, SOON).await, expected, "{}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn answer_that_never_comes_is_a_failure_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = http().ask(listener.local_addr().unwrap(), Duration::from_millis(50)).await;
    assert_eq!(asked, Err(CheckError::TimedOut));
}

#[tokio::test]
async fn tcp_check_asks_whether_somebody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(Check::default().ask(address, SOON).await, Ok(Some(())));
    let elsewhere = Check { port: Some(address.port()), ..Check::default() };
    assert_eq!(elsewhere.ask(SocketAddr::new(address.ip(), 1), SOON).await, Ok(Some(())));
    // Nobody listens any more, nor is given the port by chance.
    SockRef::from(&listener).shutdown(Shutdown::Read).unwrap();
    assert_eq!(Check::default().ask(address, SOON).await, Err(CheckError::Refused));
}

/// Answers one connection by TLS with this, and gives the name that it was asked for; none if the client speaks no TLS.
async fn answering_by_tls(
    answer: &'static [u8],
    version: &'static SupportedProtocolVersion,
) -> (SocketAddr, JoinHandle<Option<String>>) {
    // Of an authority that nobody knows, for another name, and no longer good.
    let identity = Authority::new("a private CA").expired_server();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der(&identity)], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.ok()?;
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        stream.get_ref().1.server_name().map(str::to_owned)
    });
    (address, asked)
}

fn https(host: Option<&str>) -> Check {
    let question =
        HttpQuestion { path: "/health".to_owned(), host: host.map(str::to_owned), matcher: vec![200..=299] };
    Check { question: Question::Https(question), ..Check::default() }
}

#[tokio::test]
async fn https_check_believes_any_certificate_and_goes_by_the_answer() {
    for version in [&version::TLS12, &version::TLS13] {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], Ok(Some(()))),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Err(CheckError::Status(503))),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Err(CheckError::Malformed)),
        ] {
            let (address, _asked) = answering_by_tls(answer, version).await;
            assert_eq!(https(None).ask(address, SOON).await, expected);
        }
    }
}

#[tokio::test]
async fn https_check_asks_for_the_host_if_that_is_a_name() {
    for (host, expected) in [
        (Some("api.example"), Some("api.example")),
        (Some("api.example:8443"), Some("api.example")),
        (Some("192.0.2.1:8443"), None),
        (None, None),
    ] {
        let (address, asked) = answering_by_tls(b"HTTP/1.1 200 OK\r\n\r\n", &version::TLS13).await;
        assert_eq!(https(host).ask(address, SOON).await, Ok(Some(())));
        assert_eq!(asked.await.unwrap().as_deref(), expected);
    }
}

#[tokio::test]
async fn https_check_of_who_speaks_no_tls_fails() {
    let (address, _asked) = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(https(None).ask(address, SOON).await, Err(CheckError::Tls));
    let (address, _asked) = answering_by_tls(b"HTTP/1.1 200 OK\r\n\r\n", &version::TLS13).await;
    assert_eq!(http().ask(address, SOON).await, Err(CheckError::Malformed));
}
