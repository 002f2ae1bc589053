//! Peers find each other, and go on when the configuration changes.

use std::net::SocketAddr;
use std::time::Duration;

use egret::peer::{Config, Down, Event, Fault, Key, Refusal, bind};

use crate::node::{Node, assert_talking, config, heartbeat, hello, offer, pair, socket, socket_at, vacant};
use crate::proxy::Proxy;

#[tokio::test]
async fn peers_find_each_other_in_any_order_of_starting() {
    let key = Key::generate().unwrap();
    let names = ["a", "b", "c"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let addresses = names.map(|_| vacant());
        let mut nodes: [Option<Node>; 3] = [const { None }; 3];
        for at in order {
            let others = (0..3).filter(|other| *other != at).map(|other| (names[other], addresses[other]));
            let config = config(names[at], &key, &others.collect::<Vec<_>>());
            nodes[at] = Some(Node::start(config, bind(addresses[at]).unwrap()));
            // Whoever is there already has dialled in vain.
            for node in nodes.iter().flatten().filter(|_| at == order[0]) {
                let dialled: Vec<_> = names.iter().filter(|name| node.name.as_str() < **name).collect();
                while dialled.iter().any(|name| node.of(name).last_error.is_none()) {
                    tokio::task::yield_now().await;
                }
            }
        }
        let [mut a, mut b, mut c] = nodes.map(Option::unwrap);
        for node in [&mut a, &mut b, &mut c] {
            let mut missing: Vec<_> = names.iter().filter(|name| **name != node.name).collect();
            while !missing.is_empty() {
                let (peer, introduced) = node
                    .until(|event| match event {
                        Event::Up { peer, hello } => Some((peer, hello)),
                        _ => None,
                    })
                    .await;
                assert_eq!(introduced, hello(&peer));
                missing.retain(|name| **name != peer);
            }
        }
        assert_talking(&mut a, &mut b, 1).await;
        assert_talking(&mut b, &mut c, 2).await;
        assert_talking(&mut c, &mut a, 3).await;
    }
}

#[tokio::test]
async fn messages_arrive_as_they_were_and_in_their_order() {
    let (a, mut b) = pair(&Key::generate().unwrap()).await;
    for number in 0..50 {
        assert!(a.link.send("b", &offer(number)));
    }
    for number in 0..50 {
        assert_eq!(b.message().await, ("a".to_owned(), offer(number)));
    }
    let (sent, received) = (a.of("b").counters, b.of("a").counters);
    assert_eq!((sent.frames_sent, received.frames_received), (50, 50));
    assert_eq!(sent.bytes_sent, received.bytes_received);
    assert_eq!((sent.connections, received.connections), (1, 1));
    assert!(a.of("b").connected.is_some() && a.of("b").last_error.is_none());
}

#[tokio::test]
async fn nothing_is_sent_to_who_is_not_connected() {
    let key = Key::generate().unwrap();
    let a = Node::start(config("a", &key, &[("b", vacant())]), socket());
    assert!(!a.link.send("b", &heartbeat(1)));
    assert!(!a.link.send("c", &heartbeat(1)));
    assert!(!a.link.send("a", &heartbeat(1)));
}

