//! A target group at work: its probes are made, its events logged, and its connections closed when it says so.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, sleep_until};

use super::discover::{DiscoverError, Followed, Source};
use super::latency::Latency;
use super::probe::Check;
use super::reactor;
use super::sources::{SourceReport, Sources};
use crate::balance::{
    self, CheckError, Close, ConfigError, Event, Group, Probe, ProbeId, Serving, Snapshot, State, Target,
};
use crate::time::Instant;

/// See the module. Shared by the connections of a listener and the task that runs [`Self::follow`].
#[derive(Debug)]
pub(super) struct TargetGroup {
    /// As log lines have it.
    name: String,
    /// What [`Instant::ORIGIN`] is.
    origin: Clock,
    inner: Mutex<Inner>,
    /// There may be something due.
    wake: Notify,
}

#[derive(Debug)]
struct Inner {
    group: Group,
    sources: Sources,
    check: Check,
    timeout: Duration,
    check_latency: Latency,
    /// By target: what its connections are told by when they are to be closed.
    cuts: HashMap<SocketAddr, watch::Sender<()>>,
    /// See [`TargetGroup::close`].
    closed: bool,
}

/// What became of a probe, and how long it took.
type Probed = (ProbeId, Result<Option<()>, CheckError>, Duration);

/// A connection's claim on a target, from the choice until it is dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    group: &'a TargetGroup,
    pub(super) target: SocketAddr,
    cut: watch::Receiver<()>,
}

impl TargetGroup {
    /// # Errors
    /// What is wrong with the configuration or the targets.
    pub(super) fn new(
        name: &str,
        config: balance::Config,
        check: Check,
        sources: Sources,
        seed: [u8; 16],
    ) -> Result<Self, ConfigError> {
        let timeout = config.health.timeout;
        let mut group = Group::new(config, seed)?;
        if let Some(targets) = sources.targets() {
            group.set_targets(Instant::ORIGIN, &targets)?;
        }
        let (check_latency, cuts) = (Latency::default(), HashMap::new());
        let inner = Inner { group, sources, check, timeout, check_latency, cuts, closed: false };
        Ok(Self { name: name.to_owned(), origin: Clock::now(), inner: Mutex::new(inner), wake: Notify::new() })
    }

    /// Changes how targets are checked and chosen, and who they are.
    ///
    /// # Errors
    /// What is wrong; then nothing has changed.
    pub(super) fn reconfigure(
        &self,
        config: balance::Config,
        check: Check,
        targets: &[Target],
        followed: &[Followed],
    ) -> Result<(), ConfigError> {
        let now = self.now();
        let mut inner = self.lock();
        let Inner { group, sources, .. } = &mut *inner;
        let timeout = config.health.timeout;
        config.validate()?;
        let changed = sources.changed(targets, followed);
        let targets = changed.targets();
        targets.as_deref().map_or(Ok(()), Group::check_targets)?;
        // Those that leave do so with the new delay.
        group.reconfigure(now, config)?;
        if let Some(targets) = targets {
            group.set_targets(now, &targets)?;
        }
        *sources = changed;
        (inner.check, inner.timeout) = (check, timeout);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes in what a source has said.
    pub(super) fn found(&self, source: &Source, found: Result<Vec<SocketAddr>, DiscoverError>) {
        let now = self.now();
        let mut inner = self.lock();
        let Inner { group, sources, .. } = &mut *inner;
        if sources.follow(now, &self.name, group, source, found) {
            self.wake.notify_one();
        }
    }

    /// A target for a connection of `client` that has tried those in `exclude` in vain.
    pub(super) fn claim(&self, client: SocketAddr, exclude: &[SocketAddr]) -> Option<Claim<'_>> {
        let now = self.now();
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        let target = inner.group.select(now, client, exclude)?;
        let cut = inner.cuts.entry(target).or_insert_with(|| watch::Sender::new(())).subscribe();
        Some(Claim { group: self, target, cut })
    }

    /// Takes a target out of service, or back into it; `false` if there is none of this address.
    pub(super) fn set_draining(&self, target: SocketAddr, draining: bool) -> bool {
        let now = self.now();
        let mut inner = self.lock();
        let known = if draining { inner.group.drain(now, target) } else { inner.group.undrain(now, target) };
        self.wake.notify_one();
        known
    }

