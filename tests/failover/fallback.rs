//! The standby managed NAT gateway: when nobody is well.

use std::time::Duration;

use egret::failover::{Event, Role};

use crate::world::{Setup, World};

const HOLD_DOWN: Duration = Duration::from_secs(120);

fn with_fallback(instances: usize) -> World {
    World::steady(&Setup { instances, fallback: true, tables: 2, ..Setup::default() })
}

#[test]
fn routes_go_to_the_fallback_when_nobody_is_well_and_come_back_after_the_hold_down() {
    let mut world = with_fallback(1);
    world.set_egress(0, false);
    let took = world.run_until(Duration::from_secs(30), |world| world.routes_lead_to(0, "nat-a")).unwrap();
    println!("from the egress being gone to the fallback: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    world.run(Duration::from_secs(600));
    assert!(world.has_addresses(0, 0) && world.gateway(0, 0).role == Role::Fallback);
    world.set_egress(0, true);
    let took = world.run_until(Duration::from_secs(600), |world| world.is_at(0, 0)).unwrap();
    assert!(took >= HOLD_DOWN, "{took:?}");
    assert!(world.has_event(0, |event| matches!(event, Event::TakenBack { .. })));
    world.well();
}

#[test]
fn health_that_comes_and_goes_does_not_make_the_routes_flap() {
    let mut world = with_fallback(1);
    for _ in 0..20 {
        world.set_egress(0, false);
        world.run(Duration::from_secs(30));
        world.set_egress(0, true);
        world.run(Duration::from_secs(90));
    }
    let fell =
        world.nodes[0].events.iter().filter(|(_, event)| matches!(event, Event::FellBack { .. })).count();
    assert_eq!(fell, 1);
    assert!(world.routes_lead_to(0, "nat-a"));
    world.well();
}

#[test]
fn well_peer_is_preferred_to_the_fallback() {
    let mut world = with_fallback(2);
    world.set_egress(0, false);
    world.run(Duration::from_secs(10));
    assert!(world.is_at(0, 1));
    assert!(!world.has_event(0, |event| matches!(event, Event::FellBack { .. })));
    world.well();
}

#[test]
fn peer_that_gets_well_relieves_the_fallback_after_the_hold_down() {
    let mut world = with_fallback(2);
    world.set_egress(1, false);
    world.run(Duration::from_secs(5));
    world.set_egress(0, false);
    world.run(Duration::from_secs(60));
    assert!(world.routes_lead_to(0, "nat-a") && world.routes_lead_to(1, "nat-b"));
    world.set_egress(1, true);
    world.run(HOLD_DOWN * 19 / 20);
    assert!(world.routes_lead_to(0, "nat-a"), "a passing health is no reason");
    world.run(Duration::from_secs(30));
    assert!(world.is_at(0, 1) && world.is_at(1, 1));
    world.well();
}

#[test]
fn notice_without_a_well_peer_leads_the_routes_to_the_fallback() {
    let mut world = with_fallback(2);
    world.crash(1);
    world.run(Duration::from_secs(10));
    assert!(world.is_at(1, 0));
    world.set_leaving(0, true);
    let is_led = |world: &World| world.routes_lead_to(0, "nat-a") && world.routes_lead_to(1, "nat-b");
    let took = world.run_until(Duration::from_secs(10), is_led).unwrap();
    println!("from the notice to the fallback: {took:?}");
    world.terminate(0);
    world.run(Duration::from_secs(300));
    assert!(is_led(&world), "it serves while nobody is there");
    // A new instance has the address at once, and the routes when it has shown that it is well.
    world.start(0);
    world.run(Duration::from_secs(10));
    assert!(world.has_addresses(0, 0) && world.routes_lead_to(0, "nat-a"));
    world.run(HOLD_DOWN + Duration::from_secs(10));
    assert!(world.is_at(0, 0));
    world.well();
}

#[test]
fn peers_that_do_not_take_over_in_time_are_not_waited_for() {
    let mut world = with_fallback(2);
    // Well, as it says; but EC2 does not hear it.
    world.set_api(1, false);
    world.run(Duration::from_secs(5));
    world.set_egress(0, false);
    let took = world.run_until(Duration::from_secs(120), |world| world.routes_lead_to(0, "nat-a")).unwrap();
    assert!(took < Duration::from_secs(40), "{took:?}");
    world.well();
}
