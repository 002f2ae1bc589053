//! `make demo-failover`: two instances in a VPC of network namespaces, each with a gateway of its own. One is killed while
//! its clients use it, comes back, and hands over by order.
//!
//! EC2 and the metadata services are stubs that behave as AWS's documentation says; packets really go as EC2's route
//! tables and addresses say. The exit status is 0 only if all of it held.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "the stubs are a test's")]
#![allow(dead_code, unused_imports, reason = "of the stubs, tests need more")]

#[path = "../aws/ec2.rs"]
mod ec2;
#[path = "../aws/http.rs"]
mod http;
#[path = "../aws/imds.rs"]
mod imds;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../aws/vpc.rs"]
mod vpc;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use lab::{DEADLINE, Egret, Fabric, Failure, INTERNET, Lab, Process, Result, Web, gateway_address, wait_for};
use vpc::{KEY, NAMES, Vpc};

const DATAPATH: lab::Datapath = lab::Datapath::AfPacket;

fn main() -> ExitCode {
    let start = Instant::now();
    println!("Egret failover demo: two instances, each the other's standby, and EC2 as a stub\n");
    println!("  client1 --.               .-- az-a ({}) --.", gateway_address(1));
    println!("            |-- VPC router --|                      |-- internet gateway -- {INTERNET}");
    println!("  client2 --'               '-- az-b ({}) --'\n", gateway_address(2));
    let outcome = Vpc::new(2, true).and_then(|vpc| {
        let outcome = run(&vpc);
        if outcome.is_err() {
            println!("\nWhat was run, and what came of it:\n{}", vpc.lab.journal());
        }
        outcome
    });
    match outcome {
        Ok(()) => {
            println!("\neverything held, in {:.0?}", start.elapsed());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(vpc: &Vpc) -> Result {
    let web = Web::start(vpc.lab.internet(), 80)?;
    web.put("large", FILE_MIB << 20)?;
    let mut instances = [start(vpc, 0)?, start(vpc, 1)?];
    wait_role(&instances[0], "az-a", "active")?;
    wait_role(&instances[1], "az-b", "active")?;
    step("start", "az-a and az-b have their Elastic IPs and routes, and hear each other");

    // The active one dies.
    let ping = Ping::start(&vpc.lab)?;
    let download = download(&vpc.lab)?;
    wait_for("the download to be under way", DEADLINE, || Ok(downloaded(&vpc.lab) > 1 << 20))?;
    let killed = Instant::now();
    instances[0].process.signal(Signal::SIGKILL)?;
    wait_for("az-a at az-b", DEADLINE, || Ok(vpc.at_ec2(0) == (Some(1), Some(1))))?;
    wait_role(&instances[1], "az-a", "active")?;
    let echo = format!("ping -n -c 1 -W 0.2 {INTERNET}");
    wait_for("an echo", DEADLINE, || Ok(vpc.lab.client(1).try_run(&echo)?.status.success()))?;
    step("kill -9 of az-a", "az-b took its gateway over:");
    println!("{}", timeline(vpc, &instances[1], killed));
    let gap = ping.stop()?.longest;
    println!("     client1's ping was without an answer for {gap:.1?}");
    finish(download)?;
    let same = vpc.lab.client(1).shell("sha256sum <large.part")?
        == vpc
            .lab
            .internet()
            .shell("curl -sS --output check http://198.51.100.10/large && sha256sum <check; rm check")?;
    if !same {
        return Err(Failure::new("the download is not what the server sent"));
    }
    println!(
        "     client1's download of {FILE_MIB} MiB lost its connection, went on by itself, and came out whole"
    );

    // It comes back, and its gateway with it.
    let back = Instant::now();
    instances[0] = start(vpc, 0)?;
    wait_role(&instances[0], "az-a", "active")?;
    let hold_down = HOLD_DOWN.as_secs();
    step(
        "az-a is back",
        &format!("and has its gateway again after {:.1?} (hold-down {hold_down} s)", back.elapsed()),
    );

    // A planned hand-over.
    let ping = Ping::start(&vpc.lab)?;
    std::thread::sleep(Duration::from_millis(500));
    let mut said = String::new();
    wait_for("a hand-over", DEADLINE, || {
        let output = instances[0].command(&["handover", "--to", "az-b"])?;
        said = output.stdout;
        Ok(output.status.success())
    })?;
    std::thread::sleep(Duration::from_millis(500));
    let Pings { sent, lost, .. } = ping.stop()?;
    step("egret handover", said.trim());
    println!("     of {sent} pings of client1 meanwhile, 10 ms apart, {lost} were lost");
    let shown = instances[1].command(&["status"])?.stdout;
    step("egret status", "on az-b says of the fleet:");
    for line in shown.lines().skip_while(|line| !line.starts_with("fleet")).take_while(|line| !line.is_empty())
    {
        println!("     {line}");
    }
    Ok(())
}

fn step(name: &str, seen: &str) {
    println!(" \u{2713} {name:<17} {seen}");
}

fn start(vpc: &Vpc, index: usize) -> Result<Egret> {
    let hold_down = HOLD_DOWN.as_secs();
    vpc.spawn(index, &vpc.config_with(index, KEY, &format!("hold_down = \"{hold_down}s\"")))
}

fn wait_role(egret: &Egret, gateway: &str, role: &str) -> Result {
    wait_for(&format!("{gateway} to be {role}"), DEADLINE, || {
        let status: Value = serde_json::from_str(&egret.try_status()?.stdout).unwrap_or_default();
        let gateways = status["fleet"]["gateways"].as_array().cloned().unwrap_or_default();
        Ok(gateways.iter().any(|known| known["gateway"] == gateway && known["role"] == role))
    })
}

/// When packets went another way, and what of that was the survivor's work.
fn timeline(vpc: &Vpc, survivor: &Egret, begun: Instant) -> String {
    let led = |(at, fabric): &(Instant, Fabric)| {
        (*at > begun && fabric.routes.get(&1) == Some(&Some(2))).then_some(*at)
    };
    let at = vpc.changes().iter().find_map(led).map_or(0.0, |at| (at - begun).as_secs_f64());
    let log = survivor.process.log();
    let line =
        log.lines().rev().find(|line| line.contains("gateway is here gateway=\"az-a\"")).unwrap_or_default();
    let took: f64 =
        line.rsplit("seconds=").next().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
    format!(
        "     the route of client1's subnet leads to az-b after {at:.2} s; of that, {took:.2} s are calls of EC2, the rest\n     \
         is waiting to be sure that az-a is silent"
    )
}

struct Ping(Process);

struct Pings {
    sent: u32,
    lost: u32,
    /// Without an answer.
    longest: Duration,
}

impl Ping {
    fn start(lab: &Lab) -> Result<Self> {
        Ok(Self(lab.client(1).spawn(&format!("ping -n -D -i 0.01 {INTERNET}"))?))
    }

    fn stop(mut self) -> Result<Pings> {
        self.0.signal(Signal::SIGINT)?;
        self.0.wait(DEADLINE)?;
        let log = self.0.log();
        let times: Vec<f64> = log
            .lines()
            .filter(|line| line.contains("time="))
            .filter_map(|line| line.strip_prefix('[')?.split_once(']')?.0.parse().ok())
            .collect();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        // What was asked last may have had no time to be answered.
        let sequence = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<u32>().ok();
        let answered: Vec<u32> =
            log.lines().filter(|line| line.contains("time=")).filter_map(sequence).collect();
        let sent = answered.iter().max().copied().unwrap_or_default();
        let lost = sent - u32::try_from(answered.len())?;
        Ok(Pings { sent, lost, longest: Duration::from_secs_f64(longest) })
    }
}

/// A download that takes some seconds, and goes on where it was if its connection is lost.
fn download(lab: &Lab) -> Result<Process> {
    lab.client(1).spawn_with(&[
        "sh",
        "-c",
        &format!(
            "for i in 1 2 3 4 5 6 7 8 9; do curl -sS --limit-rate 8M --speed-time 1 --speed-limit 1000 -C - -o large.part \
             http://{INTERNET}/large && exit 0; done; exit 1"
        ),
    ])
}

fn downloaded(lab: &Lab) -> u64 {
    std::fs::metadata(lab.directory().join("large.part")).map_or(0, |file| file.len())
}

fn finish(mut download: Process) -> Result {
    let ended = download.wait(DEADLINE)?;
    if ended.success() { Ok(()) } else { Err(Failure::new(format!("the download failed: {}", download.log()))) }
}

const FILE_MIB: usize = 32;
/// Shorter than anybody should have it.
const HOLD_DOWN: Duration = Duration::from_secs(5);
