//! `egret doctor` on a host without a cloud.

use serde_json::Value;

use crate::lab::{Egret, Host, INTERNET, Lab, Options, Output, Result, Web};

/// What it says of a host where no daemon runs.
fn said(host: &Host, toml: &str, more: &[&str]) -> Result<Output> {
    let config = host.directory.join("doctor.toml").display().to_string();
    let socket = host.directory.join("doctor.sock").display().to_string();
    std::fs::write(&config, toml)?;
    let to = format!("{INTERNET}:80");
    let mut arguments = vec![env!("CARGO_BIN_EXE_egret"), "doctor", "--config", &config, "--socket", &socket];
    arguments.extend(["--connect", &to]);
    arguments.extend(more);
    host.run_for(crate::lab::DEADLINE, &arguments, "")
}

fn findings(output: &Output) -> Result<Vec<Value>> {
    let report: Value = serde_json::from_str(&output.stdout)?;
    Ok(report["findings"].as_array().cloned().unwrap_or_default())
}

/// Whether something is found of this severity, with a remedy in which `remedy` stands.
fn names(findings: &[Value], severity: &str, what: &str, remedy: &str) -> bool {
    findings.iter().any(|finding| {
        finding["severity"] == severity
            && finding["what"] == what
            && finding["remedy"].as_str().is_some_and(|text| text.contains(remedy))
    })
}

#[test]
fn a_host_that_is_well_has_no_errors_whether_the_daemon_runs_or_not() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let before = lab.nat().run("ip -d link")?;
    let text = said(lab.nat(), &lab.config(""), &[])?;
    assert_eq!(text.status.code(), Some(0), "{text}");
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.stdout.contains("systemctl enable --now egret"), "{text}");
    assert_eq!(lab.nat().run("ip -d link")?, before, "it changed the link");
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    let to = format!("{INTERNET}:80");
    let config = lab.nat().directory.join("doctor.toml").display().to_string();
    let output = egret.command(&["doctor", "--config", &config, "--connect", &to, "--output", "json"])?;
    let findings = findings(&output)?;
    assert_eq!(output.status.code(), Some(0), "{output}");
    assert!(findings.iter().all(|finding| finding["severity"] == "ok"), "{findings:#?}");
    assert!(findings.iter().any(|finding| finding["what"] == "daemon"), "{findings:#?}");
    Ok(())
}

#[test]
fn what_is_wrong_with_the_host_is_named_with_its_remedy() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let nat = lab.nat();
    let examine = |toml: &str| -> Result<(Option<i32>, Vec<Value>)> {
        let output = said(nat, toml, &["--output", "json"])?;
        Ok((output.status.code(), findings(&output)?))
    };
    let config = lab.config("");

    nat.run("sysctl -q -w net.ipv4.ip_forward=1")?;
    let (code, found) = examine(&config)?;
    assert!(names(&found, "warning", "ip_forward", "sysctl -w net.ipv4.ip_forward=0"), "{found:#?}");
    assert_eq!(code, Some(1), "{found:#?}");
    nat.run("sysctl -q -w net.ipv4.ip_forward=0")?;

    let (code, found) =
        examine(&config.replace("external_interface = \"ens5\"", "external_interface = \"ens9\""))?;
    assert!(names(&found, "error", "interface", "ens5"), "{found:#?}");
    assert_eq!(code, Some(2));

    let (code, found) = examine(&config.replace("[nat]", "[nat]\nmaping = 1"))?;
    assert!(names(&found, "error", "configuration", "egret check-config"), "{found:#?}");
    assert_eq!(code, Some(2));

    let forward = format!(
        "{config}\n[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [\"10.0.1.11:5000\"]\n"
    );
    let listener = Web::start(nat, 5000)?;
    let (code, found) = examine(&forward)?;
    assert!(names(&found, "error", "forward", "ss -tlnp 'sport = :5000'"), "{found:#?}");
    assert_eq!(code, Some(2));
    drop(listener);

    let output = said(nat, &config, &["--connect", "198.51.100.10:81", "--output", "json"])?;
    let (code, found) = (output.status.code(), findings(&output)?);
    assert!(names(&found, "error", "connection", "default route"), "{found:#?}");
    assert_eq!(code, Some(2));

    nat.run("ip link set ens5 down")?;
    let (code, found) = examine(&config)?;
    assert!(names(&found, "error", "interface ens5", "ip link set dev ens5 up"), "{found:#?}");
    assert_eq!(code, Some(2));
    Ok(())
}

#[test]
fn settings_that_somebody_changed_under_the_daemon_are_errors() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    lab.nat().run("sysctl -q -w net.ipv4.ip_forward=1")?;
    lab.nat().shell("echo '32768 60999' >/proc/sys/net/ipv4/ip_local_port_range")?;
    let config = lab.nat().directory.join("doctor.toml").display().to_string();
    std::fs::write(&config, lab.config(""))?;
    let to = format!("{INTERNET}:80");
    let output = egret.command(&["doctor", "--config", &config, "--connect", &to, "--output", "json"])?;
    let found = findings(&output)?;
    assert!(names(&found, "error", "ip_forward", "sysctl -w net.ipv4.ip_forward=0"), "{found:#?}");
    assert!(names(&found, "error", "ports", "ip_local_port_range=\"61000 65535\""), "{found:#?}");
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}

#[test]
fn without_capabilities_it_says_so_and_goes_on() -> Result {
    let lab = Lab::new(Options::default())?;
    let wrapper = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];
    let config = lab.nat().directory.join("doctor.toml").display().to_string();
    std::fs::write(&config, lab.config(""))?;
    let mut arguments = wrapper.to_vec();
    arguments.extend([env!("CARGO_BIN_EXE_egret"), "doctor", "--config", &config, "--output", "json"]);
    arguments.extend(["--socket", "/nonexistent/egret.sock", "--connect", "198.51.100.10:80"]);
    let output = lab.nat().run_for(crate::lab::DEADLINE, &arguments, "")?;
    let found = findings(&output)?;
    assert!(names(&found, "error", "capabilities", "CAP_NET_RAW"), "{found:#?}");
    assert!(found.iter().any(|finding| finding["what"] == "ip_forward"), "{found:#?}");
    Ok(())
}
