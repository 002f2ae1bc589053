//! What is about to happen to this instance, and what follows from that: if it is sure to end, forwarding drains, and no
//! route or Elastic IP is taken any more.
//!
//! Nothing is told unless AWS is switched on. Gateways are offered to peers; NAT goes on until the very end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::interval;

use super::cloud::Counted;
use super::forwarding::Forwarding;
use super::gateways::Gateways;
use super::services::Control;
use super::{Running, TICK};
use crate::admin::NoticeReport;
use crate::config::Aws;
use crate::datapath::Handle;

/// Notices of what is coming, kept up by tasks that end when this is dropped, and told how far the daemon is.
#[derive(Debug)]
pub(super) struct Outlook {
    coming: watch::Receiver<Vec<NoticeReport>>,
    progress: watch::Sender<Progress>,
    _tasks: JoinSet<()>,
}

/// How far the daemon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// It has been ready, with all that AWS was to do for it done.
    pub(super) in_service: bool,
    /// It ends, and forwarding has drained.
    pub(super) drained: bool,
}

impl Outlook {
    /// Begins to look out, if AWS is on.
    pub(super) fn start(aws: &Aws, counted: &Counted) -> Self {
        #[cfg(feature = "aws")]
        if super::aws::is_on(aws.enabled) {
            return super::instance::start(&aws.hooks, counted.calls.clone());
        }
        #[cfg(not(feature = "aws"))]
        let _ = (aws, counted);
        Self::new(watch::Sender::default().subscribe(), watch::Sender::default(), JoinSet::new())
    }

    /// With tasks that send what is coming, and look at the progress.
    pub(super) fn new(
        coming: watch::Receiver<Vec<NoticeReport>>,
        progress: watch::Sender<Progress>,
        tasks: JoinSet<()>,
    ) -> Self {
        Self { coming, progress, _tasks: tasks }
    }

    /// Changes from now on; it is closed if nobody looks out.
    pub(super) fn watch(&self) -> watch::Receiver<Vec<NoticeReport>> {
        self.coming.clone()
    }

    /// The daemon is of use from now on.
    pub(super) fn in_service(&self) {
        self.progress.send_if_modified(|progress| !std::mem::replace(&mut progress.in_service, true));
    }
}

impl Running {
    /// Tells of what is coming, and drains forwarding if that is the end, or takes it up again if the end does not come.
    pub(super) async fn follow_outlook(&mut self) {
        let coming = self.outlook.coming.borrow().clone();
        let known = std::mem::take(&mut self.coming);
        for NoticeReport { kind, detail, at, .. } in coming.iter().filter(|notice| !known.contains(notice)) {
            tracing::warn!(kind, detail, at_unix_seconds = at, "notice of what happens to this instance");
        }
        for NoticeReport { kind, detail, .. } in known.iter().filter(|notice| !coming.contains(notice)) {
            tracing::info!(kind, detail, "notice is withdrawn");
        }
        let ends = coming.iter().any(|notice| notice.end);
        self.coming = coming;
        self.cloud.set_ending(ends);
        match (ends, self.draining.is_some()) {
            (true, false) => {
                tracing::warn!(
                    "this instance is about to end: gateways are offered to peers; listeners take no more connections, \
                     those that there are may go on for a while, and so does nat"
                );
                self.gateways.leave(true).await;
                let drained = drain(self.forwarding.clone(), self.services.clone());
                let (progress, gateways) = (self.outlook.progress.clone(), self.gateways.clone());
                self.draining = Some(tokio::spawn(async move {
                    tokio::join!(drained, gateways.left());
                    tracing::info!("forwarding has drained");
                    progress.send_modify(|progress| progress.drained = true);
                }));
            }
            (false, true) => {
                tracing::warn!("this instance does not end after all: listeners take connections again");
                // Connections that still drain end in their own time, and nobody is told of it any more.
                if let Some(begun) = self.draining.take() {
                    begun.abort();
                    let _ = begun.await;
                }
                self.gateways.leave(false).await;
                self.outlook.progress.send_modify(|progress| progress.drained = false);
                if let Err(problems) = self.adopt(self.config.clone()).await {
                    for problem in problems {
                        tracing::error!(problem, "listeners not opened again");
                    }
                }
            }
            _ => {}
        }
        self.description.send_modify(|description| {
            description.notices.clone_from(&self.coming);
            description.draining = self.draining.is_some();
        });
    }

    /// Hands gateways over, takes no more connections, and waits for those that there are to end, but not any longer at a
    /// second signal.
    pub(super) async fn leave(&mut self, again: impl Future<Output = ()>) {
        self.gateways.leave(true).await;
        let begun = self.draining.take().filter(|begun| !begun.is_finished());
        let seconds = grace(&self.forwarding, &self.services).await.as_secs_f64();
        if begun.is_some() || seconds > 0.0 {
            tracing::info!(seconds, "waiting for forwarded connections to end; a second signal ends them");
        }
        let drained = drain(self.forwarding.clone(), self.services.clone());
        let gateways = self.gateways.clone();
        tokio::select! {
            () = async {
                tokio::join!(drained, gateways.left());
                end_of(begun).await;
            } => {}
            () = again => self.forwarding.cut().await,
            () = still_ready(self.handle.clone(), self.gateways.clone()) => {}
        }
    }
}

/// Goes on telling that packets flow, as they do until the end: a peer that heard otherwise would take gateways that are
/// about to be handed over. Never ends.
async fn still_ready(handle: Handle, gateways: Gateways) {
    let mut ticks = interval(TICK);
    loop {
        ticks.tick().await;
        gateways.set_ready(handle.snapshot().await.is_ok_and(|snapshot| snapshot.not_ready.is_empty()));
    }
}

async fn end_of(begun: Option<JoinHandle<()>>) {
    if let Some(begun) = begun {
        // It does not panic, and whoever cancels it has taken it.
        let _ = begun.await;
    }
}

/// Takes no more connections, and waits for those that there are to end: each for its listener's deregistration delay at
/// most.
async fn drain(forwarding: Forwarding, services: Control) {
    tokio::join!(forwarding.stop(), services.stop());
}

/// How long that takes at most, but for connections that are on their way; nothing, if there are none.
async fn grace(forwarding: &Forwarding, services: &Control) -> Duration {
    forwarding.grace().max(services.grace().await.unwrap_or_default())
}
