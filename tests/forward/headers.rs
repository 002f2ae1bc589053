//! Who the client is, by the PROXY protocol.

use std::net::SocketAddr;
use std::time::Duration;

use egret::forward::Config;
use egret::forward::proxy_protocol::{self, Header, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::target::{Target, config, start};

const CLIENT: &str = "203.0.113.9:40000";
const FRONT: &str = "198.51.100.1:443";

/// What a target is told first, and what comes after it.
async fn received(target: &TcpListener) -> (Header, Vec<u8>) {
    let (mut stream, _) = target.accept().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let (header, length) = proxy_protocol::parse(&all).unwrap().expect("a whole header");
    (header, all.split_off(length))
}

/// A target that is not checked: its queue is for the one connection of the test.
async fn unchecked() -> (TcpListener, SocketAddr) {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    (target, address)
}

#[tokio::test]
async fn target_is_told_who_the_client_is() {
    for version in [Version::V1, Version::V2] {
        let (target, address) = unchecked().await;
        let mut config = config(&[address]);
        config.group.health.interval = Duration::from_secs(60);
        config.proxy_protocol = Some(version);
        let (_listener, listen) = start(config);
        let mut client = TcpStream::connect(listen).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let expected = Header::Proxied { source: client.local_addr().unwrap(), destination: listen };
        loop {
            // A check may come first, which says nothing.
            let (mut stream, _) = target.accept().await.unwrap();
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).await.is_err() || all.is_empty() {
                continue;
            }
            let (header, length) = proxy_protocol::parse(&all).unwrap().expect("a whole header");
            assert_eq!((header, &all[length..]), (expected, &b"hello"[..]));
            break;
        }
    }
}

#[tokio::test]
async fn header_of_a_front_is_taken_however_it_is_cut_and_passed_on() {
    let (source, destination): (SocketAddr, SocketAddr) = (CLIENT.parse().unwrap(), FRONT.parse().unwrap());
    for version in [Version::V1, Version::V2] {
        let header = proxy_protocol::encode(version, source, destination);
        for cut in [1, 5, 12, header.len() - 1, header.len()] {
            let (target, address) = unchecked().await;
            let mut config = config(&[address]);
            config.group.health.interval = Duration::from_secs(60);
            config.check.port = Some(1);
            config.proxy_protocol = Some(Version::V2);
            config.accept_proxy_protocol = true;
            let (_listener, listen) = start(config);
            let mut client = TcpStream::connect(listen).await.unwrap();
            client.set_nodelay(true).unwrap();
            client.write_all(&header[..cut]).await.unwrap();
            // So that the rest does not come together with it.
            tokio::time::sleep(Duration::from_millis(5)).await;
            client.write_all(&[&header[cut..], b"hello"].concat()).await.unwrap();
            client.shutdown().await.unwrap();
            let (told, rest) = received(&target).await;
            assert_eq!(told, Header::Proxied { source, destination });
            assert_eq!(rest, b"hello");
        }
    }
}

#[tokio::test]
async fn connection_without_the_header_that_is_demanded_is_reset() {
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 nonsense\r\n", &[0; 300]] {
        let (_target, address) = unchecked().await;
        let mut config = config(&[address]);
        config.accept_proxy_protocol = true;
        let (listener, listen) = start(config);
        let mut client = TcpStream::connect(listen).await.unwrap();
        client.write_all(first).await.unwrap();
        client.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(listener.report().counters.bad_headers, 1);
    }
}

#[tokio::test]
async fn target_that_speaks_first_is_not_kept_waiting_by_a_header() {
    let target = Target::start("well");
    let (_listener, listen) = start(Config { accept_proxy_protocol: true, ..config(&[target.address]) });
    let header = proxy_protocol::encode(Version::V2, CLIENT.parse().unwrap(), FRONT.parse().unwrap());
    // If the target's SYN were acknowledged late, by the kernel alone, each time would take 200 ms; anything else is chance.
    let mut took = Vec::new();
    while took.iter().all(|took| *took > Duration::from_millis(30)) {
        assert!(took.len() < 10, "{took:?}");
        let mut client = TcpStream::connect(listen).await.unwrap();
        let begin = Instant::now();
        client.write_all(&header).await.unwrap();
        client.read_exact(&mut [0; 8]).await.unwrap();
        took.push(begin.elapsed());
    }
}
