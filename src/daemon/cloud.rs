//! What the cloud around this host tells, as plain data that changes: nothing, unless AWS is switched on.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::config::{CloudFacts, Resolved, Switch};

/// A view of the cloud, kept up by tasks that end when this is dropped. The data plane waits for none of them.
#[derive(Debug)]
pub(super) struct Cloud {
    known: watch::Receiver<Known>,
    refresh: Arc<Notify>,
    _tasks: JoinSet<()>,
}

/// What is known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Unset until the cloud has told.
    pub(super) facts: Option<CloudFacts>,
    /// One of each interface that forwards; none if there is no cloud.
    pub(super) checks: Vec<Check>,
}

/// The source/destination check of an interface; of two states, the greater one is the worse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "there is no other cloud"))]
pub(super) enum Check {
    Off,
    Unknown,
    Failed(String),
}

impl Cloud {
    /// Asks the cloud, if `switch` says so, about the interfaces of a configuration. Takes some 5 s at most; what is
    /// not known by then comes later.
    #[cfg_attr(not(feature = "aws"), allow(clippy::unused_async, reason = "there is nobody to wait for"))]
    pub(super) async fn start(switch: Switch, resolved: &Resolved) -> Self {
        #[cfg(feature = "aws")]
        if super::aws::is_on(switch) {
            return super::aws::start(&resolved.datapath).await;
        }
        #[cfg(not(feature = "aws"))]
        let _ = (switch, resolved);
        let (_, known) = watch::channel(Known::default());
        Self::new(known, Arc::default(), JoinSet::new())
    }

    /// With tasks that send what they know, and ask again when notified.
    pub(super) fn new(known: watch::Receiver<Known>, refresh: Arc<Notify>, tasks: JoinSet<()>) -> Self {
        Self { known, refresh, _tasks: tasks }
    }

    pub(super) fn facts(&self) -> Option<CloudFacts> {
        self.known.borrow().facts.clone()
    }

    /// As the status shows it.
    pub(super) fn source_dest_check(&self) -> Option<String> {
        self.known.borrow().checks.iter().max().map(ToString::to_string)
    }

    /// Whether all that was to be done for this host is done; so it is if there is no cloud.
    pub(super) fn is_in_place(&self) -> bool {
        self.known.borrow().checks.iter().all(|check| *check == Check::Off)
    }

    /// Changes from now on; without a cloud it is closed.
    pub(super) fn watch(&self) -> watch::Receiver<Known> {
        self.known.clone()
    }

    /// Has the cloud asked again, without waiting for it.
    pub(super) fn refresh(&self) {
        self.refresh.notify_waiters();
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Unknown => f.write_str("unknown"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_check_is_shown_and_none_without_a_cloud() {
        let shown = |checks: &[Check]| {
            let (_, known) = watch::channel(Known { facts: None, checks: checks.to_vec() });
            Cloud::new(known, Arc::default(), JoinSet::new()).source_dest_check()
        };
        let failed = Check::Failed("why".to_owned());
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[Check::Off, Check::Off]).as_deref(), Some("off"));
        assert_eq!(shown(&[Check::Unknown, Check::Off]).as_deref(), Some("unknown"));
        assert_eq!(shown(&[failed, Check::Unknown]).as_deref(), Some("failed: why"));
    }
}
