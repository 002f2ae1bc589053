//! The `AF_XDP` sockets: one for each receive queue of each of our interfaces, with one memory for all of them.
//!
//! A frame stays where it was received: it is translated there, and its chunk is handed to the ring of the socket that
//! it leaves by.

use std::io;

use crate::datapath::Counters;
use crate::datapath::sys::{Chunk, Frame, Umem, XdpSocket};

use super::program::QUEUES;

/// See the module.
pub struct Sockets {
    /// By interface, then by queue. Dropped before the memory.
    queues: Vec<Vec<XdpSocket>>,
    free: Vec<Chunk>,
    umem: Umem,
    /// What the sockets had counted when it was last asked.
    seen: u64,
}

impl Sockets {
    /// Sockets on all queues of these interfaces, each given by its index and the number of its receive queues, with
    /// room for frames of `mtu` bytes: zero-copy if all of them can, else by copies.
    ///
    /// # Errors
    /// As `bind(2)`.
    pub fn open(interfaces: &[(u32, u32)], mtu: u32) -> io::Result<Self> {
        Self::open_by(interfaces, mtu, false).or_else(|_| Self::open_by(interfaces, mtu, true))
    }

    fn open_by(interfaces: &[(u32, u32)], mtu: u32, copy: bool) -> io::Result<Self> {
        // Drivers want a page for each frame that they write themselves.
        let chunk_bytes = if copy && mtu + HEADROOM <= SMALL_CHUNK { SMALL_CHUNK } else { LARGE_CHUNK };
        let queues: u32 = interfaces.iter().map(|(_, queues)| queues).sum();
        let (umem, free) = Umem::new(queues * CHUNKS, chunk_bytes)?;
        let mut opened = Self { queues: Vec::new(), free, umem, seen: 0 };
        for &(interface, queues) in interfaces {
            let mut list = Vec::new();
            for queue in 0..queues.min(QUEUES) {
                let first = opened.queues.first().and_then(|sockets| sockets.first()).or(list.first());
                let mut socket = XdpSocket::open(&opened.umem, interface, queue, first, copy)?;
                socket.refill(&opened.umem, &mut opened.free, FILLED);
                list.push(socket);
            }
            opened.queues.push(list);
        }
        Ok(opened)
    }

    /// The sockets, each with the place of its interface and its queue.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u32, &XdpSocket)> {
        self.queues
            .iter()
            .enumerate()
            .flat_map(|(place, sockets)| (0..).zip(sockets).map(move |(queue, socket)| (place, queue, socket)))
    }

    /// How many queues an interface has.
    #[must_use]
    pub fn queues(&self, place: usize) -> usize {
        self.queues.get(place).map_or(0, Vec::len)
    }

    /// The next frame of a queue. [`Self::send`] it, or [`Self::discard`] it.
    pub fn receive(&mut self, place: usize, queue: usize) -> Option<Frame> {
        self.queues.get_mut(place)?.get_mut(queue)?.receive(&self.umem)
    }

    /// The bytes of a frame.
    pub fn bytes<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.umem.bytes(frame)
    }

    /// Queues a frame to leave by an interface, by the queue that goes with the one that it came by.
    pub fn send(&mut self, place: usize, queue: usize, frame: Frame, counters: &mut Counters) {
        let Some(sockets) = self.queues.get_mut(place).filter(|sockets| !sockets.is_empty()) else {
            counters.send_failed += 1;
            return self.discard(frame);
        };
        let count = sockets.len();
        match sockets[queue % count].queue(&self.umem, frame) {
            Ok(()) => counters.sent += 1,
            Err(frame) => {
                counters.send_failed += 1;
                self.discard(frame);
            }
        }
    }

    /// Frees a frame's chunk.
    pub fn discard(&mut self, frame: Frame) {
        self.free.push(frame.chunk);
    }

    /// Sends what is queued, takes back what was sent, and has the kernel receive again.
    pub fn turn(&mut self) {
        for socket in self.queues.iter_mut().flatten() {
            if let Err(error) = socket.send() {
                tracing::debug!(%error, "frames not sent yet");
            }
            socket.complete(&self.umem, &mut self.free);
        }
        for socket in self.queues.iter_mut().flatten() {
            socket.refill(&self.umem, &mut self.free, FILLED);
        }
    }

    /// Adds what the kernel has dropped since the last call.
    pub fn count(&mut self, counters: &mut Counters) {
        let all = self.queues.iter().flatten().filter_map(|socket| socket.statistics().ok());
        let dropped = all.map(|statistics| statistics.dropped + statistics.invalid).sum::<u64>();
        counters.receive_dropped += dropped.saturating_sub(self.seen);
        self.seen = dropped;
    }

    /// Whether the drivers write into our memory themselves.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.queues.iter().flatten().all(XdpSocket::is_zero_copy)
    }
}

/// Bytes of a chunk. The kernel keeps 256 before the frame; Ethernet takes 14.
const SMALL_CHUNK: u32 = 2048;
const LARGE_CHUNK: u32 = 4096;
const HEADROOM: u32 = 256 + 14;
/// Chunks for each queue, and how many of them wait for frames: the others are being sent.
const CHUNKS: u32 = 3072;
const FILLED: u32 = 2048;
