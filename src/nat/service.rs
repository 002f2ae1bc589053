//! Services: external endpoints whose connections go to one of several targets each.
//!
//! Which target that is, a [`Balancer`] says, who knows how they are; here its choice becomes a session. A target sees
//! the client's own address, or, if the service does not preserve it, an external address of ours: then the client is
//! treated as an internal host that hairpins, but for the side that it is on. So are clients within the VPC.
//!
//! A target that does not answer is left for another one when the client asks again. The connections of a target that
//! is taken out of service end with a reset to both sides. If there are as many connections as may be, a handshake that
//! should be over makes room for a new one: whoever only ever sends SYNs keeps nobody out.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use super::event::{CloseReason, DropReason, SessionRecord, SessionState, Side, Transmit, Verdict};
use super::hosts::Keyed;
use super::slab::Id;
use super::table::{Carrier, Mapping, Role, Session};
use super::tcp::TcpState;
use super::translate::{self, check_ttl};
use super::{Config, Engine, Service};
use crate::time::Instant;
use crate::wire::icmp;
use crate::wire::{Endpoint, Headers, Packet, Protocol, Transport};

/// Has the targets of services. A service is named by the endpoint that its listener is at: an external one, or
/// 0.0.0.0 and a port.
///
/// It is asked on the way of a packet: nothing in it may wait.
pub trait Balancer: std::fmt::Debug + Send {
    /// Chooses the target of a connection that `client` opens, another than `avoid` if there is another. The
    /// connection counts as one of the target's until [`Self::handle_closed`].
    ///
    /// # Errors
    /// Why there is none.
    fn select(
        &mut self,
        now: Instant,
        service: Endpoint,
        client: Endpoint,
        avoid: Option<Endpoint>,
    ) -> Result<Endpoint, Refusal>;

    /// Whether `client` is kept out by nothing but the number of the service's connections.
    fn is_full_for(&mut self, service: Endpoint, client: Endpoint) -> bool;

    /// Takes in how the target has taken a connection that it was chosen for.
    fn handle_answer(&mut self, now: Instant, service: Endpoint, target: Endpoint, answer: Answer);

    /// A connection to `target` is over; without `how` it has not come to be.
    fn handle_closed(&mut self, now: Instant, service: Endpoint, target: Endpoint, how: Option<&Closed>);

    /// The next service and target whose connections are to be ended.
    fn poll_cut(&mut self) -> Option<(Endpoint, Endpoint)>;

    /// Does what is due by `now`, and takes in what it was sent. May be called at any time.
    fn handle_timeout(&mut self, now: Instant);

    /// When [`Self::handle_timeout`] must be called next.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// Why a connection gets no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client may not connect, or not that often, or too many are connected.
    NotAdmitted,
    /// There is none that serves.
    NoTarget,
}

/// How a target has taken a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    Refused,
    /// Not at all, for as long as it was waited for.
    Silent,
}

/// A connection that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    pub record: SessionRecord,
    pub client: Endpoint,
    /// [`Balancer::handle_answer`] was told of it.
    pub is_answered: bool,
    pub reason: CloseReason,
    /// The side that has reset it, the internal one being the target's.
    pub reset_by: Option<Side>,
}

/// The services, and the targets whose connections are being ended.
#[derive(Debug)]
pub struct Services {
    by_external: HashMap<Endpoint, Service, Keyed>,
    balancer: Box<dyn Balancer>,
    /// Live sessions of [`Role::Client`], and of targets.
    pub clients: u32,
    served: u32,
    cutting: Option<Cutting>,
    /// Where the table is searched next for a handshake that should be over, and when at the earliest.
    search: (Id, Instant),
}

/// A walk through the table.
#[derive(Debug)]
struct Cutting {
    /// Service and target.
    what: Vec<(Endpoint, Endpoint)>,
    next: Id,
}

impl Services {
    pub fn new(config: &Config, keyed: Keyed) -> Self {
        let mut services = Self {
            by_external: HashMap::with_hasher(keyed),
            balancer: Box::new(NoTargets),
            clients: 0,
            served: 0,
            cutting: None,
            search: (0, Instant::ORIGIN),
        };
        services.configure(config);
        services
    }

    pub fn configure(&mut self, config: &Config) {
        self.by_external.clear();
        self.by_external.extend(config.services.iter().map(|service| (service.external, *service)));
    }

