//! A lab whose NAT host translates by one of the two, with what costs it processor time known and in its place.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use aya::programs::loaded_programs;
use nix::unistd::Pid;
use serde_json::Value;

use super::DATAPATH;
use super::figures::Translator;
use super::generator::{
    FORWARDED, Frames, Generator, OTHERS_PROCESSOR, Opener, Pace, make_neighbours_permanent, within,
};
use super::lab::{Egret, Failure, Gateway, Lab, NAT, Options, PROGRAMS, Result, kernel_nat};
use super::process;

/// The processor of the NAT host.
const ITS_PROCESSOR: usize = 1;
/// A veth's ring has room for what comes in this time.
const FAR_END_INTERVAL: Duration = Duration::from_micros(50);

/// See [`NatHost::set_far_end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    Woken,
    Polling,
}

pub struct NatHost {
    pub lab: Lab,
    pub generator: Generator,
    egret: Option<Egret>,
    /// The thread that polls its interface.
    napi: Pid,
    /// Who is to be found healthy at [`FORWARDED`], if that is forwarded.
    _target: Option<TcpListener>,
}

/// What the NAT host did in some time.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub processor_time: Duration,
    pub elapsed: Duration,
    pub offered: u64,
    pub translated: u64,
}

impl Work {
    pub fn nanos_per_packet(self) -> f64 {
        self.processor_time.as_secs_f64() * 1e9 / self.translated as f64
    }

    pub fn translated_per_second(self) -> f64 {
        self.translated as f64 / self.elapsed.as_secs_f64()
    }

    pub fn offered_per_second(self) -> f64 {
        self.offered as f64 / self.elapsed.as_secs_f64()
    }
}

impl NatHost {
    /// With room for `sessions`.
    pub fn new(translator: Translator, opener: Opener, sessions: u64) -> Result<Self> {
        let mut host = Self::idle(opener)?;
        let nat = host.lab.nat();
        match translator {
            Translator::Kernel => {
                kernel_nat(&host.lab)?;
                if opener == Opener::Remote {
                    nat.nft(&format!(
                        "table ip forward {{\n chain in {{\n type nat hook prerouting priority dstnat\n\
                         ip daddr {NAT} tcp dport {} dnat to {FORWARDED}\n }}\n}}\n",
                        FORWARDED.port()
                    ))?;
                }
            }
            Translator::Egret => {
                // What comes from outside may take half of them.
                let halves = if opener == Opener::Remote { 2 } else { 1 };
                let sessions = halves * (sessions + sessions / 8 + 1000);
                let limit = format!("[nat.limits]\nsessions = {sessions}\n");
                let config = match opener {
                    Opener::Internal => limit,
                    Opener::Remote => format!(
                        "{limit}sessions_per_address = {sessions}\n\
                         [[forward]]\nname = \"bench\"\nmode = \"nat\"\nlisten = \"{NAT}:{}\"\n\
                         targets = [\"{FORWARDED}\"]\nconnection_limit = {sessions}\n",
                        FORWARDED.port()
                    ),
                };
                let egret = Egret::start(nat, &host.lab.config(&config))?;
                let id = egret.process.id();
                nat.run(&format!("taskset --all-tasks --cpu-list --pid {ITS_PROCESSOR} {id}"))?;
                if opener == Opener::Remote {
                    let healthy = |status: &Value| status["listeners"][0]["targets"][0]["state"] == "healthy";
                    nat.wait_for("a healthy target", || Ok(healthy(&egret.status()?)))?;
                }
                host.egret = Some(egret);
            }
        }
        Ok(host)
    }

    /// Translates by a rule, without any table: see `bare` in `lab.bpf.c`.
    pub fn bare() -> Result<Self> {
        let host = Self::idle(Opener::Internal)?;
        host.lab.nat().run(&format!("ip link set ens5 xdpdrv obj {PROGRAMS} program bare"))?;
        Ok(host)
    }

