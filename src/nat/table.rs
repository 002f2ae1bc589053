//! The engine's tables: sessions and mappings, each found by what stands on either side of the NAT.

use super::config::{Timeouts, listener};
use super::event::{SessionRecord, SessionState, Side, Traffic};
use super::index::{Chain, Index, Key, Secret};
use super::offload::Usage;
use super::slab::{Id, NONE, Slab};
use super::tcp::Connection;
use super::wheel::{self, Tick, Timed, Timer, Wheel};
use crate::time::Instant;
use crate::wire::{Endpoint, FiveTuple, Protocol};

/// A mapping and a remote. Kept small: a gateway holds a million of them. What a look-up touches comes first, so
/// that it lies on one cache line.
#[derive(Debug)]
#[repr(C)]
pub struct Session {
    pub internal: Endpoint,
    /// The private form of the external endpoint.
    pub external: Endpoint,
    /// As the internal side addresses it: of a hairpinned session the form of an external address of ours.
    pub remote: Endpoint,
    pub protocol: Protocol,
    pub state: SessionState,
    next_by_internal: Id,
    next_by_external: Id,
    pub mapping: Id,
    pub last_use: Tick,
    timer: Timer,
    pub opened_by: Side,
    /// The remote is an external endpoint of ours.
    pub hairpin: bool,
    /// The event [`super::Event::Established`] was given.
    pub established: bool,
    /// Of a served one: its service is one of a listener at all external addresses.
    pub of_all: bool,
    pub carrier: Carrier,
    pub role: Role,
    /// TCP: who has reset it.
    pub reset_by: Option<Side>,
    /// It took its external port: it was the first of its mapping.
    pub took_port: bool,
    /// Of its bytes, those that were told by [`super::Engine::account`], in [`ACCOUNT_UNIT`]; wraps.
    accounted: u32,
    /// Packets since it was opened, has come home, or was refused by the fast path; saturates.
    pub seen: u16,
    pub opened_at: Instant,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    pub connection: Connection,
}

impl Session {
    pub fn new(now: Instant, key: &SessionKey, opened_by: Side) -> Self {
        Self {
            internal: key.internal,
            external: key.external,
            remote: key.remote,
            protocol: key.protocol,
            state: SessionState::Unreplied,
            opened_by,
            hairpin: false,
            established: false,
            of_all: false,
            carrier: Carrier::Engine,
            role: Role::Plain,
            reset_by: None,
            seen: 0,
            took_port: false,
            accounted: 0,
            mapping: NONE,
            next_by_internal: NONE,
            next_by_external: NONE,
            timer: Timer::UNARMED,
            last_use: wheel::tick(now),
            opened_at: now,
            packets_out: 0,
            bytes_out: 0,
            packets_in: 0,
            bytes_in: 0,
            connection: Connection::default(),
        }
    }

    /// How long it may be idle in its present state.
    pub fn timeout(&self, timeouts: &Timeouts) -> Tick {
        wheel::ticks(match (self.state, self.protocol) {
            (SessionState::Tcp(state), _) if state.is_established() => timeouts.tcp_established,
            (SessionState::Tcp(_), _) => timeouts.tcp_transitory,
            (SessionState::Unreplied, Protocol::UDP) => timeouts.udp_unreplied,
            (SessionState::Replied, Protocol::UDP) => timeouts.udp,
            (_, Protocol::ICMP) => timeouts.icmp_query,
            _ => timeouts.other,
        })
    }

    /// Counts a packet that `side` has sent.
    pub fn count(&mut self, side: Side, bytes: usize) {
        let (packets, total) = match side {
            Side::Internal => (&mut self.packets_out, &mut self.bytes_out),
            Side::External => (&mut self.packets_in, &mut self.bytes_in),
        };
        *packets += 1;
        *total += bytes as u64;
        self.seen = self.seen.saturating_add(1);
    }

