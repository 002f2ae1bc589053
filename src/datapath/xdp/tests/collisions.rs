//! Flows that are not in the slot that the program looks at first.

use std::time::Duration;

use super::super::flows::Refused;
use super::super::table::{InsertError, PROBES};
use super::race::session;
use super::rig::{Action, Arms, Rig, framed, in_namespace, tuple_of};
use super::support::*;
use crate::nat::{Config, FlowPair};
use crate::time::Instant;

/// As many as there is room for if all flows have one home.
const SESSIONS: u8 = PROBES / 2;

fn offering() -> Config {
    Config { offload_after: Some(1), ..config() }
}

/// Whether the program carries both flows of a session, as they are to be translated; never one alone.
fn is_carried(rig: &mut Rig, pair: &FlowPair) -> bool {
    let carried = [pair.out, pair.back].map(|flow| {
        match rig.run(0, &framed(0, &udp(flow.matches.source, flow.matches.destination).bytes())) {
            Action::Send(0, frame) => {
                let sent = tuple_of(&frame[14..]);
                assert_eq!((sent.source, sent.destination), (flow.source, flow.destination));
                true
            }
            Action::Unserved => false,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(carried[0], carried[1]);
    carried[0]
}

#[test]
fn flows_of_one_home_are_all_carried_whichever_are_removed() {
    in_namespace(|| {
        let mut rig = Rig::with_homes(Arms::One, &offering(), 1024, 1);
        let sessions: Vec<FlowPair> = (0..=SESSIONS).map(session).collect();
        let (last, fitting) = sessions.split_last().expect("some");
        assert!(fitting.iter().all(|pair| rig.install_flows(Instant::ORIGIN, pair)));
        assert!(fitting.iter().all(|pair| is_carried(&mut rig, pair)));
        let refused = rig.flows.install(Instant::ORIGIN, last, &rig.next_hops);
        assert!(matches!(refused, Err(Refused::Table(InsertError::Crowded))), "{refused:?}");
        assert!(!is_carried(&mut rig, last));
        // From the middle on, both ways: whoever lies behind is still found.
        let mut left = fitting.to_vec();
        while !left.is_empty() {
            let removed = left.remove(left.len() / 2);
            let [out, back] = rig.flows.remove(Instant::ORIGIN, &removed.keys());
            assert!(out.is_some_and(|usage| usage.packets > 0) && back.is_some());
            assert!(!is_carried(&mut rig, &removed));
            assert!(left.iter().all(|pair| is_carried(&mut rig, pair)));
        }
        assert!(rig.install_flows(Instant::ORIGIN, last) && is_carried(&mut rig, last));
        assert_eq!(rig.flows.load(), (2, 1024));
    });
}

#[test]
fn flow_is_installed_once() {
    in_namespace(|| {
        let mut rig = Rig::new(Arms::One, &offering(), 8);
        let pair = session(0);
        assert!(rig.install_flows(Instant::ORIGIN, &pair));
        let refused = rig.flows.install(Instant::ORIGIN, &pair, &rig.next_hops);
        assert!(matches!(refused, Err(Refused::Table(InsertError::Taken))), "{refused:?}");
        assert_eq!(rig.flows.load().0, 2);
        rig.flows.remove(Instant::ORIGIN, &pair.keys());
        assert!(!is_carried(&mut rig, &pair));
    });
}

#[test]
fn engine_carries_what_no_slot_is_free_for() {
    in_namespace(|| {
        const SERVER: &str = "198.51.100.1:443";
        let mut nat = Nat::carried(offering(), 1, Rig::with_homes(Arms::One, &offering(), 1024, 1));
        let client = |number: u8| format!("10.0.0.{}:4000", 2 + number);
        let open = |nat: &mut Nat<Rig>, number| {
            let external = nat.open_udp(client(number).as_str(), SERVER);
            assert!(nat.inbound(udp(SERVER, external)).is_sent());
            assert!(nat.out(udp(client(number).as_str(), SERVER)).is_sent());
        };
        (0..SESSIONS).for_each(|number| open(&mut nat, number));
        assert_eq!((nat.fast_path.flows.load().0, nat.counters().offloads_refused), (u32::from(PROBES), 0));
        open(&mut nat, SESSIONS);
        assert_eq!(nat.fast_path.flows.load().0, u32::from(PROBES), "neither of its flows");
        assert!(nat.counters().offloads_refused > 0);
        // It has its turn once others have gone.
        for _ in 0..2 {
            nat.advance(Duration::from_secs(200));
            assert!(nat.out(udp(client(SESSIONS).as_str(), SERVER)).is_sent());
        }
        assert_eq!((nat.sessions().len(), nat.fast_path.flows.load().0), (1, 2));
    });
}

#[test]
fn table_that_there_is_no_memory_for_is_told_with_its_size() {
    in_namespace(|| {
        let error = Rig::load(Arms::One, &config(), u32::MAX).err().expect("256 GiB");
        assert_eq!(error.to_string(), "a flow table of 262143 MiB cannot be had");
    });
}
