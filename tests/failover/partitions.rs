//! Instances that live and do not hear each other.

use std::time::Duration;

use egret::failover::{Life, OrderError, Role, Why};

use crate::world::{Setup, World};

#[test]
fn partition_of_two_moves_a_gateway_at_most_once_and_splits_none() {
    for seed in 1..=10 {
        let mut world = World::steady(&Setup { seed, allocations: 2, ..Setup::default() });
        world.part(0, 1);
        world.run(Duration::from_secs(15 * 60));
        for gateway in 0..2 {
            assert!(world.moves(gateway) <= 1, "seed {seed}: moved {} times", world.moves(gateway));
            let host = world.host_of(gateway).unwrap();
            assert!(world.is_at(gateway, host), "seed {seed}");
            assert!(!world.nodes[1 - host].active.contains_key(&world.definition(gateway).name), "seed {seed}");
        }
        world.heal();
        world.run(Duration::from_secs(300));
        assert!(world.is_at(0, 0) && world.is_at(1, 1), "seed {seed}: all are at home again");
        world.well();
    }
}

#[test]
fn partition_that_does_not_end_moves_a_gateway_every_ten_hold_downs_at_most() {
    let mut world = World::steady(&Setup::default());
    world.part(0, 1);
    world.run(Duration::from_secs(2 * 3600));
    for gateway in 0..2 {
        assert!(world.moves(gateway) <= 7, "moved {} times", world.moves(gateway));
    }
    world.well();
}

#[test]
fn host_that_was_cut_off_and_died_is_replaced_in_the_end() {
    let mut world = World::steady(&Setup::default());
    world.part(0, 1);
    world.run(Duration::from_secs(60));
    let host = world.host_of(0).unwrap();
    world.crash(host);
    let took = world.run_until(Duration::from_secs(3_600), |world| world.is_at(0, 1 - host)).unwrap();
    println!("with nothing but silence to go by: {took:?}");
    assert!(took < Duration::from_secs(21 * 60), "{took:?}");
    world.well();
}

#[test]
fn instance_that_ec2_shows_as_stopped_is_replaced_at_once_even_if_it_was_cut_off() {
    let mut world = World::steady(&Setup::default());
    world.part(0, 1);
    world.run(Duration::from_secs(120));
    let host = world.host_of(0).unwrap();
    world.crash(host);
    let eni = world.nodes[host].config.eni.clone();
    world.ec2.truth.black_holes.insert(eni);
    world.ec2.note(world.now);
    let took = world.run_until(Duration::from_secs(120), |world| world.is_at(0, 1 - host)).unwrap();
    assert!(took < Duration::from_secs(70), "{took:?}");
    world.well();
}

#[test]
fn one_way_loss_moves_at_most_once() {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut world = World::steady(&Setup::default());
        world.cut(from, to);
        world.run(Duration::from_secs(600));
        for gateway in 0..2 {
            assert!(world.moves(gateway) <= 1);
            let host = world.host_of(gateway).unwrap();
            assert!(world.is_at(gateway, host));
        }
        world.heal();
        world.run(Duration::from_secs(300));
        assert!(world.is_at(0, 0) && world.is_at(1, 1));
        world.well();
    }
}

#[test]
fn minority_of_three_takes_nothing() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.isolate(0);
    world.run(Duration::from_secs(600));
    assert_eq!((world.host_of(1), world.host_of(2)), (Some(1), Some(2)), "those who were left hear each other");
    assert!((1..3).all(|peer| world.peer(0, peer).life == Life::Suspect));
    assert_eq!(world.peer(1, 0).life, Life::Dead);
    assert!(world.moves(0) <= 1);
    world.heal();
    world.run(Duration::from_secs(300));
    assert!((0..3).all(|gateway| world.is_at(gateway, gateway)));
    world.well();
}

#[test]
fn lost_link_between_two_of_three_moves_nothing() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.part(0, 1);
    world.run(Duration::from_secs(1_200));
    assert!((0..3).all(|gateway| world.moves(gateway) == 0));
    assert_eq!(world.peer(1, 0).life, Life::Suspect);
    world.well();
}

#[test]
fn all_links_of_three_lost_moves_nothing() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    (0..3).for_each(|index| world.isolate(index));
    world.run(Duration::from_secs(1_200));
    assert!((0..3).all(|gateway| world.moves(gateway) == 0));
    world.well();
}

#[test]
fn halves_of_four_take_nothing_from_each_other() {
    let mut world = World::steady(&Setup { instances: 4, ..Setup::default() });
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        world.part(a, b);
    }
    world.run(Duration::from_secs(600));
    assert!((0..4).all(|gateway| world.moves(gateway) == 0));
    world.well();
}