    /// Adds what its flows have carried, of which `out` is its internal endpoint's.
    pub fn merge(&mut self, out: Option<Usage>, back: Option<Usage>) {
        for (side, usage) in [(Side::Internal, out), (Side::External, back)] {
            let Some(usage) = usage else { continue };
            let (packets, bytes) = match side {
                Side::Internal => (&mut self.packets_out, &mut self.bytes_out),
                Side::External => (&mut self.packets_in, &mut self.bytes_in),
            };
            *packets += usage.packets;
            *bytes += usage.bytes;
            self.used(&usage);
        }
        if self.protocol == Protocol::TCP {
            // Without packets, the marks are those that the session gave it.
            let marks = |usage: Option<Usage>| usage.filter(|usage| usage.packets > 0).map(|usage| usage.marks);
            self.connection.merge(marks(out), marks(back));
        }
    }

    /// What it has carried since it was last told, its flows having carried `flows` beside its own counts. Its packets
    /// are shared out as its bytes are.
    pub fn account(&mut self, flows: [Option<Usage>; 2]) -> Traffic {
        let traffic = self.unaccounted(flows);
        let told = u32::try_from(traffic.bytes / ACCOUNT_UNIT).unwrap_or(u32::MAX);
        self.accounted = self.accounted.wrapping_add(told);
        Traffic { bytes: u64::from(told) * ACCOUNT_UNIT, ..traffic }
    }

    fn unaccounted(&self, flows: [Option<Usage>; 2]) -> Traffic {
        let of_flows = |of: fn(&Usage) -> u64| flows.iter().flatten().map(of).sum::<u64>();
        let bytes = self.bytes_out + self.bytes_in + of_flows(|usage| usage.bytes);
        let packets = self.packets_out + self.packets_in + of_flows(|usage| usage.packets);
        // As much of the counter as is kept; it is looked at long before as much again has passed.
        let told = u64::from(self.accounted) * ACCOUNT_UNIT;
        let mut fresh = bytes.wrapping_sub(told) & ACCOUNT_MASK;
        if fresh > ACCOUNT_MASK / 2 {
            // On their way home, flows have told more than is here yet.
            fresh = 0;
        }
        if fresh == bytes {
            return Traffic { packets, bytes };
        }
        let share = u128::from(packets) * u128::from(fresh) / u128::from(bytes.max(1));
        Traffic { packets: u64::try_from(share).unwrap_or(u64::MAX), bytes: fresh }
    }

    /// Its counts begin anew.
    pub fn restart(&mut self, now: Instant) {
        self.opened_at = now;
        (self.packets_out, self.bytes_out, self.packets_in, self.bytes_in) = (0, 0, 0, 0);
        self.accounted = 0;
        self.took_port = false;
    }

    /// Takes note of a flow's last use.
    pub fn used(&mut self, usage: &Usage) {
        self.last_use = self.last_use.max(wheel::tick(usage.last_use));
    }

    /// The side that its internal endpoint is on.
    pub const fn near(&self) -> Side {
        match self.role {
            Role::Client => Side::External,
            Role::Plain | Role::Unanswered | Role::Served | Role::Left => Side::Internal,
        }
    }

    /// What the balancer calls the service that it is of.
    pub fn listener(&self) -> Endpoint {
        listener(self.external, self.of_all)
    }

    /// Whether its internal endpoint is a service's target.
    pub const fn is_served(&self) -> bool {
        matches!(self.role, Role::Unanswered | Role::Served | Role::Left)
    }

    /// Who has opened it, if that counts for its internal address: what clients of a service open does not.
    pub fn opener(&self) -> Option<Side> {
        (!self.is_served()).then_some(self.opened_by)
    }

    /// Whether plain data is all that is to be expected of it: TCP or UDP, with traffic both ways.
    pub const fn is_steady(&self) -> bool {
        match self.state {
            SessionState::Tcp(state) => state.is_established() && self.connection.is_settled(),
            SessionState::Replied => self.protocol.0 == Protocol::UDP.0,
            SessionState::Unreplied => false,
        }
    }

    /// What its internal endpoint sends, as it comes in.
    pub const fn outbound(&self) -> FiveTuple {
        FiveTuple { protocol: self.protocol, source: self.internal, destination: self.remote }
    }

