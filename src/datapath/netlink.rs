//! Asking the kernel for links, addresses, routes and neighbours, and hearing of their changes: `rtnetlink(7)`.
//!
//! Neighbours are followed event by event. Everything else is read anew when an event says that it changed: the kernel
//! removes IPv4 routes without a word when their link goes down or their address is deleted, so that a copy kept by
//! events alone would drift. Only the main table is read.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ipnet::Ipv4Net;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
};
use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::next_hop::{Mac, Neighbour, Route};

/// A link, as far as the datapath cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Up, and with a carrier.
    pub running: bool,
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// The XDP program that is attached, by whomever.
    pub xdp: Option<AttachedXdp>,
}

/// An XDP program on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// The program's id in the kernel.
    pub id: u32,
    /// `native`, `generic` or `offloaded`.
    pub mode: &'static str,
}

/// Links, addresses and routes at one moment.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    pub links: Vec<Link>,
    /// Every IPv4 address of this host, with the index of its interface.
    pub addresses: Vec<(u32, Ipv4Addr)>,
    pub routes: Vec<Route>,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Neighbour(Neighbour),
    /// Links, addresses or routes are not what they were: read them anew.
    Topology,
}

/// Why there are no events to read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// Some were lost; those still queued have been thrown away as well. Read everything anew.
    #[error("events were lost")]
    Overflow,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A subscription to the kernel's events.
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes. Dump after this, so that nothing falls in between.
    ///
    /// # Errors
    /// As `socket(2)` and `bind(2)`.
    pub fn subscribe() -> io::Result<Self> {
        const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40; // RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(EVENT_BUFFER_BYTES)?;
        Ok(Self { socket, buffer: vec![0; MESSAGE_BYTES] })
    }

    /// Calls `visit` with everything that has changed, without waiting.
    ///
    /// # Errors
    /// See [`EventsError`].
    pub fn read(&mut self, mut visit: impl FnMut(Change)) -> Result<(), EventsError> {
        loop {
            match receive(&self.socket, &mut self.buffer) {
                Ok(length) => {
                    for_each_message(&self.buffer[..length], |message| {
                        if let Some(change) = change(message) {
                            visit(change);
                        }
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    // What is still queued is older than what was lost; after a dump it would be wrong.
                    while receive(&self.socket, &mut self.buffer).is_ok() {}
                    return Err(EventsError::Overflow);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks the kernel to find or confirm the neighbour's MAC address, as its own use of the neighbour would
    /// (`ip neigh ... use`). What comes of it is an event.
    ///
    /// # Errors
    /// As `sendto(2)`.
    pub fn resolve(&self, interface: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = interface;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let request = RouteNetlinkMessage::NewNeighbour(message);
        send(&self.socket, request, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads links, addresses and routes.
///
/// # Errors
/// The kernel does not answer, within a second, or says no.
pub fn dump_topology() -> io::Result<Topology> {
    let mut topology = Topology::default();
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), &mut |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            topology.links.extend(link_of(&link));
        }
    })?;
    let mut addresses = AddressMessage::default();
    addresses.header.family = AddressFamily::Inet;
    dump(RouteNetlinkMessage::GetAddress(addresses), &mut |message| {
        if let RouteNetlinkMessage::NewAddress(address) = message {
            topology.addresses.extend(address_of(&address));
        }
    })?;
    let mut routes = RouteMessage::default();
    routes.header.address_family = AddressFamily::Inet;
    dump(RouteNetlinkMessage::GetRoute(routes), &mut |message| {
        if let RouteNetlinkMessage::NewRoute(route) = message
            && is_main(&route)
        {
            push_routes(&route, &mut topology.routes);
        }
    })?;
    Ok(topology)
}

/// One link at this moment; `None` if there is none of this index.
///
/// # Errors
/// As [`dump_topology`].
pub fn link(index: u32) -> io::Result<Option<Link>> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let mut found = None;
    let asked = ask(RouteNetlinkMessage::GetLink(request), NLM_F_ACK, &mut |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            found = link_of(&link);
        }
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// Sets a link's MTU, in bytes.
///
/// # Errors
/// `EINVAL` when the driver cannot; otherwise as [`dump_topology`].
pub fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::Mtu(mtu));
    ask(RouteNetlinkMessage::SetLink(request), NLM_F_ACK, &mut |_| {})
}

/// Adds an IPv4 address to a link, with no network of its own; one that is there already stays as it is.
///
/// # Errors
/// As [`dump_topology`].
pub fn add_address(index: u32, address: Ipv4Addr) -> io::Result<()> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    request.header.prefix_len = 32;
    request.header.index = index;
    request.attributes =
        vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match ask(RouteNetlinkMessage::NewAddress(request), flags, &mut |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        added => added,
    }
}

/// Reads the neighbours, those without a MAC address included.
///
/// # Errors
/// As [`dump_topology`].
pub fn dump_neighbours() -> io::Result<Vec<Neighbour>> {
    let mut neighbours = Vec::new();
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Inet;
    dump(RouteNetlinkMessage::GetNeighbour(request), &mut |message| {
        if let RouteNetlinkMessage::NewNeighbour(neighbour) = message {
            neighbours.extend(neighbour_of(&neighbour, false));
        }
    })?;
    Ok(neighbours)
}

fn dump(request: RouteNetlinkMessage, visit: &mut dyn FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    ask(request, NLM_F_DUMP, visit)
}

/// Sends a request and visits what comes, up to the end of the dump or the acknowledgement.
fn ask(request: RouteNetlinkMessage, flags: u16, visit: &mut dyn FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    send(&socket, request, NLM_F_REQUEST | flags)?;
    let mut buffer = vec![0; MESSAGE_BYTES];
    let mut done = None;
    while done.is_none() {
        let timeout = PollTimeout::try_from(DUMP_TIMEOUT).unwrap_or(PollTimeout::ZERO);
        if nix::poll::poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let length = receive(&socket, &mut buffer)?;
        for_each_message(&buffer[..length], |message| match message.payload {
            NetlinkPayload::InnerMessage(inner) => visit(inner),
            NetlinkPayload::Done(_) => done = Some(Ok(message.header.flags & NLM_F_DUMP_INTR != 0)),
            NetlinkPayload::Error(error) if error.code.is_none() => done = Some(Ok(false)),
            NetlinkPayload::Error(error) => done = Some(Err(error.to_io())),
            _ => {}
        });
    }
    match done {
        // Something changed meanwhile, which is an event that is yet to be read.
        Some(Ok(true)) => {
            tracing::debug!("a netlink dump was interrupted by a change");
            Ok(())
        }
        Some(Ok(false)) | None => Ok(()),
        Some(Err(error)) => Err(error),
    }
}

fn send(socket: &Socket, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(request));
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    Ok(())
}

