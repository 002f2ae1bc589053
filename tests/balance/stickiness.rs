//! Stickiness by source address.

use std::net::SocketAddr;
use std::time::Duration;

use egret::balance::{Algorithm, Config, Stickiness};

use crate::rig::*;

fn sticky(most_clients: u32) -> Config {
    let stickiness = Some(Stickiness { idle_timeout: Duration::from_secs(600), most_clients });
    Config { stickiness, algorithm: Algorithm::RoundRobin, ..quick() }
}

fn from(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

#[test]
fn address_keeps_its_target_whatever_its_port() {
    let mut rig = Rig::healthy(sticky(100), &targets([1, 2, 3]));
    let first = rig.visit(from("198.51.100.1", 1024)).unwrap();
    for port in 2000..2050 {
        assert_eq!(rig.visit(from("198.51.100.1", port)), Some(first));
        assert!(rig.visit(from(&format!("203.0.113.{}", port - 2000), port)).is_some());
    }
    let counters = rig.group.snapshot(rig.now).counters;
    assert_eq!((counters.selected_sticky, counters.clients), (50, 51));
}

#[test]
fn address_keeps_its_target_when_others_come_and_go() {
    let mut rig = Rig::healthy(sticky(100), &targets([1, 2, 3]));
    let first = rig.visit(client(1)).unwrap();
    let others: Vec<u8> = (1..=3).filter(|number| at(*number) != first).collect();
    let [kept, gone] = others[..] else { panic!("{others:?}") };
    rig.set_targets(&[vec![first.into(), at(kept).into()], targets([7, 8, 9])].concat());
    rig.run(2 * SECOND);
    assert!(rig.find(at(gone)).is_none());
    assert!((0..20).all(|_| rig.visit(client(1)) == Some(first)));
}

#[test]
fn address_gets_another_target_for_good_when_its_own_falls_ill_or_refuses() {
    let mut rig = Rig::healthy(sticky(100), &targets([1, 2, 3]));
    let first = rig.visit(client(1)).unwrap();
    rig.answer(first, REFUSES);
    rig.run(SECOND);
    let second = rig.visit(client(1)).unwrap();
    rig.answer(first, WELL);
    rig.run(SECOND);
    assert_eq!(rig.visit(client(1)), Some(second), "its session is there now");
    let third = rig.group.select(rig.now, client(1), &[second]).unwrap();
    assert_eq!(rig.visit(client(1)), Some(third));
    assert!(first != second && second != third);
}

#[test]
fn address_does_not_stick_to_a_backup() {
    let mut rig = Rig::healthy(sticky(100), &[at(1).into(), backup(2)]);
    rig.answer(at(1), REFUSES);
    rig.run(SECOND);
    assert_eq!(rig.visit(client(1)), Some(at(2)));
    rig.answer(at(1), WELL);
    rig.run(SECOND);
    assert_eq!(rig.visit(client(1)), Some(at(1)));
}

#[test]
fn address_is_forgotten_once_it_was_away_for_long() {
    let mut rig = Rig::healthy(sticky(100), &targets([1, 2]));
    let first = rig.visit(client(1)).unwrap();
    for _ in 0..5 {
        rig.run(Duration::from_secs(599));
        assert_eq!(rig.visit(client(1)), Some(first), "each visit begins the time anew");
    }
    rig.run(Duration::from_secs(600));
    rig.visit(client(1)).unwrap();
    assert_eq!(rig.group.snapshot(rig.now).counters.selected_sticky, 5, "the last choice was a new one");
}

#[test]
fn table_is_bounded_and_forgets_who_was_away_the_longest() {
    let mut rig = Rig::healthy(sticky(10), &targets([1, 2, 3]));
    let first = rig.visit(client(0)).unwrap();
    for number in 1..1_000 {
        rig.visit(client(number));
        assert_eq!(rig.visit(client(0)), Some(first), "it is never away for long");
    }
    let counters = rig.group.snapshot(rig.now).counters;
    assert_eq!((counters.clients, counters.clients_evicted), (10, 990));
}

#[test]
fn table_shrinks_with_its_limit_and_is_empty_without_stickiness() {
    let mut rig = Rig::healthy(sticky(100), &targets([1, 2, 3]));
    for number in 0..100 {
        rig.visit(client(number));
    }
    let clients = |rig: &Rig| rig.group.snapshot(rig.now).counters.clients;
    rig.group.reconfigure(rig.now, sticky(40)).unwrap();
    assert_eq!(clients(&rig), 40);
    rig.group.reconfigure(rig.now, Config { stickiness: None, ..sticky(40) }).unwrap();
    assert_eq!(clients(&rig), 0);
    rig.visit(client(1));
    assert_eq!(clients(&rig), 0);
}

#[test]
fn ipv6_client_is_its_prefix_and_a_mapped_address_is_ipv4() {
    let mut rig = Rig::healthy(sticky(100), &targets([1, 2, 3]));
    let first = rig.visit(from("2001:db8:1:2::1", 5)).unwrap();
    assert_eq!(rig.visit(from("2001:db8:1:2:ffff::9", 6)), Some(first));
    rig.visit(from("2001:db8:1:3::1", 5));
    rig.visit(from("198.51.100.7", 5));
    rig.visit(from("::ffff:198.51.100.7", 5));
    let counters = rig.group.snapshot(rig.now).counters;
    assert_eq!((counters.clients, counters.selected_sticky), (3, 2));
}
