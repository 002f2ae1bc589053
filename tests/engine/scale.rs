//! One million sessions, and no operation that walks them.

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::support::*;

fn client(number: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0x0a00_0000 + (number >> 8)), 10_000 + (number & 0xff) as u16)
}

fn remote(number: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0xc633_6400 + (number % 251)), 1 + (number % 60_000) as u16)
}

#[test]
fn one_million_sessions_work_and_end() {
    const MANY: u32 = 1_000_000;
    let mut nat = Nat::with(|c| {
        c.limits.sessions = MANY;
        c.external_addresses = pool(32);
    });
    for number in 0..MANY {
        let packet = udp(client(number), remote(number)).bytes();
        let (verdict, _) = nat.unchecked(egret::nat::Side::Internal, &packet);
        assert_eq!(verdict, egret::nat::Verdict::Forward, "session {number}");
        while nat.engine.poll_event().is_some() {}
    }
    assert_eq!(nat.counters().sessions, MANY);
    let refused = nat.out(udp("10.200.0.1:1", "198.51.100.1:1")).reason();
    assert_eq!(refused, egret::nat::DropReason::SessionLimit);
    let mut random = Random(11);
    for _ in 0..10_000 {
        let number = random.below(u64::from(MANY)) as u32;
        let sent = nat.out(udp(client(number), remote(number))).to_external();
        let back = nat.inbound(udp(remote(number), sent.source)).to_internal();
        assert_eq!(back.destination, ep(client(number)));
    }
    nat.assert_empties();
}

/// Protocols without ports have one endpoint for all hosts: their sessions must not become one long list.
#[test]
fn many_sessions_of_one_portless_protocol_cost_no_more_than_others() {
    // What others do meanwhile is not counted.
    let clock = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let (mut nat, began) = (Nat::default(), clock());
    for number in 0..300_000_u32 {
        let host = Ipv4Addr::from(0x0a01_0000 + number);
        let remote = Ipv4Addr::from(0xc600_0000 + number);
        assert!(nat.out(other(host, remote, 47)).is_sent());
    }
    nat.advance(Duration::from_secs(1_000));
    assert_eq!(nat.counters().sessions, 0);
    // A list of all of them that is walked for each takes half a minute.
    let took = clock().saturating_sub(began);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// A tick with very many deadlines is worked off in bounded steps.
#[test]
fn timeout_of_many_sessions_at_once_is_bounded_per_call() {
    let mut nat = Nat::default();
    for number in 0..50_000_u32 {
        assert!(nat.out(udp(client(number), remote(number))).is_sent());
    }
    let due = nat.now + Duration::from_secs(121);
    let mut calls = 0;
    while nat.engine.poll_timeout().is_some_and(|deadline| deadline <= due) {
        let before = nat.counters().sessions;
        nat.engine.handle_timeout(due);
        assert!(before - nat.counters().sessions <= 1_000, "some hundred a call");
        calls += 1;
        assert!(calls < 10_000);
    }
    assert_eq!(nat.counters().sessions, 0);
}
