//! A NAT under virtual time. Whatever it sends is read strictly, and no private address may get out. If its
//! configuration offers sessions to a fast path, it has one.

use std::net::Ipv4Addr;
use std::time::Duration;

use egret::nat::{
    Config, Counters, DropReason, Engine, Event, ExternalAddress, Offload as Task, Service, SessionRecord,
    Side, StaticMapping, Transmit, Verdict,
};
use egret::time::Instant;
use egret::wire::{Endpoint, Offload, Packet, Protocol};

use super::build::{EndpointLike, PacketLike};
use super::view::{View, view};
use super::{ByPort, Carrier, FastPath};

/// The external address on the wire.
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What the world calls it.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// Who ICMP errors to the inside come from.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// One external address with a public one, everything in 10/8 internal. With `EGRET_OFFLOAD_AFTER=1` in the
/// environment, all tests hold with a fast path as well.
pub fn config() -> Config {
    Config {
        internal: vec!["10.0.0.0/8".parse().expect("a prefix")],
        external_addresses: vec![ExternalAddress { private: EXTERNAL, public: Some(PUBLIC) }],
        internal_router: Some(ROUTER),
        offload_after: std::env::var("EGRET_OFFLOAD_AFTER").ok().and_then(|text| text.parse().ok()),
        ..Config::default()
    }
}

/// `count` external addresses without public ones, from 192.0.2.1 on.
pub fn pool(count: u8) -> Vec<ExternalAddress> {
    (1..=count).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect()
}

pub fn static_mapping(
    protocol: Protocol,
    external: impl EndpointLike,
    internal: impl EndpointLike,
) -> StaticMapping {
    StaticMapping { protocol, external: external.endpoint(), internal: internal.endpoint() }
}

/// Whose targets are patient for 5 s.
pub fn service(external: impl EndpointLike, preserve_client_ip: bool) -> Service {
    let external = external.endpoint();
    let connect_timeout = Duration::from_secs(5);
    Service { external, of_all: false, retired: false, preserve_client_ip, connect_timeout }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on, on this side.
    Sent(Side, Box<View>),
    /// The engine holds it, or has cut it into fragments.
    Queued,
    /// Dropped with an answer, which waits in [`Nat::transmitted`].
    Replied(DropReason),
    Dropped(DropReason),
}

impl Outcome {
    /// The packet that goes out to the external side.
    pub fn to_external(self) -> View {
        match self {
            Self::Sent(Side::External, view) => *view,
            other => panic!("not sent to the outside: {other:?}"),
        }
    }

    /// The packet that goes to the internal side.
    pub fn to_internal(self) -> View {
        match self {
            Self::Sent(Side::Internal, view) => *view,
            other => panic!("not sent to the inside: {other:?}"),
        }
    }

    /// Why it was dropped, with or without an answer.
    pub fn reason(self) -> DropReason {
        match self {
            Self::Dropped(reason) | Self::Replied(reason) => reason,
            other => panic!("not dropped: {other:?}"),
        }
    }

    pub fn is_sent(&self) -> bool {
        matches!(self, Self::Sent(..))
    }
}

/// The engine with a clock and a fast path.
pub struct Nat<F = FastPath> {
    pub engine: Engine,
    pub fast_path: F,
    pub now: Instant,
    transmitted: Vec<Transmit>,
    /// What it sends of its own accord is not read strictly: it may stem from a packet that was damaged.
    pub lenient: bool,
    /// The last call took flows home.
    held: bool,
    /// Has the targets of services, unless the engine is given another.
    pub balancer: ByPort,
}

impl Default for Nat {
    fn default() -> Self {
        Self::new(config())
    }
}

impl Nat {
    pub fn new(config: Config) -> Self {
        Self::seeded(config, 1)
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        change(&mut config);
        Self::new(config)
    }

    pub fn seeded(config: Config, seed: u64) -> Self {
        Self::carried(config, seed, FastPath::default())
    }
}

impl<F: Carrier> Nat<F> {
    /// With another fast path than the model.
    pub fn carried(config: Config, seed: u64, mut fast_path: F) -> Self {
        let mut bytes = [0x5a; 16];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        fast_path.configure(&config);
        let engine = Engine::new(config, bytes).expect("a usable configuration");
        Self {
            engine,
            fast_path,
            now: Instant::from_millis(1_000),
            transmitted: Vec::new(),
            lenient: false,
            held: false,
            balancer: ByPort::default(),
        }
    }

    /// The same, with targets for services.
    pub fn balanced(mut self, balancer: ByPort) -> Self {
        self.engine.set_balancer(Box::new(balancer.clone()));
        self.balancer = balancer;
        self
    }

