//! An engine with a fast path is the same NAT as an engine without one: the same packets come out of both, byte for
//! byte and in the same order, the same are dropped for the same reasons, and in the end both tell the same of every
//! session.
//!
//! Which fast path that is, is the test's choice: the model that is plain code, or the real program.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use egret::nat::{Config, Counters, DropReason, Event, FilteringBehaviour, Side, Traffic};
use egret::wire::{Endpoint, Protocol};
use proptest::prelude::*;

use super::support::*;

/// A conversation, whose two ends behave themselves.
#[derive(Debug)]
struct Talk {
    protocol: Protocol,
    /// Each end, and where it sends to, as far as it knows.
    ends: [End; 2],
}

#[derive(Clone, Copy, Debug)]
struct End {
    side: Side,
    address: Endpoint,
    peer: Endpoint,
    /// Of TCP: the next sequence number to send, and how much of the peer's has come.
    next: u32,
    seen: u32,
    /// The end of the peer's last SYN.
    asked: Option<u32>,
    scale: u8,
    /// What it has acknowledged and the window that it gave with it.
    offered: (u32, u16),
}

impl End {
    fn offer(&mut self, acknowledged: u32, window: u16) {
        if acknowledged.wrapping_sub(self.offered.0).cast_signed() >= 0 {
            self.offered = (acknowledged, window);
        }
    }
}

/// What one end of a conversation does next.
#[derive(Clone, Debug)]
pub enum Act {
    Syn {
        scale: Option<u8>,
    },
    SynAck {
        scale: Option<u8>,
    },
    Data {
        length: u16,
        window: u16,
        back: u16,
        behind: u16,
    },
    Fin {
        window: u16,
        behind: u16,
    },
    /// Somewhere about the peer's window.
    Reset {
        from: i32,
    },
}

#[derive(Clone, Debug)]
pub enum Doing {
    Act {
        talk: usize,
        end: usize,
        act: Act,
        odd: Odd,
    },
    /// Back and forth, some times.
    Chat {
        talk: usize,
        times: u8,
        length: u16,
        window: u16,
    },
    /// Data, its acknowledgement with a FIN or without, and a reset at the edge of the window that this gave.
    Break {
        talk: usize,
        end: usize,
        length: u16,
        window: u16,
        fin: bool,
        from: i32,
    },
    /// A handshake, or a question and its answer.
    Open {
        talk: usize,
        scales: (Option<u8>, Option<u8>),
    },
    Error {
        talk: usize,
        end: usize,
    },
    /// With everything on its way home when a timer fires, or without.
    Wait {
        millis: u32,
        recalled: bool,
    },
    Reconfigure(u8),
    Recall,
    /// How many flows the fast path has room for.
    Room(u8),
}

/// What is out of the ordinary with a packet.
#[derive(Clone, Copy, Debug)]
pub enum Odd {
    No,
    Ttl(u8),
    Options,
    Pieces(u16),
    /// Not even the order is kept.
    Swapped(u16),
    DontFragment,
    NoChecksum,
    BadChecksum,
    Padded(u8),
    Spoofed,
}

fn act() -> impl Strategy<Value = Act> {
    let scale = prop::option::of(0..4_u8);
    let window = prop_oneof![Just(0_u16), Just(1), 1..2_000_u16, any::<u16>()];
    let behind = prop_oneof![4 => Just(0_u16), 1 => 0..5_000_u16];
    let length = prop_oneof![2 => Just(0_u16), 4 => 0..1_400_u16, 1 => 1_400..4_000_u16];
    let back = prop_oneof![5 => Just(0_u16), 1 => 0..4_000_u16];
    let from = prop_oneof![4 => -3..4_i32, 1 => -70_000..70_000_i32];
    prop_oneof![
        1 => scale.clone().prop_map(|scale| Act::Syn { scale }),
        1 => scale.prop_map(|scale| Act::SynAck { scale }),
        12 => (length, window.clone(), back, behind.clone())
            .prop_map(|(length, window, back, behind)| Act::Data { length, window, back, behind }),
        2 => (window, behind).prop_map(|(window, behind)| Act::Fin { window, behind }),
        2 => from.prop_map(|from| Act::Reset { from }),
    ]
}

