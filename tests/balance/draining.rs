//! Targets that leave, and connections that are to be closed.

use std::time::Duration;

use egret::balance::{CheckError, Close, CloseCause, Config, Event, OnUnhealthy, Serving, State};

use crate::rig::*;

fn delay(seconds: u64) -> Config {
    Config { deregistration_delay: Duration::from_secs(seconds), ..quick() }
}

/// One with `each` connections to each target.
fn busy(config: Config, numbers: &[u8], each: usize) -> Rig {
    let mut rig = Rig::healthy(config, &targets(numbers.iter().copied()));
    for number in numbers {
        for _ in 0..each {
            assert!(rig.group.opened(rig.now, at(*number)));
        }
    }
    rig
}

#[test]
fn removed_target_gets_nothing_new_and_is_closed_after_the_delay() {
    let mut rig = busy(delay(300), &[1, 2], 3);
    rig.set_targets(&targets([2]));
    assert_eq!(rig.state(at(1)), State::Draining);
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(2))));
    rig.run(Duration::from_millis(299_999));
    assert_eq!(rig.closes, []);
    rig.run(Duration::from_millis(1));
    assert_eq!(rig.closes, [Close { target: at(1), cause: CloseCause::Deregistered }]);
    for _ in 0..3 {
        assert!(rig.find(at(1)).is_some(), "it is known while it has a connection");
        rig.close(at(1));
    }
    assert!(rig.find(at(1)).is_none());
    let drained = Event::StateChanged { target: at(1), from: State::Healthy, to: State::Draining };
    assert_eq!(rig.events, [drained, Event::Removed { target: at(1) }]);
}

#[test]
fn removed_target_is_forgotten_with_its_last_connection() {
    let mut rig = busy(delay(300), &[1, 2], 1);
    rig.set_targets(&targets([2]));
    rig.close(at(1));
    assert!(rig.find(at(1)).is_none());
    rig.run(600 * SECOND);
    assert_eq!(rig.closes, []);
}

#[test]
fn removed_target_without_connections_is_forgotten_at_once() {
    let mut rig = Rig::healthy(delay(300), &targets([1, 2]));
    rig.set_targets(&targets([2]));
    assert!(rig.find(at(1)).is_none());
}

#[test]
fn without_a_delay_connections_are_closed_at_once() {
    let mut rig = busy(delay(0), &[1, 2], 1);
    rig.set_targets(&targets([2]));
    assert_eq!(rig.closes, [Close { target: at(1), cause: CloseCause::Deregistered }]);
}

#[test]
fn draining_target_is_not_checked_and_its_last_answer_does_not_count() {
    let mut rig = busy(delay(300), &[1], 1);
    rig.answer(at(1), SILENT);
    rig.run_checks(at(1), 1);
    let (_, probe) = *rig.probes.last().unwrap();
    rig.set_targets(&[]);
    rig.forget();
    rig.group.handle_probe(rig.now, probe.id, Ok(()));
    rig.run(60 * SECOND);
    assert_eq!((rig.probes.len(), rig.events.len()), (0, 0));
    assert_eq!(rig.group.snapshot(rig.now).counters.probes_late, 1);
}

#[test]
fn target_that_comes_back_is_checked_as_a_new_one_and_keeps_its_connections() {
    let mut rig = busy(delay(300), &[1, 2], 2);
    rig.set_targets(&targets([2]));
    rig.answer(at(1), SILENT);
    rig.run(100 * SECOND);
    rig.set_targets(&targets([1, 2]));
    assert_eq!((rig.state(at(1)), rig.connections(at(1))), (State::Initial, 2));
    rig.answer(at(1), WELL);
    rig.run(400 * SECOND);
    assert_eq!((rig.state(at(1)), rig.connections(at(1))), (State::Healthy, 2));
    assert_eq!(rig.closes, []);
}

#[test]
fn without_any_target_nobody_serves_and_all_drain() {
    let mut rig = busy(delay(30), &[1, 2], 1);
    rig.set_targets(&[]);
    assert_eq!((rig.group.serving(), rig.select(client(1))), (Serving::Nobody, None));
    rig.run(30 * SECOND);
    let closed = [1, 2].map(|number| Close { target: at(number), cause: CloseCause::Deregistered });
    assert_eq!(rig.closes, closed);
}

