//! Moving packets between the engine and `AF_PACKET` sockets.
//!
//! Frames are received in batches, translated where they lie, and sent from there. A super-frame stays in one piece:
//! its virtio-net header tells the engine what is left to do on it, and tells the kernel the same on the way out.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use nix::poll::{PollFd, PollFlags};

use super::Counters;
use super::classifier::{BpfError, ClassifierConfig, Roles};
use super::filter::Filter;
use super::forwarding::{ETHERNET, ETHERTYPE_IPV4, Forwarded, Forwarding, destination_of, write_addresses};
use super::netlink::Link;
use super::next_hop::{Hop, Mac};
use super::sys::{BATCH, Frames, Outgoing, PacketSocket};
use super::vnet::VnetHeader;
use crate::nat::{Engine, Side, Transmit};
use crate::time::Instant;

/// Why there is no traffic on an interface.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("packet socket")]
    Socket(#[source] io::Error),
    #[error("packet filter")]
    Filter(#[from] BpfError),
}

/// One of our interfaces, with its socket and its filter.
pub struct Port {
    pub name: String,
    /// 0: there is no such interface.
    pub index: u32,
    pub mac: Mac,
    pub mtu: u32,
    /// Up, and with a carrier.
    pub running: bool,
    pub roles: Roles,
    open: Option<Open>,
}

struct Open {
    socket: PacketSocket,
    filter: Filter,
}

impl Port {
    /// A port on an interface, closed so far.
    #[must_use]
    pub fn new(name: String, roles: Roles) -> Self {
        Self { name, index: 0, mac: Mac::default(), mtu: 0, running: false, roles, open: None }
    }

    /// Whether frames can come and go.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What to poll for frames.
    #[must_use]
    pub fn socket(&self) -> Option<&PacketSocket> {
        self.open.as_ref().map(|open| &open.socket)
    }

    /// Takes in what the link is now; gives whether the port must be opened (again).
    pub fn update(&mut self, link: Option<&Link>) -> bool {
        let Some((link, mac)) = link.and_then(|link| Some((link, link.mac?))) else {
            self.running = false;
            self.index = 0;
            self.close();
            return false;
        };
        if self.index != link.index {
            self.close();
        }
        self.index = link.index;
        self.mac = mac;
        self.mtu = link.mtu;
        self.running = link.running;
        self.open.is_none()
    }

    /// Opens the socket and attaches the filter.
    ///
    /// # Errors
    /// See [`PortError`]; the port stays closed.
    pub fn open(&mut self, config: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<(), PortError> {
        let mut filter = Filter::load(config, host)?;
        let socket = PacketSocket::open().map_err(PortError::Socket)?;
        socket.bind(self.index).map_err(PortError::Socket)?;
        filter.divert(&self.name)?;
        self.open = Some(Open { socket, filter });
        Ok(())
    }

    /// Detaches the filter and closes the socket.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Changes what the filter goes by.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn configure(&mut self, config: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<(), BpfError> {
        self.open.as_mut().map_or(Ok(()), |open| open.filter.configure(config, host))
    }
}

/// The packets' way: ports, buffers, next hops.
pub struct AfPacket {
    /// One-armed one, else the external and the internal one.
    pub ports: Vec<Port>,
    pub forwarding: Forwarding,
    frames: Frames,
    outgoing: Outgoing,
    /// What is to be sent by each port, in order.
    queues: Vec<Vec<Queued>>,
    /// Frames that the engine made; the memory is used again.
    made: Vec<Vec<u8>>,
    made_count: usize,
}

#[derive(Clone, Copy)]
enum Queued {
    /// Place in the batch, and bytes.
    Received(usize, usize),
    /// Place in `made`.
    Made(usize),
}

impl AfPacket {
    #[must_use]
    pub fn new(ports: Vec<Port>) -> Self {
        Self {
            forwarding: Forwarding::new(ports.iter().map(|port| port.index).collect()),
            queues: ports.iter().map(|_| Vec::with_capacity(BATCH)).collect(),
            ports,
            frames: Frames::new(),
            outgoing: Outgoing::new(),
            made: Vec::new(),
            made_count: 0,
        }
    }

    /// The port of a side.
    #[must_use]
    pub fn port(&self, side: Side) -> usize {
        match side {
            Side::External => 0,
            Side::Internal => self.ports.len() - 1,
        }
    }

    /// Moves at most one batch from each port. Gives whether there may be more.
    pub fn pump(&mut self, now: Instant, engine: &mut Engine) -> bool {
        let mut more = false;
        for port in 0..self.ports.len() {
            let Some(open) = &self.ports[port].open else { continue };
            let count = match open.socket.receive(&mut self.frames) {
                Ok(count) => count,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    0
                }
                // Said once when the link goes down; the socket is good again when it comes up.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => 0,
                Err(error) => {
                    tracing::error!(interface = self.ports[port].name, %error, "cannot receive, opening anew");
                    self.ports[port].close();
                    0
                }
            };
            self.forwarding.counters.received += count as u64;
            for index in 0..count {
                self.translate(now, engine, port, index);
            }
            self.flush();
            more |= count == BATCH;
        }
        more
    }

    /// Queues whatever the engine has to send. [`Self::flush`] sends it.
    pub fn queue_transmits(&mut self, now: Instant, engine: &mut Engine) {
        while let Some(transmit) = engine.poll_transmit() {
            self.queue_made(now, &transmit);
        }
    }

    /// Sends the frames whose neighbour has been found.
    pub fn send_released(&mut self) {
        while let Some(mut released) = self.forwarding.next_hops.poll_released() {
            let Some(port) = self.ports.iter().position(|port| port.index == released.interface) else {
                continue;
            };
            if let Some(ethernet) = released.frame.get_mut(VnetHeader::BYTES..) {
                write_addresses(ethernet, released.mac, self.ports[port].mac);
                self.queue_frame(port, released.frame);
            }
        }
        self.flush();
    }

    /// Sends all that is queued.
    pub fn flush(&mut self) {
        for (port, queue) in self.ports.iter().zip(&mut self.queues) {
            for chunk in queue.chunks(BATCH) {
                let mut list: [&[u8]; BATCH] = [&[]; BATCH];
                let mut count = 0;
                for queued in chunk {
                    let frame = match *queued {
                        Queued::Received(index, length) => {
                            self.frames.frame(index).and_then(|frame| frame.get(..length))
                        }
                        Queued::Made(index) => self.made.get(index).map(Vec::as_slice),
                    };
                    if let Some(frame) = frame {
                        list[count] = frame;
                        count += 1;
                    }
                }
                send_all(port, &mut self.outgoing, &list[..count], &mut self.forwarding.counters);
            }
            queue.clear();
        }
        self.made_count = 0;
        self.made.truncate(BATCH);
    }

    fn translate(&mut self, now: Instant, engine: &mut Engine, port: usize, index: usize) {
        let Some(frame) = self.frames.frame_mut(index) else {
            self.forwarding.counters.receive_malformed += 1;
            return;
        };
        let Some((head, ethernet)) = frame.split_first_chunk_mut::<{ VnetHeader::BYTES }>() else {
            self.forwarding.counters.receive_malformed += 1;
            return;
        };
        let header = VnetHeader::received(*head);
        let transport = ETHERNET + ethernet.get(ETHERNET).map_or(0, |byte| usize::from(byte & 0x0f) * 4);
        let Some(offload) = header.offload(transport) else {
            self.forwarding.counters.receive_malformed += 1;
            return;
        };
        match self.forwarding.forward(now, engine, &self.ports, port, ethernet, offload) {
            Forwarded::Send { port, length, offload: left } => {
                *head = header.translated(offload, left).bytes();
                self.queues[port].push(Queued::Received(index, VnetHeader::BYTES + length));
            }
            Forwarded::Hold { port, gateway, length, offload: left } => {
                *head = header.translated(offload, left).bytes();
                let frame = &frame[..VnetHeader::BYTES + length];
                self.forwarding.next_hops.hold(self.ports[port].index, gateway, frame);
            }
            Forwarded::Nothing => {}
        }
        self.queue_transmits(now, engine);
    }

    fn queue_made(&mut self, now: Instant, transmit: &Transmit) {
        let port = self.port(transmit.side);
        let Some(destination) = destination_of(&transmit.packet) else { return };
        let out = &self.ports[port];
        let mut head = [0; HEAD];
        head[HEAD - 2..].copy_from_slice(&ETHERTYPE_IPV4);
        let hop = self.forwarding.next_hops.lookup(now, out.index, destination);
        if let Hop::Ready(mac) = hop {
            write_addresses(&mut head[VnetHeader::BYTES..], mac, out.mac);
        }
        let mut frame = self.made.get_mut(self.made_count).map(std::mem::take).unwrap_or_default();
        frame.clear();
        frame.extend_from_slice(&head);
        frame.extend_from_slice(&transmit.packet);
        match hop {
            Hop::Ready(_) => self.queue_frame(port, frame),
            Hop::Unresolved(gateway) => self.forwarding.next_hops.hold(out.index, gateway, &frame),
            Hop::Unreachable => self.forwarding.counters.unreachable_dropped += 1,
        }
    }

    fn queue_frame(&mut self, port: usize, frame: Vec<u8>) {
        match self.made.get_mut(self.made_count) {
            Some(place) => *place = frame,
            None => self.made.push(frame),
        }
        self.queues[port].push(Queued::Made(self.made_count));
        self.made_count += 1;
    }
}

