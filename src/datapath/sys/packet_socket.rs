//! The `AF_PACKET` socket of one interface: `packet(7)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::frames::{Frames, Outgoing};
use super::{get_option, set_option, size};

/// A raw packet socket whose frames begin with a virtio-net header.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// What the kernel counted since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that did not fit into the receive buffer.
    pub dropped: u64,
}

impl PacketSocket {
    /// A socket that receives nothing yet. Attach the filter, then [`Self::bind`] it: no frame slips past the filter
    /// in between.
    ///
    /// # Errors
    /// The socket cannot be opened (`CAP_NET_RAW`), or the kernel lacks an option (Linux 4.20 or later).
    pub fn open() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened, and nothing else owns it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        socket.set_option(libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
        socket.set_option(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        // Not PACKET_QDISC_BYPASS: with it the kernel drops a super-frame that the interface cannot cut by itself.
        // Needs CAP_NET_ADMIN; without it the host's limit holds, which costs drops in bursts and nothing else.
        if socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES).is_err() {
            socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER_BYTES)?;
        }
        if socket.set_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES).is_err() {
            socket.set_option(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER_BYTES)?;
        }
        Ok(socket)
    }

    /// Receives all frames of the interface from now on, and sends on it.
    ///
    /// # Errors
    /// `ENODEV` when there is no such interface.
    pub fn bind(&self, interface: u32) -> io::Result<()> {
        // All protocols, since only those taps come before tc ingress, where our own filter drops.
        const PROTOCOL: u16 = ETH_P_ALL.to_be();
        let address = libc::sockaddr_ll {
            sll_family: AF_PACKET,
            sll_protocol: PROTOCOL,
            sll_ifindex: i32::try_from(interface).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the pointer is to a `sockaddr_ll`, whose size is given, and which outlives the call.
        let result = unsafe {
            libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), size::<libc::sockaddr_ll>())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Receives up to a batch of frames without waiting. Gives how many.
    ///
    /// # Errors
    /// `WouldBlock` when there are none; `ENETDOWN` once when the interface has gone down.
    pub fn receive(&self, frames: &mut Frames) -> io::Result<usize> {
        frames.receive(self.fd.as_fd())
    }

    /// Sends frames without waiting. Gives how many of them, from the first on, were taken: one at least.
    ///
    /// # Errors
    /// The first one's; the others were not tried.
    pub fn send(&self, outgoing: &mut Outgoing, frames: &[&[u8]]) -> io::Result<usize> {
        outgoing.send(self.fd.as_fd(), frames)
    }

    /// What the kernel counted since the last call, which sets it back to zero.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn take_statistics(&self) -> io::Result<Statistics> {
        #[repr(C)]
        #[derive(Clone, Copy)]
        #[allow(dead_code, reason = "as the kernel lays it out")]
        struct TpacketStats {
            packets: u32,
            drops: u32,
        }
        let stats: TpacketStats = get_option(self.fd.as_raw_fd(), libc::SOL_PACKET, PACKET_STATISTICS)?;
        Ok(Statistics { dropped: u64::from(stats.drops) })
    }

    fn set_option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        set_option(self.fd.as_raw_fd(), level, name, &value)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// linux/if_packet.h, which the libc crate has for some targets only; and what it has in other types.
const AF_PACKET: u16 = 17;
const ETH_P_ALL: u16 = 3;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// The kernel doubles both. Bounded, since it is memory that a burst can make the kernel hold.
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 << 20;
const SEND_BUFFER_BYTES: libc::c_int = 4 << 20;
