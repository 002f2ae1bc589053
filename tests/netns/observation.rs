//! What the daemon tells about itself: by HTTP, in the session log, in its own log, and to whom.

use std::fs;

use serde_json::Value;

use crate::lab::{DEADLINE, Egret, INTERNET, Lab, Options, Result, Web};

#[test]
fn health_and_metrics_are_served_by_http() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    let get = |path: &str| lab.nat().run(&format!("curl -sS --max-time 5 http://127.0.0.1:9464{path}"));
    assert_eq!((get("/healthz")?.as_str(), get("/readyz")?.as_str()), ("ok\n", "ready\n"));
    lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/"))?;
    let metrics = get("/metrics")?;
    let value = |series: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<u64>().ok());
        line.unwrap_or_else(|| panic!("no {series} in\n{metrics}"))
    };
    assert!(value("egret_nat_bytes_total{direction=\"out_to_external\"}") > 0);
    assert_eq!(value("egret_nat_sessions_established_total"), 1);
    assert_eq!(value("egret_nat_ports_used{address=\"0\",protocol=\"tcp\"}"), 1);
    assert!(value("process_resident_memory_bytes") > 1_000_000);
    let status: Value = serde_json::from_str(&get("/status.json")?)?;
    assert_eq!(status["external_interface"], egret.status()?["external_interface"]);
    // An interface that is down is told with the status code that a load balancer looks at. That the gateway does not
    // answer any more may be known first.
    lab.nat().run("ip link set ens5 down")?;
    lab.nat().wait_for("an interface that is down", || {
        let told = lab.nat().run("curl -sS --max-time 5 -w %{http_code} http://127.0.0.1:9464/readyz")?;
        assert!(told.ends_with("\n503") || told == "ready\n200", "{told}");
        Ok(told.contains("- interface ens5 is down\n"))
    })
}

#[test]
fn an_address_that_is_taken_keeps_the_daemon_from_starting_and_it_says_so() -> Result {
    let lab = Lab::new(Options::default())?;
    let _other = lab.nat().spawn("socat TCP-LISTEN:9464,bind=127.0.0.1 STDIO")?;
    lab.nat().wait_listening(crate::lab::Transport::Tcp, 9464)?;
    let mut egret = Egret::spawn(lab.nat(), &lab.config(""))?;
    let status = egret.process.wait(DEADLINE)?;
    assert_eq!(status.code(), Some(1));
    let told =
        "another program listens on 127.0.0.1:9464; set admin.listen to another address, or to \\\"off\\\"";
    let log = egret.process.log();
    assert!(log.contains(told) || log.contains(&told.replace('\\', "")), "{log}");
    let off = lab.config("\n[admin]\nlisten = \"off\"\n");
    Egret::start(lab.nat(), &off)?;
    Ok(())
}

#[test]
fn sessions_and_new_destinations_are_logged_and_a_reload_changes_where() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let (first, second) = (lab.directory().join("first.jsonl"), lab.directory().join("second.jsonl"));
    let config = |path: &std::path::Path| {
        let timeouts = "\n[nat.timeouts]\nicmp_query = \"1s\"\n";
        let log =
            format!("[session_log]\nto = \"{}\"\nopened = true\nnew_destinations = true\n", path.display());
        lab.config(&(timeouts.to_owned() + &log))
    };
    let egret = Egret::start(lab.nat(), &config(&first))?;
    let ping = || lab.client(1).run(&format!("ping -c 1 -W 2 {INTERNET}"));
    ping()?;
    let events = |path: &std::path::Path| -> Result<Vec<Value>> {
        let text = fs::read_to_string(path).unwrap_or_default();
        Ok(text.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?)
    };
    let has_closed = |path| Ok(events(path)?.iter().any(|line| line["event"] == "closed"));
    lab.nat().wait_for("a session to end", || has_closed(&first))?;
    let lines = events(&first)?;
    let names: Vec<_> = lines.iter().map(|line| line["event"].clone()).collect();
    assert_eq!(names, ["new_destination", "opened", "closed"]);
    let closed = &lines[2];
    assert_eq!((&closed["reason"], &closed["protocol"]), (&"expired".into(), &"icmp".into()));
    assert_eq!((&closed["packets_out"], &closed["bytes_in"]), (&1.into(), &84.into()));
    assert_eq!(closed["remote"], format!("{INTERNET}:0"));
    egret.reload(&config(&second))?;
    lab.nat().wait_for("the new file", || {
        ping()?;
        has_closed(&second)
    })?;
    let metrics = lab.nat().run("curl -sS http://127.0.0.1:9464/metrics")?;
    assert!(metrics.contains("egret_session_log_lost_lines_total{reason=\"queue\"} 0"), "{metrics}");
    Ok(())
}

#[test]
fn the_log_level_changes_while_the_daemon_runs() -> Result {
    let lab = Lab::new(Options::default())?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    let level = |arguments: &[&str]| egret.command(&[&["log-level"], arguments].concat());
    assert_eq!(level(&[])?.success()?.stdout, "info\n");
    lab.client(1).run(&format!("ping -c 1 -W 2 {INTERNET}"))?;
    assert!(
        !egret.process.log().contains("egret::sessions") && !egret.process.log().contains("what=\"opened\"")
    );
    level(&["info,egret::sessions=debug"])?.success()?;
    lab.client(2).run(&format!("ping -c 1 -W 2 {INTERNET}"))?;
    let refused = level(&["egret=loud"])?;
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    egret.process.wait_for_log("what=\"opened\"")
}

#[test]
fn whoever_may_look_may_not_change_anything() -> Result {
    let lab = Lab::new(Options::default())?;
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    // Of the socket's group, and not root.
    let ask = |request: &str| {
        let ask = format!(
            "setpriv --reuid=65534 --regid=0 --clear-groups socat -t 20 - UNIX-CONNECT:{}",
            egret.socket()
        );
        let arguments: Vec<&str> = ask.split(' ').collect();
        Ok::<_, crate::lab::Failure>(lab.nat().run_for(DEADLINE, &arguments, request)?.stdout)
    };
    assert!(ask("{\"command\":\"status\"}\n")?.starts_with("{\"status\":"));
    assert!(ask("{\"command\":\"log_level\"}\n")?.starts_with("{\"log_level\":"));
    for request in [
        "{\"command\":\"log_level\",\"filter\":\"trace\"}\n",
        "{\"command\":\"drain\",\"listener\":\"api\",\"target\":\"10.0.1.10:5000\"}\n",
    ] {
        assert_eq!(ask(request)?, "{\"error\":\"only root may change something\"}\n");
    }
    assert_eq!(egret.command(&["log-level"])?.success()?.stdout, "info\n", "nothing has changed");
    Ok(())
}