fn odd() -> impl Strategy<Value = Odd> {
    prop_oneof![
        30 => Just(Odd::No),
        1 => (0..3_u8).prop_map(Odd::Ttl),
        1 => Just(Odd::Options),
        1 => (1..60_u16).prop_map(|units| Odd::Pieces(units * 8)),
        1 => (1..60_u16).prop_map(|units| Odd::Swapped(units * 8)),
        3 => Just(Odd::DontFragment),
        2 => Just(Odd::NoChecksum),
        1 => Just(Odd::BadChecksum),
        1 => any::<u8>().prop_map(Odd::Padded),
        1 => Just(Odd::Spoofed),
    ]
}

pub fn doing() -> impl Strategy<Value = Doing> {
    let talk = 0..TALKS;
    let scale = prop::option::of(0..4_u8);
    let wait = prop_oneof![
        8 => 0..3_000_u32,
        3 => 0..130_000_u32,
        2 => prop_oneof![119_000..121_500_u32, 239_000..241_500_u32, 299_000..301_500_u32],
        1 => 0..8_000_000_u32,
    ];
    prop_oneof![
        24 => (talk.clone(), 0..2_usize, act(), odd())
            .prop_map(|(talk, end, act, odd)| Doing::Act { talk, end, act, odd }),
        8 => (talk.clone(), 1..6_u8, 0..1_400_u16, any::<u16>())
            .prop_map(|(talk, times, length, window)| Doing::Chat { talk, times, length, window }),
        4 => (talk.clone(), 0..2_usize, 1..1_400_u16, 0..3_000_u16, any::<bool>(), -2..3_i32)
            .prop_map(|(talk, end, length, window, fin, from)| Doing::Break { talk, end, length, window, fin, from }),
        6 => (talk.clone(), (scale.clone(), scale)).prop_map(|(talk, scales)| Doing::Open { talk, scales }),
        1 => (talk, 0..2_usize).prop_map(|(talk, end)| Doing::Error { talk, end }),
        5 => (wait, prop::bool::weighted(0.2))
            .prop_map(|(millis, recalled)| Doing::Wait { millis, recalled }),
        1 => any::<u8>().prop_map(Doing::Reconfigure),
        1 => Just(Doing::Recall),
        1 => (0..12_u8).prop_map(Doing::Room),
    ]
}

/// Few hosts, few ports, few servers. Of every fourth conversation both ends are inside, and know each other by an
/// external address of the NAT, mostly both in the same form.
fn talks() -> Vec<Talk> {
    let end = |side, address, peer| {
        let next = u32::MAX - 3_000;
        End { side, address, peer, next, seen: 0, asked: None, scale: 0, offered: (0, 0) }
    };
    let host = |number: usize, port: usize| {
        Endpoint::new(Ipv4Addr::new(10, 0, 0, 2 + (number % 3) as u8), port as u16)
    };
    let talk = |number: usize| {
        let protocol = if number % 3 == 2 { Protocol::UDP } else { Protocol::TCP };
        if number % 4 != 3 {
            let client = host(number, 4_000 + number / 3 % 2);
            let server = Endpoint::new(Ipv4Addr::new(198, 51, 100, 1 + (number / 6) as u8), 443);
            let unknown = Endpoint::new(EXTERNAL, client.port);
            let ends = [end(Side::Internal, client, server), end(Side::External, server, unknown)];
            return Talk { protocol, ends };
        }
        let (one, other) = (host(number, 5_000 + number), host(number + 1, 6_000 + number));
        let forms = [(PUBLIC, PUBLIC), (EXTERNAL, EXTERNAL), (PUBLIC, PUBLIC), (PUBLIC, EXTERNAL)][number / 4];
        let ends = [
            end(Side::Internal, one, Endpoint::new(forms.0, other.port)),
            end(Side::Internal, other, Endpoint::new(forms.1, one.port)),
        ];
        Talk { protocol, ends }
    };
    (0..TALKS).map(talk).collect()
}

fn setup(choice: u8, offload_after: Option<u16>) -> Config {
    let mut config = config();
    if choice & 1 != 0 {
        config.filtering = FilteringBehaviour::EndpointIndependent;
    }
    if choice & 2 != 0 {
        config.external_mtu = 600;
    }
    if choice & 4 != 0 {
        config.internal_mtu = 1_000;
    }
    if choice & 8 != 0 {
        config.external_addresses = pool(2);
    }
    if choice & 16 != 0 {
        config.mss_clamp = Some(500);
    }
    if choice & 32 != 0 {
        config.static_mappings = vec![
            static_mapping(Protocol::TCP, "192.0.2.1:4000", "10.0.0.2:4000"),
            static_mapping(Protocol::UDP, "192.0.2.1:4001", "10.0.0.3:4001"),
        ];
    }
    if choice & 64 != 0 && choice & 128 == 0 {
        config.static_mappings.clear();
        config.services = vec![service("192.0.2.1:4000", choice & 32 == 0)];
    }
    config.offload_after = offload_after;
    config
}

