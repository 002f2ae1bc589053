//! ICMP errors (RFC 5508 section 4): both the error and the packet that it quotes are translated, by the session
//! of the quoted packet, which is neither refreshed nor ended.

use super::Engine;
use super::event::{DropReason, Side, Verdict};
use super::table::Role;
use super::translate::{check_ttl, forwarded, remote_endpoint};
use crate::wire::{Embedded, Endpoint, Headers, Packet, Protocol};

impl Engine {
    /// An error from outside, about a packet that we sent out.
    pub(super) fn error_inbound(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        embedded: &Embedded,
    ) -> Result<Verdict, DropReason> {
        let quoted = embedded.tuple;
        if !self.is_external(headers.destination) {
            return Err(DropReason::NotExternal);
        }
        // An error goes to whom the quoted packet names as its sender.
        if quoted.source.address != headers.destination {
            return Err(DropReason::IcmpNoSession);
        }
        let remote = remote_endpoint(quoted.protocol, quoted.destination);
        let find = |id| self.table.sessions.get(id);
        let Some(session) = self.table.inbound(quoted.protocol, quoted.source, remote).and_then(find) else {
            // It may be on its way to a client that its target does not see.
            let client = self.table.outbound(quoted.protocol, remote, quoted.source).and_then(find);
            let client =
                client.filter(|client| client.role == Role::Client).ok_or(DropReason::IcmpNoSession)?;
            let (external, remote) = (client.external, client.remote);
            return self.error_hairpin(packet, headers, embedded, Side::External, external, remote);
        };
        check_ttl(headers)?;
        let internal = session.internal;
        let addresses = (headers.source, internal.address);
        packet.translate_error(headers, embedded, addresses, (internal, quoted.destination), internal.port);
        self.counters.icmp_errors += 1;
        Ok(Verdict::Forward)
    }

    /// An error from inside, about a packet that we sent in. Whichever internal address it comes from, it leaves
    /// with the session's external address (RFC 5508 REQ-5).
    pub(super) fn error_outbound(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        embedded: &Embedded,
    ) -> Result<Verdict, DropReason> {
        let quoted = embedded.tuple;
        if !self.is_internal(headers.source) {
            return Err(DropReason::NotInternal);
        }
        if quoted.source.address != headers.destination {
            return Err(DropReason::IcmpNoSession);
        }
        let remote = remote_endpoint(quoted.protocol, quoted.source);
        let session = self.table.outbound(quoted.protocol, quoted.destination, remote);
        let Some(session) = session.and_then(|id| self.table.sessions.get(id)) else {
            return if self.is_external(headers.destination) {
                // A router of our own network, on the way out: an error as from outside.
                self.error_inbound(packet, headers, embedded).map(|_| Verdict::Hairpin)
            } else {
                Err(DropReason::IcmpNoSession)
            };
        };
        check_ttl(headers)?;
        let external = session.external;
        if session.hairpin {
            return self.error_hairpin(packet, headers, embedded, Side::Internal, external, remote);
        }
        let addresses = (external.address, headers.destination);
        packet.translate_error(headers, embedded, addresses, (quoted.source, external), external.port);
        self.counters.icmp_errors += 1;
        Ok(Verdict::Forward)
    }

    /// An error about a hairpinned packet: what it quotes becomes what the other internal endpoint has sent
    /// (RFC 5508 REQ-7).
    fn error_hairpin(
        &mut self,
        packet: &mut Packet<'_>,
        headers: &Headers,
        embedded: &Embedded,
        from: Side,
        external: Endpoint,
        remote: Endpoint,
    ) -> Result<Verdict, DropReason> {
        check_ttl(headers)?;
        let protocol: Protocol = embedded.tuple.protocol;
        let (to, near) = self.turn_round(external, remote).ok_or(DropReason::IcmpNoSession)?;
        let session = self
            .hairpinned(protocol, to, near)
            .and_then(|id| self.table.sessions.get(id))
            .ok_or(DropReason::IcmpNoSession)?;
        let (internal, near) = (session.internal, session.remote);
        let verdict = forwarded(from, session.near());
        packet.translate_error(
            headers,
            embedded,
            (near.address, internal.address),
            (internal, near),
            internal.port,
        );
        self.counters.icmp_errors += 1;
        Ok(verdict)
    }
}