    /// What its remote sends, as it comes in from outside.
    pub const fn inbound(&self) -> FiveTuple {
        FiveTuple { protocol: self.protocol, source: self.remote, destination: self.external }
    }

    pub fn record(&self, now: Instant) -> SessionRecord {
        let age = now - self.opened_at;
        SessionRecord {
            protocol: self.protocol,
            internal: self.internal,
            external: self.external,
            remote: self.remote,
            state: self.state,
            opened_by: self.opened_by,
            opened_at: self.opened_at,
            age,
            // Its last use is known to a tick.
            idle: (now - wheel::instant(self.last_use)).min(age),
            packets_out: self.packets_out,
            bytes_out: self.bytes_out,
            packets_in: self.packets_in,
            bytes_in: self.bytes_in,
            offloaded: self.carrier == Carrier::FastPath,
            fresh: self.unaccounted([None; 2]),
            took_port: self.took_port,
        }
    }
}

/// Who carries a session's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Engine,
    FastPath,
    /// The engine again, once the flows have come home.
    Returning,
}

/// What a session has to do with a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Plain,
    /// Its internal endpoint is the target that was chosen for it, and has not answered yet.
    Unanswered,
    /// The same, and has.
    Served,
    /// The same, and the balancer knows that it is over: both sides have closed it, or one has reset it.
    Left,
    /// Its internal endpoint is an outside client, who is kept from the target's eyes: beside it there is the served
    /// session, as of two internal hosts that hairpin.
    Client,
}

impl Timed for Session {
    fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }
}

/// What tells a session from all others.
#[derive(Clone, Copy, Debug)]
pub struct SessionKey {
    pub protocol: Protocol,
    pub internal: Endpoint,
    pub external: Endpoint,
    pub remote: Endpoint,
}

/// An internal endpoint and the external endpoint that stands for it.
#[derive(Debug)]
pub struct Mapping {
    pub internal: Endpoint,
    pub external: Endpoint,
    pub protocol: Protocol,
    /// Other sessions of the internal endpoint use it too (endpoint-independent mapping).
    pub shared: bool,
    pub sessions: u32,
    next_by_internal: Id,
    next_by_external: Id,
}

impl Mapping {
    pub const fn new(protocol: Protocol, internal: Endpoint, external: Endpoint, shared: bool) -> Self {
        Self {
            protocol,
            internal,
            external,
            sessions: 0,
            shared,
            next_by_internal: NONE,
            next_by_external: NONE,
        }
    }
}

/// Sessions, mappings, their four indexes, and the sessions' timers.
#[derive(Debug)]
pub struct Table {
    pub sessions: Slab<Session>,
    pub mappings: Slab<Mapping>,
    sessions_by_internal: Index<SessionByInternal>,
    sessions_by_external: Index<SessionByExternal>,
    mappings_by_internal: Index<MappingByInternal>,
    mappings_by_external: Index<MappingByExternal>,
    pub wheel: Wheel,
}

impl Table {
    pub fn new(secret: Secret) -> Self {
        Self {
            sessions: Slab::new(),
            mappings: Slab::new(),
            sessions_by_internal: Index::new(secret),
            sessions_by_external: Index::new(secret),
            mappings_by_internal: Index::new(secret),
            mappings_by_external: Index::new(secret),
            wheel: Wheel::new(0),
        }
    }

