//! What clients see that come by TLS, and what their targets see of it.

use std::time::Duration;

use egret::forward::proxy_protocol::{self, Header, Version};
use egret::forward::tls;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::pki::{Authority, Identity};
use crate::target::wait_for;
use crate::tls_support::{Client, Front, assert_reset};

/// Waits until a relay is over, and gives how many ended in some way.
async fn ended(front: &Front, count: impl Fn(egret::forward::Counters) -> u64) -> u64 {
    while front.listener.report().admission.open > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    count(front.listener.report().counters)
}

/// Different at each place, so that nothing can be lost, doubled or moved unseen.
fn bytes(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn everything_comes_through_both_ways_at_once() {
    let front = Front::start(|_, _| {}).await;
    for old in [false, true] {
        let (client, target) = front.connect(&Client { old, ..front.client() }).await;
        let (asked, answered) = (bytes(50_000_001, 1), bytes(50_000_003, 2));
        let (mut got_asked, mut got_answered) = (Vec::new(), Vec::new());
        let (mut client_in, mut client_out) = split(client);
        let (mut target_in, mut target_out) = target.into_split();
        tokio::try_join!(
            async {
                client_out.write_all(&asked).await?;
                client_out.shutdown().await
            },
            async {
                target_out.write_all(&answered).await?;
                target_out.shutdown().await
            },
            client_in.read_to_end(&mut got_answered),
            target_in.read_to_end(&mut got_asked),
        )
        .unwrap();
        assert!(got_asked == asked && got_answered == answered);
    }
    assert_eq!(ended(&front, |counters| counters.closed).await, 2);
    let counters = front.listener.report().counters;
    assert_eq!((counters.bytes_to_target, counters.bytes_to_client), (100_000_002, 100_000_006));
}

#[tokio::test]
async fn answer_still_comes_after_the_client_has_said_its_last() {
    let front = Front::start(|_, _| {}).await;
    let (mut client, mut target) = front.connect(&front.client()).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    target.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    for part in ["first ", "second"] {
        target.write_all(part.as_bytes()).await.unwrap();
        let mut got = vec![0; part.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, part.as_bytes());
    }
    drop(target);
    // An end without close_notify would be an error here.
    assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    assert_eq!(ended(&front, |counters| counters.closed).await, 1);
}

#[tokio::test]
async fn client_can_go_on_after_the_target_has_said_its_last() {
    let front = Front::start(|_, _| {}).await;
    let (mut client, mut target) = front.connect(&front.client()).await;
    target.write_all(b"greeting").await.unwrap();
    target.shutdown().await.unwrap();
    let mut greeting = String::new();
    client.read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "greeting");
    for part in ["first ", "second"] {
        client.write_all(part.as_bytes()).await.unwrap();
        let mut got = vec![0; part.len()];
        target.read_exact(&mut got).await.unwrap();
        assert_eq!(got, part.as_bytes());
    }
    client.shutdown().await.unwrap();
    assert_eq!(target.read(&mut [0; 16]).await.unwrap(), 0);
    assert_eq!(ended(&front, |counters| counters.closed).await, 1);
}

#[tokio::test]
async fn data_that_somebody_may_have_cut_off_does_not_end_in_good_order() {
    let front = Front::start(|_, _| {}).await;
    let (mut client, mut target) = front.connect(&front.client()).await;
    client.write_all(b"half of a quest").await.unwrap();
    target.read_exact(&mut [0; 15]).await.unwrap();
    // TCP ends, and TLS has not.
    client.get_mut().0.shutdown().await.unwrap();
    assert_reset(target.read(&mut [0; 16]).await);
    assert_eq!(ended(&front, |counters| counters.reset_by_client).await, 1);
}

#[tokio::test]
async fn client_that_has_heard_the_end_may_just_go() {
    let front = Front::start(|_, _| {}).await;
    let (mut client, mut target) = front.connect(&front.client()).await;
    target.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    client.get_mut().0.shutdown().await.unwrap();
    assert_eq!(target.read(&mut [0; 16]).await.unwrap(), 0);
    assert_eq!(ended(&front, |counters| counters.closed).await, 1);
}

