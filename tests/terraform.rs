//! The module of `deploy/terraform`, as far as it can be looked at without Terraform and AWS: by the parser and the
//! formatter of its language (which `make test` installs), names that are used and declared, and that it says what the
//! template of `deploy/cloudformation` says.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Map, Value};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn module() -> PathBuf {
    root().join("deploy/terraform")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "tf" || extension == "hcl"))
        .collect()
}

fn examples() -> Vec<PathBuf> {
    std::fs::read_dir(module().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// What each file says, and whether it is formatted.
fn parsed() -> &'static BTreeMap<PathBuf, Value> {
    static FILES: OnceLock<BTreeMap<PathBuf, Value>> = OnceLock::new();
    FILES.get_or_init(|| {
        let modules = root().join("target/hcl/node_modules");
        assert!(modules.is_dir(), "no {}: `make test` installs it, or `make hcl`", modules.display());
        let directories = [module(), module().join("tests")].into_iter().chain(examples());
        let output = Command::new("node")
            .arg(root().join("tests/deploy/hcl.js"))
            .arg(modules)
            .args(directories.flat_map(|directory| files_of(&directory)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    })
}

/// What the files of a directory say together: blocks by their kind and name.
fn said_in(directory: &Path, kind: &str) -> Map<String, Value> {
    let files = parsed().iter().filter(|(path, _)| path.parent() == Some(directory));
    let blocks = files.filter_map(|(_, file)| file["says"][kind].as_object());
    blocks.flat_map(|block| block.iter().map(|(name, value)| (name.clone(), value.clone()))).collect()
}

/// Names behind `prefix` wherever there is one.
fn named(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = text.match_indices(prefix).filter(|(at, _)| !text[..*at].ends_with(is_of_name));
    starts
        .map(|(at, _)| text[at + prefix.len()..].split(|c| !is_of_name(c)).next().unwrap().to_owned())
        .collect()
}

fn names(blocks: &Map<String, Value>) -> BTreeSet<String> {
    blocks.keys().cloned().collect()
}

#[test]
fn all_files_parse_and_are_formatted() {
    assert!(parsed().len() >= 8, "{:?}", parsed().keys());
    let unformatted: Vec<_> = parsed().iter().filter(|(_, file)| file["formatted"] != true).collect();
    assert!(unformatted.is_empty(), "{:?}", unformatted.iter().map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn what_is_declared_is_used_and_what_is_used_is_declared() {
    for directory in std::iter::once(module()).chain(examples()) {
        let text: String = files_of(&directory).iter().map(read).collect();
        let variables = said_in(&directory, "variable");
        assert_eq!(names(&variables), named(&text, "var."), "{}", directory.display());
        for (name, variable) in variables.iter().chain(&said_in(&directory, "output")) {
            assert!(variable[0]["description"].is_string(), "{name} has no description");
        }
        let locals = parsed().iter().filter(|(path, _)| path.parent() == Some(&directory));
        let locals = locals.filter_map(|(_, file)| file["says"]["locals"].as_array()).flatten();
        let locals: BTreeSet<String> = locals.flat_map(|block| names(block.as_object().unwrap())).collect();
        assert_eq!(locals, named(&text, "local."), "{}", directory.display());
    }
}

#[test]
fn examples_give_the_module_what_it_needs_and_nothing_that_it_does_not_know() {
    let variables = said_in(&module(), "variable");
    let needed = variables.iter().filter(|(_, variable)| variable[0].get("default").is_none());
    let needed: BTreeSet<String> = needed.map(|(name, _)| name.clone()).collect();
    assert!(needed.contains("vpc_id") && !needed.contains("name"), "{needed:?}");
    let examples = examples();
    let called: BTreeSet<_> = examples.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(called, BTreeSet::from(["multi-az", "single", "spot"]));
    for directory in &examples {
        let modules = said_in(directory, "module");
        let mut given = names(modules["egret"][0].as_object().unwrap());
        assert!(given.remove("source"));
        assert!(given.is_superset(&needed), "{}: {:?}", directory.display(), needed.difference(&given));
        assert!(given.is_subset(&names(&variables)), "{}: {given:?}", directory.display());
        let outputs = names(&said_in(&module(), "output"));
        let text: String = files_of(directory).iter().map(read).collect();
        assert!(named(&text, "module.egret.").is_subset(&outputs), "{}", directory.display());
    }
}

#[test]
fn the_modules_own_tests_give_it_what_it_needs() {
    let variables = said_in(&module(), "variable");
    let tests = module().join("tests");
    let names_of = |block: &Value| names(block["variables"][0].as_object().unwrap_or(&Map::new()));
    let files = parsed().iter().filter(|(path, _)| path.parent() == Some(&tests));
    let mut runs = 0;
    for (path, file) in files {
        let given = names_of(&file["says"]);
        let needed = variables.iter().filter(|(_, variable)| variable[0].get("default").is_none());
        for (name, _) in needed {
            assert!(given.contains(name), "{}: {name}", path.display());
        }
        for (run, block) in file["says"]["run"].as_object().unwrap() {
            let given: BTreeSet<String> = given.union(&names_of(&block[0])).cloned().collect();
            assert!(given.is_subset(&names(&variables)), "{run}: {given:?}");
            runs += 1;
        }
    }
    assert!(runs > 5, "{runs}");
}

#[test]
fn a_group_drains_before_its_way_out_is_closed() {
    let resources = said_in(&module(), "resource");
    let group = &resources["aws_autoscaling_group"]["this"][0];
    let kept: BTreeSet<&str> =
        group["depends_on"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let mut rules = 0;
    for (kind, blocks) in resources.iter().filter(|(kind, _)| kind.starts_with("aws_vpc_security_group_")) {
        for name in blocks.as_object().unwrap().keys() {
            let name = format!("${{{kind}.{name}}}");
            assert!(kept.contains(name.as_str()), "{name} is not in {kept:?}");
            rules += 1;
        }
    }
    assert_eq!(rules, 4);
    let minutes = group["timeouts"][0]["delete"].as_str().unwrap().strip_suffix('m').unwrap();
    let held = group["initial_lifecycle_hook"].as_array().unwrap()[1]["heartbeat_timeout"].as_u64().unwrap();
    assert!(minutes.parse::<u64>().unwrap() * 60 >= 2 * held, "{minutes} {held}");
}

#[test]
fn the_role_has_the_documented_policy() {
    let policy = "${path.module}/../../docs/iam-policy.json";
    assert!(read(module().join("iam.tf")).contains(policy));
    assert!(module().join("../../docs/iam-policy.json").is_file());
}

#[test]
fn instances_are_configured_as_by_cloudformation() {
    let template = read(root().join("deploy/cloudformation/egret.yaml"));
    let keys = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().map(str::trim).filter_map(|line| line.split_once(" = "));
        lines
            .filter(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .map(|(key, _)| key.to_owned())
            .collect()
    };
    let toml = keys(&read(module().join("egret.toml.tftpl")));
    assert!(toml.contains("route_tables") && toml.contains("key_parameter"), "{toml:?}");
    assert_eq!(toml, keys(&template));
    // Names and numbers of which each side has its own.
    let main = read(module().join("main.tf"));
    let group = &said_in(&module(), "resource")["aws_autoscaling_group"]["this"][0];
    for hook in group["initial_lifecycle_hook"].as_array().unwrap() {
        for key in ["name", "lifecycle_transition", "default_result"] {
            assert!(template.contains(hook[key].as_str().unwrap()), "{hook}");
        }
        assert!(template.contains(&format!("HeartbeatTimeout: {}", hook["heartbeat_timeout"])), "{hook}");
    }
    let small =
        ["t2.nano", "t2.micro", "t3.nano", "t3.micro", "t3a.nano", "t3a.micro", "t4g.nano", "t4g.micro"];
    assert!(template.contains(&format!("[{}]", small.join(", "))));
    assert!(main.contains(&format!("[\"{}\"]", small.join("\", \""))));
    let launch = &said_in(&module(), "resource")["aws_launch_template"]["this"][0];
    let metadata = &launch["metadata_options"][0];
    assert_eq!(
        (&metadata["http_tokens"], &metadata["http_put_response_hop_limit"]),
        (&"required".into(), &1.into())
    );
    assert_eq!(metadata["instance_metadata_tags"], "enabled");
    assert_eq!(launch["block_device_mappings"][0]["ebs"][0]["encrypted"], true);
    assert!(launch.get("key_name").is_none());
}
