//! The structs of the BPF programs' maps (`bpf/classify.h`, `bpf/xdp.bpf.c`). Sizes and offsets are asserted here and
//! there.

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
    /// 1: let only what is the kernel's as well through to the packet socket.
    pub shared_only: u32,
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

/// What a flow is found by: the endpoints as they are in the packet, in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowKey {
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub zero: [u8; 3],
}

/// A flow: what is to be done to its packets, and what it has carried. Addresses, ports and changes of checksums lie in
/// memory as in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowValue {
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    /// To the IPv4 checksum: addresses and TTL.
    pub address_change: u16,
    /// To that of TCP or UDP: addresses and ports.
    pub endpoint_change: u16,
    pub next_hop: u16,
    /// Longest IPv4 packet, in bytes.
    pub mtu: u16,
    /// [`Rules::ROLE_INTERNAL`], [`Rules::ROLE_EXTERNAL`]: of an interface that it may come in by.
    pub roles: u8,
    /// Place in [`FastPathCounters::packets`].
    pub direction: u8,
    pub window: u16,
    /// Ties all of the above but the window to the flow's key: see [`Self::sealed`].
    pub seal: u32,
    /// `CLOCK_MONOTONIC` in units of 2^30 ns.
    pub last_use: u32,
    pub packets: u64,
    pub bytes: u64,
    pub end: u32,
    pub acknowledged: u32,
}

impl FlowValue {
    /// With the seal that the program looks for: `seal_of` in `bpf/xdp.bpf.c`.
    #[must_use]
    pub fn sealed(self, key: &FlowKey) -> Self {
        let two = |low: u32, high: u32| u64::from_ne_bytes(join(low.to_ne_bytes(), high.to_ne_bytes()));
        let ports = |low: u16, high: u16| u32::from_ne_bytes(join(low.to_ne_bytes(), high.to_ne_bytes()));
        let protocol = u32::from_ne_bytes([key.protocol, 0, 0, 0]);
        let use_of = u16::from_ne_bytes([self.roles, self.direction]);
        let words = [
            (two(key.source, key.destination), 0x9e37_79b9_7f4a_7c15),
            (two(ports(key.source_port, key.destination_port), protocol), 0xc2b2_ae3d_27d4_eb4f),
            (two(self.source, self.destination), 0x1656_67b1_9e37_79f9),
            (
                two(
                    ports(self.source_port, self.destination_port),
                    ports(self.address_change, self.endpoint_change),
                ),
                0xd6e8_feb8_6659_fd93,
            ),
            (u64::from(use_of) << 32 | u64::from(ports(self.next_hop, self.mtu)), 0xff51_afd7_ed55_8ccd),
        ];
        let sum = words
            .into_iter()
            .fold(0, |sum: u64, (word, factor): (u64, u64)| sum.wrapping_add(word.wrapping_mul(factor)));
        // The high half is what a product mixes best.
        let [.., a, b, c, d] = (sum >> 32).to_be_bytes();
        Self { seal: u32::from_be_bytes([a, b, c, d]), ..self }
    }
}

/// An interface of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OurInterface {
    /// The kernel's; 0: none.
    pub index: u32,
    pub roles: u32,
    pub mac: [u8; 6],
    pub zero: [u8; 2],
}

/// Our interfaces: one-armed one, else the external and the internal one.
pub type OurInterfaces = [OurInterface; 2];

/// What the fast path counts on one processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FastPathCounters {
    /// Out, back, hairpinned.
    pub packets: [u64; 3],
    pub bytes: [u64; 3],
    /// By reason: `enum miss` in `bpf/xdp.bpf.c`.
    pub misses: [u64; 5],
    pub passed: u64,
    pub unserved: u64,
}

fn join<const N: usize, const M: usize>(low: [u8; N], high: [u8; N]) -> [u8; M] {
    let mut bytes = [0; M];
    bytes[..N].copy_from_slice(&low);
    bytes[N..].copy_from_slice(&high);
    bytes
}

// SAFETY: `repr(C)` structs of integers only, and without implicit padding, as the sizes below show.
unsafe impl aya::Pod for Rules {}
// SAFETY: as above.
unsafe impl aya::Pod for Ports {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowValue {}
// SAFETY: as above.
unsafe impl aya::Pod for OurInterface {}
// SAFETY: as above.
unsafe impl aya::Pod for FastPathCounters {}

const _: () = {
    assert!(size_of::<Prefix>() == 8);
    assert!(size_of::<Rules>() == 784);
    assert!(offset_of!(Rules, internal) == 16);
    assert!(offset_of!(Rules, bypass) == 272);
    assert!(size_of::<Ports>() == 16384);
    assert!(offset_of!(Ports, udp) == 8192);
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<FlowValue>() == 56);
    assert!(offset_of!(FlowValue, seal) == 24);
    assert!(offset_of!(FlowValue, acknowledged) == 52);
    assert!(size_of::<OurInterface>() == 16);
    assert!(size_of::<FastPathCounters>() == 104);
};
