//! What the engine gives to a fast path, what it asks of it, and when it takes sessions home.

use std::time::Duration;

use egret::nat::{
    CloseReason, DropReason, Event, Flow, FlowKeys, FlowPair, Offload, Side, TcpMarks, Traffic, Usage, Verdict,
};
use egret::time::Instant;
use egret::wire::{self, FiveTuple, Packet, Protocol};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const OTHER: &str = "10.0.0.3:5000";
const SERVER: &str = "198.51.100.1:443";

fn offering(after: u16) -> Nat {
    Nat::with(|c| c.offload_after = Some(after))
}

/// Gives a packet to the engine, past the fast path, and does not do what it asks for.
fn by_engine(nat: &mut Nat, side: Side, packet: &Build) -> Verdict {
    nat.engine.handle_packet(nat.now, side, &mut Packet::plain(&mut packet.bytes()))
}

fn out(nat: &mut Nat, packet: &Build) {
    assert_eq!(by_engine(nat, Side::Internal, packet), Verdict::Forward);
}

fn inbound(nat: &mut Nat, packet: &Build) {
    assert_eq!(by_engine(nat, Side::External, packet), Verdict::Forward);
}

fn installed(nat: &mut Nat) -> FlowPair {
    match nat.engine.poll_offload() {
        Some(Offload::Install(pair)) => pair,
        other => panic!("not offered: {other:?}"),
    }
}

fn assert_nothing_asked(nat: &mut Nat) {
    let task = nat.engine.poll_offload();
    assert!(task.is_none(), "{task:?}");
}

/// Lets time pass until the engine asks for the use of flows.
fn queried(nat: &mut Nat) -> FlowKeys {
    loop {
        nat.now = nat.now.max(nat.engine.poll_timeout().expect("a timer"));
        nat.engine.handle_timeout(nat.now);
        match nat.engine.poll_offload() {
            Some(Offload::Query(keys)) => return keys,
            Some(other) => panic!("not asked for: {other:?}"),
            None => {}
        }
    }
}

/// Answers the removal that is asked for.
fn remove(nat: &mut Nat, keys: FlowKeys, out: impl Into<Option<Usage>>, back: impl Into<Option<Usage>>) {
    match nat.engine.poll_offload() {
        Some(Offload::Remove(removal)) if removal.keys == keys => {
            nat.engine.handle_removed(nat.now, removal, out.into(), back.into());
        }
        other => panic!("not taken home: {other:?}"),
    }
}

/// A UDP session in the fast path.
fn udp_away(nat: &mut Nat) -> FlowPair {
    out(nat, &udp(CLIENT, SERVER));
    inbound(nat, &udp(SERVER, (EXTERNAL, 4000)));
    installed(nat)
}

/// A TCP connection in the fast path: the client's next sequence number is 1001, the server's 5001, windows are 100.
fn tcp_away(nat: &mut Nat) -> FlowPair {
    let external = (EXTERNAL, 4000);
    out(nat, &tcp(CLIENT, SERVER, SYN));
    inbound(nat, &tcp(SERVER, external, SYN | ACK).seq(5000).ack(1001).window(100));
    out(nat, &tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001).window(100));
    inbound(nat, &tcp(SERVER, external, ACK).seq(5001).ack(1001).window(100));
    installed(nat)
}

fn used(packets: u64, last_use: Instant, marks: TcpMarks) -> Usage {
    Usage { packets, bytes: packets * 100, last_use, marks }
}

