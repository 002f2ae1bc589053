//! Keys that are set by variables and by tags, over and under a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use egret::config::{self, Config, Origin, Problems, Settings};

use proptest::prelude::*;

use super::{nets, scratch};

fn variables(all: &[(&str, &str)]) -> Settings {
    Settings::from_variables(all.iter().map(|(name, text)| (name.into(), text.into())))
}

fn tags(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
}

fn parse(file: &str, settings: &Settings) -> Result<Config, Problems> {
    config::parse_with(Path::new("egret.toml"), file.as_bytes(), settings)
}

fn messages(file: &str, settings: &Settings) -> Vec<String> {
    parse(file, settings).unwrap_err().iter().map(ToString::to_string).collect()
}

fn warnings(config: &Config) -> Vec<String> {
    config.warnings.iter().map(ToString::to_string).collect()
}

/// Every key of a file with its value, by its path, and the listeners as one of them.
fn keys(file: &str) -> Vec<(String, String)> {
    fn walk(path: &str, table: toml::Table, out: &mut Vec<(String, String)>) {
        for (name, value) in table {
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            match value {
                toml::Value::Table(table) if path != "aws.route_table_tags" => walk(&path, table, out),
                value => out.push((path, value.to_string())),
            }
        }
    }
    let mut keys = Vec::new();
    walk("", file.parse().unwrap(), &mut keys);
    keys
}

fn name(path: &str) -> String {
    format!("EGRET_{}", path.replace('.', "__").to_uppercase())
}

#[test]
fn every_key_can_be_set_by_a_variable() {
    let mut files = vec![
        include_str!("every-key.toml"),
        "[aws]\nroute_table_tags = { \"egret:gateway\" = \"az-a\", team = \"\" }",
    ];
    if cfg!(feature = "aws") {
        files.push(include_str!("failover.toml"));
    }
    for file in files {
        let keys = keys(file);
        let names: Vec<(String, &str)> = keys.iter().map(|(path, text)| (name(path), text.as_str())).collect();
        let named: Vec<(&str, &str)> = names.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let config = parse("", &variables(&named)).unwrap();
        assert_eq!(config::render(&config), config::render(&parse(file, &Settings::default()).unwrap()));
        assert_eq!(config.set.len(), keys.len());
    }
}

#[test]
fn variables_stand_above_the_file_and_tags_below() {
    let file = "[nat]\nport_range = \"2000-3000\"\nexternal_mtu = 1400";
    let variables = variables(&[("EGRET_NAT__PORT_RANGE", "4000-5000"), ("EGRET_NAT__MSS_CLAMP", "1300")]);
    let settings = variables.with_tags(&tags(&[
        ("egret:nat.port_range", "6000-7000"),
        ("egret:nat.external_mtu", "1300"),
        ("egret:nat.mss_clamp", "1200"),
        ("egret:nat.timeouts.udp", "7m"),
        ("Name", "gate"),
    ]));
    let config = parse(file, &settings).unwrap();
    let nat = &config.nat;
    assert_eq!((nat.port_range.clone(), nat.external_mtu, nat.mss_clamp), (4000..=5000, 1400, Some(1300)));
    assert_eq!(nat.timeouts.udp.as_secs(), 420);
    let set: Vec<String> = config.set.iter().map(|set| format!("{} by {}", set.key, set.origin)).collect();
    assert_eq!(
        set,
        [
            "nat.mss_clamp by variable EGRET_NAT__MSS_CLAMP",
            "nat.port_range by variable EGRET_NAT__PORT_RANGE",
            "nat.timeouts.udp by tag egret:nat.timeouts.udp",
        ]
    );
    assert_eq!(
        warnings(&config),
        [
            "tag egret:nat.external_mtu: nat.external_mtu: has no effect; egret.toml:3 sets the key",
            "tag egret:nat.mss_clamp: nat.mss_clamp: has no effect; variable EGRET_NAT__MSS_CLAMP sets the key",
            "tag egret:nat.port_range: nat.port_range: has no effect; variable EGRET_NAT__PORT_RANGE sets the key",
        ]
    );
}

