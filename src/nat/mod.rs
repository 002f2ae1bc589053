//! The NAT engine: NAPT44 by RFC 4787 (UDP), RFC 5382 (TCP), RFC 5508 (ICMP) and RFC 7857.
//!
//! Owns all state of the translation: mappings, sessions, ports, timers, fragments. It is given packets and the
//! time, and says what is to become of them; it never reads a clock, a socket or a file. Nothing that comes in a
//! packet makes it panic, and every table has a limit.
//!
//! A packet's way: [`Engine::handle_packet`] parses it, `translate` finds its session and rewrites it, `open`
//! makes a session if it may (`service`, if it is a target's), `errors` does the same for ICMP errors, and `answer` says no to those who should
//! hear it. `offload` gives sessions that last to a fast path, if there is one, and takes them home again.

mod answer;
mod census;
mod config;
mod errors;
mod event;
mod fragments;
mod hosts;
mod index;
mod offload;
mod open;
mod ports;
mod random;
mod service;
mod slab;
mod table;
mod tcp;
mod translate;
mod wheel;

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

use siphasher::sip::SipHasher13;

pub use census::Census;
pub use config::{
    Config, ConfigError, ExternalAddress, FilteringBehaviour, Limits, MappingBehaviour, OnExhaustion, Service,
    StaticMapping, Timeouts,
};
pub use event::{
    CloseReason, Counters, DropReason, Event, SessionRecord, SessionState, Side, Traffic, Transmit, Verdict,
};
pub use offload::{Flow, FlowKeys, FlowPair, Offload, Removal, TcpMarks, Usage};
pub use ports::AddressUse;
pub use service::{Answer, Balancer, Closed, NoTargets, Refusal};
pub use tcp::TcpState;

use self::slab::Id;
use crate::time::Instant;
use crate::wire::{Endpoint, Headers, Packet, Protocol, Transport};
use answer::{Answers, HeldSyn};
use fragments::Fragments;
use hosts::{Hosts, Keyed};
use index::Secret;
use ports::Pool;
use random::{Identifications, Random};
use service::Services;
use table::{Carrier, Session, Table};

/// See the module.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    table: Table,
    hosts: Hosts,
    pool: Pool,
    statics: Statics,
    services: Services,
    fragments: Fragments,
    identifications: Identifications,
    random: Random,
    answers: Answers,
    held_syns: VecDeque<HeldSyn>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    offloads: VecDeque<Offload>,
    /// [`Self::recall`] has not come to the end of the table.
    recalling: bool,
    counters: Counters,
}

/// Static mappings, by either end.
#[derive(Debug)]
struct Statics {
    by_external: HashMap<(Protocol, Endpoint), Endpoint, Keyed>,
    by_internal: HashMap<(Protocol, Endpoint), Endpoint, Keyed>,
}

