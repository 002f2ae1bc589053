//! The fast path: established flows are translated by a BPF program in the driver, misses come by `AF_XDP` sockets.
//!
//! Owns the program and its attachments, the sockets, and the flows. It stands beside the packet sockets, which go on
//! carrying what is the kernel's as well as NAT's, and whatever the engine makes. Whether a packet is translated here or
//! by the engine, what comes out is the same.

mod driver;
mod flows;
mod program;
mod sockets;
mod table;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use self::driver::Adjusted;
pub use self::driver::{DriverError, MTU_LIMITS};
use self::flows::Flows;
use self::program::Program;
use self::sockets::{Queues, Sockets, SocketsError};
use super::af_packet::{AfPacket, Port};
use super::classifier::{BpfError, ClassifierConfig};
use super::forwarding::Forwarded;
use super::sys::{self, BATCH, OurInterface, OurInterfaces, Rules, XdpLink};
use super::vnet::VnetHeader;
use super::{FastPath, XdpConfig};
use crate::nat::{Counters, Engine, FlowKeys, Offload, SessionRecord, Traffic, Usage};
use crate::time::Instant;
use crate::wire;

/// See the module.
pub struct Xdp {
    config: XdpConfig,
    /// By port. Dropped before the program and the sockets.
    attached: Vec<Option<Attached>>,
    sockets: Option<Sockets>,
    /// What the sockets were opened for.
    opened_for: Vec<Queues>,
    flows: Flows,
    program: Program,
    unserved: u64,
    recalled_routes: u64,
    /// Where in the session table a recall has come to.
    recall: Option<u32>,
}

