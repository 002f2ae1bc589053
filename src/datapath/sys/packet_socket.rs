//! The `AF_PACKET` socket of one interface: `packet(7)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::frames::{Frames, Outgoing};
use super::{get_option, set_option, size};

/// Two raw packet sockets whose frames begin with a virtio-net header: one for what the filter hands over, one that
/// sends.
#[derive(Debug)]
pub struct PacketSocket {
    receiver: OwnedFd,
    sender: OwnedFd,
}

/// What the kernel counted since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that did not fit into the receive buffer.
    pub dropped: u64,
}

impl PacketSocket {
    /// Sockets that are no interface's yet.
    ///
    /// # Errors
    /// They cannot be opened (`CAP_NET_RAW`), or the kernel lacks an option.
    pub fn open() -> io::Result<Self> {
        let [receiver, sender] = [socket()?, socket()?];
        // Not PACKET_QDISC_BYPASS: with it the kernel drops a super-frame that the interface cannot cut by itself.
        // Needs CAP_NET_ADMIN; without it the host's limit holds, which costs drops in bursts and nothing else.
        if set_option(receiver.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER_BYTES)
            .is_err()
        {
            set_option(receiver.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER_BYTES)?;
        }
        if set_option(sender.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_BYTES).is_err() {
            set_option(sender.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER_BYTES)?;
        }
        Ok(Self { receiver, sender })
    }

    /// Receives what the filter hands over on the interface from now on, and sends there.
    ///
    /// # Errors
    /// `ENODEV` when there is no such interface.
    pub fn bind(&self, interface: u32) -> io::Result<()> {
        take_only(&self.receiver, interface)?;
        bind(&self.receiver, ETH_P_8021AD, interface)?;
        // Of no protocol: it receives nothing, and what a frame is, its header says.
        bind(&self.sender, 0, interface)
    }

    /// What to wait for until there is room to send.
    #[must_use]
    pub fn sender(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }

    /// Receives up to a batch of frames without waiting. Gives how many.
    ///
    /// # Errors
    /// `WouldBlock` when there are none; `ENETDOWN` once when the interface has gone down.
    pub fn receive(&self, frames: &mut Frames) -> io::Result<usize> {
        frames.receive(self.receiver.as_fd())
    }

    /// Sends frames without waiting. Gives how many of them, from the first on, were taken: one at least.
    ///
    /// # Errors
    /// The first one's; the others were not tried.
    pub fn send(&self, outgoing: &mut Outgoing, frames: &[&[u8]]) -> io::Result<usize> {
        outgoing.send(self.sender.as_fd(), frames)
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
        let stats: TpacketStats = get_option(self.receiver.as_raw_fd(), libc::SOL_PACKET, PACKET_STATISTICS)?;
        Ok(Statistics { dropped: u64::from(stats.drops) })
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd =
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, &ON)?;
    Ok(socket)
}

/// Lets only that through which the filter has handed over on this interface: the network may send frames of that type,
/// and what comes by a VLAN on top of it is shown to its own sockets as well.
fn take_only(socket: &OwnedFd, interface: u32) -> io::Result<()> {
    let statement = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let [mark, index] =
        [libc::SKF_AD_MARK, libc::SKF_AD_IFINDEX].map(|what| (libc::SKF_AD_OFF + what).cast_unsigned());
    let mut program = [
        statement(LOAD, mark, 0),
        statement(EQUALS, HANDED_OVER, 3),
        statement(LOAD, index, 0),
        statement(EQUALS, interface, 1),
        statement(RETURN, u32::MAX, 0),
        statement(RETURN, 0, 0),
    ];
    let program = libc::sock_fprog { len: 6, filter: program.as_mut_ptr() };
    // The kernel copies it.
    set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn bind(socket: &OwnedFd, protocol: u16, interface: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: AF_PACKET,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(interface).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a `sockaddr_ll`, whose size is given, and which outlives the call.
    let result =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size::<libc::sockaddr_ll>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl AsFd for PacketSocket {
    /// What to wait for until there are frames.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

// linux/if_packet.h, which the libc crate has for some targets only; and what it has in other types.
const AF_PACKET: u16 = 17;
/// The type and the mark of frames that the filter hands over; see `bpf/filter.bpf.c`.
const ETH_P_8021AD: u16 = 0x88a8;
const HANDED_OVER: u32 = 0x4547_5254;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_VNET_HDR: libc::c_int = 15;
const ON: libc::c_int = 1;
// linux/bpf_common.h, combined: LD | W | ABS, JMP | JEQ | K, RET | K.
const LOAD: u16 = 0x20;
const EQUALS: u16 = 0x15;
const RETURN: u16 = 0x06;

/// The kernel doubles both. Bounded, since it is memory that a burst can make the kernel hold.
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 << 20;
const SEND_BUFFER_BYTES: libc::c_int = 4 << 20;
