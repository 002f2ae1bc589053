//! What the cloud around this host tells, as plain data that changes: nothing, unless AWS is switched on.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::Foreseen;
use super::gateways::Prepared;
use crate::admin::AwsReport;
use crate::config::{Aws, CloudFacts};
use crate::datapath::Interface;

/// A view of the cloud, kept up by tasks that end when this is dropped. The data plane waits for none of them.
#[derive(Debug)]
pub(super) struct Cloud {
    known: watch::Receiver<Known>,
    wanted: watch::Sender<Aws>,
    /// This instance is about to end.
    ending: watch::Sender<bool>,
    refresh: Arc<Notify>,
    _tasks: JoinSet<()>,
}

/// What everybody who calls the cloud's API counts their calls with. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    #[cfg(feature = "aws")]
    pub(super) calls: crate::aws::Calls,
}

/// What is known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Unset until the cloud has told.
    pub(super) facts: Option<CloudFacts>,
    /// One of each interface that forwards; none if there is no cloud.
    pub(super) checks: Vec<Check>,
    /// Addresses that the host has been given for the cloud's sake.
    pub(super) added: BTreeSet<Ipv4Addr>,
    /// Unset until the cloud's API has been asked.
    pub(super) report: Option<AwsReport>,
}

/// What the running configuration follows from; whatever else is known only shows.
pub(super) type Applied = (Option<CloudFacts>, BTreeSet<Ipv4Addr>);

/// The source/destination check of an interface; of two states, the greater one is the worse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "there is no other cloud"))]
pub(super) enum Check {
    Off,
    Unknown,
    Failed(String),
}

/// What [`Cloud::start`] would have done, once, and what the cloud tells.
#[cfg_attr(not(feature = "aws"), allow(clippy::unused_async, reason = "there is nobody to wait for"))]
pub(super) async fn foresee(
    wanted: &Aws,
    interfaces: (&Interface, &Interface),
) -> Result<(Foreseen, Option<CloudFacts>), Box<dyn std::error::Error + Send + Sync>> {
    #[cfg(feature = "aws")]
    if super::aws::is_on(wanted.enabled) {
        let (plan, facts) = super::aws::foresee(interfaces, wanted).await?;
        let foreseen = Foreseen {
            is_on: true,
            changes: plan.changes.iter().map(ToString::to_string).collect(),
            problems: plan.problems.iter().map(ToString::to_string).collect(),
        };
        return Ok((foreseen, facts));
    }
    #[cfg(not(feature = "aws"))]
    let _ = (wanted, interfaces);
    Ok((Foreseen::default(), None))
}

impl Cloud {
    /// Asks the cloud, if `wanted` says so, about the external and the internal interface. Takes some 5 s at most; what is
    /// not known by then comes later.
    #[cfg_attr(not(feature = "aws"), allow(clippy::unused_async, reason = "there is nobody to wait for"))]
    pub(super) async fn start(
        wanted: &Aws,
        interfaces: (&Interface, &Interface),
        counted: &Counted,
        failover: Option<Prepared>,
    ) -> Self {
        #[cfg(feature = "aws")]
        if super::aws::is_on(wanted.enabled) {
            return super::aws::start(interfaces, wanted, counted.calls.clone(), failover).await;
        }
        #[cfg(not(feature = "aws"))]
        let _ = (interfaces, counted);
        if failover.is_some() {
            tracing::warn!("failover needs AWS, which is not asked: this instance is in no fleet");
        }
        let (_, known) = watch::channel(Known::default());
        let wishes = (watch::Sender::new(wanted.clone()), watch::Sender::new(false));
        Self::new(known, wishes, Arc::default(), JoinSet::new())
    }

    /// With tasks that send what they know, see to what is wanted, and ask again when notified.
    pub(super) fn new(
        known: watch::Receiver<Known>,
        (wanted, ending): (watch::Sender<Aws>, watch::Sender<bool>),
        refresh: Arc<Notify>,
        tasks: JoinSet<()>,
    ) -> Self {
        Self { known, wanted, ending, refresh, _tasks: tasks }
    }

    pub(super) fn applied(&self) -> Applied {
        let known = self.known.borrow();
        (known.facts.clone(), known.added.clone())
    }

    pub(super) fn report(&self) -> Option<AwsReport> {
        self.known.borrow().report.clone()
    }

    /// Has it see to this from now on.
    pub(super) fn want(&self, wanted: &Aws) {
        self.wanted.send_if_modified(|current| {
            let is_new = current != wanted;
            current.clone_from(wanted);
            is_new
        });
    }

    /// Has it take nothing any more, since this instance is about to end, or take it again.
    pub(super) fn set_ending(&self, is_ending: bool) {
        self.ending.send_if_modified(|ending| std::mem::replace(ending, is_ending) != is_ending);
    }

    /// As the status shows it.
    pub(super) fn source_dest_check(&self) -> Option<String> {
        self.known.borrow().checks.iter().max().map(ToString::to_string)
    }

    /// Whether all that was to be done for this host is done; so it is if there is no cloud.
    /// `in_fleet`: its addresses and routes are not the cloud's business, but [`super::gateways`]'.
    pub(super) fn is_in_place(&self, in_fleet: bool) -> bool {
        let (known, wanted) = (self.known.borrow(), self.wanted.borrow());
        let alone = !in_fleet && !wanted.elastic_ips.is_empty();
        let elastic_ips = if alone { wanted.elastic_ip_count } else { 0 };
        let is_as_wanted = |report: &AwsReport| {
            report.problems.is_empty()
                && report.failures.is_empty()
                && report.elastic_ips.len() >= elastic_ips
                && report.routes.iter().all(|route| route.state == "active")
        };
        known.checks.iter().all(|check| *check == Check::Off)
            && (known.checks.is_empty() || known.report.as_ref().is_some_and(is_as_wanted))
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
            let (_, known) = watch::channel(Known { checks: checks.to_vec(), ..Known::default() });
            let wishes = (watch::Sender::new(Aws::default()), watch::Sender::new(false));
            Cloud::new(known, wishes, Arc::default(), JoinSet::new()).source_dest_check()
        };
        let failed = Check::Failed("why".to_owned());
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[Check::Off, Check::Off]).as_deref(), Some("off"));
        assert_eq!(shown(&[Check::Unknown, Check::Off]).as_deref(), Some("unknown"));
        assert_eq!(shown(&[failed, Check::Unknown]).as_deref(), Some("failed: why"));
    }
}
