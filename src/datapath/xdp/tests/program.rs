//! What the program carries, what it leaves to whom, and what it counts.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::rig::{Action, Arms, Rig, framed, in_namespace, known, mac_of, our_mac};
use super::support::*;
use crate::datapath::Miss;
use crate::datapath::sys::{self, FlowSlot};
use crate::nat::{Config, Flow, FlowPair, Side, TcpMarks};
use crate::time::Instant;
use crate::wire::{Endpoint, FiveTuple, Protocol};

const CLIENT: &str = "10.0.0.2:4000";
const OTHER: &str = "10.0.0.3:5000";
const SERVER: &str = "198.51.100.1:443";

fn offering() -> Config {
    Config { offload_after: Some(1), ..config() }
}

/// A NAT with room for `flows` flows, one-armed.
fn nat(flows: u32) -> Nat<Rig> {
    let config = offering();
    Nat::carried(config.clone(), 1, Rig::new(Arms::One, &config, flows))
}

/// A UDP session that is in the fast path; gives its external endpoint.
fn carried_udp(nat: &mut Nat<Rig>, client: &str) -> Endpoint {
    let external = nat.open_udp(client, SERVER);
    assert!(nat.inbound(udp(SERVER, external)).is_sent());
    let _ = nat.out(udp(client, SERVER));
    external
}

/// The two flows of a session that is translated to another address and port.
fn pair(protocol: Protocol, internal: Endpoint, external: Endpoint, remote: Endpoint) -> FlowPair {
    let out = Flow {
        matches: FiveTuple { protocol, source: internal, destination: remote },
        source: external,
        destination: remote,
        from: Side::Internal,
        to: Side::External,
        mtu: 1500,
        marks: TcpMarks::default(),
    };
    let matches = FiveTuple { protocol, source: remote, destination: external };
    let (from, to) = (Side::External, Side::Internal);
    FlowPair { out, back: Flow { matches, source: remote, destination: internal, from, to, ..out } }
}

fn segment(flow: &Flow) -> Build {
    let FiveTuple { protocol, source, destination } = flow.matches;
    if protocol == Protocol::TCP { tcp(source, destination, ACK) } else { udp(source, destination) }
}

fn is_sent(action: &Action) -> bool {
    matches!(action, Action::Send(..))
}

#[test]
fn every_flow_that_is_installed_is_carried() {
    in_namespace(|| {
        let rig = std::cell::RefCell::new(Rig::new(Arms::Two, &offering(), 2));
        let any_endpoint =
            || any::<(u32, u16)>().prop_map(|(address, port)| Endpoint::new(address.into(), port));
        let endpoints = (any_endpoint(), any_endpoint(), any_endpoint());
        // An internal endpoint whose neighbour is known, so that packets to it leave.
        let case = (endpoints, 2..10_u8, any::<bool>(), any::<u16>());
        let runner =
            TestRunner::new(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() });
        { runner }
            .run(&case, |((mut internal, external, remote), host, is_tcp, mtu)| {
                internal.address = std::net::Ipv4Addr::new(10, 0, 0, host);
                prop_assume!(remote.address.octets()[0] != 10);
                let protocol = if is_tcp { Protocol::TCP } else { Protocol::UDP };
                let mut pair = pair(protocol, internal, external, remote);
                pair.out.mtu = mtu.max(40);
                let rig = &mut *rig.borrow_mut();
                prop_assert!(rig.install_flows(Instant::ORIGIN, &pair));
                for (port, flow) in [(1, &pair.out), (0, &pair.back)] {
                    let Action::Send(out, frame) = rig.run(port, &framed(port, &segment(flow).bytes())) else {
                        return Err(TestCaseError::fail("a miss"));
                    };
                    prop_assert_eq!(out, 1 - port);
                    let sent = view(&frame[14..]);
                    prop_assert_eq!((sent.source, sent.destination), (flow.source, flow.destination));
                }
                rig.flows.remove(Instant::ORIGIN, &pair.keys());
                Ok(())
            })
            .unwrap_or_else(|failure| panic!("{failure}"));
    });
}

