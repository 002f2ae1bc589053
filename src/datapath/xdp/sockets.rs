//! The `AF_XDP` sockets: one for each receive queue of each of our interfaces, with one memory for all of them.
//!
//! A frame stays where it was received: it is translated there, and its chunk is handed to the ring of the socket that
//! it leaves by.

use std::io;
use std::time::Duration;

use crate::datapath::Counters;
use crate::datapath::sys::{Chunk, Frame, Umem, XdpSocket};

use super::program::QUEUES;

/// See the module.
pub struct Sockets {
    /// By interface, then by queue. Dropped before the memory.
    queues: Vec<Vec<XdpSocket>>,
    /// By interface: how many queues it sends by.
    sending: Vec<u32>,
    free: Vec<Chunk>,
    umem: Umem,
    chunk_bytes: u32,
    /// Whether the kernel could not take all that was to be sent.
    unsent: bool,
    /// What the sockets had counted when it was last asked.
    seen: u64,
}

/// The queues of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// The kernel's index of the interface.
    pub interface: u32,
    pub receive: u32,
    pub transmit: u32,
}

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    #[error("the AF_XDP sockets cannot be opened")]
    Io(#[from] io::Error),
    #[error("{0} receive queues are more than the {QUEUES} that an interface may have; set fewer (ethtool -L)")]
    TooManyQueues(u32),
    #[error("an MTU of {0} is more than AF_XDP has room for ({LARGEST_MTU}); lower it (ip link set ... mtu)")]
    TooLong(u32),
}

impl Sockets {
    /// Sockets on all queues of these interfaces, with room for frames of `mtu` bytes: zero-copy if all of them can,
    /// else by copies.
    ///
    /// # Errors
    /// See [`SocketsError`].
    pub fn open(interfaces: &[Queues], mtu: u32) -> Result<Self, SocketsError> {
        if let Some(queues) = interfaces.iter().find(|queues| queues.receive > QUEUES) {
            return Err(SocketsError::TooManyQueues(queues.receive));
        }
        if mtu > LARGEST_MTU {
            return Err(SocketsError::TooLong(mtu));
        }
        let opened = Self::open_when_free(interfaces, mtu, false);
        Ok(opened.or_else(|_| Self::open_when_free(interfaces, mtu, true))?)
    }

    /// The kernel lets go of a closed socket's queue only after a moment.
    fn open_when_free(interfaces: &[Queues], mtu: u32, copy: bool) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            match Self::open_by(interfaces, mtu, copy) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < BUSY_TRIES => {
                    tries += 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn open_by(interfaces: &[Queues], mtu: u32, copy: bool) -> io::Result<Self> {
        // Drivers want a page for each frame that they write themselves.
        let chunk_bytes = if copy && mtu + HEADROOM <= SMALL_CHUNK { SMALL_CHUNK } else { LARGE_CHUNK };
        let queues: u32 = interfaces.iter().map(|queues| queues.receive).sum();
        let (umem, free) = Umem::new(queues * CHUNKS, chunk_bytes)?;
        let sending = interfaces.iter().map(|queues| queues.transmit.min(queues.receive)).collect();
        let mut opened = Self { queues: Vec::new(), sending, free, umem, chunk_bytes, unsent: false, seen: 0 };
        for &Queues { interface, receive, .. } in interfaces {
            let mut list = Vec::new();
            for queue in 0..receive {
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

    /// Whether frames of an MTU have room.
    #[must_use]
    pub const fn fit(&self, mtu: u32) -> bool {
        mtu + HEADROOM <= self.chunk_bytes
    }

    /// Whether something waits that the kernel could not take: there will be no event for it.
    #[must_use]
    pub const fn has_unsent(&self) -> bool {
        self.unsent
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
        // A socket on a queue that there is only for receiving would keep it for ever.
        let sending = self.sending.get(place).map_or(0, |&count| count as usize);
        let sockets = self.queues.get_mut(place);
        let socket = queue.checked_rem(sending).and_then(|queue| sockets?.get_mut(queue));
        let Some(socket) = socket else {
            counters.send_failed += 1;
            return self.discard(frame);
        };
        match socket.queue(&self.umem, frame) {
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
        self.unsent = false;
        for socket in self.queues.iter_mut().flatten() {
            match socket.send() {
                Ok(all) => self.unsent |= !all,
                Err(error) => {
                    self.unsent = true;
                    tracing::debug!(%error, "frames not sent yet");
                }
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
const LARGEST_MTU: u32 = LARGE_CHUNK - HEADROOM;
/// For half a second.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// Chunks for each queue, and how many of them wait for frames: the others are being sent.
const CHUNKS: u32 = 3072;
const FILLED: u32 = 2048;
