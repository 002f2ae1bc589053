use nix::libc;

use super::*;
use crate::nat::StaticMapping;
use crate::wire::Endpoint;

fn owned(words: &[u64; 1024], port: u16) -> bool {
    words[usize::from(port) / 64] >> (port % 64) & 1 == 1
}

#[test]
fn ports_are_those_of_the_range_without_the_hosts_and_with_static_ones() {
    let external = Endpoint::new(Ipv4Addr::new(192, 0, 2, 1), 443);
    let internal = Endpoint::new(Ipv4Addr::new(198, 51, 100, 1), 8443);
    let config = nat::Config {
        port_range: 1024..=60999,
        excluded_ports: vec![(Protocol::TCP, 8080), (Protocol::UDP, 1024)],
        static_mappings: vec![StaticMapping { protocol: Protocol::TCP, external, internal }],
        ..nat::Config::default()
    };
    let ports = ports_of(&config);
    for (port, tcp, udp) in [
        (0, false, false),
        (443, true, false),
        (1023, false, false),
        (1024, true, false),
        (1025, true, true),
        (8080, false, true),
        (60999, true, true),
        (61000, false, false),
        (65535, false, false),
    ] {
        assert_eq!((owned(&ports.tcp, port), owned(&ports.udp, port)), (tcp, udp), "port {port}");
    }
}

#[test]
fn whole_range_of_ports_can_be_nats() {
    let ports = ports_of(&nat::Config { port_range: 0..=65535, ..nat::Config::default() });
    assert!(ports.tcp.iter().chain(&ports.udp).all(|word| *word == u64::MAX));
}

#[test]
fn prefixes_lie_in_memory_as_in_a_packet() {
    let mut places = [Prefix::default(); 4];
    let prefixes =
        ["192.0.2.128/25", "192.0.2.0/25", "198.51.100.77/32"].map(|net| net.parse().expect("a prefix"));
    assert_eq!(fill(&mut places, "internal", &prefixes).expect("room"), 2, "neighbours are joined");
    assert_eq!(places[0].address.to_ne_bytes(), [192, 0, 2, 0]);
    assert_eq!(places[0].mask.to_ne_bytes(), [255, 255, 255, 0]);
    assert_eq!(places[1].mask.to_ne_bytes(), [255, 255, 255, 255]);
}

#[test]
fn too_many_prefixes_are_refused() {
    let prefixes: Vec<Ipv4Net> =
        (0..33_u32).map(|i| Ipv4Net::from(Ipv4Addr::from_bits(0xc000_0200 + i * 2))).collect();
    let config = nat::Config { internal: prefixes, ..nat::Config::default() };
    let roles = Roles { internal: true, external: true };
    assert!(matches!(
        ClassifierConfig::new(roles, &[], &config),
        Err(BpfError::TooManyPrefixes { what: "internal", count: 33, limit: 32 })
    ));
}

#[test]
fn external_address_of_this_host_is_both() {
    let address = Ipv4Addr::new(192, 0, 2, 1);
    let kinds = kinds_of(&BTreeSet::from([address]), &BTreeSet::from([address])).expect("few");
    assert_eq!(kinds[&address], ADDRESS_HOST | ADDRESS_EXTERNAL);
}

#[test]
fn first_addresses_are_external_ones_and_all_if_they_are_few() {
    let config = ClassifierConfig::new(Roles { internal: true, external: true }, &[], &nat::Config::default());
    let rules = config.expect("few prefixes").rules;
    let addresses = |count| (1..=count).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect::<BTreeSet<_>>();
    let external = BTreeSet::from([Ipv4Addr::new(198, 51, 100, 1)]);
    let few = with_first(rules, &kinds_of(&external, &addresses(2)).expect("few"));
    assert_eq!(few.first[0].address.to_ne_bytes(), [198, 51, 100, 1]);
    assert_eq!(few.first.map(|first| first.kind), [ADDRESS_EXTERNAL, ADDRESS_HOST, ADDRESS_HOST, 0]);
    assert_eq!(few.all_first, 1);
    assert_eq!(with_first(rules, &kinds_of(&external, &addresses(3)).expect("few")).all_first, 1);
    let many = with_first(rules, &kinds_of(&external, &addresses(4)).expect("few"));
    assert_eq!((many.first[0].kind, many.all_first), (ADDRESS_EXTERNAL, 0));
}

#[test]
fn verifier_that_a_signal_interrupts_is_asked_again_and_one_that_refuses_is_not() {
    let attempts = |error, fail_first: u32| {
        let mut count = 0;
        let loaded = load(|| {
            count += 1;
            if count > fail_first {
                Ok(())
            } else {
                Err(BpfError::Verifier(io::Error::from_raw_os_error(error)))
            }
        });
        (loaded.is_ok(), count)
    };
    assert_eq!(attempts(libc::EAGAIN, 3), (true, 4));
    assert_eq!(attempts(libc::EAGAIN, 100), (false, LOAD_ATTEMPTS));
    assert_eq!(attempts(libc::EINVAL, 3), (false, 1));
}
