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

/// An address that the host knows, and what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Address {
    pub address: u32,
    pub kind: u32,
}

/// What the filter of one interface goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rules {
    /// [`Self::ROLE_INTERNAL`], [`Self::ROLE_EXTERNAL`], or both.
    pub roles: u32,
    pub internal_count: u32,
    pub bypass_count: u32,
    /// 1: hand over only copies of what is the kernel's as well.
    pub shared_only: u32,
    pub internal: [Prefix; Self::INTERNAL_PREFIXES],
    pub bypass: [Prefix; Self::BYPASS_PREFIXES],
    /// Some of all addresses, to be found without a look-up.
    pub first: [Address; Self::FIRST_ADDRESSES],
    /// 1: there are no others.
    pub all_first: u32,
    pub zero: u32,
}

impl Rules {
    pub const INTERNAL_PREFIXES: usize = 32;
    pub const BYPASS_PREFIXES: usize = 64;
    pub const FIRST_ADDRESSES: usize = 4;
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

/// Where a packet comes from and goes to, as it lies in it: in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoints {
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
}

/// What a flow is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    pub endpoints: Endpoints,
    pub protocol: u8,
}

/// A slot of the flow table: a flow's key, what is to be done to its packets, and what it has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowSlot {
    pub matches: Endpoints,
    /// 0: there is no flow here.
    pub protocol: u8,
    /// [`Rules::ROLE_INTERNAL`], [`Rules::ROLE_EXTERNAL`]: of an interface that it may come in by.
    pub roles: u8,
    /// Place in [`FastPathCounters::packets`].
    pub direction: u8,
    /// Of the slot, whatever flow is in it: how many slots behind it flows lie at most whose home it is.
    pub reach: u8,
    pub becomes: Endpoints,
    pub next_hop: u16,
    pub window: u16,
    /// Ties all of the above but reach and window together: see [`Self::sealed`].
    pub seal: u32,
    /// `CLOCK_MONOTONIC` in units of 2^30 ns.
    pub last_use: u32,
    pub packets: u64,
    pub bytes: u64,
    pub end: u32,
    pub acknowledged: u32,
}

impl FlowKey {
    /// As a slot begins, with nothing in the place of what is no key.
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        let flow = FlowSlot { matches: self.endpoints, protocol: self.protocol, ..FlowSlot::default() };
        let [a, b, ..] = flow.words();
        [a, b]
    }
}

impl FlowSlot {
    /// Whether there is no flow here.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.protocol == 0
    }

    #[must_use]
    pub const fn key(&self) -> FlowKey {
        FlowKey { endpoints: self.matches, protocol: self.protocol }
    }

    /// With the seal that the program looks for: `seal_of` in `bpf/xdp.bpf.c`.
    #[must_use]
    pub fn sealed(self) -> Self {
        let [a, b, c, d, ..] = Self { reach: 0, window: 0, ..self }.words();
        let factors =
            [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0xd6e8_feb8_6659_fd93];
        let sum = [a, b, c, d]
            .into_iter()
            .zip(factors)
            .fold(0, |sum: u64, (word, factor): (u64, u64)| sum.wrapping_add(word.wrapping_mul(factor)));
        Self { seal: high_half(sum), ..self }
    }

    /// As it lies in memory.
    #[must_use]
    pub const fn words(self) -> [u64; 8] {
        // SAFETY: of one size, both integers only, without padding as the offsets below show.
        unsafe { std::mem::transmute(self) }
    }

    /// The opposite of [`Self::words`].
    #[must_use]
    pub const fn from_words(words: [u64; 8]) -> Self {
        // SAFETY: as above; any bits make integers.
        unsafe { std::mem::transmute(words) }
    }
}

/// Of a product, what is mixed best.
#[must_use]
pub const fn high_half(product: u64) -> u32 {
    (product >> 32) as u32
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
    /// Counts nothing: see `struct clock` in `bpf/xdp.bpf.c`.
    pub clock: [u64; 2],
    /// By reason: `enum miss` in `bpf/xdp.bpf.c`.
    pub misses: [u64; 5],
    pub passed: u64,
    pub unserved: u64,
}

// SAFETY: `repr(C)` structs of integers only, and without implicit padding, as the sizes below show.
unsafe impl aya::Pod for Rules {}
// SAFETY: as above.
unsafe impl aya::Pod for Ports {}
// SAFETY: as above.
unsafe impl aya::Pod for OurInterface {}
// SAFETY: as above.
unsafe impl aya::Pod for FastPathCounters {}

const _: () = {
    assert!(size_of::<Prefix>() == 8);
    assert!(size_of::<Rules>() == 824);
    assert!(offset_of!(Rules, internal) == 16);
    assert!(offset_of!(Rules, bypass) == 272);
    assert!(offset_of!(Rules, first) == 784);
    assert!(size_of::<Ports>() == 16384);
    assert!(offset_of!(Ports, udp) == 8192);
    assert!(size_of::<Endpoints>() == 12);
    assert!(size_of::<FlowSlot>() == 64);
    assert!(offset_of!(FlowSlot, protocol) == 12);
    assert!(offset_of!(FlowSlot, reach) == 15);
    assert!(offset_of!(FlowSlot, becomes) == 16);
    assert!(offset_of!(FlowSlot, window) == 30);
    assert!(offset_of!(FlowSlot, seal) == 32);
    assert!(offset_of!(FlowSlot, packets) == 40);
    assert!(offset_of!(FlowSlot, acknowledged) == 60);
    assert!(size_of::<OurInterface>() == 16);
    assert!(size_of::<FastPathCounters>() == 120);
};
