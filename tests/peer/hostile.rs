//! Strangers, and somebody on the way.

use std::time::Duration;

use egret::failover::Message;
use egret::peer::{Event, Fault, Key, Refusal, payload};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::node::{Node, assert_talking, config, hello, offer, pair, socket, vacant};
use crate::proxy::{Flip, Proxy};
use crate::stranger::{Stranger, frame, preamble, shout};

#[tokio::test]
async fn who_connects_and_says_nothing_is_shown_out() {
    let mut b = Node::start(config("b", &Key::generate().unwrap(), &[("a", vacant())]), socket());
    let start = Instant::now();
    let heard = timeout(Duration::from_secs(10), shout(b.link.listen(), b"")).await.unwrap();
    assert!(heard.is_empty());
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(1900) && waited < Duration::from_secs(8), "{waited:?}");
    assert_eq!(b.refusal().await, Refusal::Late);
}

#[tokio::test]
async fn bytes_that_are_not_of_the_protocol_are_refused() {
    let mut b = Node::start(config("b", &Key::generate().unwrap(), &[("a", vacant())]), socket());
    let mut cut = preamble(1, "a", "b");
    cut.truncate(9);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame(b"SSH-2.0-OpenSSH_10.0"),
        frame(b""),
        frame(&cut),
        frame(&[b"egret\x01\xff".to_vec(), vec![b'a'; 100]].concat()),
        [0xff, 0xff].to_vec(),
    ] {
        let heard = timeout(Duration::from_secs(10), shout(b.link.listen(), &bytes)).await.unwrap();
        assert!(heard.is_empty() || heard == frame(b"egret\x01\x01"), "{heard:?}");
        assert_eq!(b.refusal().await, Refusal::Fault(Fault::NotEgret), "{bytes:?}");
    }
    assert_eq!(b.refused("not_egret"), 6);
}

#[tokio::test]
async fn hundred_who_say_nothing_do_not_keep_a_peer_out() {
    let key = Key::generate().unwrap();
    let (mut a, mut b) = pair(&key).await;
    let at_b = b.link.listen();
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(at_b).await.unwrap());
    }
    // Whom it talks to already does not notice.
    assert_talking(&mut a, &mut b, 1).await;
    assert_eq!(b.of("a").counters.connections, 1);
    while b.refused("crowded") < 84 {
        b.next().await;
    }
    drop(a);
    b.down("a").await;
    let start = Instant::now();
    let mut again = Node::start(config("a", &key, &[("b", at_b)]), socket());
    again.up("b").await;
    b.up("a").await;
    assert!(start.elapsed() < Duration::from_millis(1900), "places were free only when they had run out");
    assert_talking(&mut again, &mut b, 2).await;
}

#[tokio::test]
async fn replayed_connection_leads_nowhere_and_leaves_the_true_one() {
    let key = Key::generate().unwrap();
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let way = Proxy::start(at_b);
    let mut b = Node::start(config("b", &key, &[("a", at_a)]), other);
    let mut a = Node::start(config("a", &key, &[("b", way.address)]), one);
    a.up("b").await;
    b.up("a").await;
    assert_talking(&mut a, &mut b, 1).await;
    let recorded = way.recorded(0);
    assert!(recorded.len() > 200, "the introduction and a message are in it");
    let heard = shout(at_b, &recorded).await;
    assert_eq!(heard.len(), 2 + 7 + 48, "it is answered as anybody, and not introduced to");
    assert_eq!(b.refusal().await, Refusal::Fault(Fault::Key));
    assert_talking(&mut a, &mut b, 2).await;
    assert_eq!(b.of("a").counters.connections, 1);
    assert!(b.pending().is_empty(), "the replayed message was not heard");
}

#[tokio::test]
async fn message_that_is_sent_twice_on_the_way_ends_the_connection() {
    let key = Key::generate().unwrap();
    let mut b = Node::start(config("b", &key, &[("a", vacant())]), socket());
    let mut a = Stranger::introduced(b.link.listen(), &key, "a", "b").await;
    b.up("a").await;
    let sealed = a.seal(&payload::message(&offer(1)).unwrap());
    a.write(&sealed).await;
    assert_eq!(b.message().await, ("a".to_owned(), offer(1)));
    a.write(&sealed).await;
    assert_eq!(b.next().await, Event::Down { peer: "a".to_owned(), why: egret::peer::Down::Mangled });
}

#[tokio::test]
async fn name_that_was_changed_on_its_way_to_another_peers_does_not_verify() {
    let key = Key::generate().unwrap();
    let seat = socket();
    let at_d = seat.local_addr().unwrap();
    let mut d = Node::start(config("d", &key, &[("a", vacant()), ("c", vacant())]), seat);
    // Of an `a` it makes a `c`.
    let name = Flip { to_dialled: true, offset: 2 + 5 + 1 + 1, bit: 1 };
    let way = Proxy::start_flipping(at_d, Some(name));
    let mut a = Node::start(config("a", &key, &[("d", way.address)]), socket());
    assert_eq!(
        d.until(|event| match event {
            Event::Refused { peer, why, .. } => Some((peer, why)),
            _ => None,
        })
        .await,
        (Some("c".to_owned()), Refusal::Fault(Fault::Key))
    );
    a.up("d").await;
    d.up("a").await;
}

