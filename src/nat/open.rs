//! Opening a session: whether it may, which mapping it uses, and which external endpoint a new mapping gets.

use std::net::Ipv4Addr;

use super::config::{FilteringBehaviour, MappingBehaviour, OnExhaustion};
use super::event::{DropReason, Event, SessionState, Side};
use super::ports::{Parity, PortMap};
use super::slab::Id;
use super::table::{Mapping, Role, Session, SessionKey};
use super::tcp::TcpState;
use super::{Engine, translate};
use crate::time::Instant;
use crate::wire::{Endpoint, Headers, Protocol};

impl Engine {
    /// Opens the session of an internal endpoint with a remote that it has sent a first packet to.
    pub(super) fn open_outbound(
        &mut self,
        now: Instant,
        protocol: Protocol,
        internal: Endpoint,
        remote: Endpoint,
    ) -> Result<Id, DropReason> {
        let hairpin = self.pool.find(remote.address).is_some();
        if hairpin && !matches!(protocol, Protocol::TCP | Protocol::UDP) {
            // Without ports nothing tells which internal address is meant.
            return Err(DropReason::NoSession);
        }
        let mut paired = self.admit(now, internal, Side::Internal)?;
        let role = if self.is_internal(internal.address) { Role::Plain } else { Role::Client };
        if role == Role::Client {
            // Its target answers to where the client has asked.
            paired = Some(remote.address);
        }
        let fixed = self.statics.by_internal.get(&(protocol, internal)).copied();
        let independent = self.config.mapping == MappingBehaviour::EndpointIndependent || fixed.is_some();
        let known = if independent { self.table.mapping_of(protocol, internal) } else { None };
        let mapping = match known.filter(|&id| self.is_usable(id, remote)) {
            Some(mapping) => mapping,
            None => {
                let external = match fixed.filter(|&external| self.is_unused(protocol, external, remote)) {
                    Some(external) => external,
                    None => self.choose_external(protocol, internal, remote, paired)?,
                };
                // An endpoint that already has a mapping gets this one for this remote only.
                let shared = independent && known.is_none();
                self.insert_mapping(Mapping::new(protocol, internal, external, shared))
            }
        };
        self.services.clients += u32::from(role == Role::Client);
        Ok(self.open(now, mapping, remote, Side::Internal, role))
    }

    /// Opens a session that a remote begins, if a static mapping or endpoint-independent filtering lets it.
    ///
    /// # Errors
    /// Why not: nothing is mapped there, or the filter does not let the remote in.
    pub(super) fn open_inbound(
        &mut self,
        now: Instant,
        headers: &Headers,
        external: Endpoint,
        remote: Endpoint,
    ) -> Result<Id, DropReason> {
        let protocol = headers.protocol;
        let fixed = self.statics.by_external.get(&(protocol, external)).copied();
        let mapping = self.table.only_mapping_at(protocol, external);
        let Some(internal) = fixed.or_else(|| Some(self.table.mappings.get(mapping?)?.internal)) else {
            let mapped = self.table.mapping_at(protocol, external).is_some();
            return Err(if mapped { DropReason::Filtered } else { DropReason::NoSession });
        };
        let open_to_all = self.config.filtering == FilteringBehaviour::EndpointIndependent;
        if fixed.is_none() && !(open_to_all && self.is_internal(internal.address)) {
            return Err(DropReason::Filtered);
        }
        if !translate::may_open(headers) {
            return Err(DropReason::NoSession);
        }
        // The pair may have a session by another external endpoint already; its packets could not be told apart.
        if self.table.outbound(protocol, internal, remote).is_some() {
            return Err(DropReason::Filtered);
        }
        self.admit(now, internal, Side::External)?;
        let is_it = |mapping: &Mapping| mapping.internal == internal && mapping.external == external;
        let mapping = mapping
            .or_else(|| self.table.mapping_of(protocol, internal))
            .filter(|&id| self.table.mappings.get(id).is_some_and(is_it))
            .unwrap_or_else(|| self.insert_mapping(Mapping::new(protocol, internal, external, true)));
        Ok(self.open(now, mapping, remote, Side::External, Role::Plain))
    }

    /// Gives the external address that `internal` is paired with, if any.
    fn admit(&mut self, now: Instant, internal: Endpoint, side: Side) -> Result<Option<Ipv4Addr>, DropReason> {
        if self.table.sessions.len() >= self.config.limits.sessions {
            return Err(DropReason::SessionLimit);
        }
        self.hosts.admit(now, internal.address, side, &self.config.limits)
    }

    /// Whether a new session with `remote` can share a mapping with the others of its internal endpoint (RFC 4787
    /// REQ-1): another host's session with the same remote may be in the way.
    fn is_usable(&self, mapping: Id, remote: Endpoint) -> bool {
        let mapping = self.table.mappings.get(mapping);
        mapping.is_some_and(|mapping| self.is_unused(mapping.protocol, mapping.external, remote))
    }