    /// When something is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let at_once = self.cutting.is_some().then_some(Instant::ORIGIN);
        at_once.or_else(|| self.balancer.poll_timeout())
    }

    fn find(&self, protocol: Protocol, external: Endpoint) -> Option<Service> {
        if self.by_external.is_empty() || protocol != Protocol::TCP {
            return None;
        }
        self.by_external.get(&external).copied()
    }
}

impl Cutting {
    fn is_meant(&self, session: &Session) -> bool {
        self.what.contains(&(session.listener(), session.internal))
    }
}

impl Engine {
    /// Has `balancer` choose targets from now on, which has to know of every connection of the one before.
    pub fn set_balancer(&mut self, balancer: Box<dyn Balancer>) {
        self.services.balancer = balancer;
    }

    pub(super) fn service(&self, protocol: Protocol, external: Endpoint) -> Option<Service> {
        self.services.find(protocol, external)
    }

    /// Whether a packet from outside belongs to a client that its target does not see.
    pub(super) fn is_hidden(&self, service: Option<Service>, client: Endpoint, external: Endpoint) -> bool {
        let has_session =
            || self.services.clients > 0 && self.table.outbound(Protocol::TCP, client, external).is_some();
        service.is_some_and(|service| !service.preserve_client_ip) || has_session()
    }

    /// A packet of a client that its target does not see: in by a session of its own, as an internal host's, and on
    /// by the target's.
    pub(super) fn inbound_hidden(
        &mut self,
        now: Instant,
        packet: &mut Packet<'_>,
        headers: &Headers,
        client: Endpoint,
        external: Endpoint,
    ) -> Result<Verdict, DropReason> {
        let known = self.table.outbound(headers.protocol, client, external);
        if known.is_none() && !translate::may_open(headers) {
            return Err(DropReason::TcpNoSession);
        }
        check_ttl(headers)?;
        let id = match known {
            Some(id) => id,
            None if self.finds_room(now, 2) => self.open_outbound(now, headers.protocol, client, external)?,
            None => return Err(DropReason::SessionLimit),
        };
        let result = self.hairpin(now, packet, headers, Side::External, id);
        if known.is_none() && result.is_err() {
            self.end(now, id, CloseReason::Refused);
        }
        self.offer(id);
        result
    }

    /// The session by which a packet goes to a target, `known` if there is one: opened if the packet opens a
    /// connection, and anew if the target of the one there was has not answered for too long. The target sees `remote`
    /// as its client, who is `client`.
    pub(super) fn served(
        &mut self,
        now: Instant,
        headers: &Headers,
        service: &Service,
        known: Option<Id>,
        remote: Endpoint,
        client: Endpoint,
    ) -> Result<Id, DropReason> {
        let Transport::Tcp(segment) = headers.transport else { return Err(DropReason::NoSession) };
        let Some(id) = known else {
            if !segment.is_opening() {
                return Err(DropReason::TcpNoSession);
            }
            return self.open_served(now, service, remote, client, None);
        };
        let session = self.table.sessions.get(id).ok_or(DropReason::NoSession)?;
        if !segment.is_opening() || !session.is_served() || session.carrier != Carrier::Engine {
            return Ok(id);
        }
        let target = session.internal;
        if session.role == Role::Unanswered && now - session.opened_at >= service.connect_timeout {
            self.end(now, id, CloseReason::Unanswered);
            return self.open_served(now, service, remote, client, Some(target));
        }
        if matches!(session.state, SessionState::Tcp(TcpState::Closing | TcpState::Reset)) {
            self.end(now, id, CloseReason::Reopened);
            return self.open_served(now, service, remote, client, None);
        }
        Ok(id)
    }

    fn open_served(
        &mut self,
        now: Instant,
        service: &Service,
        remote: Endpoint,
        client: Endpoint,
        avoid: Option<Endpoint>,
    ) -> Result<Id, DropReason> {
        let (external, listener) = (service.external, service.listener());
        if service.retired {
            return Err(DropReason::NoTarget);
        }
        if !self.finds_room(now, 1) {
            return Err(DropReason::SessionLimit);
        }
        if self.services.balancer.is_full_for(listener, client) {
            // If there is nothing to be gained, it refuses.
            self.make_room(now, Some(listener));
        }
        let balancer = &mut self.services.balancer;
        let target = balancer.select(now, listener, client, avoid).map_err(|refusal| match refusal {
            Refusal::NotAdmitted => DropReason::NotAdmitted,
            Refusal::NoTarget => DropReason::NoTarget,
        })?;
        if self.table.outbound(Protocol::TCP, target, remote).is_some() {
            // Its answers to this client go by another service, or it has called the client itself.
            self.services.balancer.handle_closed(now, listener, target, None);
            return Err(DropReason::Filtered);
        }
        let mapping = match self.table.mapping_between(Protocol::TCP, target, external) {
            Some(mapping) => mapping,
            None => self.insert_mapping(Mapping::new(Protocol::TCP, target, external, false)),
        };
        self.services.served += 1;
        let id = self.open(now, mapping, remote, Side::External, Role::Unanswered);
        if let Some(session) = self.table.sessions.get_mut(id) {
            session.of_all = service.of_all;
        }
        Ok(id)
    }

