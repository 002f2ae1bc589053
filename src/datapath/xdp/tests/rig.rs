//! The real program, its flows and its filters, between interfaces that nothing is ever sent by.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use aya::programs::{TestRun, TestRunOptions};
use nix::net::if_::if_nametoindex;

use super::super::HOMES_PER_FLOW;
use super::super::flows::Flows;
use super::super::program::Program;
use super::support::{Carrier, ROUTER, ip};
use crate::datapath::classifier::{BpfError, ClassifierConfig, Roles};
use crate::datapath::filter::Filter;
use crate::datapath::next_hop::{Mac, Neighbour, NextHops, Route};
use crate::datapath::sys::{self, FastPathCounters, OurInterface, OurInterfaces, Rules};
use crate::nat::{Config, Flow, FlowKeys, FlowPair, Side, Traffic, Usage};
use crate::time::Instant;
use crate::wire::{Endpoint, FiveTuple, Protocol};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    One,
    Two,
}

/// What the program does with a frame, and the frame afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Pass(Vec<u8>),
    /// It leaves by our interface at this place.
    Send(usize, Vec<u8>),
    /// To the socket of its queue; there is none.
    Unserved,
}

/// See the module. As a [`Carrier`], it gives the packets that the program leaves alone to whom it leaves them.
pub struct Rig {
    pub program: Program,
    pub flows: Flows,
    pub next_hops: NextHops,
    arms: Arms,
    indices: Vec<u32>,
    /// By port: what an AF_PACKET datapath's socket takes, and what it takes beside XDP.
    filters: Vec<[Filter; 2]>,
    /// Where the next packet comes in.
    port: usize,
    /// The kernel's clock and the test's are not the same: when each flow was last used by the test's.
    used: HashMap<FiveTuple, Instant>,
    room: usize,
    before: FastPathCounters,
    /// What it had translated when it was last made anew.
    began: [Traffic; 3],
    runs: u64,
}

/// Runs a test in a network namespace of its own, which is gone afterwards, with the interfaces `ext` and `int`.
pub fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            let arguments = ["link", "add", "ext", "type", "veth", "peer", "name", "int"];
            assert!(std::process::Command::new("ip").args(arguments).status().expect("installed").success());
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Rig {
    /// For [`in_namespace`].
    pub fn new(arms: Arms, config: &Config, flows: u32) -> Self {
        Self::with_homes(arms, config, flows, HOMES_PER_FLOW * flows)
    }

    /// As [`Self::new`], with a table that may have less room than it should.
    pub fn with_homes(arms: Arms, config: &Config, flows: u32, homes: u32) -> Self {
        let names: &[&str] = if arms == Arms::One { &["ext"] } else { &["ext", "int"] };
        let indices: Vec<_> = names.iter().map(|name| if_nametoindex(*name).expect("it was made")).collect();
        let host = host_of(config);
        let rules = |port| rules_of(arms, port, config);
        let mut program = Self::load(arms, config, homes).expect("the kernel takes it");
        program.set_interfaces(interfaces_of(arms, &indices)).expect("they exist");
        let (table, hop_words) = program.take_maps().expect("there");
        let mut flows = Flows::new(table, hop_words, flows, sys::monotonic_nanos().expect("a clock"));
        flows.set_interfaces(indices.clone());
        flows.set_external(rules(0).external());
        let filter = |rules: ClassifierConfig| Filter::load(&rules, &host).expect("the kernel takes it");
        let filters = (0..indices.len()).map(|port| [filter(rules(port)), filter(rules(port).shared_only())]);
        Self {
            filters: filters.collect(),
            program,
            flows,
            next_hops: next_hops(arms, &indices),
            arms,
            indices,
            port: 0,
            used: HashMap::new(),
            room: usize::MAX,
            before: FastPathCounters::default(),
            began: [Traffic::default(); 3],
            runs: 0,
        }
    }

    /// The program, with a flow table of so many homes.
    pub fn load(arms: Arms, config: &Config, homes: u32) -> Result<Program, BpfError> {
        Program::load(homes, &rules_of(arms, 0, config), &host_of(config))
    }

    /// As if it were new, which takes the kernel long to make. No flows must be left.
    pub fn anew(self) -> Self {
        assert_eq!(self.flows.load().0, 0);
        let began = traffic_of(&self.before);
        Self { used: HashMap::new(), room: usize::MAX, began, ..self }
    }

    /// The port that packets of a side use.
    pub fn port_of(&self, side: Side) -> usize {
        if side == Side::External { 0 } else { self.indices.len() - 1 }
    }

    /// Runs the program on a frame that comes in by `port`.
    pub fn run(&mut self, port: usize, frame: &[u8]) -> Action {
        let action = run(&mut self.program, &self.indices, port, frame);
        self.runs += 1;
        let now = self.counters();
        let dropped = now.unserved - self.before.unserved;
        assert_eq!(dropped, u64::from(action == Action::Unserved), "nothing else is ever dropped");
        self.before = now;
        action
    }

    /// Those that two threads can use at a time.
    pub fn parts(&mut self) -> (Runner<'_>, &mut Flows, &NextHops) {
        (Runner { program: &mut self.program, indices: &self.indices }, &mut self.flows, &self.next_hops)
    }

    /// What it has counted; every run is in it once.
    pub fn counters(&mut self) -> FastPathCounters {
        let counters = self.program.counters().expect("readable");
        let all = counters.packets.iter().chain(&counters.misses).sum::<u64>() + counters.passed;
        assert_eq!(all, self.runs, "{counters:?}");
        counters
    }

    pub fn install_flows(&mut self, now: Instant, pair: &FlowPair) -> bool {
        self.flows.install(now, pair, &self.next_hops).is_ok()
    }

    fn exact(&self, tuple: FiveTuple, usage: Option<Usage>) -> Option<Usage> {
        Some(Usage { last_use: *self.used.get(&tuple)?, ..usage? })
    }
}