#[test]
fn last_of_three_takes_what_is_left_if_the_others_die_one_after_the_other() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.crash(0);
    world.run_until(Duration::from_secs(5), |world| world.is_at(0, 1)).unwrap();
    world.run(Duration::from_secs(5));
    world.crash(1);
    let all = |world: &World| (0..3).all(|gateway| world.is_at(gateway, 2));
    let took = world.run_until(Duration::from_secs(10), all).unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
    world.well();
}

#[test]
fn last_of_three_waits_for_an_operators_word_if_the_others_die_at_once() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.crash(0);
    world.crash(1);
    world.run(Duration::from_secs(1_200));
    assert_eq!((world.moves(0), world.moves(1)), (0, 0));
    assert_eq!(world.peer(2, 0).life, Life::Suspect);
    assert_eq!(world.declare_dead(2, 0), Ok(vec!["az-a".to_owned()]));
    // With one of them out of question, there is nobody to ask about the other.
    let all = |world: &World| (0..3).all(|gateway| world.is_at(gateway, 2));
    let took = world.run_until(Duration::from_secs(20), all).unwrap();
    assert!(took < Duration::from_secs(15), "{took:?}");
    world.run_until(Duration::from_secs(2), |world| world.gateway(2, 0).role == Role::Active).unwrap();
    assert_eq!(world.gateway(2, 0).why, Some(Why::Silence));
    assert_eq!(world.declare_dead(2, 0), Err(OrderError::NothingThere("az-a".to_owned())));
    // Back, they get their gateways back like after any other failure.
    world.start(0);
    world.start(1);
    world.run_until(Duration::from_secs(400), |world| (0..3).all(|index| world.is_at(index, index))).unwrap();
    world.well();
}

#[test]
fn those_who_are_left_take_over_if_they_are_more_than_half() {
    for (instances, lost, is_taken) in
        [(2, 1, true), (3, 1, true), (4, 1, true), (4, 2, false), (5, 2, true), (5, 3, false)]
    {
        let mut world = World::steady(&Setup { instances, ..Setup::default() });
        (0..lost).for_each(|index| world.crash(index));
        world.run(Duration::from_secs(60));
        for gateway in 0..lost {
            let is_at_a_living = (lost..instances).any(|host| world.is_at(gateway, host));
            assert_eq!(is_at_a_living, is_taken, "{gateway} of {instances} without {lost}");
        }
        world.well();
    }
}

#[test]
fn operator_is_not_believed_that_somebody_is_dead_whom_anybody_hears() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    assert_eq!(world.declare_dead(2, 0), Err(OrderError::Heard("az-a".to_owned())));
    world.part(2, 0);
    world.run(Duration::from_secs(10));
    let heard = OrderError::HeardBy { peer: "az-a".to_owned(), by: "az-b".to_owned() };
    assert_eq!(world.declare_dead(2, 0), Err(heard));
    assert!(matches!(world.declare_dead(2, 7), Err(OrderError::NoPeer(_))));
    world.crash(0);
    world.crash(1);
    world.set_egress(2, false);
    world.run(Duration::from_secs(10));
    assert_eq!(world.declare_dead(2, 0), Err(OrderError::Unfit));
    assert_eq!((0..3).map(|gateway| world.moves(gateway)).sum::<usize>(), 0);
    world.well();
}

#[test]
fn host_that_an_operator_is_wrong_about_stands_down_and_gets_its_gateway_back() {
    for seed in 1..=10 {
        let mut world = World::steady(&Setup { seed, instances: 3, allocations: 2, ..Setup::default() });
        world.isolate(2);
        // By then the others have taken what it had.
        world.run(Duration::from_secs(10));
        assert!(world.declare_dead(2, 0).unwrap().contains(&"az-a".to_owned()), "seed {seed}");
        world.run_until(Duration::from_secs(30), |world| world.is_at(0, 2)).unwrap();
        // Nobody tells it: it sees so when it looks next.
        let has_seen = |world: &World| !world.nodes[0].active.contains_key("az-a");
        world.run_until(Duration::from_secs(70), has_seen).unwrap();
        world.run(Duration::from_secs(300));
        world.heal();
        world
            .run_until(Duration::from_secs(400), |world| (0..3).all(|index| world.is_at(index, index)))
            .unwrap();
        world.well();
    }
}

#[test]
fn instance_cut_off_from_everything_takes_nothing() {
    let mut world = World::steady(&Setup::default());
    world.isolate(0);
    world.set_egress(0, false);
    world.run(Duration::from_secs(300));
    assert!(world.is_at(0, 1) && world.is_at(1, 1));
    assert_eq!(world.moves(1), 0);
    world.heal();
    world.run(Duration::from_secs(2));
    // It is still without egress.
    assert_eq!(world.gateway(0, 0).role, Role::Standby);
    world.set_egress(0, true);
    world.run(Duration::from_secs(300));
    assert!(world.is_at(0, 0));
    world.well();
}
