//! Round-robin and least-connections. (For the flow hash see `flow_hash`.)

use std::collections::BTreeMap;
use std::net::SocketAddr;

use egret::balance::{Algorithm, Config, Target};

use crate::rig::*;

pub const ALGORITHMS: [Algorithm; 3] =
    [Algorithm::FlowHash, Algorithm::RoundRobin, Algorithm::LeastConnections];

fn by(algorithm: Algorithm, targets: &[Target]) -> Rig {
    Rig::healthy(Config { algorithm, ..quick() }, targets)
}

/// How many of `clients` go to each target, their connections being over at once.
pub fn shares(rig: &mut Rig, clients: u32) -> BTreeMap<SocketAddr, u32> {
    let mut shares = BTreeMap::new();
    for number in 0..clients {
        *shares.entry(rig.visit(client(number)).unwrap()).or_default() += 1;
    }
    shares
}

#[test]
fn round_robin_gives_turns_by_weight_and_spreads_those_of_the_heavy() {
    let mut rig = by(Algorithm::RoundRobin, &[weighted(1, 5), weighted(2, 1), weighted(3, 1)]);
    let turns: Vec<_> = (0..14).map(|number| rig.visit(client(number)).unwrap()).collect();
    let round = [1, 1, 2, 1, 3, 1, 1].map(at);
    assert_eq!(turns, [round, round].concat());
}

#[test]
fn round_robin_goes_on_evenly_when_a_target_leaves_and_returns() {
    let mut rig = by(Algorithm::RoundRobin, &targets([1, 2, 3]));
    shares(&mut rig, 100);
    rig.answer(at(2), REFUSES);
    rig.run(SECOND);
    let two = shares(&mut rig, 100);
    assert!(two.len() == 2 && two.values().all(|share| share.abs_diff(50) <= 1), "{two:?}");
    rig.answer(at(2), WELL);
    rig.run(SECOND);
    let shares = shares(&mut rig, 300);
    assert!(shares.values().all(|share| share.abs_diff(100) <= 1), "{shares:?}");
}

#[test]
fn least_connections_fills_up_by_weight() {
    let mut rig = by(Algorithm::LeastConnections, &[weighted(1, 1), weighted(2, 2), weighted(3, 4)]);
    for number in 0..700 {
        rig.select(client(number)).unwrap();
    }
    assert_eq!([1, 2, 3].map(|number| rig.connections(at(number))), [100, 200, 400]);
}

#[test]
fn least_connections_sends_to_where_connections_ended() {
    let mut rig = by(Algorithm::LeastConnections, &targets([1, 2, 3]));
    for number in 0..30 {
        rig.select(client(number)).unwrap();
    }
    for _ in 0..4 {
        rig.close(at(2));
    }
    let next: Vec<_> = (0..4).map(|number| rig.select(client(number)).unwrap()).collect();
    assert_eq!(next, [at(2); 4]);
}

#[test]
fn least_connections_takes_turns_among_equals() {
    let mut rig = by(Algorithm::LeastConnections, &targets([1, 2, 3]));
    let shares = shares(&mut rig, 300);
    assert!(shares.values().all(|share| *share == 100), "{shares:?}");
}

#[test]
fn connections_that_nobody_selected_count_as_well() {
    let mut rig = by(Algorithm::LeastConnections, &targets([1, 2]));
    for _ in 0..10 {
        assert!(rig.group.opened(rig.now, at(1)));
    }
    assert!(!rig.group.opened(rig.now, at(9)), "no such target");
    let next: Vec<_> = (0..10).map(|number| rig.select(client(number)).unwrap()).collect();
    assert_eq!(next, [at(2); 10]);
}

#[test]
fn more_ends_than_begins_do_no_harm() {
    for algorithm in ALGORITHMS {
        let mut rig = by(algorithm, &targets([1]));
        rig.close(at(1));
        rig.close(at(9));
        assert_eq!(rig.connections(at(1)), 0);
        assert_eq!(rig.select(client(1)), Some(at(1)));
        assert_eq!(rig.connections(at(1)), 1);
    }
}

#[test]
fn change_of_the_algorithm_counts_at_once() {
    let mut rig = by(Algorithm::LeastConnections, &targets([1, 2]));
    let flow_hash = |rig: &mut Rig| (0..50).map(|number| rig.visit(client(number))).collect::<Vec<_>>();
    rig.group.reconfigure(rig.now, Config { algorithm: Algorithm::FlowHash, ..quick() }).unwrap();
    let mut other = by(Algorithm::FlowHash, &targets([1, 2]));
    assert_eq!(flow_hash(&mut rig), flow_hash(&mut other));
}
