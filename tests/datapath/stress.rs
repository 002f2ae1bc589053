//! Sessions open, close, expire and are opened again, with few external ports and by many hosts, while the fast path
//! translates as fast as it can: no packet of an old session may ever be translated as another's.
//!
//! Every packet of data says who sent it: the internal endpoint, and its how many-eth session that is. The remote
//! watches each external port: it may pass from one internal endpoint to another, but a session that has lost it must
//! never be seen by it again. The remote sends everything back, and it must arrive at whoever it names.
//!
//! Longer with `EGRET_STRESS_SECONDS`.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use egret::datapath::{Choice, Config, Worker, XdpConfig, interfaces, spawn};
use egret::nat::{self, ExternalAddress, Timeouts};
use egret::wire::{Endpoint, Protocol};
use pnet_datalink::{Channel, DataLinkReceiver, DataLinkSender};

use crate::namespaces::Lab;
use crate::support::{ACK, Build, FIN, RST, Random, SYN, tcp, udp};
use crate::{EXTERNAL, snapshot, two_armed, wait_ready};

/// Says who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    internal: Endpoint,
    session: u32,
}

/// One internal endpoint.
struct Host {
    protocol: Protocol,
    endpoint: Endpoint,
    /// The number of its present session.
    session: AtomicU32,
    /// The number of the last session that was answered; of TCP, how much of what the remote sent has come.
    answered: AtomicU64,
}

/// A packet that has arrived.
struct Arrived<'a> {
    protocol: Protocol,
    source: Endpoint,
    destination: Endpoint,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: &'a [u8],
}

/// One end of a link.
struct Wire {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
    ethernet: [u8; 14],
}

/// What all threads go by.
struct Run {
    hosts: Vec<Host>,
    ends: Instant,
    wrong: Mutex<Vec<String>>,
    /// A failed thread must not keep the others.
    stop: AtomicBool,
    sent: AtomicU64,
    echoed: AtomicU64,
    /// How often an external port passed from one internal endpoint to another.
    passed_on: AtomicU64,
}