#[test]
fn a_text_is_toml_or_a_list_or_a_string() {
    let nat = |name: &str, text: &str| parse("", &variables(&[(name, text)])).unwrap().nat;
    for text in ["2000-3000", "\"2000-3000\"", "'2000-3000'", " 2000-3000\n"] {
        assert_eq!(nat("EGRET_NAT__PORT_RANGE", text).port_range, 2000..=3000, "{text}");
    }
    let two = Some(nets(&["10.0.0.0/16", "10.1.0.0/16"]));
    for text in ["10.0.0.0/16,10.1.0.0/16", "10.0.0.0/16, 10.1.0.0/16", "[\"10.0.0.0/16\", \"10.1.0.0/16\"]"] {
        assert_eq!(nat("EGRET_NAT__INTERNAL", text).internal, two, "{text}");
    }
    assert_eq!(nat("EGRET_NAT__INTERNAL", "10.0.0.0/16").internal, Some(nets(&["10.0.0.0/16"])));
    assert!(nat("EGRET_NAT__ANSWER_UNSOLICITED_SYN", "true").answer_unsolicited_syn);
    let address = nat("EGRET_NAT__EXTERNAL_ADDRESSES", "[{ private = \"10.0.0.10\" }]").external_addresses;
    assert_eq!(address.unwrap()[0].private.to_string(), "10.0.0.10");
    let forward = "[{ name = \"a\", listen = \"0.0.0.0:5000\", targets = [\"10.0.1.10:5000\"] }]";
    let file = "[[forward]]\nname = \"b\"\nlisten = \"0.0.0.0:6000\"\ntargets = [\"10.0.1.10:6000\"]";
    let listeners = parse(file, &variables(&[("EGRET_FORWARD", forward)])).unwrap().forward;
    assert_eq!(listeners.len(), 1, "a list is replaced as a whole");
    assert_eq!(listeners[0].name, "a");
}

#[test]
fn what_is_empty_is_not_set() {
    let settings = variables(&[("EGRET_NAT__PORT_RANGE", ""), ("EGRET_AWS__ELASTIC_IPS", " ")])
        .with_tags(&tags(&[("egret:nat.mapping", ""), ("egret:nonsense", "")]));
    assert_eq!(parse("", &settings).unwrap(), parse("", &Settings::default()).unwrap());
}

#[test]
fn other_variables_and_tags_are_left_alone() {
    let settings =
        variables(&[("EGRET_LOG", "debug"), ("PATH", "/bin"), ("egret_nat", "x"), ("XEGRET_NAT", "x")]);
    assert_eq!(settings, Settings::default());
    // It says whose an instance is, to others.
    let marked = Settings::default().with_tags(&tags(&[("egret:gateway", "az-a"), ("Name", "gate")]));
    assert_eq!(marked, Settings::default());
}

#[test]
fn every_mistake_names_its_variable() {
    let long = format!("EGRET_{}", "A".repeat(100_000));
    let text = "x".repeat(70_000);
    for (name, text, expected) in [
        (
            "EGRET_NAT__MAPPING",
            "cone",
            "variable EGRET_NAT__MAPPING: nat.mapping: \"cone\" is not known; use endpoint-independent or",
        ),
        ("EGRET_NAT__INTERNAL", "10.0.0.0/16,x", "variable EGRET_NAT__INTERNAL: nat.internal[1]: \"x\" is not"),
        (
            "EGRET_NAT__EXTERNAL_ADDRESSES",
            "[{ private = \"192.0.2.1\", pubic = \"203.0.113.7\" }]",
            "variable EGRET_NAT__EXTERNAL_ADDRESSES: nat.external_addresses[0].pubic: unknown key",
        ),
        ("EGRET_NAT__EXTERNAL_MTU", "15OO", "nat.external_mtu: is of the type string; use a whole number"),
        ("EGRET_FORWARD", "[{ name = \"a\"", "variable EGRET_FORWARD: forward: not TOML: "),
        ("EGRET_NAT__BYPASS", "\"10.0.0.0/8", "variable EGRET_NAT__BYPASS: nat.bypass: not TOML: "),
        ("EGRET_NAT__MAPING", "x", "nat.maping: unknown key; did you mean EGRET_NAT__MAPPING?"),
        ("EGRET_NAT_PORT_RANGE", "x", "nat_port_range: unknown key; did you mean EGRET_NAT__PORT_RANGE?"),
        ("EGRET_MAPPING", "x", "mapping: unknown key; did you mean EGRET_NAT__MAPPING?"),
        ("EGRET_NAT__UDP", "5m", "nat.udp: unknown key; did you mean EGRET_NAT__TIMEOUTS__UDP?"),
        ("EGRET_Nat__Mapping", "x", "NAT.MAPPING: unknown key; did you mean EGRET_NAT__MAPPING?"),
        ("EGRET_nat__mapping", "x", "NAT.MAPPING: unknown key; did you mean EGRET_NAT__MAPPING?"),
        (
            "EGRET_NAT__TIMEOUTS__UDP",
            "300",
            "nat.timeouts.udp: \"300\" is not a time (time unit needed, for example 300sec or 300ms); use a time",
        ),
        ("EGRET_QQQQQQQQ", "x", "variable EGRET_QQQQQQQQ: qqqqqqqq: unknown key"),
        ("EGRET_", "x", "unknown key"),
        ("EGRET___", "x", "unknown key"),
        (
            "EGRET_NAT",
            "{ mapping = \"x\" }",
            "nat: is a section; set its keys, such as EGRET_NAT__EXTERNAL_INTERFACE",
        ),
        ("EGRET_AWS__ROUTE_TABLE_TAGS__A", "x", "aws.route_table_tags.a: unknown key"),
        ("EGRET_AWS__ROUTE_TABLE_TAGS", "a=b", "aws.route_table_tags: is of the type string; use a table"),
        (&long, "x", "unknown key"),
        ("EGRET_FORWARD", &text, "forward: has 70000 bytes; use at most 65536"),
    ] {
        let found = messages("", &variables(&[(name, text)]));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(found[0].contains(expected), "{name}\n  says {:.300}\n  not  {expected}", found[0]);
    }
}

