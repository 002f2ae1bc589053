//! The door of a listener.

use std::net::IpAddr;
use std::time::Duration;

use egret::balance::{Admission, Limits, Refusal};
use egret::time::Instant;
use ipnet::IpNet;
use proptest::prelude::*;

use crate::rig::SECOND;

const NOW: Instant = Instant::from_millis(5_000);

fn door(limits: Limits) -> Admission {
    Admission::new(limits, [3; 16]).unwrap()
}

fn allowing(prefixes: &[&str]) -> Limits {
    Limits { allow: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(), ..Limits::default() }
}

fn rate(new_connections_per_second: u32) -> Limits {
    Limits { new_connections_per_second, ..Limits::default() }
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

#[test]
fn everybody_may_connect_by_default() {
    let mut door = door(Limits::default());
    for address in ["0.0.0.0", "198.51.100.1", "255.255.255.255", "2001:db8::1"] {
        assert_eq!(door.admit(NOW, ip(address)), Ok(()), "{address}");
    }
}

#[test]
fn only_clients_of_the_allow_list_may_connect() {
    let mut door =
        door(allowing(&["198.51.100.0/24", "198.51.100.128/25", "203.0.113.7/32", "2001:db8:1::/48"]));
    for address in ["198.51.100.0", "198.51.100.255", "203.0.113.7", "2001:db8:1:9::1", "::ffff:203.0.113.7"] {
        assert_eq!(door.admit(NOW, ip(address)), Ok(()), "{address}");
    }
    for address in ["198.51.99.255", "198.51.101.0", "203.0.113.6", "203.0.113.8", "2001:db8:2::1", "::1"] {
        assert_eq!(door.admit(NOW, ip(address)), Err(Refusal::NotAllowed), "{address}");
    }
    assert_eq!(door.counters().refused(Refusal::NotAllowed), 6);
}

#[test]
fn connection_limit_holds_and_frees_with_each_end() {
    let mut door = door(Limits { connections: 3, ..Limits::default() });
    for _ in 0..3 {
        assert!(door.has_room());
        assert_eq!(door.admit(NOW, ip("192.0.2.1")), Ok(()));
    }
    assert!(!door.has_room());
    assert_eq!(door.admit(NOW, ip("192.0.2.2")), Err(Refusal::ConnectionLimit));
    door.release();
    assert_eq!(door.admit(NOW, ip("192.0.2.2")), Ok(()));
    let counters = door.counters();
    assert_eq!((counters.open, counters.admitted), (3, 4));
    assert_eq!(counters.refused(Refusal::ConnectionLimit), 1);
}

#[test]
fn lower_limit_keeps_connections_and_lets_nobody_in() {
    let mut door = door(Limits::default());
    for _ in 0..5 {
        door.admit(NOW, ip("192.0.2.1")).unwrap();
    }
    door.reconfigure(Limits { connections: 3, ..Limits::default() }).unwrap();
    assert_eq!(door.counters().open, 5);
    for _ in 0..2 {
        door.release();
        assert_eq!(door.admit(NOW, ip("192.0.2.1")), Err(Refusal::ConnectionLimit));
    }
    door.release();
    assert_eq!(door.admit(NOW, ip("192.0.2.1")), Ok(()));
}

#[test]
fn rate_has_a_burst_and_refills_evenly() {
    let mut door = door(rate(10));
    let mut admitted = |now, tries| (0..tries).filter(|_| door.admit(now, ip("192.0.2.1")).is_ok()).count();
    assert_eq!(admitted(NOW, 50), 10);
    assert_eq!(admitted(NOW + Duration::from_millis(99), 50), 0);
    assert_eq!(admitted(NOW + Duration::from_millis(100), 50), 1);
    assert_eq!(admitted(NOW + Duration::from_millis(500), 50), 4);
    assert_eq!(admitted(NOW + 60 * SECOND, 50), 10, "no more than a burst is saved up");
}

#[test]
fn clients_do_not_share_a_rate_unless_they_share_a_prefix() {
    let mut door = door(rate(1));
    assert_eq!(door.admit(NOW, ip("192.0.2.1")), Ok(()));
    assert_eq!(door.admit(NOW, ip("192.0.2.1")), Err(Refusal::RateLimit));
    assert_eq!(door.admit(NOW, ip("::ffff:192.0.2.1")), Err(Refusal::RateLimit));
    assert_eq!(door.admit(NOW, ip("192.0.2.2")), Ok(()));
    assert_eq!(door.admit(NOW, ip("2001:db8::1")), Ok(()));
    assert_eq!(door.admit(NOW, ip("2001:db8::2")), Err(Refusal::RateLimit));
    assert_eq!(door.admit(NOW, ip("2001:db8:0:1::1")), Ok(()));
}

#[test]
fn refused_client_takes_nothing_from_its_rate() {
    let limits = Limits { connections: 1, ..rate(5) };
    let mut door = door(limits);
    assert_eq!(door.admit(NOW, ip("192.0.2.1")), Ok(()));
    for _ in 0..20 {
        assert_eq!(door.admit(NOW, ip("192.0.2.2")), Err(Refusal::ConnectionLimit));
    }
    let admitted = (0..20).filter(|_| {
        door.release();
        door.admit(NOW, ip("192.0.2.2")).is_ok()
    });
    assert_eq!(admitted.count(), 5);
}

#[test]
fn table_of_rates_is_bounded_and_forgets_who_rests() {
    let mut door = door(Limits { most_clients: 100, ..rate(1) });
    for number in 0..1_000_u32 {
        assert_eq!(door.admit(NOW, IpAddr::from(number.to_be_bytes())), Ok(()));
    }
    assert_eq!((door.counters().clients, door.counters().clients_evicted), (100, 900));
    for number in 0..200_u32 {
        let now = NOW + SECOND + Duration::from_millis(100 * u64::from(number));
        assert_eq!(door.admit(now, ip("203.0.113.1")).is_ok(), number % 10 == 0);
    }
    assert_eq!((door.counters().clients, door.counters().clients_evicted), (1, 900));
}

#[test]
fn rate_switched_off_and_on_again_by_a_reload() {
    let mut door = door(rate(1));
    assert_eq!(door.admit(NOW, ip("192.0.2.1")), Ok(()));
    door.reconfigure(rate(0)).unwrap();
    assert_eq!(door.admit(NOW, ip("192.0.2.1")), Ok(()));
    door.reconfigure(rate(1)).unwrap();
    assert_eq!(door.admit(NOW, ip("192.0.2.1")), Err(Refusal::RateLimit));
}

fn prefix() -> impl Strategy<Value = IpNet> {
    // Few leading bits in play, so that prefixes overlap and touch.
    (any::<bool>(), 0..16_u8, 0..=9_u8).prop_map(|(v6, bits, length)| {
        let address = if v6 {
            IpAddr::from((u128::from(bits) << 120).to_be_bytes())
        } else {
            IpAddr::from([bits, 0, 0, 0])
        };
        IpNet::new(address, length).unwrap().trunc()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn allow_list_lets_in_whom_any_of_its_prefixes_holds(
        allow in prop::collection::vec(prefix(), 1..12),
        clients in prop::collection::vec(any::<(bool, u8, u8)>(), 40),
    ) {
        let mut door = door(Limits { allow: allow.clone(), ..Limits::default() });
        for (v6, first, last) in clients {
            let client = if v6 {
                IpAddr::from((u128::from(first % 18) << 120 | u128::from(last)).to_be_bytes())
            } else {
                IpAddr::from([first % 18, 0, 0, last])
            };
            // `::1.2.3.4` and its kin are no IPv4 addresses, and `::ffff:1.2.3.4` does not occur here.
            let expected = allow.iter().any(|prefix| prefix.contains(&client));
            prop_assert_eq!(door.admit(NOW, client).is_ok(), expected, "{}", client);
        }
    }

    #[test]
    fn no_second_has_more_than_burst_and_rate(
        per_second in 1..50_u32,
        gaps in prop::collection::vec(0..200_u64, 1..400),
    ) {
        let mut door = door(rate(per_second));
        let mut now = NOW;
        let mut admitted = Vec::new();
        for gap in gaps {
            now += Duration::from_millis(gap);
            if door.admit(now, ip("192.0.2.1")).is_ok() {
                admitted.push(now);
            }
        }
        for (index, from) in admitted.iter().enumerate() {
            let in_second = admitted[index..].iter().take_while(|at| **at - *from < SECOND).count();
            prop_assert!(in_second as u32 <= 2 * per_second, "{} of {}", in_second, per_second);
        }
    }
}
