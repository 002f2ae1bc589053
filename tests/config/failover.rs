//! The section `[failover]`.

use crate::messages;

const BASE: &str = r#"[aws]
route_tables = ["rtb-01234567"]
elastic_ips = ["eipalloc-01234567", "eipalloc-76543210"]
[failover]
gateway = "az-a"
key_file = "/etc/egret/peer.key"
listen = "10.0.0.10:7946"
peers = [{ gateway = "az-b", address = "10.0.3.10:7946" }]
"#;

/// What is wrong, but for what is wrong with every failover where AWS was left out.
fn mistakes(text: &str) -> Vec<String> {
    let mut found = messages(text);
    found.retain(|message| !message.contains("was built without AWS support"));
    found
}

fn assert_one(text: &str, expected: &str) {
    let found = mistakes(text);
    assert_eq!(found.len(), 1, "{text}: {found:#?}");
    assert!(found[0].contains(expected), "{text}\n  says {}\n  not  {expected}", found[0]);
}

#[test]
fn every_mistake_is_told_with_its_place() {
    assert_eq!(mistakes(BASE), [""; 0]);
    for (more, expected) in [
        ("color = 1", "9: failover.color: unknown key; use gateway, key_file"),
        ("gatewy = \"a\"", "9: failover.gatewy: unknown key; did you mean failover.gateway?"),
        ("fallback_nat_gateway = \"igw-01234567\"", "is not an id such as \"nat-0123456789abcdef0\""),
        (
            "heartbeat_interval = \"10ms\"",
            "9: failover.heartbeat_interval: \"10ms\" is out of range; use a time from 50ms",
        ),
        ("heartbeat_interval = \"501ms\"", "longer than a third of failover.dead_after; set that as well"),
        ("dead_after = \"749ms\"", "less than three of failover.heartbeat_interval; use at least \"750ms\""),
        ("heartbeat_interval = \"1s\"\ndead_after = \"2s\"", "10: failover.dead_after: less than three"),
        ("dead_after = 2", "is of the type integer; use a string in quotes"),
        ("failback = \"never\"", "\"never\" is not known; use auto or manual"),
        ("hold_down = \"0s\"", "is out of range; use a time from 1s to 1h"),
        (
            "egress_probes = [\"one.one.one.one:443\"]",
            "failover.egress_probes[0]: \"one.one.one.one:443\" is not an IPv4 address and a port",
        ),
        ("egress_probes = [\"192.0.2.1:443\", \"192.0.2.1:443\"]", "192.0.2.1:443 is there twice"),
        ("egress_probes = [\"192.0.2.1:0\"]", "is not an IPv4 address and a port"),
    ] {
        assert_one(&format!("{BASE}{more}"), expected);
    }
    for (right, wrong, expected) in [
        (
            "gateway = \"az-a\"",
            "gateway = \"AZ-A\"",
            "5: failover.gateway: \"AZ-A\" is not the name of a gateway; use up to 63 lower-case letters",
        ),
        ("gateway = \"az-a\"", "gateway = \"\"", "is not the name of a gateway"),
        ("gateway = \"az-a\"", "", "4: failover: has no gateway; failover needs it"),
        ("key_file = \"/etc/egret/peer.key\"", "", "4: failover: has no key_file"),
        ("/etc/egret/peer.key", "peer.key", "\"peer.key\" is not an absolute path of a file"),
        ("listen = \"10.0.0.10:7946\"", "", "4: failover: has no listen"),
        ("10.0.0.10:7946", "10.0.0.10", "\"10.0.0.10\" is not an IPv4 address and a port"),
        ("10.0.0.10:7946", "[::1]:7946", "is not an IPv4 address and a port"),
        ("10.0.0.10:7946", "224.0.0.1:7946", "is not an IPv4 address and a port"),
        (
            "10.0.0.10:7946",
            "10.0.3.10:7946",
            "7: failover.listen: 10.0.3.10:7946 is the address of the peer az-b",
        ),
        (
            "[{ gateway = \"az-b\", address = \"10.0.3.10:7946\" }]",
            "[]",
            "8: failover.peers: has 0 peers; use from 1 to 7",
        ),
        (
            "peers = [{ gateway = \"az-b\", address = \"10.0.3.10:7946\" }]",
            "",
            "4: failover: has no peers; name them, as in",
        ),
        (
            "\"az-b\"",
            "\"az-a\"",
            "failover.peers[0].gateway: az-a is failover.gateway; name the other instances",
        ),
        ("\"az-b\"", "\"b.c\"", "failover.peers[0].gateway: \"b.c\" is not the name of a gateway"),
        (", address = \"10.0.3.10:7946\"", "", "failover.peers[0]: has no address"),
        ("10.0.3.10:7946", "0.0.0.0:7946", "failover.peers[0].address: \"0.0.0.0:7946\" is not"),
        ("address = ", "port = 3, address = ", "failover.peers[0].port: unknown key; use gateway or address"),
        (
            "7946\" }]",
            "7946\" }, { gateway = \"az-b\", address = \"10.0.4.10:7946\" }]",
            "failover.peers[1].gateway: az-b is already failover.peers[0].gateway",
        ),
        (
            "7946\" }]",
            "7946\" }, { gateway = \"az-c\", address = \"10.0.3.10:7946\" }]",
            "failover.peers[1].address: 10.0.3.10:7946 is already failover.peers[0].address",
        ),
        (
            "10.0.3.10:7946",
            "dns:az-b.internal:7946",
            "failover.peers[0].address: \"dns:az-b.internal:7946\" is not an IPv4 address and a port",
        ),
    ] {
        assert!(BASE.contains(right), "{right}");
        assert_one(&BASE.replacen(right, wrong, 1), expected);
    }
    let peer = |number| format!("{{ gateway = \"g{number}\", address = \"10.0.3.{number}:7946\" }}");
    let eight = (1..9).map(peer).collect::<Vec<_>>().join(", ");
    assert_one(
        &BASE.replace("{ gateway = \"az-b\", address = \"10.0.3.10:7946\" }", &eight),
        "has 8 peers; use from 1 to 7",
    );
    assert!(messages("failover = true")[0].contains("1: failover: is of the type boolean; use a table"));
}

