//! What the network does to links.

use std::time::Duration;

use egret::failover::Message;
use egret::peer::{Config, Down, Event, Key};
use tokio::time::{Instant, interval, timeout};

use crate::node::{Node, config, heartbeat, hello, offer, socket, vacant};
use crate::proxy::Proxy;

/// Not so short that a laden machine is silent for as long.
const SILENCE: Duration = Duration::from_secs(2);

fn impatient(config: Config) -> Config {
    Config { silence: SILENCE, ..config }
}

/// Has both send heartbeats, and looks at what happens until it has seen enough.
async fn beat(nodes: &mut [Node], mut seen: impl FnMut(usize, Event) -> bool) {
    let mut beats = interval(Duration::from_millis(50));
    let start = Instant::now();
    for sequence in 0.. {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:#?}",
            nodes.iter().map(|n| n.link.report()).collect::<Vec<_>>()
        );
        beats.tick().await;
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        for (at, node) in nodes.iter_mut().enumerate() {
            for name in names.iter().filter(|name| **name != node.name) {
                let _ = node.link.send(name, &heartbeat(sequence));
            }
            for event in node.pending() {
                if seen(at, event) {
                    return;
                }
            }
        }
    }
}

#[tokio::test]
async fn silent_connection_is_given_up_by_both_sides_and_made_anew() {
    let key = Key::generate().unwrap();
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let way = Proxy::start(at_b);
    let b = Node::start(impatient(config("b", &key, &[("a", at_a)])), other);
    let a = Node::start(impatient(config("a", &key, &[("b", way.address)])), one);
    let mut nodes = [a, b];
    let mut beats = [0, 0];
    beat(&mut nodes, |at, event| {
        assert!(!matches!(event, Event::Down { .. }), "{event:?}");
        beats[at] += usize::from(matches!(event, Event::Message { message: Message::Heartbeat(_), .. }));
        beats.iter().all(|beats| *beats > 20)
    })
    .await;
    way.swallow();
    let start = Instant::now();
    let (mut downs, mut ups) = ([None, None], [false, false]);
    beat(&mut nodes, |at, event| {
        match event {
            Event::Down { why, .. } => downs[at] = downs[at].or(Some((why, start.elapsed()))),
            Event::Up { .. } => ups[at] = true,
            _ => {}
        }
        ups == [true, true]
    })
    .await;
    let (why, after) = downs[0].unwrap();
    assert_eq!(why, Down::Silent);
    assert!(after >= SILENCE / 2, "{after:?}");
    // The other side may be told by the new connection before it notices.
    assert!(matches!(downs[1].unwrap().0, Down::Silent | Down::Replaced), "{downs:?}");
    assert_eq!(way.connections(), 2);
}

#[tokio::test]
async fn who_says_nothing_after_its_introduction_is_given_up() {
    let key = Key::generate().unwrap();
    let mut b = Node::start(impatient(config("b", &key, &[("a", vacant())])), socket());
    let mut quiet = crate::stranger::Stranger::introduced(b.link.listen(), &key, "a", "b").await;
    b.up("a").await;
    assert_eq!(b.down("a").await, Down::Silent);
    assert_eq!(quiet.receive().await, None);
}

#[tokio::test]
async fn peer_that_does_not_read_costs_little_and_delays_nobody() {
    let key = Key::generate().unwrap();
    let seats = [socket(), socket(), socket()];
    let [at_a, at_b, at_c] = seats.each_ref().map(|seat| seat.local_addr().unwrap());
    let [at, bt, ct] = seats;
    let way = Proxy::start(at_b);
    // It gives up later than the other side, which is the one that is stalled.
    let of_a = Config { silence: Duration::from_secs(6), ..config("a", &key, &[("b", way.address)]) };
    let mut a = Node::start(of_a, at);
    let of_b =
        Config { silence: Duration::from_millis(1500), ..config("b", &key, &[("a", at_a), ("c", at_c)]) };
    let mut b = Node::start(of_b, bt);
    let mut c = Node::start(config("c", &key, &[("b", at_b)]), ct);
    a.up("b").await;
    c.up("b").await;
    let mut up = 0;
    while up < 2 {
        up += usize::from(matches!(b.next().await, Event::Up { .. }));
    }
    way.stall_dialling_side();
    // Each is a few kilobytes, more than all buffers on the way hold together.
    let mut long = hello("b");
    long.gateway.route_tables = (0..100).map(|number| format!("rtb-{number:017x}")).collect();
    let long = Message::Hello(long);
    let (start, mut last) = (Instant::now(), 0);
    for number in 0.. {
        // What it takes in keeps the connection with it alive: it is the sending that stalls.
        let _ = a.link.send("b", &offer(number));
        let is_connected = b.link.send("a", &long) && b.link.send("a", &heartbeat(number));
        assert!(b.link.send("c", &offer(number)));
        let sent = Instant::now();
        assert_eq!(
            timeout(Duration::from_secs(5), c.message()).await.unwrap(),
            ("b".to_owned(), offer(number))
        );
        assert!(sent.elapsed() < Duration::from_secs(1), "the other peer waits {:?}", sent.elapsed());
        if !is_connected {
            last = number;
            break;
        }
        assert!(c.link.send("b", &heartbeat(number)));
        assert!(start.elapsed() < Duration::from_secs(20), "{:#?}", b.link.report());
    }
    assert_eq!(b.down("a").await, Down::Stalled);
    let counters = b.of("a").counters;
    assert!(counters.dropped > 0 && counters.dropped < 2 * last, "{counters:?}");
    // And once it reads again, it is there again: the next connection is not held.
    a.up("b").await;
    b.up("a").await;
}