    /// Ends a handshake that should be over, of this listener or of any. Gives whether one was found: some hundred places
    /// of the table are searched, and after a search in vain not again at once.
    fn make_room(&mut self, now: Instant, listener: Option<Endpoint>) -> bool {
        let (start, earliest) = self.services.search;
        if now < earliest {
            return false;
        }
        let places = self.table.sessions.places();
        for step in 0..SEARCH_PLACES.min(places) {
            let id = (start % places + step) % places;
            let Some(session) = self.table.sessions.get(id) else { continue };
            if listener.is_none_or(|listener| session.listener() == listener) && self.is_overdue(now, session) {
                // Who has not answered, the client or the target.
                let is_answered = session.role != Role::Unanswered;
                let reason = if is_answered { CloseReason::Expired } else { CloseReason::Unanswered };
                self.services.search = (id, now);
                self.end_both(now, id, reason);
                return true;
            }
        }
        self.services.search = (start % places.max(1) + SEARCH_PLACES, now + SEARCH_PAUSE);
        false
    }

    /// Whether the handshake of a connection to a target has had its time.
    fn is_overdue(&self, now: Instant, session: &Session) -> bool {
        session.is_served()
            && session.carrier == Carrier::Engine
            && matches!(session.state, SessionState::Tcp(TcpState::SynSent | TcpState::SynReceived))
            && self
                .services
                .find(session.protocol, session.external)
                .is_none_or(|service| now - session.opened_at >= service.connect_timeout)
    }

    /// Whether so many more sessions may be opened from outside: what clients do there must not keep internal hosts from
    /// opening sessions, nor take all of their ports.
    fn has_room(&self, sessions: u32) -> bool {
        let Services { served, clients, .. } = self.services;
        let most = self.config.limits.sessions;
        let ports = self.config.port_range.len() * self.config.external_addresses.len();
        self.table.sessions.len().saturating_add(sessions) <= most
            && served + clients + sessions <= most / 2
            && (clients as usize) < ports / 2
    }

    /// The same, after an overdue handshake has made room if need be.
    fn finds_room(&mut self, now: Instant, sessions: u32) -> bool {
        self.has_room(sessions) || (self.make_room(now, None) && self.has_room(sessions))
    }

    /// Tells the balancer that a target has answered.
    pub(super) fn answered(&mut self, now: Instant, service: Endpoint, target: Endpoint, answer: Answer) {
        self.services.balancer.handle_answer(now, service, target, answer);
    }

    /// A session is about to end.
    pub(super) fn leave_service(&mut self, now: Instant, id: Id, reason: CloseReason) {
        let Some(session) = self.table.sessions.get(id) else { return };
        match session.role {
            Role::Plain => {}
            Role::Client => {
                self.services.clients = self.services.clients.saturating_sub(1);
                // Both have seen the same packets, and end together, while it is known who the client is.
                if let Some(other) = self.other_end(session) {
                    self.end(now, other, reason);
                }
            }
            Role::Unanswered | Role::Served | Role::Left => {
                self.services.served = self.services.served.saturating_sub(1);
                self.conclude(now, id, reason);
            }
        }
    }

    /// Tells the balancer, once, that a connection to one of its targets is over.
    pub(super) fn conclude(&mut self, now: Instant, id: Id, reason: CloseReason) {
        let Some(session) = self.table.sessions.get(id) else { return };
        if !matches!(session.role, Role::Unanswered | Role::Served) {
            return;
        }
        let (service, target) = (session.listener(), session.internal);
        let given_up = matches!(reason, CloseReason::Expired | CloseReason::Unanswered);
        let is_silent = session.role == Role::Unanswered && given_up;
        let client = self.client_of(session);
        let closed = Closed {
            record: session.record(now),
            client: client.map_or(session.remote, |client| client.internal),
            is_answered: session.role == Role::Served || is_silent,
            reason,
            reset_by: session.reset_by,
        };
        let balancer = &mut self.services.balancer;
        if is_silent {
            balancer.handle_answer(now, service, target, Answer::Silent);
        }
        balancer.handle_closed(now, service, target, Some(&closed));
        if let Some(session) = self.table.sessions.get_mut(id) {
            session.role = Role::Left;
        }
    }

