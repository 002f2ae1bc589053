//! Configuration files through the public interface, and through `egret check-config`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "config/failover.rs"]
mod failover;
#[path = "config/import.rs"]
mod import;
#[path = "config/resolve.rs"]
mod resolve;
#[path = "config/settings.rs"]
mod settings;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use egret::config::{self, Config, RouteTables, Settings, Switch};
use egret::datapath::{Choice, XdpConfig};
#[cfg(feature = "aws")]
use egret::forward::Source;
use egret::nat::Timeouts;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Config, config::Problems> {
    config::parse(Path::new("egret.toml"), text.as_bytes())
}

fn messages(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn nets(nets: &[&str]) -> Vec<ipnet::Ipv4Net> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}

fn warnings(text: &str) -> Vec<String> {
    parse(text).unwrap().warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn every_mistake_is_told_with_line_key_and_what_is_allowed() {
    let cases: &[(&str, &str)] = &[
        ("datapath = \"dpdk\"", "1: datapath: \"dpdk\" is not known; use auto, xdp or af_packet"),
        ("[xdp]\nadjust_mtu = \"yes\"", "2: xdp.adjust_mtu: is of the type string; use true or false"),
        ("[xdp]\nadjust = true", "2: xdp.adjust: unknown key; did you mean xdp.adjust_mtu?"),
        ("adjust_mtu = true", "1: adjust_mtu: unknown key; did you mean xdp.adjust_mtu?"),
        ("datapath = 1", "1: datapath: is of the type integer; use a string in quotes"),
        ("datapth = \"auto\"", "1: datapth: unknown key; did you mean datapath?"),
        ("[natt]", "1: natt: unknown key; did you mean nat?"),
        ("[nat]\nmaping = \"x\"", "2: nat.maping: unknown key; did you mean nat.mapping?"),
        ("mapping = \"x\"", "1: mapping: unknown key; did you mean nat.mapping?"),
        ("[nat]\nudp = \"300s\"", "2: nat.udp: unknown key; did you mean nat.timeouts.udp?"),
        ("[admin]\nqqqqqq = 1", "2: admin.qqqqqq: unknown key; use listen, socket or nat_gateway_price_per_gb"),
        (
            "[admin]\n\"a b\" = 1",
            "2: admin.\"a b\": unknown key; use listen, socket or nat_gateway_price_per_gb",
        ),
        ("[aws]\nenabled = \"yes\"", "2: aws.enabled: \"yes\" is not known; use \"auto\", true or false"),
        ("[aws]\nenabled = \"true\"", "2: aws.enabled: \"true\" is not known; use \"auto\", true or false"),
        (
            "[aws]\nlaunching_hook = \"a hook\"",
            "2: aws.launching_hook: \"a hook\" is not the name of a lifecycle hook; use up to 255 letters",
        ),
        ("[aws]\nterminating_hook = \"\"", "2: aws.terminating_hook: \"\" is not the name of a lifecycle hook"),
        ("[aws]\nenabled = 1", "2: aws.enabled: is of the type integer; use \"auto\", true or false"),
        ("[aws]\nenable = true", "2: aws.enable: unknown key; did you mean aws.enabled?"),
        ("aws = true", "1: aws: is of the type boolean; use a table"),
        ("enabled = true", "1: enabled: unknown key; did you mean aws.enabled?"),
        ("[aws]\nroute_tables = []", "2: aws.route_tables: empty; name one, or leave the key out"),
        (
            "[aws]\nroute_tables = [\"rtb-01234567\", \"rtb-012345678\"]",
            "2: aws.route_tables[1]: \"rtb-012345678\" is not an id such as \"rtb-0123456789abcdef0\"",
        ),
        ("[aws]\nroute_tables = [\"eni-01234567\"]", "\"eni-01234567\" is not an id such as"),
        ("[aws]\nroute_tables = [\"rtb-0123456G\"]", "\"rtb-0123456G\" is not an id such as"),
        (
            "[aws]\nelastic_ips = [\"eipalloc-01234567\", \"eipalloc-01234567\"]",
            "2: aws.elastic_ips[1]: eipalloc-01234567 is already aws.elastic_ips[0]; remove one",
        ),
        ("[aws]\nroute_table_tags = {}", "2: aws.route_table_tags: has 0 tags; use from 1 to 10"),
        ("[aws]\nroute_table_tags = { a = 1 }", "aws.route_table_tags.a: is of the type integer"),
        (
            "[aws]\nroute_tables = [\"rtb-01234567\"]\nroute_table_tags = { a = \"b\" }",
            "3: aws.route_table_tags: cannot stand beside aws.route_tables; use one of them",
        ),
        ("[aws]\nroutes = [\"198.51.100.1/24\"]", "has host bits set; use \"198.51.100.0/24\""),
        ("[aws]\nroutes = [\"::/0\"]", "\"::/0\" is not an IPv4 prefix; use one such as \"0.0.0.0/0\""),
        ("[aws]\nelastic_ip_count = 1", "2: aws.elastic_ip_count: more than aws.elastic_ips has (0)"),
        ("[aws]\nelastic_ip_count = 0", "use a number of Elastic IPs from 1 to 50"),
        ("nat = 3", "1: nat: is of the type integer; use a table"),
        (
            "[nat]\nmapping = \"cone\"",
            "2: nat.mapping: \"cone\" is not known; use endpoint-independent or address-and-port-dependent",
        ),
        (
            "[nat]\nfiltering = \"open\"",
            "\"open\" is not known; use address-and-port-dependent or endpoint-independent",
        ),
        ("[nat]\non_exhaustion = \"drop\"", "\"drop\" is not known; use overload or refuse"),
        ("[nat]\nprofile = \"aws\"", "\"aws\" is not known; use rfc or aws-nat-gateway"),
        ("[nat]\nexternal_interface = \"\"", "is not the name of an interface"),
        ("[nat]\ninternal_interface = \"a/b\"", "\"a/b\" is not the name of an interface"),
        ("[nat]\nexternal_interface = \"sixteenletters16\"", "is not the name of an interface"),
        ("[nat]\ninternal = \"10.0.0.0/8\"", "2: nat.internal: is of the type string; use an array"),
        ("[nat]\ninternal = []", "2: nat.internal: empty: nobody would be translated"),
        ("[nat]\ninternal = [\"0.0.0.0/0\"]", "2: nat.internal[0]: \"0.0.0.0/0\" is the whole internet"),
        ("[nat]\nbypass = [\"0.0.0.0/0\"]", "is the whole internet"),
        ("[nat]\ninternal = [\"10.0.0.1/16\"]", "\"10.0.0.1/16\" has host bits set; use \"10.0.0.0/16\""),
        ("[nat]\ninternal = [\"10.0.0.0\"]", "\"10.0.0.0\" is not an IPv4 prefix"),
        ("[nat]\ninternal = [\"fd00::/8\"]", "\"fd00::/8\" is not an IPv4 prefix"),
        ("[nat]\ninternal = [\"127.0.0.0/8\"]", "holds addresses that no host can have"),
        ("[nat]\ninternal = [\"128.0.0.0/1\"]", "holds addresses that no host can have"),
        (
            "[nat]\ninternal = [\n\"10.0.0.0/8\",\n\"10.0.0.0/8\",\n]",
            "4: nat.internal[1]: 10.0.0.0/8 is already nat.internal[0]; remove one",
        ),
        ("[nat]\nexternal_addresses = []", "2: nat.external_addresses: empty"),
        (
            "[nat]\nexternal_addresses = [\"192.0.2.1\"]",
            "nat.external_addresses[0]: is of the type string; use a table",
        ),
        (
            "[nat]\nexternal_addresses = [{ public = \"203.0.113.7\" }]",
            "nat.external_addresses[0]: has no private",
        ),
        (
            "[nat]\nexternal_addresses = [{ private = 1 }]",
            "nat.external_addresses[0].private: is of the type integer",
        ),
        (
            "[nat]\nexternal_addresses = [{ private = \"192.0.2.1\", pubic = \"203.0.113.7\" }]",
            "nat.external_addresses[0].pubic: unknown key; did you mean nat.external_addresses[0].public?",
        ),
        ("[nat]\nexternal_addresses = [{ private = \"192.0.2.256\" }]", "is not an IPv4 address"),
        ("[nat]\nexternal_addresses = [{ private = \"127.0.0.1\" }]", "is not an address that a host can have"),
        (
            "[nat]\nexternal_addresses = [{ private = \"255.255.255.255\" }]",
            "is not an address that a host can have",
        ),
        (
            "[nat]\nexternal_addresses = [\n{ private = \"192.0.2.1\", public = \"203.0.113.7\" },\n\
             { private = \"192.0.2.2\", public = \"203.0.113.7\" }]",
            "4: nat.external_addresses[1].public: 203.0.113.7 is already nat.external_addresses[0].public; remove one",
        ),
        (
            "[nat]\nexternal_addresses = [{ private = \"192.0.2.1\" }, { private = \"192.0.2.1\" }]",
            "192.0.2.1 is already nat.external_addresses[0].private; remove one",
        ),
        (
            "[nat]\nexternal_addresses = [{ private = \"192.0.2.1\", public = \"192.0.2.1\" }]",
            "nat.external_addresses[0].public: 192.0.2.1 is already nat.external_addresses[0].private",
        ),
        (
            "[nat]\ninternal = [\"10.0.0.0/8\"]\n\
             external_addresses = [{ private = \"10.0.0.1\", public = \"10.0.0.2\" }]",
            "3: nat.external_addresses[0].public: 10.0.0.2 lies within nat.internal[0] (10.0.0.0/8)",
        ),
        ("[nat]\nport_range = 1024", "is of the type integer; use a string in quotes"),
        ("[nat]\nport_range = \"1024\"", "\"1024\" is not a range of ports; use one such as \"1024-60999\""),
        ("[nat]\nport_range = \"0-100\"", "is not a range of ports"),
        ("[nat]\nport_range = \"+1-+2\"", "is not a range of ports"),
        ("[nat]\nport_range = \"1024-70000\"", "is not a range of ports"),
        ("[nat]\nport_range = \"2000-1000\"", "ends before it begins; use \"1000-2000\""),
        (
            "[nat]\nport_range = \"1024-61000\"",
            "reaches into the host's own ports (61000-65535); end it at 60999",
        ),
        ("[nat]\nexternal_mtu = 575", "575 is out of range; use a number of bytes from 576 to 9216"),
        ("[nat]\nexternal_mtu = 0xFFFF", "is out of range; use a number of bytes"),
        ("[nat]\nexternal_mtu = 1500.0", "is of the type float; use a whole number of bytes"),
        ("[nat]\nmss_clamp = true", "is of the type boolean; use a whole number of bytes"),
        ("[nat]\nmss_clamp = 100", "100 is out of range; use a number of bytes from 536 to 9176"),
        ("[nat]\nanswer_unsolicited_syn = \"yes\"", "is of the type string; use true or false"),
        ("[nat.timeouts]\nudp = 300", "2: nat.timeouts.udp: is of the type integer; use a string in quotes"),
        ("[nat.timeouts]\nudp = \"300\"", "nat.timeouts.udp: \"300\" is not a time (time unit needed"),
        ("[nat.timeouts]\nudp = \"0s\"", "\"0s\" is out of range; use a time from 1s to 30days"),
        ("[nat.timeouts]\ntcp_established = \"1year\"", "is out of range"),
        ("[nat.timeouts]\ntcp = \"5m\"", "nat.timeouts.tcp: unknown key; use tcp_established"),
        ("[nat.limits]\nsessions = -1", "-1 is out of range; use a number of sessions from 0 to 14680064"),
        ("[nat.limits]\nsessions = 99999999999999999999", "99999999999999999999 is out of range"),
        (
            "[nat.limits]\nsessions = 1000\nsessions_per_address = 1001",
            "3: nat.limits.sessions_per_address: more than nat.limits.sessions (1000); use at most as many",
        ),
        ("[nat.limits]\nnew_sessions_per_second = 1000001", "is out of range"),
        ("[nat.limits]\nfragment_memory = 0", "0 is out of range; use a number of bytes from 65536"),
        (
            "[admin]\nlisten = \"9464\"",
            "2: admin.listen: \"9464\" is not an address with a port; use one such as",
        ),
        ("[admin]\nnat_gateway_price_per_gb = \"0.1\"", "is of the type string; use a number of US dollars"),
        (
            "[admin]\nnat_gateway_price_per_gb = -0.1",
            "-0.1 is out of range; use a number of US dollars from 0 to 1000",
        ),
        ("[admin]\nnat_gateway_price_per_gb = nan", "nan is out of range"),
        ("[admin]\nlisten = \"127.0.0.1:0\"", "is not an address with a port"),
        ("[admin]\nlisten = \"localhost:9464\"", "is not an address with a port"),
        ("[session_log]\nto = \"sessions.log\"", "is neither \"stdout\" nor the absolute path of a file"),
        ("[session_log]\nlines_per_second = 0", "0 is out of range; use a number of lines from 1 to 1000000"),
        ("[session_log]\nopen = true", "2: session_log.open: unknown key; did you mean session_log.opened?"),
        ("[admin]\nsocket = \"egret.sock\"", "\"egret.sock\" is not an absolute path"),
        ("[admin]\nsocket = \"/run/\"", "is not an absolute path"),
        ("[admin]\nsocket = \"/a\\u0000b\"", "is not an absolute path"),
    ];
    for (text, expected) in cases {
        let found = messages(text);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].contains(expected), "{text}\n  says {}\n  not  {expected}", found[0]);
        assert!(found[0].starts_with("egret.toml:"), "{}", found[0]);
    }
    let long = format!("[admin]\nsocket = \"/{}\"", "a".repeat(107));
    assert!(messages(&long)[0].contains("is 108 bytes long; the system allows 107"));
}