#[test]
fn no_packet_is_ever_translated_as_another_sessions() {
    let seconds = std::env::var("EGRET_STRESS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let lab = two_armed();
    // The hosts are only a socket's, which the kernel there knows nothing of and does not answer for.
    lab.ip("nat", "route add 10.0.7.0/24 via 10.0.1.10");
    for (name, interface) in [("client", "eth0"), ("server", "eth0"), ("nat", "int"), ("nat", "ext")] {
        lab.command(name, &format!("ethtool -K {interface} tx off sg off tso off gso off gro off"));
    }
    for name in ["client", "server"] {
        let object = concat!(env!("OUT_DIR"), "/lab.bpf.o");
        lab.command(name, &format!("ip link set eth0 xdpdrv obj {object} program pass"));
    }
    let worker = start(&lab);
    wait_ready(&worker.handle());

    let run = Run {
        hosts: (0..HOSTS).map(host).collect(),
        ends: Instant::now() + Duration::from_secs(seconds),
        wrong: Mutex::new(Vec::new()),
        stop: AtomicBool::new(false),
        sent: AtomicU64::new(0),
        echoed: AtomicU64::new(0),
        passed_on: AtomicU64::new(0),
    };
    let mac = |interface| mac_of(&lab, "nat", interface);
    let (inside, outside) = (mac("int"), mac("ext"));
    let wires = [0; 3].map(|_| wire(&lab, "client", inside));
    let remote = wire(&lab, "server", outside);
    std::thread::scope(|scope| {
        let [first, second, receiving] = wires;
        scope.spawn(|| run.guarded(|| run.answer(remote)));
        scope.spawn(|| run.guarded(|| run.receive(receiving)));
        scope.spawn(|| run.guarded(|| run.send(first, 0)));
        scope.spawn(|| run.guarded(|| run.send(second, 1)));
    });

    let wrong = run.wrong.lock().expect("no panic");
    let figures = snapshot(&worker.handle());
    let fast = figures.fast_path.expect("it is xdp");
    let (sent, echoed) = (run.sent.into_inner(), run.echoed.into_inner());
    let passed_on = run.passed_on.into_inner();
    println!(
        "sent {sent} echoed {echoed}; fast path {} out, {} back; sessions {} opened, {} closed, {} offloads; ports \
         passed on {passed_on}",
        fast.out_to_external.packets,
        fast.out_to_internal.packets,
        figures.counters.sessions_opened,
        figures.counters.sessions_closed,
        figures.counters.offloads,
    );
    assert!(wrong.is_empty(), "{} times: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(fast.out_to_external.packets > 1_000 * seconds && fast.out_to_internal.packets > 1_000 * seconds);
    assert!(passed_on > 2 * seconds, "ports were hardly used again: {passed_on}");
    assert!(echoed > sent / 10, "most was lost: {echoed} of {sent}");
    worker.stop().expect("a clean end");
}

impl Run {
    /// Ends the others, too, if it fails.
    fn guarded(&self, body: impl FnOnce()) {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
        }
        let _stop = Stop(&self.stop);
        body();
    }

    fn goes_on(&self, longer: Duration) -> bool {
        !self.stop.load(Ordering::Relaxed) && Instant::now() < self.ends + longer
    }

    fn complain(&self, what: String) {
        self.wrong.lock().expect("no panic").push(what);
    }

    /// The remote: watches who uses which external port, and answers.
    fn answer(&self, mut wire: Wire) {
        struct Port {
            owner: Identity,
            /// The last session of each that has lost it.
            lost: HashMap<Endpoint, u32>,
        }
        let mut ports: HashMap<(Protocol, Endpoint), Port> = HashMap::new();
        while self.goes_on(LATE) {
            let Some(frame) = wire.receive() else { continue };
            let Some(packet) = arrived(&frame) else { continue };
            if packet.destination != REMOTE {
                continue;
            }
            if packet.source.address != EXTERNAL {
                self.complain(format!("from {:?}", packet.source));
            }
            if let Some(who) = identity(packet.payload) {
                let port = ports
                    .entry((packet.protocol, packet.source))
                    .or_insert_with(|| Port { owner: who, lost: HashMap::new() });
                if port.lost.get(&who.internal).is_some_and(|&lost| who.session <= lost) {
                    let (at, owner) = (packet.source.port, port.owner);
                    self.complain(format!("{who:?} at {:?} port {at}, now {owner:?}'s", packet.protocol));
                } else if port.owner.internal != who.internal {
                    port.lost.insert(port.owner.internal, port.owner.session);
                    port.owner = who;
                    self.passed_on.fetch_add(1, Ordering::Relaxed);
                } else {
                    port.owner.session = port.owner.session.max(who.session);
                }
            }
            if let Some(answer) = answer_to(&packet) {
                wire.send(&answer);
            }
        }
    }

    /// The hosts: what comes must be for whom it comes to.
    fn receive(&self, mut wire: Wire) {
        while self.goes_on(LATE) {
            let Some(frame) = wire.receive() else { continue };
            let Some(packet) = arrived(&frame) else { continue };
            let number = usize::from(packet.destination.port).checked_sub(usize::from(FIRST_PORT));
            let host = number.and_then(|number| self.hosts.get(number));
            let Some(host) = host.filter(|host| host.endpoint == packet.destination) else {
                self.complain(format!("for {:?}", packet.destination));
                continue;
            };
            let session = host.session.load(Ordering::Acquire);
            if packet.source != REMOTE || packet.protocol != host.protocol {
                self.complain(format!("from {:?} to {:?}", packet.source, packet.destination));
            }
            match identity(packet.payload) {
                Some(who) if who.internal != host.endpoint || who.session > session => {
                    self.complain(format!("{who:?} arrived at {:?}, session {session}", host.endpoint));
                }
                Some(who) => {
                    self.echoed.fetch_add(1, Ordering::Relaxed);
                    if packet.protocol == Protocol::UDP {
                        host.answered.store(u64::from(who.session) << 32, Ordering::Release);
                    }
                }
                None => {}
            }
            // An answer to an earlier session's segment acknowledges what is not this one's.
            if packet.protocol == Protocol::TCP
                && packet.flags & RST == 0
                && packet.acknowledgement.wrapping_sub(first_of(session)) < PER_SESSION
            {
                let length = packet.payload.len() as u32 + u32::from(packet.flags & (SYN | FIN) != 0);
                let next = packet.sequence.wrapping_add(length);
                host.answered.store(u64::from(session) << 32 | u64::from(next), Ordering::Release);
            }
        }
    }

    /// Every other host: opens, sends, closes or falls silent, and begins again.
    fn send(&self, mut wire: Wire, which: usize) {
        let mut random = Random(7 + which as u64);
        let hosts = self.hosts.iter().enumerate().filter(|(number, _)| number % 2 == which);
        let mut all: Vec<_> = hosts.map(|(_, host)| (host, Phase::Silent(Instant::now()), 0_u32)).collect();
        while self.goes_on(Duration::ZERO) {
            for (host, phase, sent) in &mut all {
                let next = self.step(&mut wire, &mut random, host, *phase, sent);
                *phase = next;
            }
        }
    }

    fn step(&self, wire: &mut Wire, random: &mut Random, host: &Host, phase: Phase, sent: &mut u32) -> Phase {
        let now = Instant::now();
        let mut within = |millis| now + Duration::from_millis(random.below(millis));
        let session = host.session.load(Ordering::Relaxed);
        let is_tcp = host.protocol == Protocol::TCP;
        let (answered, seen) = {
            let answered = host.answered.load(Ordering::Acquire);
            ((answered >> 32) as u32, answered as u32)
        };
        let segment = |flags, sent: u32| {
            tcp(host.endpoint, REMOTE, flags).seq(first_of(session).wrapping_add(sent)).ack(seen)
        };
        let data = payload(Identity { internal: host.endpoint, session });
        let data_of = |sent| {
            if is_tcp { segment(ACK, sent).payload(data) } else { udp(host.endpoint, REMOTE).payload(data) }
        };
        match phase {
            Phase::Silent(until) if now < until => phase,
            Phase::Silent(_) => {
                host.session.store(session + 1, Ordering::Release);
                *sent = 1;
                Phase::Opening(within(600), now)
            }
            Phase::Opening(..) if answered == session => Phase::Open(within(400), now),
            Phase::Opening(until, _) if now > until => Phase::Silent(within(300)),
            Phase::Opening(_, again) if now < again => phase,
            Phase::Opening(until, _) => {
                let syn = tcp(host.endpoint, REMOTE, SYN).seq(first_of(session));
                wire.send(&if is_tcp { syn } else { data_of(0) });
                Phase::Opening(until, now + PAUSE)
            }
            // Its session may have expired, and this one's number have been seen by several ports.
            Phase::Open(_, last) if now > last + TOO_LONG => Phase::Silent(now),
            Phase::Open(until, _) if now < until => {
                for _ in 0..BURST {
                    wire.send(&data_of(*sent));
                    *sent += data.len() as u32;
                }
                self.sent.fetch_add(BURST, Ordering::Relaxed);
                Phase::Open(until, now)
            }
            Phase::Open(..) if is_tcp => {
                wire.send(&segment(if session.is_multiple_of(3) { FIN | ACK } else { RST | ACK }, *sent));
                Phase::Closed(within(800), now)
            }
            Phase::Open(..) => Phase::Silent(within(800)),
            // It does not know that it is closed, or does not care.
            Phase::Closed(until, again) if now < until => {
                if now < again {
                    return phase;
                }
                wire.send(&data_of(*sent));
                Phase::Closed(until, now + PAUSE / 10)
            }
            Phase::Closed(..) => Phase::Silent(within(300)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Silent(Instant),
    /// Until when, and when the next attempt is due.
    Opening(Instant, Instant),
    /// Until when, and when it sent last.
    Open(Instant, Instant),
    /// Closed, but still sending: until when, and when next.
    Closed(Instant, Instant),
}

impl Wire {
    fn send(&mut self, packet: &Build) {
        let frame = [&self.ethernet[..], &packet.bytes()].concat();
        // Where it is full, it is lost, as anywhere.
        let _ = self.sender.send_to(&frame, None);
    }

    /// A frame to us; `None` if there was none for a while.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let frame = self.receiver.next().ok()?;
        (frame.get(..6) == Some(&self.ethernet[6..12])).then(|| frame.to_vec())
    }
}

fn arrived(frame: &[u8]) -> Option<Arrived<'_>> {
    let packet = frame.get(14..)?;
    if frame.get(12..14)? != [8, 0] || packet.len() < 28 || packet[0] != 0x45 {
        return None;
    }
    let packet = packet.get(..usize::from(u16::from_be_bytes([packet[2], packet[3]])))?;
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    let endpoint = |address: usize, port: usize| Endpoint::new(long(address).into(), word(port));
    let is_tcp = packet[9] == Protocol::TCP.0 && packet.len() >= 40;
    if !is_tcp && packet[9] != Protocol::UDP.0 {
        return None;
    }
    let begin = if is_tcp { 20 + usize::from(packet[32] >> 4) * 4 } else { 28 };
    Some(Arrived {
        protocol: Protocol(packet[9]),
        source: endpoint(12, 20),
        destination: endpoint(16, 22),
        flags: if is_tcp { packet[33] } else { 0 },
        sequence: if is_tcp { long(24) } else { 0 },
        acknowledgement: if is_tcp { long(28) } else { 0 },
        payload: packet.get(begin..)?,
    })
}

/// The remote has no state: it acknowledges what comes, and sends it back.
fn answer_to(packet: &Arrived<'_>) -> Option<Build> {
    if packet.protocol == Protocol::UDP {
        return Some(udp(packet.destination, packet.source).payload(packet.payload));
    }
    let flags = match packet.flags {
        flags if flags & RST != 0 => return None,
        flags if flags & SYN != 0 => SYN | ACK,
        flags if flags & FIN != 0 => FIN | ACK,
        _ => ACK,
    };
    let length = packet.payload.len() as u32 + u32::from(packet.flags & (SYN | FIN) != 0);
    let answer = tcp(packet.destination, packet.source, flags).ack(packet.sequence.wrapping_add(length));
    Some(answer.seq(packet.acknowledgement).payload(packet.payload))
}

fn payload(who: Identity) -> [u8; 14] {
    let mut bytes = *MAGIC;
    bytes[4..8].copy_from_slice(&who.internal.address.octets());
    bytes[8..10].copy_from_slice(&who.internal.port.to_be_bytes());
    bytes[10..14].copy_from_slice(&who.session.to_be_bytes());
    bytes
}

fn identity(payload: &[u8]) -> Option<Identity> {
    let bytes: &[u8; 14] = payload.first_chunk().filter(|bytes| bytes[..4] == MAGIC[..4])?;
    let address = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
    let internal = Endpoint::new(address, u16::from_be_bytes([bytes[8], bytes[9]]));
    Some(Identity { internal, session: u32::from_be_bytes([bytes[10], bytes[11], bytes[12], bytes[13]]) })
}

/// A session's first sequence number.
fn first_of(session: u32) -> u32 {
    session.wrapping_mul(PER_SESSION)
}

fn host(number: usize) -> Host {
    let address = Ipv4Addr::new(10, 0, 7, 1 + number as u8);
    Host {
        protocol: if number % 4 < 2 { Protocol::UDP } else { Protocol::TCP },
        endpoint: Endpoint::new(address, FIRST_PORT + number as u16),
        session: AtomicU32::new(0),
        answered: AtomicU64::new(0),
    }
}

fn start(lab: &Lab) -> Worker {
    lab.run("nat", || {
        let all = interfaces();
        let named = |name: &str| all.iter().find(|interface| interface.name == name).expect("made").clone();
        let engine = nat::Config {
            internal: vec!["10.0.0.0/16".parse().expect("a prefix")],
            external_addresses: vec![ExternalAddress { private: EXTERNAL, public: None }],
            port_range: 40_000..=40_000 + PORTS - 1,
            timeouts: Timeouts {
                tcp_established: EXPIRY * 10,
                tcp_transitory: EXPIRY,
                udp: EXPIRY,
                udp_unreplied: EXPIRY,
                ..Timeouts::default()
            },
            ..nat::Config::default()
        };
        let config = Config {
            external: named("ext"),
            internal: named("int"),
            bypass: vec!["10.0.0.0/16".parse().expect("a prefix")],
            datapath: Choice::Xdp,
            xdp: XdpConfig::default(),
        };
        spawn(config, engine, Box::new(nat::NoTargets)).expect("the worker starts")
    })
}

fn mac_of(lab: &Lab, host: &str, interface: &str) -> [u8; 6] {
    let all = lab.run(host, interfaces);
    all.iter().find(|found| found.name == interface).expect("made").mac
}

/// `eth0` of a host, whose frames go to `nat`.
fn wire(lab: &Lab, host: &str, nat: [u8; 6]) -> Wire {
    let own = mac_of(lab, host, "eth0");
    let ethernet = [&nat[..], &own, &[8, 0]].concat().try_into().expect("14 bytes");
    lab.run(host, move || {
        let interface = pnet_datalink::interfaces().into_iter().find(|found| found.name == "eth0");
        let config = pnet_datalink::Config {
            read_timeout: Some(Duration::from_millis(50)),
            promiscuous: false,
            ..pnet_datalink::Config::default()
        };
        match pnet_datalink::channel(&interface.expect("made"), config).expect("root may") {
            Channel::Ethernet(sender, receiver) => Wire { sender, receiver, ethernet },
            _ => panic!("no Ethernet"),
        }
    })
}

const REMOTE: Endpoint = Endpoint { address: Ipv4Addr::new(198, 51, 100, 20), port: 7_000 };
const HOSTS: usize = 192;
const FIRST_PORT: u16 = 40_000;
/// Of each protocol: far fewer than hosts.
const PORTS: u16 = 48;
const BURST: u64 = 4;
/// Of what closes or is not used; in the fast path a second may be added.
const EXPIRY: Duration = Duration::from_millis(200);
/// Between two attempts to open.
const PAUSE: Duration = Duration::from_millis(10);
/// Half of [`EXPIRY`].
const TOO_LONG: Duration = Duration::from_millis(100);
/// Sequence numbers of a session.
const PER_SESSION: u32 = 1 << 24;
/// How long the receivers go on after the senders.
const LATE: Duration = Duration::from_millis(500);
const MAGIC: &[u8; 14] = b"EGRT0000000000";