/// See the module.
pub struct Twins<F> {
    pub alone: Nat,
    pub with: Nat<F>,
    after: u16,
    talks: Vec<Talk>,
    closed: [Vec<String>; 2],
    id: u16,
}

impl<F: Carrier> Twins<F> {
    /// `choice` is of a configuration; sessions are offered `after` so many packets.
    pub fn new(choice: u8, seed: u64, after: u16, fast_path: F) -> Self {
        Self {
            alone: Nat::seeded(setup(choice, None), seed).balanced(ByPort::default()),
            with: Nat::carried(setup(choice, Some(after)), seed, fast_path).balanced(ByPort::default()),
            after,
            talks: talks(),
            closed: [Vec::new(), Vec::new()],
            id: 0,
        }
    }

    /// All that there is to do, and then nothing until every session has ended.
    pub fn live(mut self, doings: &[Doing]) -> Nat<F> {
        for doing in doings {
            self.run(doing);
        }
        self.run(&Doing::Wait { millis: 100_000_000, recalled: false });
        self.alone.assert_empties();
        self.with.assert_empties();
        self.with
    }

    fn run(&mut self, doing: &Doing) {
        match *doing {
            Doing::Act { talk, end, ref act, odd } => self.act(talk, end, act, odd),
            Doing::Chat { talk, times, length, window } => {
                for time in 0..times {
                    let data = Act::Data { length, window, back: 0, behind: 0 };
                    self.act(talk, usize::from(time % 2), &data, Odd::No);
                }
            }
            Doing::Break { talk, end, length, window, fin, from } => {
                let data = Act::Data { length, window: 8_192, back: 0, behind: 0 };
                self.act(talk, end, &data, Odd::No);
                let answer = if fin {
                    Act::Fin { window, behind: 0 }
                } else {
                    Act::Data { length: 0, window, back: 0, behind: 0 }
                };
                self.act(talk, 1 - end, &answer, Odd::No);
                self.act(talk, end, &Act::Reset { from }, Odd::No);
            }
            Doing::Open { talk, scales } => {
                let ack = Act::Data { length: 0, window: 8_192, back: 0, behind: 0 };
                let (syn, syn_ack) = (Act::Syn { scale: scales.0 }, Act::SynAck { scale: scales.1 });
                let hairpin = self.talks[talk].ends[1].side == Side::Internal;
                let acts = match (self.talks[talk].protocol, hairpin) {
                    (Protocol::UDP, _) => vec![(0, &ack), (1, &ack), (0, &ack)],
                    // Neither lets the other in before it has sent something itself: both open it.
                    (_, true) => vec![(0, &syn), (1, &syn), (0, &syn_ack), (1, &syn_ack), (0, &ack)],
                    (_, false) => vec![(0, &syn), (1, &syn_ack), (0, &ack)],
                };
                for (end, act) in acts {
                    self.act(talk, end, act, Odd::No);
                }
            }
            Doing::Error { talk, end } => {
                let End { side, address, peer, .. } = self.talks[talk].ends[end];
                let quoted = if self.talks[talk].protocol == Protocol::TCP {
                    tcp(peer, address, ACK).bytes()
                } else {
                    udp(peer, address).bytes()
                };
                let error = icmp_error(address.address, peer.address, (3, 1), &quoted).bytes();
                self.packet(side, &error);
            }
            Doing::Wait { millis, recalled } => {
                let duration = Duration::from_millis(u64::from(millis));
                self.alone.advance(duration);
                self.with.advance_with(duration, |engine| {
                    if recalled {
                        engine.recall(0, u32::MAX);
                    }
                });
                assert_eq!(self.alone.transmitted(), self.with.transmitted());
            }
            Doing::Reconfigure(choice) => {
                self.alone.reconfigure(setup(choice, None));
                self.with.reconfigure(setup(choice, Some(self.after)));
            }
            Doing::Recall => {
                let mut from = Some(0);
                while let Some(place) = from {
                    from = self.with.engine.recall(place, 3);
                    self.with.advance(Duration::ZERO);
                }
                self.with.serve();
                assert_eq!((self.with.counters().offloaded, self.with.fast_path.len()), (0, 0));
            }
            Doing::Room(flows) => {
                self.with.fast_path.set_room(if flows > 5 { usize::MAX } else { usize::from(flows) });
            }
        }
        self.compare();
    }