    /// A packet from inside.
    pub fn out(&mut self, packet: impl PacketLike) -> Outcome {
        self.packet(Side::Internal, &packet.into_packet())
    }

    /// A packet from outside.
    pub fn inbound(&mut self, packet: impl PacketLike) -> Outcome {
        self.packet(Side::External, &packet.into_packet())
    }

    pub fn packet(&mut self, side: Side, packet: &[u8]) -> Outcome {
        let (verdict, bytes) = self.unchecked(side, packet);
        let sent = |to: Side| {
            let view = view(&bytes);
            check_leak(self.engine.config(), to, &view);
            Outcome::Sent(to, Box::new(view))
        };
        match verdict {
            Verdict::Forward => sent(side.opposite()),
            Verdict::Hairpin => {
                assert_eq!(side, Side::Internal, "only packets from inside are hairpinned");
                sent(Side::Internal)
            }
            Verdict::Queued => Outcome::Queued,
            Verdict::Reply(reason) => Outcome::Replied(reason),
            Verdict::Drop(reason) => Outcome::Dropped(reason),
        }
    }

    /// As [`Self::packet`], without any expectation of what comes out.
    pub fn unchecked(&mut self, side: Side, packet: &[u8]) -> (Verdict, Vec<u8>) {
        if let Some((to, bytes)) = self.fast_path.translate(self.now, side, packet) {
            return (if side == to { Verdict::Hairpin } else { Verdict::Forward }, bytes);
        }
        let (drops, sent) = (self.counters().drops, self.transmitted.len());
        let (verdict, bytes, _) = self.offloaded(side, packet, Offload::default());
        if verdict == Verdict::Queued && self.held {
            return self.fate_of_held(side, bytes, &drops, sent);
        }
        (verdict, bytes)
    }

    /// What the verdict would have been on a packet that had to wait for its session's flows to come home.
    fn fate_of_held(&mut self, side: Side, bytes: Vec<u8>, drops: &[u64], sent: usize) -> (Verdict, Vec<u8>) {
        let after = self.counters().drops;
        let reason = DropReason::ALL.iter().find(|&&reason| after[reason as usize] > drops[reason as usize]);
        match reason {
            Some(&reason) if self.transmitted.len() > sent => (Verdict::Reply(reason), bytes),
            Some(&reason) => (Verdict::Drop(reason), bytes),
            None if self.transmitted.len() == sent + 1 => {
                let Transmit { side: to, packet } = self.transmitted.remove(sent);
                (if side == to { Verdict::Hairpin } else { Verdict::Forward }, packet)
            }
            None => (Verdict::Queued, bytes),
        }
    }

    pub fn reconfigure(&mut self, config: Config) {
        self.fast_path.configure(&config);
        self.engine.reconfigure(self.now, config).expect("a usable configuration");
        self.drain();
    }

    /// Does what the engine asks of the fast path.
    pub fn serve(&mut self) {
        self.held = false;
        while let Some(task) = self.engine.poll_offload() {
            match task {
                Task::Install(pair) => {
                    if !self.fast_path.install(self.now, pair) {
                        self.engine.handle_refused(pair.keys());
                    }
                }
                Task::Query(keys) => {
                    let (out, back) = self.fast_path.usage(keys);
                    self.engine.handle_usage(self.now, keys, out, back);
                }
                Task::Remove(removal) => {
                    self.held = true;
                    let (out, back) = self.fast_path.remove(removal.keys);
                    self.engine.handle_removed(self.now, removal, out, back);
                }
            }
        }
    }

    /// A packet with something left for the hardware to do.
    pub fn offloaded(&mut self, side: Side, packet: &[u8], offload: Offload) -> (Verdict, Vec<u8>, Offload) {
        let mut bytes = packet.to_vec();
        let mut packet = Packet { bytes: &mut bytes, offload };
        let verdict = self.engine.handle_packet(self.now, side, &mut packet);
        let (length, offload) = (packet.bytes.len(), packet.offload);
        bytes.truncate(length);
        self.drain();
        (verdict, bytes, offload)
    }

    /// Lets time pass, and the engine's timers fire when they want to.
    pub fn advance(&mut self, duration: Duration) {
        self.advance_with(duration, |_| {});
    }

