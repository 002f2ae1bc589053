//! When to look at EC2: at once when something has happened, then at growing intervals, and for ever.

use std::time::Duration;

use super::action::CallId;
use super::config::Timing;
use super::out::Out;
use crate::time::Instant;

/// The rhythm of observations. One is in flight at a time, and it covers all gateways.
#[derive(Debug)]
pub(super) struct Looks {
    at: Instant,
    /// The wait after the next one that succeeds.
    pace: Duration,
    /// With the time by which it has failed.
    in_flight: Option<(CallId, Instant)>,
    failures: u32,
    pub last: Option<Instant>,
}

impl Looks {
    pub const fn new(now: Instant) -> Self {
        Self { at: now, pace: Duration::ZERO, in_flight: None, failures: 0, last: None }
    }

    /// Something has happened: look as soon as may be. A look that is in flight may be too old to show it.
    pub fn hurry(&mut self, now: Instant, timing: &Timing) {
        self.pace = timing.retry;
        let soon = if self.failures > 0 { now + timing.retry } else { now };
        self.at = self.at.min(soon);
    }

    /// What is in flight does not count any more.
    pub const fn forget(&mut self) {
        self.in_flight = None;
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.in_flight.is_none() && self.at <= now
    }

    pub fn is_overdue(&self, now: Instant) -> bool {
        self.in_flight.is_some_and(|(_, until)| until <= now)
    }

    pub fn begin(&mut self, now: Instant, id: CallId, timing: &Timing) {
        self.in_flight = Some((id, now + timing.call_within));
        self.at = now + timing.observe_every * 2;
    }

    /// Whether this is the answer that is awaited.
    pub fn end(&mut self, id: CallId) -> bool {
        let is_it = self.in_flight.is_some_and(|(in_flight, _)| in_flight == id);
        if is_it {
            self.in_flight = None;
        }
        is_it
    }

    pub fn succeeded(&mut self, now: Instant, timing: &Timing, is_settled: bool, out: &mut Out) {
        self.failures = 0;
        self.last = Some(now);
        let most = if is_settled { timing.observe_every } else { timing.observe_every.min(timing.retry * 10) };
        self.pace = self.pace.clamp(timing.retry, most.max(timing.retry));
        self.at = self.at.min(now + out.jitter(self.pace));
        self.pace = self.pace.saturating_mul(2);
    }

    pub fn failed(&mut self, now: Instant, timing: &Timing, out: &mut Out) {
        self.in_flight = None;
        self.failures += 1;
        let wait = out.backoff(timing.retry, timing.max_retry, self.failures);
        self.at = now + wait;
    }

    /// When something is to be done about it.
    pub fn timeout(&self) -> Instant {
        self.in_flight.map_or(self.at, |(_, until)| until)
    }
}