#[test]
fn session_is_offered_after_so_many_packets_with_an_answer_among_them() {
    let mut nat = offering(4);
    for _ in 0..9 {
        out(&mut nat, &udp(CLIENT, SERVER));
    }
    assert_nothing_asked(&mut nat);
    inbound(&mut nat, &udp(SERVER, (EXTERNAL, 4000)));
    let (client, server, external) = (ep(CLIENT), ep(SERVER), ep((EXTERNAL, 4000)));
    let tuple = |source, destination| FiveTuple { protocol: Protocol::UDP, source, destination };
    let out_flow = Flow {
        matches: tuple(client, server),
        source: external,
        destination: server,
        from: Side::Internal,
        to: Side::External,
        mtu: 1500,
        marks: TcpMarks::default(),
    };
    let back = Flow {
        matches: tuple(server, external),
        source: server,
        destination: client,
        from: Side::External,
        to: Side::Internal,
        ..out_flow
    };
    assert_eq!(installed(&mut nat), FlowPair { out: out_flow, back });
    out(&mut nat, &udp(CLIENT, SERVER));
    assert_nothing_asked(&mut nat);

    for number in 1..=4 {
        assert_nothing_asked(&mut nat);
        let packet = udp(CLIENT, "198.51.100.2:53");
        let answer = udp("198.51.100.2:53", (EXTERNAL, 4000));
        if number % 2 == 1 { out(&mut nat, &packet) } else { inbound(&mut nat, &answer) }
    }
    installed(&mut nat);
}

#[test]
fn nothing_is_offered_without_a_fast_path() {
    let mut nat = Nat::with(|c| c.offload_after = None);
    for _ in 0..100 {
        out(&mut nat, &udp(CLIENT, SERVER));
        inbound(&mut nat, &udp(SERVER, (EXTERNAL, 4000)));
    }
    assert_nothing_asked(&mut nat);
}

/// Until then its marks do not say all: the window of a SYN is not scaled.
#[test]
fn connection_is_offered_once_each_side_has_sent_more_than_its_syn() {
    let mut nat = offering(1);
    let external = (EXTERNAL, 4000);
    out(&mut nat, &tcp(CLIENT, SERVER, SYN));
    inbound(&mut nat, &tcp(SERVER, external, SYN | ACK).seq(5000).ack(1001).window(100));
    for seq in [1001, 1101] {
        out(&mut nat, &tcp(CLIENT, SERVER, ACK).seq(seq).ack(5001).window(300).filled(100));
    }
    assert_nothing_asked(&mut nat);
    inbound(&mut nat, &tcp(SERVER, external, ACK).seq(5001).ack(1101).window(200).filled(50));
    let pair = installed(&mut nat);
    assert_eq!(pair.out.marks, TcpMarks { end: 1201, acknowledged: 5001, window: 300 });
    assert_eq!(pair.back.marks, TcpMarks { end: 5051, acknowledged: 1101, window: 200 });
}

#[test]
fn queries_and_other_protocols_are_never_offered() {
    let mut nat = offering(1);
    for _ in 0..10 {
        out(&mut nat, &ping("10.0.0.2", "198.51.100.1", 7));
        inbound(&mut nat, &pong("198.51.100.1", EXTERNAL, 7));
        out(&mut nat, &other("10.0.0.2", "198.51.100.1", 47));
        inbound(&mut nat, &other("198.51.100.1", EXTERNAL, 47));
    }
    assert_nothing_asked(&mut nat);
}

#[test]
fn both_ends_of_a_hairpinned_conversation_are_given_and_taken_together() {
    let mut nat = Nat::with(|c| {
        c.offload_after = Some(1);
        c.external_mtu = 600;
    });
    let (ours, theirs) = (ep((PUBLIC, 4000)), ep((PUBLIC, 5000)));
    let _ = by_engine(&mut nat, Side::Internal, &udp(CLIENT, theirs));
    assert_eq!(by_engine(&mut nat, Side::Internal, &udp(OTHER, ours)), Verdict::Hairpin);
    assert_nothing_asked(&mut nat);
    assert_eq!(by_engine(&mut nat, Side::Internal, &udp(CLIENT, theirs)), Verdict::Hairpin);
    let pair = installed(&mut nat);
    let ends = |flow: &Flow| (flow.matches.source, flow.matches.destination, flow.source, flow.destination);
    assert_eq!(ends(&pair.out), (ep(CLIENT), theirs, ours, ep(OTHER)));
    assert_eq!(ends(&pair.back), (ep(OTHER), ours, theirs, ep(CLIENT)));
    for flow in [pair.out, pair.back] {
        assert_eq!((flow.from, flow.to, flow.mtu), (Side::Internal, Side::Internal, 1500));
    }
    assert_eq!((nat.counters().offloaded, nat.counters().offloads), (2, 1));

    let before = nat.sessions();
    nat.engine.recall(0, u32::MAX);
    let used = [3, 5].map(|packets| used(packets, nat.now, TcpMarks::default()));
    remove(&mut nat, pair.keys(), used[0], used[1]);
    assert_nothing_asked(&mut nat);
    for (before, after) in before.iter().zip(nat.sessions()) {
        let expected = if after.internal == ep(CLIENT) { (3, 5) } else { (5, 3) };
        let carried = (after.packets_out - before.packets_out, after.packets_in - before.packets_in);
        assert_eq!(carried, expected, "{after:?}");
    }
    assert_eq!(nat.counters().offloaded, 0);
}

