//! Moving packets between the network and the NAT engine.
//!
//! Owns the packet worker: one OS thread with the engine, the `AF_PACKET` sockets, the BPF filters that divide packets
//! between NAT and the kernel, and the next hops. The rest of Egret talks to it through a [`Handle`], by commands and
//! answers, never by shared state. Works in the network namespace of whoever calls [`spawn`].
//!
//! Leaves alone whatever is not NAT's: the host's own traffic, other protocols than IPv4, broadcast and multicast.
//! Changes no setting of the host; what it attaches to interfaces is gone when it has stopped.

mod accounting;
mod af_packet;
mod classifier;
mod filter;
mod forwarding;
mod netlink;
mod next_hop;
pub mod probe;
mod sys;
mod vnet;
mod worker;
mod xdp;

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Serialize;

pub use af_packet::PortError;
pub use classifier::BpfError;
pub use sys::random_seed;
pub use worker::{Handle, Worker, spawn};
pub use xdp::{DriverError, XdpError};

use crate::nat::{self, SessionRecord, Traffic};
use crate::wire::Protocol;

/// What the worker needs besides the engine's own configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub external: Interface,
    /// Equal to `external`: one-armed.
    pub internal: Interface,
    /// Destinations that are never translated: at most 64 prefixes, after joining neighbouring ones.
    pub bypass: Vec<Ipv4Net>,
    pub datapath: Choice,
    pub xdp: XdpConfig,
}

/// Which datapath is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// XDP if every interface can do it natively, else packet sockets.
    #[default]
    Auto,
    Xdp,
    AfPacket,
}

impl Choice {
    /// As it is written in the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::AfPacket => "af_packet",
        }
    }
}

/// What matters to the XDP datapath alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpConfig {
    /// Lower the MTU of an interface whose driver cannot do XDP with it.
    pub adjust_mtu: bool,
}

/// Which datapath runs, and why it is not the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub kind: Kind,
    /// Why XDP was not taken, where it was not ruled out.
    pub fallback: Option<String>,
}

/// A datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    AfPacket,
    Xdp,
}

impl Kind {
    /// As it is written in the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::AfPacket => "af_packet",
            Self::Xdp => "xdp",
        }
    }
}

/// A network interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    /// All zeroes if it has none, as the loopback interface.
    pub mac: [u8; 6],
    /// In bytes, without the link-layer header.
    pub mtu: u32,
    pub addresses: Vec<Ipv4Addr>,
}

/// Why the datapath cannot start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel's routes and addresses cannot be read")]
    Netlink(#[source] io::Error),
    #[error("there is no interface {0}")]
    NoInterface(String),
    #[error("interface {0} has no Ethernet address")]
    NotEthernet(String),
    #[error("interface {interface}")]
    Port {
        interface: String,
        #[source]
        source: PortError,
    },
    #[error("the BPF programs cannot hold the configuration")]
    Classifier(#[from] BpfError),
    #[error("there is no XDP here")]
    Xdp(#[from] XdpError),
    #[error("the NAT engine refuses its configuration")]
    Engine(#[from] nat::ConfigError),
    #[error("the kernel gives no randomness")]
    Randomness(#[source] io::Error),
    #[error("the kernel's clock cannot be read")]
    Clock(#[source] io::Error),
    #[error("the packet worker cannot be started")]
    Thread(#[source] io::Error),
    #[error("the packet worker panicked")]
    Panicked,
}

/// The worker has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet worker has stopped")]
pub struct Stopped;

/// What the datapath counts, in frames; a super-frame is one. They only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub received: u64,
    pub sent: u64,
    /// Lost because the worker could not keep up and the socket's buffer was full.
    pub receive_dropped: u64,
    /// Too long, too short, or a super-frame of an unknown kind.
    pub receive_malformed: u64,
    /// Refused by the interface: its queue was full, it was down, or the frame was longer than its MTU.
    pub send_failed: u64,
    /// Dropped because the next hop's MAC address was not found in time, or too many frames waited for it.
    pub unresolved_dropped: u64,
    /// Dropped because no route leads to the destination.
    pub unreachable_dropped: u64,
    /// How often events of the kernel were lost, and everything was read anew.
    pub netlink_overflows: u64,
}

/// What the fast path counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FastPath {
    /// Packets that it translated.
    pub out_to_external: Traffic,
    pub out_to_internal: Traffic,
    pub hairpinned: Traffic,
    /// Packets that it left to the engine, by [`Miss`], in the order of [`Miss::ALL`].
    pub misses: [u64; Miss::ALL.len()],
    /// Packets of the host, and those that may be.
    pub passed: u64,
    /// NAT's packets that came by a receive queue without a socket, and were dropped.
    pub unserved: u64,
    /// Flows in its table, and how many it holds.
    pub flows: u32,
    pub capacity: u32,
}

/// Why the fast path left a packet to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Miss {
    /// Its session is not (yet) carried.
    NoFlow,
    /// IP options, a fragment, a used up TTL, a wrong checksum, or another protocol than TCP and UDP.
    Unusual,
    /// A TCP segment with SYN, FIN or RST.
    TcpFlags,
    /// Longer than the next link takes.
    TooBig,
    /// Its next hop has no known MAC address.
    NoNextHop,
}

impl Miss {
    /// All of them, in the order of their counters.
    pub const ALL: &[Self] = &[Self::NoFlow, Self::Unusual, Self::TcpFlags, Self::TooBig, Self::NoNextHop];

    /// The label, in snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoFlow => "no_flow",
            Self::Unusual => "unusual",
            Self::TcpFlags => "tcp_flags",
            Self::TooBig => "too_big",
            Self::NoNextHop => "no_next_hop",
        }
    }
}

/// The worker's state at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub counters: nat::Counters,
    /// Of the external addresses, in the order of the configuration.
    pub addresses: Vec<nat::AddressUse>,
    pub datapath: Counters,
    /// What the fast path did, where there is one. The engine's counters hold its traffic as well.
    pub fast_path: Option<FastPath>,
    /// Why packets would not flow, in words for the operator; empty when they would.
    pub not_ready: Vec<String>,
    /// Since the worker was started.
    pub uptime: Duration,
}

