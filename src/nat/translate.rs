//! The straight line: a packet of a session goes out, comes in, or turns round.

use super::event::{DropReason, Event, Side, Transmit, Verdict};
use super::fragments::{Arrival, DatagramKey, Route};
use super::service::Answer;
use super::slab::Id;
use super::table::Role;
use super::tcp::{Connection, Progress, TcpState};
use super::{Engine, SessionState};
use crate::nat::event::CloseReason;
use crate::nat::wheel;
use crate::time::Instant;
use crate::wire::{self, Endpoint, FiveTuple, Headers, Packet, Protocol, TcpFlags, Transport};

/// Where a packet goes: its new endpoints, and the side that it leaves on.
#[derive(Clone, Copy, Debug)]
struct Translation {
    source: Endpoint,
    destination: Endpoint,
    /// Of a query: the new identifier.
    identifier: u16,
    side: Side,
}

impl Engine {
    /// A packet from inside: to a remote, or by an external address back to the inside.
    pub(super) fn outbound(
        &mut self,
        now: Instant,
        packet: &mut Packet<'_>,
        headers: &Headers,
    ) -> Result<Verdict, DropReason> {
        if !self.is_internal(headers.source) {
            return Err(DropReason::NotInternal);
        }
        self.admit_first_fragment(now, Side::Internal, packet, headers)?;
        let FiveTuple { protocol, source: internal, destination } =
            headers.tuple().ok_or(DropReason::NoSession)?;
        let remote = remote_endpoint(protocol, destination);
        let known = self.table.outbound(protocol, internal, remote);
        if known.is_none() && !may_open(headers) {
            return Err(DropReason::TcpNoSession);
        }
        check_ttl(headers)?;
        let id = match known {
            Some(id) => id,
            None => self.open_outbound(now, protocol, internal, remote)?,
        };
        let session = self.table.sessions.get(id).ok_or(DropReason::NoSession)?;
        let external = session.external;
        if session.hairpin {
            let verdict = self.hairpin(now, packet, headers, Side::Internal, id)?;
            self.offer(id);
            return Ok(verdict);
        }
        check_size(packet, headers, self.config.external_mtu)?;
        self.advance(now, id, Side::Internal, packet, headers)?;
        self.offer(id);
        let translation =
            Translation { source: external, destination, identifier: external.port, side: Side::External };
        Ok(self.send(packet, headers, Side::Internal, translation))
    }

    /// A packet from outside, to an external address.
    pub(super) fn inbound(
        &mut self,
        now: Instant,
        packet: &mut Packet<'_>,
        headers: &Headers,
    ) -> Result<Verdict, DropReason> {
        if !self.is_external(headers.destination) {
            return Err(DropReason::NotExternal);
        }
        // Nobody outside has our addresses; an answer would go to one of our own hosts.
        if self.pool.find(headers.source).is_some() {
            return Err(DropReason::Martian);
        }
        self.admit_first_fragment(now, Side::External, packet, headers)?;
        let FiveTuple { protocol, source, destination: external } =
            headers.tuple().ok_or(DropReason::NoSession)?;
        let remote = remote_endpoint(protocol, source);
        let known = self.table.inbound(protocol, external, remote);
        let service = self.service(protocol, external);
        if known.is_none() && self.is_hidden(service, remote, external) {
            return self.inbound_hidden(now, packet, headers, remote, external);
        }
        let id = match (service, known) {
            (Some(service), _) => {
                if known.is_none() && may_open(headers) {
                    // What cannot be passed on must not be held against a target.
                    check_ttl(headers)?;
                    check_size(packet, headers, self.config.internal_mtu)?;
                }
                self.served(now, headers, &service, known, remote, remote)?
            }
            (None, Some(id)) => id,
            (None, None) => self.open_inbound(now, headers, external, remote).inspect_err(|_| {
                self.hold_syn(now, packet, headers, external, remote);
            })?,
        };
        check_ttl(headers)?;
        check_size(packet, headers, self.config.internal_mtu)?;
        self.advance(now, id, Side::External, packet, headers)?;
        self.offer(id);
        let internal = self.table.sessions.get(id).ok_or(DropReason::NoSession)?.internal;
        let translation =
            Translation { source, destination: internal, identifier: internal.port, side: Side::Internal };
        Ok(self.send(packet, headers, Side::External, translation))
    }

