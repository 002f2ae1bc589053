//! A listener whose connections the NAT engine carries: its door and its targets, without any input or output.
//!
//! It lives with the packet worker, who asks it for the target of each new connection and tells it how that fared. The
//! probes that it wants made are made elsewhere ([`Check::ask`]), and its events logged elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::discover::{DiscoverError, Source};
use super::latency::Latency;
use super::listener::{Config, Counters, Report};
use super::probe::Check;
use super::relay::Relayed;
use super::sources::Sources;
use crate::balance::{
    Admission, CheckError, Close, ConfigError, Event, Group, Probe, ProbeId, State, TargetSnapshot,
};
use crate::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Service {
    config: Config,
    group: Group,
    sources: Sources,
    admission: Admission,
    counters: Counters,
    check_latency: Latency,
    answers: BTreeMap<SocketAddr, Answers>,
}

/// How a target has taken connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Answers {
    /// Not answered yet.
    half_open: u32,
    accepted: u64,
    /// Never answered.
    silent: u64,
}

/// A target whose clients wait in vain, or have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HalfOpen {
    pub target: SocketAddr,
    /// Connections that it has not answered yet.
    pub half_open: u32,
    /// Connections that it has never answered.
    pub unanswered: u64,
    /// It passes its checks and has not answered a single client: its answers take another way.
    pub astray: bool,
}

/// Why a connection gets no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The door, for a reason that is counted.
    NotAdmitted,
    NoTarget,
}

/// A probe to be made: what is asked, and how long an answer is waited for.
#[derive(Clone, Debug)]
pub struct Errand {
    pub probe: Probe,
    pub check: Check,
    pub timeout: Duration,
}

