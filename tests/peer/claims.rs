//! Who may be whom.

use std::net::SocketAddr;

use egret::peer::{Down, Fault, Key, Refusal, bind};

use crate::node::{Node, assert_talking, config, pair, socket, vacant};
use crate::proxy::Proxy;
use crate::stranger::{frame, preamble, shout};

/// What `b` says to somebody with these first words, and finds.
async fn judged(dialling: &str, dialled: &str, version: u8) -> (Vec<u8>, Refusal) {
    let key = Key::generate().unwrap();
    let mut b = Node::start(config("b", &key, &[("a", vacant()), ("c", vacant())]), socket());
    let opening = [preamble(version, dialling, dialled), vec![0; 48]].concat();
    let heard = shout(b.link.listen(), &frame(&opening)).await;
    let refusal = b.refusal().await;
    assert_eq!(b.refused(refusal.label()), 1);
    assert!(b.pending().is_empty(), "nothing else has happened");
    (heard, refusal)
}

#[tokio::test]
async fn names_that_do_not_fit_are_refused_and_told() {
    for (dialling, dialled, fault, code) in [
        ("d", "b", Fault::Unknown, 4),
        ("b", "b", Fault::OwnName, 3),
        ("a", "c", Fault::Misdirected, 5),
        ("c", "b", Fault::Role, 6),
        ("a", "b", Fault::Key, 7),
        ("A", "b", Fault::NotEgret, 1),
        ("", "b", Fault::NotEgret, 1),
        ("a b", "b", Fault::NotEgret, 1),
    ] {
        let (heard, refusal) = judged(dialling, dialled, 1).await;
        assert_eq!(refusal, Refusal::Fault(fault), "{dialling} to {dialled}");
        assert_eq!(heard, frame(&[b'e', b'g', b'r', b'e', b't', 1, code]), "{dialling} to {dialled}");
    }
}

#[tokio::test]
async fn another_version_is_refused_by_its_number() {
    let (heard, refusal) = judged("a", "b", 2).await;
    assert_eq!(refusal, Refusal::Fault(Fault::Version(2)));
    assert_eq!(heard, frame(b"egret\x01\x02"));
    assert!(refusal.to_string().contains("speaks version 2 of the peers' protocol, not 1"), "{refusal}");
}

#[tokio::test]
async fn dialled_peer_of_another_version_is_refused_by_its_number() {
    let later = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = Key::generate().unwrap();
    let mut a = Node::start(config("a", &key, &[("b", later.local_addr().unwrap())]), socket());
    let (mut stream, _) = later.accept().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &frame(b"egret\x02\x02")).await.unwrap();
    assert_eq!(a.refusal().await, Refusal::Fault(Fault::Version(2)));
    assert!(a.of("b").last_error.unwrap().contains("speaks version 2"));
}

#[tokio::test]
async fn wrong_key_is_told_on_both_sides_and_right_one_connects() {
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let (key, wrong) = (Key::generate().unwrap(), Key::generate().unwrap());
    let mut b = Node::start(config("b", &key, &[("a", at_a)]), other);
    let mut a = Node::start(config("a", &wrong, &[("b", at_b)]), one);
    assert_eq!(a.refusal().await, Refusal::Told(Fault::Key));
    assert_eq!(b.refusal().await, Refusal::Fault(Fault::Key));
    assert!(a.of("b").connected.is_none() && b.of("a").connected.is_none());
    let told = a.of("b").last_error.unwrap();
    assert!(told.contains("the peer says of this instance that it has another key"), "{told}");
    a.link.reconfigure(config("a", &key, &[("b", at_b)]), None).unwrap();
    a.up("b").await;
    b.up("a").await;
    assert_talking(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn key_alone_does_not_make_an_instance_that_is_no_peer_one() {
    let key = Key::generate().unwrap();
    let (mut a, mut b) = pair(&key).await;
    let mut d = Node::start(config("aa", &key, &[("b", b.link.listen())]), socket());
    assert_eq!(d.refusal().await, Refusal::Told(Fault::Unknown));
    assert_eq!(b.refusal().await, Refusal::Fault(Fault::Unknown));
    assert_talking(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn second_instance_of_a_name_gets_in_only_when_the_first_is_gone() {
    let key = Key::generate().unwrap();
    let (mut a, mut b) = pair(&key).await;
    let elsewhere = bind("127.0.0.2:0".parse::<SocketAddr>().unwrap()).unwrap();
    let mut second = Node::start(config("a", &key, &[("b", b.link.listen())]), elsewhere);
    assert_eq!(second.refusal().await, Refusal::Told(Fault::Claimed));
    assert_eq!(b.refusal().await, Refusal::Fault(Fault::Claimed));
    assert_talking(&mut a, &mut b, 1).await;
    assert_eq!(b.of("a").counters.connections, 1);
    drop(a);
    assert!(matches!(b.down("a").await, Down::Closed | Down::Io(_)));
    second.up("b").await;
    b.up("a").await;
    assert_talking(&mut second, &mut b, 2).await;
}

#[tokio::test]
async fn peer_that_has_started_anew_takes_the_place_of_its_old_connection() {
    let key = Key::generate().unwrap();
    let other = socket();
    let at_b = other.local_addr().unwrap();
    let way = Proxy::start(at_b);
    let mut b = Node::start(config("b", &key, &[("a", vacant())]), other);
    let mut a = Node::start(config("a", &key, &[("b", way.address)]), socket());
    a.up("b").await;
    b.up("a").await;
    // It goes without a word, as with the power.
    way.swallow();
    drop(a);
    let mut anew = Node::start(config("a", &key, &[("b", way.address)]), socket());
    anew.up("b").await;
    assert_eq!(b.down("a").await, Down::Replaced);
    b.up("a").await;
    assert_talking(&mut anew, &mut b, 1).await;
    assert_eq!(b.of("a").counters.connections, 2);
}