    /// A packet of a session with an external endpoint of ours: in by that one's session (RFC 4787 REQ-9). The receiver
    /// sees the sender's external endpoint in the form, private or public, in which the sender has addressed the
    /// receiver. `from` is the side that it came by.
    pub(super) fn hairpin(
        &mut self,
        now: Instant,
        packet: &mut Packet<'_>,
        headers: &Headers,
        from: Side,
        id: Id,
    ) -> Result<Verdict, DropReason> {
        let session = self.table.sessions.get(id).ok_or(DropReason::NoSession)?;
        let sender = session.internal;
        let (to, remote) = self.turn_round(session.external, session.remote).ok_or(DropReason::NoSession)?;
        let known = self.hairpinned(headers.protocol, to, remote);
        let other = match (self.service(headers.protocol, to), known) {
            (Some(service), _) => self.served(now, headers, &service, known, remote, sender)?,
            (None, Some(id)) => id,
            (None, None) => self.open_inbound(now, headers, to, remote)?,
        };
        let receiver = self.table.sessions.get(other).ok_or(DropReason::NoSession)?;
        let (source, destination, side) = (receiver.remote, receiver.internal, receiver.near());
        check_size(packet, headers, self.mtu(side))?;
        self.advance(now, id, Side::Internal, packet, headers)?;
        self.advance(now, other, Side::External, packet, headers)?;
        let translation = Translation { source, destination, identifier: destination.port, side };
        Ok(self.send(packet, headers, from, translation))
    }

    /// How the other end of a hairpinned session sees it: its own external endpoint in the private form, and
    /// `external`, ours, in the form in which we addressed it as `remote`.
    pub(super) fn turn_round(&self, external: Endpoint, remote: Endpoint) -> Option<(Endpoint, Endpoint)> {
        let target = self.pool.find(remote.address)?;
        let ours = self.pool.find(external.address)?;
        let by_public = remote.address != target.private;
        let from = if by_public { ours.public.unwrap_or(ours.private) } else { ours.private };
        Some((Endpoint::new(target.private, remote.port), Endpoint::new(from, external.port)))
    }

    /// The session of `to` with `from`, one of our own endpoints, in whichever form `to` has addressed it.
    pub(super) fn hairpinned(&self, protocol: Protocol, to: Endpoint, from: Endpoint) -> Option<Id> {
        let address = self.pool.find(from.address)?;
        let forms = [Some(from.address), Some(address.private), address.public];
        forms
            .into_iter()
            .flatten()
            .find_map(|form| self.table.inbound(protocol, to, Endpoint::new(form, from.port)))
    }

    /// A fragment that is not the first goes where the first went.
    pub(super) fn later_fragment(
        &mut self,
        now: Instant,
        side: Side,
        packet: &mut Packet<'_>,
        headers: &Headers,
    ) -> Result<Verdict, DropReason> {
        match side {
            Side::Internal if !self.is_internal(headers.source) => return Err(DropReason::NotInternal),
            Side::External if !self.is_external(headers.destination) => return Err(DropReason::NotExternal),
            _ => {}
        }
        check_ttl(headers)?;
        let Some(fragment) = headers.fragment else { return Err(DropReason::BadHeader) };
        let key = DatagramKey::new(side, headers);
        let limit = self.config.limits.fragment_bytes;
        match self.fragments.arrive(now, key, fragment, packet.bytes, limit)? {
            Arrival::Follow(route) => {
                check_size(packet, headers, self.mtu(route.side))?;
                Ok(self.send_later(packet, headers, side, route))
            }
            Arrival::Held | Arrival::First => Ok(Verdict::Queued),
        }
    }

    fn admit_first_fragment(
        &mut self,
        now: Instant,
        side: Side,
        packet: &Packet<'_>,
        headers: &Headers,
    ) -> Result<(), DropReason> {
        let Some(fragment) = headers.fragment else { return Ok(()) };
        let key = DatagramKey::new(side, headers);
        let limit = self.config.limits.fragment_bytes;
        self.fragments.arrive(now, key, fragment, packet.bytes, limit).map(|_| ())
    }

