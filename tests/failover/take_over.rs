//! A host that dies, hangs or falls ill, and who takes its gateway.

use std::time::Duration;

use egret::failover::{Abandoned, CallError, Event, Failback, Host, Life, Role, Why};

use crate::world::{Setup, Trouble, World, name};

#[test]
fn killed_host_is_replaced_within_three_seconds() {
    let mut slowest = Duration::ZERO;
    for seed in 1..=20 {
        let mut world = World::steady(&Setup { seed, ..Setup::default() });
        world.run(Duration::from_millis(seed * 37));
        world.crash(0);
        let took = world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1)).unwrap();
        slowest = slowest.max(took);
        world.run_until(Duration::from_secs(2), |world| world.gateway(1, 0).role == Role::Active).unwrap();
        assert!(world.has_event(1, |event| matches!(event, Event::Active { why: Why::Silence, .. })));
        assert_eq!(world.gateway(1, 0).host, Host::Instance(name(1)));
        world.well();
    }
    println!("from the kill to the routes replaced: at most {slowest:?}");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[test]
fn everybody_knows_why_a_gateway_is_where_it_is() {
    let mut world = World::steady(&Setup { instances: 3, failback: Failback::Manual, ..Setup::default() });
    for instance in 0..3 {
        assert!(world.gateway(instance, 0).why.is_some(), "of its home");
    }
    world.crash(0);
    world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1)).unwrap();
    world.run(Duration::from_secs(2));
    assert_eq!([1, 2].map(|instance| world.gateway(instance, 0).why), [Some(Why::Silence); 2]);
    // One that has come anew is told, and a host that has come anew does not change what the others know.
    world.start(0);
    world.run(Duration::from_secs(5));
    world.crash(1);
    world.start(1);
    world.run(Duration::from_secs(30));
    assert!(world.is_at(0, 1));
    assert_eq!([0, 2].map(|instance| world.gateway(instance, 0).why), [Some(Why::Silence); 2]);
    // Of an association that nobody has told anything of, nothing is known.
    let eni = world.nodes[2].config.eni.clone();
    world.pause(2);
    world.reassociate(0, &eni);
    world.run(Duration::from_secs(1));
    assert_eq!(world.gateway(0, 0).why, None);
    world.wake(2);
    world.run(Duration::from_secs(30));
    assert_eq!([0, 1].map(|instance| world.gateway(instance, 0).why), [world.gateway(2, 0).why; 2]);
    assert!(world.gateway(2, 0).why.is_some());
}

#[test]
fn terminated_instance_is_replaced_without_anything_to_dissolve() {
    let mut world = World::steady(&Setup { instances: 3, allocations: 2, ..Setup::default() });
    world.terminate(0);
    let took = world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1)).unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
    world.run(Duration::from_secs(60));
    assert_eq!(world.moves(0), 1);
    // Another instance of that name, with another interface, gets it back after the hold-down.
    world.start(0);
    let took = world.run_until(Duration::from_secs(600), |world| world.is_at(0, 0)).unwrap();
    assert!(took >= Duration::from_secs(118), "{took:?}");
    world.well();
}

#[test]
fn stopped_process_loses_its_gateway_and_writes_nothing_when_it_wakes() {
    for seed in 1..=20 {
        let mut world = World::steady(&Setup { seed, ..Setup::default() });
        world.pause(0);
        world.run(Duration::from_secs(20));
        assert!(world.is_at(0, 1));
        let changes = world.nodes[0].changes;
        world.wake(0);
        world.run_until(Duration::from_secs(2), |world| !world.nodes[0].active.contains_key("az-a")).unwrap();
        world.run(Duration::from_secs(100));
        assert_eq!(world.nodes[0].changes, changes, "it has written something");
        assert!(world.has_event(0, |event| matches!(event, Event::Asleep { .. })));
        assert!(world.is_at(0, 1) && world.is_at(1, 1));
        world.well();
    }
}

#[test]
fn host_that_wakes_to_an_address_with_nobody_is_not_active_before_it_has_all() {
    let mut world = World::steady(&Setup { allocations: 2, ..Setup::default() });
    world.pause(0);
    world.run_until(Duration::from_secs(10), |world| world.nodes[1].active.contains_key("az-a")).unwrap();
    // The new host hangs, with the second address; somebody dissolves the first.
    world.pause(1);
    world.disassociate(0);
    world.wake(0);
    world.run(Duration::from_secs(2));
    assert!(!world.nodes[0].active.contains_key("az-a"));
    world.run_until(Duration::from_secs(30), |world| world.is_at(0, 0)).unwrap();
    world.well();
}

