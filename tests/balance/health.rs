//! When a target is healthy, and when not any more.

use egret::balance::{CheckError, Config, Event, HealthCheck, State, Why};

use crate::rig::*;

fn thresholds(healthy: u8, unhealthy: u8) -> Config {
    let health =
        HealthCheck { healthy_threshold: healthy, unhealthy_threshold: unhealthy, ..HealthCheck::default() };
    Config { health, ..config() }
}

#[test]
fn new_target_needs_one_passed_check() {
    let mut rig = Rig::new(thresholds(5, 2), &targets([1]));
    assert_eq!(rig.state(at(1)), State::Initial);
    rig.run_checks(at(1), 1);
    assert_eq!(rig.state(at(1)), State::Healthy);
    let changed = Event::StateChanged { target: at(1), from: State::Initial, to: State::Healthy };
    assert!(rig.events.contains(&Event::Added { target: at(1) }) && rig.events.contains(&changed));
}

#[test]
fn new_target_that_fails_its_checks_is_unhealthy_after_the_threshold() {
    let mut rig = Rig::new(thresholds(5, 3), &targets([1]));
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 2);
    assert_eq!(rig.state(at(1)), State::Initial);
    rig.run_checks(at(1), 1);
    assert_eq!(rig.state(at(1)), refused_check());
}

#[test]
fn unhealthy_target_needs_the_healthy_threshold_in_a_row() {
    let mut rig = Rig::new(thresholds(3, 2), &targets([1]));
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 2);
    rig.answer(at(1), WELL);
    rig.run_checks(at(1), 2);
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 1);
    rig.answer(at(1), WELL);
    rig.run_checks(at(1), 2);
    assert_eq!(rig.state(at(1)), refused_check(), "the failure between began the count anew");
    rig.run_checks(at(1), 1);
    assert_eq!(rig.state(at(1)), State::Healthy);
}

#[test]
fn healthy_target_survives_failures_that_are_not_in_a_row() {
    let mut rig = Rig::healthy(thresholds(5, 2), &targets([1]));
    for _ in 0..4 {
        rig.answer(at(1), REFUSES);
        rig.run_checks(at(1), 1);
        rig.answer(at(1), WELL);
        rig.run_checks(at(1), 1);
    }
    assert_eq!(rig.state(at(1)), State::Healthy);
    assert_eq!(rig.events, [], "nothing has changed");
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 2);
    assert_eq!(rig.state(at(1)), refused_check());
}

#[test]
fn recovered_target_has_all_its_failures_ahead_again() {
    let mut rig = Rig::healthy(thresholds(2, 3), &targets([1]));
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 5);
    rig.answer(at(1), WELL);
    rig.run_checks(at(1), 2);
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 2);
    assert_eq!(rig.state(at(1)), State::Healthy);
    rig.run_checks(at(1), 1);
    assert_eq!(rig.state(at(1)), refused_check());
}

#[test]
fn change_is_told_once_and_the_reason_is_the_last_one() {
    let mut rig = Rig::healthy(thresholds(5, 2), &targets([1, 2]));
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 4);
    rig.answer(at(1), Some(Err(CheckError::Status(503))));
    rig.run_checks(at(1), 4);
    let told = Event::StateChanged { target: at(1), from: State::Healthy, to: refused_check() };
    assert_eq!(rig.events, [told]);
    let why = Why::HealthCheck(CheckError::Status(503));
    assert_eq!(rig.state(at(1)), State::Unhealthy(why));
    assert_eq!(why.to_string(), "health check: HTTP status 503");
}

#[test]
fn refused_connects_make_a_target_unhealthy_before_its_next_check() {
    let mut rig = Rig::healthy(thresholds(5, 2), &targets([1, 2]));
    rig.connect(at(1), Err(CheckError::Refused));
    assert_eq!(rig.state(at(1)), State::Healthy);
    rig.connect(at(1), Err(CheckError::TimedOut));
    assert_eq!(rig.state(at(1)), State::Unhealthy(Why::Connect(CheckError::TimedOut)));
    assert_eq!(rig.state(at(2)), State::Healthy);
    assert_eq!(rig.probes, [], "no check was needed for it");
}

#[test]
fn connect_that_succeeds_begins_the_count_of_refused_ones_anew() {
    let mut rig = Rig::healthy(thresholds(5, 2), &targets([1]));
    for _ in 0..5 {
        rig.connect(at(1), Err(CheckError::Refused));
        rig.connect(at(1), Ok(()));
    }
    assert_eq!(rig.state(at(1)), State::Healthy);
}

#[test]
fn checks_that_pass_elsewhere_do_not_hide_refused_connects() {
    // As with a health port of its own: it answers, and the served port does not.
    let mut rig = Rig::healthy(thresholds(5, 2), &targets([1]));
    rig.connect(at(1), Err(CheckError::Refused));
    rig.run_checks(at(1), 1);
    rig.connect(at(1), Err(CheckError::Refused));
    assert_eq!(rig.state(at(1)), State::Unhealthy(Why::Connect(CheckError::Refused)));
}

#[test]
fn connects_do_not_heal_and_late_failures_do_not_hinder_healing() {
    let mut rig = Rig::healthy(thresholds(2, 2), &targets([1]));
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 2);
    for _ in 0..9 {
        rig.connect(at(1), Ok(()));
    }
    assert_eq!(rig.state(at(1)), refused_check());
    rig.answer(at(1), WELL);
    rig.run_checks(at(1), 1);
    rig.connect(at(1), Err(CheckError::TimedOut));
    rig.run_checks(at(1), 1);
    assert_eq!(rig.state(at(1)), State::Healthy);
}

#[test]
fn health_survives_a_change_of_the_configuration() {
    let mut rig = Rig::healthy(thresholds(5, 2), &targets([1, 2]));
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 2);
    rig.forget();
    rig.group.reconfigure(rig.now, thresholds(2, 3)).unwrap();
    rig.set_targets(&targets([1, 2]));
    assert_eq!((rig.state(at(1)), rig.state(at(2))), (refused_check(), State::Healthy));
    assert_eq!(rig.events, []);
}
