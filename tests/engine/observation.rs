//! Events, counters and records say what has happened.

use std::time::Duration;

use egret::nat::{CloseReason, DropReason, Event, SessionState, Side, Traffic};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:53";

#[test]
fn closed_session_tells_its_duration_and_traffic() {
    let mut nat = Nat::default();
    let opened_at = nat.now;
    let external = nat.open_udp(CLIENT, SERVER);
    for _ in 0..9 {
        nat.advance_secs(10);
        nat.out(udp(CLIENT, SERVER).filled(72)).to_external();
        nat.inbound(udp(SERVER, external).filled(472)).to_internal();
    }
    nat.advance_secs(400);
    let events = nat.events();
    let [Event::Opened(opened), Event::Established(established), Event::Closed(closed, reason)] = events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((opened.internal, opened.external, opened.remote), (ep(CLIENT), external, ep(SERVER)));
    assert_eq!((opened.opened_by, opened.opened_at), (Side::Internal, opened_at));
    assert_eq!(established.state, SessionState::Replied);
    assert_eq!(reason, CloseReason::Expired);
    assert_eq!((closed.packets_out, closed.bytes_out), (10, 32 + 9 * 100));
    assert_eq!((closed.packets_in, closed.bytes_in), (9, 9 * 500));
    assert!(closed.age >= Duration::from_secs(390) && closed.age < Duration::from_millis(390_300));
    assert!(closed.idle >= Duration::from_secs(300) && closed.idle < Duration::from_millis(300_300));
}

#[test]
fn every_packet_is_counted_once() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    nat.inbound(udp(SERVER, external).filled(100)).to_internal();
    assert_eq!(nat.inbound(udp(SERVER, (EXTERNAL, 9)).filled(5)).reason(), DropReason::NoSession);
    assert!(!nat.out(udp("10.0.0.2:1", external)).is_sent());
    let counters = nat.counters();
    assert_eq!(counters.in_from_internal, Traffic { packets: 2, bytes: 64 });
    assert_eq!(counters.out_to_external, Traffic { packets: 1, bytes: 32 });
    assert_eq!(counters.in_from_external, Traffic { packets: 2, bytes: 128 + 33 });
    assert_eq!(counters.out_to_internal, Traffic { packets: 1, bytes: 128 });
    assert_eq!(counters.drops.iter().sum::<u64>(), 2);
}

#[test]
fn labels_of_drop_reasons_are_distinct_and_in_snake_case() {
    let labels: std::collections::HashSet<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), DropReason::ALL.len());
    assert!(labels.iter().all(|label| label.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
}

#[test]
fn events_that_nobody_fetches_are_bounded_and_counted() {
    let mut nat = Nat::default();
    for port in 1..=60_000_u16 {
        nat.open_udp(CLIENT, (ip("198.51.100.7"), port));
    }
    nat.advance_secs(200);
    let fetched = nat.events().len() as u64;
    assert_eq!(fetched + nat.counters().events_lost, 120_000);
    assert!(fetched <= 65_536);
}

#[test]
fn scan_in_small_steps_visits_every_session_once() {
    let mut nat = Nat::default();
    for port in 1..=5_000_u16 {
        nat.open_udp(CLIENT, (ip("198.51.100.7"), port));
    }
    let (mut seen, mut from) = (std::collections::HashSet::new(), Some(0));
    while let Some(place) = from {
        from = nat.engine.scan_sessions(nat.now, place, 7, |record| {
            assert!(seen.insert(record.remote));
        });
    }
    assert_eq!(seen.len(), 5_000);
}

/// The same seed and the same packets give the same results, down to the last event.
#[test]
fn same_seed_replays_exactly() {
    let run = |seed| {
        let mut nat = Nat::seeded(config(), seed);
        let mut random = Random(9);
        let mut log = Vec::new();
        for _ in 0..2_000 {
            let client = (ip(&format!("10.0.0.{}", random.below(20) + 2)), 4000);
            let outcome = nat.out(udp(client, (ip("198.51.100.1"), random.below(9) as u16 + 1)));
            nat.advance(Duration::from_millis(random.below(3_000)));
            log.push(outcome);
        }
        format!("{log:?}{:?}{:?}", nat.events(), nat.counters())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
