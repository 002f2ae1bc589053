//! System calls that no safe crate offers, and the structs that are shared with the BPF program.
//!
//! The only place of the `af_packet` datapath with `unsafe`. Owns the packet socket (`packet(7)`) and the memory that
//! frames are received into; knows nothing of what is in a frame.

#![allow(unsafe_code)]

mod frames;
mod packet_socket;
mod shared;

pub use frames::{BATCH, Frames, Outgoing};
pub use packet_socket::PacketSocket;
pub use shared::{Ports, Prefix, Rules};

use std::io;

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