struct Attached {
    interface: u32,
    /// Dropped first: what was adjusted for the program can be put back only after it.
    _link: XdpLink,
    adjusted: Adjusted,
}

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("the XDP program")]
    Program(#[from] BpfError),
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    #[error("the interfaces cannot be asked for")]
    Netlink(#[source] io::Error),
}

impl Xdp {
    /// Attaches the program to all ports and opens their sockets. `flows` is how many the program can carry,
    /// `origin_nanos` is `CLOCK_MONOTONIC` at [`Instant::ORIGIN`].
    ///
    /// # Errors
    /// See [`XdpError`]; everything is then as it was.
    pub fn new(
        config: XdpConfig,
        ports: &[Port],
        rules: &ClassifierConfig,
        host: &BTreeSet<Ipv4Addr>,
        flows: u32,
        origin_nanos: u64,
    ) -> Result<Self, XdpError> {
        let mut program = Program::load(flows.saturating_mul(HOMES_PER_FLOW), rules, host)?;
        let (table, next_hops) = program.take_maps()?;
        let mut xdp = Self {
            config,
            attached: ports.iter().map(|_| None).collect(),
            sockets: None,
            opened_for: Vec::new(),
            flows: Flows::new(table, next_hops, flows, origin_nanos),
            program,
            unserved: 0,
            recalled_routes: 0,
            recall: None,
        };
        xdp.flows.set_external(rules.external());
        xdp.follow_ports(ports)?;
        for port in ports {
            // Not an error if it is not: it comes up when it can.
            driver::wait_running(port.index, LINK_RESET).map_err(XdpError::Netlink)?;
        }
        Ok(xdp)
    }

    /// The MTU of a port, if it had to be lowered.
    #[must_use]
    pub fn lowered_mtu(&self, port: usize) -> Option<u32> {
        self.attached.get(port)?.as_ref()?.adjusted.mtu()
    }

    /// Whether a port carries packets.
    #[must_use]
    pub fn is_open(&self, port: usize) -> bool {
        self.sockets.is_some() && self.attached.get(port).is_some_and(Option::is_some)
    }

    /// What to poll for frames.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().flat_map(Sockets::iter).map(|(_, _, socket)| socket.as_fd())
    }

    /// Whether something waits to be sent for which there will be no event.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.sockets.as_ref().is_some_and(Sockets::has_unsent)
    }

    /// Attaches to interfaces that are new, lets those go that are gone, and opens sockets on all their queues.
    ///
    /// # Errors
    /// See [`XdpError`]; it can be tried again.
    pub fn follow_ports(&mut self, ports: &[Port]) -> Result<(), XdpError> {
        for (attached, port) in self.attached.iter_mut().zip(ports) {
            if attached.as_ref().is_some_and(|attached| attached.interface != port.index) {
                *attached = None;
                self.sockets = None;
            }
        }
        self.program.set_interfaces(interfaces_of(ports))?;
        self.flows.set_interfaces(ports.iter().map(|port| port.index).collect());
        for (attached, port) in self.attached.iter_mut().zip(ports) {
            if attached.is_none() && port.index != 0 {
                let (link, adjusted) =
                    driver::attach(port.index, self.config, || self.program.attach(port.index))?;
                *attached = Some(Attached { interface: port.index, _link: link, adjusted });
            }
        }
        let wanted: Vec<_> = ports.iter().map(queues_of).collect();
        let mtu = ports.iter().map(|port| port.mtu).max().unwrap_or(0);
        if self.opened_for == wanted && self.sockets.as_ref().is_some_and(|sockets| sockets.fit(mtu)) {
            return Ok(());
        }
        // First the old ones: a queue has one socket.
        self.sockets = None;
        if self.attached.iter().any(Option::is_none) {
            return Ok(());
        }
        self.open_sockets(&wanted, mtu)?;
        self.opened_for = wanted;
        Ok(())
    }

    /// Writes what the classifier goes by.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn configure(&mut self, rules: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<(), BpfError> {
        self.flows.set_external(rules.external());
        self.program.configure(rules, host)
    }

    /// Moves at most a batch from each queue. Gives whether there may be more.
    pub fn pump(&mut self, now: Instant, engine: &mut Engine, packets: &mut AfPacket) -> bool {
        let Some(sockets) = &mut self.sockets else { return false };
        let (mut any, mut more) = (false, false);
        for place in 0..packets.ports.len() {
            for queue in 0..sockets.queues(place) {
                let mut count = 0;
                while count < BATCH
                    && let Some(mut frame) = sockets.receive(place, queue)
                {
                    count += 1;
                    packets.forwarding.counters.received += 1;
                    let bytes = sockets.bytes(&mut frame);
                    let (forwarding, ports) = (&mut packets.forwarding, &packets.ports);
                    match forwarding.forward(now, engine, ports, place, bytes, wire::Offload::default()) {
                        Forwarded::Send { port, length, .. } => {
                            frame.length = u32::try_from(length).unwrap_or(0);
                            sockets.send(port, queue, frame, &mut packets.forwarding.counters);
                        }
                        Forwarded::Hold { port, gateway, length, .. } => {
                            // As the packet sockets have it, which send it once the neighbour is found.
                            let held = [&[0; VnetHeader::BYTES], &bytes[..length]].concat();
                            packets.forwarding.next_hops.hold(ports[port].index, gateway, &held);
                            sockets.discard(frame);
                        }
                        Forwarded::Nothing => sockets.discard(frame),
                    }
                    drain(&mut self.flows, now, engine, packets);
                    packets.queue_transmits(now, engine);
                }
                any |= count > 0;
                more |= count == BATCH;
            }
        }
        // What the engine says to a packet leaves before what came after that packet.
        if any {
            packets.flush();
        }
        // When nothing came, frames that were sent a moment ago may still have to be taken back.
        sockets.turn();
        more
    }

    /// Takes all flows home from now on, in steps of [`Self::follow_engine`]; until then nothing is offered anew.
    pub fn recall(&mut self) {
        // What has been passed by in a recall that goes on already is home.
        self.recall.get_or_insert(0);
    }

    /// Whether flows are still to be taken home.
    #[must_use]
    pub const fn is_recalling(&self) -> bool {
        self.recall.is_some()
    }

    /// Does what the engine wants of the fast path. To be called before the engine is given anything else.
    pub fn serve(&mut self, now: Instant, engine: &mut Engine, packets: &mut AfPacket) {
        drain(&mut self.flows, now, engine, packets);
        packets.queue_transmits(now, engine);
    }

    /// Brings the fast path up to date with neighbours and routes, and goes on with a recall. Gives whether there is
    /// more to do at once.
    pub fn follow_engine(&mut self, now: Instant, engine: &mut Engine, packets: &mut AfPacket) -> bool {
        let next_hops = &packets.forwarding.next_hops;
        if let Err(error) = self.flows.follow_neighbours(next_hops) {
            tracing::warn!(%error, "next hops of the fast path cannot be written");
        }
        if self.recalled_routes != next_hops.route_changes() {
            self.recalled_routes = next_hops.route_changes();
            self.recall = Some(0);
        }
        if let Some(from) = self.recall {
            self.recall = engine.recall(from, RECALL_PLACES);
        }
        self.serve(now, engine, packets);
        packets.flush();
        self.is_recalling()
    }

    /// Once a second: keeps neighbours known, and looks after the number of queues.
    pub fn tick(&mut self, now: Instant, packets: &mut AfPacket) {
        self.flows.keep_neighbours(now, &mut packets.forwarding.next_hops);
        let Ok(counted) = self.program.counters() else { return };
        if counted.unserved > self.unserved && self.sockets.is_some() {
            // A queue has no socket: perhaps there are more of them now.
            if let Err(error) = self.follow_ports(&packets.ports) {
                tracing::warn!(%error, "sockets cannot be opened anew");
            }
        }
        self.unserved = counted.unserved;
    }

    /// What it counted; adds to `datapath` what its sockets lost, and to `engine` what it translated.
    pub fn count(&mut self, datapath: &mut super::Counters, engine: &mut Counters) -> FastPath {
        if let Some(sockets) = &mut self.sockets {
            sockets.count(datapath);
        }
        let counted = self.program.counters().unwrap_or_default();
        let traffic =
            |direction: usize| Traffic { packets: counted.packets[direction], bytes: counted.bytes[direction] };
        let [out, back, hairpinned] = [0, 1, 2].map(traffic);
        for (total, part) in [
            (&mut engine.in_from_internal, &[out, hairpinned][..]),
            (&mut engine.out_to_external, &[out]),
            (&mut engine.in_from_external, &[back]),
            (&mut engine.out_to_internal, &[back]),
            (&mut engine.hairpinned, &[hairpinned]),
        ] {
            total.packets += part.iter().map(|part| part.packets).sum::<u64>();
            total.bytes += part.iter().map(|part| part.bytes).sum::<u64>();
        }
        let (flows, capacity) = self.flows.load();
        FastPath {
            out_to_external: out,
            out_to_internal: back,
            hairpinned,
            misses: counted.misses,
            passed: counted.passed,
            unserved: counted.unserved,
            flows,
            capacity,
        }
    }

    /// Adds to a record what its flows have carried.
    pub fn add_usage(&self, now: Instant, engine: &Engine, record: &mut SessionRecord) {
        if let Some(keys) = engine.flow_keys(record) {
            let [out, back] = self.flows.usage(now, &keys);
            record.add(now, out.unwrap_or_default(), back.unwrap_or_default());
        }
    }

    /// What both flows have carried so far; nothing of one that is not carried.
    pub fn usage(&self, now: Instant, keys: &FlowKeys) -> [Option<Usage>; 2] {
        self.flows.usage(now, keys)
    }

    fn open_sockets(&mut self, wanted: &[Queues], mtu: u32) -> Result<(), XdpError> {
        let sockets = Sockets::open(wanted, mtu)?;
        for (place, queue, socket) in sockets.iter() {
            self.program.set_socket(place, queue, Some(socket))?;
        }
        tracing::info!(
            queues = sockets.iter().count(),
            zero_copy = sockets.is_zero_copy(),
            "xdp sockets opened"
        );
        self.sockets = Some(sockets);
        Ok(())
    }
}

