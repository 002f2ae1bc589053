//! Saying no to those who should hear it: RST and ICMP errors, within bounds.

use std::time::Duration;

use super::Engine;
use super::event::{DropReason, Side, Transmit};
use super::hosts::Bucket;
use crate::time::Instant;
use crate::wire::icmp::{self, IcmpError};
use crate::wire::{Endpoint, Headers, Packet, Protocol, TcpFlags, Transport};

/// The rates of answers (RFC 1812 section 4.3.2.8).
#[derive(Debug, Default)]
pub struct Answers {
    icmp: Bucket,
    /// Of either side its own: what comes from outside must not keep internal hosts waiting.
    resets: [Bucket; 2],
}

/// An unsolicited SYN that may turn out to be half of a simultaneous open (RFC 5382 REQ-4).
#[derive(Debug)]
pub struct HeldSyn {
    pub due: Instant,
    external: Endpoint,
    remote: Endpoint,
    /// Its headers, to be quoted.
    packet: Vec<u8>,
}

impl Engine {
    /// The answer to a packet that was dropped for `reason`, if it gets one.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        side: Side,
        packet: &Packet<'_>,
        headers: &Headers,
        reason: DropReason,
    ) -> Option<Vec<u8>> {
        let error = match (reason, side) {
            // From outside it is to a service.
            (DropReason::TcpNoSession | DropReason::NotAdmitted | DropReason::NoTarget, _) => {
                return self.reset(now, side, headers);
            }
            (DropReason::TtlExceeded, _) => IcmpError::TimeExceeded,
            (DropReason::TooBig, _) => IcmpError::FragmentationNeeded { mtu: self.mtu_ahead(side, headers) },
            // RFC 5508 REQ-8. Who opens too fast is left to try again.
            (
                DropReason::PortsExhausted | DropReason::SessionLimit | DropReason::AddressSessionLimit,
                Side::Internal,
            ) => IcmpError::Prohibited,
            _ => return None,
        };
        // Never about an error, nor about a fragment but the first (RFC 1812 section 4.3.2.7).
        if matches!(headers.transport, Transport::Error(_) | Transport::Later) {
            return None;
        }
        let source = match side {
            Side::Internal => self.config.internal_router.or_else(|| self.pool.privates().next())?,
            Side::External => headers.destination,
        };
        if !self.answers.icmp.take(now, ICMP_PER_SECOND) {
            self.counters.replies_limited += 1;
            return None;
        }
        self.counters.replies += 1;
        Some(icmp::error(error, source, headers.source, packet.bytes))
    }

    /// Tells a host that its connection is not known here, as a managed NAT gateway does.
    fn reset(&mut self, now: Instant, side: Side, headers: &Headers) -> Option<Vec<u8>> {
        let Transport::Tcp(segment) = headers.transport else { return None };
        if segment.has(TcpFlags::RST) {
            return None;
        }
        if !self.answers.resets[side as usize].take(now, RESETS_PER_SECOND) {
            self.counters.replies_limited += 1;
            return None;
        }
        self.counters.replies += 1;
        Some(icmp::reset(headers, &segment))
    }

    /// Keeps an inbound SYN that nothing let in, if such are to be answered.
    pub(super) fn hold_syn(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        headers: &Headers,
        external: Endpoint,
        remote: Endpoint,
    ) {
        let Transport::Tcp(segment) = headers.transport else { return };
        let wanted = self.config.answer_unsolicited_syn && segment.is_opening();
        if !wanted || self.held_syns.len() >= MOST_HELD_SYNS {
            return;
        }
        let quoted = &packet.bytes[..packet.bytes.len().min(QUOTED)];
        self.held_syns.push_back(HeldSyn { due: now + SYN_WAIT, external, remote, packet: quoted.to_vec() });
    }

    /// Answers the SYNs that have waited long enough, but for those that a session has come for.
    pub(super) fn answer_held_syns(&mut self, now: Instant) {
        while self.held_syns.front().is_some_and(|held| held.due <= now) {
            let Some(held) = self.held_syns.pop_front() else { return };
            if self.table.inbound(Protocol::TCP, held.external, held.remote).is_some() {
                continue;
            }
            if !self.answers.icmp.take(now, ICMP_PER_SECOND) {
                self.counters.replies_limited += 1;
                continue;
            }
            self.counters.replies += 1;
            let (source, destination) = (held.external.address, held.remote.address);
            let packet = icmp::error(IcmpError::PortUnreachable, source, destination, &held.packet);
            self.transmits.push_back(Transmit { side: Side::External, packet });
        }
    }

    /// Forgets the SYNs to addresses that are not ours any more.
    pub(super) fn forget_held_syns(&mut self) {
        let pool = &self.pool;
        self.held_syns.retain(|held| pool.privates().any(|private| private == held.external.address));
    }

    fn mtu_ahead(&self, side: Side, headers: &Headers) -> u16 {
        // What is for us turns round, or goes on to a client that its target does not see.
        let to_external = side == Side::Internal
            && (self.pool.find(headers.destination).is_none() || self.services.clients > 0);
        self.mtu(if to_external { Side::External } else { Side::Internal })
    }
}

const ICMP_PER_SECOND: u32 = 100;
const RESETS_PER_SECOND: u32 = 10_000;
const SYN_WAIT: Duration = Duration::from_secs(6);
const MOST_HELD_SYNS: usize = 1024;
/// As much of a packet as an ICMP error has to quote.
const QUOTED: usize = 128;