    fn is_unused(&self, protocol: Protocol, external: Endpoint, remote: Endpoint) -> bool {
        self.table.inbound(protocol, external, remote).is_none()
    }

    pub(super) fn insert_mapping(&mut self, mapping: Mapping) -> Id {
        if let Some(address) = self.pool.find_mut(mapping.external.address) {
            address.mappings += 1;
            if let Some(ports) = address.ports_mut(mapping.protocol) {
                ports.take(mapping.external.port);
            }
        }
        self.table.insert_mapping(mapping)
    }

    /// An external endpoint for a new mapping: the internal port if it is free, else a random one of the same
    /// class and parity (RFC 4787 REQ-3 and REQ-4), else one that no session with this remote uses.
    fn choose_external(
        &mut self,
        protocol: Protocol,
        internal: Endpoint,
        remote: Endpoint,
        paired: Option<Ipv4Addr>,
    ) -> Result<Endpoint, DropReason> {
        // Its address may have left the configuration.
        let paired = paired.filter(|&address| self.is_external(address));
        let address = paired.or_else(|| self.pool.least_used()).ok_or(DropReason::PortsExhausted)?;
        let chosen = self.choose_external_at(address, protocol, internal, remote, paired.is_none());
        if chosen.is_err()
            && let Some(address) = self.pool.find_mut(address)
        {
            address.failures += 1;
        }
        chosen
    }

    /// The same, at an external address, which `internal` is paired with from now on if it is `new`.
    fn choose_external_at(
        &mut self,
        address: Ipv4Addr,
        protocol: Protocol,
        internal: Endpoint,
        remote: Endpoint,
        new: bool,
    ) -> Result<Endpoint, DropReason> {
        if new {
            self.hosts.pair(internal.address, address);
        }
        let ports = self.pool.find(address).ok_or(DropReason::PortsExhausted)?.ports(protocol);
        let Some(ports) = ports else {
            // Another protocol: one internal address for each remote.
            let external = Endpoint::new(address, 0);
            let taken = self.table.inbound(protocol, external, remote).is_some();
            return if taken { Err(DropReason::PortsExhausted) } else { Ok(external) };
        };
        if ports.is_free(internal.port) {
            return Ok(Endpoint::new(address, internal.port));
        }
        let class = range_class(ports, internal.port);
        let start = self.random.port(&class);
        let parity = Parity::of(internal.port);
        let found = ports
            .find_free(&class, start, parity)
            .or_else(|| ports.find_free(&class, start, Parity::Any))
            .or_else(|| ports.find_free(&ports.range(), start, Parity::Any));
        if let Some(port) = found {
            return Ok(Endpoint::new(address, port));
        }
        if self.config.on_exhaustion == OnExhaustion::Refuse {
            return Err(DropReason::PortsExhausted);
        }
        let random = std::iter::repeat_with(|| self.random.port(&ports.range())).take(OVERLOAD_TRIES);
        let shared = std::iter::once(internal.port)
            .chain(random)
            .filter(|&port| ports.is_allowed(port))
            .map(|port| Endpoint::new(address, port))
            .find(|&external| self.table.inbound(protocol, external, remote).is_none())
            .ok_or(DropReason::PortsExhausted)?;
        self.counters.ports_overloaded += 1;
        Ok(shared)
    }

    pub(super) fn open(&mut self, now: Instant, mapping: Id, remote: Endpoint, side: Side, role: Role) -> Id {
        let Some(found) = self.table.mappings.get_mut(mapping) else { return super::slab::NONE };
        let took_port = found.sessions == 0;
        found.sessions += 1;
        let key =
            SessionKey { protocol: found.protocol, internal: found.internal, external: found.external, remote };
        let mut session = Session::new(now, &key, side);
        session.mapping = mapping;
        session.role = role;
        session.took_port = took_port;
        session.hairpin = self.pool.find(remote.address).is_some();
        if key.protocol == Protocol::TCP {
            session.state = SessionState::Tcp(TcpState::SynSent);
        }
        let opener = session.opener();
        self.hosts.opened(now, key.internal.address, opener, key.external.address, &self.config.limits);
        self.counters.sessions_opened += 1;
        self.counters.census.add(session.protocol, session.state);
        self.emit(Event::Opened(session.record(now)));
        self.table.insert_session(session, &self.config.timeouts)
    }
}

/// The part of the port range that is in the same class as `port`, well-known or not; all of it if none is.
fn range_class(ports: &PortMap, port: u16) -> std::ops::RangeInclusive<u16> {
    let range = ports.range();
    let class = if port < FIRST_UNPRIVILEGED {
        *range.start()..=(*range.end()).min(FIRST_UNPRIVILEGED - 1)
    } else {
        (*range.start()).max(FIRST_UNPRIVILEGED)..=*range.end()
    };
    if class.is_empty() { range } else { class }
}

const FIRST_UNPRIVILEGED: u16 = 1024;
/// How many ports are tried before a remote counts as having them all.
const OVERLOAD_TRIES: usize = 128;