#[test]
fn every_mistake_in_a_listener_is_told_with_its_place() {
    let base = "[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [\"10.0.1.10:5000\"]\n";
    parse(base).unwrap();
    for (more, expected) in [
        ("color = 1", "5: forward[0].color: unknown key"),
        ("mode = \"dsr\"", "5: forward[0].mode: \"dsr\" is not known; use proxy or nat"),
        ("mode = \"nat\"\nidle_timeout = \"1m\"", "6: forward[0].idle_timeout: is of mode = \"proxy\""),
        (
            "[[forward]]\nname = \"b\"\nlisten = \"10.0.0.10:61000\"\nmode = \"nat\"\ntargets = [\"10.0.1.10:1\"]",
            "port 61000 is one of the host's own (61000-65535); use one below",
        ),
        (
            // Another address, but packets to the port are NAT's at all.
            "[[forward]]\nname = \"b\"\nlisten = \"10.0.0.11:5000\"\nmode = \"nat\"\ntargets = [\"10.0.1.10:1\"]",
            "is taken by forward[0].listen",
        ),
        ("allow = []", "nobody could connect"),
        ("allow = [\"10.0.0.1/8\"]", "has host bits set; use \"10.0.0.0/8\""),
        ("connection_limit = 0", "use a number of connections from 1"),
        ("idle_timeout = \"0s\"", "is out of range; use a time from 1s"),
        ("proxy_protocol = \"v3\"", "\"v3\" is not known; use off, v1 or v2"),
        ("[forward.health]\ntype = \"icmp\"", "\"icmp\" is not known; use tcp, http or https"),
        ("[forward.health]\npath = \"/\"", "is of HTTP; set type = \"http\" or \"https\" beside it"),
        (
            "[forward.health]\ntype = \"http\"\npath = \"health\"",
            "\"health\" is not a path; use such as \"/health\"",
        ),
        ("[forward.health]\ntype = \"http\"\nmatcher = \"399-200\"", "are not HTTP statuses"),
        ("[forward.health]\ninterval = \"1s\"\ntimeout = \"2s\"", "longer than the interval (1s)"),
        ("keepalive = \"-1s\"", "5: forward[0].keepalive: "),
        ("keepalive = \"500ms\"", "not of whole seconds; use such as \"30s\""),
        ("keepalive = \"10h\"", "is out of range"),
        ("tls = true", "5: forward[0].tls: is of the type boolean; use a table"),
        ("[forward.tls]\ncertificate = \"/a.pem\"", "5: forward[0].tls: has no key; name a file in PEM"),
        ("[forward.tls]\nkey = \"/a.key\"", "5: forward[0].tls: has no certificate"),
        (
            "[forward.tls]\ncertificate = \"a.pem\"\nkey = \"/a.key\"",
            "6: forward[0].tls.certificate: \"a.pem\" is not an absolute path of a file",
        ),
        (
            "[forward.tls]\ncertificate = \"/a.pem\"\nkey = \"/a.key\"\nca = \"/ca.pem\"",
            "8: forward[0].tls.ca: unknown key",
        ),
        (
            "[forward.tls]\ncertificate = \"/a.pem\"\nkey = \"/a.key\"\nmin_version = \"1.1\"",
            "\"1.1\" is not known; use 1.2 or 1.3",
        ),
        (
            "[forward.tls]\ncertificate = \"/a.pem\"\nkey = \"/a.key\"\nalpn = [\"\"]",
            "forward[0].tls.alpn[0]: \"\" is not a protocol; use such as \"h2\"",
        ),
        ("[forward.health]\nunhealthy_threshold = 0", "use a number of checks in a row from 1"),
        (
            "[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5001\"\ntargets = [\"10.0.1.10:5000\"]",
            "is already forward[0].name",
        ),
        (
            "[[forward]]\nname = \"b\"\nlisten = \"10.0.0.10:5000\"\ntargets = [\"10.0.1.10:5000\"]",
            "is taken by forward[0].listen",
        ),
        (
            "[[forward]]\nlisten = \"0.0.0.0:5001\"\ntargets = [\"10.0.1.10:5000\"]",
            "5: forward[1]: has no name",
        ),
    ] {
        let found = messages(&format!("{base}{more}"));
        assert_eq!(found.len(), 1, "{more}: {found:#?}");
        assert!(found[0].contains(expected), "{more}\n  says {}\n  not  {expected}", found[0]);
    }
    for (targets, expected) in [
        ("[]", "has 0 targets; use from 1 to 256"),
        ("[\"10.0.1.10\"]", "is not an IPv4 address and a port"),
        ("[\"dns:api.example\"]", "is not a name and a port; use such as \"dns:internal-alb.example:80\""),
        ("[\"dns:10.0.1.10:80\"]", "is not a name and a port"),
        ("[\"dns:-api.example:80\"]", "is not a name and a port"),
        ("[\"dns:api..example:80\"]", "is not a name and a port"),
        ("[\"dns:api.example:0\"]", "is not a name and a port"),
        ("[\"dns:api.example:80\", \"dns:API.example:80\"]", "dns:api.example:80 is there twice"),
        ("[\"10.0.1.10:5000\", \"10.0.1.10:5000\"]", "is there twice"),
        ("[{ weight = 3 }]", "forward[0].targets[0]: has no address"),
    ] {
        let found = messages(&base.replace("[\"10.0.1.10:5000\"]", targets));
        assert_eq!(found.len(), 1, "{targets}: {found:#?}");
        assert!(found[0].contains(expected), "{targets}\n  says {}\n  not  {expected}", found[0]);
    }
}

