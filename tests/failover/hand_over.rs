//! Planned moves: orders, notices, failback.

use std::time::Duration;

use egret::failover::{Event, Failback, NotHandedOver, OrderError, Planned, Role, Unwilling, Why};

use crate::world::{Setup, World, name};

const HOLD_DOWN: Duration = Duration::from_secs(120);

#[test]
fn old_host_forwards_until_the_new_one_has_everything_it_needs() {
    for seed in 1..=20 {
        let mut world = World::steady(&Setup { seed, tables: 2, ..Setup::default() });
        world.hand_over(0, 0, 1).unwrap();
        // As long as the address is where it was, so is the old host.
        let left =
            world.run_until(Duration::from_secs(10), |world| !world.nodes[0].active.contains_key("az-a"));
        assert!(
            left.is_some() && world.has_addresses(0, 1),
            "seed {seed}: it stood down before it was relieved"
        );
        let took = world.run_until(Duration::from_secs(10), |world| world.gateway(1, 0).role == Role::Active);
        assert!(took.is_some() && world.is_at(0, 1));
        assert_eq!(world.gateway(1, 0).why, Some(Why::HandOver(Planned::Operator)));
        assert_eq!(world.moves(0), 1);
        world.well();
    }
}

#[test]
fn operators_order_stays_until_another() {
    let mut world = World::steady(&Setup::default());
    world.hand_over(0, 0, 1).unwrap();
    world.run(Duration::from_secs(1_200));
    assert!(world.is_at(0, 1), "failback does not undo it");
    world.hand_over(1, 0, 0).unwrap();
    world.run(Duration::from_secs(5));
    assert!(world.is_at(0, 0));
    world.well();
}

#[test]
fn unwell_peer_refuses_and_says_why() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.set_egress(1, false);
    world.run(Duration::from_millis(1_500));
    world.hand_over(0, 0, 1).unwrap();
    world.run(Duration::from_secs(1));
    let why = NotHandedOver::Refused(Unwilling::Egress);
    assert!(world.has_event(0, |event| *event == Event::NotHandedOver { gateway: name(0), to: name(1), why }));
    assert_eq!((world.host_of(0), world.moves(0)), (Some(0), 0));
    assert!(world.nodes[0].active.contains_key("az-a"));
    world.set_leaving(2, true);
    world.hand_over(0, 0, 2).unwrap();
    world.run(Duration::from_secs(1));
    let why = NotHandedOver::Refused(Unwilling::Leaving);
    assert!(world.has_event(0, |event| *event == Event::NotHandedOver { gateway: name(0), to: name(2), why }));
    world.well();
}

#[test]
fn peer_that_has_accepted_since_it_refused_is_offered_a_gateway_at_once() {
    let mut world = World::steady(&Setup::default());
    world.set_egress(1, false);
    world.run(Duration::from_secs(1));
    world.hand_over(0, 0, 1).unwrap();
    world.run(Duration::from_secs(1));
    assert!(world.has_event(0, |event| matches!(event, Event::NotHandedOver { .. })));
    world.set_egress(1, true);
    world.run(Duration::from_secs(3));
    for (from, to) in [(0, 1), (1, 0)] {
        world.hand_over(from, 0, to).unwrap();
        let is_active = |world: &World| world.is_at(0, to) && world.gateway(to, 0).role == Role::Active;
        world.run_until(Duration::from_secs(3), is_active).unwrap();
    }
    world.set_leaving(0, true);
    world.run_until(Duration::from_secs(2), |world| world.host_of(0) == Some(1)).unwrap();
    // The routes follow as soon as EC2 is sure to show the last change of them.
    world.run_until(Duration::from_secs(6), |world| world.is_at(0, 1)).unwrap();
    world.well();
}

#[test]
fn order_that_cannot_be_carried_out_is_refused_at_once() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    assert_eq!(world.hand_over(0, 7, 1), Err(OrderError::NoGateway(name(7))));
    assert_eq!(world.hand_over(0, 0, 7), Err(OrderError::NoPeer(name(7))));
    assert_eq!(world.hand_over(0, 0, 0), Err(OrderError::NoPeer(name(0))));
    assert!(matches!(world.hand_over(0, 1, 2), Err(OrderError::NotHere { .. })));
    world.hand_over(0, 0, 1).unwrap();
    assert_eq!(world.hand_over(0, 0, 2), Err(OrderError::UnderWay(name(0))));
    world.crash(2);
    world.run(Duration::from_secs(20));
    assert_eq!(world.hand_over(1, 0, 2), Err(OrderError::NotHeard(name(2))));
    world.well();
}