    /// Brings a session up to date with a packet that `side` has sent.
    fn advance(
        &mut self,
        now: Instant,
        id: Id,
        side: Side,
        packet: &Packet<'_>,
        headers: &Headers,
    ) -> Result<(), DropReason> {
        let session = self.table.sessions.get_mut(id).ok_or(DropReason::NoSession)?;
        let before = session.state;
        let is_certain = match headers.transport {
            Transport::Tcp(segment) => session.connection.is_certain_reset(side, &segment),
            _ => false,
        };
        session.state = match (headers.transport, before) {
            (Transport::Tcp(segment), SessionState::Tcp(state)) => {
                match session.connection.handle_segment(state, side, &segment) {
                    Progress::State(state) => SessionState::Tcp(state),
                    Progress::Reopen => {
                        self.reopen(now, id, side);
                        return self.advance(now, id, side, packet, headers);
                    }
                    Progress::OutOfWindow => return Err(DropReason::RstOutOfWindow),
                }
            }
            (_, SessionState::Unreplied) if side != session.opened_by => SessionState::Replied,
            (_, state) => state,
        };
        let reset = matches!(headers.transport, Transport::Tcp(segment) if segment.has(TcpFlags::RST));
        if !reset || session.state != before {
            // Resets do not keep alive what a reset has ended (RFC 7857 section 7.1).
            session.last_use = wheel::tick(now);
        }
        session.count(side, packet.bytes.len());
        if session.state == before {
            return Ok(());
        }
        let after = session.state;
        if after == SessionState::Tcp(TcpState::Reset) {
            session.reset_by = Some(side);
        }
        let is_answer = session.role == Role::Unanswered && side == Side::Internal;
        let answer = is_answer.then_some((session.listener(), session.internal, reset));
        if is_answer {
            session.role = Role::Served;
        }
        self.counters.census.remove(session.protocol, before);
        self.counters.census.add(session.protocol, after);
        let newly = !session.established
            && matches!(session.state, SessionState::Replied | SessionState::Tcp(TcpState::Established));
        if newly {
            session.established = true;
            let record = session.record(now);
            self.counters.sessions_established += 1;
            self.emit(Event::Established(record));
        }
        if let Some((service, target, refused)) = answer {
            let answer = if refused { Answer::Refused } else { Answer::Accepted };
            self.answered(now, service, target, answer);
        }
        match after {
            SessionState::Tcp(TcpState::Closing) => self.conclude(now, id, CloseReason::Finished),
            SessionState::Tcp(TcpState::Reset) if is_certain => self.conclude(now, id, CloseReason::Reset),
            _ => {}
        }
        self.table.rearm(id, &self.config.timeouts);
        Ok(())
    }

    /// A new connection takes the place of a closed one on the same endpoints.
    fn reopen(&mut self, now: Instant, id: Id, side: Side) {
        let Some(session) = self.table.sessions.get_mut(id) else { return };
        let closed = Event::Closed(session.record(now), CloseReason::Reopened);
        self.counters.census.remove(session.protocol, session.state);
        session.state = SessionState::Tcp(TcpState::SynSent);
        session.connection = Connection::default();
        session.restart(now);
        session.established = false;
        session.seen = 0;
        session.reset_by = None;
        let opener = std::mem::replace(&mut session.opened_by, side);
        let (internal, record, is_served) =
            (session.internal.address, session.record(now), session.is_served());
        if !is_served {
            self.hosts.changed_opener(internal, opener, side);
        }
        self.counters.census.add(record.protocol, record.state);
        self.count_closed(CloseReason::Reopened);
        self.counters.sessions_opened += 1;
        self.emit(closed);
        self.emit(Event::Opened(record));
    }

    /// Rewrites a packet and says how it leaves.
    fn send(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        from: Side,
        translation: Translation,
    ) -> Verdict {
        if let (Some(most), Transport::Tcp(_)) = (self.config.mss_clamp, &headers.transport) {
            packet.clamp_mss(headers, most);
        }
        packet.translate(headers, translation.source, translation.destination, translation.identifier);
        let mtu = self.mtu(translation.side);
        let too_big = packet.offload.segment_size.is_none() && packet.bytes.len() > usize::from(mtu);
        let mut identification = headers.identification;
        if (headers.fragment.is_some() || too_big)
            && (from == Side::Internal || self.is_external(translation.source.address))
        {
            // Two hosts behind one address may have chosen the same (RFC 6864 section 5.3.1).
            identification = self.next_identification(headers.protocol, translation);
            packet.set_identification(identification);
        }
        if headers.fragment.is_some() {
            let route = Route {
                source: translation.source.address,
                destination: translation.destination.address,
                identification,
                side: translation.side,
            };
            self.send_held(from, headers, route);
        }
        if too_big {
            packet.complete_checksum(headers);
            self.send_fragments(packet.bytes, translation.side);
            return Verdict::Queued;
        }
        if let Some(size) = packet.offload.segment_size
            && packet.headers_length(headers) + usize::from(size.get()) > usize::from(mtu)
        {
            return self.send_smaller_segments(packet, headers, from, translation, mtu);
        }
        forwarded(from, translation.side)
    }

