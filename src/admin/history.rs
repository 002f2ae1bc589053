//! What the status page draws: an hour of points, and what has changed of late.
//!
//! Owns a bounded memory of the past. It is not kept when the daemon stops; whoever wants more has Prometheus.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::protocol::{ListenerReport, Status};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    points: VecDeque<Point>,
    events: VecDeque<Change>,
    /// What was true when it was last looked at.
    known: Option<Vec<(String, String)>>,
}

/// The counters of one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    uptime: Duration,
    out_bytes: u64,
    in_bytes: u64,
    sessions: u32,
}

/// Something that has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Of the daemon, when it was noticed.
    pub uptime_seconds: f64,
    pub what: String,
    /// `good`, `warn` or `bad`.
    pub level: String,
}

/// The history as it is told. Points have an index in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// Now.
    pub uptime_seconds: f64,
    pub points: Points,
    /// The newest last.
    pub events: Vec<Change>,
}

/// Counters since the start, but for live sessions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Points {
    pub uptime_seconds: Vec<f64>,
    pub out_bytes: Vec<u64>,
    pub in_bytes: Vec<u64>,
    pub sessions: Vec<u32>,
}

impl History {
    /// Takes note of how the daemon is, once every [`INTERVAL`].
    pub(super) fn note(&mut self, uptime: Duration, status: &Status) {
        let bytes = |direction: &str| status.traffic.get(direction).map_or(0, |traffic| traffic.bytes);
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        self.points.push_back(Point {
            uptime,
            out_bytes: bytes("out_to_external"),
            in_bytes: bytes("in_from_external"),
            sessions: status.sessions.live,
        });
        let facts = facts(status);
        // What was so from the start has not changed.
        let known = self.known.replace(facts.clone()).unwrap_or_default();
        for (subject, state) in &facts {
            let before = known.iter().find(|(of, _)| of == subject).map(|(_, state)| state);
            if before != Some(state) && (before.is_some() || state != "ready") {
                self.tell(uptime, subject, state);
            }
        }
        for (subject, _) in known.iter().filter(|(of, _)| facts.iter().all(|(subject, _)| subject != of)) {
            self.tell(uptime, subject, "gone");
        }
    }

    fn tell(&mut self, uptime: Duration, subject: &str, state: &str) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        let level = match state.split([':', ',']).next().unwrap_or_default() {
            "ready" | "healthy" | "active" | "alive" | "off" => "good",
            "not ready" | "unhealthy" | "failed" | "dead" | "fallback" | "blackhole" | "missing"
            | "elsewhere" => "bad",
            _ => "warn",
        };
        let what = if subject.is_empty() { state.to_owned() } else { format!("{subject}: {state}") };
        self.events.push_back(Change { uptime_seconds: uptime.as_secs_f64(), what, level: level.to_owned() });
    }

    /// All that is remembered.
    pub(super) fn report(&self, uptime: Duration) -> HistoryReport {
        HistoryReport {
            uptime_seconds: uptime.as_secs_f64(),
            points: Points {
                uptime_seconds: self.points.iter().map(|point| point.uptime.as_secs_f64()).collect(),
                out_bytes: self.points.iter().map(|point| point.out_bytes).collect(),
                in_bytes: self.points.iter().map(|point| point.in_bytes).collect(),
                sessions: self.points.iter().map(|point| point.sessions).collect(),
            },
            events: self.events.iter().cloned().collect(),
        }
    }
}

/// Whatever has a state worth telling of, with that state.
fn facts(status: &Status) -> Vec<(String, String)> {
    let state = match (status.ready, &status.degraded[..]) {
        (false, _) => format!("not ready: {}", status.not_ready.join("; ")),
        (true, []) => "ready".to_owned(),
        (true, degraded) => format!("degraded: {}", degraded.join("; ")),
    };
    let mut facts = vec![(String::new(), state)];
    for ListenerReport { name, targets, .. } in &status.listeners {
        facts.extend(targets.iter().map(|target| {
            let why = target.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            (format!("{name}, {}", target.address), format!("{}{why}", target.state))
        }));
    }
    if let Some(fleet) = &status.fleet {
        facts.extend(fleet.gateways.iter().map(|gateway| {
            let host = gateway.host.as_ref().map_or_else(String::new, |host| format!(", hosted by {host}"));
            (format!("gateway {}", gateway.gateway), format!("{}{host}", gateway.role))
        }));
        facts.extend(fleet.peers.iter().map(|peer| (format!("peer {}", peer.peer), peer.state.clone())));
    }
    if let Some(check) = &status.source_dest_check {
        facts.push(("source/dest check".to_owned(), check.clone()));
    }
    for route in status.aws.iter().flat_map(|aws| &aws.routes) {
        facts.push((format!("{} of {}", route.destination, route.route_table), route.state.clone()));
    }
    facts.extend(status.notices.iter().map(|notice| ("notice".to_owned(), notice.kind.replace('_', " "))));
    facts
}

/// How often points are taken.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// An hour of them.
const POINTS: usize = 720;
const EVENTS: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::testing::{description, fake};
    use crate::admin::view::View;

    async fn status() -> Status {
        let (_sender, receiver) = tokio::sync::watch::channel(description());
        View::new(fake(), receiver).status().await.unwrap()
    }

    fn told(history: &History) -> Vec<String> {
        history.events.iter().map(|change| format!("{} ({})", change.what, change.level)).collect()
    }

    #[tokio::test]
    async fn an_hour_of_points_is_kept_and_no_more() {
        let (mut history, status) = (History::default(), status().await);
        for number in 0..1000 {
            history.note(INTERVAL * number, &status);
        }
        let report = history.report(INTERVAL * 1000);
        assert_eq!(report.points.uptime_seconds.len(), POINTS);
        assert_eq!(report.points.sessions, [5; POINTS]);
        let span = report.points.uptime_seconds[POINTS - 1] - report.points.uptime_seconds[0];
        assert!((3590.0..=3600.0).contains(&span), "{span}");
    }

    #[tokio::test]
    async fn changes_are_told_once_each_and_in_bounded_number() {
        let (mut history, ready) = (History::default(), status().await);
        let not_ready = Status { ready: false, not_ready: vec!["no route".to_owned()], ..ready.clone() };
        for status in [&ready, &ready, &not_ready, &not_ready, &ready] {
            history.note(INTERVAL, status);
        }
        assert_eq!(
            told(&history),
            ["source/dest check: off (good)", "not ready: no route (bad)", "ready (good)"]
        );
        for _ in 0..100 {
            history.note(INTERVAL, &not_ready);
            history.note(INTERVAL, &ready);
        }
        assert_eq!(history.events.len(), EVENTS);
    }
}