#[test]
fn value_that_is_not_sealed_for_its_key_is_a_miss() {
    in_namespace(|| {
        let mut rig = Rig::new(Arms::One, &offering(), 4);
        let one = pair(Protocol::UDP, ep(CLIENT), ep((EXTERNAL, 4000)), ep(SERVER));
        let other = pair(Protocol::UDP, ep(OTHER), ep((EXTERNAL, 5000)), ep(SERVER));
        assert!(rig.install_flows(Instant::ORIGIN, &one) && rig.install_flows(Instant::ORIGIN, &other));
        let frame = framed(0, &segment(&one.out).bytes());
        let right = rig.flows.value(&one.out.matches).expect("installed");
        let others = rig.flows.value(&other.out.matches).expect("installed");
        // Another key's; and each part changed by itself, as it is where half of a value has been overwritten.
        let changes: [fn(&mut FlowSlot, &FlowSlot); 9] = [
            |slot, other| *slot = FlowSlot { matches: slot.matches, ..*other },
            |slot, other| slot.becomes = other.becomes,
            |slot, _| slot.becomes.source ^= 1,
            |slot, _| slot.becomes.destination ^= 1 << 31,
            |slot, _| slot.becomes.source_port ^= 1 << 15,
            |slot, _| slot.becomes.destination_port ^= 1,
            |slot, _| slot.next_hop ^= 1,
            |slot, _| slot.roles ^= 4,
            |slot, _| slot.direction ^= 1,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut value = right;
            change(&mut value, &others);
            rig.flows.overwrite(&one.out.matches, value);
            assert_eq!(rig.run(0, &frame), Action::Unserved, "change {number}");
        }
        assert_eq!(rig.counters().misses[Miss::NoFlow as usize], changes.len() as u64);
        rig.flows.overwrite(&one.out.matches, right);
        assert!(is_sent(&rig.run(0, &frame)));
    });
}