    fn act(&mut self, number: usize, end: usize, act: &Act, odd: Odd) {
        let talk = &mut self.talks[number];
        let peer = talk.ends[1 - end];
        let me = &mut talk.ends[end];
        self.id = self.id.wrapping_add(1);
        // What this end has not seen it does not acknowledge.
        let seen = me.seen;
        let ack = |behind: u16| seen.wrapping_sub(u32::from(behind));
        let build = match (talk.protocol, act) {
            (Protocol::UDP, Act::Data { length, .. }) => udp(me.address, me.peer).filled(usize::from(*length)),
            (Protocol::UDP, _) => udp(me.address, me.peer),
            (_, Act::Syn { scale }) => {
                (me.next, me.scale) = (me.next.wrapping_add(7_777), scale.unwrap_or(0));
                let syn = tcp(me.address, me.peer, SYN).seq(me.next.wrapping_sub(1)).window(5_000);
                scaled(syn, *scale)
            }
            (_, Act::SynAck { scale }) => {
                me.scale = scale.unwrap_or(0);
                me.seen = me.asked.take().unwrap_or(me.seen);
                let syn = tcp(me.address, me.peer, SYN | ACK).seq(me.next.wrapping_sub(1)).ack(me.seen);
                scaled(syn.window(5_000), *scale)
            }
            (_, Act::Data { length, window, back, behind }) => {
                let seq = me.next.wrapping_sub(u32::from(*back));
                let end = seq.wrapping_add(u32::from(*length));
                if end.wrapping_sub(me.next).cast_signed() > 0 {
                    me.next = end;
                }
                me.offer(ack(*behind), *window);
                tcp(me.address, me.peer, ACK)
                    .seq(seq)
                    .ack(ack(*behind))
                    .window(*window)
                    .filled(usize::from(*length))
            }
            (_, Act::Fin { window, behind }) => {
                let seq = me.next;
                me.next = me.next.wrapping_add(1);
                me.offer(ack(*behind), *window);
                tcp(me.address, me.peer, FIN | ACK).seq(seq).ack(ack(*behind)).window(*window)
            }
            (_, Act::Reset { from }) => {
                // At the beginning or the end of what the peer would take.
                let (acknowledged, window) = peer.offered;
                let scale = if me.scale == 0 { 0 } else { peer.scale };
                let edge = if self.id.is_multiple_of(2) { 0 } else { u32::from(window) << scale };
                let seq = acknowledged.wrapping_add(edge).wrapping_add(from.cast_unsigned());
                tcp(me.address, me.peer, RST).seq(seq)
            }
        };
        let build = build.id(self.id);
        let (side, length) = (me.side, build.bytes().len());
        let packets = match odd {
            Odd::Ttl(ttl) => vec![build.ttl(ttl).bytes()],
            Odd::Options => vec![build.ip_options(&[1, 1, 1, 0]).bytes()],
            Odd::Pieces(size) if length > 100 => fragment(&build.bytes(), usize::from(size)),
            Odd::Swapped(size) if length > 100 => {
                let mut pieces = fragment(&build.bytes(), usize::from(size));
                pieces.reverse();
                pieces
            }
            Odd::DontFragment => vec![build.df().bytes()],
            Odd::NoChecksum if talk.protocol == Protocol::UDP => vec![build.no_checksum().bytes()],
            Odd::BadChecksum => {
                let mut packet = build.bytes();
                packet[10] ^= 1;
                vec![packet]
            }
            Odd::Padded(bytes) => {
                let mut packet = build.bytes();
                packet.extend(vec![0xaa; usize::from(bytes)]);
                vec![packet]
            }
            _ => vec![build.bytes()],
        };
        let side = if matches!(odd, Odd::Spoofed) { side.opposite() } else { side };
        for packet in packets {
            for arrived in self.packet(side, &packet) {
                self.arrive(number, &arrived);
            }
        }
    }

    /// Whoever gets a packet learns by it: where to answer to, and how far the other is.
    fn arrive(&mut self, talk: usize, bytes: &[u8]) {
        if checksum_complaint(bytes).is_some() {
            return;
        }
        let packet = view(bytes);
        if packet.fragment_offset > 0 {
            return;
        }
        for end in &mut self.talks[talk].ends {
            let learns = end.side == Side::External;
            let is_for_it = end.address == packet.destination && (learns || end.peer == packet.source);
            if !is_for_it {
                continue;
            }
            end.peer = packet.source;
            let Some(segment) = &packet.tcp else { continue };
            let reached = segment.seq.wrapping_add(packet.payload.len() as u32);
            if segment.flags & (SYN | ACK) == SYN {
                end.asked = Some(reached.wrapping_add(1));
            } else if segment.flags & SYN != 0 {
                end.seen = reached.wrapping_add(1);
            } else if segment.flags & RST == 0 && reached.wrapping_sub(end.seen).cast_signed() > 0 {
                end.seen = reached;
            }
        }
    }

