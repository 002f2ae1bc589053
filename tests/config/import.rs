//! `egret import`: files of other NAT instances become a configuration.

use std::process::Command;

use serde_json::Value;

use super::{Config, parse, scratch};

/// Exit code, standard output and standard error.
type Output = (Option<i32>, String, String);

fn import(test: &str, files: &[(&str, &str)], options: &[&str]) -> Output {
    let directory = scratch(test);
    let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
    command.arg("import").args(options);
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        command.arg(path);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The configuration that comes out, which is valid, and what is said beside it.
fn imported(test: &str, name: &str, text: &str) -> (Config, String) {
    let (code, out, err) = import(test, &[(name, text)], &[]);
    assert_eq!(code, Some(0), "{err}");
    (parse(&out).expect(&out), err)
}

#[test]
fn fck_nat_becomes_a_configuration() {
    let text = "eni_id=eni-0123456789abcdef0\neip_id=\"eipalloc-0123456789abcdef0\"\ncwagent_enabled=\"true\"\n\
                cwagent_cfg_param_name=/fck-nat\nip_local_port_range=\"1024 65535\"\ninterface=ens6\n";
    let (config, said) = imported("import-fck-nat", "fck-nat.conf", text);
    assert_eq!(config.aws.elastic_ips, ["eipalloc-0123456789abcdef0"]);
    assert_eq!(config.nat.external_interface.as_deref(), Some("ens6"));
    assert_eq!(config.nat.port_range, 1024..=60_999);
    for expected in [
        "eni_id = \"eni-0123456789abcdef0\": Egret attaches no interface",
        "[?NetworkInterfaceId=='eni-0123456789abcdef0']",
        "cwagent_enabled = \"true\": There is no CloudWatch agent",
        "Ports from 61000 on are the host's own",
        "NAT64: ",
    ] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
}

#[test]
fn alternat_becomes_a_configuration() {
    let text = "eip_allocation_ids_csv=eipalloc-0123456789abcdef0,eipalloc-0fedcba9876543210\n\
                route_table_ids_csv=\trtb-0a1b2c3d\nroute_table_ids_csv=rtb-0a1b2c3d,rtb-0123456789abcdef0\n\
                enable_ssm=true\nenable_cloudwatch_agent=false\n";
    let (code, out, err) = import("import-alternat", &[("alternat.conf", text)], &[]);
    assert_eq!(code, Some(0), "{err}");
    let config = parse(&out).unwrap();
    assert_eq!(config.aws.elastic_ips, ["eipalloc-0123456789abcdef0", "eipalloc-0fedcba9876543210"]);
    assert_eq!(config.aws.elastic_ip_count, 1);
    let tables = ["rtb-0a1b2c3d", "rtb-0123456789abcdef0"].map(str::to_owned).to_vec();
    assert_eq!(config.aws.route_tables, egret::config::RouteTables::Ids(tables));
    assert!(err.contains("enable_ssm = \"true\": ") && !err.contains("cloudwatch"), "{err}");
}

#[test]
fn what_egret_could_not_have_is_said_and_not_written() {
    let text = "eip_id=eipalloc-XYZ\nip_local_port_range=\"60000\"\ninterface=$(ip route)\nfoo=bar\neni_id=\n\
                eni_id=$ENI\nif true; then\n";
    let (config, said) = imported("import-wrong", "fck-nat.conf", text);
    assert_eq!(config.aws, parse("").unwrap().aws);
    assert_eq!(config.nat, parse("").unwrap().nat);
    for expected in [
        "eip_id = \"eipalloc-XYZ\": aws.elastic_ips cannot be this: \"eipalloc-XYZ\" is not an id",
        "ip_local_port_range = \"60000\": Not two numbers of ports.",
        "line 3: Not of the form KEY=value",
        "foo = \"bar\": Not a key of fck-nat that Egret knows.",
        "eni_id = \"$ENI\": A shell would expand this.",
        "line 7: Not of the form",
    ] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
}

#[test]
fn nothing_in_a_file_gets_out_of_a_comment() {
    let text = "foo='x\\n[nat]'\neip_id='a\"]\u{1b}[2J\u{85}'\nbar=\"]\n";
    let (config, said) = imported("import-hostile", "fck-nat.conf", text);
    assert_eq!(config, Config { file: config.file.clone(), ..parse("").unwrap() });
    assert!(!said.contains('\u{1b}') && !said.contains('\u{85}'), "{said:?}");
}

#[test]
fn whose_files_they_are_is_told_by_name_keys_or_option() {
    let eip = "eip_id=eipalloc-0123456789abcdef0\n";
    let code = |name: &str, text: &str, options: &[&str]| import("import-from", &[(name, text)], options).0;
    assert_eq!(code("old.conf", eip, &[]), Some(0));
    assert_eq!(code("old.conf", "enable_ssm=true", &[]), Some(0));
    assert_eq!(code("old.conf", "foo=bar", &[]), Some(1));
    assert_eq!(code("old.conf", "foo=bar", &["--from", "alternat"]), Some(0));
    assert_eq!(code("old.conf", &format!("{eip}enable_ssm=true"), &[]), Some(1));
    let (code, _, err) = import("import-missing", &[], &["/nonexistent/fck-nat.conf"]);
    assert!(code == Some(1) && err.contains("/nonexistent/fck-nat.conf cannot be read"), "{err}");
    let long = format!("# {}\n{eip}", "x".repeat(64 << 10));
    let (code, _, err) = import("import-long", &[("fck-nat.conf", &long)], &[]);
    assert!(code == Some(1) && err.contains("longer than 65536 bytes"), "{err}");
}

#[test]
fn it_is_printed_as_json_as_well() {
    let files = [("fck-nat.conf", "eip_id=eipalloc-0123456789abcdef0")];
    let (code, out, err) = import("import-json", &files, &["--output", "json"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(parse(value["toml"].as_str().unwrap()).unwrap().aws.elastic_ips.len(), 1);
    assert_eq!(value["notes"][1]["about"], "NAT64");
}
