//! Configurations that cannot be used, and the defaults.

use std::time::Duration;

use egret::balance::{
    Admission, Algorithm, Config, ConfigError, Group, HealthCheck, Limits, MOST_TARGETS, OnUnhealthy,
    Stickiness, Target,
};
use egret::time::Instant;

use crate::rig::*;

fn refused(config: Config) -> String {
    let error = Group::new(config.clone(), [0; 16]).unwrap_err();
    let mut group = Group::new(Config::default(), [0; 16]).unwrap();
    assert_eq!(group.reconfigure(Instant::ORIGIN, config), Err(error.clone()));
    error.to_string()
}

fn health(change: impl FnOnce(&mut HealthCheck)) -> Config {
    let mut config = Config::default();
    change(&mut config.health);
    config
}

/// Elastic Load Balancing, "Health checks for Network Load Balancer target groups" and "Target group attributes".
#[test]
fn defaults_are_those_of_a_network_load_balancer() {
    let Config { health, algorithm, stickiness, on_unhealthy, deregistration_delay, .. } = Config::default();
    assert_eq!((health.interval, health.timeout), (30 * SECOND, 10 * SECOND));
    assert_eq!(HealthCheck::HTTP_TIMEOUT, 6 * SECOND);
    assert_eq!((health.healthy_threshold, health.unhealthy_threshold), (5, 2));
    assert_eq!((algorithm, stickiness), (Algorithm::FlowHash, None));
    assert_eq!((on_unhealthy, deregistration_delay), (OnUnhealthy::Reset, 300 * SECOND));
}

#[test]
fn errors_say_what_is_wrong() {
    let millis = Duration::from_millis;
    let config = health(|health| health.interval = millis(99));
    assert_eq!(refused(config), "the health check's interval of 99ms is not between 100ms and a day");
    let config = health(|health| health.interval = millis(86_400_001));
    assert!(refused(config).contains("not between 100ms and a day"));
    let config = health(|health| (health.interval, health.timeout) = (5 * SECOND, 6 * SECOND));
    assert_eq!(refused(config), "the health check's timeout of 6s is not between 0 and the interval of 5s");
    assert!(refused(health(|health| health.timeout = Duration::ZERO)).contains("timeout of 0ns"));
    assert_eq!(refused(health(|health| health.healthy_threshold = 0)), "the healthy threshold is 0");
    assert_eq!(refused(health(|health| health.unhealthy_threshold = 0)), "the unhealthy threshold is 0");
    let config = Config { deregistration_delay: Duration::MAX, ..config_of_one_client() };
    assert!(refused(config).ends_with("is more than a day"));
    let stickiness = |idle_timeout, most_clients| Config {
        stickiness: Some(Stickiness { idle_timeout, most_clients }),
        ..Config::default()
    };
    assert_eq!(refused(stickiness(Duration::ZERO, 1)), "the idle timeout of stickiness is 0");
    assert_eq!(refused(stickiness(SECOND, 0)), "no client address may be remembered");
}

fn config_of_one_client() -> Config {
    Config { stickiness: Some(Stickiness { most_clients: 1, ..Stickiness::default() }), ..Config::default() }
}

#[test]
fn quick_checks_are_allowed() {
    let quick = health(|health| (health.interval, health.timeout) = (SECOND / 5, SECOND / 5));
    assert!(Group::new(quick, [0; 16]).is_ok());
}

#[test]
fn errors_of_a_door_say_what_is_wrong() {
    let refused = |limits: Limits| {
        let error = Admission::new(limits.clone(), [0; 16]).unwrap_err();
        let mut door = Admission::new(Limits::default(), [0; 16]).unwrap();
        assert_eq!(door.reconfigure(limits), Err(error.clone()));
        error
    };
    assert_eq!(refused(Limits { allow: Vec::new(), ..Limits::default() }), ConfigError::NobodyAllowed);
    assert_eq!(refused(Limits { connections: 0, ..Limits::default() }), ConfigError::NoConnections);
    let limits = Limits { new_connections_per_second: 1, most_clients: 0, ..Limits::default() };
    assert_eq!(refused(limits), ConfigError::NoClients);
}

#[test]
fn list_with_a_bad_target_changes_nothing() {
    let mut rig = Rig::healthy(quick(), &targets([1, 2]));
    let before = rig.group.snapshot(rig.now);
    for bad in ["192.0.2.9:0", "0.0.0.0:80", "224.0.0.1:80", "[::]:80", "[ff02::1]:80"] {
        let bad: Target = Target::from(bad.parse::<std::net::SocketAddr>().unwrap());
        let error = rig.group.set_targets(rig.now, &[at(1).into(), bad]).unwrap_err();
        assert_eq!(error.to_string(), format!("{} cannot be a target", bad.address));
    }
    assert_eq!(rig.group.snapshot(rig.now), before);
    assert_eq!(rig.group.poll_event(), None);
}

#[test]
fn list_that_is_too_long_changes_nothing() {
    let many = |count: usize| -> Vec<Target> {
        let address = |port| std::net::SocketAddr::from(([192, 0, 2, 1], port));
        (1..=count).map(|port| address(port as u16).into()).collect()
    };
    let mut rig = Rig::healthy(quick(), &targets([1]));
    let error = rig.group.set_targets(rig.now, &many(MOST_TARGETS + 1)).unwrap_err();
    assert_eq!(error, ConfigError::TooManyTargets(257));
    assert!(rig.find(at(1)).is_some());
    rig.set_targets(&many(MOST_TARGETS));
    rig.run(SECOND);
    assert!(rig.visit(client(1)).is_some());
}

#[test]
fn target_that_is_named_twice_is_one() {
    // As with a name that resolves to an address which is in the list as well.
    let mut rig = Rig::healthy(quick(), &[weighted(1, 3), weighted(1, 7), weighted(2, 1)]);
    assert_eq!(rig.find(at(1)).unwrap().weight, 3);
    assert_eq!(rig.group.snapshot(rig.now).targets.len(), 2);
    rig.set_targets(&[weighted(2, 1), weighted(1, 7)]);
    assert_eq!(rig.find(at(1)).unwrap().weight, 7);
}