    /// Has all connections closed, and gives no target any more.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        for cut in inner.cuts.values() {
            cut.send_replace(());
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let now = self.now();
        self.lock().group.snapshot(now)
    }

    /// Of those that passed.
    pub(super) fn check_latency(&self) -> Latency {
        self.lock().check_latency
    }

    pub(super) fn sources(&self) -> Vec<SourceReport> {
        self.lock().sources.reports()
    }

    /// What has been given to the clients for now.
    pub(super) fn now(&self) -> Instant {
        let since = reactor::now().saturating_duration_since(self.origin);
        Instant::from_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Makes the probes, for ever.
    pub(super) async fn follow(&self) {
        let mut probes = JoinSet::new();
        loop {
            let due = self.turn(&mut probes);
            tokio::select! {
                () = self.wake.notified() => {}
                () = until(due.map(|due| self.origin + due.saturating_since(Instant::ORIGIN))) => {}
                Some(Ok((id, result, took))) = probes.join_next() => self.answered(id, result, took),
            }
        }
    }

    /// Does all that is due, and gives when the next is.
    fn turn(&self, probes: &mut JoinSet<Probed>) -> Option<Instant> {
        let now = self.now();
        let mut inner = self.lock();
        let Inner { group, check, timeout, cuts, .. } = &mut *inner;
        group.handle_timeout(now);
        while let Some(Probe { id, target, .. }) = group.poll_probe(now) {
            let (check, timeout) = (check.clone(), *timeout);
            probes.spawn(async move {
                let start = Clock::now();
                let result = check.ask(target, timeout).await;
                (id, result, start.elapsed())
            });
        }
        while let Some(Close { target, .. }) = group.poll_close() {
            if let Some(cut) = cuts.get(&target) {
                cut.send_replace(());
            }
        }
        while let Some(event) = group.poll_event() {
            if let Event::Removed { target } = event {
                cuts.remove(&target);
            }
            log(&self.name, event);
        }
        group.poll_timeout()
    }

    fn answered(&self, id: ProbeId, result: Result<Option<()>, CheckError>, took: Duration) {
        let now = self.now();
        let mut inner = self.lock();
        match result {
            Ok(Some(())) => {
                inner.check_latency.observe(took);
                inner.group.handle_probe(now, id, Ok(()));
            }
            Err(error) => inner.group.handle_probe(now, id, Err(error)),
            Ok(None) => {
                tracing::warn!(
                    listener = self.name,
                    "health check could not be made: this host is short of something"
                );
                inner.group.abandon_probe(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// Tells how connecting went.
    pub(super) fn connected(&self, result: Result<(), CheckError>) {
        self.tell(|group, now| group.handle_connect(now, self.target, result));
    }

    /// Ends when the connection is to be closed.
    pub(super) async fn is_cut(&mut self) {
        // The sender goes when the target is gone, with its last connection.
        let _ = self.cut.changed().await;
    }

    /// Most of what connections tell has no consequences, and then nobody is woken.
    fn tell(&self, tell: impl FnOnce(&mut Group, Instant)) {
        let now = self.group.now();
        let mut inner = self.group.lock();
        tell(&mut inner.group, now);
        if inner.group.has_events() {
            self.group.wake.notify_one();
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.tell(|group, now| group.closed(now, self.target));
    }
}

async fn until(due: Option<Clock>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Logs an event of a group.
pub fn log(listener: &str, event: Event) {
    match event {
        Event::Added { target } => tracing::debug!(listener, %target, "target added"),
        Event::Removed { target } => tracing::debug!(listener, %target, "target removed"),
        Event::StateChanged { target, from, to: State::Unhealthy(why) } => {
            tracing::warn!(listener, %target, from = from.label(), %why, "target unhealthy");
        }
        Event::StateChanged { target, from, to } => {
            tracing::info!(listener, %target, from = from.label(), to = to.label(), "target changed");
        }
        Event::ServingChanged { to: Serving::FailOpen, .. } => {
            tracing::error!(listener, "all targets are unhealthy: all of them get connections (fail-open)");
        }
        Event::ServingChanged { to: Serving::Nobody, .. } => {
            tracing::error!(listener, "no target is left: connections are refused");
        }
        Event::ServingChanged { from, to } => tracing::info!(listener, ?from, ?to, "who serves has changed"),
    }
}