/// Sends what the socket takes; waits a little for room, then drops the rest and counts it.
fn send_all(port: &Port, outgoing: &mut Outgoing, mut frames: &[&[u8]], counters: &mut Counters) {
    let Some(open) = &port.open else {
        counters.send_failed += frames.len() as u64;
        return;
    };
    let mut waits = 0;
    while !frames.is_empty() {
        match open.socket.send(outgoing, frames) {
            Ok(sent) => {
                counters.sent += sent as u64;
                frames = frames.get(sent..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits < SEND_WAITS => {
                waits += 1;
                let mut poll = [PollFd::new(open.socket.sender(), PollFlags::POLLOUT)];
                // Whatever comes of it, the next send tells.
                let _ = nix::poll::poll(&mut poll, SEND_WAIT_MILLIS);
            }
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    || matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV)) =>
            {
                counters.send_failed += frames.len() as u64;
                return;
            }
            // Of this one frame: too long, or the queue of the interface was full.
            Err(error) => {
                tracing::trace!(interface = port.name, %error, "frame not sent");
                counters.send_failed += 1;
                frames = &frames[1..];
            }
        }
    }
}

/// The virtio-net and the Ethernet header.
const HEAD: usize = VnetHeader::BYTES + ETHERNET;

/// How often, and how long each time, a full socket is waited for.
const SEND_WAITS: u32 = 2;
const SEND_WAIT_MILLIS: u8 = 1;