impl Engine {
    /// An engine without sessions. `seed` keys its hash tables and its choice of ports: take it from the
    /// system's randomness, or fix it to replay.
    ///
    /// # Errors
    /// What is wrong with `config`.
    pub fn new(config: Config, seed: [u8; 16]) -> Result<Self, ConfigError> {
        config.validate()?;
        let keyed = SipHasher13::new_with_key(&seed);
        Ok(Self {
            table: Table::new(Secret::new(seed)),
            hosts: Hosts::new(Keyed(keyed)),
            pool: Pool::new(&config),
            statics: Statics::new(&config, Keyed(keyed)),
            services: Services::new(&config, Keyed(keyed)),
            fragments: Fragments::new(Keyed(keyed)),
            identifications: Identifications::new(keyed),
            random: Random::new(keyed),
            answers: Answers::default(),
            held_syns: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            offloads: VecDeque::new(),
            recalling: false,
            counters: Counters::default(),
            config,
        })
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the configuration. Sessions stay, but for those whose external address is gone. Walks all
    /// sessions, and takes home what is in the fast path; whoever has given away many calls [`Self::recall`] in
    /// steps first, so that they do not all wait in [`Self::poll_offload`] at once.
    ///
    /// # Errors
    /// What is wrong with `config`; then nothing has changed.
    pub fn reconfigure(&mut self, now: Instant, config: Config) -> Result<(), ConfigError> {
        config.validate()?;
        // By the old configuration: it says which flows a session has.
        self.recall(0, u32::MAX);
        self.pool = Pool::new(&config).after(&self.pool);
        self.statics = Statics::new(&config, self.hosts.keyed());
        self.services.configure(&config);
        self.config = config;
        self.fragments.clear();
        self.forget_held_syns();
        for id in 0..self.table.mappings.places() {
            let Some(mapping) = self.table.mappings.get(id) else { continue };
            if let Some(address) = self.pool.find_mut(mapping.external.address) {
                address.mappings += 1;
                if let Some(ports) = address.ports_mut(mapping.protocol) {
                    ports.take(mapping.external.port);
                }
            }
        }
        for id in 0..self.table.sessions.places() {
            let Some(session) = self.table.sessions.get_mut(id) else { continue };
            session.hairpin = self.pool.find(session.remote.address).is_some();
            if session.carrier == Carrier::Returning {
                // It is settled, or ended, once its flows are home.
                continue;
            }
            self.settle(now, id);
        }
        Ok(())
    }

    /// Translates one packet that came in on `side`. Cuts `packet.bytes` to the packet's length, and may lower
    /// the segment size of a super-frame. The packet is as it was if the verdict is not to send it.
    pub fn handle_packet(&mut self, now: Instant, side: Side, packet: &mut Packet<'_>) -> Verdict {
        let headers = match Headers::parse(packet) {
            Ok(headers) => headers,
            Err(malformed) => return self.drop(malformed.into()),
        };
        let received = match side {
            Side::Internal => &mut self.counters.in_from_internal,
            Side::External => &mut self.counters.in_from_external,
        };
        received.add(packet.bytes.len());
        self.counters.fragments += u64::from(headers.fragment.is_some());
        if self.hold(side, packet, &headers) {
            return Verdict::Queued;
        }
        self.judge(now, side, packet, &headers)
    }

    /// Translates a packet that has been parsed and counted.
    fn judge(&mut self, now: Instant, side: Side, packet: &mut Packet<'_>, headers: &Headers) -> Verdict {
        let result = match (side, &headers.transport) {
            (_, Transport::Later) => self.later_fragment(now, side, packet, headers),
            (Side::Internal, Transport::Error(embedded)) => self.error_outbound(packet, headers, embedded),
            (Side::External, Transport::Error(embedded)) => self.error_inbound(packet, headers, embedded),
            (Side::Internal, _) => self.outbound(now, packet, headers),
            (Side::External, _) => self.inbound(now, packet, headers),
        };
        match result {
            Ok(verdict) => {
                let sent = match (verdict, side) {
                    (Verdict::Hairpin, _) => &mut self.counters.hairpinned,
                    (_, Side::Internal) => &mut self.counters.out_to_external,
                    (_, Side::External) => &mut self.counters.out_to_internal,
                };
                sent.add(packet.bytes.len());
                verdict
            }
            Err(reason) => {
                let verdict = self.drop(reason);
                match self.answer(now, side, packet, headers, reason) {
                    Some(packet) => {
                        self.transmits.push_back(Transmit { side, packet });
                        Verdict::Reply(reason)
                    }
                    None => verdict,
                }
            }
        }
    }

    /// Ends what has timed out by `now`: at most some hundred sessions a call, after which
    /// [`Self::poll_timeout`] is still past if there are more.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut budget = TIMEOUT_BUDGET;
        let tick = wheel::tick(now);
        while let Some(id) = self.table.wheel.fire(&mut self.table.sessions, tick, &mut budget) {
            self.timed_out(now, id);
        }
        let in_vain = self.fragments.handle_timeout(now);
        self.counters.drops[DropReason::FragmentTimeout as usize] += in_vain;
        self.answer_held_syns(now);
        self.look_after_services(now);
    }