#[test]
fn refused_session_is_offered_again_after_as_many_packets() {
    let mut nat = offering(3);
    out(&mut nat, &udp(CLIENT, SERVER));
    inbound(&mut nat, &udp(SERVER, (EXTERNAL, 4000)));
    for refusals in 1..4 {
        out(&mut nat, &udp(CLIENT, SERVER));
        let keys = installed(&mut nat).keys();
        nat.engine.handle_refused(keys);
        let counters = nat.counters();
        assert_eq!((counters.offloaded, counters.offloads_refused), (0, refusals));
        for _ in 0..2 {
            out(&mut nat, &udp(CLIENT, SERVER));
            assert_nothing_asked(&mut nat);
        }
    }
    nat.assert_empties();
}

/// The packets of a burst that came before the flows were there.
#[test]
fn plain_data_that_still_comes_by_the_engine_leaves_the_flows_away() {
    let mut nat = offering(1);
    tcp_away(&mut nat);
    for number in 0..10 {
        out(&mut nat, &tcp(CLIENT, SERVER, ACK).seq(1001 + number * 100).ack(5001).filled(100));
    }
    assert_nothing_asked(&mut nat);
    assert!(nat.session().offloaded);
}

#[test]
fn idle_session_is_asked_for_and_lives_if_it_was_used() {
    let mut nat = offering(1);
    let keys = udp_away(&mut nat).keys();
    let began = nat.now;
    for _ in 0..3 {
        assert_eq!(queried(&mut nat), keys);
        let last_use = Instant::from_millis(nat.now.as_millis() - 50_000);
        nat.engine.handle_usage(nat.now, keys, None, Some(used(7, last_use, TcpMarks::default())));
        assert_nothing_asked(&mut nat);
    }
    let lived = nat.now - began;
    assert!(lived >= Duration::from_secs(800) && lived <= Duration::from_millis(800_600), "{lived:?}");
    assert_eq!(nat.session().packets_in, 1, "counted once, when it comes home");
}

#[test]
fn unused_session_comes_home_and_then_tells_its_whole_traffic() {
    let mut nat = offering(1);
    let keys = udp_away(&mut nat).keys();
    let last_use = nat.now + Duration::from_secs(20);
    nat.events();
    let usage = [used(7, last_use, TcpMarks::default()), used(9, last_use, TcpMarks::default())];
    assert_eq!(queried(&mut nat), keys);
    nat.engine.handle_usage(nat.now, keys, Some(usage[0]), Some(usage[1]));
    assert_eq!(queried(&mut nat), keys);
    nat.engine.handle_usage(nat.now, keys, Some(usage[0]), Some(usage[1]));
    assert_eq!(nat.events(), [], "it has not ended before its flows are home");
    remove(&mut nat, keys, usage[0], usage[1]);
    let events = nat.events();
    let [Event::Closed(closed, CloseReason::Expired)] = events[..] else { panic!("{events:?}") };
    assert_eq!((closed.packets_out, closed.bytes_out), (8, 32 + 700));
    assert_eq!((closed.packets_in, closed.bytes_in), (10, 32 + 900));
    assert!(closed.idle >= Duration::from_secs(300) && closed.idle <= Duration::from_millis(300_200));
    assert!(!closed.offloaded);
    assert_eq!(nat.counters().sessions, 0);
}

