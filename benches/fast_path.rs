//! What a packet costs with Egret's fast path, and with the kernel's own masquerading:
//! `cargo bench --no-default-features --bench fast_path`, with `quick` as an argument for a short run, and with names
//! of its parts for only these: `udp`, `tcp`, `forwarded`, `sessions`, `latency`, `bare`, `alone`, `offload`, `footprint`.
//!
//! Two labs stand side by side, one NAT host translating by Egret and one by nft, each with flows that were
//! established before; frames are sent to them in turns. A NAT host's interface is polled by a thread of its own
//! on one processor; that thread's run time as the scheduler has it, and the Egret daemon's, is what a packet costs.
//! All that makes and takes the frames is on the other processor. Nothing is asserted. It needs root.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]
#![allow(clippy::cast_precision_loss, reason = "figures to be printed")]

#[path = "common/figures.rs"]
mod figures;
#[path = "fast_path/generator.rs"]
mod generator;
#[path = "fast_path/host.rs"]
mod host;
#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "fast_path/ping_pong.rs"]
mod ping_pong;
#[path = "common/process.rs"]
mod process;

use std::process::ExitCode;
use std::time::Duration;

use figures::{Figures, Series, Translator, take_turns};
use generator::{Frames, Kind, Opener, Pace, Way};
use host::{FarEnd, NatHost, TrackingRoom, Work};
use lab::{Failure, Result};