    /// Nothing translates yet.
    fn idle(opener: Opener) -> Result<Self> {
        let options =
            Options { datapath: DATAPATH, gateway: Gateway::Routed, quiet: true, ..Options::default() };
        let lab = Lab::new(options)?;
        make_neighbours_permanent(&lab)?;
        // A network card has it on; on veth it also makes the kernel take frames by NAPI, as a card does.
        lab.nat().run("ethtool -K ens5 gro on")?;
        let target = match opener {
            Opener::Internal => None,
            Opener::Remote => {
                lab.router().run(&format!("ip address add {}/32 dev lo", FORWARDED.ip()))?;
                Some(within(lab.router(), || Ok(TcpListener::bind(FORWARDED)?))?)
            }
        };
        let generator = Generator::new(&lab, opener)?;
        let napi = process::threaded(lab.nat(), "ens5")?;
        process::pin(napi, ITS_PROCESSOR)?;
        // As a softirq would: before any program.
        lab.nat().run(&format!("chrt --fifo --pid 1 {napi}"))?;
        let sink = process::threaded(lab.router(), "nat")?;
        process::pin(sink, OTHERS_PROCESSOR)?;
        // The generator, on the same processor, must not keep it from making room for what comes.
        lab.router().run(&format!("chrt --fifo --pid 1 {sink}"))?;
        Ok(Self { lab, generator, egret: None, napi, _target: target })
    }

    /// Sends frames of established flows for some time, and tells what the NAT host did with them.
    ///
    /// # Errors
    /// If Egret's fast path has left some to the engine: it is not what was measured then.
    pub fn work(&mut self, frames: Frames, pace: Pace, time: Duration) -> Result<Work> {
        let before = self.fast_path()?;
        let work = self.measured(|generator| generator.send(frames, u64::from(u32::MAX), pace, time))?;
        if let (Some(before), Some(after)) = (before, self.fast_path()?) {
            let (hits, misses) = (after.translated - before.translated, after.missed - before.missed);
            if misses * 1000 > hits {
                return Err(Failure::new(format!(
                    "the fast path has left {misses} packets of {} to the engine",
                    hits + misses
                )));
            }
        }
        Ok(work)
    }

    /// Whether Egret's fast path carries this many sessions, both ways; of the kernel there is nothing to be asked.
    pub fn has_settled(&self, sessions: u64) -> Result<bool> {
        Ok(self.fast_path()?.is_none_or(|fast_path| fast_path.flows == 2 * sessions))
    }

    fn fast_path(&self) -> Result<Option<FastPath>> {
        self.status()?.map(|status| FastPath::of(&status)).transpose()
    }

    /// How the far end of the link learns of the frames that the NAT host sends: by looking every so often, as a network
    /// card does, or by being woken, as is veth's way: a processor has then to interrupt another, which in a virtual
    /// machine costs as much as hundreds of instructions, and for the kernel, which sends one by one, each time.
    pub fn set_far_end(&self, far_end: FarEnd) -> Result {
        let (nanos, idle_polls) = match far_end {
            FarEnd::Woken => (0, 0),
            FarEnd::Polling => (FAR_END_INTERVAL.as_nanos(), 10),
        };
        self.lab.router().shell(&format!(
            "cd /sys/class/net/nat && echo {nanos} >gro_flush_timeout && echo {idle_polls} >napi_defer_hard_irqs"
        ))?;
        Ok(())
    }

    /// Memory in bytes: the daemon's, and that of the BPF maps that it holds.
    pub fn memory(&self) -> Result<[u64; 2]> {
        let Some(egret) = &self.egret else { return Ok([0; 2]) };
        Ok([process::resident_bytes(egret.process.id())?, process::map_bytes(egret.process.id())?])
    }

    /// What the daemon takes of a processor while nothing comes, of 1.
    pub fn idle_use(&self, time: Duration) -> Result<f64> {
        let Some(egret) = &self.egret else { return Ok(0.0) };
        let (used, start) = (process::run_time(egret.process.id())?, Instant::now());
        std::thread::sleep(time);
        let used = process::run_time(egret.process.id())?.saturating_sub(used);
        Ok(used.as_secs_f64() / start.elapsed().as_secs_f64())
    }