/// A target that resets while it is still told more: the error is told to whoever sends to it first.
#[tokio::test]
async fn half_of_an_answer_is_not_taken_for_the_whole() {
    let front = Front::start(|_, _| {}).await;
    for old in [false, true] {
        let (mut client, mut target) = front.connect(&Client { old, ..front.client() }).await;
        // Until there is no more room on the way.
        let more = bytes(64 << 10, 1);
        let full = async { while client.write_all(&more).await.is_ok() {} };
        timeout(Duration::from_millis(500), full).await.expect_err("a target that does not read");
        target.write_all(b"half").await.unwrap();
        SockRef::from(&target).set_linger(Some(Duration::ZERO)).unwrap();
        drop(target);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.expect_err("no end in good order");
        assert!(b"half".starts_with(&heard));
    }
    assert_eq!(ended(&front, |counters| counters.reset_by_target).await, 2);
}

#[tokio::test]
async fn reset_of_one_side_is_a_reset_of_the_other() {
    let front = Front::start(|_, _| {}).await;
    let (client, mut target) = front.connect(&front.client()).await;
    SockRef::from(client.get_ref().0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_reset(target.read(&mut [0; 16]).await);
    assert_eq!(ended(&front, |counters| counters.reset_by_client).await, 1);

    let (mut client, mut target) = front.connect(&front.client()).await;
    // Nobody takes this for a connect that failed.
    target.write_all(b"hello").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    SockRef::from(&target).set_linger(Some(Duration::ZERO)).unwrap();
    drop(target);
    assert_reset(client.read(&mut [0; 16]).await);
    assert_eq!(ended(&front, |counters| counters.reset_by_target).await, 1);
}

#[tokio::test]
async fn target_is_held_back_by_a_client_that_does_not_read_and_reset_with_it() {
    let front = Front::start(|_, _| {}).await;
    let (client, mut target) = front.connect(&front.client()).await;
    let (chunk, mut sent) = ([0; 8 << 10], 0);
    while let Ok(written) = timeout(Duration::from_millis(300), target.write(&chunk)).await {
        sent += written.unwrap();
        // The buffers of four sockets, and some more.
        assert!(sent < 32 << 20, "{sent} bytes were taken");
    }
    SockRef::from(client.get_ref().0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_reset(target.read(&mut [0; 16]).await);
}

#[tokio::test]
async fn both_are_reset_after_the_idle_time() {
    let front = Front::start(|config, _| config.idle_timeout = Duration::from_millis(300)).await;
    let (mut client, mut target) = front.connect(&front.client()).await;
    assert_reset(client.read(&mut [0; 16]).await);
    assert_reset(target.read(&mut [0; 16]).await);
    assert_eq!(ended(&front, |counters| counters.idle).await, 1);
}

/// Says something to the target and hears the answer, or why not.
async fn asks(front: &Front, client: &Client) -> std::io::Result<()> {
    let mut stream = client.connect(front.address).await?;
    stream.write_all(b"hello").await?;
    let talk = async {
        let (mut target, _) = front.target.accept().await.unwrap();
        target.read_exact(&mut [0; 5]).await.unwrap();
        target.write_all(b"hello").await.unwrap();
    };
    let mut heard = [0; 5];
    tokio::select! {
        read = stream.read_exact(&mut heard) => read.map(drop),
        () = talk => stream.read_exact(&mut heard).await.map(drop),
    }
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_authority_reach_a_target() {
    let clients = Authority::new("the clients' CA");
    let front = Front::mutual(&clients.pem()).await;
    for old in [false, true] {
        for (identity, expected) in [
            (None, "CertificateRequired"),
            (Some(Authority::new("the clients' CA").client()), ""),
            (Some(Authority::new("another CA").client()), "UnknownCA"),
            (Some(Identity::self_signed("client.example")), "UnknownCA"),
            // The authority of the servers has no say in who are clients.
            (Some(front.authority.client()), "UnknownCA"),
        ] {
            let error = asks(&front, &Client { identity, old, ..front.client() }).await.expect_err("no entry");
            // Clients of TLS 1.2 are told with less words.
            assert!(old || error.to_string().contains(expected), "{error}, not {expected}");
        }
        assert_eq!(front.reached(), u64::from(old));
        asks(&front, &Client { identity: Some(clients.client()), old, ..front.client() }).await.unwrap();
    }
    // One is counted when its client has been told.
    wait_for(&front.listener, |report| report.counters.handshakes_failed == 10).await;
    assert_eq!(front.reached(), 2);
}

#[tokio::test]
async fn certificate_that_is_its_own_authority_can_be_named_itself() {
    let gateway = Identity::self_signed("ApiGateway");
    let front = Front::mutual(&gateway.certificate).await;
    asks(&front, &Client { identity: Some(Identity::self_signed("ApiGateway")), ..front.client() })
        .await
        .expect_err("another of the same name");
    asks(&front, &Client { identity: Some(gateway), ..front.client() }).await.unwrap();
}

#[tokio::test]
async fn who_speaks_no_tls_is_sent_away() {
    let front = Front::start(|_, _| {}).await;
    let mut client = TcpStream::connect(front.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: api.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, and the end: not a reset, which might overtake it.
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    drop(client);
    let failed = ended(&front, |counters| counters.handshakes_failed).await;
    assert_eq!((failed, front.reached()), (1, 0));
}

#[tokio::test]
async fn client_that_is_slow_to_say_who_it_is_is_reset() {
    let front = Front::start(|_, _| {}).await;
    let start = Instant::now();
    let mut client = TcpStream::connect(front.address).await.unwrap();
    // The begin of a ClientHello, that says how long it is, and then a byte now and then.
    client.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
    let (mut reader, mut writer) = client.split();
    let mut answer = [0; 16];
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Err(error) = writer.write_all(&[0]).await {
                return error;
            }
        }
    };
    // Whoever of the two sees the reset first takes it away from the other.
    tokio::select! {
        read = reader.read(&mut answer) => assert_reset(read),
        error = drip => assert_reset(Err(error)),
    }
    let elapsed = start.elapsed().as_secs();
    assert!((9..=11).contains(&elapsed), "{elapsed} s");
    assert_eq!(ended(&front, |counters| counters.handshakes_failed).await, 1);
}

#[tokio::test]
async fn versions_and_protocols_are_agreed_upon_as_configured() {
    let front = Front::start(|config, _| {
        let tls = config.tls.as_mut().unwrap();
        tls.min_version = tls::Version::Tls13;
        tls.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    })
    .await;
    front.client().connect(front.address).await.expect("without a protocol");
    let alpn = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let stream = Client { alpn, ..front.client() }.connect(front.address).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    Client { alpn: vec![b"smtp".to_vec()], ..front.client() }
        .connect(front.address)
        .await
        .expect_err("no smtp");
    Client { old: true, ..front.client() }.connect(front.address).await.expect_err("too old");
}

#[tokio::test]
async fn header_of_a_front_comes_before_tls_and_goes_to_the_target_without_it() {
    let front = Front::start(|config, _| {
        config.accept_proxy_protocol = true;
        config.proxy_protocol = Some(Version::V1);
    })
    .await;
    let (source, destination) = ("203.0.113.9:40000".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(&proxy_protocol::encode(Version::V2, source, destination)).await.unwrap();
    let client = front.client();
    let (client, accepted) = tokio::join!(client.connect_on(stream), front.target.accept());
    let (mut client, (mut target, _)) = (client.unwrap(), accepted.unwrap());
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    target.read_to_end(&mut all).await.unwrap();
    let (header, length) = proxy_protocol::parse(&all).unwrap().expect("a whole header");
    assert_eq!((header, &all[length..]), (Header::Proxied { source, destination }, &b"hello"[..]));
}
