//! Handing sessions to a fast path, and taking them home again.
//!
//! A session that has shown that it lasts is given away as two [`Flow`]s, which a fast path carries without the
//! engine: it translates plain data and keeps count. The engine goes on owning the session:
//!
//! - It asks for the flows' last use when the session's timer fires ([`Offload::Query`]).
//! - It takes them home ([`Offload::Remove`]) before anything changes that they go by, and before the session ends.
//!   So no flow outlives its session, and no packet of an old session is ever translated as another's.
//! - A TCP segment that the fast path does not carry (SYN, FIN, RST, a fragment, one to be cut) cannot be judged
//!   without the flows' marks: it waits until they are home, and is then treated as if it had come just then.
//!   While flows are away, their session's state therefore never changes. Plain data may still come by the engine,
//!   as it was on its way when the flows were installed.
//!
//! Only TCP and UDP are given away. Of ICMP the engine verifies the whole checksum, and queries do not last.
//!
//! What waits in [`Engine::poll_offload`] is bounded by the number of sessions: one that has been offered is offered
//! again only when it has been refused or is home, is taken home only once, and is asked for at most once a second.

use std::time::Duration;

use super::Engine;
use super::event::{SessionRecord, Side, Transmit, Verdict};
use super::slab::Id;
use super::table::{self, Carrier, Session};
use super::wheel;
use crate::time::Instant;
use crate::wire::{Endpoint, FiveTuple, Headers, Packet, Protocol, TcpFlags, Transport};

/// What the fast path is to do. Whatever handles it must do so at once and in this order, before the engine is given
/// the next packet.
#[derive(Debug)]
pub enum Offload {
    /// Carry these flows: both, or neither and [`Engine::handle_refused`].
    Install(FlowPair),
    /// Say how they were used: [`Engine::handle_usage`].
    Query(FlowKeys),
    /// Stop carrying them: [`Engine::handle_removed`].
    Remove(Removal),
}

/// Both directions of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPair {
    /// What the session's internal endpoint sends.
    pub out: Flow,
    /// What it is sent.
    pub back: Flow,
}

impl FlowPair {
    /// What the two are found by.
    #[must_use]
    pub const fn keys(&self) -> FlowKeys {
        FlowKeys { out: self.out.matches, back: self.back.matches }
    }
}

/// One direction of a session: TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The packets, as they come in.
    pub matches: FiveTuple,
    /// What is to be written over their source and destination.
    pub source: Endpoint,
    pub destination: Endpoint,
    /// Both internal: a hairpinned one. By which sides it comes and goes.
    pub from: Side,
    pub to: Side,
    /// The longest IPv4 packet to carry, in bytes; longer ones are the engine's.
    pub mtu: u16,
    pub marks: TcpMarks,
}

/// What two flows are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKeys {
    pub out: FiveTuple,
    pub back: FiveTuple,
}

/// How far one side of a TCP connection has come (RFC 9293 section 3.3.1). Not used of UDP.
///
/// A flow moves its marks on by each segment: `end` to one past its data if that is after it; `acknowledged` and
/// `window` to the segment's if its acknowledgement is not before `acknowledged`. Sequence numbers compare as signed
/// differences of 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpMarks {
    /// One past the highest sequence number sent.
    pub end: u32,
    /// The highest acknowledgement sent.
    pub acknowledged: u32,
    /// The window sent with it, before scaling.
    pub window: u16,
}

/// What a flow has carried since it was installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub packets: u64,
    /// Of IPv4.
    pub bytes: u64,
    /// An instant not before the last packet, and little more than a second after it at most; the time of installation
    /// if there was none.
    pub last_use: Instant,
    pub marks: TcpMarks,
}

/// Flows to be taken back, and what waits for them.
#[derive(Debug)]
pub struct Removal {
    pub keys: FlowKeys,
    /// Both are what an internal endpoint sends, of a session each.
    hairpin: bool,
    /// A packet that can be judged only with the flows' marks.
    held: Option<(Side, Vec<u8>)>,
}

