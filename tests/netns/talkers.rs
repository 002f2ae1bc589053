//! Who talks most, seen while it talks.

use serde_json::Value;

use super::serve;
use crate::lab::{DEADLINE, Egret, INTERNET, Iperf, Lab, Options, Result};

/// What the daemon says of the last minute, by `by`.
fn talkers(lab: &Lab, egret: &Egret, by: &str) -> Result<Value> {
    let request = format!("{{\"command\":\"talkers\",\"by\":\"{by}\"}}\n");
    let answer = lab.nat().run_for(
        DEADLINE,
        &["socat", "-t", "20", "-", &format!("UNIX-CONNECT:{}", egret.socket())],
        &request,
    )?;
    let answer: Value = serde_json::from_str(&answer.success()?.stdout)?;
    Ok(answer["talkers"]["last_minute"].clone())
}

fn first(of: &Value, kind: &str, what: &str) -> (String, u64) {
    let first = &of[kind][0];
    (first["who"].as_str().unwrap_or_default().to_owned(), first[what].as_u64().unwrap_or_default())
}

#[test]
fn a_connection_counts_while_it_lives() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = Iperf::start(lab.internet())?;
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    // Longer than the test waits: it never closes.
    let _load = lab.client(1).spawn(&format!("iperf3 --client {INTERNET} --time 60 --bitrate 20M"))?;
    let client = Lab::client_address(1).to_string();
    let carried = |least: u64| {
        lab.nat().wait_for("the client to be seen", || {
            let seen = talkers(&lab, &egret, "bytes")?;
            let (who, bytes) = first(&seen, "internal", "bytes");
            Ok(who == client && bytes > least)
        })
    };
    carried(1 << 20)?;
    // It goes on counting, and what is told is what was carried.
    carried(4 << 20)?;
    let (_, told) = first(&talkers(&lab, &egret, "bytes")?, "internal", "bytes");
    let sessions = egret.sessions("")?;
    let sum = |session: &Value| {
        session["bytes_out"].as_u64().unwrap_or_default() + session["bytes_in"].as_u64().unwrap_or_default()
    };
    let whole: u64 = sessions.iter().map(sum).sum();
    assert!(told <= whole, "{told} of {whole}");
    Ok(())
}

#[test]
fn those_that_open_many_sessions_are_seen() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = serve(lab.internet(), 7000)?;
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    let scan = format!("for port in $(seq 7001 7040); do echo x >/dev/udp/{INTERNET}/$port; done");
    lab.client(2).run_for(DEADLINE, &["bash", "-c", &scan], "")?.success()?;
    lab.nat().wait_for("the client to be seen", || {
        let seen = talkers(&lab, &egret, "sessions")?;
        let network = INTERNET.octets();
        let network = format!("{}.{}.{}.0/24", network[0], network[1], network[2]);
        Ok(first(&seen, "internal", "sessions") == (Lab::client_address(2).to_string(), 40)
            && first(&seen, "remote", "sessions") == (network, 40)
            && first(&seen, "internal", "ports").1 >= 1)
    })
}
