//! Egret's proxy beside HAProxy and nginx: `cargo bench --no-default-features --bench forward`, with `quick` as an
//! argument for a short run, and with names of its parts for only these: `bulk`, `connections`, `requests`, `beside`,
//! `nat`, `memory`, `nat-xdp`.
//!
//! Each proxy is on a host of its own, one veth link away from the host that has both clients and backend. A proxy, and
//! what its host's kernel does for it, is on one processor; all the rest is on the other. They are used in turns, often
//! and not for long: a machine has slow seconds. A virtual one also stands still now and then, idle or not, for some
//! milliseconds, which all connections of the moment wait for. It does so in too many rounds for p99 of a round to be of
//! what the proxies do, so there is also the median of p99 of 20 ms each. And where things happen to lie in memory makes a
//! difference of a percent or two for as long as they are there, so that all is built anew several times. `LAB_EGRET`
//! names another Egret than cargo's. Nothing is asserted. It needs root.
//!
//! Clients and backend make as many calls as a proxy, if in fewer packets: their processor is nearly as full as its own,
//! and they wait for each other. So there are also rows for all three on half of a processor, where a proxy is what is
//! waited for.
//!
//! Egret translates beside, the others' hosts do nothing else; but in `beside` they masquerade as well, as a NAT instance
//! has to. In `nat` and `nat-xdp` Egret's engine does what the others are proxies for, with `preserve_client_ip = false`,
//! as client and targets are one host.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]
#![allow(clippy::cast_precision_loss, reason = "figures to be printed")]

#[path = "common/figures.rs"]
mod figures;
#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "forward/load.rs"]
mod load;
#[path = "common/process.rs"]
mod process;
#[path = "forward/proxies.rs"]
mod proxies;

use std::process::ExitCode;
use std::time::Duration;

use figures::Figures;
use lab::{Datapath, Result};
use load::client::{Done, SLICE};
use proxies::{Kind, Proxy, Site, Work};

