//! Targets that are known by a name, and followed: who is asked for them, when, and how often.
//!
//! Asking is a [`Discover`]'s: [`super::Resolver`] asks DNS. What comes of it, [`super::sources`] keeps: an answer
//! replaces the one before, and a failure replaces nothing. A source that fails is asked again at growing intervals.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Where targets are found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Every IPv4 address of a name, at one port.
    Dns { name: String, port: u16 },
}

/// As the configuration has it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns { name, port } => write!(f, "dns:{name}:{port}"),
        }
    }
}

/// A source, and what its targets are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    pub source: Source,
    /// Of each target.
    pub weight: u16,
    pub backup: bool,
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub addresses: Vec<SocketAddr>,
    /// When to ask again. It is kept within [`SOONEST`] and [`LATEST`].
    pub valid_for: Duration,
}

/// Why a source says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    #[error("there is no such name")]
    NoSuchName,
    #[error("it has no IPv4 address")]
    NoAddress,
    #[error("no answer in time")]
    TimedOut,
    #[error("{0}")]
    Failed(String),
}

/// Finds the targets of sources. Asking again is not its business, nor is waiting for ever: it is given up after
/// some seconds.
pub trait Discover: fmt::Debug + Send + Sync {
    /// What the source says now.
    fn find<'a>(&'a self, source: &'a Source) -> Finding<'a>;
}

/// Of [`Discover::find`].
pub type Finding<'a> = Pin<Box<dyn Future<Output = Result<Found, DiscoverError>> + Send + 'a>>;

/// Who is told what a source has said.
pub type Tell = Arc<dyn Fn(&Source, Result<Vec<SocketAddr>, DiscoverError>) + Send + Sync>;

/// The tasks that follow the sources of one listener. They end with it.
#[derive(Debug)]
pub struct Followers {
    discover: Arc<dyn Discover>,
    tasks: Mutex<BTreeMap<Source, AbortHandle>>,
}

impl Followers {
    /// Follows none yet.
    #[must_use]
    pub fn new(discover: Arc<dyn Discover>) -> Self {
        Self { discover, tasks: Mutex::default() }
    }

    /// Follows these from now on, and no others. Needs a tokio runtime.
    pub fn follow(&self, followed: &[Followed], tell: &Tell) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|source, task| {
            let wanted = followed.iter().any(|followed| followed.source == *source);
            if !wanted {
                task.abort();
            }
            wanted
        });
        for Followed { source, .. } in followed {
            tasks.entry(source.clone()).or_insert_with(|| {
                let (discover, tell) = (Arc::clone(&self.discover), Arc::clone(tell));
                tokio::spawn(follow(discover, source.clone(), tell)).abort_handle()
            });
        }
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            task.abort();
        }
    }
}

/// Asks one source for ever.
async fn follow(discover: Arc<dyn Discover>, source: Source, tell: Tell) {
    let mut next_try = SOONEST;
    loop {
        let found = timeout(PATIENCE, discover.find(&source)).await.unwrap_or(Err(DiscoverError::TimedOut));
        let wait = match &found {
            Ok(Found { valid_for, .. }) => {
                next_try = SOONEST;
                (*valid_for).clamp(SOONEST, LATEST)
            }
            Err(_) => {
                let wait = next_try;
                next_try = (next_try * 2).min(LATEST_TRY);
                wait
            }
        };
        tell(&source, found.map(|found| found.addresses));
        sleep(wait).await;
    }
}

/// However soon an answer is out of date, this passes before the next question.
pub const SOONEST: Duration = Duration::from_secs(1);
/// However long an answer holds: names that move are looked at by then.
pub const LATEST: Duration = Duration::from_secs(300);
/// The longest wait after a failure.
const LATEST_TRY: Duration = Duration::from_secs(60);
/// For all attempts of one question.
const PATIENCE: Duration = Duration::from_secs(15);
