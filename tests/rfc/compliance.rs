//! Holds `docs/rfc-compliance.md` to what the tests show.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

struct Row {
    rfc: String,
    requirement: String,
    state: String,
    tests: Vec<String>,
}

#[test]
fn every_row_says_how_the_requirement_is_treated() {
    for row in rows() {
        let name = format!("RFC {} {}", row.rfc, row.requirement);
        let (state, why) = row.state.split_once(": ").unwrap_or((&row.state, ""));
        match state {
            "met" => assert!(!row.tests.is_empty(), "{name} is met without a test"),
            "deviated" | "not applicable" => assert!(!why.is_empty(), "{name}: why?"),
            other => panic!("{name}: unknown state {other:?}"),
        }
    }
}

#[test]
fn every_named_test_exists() {
    let tests = tests();
    for row in rows() {
        for test in row.tests {
            assert!(tests.contains(&test), "RFC {} {}: no test {test}", row.rfc, row.requirement);
        }
    }
}

#[test]
fn no_requirement_is_missing() {
    let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows() {
        let new = listed.entry(row.rfc.clone()).or_default().insert(row.requirement.clone());
        assert!(new, "RFC {} {} twice", row.rfc, row.requirement);
    }
    for (rfc, requirements) in REQUIREMENTS {
        let expected: BTreeSet<_> = requirements.split_whitespace().map(ToOwned::to_owned).collect();
        let found: BTreeSet<_> =
            listed.remove(*rfc).unwrap_or_default().iter().map(|r| r.replace("REQ-", "")).collect();
        assert_eq!(found, expected, "RFC {rfc}");
    }
    assert!(listed.is_empty(), "unknown: {:?}", listed.keys());
}

#[test]
fn every_test_of_a_requirement_is_listed() {
    let named: BTreeSet<String> = rows().into_iter().flat_map(|row| row.tests).collect();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rfc");
    for file in fs::read_dir(here).expect("a directory") {
        let path = file.expect("an entry").path();
        if path.file_name().is_some_and(|name| name != "compliance.rs") {
            for test in tests_in(&fs::read_to_string(&path).expect("a readable file")) {
                assert!(named.contains(&test), "{test} of {} is not in the table", path.display());
            }
        }
    }
}

fn rows() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rfc-compliance.md");
    let text = fs::read_to_string(path).expect("docs/rfc-compliance.md");
    let (mut rfc, mut rows) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## RFC ") {
            heading.split([' ', ':', ',']).next().unwrap_or_default().clone_into(&mut rfc);
        }
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let is_row = line.starts_with('|') && !line.starts_with("|---") && cells[0] != "requirement";
        if is_row && !rfc.is_empty() {
            assert_eq!(cells.len(), 4, "a row has four cells: {line}");
            rows.push(Row {
                rfc: rfc.clone(),
                requirement: cells[0].to_owned(),
                state: cells[2].to_owned(),
                tests: cells[3].split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect(),
            });
        }
    }
    assert!(rows.len() > 80, "the tables were read");
    rows
}

/// The names of all tests under `tests/`.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.extend(tests_in(&fs::read_to_string(path).expect("a readable file")));
            }
        }
    }
    found
}

fn tests_in(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in source.split("#[test]").skip(1) {
        let name = part.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
        found.extend(name.map(ToOwned::to_owned));
    }
    found
}

/// What each RFC has: numbers with their lettered parts, or sections.
const REQUIREMENTS: &[(&str, &str)] = &[
    ("4787", "1 2 3 3a 4 5 5a 5b 5c 6 6a 7 8 8a 9 9a 10 10a 11 12 12a 12b 13 13a 14 14a"),
    ("5382", "1 2 2a 3 3a 3b 4 4a 5 5a 6 7 8 8a 9 10"),
    ("5508", "1 1a 2 2a 3 3a 3b 3c 3d 4 4a 4b 4c 5 5a 5b 5c 6 7 7a 8 9 10 10a 10b 10c 10d 10e 10f 11"),
    ("7857", "2 2.1 2.2 3 4 5 6 7 7.1 8 9 10 11 12"),
    ("6888", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
];