    /// What both make of it must be the same; gives what they send.
    fn packet(&mut self, side: Side, packet: &[u8]) -> Vec<Vec<u8>> {
        let Some(side) = self.with.fast_path.admit(side, packet) else { return Vec::new() };
        let before = [self.alone.counters(), self.with.counters()];
        let alone = sent(&mut self.alone, side, packet);
        let with = sent(&mut self.with, side, packet);
        assert_eq!(alone, with, "what comes out of {packet:02x?}");
        let after = [self.alone.counters(), self.with.counters()];
        for reason in DropReason::ALL {
            let dropped = |at: usize| after[at].dropped(*reason) - before[at].dropped(*reason);
            assert_eq!(dropped(0), dropped(1), "{reason:?}");
        }
        alone.into_iter().map(|(_, bytes)| bytes).collect()
    }

    fn compare(&mut self) {
        let events = [self.alone.events(), self.with.events()];
        for (events, closed) in events.into_iter().zip(&mut self.closed) {
            closed.extend(events.into_iter().filter_map(|event| match event {
                Event::Closed(record, reason) => Some(format!("{record:?} {reason:?}")),
                Event::Opened(_) | Event::Established(_) => None,
            }));
            // Which of the sessions that end at one time ends first is all one.
            closed.sort();
        }
        assert_eq!(self.closed[0], self.closed[1]);
        self.closed = [Vec::new(), Vec::new()];
        assert_eq!(live(&self.alone), live(&self.with));
        assert_eq!(totals(&self.alone), totals(&self.with));
        let offloaded = self.with.sessions().iter().filter(|session| session.offloaded).count();
        assert_eq!(self.with.counters().offloaded as usize, offloaded);
    }
}

fn scaled(syn: Build, scale: Option<u8>) -> Build {
    match scale {
        Some(scale) => syn.tcp_options(&[3, 3, scale, 0, 2, 4, 5, 0xb4]),
        None => syn,
    }
}

/// All that leaves on behalf of a packet, in order.
fn sent<F: Carrier>(nat: &mut Nat<F>, side: Side, packet: &[u8]) -> Vec<(Side, Vec<u8>)> {
    let (verdict, bytes) = nat.unchecked(side, packet);
    let at_once = match verdict {
        egret::nat::Verdict::Forward => Some((side.opposite(), bytes)),
        egret::nat::Verdict::Hairpin => Some((Side::Internal, bytes)),
        _ => None,
    };
    let later = nat.transmitted().into_iter().map(|(side, view)| (side, view.bytes));
    at_once.into_iter().chain(later).collect()
}

/// The sessions, each with what the fast path holds of it.
fn live<F: Carrier>(nat: &Nat<F>) -> BTreeMap<String, String> {
    let complete = |mut record: egret::nat::SessionRecord| {
        assert_eq!(record.offloaded, nat.engine.flow_keys(&record).is_some());
        if let Some(keys) = nat.engine.flow_keys(&record)
            && let (Some(out), Some(back)) = nat.fast_path.usage(keys)
        {
            record.add(nat.now, out, back);
        }
        record.offloaded = false;
        (format!("{:?}", (record.protocol, record.internal, record.remote)), format!("{record:?}"))
    };
    nat.sessions().into_iter().map(complete).collect()
}

/// Everything counted, the fast path's part included.
fn totals<F: Carrier>(nat: &Nat<F>) -> Counters {
    let mut all = nat.counters();
    let plus = |total: &mut Traffic, part: &Traffic| {
        total.packets += part.packets;
        total.bytes += part.bytes;
    };
    let [out, back, hairpinned] = nat.fast_path.traffic();
    plus(&mut all.in_from_internal, &out);
    plus(&mut all.out_to_external, &out);
    plus(&mut all.in_from_external, &back);
    plus(&mut all.out_to_internal, &back);
    plus(&mut all.in_from_internal, &hairpinned);
    plus(&mut all.hairpinned, &hairpinned);
    (all.offloads, all.offloads_refused, all.offloaded) = (0, 0, 0);
    all
}

const TALKS: usize = 16;
