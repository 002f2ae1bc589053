//! A listener whose connections somebody else carries, under virtual time.

use std::net::SocketAddr;
use std::time::Duration;

use egret::balance::{CheckError, ConfigError, State};
use egret::forward::{Config, Ended, Mode, Refused, Relayed, Service, Side};
use egret::time::Instant;

use crate::target;

const ONE: &str = "10.0.1.10:5000";
const OTHER: &str = "10.0.2.10:5000";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn config() -> Config {
    let mut config = target::config(&[at(ONE), at(OTHER)]);
    config.mode = Mode::Nat { preserve_client_ip: true };
    config.group.deregistration_delay = Duration::from_secs(10);
    config
}

fn client(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 7000))
}

/// Both targets pass their first check.
fn healthy(config: Config) -> (Service, Instant) {
    let mut service = Service::new(Instant::ORIGIN, config, [7; 16]).unwrap();
    let now = Instant::ORIGIN + Duration::from_secs(60);
    assert_eq!(pass(&mut service, now), 2);
    (service, now)
}

/// Answers all probes that are due well, and says how many there were.
fn pass(service: &mut Service, now: Instant) -> usize {
    service.handle_timeout(now);
    let due: Vec<_> = std::iter::from_fn(|| service.poll_errand(now)).collect();
    for errand in &due {
        service.handle_probe(now, errand.probe.id, Ok(Some(())));
    }
    due.len()
}

fn relayed(ended: Ended) -> Relayed {
    Relayed { bytes_to_target: 10, bytes_to_client: 100, ended }
}

#[test]
fn target_that_did_not_answer_is_avoided_if_there_is_another() {
    let (mut service, now) = healthy(config());
    let first = service.select(now, client(1), None).unwrap();
    service.handle_answer(now, first, Err(CheckError::TimedOut));
    service.handle_closed(now, first, true, Some(relayed(Ended::Idle)));
    let second = service.select(now, client(1), Some(first)).unwrap();
    assert_ne!(first, second);
    let mut alone = config();
    alone.targets.truncate(1);
    service.reconfigure(now, alone).unwrap();
    assert_eq!(service.select(now, client(1), Some(at(ONE))), Ok(at(ONE)), "there is no other");
}

/// Whether a client is answered is not in the target's hands alone.
#[test]
fn silence_towards_clients_does_not_make_a_target_unhealthy() {
    let (mut service, now) = healthy(config());
    for _ in 0..20 {
        let target = service.select(now, client(1), None).unwrap();
        service.handle_answer(now, target, Err(CheckError::TimedOut));
        service.handle_closed(now, target, true, Some(relayed(Ended::Idle)));
    }
    assert!(service.report(now).group.targets.iter().all(|target| target.state == State::Healthy));
    for _ in 0..4 {
        let target = service.select(now, client(1), None).unwrap();
        service.handle_answer(now, target, Err(CheckError::Refused));
        service.handle_closed(now, target, true, Some(relayed(Ended::Reset(Side::Target))));
    }
    assert!(service.report(now).group.targets.iter().all(|target| target.state != State::Healthy));
}

#[test]
fn refusals_take_nothing() {
    let mut small = config();
    small.limits.connections = 1;
    let (mut service, now) = healthy(small);
    let target = service.select(now, client(1), None).unwrap();
    assert_eq!(service.select(now, client(2), None), Err(Refused::NotAdmitted));
    service.handle_answer(now, target, Ok(()));
    service.handle_closed(now, target, true, Some(relayed(Ended::Closed)));
    assert_eq!(service.open(), 0);
    let target = service.select(now, client(2), None).unwrap();
    service.handle_closed(now, target, false, None);
    service.retire(now);
    assert_eq!(service.select(now, client(3), None), Err(Refused::NoTarget));
    assert_eq!(service.open(), 0);
    let report = service.report(now);
    assert_eq!((report.counters.closed, report.counters.unserved), (1, 1));
    assert_eq!((report.counters.bytes_to_target, report.counters.bytes_to_client), (10, 100));
}

/// Its checks pass, but no client ever hears of it: its way out is another one.
#[test]
fn target_whose_answers_go_astray_is_told_from_one_that_is_slow() {
    let (mut service, now) = healthy(config());
    for target in [ONE, OTHER, ONE, OTHER].map(at) {
        assert_eq!(service.select(now, client(1), None), Ok(target));
    }
    assert_eq!(service.report(now).half_open.iter().map(|of| of.half_open).sum::<u32>(), 4);
    service.handle_answer(now, at(ONE), Ok(()));
    service.handle_answer(now, at(ONE), Err(CheckError::TimedOut));
    service.handle_answer(now, at(OTHER), Err(CheckError::TimedOut));
    service.handle_answer(now, at(OTHER), Err(CheckError::TimedOut));
    let half_open = service.report(now).half_open;
    let seen: Vec<_> = half_open.iter().map(|of| (of.target, of.half_open, of.unanswered, of.astray)).collect();
    assert_eq!(seen, [(at(ONE), 0, 1, false), (at(OTHER), 0, 2, true)]);
}

#[test]
fn targets_that_leave_by_the_reload_that_shortens_the_delay_leave_with_the_new_one() {
    let (mut service, now) = healthy(config());
    let leaves = service.select(now, client(1), None).unwrap();
    service.handle_answer(now, leaves, Ok(()));
    let mut shorter = config();
    shorter.targets.retain(|target| target.address != leaves);
    shorter.group.deregistration_delay = Duration::from_secs(2);
    service.reconfigure(now, shorter).unwrap();
    service.handle_timeout(now + Duration::from_secs(1));
    assert_eq!(service.poll_close(), None, "it may go on for a while");
    service.handle_timeout(now + Duration::from_secs(2));
    assert_eq!(service.poll_close(), Some(leaves));
}

#[test]
fn configuration_with_a_bad_target_changes_nothing() {
    let (mut service, now) = healthy(config());
    let before = service.report(now);
    let mut bad = config();
    bad.group.deregistration_delay = Duration::from_secs(2);
    bad.targets = vec![at("0.0.0.0:5000").into()];
    assert_eq!(service.reconfigure(now, bad), Err(ConfigError::Target(at("0.0.0.0:5000"))));
    assert_eq!(service.report(now), before);
    // Nor has the delay.
    let target = service.select(now, client(1), None).unwrap();
    service.handle_answer(now, target, Ok(()));
    service.retire(now);
    service.handle_timeout(now + Duration::from_secs(9));
    assert_eq!(service.poll_close(), None);
}

#[test]
fn retired_service_ends_with_its_last_connection_or_its_delay() {
    for waits in [false, true] {
        let (mut service, now) = healthy(config());
        let target = service.select(now, client(1), None).unwrap();
        service.handle_answer(now, target, Ok(()));
        service.retire(now);
        service.handle_timeout(now);
        assert_eq!(service.poll_close(), None, "it may go on for a while");
        assert!(!service.is_empty(now));
        let later = now + Duration::from_secs(10);
        if waits {
            service.handle_timeout(later);
            assert_eq!(service.poll_close(), Some(target));
        }
        service.handle_closed(later, target, true, Some(relayed(Ended::Cut)));
        assert!(service.is_empty(later));
    }
}