#[test]
fn mistakes_of_file_and_variables_are_told_together() {
    let found = messages("[nat]\nmapping = \"cone\"", &variables(&[("EGRET_NAT__FILTERING", "none")]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("variable EGRET_NAT__FILTERING: nat.filtering: "), "{}", found[0]);
    assert!(found[1].starts_with("egret.toml:2: nat.mapping: "), "{}", found[1]);
    // Where a section is to be, the file has something else.
    let found = messages("nat = 3", &variables(&[("EGRET_NAT__MAPPING", "endpoint-independent")]));
    assert_eq!(found, ["egret.toml:1: nat: is of the type integer; use a table"]);
}

#[test]
fn a_tag_that_is_wrong_is_left_out_and_told() {
    let settings = Settings::default().with_tags(&tags(&[
        ("egret:nat.mapping", "cone"),
        ("egret:nat.maping", "x"),
        ("egret:nat.external_mtu", "1400"),
    ]));
    let config = parse("", &settings).unwrap();
    assert_eq!(config.nat.external_mtu, 1400);
    let told = warnings(&config);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        told[0],
        "tag egret:nat.maping: nat.maping: unknown key; did you mean egret:nat.mapping?; the tag is left out"
    );
    assert!(told[1].starts_with("tag egret:nat.mapping: nat.mapping: \"cone\" is not known"), "{}", told[1]);
    assert!(told[1].ends_with("; the tag is left out"), "{}", told[1]);
}

#[test]
fn the_tag_that_makes_the_file_wrong_is_left_out() {
    let file = "[aws]\nroute_table_tags = { a = \"b\" }";
    let settings = Settings::default()
        .with_tags(&tags(&[("egret:aws.route_tables", "rtb-01234567"), ("egret:nat.external_mtu", "1400")]));
    let config = parse(file, &settings).unwrap();
    assert_eq!(config.aws, parse(file, &Settings::default()).unwrap().aws);
    assert_eq!(config.nat.external_mtu, 1400);
    assert_eq!(
        warnings(&config),
        ["egret.toml:2: aws.route_table_tags: cannot stand beside aws.route_tables; use one of them; tag \
          egret:aws.route_tables is left out"]
    );
}

#[test]
fn tags_that_are_wrong_in_two_ways_are_both_left_out() {
    let file = "[aws]\nroute_table_tags = { a = \"b\" }\nelastic_ips = [\"eipalloc-01234567\"]";
    let settings = Settings::default().with_tags(&tags(&[
        ("egret:aws.route_tables", "rtb-01234567"),
        ("egret:aws.elastic_ip_count", "2"),
        ("egret:nat.external_mtu", "1400"),
    ]));
    let config = parse(file, &settings);
    // That there are too few is blamed on its own tag; then the other is found.
    let config = config.unwrap();
    assert_eq!(config.nat.external_mtu, 1400);
    assert_eq!(warnings(&config).len(), 2, "{:?}", warnings(&config));
}