impl Carrier for Rig {
    fn configure(&mut self, config: &Config) {
        let (host, rules) = (host_of(config), rules_of(self.arms, 0, config));
        self.flows.set_external(rules.external());
        self.program.configure(&rules, &host).expect("written");
        for (port, [alone, beside]) in self.filters.iter_mut().enumerate() {
            let rules = rules_of(self.arms, port, config);
            alone.configure(&rules, &host).expect("written");
            beside.configure(&rules.shared_only(), &host).expect("written");
        }
    }

    fn admit(&mut self, side: Side, packet: &[u8]) -> Option<Side> {
        if packet.len() > LONGEST {
            return None;
        }
        self.port = self.port_of(side);
        // As `datapath::forwarding` has it: a client that hairpins may come in by the external port, too.
        let from_inside = packet.get(12) == Some(&10);
        let side = if self.port > 0 || from_inside { Side::Internal } else { Side::External };
        if self.filters[self.port][0].captures(packet) {
            return Some(side);
        }
        let frame = framed(self.port, packet);
        assert_eq!(self.run(self.port, &frame), Action::Pass(frame.clone()), "the kernel's: {packet:02x?}");
        None
    }

    fn translate(&mut self, now: Instant, _side: Side, packet: &[u8]) -> Option<(Side, Vec<u8>)> {
        let frame = framed(self.port, packet);
        let began = sys::monotonic_nanos().expect("a clock");
        let (out, sent) = match self.run(self.port, &frame) {
            Action::Send(out, sent) => (out, sent),
            action => {
                let both = self.filters[self.port][1].captures(packet);
                let expected = if both { Action::Pass(frame) } else { Action::Unserved };
                assert_eq!(action, expected, "{packet:02x?}");
                return None;
            }
        };
        let ended = sys::monotonic_nanos().expect("a clock");
        let tuple = tuple_of(packet);
        let last_use = u64::from(self.flows.value(&tuple).expect("it was hit").last_use);
        // The kernel's coarse clock is a tick behind, and what the program has of it perhaps another one.
        assert!(((began - TICK_NANOS) >> 30..=ended >> 30).contains(&last_use), "{last_use} at {began}");
        self.used.insert(tuple, now);
        let (ethernet, bytes) = sent.split_at(14);
        let destination = Ipv4Addr::from([bytes[16], bytes[17], bytes[18], bytes[19]]);
        let to = if destination.octets()[0] == 10 { Side::Internal } else { Side::External };
        assert_eq!(out, self.port_of(to), "it leaves where its route leads");
        let addresses = [&mac_of(gateway_of(self.arms, destination))[..], &our_mac(out), &[8, 0]].concat();
        assert_eq!(ethernet, addresses, "to {destination}");
        Some((to, bytes.to_vec()))
    }

    fn install(&mut self, now: Instant, pair: FlowPair) -> bool {
        if self.len() + 2 > self.room || !self.install_flows(now, &pair) {
            return false;
        }
        for Flow { matches, .. } in [pair.out, pair.back] {
            self.used.insert(matches, now);
        }
        true
    }

    fn usage(&self, keys: FlowKeys) -> (Option<Usage>, Option<Usage>) {
        let [out, back] = self.flows.usage(Instant::ORIGIN, &keys);
        (self.exact(keys.out, out), self.exact(keys.back, back))
    }

    fn remove(&mut self, keys: FlowKeys) -> (Option<Usage>, Option<Usage>) {
        let [out, back] = self.flows.remove(Instant::ORIGIN, &keys);
        (self.exact(keys.out, out), self.exact(keys.back, back))
    }

    fn len(&self) -> usize {
        self.flows.load().0 as usize
    }

    fn set_room(&mut self, flows: usize) {
        self.room = flows;
    }

    fn traffic(&self) -> [Traffic; 3] {
        let now = traffic_of(&self.before);
        [0, 1, 2].map(|place| Traffic {
            packets: now[place].packets - self.began[place].packets,
            bytes: now[place].bytes - self.began[place].bytes,
        })
    }
}