#[test]
fn addresses_and_routes_that_move_have_to_be_there() {
    let elastic_ips = "elastic_ips = [\"eipalloc-01234567\", \"eipalloc-76543210\"]\n";
    let route_tables = "route_tables = [\"rtb-01234567\"]\n";
    for (right, wrong, expected) in [
        (
            elastic_ips,
            "",
            "3: failover: needs aws.elastic_ips: whoever has the first of them is the gateway's host",
        ),
        (elastic_ips, "elastic_ips = [\"eip-1\"]\n", "3: aws.elastic_ips[0]: \"eip-1\" is not an id"),
        (
            route_tables,
            "",
            "failover: needs aws.route_tables or aws.route_table_tags: their routes lead to the host",
        ),
        (
            elastic_ips,
            &format!("{elastic_ips}elastic_ip_count = 1\n"),
            "4: aws.elastic_ip_count: failover moves all of aws.elastic_ips (2); leave it out",
        ),
        (
            route_tables,
            &format!("{route_tables}enabled = false\n"),
            "3: aws.enabled: failover moves addresses and routes of AWS; use \"auto\" or true",
        ),
    ] {
        assert_one(&BASE.replacen(right, wrong, 1), expected);
    }
    let tags = "route_table_tags = { \"egret:gateway\" = \"az-a\" }\n";
    assert_eq!(mistakes(&BASE.replacen(route_tables, tags, 1)), [""; 0]);
    let all = format!("{elastic_ips}elastic_ip_count = 2\n");
    assert_eq!(mistakes(&BASE.replacen(elastic_ips, &all, 1)), [""; 0]);
    let ids = |prefix: &str, count: u32| {
        (0..count).map(|number| format!("\"{prefix}{number:08x}\"")).collect::<Vec<_>>().join(", ")
    };
    let many = format!("elastic_ips = [{}]\n", ids("eipalloc-", 17));
    assert_one(&BASE.replacen(elastic_ips, &many, 1), "aws.elastic_ips: has 17; with failover, use at most 16");
    let many = format!("route_tables = [{}]\n", ids("rtb-", 33));
    assert_one(
        &BASE.replacen(route_tables, &many, 1),
        "aws.route_tables: has 33; with failover, use at most 32",
    );
}