/// But for `nat-xdp`.
const DATAPATH: Datapath = Datapath::AfPacket;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = load::requested(&arguments).unwrap_or_else(|| compare(&Plan::new(&arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("forward bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured, and how much.
struct Plan {
    /// Only these parts, see the module; all if there are none.
    only: Vec<String>,
    /// How often all is built anew.
    sites: usize,
    /// On each.
    rounds: usize,
    /// Of using a proxy, each time.
    window: Duration,
}

impl Plan {
    fn new(arguments: &[String]) -> Self {
        let is_part = |argument: &&String| !argument.starts_with('-') && *argument != "quick";
        let only = arguments.iter().filter(is_part).cloned().collect();
        if arguments.iter().any(|argument| argument == "quick") {
            return Self { only, sites: 1, rounds: 9, window: WINDOW };
        }
        Self { only, sites: 9, rounds: 21, window: WINDOW }
    }

    /// For what is not as close.
    fn shorter(&self) -> Self {
        Self { only: self.only.clone(), rounds: self.rounds.div_ceil(3), ..*self }
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }
}

fn compare(plan: &Plan) -> Result {
    println!(
        "Egret, HAProxy (mode tcp; bulk always spliced, the rest splice-auto) and nginx (stream) in turns, \
         {} rounds of {:?}, {} beside, by NAT and on half, on each of {} sites",
        plan.rounds,
        plan.window,
        plan.shorter().rounds,
        plan.sites
    );
    println!("  on {}", process::machine()?);
    println!(
        "  client and backend -- proxy, by a veth pair for each proxy, MTU 1500, TSO on for bulk, off for the rest"
    );
    println!(
        "  one processor for a proxy and its host's kernel, one for all the rest; Egret translates beside (af_packet)"
    );
    println!("  medians (least - most)\n");
    let mut report = Report::default();
    for _ in 0..plan.sites {
        report.next = 0;
        measure(plan, &mut report)?;
    }
    report.print();
    Ok(())
}

/// All that is wanted, on a site of its own.
fn measure(plan: &Plan, report: &mut Report) -> Result {
    let shorter = plan.shorter();
    let site = Site::new(DATAPATH)?;
    let proxies = site.start_all()?;
    let using = |kind: &'static str, connections| {
        let (site, window) = (&site, plan.window);
        move |proxy: &Proxy| site.load(proxy, kind, connections, window)
    };
    if plan.wants("bulk") {
        site.set_super_frames(true)?;
        for connections in [1, 8] {
            let [rate, cost] = take_turns(plan, &proxies, using("bulk", connections), bulk)?;
            report.add(format!("bulk, connections: {connections}, Gbit/s"), Better::More, rate);
            report.add("  processor time, ms/GB", Better::Less, cost);
        }
    }
    for part in [CONNECTIONS, REQUESTS] {
        if plan.wants(part.0) {
            small(plan, &site, &proxies, part, report)?;
            on_half(&shorter, &site, &proxies, part, report)?;
        }
    }
    if plan.wants("nat") {
        by_nat(&shorter, &site, &proxies, "nat", report)?;
    }
    if plan.wants("beside") {
        report.add_heading("the others' hosts masquerade as well");
        site.have_others_masquerade()?;
        for part in [CONNECTIONS, REQUESTS] {
            small(&shorter, &site, &proxies, part, report)?;
        }
    }
    drop(proxies);
    if plan.wants("memory") {
        let mut memory = Series::default();
        for _ in 0..shorter.rounds.div_ceil(6) {
            for kind in Kind::ALL {
                // A new one each time: what was held once stays the process's own.
                memory.of(kind).push(site.memory(&site.start(kind)?, IDLE)?);
            }
        }
        report.add(format!("memory of an idle connection of {IDLE}, bytes"), Better::Less, memory);
    }
    drop(site);
    if plan.wants("nat-xdp") {
        report.add_heading(
            "Egret translates by xdp, and for this its link cuts super-frames; those of the others do not",
        );
        let site = Site::new(Datapath::Xdp)?;
        by_nat(&shorter, &site, &site.start_all()?, "nat (xdp)", report)?;
    }
    Ok(())
}

/// Much that is small.
fn small(
    plan: &Plan,
    site: &Site,
    proxies: &[Proxy],
    (kind, name, at_once): Part,
    report: &mut Report,
) -> Result {
    site.set_super_frames(false)?;
    let using = |proxy: &Proxy| site.load(proxy, kind, at_once, plan.window);
    let [rate, slice_tail, tail, cost] = take_turns(plan, proxies, using, many)?;
    report.add(format!("{name}, thousands/s, {at_once} at once"), Better::More, rate);
    report.add(format!("  p99 of {SLICE:?}, us"), Better::Less, slice_tail);
    report.add("  p99 of all, us", Better::Less, tail);
    report.add("  processor time of one, us", Better::Less, cost);
    Ok(())
}

/// As [`small`], with half of the proxies' processor.
fn on_half(
    plan: &Plan,
    site: &Site,
    proxies: &[Proxy],
    (kind, _, at_once): Part,
    report: &mut Report,
) -> Result {
    let _halved = site.halve()?;
    small(plan, site, proxies, (kind, "  on half a processor", at_once), report)
}

/// Egret as no proxy, beside the others who are.
fn by_nat(plan: &Plan, site: &Site, proxies: &[Proxy], name: &str, report: &mut Report) -> Result {
    let window = plan.window;
    site.set_super_frames(true)?;
    let [rate, cost] = take_turns(plan, proxies, |proxy| site.load(proxy, "nat-bulk", 8, window), bulk)?;
    report.add(format!("by {name}: bulk, connections: 8, Gbit/s"), Better::More, rate);
    report.add("  processor time, ms/GB", Better::Less, cost);
    let connections = format!("by {name}: connections");
    let part = ("nat", connections.as_str(), AT_ONCE);
    small(plan, site, proxies, part, report)?;
    on_half(plan, site, proxies, part, report)
}

/// Gbit/s, and milliseconds of a processor for a gigabyte.
fn bulk(work: Work) -> [f64; 2] {
    [work.done.rate * 8.0 / 1e9, work.time.as_secs_f64() * 1e3 / (work.done.count / 1e9)]
}

/// Thousands a second, p99 without and with the machine's standstills, and microseconds of a processor for one.
fn many(work: Work) -> [f64; 4] {
    let Done { count, rate, tail, slice_tail } = work.done;
    [rate / 1e3, slice_tail, tail, work.time.as_secs_f64() * 1e6 / count]
}

/// Measures all of them in each round, another one first each time.
fn take_turns<const N: usize>(
    plan: &Plan,
    proxies: &[Proxy],
    measure: impl Fn(&Proxy) -> Result<Work>,
    figures: impl Fn(Work) -> [f64; N],
) -> Result<[Series; N]> {
    let mut all = std::array::from_fn(|_| Series::default());
    for round in 0..plan.rounds {
        for turn in 0..proxies.len() {
            let index = (round + turn) % proxies.len();
            for (series, figure) in all.iter_mut().zip(figures(measure(&proxies[index])?)) {
                series.of(Kind::ALL[index]).push(figure);
            }
        }
    }
    Ok(all)
}

#[derive(Clone, Copy, Debug)]
enum Better {
    More,
    Less,
}

/// What was measured of each.
#[derive(Default)]
struct Series([Vec<f64>; Kind::ALL.len()]);

impl Series {
    fn of(&mut self, kind: Kind) -> &mut Vec<f64> {
        &mut self.0[kind as usize]
    }

    /// With the ratio of the medians, Egret's to that of the better of the others.
    fn print(self, name: &str, better: Better) {
        let [egret, haproxy, nginx] = self.0.map(Figures::of);
        let (best, target) = match better {
            Better::More => (haproxy.median.max(nginx.median), ">= 1.00"),
            Better::Less => (haproxy.median.min(nginx.median), "<= 1.00"),
        };
        let ratio = egret.median / best;
        let [egret, haproxy, nginx] = [egret, haproxy, nginx].map(|figures| figures.to_string());
        println!("{name:46} {egret:>24} {haproxy:>24} {nginx:>24} {ratio:6.2} {target}");
    }
}

/// What was measured on all sites, in the same order on each.
#[derive(Default)]
struct Report {
    rows: Vec<Row>,
    /// The row that the next of this site is of.
    next: usize,
}

enum Row {
    Heading(&'static str),
    Measured(String, Better, Series),
}

impl Report {
    fn add(&mut self, name: impl Into<String>, better: Better, measured: Series) {
        match self.rows.get_mut(self.next) {
            Some(Row::Measured(_, _, all)) => {
                for (all, more) in all.0.iter_mut().zip(measured.0) {
                    all.extend(more);
                }
            }
            _ => self.rows.push(Row::Measured(name.into(), better, measured)),
        }
        self.next += 1;
    }

    fn add_heading(&mut self, heading: &'static str) {
        if self.next == self.rows.len() {
            self.rows.push(Row::Heading(heading));
        }
        self.next += 1;
    }

    fn print(self) {
        println!("{:46} {:>24} {:>24} {:>24} {:>6} {:>7}", "", "Egret", "HAProxy", "nginx", "ratio", "target");
        for row in self.rows {
            match row {
                Row::Heading(heading) => println!("\n{heading}"),
                Row::Measured(name, better, measured) => measured.print(&name, better),
            }
        }
    }
}

/// What is measured, its name, and how many connections there are at a time.
type Part<'a> = (&'static str, &'a str, usize);

const CONNECTIONS: Part = ("connections", "new connections", AT_ONCE);
const REQUESTS: Part = ("requests", "requests", 64);
const AT_ONCE: usize = 64;
const WINDOW: Duration = Duration::from_millis(200);
/// Connections that are held. Some systems let no process have more than 20,000 descriptors, of which Egret gives three
/// quarters to connections, two to each.
const IDLE: usize = 7_400;