#[test]
fn waking_instance_does_not_act_on_the_silence_it_slept_through() {
    for seed in 1..=20 {
        let mut world = World::steady(&Setup { seed, ..Setup::default() });
        world.pause(1);
        world.run(Duration::from_secs(30));
        assert!(world.is_at(1, 0), "its own gateway went to the peer");
        world.wake(1);
        world.run(Duration::from_secs(60));
        assert_eq!(world.moves(0), 0, "it has taken the gateway of a peer that lives");
        world.well();
    }
}

#[test]
fn unwell_host_is_relieved_by_a_well_peer() {
    for failure in [World::set_egress, World::set_worker] {
        let mut world = World::steady(&Setup::default());
        failure(&mut world, 0, false);
        let took = world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1)).unwrap();
        assert!(took >= Duration::from_secs(2), "not for a passing weakness: {took:?}");
        world.run(Duration::from_secs(2));
        assert!(world.has_event(1, |event| matches!(event, Event::Active { why: Why::Unwell, .. })));
        assert!(!world.nodes[0].active.contains_key("az-a"), "the old host has stood down");
        world.well();
    }
}

#[test]
fn passing_weakness_moves_nothing() {
    let mut world = World::steady(&Setup::default());
    for _ in 0..20 {
        world.set_egress(0, false);
        world.run(Duration::from_millis(1_500));
        world.set_egress(0, true);
        world.run(Duration::from_secs(3));
    }
    assert_eq!(world.moves(0), 0);
    world.well();
}

#[test]
fn nobody_takes_over_without_an_egress_of_its_own() {
    let mut world = World::steady(&Setup::default());
    world.set_egress(1, false);
    world.run(Duration::from_secs(30));
    world.crash(0);
    world.run(Duration::from_secs(600));
    assert_eq!(world.host_of(0), Some(0));
    world.set_egress(1, true);
    let took = world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1)).unwrap();
    println!("from the egress being back to the routes replaced: {took:?}");
    world.well();
}

#[test]
fn nobody_takes_over_while_its_own_health_is_unknown() {
    let mut world = World::steady(&Setup::default());
    world.crash(1);
    world.nodes[1].probes = false;
    world.start(1);
    world.run(Duration::from_secs(200));
    world.crash(0);
    world.run(Duration::from_secs(600));
    assert_eq!(world.host_of(0), Some(0));
    assert_eq!(world.peer(1, 0).life, Life::Dead);
    world.nodes[1].probes = true;
    world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1)).unwrap();
    world.well();
}

#[test]
fn two_heirs_that_do_not_hear_each_other_race_and_one_wins() {
    let mut losers = 0;
    for seed in 1..=30 {
        let mut world = World::steady(&Setup { seed, instances: 3, allocations: 2, ..Setup::default() });
        world.part(1, 2);
        world.run(Duration::from_secs(1));
        // Both hear the host, and that it is unwell; neither knows that the other lives.
        world.set_egress(0, false);
        world.run(Duration::from_secs(10));
        let host = world.host_of(0).unwrap();
        assert!(host != 0 && world.is_at(0, host), "seed {seed}");
        assert_eq!(world.moves(0), 1, "seed {seed}");
        let has_lost = |event: &Event| matches!(event, Event::Abandoned { why: Abandoned::Lost, .. });
        losers += (1..3).filter(|index| world.has_event(*index, has_lost)).count();
        world.well();
    }
    assert!(losers > 5, "there were hardly any races: {losers}");
}

#[test]
fn second_heir_waits_for_its_turn() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    // The first heir is well, and does not reach EC2.
    world.set_api(1, false);
    world.run(Duration::from_secs(20));
    world.crash(0);
    let took = world.run_until(Duration::from_secs(60), |world| world.is_at(0, 2)).unwrap();
    assert!((10..16).contains(&took.as_secs()), "{took:?}");
    world.well();
}

#[test]
fn second_heir_does_not_wait_for_one_that_cannot() {
    let mut world = World::steady(&Setup { instances: 3, ..Setup::default() });
    world.set_egress(1, false);
    // Its own gateway goes first.
    world.run(Duration::from_secs(20));
    assert!(world.is_at(1, 2));
    world.crash(0);
    let took = world.run_until(Duration::from_secs(60), |world| world.is_at(0, 2)).unwrap();
    assert!(took < Duration::from_secs(3), "{took:?}");
    world.well();
}

