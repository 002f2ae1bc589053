//! The structs that `bpf/filter.bpf.c` reads from its maps. Sizes and offsets are asserted here and there.

use std::mem::{offset_of, size_of};

/// An IPv4 prefix. Both in network byte order, as they are in a packet: an address is in the prefix if
/// `address & mask == self.address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Prefix {
    pub address: u32,
    pub mask: u32,
}

/// What the filter of one interface goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rules {
    /// [`Self::ROLE_INTERNAL`], [`Self::ROLE_EXTERNAL`], or both.
    pub roles: u32,
    pub internal_count: u32,
    pub bypass_count: u32,
    pub padding: u32,
    pub internal: [Prefix; Self::INTERNAL_PREFIXES],
    pub bypass: [Prefix; Self::BYPASS_PREFIXES],
}

impl Rules {
    pub const INTERNAL_PREFIXES: usize = 32;
    pub const BYPASS_PREFIXES: usize = 64;
    pub const ROLE_INTERNAL: u32 = 1;
    pub const ROLE_EXTERNAL: u32 = 2;
}

/// A bit for each port that belongs to NAT; port 0 is the lowest bit of the first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ports {
    pub tcp: [u64; 1024],
    pub udp: [u64; 1024],
}

// SAFETY: `repr(C)` structs of integers only, and without implicit padding, as the sizes below show.
unsafe impl aya::Pod for Rules {}
// SAFETY: as above.
unsafe impl aya::Pod for Ports {}

const _: () = {
    assert!(size_of::<Prefix>() == 8);
    assert!(size_of::<Rules>() == 784);
    assert!(offset_of!(Rules, internal) == 16);
    assert!(offset_of!(Rules, bypass) == 272);
    assert!(size_of::<Ports>() == 16384);
    assert!(offset_of!(Ports, udp) == 8192);
};