impl Engine {
    /// What the fast path is to do next. Ask until there is nothing after each call that handles something; nothing
    /// comes unless [`super::Config::offload_after`] is set.
    pub fn poll_offload(&mut self) -> Option<Offload> {
        self.offloads.pop_front()
    }

    /// The fast path has no room for these flows: the engine goes on carrying them, and offers them again after as
    /// many packets as the first time.
    pub fn handle_refused(&mut self, keys: FlowKeys) {
        self.counters.offloads_refused += 1;
        self.give_up(keys);
    }

    /// The answer to [`Offload::Query`]: what each flow has carried since it was installed; `None` if it is not
    /// carried.
    pub fn handle_usage(&mut self, now: Instant, keys: FlowKeys, out: Option<Usage>, back: Option<Usage>) {
        let Some(id) = self.carried(keys) else { return };
        if out.is_none() && back.is_none() {
            self.give_up(keys);
            self.settle(now, id);
            return;
        }
        let Some(session) = self.table.sessions.get_mut(id) else { return };
        for usage in [out, back].into_iter().flatten() {
            session.used(&usage);
        }
        if table::deadline(session, &self.config.timeouts) > wheel::tick(now) {
            self.settle(now, id);
        } else {
            // It ends when it is home, unless a packet has come in the meantime.
            self.bring_home(id, None);
        }
    }

    /// The answer to [`Offload::Remove`], with the last of what each flow has carried.
    pub fn handle_removed(&mut self, now: Instant, removal: Removal, out: Option<Usage>, back: Option<Usage>) {
        let Removal { keys, hairpin, held } = removal;
        let ours = (self.find(keys.out), out, back);
        let theirs = (if hairpin { self.find(keys.back) } else { None }, back, out);
        for (id, out, back) in [ours, theirs] {
            let session = id.and_then(|id| self.table.sessions.get_mut(id));
            let Some(session) = session.filter(|session| session.carrier == Carrier::Returning) else {
                continue;
            };
            session.carrier = Carrier::Engine;
            session.merge(out, back);
        }
        if let Some((side, packet)) = held {
            self.release_held(now, side, packet);
        }
        for id in [ours.0, theirs.0].into_iter().flatten() {
            self.settle(now, id);
        }
    }

    /// Takes home the sessions in `slots` places of the table from place `from` on, for when what their flows go by
    /// has changed or is about to. Gives the place to go on from, `None` at the end of the table; until that has been
    /// reached nothing is offered, so that then all are home.
    pub fn recall(&mut self, from: u32, slots: u32) -> Option<u32> {
        let places = self.table.sessions.places();
        let end = from.saturating_add(slots).min(places);
        for id in from..end {
            self.bring_home(id, None);
        }
        self.recalling = end < places;
        self.recalling.then_some(end)
    }

    /// The flows of a session that the fast path carries.
    #[must_use]
    pub fn flow_keys(&self, record: &SessionRecord) -> Option<FlowKeys> {
        let id = self.table.outbound(record.protocol, record.internal, record.remote)?;
        let session = self.table.sessions.get(id)?;
        if session.carrier != Carrier::FastPath {
            return None;
        }
        self.flows_of(session).map(|(keys, _)| keys)
    }

    /// Gives a session to the fast path, if it has come so far.
    pub(super) fn offer(&mut self, id: Id) {
        let Some(after) = self.config.offload_after else { return };
        let Some(session) = self.table.sessions.get_mut(id) else { return };
        if self.recalling || session.seen < after || session.carrier != Carrier::Engine || !session.is_steady()
        {
            return;
        }
        // If it cannot be, the next look is as many packets away.
        session.seen = 0;
        let Some((pair, other)) = self.flow_pair(id) else { return };
        for id in [Some(id), other].into_iter().flatten() {
            if let Some(session) = self.table.sessions.get_mut(id) {
                session.carrier = Carrier::FastPath;
                self.counters.offloaded += 1;
            }
        }
        self.counters.offloads += 1;
        self.offloads.push_back(Offload::Install(pair));
    }