#[test]
fn mistakes_of_the_file_are_told_once_whatever_the_tags() {
    let settings = Settings::default().with_tags(&tags(&[("egret:nat.external_mtu", "1400")]));
    for file in ["[nat", "[nat]\nmapping = \"cone\""] {
        assert_eq!(messages(file, &settings), messages(file, &Settings::default()));
    }
}

#[test]
fn a_file_that_is_wrong_without_a_tag_is_told_with_what_was_wrong_with_the_tag() {
    let settings = Settings::default().with_tags(&tags(&[("egret:aws.elastic_ips", "eipalloc-x")]));
    let found = messages("[aws]\nelastic_ip_count = 1", &settings);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("egret.toml:2: aws.elastic_ip_count: more than aws.elastic_ips has"),
        "{found:?}"
    );
    assert!(found[1].starts_with("tag egret:aws.elastic_ips: aws.elastic_ips[0]: "), "{found:?}");
}

#[test]
fn tags_open_nothing_to_others() {
    let forward = "[{ name = \"a\", listen = \"0.0.0.0:5000\", targets = [\"10.0.1.10:5000\"] }]";
    for (key, text) in [
        ("egret:forward", forward),
        ("egret:admin.listen", "0.0.0.0:9464"),
        ("egret:admin.socket", "/tmp/socket"),
        ("egret:session_log.to", "/etc/passwd"),
    ] {
        let config = parse("", &Settings::default().with_tags(&tags(&[(key, text)]))).unwrap();
        let told = warnings(&config);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("no tag can set this; only datapath, xdp, nat, aws or failover"), "{told:?}");
        assert_eq!(config::render(&config), config::render(&parse("", &Settings::default()).unwrap()));
    }
}

#[test]
fn what_is_set_has_its_origin_in_the_output_of_check_config() {
    let directory = scratch("settings");
    let (file, environment) = (directory.join("egret.toml"), directory.join("egret.env"));
    std::fs::write(&file, "[nat]\nport_range = \"2000-3000\"").unwrap();
    std::fs::write(&environment, "# comment\nEGRET_NAT__PORT_RANGE=4000-5000\nEGRET_NAT__MAPPING=''\n")
        .unwrap();
    let check = |more: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
        let output = command.arg("check-config").arg(&file).args(more).envs(variables.iter().copied()).output();
        let output = output.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let environment = environment.display().to_string();
    let (code, out, err) = check(&["--env-file", &environment], &[("EGRET_NAT__EXTERNAL_MTU", "1400")]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let origins: Vec<&str> = out.lines().filter(|line| line.contains(": by ")).collect();
    assert_eq!(
        origins,
        [
            "# nat.external_mtu: by variable EGRET_NAT__EXTERNAL_MTU",
            "# nat.port_range: by variable EGRET_NAT__PORT_RANGE",
        ]
    );
    assert!(out.contains("\nport_range = \"4000-5000\"\n"), "{out}");
    let (code, out, err) = check(&[], &[("EGRET_NAT__PORTRANGE", "1-2")]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("did you mean EGRET_NAT__PORT_RANGE?"), "{err}");
    if !cfg!(feature = "aws") {
        let (code, _, err) = check(&["--tags"], &[]);
        assert_eq!(code, Some(1));
        assert!(err.contains("built without AWS support"), "{err}");
    }
    let (code, _, err) = check(&["--quiet", "--tags=found"], &[("EGRET_AWS__ENABLED", "false")]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "there are none to be had");
    std::fs::write(&environment, "\nexport EGRET_NAT__MAPPING=x\n").unwrap();
    let (code, _, err) = check(&["--env-file", &environment], &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains(":2: systemd reads this otherwise than a shell"), "{err}");
}

#[test]
fn an_origin_is_fit_for_a_terminal() {
    assert_eq!(Origin::Tag("egret:\u{1b}[2J".into()).to_string(), "tag egret:\\u{1b}[2J");
}

proptest! {
    #[test]
    fn no_setting_panics(
        path in "(NAT|AWS|FORWARD|nat|_|__|[A-Z]){0,4}|NAT__INTERNAL|FORWARD|AWS__ROUTE_TABLE_TAGS",
        text in "[\\[\\]{}\"', =a1.-]{0,12}|\\PC{0,8}",
    ) {
        let settings = variables(&[(&format!("EGRET_{path}"), &text)]);
        let _ = parse("", &settings);
        let key = format!("egret:{}", path.replace("__", ".").to_lowercase());
        prop_assert!(parse("", &Settings::default().with_tags(&tags(&[(&key, &text)]))).is_ok());
    }
}
