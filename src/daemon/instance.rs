//! AWS as an [`Outlook`]: the notices of this instance, and its part in the lifecycle of its Auto Scaling group.

use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::outlook::{Outlook, Progress};
use super::with_causes;
use crate::admin::NoticeReport;
use crate::aws::{self, Calls, Imds, Instance, Lifecycle, Notice, Notices, Proceeded, Transition, Waits};
use crate::config::Hooks;

/// Starts the tasks.
pub(super) fn start(hooks: &Hooks, calls: Calls) -> Outlook {
    let imds = Imds::new();
    let notices = Notices::new(imds.clone(), EVERY);
    let told = notices.told();
    let (coming, receiver) = watch::channel(Vec::new());
    let progress = watch::Sender::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(tell(told.clone(), coming));
    if *hooks != Hooks::default() {
        tasks.spawn(take_part(imds, hooks.clone(), calls, told, progress.subscribe()));
    }
    tasks.spawn(notices.run());
    Outlook::new(receiver, progress, tasks)
}

/// Passes notices on, as the daemon has them.
async fn tell(mut told: watch::Receiver<Vec<Notice>>, coming: watch::Sender<Vec<NoticeReport>>) {
    while told.changed().await.is_ok() {
        let reports = told.borrow_and_update().iter().map(report).collect();
        coming.send_replace(reports);
    }
}

fn report(notice: &Notice) -> NoticeReport {
    let since_1970 =
        |at: std::time::SystemTime| at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    NoticeReport {
        kind: notice.label().to_owned(),
        detail: notice.detail().map(str::to_owned),
        at: notice.at().and_then(since_1970),
        end: notice.is_the_end(),
    }
}

/// Completes the lifecycle actions that wait for the daemon to be of use, and to have drained.
async fn take_part(
    imds: Imds,
    hooks: Hooks,
    calls: Calls,
    mut told: watch::Receiver<Vec<Notice>>,
    progress: watch::Receiver<Progress>,
) {
    let Instance { id, region, .. } = find(&imds).await;
    let config = aws::sdk_config(&region).await;
    let lifecycle = Lifecycle::new(&config, &id, calls, Waits::default());
    let launching = async {
        let Some(hook) = &hooks.launching else { return };
        if progress.clone().wait_for(|progress| progress.in_service).await.is_ok() {
            say(hook, lifecycle.proceed(Transition::Launching, hook).await);
        }
    };
    let terminating = async {
        let Some(hook) = &hooks.terminating else { return };
        let is_told = told.wait_for(|told| told.contains(&Notice::Termination)).await.is_ok();
        if is_told && progress.clone().wait_for(|progress| progress.drained).await.is_ok() {
            say(hook, lifecycle.proceed(Transition::Terminating, hook).await);
        }
    };
    tokio::join!(launching, terminating);
}

/// A completed action has a line of its own.
fn say(hook: &str, proceeded: Proceeded) {
    if proceeded == Proceeded::NothingWaits {
        tracing::info!(hook, "no lifecycle action waits for this instance");
    }
}

/// Asks until it is told.
async fn find(imds: &Imds) -> Instance {
    let mut wait = RETRY;
    loop {
        match imds.instance().await {
            Ok(instance) => return instance,
            Err(error) => tracing::debug!(error = with_causes(&error), "instance not known"),
        }
        sleep(wait).await;
        wait = (wait * 2).min(LATEST_RETRY);
    }
}

/// As often as AWS recommends, of an answer that comes from the host beside.
const EVERY: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(250);
const LATEST_RETRY: Duration = Duration::from_mins(1);