#[test]
fn session_used_between_the_answer_and_the_removal_lives() {
    let mut nat = offering(1);
    let keys = udp_away(&mut nat).keys();
    let installed_at = nat.now;
    queried(&mut nat);
    let unused = used(0, installed_at, TcpMarks::default());
    nat.engine.handle_usage(nat.now, keys, Some(unused), Some(unused));
    let usage = used(1, nat.now, TcpMarks::default());
    remove(&mut nat, keys, usage, unused);
    assert_eq!(nat.counters().sessions, 1);
    assert!(!nat.session().offloaded);
    nat.assert_empties();
}

/// Nobody has told the engine yet of what the flows have carried.
#[test]
fn session_on_its_way_home_is_not_ended_by_its_timer() {
    for used_at_last in [true, false] {
        let mut nat = offering(1);
        let keys = udp_away(&mut nat).keys();
        let installed_at = nat.now;
        nat.events();
        nat.now += Duration::from_secs(400);
        nat.engine.recall(0, u32::MAX);
        while nat.engine.poll_timeout().is_some_and(|due| due <= nat.now) {
            nat.engine.handle_timeout(nat.now);
        }
        assert_eq!(nat.events(), []);
        let last_use = if used_at_last { nat.now } else { installed_at };
        remove(&mut nat, keys, used(7, last_use, TcpMarks::default()), None);
        let events = nat.events();
        match events[..] {
            [] => assert!(used_at_last && nat.session().packets_out == 8),
            [Event::Closed(closed, CloseReason::Expired)] => assert!(!used_at_last && closed.packets_out == 8),
            _ => panic!("{events:?}"),
        }
        nat.assert_empties();
    }
}

#[test]
fn lost_answer_is_asked_for_again_after_a_second() {
    let mut nat = offering(1);
    let keys = udp_away(&mut nat).keys();
    assert_eq!(queried(&mut nat), keys);
    let asked = nat.now;
    assert_eq!(queried(&mut nat), keys);
    assert_eq!(nat.now - asked, Duration::from_secs(1));
}

#[test]
fn session_whose_flows_are_not_known_is_the_engines_again() {
    let mut nat = offering(1);
    let keys = udp_away(&mut nat).keys();
    queried(&mut nat);
    nat.engine.handle_usage(nat.now, keys, None, None);
    assert_nothing_asked(&mut nat);
    assert_eq!((nat.counters().sessions, nat.counters().offloaded), (0, 0));
}

#[test]
fn reset_waits_for_the_window_that_the_flows_have_seen() {
    for (seq, accepted) in [(9001, true), (9000, false), (5001, false), (9021, true), (9022, false)] {
        let mut nat = offering(1);
        let keys = tcp_away(&mut nat).keys();
        let before = nat.counters();
        let rst = tcp(SERVER, (EXTERNAL, 4000), RST).seq(seq);
        assert_eq!(by_engine(&mut nat, Side::External, &rst), Verdict::Queued);
        assert!(nat.engine.poll_transmit().is_none());
        let client = TcpMarks { end: 1001, acknowledged: 9001, window: 20 };
        let server = TcpMarks { end: 9001, acknowledged: 1001, window: 100 };
        let now = nat.now;
        remove(&mut nat, keys, used(9, now, client), used(9, now, server));
        let sent = nat.engine.poll_transmit();
        assert_eq!(sent.is_some(), accepted, "{seq}");
        if let Some(sent) = sent {
            let sent_view = view(&sent.packet);
            assert_eq!(
                (sent.side, sent_view.destination, sent_view.flags()),
                (Side::Internal, ep(CLIENT), RST)
            );
        }
        let after = nat.counters();
        assert_eq!(after.dropped(DropReason::RstOutOfWindow), u64::from(!accepted));
        let packets = |now: Traffic, then: Traffic| now.packets - then.packets;
        assert_eq!(packets(after.in_from_external, before.in_from_external), 1, "counted once");
        assert_eq!(packets(after.out_to_internal, before.out_to_internal), u64::from(accepted));
    }
}

