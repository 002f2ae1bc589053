//! Frames of many flows, made and counted by the lab's BPF programs at the router's end of the NAT host's link.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, maps::Map};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use super::lab::{Failure, Host, Lab, NAT, PROGRAMS, Result};
use super::process;

/// The processor of whatever makes and takes the traffic.
pub const OTHERS_PROCESSOR: usize = 0;

/// The frames of one round: one for each flow, or many.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    pub way: Way,
    pub kind: Kind,
    /// The first flow, and how many there are, as a power of two.
    pub first_flow: u64,
    pub flow_bits: u32,
}

/// Who opens flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// Internal endpoints, to remotes.
    Internal,
    /// Remotes, to [`FORWARDED`].
    Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From internal endpoints to remotes.
    Out,
    /// From remotes to the external address.
    Back,
}

impl Way {
    pub fn opposite(self) -> Self {
        match self {
            Self::Out => Self::Back,
            Self::Back => Self::Out,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Frames of 64 bytes, the checksum counted.
    Udp,
    /// Flags, sequence and acknowledgement number, bytes of payload.
    Tcp(u8, u32, u32, u16),
}

/// How many frames may be sent, and how fast.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// No more on their way than the links have room for.
    Careful,
    /// As fast as can be.
    Flood,
    /// One at a time, so many apart.
    Every(Duration),
}

/// What has come out of the NAT host, in frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub out: u64,
    pub back: u64,
    /// Resets, errors, and what was not translated.
    pub other: u64,
}

impl Seen {
    pub fn translated(self) -> u64 {
        self.out + self.back
    }
}

/// The generator and the sink of one lab.
pub struct Generator {
    programs: Ebpf,
    plan: Array<MapData, [u64; FIELDS]>,
    seen: Array<MapData, u64>,
    measured: ProgramArray<MapData>,
    router: Host,
    opener: Opener,
    interface: u64,
    to_mac: u64,
    from_mac: u64,
}

impl Generator {
    /// Puts the sink in the place of the lab's own program.
    pub fn new(lab: &Lab, opener: Opener) -> Result<Self> {
        let router = lab.router().clone();
        let mut programs = Ebpf::load_file(PROGRAMS)?;
        let mut taken = |name: &str| -> Result<Map> {
            programs.take_map(name).ok_or_else(|| Failure::new(format!("no map {name} in {PROGRAMS}")))
        };
        let (plan, seen) = (Array::try_from(taken("PLAN")?)?, Array::try_from(taken("SEEN")?)?);
        let measured = ProgramArray::try_from(taken("MEASURED")?)?;
        for name in ["generate", "sink", "again", "pass"] {
            program(&mut programs, name)?.load()?;
        }
        router.run("ip link set nat xdpdrv off")?;
        within(&router, || -> Result {
            // Nothing ever comes by `lo`. But a program that is attached anywhere can be run without the kernel
            // building its XDP dispatcher anew, for which it would wait until every processor has passed through it:
            // tens of milliseconds in each call.
            program(&mut programs, "generate")?.attach("lo", XdpMode::Skb)?;
            program(&mut programs, "sink")?.attach("nat", XdpMode::Driver)?;
            Ok(())
        })?;
        let to_mac = mac(lab.nat(), "ens5")?;
        let from_mac = mac(&router, "nat")?;
        let interface = router.run("cat /sys/class/net/nat/ifindex")?.trim().parse()?;
        Ok(Self { programs, plan, seen, measured, router, opener, interface, to_mac, from_mac })
    }

    pub fn seen(&self) -> Result<Seen> {
        let at = |index| self.seen.get(&index, 0);
        Ok(Seen { out: at(0)?, back: at(1)?, other: at(2)? })
    }