#[test]
fn frames_that_are_no_ipv4_to_us_are_the_kernels() {
    in_namespace(|| {
        let mut nat = nat(4);
        carried_udp(&mut nat, CLIENT);
        let rig = &mut nat.fast_path;
        let ours = framed(0, &udp(CLIENT, SERVER).bytes());
        let with = |at: usize, bytes: &[u8]| {
            let mut frame = ours.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let passed = rig.counters().passed;
        let tagged = [&ours[..12], &[0x81, 0, 0, 5], &ours[12..]].concat();
        let frames = [
            with(0, &[2, 0, 0, 0, 0, 9]),
            with(0, &our_mac(1)),
            with(0, &[0xff; 6]),
            with(0, &[1, 0, 0x5e, 0, 0, 1]),
            with(12, &[0x08, 0x06]),
            with(12, &[0x86, 0xdd]),
            tagged,
            ours[..14].to_vec(),
            ours[..33].to_vec(),
        ];
        for frame in &frames {
            assert_eq!(rig.run(0, frame), Action::Pass(frame.clone()));
        }
        assert_eq!(rig.counters().passed - passed, frames.len() as u64);
        assert!(is_sent(&rig.run(0, &ours)));
    });
}

#[test]
fn traffic_of_the_host_itself_is_untouched() {
    in_namespace(|| {
        let mut nat = nat(4);
        let external = carried_udp(&mut nat, CLIENT);
        let about = |source: Endpoint| udp(source, SERVER).bytes();
        let error = |source| icmp_error("203.0.113.99", EXTERNAL, (3, 1), &about(source)).bytes();
        for (packet, is_the_kernels) in [
            (tcp("198.51.100.9:50000", (EXTERNAL, 22), SYN).bytes(), true),
            (tcp("198.51.100.9:443", (EXTERNAL, 61_000), SYN | ACK).bytes(), true),
            (udp("198.51.100.9:443", (EXTERNAL, 65_535)).bytes(), true),
            (ping("198.51.100.9", EXTERNAL, 7).bytes(), true),
            (error(ep((EXTERNAL, 61_000))), true),
            // NAT's and the kernel's both: the worker gets it by its packet socket.
            (pong("198.51.100.9", EXTERNAL, 7).bytes(), true),
            (error(external), false),
            (tcp("198.51.100.9:443", (EXTERNAL, 1_024), SYN).bytes(), false),
            (ping(ip("10.0.0.2"), ip("198.51.100.9"), 7).bytes(), false),
        ] {
            let frame = framed(0, &packet);
            let expected = if is_the_kernels { Action::Pass(frame.clone()) } else { Action::Unserved };
            assert_eq!(nat.fast_path.run(0, &frame), expected, "{packet:02x?}");
        }
    });
}

#[test]
fn packets_are_counted_by_direction_and_misses_by_reason() {
    in_namespace(|| {
        let mut rig = Rig::new(Arms::One, &offering(), 8);
        let session = pair(Protocol::TCP, ep(CLIENT), ep((EXTERNAL, 4000)), ep(SERVER));
        let mut hairpin = pair(Protocol::UDP, ep(OTHER), ep((EXTERNAL, 5000)), ep((EXTERNAL, 6000)));
        hairpin.out = Flow { destination: ep("10.0.0.4:6000"), to: Side::Internal, ..hairpin.out };
        hairpin.back.matches.source = ep("10.0.0.4:6000");
        hairpin.back = Flow { from: Side::Internal, ..hairpin.back };
        assert!(rig.install_flows(Instant::ORIGIN, &session) && rig.install_flows(Instant::ORIGIN, &hairpin));
        let (out, back) = (|| segment(&session.out), || segment(&session.back));
        for (packet, length) in [
            (out(), 40),
            (out().filled(60), 100),
            (back().filled(160), 200),
            (segment(&hairpin.out), 32),
            (segment(&hairpin.back).filled(2), 30),
        ] {
            let Action::Send(0, frame) = rig.run(0, &framed(0, &packet.bytes())) else { panic!("{packet:?}") };
            assert_eq!(frame.len(), 14 + length, "Ethernet's padding is not passed on");
        }
        let broken = |packet: Build| {
            let mut bytes = packet.bytes();
            bytes[10] ^= 1;
            bytes
        };
        let flagged = |flags| tcp(CLIENT, SERVER, flags).bytes();
        let misses = [
            (Miss::NoFlow, tcp(OTHER, SERVER, ACK).bytes()),
            (Miss::Unusual, out().ttl(1).bytes()),
            (Miss::Unusual, out().ttl(0).bytes()),
            (Miss::Unusual, out().ip_options(&[1, 1, 1, 0]).bytes()),
            (Miss::Unusual, fragment(&out().filled(100).bytes(), 40).swap_remove(0)),
            (Miss::Unusual, fragment(&out().filled(100).bytes(), 40).swap_remove(1)),
            (Miss::Unusual, broken(out())),
            (Miss::Unusual, ping(ip("10.0.0.2"), ip("198.51.100.9"), 7).bytes()),
            (Miss::TcpFlags, flagged(SYN)),
            (Miss::TcpFlags, flagged(FIN | ACK)),
            (Miss::TcpFlags, flagged(RST | ACK)),
            (Miss::TcpFlags, flagged(PSH)),
            (Miss::TooBig, out().filled(1461).bytes()),
            (Miss::TooBig, out().filled(1461).df().bytes()),
        ];
        let mut expected = rig.counters();
        for (reason, packet) in misses {
            assert_eq!(rig.run(0, &framed(0, &packet)), Action::Unserved, "{reason:?}");
            expected.misses[reason as usize] += 1;
            expected.unserved += 1;
            assert_eq!(rig.counters(), expected, "{reason:?}");
        }
        assert_eq!((expected.packets, expected.bytes), ([2, 1, 2], [140, 200, 62]));
        assert!(is_sent(&rig.run(0, &framed(0, &out().ttl(2).filled(1460).bytes()))));
    });
}

#[test]
fn engine_carries_what_a_full_map_has_no_room_for() {
    in_namespace(|| {
        // One more than a session needs, so that the next finds room for one direction only.
        let mut nat = nat(3);
        carried_udp(&mut nat, CLIENT);
        assert_eq!(nat.fast_path.flows.load(), (2, 3));
        carried_udp(&mut nat, OTHER);
        assert!(nat.counters().offloads_refused > 0);
        assert_eq!(nat.fast_path.flows.load(), (2, 3), "never one direction alone");
        let refused = nat.counters().in_from_internal.packets;
        assert!(nat.out(udp(OTHER, SERVER)).is_sent(), "the engine goes on");
        assert_eq!(nat.counters().in_from_internal.packets, refused + 1);
        // It has its turn once there is room.
        nat.advance(Duration::from_secs(299));
        assert!(nat.out(udp(OTHER, SERVER)).is_sent());
        nat.advance(Duration::from_secs(2));
        assert_eq!((nat.sessions().len(), nat.fast_path.flows.load().0), (1, 0));
        assert!(nat.out(udp(OTHER, SERVER)).is_sent());
        assert_eq!(nat.fast_path.flows.load().0, 2);
    });
}

#[test]
fn flow_waits_for_its_neighbour_and_follows_it() {
    in_namespace(|| {
        let mut rig = Rig::new(Arms::One, &offering(), 4);
        let session = pair(Protocol::UDP, ep(CLIENT), ep((EXTERNAL, 4000)), ep(SERVER));
        let gateway = ip("192.0.2.254");
        let interface = nix::net::if_::if_nametoindex("ext").expect("there");
        rig.next_hops.set_neighbours([]);
        assert!(rig.install_flows(Instant::ORIGIN, &session));
        let frame = framed(0, &segment(&session.out).bytes());
        let found = known(interface, gateway);
        let moved = [6, 5, 4, 3, 2, 1];
        for (mac, expected) in [
            (None, None),
            (found.mac, Some(mac_of(gateway))),
            (Some(moved), Some(moved)),
            (None, None),
            (found.mac, Some(mac_of(gateway))),
        ] {
            rig.next_hops.update_neighbour(crate::datapath::next_hop::Neighbour { mac, ..found });
            rig.flows.follow_neighbours(&rig.next_hops).expect("writable");
            let to = match rig.run(0, &frame) {
                Action::Send(0, frame) => Some(frame[..6].to_vec()),
                Action::Unserved => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(to, expected.map(|mac| mac.to_vec()));
        }
        assert_eq!(rig.counters().misses[Miss::NoNextHop as usize], 2);
    });
}

#[test]
fn last_use_is_known_to_the_second() {
    in_namespace(|| {
        let origin = sys::monotonic_nanos().expect("a clock");
        let now = || Instant::from_nanos(sys::monotonic_nanos().expect("a clock") - origin);
        let mut rig = Rig::new(Arms::One, &offering(), 4);
        let session = pair(Protocol::UDP, ep(CLIENT), ep((EXTERNAL, 4000)), ep(SERVER));
        assert!(rig.install_flows(now(), &session));
        for _ in 0..20 {
            let before = now();
            assert!(is_sent(&rig.run(0, &framed(0, &segment(&session.out).bytes()))));
            let after = now();
            let far = after + Duration::from_secs(10);
            let [out, _] = rig.flows.usage(far, &session.keys());
            let last_use = out.expect("carried").last_use;
            // The rig's clock began a little after ours.
            let slack = Duration::from_millis(500);
            assert!(last_use + slack >= before, "{last_use:?} {before:?}");
            let unit = Duration::from_nanos(1 << 30) + Duration::from_millis(40);
            assert!(last_use <= after + unit, "{last_use:?} {after:?}");
            let [out, _] = rig.flows.usage(after, &session.keys());
            assert!(out.expect("carried").last_use <= after);
        }
    });
}

/// What a damaged packet's fate is, the program does not change either: any bits, any length.
#[test]
fn damaged_packets_fare_as_they_do_with_the_engine_alone() {
    in_namespace(|| {
        let damage = (0..46_usize, 0..8_u8);
        let packet =
            (any::<bool>(), any::<bool>(), 0..40_usize, prop::collection::vec(damage, 1..4), 0..60_usize);
        let packets = prop::collection::vec(packet, 1..40);
        let runner =
            TestRunner::new(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() });
        let spare = std::cell::RefCell::new(None::<Rig>);
        { runner }
            .run(&packets, |packets| {
                let rig = spare.borrow_mut().take();
                let rig = rig.map_or_else(|| Rig::new(Arms::One, &offering(), 64), Rig::anew);
                let (mut alone, mut with) = (Nat::new(config()), Nat::carried(offering(), 1, rig));
                (alone.lenient, with.lenient) = (true, true);
                for (is_tcp, outwards, length, damages, cut) in packets {
                    let (internal, remote, external) = (ep(CLIENT), ep(SERVER), Endpoint::new(EXTERNAL, 4000));
                    let (from, to) = if outwards { (internal, remote) } else { (remote, external) };
                    // In the fast path, if the last one has not ended it.
                    let mut feed: Vec<_> = [(internal, remote), (remote, external), (internal, remote)]
                        .into_iter()
                        .map(|(from, to)| (from == internal, udp(from, to).bytes()))
                        .collect();
                    let flags = |number| {
                        if number == 0 {
                            SYN
                        } else if number == 1 {
                            SYN | ACK
                        } else {
                            ACK
                        }
                    };
                    if is_tcp {
                        for (number, packet) in feed.iter_mut().enumerate() {
                            let (from, to) = if packet.0 { (internal, remote) } else { (remote, external) };
                            packet.1 = tcp(from, to, flags(number)).seq(1000 + number as u32).ack(1001).bytes();
                        }
                    }
                    let plain =
                        if is_tcp { tcp(from, to, ACK).filled(length) } else { udp(from, to).filled(length) };
                    let mut damaged = plain.bytes();
                    damaged.truncate(damaged.len().saturating_sub(cut));
                    damaged.resize(damaged.len().max(46), 0);
                    for (at, bit) in damages {
                        damaged[at] ^= 1 << bit;
                    }
                    // The header's checksum as it must be, or little would get past it.
                    if length % 4 > 0 {
                        damaged[10..12].copy_from_slice(&[0, 0]);
                        let sum = pnet_packet::util::checksum(&damaged[..20], 5);
                        damaged[10..12].copy_from_slice(&sum.to_be_bytes());
                    }
                    feed.push((outwards, damaged));
                    for (is_out, packet) in feed {
                        let side = if is_out { Side::Internal } else { Side::External };
                        let Some(side) = with.fast_path.admit(side, &packet) else { continue };
                        let fates = (fate(&mut alone, side, &packet), fate(&mut with, side, &packet));
                        prop_assert_eq!(fates.0, fates.1, "{:02x?}", packet);
                    }
                }
                with.assert_empties();
                *spare.borrow_mut() = Some(with.fast_path);
                Ok(())
            })
            .unwrap_or_else(|failure| panic!("{failure}"));
    });
}

/// What leaves, and how often what was dropped so far.
fn fate<F: Carrier>(nat: &mut Nat<F>, side: Side, packet: &[u8]) -> (Vec<Vec<u8>>, Vec<u64>) {
    let (verdict, bytes) = nat.unchecked(side, packet);
    let is_sent = matches!(verdict, crate::nat::Verdict::Forward | crate::nat::Verdict::Hairpin);
    let sent = is_sent.then_some(bytes).into_iter().chain(nat.transmitted_bytes()).collect();
    (sent, nat.counters().drops.to_vec())
}
