//! What status and metrics are told.

use egret::balance::{CheckError, Refusal, Serving, State};
use serde_json::json;

use crate::rig::*;

#[test]
fn snapshot_has_the_targets_by_address_with_state_reason_and_counts() {
    let mut rig = Rig::new(quick(), &[backup(3), weighted(1, 4), at(2).into()]);
    rig.answer(at(2), Some(Err(CheckError::Status(500))));
    rig.run(SECOND);
    for _ in 0..3 {
        rig.select(client(1)).unwrap();
    }
    rig.connect(at(1), Ok(()));
    rig.close(at(1));
    rig.run(7 * SECOND);
    let snapshot = rig.group.snapshot(rig.now);
    let numbers: Vec<_> = snapshot.targets.iter().map(|target| target.address).collect();
    assert_eq!(numbers, [at(1), at(2), at(3)]);
    let [first, second, third] = &snapshot.targets[..] else { panic!("{snapshot:?}") };
    assert_eq!((first.connections, first.counters.connections_opened, first.weight), (2, 3, 4));
    assert_eq!((first.counters.probes_failed, first.counters.connects_failed), (0, 0));
    assert!(first.since > 7 * SECOND && first.since <= 8 * SECOND, "{:?}", first.since);
    assert_eq!(second.counters.probes_failed, second.counters.probes);
    assert!(second.counters.probes > 10 && third.backup);
    assert_eq!(snapshot.counters.selected, 3);
}

#[test]
fn snapshot_reads_well_as_json() {
    let mut rig = Rig::new(quick(), &targets([1, 2]));
    rig.answer(at(2), REFUSES);
    rig.run(SECOND);
    let json = serde_json::to_value(rig.group.snapshot(rig.now)).unwrap();
    assert_eq!(json["serving"], "primaries");
    assert_eq!(json["targets"][0]["state"], "healthy");
    assert_eq!(json["targets"][1]["address"], "192.0.2.2:5000");
    assert_eq!(json["targets"][1]["state"], "unhealthy");
    assert_eq!(json["targets"][1]["why"], "health check: connection refused");
    assert!(json["targets"][1]["since_seconds"].as_f64().unwrap() > 0.5);
    assert_eq!(json["targets"][1]["connections"], 0);
    assert_eq!(json["counters"]["unserved"], 0);
}

#[test]
fn labels_are_those_of_the_json() {
    let states = [State::Initial, State::Healthy, refused_check(), State::Draining, State::Drained];
    for state in states {
        assert_eq!(serde_json::to_value(state).unwrap()["state"], state.label());
    }
    let (untried, untried_backups) = (Serving::Untried, Serving::UntriedBackups);
    let all =
        [Serving::Primaries, Serving::Backups, untried, untried_backups, Serving::FailOpen, Serving::Nobody];
    for serving in all {
        assert_eq!(serde_json::to_value(serving).unwrap(), json!(serving.label()));
    }
    for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
        assert_eq!(serde_json::to_value(refusal).unwrap(), json!(refusal.label()));
        assert_eq!(refusal as usize, index);
    }
}

#[test]
fn events_that_nobody_fetches_are_bounded_and_counted() {
    let mut rig = Rig::healthy(quick(), &targets([1]));
    for _ in 0..2_000 {
        rig.group.drain(rig.now, at(1));
        rig.group.undrain(rig.now, at(1));
    }
    let waiting = std::iter::from_fn(|| rig.group.poll_event()).count();
    let lost = rig.group.snapshot(rig.now).counters.events_lost;
    assert_eq!(waiting, 1_024);
    // Each turn changes the state twice, and who serves twice.
    assert_eq!(lost, 2_000 * 4 - 1_024);
}
