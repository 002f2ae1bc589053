//! What a configuration means on a host, and in the cloud.

use std::net::Ipv4Addr;

use egret::config::{self, CloudFacts, Config, HostFacts, ResolveError, Switch};
use egret::datapath::{Choice, Interface, XdpConfig};
use egret::nat::ExternalAddress;
use egret::wire::Protocol;

use crate::{messages, nets, parse};

pub fn host() -> HostFacts {
    let interface = |name: &str, index, addresses: &[Ipv4Addr]| Interface {
        name: name.to_owned(),
        index,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 9001,
        addresses: addresses.to_vec(),
    };
    HostFacts {
        interfaces: vec![
            interface("ens5", 2, &[Ipv4Addr::new(10, 0, 0, 10), Ipv4Addr::new(10, 0, 0, 11)]),
            interface("ens6", 3, &[Ipv4Addr::new(172, 16, 5, 1)]),
            interface("ens7", 4, &[Ipv4Addr::new(203, 0, 113, 5)]),
            interface("ens8", 5, &[]),
        ],
        default_route: Some("ens5".to_owned()),
        memory: 512 << 20,
        ports: Vec::new(),
        cloud: None,
    }
}

#[test]
fn defaults_follow_from_the_host() {
    let resolved = config::resolve(&parse("").unwrap(), &host()).unwrap();
    assert_eq!(resolved.datapath.external.name, "ens5");
    assert_eq!(resolved.datapath.internal.name, "ens5");
    assert_eq!(resolved.datapath.bypass, nets(&["10.0.0.0/8"]));
    assert_eq!(resolved.nat.internal, nets(&["10.0.0.0/8"]));
    assert_eq!(resolved.nat.external_addresses, [Ipv4Addr::new(10, 0, 0, 10).into()]);
    assert_eq!(resolved.nat.internal_router, Some(Ipv4Addr::new(10, 0, 0, 10)));
    assert_eq!((resolved.nat.external_mtu, resolved.nat.internal_mtu), (1500, 9001));
    assert_eq!(resolved.nat.limits.sessions, 299_593);
    assert_eq!(resolved.nat.limits.sessions_per_address, 74_898);
}

#[test]
fn the_datapath_that_is_wanted_reaches_the_worker() {
    let resolve = |text: &str| config::resolve(&parse(text).unwrap(), &host()).unwrap().datapath;
    assert_eq!(resolve("").datapath, Choice::Auto);
    let wanted = resolve("datapath = \"xdp\"\n[xdp]\nadjust_mtu = true");
    assert_eq!((wanted.datapath, wanted.xdp), (Choice::Xdp, XdpConfig { adjust_mtu: true }));
}

#[test]
fn internal_is_guessed_from_the_internal_interface() {
    let internal = |text: &str| config::resolve(&parse(text).unwrap(), &host()).unwrap().nat.internal;
    assert_eq!(internal("[nat]\ninternal_interface = \"ens6\""), nets(&["172.16.0.0/12"]));
    let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
    assert_eq!(internal("[nat]\ninternal_interface = \"ens7\""), nets(&all));
}

fn pair(private: [u8; 4], public: Option<[u8; 4]>) -> ExternalAddress {
    ExternalAddress { private: private.into(), public: public.map(Into::into) }
}

fn forward(text: &str) -> Config {
    parse(&format!("[[forward]]\nname = \"api\"\nmode = \"nat\"\n{text}")).unwrap()
}

