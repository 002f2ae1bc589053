//! Keeps `docs/iam-policy.json` to what the code calls, no more and no less, and to resources and conditions where
//! they can be had.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

const SERVICES: [&str; 3] = ["ec2:", "autoscaling:", "ssm:"];
/// Secrets have no tag that a policy could ask for, but a name of their own.
const SECRETS: (&str, &str) = ("ssm:GetParameter", "arn:aws:ssm:*:*:parameter/egret/*");

fn policy() -> Vec<Value> {
    let text = std::fs::read_to_string(root().join("docs/iam-policy.json")).unwrap();
    let policy: Value = serde_json::from_str(&text).unwrap();
    policy["Statement"].as_array().unwrap().clone()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The strings of a value that is one or a list of them.
fn strings(value: &Value) -> Vec<String> {
    let one = value.as_str().map(|text| vec![text.to_owned()]);
    one.unwrap_or_else(|| {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    })
}

/// Every string literal of a source that is an action as a whole; that of a condition or of a sentence is none.
fn actions_in(source: &str) -> BTreeSet<String> {
    let literals = source.split('"').skip(1).step_by(2);
    let is_action = |literal: &&str| {
        let name = SERVICES.iter().find_map(|service| literal.strip_prefix(service));
        name.is_some_and(|name| {
            name.starts_with(|c: char| c.is_ascii_uppercase())
                && name.chars().all(|c| c.is_ascii_alphanumeric())
        })
    };
    literals.filter(is_action).map(str::to_owned).collect()
}

fn actions_of_the_code() -> BTreeSet<String> {
    let mut actions = BTreeSet::new();
    let mut directories = vec![root().join("src/aws")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                // Line by line, so that a quote in a comment upsets no more than its line.
                let code = text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
                actions.extend(code.flat_map(actions_in));
            }
        }
    }
    actions
}

#[test]
fn the_policy_allows_just_what_the_code_calls() {
    let allowed: Vec<String> = policy().iter().flat_map(|statement| strings(&statement["Action"])).collect();
    let set: BTreeSet<String> = allowed.iter().cloned().collect();
    assert_eq!(set.len(), allowed.len(), "an action is named twice");
    let called = actions_of_the_code();
    assert!(called.contains("ec2:ModifyNetworkInterfaceAttribute"), "the sources were understood: {called:?}");
    let (missing, idle): (Vec<_>, Vec<_>) =
        (called.difference(&set).collect(), set.difference(&called).collect());
    assert!(
        missing.is_empty() && idle.is_empty(),
        "missing in the policy: {missing:?}; never called: {idle:?}"
    );
}

#[test]
fn whatever_changes_something_is_bound_to_resources_with_the_tag() {
    for statement in policy() {
        let actions = strings(&statement["Action"]);
        let resources = strings(&statement["Resource"]);
        assert!(actions.iter().all(|action| !action.contains('*')), "{statement}");
        assert_eq!(statement["Effect"], "Allow");
        if actions.iter().all(|action| action.contains(":Describe")) {
            // AWS knows no resources for these.
            assert_eq!(resources, ["*"]);
            continue;
        }
        assert!(actions.iter().all(|action| !action.contains(":Describe")), "mixed: {statement}");
        if actions.iter().any(|action| action.starts_with("ssm:")) {
            assert_eq!((&*actions, &*resources), (&[SECRETS.0.to_owned()][..], &[SECRETS.1.to_owned()][..]));
            continue;
        }
        assert!(resources.iter().all(|resource| resource.starts_with("arn:aws:")), "{statement}");
        assert_eq!(statement["Condition"]["Null"]["aws:ResourceTag/egret:gateway"], "false", "{statement}");
    }
}

#[test]
fn actions_are_found_as_the_code_names_them() {
    let source = r#"const ACTION: &str = "ec2:DescribeSubnets"; make("autoscaling:CompleteLifecycleAction", x); "ec2:Attribute/X" "say ec2:No""#;
    let found: Vec<String> = actions_in(source).into_iter().collect();
    assert_eq!(found, ["autoscaling:CompleteLifecycleAction", "ec2:DescribeSubnets"]);
}