    /// When [`Self::handle_timeout`] must be called next; `None` while nothing waits for time to pass.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let session = self.table.wheel.next().map(wheel::instant);
        let syn = self.held_syns.front().map(|held| held.due);
        [session, self.fragments.poll_timeout(), syn, self.services.poll_timeout()].into_iter().flatten().min()
    }

    /// The next packet to send. Ask until there is none after each call that handles something.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event. At most 16,384 wait to be fetched; later ones are lost and counted.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut drops = self.counters.drops;
        drops[DropReason::FragmentLimit as usize] += self.fragments.evicted();
        Counters {
            drops,
            sessions: self.table.sessions.len(),
            mappings: self.table.mappings.len(),
            internal_addresses: u32::try_from(self.hosts.len()).unwrap_or(u32::MAX),
            fragment_bytes: self.fragments.bytes(),
            ..self.counters
        }
    }

    /// How the ports of each external address are used, in the order of the configuration.
    #[must_use]
    pub fn address_use(&self) -> Vec<AddressUse> {
        self.pool.address_use()
    }

    /// How many places the table of sessions has.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.table.sessions.places()
    }

    /// Visits the sessions in `slots` places of the table from place `from` on. Gives the place to go on from,
    /// `None` at the end of the table. Sessions that open or close between calls may be missed.
    pub fn scan_sessions(
        &self,
        now: Instant,
        from: u32,
        slots: u32,
        mut visit: impl FnMut(&SessionRecord),
    ) -> Option<u32> {
        let places = self.table.sessions.places();
        let end = from.saturating_add(slots).min(places);
        for id in from..end {
            if let Some(session) = self.table.sessions.get(id) {
                visit(&session.record(now));
            }
        }
        (end < places).then_some(end)
    }

    /// Tells what the sessions in `slots` places of the table from place `from` on have carried since this was last
    /// asked: the internal and the remote address of each that has carried anything. `usage` says what flows of the fast
    /// path hold. A session that closes tells the rest by its event. Gives the place to go on from, `None` at the end of
    /// the table.
    pub fn account(
        &mut self,
        from: u32,
        slots: u32,
        mut usage: impl FnMut(FlowKeys) -> [Option<Usage>; 2],
        mut visit: impl FnMut(Ipv4Addr, Ipv4Addr, Traffic),
    ) -> Option<u32> {
        let places = self.table.sessions.places();
        let end = from.saturating_add(slots).min(places);
        for id in from..end {
            let Some(session) = self.table.sessions.get(id) else { continue };
            let keys = (session.carrier == Carrier::FastPath).then(|| self.flows_of(session)).flatten();
            let flows = keys.map_or([None; 2], |(keys, _)| usage(keys));
            let Some(session) = self.table.sessions.get_mut(id) else { continue };
            let traffic = session.account(flows);
            if traffic.bytes > 0 {
                visit(session.internal.address, session.remote.address, traffic);
            }
        }
        (end < places).then_some(end)
    }

    fn drop(&mut self, reason: DropReason) -> Verdict {
        self.counters.drops[reason as usize] += 1;
        Verdict::Drop(reason)
    }

    fn is_internal(&self, address: Ipv4Addr) -> bool {
        self.config.internal.iter().any(|prefix| prefix.contains(&address))
    }

    fn emit(&mut self, event: Event) {
        if self.events.len() < MOST_EVENTS {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }

    /// The timer of a session has fired: ends it, unless it was used since the timer was armed, which of one in
    /// the fast path, or on its way home from there, is to be found out.
    fn timed_out(&mut self, now: Instant, id: Id) {
        let Some(session) = self.table.sessions.get(id) else { return };
        let deadline = table::deadline(session, &self.config.timeouts);
        if deadline > wheel::tick(now) {
            self.table.wheel.arm(&mut self.table.sessions, id, deadline);
        } else if session.carrier == Carrier::FastPath {
            self.query(now, id);
        } else if session.carrier == Carrier::Returning {
            // Its flows, on their way home, know when it was last used.
            self.table.wheel.arm(&mut self.table.sessions, id, wheel::tick(now).saturating_add(1));
        } else {
            let reason = match session.state {
                SessionState::Tcp(TcpState::Closing) => CloseReason::Finished,
                SessionState::Tcp(TcpState::Reset) => CloseReason::Reset,
                _ => CloseReason::Expired,
            };
            self.close(now, id, reason);
        }
    }

    /// Arms the timer of a session anew, whose deadline or external address may have changed, or ends it.
    fn settle(&mut self, now: Instant, id: Id) {
        let Some(external) = self.table.sessions.get(id).map(|session| session.external.address) else {
            return;
        };
        self.table.wheel.disarm(&mut self.table.sessions, id);
        if self.is_external(external) {
            self.timed_out(now, id);
        } else {
            self.close(now, id, CloseReason::AddressRemoved);
        }
    }

    /// Ends a session whose timer is not armed, and its mapping with its last session.
    fn close(&mut self, now: Instant, id: Id, reason: CloseReason) {
        self.leave_service(now, id, reason);
        let Some(session) = self.table.remove_session(id) else { return };
        self.hosts.closed(session.internal.address, session.opener());
        self.counters.census.remove(session.protocol, session.state);
        self.count_closed(reason);
        self.emit(Event::Closed(session.record(now), reason));
        self.release(&session);
    }

    fn count_closed(&mut self, reason: CloseReason) {
        self.counters.sessions_closed += 1;
        self.counters.closed[reason as usize] += 1;
    }

    fn release(&mut self, session: &Session) {
        let Some(mapping) = self.table.mappings.get_mut(session.mapping) else { return };
        mapping.sessions = mapping.sessions.saturating_sub(1);
        if mapping.sessions > 0 {
            return;
        }
        let Some(mapping) = self.table.remove_mapping(session.mapping) else { return };
        let overloaded = self.table.mapping_at(mapping.protocol, mapping.external).is_some();
        if let Some(address) = self.pool.find_mut(mapping.external.address) {
            address.mappings = address.mappings.saturating_sub(1);
            if let Some(ports) = address.ports_mut(mapping.protocol)
                && !overloaded
            {
                ports.give_back(mapping.external.port);
            }
        }
    }
}

impl Statics {
    fn new(config: &Config, keyed: Keyed) -> Self {
        let mut by_external = HashMap::with_hasher(keyed);
        let mut by_internal = HashMap::with_hasher(keyed);
        for &StaticMapping { protocol, external, internal } in &config.static_mappings {
            by_external.insert((protocol, external), internal);
            // Of several external endpoints the first one stands for the internal endpoint.
            by_internal.entry((protocol, internal)).or_insert(external);
        }
        Self { by_external, by_internal }
    }
}

/// Steps of the timer wheel in one call: with a million sessions some 100 µs.
const TIMEOUT_BUDGET: u32 = 128;
const MOST_EVENTS: usize = 16_384;
