//! The metrics of listeners and their targets.

#[allow(clippy::wildcard_imports, reason = "a table of names")]
use super::catalogue::*;
use super::page::Page;
use super::{boolean, count};
use crate::balance::{Refusal, Serving, State, TargetSnapshot};
use crate::forward::{Latency, Mode, Report};

pub(super) fn add(page: &mut Page, listeners: &[Report]) {
    let each = |value: &dyn Fn(&Report) -> f64| -> Vec<_> {
        listeners.iter().map(|of| (vec![&*of.name], value(of))).collect()
    };
    page.add(&CONNECTIONS, each(&|of| of.admission.open.into()));
    page.add(&CONNECTIONS_OPENED, each(&|of| count(of.admission.admitted)));
    let refused = listeners.iter().flat_map(|of| {
        Refusal::ALL.map(|refusal| (vec![&*of.name, refusal.label()], count(of.admission.refused(refusal))))
    });
    page.add(&CONNECTIONS_REFUSED, refused);
    let ended = listeners.iter().flat_map(|of| {
        of.counters.ended().map(|(reason, connections)| (vec![&*of.name, reason], count(connections)))
    });
    page.add(&CONNECTIONS_ENDED, ended);
    let bytes = listeners.iter().flat_map(|of| {
        [("to_target", of.counters.bytes_to_target), ("to_client", of.counters.bytes_to_client)]
            .map(|(direction, bytes)| (vec![&*of.name, direction], count(bytes)))
    });
    page.add(&FORWARD_BYTES, bytes);
    page.add(&ACCEPT_PAUSES, each(&|of| count(of.counters.accept_pauses)));
    page.add(&FAIL_OPEN, each(&|of| boolean(of.group.serving == Serving::FailOpen)));
    let states = listeners.iter().flat_map(|of| {
        STATES.map(|state| {
            let targets = of.group.targets.iter().filter(|target| target.state.label() == state).count();
            (vec![&*of.name, state], count(targets as u64))
        })
    });
    page.add(&TARGETS, states);
    targets(page, listeners);
    histograms(page, &CHECK_DURATION, listeners, |of| Some(of.check_latency));
    let of_proxy = |of: &Report| (of.mode == Mode::Proxy).then_some(of.connect_latency);
    histograms(page, &CONNECT_DURATION, listeners, of_proxy);
    let expiries = listeners.iter().filter_map(|of| Some((vec![&*of.name], count(of.tls?.expiry?))));
    page.add(&CERTIFICATE_EXPIRY, expiries);
}

fn targets(page: &mut Page, listeners: &[Report]) {
    let most = listeners.iter().map(|of| of.group.targets.len()).max().unwrap_or_default();
    let places: Vec<String> = (0..most).map(|place| place.to_string()).collect();
    let each = |value: &dyn Fn(&Report, &TargetSnapshot) -> f64| -> Vec<_> {
        let all = listeners.iter().flat_map(|of| places.iter().zip(&of.group.targets).map(move |at| (of, at)));
        all.map(|(of, (place, target))| (vec![&*of.name, &**place], value(of, target))).collect()
    };
    page.add(&TARGET_HEALTHY, each(&|_, target| boolean(target.state == State::Healthy)));
    page.add(&TARGET_CONNECTIONS, each(&|_, target| target.connections.into()));
    page.add(&TARGET_OPENED, each(&|_, target| count(target.counters.connections_opened)));
    page.add(&TARGET_CONNECTS_FAILED, each(&|_, target| count(target.counters.connects_failed)));
    let unanswered = each(&|of, target| {
        let found = of.half_open.iter().find(|half_open| half_open.target == target.address);
        found.map_or(0.0, |half_open| count(half_open.unanswered))
    });
    page.add(&TARGET_UNANSWERED, unanswered);
    page.add(&TARGET_CHECKS, each(&|_, target| count(target.counters.probes)));
    page.add(&TARGET_CHECKS_FAILED, each(&|_, target| count(target.counters.probes_failed)));
}

fn histograms(
    page: &mut Page,
    metric: &Metric,
    listeners: &[Report],
    latency: impl Fn(&Report) -> Option<Latency>,
) {
    page.histograms(metric, listeners.iter().filter_map(|of| Some((vec![&*of.name], latency(of)?))));
}

const STATES: [&str; 5] = ["initial", "healthy", "unhealthy", "draining", "drained"];