    /// The segments of a super-frame would not fit. A TCP sender may be given smaller ones; of UDP each segment
    /// is a datagram, which is cut into fragments.
    fn send_smaller_segments(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        from: Side,
        translation: Translation,
        mtu: u16,
    ) -> Verdict {
        if headers.protocol == Protocol::TCP {
            packet.lower_segment_size(headers, mtu);
            return forwarded(from, translation.side);
        }
        for mut datagram in packet.udp_datagrams() {
            let identification = self.next_identification(headers.protocol, translation);
            let mut datagram = Packet::plain(&mut datagram);
            datagram.set_identification(identification);
            self.send_fragments(datagram.bytes, translation.side);
        }
        Verdict::Queued
    }

    /// The first fragment goes by `route`, and so do those that waited for it.
    fn send_held(&mut self, from: Side, headers: &Headers, route: Route) {
        for mut held in self.fragments.resolve(DatagramKey::new(from, headers), route) {
            let mut packet = Packet::plain(&mut held);
            let Ok(headers) = Headers::parse(&mut packet) else { continue };
            if let Verdict::Forward | Verdict::Hairpin = self.send_later(&mut packet, &headers, from, route) {
                self.transmits.push_back(Transmit { side: route.side, packet: held });
            }
        }
    }

    fn send_later(&mut self, packet: &mut Packet<'_>, headers: &Headers, from: Side, route: Route) -> Verdict {
        let (source, destination) = (Endpoint::new(route.source, 0), Endpoint::new(route.destination, 0));
        packet.translate(headers, source, destination, 0);
        packet.set_identification(route.identification);
        if packet.bytes.len() > usize::from(self.mtu(route.side)) {
            self.send_fragments(packet.bytes, route.side);
            return Verdict::Queued;
        }
        forwarded(from, route.side)
    }

    fn send_fragments(&mut self, packet: &[u8], side: Side) {
        self.counters.fragmented += 1;
        let pieces = wire::fragments(packet, self.mtu(side));
        self.transmits.extend(pieces.into_iter().map(|packet| Transmit { side, packet }));
    }

    fn next_identification(&mut self, protocol: Protocol, translation: Translation) -> u16 {
        self.identifications.next(translation.source.address, translation.destination.address, protocol)
    }

    pub(super) fn is_external(&self, address: std::net::Ipv4Addr) -> bool {
        self.pool.find(address).is_some_and(|found| found.private == address)
    }

    pub(super) const fn mtu(&self, side: Side) -> u16 {
        match side {
            Side::Internal => self.config.internal_mtu,
            Side::External => self.config.external_mtu,
        }
    }
}

/// A query's remote has no identifier of its own.
pub(super) fn remote_endpoint(protocol: Protocol, endpoint: Endpoint) -> Endpoint {
    if protocol == Protocol::ICMP { Endpoint::new(endpoint.address, 0) } else { endpoint }
}

/// Whether the packet may open a session: of TCP only a SYN may.
pub(super) fn may_open(headers: &Headers) -> bool {
    match headers.transport {
        Transport::Tcp(segment) => segment.is_opening(),
        _ => true,
    }
}

pub(super) fn forwarded(from: Side, to: Side) -> Verdict {
    if from == to { Verdict::Hairpin } else { Verdict::Forward }
}

/// A packet is not passed on once its time is up.
pub(super) fn check_ttl(headers: &Headers) -> Result<(), DropReason> {
    if headers.ttl <= 1 { Err(DropReason::TtlExceeded) } else { Ok(()) }
}

/// A packet that must not be fragmented has to fit into `mtu` bytes; of a super-frame, each of its segments.
fn check_size(packet: &Packet<'_>, headers: &Headers, mtu: u16) -> Result<(), DropReason> {
    let size = match packet.offload.segment_size {
        Some(size) => (packet.headers_length(headers) + usize::from(size.get())).min(packet.bytes.len()),
        None => packet.bytes.len(),
    };
    if headers.dont_fragment && size > usize::from(mtu) { Err(DropReason::TooBig) } else { Ok(()) }
}