/// Runs the program, and looks at nothing else.
pub struct Runner<'a> {
    program: &'a mut Program,
    indices: &'a [u32],
}

impl Runner<'_> {
    pub fn run(&mut self, port: usize, frame: &[u8]) -> Action {
        run(self.program, self.indices, port, frame)
    }
}

fn run(program: &mut Program, indices: &[u32], port: usize, frame: &[u8]) -> Action {
    let length = frame.len() as u32;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, length, 0, indices[port], 0, 0].map(u32::to_ne_bytes).concat();
    let mut out = vec![0; 4096];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = program.program().test_run(options).expect("the kernel runs it");
    out.truncate(result.data_size_out as usize);
    match result.return_value {
        XDP_DROP => Action::Unserved,
        XDP_PASS => Action::Pass(out),
        XDP_TX => Action::Send(port, out),
        XDP_REDIRECT => Action::Send(1 - port, out),
        other => panic!("action {other}"),
    }
}

/// A frame to us, as long as Ethernet wants it.
pub fn framed(port: usize, packet: &[u8]) -> Vec<u8> {
    let mut frame = [&our_mac(port)[..], &[2, 0, 0, 0, 9, 9], &[8, 0], packet].concat();
    frame.resize(frame.len().max(60), 0xee);
    frame
}

/// What a TCP or UDP packet without options is found by.
pub fn tuple_of(packet: &[u8]) -> FiveTuple {
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let endpoint = |address: usize, at: usize| {
        let octets = [0, 1, 2, 3].map(|byte| packet[address + byte]);
        Endpoint::new(octets.into(), port(at))
    };
    FiveTuple { protocol: Protocol(packet[9]), source: endpoint(12, 20), destination: endpoint(16, 22) }
}

pub fn our_mac(port: usize) -> Mac {
    [2, 0, 0, 0, 0, 1 + port as u8]
}

/// Of each neighbour.
pub fn mac_of(neighbour: Ipv4Addr) -> Mac {
    let [a, b, c, d] = neighbour.octets();
    [6, 0, a, b, c, d]
}

/// Two-armed, inside hosts are neighbours.
pub fn gateway_of(arms: Arms, destination: Ipv4Addr) -> Ipv4Addr {
    if arms == Arms::Two && destination.octets()[0] == 10 { destination } else { ip(GATEWAY) }
}

fn traffic_of(counters: &FastPathCounters) -> [Traffic; 3] {
    [0, 1, 2].map(|place| Traffic { packets: counters.packets[place], bytes: counters.bytes[place] })
}

fn next_hops(arms: Arms, indices: &[u32]) -> NextHops {
    let mut hops = NextHops::new(indices.to_vec());
    let route = |prefix: &str, interface, gateway| Route {
        prefix: prefix.parse().expect("a prefix"),
        metric: 0,
        interface: Some(interface),
        gateway,
    };
    let mut routes = vec![route("0.0.0.0/0", indices[0], Some(ip(GATEWAY)))];
    let mut neighbours = vec![(indices[0], ip(GATEWAY))];
    if arms == Arms::Two {
        routes.push(route("10.0.0.0/8", indices[1], None));
        neighbours.extend((2..10).map(|host| (indices[1], Ipv4Addr::new(10, 0, 0, host))));
    }
    hops.set_routes(routes);
    hops.set_neighbours(neighbours.into_iter().map(|(interface, address)| known(interface, address)));
    hops
}

pub fn known(interface: u32, address: Ipv4Addr) -> Neighbour {
    Neighbour { interface, address, mac: Some(mac_of(address)), failed: false }
}

fn rules_of(arms: Arms, port: usize, config: &Config) -> ClassifierConfig {
    let one_armed = arms == Arms::One;
    let roles = Roles { internal: one_armed || port == 1, external: port == 0 };
    ClassifierConfig::new(roles, &config.internal, config).expect("few prefixes")
}

fn interfaces_of(arms: Arms, indices: &[u32]) -> OurInterfaces {
    let mut interfaces = OurInterfaces::default();
    for (place, (interface, index)) in interfaces.iter_mut().zip(indices).enumerate() {
        let roles = match (arms, place) {
            (Arms::One, _) => Rules::ROLE_INTERNAL | Rules::ROLE_EXTERNAL,
            (Arms::Two, 0) => Rules::ROLE_EXTERNAL,
            (Arms::Two, _) => Rules::ROLE_INTERNAL,
        };
        *interface = OurInterface { index: *index, roles, mac: our_mac(place), zero: [0; 2] };
    }
    interfaces
}

fn host_of(config: &Config) -> BTreeSet<Ipv4Addr> {
    config.external_addresses.iter().map(|address| address.private).chain([ROUTER]).collect()
}

/// The longest packet that the kernel runs a program on, in one page.
const LONGEST: usize = 3400;
const GATEWAY: &str = "192.0.2.254";
/// As many ticks as the clock of the program may be late, at 100 Hz.
const TICK_NANOS: u64 = 40_000_000;

// linux/bpf.h
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
