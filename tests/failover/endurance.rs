//! A healthy fleet, for long.

use std::time::Duration;

use egret::failover::{Event, Life};

use crate::net::Quality;
use crate::world::{Setup, World};

#[test]
fn nothing_moves_in_a_day_of_two_on_a_bad_network() {
    nothing_moves_in_a_day(2);
}

#[test]
fn nothing_moves_in_a_day_of_three_on_a_bad_network() {
    nothing_moves_in_a_day(3);
}

fn nothing_moves_in_a_day(instances: usize) {
    let millis = Duration::from_millis;
    let quality = Quality { delay: millis(1), jitter: millis(200), loss: 10 };
    let seed = std::env::var("EGRET_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut world = World::steady(&Setup { seed, instances, quality, ..Setup::default() });
    let (looks, changes) = (world.nodes[0].looks, world.nodes[0].changes);
    world.run(Duration::from_secs(24 * 3600));
    world.well();
    assert!((0..instances).all(|gateway| world.moves(gateway) == 0 && world.is_at(gateway, gateway)));
    // It was a bad network.
    let sent = instances as u64 * (instances as u64 - 1) * 24 * 3600 * 4;
    assert!(world.net.lost > sent / 200, "only {} of {sent} were lost", world.net.lost);
    assert!(world.net.latest > millis(800), "nothing was later than {:?}", world.net.latest);
    // Each look is two calls; four a minute is what all of Egret may make.
    let looks = world.nodes[0].looks - looks;
    let silences = world.nodes.iter().flat_map(|node| &node.events);
    let silences =
        silences.filter(|(_, event)| matches!(event, Event::PeerChanged { from: Life::Alive, .. })).count();
    println!(
        "{} lost, the latest {:?} late, {silences} silences, {looks} looks",
        world.net.lost, world.net.latest
    );
    assert!((23 * 60..=25 * 60).contains(&looks), "{looks} looks");
    assert_eq!(world.nodes[0].changes, changes, "a steady fleet writes nothing");
}

#[test]
fn status_shows_the_round_trip_and_who_is_heard() {
    let millis = Duration::from_millis;
    let quality = Quality { delay: millis(20), jitter: millis(0), loss: 0 };
    let world = World::steady(&Setup { quality, ..Setup::default() });
    let peer = world.peer(0, 1);
    let trip = peer.round_trip_seconds.unwrap();
    assert!((0.039..0.042).contains(&trip), "{trip}");
    assert!(peer.linked && peer.silent_seconds < 0.3 && peer.health.unwrap().is_well());
    let status = serde_json::to_value(world.status(0)).unwrap();
    assert_eq!(status["gateways"][0]["host"], serde_json::json!({ "is": "instance", "of": "az-a" }));
    assert_eq!(status["gateways"][0]["role"], "active");
    assert_eq!(status["peers"][0]["life"], "alive");
}