/// With this bit changed on the way, nothing but what was sent is heard, and the next connection works.
async fn recovers(flip: Flip) {
    let key = Key::generate().unwrap();
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let way = Proxy::start_flipping(at_b, Some(flip));
    let silence = Duration::from_secs(3);
    let of = |name, peer| egret::peer::Config { silence, ..config(name, &key, &[peer]) };
    let mut nodes = [Node::start(of("a", ("b", way.address)), one), Node::start(of("b", ("a", at_a)), other)];
    let (start, mut heard, mut bad) = (Instant::now(), [false, false], 0);
    let mut beats = tokio::time::interval(Duration::from_millis(100));
    while heard != [true, true] || way.connections() < 2 {
        beats.tick().await;
        assert!(start.elapsed() < Duration::from_secs(60), "{flip:?}: {:#?}", nodes[1].link.report());
        for (at, node) in nodes.iter_mut().enumerate() {
            let _ = node.link.send(["b", "a"][at], &offer(7));
            for event in node.pending() {
                match event {
                    Event::Message { message, .. } => {
                        assert_eq!(message, offer(7), "{flip:?}");
                        heard[at] = way.connections() > 1;
                    }
                    Event::Up { peer, hello: introduced } => assert_eq!(introduced, hello(&peer), "{flip:?}"),
                    Event::Down { .. } | Event::Refused { .. } => bad += 1,
                }
            }
        }
    }
    assert!(way.has_flipped(), "{flip:?}");
    assert!(bad > 0, "{flip:?} was noticed");
}

/// The bytes of the first connection: openings of 60 and 57, and then introductions and messages.
#[tokio::test]
async fn every_changed_byte_is_noticed_and_the_link_recovers() {
    let mut random = Random(0x0e67_7e74);
    let opening = 2 + preamble(1, "a", "b").len() + 48;
    let answer = 2 + 7 + 48;
    let whole = [(true, opening), (false, answer)]
        .into_iter()
        .flat_map(|(to_dialled, length)| (0..length).map(move |offset| (to_dialled, offset)))
        .collect::<Vec<_>>();
    let sampled = (0..60).map(|number| match number % 2 {
        0 => (true, opening + random.below(700)),
        _ => (false, answer + random.below(700)),
    });
    let cases: Vec<_> = whole.into_iter().chain(sampled.collect::<Vec<_>>()).collect();
    for batch in cases.chunks(64) {
        let mut running = JoinSet::new();
        for (to_dialled, offset) in batch.iter().copied() {
            let bit = u8::try_from(random.below(8)).unwrap();
            running.spawn(recovers(Flip { to_dialled, offset, bit }));
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn peer_without_an_introduction_is_refused() {
    let key = Key::generate().unwrap();
    let other = Message::Hello(hello("c"));
    let mut impossible = hello("a");
    impossible.gateway.allocations.clear();
    for first in [
        payload::message(&offer(1)).unwrap(),
        payload::message(&other).unwrap(),
        payload::message(&Message::Hello(impossible)).unwrap(),
        b"\x01{}".to_vec(),
        vec![200, 1, 2, 3],
        Vec::new(),
    ] {
        let mut b = Node::start(config("b", &key, &[("a", vacant())]), socket());
        let mut a = Stranger::connect(b.link.listen(), &key, "a", "b").await;
        a.send(&first).await;
        assert_eq!(a.receive().await, None, "{first:?}");
        assert_eq!(b.refusal().await, Refusal::Fault(Fault::Hello));
    }
}

#[tokio::test]
async fn what_is_not_understood_is_counted_and_left_out() {
    let key = Key::generate().unwrap();
    let mut b = Node::start(config("b", &key, &[("a", vacant())]), socket());
    let mut a = Stranger::introduced(b.link.listen(), &key, "a", "b").await;
    b.up("a").await;
    let mut impossible = hello("a");
    impossible.eni = "vpc-1".to_owned();
    for unknown in [
        Vec::new(),
        vec![77; 5000],
        b"\x01{\"kind\":\"farewell\"}".to_vec(),
        b"\x01not JSON".to_vec(),
        [vec![1], vec![b'['; 60_000]].concat(),
        payload::message(&Message::Hello(hello("c"))).unwrap(),
        payload::message(&Message::Hello(impossible)).unwrap(),
        payload::refused(Fault::Key),
    ] {
        a.send(&unknown).await;
    }
    a.send(&payload::message(&offer(1)).unwrap()).await;
    assert_eq!(b.message().await, ("a".to_owned(), offer(1)), "the first that is understood");
    assert_eq!(b.of("a").counters.unknown, 8);
    assert!(b.link.send("a", &offer(2)));
    assert_eq!(a.receive().await, Some(payload::message(&offer(2)).unwrap()));
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }
}