#[test]
fn address_for_peers_is_no_listeners() {
    let listener = |listen: &str, mode: &str| {
        format!(
            "{BASE}[[forward]]\nname = \"api\"\nlisten = \"{listen}\"\nmode = \"{mode}\"\ntargets = [\"10.0.1.10:1\"]"
        )
    };
    for (listen, mode) in [
        ("10.0.0.10:7946", "proxy"),
        ("0.0.0.0:7946", "proxy"),
        ("10.0.0.10:7946", "nat"),
        // Another address, but packets to the port are NAT's at all.
        ("10.0.0.11:7946", "nat"),
    ] {
        let expected =
            format!("failover.listen: 10.0.0.10:7946 is taken by forward[0].listen ({listen}); use another");
        assert_one(&listener(listen, mode), &expected);
    }
    for (listen, mode) in [("10.0.0.11:7946", "proxy"), ("10.0.0.10:7947", "proxy"), ("10.0.0.10:7947", "nat")]
    {
        assert_eq!(mistakes(&listener(listen, mode)), [""; 0], "{listen} {mode}");
    }
}

#[cfg(not(feature = "aws"))]
#[test]
fn peers_by_tag_need_aws_support() {
    let found = messages(&BASE.replace("10.0.3.10:7946", "ec2-tag:role=b:7946"));
    let expected =
        "egret.toml:8: failover.peers[0].address: this egret was built without AWS support; use an address";
    assert!(found.contains(&expected.to_owned()), "{found:#?}");
}

#[cfg(not(feature = "aws"))]
#[test]
fn failover_needs_aws_support() {
    let found = messages(BASE);
    let expected = "egret.toml:4: failover: this egret was built without AWS support, which failover needs";
    assert_eq!(found, [expected]);
    assert_eq!(crate::parse("").unwrap().failover, None);
}

#[cfg(feature = "aws")]
mod with_aws {
    use std::time::Duration;

    use egret::config::{self, Failover, FailoverPeer, KeySource, PeerAddress};
    use egret::failover::Failback;

    use super::{BASE, assert_one};
    use crate::parse;

    const EVERY_KEY: &str = include_str!("failover.toml");

    fn defaults() -> Failover {
        Failover {
            gateway: "az-a".to_owned(),
            key: KeySource::File("/etc/egret/peer.key".into()),
            listen: "10.0.0.10:7946".parse().unwrap(),
            peers: vec![FailoverPeer {
                gateway: "az-b".to_owned(),
                address: PeerAddress::Fixed("10.0.3.10:7946".parse().unwrap()),
            }],
            fallback_nat_gateway: None,
            heartbeat_interval: Duration::from_millis(250),
            dead_after: Duration::from_millis(1500),
            failback: Failback::Auto,
            hold_down: Duration::from_secs(120),
            egress_probes: Vec::new(),
        }
    }

    #[test]
    fn what_is_left_out_has_its_default_and_all_addresses_move() {
        let config = parse(BASE).unwrap();
        assert_eq!(config.failover, Some(defaults()));
        assert_eq!(config.aws.elastic_ip_count, 2);
    }

    #[test]
    fn key_is_in_a_file_or_a_parameter() {
        let with = |line: &str| BASE.replace("key_file = \"/etc/egret/peer.key\"", line);
        for name in ["/egret/peer-key", "peer.key_1"] {
            let config = parse(&with(&format!("key_parameter = \"{name}\""))).unwrap();
            assert_eq!(config.failover.clone().unwrap().key, KeySource::Parameter(name.to_owned()));
            assert_eq!(parse(&config::render(&config)).unwrap(), config);
        }
        assert_one(&with(""), "4: failover: has no key_file and no key_parameter; failover needs one of them");
        let both = with("key_file = \"/etc/egret/peer.key\"\nkey_parameter = \"/egret/peer-key\"");
        assert_one(&both, "7: failover.key_parameter: cannot stand beside failover.key_file; use one of them");
        let longest = "x".repeat(1012);
        for wrong in ["", "egret/key", "/egret/", "/egret//key", "a b", "arn:aws:ssm:x", longest.as_str()] {
            let text = with(&format!("key_parameter = \"{wrong}\""));
            assert_one(&text, "is not the name of a parameter, such as /egret/peer-key");
        }
    }