/// RFC 5961 section 5: a flow does not know what its peer has sent.
#[test]
fn acknowledgement_of_what_was_never_sent_is_not_believed_at_home() {
    let mut nat = offering(1);
    let keys = tcp_away(&mut nat).keys();
    let rst = tcp(CLIENT, SERVER, RST).seq(1001);
    assert_eq!(by_engine(&mut nat, Side::Internal, &rst), Verdict::Queued);
    let forged = TcpMarks { end: 5001, acknowledged: 1001 + 1_000_000, window: 0 };
    let now = nat.now;
    remove(&mut nat, keys, used(0, now, TcpMarks::default()), used(1, now, forged));
    assert!(nat.engine.poll_transmit().is_some(), "the client's own reset");
}

#[test]
fn partial_checksum_is_completed_before_a_segment_waits() {
    let mut nat = offering(1);
    let keys = tcp_away(&mut nat).keys();
    let mut fin = tcp(CLIENT, SERVER, FIN | ACK).seq(1001).ack(5001).bytes();
    let (source, destination) = (ep(CLIENT).address, ep(SERVER).address);
    let sum = wire::checksum::pseudo_header(source, destination, 6, 20);
    fin[36..38].copy_from_slice(&sum.to_be_bytes());
    let offload = wire::Offload { partial_checksum: true, segment_size: None };
    let verdict = nat.engine.handle_packet(nat.now, Side::Internal, &mut Packet { bytes: &mut fin, offload });
    assert_eq!(verdict, Verdict::Queued);
    remove(&mut nat, keys, None, None);
    let sent = nat.engine.poll_transmit().expect("the FIN");
    assert_eq!(view(&sent.packet).flags(), FIN | ACK);
}

#[test]
fn half_closed_connection_is_offered_again() {
    let mut nat = offering(2);
    let keys = tcp_away(&mut nat).keys();
    let fin = tcp(CLIENT, SERVER, FIN | ACK).seq(1001).ack(5001);
    assert_eq!(by_engine(&mut nat, Side::Internal, &fin), Verdict::Queued);
    remove(&mut nat, keys, None, None);
    inbound(&mut nat, &tcp(SERVER, (EXTERNAL, 4000), ACK).seq(5001).ack(1002).filled(100));
    assert_eq!(installed(&mut nat).out.marks.end, 1002);
    let fin = tcp(SERVER, (EXTERNAL, 4000), FIN | ACK).seq(5101).ack(1002);
    assert_eq!(by_engine(&mut nat, Side::External, &fin), Verdict::Queued);
    remove(&mut nat, keys, None, None);
    for _ in 0..9 {
        out(&mut nat, &tcp(CLIENT, SERVER, ACK).seq(1002).ack(5102));
    }
    assert_nothing_asked(&mut nat);
}

#[test]
fn change_of_the_configuration_takes_everything_home() {
    let mut nat = offering(1);
    let keys = udp_away(&mut nat).keys();
    let mut config = nat.engine.config().clone();
    config.external_mtu = 1_000;
    nat.engine.reconfigure(nat.now, config).expect("a usable configuration");
    assert!(!nat.session().offloaded);
    let usage = used(1, nat.now, TcpMarks::default());
    remove(&mut nat, keys, usage, None);
    assert_eq!(nat.session().packets_out, 2);
    out(&mut nat, &udp(CLIENT, SERVER));
    assert_eq!(installed(&mut nat).out.mtu, 1_000);
}

#[test]
fn session_of_a_removed_address_ends_when_its_flows_are_home() {
    let mut nat = offering(1);
    let keys = udp_away(&mut nat).keys();
    nat.events();
    let mut config = nat.engine.config().clone();
    config.external_addresses = vec![ip("192.0.2.9").into()];
    nat.engine.reconfigure(nat.now, config).expect("a usable configuration");
    assert_eq!(nat.events(), []);
    let usage = used(1, nat.now, TcpMarks::default());
    remove(&mut nat, keys, usage, None);
    let events = nat.events();
    let [Event::Closed(closed, CloseReason::AddressRemoved)] = events[..] else { panic!("{events:?}") };
    assert_eq!(closed.packets_out, 2);
    nat.assert_empties();
}

