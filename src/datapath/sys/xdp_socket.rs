//! The `AF_XDP` socket of one receive queue of an interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::ring::Ring;
use super::umem::{Chunk, Frame, Umem};
use super::{get_option, set_option};

/// A bound socket with its four rings.
///
/// Dropping it stops the kernel's use of its chunks only after a while: the [`Umem`] is to be dropped with all of its
/// sockets, and chunks that were in their rings are lost.
#[derive(Debug)]
pub struct XdpSocket {
    fd: OwnedFd,
    receive: Ring<libc::xdp_desc>,
    transmit: Ring<libc::xdp_desc>,
    fill: Ring<u64>,
    completion: Ring<u64>,
}

/// What the kernel counted since the socket was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpStatistics {
    /// Frames that had no room in the receive ring, or no chunk to go to.
    pub dropped: u64,
    /// Descriptors that it refused.
    pub invalid: u64,
}

impl XdpSocket {
    /// Opens a socket on a receive queue. The first one with a memory registers it; later ones `share` it by that one.
    /// Frames are copied if `copy`, else the driver has to write them into our memory itself.
    ///
    /// # Errors
    /// `EINVAL` if there is no such queue; `EBUSY` if somebody else has a socket on it; as `bind(2)`.
    pub fn open(umem: &Umem, interface: u32, queue: u32, share: Option<&Self>, copy: bool) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        if share.is_none() {
            umem.register(fd.as_fd())?;
        }
        for (ring, entries) in [
            (libc::XDP_UMEM_FILL_RING, FILL_ENTRIES),
            (libc::XDP_UMEM_COMPLETION_RING, TRANSMIT_ENTRIES),
            (libc::XDP_RX_RING, RECEIVE_ENTRIES),
            (libc::XDP_TX_RING, TRANSMIT_ENTRIES),
        ] {
            set_option(raw, libc::SOL_XDP, ring, &entries)?;
        }
        // Without a driver's zero-copy, what waits in the interface's queue counts as the socket's; the default is
        // worth some 250 frames. Without the capability it stays.
        let _ = set_option(raw, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
        let offsets: libc::xdp_mmap_offsets = get_option(raw, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
        let socket = fd.as_fd();
        let receive = Ring::map(socket, offsets.rx, RECEIVE_ENTRIES, libc::XDP_PGOFF_RX_RING)?;
        let transmit = Ring::map(socket, offsets.tx, TRANSMIT_ENTRIES, libc::XDP_PGOFF_TX_RING)?;
        let fill = Ring::map(socket, offsets.fr, FILL_ENTRIES, FILL_PAGE)?;
        let completion = Ring::map(socket, offsets.cr, TRANSMIT_ENTRIES, COMPLETION_PAGE)?;
        bind(raw, interface, queue, share.map(|first| first.fd.as_raw_fd()), copy)?;
        Ok(Self { fd, receive, transmit, fill, completion })
    }

    /// Whether the driver writes received frames into our memory itself.
    pub fn is_zero_copy(&self) -> bool {
        get_option::<u32>(self.fd.as_raw_fd(), libc::SOL_XDP, libc::XDP_OPTIONS)
            .is_ok_and(|options| options & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// The next frame that has come.
    pub fn receive(&mut self, umem: &Umem) -> Option<Frame> {
        loop {
            let descriptor = self.receive.consume()?;
            if let Some((chunk, offset)) = umem.returned(descriptor.addr) {
                return Some(Frame { chunk, offset, length: descriptor.len });
            }
        }
    }

    /// Gives the kernel chunks to receive into, as many as it takes of `free`, until `most` wait for a frame.
    pub fn refill(&mut self, umem: &Umem, free: &mut Vec<Chunk>, most: u32) {
        self.receive.release();
        let waiting = self.fill.unconsumed();
        for _ in waiting..most.min(FILL_ENTRIES) {
            let Some(chunk) = free.pop() else { break };
            if self.fill.produce(umem.place(&chunk, 0)).is_err() {
                free.push(chunk);
                break;
            }
        }
        self.fill.publish();
    }

    /// Queues a frame to be sent; gives it back when there is no room.
    pub fn queue(&mut self, umem: &Umem, frame: Frame) -> Result<(), Frame> {
        let addr = umem.place(&frame.chunk, frame.offset);
        let descriptor = libc::xdp_desc { addr, len: frame.length, options: 0 };
        self.transmit.produce(descriptor).map_err(|_| frame)
    }

    /// Has the kernel send what is queued, without waiting. Gives whether all of it is on its way.
    ///
    /// # Errors
    /// As `sendto(2)`; what was not sent stays queued.
    pub fn send(&mut self) -> io::Result<bool> {
        self.transmit.publish();
        // Without a driver's zero-copy the kernel sends some 32 frames a call.
        let mut left = None;
        loop {
            let queued = self.transmit.unconsumed();
            if queued == 0 || !self.transmit.needs_wakeup() {
                return Ok(true);
            }
            if left == Some(queued) {
                return Ok(false);
            }
            left = Some(queued);
            // SAFETY: no data and no address are given.
            let sent = unsafe {
                libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
            };
            if sent < 0 {
                match io::Error::last_os_error() {
                    // There is more than one call sends, or the interface's queue is full.
                    error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {}
                    error => return Err(error),
                }
            }
        }
    }

    /// Takes back the chunks of frames that have been sent.
    pub fn complete(&mut self, umem: &Umem, free: &mut Vec<Chunk>) {
        while let Some(place) = self.completion.consume() {
            free.extend(umem.returned(place).map(|(chunk, _)| chunk));
        }
        self.completion.release();
    }

    /// What the kernel counted.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        let counted: libc::xdp_statistics =
            get_option(self.fd.as_raw_fd(), libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(XdpStatistics {
            dropped: counted.rx_dropped + counted.rx_ring_full,
            invalid: counted.rx_invalid_descs + counted.tx_invalid_descs,
        })
    }
}

impl AsFd for XdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for XdpSocket {
    fn as_raw_fd(&self) -> libc::c_int {
        self.fd.as_raw_fd()
    }
}

fn bind(
    socket: libc::c_int,
    interface: u32,
    queue: u32,
    share: Option<libc::c_int>,
    copy: bool,
) -> io::Result<()> {
    let flags = match (share, copy) {
        // The first socket's hold for the others.
        (Some(_), _) => libc::XDP_SHARED_UMEM,
        (None, true) => libc::XDP_USE_NEED_WAKEUP | libc::XDP_COPY,
        (None, false) => libc::XDP_USE_NEED_WAKEUP | libc::XDP_ZEROCOPY,
    };
    let address = libc::sockaddr_xdp {
        sxdp_family: AF_XDP,
        sxdp_flags: flags,
        sxdp_ifindex: interface,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: share.and_then(|fd| u32::try_from(fd).ok()).unwrap_or(0),
    };
    // SAFETY: the pointer is to a `sockaddr_xdp`, whose size is given, and which outlives the call.
    let result =
        unsafe { libc::bind(socket, (&raw const address).cast(), super::size::<libc::sockaddr_xdp>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// linux/if_xdp.h, in the types that are wanted here.
const AF_XDP: u16 = 44;
const FILL_PAGE: libc::off_t = 0x1_0000_0000;
const COMPLETION_PAGE: libc::off_t = 0x1_8000_0000;

/// Powers of two. A burst of new flows waits in the receive ring while the worker is busy.
const FILL_ENTRIES: u32 = 2048;
const RECEIVE_ENTRIES: u32 = 2048;
const TRANSMIT_ENTRIES: u32 = 2048;
/// Bytes: room for all that the ring holds.
const SEND_BUFFER: libc::c_int = 8 << 20;