/// Which sessions are asked for; those that match all that is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    pub protocol: Option<Protocol>,
    pub internal: Option<Ipv4Net>,
    pub remote: Option<Ipv4Net>,
    /// Of any of the three endpoints.
    pub port: Option<u16>,
}

impl SessionFilter {
    /// Whether the session is asked for.
    #[must_use]
    pub fn matches(&self, record: &SessionRecord) -> bool {
        self.protocol.is_none_or(|protocol| record.protocol == protocol)
            && self.internal.is_none_or(|prefix| prefix.contains(&record.internal.address))
            && self.remote.is_none_or(|prefix| prefix.contains(&record.remote.address))
            && self.port.is_none_or(|port| {
                [record.internal.port, record.external.port, record.remote.port].contains(&port)
            })
    }
}

/// Is told of what happens to sessions, on the packet worker's thread: it must not wait for anything.
pub trait Observer: std::fmt::Debug + Send {
    /// Something has happened.
    fn handle_event(&mut self, event: &nat::Event);
}

/// A part of the session table.
#[derive(Clone, Debug, Default)]
pub struct SessionPage {
    pub records: Vec<SessionRecord>,
    /// Where to go on; `None` at the end of the table.
    pub next: Option<u32>,
}

/// The interfaces of this network namespace.
#[must_use]
pub fn interfaces() -> Vec<Interface> {
    let links = netlink::dump_topology().map(|topology| topology.links).unwrap_or_default();
    pnet_datalink::interfaces()
        .into_iter()
        .map(|interface| Interface {
            index: interface.index,
            mac: interface.mac.map(|mac| mac.octets()).unwrap_or_default(),
            mtu: links.iter().find(|link| link.index == interface.index).map_or(DEFAULT_MTU, |link| link.mtu),
            addresses: interface
                .ips
                .iter()
                .filter_map(|network| match network.ip() {
                    std::net::IpAddr::V4(address) => Some(address),
                    std::net::IpAddr::V6(_) => None,
                })
                .collect(),
            name: interface.name,
        })
        .collect()
}

/// What the driver of an interface counts, by its own names, as `ethtool -S` shows it; nothing, if it tells nothing.
#[must_use]
pub fn driver_statistics(interface: &str) -> Vec<(String, u64)> {
    sys::statistics(interface).unwrap_or_default()
}

/// Adds an address to an interface, as a /32, unless it is there.
///
/// # Errors
/// The interface is gone, or `CAP_NET_ADMIN` is missing.
pub fn add_address(interface: &Interface, address: Ipv4Addr) -> io::Result<()> {
    netlink::add_address(interface.index, address)
}

/// The interface that the default route with the lowest metric leaves by.
///
/// # Errors
/// The kernel's routes cannot be read.
pub fn default_route_interface() -> Result<Option<String>, Error> {
    let topology = netlink::dump_topology().map_err(Error::Netlink)?;
    let best = topology
        .routes
        .iter()
        .filter(|route| route.prefix.prefix_len() == 0)
        .filter_map(|route| route.interface.map(|interface| (route.metric, interface)))
        // The first of several, as the kernel does.
        .min_by_key(|(metric, _)| *metric);
    Ok(best.and_then(|(_, index)| {
        topology.links.into_iter().find(|link| link.index == index).map(|link| link.name)
    }))
}

/// Ethernet's.
const DEFAULT_MTU: u32 = 1500;
