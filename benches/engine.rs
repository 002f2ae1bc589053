//! What the engine costs, on one core: `cargo bench --no-default-features --bench engine`, or with `quick` as an
//! argument for a short run.
//!
//! Every figure is the median of repetitions that are interleaved with those of the others, so that a slow phase
//! of the machine hits all of them alike. It is the thread's own processor time that counts, so that neighbours
//! on a busy machine matter less. The engine's time is virtual; bytes are counted by the allocator.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::expect_used,
    reason = "numbers of a benchmark are small, and what is wrong is to end it"
)]
#![allow(unsafe_code, reason = "a counting allocator and a clock of the thread need it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use egret::nat::{Config, Engine, ExternalAddress, Side, Verdict};
use egret::time::Instant;
use egret::wire::Packet;
use pnet_packet::util;

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged; the counter has no part in it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer comes from `alloc` above, so from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size, Ordering::Relaxed);
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for `dealloc`; the system's allocator moves large blocks without copying them.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The processor time of this thread.
#[derive(Clone, Copy)]
struct Clock(Duration);

impl Clock {
    fn now() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live timespec, which the call only writes to.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        assert_eq!(result, 0, "the clock of the thread");
        Self(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "quick");
    let repetitions = if quick { 3 } else { 11 };
    println!("engine, one core, medians of {repetitions} interleaved repetitions");
    time_packets(repetitions, if quick { 20_000 } else { 200_000 });
    time_opening(repetitions);
    measure_many(100_000);
    measure_many(if quick { 200_000 } else { 1_000_000 });
}

/// Translation on known sessions, with 1, 1,000 and 100,000 of them, in both directions and for TCP and UDP.
fn time_packets(repetitions: usize, packets: u32) {
    let mut cases: Vec<Case> = Vec::new();
    for (sessions, name) in [(1, "1 session"), (1_000, "1,000 sessions"), (100_000, "100,000 sessions")] {
        for tcp in [false, true] {
            for side in [Side::Internal, Side::External] {
                cases.push(Case::new(sessions, name, tcp, side));
            }
        }
    }
    let mut results = vec![Vec::new(); cases.len()];
    for _ in 0..repetitions {
        for (case, results) in cases.iter_mut().zip(&mut results) {
            results.push(case.run(packets));
        }
    }
    for (case, results) in cases.iter().zip(results) {
        let target = if case.sessions == 1 { " (target 150)" } else { "" };
        let protocol = if case.tcp { "tcp" } else { "udp" };
        let direction = if case.side == Side::Internal { "out" } else { "in" };
        report(&format!("translate, {protocol} {direction}, {}", case.name), median(results), target);
    }
}

struct Case {
    sessions: u32,
    name: &'static str,
    tcp: bool,
    side: Side,
    gateway: Gateway,
    /// One packet of each session, as it comes in; in an order that the sessions' memory does not know.
    packets: Vec<[u8; LENGTH]>,
    next: usize,
}

impl Case {
    fn new(sessions: u32, name: &'static str, tcp: bool, side: Side) -> Self {
        let mut gateway = Gateway::new(1);
        let mut packets = Vec::new();
        for number in 0..sessions {
            let opening = packet(internal(number), remote(number), if tcp { Some(0x02) } else { None });
            let external = gateway.open(&opening);
            let (from, to) = match side {
                Side::Internal => (internal(number), remote(number)),
                Side::External => (remote(number), external),
            };
            if tcp {
                gateway.handle(Side::External, &packet(remote(number), external, Some(0x12)));
                gateway.handle(Side::Internal, &packet(internal(number), remote(number), Some(0x10)));
            }
            packets.push(packet(from, to, tcp.then_some(0x10)));
        }
        let mut state = 1_u64;
        for last in (1..packets.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            packets.swap(last, (state >> 33) as usize % (last + 1));
        }
        Self { sessions, name, tcp, side, gateway, packets, next: 0 }
    }

    /// Nanoseconds per packet.
    fn run(&mut self, packets: u32) -> f64 {
        let began = Clock::now();
        for _ in 0..packets {
            self.next = (self.next + 1) % self.packets.len();
            let mut buffer = self.packets[self.next];
            let mut packet = Packet::plain(&mut buffer);
            let verdict = self.gateway.engine.handle_packet(self.gateway.now, self.side, &mut packet);
            assert!(black_box(verdict) == Verdict::Forward);
        }
        per(began.elapsed(), packets)
    }
}

/// Opening sessions while 100,000 others are open.
fn time_opening(repetitions: usize) {
    const OTHERS: u32 = 100_000;
    const NEW: u32 = 20_000;
    let mut udp = Vec::new();
    let mut tcp = Vec::new();
    let mut one_host = Vec::new();
    for _ in 0..repetitions {
        for (results, flags, alone) in
            [(&mut udp, None, false), (&mut tcp, Some(0x02), false), (&mut one_host, None, true)]
        {
            let mut gateway = Gateway::new(4);
            for number in 0..OTHERS {
                gateway.open(&packet(internal(number), remote(number), flags));
            }
            let packets: Vec<_> = (OTHERS..OTHERS + NEW)
                .map(|number| {
                    let from = if alone { internal(0) } else { internal(number) };
                    packet(from, (remote(number).0, 9 + (number % 60_000) as u16), flags)
                })
                .collect();
            let began = Clock::now();
            for mut buffer in packets {
                let mut packet = Packet::plain(&mut buffer);
                let verdict = gateway.engine.handle_packet(gateway.now, Side::Internal, &mut packet);
                assert!(verdict == Verdict::Forward);
                while black_box(gateway.engine.poll_event()).is_some() {}
            }
            results.push(per(began.elapsed(), NEW));
        }
    }
    let target = " (target 1500)";
    report("open, udp, 100,000 others, a new mapping each", median(udp), target);
    report("open, tcp, 100,000 others, a new mapping each", median(tcp), target);
    report("open, udp, 100,000 others, a known mapping", median(one_host), target);
}

