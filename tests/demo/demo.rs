//! `make demo`: a small VPC in network namespaces, Egret on its NAT host, and programs that everybody knows.
//!
//! Each step is one line; the exit status is 0 only if all of them held. With `KEEP=1` in the environment the
//! whole thing stays, to be tried by hand; `--clean` removes it.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]

#[path = "../lab/mod.rs"]
mod lab;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use lab::{Asking, Dns, Egret, Failure, INTERNET, Iperf, Lab, NAT, Options, PUBLIC, Result, Web, answers};

fn main() -> ExitCode {
    let outcome = if std::env::args().any(|argument| argument == "--clean") {
        lab::remove_kept().map(|any| {
            println!("{}", if any { "removed the demo" } else { "there was no demo to remove" });
            true
        })
    } else {
        demo(std::env::var("KEEP").is_ok_and(|keep| !keep.is_empty() && keep != "0"))
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn demo(keep: bool) -> Result<bool> {
    let start = Instant::now();
    println!("Egret demo: private clients {} and {}", Lab::client_address(1), Lab::client_address(2));
    println!("  client1, client2 -- VPC router -- NAT host with one interface ({NAT}), where Egret runs");
    println!("                          |");
    println!("                   internet gateway ({NAT} is {PUBLIC}) -- internet host {INTERNET}\n");

    let lab = Lab::new(Options { keep, quiet: true, ..Options::default() })?;
    let outcome = run(&lab);
    if !matches!(outcome, Ok((true, _))) {
        println!("\nWhat was run, and what came of it:\n{}", lab.journal());
    }
    let (held, running) = outcome?;
    let verdict = if held { "everything held" } else { "NOT everything held" };
    println!("\n{verdict}, in {:.0?}", start.elapsed());
    if keep {
        running.keep(&lab)?;
    }
    Ok(held)
}

/// What runs in the lab; ends when dropped.
struct Running {
    egret: Egret,
    web: Web,
    dns: Dns,
    /// Of the API.
    servers: [Web; 2],
}

impl Running {
    fn keep(self, lab: &Lab) -> Result {
        Iperf::start(lab.internet())?.process.detach();
        let client = &lab.client(1).namespace;
        println!("\nIt goes on running. To try:");
        println!("  ip netns exec {client} curl http://{INTERNET}/whoami");
        println!("  ip netns exec {client} dig @{INTERNET} www.example");
        println!("  ip netns exec {client} ping {INTERNET}");
        println!("  ip netns exec {client} iperf3 --client {INTERNET}");
        println!("  ip netns exec {} curl http://{PUBLIC}:5000/   # the API", lab.internet().namespace);
        println!("  ip netns exec {client} bash   # a shell on a private client");
        println!("  ip netns exec {} tcpdump -ni ens5   # what the internet sees", lab.internet().namespace);
        println!("  {}", self.egret.command_line("sessions"));
        println!("  {}", self.egret.command_line("status"));
        println!("Namespaces: client1, client2, router, nat, internet, each with egret-demo- before it.");
        println!("`make demo-clean` removes all of it.");
        self.egret.process.detach();
        self.web.process.detach();
        self.dns.process.detach();
        self.servers.into_iter().for_each(|server| server.process.detach());
        Ok(())
    }
}

fn run(lab: &Lab) -> Result<(bool, Running)> {
    let mut running = Running {
        web: Web::start(lab.internet(), 80)?,
        dns: Dns::start(lab.internet())?,
        egret: Egret::start(lab.nat(), &lab.config(&api_listener()))?,
        servers: [server(lab, 1)?, server(lab, 2)?],
    };
    let mut report = Report { held: true };
    report.step("web page", || web_page(lab, &running.web));
    report.step("large file", || large_file(lab, &running.web));
    report.step("DNS over UDP", || name(lab, "+notcp"));
    report.step("DNS over TCP", || name(lab, "+tcp"));
    report.step("ping", || ping(lab));
    report.step("traceroute", || traceroute(lab));
    report.step("iperf3, upload", || throughput(lab, ""));
    report.step("iperf3, download", || throughput(lab, "--reverse"));
    report.step("API on port 5000", || api(lab, &running.egret));
    report.step("a server dies", || server_dies(lab, &running.egret, &mut running.servers[1]));
    report.step("leaks", || {
        let leaks = lab.leaks()?;
        if leaks > 0 {
            return Err(Failure::new(format!(
                "{leaks} packets with a private source came out to the internet"
            )));
        }
        Ok("0 packets with a private source address came out to the internet".to_owned())
    });
    report.step("session table", || sessions(&running.egret));
    report.step("counters", || counters(&running.egret));
    Ok((report.held, running))
}

struct Report {
    held: bool,
}

impl Report {
    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<String>) {
        let (mark, seen) = match step() {
            Ok(seen) => ("\u{2713}", seen),
            Err(Failure(message)) => {
                self.held = false;
                ("\u{2717}", message)
            }
        };
        println!(" {mark} {name:<17} {seen}");
    }
}

fn web_page(lab: &Lab, web: &Web) -> Result<String> {
    for client in [1, 2] {
        let page = lab.client(client).run(&format!("curl -sS --max-time 5 http://{INTERNET}/"))?;
        if !page.contains("<p>A page.</p>") {
            return Err(Failure::new(format!("client{client} got `{page}`")));
        }
    }
    // It writes its log when the page has gone.
    lab.internet().wait_for("the server's log", || Ok(web.clients().len() >= 2))?;
    let seen = web.clients();
    if seen != [PUBLIC.to_string(), PUBLIC.to_string()] {
        return Err(Failure::new(format!("the server saw {seen:?}")));
    }
    Ok(format!("client1 and client2 got it; the server saw both as {PUBLIC}"))
}

fn large_file(lab: &Lab, web: &Web) -> Result<String> {
    web.put("large", LARGE_FILE_MIB << 20)?;
    let start = Instant::now();
    let received =
        lab.client(1).shell(&format!("curl -sS --max-time 20 http://{INTERNET}/large | sha256sum"))?;
    let elapsed = start.elapsed();
    let sent = lab.internet().run(&format!("curl -sS --output check http://{INTERNET}/large"));
    let sent = sent.and_then(|_| lab.internet().shell("sha256sum <check; rm check"))?;
    if received != sent {
        return Err(Failure::new(format!("sha256 {} came as {}", sent.trim(), received.trim())));
    }
    Ok(format!("{LARGE_FILE_MIB} MiB in {elapsed:.1?}, sha256 {received:.16}... as at the server"))
}

fn name(lab: &Lab, transport: &str) -> Result<String> {
    let answer =
        lab.client(2).run(&format!("dig {transport} +short +tries=1 +time=5 @{INTERNET} www.example"))?;
    if answer.trim() != INTERNET.to_string() {
        return Err(Failure::new(format!("the answer was `{}`", answer.trim())));
    }
    Ok(format!("client2 was told that www.example is {}", answer.trim()))
}

fn ping(lab: &Lab) -> Result<String> {
    let printed = lab.client(1).run(&format!("ping -c 3 -i 0.2 -W 2 {INTERNET}"))?;
    if !printed.contains(" 0% packet loss") {
        return Err(Failure(printed));
    }
    let times = printed.lines().find_map(|line| line.split(" = ").nth(1)).unwrap_or_default();
    Ok(format!("3 of 3 came back; least/mean/most/deviation {times}"))
}

fn traceroute(lab: &Lab) -> Result<String> {
    let printed = lab.client(1).run(&format!("traceroute -I -n -q 1 -w 2 {INTERNET}"))?;
    let hops: Vec<&str> = printed.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    if hops != ["10.0.1.1", &NAT.to_string(), "10.0.0.1", &INTERNET.to_string()] {
        return Err(Failure::new(format!("the path was {hops:?}")));
    }
    Ok(format!("{} (the second is Egret)", hops.join(" -> ")))
}

fn throughput(lab: &Lab, direction: &str) -> Result<String> {
    let rate = Iperf::measure(lab.client(1), lab.internet(), INTERNET, &format!("--time 3 {direction}"))?;
    if rate < 1e6 {
        return Err(Failure::new(format!("only {rate:.0} bit/s")));
    }
    Ok(format!("{:.1} Gbit/s, one TCP connection, {} processors for all hosts", rate / 1e9, processors()))
}

/// Both private servers at a port of the public address, for the world.
fn api_listener() -> String {
    format!(
        "\n[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\nalgorithm = \"round-robin\"\n\
         targets = [\"{}:5000\", \"{}:5000\"]\n\
         [forward.health]\ntype = \"http\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\nhealthy_threshold = 2\n",
        Lab::client_address(1),
        Lab::client_address(2)
    )
}

/// A private server of the API, whose page says which one it is.
fn server(lab: &Lab, number: u8) -> Result<Web> {
    let web = Web::start(lab.client(number), 5000)?;
    web.write("index.html", &format!("server {number}\n"))?;
    Ok(web)
}

fn wait_states(lab: &Lab, egret: &Egret, wanted: [&str; 2]) -> Result {
    lab.nat().wait_for("the servers' states", || {
        let targets = egret.status()?["listeners"][0]["targets"].clone();
        Ok(targets[0]["state"] == wanted[0] && targets[1]["state"] == wanted[1])
    })
}

fn api(lab: &Lab, egret: &Egret) -> Result<String> {
    wait_states(lab, egret, ["healthy", "healthy"])?;
    let ask = format!("curl -sS --max-time 5 http://{PUBLIC}:5000/");
    let mut pages = [lab.internet().run(&ask)?, lab.internet().run(&ask)?];
    pages.sort();
    if pages != ["server 1\n", "server 2\n"] {
        return Err(Failure::new(format!("the pages were {pages:?}")));
    }
    Ok(format!("somebody on the internet asked {PUBLIC}:5000, and either private server answered once"))
}

fn server_dies(lab: &Lab, egret: &Egret, victim: &mut Web) -> Result<String> {
    let asking = [Asking::start(lab, 5000)?, Asking::start(lab, 5000)?];
    std::thread::sleep(LOAD);
    let killed = Instant::now();
    victim.process.signal(Signal::SIGKILL)?;
    wait_states(lab, egret, ["healthy", "unhealthy"])?;
    let marked = Instant::now();
    std::thread::sleep(LOAD);
    *victim = server(lab, 2)?;
    wait_states(lab, egret, ["healthy", "healthy"])?;
    std::thread::sleep(LOAD);
    let mut all = Vec::new();
    for asking in asking {
        all.extend(asking.stop()?);
    }
    let count = all.len();
    let failed_before = all.iter().filter(|asked| asked.begun < marked && asked.answer.is_err()).count();
    let after = answers(all.into_iter().filter(|asked| asked.begun >= marked))?;
    if !after.iter().any(|answer| answer == "server 2") {
        return Err(Failure::new("server 2 was not asked again after it had come back"));
    }
    Ok(format!(
        "server 2 of 2 was killed under load, and marked after {:.1?}; {failed_before} of {count} requests failed\n     \
         before that, none of {} after it",
        marked - killed,
        after.len()
    ))
}

fn sessions(egret: &Egret) -> Result<String> {
    let shown = egret.command(&["sessions"])?.success()?.stdout;
    let all = egret.sessions("")?;
    let mut text = format!("{} sessions, `egret sessions` begins with:", all.len());
    for line in shown.lines().take(SESSIONS_SHOWN + 1) {
        text.push_str("\n     ");
        text.push_str(line);
    }
    if all.is_empty() { Err(Failure(text)) } else { Ok(text) }
}

fn counters(egret: &Egret) -> Result<String> {
    let status = egret.status()?;
    let traffic = |name: &str| -> Result<String> {
        let number = |what: &str| status["traffic"][name][what].as_f64().filter(|number| *number > 0.0);
        match (number("packets"), number("bytes")) {
            (Some(packets), Some(bytes)) => Ok(format!("{:.2} GB in {packets} packets", bytes / 1e9)),
            _ => Err(Failure::new(format!("nothing counted as {name}: {status}"))),
        }
    };
    let mut text = format!("out {}, in {}", traffic("out_to_external")?, traffic("in_from_external")?);
    let dropped: Vec<String> = status["drops"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(reason, count): (&String, &Value)| format!("{reason} {count}"))
        .collect();
    text.push_str("\n     dropped: ");
    text.push_str(&if dropped.is_empty() { "nothing".to_owned() } else { dropped.join(", ") });
    Ok(text)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

const DATAPATH: lab::Datapath = lab::Datapath::AfPacket;
const LARGE_FILE_MIB: usize = 64;
const SESSIONS_SHOWN: usize = 10;
const LOAD: Duration = Duration::from_millis(700);
