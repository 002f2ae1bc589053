//! The balancing core: target groups, and the doors of their listeners.
//!
//! A [`Group`] owns what is known of its targets (health, draining, connections) and decides which of them a
//! connection gets. An [`Admission`] decides whether a client gets in at all. Neither connects, resolves or reads a
//! clock: probes are given out and their results taken in, and time is an argument. Both hold a bounded state,
//! whatever clients do.
//!
//! It behaves as a network load balancer's target group where that has a behaviour (Elastic Load Balancing, "Health
//! checks for Network Load Balancer target groups"): a new target serves after one passed check; connections count
//! as checks if they fail; when all targets are unhealthy, all serve.
//!
//! `health` is the judgement of one target, `member` its book-keeping, `select` the choice among them, `maglev` the
//! table of the flow hash, `recent` the bounded table of clients.

mod admission;
mod config;
mod event;
mod health;
mod maglev;
mod member;
mod recent;
mod select;

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use siphasher::sip::SipHasher13;

pub use admission::{Admission, AdmissionCounters, Refusal};
pub use config::{
    Algorithm, Config, ConfigError, HealthCheck, Limits, MOST_TARGETS, OnUnhealthy, Stickiness, Target,
};
pub use event::{
    CheckError, Close, CloseCause, Counters, Event, Probe, ProbeId, Serving, Snapshot, State, TargetCounters,
    TargetSnapshot, Why,
};

use crate::time::Instant;
use maglev::Maglev;
use member::Member;
use recent::Recent;

/// A target group. Targets are named by their addresses.
///
/// After each call that handles something, and at [`Self::poll_timeout`], call [`Self::handle_timeout`] and ask
/// `poll_probe`, `poll_close` and `poll_event` until there is nothing.
#[derive(Debug)]
pub struct Group {
    config: Config,
    members: BTreeMap<SocketAddr, Member>,
    maglev: Maglev,
    serving: Serving,
    sticky: Recent<IpAddr, SocketAddr>,
    events: VecDeque<Event>,
    random: SipHasher13,
    probes: u64,
    counters: Counters,
}

impl Group {
    /// A group without targets. `seed` keys its table of clients and spreads its probes: take it from the system's
    /// randomness, or fix it to replay.
    ///
    /// # Errors
    /// What is wrong with `config`.
    pub fn new(config: Config, seed: [u8; 16]) -> Result<Self, ConfigError> {
        config.validate()?;
        let Stickiness { idle_timeout, most_clients } = config.stickiness.unwrap_or_default();
        Ok(Self {
            members: BTreeMap::new(),
            maglev: Maglev::new(config.key, Vec::new()),
            serving: Serving::Nobody,
            sticky: Recent::new(seed, most_clients, idle_timeout),
            events: VecDeque::new(),
            random: SipHasher13::new_with_key(&seed),
            probes: 0,
            counters: Counters::default(),
            config,
        })
    }

    /// Changes the configuration. Targets keep their health and their connections; those that drain already do so
    /// as long as they were to.
    ///
    /// # Errors
    /// What is wrong with `config`; then nothing has changed.
    pub fn reconfigure(&mut self, now: Instant, config: Config) -> Result<(), ConfigError> {
        config.validate()?;
        let Stickiness { idle_timeout, most_clients } = config.stickiness.unwrap_or_default();
        self.sticky.resize(if config.stickiness.is_some() { most_clients } else { 0 }, idle_timeout);
        self.config = config;
        for member in self.members.values_mut() {
            member.probing.due = member.probing.due.min(now + self.config.health.interval);
        }
        self.rebuild();
        Ok(())
    }

    /// Says who the targets are from now on; of several with one address the first counts. New ones are checked
    /// before they serve; those that are missing drain, and those that were draining for it come back. Whoever
    /// follows a name that does not resolve just now does not call this.
    ///
    /// # Errors
    /// What is wrong with `targets`; then nothing has changed.
    pub fn set_targets(&mut self, now: Instant, targets: &[Target]) -> Result<(), ConfigError> {
        let wanted = wanted(targets)?;
        // First who comes, then who leaves: if all are replaced, there is always somebody.
        for (&address, target) in &wanted {
            let first_probe = now + self.first_probe();
            let is_known = self.change(now, address, |member, _| {
                member.weight = target.weight;
                member.backup = target.backup;
                if !member.is_wanted() {
                    member.come_back(first_probe);
                }
            });
            if !is_known {
                self.members.insert(address, Member::new(now, target, first_probe));
                self.emit(Event::Added { target: address });
            }
        }
        let missing = |address: &&SocketAddr| !wanted.contains_key(address);
        let missing: Vec<SocketAddr> = self.members.keys().filter(missing).copied().collect();
        for address in missing {
            self.change(now, address, |member, config| match &mut member.leaving {
                Some(leaving) => leaving.on_request = false,
                None => member.leave(now, config.deregistration_delay, false),
            });
        }
        self.settle();
        self.rebuild();
        Ok(())
    }