/// Does what the engine wants of the fast path.
fn drain(flows: &mut Flows, now: Instant, engine: &mut Engine, packets: &AfPacket) {
    while let Some(offload) = engine.poll_offload() {
        match offload {
            Offload::Install(pair) => {
                if let Err(error) = flows.install(now, &pair, &packets.forwarding.next_hops) {
                    tracing::debug!(%error, "flows are not carried by the fast path");
                    engine.handle_refused(pair.keys());
                }
            }
            Offload::Query(keys) => {
                let [out, back] = flows.usage(now, &keys);
                engine.handle_usage(now, keys, out, back);
            }
            Offload::Remove(removal) => {
                let [out, back] = flows.remove(now, &removal.keys);
                engine.handle_removed(now, removal, out, back);
            }
        }
    }
}

fn interfaces_of(ports: &[Port]) -> OurInterfaces {
    let mut interfaces = OurInterfaces::default();
    for (interface, port) in interfaces.iter_mut().zip(ports) {
        let roles = u32::from(port.roles.internal) * Rules::ROLE_INTERNAL
            + u32::from(port.roles.external) * Rules::ROLE_EXTERNAL;
        *interface = OurInterface { index: port.index, roles, mac: port.mac, zero: [0; 2] };
    }
    interfaces
}

/// The queues of an interface, as its driver tells, or else as the kernel has them.
fn queues_of(port: &Port) -> Queues {
    let present = sys::channels(&port.name).map(|channels| channels.present).unwrap_or_default();
    let (receive, transmit) = (present.receive + present.combined, present.transmit + present.combined);
    let or_listed = |count: u32, prefix| if count > 0 { count } else { listed_queues(&port.name, prefix) };
    Queues { interface: port.index, receive: or_listed(receive, "rx-"), transmit: or_listed(transmit, "tx-") }
}

/// Whether the kernel takes the program; it is thrown away again, and its table is as small as can be.
///
/// # Errors
/// See [`BpfError`].
pub fn try_load(rules: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<(), BpfError> {
    Program::load(HOMES_PER_FLOW, rules, host).map(drop)
}

/// The queues of an interface that begin with `prefix` in sysfs; one if there is no list of them.
fn listed_queues(interface: &str, prefix: &str) -> u32 {
    let entries = std::fs::read_dir(format!("/sys/class/net/{interface}/queues"));
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let count = names.filter(|name| name.to_string_lossy().starts_with(prefix)).count();
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// Of the flow table: with two, hardly any flow is left without room.
const HOMES_PER_FLOW: u32 = 2;
/// How long a driver may take the link down for.
const LINK_RESET: Duration = Duration::from_secs(5);
/// Places of the session table that are recalled between two batches.
const RECALL_PLACES: u32 = 1024;

#[cfg(test)]
mod tests;
