//! Packets that nobody should send, and scans.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::wire::play_router;
use super::{no_leaks, serve};
use crate::lab::{Egret, INTERNET, Lab, Options, PUBLIC, Result, Web};

/// What `malformed.py` found of one case.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    /// The drop reasons that fit; none if it is the kernel that drops it.
    expected: Option<Vec<String>>,
    counted: BTreeMap<String, u64>,
    came: Vec<String>,
}

#[test]
fn malformed_packets_vanish_and_are_counted_by_reason() -> Result {
    let lab = Lab::new(Options { offloads: false, ..Options::default() })?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    let cases: Vec<Case> = serde_json::from_str(&play_router(&lab, &egret, "malformed.py", "")?)?;
    assert!(cases.len() > 60, "only {} cases", cases.len());
    let mut wrong = String::new();
    for Case { name, expected, counted, came } in &cases {
        if !came.is_empty() {
            let _ = writeln!(wrong, "{name}: came out as {came:?}");
        }
        if let Some(expected) = expected
            && (counted.is_empty() || counted.keys().any(|reason| !expected.contains(reason)))
        {
            let _ = writeln!(wrong, "{name}: counted as {counted:?}, not {expected:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(egret.process.ended()?, None, "{}", egret.process.log());
    Ok(())
}

#[test]
fn scan_from_outside_finds_nothing_of_the_nat() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let _server = serve(lab.internet(), 7000)?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    // There are sessions to be found.
    for client in [1, 2] {
        lab.client(client).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    }
    let ports = "1024-1100,5000-5100,32768-32868,60900-60999";
    for scan in ["-sS", "-sA", "-sX", "-sU"] {
        let found = lab.internet().run(&format!(
            "nmap -n -Pn {scan} --min-rate 2000 --max-retries 0 --open --source-port 4444 -p {ports} {PUBLIC}"
        ))?;
        let open = found.lines().filter(|line| line.contains("/tcp") || line.contains("/udp"));
        let open: Vec<&str> = open.filter(|line| !line.contains("filtered")).collect();
        assert!(open.is_empty(), "nmap {scan}: {open:?}");
    }
    assert_eq!(egret.process.ended()?, None, "{}", egret.process.log());
    lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    no_leaks(&lab)
}

#[test]
fn scan_from_inside_works_and_leaves_others_working() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let _server = serve(lab.internet(), 7000)?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    // It waits longer for an answer than a busy machine takes, and asks again.
    let found = lab.client(1).run(&format!(
        "nmap -n -Pn -sS --min-rate 2000 --max-retries 5 --min-rtt-timeout 1s -p 1-3000,7000 {INTERNET}"
    ))?;
    for open in ["80/tcp", "7000/tcp"] {
        let shown = found.lines().any(|line| line.starts_with(open) && line.contains("open"));
        assert!(shown, "{open} was not found: {found}");
    }
    assert!(found.contains("Not shown: 2999 closed"), "{found}");
    lab.client(2).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    assert_eq!(egret.process.ended()?, None, "{}", egret.process.log());
    no_leaks(&lab)
}
