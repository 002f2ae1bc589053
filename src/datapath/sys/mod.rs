//! System calls that no safe crate offers, and the structs that are shared with the BPF program.
//!
//! The only place of the datapath with `unsafe`. Owns the packet sockets (`packet(7)`), the `AF_XDP` socket, the memory
//! that frames are received into, and that of the flow table; knows nothing of what is in a frame.

#![allow(unsafe_code)]

mod ethtool;
mod frames;
mod mapping;
mod packet_socket;
mod ring;
mod shared;
mod slots;
mod umem;
mod xdp_link;
mod xdp_socket;

pub use ethtool::{ChannelCounts, Channels, channels, driver, set_channels, statistics};
pub use frames::{BATCH, Frames, Outgoing};
pub use packet_socket::PacketSocket;
pub use shared::{
    Address, Endpoints, FastPathCounters, FlowKey, FlowSlot, OurInterface, OurInterfaces, Ports, Prefix, Rules,
    high_half,
};
pub use slots::Slots;
pub use umem::{Chunk, Frame, Umem};
pub use xdp_link::XdpLink;
pub use xdp_socket::XdpSocket;

use std::io;
use std::mem::MaybeUninit;

/// 16 bytes of the kernel's randomness.
///
/// # Errors
/// `getrandom(2)` failed, or was interrupted.
pub fn random_seed() -> io::Result<[u8; 16]> {
    let mut seed = [0; 16];
    // SAFETY: the pointer and the length are those of `seed`.
    let count = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    if usize::try_from(count) == Ok(seed.len()) { Ok(seed) } else { Err(io::Error::last_os_error()) }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
///
/// # Errors
/// As `clock_gettime(2)`.
pub fn monotonic_nanos() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

/// `setsockopt(2)` with a plain value.
fn set_option<T: Copy>(
    socket: libc::c_int,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the pointer is to a value whose size is given, and which outlives the call.
    let result =
        unsafe { libc::setsockopt(socket, level, name, std::ptr::from_ref(value).cast(), size::<T>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `getsockopt(2)` of a struct of integers; what an older kernel does not know of it is zero.
fn get_option<T: Copy>(socket: libc::c_int, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size::<T>();
    // SAFETY: the pointers are to a value of the length given, and to that length.
    let result = unsafe { libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: integers only, zeroed before.
    Ok(unsafe { value.assume_init() })
}

/// The size of a small struct, as the socket calls want it.
#[expect(clippy::cast_possible_truncation, reason = "a struct of a few bytes")]
const fn size<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