#[test]
fn stale_association_is_observed_anew_before_anything_else() {
    let mut world = World::steady(&Setup::default());
    world.set_worker(0, false);
    world.run(Duration::from_millis(1_900));
    // Somebody associates the address with the host anew, just before it is taken: the id is another one.
    world.reassociate(0, "eni-a0");
    let stale = |event: &Event| matches!(event, Event::CallFailed { error: CallError::StaleAssociation, .. });
    world.run_until(Duration::from_secs(5), |world| world.has_event(1, stale)).unwrap();
    let looks = world.nodes[1].looks;
    world.run_until(Duration::from_secs(5), |world| world.is_at(0, 1)).unwrap();
    assert!(world.nodes[1].looks > looks);
    world.well();
}

#[test]
fn api_that_is_down_during_the_failure_delays_and_nothing_more() {
    let mut world = World::steady(&Setup { allocations: 2, tables: 2, ..Setup::default() });
    (0..2).for_each(|index| world.set_api(index, false));
    world.run(Duration::from_secs(60));
    world.crash(0);
    world.run(Duration::from_secs(300));
    assert_eq!(world.host_of(0), Some(0));
    let calls = world.nodes[1].changes;
    assert!(calls < 40, "it has tried {calls} times");
    world.set_api(1, true);
    let took = world.run_until(Duration::from_secs(60), |world| world.is_at(0, 1)).unwrap();
    println!("from the API being back to the routes replaced: {took:?}");
    assert!(took < Duration::from_secs(45), "{took:?}");
    world.well();
}

#[test]
fn throttled_calls_are_made_again_at_growing_intervals() {
    let mut world = World::steady(&Setup { tables: 2, ..Setup::default() });
    world.trouble = Trouble { throttled: 1_000, ..Trouble::default() };
    world.crash(0);
    world.run(Duration::from_secs(120));
    let calls = world.nodes[1].changes + world.nodes[1].looks;
    assert!(calls < 50, "it has tried {calls} times");
    world.trouble = Trouble { throttled: 300, ..Trouble::default() };
    world.run_until(Duration::from_secs(120), |world| world.is_at(0, 1)).unwrap();
    world.well();
}

#[test]
fn call_that_happened_and_was_answered_with_a_timeout_is_found_out() {
    for trouble in
        [Trouble { answer_lost: 1_000, ..Trouble::default() }, Trouble { late: 1_000, ..Trouble::default() }]
    {
        let mut world = World::steady(&Setup { allocations: 2, ..Setup::default() });
        world.crash(0);
        let is_taking = |world: &World| world.gateway(1, 0).role == Role::Taking;
        world.run_until(Duration::from_secs(5), is_taking).unwrap();
        world.trouble = trouble;
        world.run(Duration::from_secs(8));
        world.trouble = Trouble::default();
        world.run_until(Duration::from_secs(60), |world| world.is_at(0, 1)).unwrap();
        world.run(Duration::from_secs(60));
        assert_eq!(world.moves(0), 1);
        assert_eq!(world.unsettled(), None);
        world.well();
    }
}

#[test]
fn host_that_was_heard_with_its_address_is_not_taken_for_one_that_was_cut_off() {
    let mut world = World::steady(&Setup::default());
    // The peer sees the new association only when the host is dead; but the host had told it.
    world.set_api(1, false);
    world.reassociate(0, "eni-a0");
    world.run(Duration::from_secs(70));
    world.set_api(1, true);
    world.crash(0);
    let took = world.run_until(Duration::from_secs(60), |world| world.is_at(0, 1)).unwrap();
    assert!(took < Duration::from_secs(45), "{took:?}");
    world.well();
}

#[test]
fn old_descriptions_do_not_unsettle_a_take_over() {
    for seed in 1..=20 {
        let lag = Duration::from_secs(4);
        let mut world = World::steady(&Setup { seed, allocations: 2, lag, ..Setup::default() });
        world.run(Duration::from_secs(30));
        let changes = world.nodes[1].changes;
        world.crash(0);
        world.run(Duration::from_secs(60));
        assert!(world.is_at(0, 1), "seed {seed}");
        let took = |event: &Event| matches!(event, Event::TakingOver { gateway, .. } if gateway == "az-a");
        let events = world.nodes[1].events.iter().filter(|(_, event)| took(event));
        assert_eq!(events.count(), 1, "seed {seed}");
        let wavers = |event: &Event| matches!(event, Event::Abandoned { .. } | Event::StoodDown { .. });
        assert!(!world.has_event(1, wavers), "seed {seed}");
        // Two addresses to dissolve and to associate, and one route; nothing twice.
        assert_eq!(world.nodes[1].changes - changes, 5, "seed {seed}");
        world.well();
    }
}