    /// The session of a target's client, if it has one of its own.
    fn client_of(&self, session: &Session) -> Option<&Session> {
        let other = if session.hairpin { self.other_end(session) } else { None };
        self.table.sessions.get(other?)
    }

    /// Lets the balancer do what is due, and goes on with ending connections: some hundred places of the table a call.
    pub(super) fn look_after_services(&mut self, now: Instant) {
        self.services.balancer.handle_timeout(now);
        if self.services.cutting.is_none() {
            let what: Vec<_> = std::iter::from_fn(|| self.services.balancer.poll_cut()).collect();
            self.services.cutting = (!what.is_empty()).then_some(Cutting { what, next: 0 });
        }
        let Some(mut cutting) = mem::take(&mut self.services.cutting) else { return };
        let places = self.table.sessions.places();
        let end = cutting.next.saturating_add(CUT_PLACES).min(places);
        let mut away = false;
        for id in cutting.next..end {
            let Some(session) = self.table.sessions.get(id) else { continue };
            if !session.is_served() || !cutting.is_meant(session) {
                continue;
            }
            if session.carrier == Carrier::Engine {
                self.cut(now, id);
            } else {
                // The next call finds it home.
                self.bring_home(id, None);
                away = true;
            }
        }
        if !away {
            cutting.next = end;
        }
        self.services.cutting = (cutting.next < places).then_some(cutting);
    }

    /// Ends a connection with a reset to both sides, but for a client whom nobody has answered: it asks again, and
    /// gets another target.
    fn cut(&mut self, now: Instant, id: Id) {
        let Some(session) = self.table.sessions.get(id) else { return };
        let (target, remote, external) = (session.internal, session.remote, session.external);
        let is_open = match session.state {
            SessionState::Tcp(state) => !matches!(state, TcpState::Closing | TcpState::Reset),
            _ => false,
        };
        let is_answered = session.role != Role::Unanswered;
        let (from_target, from_client) = session.connection.marks();
        let client = match self.client_of(session) {
            Some(client) => (client.remote, client.internal, client.near()),
            None => (external, remote, Side::External),
        };
        if is_open && is_answered {
            // With the sequence numbers that each side expects next (RFC 5961 section 3.2).
            let to_target = icmp::reset_of(remote, target, from_target.acknowledged);
            self.transmits.push_back(Transmit { side: Side::Internal, packet: to_target });
            let (source, destination, side) = client;
            let to_client = icmp::reset_of(source, destination, from_client.acknowledged);
            self.transmits.push_back(Transmit { side, packet: to_client });
        }
        self.end_both(now, id, CloseReason::Cut);
    }

    /// Ends a target's session, and its client's if that is another one.
    fn end_both(&mut self, now: Instant, id: Id, reason: CloseReason) {
        let Some(session) = self.table.sessions.get(id) else { return };
        let other = if session.hairpin { self.other_end(session) } else { None };
        self.end(now, id, reason);
        if let Some(other) = other {
            self.end(now, other, reason);
        }
    }

    /// Ends a session at once, whenever its timer would have.
    fn end(&mut self, now: Instant, id: Id, reason: CloseReason) {
        self.table.wheel.disarm(&mut self.table.sessions, id);
        self.close(now, id, reason);
    }
}

/// The balancer of an engine without services.
#[derive(Clone, Copy, Debug)]
pub struct NoTargets;

impl Balancer for NoTargets {
    fn select(
        &mut self,
        _: Instant,
        _: Endpoint,
        _: Endpoint,
        _: Option<Endpoint>,
    ) -> Result<Endpoint, Refusal> {
        Err(Refusal::NoTarget)
    }

    fn is_full_for(&mut self, _: Endpoint, _: Endpoint) -> bool {
        false
    }

    fn handle_answer(&mut self, _: Instant, _: Endpoint, _: Endpoint, _: Answer) {}

    fn handle_closed(&mut self, _: Instant, _: Endpoint, _: Endpoint, _: Option<&Closed>) {}

    fn poll_cut(&mut self) -> Option<(Endpoint, Endpoint)> {
        None
    }

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// Places of the session table that are looked at in one call.
const CUT_PLACES: u32 = 512;
/// As many, in search of a handshake that should be over, and then for so long no more.
const SEARCH_PLACES: u32 = 512;
const SEARCH_PAUSE: Duration = Duration::from_millis(1);
