//! What a target group tells the rest of Egret: probes to make, connections to close, events, and snapshots.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::time::Instant;

/// How a target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "why", rename_all = "snake_case")]
pub enum State {
    /// Not judged yet. Serves only if nobody is healthy.
    Initial,
    Healthy,
    /// Serves only if all are unhealthy.
    Unhealthy(Why),
    /// Gets no new connections; those that it has may go on for the deregistration delay.
    Draining,
    /// Out of service on request, and without connections.
    Drained,
}

impl State {
    /// Without the reason, in snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Healthy => "healthy",
            Self::Unhealthy(_) => "unhealthy",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// Why a target is unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(into = "String")]
pub enum Why {
    #[error("health check: {0}")]
    HealthCheck(CheckError),
    /// Clients' connections could not be made.
    #[error("connect: {0}")]
    Connect(CheckError),
}

impl From<Why> for String {
    fn from(why: Why) -> Self {
        why.to_string()
    }
}

/// What was wrong with a target. That the own host could not ask (no descriptor, no memory) is no such error:
/// nothing was learned then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CheckError {
    #[error("connection refused")]
    Refused,
    #[error("host or network unreachable")]
    Unreachable,
    #[error("timed out")]
    TimedOut,
    #[error("connection reset")]
    Reset,
    /// An HTTP status that the matcher does not take.
    #[error("HTTP status {0}")]
    Status(u16),
    #[error("the answer is not HTTP")]
    Malformed,
    #[error("TLS handshake failed")]
    Tls,
}

/// Who gets new connections: the first of these of which there is somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Serving {
    /// Healthy targets.
    Primaries,
    /// Healthy backups.
    Backups,
    /// Targets that no check has judged yet: a client that waits may find one of them well.
    Untried,
    /// The same of backups.
    UntriedBackups,
    /// All targets, since all are unhealthy.
    FailOpen,
    /// There is no target, or none with a weight.
    Nobody,
}

impl Serving {
    /// In snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Primaries => "primaries",
            Self::Backups => "backups",
            Self::Untried => "untried",
            Self::UntriedBackups => "untried_backups",
            Self::FailOpen => "fail_open",
            Self::Nobody => "nobody",
        }
    }
}

/// A check to make: connect to `target`, or ask as configured, and tell [`super::Group::handle_probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub id: ProbeId,
    pub target: SocketAddr,
    /// An answer after this is not waited for.
    pub deadline: Instant,
}

/// The name of a probe; each is given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbeId {
    pub(super) target: SocketAddr,
    pub(super) number: u64,
}

/// All connections of `target` are to be closed; [`super::Group::closed`] is told of each as ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    pub target: SocketAddr,
    pub cause: CloseCause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseCause {
    /// The target fails its checks: both sides are to be reset.
    Unhealthy,
    /// The deregistration delay has passed.
    Deregistered,
}

/// Something that changed. Each is told once, at the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new target, in [`State::Initial`].
    Added {
        target: SocketAddr,
    },
    StateChanged {
        target: SocketAddr,
        from: State,
        to: State,
    },
    /// A target that was removed has no connections left, and is forgotten.
    Removed {
        target: SocketAddr,
    },
    /// Others get new connections from now on; to [`Serving::FailOpen`] is what an operator must hear of.
    ServingChanged {
        from: Serving,
        to: Serving,
    },
}

/// A target group at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    pub serving: Serving,
    /// By address.
    pub targets: Vec<TargetSnapshot>,
    pub counters: Counters,
}

/// A target at one moment. Numbers count from when it was added.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TargetSnapshot {
    pub address: SocketAddr,
    pub weight: u16,
    pub backup: bool,
    #[serde(flatten)]
    pub state: State,
    /// Since the state was entered.
    #[serde(rename = "since_seconds", serialize_with = "seconds")]
    pub since: Duration,
    /// Open now, those that are being made among them.
    pub connections: u32,
    #[serde(flatten)]
    pub counters: TargetCounters,
}

/// What is counted of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TargetCounters {
    pub connections_opened: u64,
    pub connects_failed: u64,
    pub probes: u64,
    pub probes_failed: u64,
}

/// What is counted of a group. Plain numbers that only rise, but for the gauge at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Connections that were given a target, and of these by failing open, and by stickiness.
    pub selected: u64,
    pub selected_fail_open: u64,
    pub selected_sticky: u64,
    /// Connections for which there was no target.
    pub unserved: u64,
    /// Answers of probes that were waited for no more.
    pub probes_late: u64,
    /// Sticky clients forgotten for lack of room.
    pub clients_evicted: u64,
    /// Events that nobody fetched in time.
    pub events_lost: u64,
    /// Gauge: sticky clients.
    pub clients: usize,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