#[test]
fn service_is_at_each_external_address_that_it_listens_on() {
    let two = "[nat]\nexternal_addresses = [{ private = \"10.0.0.10\" }, { private = \"10.0.0.11\" }]";
    let endpoints = |listen: &str| {
        let config = forward(&format!("listen = \"{listen}\"\ntargets = [\"10.0.1.10:5000\"]\n{two}"));
        let services = config::resolve(&config, &host()).unwrap().nat.services;
        assert!(services.iter().all(|service| service.preserve_client_ip));
        services.iter().map(|service| service.external.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(endpoints("0.0.0.0:443"), ["10.0.0.10:443", "10.0.0.11:443"]);
    assert_eq!(endpoints("10.0.0.11:443"), ["10.0.0.11:443"]);
}

#[test]
fn service_that_cannot_be_is_an_error_that_names_it() {
    let taken = HostFacts { ports: vec![(Protocol::TCP, Ipv4Addr::UNSPECIFIED, 443)], ..host() };
    for (text, host, message) in [
        (
            "listen = \"10.0.0.99:443\"\ntargets = [\"10.0.1.10:1\"]",
            host(),
            "forward api: listen: 10.0.0.99 is no external address (10.0.0.10)",
        ),
        (
            "listen = \"0.0.0.0:443\"\ntargets = [\"10.0.1.10:1\"]",
            taken,
            "forward api: listen: port 443 is taken by a socket of this host",
        ),
        (
            "listen = \"0.0.0.0:443\"\ntargets = [\"10.0.1.10:1\", \"198.51.100.1:1\"]",
            host(),
            "forward api: targets: 198.51.100.1 is in no internal prefix",
        ),
    ] {
        let errors = config::resolve(&forward(text), &host).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().starts_with(message), "{}", errors[0]);
    }
}

/// Where the cloud has assigned these addresses.
fn in_cloud(addresses: &[ExternalAddress]) -> HostFacts {
    let cloud = CloudFacts { internal: nets(&["10.0.0.0/16", "100.64.0.0/20"]), addresses: addresses.to_vec() };
    HostFacts { cloud: Some(cloud), ..host() }
}

#[test]
fn the_cloud_knows_what_is_internal_and_which_addresses_are_public() {
    let host = in_cloud(&[
        pair([10, 0, 0, 10], Some([203, 0, 113, 7])),
        pair([10, 0, 0, 11], None),
        pair([10, 0, 0, 12], Some([203, 0, 113, 8])),
    ]);
    let resolved = config::resolve(&parse("").unwrap(), &host).unwrap();
    assert_eq!(resolved.nat.internal, nets(&["10.0.0.0/16", "100.64.0.0/20"]));
    assert_eq!(resolved.datapath.bypass, resolved.nat.internal);
    let only_what_is_public_and_here = [pair([10, 0, 0, 10], Some([203, 0, 113, 7]))];
    assert_eq!(resolved.nat.external_addresses, only_what_is_public_and_here);
}

/// Its Elastic IP may be on its way here, or at the peer: that is no reason not to translate.
#[test]
fn service_of_an_address_without_a_public_one_waits_for_it() {
    let here = pair([10, 0, 0, 10], Some([203, 0, 113, 7]));
    for told in [[here, pair([10, 0, 0, 11], None)], [here, pair([10, 0, 0, 12], Some([203, 0, 113, 8]))]] {
        let config = forward(&format!("listen = \"{}:443\"\ntargets = [\"10.0.1.10:1\"]", told[1].private));
        let nat = config::resolve(&config, &in_cloud(&told)).unwrap().nat;
        assert_eq!((nat.external_addresses.as_slice(), nat.services.len()), ([here].as_slice(), 0));
        let errors = config::resolve(&config, &in_cloud(&told[..1])).unwrap_err();
        assert!(matches!(errors[..], [ResolveError::NotExternal { .. }]), "{errors:?}");
    }
}

#[test]
fn the_file_stands_above_the_cloud() {
    let host = in_cloud(&[pair([10, 0, 0, 10], Some([203, 0, 113, 7]))]);
    let resolve = |text: &str| config::resolve(&parse(text).unwrap(), &host).unwrap();
    let internal = resolve("[nat]\ninternal = [\"10.0.0.0/8\"]");
    assert_eq!(internal.nat.internal, nets(&["10.0.0.0/8"]));
    assert_eq!(internal.datapath.bypass, nets(&["10.0.0.0/8"]));
    let bypass = resolve("[nat]\nbypass = [\"10.9.0.0/16\"]");
    assert_eq!(bypass.nat.internal, nets(&["10.0.0.0/16", "100.64.0.0/20"]));
    assert_eq!(bypass.datapath.bypass, nets(&["10.9.0.0/16"]));
    let addresses = resolve("[nat]\nexternal_addresses = [{ private = \"10.0.0.11\" }]");
    assert_eq!(addresses.nat.external_addresses, [pair([10, 0, 0, 11], None)]);
}

#[test]
fn without_a_public_address_the_interfaces_first_is_external() {
    let own = [pair([10, 0, 0, 10], None)];
    for told in [&[][..], &own[..], &[pair([10, 0, 0, 12], Some([203, 0, 113, 8]))]] {
        let resolved = config::resolve(&parse("").unwrap(), &in_cloud(told)).unwrap();
        assert_eq!(resolved.nat.external_addresses, own, "{told:?}");
    }
    let silent = HostFacts { cloud: Some(CloudFacts::default()), ..host() };
    assert_eq!(config::resolve(&parse("").unwrap(), &silent).unwrap().nat.internal, nets(&["10.0.0.0/8"]));
}

#[test]
fn an_address_that_the_cloud_tells_twice_is_taken_once() {
    let first = pair([10, 0, 0, 10], Some([203, 0, 113, 7]));
    let told = [first, first, pair([10, 0, 0, 11], Some([203, 0, 113, 7]))];
    let resolved = config::resolve(&parse("").unwrap(), &in_cloud(&told)).unwrap();
    assert_eq!(resolved.nat.external_addresses, [first]);
}

#[test]
fn aws_can_be_switched_on_only_where_it_was_built_in() {
    let text = "[aws]\nenabled = true";
    if cfg!(feature = "aws") {
        assert_eq!(parse(text).unwrap().aws.enabled, Switch::On);
    } else {
        assert_eq!(
            messages(text),
            ["egret.toml:2: aws.enabled: this egret was built without AWS support; use \"auto\" or false"]
        );
    }
}

#[test]
fn limits_follow_from_the_memory_within_bounds() {
    let sessions = |memory| {
        let host = HostFacts { memory, ..host() };
        config::resolve(&parse("").unwrap(), &host).unwrap().nat.limits.sessions
    };
    assert_eq!([0, 1 << 40].map(sessions), [16_384, 917_504]);
    let config = parse("[nat.limits]\nsessions = 3").unwrap();
    assert_eq!(config::resolve(&config, &host()).unwrap().nat.limits.sessions_per_address, 1);
}

#[test]
fn what_does_not_fit_the_host_is_refused() {
    let refused = |text: &str, host: &HostFacts| config::resolve(&parse(text).unwrap(), host).unwrap_err();
    let no_route = HostFacts { default_route: None, ..host() };
    assert_eq!(refused("", &no_route), [ResolveError::NoDefaultRoute]);
    let absent = refused("[nat]\nexternal_interface = \"a0\"\ninternal_interface = \"b0\"", &host());
    assert_eq!(absent.len(), 2, "{absent:?}");
    assert!(absent[0].to_string().contains("no interface a0; use one of: ens5, ens6"), "{}", absent[0]);
    let bare = refused("[nat]\nexternal_interface = \"ens8\"", &host());
    assert!(matches!(&bare[..], [ResolveError::NoAddress { .. }]), "{bare:?}");
    let foreign = refused("[nat]\nexternal_addresses = [{ private = \"10.0.0.12\" }]", &host());
    assert_eq!(
        foreign,
        [ResolveError::NotOnInterface { name: "ens5".to_owned(), address: Ipv4Addr::new(10, 0, 0, 12) }]
    );
}

#[test]
fn ports_of_the_host_are_left_out() {
    let any = Ipv4Addr::UNSPECIFIED;
    let ports = vec![
        (Protocol::TCP, any, 22),
        (Protocol::TCP, any, 8080),
        (Protocol::TCP, Ipv4Addr::new(10, 0, 0, 10), 8080),
        (Protocol::UDP, Ipv4Addr::new(10, 0, 0, 10), 5353),
        (Protocol::UDP, Ipv4Addr::LOCALHOST, 5354),
        (Protocol::TCP, Ipv4Addr::new(10, 0, 0, 11), 9000),
    ];
    let host = HostFacts { ports, ..host() };
    let resolved = config::resolve(&parse("").unwrap(), &host).unwrap();
    assert_eq!(resolved.nat.excluded_ports, [(Protocol::TCP, 8080), (Protocol::UDP, 5353)]);
    let errors = config::resolve(&parse("[nat]\nport_range = \"8080-8080\"").unwrap(), &host).unwrap_err();
    assert!(matches!(&errors[..], [ResolveError::PortsTaken { protocol: Protocol::TCP, .. }]), "{errors:?}");
}