impl Service {
    /// A listener with unjudged targets. `seed` is random.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(now: Instant, config: Config, seed: [u8; 16]) -> Result<Self, ConfigError> {
        let mut group = Group::new(config.group.clone(), seed)?;
        let sources = Sources::new(&config.targets, &config.followed);
        if let Some(targets) = sources.targets() {
            group.set_targets(now, &targets)?;
        }
        let admission = Admission::new(config.limits.clone(), seed)?;
        Ok(Self {
            config,
            group,
            sources,
            admission,
            counters: Counters::default(),
            check_latency: Latency::default(),
            answers: BTreeMap::new(),
        })
    }

    /// Changes what it does from the next connection on.
    ///
    /// # Errors
    /// See [`ConfigError`]; then nothing has changed.
    pub fn reconfigure(&mut self, now: Instant, config: Config) -> Result<(), ConfigError> {
        config.group.validate()?;
        Admission::new(config.limits.clone(), [0; 16])?;
        let changed = self.sources.changed(&config.targets, &config.followed);
        let targets = changed.targets();
        targets.as_deref().map_or(Ok(()), Group::check_targets)?;
        // Those that leave do so with the new delay.
        self.group.reconfigure(now, config.group.clone())?;
        if let Some(targets) = targets {
            self.group.set_targets(now, &targets)?;
        }
        self.sources = changed;
        self.admission.reconfigure(config.limits.clone())?;
        self.config = config;
        Ok(())
    }

    /// Takes no more connections; those that there are may go on for their deregistration delay.
    pub fn retire(&mut self, now: Instant) {
        self.sources = Sources::new(&[], &[]);
        // No target at all is never wrong.
        let _ = self.group.set_targets(now, &[]);
    }

    /// Takes in what a source of targets has said.
    pub fn handle_found(
        &mut self,
        now: Instant,
        source: &Source,
        found: Result<Vec<SocketAddr>, DiscoverError>,
    ) {
        self.sources.follow(now, &self.config.name, &mut self.group, source, found);
    }

    /// Whether there is no target left, with its last connection.
    #[must_use]
    pub fn is_empty(&self, now: Instant) -> bool {
        self.group.snapshot(now).targets.is_empty()
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.admission.counters().open
    }

    /// What it is configured to do.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The target of a new connection of `client`: another than `avoid`, if another serves. It counts as open until
    /// [`Self::handle_closed`].
    ///
    /// # Errors
    /// Why there is none.
    pub fn select(
        &mut self,
        now: Instant,
        client: SocketAddr,
        avoid: Option<SocketAddr>,
    ) -> Result<SocketAddr, Refused> {
        self.admission.admit(now, client.ip()).map_err(|_| Refused::NotAdmitted)?;
        let other = avoid.and_then(|avoid| self.group.select(now, client, &[avoid]));
        let Some(target) = other.or_else(|| self.group.select(now, client, &[])) else {
            self.admission.release();
            self.counters.unserved += 1;
            return Err(Refused::NoTarget);
        };
        self.answers.entry(target).or_default().half_open += 1;
        Ok(target)
    }

    /// Whether a client is kept out by nothing but the number of connections.
    #[must_use]
    pub fn is_full_for(&self, client: IpAddr) -> bool {
        self.admission.is_full_for(client)
    }

    /// The target has taken a connection, or has not: once of each.
    pub fn handle_answer(&mut self, now: Instant, target: SocketAddr, answer: Result<(), CheckError>) {
        if let Some(answers) = self.answers.get_mut(&target) {
            answers.half_open = answers.half_open.saturating_sub(1);
            match answer {
                Ok(()) => answers.accepted += 1,
                Err(CheckError::TimedOut) => answers.silent += 1,
                Err(_) => {}
            }
        }
        // Silence may be the client's doing: a target ignores what is malformed, or comes from whom it does not admit.
        if answer != Err(CheckError::TimedOut) {
            self.group.handle_connect(now, target, answer);
        }
    }

    /// A connection has ended, of which [`Self::handle_answer`] was told if `is_answered`; without `how` it has not come
    /// to be.
    pub fn handle_closed(&mut self, now: Instant, target: SocketAddr, is_answered: bool, how: Option<Relayed>) {
        self.admission.release();
        self.group.closed(now, target);
        if let Some(answers) = self.answers.get_mut(&target)
            && !is_answered
        {
            answers.half_open = answers.half_open.saturating_sub(1);
        }
        if let Some(how) = how {
            self.counters.add(how);
        }
    }

    /// Takes a target out of service, or back into it; `false` if there is none of this address.
    #[must_use]
    pub fn set_draining(&mut self, now: Instant, target: SocketAddr, draining: bool) -> bool {
        if draining { self.group.drain(now, target) } else { self.group.undrain(now, target) }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.group.handle_timeout(now);
    }

    /// When [`Self::handle_timeout`] and [`Self::poll_errand`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.group.poll_timeout()
    }

    /// The next probe that is due.
    pub fn poll_errand(&mut self, now: Instant) -> Option<Errand> {
        let probe = self.group.poll_probe(now)?;
        Some(Errand { probe, check: self.config.check.clone(), timeout: self.config.group.health.timeout })
    }

    /// Takes in what a probe has found; nothing, if it could not be made.
    pub fn handle_probe(&mut self, now: Instant, id: ProbeId, result: Result<Option<()>, CheckError>) {
        match result {
            Ok(Some(())) => self.group.handle_probe(now, id, Ok(())),
            Ok(None) => self.group.abandon_probe(id),
            Err(error) => self.group.handle_probe(now, id, Err(error)),
        }
    }

    /// Takes note of how long a check took that passed.
    pub fn observe_check(&mut self, took: Duration) {
        self.check_latency.observe(took);
    }

    /// The next target whose connections are to be ended.
    pub fn poll_close(&mut self) -> Option<SocketAddr> {
        self.group.poll_close().map(|Close { target, .. }| target)
    }

    /// Whether something has happened that is to be told, or done.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.group.has_events()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.group.poll_event()?;
        if let Event::Removed { target } = event {
            self.answers.remove(&target);
        }
        Some(event)
    }

    /// What is to be seen now. Bytes are those of connections that have ended.
    #[must_use]
    pub fn report(&self, now: Instant) -> Report {
        let group = self.group.snapshot(now);
        Report {
            name: self.config.name.clone(),
            listen: self.config.listen,
            mode: self.config.mode,
            counters: self.counters,
            admission: self.admission.counters(),
            half_open: group.targets.iter().filter_map(|target| self.half_open(target)).collect(),
            group,
            check_latency: self.check_latency,
            connect_latency: Latency::default(),
            tls: None,
            sources: self.sources.reports(),
        }
    }

    fn half_open(&self, target: &TargetSnapshot) -> Option<HalfOpen> {
        let Answers { half_open, accepted, silent } = *self.answers.get(&target.address)?;
        let checks_pass = target.counters.probes > target.counters.probes_failed;
        let astray = accepted == 0 && silent > 0 && (checks_pass || target.state == State::Healthy);
        (half_open + u32::from(silent > 0) > 0).then_some(HalfOpen {
            target: target.address,
            half_open,
            unanswered: silent,
            astray,
        })
    }
}