#[test]
fn drained_on_request_stays_out_until_it_is_taken_back() {
    let mut rig = busy(delay(300), &[1, 2], 1);
    assert!(rig.drain(at(1)));
    assert_eq!(rig.state(at(1)), State::Draining);
    // As a name that is resolved again.
    rig.set_targets(&targets([1, 2]));
    assert_eq!(rig.state(at(1)), State::Draining);
    rig.run(300 * SECOND);
    assert_eq!(rig.closes, [Close { target: at(1), cause: CloseCause::Deregistered }]);
    rig.close(at(1));
    assert_eq!(rig.state(at(1)), State::Drained);
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(2))));
    assert!(rig.undrain(at(1)));
    assert_eq!(rig.state(at(1)), State::Initial);
    rig.run(SECOND);
    assert_eq!(rig.state(at(1)), State::Healthy);
}

#[test]
fn asking_again_does_not_lengthen_the_delay() {
    let mut rig = busy(delay(300), &[1, 2], 1);
    rig.drain(at(1));
    rig.run(200 * SECOND);
    rig.drain(at(1));
    rig.run(100 * SECOND);
    assert_eq!(rig.closes.len(), 1);
}

#[test]
fn drained_target_that_is_removed_is_forgotten_and_comes_back_as_any_other() {
    let mut rig = Rig::healthy(delay(300), &targets([1, 2]));
    rig.drain(at(1));
    assert_eq!(rig.state(at(1)), State::Drained);
    rig.set_targets(&targets([2]));
    assert!(rig.find(at(1)).is_none());
    rig.set_targets(&targets([1, 2]));
    assert_eq!(rig.state(at(1)), State::Initial);
}

#[test]
fn only_wanted_targets_can_be_drained_or_taken_back() {
    let mut rig = busy(delay(300), &[1, 2], 1);
    assert!(!rig.drain(at(9)) && !rig.undrain(at(9)));
    rig.set_targets(&targets([2]));
    assert!(!rig.drain(at(1)) && !rig.undrain(at(1)), "it leaves for another reason");
    assert_eq!(rig.state(at(1)), State::Draining);
    assert!(rig.undrain(at(2)), "it is in service already");
    assert_eq!(rig.state(at(2)), State::Healthy);
}

#[test]
fn last_healthy_target_that_drains_leaves_the_unhealthy_to_fail_open() {
    let mut rig = Rig::healthy(quick(), &targets([1, 2]));
    rig.answer(at(2), REFUSES);
    rig.run(SECOND);
    rig.drain(at(1));
    assert_eq!((rig.group.serving(), rig.select(client(1))), (Serving::FailOpen, Some(at(2))));
}

#[test]
fn connections_of_a_target_that_falls_ill_are_reset() {
    let mut rig = busy(quick(), &[1, 2], 5);
    rig.answer(at(1), REFUSES);
    rig.run(10 * SECOND);
    assert_eq!(rig.closes, [Close { target: at(1), cause: CloseCause::Unhealthy }], "once, at the change");
}

#[test]
fn connections_outlive_refused_ones_until_a_check_fails_as_well() {
    let mut rig = busy(quick(), &[1, 2], 5);
    rig.connect(at(1), Err(CheckError::TimedOut));
    assert_eq!((rig.state(at(1)).label(), rig.closes.len()), ("unhealthy", 0));
    rig.answer(at(1), REFUSES);
    rig.run_checks(at(1), 2);
    assert_eq!(rig.closes, [Close { target: at(1), cause: CloseCause::Unhealthy }]);
}

#[test]
fn connections_of_a_target_that_falls_ill_are_kept_if_configured() {
    let mut rig = busy(Config { on_unhealthy: OnUnhealthy::Keep, ..quick() }, &[1, 2], 5);
    rig.answer(at(1), REFUSES);
    rig.run(10 * SECOND);
    assert_eq!((rig.closes.len(), rig.connections(at(1))), (0, 5));
}

#[test]
fn connections_are_kept_if_the_group_fails_open() {
    let mut rig = busy(quick(), &[1], 5);
    rig.answer(at(1), REFUSES);
    rig.run(10 * SECOND);
    assert_eq!((rig.group.serving(), rig.closes.len()), (Serving::FailOpen, 0));
}

#[test]
fn nobody_is_told_to_close_what_has_ended_meanwhile() {
    let mut rig = busy(delay(300), &[1, 2], 1);
    rig.set_targets(&targets([2]));
    rig.now += 300 * SECOND;
    rig.group.handle_timeout(rig.now);
    rig.group.closed(rig.now, at(1));
    assert_eq!(rig.group.poll_close(), None);
}