#[test]
fn recall_goes_in_steps() {
    let mut nat = offering(1);
    for port in 1..=1_000_u16 {
        out(&mut nat, &udp(CLIENT, (ip("198.51.100.1"), port)));
        inbound(&mut nat, &udp((ip("198.51.100.1"), port), (EXTERNAL, 4000)));
        installed(&mut nat);
    }
    let (mut from, mut total) = (Some(0), 0);
    while let Some(place) = from {
        from = nat.engine.recall(place, 100);
        let taken = std::iter::from_fn(|| nat.engine.poll_offload()).count();
        assert!(taken <= 100);
        total += taken;
    }
    assert_eq!((total, nat.counters().offloaded), (1_000, 0));
}

/// Or it would never come to the end.
#[test]
fn nothing_is_offered_while_a_recall_goes_on() {
    let mut nat = offering(1);
    let remote = |port| (ip("198.51.100.1"), port);
    let mut keys = Vec::new();
    for port in 1..=2 {
        out(&mut nat, &udp(CLIENT, remote(port)));
        inbound(&mut nat, &udp(remote(port), (EXTERNAL, 4000)));
        keys.push(installed(&mut nat).keys());
    }
    let next = nat.engine.recall(0, 1);
    remove(&mut nat, keys[0], None, None);
    out(&mut nat, &udp(CLIENT, remote(1)));
    assert_nothing_asked(&mut nat);
    assert_eq!(nat.engine.recall(next.expect("one is left"), u32::MAX), None);
    remove(&mut nat, keys[1], None, None);
    assert_eq!(nat.counters().offloaded, 0);
    out(&mut nat, &udp(CLIENT, remote(1)));
    assert_eq!(installed(&mut nat).keys(), keys[0]);
}

#[test]
fn record_of_a_session_in_the_fast_path_can_be_completed() {
    let mut nat = offering(1);
    let pair = udp_away(&mut nat);
    nat.now += Duration::from_secs(60);
    let mut record = nat.session();
    assert!(record.offloaded);
    assert_eq!(nat.engine.flow_keys(&record), Some(pair.keys()));
    assert_eq!(record.idle, Duration::from_secs(60));
    let last_use = Instant::from_millis(nat.now.as_millis() - 10_000);
    let out = Usage { packets: 5, bytes: 500, last_use, marks: TcpMarks::default() };
    let back = Usage { packets: 6, bytes: 900, ..Usage::default() };
    record.add(nat.now, out, back);
    assert_eq!((record.packets_out, record.bytes_out, record.packets_in, record.bytes_in), (6, 532, 7, 932));
    assert_eq!(record.idle, Duration::from_secs(10));
    nat.engine.recall(0, u32::MAX);
    assert_eq!(nat.engine.flow_keys(&nat.session()), None);
}

#[test]
fn what_flows_carry_is_told_while_they_live_and_once() {
    let mut nat = offering(2);
    let keys = udp_away(&mut nat).keys();
    let now = nat.now;
    let usage = |packets, bytes| Usage { packets, bytes, last_use: now, marks: TcpMarks::default() };
    let mut told = 0;
    let mut pass = |nat: &mut Nat, flows: [Option<Usage>; 2]| {
        let before = told;
        nat.engine.account(
            0,
            u32::MAX,
            |asked| {
                assert_eq!(asked, keys);
                flows
            },
            |_, _, traffic| told += traffic.bytes,
        );
        told - before
    };
    let first = pass(&mut nat, [Some(usage(10, 6_400)), Some(usage(1, 640))]);
    assert!(first >= 7_040, "{first}");
    assert_eq!(pass(&mut nat, [Some(usage(20, 12_800)), Some(usage(1, 640))]), 6_400);
    assert_eq!(nat.engine.recall(0, u32::MAX), None);
    assert_eq!(pass(&mut nat, [None; 2]), 0, "flows on their way home are not told again");
    remove(&mut nat, keys, usage(30, 19_200), usage(1, 640));
    assert_eq!(pass(&mut nat, [None; 2]), 6_400, "what had not been told");
    let mut whole = 0;
    nat.engine.scan_sessions(now, 0, u32::MAX, |record| whole = record.bytes_out + record.bytes_in);
    assert!(whole - told < 64, "{told} of {whole}");
}
