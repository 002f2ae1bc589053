//! What sessions have carried is told once, whoever has carried it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use egret::nat::{Event, Traffic, Usage};

use crate::support::*;

const CLIENT: &str = "10.0.0.1:5000";
const SERVER: &str = "198.51.100.1:53";

/// What a whole pass tells, by internal and remote address, the fast path having carried `flows`.
fn told(nat: &mut Nat, flows: [Option<Usage>; 2]) -> HashMap<(Ipv4Addr, Ipv4Addr), Traffic> {
    let mut told = HashMap::new();
    let mut from = Some(0);
    while let Some(place) = from {
        from = nat.engine.account(
            place,
            64,
            |_| flows,
            |internal, remote, traffic| {
                assert!(told.insert((internal, remote), traffic).is_none(), "twice in one pass");
            },
        );
    }
    told
}

/// What the session's end tells.
fn rest(nat: &mut Nat) -> Traffic {
    loop {
        match nat.engine.poll_event() {
            Some(Event::Closed(record, _)) => return record.fresh,
            Some(_) => {}
            None => panic!("no session has closed"),
        }
    }
}

fn carried(nat: &mut Nat, packets: usize, payload: usize) -> u64 {
    let packet = udp(CLIENT, SERVER).filled(payload);
    for _ in 0..packets {
        assert!(nat.out(packet.clone()).is_sent());
    }
    (packets * packet.bytes().len()) as u64
}

#[test]
fn a_session_tells_what_it_has_carried_once_and_its_rest_when_it_ends() {
    let mut nat = Nat::default();
    let first = carried(&mut nat, 10, 100);
    let pass = told(&mut nat, [None; 2]);
    let [(addresses, traffic)] = pass.into_iter().collect::<Vec<_>>()[..] else { panic!("one session") };
    assert_eq!(addresses, (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(198, 51, 100, 1)));
    assert_eq!(traffic.packets, 10);
    assert!(told(&mut nat, [None; 2]).is_empty(), "nothing new");
    let second = carried(&mut nat, 5, 1000);
    let more = told(&mut nat, [None; 2]).into_values().next().unwrap();
    let third = carried(&mut nat, 1, 10);
    nat.advance(Duration::from_secs(400));
    let rest = rest(&mut nat);
    assert_eq!(traffic.bytes + more.bytes + rest.bytes, first + second + third, "every byte once");
}

#[test]
fn a_session_that_is_never_looked_at_tells_all_at_its_end() {
    let mut nat = Nat::default();
    let bytes = carried(&mut nat, 3, 17);
    nat.advance(Duration::from_secs(400));
    assert_eq!(rest(&mut nat), Traffic { packets: 3, bytes });
}

#[test]
fn only_the_first_session_of_a_mapping_takes_a_port() {
    let mut nat = Nat::default();
    assert!(nat.out(udp(CLIENT, SERVER)).is_sent());
    assert!(nat.out(udp(CLIENT, "198.51.100.2:53")).is_sent());
    let mut took = Vec::new();
    while let Some(event) = nat.engine.poll_event() {
        if let Event::Opened(record) = event {
            took.push(record.took_port);
        }
    }
    assert_eq!(took, [true, false]);
}