fn receive(socket: &Socket, mut buffer: &mut [u8]) -> io::Result<usize> {
    let room = buffer.len();
    let (length, _) = socket.recv_from(&mut buffer, 0)?;
    Ok(length.min(room))
}

/// Calls `visit` with every message of a datagram; one that cannot be parsed is of a kind that we do not need.
fn for_each_message(mut datagram: &[u8], mut visit: impl FnMut(NetlinkMessage<RouteNetlinkMessage>)) {
    while let Some(length) = datagram.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes) as usize) {
        if length < 16 || length > datagram.len() {
            return;
        }
        match NetlinkMessage::deserialize(&datagram[..length]) {
            Ok(message) => visit(message),
            Err(error) => tracing::trace!(%error, "netlink message not understood"),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn change(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> {
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
            neighbour_of(&neighbour, false).map(Change::Neighbour)
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
            neighbour_of(&neighbour, true).map(Change::Neighbour)
        }
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => is_main(&route).then_some(Change::Topology),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_),
        ) => Some(Change::Topology),
        NetlinkPayload::Error(error) if error.code.is_some() => {
            tracing::debug!(error = %error.to_io(), "neighbour could not be asked for");
            None
        }
        _ => None,
    }
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        running: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        mac: None,
        mtu: 0,
        xdp: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(xdp) => link.xdp = xdp.iter().find_map(attached_xdp),
            LinkAttribute::Address(address) => link.mac = Mac::try_from(address.as_slice()).ok(),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// Each mode has an attribute of its own; the one that is for all modes says no mode.
fn attached_xdp(attribute: &LinkXdp) -> Option<AttachedXdp> {
    match attribute {
        LinkXdp::DrvProgId(id) => Some(AttachedXdp { id: *id, mode: "native" }),
        LinkXdp::SkbProgId(id) => Some(AttachedXdp { id: *id, mode: "generic" }),
        LinkXdp::HwProgId(id) => Some(AttachedXdp { id: *id, mode: "offloaded" }),
        _ => None,
    }
}

fn address_of(message: &AddressMessage) -> Option<(u32, Ipv4Addr)> {
    // On a point-to-point link ADDRESS is the peer's; LOCAL is always ours.
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some((message.header.index, *address)),
        _ => None,
    })
}

fn is_main(message: &RouteMessage) -> bool {
    message.header.address_family == AddressFamily::Inet && message.header.table == RouteHeader::RT_TABLE_MAIN
}

fn push_routes(message: &RouteMessage, routes: &mut Vec<Route>) {
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut metric = 0;
    let mut single = (None, None);
    let mut dead = message.header.flags.bits() & u32::from(RouteNextHopFlags::Dead.bits()) != 0;
    let mut several = &[][..];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(interface) => single.0 = Some(*interface),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => single.1 = Some(*address),
            // An IPv6 gateway: its neighbour is none of ours.
            RouteAttribute::Via(_) => dead = true,
            RouteAttribute::MultiPath(next_hops) => several = next_hops,
            _ => {}
        }
    }
    let Ok(prefix) = Ipv4Net::new(destination, message.header.destination_prefix_length) else { return };
    match message.header.kind {
        RouteType::Unicast if several.is_empty() => {
            if let (Some(interface), gateway) = single
                && !dead
            {
                routes.push(Route { prefix, metric, interface: Some(interface), gateway });
            }
        }
        RouteType::Unicast => {
            for next_hop in several {
                let gateway = next_hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                });
                if !next_hop.flags.contains(RouteNextHopFlags::Dead) {
                    routes.push(Route { prefix, metric, interface: Some(next_hop.interface_index), gateway });
                }
            }
        }
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => {
            routes.push(Route { prefix, metric, interface: None, gateway: None });
        }
        _ => {}
    }
}

fn neighbour_of(message: &NeighbourMessage, gone: bool) -> Option<Neighbour> {
    if message.header.family != AddressFamily::Inet || message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => address = Some(*inet),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let usable = !gone
        && matches!(
            message.header.state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
    let failed = !gone && message.header.state == NeighbourState::Failed;
    Some(Neighbour {
        interface: message.header.ifindex,
        address: address?,
        mac: mac.filter(|_| usable),
        failed,
    })
}

/// The kernel's dumps come in pieces of at most 32 KiB.
const MESSAGE_BYTES: usize = 64 << 10;
const EVENT_BUFFER_BYTES: u32 = 1 << 20;
const DUMP_TIMEOUT: Duration = Duration::from_secs(1);
