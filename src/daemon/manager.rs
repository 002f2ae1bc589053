//! What the service manager is told of this daemon, by `sd_notify(3)`: when packets flow, how it is in a line, and, as
//! long as the packet worker turns, that it lives.
//!
//! The packet worker's own beat decides: if it has not turned since the last time, no `WATCHDOG=1` is sent, however well
//! all else is, and the manager ends the daemon. What is told never keeps anything waiting, and where nobody listens
//! (no `NOTIFY_SOCKET`), nothing is told.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Source;
use crate::admin::{self, Description, Status};
use crate::datapath::Handle;

/// Tells the manager. Dropping it ends the beats.
#[derive(Debug, Default)]
pub(super) struct Manager {
    is_ready: bool,
    /// What the daemon's state does not show: a reload that failed, or that it stops.
    beside: watch::Sender<Option<String>>,
    beats: JoinSet<()>,
}

impl Manager {
    /// Begins with the beats. Needs a tokio runtime.
    pub(super) fn attend(&mut self, worker: Handle, source: Source, description: watch::Receiver<Description>) {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return;
        }
        let period = sd_notify::watchdog_enabled().map_or(PERIOD, |limit| limit / BEATS);
        self.beats.spawn(beat(worker, source, description, self.beside.subscribe(), period));
    }

    /// Packets flow. What becomes of that later is a matter of the status line.
    pub(super) fn ready(&mut self) {
        if !std::mem::replace(&mut self.is_ready, true) {
            tell(&[NotifyState::Ready]);
            self.beside.send_modify(|_| {});
        }
    }

    /// `SIGHUP` was taken.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) if self.is_ready => tell(&[NotifyState::Reloading, now]),
            // Its end would say that packets flow.
            _ => {}
        }
    }

    /// The reload is over; `failure` is why nothing has changed.
    pub(super) fn reloaded(&self, failure: Option<String>) {
        if self.is_ready {
            tell(&[NotifyState::Ready]);
        }
        self.beside.send_replace(failure.map(|failure| format!("not reloaded: {failure}")));
    }

    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
        self.beside.send_replace(Some("stopping".to_owned()));
    }
}

/// Why the daemon does not run, in the manager's status line.
pub(super) fn failed(error: &str) {
    tell(&[NotifyState::Status(&on_one_line(error))]);
}

/// Beats until it is aborted.
async fn beat(
    worker: Handle,
    source: Source,
    description: watch::Receiver<Description>,
    mut beside: watch::Receiver<Option<String>>,
    period: Duration,
) {
    let (mut pulse, mut is_stuck, mut shown) = (Pulse::default(), false, String::new());
    let mut beats = interval(period);
    // The worker has only just begun.
    beats.reset();
    beside.mark_changed();
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beats.tick() => {
                let was_stuck = std::mem::replace(&mut is_stuck, !pulse.is_felt(worker.turns()));
                if !is_stuck {
                    // As long as it turns, neither a start that waits for packets to flow nor a stop that waits for
                    // connections to end is cut off.
                    let more = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
                    tell(&[NotifyState::Watchdog, NotifyState::ExtendTimeoutUsec(more)]);
                } else if !was_stuck {
                    tracing::error!("the packet worker does not turn: the service manager is not told that it lives");
                }
                // However short the period is: it is to turn before the next look.
                worker.wake();
            }
            Ok(()) = beside.changed() => {}
        }
        let asked = admin::standing(source.clone(), description.clone());
        let status = timeout(period / 2, asked).await.ok().and_then(Result::ok);
        let line = line(status.as_ref(), beside.borrow_and_update().as_deref());
        if line != shown {
            tell(&[NotifyState::Status(&line)]);
            shown = line;
        }
    }
}

/// Whether something has turned between two looks at how often it has.
#[derive(Debug, Default)]
struct Pulse {
    seen: u64,
}

impl Pulse {
    fn is_felt(&mut self, turns: u64) -> bool {
        std::mem::replace(&mut self.seen, turns) != turns
    }
}

/// The status line.
fn line(status: Option<&Status>, beside: Option<&str>) -> String {
    let state = match status {
        None => "the packet worker does not answer".to_owned(),
        Some(Status { ready: false, not_ready, .. }) => format!("not ready: {}", not_ready.join("; ")),
        Some(Status { datapath, sessions, degraded, .. }) => {
            let degraded = match &degraded[..] {
                [] => String::new(),
                reasons => format!("; degraded: {}", reasons.join("; ")),
            };
            format!("{datapath}, {} sessions{degraded}", sessions.live)
        }
    };
    on_one_line(&beside.map_or(state.clone(), |beside| format!("{beside}; {state}")))
}

/// In `sd_notify(3)`, a line's end is the end of what is said.
fn on_one_line(text: &str) -> String {
    text.replace('\n', "; ")
}

fn tell(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// Beats in the time after which a watchdog bites.
const BEATS: u32 = 3;
/// Between two beats, where there is no watchdog.
const PERIOD: Duration = Duration::from_secs(10);
/// By which each beat puts off the end of a start or of a stop.
const EXTENSION: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_felt_only_if_there_was_a_turn_since_the_last_time() {
        let mut pulse = Pulse::default();
        assert!(!pulse.is_felt(0), "it has never turned");
        assert!(pulse.is_felt(1));
        assert!(!pulse.is_felt(1), "stuck");
        assert!(!pulse.is_felt(1), "and still");
        assert!(pulse.is_felt(7));
    }

    #[test]
    fn what_is_wrong_is_said_on_one_line() {
        let none = "the packet worker does not answer";
        assert_eq!(line(None, None), none);
        assert_eq!(line(None, Some("not reloaded: a\nb")), format!("not reloaded: a; b; {none}"));
    }
}
