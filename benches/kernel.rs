//! Egret compared with the kernel's own masquerading: `cargo bench --no-default-features --bench kernel`, or with
//! `quick` as an argument for a short run. `EGRET_BENCH_ROUNDS` and `EGRET_BENCH_SECONDS` change how often, and how
//! long each time.
//!
//! Both translate in turns on the same host of the same lab, so that a slow phase of the machine hits both alike.
//! Nothing is asserted: it prints what it saw. It needs root.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]
#![allow(clippy::cast_precision_loss, reason = "figures to be printed")]

#[path = "common/figures.rs"]
mod figures;
#[path = "kernel/generator.rs"]
mod generator;
#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "common/process.rs"]
mod process;

use std::net::SocketAddrV4;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use figures::{Series, Translator, take_turns};
use lab::{
    Arms, Egret, Failure, Gateway, INTERNET, INTERNET_2, Iperf, Lab, Options, Result, kernel_nat, wait_for,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = generator::requested(&arguments).unwrap_or_else(|| compare(&Plan::new(&arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kernel bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// How much is measured.
struct Plan {
    rounds: usize,
    seconds: u64,
}

impl Plan {
    fn new(arguments: &[String]) -> Self {
        let quick = arguments.iter().any(|argument| argument == "quick");
        let number = |name: &str| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).filter(|number| *number > 0)
        };
        Self {
            rounds: number("EGRET_BENCH_ROUNDS").unwrap_or(if quick { 1 } else { 5 }),
            seconds: number("EGRET_BENCH_SECONDS").unwrap_or(if quick { 1 } else { 2 }) as u64,
        }
    }
}

fn compare(plan: &Plan) -> Result {
    println!(
        "Egret (af_packet) and the kernel's nft masquerade in turns, {} rounds of {} s",
        plan.rounds, plan.seconds
    );
    println!("  on {}", process::machine()?);
    println!(
        "  client -- router -- NAT host with one interface; router -- internet host; a veth pair each, MTU 1500"
    );
    println!("  all hosts, and the programs that make and take the traffic, share these processors");
    println!("  medians (least - most)\n");
    Series::print_header();

    let with_offloads = build(true)?;
    throughput(&with_offloads, plan, "GSO on", 0.7)?;
    packet_rate(&with_offloads, plan)?;
    let without_offloads = build(false)?;
    throughput(&without_offloads, plan, "offloads off", 0.5)?;
    for (lab, name) in [(&with_offloads, "GSO on"), (&without_offloads, "offloads off")] {
        println!("  {name}: {}", offloads(lab)?);
    }
    println!();
    memory(&with_offloads)
}

fn build(offloads: bool) -> Result<Lab> {
    let arms = Arms::One;
    Lab::new(Options { arms, gateway: Gateway::Routed, offloads, quiet: true, ..Options::default() })
}

/// What the links of this lab do by themselves, as ethtool says of the NAT host's.
fn offloads(lab: &Lab) -> Result<String> {
    let listed = lab.nat().run("ethtool -k ens5")?;
    let wanted = [
        "rx-checksumming",
        "tx-checksumming",
        "scatter-gather",
        "tcp-segmentation-offload",
        "generic-segmentation-offload",
        "generic-receive-offload",
    ];
    let found = listed.lines().filter_map(|line| line.split_once(':'));
    let found = found.filter(|(name, _)| wanted.contains(name)).map(|(name, state)| {
        format!("{name}{}", state.split_whitespace().next().map_or(String::new(), |state| format!(" {state}")))
    });
    Ok(found.collect::<Vec<_>>().join(", "))
}

impl Translator {
    /// Runs `measure` while this one translates.
    fn run<T>(self, lab: &Lab, measure: impl FnOnce() -> Result<T>) -> Result<T> {
        match self {
            Self::Egret => {
                let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
                let result = measure()?;
                egret.stop(lab::DEADLINE)?;
                Ok(result)
            }
            Self::Kernel => {
                kernel_nat(lab)?;
                let result = measure()?;
                lab.nat().run("nft delete table ip nat")?;
                lab.nat().run("sysctl -q -w net.ipv4.ip_forward=0")?;
                Ok(result)
            }
        }
    }
}

/// One connection, each way.
fn throughput(lab: &Lab, plan: &Plan, offloads: &str, target: f64) -> Result {
    let seconds = plan.seconds;
    let gigabits = |options: &str| {
        let options = format!("--time {seconds} {options}");
        let rate = Iperf::measure(lab.client(1), lab.internet(), INTERNET, &options)?;
        Ok::<_, Failure>(rate / 1e9)
    };
    let [out, back] = take_turns(plan.rounds, |translator| {
        translator.run(lab, || Ok([gigabits("")?, gigabits("--reverse")?]))
    })?;
    out.print(&format!("TCP out, {offloads}, Gbit/s"), target);
    back.print(&format!("TCP in, {offloads}, Gbit/s"), target);
    Ok(())
}

/// Frames of 64 bytes at overload; what comes out counts.
fn packet_rate(lab: &Lab, plan: &Plan) -> Result {
    // Dropped where they are counted: what a receiver does is not the NAT's cost.
    lab.internet().nft(&format!(
        "table netdev bench {{\n chain ingress {{\n type filter hook ingress device \"ens5\" priority 0\n\
         udp dport {FLOOD_PORT} drop\n }}\n}}\n"
    ))?;
    let witness = lab.internet().spawn("sleep infinity")?;
    wait_for("the internet host's counters", lab::DEADLINE, || Ok(process::name(witness.id())? == "sleep"))?;
    let window = Duration::from_secs(plan.seconds);
    let measure = || {
        let remote = SocketAddrV4::new(INTERNET, FLOOD_PORT);
        let mut flood = generator::flood(lab.client(1), remote, WARM_UP + window + WARM_UP)?;
        let idle = process::received(witness.id(), "ens5")?;
        wait_for("the flood to come out", lab::DEADLINE, || {
            Ok(process::received(witness.id(), "ens5")? > idle + FLOWING)
        })?;
        thread::sleep(WARM_UP);
        let (before, start) = (process::received(witness.id(), "ens5")?, Instant::now());
        thread::sleep(window);
        let (after, elapsed) = (process::received(witness.id(), "ens5")?, start.elapsed());
        flood.wait(lab::DEADLINE)?;
        Ok([(after - before) as f64 / elapsed.as_secs_f64() / 1e6])
    };
    let [rate] = take_turns(plan.rounds, |translator| translator.run(lab, measure))?;
    rate.print("UDP out, 64-byte frames, Mpackets/s", 0.4);
    Ok(())
}

/// The daemon's memory, and its use of the processor, without traffic.
fn memory(lab: &Lab) -> Result {
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    let print = |state: &str, target: &str| {
        let used = process::used_time(egret.process.id())?;
        let start = Instant::now();
        thread::sleep(IDLE);
        let used = process::used_time(egret.process.id())?.saturating_sub(used).as_secs_f64();
        let resident = process::resident_bytes(egret.process.id())? as f64 / f64::from(1 << 20);
        let percent = 100.0 * used / start.elapsed().as_secs_f64();
        println!("{state:37} {resident:.1} MiB resident (target {target}), {percent:.1} % of a processor");
        Ok::<_, Failure>(())
    };
    print("daemon, just started, idle", "25")?;
    let remotes = [INTERNET, INTERNET_2].map(|address| SocketAddrV4::new(address, FLOOD_PORT));
    let mut opened = 0;
    // Again for those whose packet was lost; it does nothing to the others.
    for _ in 0..5 {
        for client in [1, 2] {
            generator::open_sessions(lab.client(client), PORTS, remotes)?;
        }
        opened = egret.status()?["sessions"]["live"].as_u64().unwrap_or_default();
        if opened >= SESSIONS {
            break;
        }
    }
    print(&format!("daemon, {opened} sessions, idle"), "60")
}

const DATAPATH: lab::Datapath = lab::Datapath::AfPacket;
/// Where nobody listens.
const FLOOD_PORT: u16 = 9;
/// Packets that show that a flood has begun.
const FLOWING: u64 = 1000;
const WARM_UP: Duration = Duration::from_millis(200);
const IDLE: Duration = Duration::from_secs(3);
/// To be opened: two clients, this many ports of each, two remotes.
const PORTS: u16 = 25_000;
const SESSIONS: u64 = 2 * 2 * PORTS as u64;
