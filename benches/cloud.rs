//! Whether packets care what EC2's API does: `cargo bench --bench cloud`, with `quick` as an argument for a short run.
//!
//! The daemon is in a VPC as on an instance, with stubs of the metadata service and of EC2. In turns, EC2 answers, closes
//! every connection, says nothing, throttles, or answers rubbish, while the daemon is made to ask as often as it ever
//! does; each time it is measured what TCP gets through, and what a packet of 64 bytes costs the worker. Before that, what
//! memory it takes with AWS off and on. Nothing is asserted. It needs root.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]
#![allow(clippy::cast_precision_loss, reason = "figures to be printed")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "the stubs are a test's")]
#![allow(dead_code, unused_imports, reason = "of the stubs, tests need more")]

#[path = "../tests/aws/ec2.rs"]
mod ec2;
#[path = "common/figures.rs"]
mod figures;
#[path = "../tests/aws/http.rs"]
mod http;
#[path = "../tests/aws/imds.rs"]
mod imds;
#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "common/process.rs"]
mod process;
#[path = "../tests/aws/vpc.rs"]
mod vpc;

use std::process::ExitCode;
use std::time::Duration;

use ec2::{ALL, Fault, TABLE};
use figures::Figures;
use lab::{Egret, INTERNET, Iperf, Result};
use vpc::Vpc;

const DATAPATH: lab::Datapath = lab::Datapath::AfPacket;

const MOODS: [(&str, Fault); 6] = [
    ("it answers", Fault::None),
    ("connections are closed", Fault::Closed(ALL)),
    ("nothing is answered", Fault::Silence(ALL)),
    ("RequestLimitExceeded", Fault::Error(ALL, 503, "RequestLimitExceeded")),
    ("UnauthorizedOperation", Fault::Error(ALL, 403, "UnauthorizedOperation")),
    ("rubbish", Fault::Rubbish(ALL)),
];

fn main() -> ExitCode {
    let quick = std::env::args().any(|argument| argument == "quick");
    match compare(if quick { 3 } else { 9 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cloud bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn compare(rounds: usize) -> Result {
    println!("Egret translates while EC2's API is in all kinds of moods, in turns, {rounds} rounds of 1 s");
    println!("  on {}", process::machine()?);
    println!("  packet sockets (af_packet), one-armed, MTU 1500, GSO on; medians (least - most)\n");
    let vpc = Vpc::new(2, true)?;
    let toml = format!("datapath = \"af_packet\"\n[aws]\nroute_tables = [\"{TABLE}\"]\n");
    memory(&vpc, &toml)?;
    let egret = vpc.spawn(0, &toml)?;
    wait(&vpc, &egret, true)?;
    let mut moods: Vec<Measured> = MOODS.iter().map(|_| Measured::default()).collect();
    for round in 0..rounds {
        for turn in 0..MOODS.len() {
            let index = (round + turn) % MOODS.len();
            vpc.ec2.lock().unwrap().fault = MOODS[index].1;
            moods[index].add(&vpc, &egret)?;
        }
    }
    println!(
        "{:24} {:>26} {:>6} {:>26} {:>6} {:>7}",
        "EC2", "TCP, Gbit/s", "ratio", "worker, ns/packet", "ratio", "calls/s"
    );
    let healthy = [moods[0].rate.clone(), moods[0].cost.clone()].map(|series| Figures::of(series).median);
    for ((mood, _), measured) in MOODS.iter().zip(moods) {
        let (rate, cost) = (Figures::of(measured.rate), Figures::of(measured.cost));
        let ratios = [rate.median / healthy[0], cost.median / healthy[1]];
        let calls = Figures::of(measured.calls).median;
        println!(
            "{mood:24} {:>26} {:6.2} {:>26} {:6.2} {calls:7.1}",
            rate.to_string(),
            ratios[0],
            cost.to_string(),
            ratios[1]
        );
    }
    Ok(())
}

/// What the SDK takes: the same daemon, with AWS off, and on when its first pass is over and all is as desired.
fn memory(vpc: &Vpc, toml: &str) -> Result {
    let off = format!("{toml}enabled = false\n");
    for (what, toml) in [("AWS off", off.as_str()), ("AWS on, after its first pass", toml)] {
        let mut egret = vpc.spawn(0, toml)?;
        wait(vpc, &egret, toml != off)?;
        let resident = process::resident_bytes(egret.process.id())? as f64 / f64::from(1 << 20);
        println!("{what:37} {resident:.1} MiB resident");
        egret.stop(lab::DEADLINE)?;
    }
    println!();
    Ok(())
}

/// Waits until it translates, and with AWS on for its first pass.
fn wait(vpc: &Vpc, egret: &Egret, is_on: bool) -> Result {
    vpc.lab.nat().wait_for("its first pass", || {
        // It may not be there yet.
        let told = egret.try_status().map_or(String::new(), |output| output.stdout);
        let status: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
        let aws = &status["aws"];
        let is_done = aws["routes"][0]["state"] == "active" && aws["problems"] == serde_json::json!([]);
        Ok(status["ready"] == true && (is_done || !is_on))
    })
}

#[derive(Default)]
struct Measured {
    rate: Vec<f64>,
    cost: Vec<f64>,
    calls: Vec<f64>,
}

impl Measured {
    /// One second of bulk TCP, and one of small datagrams.
    fn add(&mut self, vpc: &Vpc, egret: &Egret) -> Result {
        let (lab, calls) = (&vpc.lab, || vpc.ec2.lock().unwrap().calls.len());
        let before = calls();
        egret.process.signal(nix::sys::signal::Signal::SIGHUP)?;
        // A call that nobody has answered is waited for first.
        lab.nat().wait_for("a call", || Ok(calls() > before))?;
        let before = calls();
        let rate = Iperf::measure(lab.client(1), lab.internet(), INTERNET, "--time 1")?;
        egret.process.signal(nix::sys::signal::Signal::SIGHUP)?;
        let begin = (process::thread_run_time(egret.process.id(), WORKER)?, packets(egret)?);
        Iperf::measure(lab.client(1), lab.internet(), INTERNET, "--udp --length 22 --bitrate 12M --time 1")?;
        let end = (process::thread_run_time(egret.process.id(), WORKER)?, packets(egret)?);
        let time: Duration = end.0.saturating_sub(begin.0);
        self.rate.push(rate / 1e9);
        self.cost.push(time.as_nanos() as f64 / (end.1 - begin.1) as f64);
        self.calls.push((calls() - before) as f64 / 2.0);
        Ok(())
    }
}

fn packets(egret: &Egret) -> Result<u64> {
    Ok(egret.status()?["traffic"]["out_to_external"]["packets"].as_u64().unwrap_or_default())
}

/// The packet worker's thread.
const WORKER: &str = "egret-packets";
