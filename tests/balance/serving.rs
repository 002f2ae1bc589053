//! Who gets new connections, and what a connection does whose target refuses.

use egret::balance::{Serving, State};

use crate::rig::*;

#[test]
fn unhealthy_target_gets_nothing_while_another_is_healthy() {
    let mut rig = Rig::healthy(quick(), &targets([1, 2, 3]));
    rig.answer(at(2), REFUSES);
    rig.run(SECOND);
    let chosen: Vec<_> = (0..500).filter_map(|number| rig.visit(client(number))).collect();
    assert_eq!(chosen.len(), 500);
    assert!(!chosen.contains(&at(2)) && chosen.contains(&at(1)) && chosen.contains(&at(3)));
}

#[test]
fn backups_serve_only_while_no_primary_is_healthy() {
    let mut rig = Rig::healthy(quick(), &[at(1).into(), backup(2)]);
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(1))));
    rig.answer(at(1), REFUSES);
    rig.run(SECOND);
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(2))));
    rig.answer(at(1), WELL);
    rig.run(SECOND);
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(1))));
    let (primaries, backups) = (Serving::Primaries, Serving::Backups);
    assert_eq!(rig.serving_changes(), [(primaries, backups), (backups, primaries)]);
}

#[test]
fn untried_targets_serve_while_nobody_is_healthy() {
    let mut rig = Rig::new(quick(), &targets([1, 2]));
    rig.answer(at(1), REFUSES);
    rig.answer(at(2), SILENT);
    assert!(rig.visit(client(1)).is_some(), "a restart refuses nobody");
    rig.run_checks(at(1), 1);
    assert_eq!((rig.state(at(1)), rig.state(at(2))), (refused_check(), State::Initial));
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(2))));
    assert_eq!(rig.group.serving(), Serving::Untried);
}

#[test]
fn untried_backups_serve_once_all_others_are_unhealthy() {
    let mut rig = Rig::new(quick(), &[at(1).into(), backup(2)]);
    rig.answer(at(1), REFUSES);
    rig.answer(at(2), SILENT);
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(1))));
    assert_eq!(rig.group.serving(), Serving::Untried);
    rig.run_checks(at(1), 1);
    assert_eq!((rig.state(at(1)), rig.state(at(2))), (refused_check(), State::Initial));
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(2))));
    assert_eq!(rig.group.serving(), Serving::UntriedBackups);
}

#[test]
fn all_unhealthy_fails_open_and_says_so_once() {
    let mut rig = Rig::healthy(quick(), &[at(1).into(), at(2).into(), backup(3)]);
    for number in 1..=3 {
        rig.answer(at(number), REFUSES);
    }
    rig.run(20 * SECOND);
    let chosen: Vec<_> = (0..500).filter_map(|number| rig.visit(client(number))).collect();
    assert_eq!(chosen.len(), 500);
    assert!((1..=3).all(|number| chosen.contains(&at(number))), "all serve");
    assert_eq!(rig.group.snapshot(rig.now).counters.selected_fail_open, 500);
    let began =
        |changes: &[(Serving, Serving)]| changes.iter().filter(|(_, to)| *to == Serving::FailOpen).count();
    assert_eq!(began(&rig.serving_changes()), 1);
    rig.answer(at(2), WELL);
    rig.run(SECOND);
    assert_eq!(rig.serving_changes().last(), Some(&(Serving::FailOpen, Serving::Primaries)));
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(2))));
}

#[test]
fn weight_of_zero_gets_nothing_even_failing_open() {
    let mut rig = Rig::healthy(quick(), &[weighted(1, 0), weighted(2, 1)]);
    assert_eq!(rig.state(at(1)), State::Healthy, "it is checked nevertheless");
    rig.answer(at(1), REFUSES);
    rig.answer(at(2), REFUSES);
    rig.run(SECOND);
    assert_eq!(rig.group.serving(), Serving::FailOpen);
    assert!((0..100).all(|number| rig.visit(client(number)) == Some(at(2))));
    rig.set_targets(&[weighted(1, 0)]);
    assert_eq!((rig.group.serving(), rig.visit(client(1))), (Serving::Nobody, None));
    assert_eq!(rig.group.snapshot(rig.now).counters.unserved, 1);
}

#[test]
fn weight_given_later_brings_a_target_in_without_a_check() {
    let mut rig = Rig::healthy(quick(), &[weighted(1, 0)]);
    rig.set_targets(&[weighted(1, 3)]);
    assert_eq!((rig.group.serving(), rig.visit(client(1))), (Serving::Primaries, Some(at(1))));
}

#[test]
fn retry_goes_to_other_primaries_then_backups_then_untried_but_never_to_the_unhealthy() {
    let everybody: Vec<_> = [1, 2, 3, 4, 5].map(at).into();
    for algorithm in crate::selection::ALGORITHMS {
        let config = egret::balance::Config { algorithm, ..quick() };
        let members = [at(1).into(), at(2).into(), backup(3), at(4).into()];
        let mut rig = Rig::healthy(config, &members);
        rig.answer(at(4), REFUSES);
        rig.answer(at(5), SILENT);
        rig.run(SECOND);
        rig.set_targets(&[members.as_slice(), &[at(5).into()]].concat());
        assert_eq!((rig.state(at(4)), rig.state(at(5))), (refused_check(), State::Initial));

        let mut tried = Vec::new();
        while let Some(target) = rig.group.select(rig.now, client(7), &tried) {
            assert!(!tried.contains(&target), "{target} was tried");
            rig.close(target);
            tried.push(target);
        }
        assert_eq!(tried.len(), 4, "{tried:?}");
        tried[..2].sort();
        assert_eq!(tried, [at(1), at(2), at(3), at(5)]);

        for target in &everybody {
            rig.answer(*target, REFUSES);
        }
        rig.run(2 * SECOND);
        let tried: Vec<_> = [1, 2, 3, 5].map(at).into();
        assert_eq!(rig.group.select(rig.now, client(7), &tried), Some(at(4)), "failing open, it is one of all");
        assert_eq!(rig.group.select(rig.now, client(7), &everybody), None);
    }
}

#[test]
fn replacing_all_targets_is_one_change_of_who_serves() {
    let mut rig = Rig::healthy(quick(), &targets([1, 2]));
    rig.set_targets(&targets([3, 4]));
    assert_eq!(rig.serving_changes(), [(Serving::Primaries, Serving::Untried)]);
}

#[test]
fn eligible_targets_are_those_that_selection_gives() {
    let mut rig = Rig::healthy(quick(), &[weighted(1, 4), weighted(2, 1), weighted(3, 0), backup(4)]);
    let eligible = |rig: &Rig| rig.group.eligible().collect::<Vec<_>>();
    assert_eq!(eligible(&rig), [(at(1), 4), (at(2), 1)]);
    rig.answer(at(1), REFUSES);
    rig.answer(at(2), REFUSES);
    rig.run(SECOND);
    assert_eq!(eligible(&rig), [(at(4), 1)]);
}
