//! Connections that do not come about: why, how often, and a line in the log now and then.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::preamble::{Fault, Verdict};
use super::sealed::FrameError;

/// Why a connection was not made a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// This side refuses it.
    Fault(Fault),
    /// The other side says that it refuses it; anybody on the way can say so.
    Told(Fault),
    /// It did not say who it is in time.
    Late,
    /// It ended before it said who it is.
    Ended,
    /// Too many others said nothing either.
    Crowded,
}

/// All refusals of this instance.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<&'static str, Noted>>);

#[derive(Debug, Default)]
struct Noted {
    count: u64,
    logged: Option<Instant>,
    since_logged: u64,
}

impl Refusal {
    /// A name for counters.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.label(),
            Self::Told(_) => "by_peer",
            Self::Late => "late",
            Self::Ended => "ended",
            Self::Crowded => "crowded",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::Told(fault) => write!(f, "says of this instance that it {fault}"),
            Self::Late => f.write_str("did not introduce itself in time"),
            Self::Ended => f.write_str("ended the connection without introducing itself"),
            Self::Crowded => f.write_str("gave way to others, having said nothing yet"),
        }
    }
}

impl From<Verdict> for Refusal {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Found(fault) => Self::Fault(fault),
            Verdict::Told(fault) => Self::Told(fault),
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Of a frame of the handshake.
impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) if error.kind() == io::ErrorKind::TimedOut => Self::Late,
            FrameError::Io(_) => Self::Ended,
            FrameError::Unverified => Self::Fault(Fault::Key),
            FrameError::TooLong => Self::Fault(Fault::NotEgret),
        }
    }
}

impl Refusals {
    /// Counts it, and logs it unless its like was logged a moment ago: whoever can connect could fill the log.
    pub(super) fn note(&self, address: SocketAddr, peer: Option<&str>, refusal: Refusal) {
        let mut all = self.lock();
        let noted = all.entry(refusal.label()).or_default();
        noted.count += 1;
        if noted.logged.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            noted.since_logged += 1;
            return;
        }
        noted.logged = Some(Instant::now());
        let unlogged = std::mem::take(&mut noted.since_logged);
        drop(all);
        let peer = peer.unwrap_or("unknown");
        match refusal {
            // Strangers, who may be port scanners: nothing that has to be done.
            Refusal::Late | Refusal::Ended | Refusal::Crowded => {
                tracing::info!(peer, %address, reason = %refusal, unlogged, "peer link refused");
            }
            _ => tracing::warn!(peer, %address, reason = %refusal, unlogged, "peer link refused"),
        }
    }

    /// How often, by [`Refusal::label`].
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().iter().map(|(label, noted)| (*label, noted.count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Noted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between two lines of the same kind.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