    #[test]
    fn peers_are_named_by_an_address_or_a_tag() {
        let address = |text: &str| {
            let config = parse(&BASE.replace("10.0.3.10:7946", text)).unwrap();
            assert_eq!(parse(&config::render(&config)).unwrap(), config, "{text}");
            config.failover.unwrap().peers[0].address.clone()
        };
        let tagged = |key: &str, value: &str, port| {
            let (key, value) = (key.to_owned(), value.to_owned());
            PeerAddress::Tagged { key, value, port }
        };
        assert_eq!(address("ec2-tag:role=b:7946"), tagged("role", "b", 7946));
        assert_eq!(address("ec2-tag:egret:gateway=az-b:7946"), tagged("egret:gateway", "az-b", 7946));
        assert_eq!(address("ec2-tag:role=a=b:c\\\"d:1"), tagged("role", "a=b:c\"d", 1));
        assert_eq!(address("ec2-tag:role=:7946"), tagged("role", "", 7946));
    }

    #[test]
    fn tags_of_peers_that_are_none_are_told_with_their_place() {
        for wrong in ["role=b", "role=b:0", "role=b:65536", "role:7946", "=b:7946", ""] {
            let text = BASE.replace("10.0.3.10:7946", &format!("ec2-tag:{wrong}"));
            let expected = format!(
                "8: failover.peers[0].address: \"ec2-tag:{wrong}\" is not a tag and a port; use such as \
                 \"ec2-tag:egret:gateway=az-b:7946\""
            );
            assert_one(&text, &expected);
        }
        let twice = "{ gateway = \"az-b\", address = \"ec2-tag:role=b:7946\" }, { gateway = \"az-c\", address = \"ec2-tag:role=b:7946\" }";
        let text = BASE.replace("{ gateway = \"az-b\", address = \"10.0.3.10:7946\" }", twice);
        assert_one(
            &text,
            "failover.peers[1].address: ec2-tag:role=b:7946 is already failover.peers[0].address",
        );
    }

    #[test]
    fn every_key_has_its_effect() {
        let config = parse(EVERY_KEY).unwrap();
        let rendered = config::render(&config);
        let default = config::render(&parse(BASE).unwrap());
        let needed = ["gateway", "key_file", "listen"];
        let section = EVERY_KEY.split_once("[failover]\n").unwrap().1;
        for line in section.lines() {
            assert!(rendered.lines().any(|rendered| rendered == line), "{line}\nis not in\n{rendered}");
            let is_default = default.lines().any(|default| default == line);
            assert!(!is_default || needed.iter().any(|key| line.starts_with(key)), "{line}");
        }
        assert_eq!(parse(&rendered).unwrap(), config);
        assert_eq!(parse(&default).unwrap().failover, Some(defaults()));
    }

    #[test]
    fn documentation_shows_every_key_with_its_default() {
        let documentation = include_str!("../../docs/configuration.md");
        let mut examples = documentation.split("```").filter_map(|part| part.strip_prefix("toml\n"));
        let example = examples.find(|example| example.contains("[failover]")).unwrap();
        let documented = config::render(&parse(example).unwrap());
        let key = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
        for line in EVERY_KEY.lines().filter(|line| !line.starts_with('#')) {
            let known = example.lines().any(|documented| key(documented) == key(line));
            assert!(known || line.contains("enabled") || line.contains("count"), "{line} is not documented");
        }
        let defaults = config::render(&parse(BASE).unwrap());
        for key in ["heartbeat_interval", "dead_after", "failback", "hold_down", "egress_probes"] {
            let default = defaults.lines().find(|line| line.starts_with(key)).unwrap();
            assert!(documented.lines().any(|line| line == default), "{default} is the default");
        }
    }
}