    /// Whether [`Self::set_targets`] would take them.
    ///
    /// # Errors
    /// What is wrong with `targets`.
    pub fn check_targets(targets: &[Target]) -> Result<(), ConfigError> {
        wanted(targets).map(drop)
    }

    /// Takes a target out of service on request; `false` if there is none of this address. It stays out, whatever
    /// [`Self::set_targets`] says, until [`Self::undrain`] or until it is no longer wanted.
    pub fn drain(&mut self, now: Instant, target: SocketAddr) -> bool {
        let wanted = self.is_wanted(target);
        if wanted {
            self.change(now, target, |member, config| {
                if member.leaving.is_none() {
                    member.leave(now, config.deregistration_delay, true);
                }
            });
        }
        wanted
    }

    /// Takes a target that was drained on request back into service, where it is checked as a new one; `false` if
    /// there is none of this address.
    pub fn undrain(&mut self, now: Instant, target: SocketAddr) -> bool {
        let wanted = self.is_wanted(target);
        if wanted {
            let first_probe = now + self.first_probe();
            self.change(now, target, |member, _| {
                if member.leaving.is_some() {
                    member.come_back(first_probe);
                }
            });
        }
        wanted
    }

    /// The next probe that is due. A target has one at a time.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        let is_due = |member: &Member| {
            member.leaving.is_none() && member.probing.in_flight.is_none() && member.probing.due <= now
        };
        let target = *self.members.iter().find(|(_, member)| is_due(member))?.0;
        let HealthCheck { interval, timeout, .. } = self.config.health;
        self.probes += 1;
        let id = ProbeId { target, number: self.probes };
        let next = now + interval * 9 / 10 + self.spread(interval / 5);
        let member = self.members.get_mut(&target)?;
        let deadline = now + timeout;
        member.probing.in_flight = Some((id, deadline));
        member.probing.due = next;
        member.counters.probes += 1;
        Some(Probe { id, target, deadline })
    }

    /// Takes in the result of a probe. One that comes after the probe's deadline, or of a target that has left, is
    /// counted and otherwise ignored.
    pub fn handle_probe(&mut self, now: Instant, id: ProbeId, result: Result<(), CheckError>) {
        let in_flight = self.members.get(&id.target).and_then(|member| member.probing.in_flight);
        match in_flight {
            Some((expected, deadline)) if expected == id && now <= deadline => {
                self.judge(now, id.target, result);
            }
            _ => self.counters.probes_late += 1,
        }
    }

    /// A probe could not be made, and nothing was learned: the target is asked again as if it had been.
    pub fn abandon_probe(&mut self, id: ProbeId) {
        if let Some(member) = self.members.get_mut(&id.target)
            && member.probing.in_flight.is_some_and(|(in_flight, _)| in_flight == id)
        {
            member.probing.in_flight = None;
        }
    }

    /// Takes in how a connection to a target fared that [`Self::select`] has chosen: failures in a row make it
    /// unhealthy as failed checks do.
    pub fn handle_connect(&mut self, now: Instant, target: SocketAddr, result: Result<(), CheckError>) {
        self.change(now, target, |member, config| {
            member.counters.connects_failed += u64::from(result.is_err());
            member.health.connected(result, &config.health);
        });
    }

    /// Counts a connection that goes to `target` without [`Self::select`] having chosen it; `false` if there is no
    /// such target.
    pub fn opened(&mut self, now: Instant, target: SocketAddr) -> bool {
        self.change(now, target, |member, _| {
            member.connections = member.connections.saturating_add(1);
            member.counters.connections_opened += 1;
        })
    }

    /// A connection to `target`, or the attempt at one, has ended.
    pub fn closed(&mut self, now: Instant, target: SocketAddr) {
        self.change(now, target, |member, _| {
            member.connections = member.connections.saturating_sub(1);
            member.close = member.close.filter(|_| member.connections > 0);
        });
    }

    /// Fails probes that were not answered in time, and ends drainings that have lasted long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_over = |member: &Member| member.timeout().is_some_and(|at| at <= now);
        let over: Vec<SocketAddr> =
            self.members.iter().filter(|(_, member)| is_over(member)).map(|(address, _)| *address).collect();
        for address in over {
            let Some(member) = self.members.get_mut(&address) else { continue };
            if let Some(leaving) = &mut member.leaving {
                leaving.until = None;
                member.ask_to_close(CloseCause::Deregistered);
            } else if member.probing.in_flight.is_some() {
                self.judge(now, address, Err(CheckError::TimedOut));
            }
        }
    }

    /// When [`Self::handle_timeout`] and [`Self::poll_probe`] must be called next; `None` while nothing waits for
    /// time to pass.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.members.values().filter_map(Member::timeout).min()
    }

    /// The next target whose connections are to be closed.
    pub fn poll_close(&mut self) -> Option<Close> {
        let (target, member) = self.members.iter_mut().find(|(_, member)| member.close.is_some())?;
        member.close.take().map(|cause| Close { target: *target, cause })
    }

    /// Whether there are events. Targets whose connections are to be closed come with one.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next event. At most 1,024 wait to be fetched; later ones are lost and counted.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Who gets new connections.
    #[must_use]
    pub const fn serving(&self) -> Serving {
        self.serving
    }

    /// The targets that get new connections, with their weights, by address: for a datapath that chooses by itself.
    /// They change only when an event says so, or [`Self::set_targets`].
    pub fn eligible(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        let serves = |member: &Member| member.serves() == Some(self.serving);
        self.members
            .iter()
            .filter(move |(_, member)| serves(member))
            .map(|(address, member)| (*address, member.weight))
    }

    /// The group at this moment.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot {
            serving: self.serving,
            targets: self.members.iter().map(|(address, member)| member.snapshot(now, *address)).collect(),
            counters: Counters {
                clients: self.sticky.len(),
                clients_evicted: self.sticky.evicted(),
                ..self.counters
            },
        }
    }

    fn is_wanted(&self, target: SocketAddr) -> bool {
        self.members.get(&target).is_some_and(Member::is_wanted)
    }

    /// Takes in the result of the probe that is in flight.
    fn judge(&mut self, now: Instant, target: SocketAddr, result: Result<(), CheckError>) {
        self.change(now, target, |member, config| {
            member.probing.in_flight = None;
            member.counters.probes_failed += u64::from(result.is_err());
            member.health.checked(result, &config.health);
        });
    }

    /// Changes a target, and draws all conclusions but those from its weight; `false` if there is none.
    fn change(&mut self, now: Instant, address: SocketAddr, change: impl FnOnce(&mut Member, &Config)) -> bool {
        let Some(member) = self.members.get_mut(&address) else { return false };
        let from = member.state();
        change(member, &self.config);
        let to = member.state();
        let is_gone = member.is_gone();
        if from.label() != to.label() {
            member.entered(now);
            self.emit(Event::StateChanged { target: address, from, to });
            self.settle();
        }
        // Connects that fail are no reason to reset others: a full backlog makes them fail as well.
        let fails_checks = |state| matches!(state, State::Unhealthy(Why::HealthCheck(_)));
        let keep = self.config.on_unhealthy == OnUnhealthy::Keep || self.serving == Serving::FailOpen;
        if fails_checks(to)
            && !fails_checks(from)
            && !keep
            && let Some(member) = self.members.get_mut(&address)
        {
            member.ask_to_close(CloseCause::Unhealthy);
        }
        if is_gone {
            self.members.remove(&address);
            self.emit(Event::Removed { target: address });
        }
        true
    }

    /// Finds out who serves.
    fn settle(&mut self) {
        let serving = self.members.values().filter_map(Member::serves).min().unwrap_or(Serving::Nobody);
        if serving != self.serving {
            self.emit(Event::ServingChanged { from: self.serving, to: serving });
            self.serving = serving;
        }
    }

    /// Makes the table of the flow hash anew, if it is not that of the targets any more.
    fn rebuild(&mut self) {
        let mut targets = Vec::new();
        if self.config.algorithm == Algorithm::FlowHash {
            let wanted = self.members.iter().filter(|(_, member)| member.is_wanted());
            targets.extend(wanted.map(|(address, member)| (*address, member.weight)));
        }
        if !self.maglev.is_of(&self.config.key, &targets) {
            self.maglev = Maglev::new(self.config.key, targets);
        }
    }

    fn emit(&mut self, event: Event) {
        if self.events.len() < MOST_EVENTS {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }

    /// How long a new target waits for its first probe: not for long, and not all together.
    fn first_probe(&mut self) -> Duration {
        self.spread((self.config.health.interval / 10).min(FIRST_PROBES))
    }

    /// A time of up to `most`, each as likely as the others.
    fn spread(&mut self, most: Duration) -> Duration {
        // The hash of a seed and a row of zeros that grows by one.
        self.random.write_u8(0);
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.random.finish() % (nanos + 1))
    }
}

/// Targets by address, of which the first of several counts.
fn wanted(targets: &[Target]) -> Result<BTreeMap<SocketAddr, &Target>, ConfigError> {
    let mut wanted = BTreeMap::new();
    for target in targets {
        target.validate()?;
        wanted.entry(target.address).or_insert(target);
    }
    if wanted.len() > MOST_TARGETS {
        return Err(ConfigError::TooManyTargets(wanted.len()));
    }
    Ok(wanted)
}

const MOST_EVENTS: usize = 1024;
const FIRST_PROBES: Duration = Duration::from_millis(250);