    /// Keeps a TCP segment back that can be judged only with the marks of the flows of its session, and takes these
    /// home. Says whether it was kept.
    pub(super) fn hold(&mut self, side: Side, packet: &mut Packet<'_>, headers: &Headers) -> bool {
        let Transport::Tcp(segment) = headers.transport else { return false };
        if self.counters.offloaded == 0 {
            return false;
        }
        let whole = packet.offload.segment_size.is_none();
        let to_be_cut = |mtu: u16| whole && !headers.dont_fragment && packet.bytes.len() > usize::from(mtu);
        let is_odd = segment.has(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST) || headers.fragment.is_some();
        if !is_odd && !to_be_cut(self.config.external_mtu.min(self.config.internal_mtu)) {
            return false;
        }
        let (source, destination) = (
            Endpoint::new(headers.source, segment.source),
            Endpoint::new(headers.destination, segment.destination),
        );
        let id = match side {
            Side::Internal => self.table.outbound(Protocol::TCP, source, destination),
            Side::External => self.table.inbound(Protocol::TCP, destination, source).or_else(|| {
                // Of a client that its target does not see.
                self.table.outbound(Protocol::TCP, source, destination)
            }),
        };
        let session = id.and_then(|id| Some((id, self.table.sessions.get(id)?)));
        let Some((id, session)) = session else { return false };
        let other = if session.hairpin { self.other_end(session) } else { None };
        let to = match other.and_then(|id| self.table.sessions.get(id)) {
            Some(other) => other.near(),
            None => side.opposite(),
        };
        if session.carrier != Carrier::FastPath || !(is_odd || to_be_cut(self.mtu(to))) {
            return false;
        }
        // A super-frame would have to be cut to be kept. It is judged at once, by what the engine has seen itself.
        let held = whole.then(|| {
            packet.complete_checksum(headers);
            (side, packet.bytes.to_vec())
        });
        self.bring_home(id, held);
        whole
    }

    /// Asks for the last use of a session in the fast path, whose timer is not armed, and asks again if there is no
    /// answer.
    pub(super) fn query(&mut self, now: Instant, id: Id) {
        let keys = self.table.sessions.get(id).and_then(|session| self.flows_of(session));
        if let Some((keys, _)) = keys {
            self.offloads.push_back(Offload::Query(keys));
        }
        let again = wheel::tick(now).saturating_add(wheel::ticks(ANSWER));
        self.table.wheel.arm(&mut self.table.sessions, id, again);
    }

    /// Takes home a session, if it is in the fast path, and with it the other end of a hairpinned one.
    pub(super) fn bring_home(&mut self, id: Id, held: Option<(Side, Vec<u8>)>) {
        let Some(session) = self.table.sessions.get(id) else { return };
        if session.carrier != Carrier::FastPath {
            return;
        }
        let Some((keys, other)) = self.flows_of(session) else { return };
        self.leave_fast_path(id, Carrier::Returning);
        if let Some(other) = other {
            self.leave_fast_path(other, Carrier::Returning);
        }
        self.offloads.push_back(Offload::Remove(Removal { keys, hairpin: other.is_some(), held }));
    }

    /// The fast path does not carry these flows.
    fn give_up(&mut self, keys: FlowKeys) {
        let Some(id) = self.carried(keys) else { return };
        let other = self.table.sessions.get(id).and_then(|session| self.flows_of(session)?.1);
        self.leave_fast_path(id, Carrier::Engine);
        if let Some(other) = other {
            self.leave_fast_path(other, Carrier::Engine);
        }
    }

