//! Maglev hashing: even shares, the same on every instance, and few flows that move.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use egret::balance::{Config, Target};
use proptest::prelude::*;

use crate::rig::*;
use crate::selection::shares;

/// The targets of many clients.
fn choices(rig: &mut Rig, clients: u32) -> Vec<SocketAddr> {
    (0..clients).map(|number| rig.visit(client(number)).unwrap()).collect()
}

/// Of the flows that were not `gone`'s, the part that has another target in `after`.
fn moved(before: &[SocketAddr], after: &[SocketAddr], gone: SocketAddr) -> f64 {
    let others: Vec<_> = before.iter().zip(after).filter(|(before, _)| **before != gone).collect();
    others.iter().filter(|(before, after)| before != after).count() as f64 / others.len() as f64
}

#[test]
fn same_flow_goes_to_the_same_target() {
    let mut rig = Rig::healthy(quick(), &targets(1..=10));
    let once = choices(&mut rig, 1_000);
    assert_eq!(choices(&mut rig, 1_000), once);
}

#[test]
fn instances_agree_whatever_their_seed_and_the_order_of_their_targets() {
    let mut one = Rig::seeded(quick(), &targets(1..=10), [1; 16]);
    let mut other = Rig::seeded(quick(), &targets((1..=10).rev()), [2; 16]);
    assert_eq!(choices(&mut one, 1_000), choices(&mut other, 1_000));
}

#[test]
fn instance_with_a_draining_target_agrees_with_one_that_never_knew_it() {
    let mut one = Rig::healthy(quick(), &targets(1..=10));
    one.group.opened(one.now, at(10));
    one.set_targets(&targets(1..=9));
    assert_eq!(one.connections(at(10)), 1);
    let mut other = Rig::healthy(quick(), &targets(1..=9));
    assert_eq!(choices(&mut one, 1_000), choices(&mut other, 1_000));
}

#[test]
fn key_decides_who_goes_where() {
    let mut one = Rig::healthy(quick(), &targets(1..=10));
    let mut other = Rig::healthy(Config { key: [9; 16], ..quick() }, &targets(1..=10));
    let same = choices(&mut one, 1_000).iter().zip(choices(&mut other, 1_000)).filter(|(a, b)| *a == b).count();
    assert!((50..200).contains(&same), "{same} of 1000, where chance gives 100");
}

/// Instances of two versions serve side by side during an update, and connections move between them.
#[test]
fn versions_agree() {
    let mut rig = Rig::healthy(quick(), &[weighted(1, 1), weighted(2, 1), weighted(3, 2), backup(4)]);
    let chosen: Vec<u8> =
        choices(&mut rig, 24).iter().map(|target| target.to_string().as_bytes()[8] - b'0').collect();
    assert_eq!(chosen, PINNED);
}

const PINNED: [u8; 24] = [3, 3, 1, 3, 3, 2, 3, 2, 3, 1, 3, 3, 3, 3, 1, 1, 1, 2, 1, 2, 2, 2, 3, 3];

#[test]
fn address_mapped_into_ipv6_is_the_same_client() {
    let mut rig = Rig::healthy(quick(), &targets(1..=10));
    for number in 0..100 {
        let plain = client(number);
        let SocketAddr::V4(v4) = plain else { unreachable!() };
        let mapped = SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()));
        assert_eq!(rig.visit(mapped), rig.visit(plain));
    }
}

#[test]
fn ill_health_moves_the_flows_of_the_ill_target_alone_and_to_all_others() {
    let mut rig = Rig::healthy(quick(), &targets(1..=10));
    let before = choices(&mut rig, 20_000);
    rig.answer(at(4), REFUSES);
    rig.run(SECOND);
    let after = choices(&mut rig, 20_000);
    assert!(moved(&before, &after, at(4)) == 0.0);
    let heirs = before.iter().zip(&after).filter(|(before, _)| **before == at(4)).map(|(_, after)| *after);
    let heirs: Vec<_> = heirs.collect();
    for number in (1..=10).filter(|number| *number != 4) {
        let share = heirs.iter().filter(|heir| **heir == at(number)).count() as f64 / heirs.len() as f64;
        assert!((0.09..0.13).contains(&share), "{number} inherits {share}, a ninth is 0.11");
    }
    rig.answer(at(4), WELL);
    rig.run(SECOND);
    assert_eq!(choices(&mut rig, 20_000), before, "and home again");
}

#[test]
fn removal_moves_few_flows_of_the_others() {
    let mut rig = Rig::healthy(quick(), &targets(1..=10));
    let before = choices(&mut rig, 20_000);
    rig.set_targets(&targets((1..=10).filter(|number| *number != 4)));
    let after = choices(&mut rig, 20_000);
    assert!(!after.contains(&at(4)));
    let moved = moved(&before, &after, at(4));
    // Of a hash modulo the number of targets, nine tenths would.
    assert!(moved < 0.05, "{moved} have moved");
}

#[test]
fn retry_is_the_same_on_every_instance() {
    let mut one = Rig::seeded(quick(), &targets(1..=10), [1; 16]);
    let mut other = Rig::seeded(quick(), &targets(1..=10), [2; 16]);
    let mut second = BTreeSet::new();
    for number in 0..500 {
        let client = client(number);
        let first = one.visit(client).unwrap();
        let [here, there] =
            [&mut one, &mut other].map(|rig| rig.group.select(rig.now, client, &[first]).unwrap());
        assert!(here == there && here != first);
        second.insert((first, here));
    }
    assert!(second.len() > 60, "the flows of one target are spread over the others: {}", second.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shares_are_as_the_weights(weights in prop::collection::vec(0_u16..20, 1..12), first in any::<u8>()) {
        let total: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
        prop_assume!(total > 0);
        let numbers = (0..weights.len() as u8).map(|offset| first.wrapping_add(offset));
        let targets: Vec<Target> = numbers.zip(&weights).map(|(number, weight)| weighted(number, *weight)).collect();
        let mut rig = Rig::healthy(quick(), &targets);
        let clients = 20_000;
        let shares = shares(&mut rig, clients);
        for target in &targets {
            let share = f64::from(shares.get(&target.address).copied().unwrap_or(0));
            let part = f64::from(target.weight) / f64::from(total);
            let expected = f64::from(clients) * part;
            // Five standard deviations of drawing by lot, and what the table itself is uneven by.
            let tolerance = 5.0 * (expected * (1.0 - part)).sqrt() + 0.002 * f64::from(clients);
            prop_assert!((share - expected).abs() <= tolerance, "{share} of {expected} for {target:?}");
            prop_assert!(target.weight > 0 || share == 0.0);
        }
    }
}