const DATAPATH: lab::Datapath = lab::Datapath::Xdp;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = ping_pong::requested(&arguments).unwrap_or_else(|| compare(&Plan::new(&arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fast path bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured, and how much.
struct Plan {
    /// Only these parts, see the module; all if there are none.
    only: Vec<String>,
    rounds: usize,
    /// Of sending, each time.
    window: Duration,
    /// Numbers of flows, as powers of two.
    flow_bits: &'static [u32],
    /// New sessions in a round, as a power of two.
    new_bits: u32,
    exchanges: u32,
}

impl Plan {
    fn new(arguments: &[String]) -> Self {
        let is_part = |argument: &&String| !argument.starts_with('-') && *argument != "quick";
        let only = arguments.iter().filter(is_part).cloned().collect();
        if arguments.iter().any(|argument| argument == "quick") {
            let window = Duration::from_millis(200);
            return Self { only, rounds: 2, window, flow_bits: &[0, 10, 16], new_bits: 13, exchanges: 2_000 };
        }
        let window = Duration::from_secs(1);
        Self { only, rounds: 5, window, flow_bits: &[0, 10, 16, 20], new_bits: 15, exchanges: 20_000 }
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }
}

fn compare(plan: &Plan) -> Result {
    println!(
        "Egret ({}) and the kernel's nft masquerade in turns, {} rounds of {:?}",
        DATAPATH.label(),
        plan.rounds,
        plan.window
    );
    println!("  on {}", process::machine()?);
    println!("  one interface, a veth pair; GRO on as on a network card; senders' checksums complete, GSO off");
    println!("  a packet's cost: run time of the interface's NAPI thread, and of the daemon, on a processor");
    println!("  medians (least - most)\n");
    Series::print_header();

    let _room = TrackingRoom::for_connections(1 << 20)?;
    let kinds = [("udp", "UDP, 64 bytes", Kind::Udp), ("tcp", "TCP, 1448 of data", DATA)];
    for (part, name, kind) in kinds {
        for bits in plan.flow_bits.iter().filter(|_| plan.wants(part)) {
            established(plan, name, Opener::Internal, kind, *bits)?;
        }
    }
    for (name, kind) in [("forwarded TCP, ACKs", BARE_ACK), ("forwarded TCP, 1448 of data", DATA)] {
        for bits in plan.flow_bits.iter().filter(|_| plan.wants("forwarded")) {
            established(plan, name, Opener::Remote, kind, *bits)?;
        }
    }
    if plan.wants("sessions") {
        new_sessions(plan, "UDP, reply", &[(Way::Out, Kind::Udp), (Way::Back, Kind::Udp)])?;
        new_sessions(plan, "TCP, FINs", &[HANDSHAKE, FAREWELL].concat())?;
    }
    if plan.wants("latency") {
        latency(plan)?;
    }
    println!();
    if plan.wants("bare") {
        bare(plan)?;
    }
    if plan.wants("alone") {
        for (_, name, kind) in kinds {
            program_alone(plan, name, kind)?;
        }
    }
    if plan.wants("offload") {
        offload(plan)?;
    }
    for bits in plan.flow_bits.iter().filter(|bits| **bits >= 16 && plan.wants("footprint")) {
        footprint(plan, *bits)?;
    }
    Ok(())
}

/// Both, with as many established flows.
fn both(opener: Opener, kind: Kind, bits: u32) -> Result<[NatHost; 2]> {
    let host = |translator| NatHost::new(translator, opener, 1 << bits);
    let mut hosts = [host(Translator::Egret)?, host(Translator::Kernel)?];
    for host in &mut hosts {
        establish(host, opener, kind, bits)?;
    }
    Ok(hosts)
}

/// Opens the flows, and has them carry data both ways until all are where they stay: in the fast path, if it is
/// Egret, and with the kernel, known as replied to.
fn establish(host: &mut NatHost, opener: Opener, kind: Kind, bits: u32) -> Result {
    let frames = |(way, kind)| Frames { way, kind, first_flow: 0, flow_bits: bits };
    if kind != Kind::Udp {
        for &(way, kind) in HANDSHAKE {
            let way = if opener == Opener::Internal { way } else { way.opposite() };
            complete(host, frames((way, kind)))?;
        }
    }
    for _ in 0..SETTLING {
        complete(host, frames((Way::Out, kind)))?;
        complete(host, frames((Way::Back, kind)))?;
        if host.has_settled(1 << bits)? {
            return Ok(());
        }
    }
    Err(Failure::new(format!("not all of the flows are in the fast path: {:?}", host.status()?)))
}

/// Sends a frame of each flow until all have come out in one go: what gets lost is sent again.
fn complete(host: &mut NatHost, frames: Frames) -> Result {
    let flows = 1 << frames.flow_bits;
    let mut most = 0;
    for _ in 0..TRIES {
        most = host.generator.sweep(frames)?.max(most);
        if most >= flows {
            return Ok(());
        }
    }
    let said = host.status()?.map(|status| format!("; {status}")).unwrap_or_default();
    Err(Failure::new(format!(
        "of {flows} flows, {most} came out: {frames:?}, {:?}{said}",
        host.generator.seen()?
    )))
}

/// What a packet of an established flow costs, half of them going out and half coming back.
fn established(plan: &Plan, name: &str, opener: Opener, kind: Kind, bits: u32) -> Result {
    let mut hosts = both(opener, kind, bits)?;
    let mut measure = |translator, far_end| {
        let host: &mut NatHost = &mut hosts[translator as usize];
        host.set_far_end(far_end)?;
        let mut halves = Vec::new();
        for way in [Way::Out, Way::Back] {
            let frames = Frames { way, kind, first_flow: 0, flow_bits: bits };
            halves.push(host.work(frames, Pace::Flood, plan.window / 2)?);
        }
        host.set_far_end(FarEnd::Woken)?;
        let mean = |of: fn(Work) -> f64| halves.iter().copied().map(of).sum::<f64>() / halves.len() as f64;
        Ok::<_, Failure>([
            mean(Work::nanos_per_packet),
            mean(Work::translated_per_second) / 1e6,
            mean(Work::offered_per_second) / 1e6,
        ])
    };
    let [cost, translated, offered, polled] = take_turns(plan.rounds, |translator| {
        let [cost, translated, offered] = measure(translator, FarEnd::Woken)?;
        let [polled, ..] = measure(translator, FarEnd::Polling)?;
        Ok([cost, translated, offered, polled])
    })?;
    let target = match bits {
        10 => Some(0.17),
        20 => Some(0.25),
        _ => None,
    };
    cost.print(&format!("{name}, {} flows, ns", number(bits)), target);
    translated.print("  translated, Mpackets/s", None);
    offered.print("  offered, Mpackets/s", None);
    polled.print("  far end polling, ns", None);
    Ok(())
}

/// A power of two.
fn number(bits: u32) -> String {
    match bits {
        20.. => format!("{} Mi", 1_u32 << (bits - 20)),
        10.. => format!("{} Ki", 1_u32 << (bits - 10)),
        _ => (1_u32 << bits).to_string(),
    }
}

/// How many sessions a processor opens in a second, with all that else belongs to them.
fn new_sessions(plan: &Plan, name: &str, steps: &[(Way, Kind)]) -> Result {
    let sessions = (2 * plan.rounds as u64) << plan.new_bits;
    let host = |translator| NatHost::new(translator, Opener::Internal, sessions);
    let mut hosts = [host(Translator::Egret)?, host(Translator::Kernel)?];
    let mut first_flow = [0; 2];
    let mut measure = |translator, far_end| {
        let (host, first_flow) = (&mut hosts[translator as usize], &mut first_flow[translator as usize]);
        host.set_far_end(far_end)?;
        let packets = (steps.len() as u64) << plan.new_bits;
        let work = host.measured(|generator| {
            // In groups that are opened and closed one after another, as sessions come and go.
            for _ in 0..1 << (plan.new_bits - GROUP_BITS) {
                for &(way, kind) in steps {
                    generator.sweep(Frames { way, kind, first_flow: *first_flow, flow_bits: GROUP_BITS })?;
                }
                *first_flow += 1 << GROUP_BITS;
            }
            Ok(packets)
        })?;
        let completed = work.translated as f64 / steps.len() as f64;
        let lost = 1.0 - work.translated as f64 / packets as f64;
        Ok::<_, Failure>((completed / work.processor_time.as_secs_f64() / 1e3, 100.0 * lost))
    };
    let [rate, lost, polled] = take_turns(plan.rounds, |translator| {
        let (rate, lost) = measure(translator, FarEnd::Woken)?;
        let (polled, _) = measure(translator, FarEnd::Polling)?;
        Ok([rate, lost, polled])
    })?;
    rate.print(&format!("new sessions, {name}, thousands/s"), 1.0);
    lost.print("  packets lost, %", None);
    polled.print("  far end polling, thousands/s", None);
    Ok(())
}

/// Ping-pong of two programs while other flows keep the NAT host half as busy as would be the most for the kernel.
fn latency(plan: &Plan) -> Result {
    let frames = Frames { way: Way::Out, kind: Kind::Udp, first_flow: 0, flow_bits: 10 };
    let mut hosts = both(Opener::Internal, frames.kind, frames.flow_bits)?;
    let full = hosts[Translator::Kernel as usize].work(frames, Pace::Flood, plan.window)?;
    let interval = Duration::from_secs_f64(2.0 / full.translated_per_second());
    let [half, tail] = take_turns(plan.rounds, |translator| {
        let host = &mut hosts[translator as usize];
        let times = ping_pong::under_load(host, frames, Pace::Every(interval), plan.exchanges)?;
        Ok([times.half.as_secs_f64() * 1e6, times.tail.as_secs_f64() * 1e6])
    })?;
    half.print("UDP ping-pong, half load, p50, us", 1.0);
    tail.print("UDP ping-pong, half load, p99, us", 1.0);
    Ok(())
}

/// What a packet costs that is translated without being looked up: the least that anything does on this way.
fn bare(plan: &Plan) -> Result {
    let mut host = NatHost::bare()?;
    for (far_end, name) in [(FarEnd::Woken, "without a table"), (FarEnd::Polling, "  far end polling")] {
        host.set_far_end(far_end)?;
        let mut costs = Vec::new();
        for _ in 0..plan.rounds {
            let frames = Frames { way: Way::Out, kind: Kind::Udp, first_flow: 0, flow_bits: 10 };
            costs.push(host.work(frames, Pace::Flood, plan.window)?.nanos_per_packet());
        }
        println!("{:37} {:>25}", format!("{name}, UDP, 1 Ki flows, ns"), Figures::of(costs).to_string());
    }
    Ok(())
}

/// What Egret's program takes without all that moves frames to it and from it.
fn program_alone(plan: &Plan, name: &str, kind: Kind) -> Result {
    let mut host = NatHost::new(Translator::Egret, Opener::Internal, 1)?;
    establish(&mut host, Opener::Internal, kind, 0)?;
    let frames = Frames { way: Way::Out, kind, first_flow: 0, flow_bits: 0 };
    let mut times = Vec::new();
    for _ in 0..=2 * plan.rounds {
        times.push(host.program_alone(frames)?.as_nanos());
    }
    times.sort_unstable();
    let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    println!("{:37} {median} ({least} - {most}), target 100", format!("program alone, {name}, ns"));
    Ok(())
}

/// What sessions take of memory, and of a processor while they idle.
fn footprint(plan: &Plan, bits: u32) -> Result {
    let mut host = NatHost::new(Translator::Egret, Opener::Internal, 1 << bits)?;
    let before = host.memory()?;
    let print_idle = |host: &NatHost, state: &str| {
        let used = 100.0 * host.idle_use(3 * plan.window)?;
        println!("{:37} {used:.2} % of a processor, target below 1", format!("daemon idle, {state}"));
        Ok::<_, Failure>(())
    };
    print_idle(&host, "no session")?;
    establish(&mut host, Opener::Internal, Kind::Udp, bits)?;
    let after = host.memory()?;
    print_idle(&host, &format!("{} sessions", number(bits)))?;
    for (what, before, after) in [("daemon", before[0], after[0]), ("BPF maps", before[1], after[1])] {
        println!(
            "{:37} {:.1} MiB, of these {:.1} before the first: {:.0} bytes a session",
            format!("{what}, {} sessions", number(bits)),
            after as f64 / MEBI,
            before as f64 / MEBI,
            (after as f64 - before as f64) / f64::from(1_u32 << bits),
        );
    }
    Ok(())
}

/// What it costs to hand a session to the fast path and to take it home, and what a packet costs that goes by neither.
fn offload(plan: &Plan) -> Result {
    let bits = plan.new_bits;
    let mut host = NatHost::new(Translator::Egret, Opener::Internal, (2 * plan.rounds as u64) << bits)?;
    let (mut slow, mut handed_over, mut taken_home) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds as u64 {
        let (short, long) = (2 * round, 2 * round + 1);
        for group in [short, long] {
            for step in HANDSHAKE {
                cost_of_sweep(&mut host, *step, group, bits)?;
            }
        }
        // One that has not been handed over ends.
        let end = cost_of_sweep(&mut host, FAREWELL[0], short, bits)?;
        // Packets as before the last one that the engine waits for, and that one.
        let mut costs = Vec::new();
        for packet in HANDSHAKE.len() + 1..=OFFLOAD_AFTER {
            let way = if packet % 2 == 0 { Way::Out } else { Way::Back };
            costs.push(cost_of_sweep(&mut host, (way, DATA), long, bits)?);
        }
        let last = costs.pop().unwrap_or_default();
        let packet = costs.iter().sum::<f64>() / costs.len() as f64;
        slow.push(packet);
        handed_over.push(last - packet);
        if !host.has_settled(1 << bits)? {
            return Err(Failure::new(format!("not handed over as expected: {:?}", host.status()?)));
        }
        taken_home.push(cost_of_sweep(&mut host, FAREWELL[0], long, bits)? - end);
    }
    let all = [
        ("packet by the engine", slow),
        ("session handed over", handed_over),
        ("session taken home", taken_home),
    ];
    for (what, costs) in all {
        println!("{:37} {}", format!("{what}, ns"), Figures::of(costs));
    }
    Ok(())
}

/// What a packet costs of a sweep of all sessions of a group.
fn cost_of_sweep(host: &mut NatHost, (way, kind): (Way, Kind), group: u64, bits: u32) -> Result<f64> {
    let frames = Frames { way, kind, first_flow: group << bits, flow_bits: bits };
    let work = host.measured(|generator| generator.sweep(frames))?;
    if work.translated != 1 << bits {
        return Err(Failure::new(format!("{} of {} packets came out", work.translated, 1_u32 << bits)));
    }
    Ok(work.nanos_per_packet())
}

// Both sides count from 1000, so that what one sends the other could send as well.
/// Data, always the same, which is within the window.
const DATA: Kind = Kind::Tcp(ACK, 1001, 1001, 1448);
const BARE_ACK: Kind = Kind::Tcp(ACK, 1001, 1001, 0);
const HANDSHAKE: &[(Way, Kind)] = &[
    (Way::Out, Kind::Tcp(SYN, 1000, 0, 0)),
    (Way::Back, Kind::Tcp(SYN | ACK, 1000, 1001, 0)),
    (Way::Out, BARE_ACK),
];
const FAREWELL: &[(Way, Kind)] = &[
    (Way::Out, Kind::Tcp(FIN | ACK, 1001, 1001, 0)),
    (Way::Back, Kind::Tcp(FIN | ACK, 1001, 1002, 0)),
    (Way::Out, Kind::Tcp(ACK, 1002, 1002, 0)),
];
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Packets of a session, both ways, after which Egret hands it over.
const OFFLOAD_AFTER: usize = 6;
const MEBI: f64 = 1_048_576.0;
/// Packets each way, at most, until a flow is in the fast path: more than that wants.
const SETTLING: u32 = 16;
/// How often a round is begun anew if anything was lost.
const TRIES: u32 = 5;
/// Sessions that are open at once, as a power of two.
const GROUP_BITS: u32 = 7;
