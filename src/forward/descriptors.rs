//! The process's descriptors (`RLIMIT_NOFILE`), so shared out that connections cannot take the last of them.
//!
//! A connection has two for as long as it lives, and further ones only while data waits in a pipe. A quarter of the limit
//! is kept back: for these pipes, for sockets that wait for their next connection, for health checks, for the control
//! socket and the packet worker.

use std::io;
use std::sync::Arc;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module.
#[derive(Debug)]
pub struct Descriptors {
    pairs: Arc<Semaphore>,
}

/// A connection's two descriptors: the client's and the target's.
#[derive(Debug)]
pub(super) struct Pair(#[allow(dead_code, reason = "what counts is when it is dropped")] OwnedSemaphorePermit);

impl Descriptors {
    /// As many as the process may have now.
    #[must_use]
    pub fn of_process() -> Self {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((FALLBACK, FALLBACK));
        Self::with_limit(soft)
    }

    /// As if the process could have `limit` of them.
    #[must_use]
    pub fn with_limit(limit: u64) -> Self {
        let pairs = limit.saturating_sub(limit / 4).min(MOST) / 2;
        Self { pairs: Arc::new(Semaphore::new(usize::try_from(pairs).unwrap_or(usize::MAX))) }
    }

    /// Lets the process have as many as it can without asking anybody.
    ///
    /// # Errors
    /// As setrlimit(2).
    pub fn raise() -> io::Result<()> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(())
    }

    /// Two of them, if there are two.
    pub(super) fn try_take(&self) -> Option<Pair> {
        Arc::clone(&self.pairs).try_acquire_owned().ok().map(Pair)
    }

    /// Two of them, as soon as there are two.
    pub(super) async fn take(&self) -> Pair {
        match Arc::clone(&self.pairs).acquire_owned().await {
            Ok(permit) => Pair(permit),
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Default for Descriptors {
    fn default() -> Self {
        Self::of_process()
    }
}

/// How many sockets a thread may keep for connections to come.
pub(super) fn most_spare() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((FALLBACK, FALLBACK));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    usize::try_from(soft / 16).map_or(MOST_SPARE, |all| (all / threads).clamp(1, MOST_SPARE))
}

/// What Linux gives a process where nobody says otherwise.
const FALLBACK: u64 = 1024;
/// As many connections as end while the end of one is acknowledged.
const MOST_SPARE: usize = 128;
/// "Unlimited" is a number too; connections of so many have other limits.
const MOST: u64 = 1 << 24;