    /// Sends one frame of each flow, and waits for what comes of them; tells how many were translated.
    pub fn sweep(&mut self, frames: Frames) -> Result<u64> {
        let before = self.seen()?;
        self.send(frames, 1 << frames.flow_bits, Pace::Careful, SWEEP_DEADLINE)?;
        let (mut last, mut since) = (self.seen()?, Instant::now());
        let all = before.translated() + (1 << frames.flow_bits);
        while last.translated() < all && since.elapsed() < PATIENCE {
            thread::yield_now();
            let now = self.seen()?;
            if now.translated() > last.translated() {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(last.translated() - before.translated())
    }

    /// Sends `count` frames, but no longer than `time`; tells how many it has sent.
    pub fn send(&mut self, frames: Frames, count: u64, pace: Pace, time: Duration) -> Result<u64> {
        // Numbers go on from what was seen, so that their difference is what is on its way.
        let already = self.seen()?.translated();
        let mut plan = self.plan_of(frames, pace, already..already + count)?;
        self.plan.set(0, plan, 0)?;
        let frame = room_for(&plan)?;
        let Self { programs, plan: shared, seen, router, .. } = self;
        let program = program(programs, "generate")?;
        within(router, || -> Result {
            process::pin(Pid::from_raw(0), OTHERS_PROCESSOR)?;
            let end = Instant::now() + time;
            let (mut stuck_at, mut stuck_since) = (already, Instant::now());
            while Instant::now() < end && plan[NEXT] < already + count {
                program.test_run(TestRunOptions {
                    data_in: Some(&frame),
                    repeat: FRAMES_AT_ONCE,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::default()
                })?;
                plan = shared.get(&0, 0)?;
                let progress = plan[NEXT] + seen.get(&0, 0)? + seen.get(&1, 0)?;
                if progress != stuck_at {
                    (stuck_at, stuck_since) = (progress, Instant::now());
                } else if stuck_since.elapsed() > PATIENCE {
                    // What is on its way no longer comes.
                    plan[GIVEN_UP] = plan[NEXT] - seen.get(&0, 0)? - seen.get(&1, 0)?;
                    shared.set(0, plan, 0)?;
                }
            }
            Ok(())
        })?;
        Ok(plan[NEXT] - already)
    }

    /// What a program takes for a frame that it sends back by the interface of `host` that it is given as coming in
    /// by, hot: many times the same one.
    pub fn time_alone(
        &mut self,
        frames: Frames,
        measured: &ProgramFd,
        host: &Host,
        interface: u32,
    ) -> Result<Duration> {
        let idle = program(&mut self.programs, "pass")?.fd()?.try_clone()?;
        let plan = self.plan_of(frames, Pace::Flood, 0..0)?;
        self.plan.set(0, plan, 0)?;
        let frame = room_for(&plan)?;
        // struct xdp_md of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(frame.len())?, 0, interface, 0, 0].map(u32::to_ne_bytes).concat();
        let mut time = |of: &ProgramFd, action: u32| -> Result<Duration> {
            self.measured.set(0, of, 0)?;
            let again = program(&mut self.programs, "again")?;
            let ran = within(host, || -> Result<_> {
                process::pin(Pid::from_raw(0), OTHERS_PROCESSOR)?;
                Ok(again.test_run(TestRunOptions {
                    data_in: Some(&frame),
                    ctx_in: Some(&context),
                    repeat: ALONE,
                    ..TestRunOptions::default()
                })?)
            })?;
            if ran.return_value != action {
                return Err(Failure::new(format!("the program alone gave {}, not {action}", ran.return_value)));
            }
            Ok(ran.duration)
        };
        Ok(time(measured, XDP_TX)?.saturating_sub(time(&idle, XDP_PASS)?))
    }

    /// A plan for the frames of these numbers, in the order of `struct plan` in `lab.bpf.c`.
    fn plan_of(&self, frames: Frames, pace: Pace, numbers: Range<u64>) -> Result<[u64; FIELDS]> {
        let (flags, sequence, acknowledged, header, payload) = match frames.kind {
            Kind::Udp => (0, 0, 0, UDP_HEADER, UDP_PAYLOAD),
            Kind::Tcp(flags, sequence, acknowledged, payload) => {
                (flags, sequence, acknowledged, TCP_HEADER, usize::from(payload))
            }
        };
        let (window, interval) = match pace {
            Pace::Careful => (WINDOW, 0),
            Pace::Flood => (0, 0),
            Pace::Every(interval) => (0, u64::try_from(interval.as_nanos())?),
        };
        Ok([
            numbers.start,
            numbers.end,
            0,
            window,
            0,
            interval,
            frames.first_flow,
            u64::from(frames.flow_bits),
            self.interface,
            self.to_mac,
            self.from_mac,
            u64::from(frames.way == Way::Back),
            (IPV4_HEADER + header + payload) as u64,
            u64::from(flags),
            u64::from(sequence),
            u64::from(acknowledged),
            if self.opener == Opener::Remote { u64::from(FORWARDED.port()) } else { 0 },
        ])
    }
}

/// A frame to be written over.
fn room_for(plan: &[u64; FIELDS]) -> Result<Vec<u8>> {
    Ok(vec![0; ETHERNET_HEADER + usize::try_from(plan[LENGTH])?])
}

/// Runs `work` in the host's network namespace, on a thread of its own.
pub fn within<T: Send>(host: &Host, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let found = programs.program_mut(name);
    Ok(found.ok_or_else(|| Failure::new(format!("no program {name} in {PROGRAMS}")))?.try_into()?)
}

/// An interface's Ethernet address, as the program takes it.
fn mac(host: &Host, interface: &str) -> Result<u64> {
    let text = host.run(&format!("cat /sys/class/net/{interface}/address"))?;
    let mut bytes = [0; 8];
    for (byte, digits) in bytes.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// What the NAT host's neighbour is to it, so that no frame waits for ARP.
pub fn make_neighbours_permanent(lab: &Lab) -> Result {
    let router = lab.router().run("cat /sys/class/net/nat/address")?;
    let host = lab.nat().run("cat /sys/class/net/ens5/address")?;
    let (router, host) = (router.trim(), host.trim());
    lab.nat().run(&format!("ip neigh replace 10.0.0.1 lladdr {router} dev ens5 nud permanent"))?;
    lab.router().run(&format!("ip neigh replace {NAT} lladdr {host} dev nat nud permanent"))?;
    Ok(())
}

/// The internal endpoint of forwarded flows, with the port that leads to it: `TARGET` in `lab.bpf.c`.
pub const FORWARDED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 128, 1), 5000);

/// Of the plan, as in `lab.bpf.c`.
const FIELDS: usize = 17;
const NEXT: usize = 0;
const GIVEN_UP: usize = 2;
const LENGTH: usize = 12;

// linux/bpf.h.
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// Runs of a program alone.
const ALONE: u32 = 1 << 20;

const ETHERNET_HEADER: usize = 14;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// A frame of 64 bytes with its checksum, which is not part of it here.
const UDP_PAYLOAD: usize = 60 - ETHERNET_HEADER - IPV4_HEADER - UDP_HEADER;
const TCP_HEADER: usize = 32;

/// A little less than a veth's ring holds.
const WINDOW: u64 = 240;
/// In one call, among them those that the program does not send: a few milliseconds.
const FRAMES_AT_ONCE: u32 = 1 << 15;
const BATCH: u32 = 64;
/// For frames that are on their way.
const PATIENCE: Duration = Duration::from_millis(50);
const SWEEP_DEADLINE: Duration = Duration::from_secs(60);
