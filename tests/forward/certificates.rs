//! The files of a listener's TLS: what may be wrong with them, and what happens when they change.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use egret::forward::{Config, Error, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::pki::{Authority, EXPIRY, Identity};
use crate::tls_support::{Directory, Front, der, shown};

/// What a new connection is shown.
async fn shown_now(front: &Front) -> CertificateDer<'static> {
    shown(&front.client().connect(front.address).await.unwrap())
}

async fn wait_shown(front: &Front, wanted: &Identity) {
    let found = async {
        while shown_now(front).await != der(wanted) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(30), found).await.expect("another certificate in time");
}

async fn works(client: &mut TlsStream<TcpStream>, target: &mut TcpStream) {
    let mut heard = [0; 5];
    client.write_all(b"hello").await.unwrap();
    target.read_exact(&mut heard).await.unwrap();
    target.write_all(&heard).await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn new_connections_get_the_new_certificate_and_old_ones_go_on() {
    let front = Front::start(|_, _| {}).await;
    let (mut client, mut target) = front.connect(&front.client()).await;
    let new = front.authority.server();
    let _ = new.put(&front.directory.0, "server");
    wait_shown(&front, &new).await;
    works(&mut client, &mut target).await;
    // As certbot and Kubernetes do it: by another link.
    let newer = front.authority.server();
    for file in newer.put(&front.directory.0, "newer") {
        let link = front.directory.0.join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let name = format!("server.{}", file.extension().unwrap().to_str().unwrap());
        fs::rename(link, front.directory.0.join(name)).unwrap();
    }
    wait_shown(&front, &newer).await;
    works(&mut client, &mut target).await;
}

#[tokio::test]
async fn certificate_stays_while_what_is_new_is_bad() {
    let front = Front::start(|_, _| {}).await;
    let first = shown_now(&front).await;
    let new = front.authority.server();
    let path = front.config.tls.as_ref().unwrap().certificate.clone();
    // One without the other; neither; and nothing at all.
    for text in [Some(new.certificate.as_str()), Some("no PEM"), None] {
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        front.listener.reconfigure(front.config.clone()).unwrap();
        assert_eq!(shown_now(&front).await, first);
    }
    let _ = new.put(&front.directory.0, "server");
    wait_shown(&front, &new).await;
}

#[tokio::test]
async fn reload_of_the_configuration_looks_at_the_files_at_once() {
    let front = Front::start(|_, _| {}).await;
    let new = front.authority.server();
    let [certificate, _] = new.put(&front.directory.0, "server");
    front.listener.reconfigure(front.config.clone()).unwrap();
    assert_eq!(shown_now(&front).await, der(&new));
    // Files that are in use are no reason to refuse a configuration, but others are.
    fs::write(certificate, "no PEM").unwrap();
    front.listener.reconfigure(front.config.clone()).unwrap();
    assert_eq!(shown_now(&front).await, der(&new));
    let mut other = front.config.clone();
    other.tls.as_mut().unwrap().key = "/nowhere.key".into();
    let error = front.listener.reconfigure(other).unwrap_err();
    assert!(matches!(&error, Error::Tls { error, .. } if error.key == "certificate"), "{error}");
    assert_eq!(shown_now(&front).await, der(&new));
    front.listener.reconfigure(Config { tls: None, ..front.config.clone() }).unwrap();
    let mut plain = TcpStream::connect(front.address).await.unwrap();
    plain.write_all(b"hello").await.unwrap();
    // Connections that were only to see the certificate come first.
    loop {
        let (mut target, _) = front.target.accept().await.unwrap();
        let mut heard = [0; 5];
        if target.read_exact(&mut heard).await.is_ok() {
            assert_eq!(&heard, b"hello");
            break;
        }
    }
    assert_eq!(front.listener.report().tls, None);
}

#[tokio::test]
async fn report_says_until_when_the_certificate_is_good() {
    let front = Front::mutual(&Authority::new("the clients' CA").pem()).await;
    assert_eq!(front.listener.report().tls, Some(tls::Report { expiry: Some(EXPIRY), mutual: true }));
    // Whoever wants to keep an expired one may.
    let [_, _] = front.authority.expired_server().put(&front.directory.0, "server");
    front.listener.reconfigure(front.config.clone()).unwrap();
    let expired = front.listener.report().tls.and_then(|tls| tls.expiry);
    assert!(expired.is_some_and(|expiry| expiry < EXPIRY), "{expired:?}");
}

#[test]
fn every_file_that_cannot_be_used_is_told_with_its_key_and_why() {
    let (directory, authority) = (Directory::new(), Authority::new("the servers' CA"));
    let put = |name: &str, text: &str| -> PathBuf {
        let path = directory.0.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let [certificate, key] = authority.server().put(&directory.0, "server");
    let [_, other_key] = authority.server().put(&directory.0, "other");
    let good = tls::Config {
        certificate: certificate.clone(),
        key: key.clone(),
        client_ca: None,
        min_version: tls::Version::default(),
        alpn: Vec::new(),
    };
    tls::check(&good).unwrap();
    let missing = directory.0.join("missing.pem");
    let text = put("text", "no PEM");
    let cut = put("cut", "-----BEGIN CERTIFICATE-----\nMIIB\n");
    let empty = put("empty", "-----BEGIN CERTIFICATE-----\nMAAwAA==\n-----END CERTIFICATE-----\n");
    let encrypted = fs::read_to_string(&key).unwrap().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let encrypted = put("encrypted", &encrypted);
    let long = put("long", &"x".repeat((1 << 20) + 1));
    for (key, path, expected) in [
        ("certificate", &missing, "no such file; put it there, or name another"),
        ("certificate", &text, "no certificate in PEM is in it"),
        ("certificate", &key, "no certificate in PEM is in it"),
        ("certificate", &cut, "not PEM: "),
        ("certificate", &empty, "cannot be used: invalid peer certificate"),
        ("certificate", &long, "cannot be read: file too large"),
        ("certificate", &directory.0, "cannot be read: Is a directory"),
        ("key", &missing, "no such file"),
        ("key", &certificate, "no private key in PEM is in it"),
        ("key", &encrypted, "and is not encrypted"),
        ("key", &other_key, "not the key of the certificate in "),
        ("client_ca", &missing, "no such file"),
        ("client_ca", &text, "no certificate in PEM is in it"),
        ("client_ca", &empty, "cannot be a CA's"),
    ] {
        let mut config = good.clone();
        match key {
            "certificate" => config.certificate.clone_from(path),
            "key" => config.key.clone_from(path),
            _ => config.client_ca = Some(path.clone()),
        }
        let error = tls::check(&config).unwrap_err();
        let (message, place) = (error.to_string(), format!("{}: ", path.display()));
        assert_eq!(error.key, key, "{message}");
        assert!(message.starts_with(&place) && message.contains(expected), "{message}\n not {expected}");
        assert!(!message.contains('\n'), "{message}");
    }
}