    /// The session of an internal endpoint with a remote.
    pub fn outbound(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Option<Id> {
        self.sessions_by_internal.find(&self.sessions, Key::pair(protocol, internal, remote))
    }

    /// The session of an external endpoint with a remote.
    pub fn inbound(&self, protocol: Protocol, external: Endpoint, remote: Endpoint) -> Option<Id> {
        self.sessions_by_external.find(&self.sessions, Key::pair(protocol, external, remote))
    }

    /// The mapping that new sessions of an internal endpoint use.
    pub fn mapping_of(&self, protocol: Protocol, internal: Endpoint) -> Option<Id> {
        self.mappings_by_internal.find(&self.mappings, Key::one(protocol, internal))
    }

    /// A mapping at an external endpoint; none of a protocol without ports.
    pub fn mapping_at(&self, protocol: Protocol, external: Endpoint) -> Option<Id> {
        self.mappings_by_external.find(&self.mappings, Key::one(protocol, external))
    }

    /// The mapping at an external endpoint, unless several share it.
    pub fn only_mapping_at(&self, protocol: Protocol, external: Endpoint) -> Option<Id> {
        self.mappings_by_external.find_only(&self.mappings, Key::one(protocol, external))
    }

    /// The mapping of an internal endpoint at an external endpoint that several share.
    pub fn mapping_between(&self, protocol: Protocol, internal: Endpoint, external: Endpoint) -> Option<Id> {
        let is_it = |mapping: &Mapping| mapping.internal == internal;
        self.mappings_by_external.find_among(&self.mappings, Key::one(protocol, external), is_it)
    }

    pub fn insert_mapping(&mut self, mapping: Mapping) -> Id {
        let (shared, has_ports) = (mapping.shared, has_ports(mapping.protocol));
        let id = self.mappings.insert(mapping);
        if has_ports {
            self.mappings_by_external.insert(&mut self.mappings, id);
        }
        if shared {
            self.mappings_by_internal.insert(&mut self.mappings, id);
        }
        id
    }

    pub fn remove_mapping(&mut self, id: Id) -> Option<Mapping> {
        if has_ports(self.mappings.get(id)?.protocol) {
            self.mappings_by_external.remove(&mut self.mappings, id);
        }
        if self.mappings.get(id)?.shared {
            self.mappings_by_internal.remove(&mut self.mappings, id);
        }
        self.mappings.remove(id)
    }

    /// Adds a session with its timer armed.
    pub fn insert_session(&mut self, session: Session, timeouts: &Timeouts) -> Id {
        let deadline = deadline(&session, timeouts);
        let id = self.sessions.insert(session);
        self.sessions_by_internal.insert(&mut self.sessions, id);
        self.sessions_by_external.insert(&mut self.sessions, id);
        self.wheel.arm(&mut self.sessions, id, deadline);
        id
    }

    /// Takes a session whose timer is not armed out.
    pub fn remove_session(&mut self, id: Id) -> Option<Session> {
        self.sessions_by_internal.remove(&mut self.sessions, id);
        self.sessions_by_external.remove(&mut self.sessions, id);
        self.sessions.remove(id)
    }

    /// Arms the timer of `id` anew, for when its state has come to end it sooner.
    pub fn rearm(&mut self, id: Id, timeouts: &Timeouts) {
        let Some(session) = self.sessions.get(id) else { return };
        let deadline = deadline(session, timeouts);
        self.wheel.disarm(&mut self.sessions, id);
        self.wheel.arm(&mut self.sessions, id, deadline);
    }
}

/// The tick at which the idle timeout has surely passed, whenever in its tick the last packet came.
pub fn deadline(session: &Session, timeouts: &Timeouts) -> Tick {
    session.last_use.saturating_add(session.timeout(timeouts)).saturating_add(1)
}

/// Without ports, all mappings of a protocol have one external endpoint: an index by it would be one long list.
const fn has_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::ICMP)
}

/// Bytes.
const ACCOUNT_UNIT: u64 = 64;
const ACCOUNT_MASK: u64 = (1 << 38) - 1;

macro_rules! chain {
    ($name:ident, $entry:ty, $next:ident, |$e:ident| $key:expr) => {
        #[derive(Debug)]
        struct $name;

        impl Chain for $name {
            type Entry = $entry;

            fn key($e: &$entry) -> Key {
                $key
            }

            fn next(entry: &$entry) -> Id {
                entry.$next
            }

            fn set_next(entry: &mut $entry, next: Id) {
                entry.$next = next;
            }
        }
    };
}

chain!(SessionByInternal, Session, next_by_internal, |e| Key::pair(e.protocol, e.internal, e.remote));
chain!(SessionByExternal, Session, next_by_external, |e| Key::pair(e.protocol, e.external, e.remote));
chain!(MappingByInternal, Mapping, next_by_internal, |e| Key::one(e.protocol, e.internal));
chain!(MappingByExternal, Mapping, next_by_external, |e| Key::one(e.protocol, e.external));