/// Memory, expiry, and the longest that any single call takes, with very many sessions.
fn measure_many(sessions: u32) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut gateway = Gateway::new(32);
    let empty = ALLOCATED.load(Ordering::Relaxed);
    let mut longest_open = Duration::ZERO;
    for number in 0..sessions {
        let bytes = packet(internal(number), remote(number), None);
        let began = Clock::now();
        gateway.open(&bytes);
        longest_open = longest_open.max(began.elapsed());
    }
    let full = ALLOCATED.load(Ordering::Relaxed);
    let bytes = (full - empty) as f64 / f64::from(sessions);
    println!("{sessions} sessions, each with a mapping of its own:");
    println!("  {:<52} {bytes:8.1} bytes (target 200)", "memory per session");
    println!("  {:<52} {:8.1} KiB", "memory of an engine without sessions", (empty - before) as f64 / 1024.0);

    let (mut calls, mut longest, mut total) = (0, Duration::ZERO, Duration::ZERO);
    while let Some(deadline) = gateway.engine.poll_timeout() {
        gateway.now = gateway.now.max(deadline);
        let began = Clock::now();
        gateway.engine.handle_timeout(gateway.now);
        let took = began.elapsed();
        (calls, longest, total) = (calls + 1, longest.max(took), total + took);
        while gateway.engine.poll_event().is_some() {}
    }
    assert_eq!(gateway.engine.counters().sessions, 0);
    report("expiry per session", per(total, sessions), "");
    println!("  {:<52} {:8.1} us", "longest opening", longest_open.as_secs_f64() * 1e6);
    println!("  {:<52} {:8.1} us in {calls} calls", "longest timeout call", longest.as_secs_f64() * 1e6);
}

struct Gateway {
    engine: Engine,
    now: Instant,
}

impl Gateway {
    fn new(addresses: u8) -> Self {
        let address = |last| ExternalAddress::from(Ipv4Addr::new(192, 0, 2, last));
        let config = Config {
            internal: vec!["10.0.0.0/8".parse().expect("a prefix")],
            external_addresses: (1..=addresses).map(address).collect(),
            ..Config::default()
        };
        let engine = Engine::new(config, [7; 16]).expect("a usable configuration");
        Self { engine, now: Instant::from_millis(1_000) }
    }

    /// Opens a session and gives its external endpoint.
    fn open(&mut self, bytes: &[u8; LENGTH]) -> (Ipv4Addr, u16) {
        let sent = self.handle(Side::Internal, bytes);
        let source = Ipv4Addr::from([sent[12], sent[13], sent[14], sent[15]]);
        (source, u16::from_be_bytes([sent[20], sent[21]]))
    }

    fn handle(&mut self, side: Side, bytes: &[u8; LENGTH]) -> [u8; LENGTH] {
        let mut buffer = *bytes;
        let mut packet = Packet::plain(&mut buffer);
        let verdict = self.engine.handle_packet(self.now, side, &mut packet);
        assert!(verdict == Verdict::Forward, "{verdict:?}");
        while self.engine.poll_event().is_some() {}
        buffer
    }
}

/// 256 ports on each internal address.
fn internal(number: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0x0a00_0000 + (number >> 8)), 10_000 + (number & 0xff) as u16)
}

fn remote(number: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0xc633_6400 + number % 251), 1 + (number % 60_000) as u16)
}

/// UDP with 12 bytes of payload, or TCP with these flags: 40 bytes either way.
fn packet(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), flags: Option<u8>) -> [u8; LENGTH] {
    let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, if flags.is_some() { 6 } else { 17 }, 0, 0];
    bytes.extend(source.0.octets());
    bytes.extend(destination.0.octets());
    let sum = util::checksum(&bytes, 5);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(source.1.to_be_bytes());
    bytes.extend(destination.1.to_be_bytes());
    match flags {
        // Numbers that fit each other whoever sends: the handshake's other half has both as 1.
        Some(flags) => {
            let number = u32::from(flags & 0x02 == 0).to_be_bytes();
            let acknowledged = u32::from(flags & 0x10 != 0).to_be_bytes();
            bytes.extend([number, acknowledged].concat());
            bytes.extend([0x50, flags, 0x20, 0, 0xab, 0xcd, 0, 0]);
        }
        None => bytes.extend([0, 20, 0xab, 0xcd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    }
    bytes.try_into().expect("forty bytes")
}

const LENGTH: usize = 40;

fn median(mut results: Vec<f64>) -> f64 {
    results.sort_by(f64::total_cmp);
    results[results.len() / 2]
}

fn per(time: Duration, count: u32) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(count)
}

fn report(what: &str, nanos: f64, target: &str) {
    println!("  {what:<52} {nanos:8.1} ns{target}");
}
