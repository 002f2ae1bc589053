//! A healthy fleet, for long.

use std::time::Duration;

use egret::failover::Event;

use crate::net::Quality;
use crate::world::{Setup, World};

#[test]
fn nothing_moves_in_a_day_on_a_bad_network() {
    let millis = Duration::from_millis;
    let quality = Quality { delay: millis(1), jitter: millis(200), loss: 10 };
    let mut world = World::steady(&Setup { quality, instances: 3, ..Setup::default() });
    let (looks, changes) = (world.nodes[0].looks, world.nodes[0].changes);
    world.run(Duration::from_secs(24 * 3600));
    world.well();
    assert!((0..3).all(|gateway| world.moves(gateway) == 0 && world.is_at(gateway, gateway)));
    assert!(
        !world.has_event(0, |event| matches!(event, Event::TakingOver { gateway, .. } if gateway != "az-a"))
    );
    // It was a bad network.
    assert!(world.net.lost > 10_000, "only {} were lost", world.net.lost);
    assert!(world.net.latest > millis(600), "nothing was later than {:?}", world.net.latest);
    // Each look is two calls; four a minute is what all of Egret may make.
    let looks = world.nodes[0].looks - looks;
    println!("lost {}, the latest after {:?}, {looks} looks", world.net.lost, world.net.latest);
    assert!((24 * 60..=24 * 60 * 2).contains(&looks), "{looks} looks");
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
