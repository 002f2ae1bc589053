//! The daemon as `systemd/egret.service` runs it: as another user, with the unit's capabilities and no others.

use std::fs;
use std::os::unix::fs::chown;

use super::lifecycle::{fetch, settings};
use super::no_leaks;
use crate::lab::{DEADLINE, Egret, Lab, Options, Result, Web};

/// What the unit says of `key`.
fn unit(key: &str) -> &'static str {
    let lines = include_str!("../../systemd/egret.service").lines();
    let values: Vec<_> = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
    assert_eq!(values.len(), 1, "{key}: {values:?}");
    values[0]
}

/// Capabilities as setpriv(1) takes them: these, and no others.
fn only(capabilities: &str) -> String {
    let names = capabilities.split(' ').map(|name| name.to_lowercase().replace("cap_", "+"));
    format!("-all,{}", names.collect::<Vec<_>>().join(","))
}

#[test]
fn the_units_capabilities_are_enough_for_another_user() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    chown(lab.directory(), Some(USER), Some(USER))?;
    let (ambient, bounding) = (only(unit("AmbientCapabilities")), only(unit("CapabilityBoundingSet")));
    // A copy, since that user may not get to the place where the program was built.
    let script = format!(
        "cp \"$1\" egret && shift && {{ ulimit -l unlimited 2>/dev/null || :; }} && exec setpriv --reuid {USER} \
         --regid {USER} --clear-groups --inh-caps {ambient} --ambient-caps {ambient} --bounding-set {bounding} \
         --no-new-privs ./egret \"$@\""
    );
    let log = lab.directory().join("sessions.jsonl");
    let more = format!("[session_log]\nto = \"{}\"\nopened = true", log.display());
    let before = settings(lab.nat())?;
    let mut egret = Egret::start_under(lab.nat(), &lab.config(&more), &["sh", "-c", &script, "sh"])?;

    let process = fs::read_to_string(format!("/proc/{}/status", egret.process.id()))?;
    let field =
        |name: &str| process.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    assert!(field("Uid:").split('\t').all(|user| user == USER.to_string()), "{process}");
    let held = u64::from_str_radix(field("CapEff:"), 16)?;
    assert_eq!(held.count_ones() as usize, unit("AmbientCapabilities").split(' ').count(), "{process}");

    assert!(fetch(lab.client(1))?);
    lab.nat().wait_for("the session log", || Ok(fs::read_to_string(&log)?.contains("\"opened\"")))?;
    let metrics = lab.nat().run("curl -sS --max-time 5 http://127.0.0.1:9464/metrics")?;
    assert!(metrics.contains("egret_nat_sessions_opened_total"), "{metrics}");
    egret.reload(&lab.config("port_range = \"1024-40000\""))?;
    egret.process.wait_for_log("configuration reloaded")?;
    // The host's ports are in the way now, and forwarding has been switched on by somebody.
    let sysctls = "net.ipv4.ip_local_port_range net.ipv4.ip_forward";
    let set = |ports: &str, forward: u8| {
        lab.nat().shell(&format!(
            "sysctl -q -w net.ipv4.ip_local_port_range='{ports}' net.ipv4.ip_forward={forward}"
        ))
    };
    set("30000 50000", 1)?;
    egret.reload(&lab.config("port_range = \"1024-40001\""))?;
    lab.nat().wait_for("the host's settings", || {
        let now = lab.nat().run(&format!("sysctl -n {sysctls}"))?;
        Ok(now.split_whitespace().eq(["61000", "65535", "0"]))
    })?;
    assert!(fetch(lab.client(1))?);

    assert!(egret.stop(DEADLINE)?.success(), "{}", egret.process.log());
    let left = lab.nat().run(&format!("sysctl -n {sysctls}"))?;
    assert!(left.split_whitespace().eq(["30000", "50000", "1"]), "not as found: {left}");
    set("32768 60999", 0)?;
    assert_eq!(settings(lab.nat())?, before);
    let said = egret.process.log();
    assert!(!said.contains("ERROR") && !said.contains("not put back") && !said.contains("ermission"), "{said}");
    no_leaks(&lab)
}

/// Nobody's.
const USER: u32 = 61234;