#[tokio::test]
async fn who_has_ended_is_noticed_at_once_and_found_again() {
    let key = Key::generate().unwrap();
    for (stays, leaves) in [("a", "b"), ("b", "a")] {
        let (at_stays, at_leaves) = (socket(), vacant());
        let of_leaves = config(leaves, &key, &[(stays, at_stays.local_addr().unwrap())]);
        let mut stays = Node::start(config(stays, &key, &[(leaves, at_leaves)]), at_stays);
        for round in 0..3 {
            // Its port is free again as soon as it has ended.
            let mut other = Node::start(of_leaves.clone(), socket_at(at_leaves).await);
            stays.up(leaves).await;
            other.up(&stays.name).await;
            assert_talking(&mut stays, &mut other, round).await;
            drop(other);
            assert!(matches!(stays.down(leaves).await, Down::Closed | Down::Io(_)));
            assert!(!stays.link.send(leaves, &offer(round)), "there is no connection");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn peers_come_and_go_by_configuration_while_others_go_on() {
    let key = Key::generate().unwrap();
    let (mut a, mut b) = pair(&key).await;
    let (at_a, at_b) = (a.link.listen(), b.link.listen());
    let third = socket();
    let at_c = third.local_addr().unwrap();
    let mut c = Node::start(config("c", &key, &[("a", at_a)]), third);
    // Until it is configured, it is nobody.
    a.link.reconfigure(config("a", &key, &[("b", at_b), ("c", at_c)]), None).unwrap();
    a.up("c").await;
    c.up("a").await;
    assert_talking(&mut a, &mut c, 1).await;
    a.link.reconfigure(config("a", &key, &[("b", at_b)]), None).unwrap();
    assert_eq!(a.down("c").await, Down::Removed);
    assert!(matches!(c.down("a").await, Down::Closed | Down::Io(_)));
    assert_talking(&mut a, &mut b, 2).await;
    assert_eq!(a.of("b").counters.connections, 1);
    assert_eq!(a.link.report().peers.len(), 1);
    // On the side that does not dial as well.
    b.link.reconfigure(config("b", &key, &[]), None).unwrap();
    assert_eq!(b.down("a").await, Down::Removed);
    assert_eq!(a.until(told).await, Fault::Unknown);
}

#[expect(clippy::needless_pass_by_value, reason = "as `Node::until` wants it")]
fn told(event: Event) -> Option<Fault> {
    match event {
        Event::Refused { why: Refusal::Told(fault), .. } => Some(fault),
        _ => None,
    }
}

#[tokio::test]
async fn new_key_holds_for_new_connections_and_leaves_the_others() {
    let old = Key::generate().unwrap();
    let (mut a, mut b) = pair(&old).await;
    let (at_a, at_b) = (a.link.listen(), b.link.listen());
    let new = Key::generate().unwrap();
    a.link.reconfigure(config("a", &new, &[("b", at_b)]), None).unwrap();
    assert_talking(&mut a, &mut b, 1).await;
    b.link.reconfigure(config("b", &new, &[("a", at_a)]), None).unwrap();
    assert_talking(&mut a, &mut b, 2).await;
    assert_eq!((a.of("b").counters.connections, b.of("a").counters.connections), (1, 1));
    // A third with the old key does not get in any more, one with the new key does.
    let mut old = Node::start(config("a", &old, &[("b", at_b)]), socket());
    assert_eq!(old.until(told).await, Fault::Key);
    drop(a);
    b.down("a").await;
    let mut again = Node::start(config("a", &new, &[("b", at_b)]), socket());
    again.up("b").await;
    b.up("a").await;
}

#[tokio::test]
async fn peer_that_has_moved_is_dialled_where_it_is_now() {
    let key = Key::generate().unwrap();
    let (mut a, b) = pair(&key).await;
    let at_a = a.link.listen();
    let elsewhere = socket();
    let there = elsewhere.local_addr().unwrap();
    let mut moved = Node::start(config("b", &key, &[("a", at_a)]), elsewhere);
    a.link.reconfigure(config("a", &key, &[("b", there)]), None).unwrap();
    assert_eq!(a.down("b").await, Down::Moved);
    a.up("b").await;
    moved.up("a").await;
    assert_talking(&mut a, &mut moved, 1).await;
    drop(b);
}

#[tokio::test]
async fn peer_that_has_moved_before_it_was_reached_is_connected_with_once() {
    let key = Key::generate().unwrap();
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let mut a = Node::start(config("a", &key, &[("b", vacant())]), one);
    while a.of("b").last_error.is_none() {
        tokio::task::yield_now().await;
    }
    a.link.reconfigure(config("a", &key, &[("b", at_b)]), None).unwrap();
    let mut b = Node::start(config("b", &key, &[("a", at_a)]), other);
    b.up("a").await;
    a.up("b").await;
    for number in 0..10 {
        assert_talking(&mut a, &mut b, number).await;
    }
    assert_eq!(a.of("b").counters.connections, 1);
}

#[tokio::test]
async fn peer_is_waited_for_while_it_has_no_address() {
    let key = Key::generate().unwrap();
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let nowhere = Config { peers: [("b".to_owned(), Vec::new())].into(), ..config("a", &key, &[]) };
    let mut a = Node::start(nowhere, one);
    let mut b = Node::start(config("b", &key, &[("a", at_a)]), other);
    assert!(a.of("b").addresses.is_empty() && a.pending().is_empty());
    a.link.reconfigure(config("a", &key, &[("b", at_b)]), None).unwrap();
    a.up("b").await;
    b.up("a").await;
    assert_eq!(a.of("b").counters.failures, 0);
    assert_talking(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn of_several_addresses_the_one_where_the_peer_is_counts() {
    let key = Key::generate().unwrap();
    let (one, stranger, other) = (socket(), socket(), socket());
    let [at_a, at_stranger, at_b] = [&one, &stranger, &other].map(|socket| socket.local_addr().unwrap());
    // Somebody else has the tag too.
    let strange = Node::start(config("b", &Key::generate().unwrap(), &[("a", at_a)]), stranger);
    let mut b = Node::start(config("b", &key, &[("a", at_a)]), other);
    let several = |addresses: &[SocketAddr]| Config {
        peers: [("b".to_owned(), addresses.to_vec())].into(),
        ..config("a", &key, &[])
    };
    let mut a = Node::start(several(&[vacant(), at_stranger, at_b]), one);
    a.up("b").await;
    b.up("a").await;
    assert_eq!(a.of("b").connected.unwrap().address, at_b);
    assert_eq!(strange.refused("key"), 1);
    // It stays where it is for as long as that is one of them.
    a.link.reconfigure(several(&[at_stranger, at_b]), None).unwrap();
    assert_talking(&mut a, &mut b, 1).await;
    assert_eq!(a.of("b").counters.connections, 1);
}

#[tokio::test]
async fn own_address_changes_without_a_break() {
    let key = Key::generate().unwrap();
    let (mut a, mut b) = pair(&key).await;
    let (at_a, at_b) = (a.link.listen(), b.link.listen());
    let elsewhere = socket();
    let there = elsewhere.local_addr().unwrap();
    b.link.reconfigure(config("b", &key, &[("a", at_a)]), Some(elsewhere)).unwrap();
    assert_eq!(b.link.listen(), there);
    assert_talking(&mut a, &mut b, 1).await;
    // Its old port becomes free.
    while bind(at_b).is_err() {
        tokio::task::yield_now().await;
    }
    a.link.reconfigure(config("a", &key, &[("b", there)]), None).unwrap();
    assert_eq!(a.down("b").await, Down::Moved);
    a.up("b").await;
    b.up("a").await;
    assert_talking(&mut a, &mut b, 2).await;
}

#[tokio::test]
async fn changed_introduction_is_told_to_who_connects_next() {
    let key = Key::generate().unwrap();
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let way = Proxy::start(at_b);
    let mut b = Node::start(config("b", &key, &[("a", at_a)]), other);
    let mut a = Node::start(config("a", &key, &[("b", way.address)]), one);
    a.up("b").await;
    b.up("a").await;
    let mut changed = hello("a");
    changed.gateway.heirs = vec!["b".to_owned()];
    a.link.set_hello(&changed).unwrap();
    a.link.reconfigure(config("a", &key, &[("b", at_b)]), None).unwrap();
    assert_eq!(b.up("a").await, changed);
}

#[tokio::test]
async fn ended_link_leaves_no_task_behind() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let (a, b) = pair(&Key::generate().unwrap()).await;
    assert!(tasks() > before);
    drop((a, b));
    let start = tokio::time::Instant::now();
    while tasks() > before {
        assert!(start.elapsed() < Duration::from_secs(10), "{} tasks are left", tasks() - before);
        tokio::task::yield_now().await;
    }
}