    /// What Egret's program takes for one of these frames by itself.
    pub fn program_alone(&mut self, frames: Frames) -> Result<Duration> {
        let link: Value = serde_json::from_str(&self.lab.nat().run("ip -j link show ens5")?)?;
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let (id, interface) = (number(&link[0]["xdp"]["prog"]["id"]), number(&link[0]["ifindex"]));
        let mut loaded = loaded_programs().filter_map(std::result::Result::ok);
        match (loaded.find(|program| Some(program.id()) == id), interface) {
            (Some(program), Some(interface)) => {
                self.generator.time_alone(frames, &program.fd()?, self.lab.nat(), interface)
            }
            _ => Err(Failure::new(format!("no program on {link}"))),
        }
    }

    /// Measures what the NAT host does while frames are sent, whose number is given back.
    pub fn measured(&mut self, send: impl FnOnce(&mut Generator) -> Result<u64>) -> Result<Work> {
        let (used, seen, start) = (self.used()?, self.generator.seen()?, Instant::now());
        let offered = send(&mut self.generator)?;
        let (after, elapsed) = (self.generator.seen()?, start.elapsed());
        let processor_time = self.used()?.saturating_sub(used);
        let translated = after.translated() - seen.translated();
        let other = after.other - seen.other;
        if other > translated / 1000 {
            return Err(Failure::new(format!(
                "{other} packets came out that were none of those sent, translated"
            )));
        }
        Ok(Work { processor_time, elapsed, offered, translated })
    }

    /// What Egret says of itself, if it is the one.
    pub fn status(&self) -> Result<Option<Value>> {
        self.egret.as_ref().map(Egret::status).transpose()
    }

    /// Processor time of all that translates: the interface's thread, and Egret.
    fn used(&self) -> Result<Duration> {
        let daemon = match &self.egret {
            Some(egret) => process::run_time(egret.process.id())?,
            None => Duration::ZERO,
        };
        Ok(process::run_time(self.napi.as_raw().unsigned_abs())? + daemon)
    }
}

/// What Egret's fast path says of itself.
struct FastPath {
    flows: u64,
    /// Packets.
    translated: u64,
    missed: u64,
}

impl FastPath {
    fn of(status: &Value) -> Result<Self> {
        let report = &status["fast_path"];
        let sum = |numbers: &Value, of: fn(&Value) -> Option<u64>| {
            numbers.as_object().and_then(|numbers| numbers.values().map(of).sum::<Option<u64>>())
        };
        let read = || {
            let translated = sum(&report["translated"], |traffic| traffic["packets"].as_u64())?;
            let missed = sum(&report["misses"], Value::as_u64)?;
            Some(Self { flows: report["flows"].as_u64()?, translated, missed })
        };
        read().ok_or_else(|| Failure::new(format!("no fast path in {status}")))
    }
}

/// Room for this many connections in the kernel's tracking, whose limits are the machine's and not a namespace's,
/// until it is dropped or this process ends in whatever way.
pub struct TrackingRoom(#[allow(dead_code, reason = "its end is what counts")] std::process::Child);

impl TrackingRoom {
    pub fn for_connections(count: u64) -> Result<Self> {
        let key = |name: &str| format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        let current = |name: &str| -> Result<u64> { Ok(fs::read_to_string(key(name))?.trim().parse()?) };
        let (max, buckets) = (current("max")?, current("buckets")?);
        let (max_path, buckets_path) = (key("max"), key("buckets"));
        let script = format!(
            "trap '' INT TERM; echo {} >{buckets_path}; echo {} >{max_path}; echo set; cat >/dev/null; \
             echo {max} >{max_path}; echo {buckets} >{buckets_path}",
            buckets.max(count),
            max.max(count + count / 8),
        );
        let mut child = std::process::Command::new("sh")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut said = [0; 4];
        if let Some(stdout) = &mut child.stdout {
            std::io::Read::read_exact(stdout, &mut said)?;
        }
        Ok(Self(child))
    }
}

impl Drop for TrackingRoom {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
