//! Instances that live and do not hear each other.

use std::time::Duration;

use egret::failover::{Life, Role};

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