    fn leave_fast_path(&mut self, id: Id, carrier: Carrier) {
        let Some(session) = self.table.sessions.get_mut(id) else { return };
        session.carrier = carrier;
        session.seen = 0;
        self.counters.offloaded = self.counters.offloaded.saturating_sub(1);
    }

    /// What was held back comes now.
    fn release_held(&mut self, now: Instant, side: Side, mut bytes: Vec<u8>) {
        let first = self.transmits.len();
        let mut packet = Packet::plain(&mut bytes);
        let Ok(headers) = Headers::parse(&mut packet) else { return };
        let to = match self.judge(now, side, &mut packet, &headers) {
            Verdict::Forward => side.opposite(),
            Verdict::Hairpin => Side::Internal,
            Verdict::Queued | Verdict::Reply(_) | Verdict::Drop(_) => return,
        };
        // Before the later fragments that have waited for it.
        self.transmits.insert(first, Transmit { side: to, packet: bytes });
    }

    /// The session whose internal endpoint sends what `flow` matches.
    fn find(&self, flow: FiveTuple) -> Option<Id> {
        self.table.outbound(flow.protocol, flow.source, flow.destination)
    }

    /// The session that the fast path carries by these flows.
    fn carried(&self, keys: FlowKeys) -> Option<Id> {
        let id = self.find(keys.out)?;
        let session = self.table.sessions.get(id)?;
        (session.carrier == Carrier::FastPath).then_some(id)
    }

    /// What the flows of a session are found by, and the other session of a hairpinned conversation.
    pub(super) fn flows_of(&self, session: &Session) -> Option<(FlowKeys, Option<Id>)> {
        let out = session.outbound();
        if !session.hairpin {
            return Some((FlowKeys { out, back: session.inbound() }, None));
        }
        let id = self.other_end(session)?;
        let other = self.table.sessions.get(id)?;
        Some((FlowKeys { out, back: other.outbound() }, Some(id)))
    }

    /// The session by which what a hairpinned session sends comes in, if it is the one that will always be taken:
    /// [`Engine::hairpinned`] puts up with another form of the sender's address, until there is one with this.
    pub(super) fn other_end(&self, session: &Session) -> Option<Id> {
        let (to, from) = self.turn_round(session.external, session.remote)?;
        self.table.inbound(session.protocol, to, from)
    }

    /// The flows of a session, and the other session of a hairpinned conversation; `None` if the two do not fit.
    fn flow_pair(&self, id: Id) -> Option<(FlowPair, Option<Id>)> {
        let session = self.table.sessions.get(id)?;
        let (marks_out, marks_back) = session.connection.marks();
        let (keys, other) = self.flows_of(session)?;
        let out = Flow {
            matches: keys.out,
            source: session.external,
            destination: session.remote,
            from: Side::Internal,
            to: Side::External,
            mtu: self.config.external_mtu,
            marks: marks_out,
        };
        let back = Flow {
            matches: keys.back,
            source: session.remote,
            destination: session.internal,
            from: Side::External,
            to: Side::Internal,
            mtu: self.config.internal_mtu,
            marks: marks_back,
        };
        let Some(other_id) = other else { return Some((FlowPair { out, back }, None)) };
        let other = self.table.sessions.get(other_id)?;
        let fits = other_id != id
            && other.carrier == Carrier::Engine
            && other.is_steady()
            && self.other_end(other) == Some(id)
            && other.connection.marks() == (marks_back, marks_out);
        let (near, far) = (session.near(), other.near());
        let out = Flow {
            source: other.remote,
            destination: other.internal,
            from: near,
            to: far,
            mtu: self.mtu(far),
            ..out
        };
        let back = Flow { from: far, to: near, mtu: self.mtu(near), ..back };
        fits.then_some((FlowPair { out, back }, Some(other_id)))
    }
}

/// How long the answer to a query may take.
const ANSWER: Duration = Duration::from_secs(1);