#[test]
fn peer_that_dies_during_a_hand_over_leaves_the_gateway_with_a_living_one() {
    for millis in (0..1_500).step_by(50) {
        let mut world = World::steady(&Setup { allocations: 2, ..Setup::default() });
        world.hand_over(0, 0, 1).unwrap();
        world.run(Duration::from_millis(millis));
        world.crash(1);
        let took = world.run_until(Duration::from_secs(90), |world| world.is_at(0, 0));
        assert!(took.is_some(), "after {millis} ms");
        world.well();
    }
}

#[test]
fn host_that_dies_during_a_hand_over_is_relieved_all_the_same() {
    for millis in (0..1_500).step_by(50) {
        let mut world = World::steady(&Setup { allocations: 2, ..Setup::default() });
        world.hand_over(0, 0, 1).unwrap();
        world.run(Duration::from_millis(millis));
        world.crash(0);
        let took = world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1));
        assert!(took.is_some(), "after {millis} ms");
        world.well();
    }
}

#[test]
fn gateway_goes_home_by_itself_after_the_hold_down() {
    let mut world = World::steady(&Setup::default());
    world.crash(0);
    world.run(Duration::from_secs(300));
    assert!(world.is_at(0, 1));
    world.start(0);
    let took = world.run_until(Duration::from_secs(600), |world| world.is_at(0, 0)).unwrap();
    assert!(took >= HOLD_DOWN && took < HOLD_DOWN + Duration::from_secs(10), "{took:?}");
    assert_eq!(world.gateway(0, 0).why, Some(Why::HandOver(Planned::Failback)));
    world.well();
}

#[test]
fn home_that_keeps_falling_ill_does_not_get_its_gateway() {
    let mut world = World::steady(&Setup::default());
    world.set_egress(0, false);
    world.run(Duration::from_secs(300));
    for _ in 0..10 {
        world.set_egress(0, true);
        world.run(HOLD_DOWN * 19 / 20);
        world.set_egress(0, false);
        world.run(Duration::from_secs(3));
    }
    assert_eq!(world.moves(0), 1);
    world.well();
}

#[test]
fn manual_failback_waits_for_an_order() {
    let mut world = World::steady(&Setup { failback: Failback::Manual, ..Setup::default() });
    world.crash(0);
    world.run(Duration::from_secs(60));
    world.start(0);
    world.run(Duration::from_secs(3_600));
    assert!(world.is_at(0, 1));
    world.hand_over(1, 0, 0).unwrap();
    world.run(Duration::from_secs(5));
    assert!(world.is_at(0, 0));
    world.well();
}

#[test]
fn notice_hands_everything_to_peers_before_the_end() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.set_leaving(0, true);
    let is_free = |world: &World| world.nodes[0].fleet.as_ref().unwrap().hosted().next().is_none();
    let took = world.run_until(Duration::from_secs(60), is_free).unwrap();
    println!("from the notice to having nothing left: {took:?}");
    assert!(world.is_at(0, 1) && took < Duration::from_secs(5), "{took:?}");
    world.terminate(0);
    world.run(Duration::from_secs(60));
    assert_eq!(world.moves(0), 1);
    world.well();
}

#[test]
fn notice_goes_to_the_next_if_the_first_does_not_take_it() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.set_api(1, false);
    world.run(Duration::from_secs(5));
    world.set_leaving(0, true);
    let took = world.run_until(Duration::from_secs(120), |world| world.is_at(0, 2)).unwrap();
    println!("by way of one that could not: {took:?}");
    world.well();
}

#[test]
fn notice_that_is_withdrawn_leaves_nothing_behind() {
    let mut world = World::steady(&Setup::default());
    world.set_leaving(0, true);
    world.run(Duration::from_secs(30));
    assert!(world.is_at(0, 1));
    world.set_leaving(0, false);
    world.run(Duration::from_secs(80));
    assert!(world.is_at(0, 1), "the hold-down applies");
    world.run(Duration::from_secs(30));
    assert!(world.is_at(0, 0));
    world.well();
}

#[test]
fn notice_without_anybody_to_take_over_keeps_forwarding() {
    let mut world = World::steady(&Setup { instances: 1, ..Setup::default() });
    world.set_leaving(0, true);
    world.run(Duration::from_secs(120));
    assert!(world.is_at(0, 0) && world.nodes[0].active.contains_key("az-a"));
    world.well();
}