    /// The same; `before` is done to the engine each time just before its timers fire, and the fast path is behind.
    pub fn advance_with(&mut self, duration: Duration, mut before: impl FnMut(&mut Engine)) {
        let end = self.now + duration;
        let mut calls_at_one_time = 0;
        while let Some(deadline) = self.engine.poll_timeout().filter(|deadline| *deadline <= end) {
            calls_at_one_time = if deadline > self.now { 0 } else { calls_at_one_time + 1 };
            assert!(calls_at_one_time < 100_000, "handle_timeout makes no progress");
            self.now = self.now.max(deadline);
            before(&mut self.engine);
            self.engine.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    pub fn advance_secs(&mut self, seconds: u64) {
        self.advance(Duration::from_secs(seconds));
    }

    /// What the engine has sent of its own accord since the last call, strictly read.
    pub fn transmitted(&mut self) -> Vec<(Side, View)> {
        let all = std::mem::take(&mut self.transmitted);
        all.into_iter().map(|transmit| (transmit.side, view(&transmit.packet))).collect()
    }

    /// The same, not read at all.
    pub fn transmitted_bytes(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.transmitted).into_iter().map(|transmit| transmit.packet).collect()
    }

    /// The only packet that the engine has sent of its own accord.
    pub fn only_transmitted(&mut self) -> (Side, View) {
        let mut all = self.transmitted();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    pub fn counters(&self) -> Counters {
        self.engine.counters()
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.engine.counters().dropped(reason)
    }

    pub fn sessions(&self) -> Vec<SessionRecord> {
        let (mut all, mut from) = (Vec::new(), Some(0));
        while let Some(place) = from {
            from = self.engine.scan_sessions(self.now, place, 4096, |record| all.push(*record));
        }
        all
    }

    /// The only session.
    pub fn session(&self) -> SessionRecord {
        let all = self.sessions();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }

    /// The external endpoint that a UDP packet from `internal` to `remote` leaves with.
    pub fn open_udp(&mut self, internal: impl EndpointLike, remote: impl EndpointLike) -> Endpoint {
        self.out(super::udp(internal, remote)).to_external().source
    }

    /// The external endpoint of a TCP connection from inside, after a full handshake: the client's next sequence
    /// number is 1001, the server's 5001, both windows are 8192.
    pub fn open_tcp(&mut self, internal: impl EndpointLike, remote: impl EndpointLike) -> Endpoint {
        use super::{ACK, SYN, tcp};
        let (internal, remote) = (internal.endpoint(), remote.endpoint());
        let external = self.out(tcp(internal, remote, SYN)).to_external().source;
        let answer = tcp(remote, external, SYN | ACK).seq(5000).ack(1001);
        assert_eq!(self.inbound(answer).to_internal().destination, internal);
        let _ = self.out(tcp(internal, remote, ACK).seq(1001).ack(5001)).to_external();
        external
    }

    /// The external identifier of an echo request from inside.
    pub fn open_ping(
        &mut self,
        internal: impl EndpointLike,
        remote: impl EndpointLike,
        identifier: u16,
    ) -> u16 {
        self.out(super::ping(internal, remote, identifier)).to_external().identifier()
    }

    /// Asserts that nothing is left once all timers have passed.
    pub fn assert_empties(&mut self) {
        self.advance_secs(100_000);
        let counters = self.counters();
        assert_eq!((counters.sessions, counters.mappings, counters.internal_addresses), (0, 0, 0));
        assert_eq!(counters.fragment_bytes, 0);
        assert_eq!(counters.sessions_opened, counters.sessions_closed);
        assert_eq!(self.engine.poll_timeout(), None);
        assert_eq!(self.sessions(), []);
        assert_eq!(self.balancer.open(), 0, "every connection to a target was told to be over");
        assert_eq!((counters.offloaded, self.fast_path.len()), (0, 0));
    }

    fn drain(&mut self) {
        self.serve();
        while let Some(transmit) = self.engine.poll_transmit() {
            if self.lenient {
                self.transmitted.push(transmit);
                continue;
            }
            let view = view(&transmit.packet);
            check_leak(self.engine.config(), transmit.side, &view);
            let config = self.engine.config();
            let mtu = match transmit.side {
                Side::Internal => config.internal_mtu,
                Side::External => config.external_mtu,
            };
            assert!(transmit.packet.len() <= usize::from(mtu), "longer than the MTU");
            self.transmitted.push(transmit);
        }
    }
}

/// Nothing internal may be seen outside: neither as a source nor inside of an ICMP error.
fn check_leak(config: &Config, side: Side, view: &View) {
    if side != Side::External {
        return;
    }
    let ours = |address| config.external_addresses.iter().any(|external| external.private == address);
    assert!(ours(view.source.address), "a packet leaves with the source {}", view.source.address);
    let is_error = view.icmp.as_ref().is_some_and(|icmp| [3, 4, 5, 11, 12].contains(&icmp.kind));
    if is_error && view.fragment_offset == 0 {
        let (_, destination) = view.embedded();
        assert!(ours(destination.address), "an embedded packet shows {}", destination.address);
    }
}
