//! What `docs/operations.md` says to look at when something is wrong: each is made to go wrong here, and is found there.
//!
//! Failovers that do not happen, or happen without need, are in `tests/aws`; an interface that is down is in
//! `observation`, and ENA's counters are in the unit tests of their reader.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::api::{listener, report, server, target, wait_states};
use crate::lab::{DEADLINE, Egret, INTERNET, Lab, Options, PUBLIC, Result, inside};
use crate::suite::serve;

fn get(lab: &Lab, path: &str) -> Result<String> {
    lab.nat().run(&format!("curl -sS --max-time 5 http://127.0.0.1:9464{path}"))
}

/// The value of a series of `/metrics`, labels and all; 0 if there is none.
fn metric(lab: &Lab, series: &str) -> Result<u64> {
    let metrics = get(lab, "/metrics")?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.and_then(|value| value.parse().ok()).unwrap_or_default())
}

/// Who is first by `by` of those that talked in the last minute.
fn first_talker(lab: &Lab, by: &str) -> Result<String> {
    let talkers: Value = serde_json::from_str(&get(lab, &format!("/talkers.json?by={by}"))?)?;
    Ok(talkers["last_minute"]["internal"][0]["who"].as_str().unwrap_or_default().to_owned())
}

/// Has a client send from so many sockets.
fn send_from_many(lab: &Lab, client: u8, sockets: u16) -> Result {
    let ports =
        format!("for port in $(seq 7001 {}); do echo x >/dev/udp/{INTERNET}/$port; done", 7000 + sockets);
    lab.client(client).run_for(DEADLINE, &["bash", "-c", &ports], "")?.success()?;
    Ok(())
}

#[test]
fn when_ports_run_out_it_is_counted_and_the_host_that_takes_them_is_named() -> Result {
    let lab = Lab::new(Options::default())?;
    let limits = "port_range = \"2000-2031\"\non_exhaustion = \"refuse\"";
    let egret = Egret::start(lab.nat(), &lab.config(limits))?;
    let used = "egret_nat_ports_used{address=\"0\",protocol=\"udp\"}";
    send_from_many(&lab, 2, 4)?;
    lab.nat().wait_for("the ports of the one", || Ok(metric(&lab, used)? == 4))?;
    assert_eq!(metric(&lab, "egret_nat_port_allocation_failures_total{address=\"0\"}")?, 0);
    send_from_many(&lab, 1, 60)?;
    lab.nat().wait_for("the failures to be counted", || {
        Ok(metric(&lab, "egret_nat_port_allocation_failures_total{address=\"0\"}")? > 0
            && metric(&lab, "egret_nat_dropped_packets_total{reason=\"ports_exhausted\"}")? > 0)
    })?;
    assert_eq!(metric(&lab, used)?, 32);
    let status = egret.command(&["status"])?.success()?.stdout;
    assert!(status.contains(&PUBLIC.to_string()), "{status}");
    lab.nat().wait_for("the host to be named", || {
        Ok(first_talker(&lab, "ports")? == Lab::client_address(1).to_string())
    })
}

#[test]
fn when_a_limit_drops_packets_its_reason_is_counted_and_the_host_is_named() -> Result {
    let lab = Lab::new(Options::default())?;
    let limits = "\n[nat.limits]\nsessions_per_address = 10";
    let _egret = Egret::start(lab.nat(), &lab.config(limits))?;
    send_from_many(&lab, 2, 3)?;
    send_from_many(&lab, 1, 40)?;
    lab.nat().wait_for("the drops to be counted", || {
        Ok(metric(&lab, "egret_nat_dropped_packets_total{reason=\"address_session_limit\"}")? == 30)
    })?;
    lab.nat().wait_for("the host to be named", || {
        Ok(first_talker(&lab, "sessions")? == Lab::client_address(1).to_string())
    })
}