#[test]
fn restarted_instance_takes_the_gateway_of_one_that_died_meanwhile() {
    let mut world = World::steady(&Setup::default());
    world.crash(1);
    world.run(Duration::from_millis(200));
    world.crash(0);
    world.start(1);
    // It has never heard it, and waits as long as after a move.
    world.run(Duration::from_secs(100));
    assert_eq!(world.host_of(0), Some(0));
    world.run_until(Duration::from_secs(60), |world| world.is_at(0, 1)).unwrap();
    world.well();
}

#[test]
fn host_that_restarts_in_time_keeps_its_gateway() {
    let mut world = World::steady(&Setup::default());
    for _ in 0..5 {
        world.crash(0);
        world.run(Duration::from_millis(500));
        world.start(0);
        world.run(Duration::from_secs(10));
    }
    assert_eq!(world.moves(0), 0);
    assert_eq!(world.gateway(0, 0).role, Role::Active);
    assert_eq!(world.gateway(0, 0).why, Some(Why::Found));
    world.well();
}

#[test]
fn address_on_an_interface_of_nobody_is_left_there() {
    let mut world = World::steady(&Setup::default());
    world.reassociate(0, "eni-other");
    world.run(Duration::from_secs(600));
    assert_eq!(world.ec2.holder("eipalloc-a0"), Some("eni-other"));
    for index in 0..2 {
        let status = world.gateway(index, 0);
        assert_eq!(status.host, Host::Stranger("eni-other".to_owned()));
        assert!(status.trouble.unwrap().contains("disassociate it by hand"));
    }
    world.well();
}

#[test]
fn route_that_drifts_is_put_back() {
    let mut world = World::steady(&Setup { tables: 2, ..Setup::default() });
    let (table, destination) = ("rtb-a1".to_owned(), "0.0.0.0/0".parse().unwrap());
    for target in ["eni-other", "eni-b0"] {
        world.ec2.truth.routes.insert((table.clone(), destination), target.to_owned());
        world.ec2.note(world.now);
        assert!(!world.is_at(0, 0));
        let took = world.run_until(Duration::from_secs(80), |world| world.is_at(0, 0)).unwrap();
        println!("from {target} back: {took:?}");
    }
    world.ec2.truth.routes.remove(&(table, destination));
    world.ec2.note(world.now);
    world.run_until(Duration::from_secs(80), |world| world.is_at(0, 0)).unwrap();
    assert!(world.has_event(0, |event| matches!(event, Event::Mending { .. })));
    world.well();
}

#[test]
fn table_that_does_not_exist_does_not_keep_the_rest_from_being_led() {
    let mut world = World::steady(&Setup { tables: 2, ..Setup::default() });
    world.ec2.truth.tables.remove("rtb-a1");
    world.ec2.truth.routes.retain(|(table, _), _| table != "rtb-a1");
    world.ec2.note(world.now);
    world.crash(0);
    world.run(Duration::from_secs(10));
    let status = world.gateway(1, 0);
    assert_eq!(status.role, Role::Active);
    assert!(status.trouble.unwrap().contains("rtb-a1"));
    world.well();
}

#[test]
fn changed_definition_is_followed_by_the_host_and_its_heirs() {
    let whole = Setup { allocations: 2, tables: 2, ..Setup::default() };
    let mut world = World::steady(&whole);
    let mut small = world.nodes[0].config.clone();
    small.home.allocations.truncate(1);
    small.home.route_tables.truncate(1);
    world.configure(0, small);
    world.run(Duration::from_secs(5));
    assert_eq!(world.nodes[0].active["az-a"].len(), 1, "the other address is none of its own any more");
    world.crash(0);
    world.run(Duration::from_secs(5));
    assert_eq!(world.ec2.holder("eipalloc-a0"), Some("eni-b0"));
    assert_eq!(world.ec2.holder("eipalloc-a1"), Some("eni-a0"), "nobody moves it");
    // It comes back with all that it had.
    world.start(0);
    world.run_until(Duration::from_secs(10), |world| world.is_at(0, 1)).unwrap();
    world.run(Duration::from_secs(2));
    assert_eq!(world.nodes[1].active["az-a"].len(), 2);
    world.well();
}