#[cfg(feature = "aws")]
#[test]
fn targets_by_tag_are_a_key_a_value_and_a_port() {
    let base = "[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [TARGET]";
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    for (text, expected) in [
        ("ec2-tag:role=api:5000", tag("role", "api")),
        ("ec2-tag:egret:role=a=b:c:5000", tag("egret:role", "a=b:c")),
        ("ec2-tag:role=:5000", tag("role", "")),
        ("ec2-tag:the role=\u{e9}\\\"*:5000", tag("the role", "\u{e9}\"*")),
    ] {
        let config = parse(&base.replace("TARGET", &format!("\"{text}\""))).unwrap();
        let (key, value) = expected;
        assert_eq!(config.forward[0].followed[0].source, Source::Ec2Tag { key, value, port: 5000 });
        assert_eq!(parse(&config::render(&config)).unwrap().forward, config.forward);
    }
    let long = format!("ec2-tag:{}=api:5000", "k".repeat(129));
    for text in ["ec2-tag:role=api", "ec2-tag:role:5000", "ec2-tag:=api:5000", "ec2-tag:role=api:0", &long] {
        let found = messages(&base.replace("TARGET", &format!("\"{text}\"")));
        assert!(
            found[0].contains("is not a tag and a port; use such as \"ec2-tag:role=api:5000\""),
            "{found:?}"
        );
    }
    let off = format!("{}\n[aws]\nenabled = false", base.replace("TARGET", "\"ec2-tag:role=api:5000\""));
    assert_eq!(
        messages(&off),
        [
            "egret.toml:6: aws.enabled: forward api has targets by tag, which only AWS knows; use \"auto\", or other \
          targets"
        ]
    );
}

