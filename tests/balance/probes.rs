//! When targets are asked, and which answers count.

use std::time::Duration;

use egret::balance::{CheckError, Config, Group, HealthCheck, State, Why};
use egret::time::Instant;

use crate::rig::*;

fn every(interval: Duration, timeout: Duration) -> Config {
    let health = HealthCheck { interval, timeout, ..HealthCheck::default() };
    Config { health, ..config() }
}

#[test]
fn first_probes_come_soon_and_not_all_at_once() {
    let mut rig = Rig::new(config(), &targets(0..100));
    let start = rig.now;
    rig.run(Duration::from_millis(250));
    assert_eq!(rig.probes.len(), 100);
    let mut times: Vec<Instant> = rig.probes.iter().map(|(at, _)| *at).collect();
    times.dedup();
    assert!(times.len() > 90, "{} times of 100 probes", times.len());
    assert!(times.iter().any(|at| *at - start > Duration::from_millis(125)), "all in the first half");
}

#[test]
fn probes_keep_their_interval_with_jitter() {
    for millis in [200, 30_000] {
        let interval = Duration::from_millis(millis);
        let mut rig = Rig::new(every(interval, interval), &targets([1]));
        rig.run(interval * 500);
        let gaps: Vec<Duration> = rig.probes.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        let (least, most) = (*gaps.iter().min().unwrap(), *gaps.iter().max().unwrap());
        assert!(least >= interval * 9 / 10 && most <= interval * 11 / 10, "{least:?} to {most:?}");
        assert!(most.abs_diff(least) > interval / 10, "hardly any jitter: {least:?} to {most:?}");
        let mean = gaps.iter().sum::<Duration>() / gaps.len() as u32;
        assert!(mean.abs_diff(interval) < interval / 50, "{mean:?} instead of {interval:?}");
    }
}

#[test]
fn instances_with_other_seeds_do_not_probe_in_step() {
    let times = |seed| {
        let mut rig = Rig::seeded(config(), &targets([1]), [seed; 16]);
        rig.run(Duration::from_secs(300));
        rig.probes.iter().map(|(at, _)| *at).collect::<Vec<_>>()
    };
    assert_eq!(times(1), times(1), "the same seed replays");
    assert!(times(1).iter().all(|at| !times(2).contains(at)));
}

#[test]
fn probe_without_an_answer_has_failed_at_its_timeout() {
    let mut rig = Rig::new(every(30 * SECOND, 10 * SECOND), &targets([1]));
    rig.answer(at(1), SILENT);
    rig.run_checks(at(1), 2);
    let (asked, probe) = rig.probes[1];
    assert_eq!(probe.deadline, asked + 10 * SECOND);
    rig.run(Duration::from_nanos(9_999_999_999));
    assert_eq!(rig.state(at(1)), State::Initial);
    rig.run(Duration::from_nanos(1));
    assert_eq!(rig.state(at(1)), State::Unhealthy(Why::HealthCheck(CheckError::TimedOut)));
}

#[test]
fn late_answer_is_ignored_and_counted() {
    let mut rig = Rig::new(every(30 * SECOND, 10 * SECOND), &targets([1]));
    rig.answer(at(1), SILENT);
    rig.run_checks(at(1), 1);
    let (_, probe) = rig.probes[0];
    rig.run(11 * SECOND);
    rig.group.handle_probe(rig.now, probe.id, Ok(()));
    assert_eq!(rig.state(at(1)), State::Initial);
    assert_eq!(rig.group.snapshot(rig.now).counters.probes_late, 1);
}

#[test]
fn answer_after_the_deadline_is_late_even_if_nobody_has_looked_at_the_clock() {
    let mut rig = Rig::new(every(30 * SECOND, 10 * SECOND), &targets([1]));
    rig.answer(at(1), SILENT);
    rig.run_checks(at(1), 1);
    let (_, probe) = rig.probes[0];
    let late = probe.deadline + Duration::from_millis(1);
    rig.group.handle_probe(late, probe.id, Ok(()));
    assert_eq!(rig.state(at(1)), State::Initial);
    rig.group.handle_timeout(late);
    assert_eq!(rig.find(at(1)).unwrap().counters.probes_failed, 1);
}

#[test]
fn answer_counts_once() {
    let mut rig = Rig::new(every(30 * SECOND, 10 * SECOND), &targets([1]));
    rig.answer(at(1), SILENT);
    rig.run_checks(at(1), 1);
    let (_, probe) = rig.probes[0];
    for _ in 0..9 {
        rig.group.handle_probe(rig.now, probe.id, Err(CheckError::Refused));
    }
    assert_eq!(rig.state(at(1)), State::Initial, "nine answers of one check are one failure");
    assert_eq!(rig.group.snapshot(rig.now).counters.probes_late, 8);
}

#[test]
fn target_is_asked_again_only_after_its_answer_or_timeout() {
    let mut rig = Rig::new(every(SECOND, SECOND), &targets([1]));
    rig.answer(at(1), SILENT);
    rig.run(100 * SECOND);
    assert!(rig.probes.len() > 90, "{}", rig.probes.len());
    let before_timeout = |pair: &&[(Instant, _)]| pair[1].0 - pair[0].0 < SECOND;
    assert_eq!(rig.probes.windows(2).filter(before_timeout).count(), 0);
}

#[test]
fn shorter_interval_counts_from_the_reload_on() {
    let mut rig = Rig::healthy(every(3600 * SECOND, SECOND), &targets([1]));
    rig.group.reconfigure(rig.now, every(SECOND, SECOND)).unwrap();
    rig.run(SECOND);
    assert_eq!(rig.probes.len(), 1);
}

#[test]
fn group_without_targets_waits_for_nothing() {
    let mut group = Group::new(config(), [0; 16]).unwrap();
    assert_eq!(group.poll_timeout(), None);
    assert_eq!(group.poll_probe(Instant::from_millis(u64::MAX)), None);
}