#[test]
fn when_a_client_uses_a_connection_that_is_not_known_it_is_reset_and_counted() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = serve(lab.internet(), 7000)?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    let server = SocketAddr::from((INTERNET, 7000));
    let mut stream = inside(lab.client(1), move || TcpStream::connect(server))??;
    stream.set_read_timeout(Some(DEADLINE))?;
    egret.stop(DEADLINE)?;
    let _egret = Egret::start(lab.nat(), &lab.config(""))?;
    stream.write_all(b"still there?")?;
    let error = stream.read(&mut [0; 8]).err().map(|error| error.kind());
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
    assert!(metric(&lab, "egret_nat_dropped_packets_total{reason=\"tcp_no_session\"}")? > 0);
    Ok(())
}

#[test]
fn when_the_next_hop_does_not_answer_frames_count_as_unresolved() -> Result {
    let lab = Lab::new(Options::default())?;
    let _egret = Egret::start(lab.nat(), &lab.config(""))?;
    // A router that is not there.
    let nowhere = "$(ip -4 -o address show ens5 | sed 's/.* inet \\([0-9.]*\\)[.].*/\\1/').250";
    lab.nat().shell(&format!("ip route replace default via {nowhere} dev ens5 onlink"))?;
    lab.nat().wait_for("frames to be given up", || {
        lab.client(1).try_run(&format!("ping -c 1 -W 1 {INTERNET}"))?;
        Ok(metric(&lab, "egret_datapath_dropped_frames_total{reason=\"unresolved\"}")? > 0)
    })
}

#[test]
fn when_a_target_flaps_the_history_and_the_log_say_why_and_draining_takes_it_out() -> Result {
    let lab = Lab::new(Options::default())?;
    let (_one, two) = (server(&lab, 1)?, server(&lab, 2)?);
    let api = listener("api", 5000, &[target(1), target(2)], "");
    let mut egret = Egret::start(lab.nat(), &lab.config(&api))?;
    wait_states(&lab, &egret, "api", &["healthy", "healthy"])?;
    let told = |what: &str| {
        lab.nat().wait_for(what, || {
            let history: Value = serde_json::from_str(&get(&lab, "/history.json")?)?;
            let events = history["events"].as_array().cloned().unwrap_or_default();
            let of_target = |said: &&str| said.contains(&target(2));
            let last = events.iter().filter_map(|event| event["what"].as_str()).rfind(of_target);
            Ok(last.is_some_and(|said| said.contains(what)))
        })
    };
    // The history begins with what was so when it was first looked at.
    lab.nat().wait_for("a point", || {
        let history: Value = serde_json::from_str(&get(&lab, "/history.json")?)?;
        Ok(history["points"]["sessions"].as_array().is_some_and(|points| !points.is_empty()))
    })?;
    drop(two);
    told("refused")?;
    egret.process.wait_for_log("refused")?;
    let _two = server(&lab, 2)?;
    told(": healthy")?;
    assert!(metric(&lab, "egret_forward_check_duration_seconds_count{listener=\"api\"}")? > 0);
    egret.command(&["drain", "api", &target(2)])?.success()?;
    wait_states(&lab, &egret, "api", &["healthy", "drained"])?;
    egret.command(&["drain", "api", &target(2), "--undo"])?.success()?;
    wait_states(&lab, &egret, "api", &["healthy", "healthy"])
}

#[test]
fn when_all_targets_are_unhealthy_the_status_says_why_and_all_are_asked() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = server(&lab, 1)?;
    let matcher = "type = \"http\"\nmatcher = \"204\"\n";
    let api = listener("api", 5000, &[target(1)], "") + matcher;
    let egret = Egret::start(lab.nat(), &lab.config(&api))?;
    wait_states(&lab, &egret, "api", &["unhealthy"])?;
    lab.nat().wait_for("the status that was had", || {
        Ok(report(&egret, "api")?["targets"][0]["why"].as_str().is_some_and(|why| why.contains("200")))
    })?;
    let page = lab.internet().run(&format!("curl -sS --max-time 5 http://{PUBLIC}:5000/"))?;
    assert_eq!(page.trim(), "server 1");
    assert!(get(&lab, "/readyz")?.contains("api"), "{}", get(&lab, "/readyz")?);
    Ok(())
}