#[cfg(not(feature = "aws"))]
#[test]
fn targets_by_tag_need_aws_support() {
    let found = messages(
        "[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [\"ec2-tag:role=api:5000\"]",
    );
    assert!(found[0].contains("was built without AWS support; use addresses, or a name"), "{found:?}");
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_their_lines() {
    let found = messages(include_str!("config/all-wrong.toml"));
    let lines: Vec<&str> = found.iter().map(|message| message.split(": ").next().unwrap()).collect();
    assert_eq!(
        lines,
        [3, 6, 7, 8, 8, 9, 10, 11, 14, 15, 18, 21, 22].map(|line| format!("egret.toml:{line}")),
        "{found:#?}"
    );
}

#[test]
fn an_error_of_syntax_is_one_problem_with_line_and_column() {
    assert_eq!(messages("[nat]\n\nmapping = \n").len(), 1);
    let problems = parse("[nat]\n  mapping @ 1\nfiltering = ?\n").unwrap_err();
    let problem = problems.iter().next().unwrap();
    assert_eq!((problems.iter().count(), problem.line, problem.column), (1, Some(2), Some(11)), "{problem}");
    let twice = messages("[nat]\nmapping = \"a\"\nmapping = \"b\"");
    assert!(twice[0].starts_with("egret.toml:3:1: not TOML: duplicate key"), "{twice:?}");
    let binary = config::parse(Path::new("egret.toml"), b"[nat]\n\xff\xfe").unwrap_err();
    assert_eq!(binary.to_string(), "egret.toml:2: not UTF-8, as TOML has to be");
}

#[test]
fn what_is_doubtful_is_a_warning() {
    let cases: &[(&str, &str)] = &[
        (
            "[nat.timeouts]\nudp = \"30s\"",
            "2: nat.timeouts.udp: below 2m, the least that RFC 4787 REQ-5 allows",
        ),
        ("[nat.timeouts]\ntcp_established = \"1h\"", "below 2h 4m, the least that RFC 5382 REQ-5 allows"),
        ("[nat.timeouts]\nicmp_query = \"59s\"", "below 1m, the least that RFC 5508 REQ-2 allows"),
        (
            "[nat]\ninternal = [\"10.0.0.0/8\", \"10.1.0.0/16\"]",
            "nat.internal[1]: 10.1.0.0/16 lies within 10.0.0.0/8",
        ),
        (
            "[nat]\ninternal = [\"10.1.0.0/16\", \"10.0.0.0/8\"]",
            "nat.internal[0]: 10.1.0.0/16 lies within 10.0.0.0/8",
        ),
        ("[nat]\nmss_clamp = 1461", "nat.mss_clamp: does nothing"),
    ];
    for (text, expected) in cases {
        let found = warnings(text);
        assert!(found.len() == 1 && found[0].contains(expected), "{text}: {found:?}");
    }
    assert_eq!(warnings("[nat]\nprofile = \"aws-nat-gateway\"\nmss_clamp = 1460"), [""; 0]);
    assert_eq!(warnings("[nat.timeouts]\nudp = \"2m\"\ntcp_transitory = \"4m\""), [""; 0]);
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!((config.datapath, config.xdp), (Choice::Auto, XdpConfig { adjust_mtu: false }));
    assert_eq!(config.nat.port_range, 1024..=60_999);
    assert_eq!(config.nat.timeouts, Timeouts::default());
    assert_eq!(config.nat.external_mtu, 1500);
    assert_eq!(config.aws.enabled, Switch::Auto);
    assert_eq!(config.admin.socket, Path::new(config::DEFAULT_SOCKET));
    assert_eq!(config.admin.nat_gateway_price_per_gb, config::Price::NAT_GATEWAY);
    assert_eq!(config.admin.listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(parse("[admin]\nlisten = \"off\"").unwrap().admin.listen, None);
    assert_eq!(config.warnings, []);
}

#[test]
fn route_tables_may_be_named_by_their_tags() {
    let text = "[aws]\nroute_table_tags = { \"egret:gateway\" = \"az-a\", team = \"\" }";
    let aws = parse(text).unwrap().aws;
    let tags = [("egret:gateway", "az-a"), ("team", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(aws.route_tables, RouteTables::Tagged(tags.into()));
    assert_eq!(aws.routes, nets(&["0.0.0.0/0"]));
}

#[test]
fn every_key_has_its_effect() {
    let config = parse(include_str!("config/every-key.toml")).unwrap();
    let rendered = config::render(&config);
    for line in include_str!("config/every-key.toml").lines().filter(|line| !line.starts_with('#')) {
        assert!(rendered.lines().any(|rendered| rendered == line), "{line}\nis not in\n{rendered}");
    }
    assert_eq!(config.nat.timeouts.tcp_established, Duration::from_secs(3 * 3600));
    assert_eq!(config.nat.timeouts.tcp_transitory, Duration::from_secs(250));
    let default = config::render(&parse("").unwrap());
    let same: Vec<&str> = rendered
        .lines()
        .filter(|line| line.contains('=') && default.lines().any(|default| default == *line))
        .collect();
    assert_eq!(same, [""; 0], "every key of the file differs from its default");
}

#[test]
fn documentation_shows_every_key_with_its_default() {
    let documentation = include_str!("../docs/configuration.md");
    let example = documentation.split("```").find_map(|part| part.strip_prefix("toml\n")).unwrap();
    let documented = config::render(&parse(example).unwrap());
    let key = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
    for line in include_str!("config/every-key.toml").lines().filter(|line| !line.starts_with('#')) {
        let known = example.lines().any(|documented| key(documented) == key(line));
        assert!(known, "{line} is not in the example of docs/configuration.md");
    }
    for line in config::render(&parse("").unwrap()).lines().filter(|line| line.contains('=')) {
        assert!(documented.lines().any(|documented| documented == line), "{line} is the default");
    }
}

#[test]
fn a_profile_is_the_ground_that_timeouts_are_laid_on() {
    let config = parse("[nat]\nprofile = \"aws-nat-gateway\"\n[nat.timeouts]\nudp = \"5m\"").unwrap();
    let expected = Timeouts { udp: Duration::from_secs(300), ..Timeouts::aws_nat_gateway() };
    assert_eq!(config.nat.timeouts, expected);
}

#[test]
fn what_is_rendered_means_the_same() {
    for text in [
        "",
        "[aws]\nenabled = \"auto\"",
        include_str!("config/every-key.toml"),
        "[aws]\nroute_table_tags = { \"egret:gateway\" = \"az-a\", team = \"\" }",
        "[nat]\nbypass = []\n[nat.timeouts]\nudp = \"121500ms\"",
    ] {
        let config = parse(text).unwrap();
        assert_eq!(parse(&config::render(&config)).unwrap(), Config { warnings: Vec::new(), ..config });
    }
}

#[test]
fn a_file_has_to_exist_and_to_be_of_a_sane_size() {
    let (directory, alone) = (scratch("files"), Settings::default());
    let missing = config::load(&directory.join("missing.toml"), &alone).unwrap_err().to_string();
    assert!(missing.contains("missing.toml: no such file"), "{missing}");
    let unreadable = config::load(&directory, &alone).unwrap_err().to_string();
    assert!(unreadable.contains("cannot be read"), "{unreadable}");
    let path = directory.join("long.toml");
    std::fs::write(&path, " ".repeat(1 << 20)).unwrap();
    config::load(&path, &alone).unwrap();
    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    let long = config::load(&path, &alone).unwrap_err().to_string();
    assert!(long.contains("longer than 1048576 bytes"), "{long}");
}

#[test]
fn check_config_prints_what_holds_or_all_that_is_wrong() {
    let directory = scratch("check");
    let check = |text: &str| {
        let path = directory.join("egret.toml");
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_egret")).arg("check-config").arg(&path).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = check(include_str!("config/every-key.toml"));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let (again, out_again, _) = check(&out);
    assert_eq!((again, &out_again), (Some(0), &out), "its output is a configuration");
    let (code, out, err) = check(include_str!("config/all-wrong.toml"));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(err.lines().count(), 13, "{err}");
    assert!(err.contains("egret.toml:6: nat.mapping: \"cone\" is not known"), "{err}");
    let (code, _, err) = check("[nat.timeouts]\nudp = \"30s\"");
    assert!(code == Some(0) && err.starts_with("warning: "), "{err}");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = config::parse(Path::new("egret.toml"), &bytes);
    }

    #[test]
    fn no_text_made_of_the_right_words_panics(
        words in proptest::collection::vec(proptest::sample::select(WORDS), 0..60)
    ) {
        match config::parse(Path::new("egret.toml"), words.concat().as_bytes()) {
            Ok(config) => {
                let _ = config::resolve(&config, &resolve::host());
                prop_assert!(parse(&config::render(&config)).is_ok());
            }
            Err(problems) => prop_assert!(!problems.to_string().is_empty()),
        }
    }
}

const WORDS: &[&str] = &[
    "[nat]\n",
    "[admin]\n",
    "[aws]\n",
    "[failover]\n",
    "gateway",
    "listen",
    "peers",
    "dead_after",
    "egress_probes",
    "\"10.0.0.10:7946\"",
    "enabled",
    "route_tables",
    "route_table_tags",
    "elastic_ips",
    "elastic_ip_count",
    "\"rtb-01234567\"",
    "\"eipalloc-01234567\"",
    "false",
    "[nat.limits]\n",
    "[xdp]\n",
    "adjust_mtu",
    "[nat.timeouts]\n",
    "[[nat]]\n",
    "nat",
    ".",
    " = ",
    "\n",
    "\"",
    "'",
    "datapath",
    "internal",
    "bypass",
    "external_addresses",
    "private",
    "public",
    "port_range",
    "mapping",
    "profile",
    "external_mtu",
    "mss_clamp",
    "sessions",
    "udp",
    "socket",
    "listen",
    "\"auto\"",
    "\"10.0.0.0/8\"",
    "\"1024-60999\"",
    "\"203.0.113.7\"",
    "\"300s\"",
    "\"aws-nat-gateway\"",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "0",
    "1500",
    "-1",
    "0x10",
    "1e9",
    "true",
    "nan",
    "1979-05-27",
    "\u{e9}",
    "\"\\u0000\"",
    "# x\n",
    "\r\n",
    "\"\"\"",
];

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("egret-config-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}
