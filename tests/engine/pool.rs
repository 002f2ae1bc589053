//! Several external addresses.

use std::collections::HashMap;

use egret::nat::{Config, ConfigError, Engine, ExternalAddress, FilteringBehaviour};

use crate::support::*;

const SERVER: &str = "198.51.100.1:53";

#[test]
fn hosts_are_spread_over_the_pool() {
    let mut nat = Nat::with(|c| c.external_addresses = pool(4));
    let mut hosts = HashMap::<_, u32>::new();
    for host in 0..200 {
        let address = nat.open_udp((ip(&format!("10.0.1.{host}")), 4000), SERVER).address;
        *hosts.entry(address).or_default() += 1;
    }
    assert_eq!(hosts.len(), 4);
    assert!(hosts.values().all(|&count| count == 50), "{hosts:?}");
}

/// Hairpinning between hosts that are paired with different addresses, some of which have no public form.
#[test]
fn hairpinning_works_in_a_mixed_pool() {
    let public = ExternalAddress { private: ip("192.0.2.1"), public: Some(PUBLIC) };
    let private = ExternalAddress::from(ip("192.0.2.2"));
    for addresses in [vec![public, private], vec![private, public]] {
        for first_sends in [true, false] {
            let mut nat = Nat::with(|c| {
                c.external_addresses.clone_from(&addresses);
                c.filtering = FilteringBehaviour::EndpointIndependent;
            });
            let first = nat.open_udp("10.0.0.2:4000", SERVER);
            let second = nat.open_udp("10.0.0.3:5000", SERVER);
            assert_ne!(first.address, second.address);
            let (from, to) = if first_sends { ("10.0.0.2:4000", second) } else { ("10.0.0.3:5000", first) };
            let address = if to.address == public.private { PUBLIC } else { to.address };
            let there = nat.out(udp(from, (address, to.port))).to_internal();
            let target = there.destination;
            let back = nat.out(udp(target, there.source)).to_internal();
            assert_eq!((back.source, back.destination), (ep((address, to.port)), ep(from)));
        }
    }
}

#[test]
fn unusable_configurations_are_refused() {
    let refuse = |change: &dyn Fn(&mut Config)| -> ConfigError {
        let mut config = config();
        change(&mut config);
        Engine::new(config, [0; 16]).expect_err("a reason")
    };
    refuse(&|c| c.external_addresses.clear());
    refuse(&|c| c.external_addresses = vec![EXTERNAL.into(), EXTERNAL.into()]);
    refuse(&|c| c.external_addresses = vec![EXTERNAL.into(); 300]);
    refuse(&|c| {
        c.external_addresses.push(ExternalAddress { private: ip("192.0.2.9"), public: Some(PUBLIC) });
    });
    #[expect(clippy::reversed_empty_ranges)]
    refuse(&|c| c.port_range = 2000..=1000);
    refuse(&|c| c.port_range = 0..=1000);
    refuse(&|c| c.external_mtu = 67);
    refuse(&|c| {
        c.static_mappings = vec![static_mapping(egret::wire::Protocol::TCP, "192.0.2.99:1", "10.0.0.1:1")];
    });
}
