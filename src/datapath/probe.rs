//! What this host has of what the datapaths need, found out without changing anything: programs are loaded and thrown
//! away, sockets opened and closed, nothing is attached or bound.

use std::collections::BTreeSet;
use std::io;

use socket2::{Domain, Socket, Type};

use super::classifier::{BpfError, ClassifierConfig, Roles};
use super::filter::Filter;
use super::xdp::{self, MTU_LIMITS};
use super::{Error, netlink, sys};
use crate::nat;

/// What the kernel offers to this process.
#[derive(Debug)]
pub struct Kernel {
    /// Its release, as `uname -r` gives it.
    pub release: String,
    /// Whether it takes the programs that divide packets between NAT and the kernel.
    pub filter: Result<(), BpfError>,
    /// Whether it takes the fast path's program.
    pub xdp: Result<(), BpfError>,
    /// Whether there are `AF_XDP` sockets.
    pub af_xdp: io::Result<()>,
}

/// A link, as far as XDP goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// `ena`, `virtio_net`, ...; `unknown` if it does not say.
    pub driver: String,
    /// Whether the driver is known to do XDP itself.
    pub native_xdp: bool,
    /// In bytes, without the link-layer header.
    pub mtu: u32,
    /// Up, and with a carrier.
    pub running: bool,
    /// The id and the mode of the program that is attached.
    pub program: Option<(u32, &'static str)>,
    /// Queue pairs in use, and what the device has room for; zeroes if the driver has none to speak of.
    pub queues: (u32, u32),
}

/// The largest MTU that drivers with native XDP are known to take, in bytes.
pub const LARGEST_XDP_MTU: u32 = MTU_LIMITS[0];

/// Asks the kernel.
#[must_use]
pub fn kernel() -> Kernel {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let host = BTreeSet::new();
    let roles = Roles { internal: true, external: true };
    let rules = ClassifierConfig::new(roles, &[], &nat::Config::default());
    let (filter, xdp) = match rules {
        Ok(rules) => (Filter::load(&rules, &host).map(drop), xdp::try_load(&rules, &host)),
        Err(error) => (Err(error), Ok(())),
    };
    let af_xdp = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).map(drop);
    Kernel { release: release.unwrap_or_else(|_| "unknown".to_owned()), filter, xdp, af_xdp }
}

/// Asks for a link; none if it is not there.
///
/// # Errors
/// The kernel's links cannot be read.
pub fn link(index: u32) -> Result<Option<Link>, Error> {
    let Some(link) = netlink::link(index).map_err(Error::Netlink)? else { return Ok(None) };
    let driver = sys::driver(&link.name).unwrap_or_else(|_| "unknown".to_owned());
    let channels = sys::channels(&link.name).unwrap_or_default();
    Ok(Some(Link {
        native_xdp: NATIVE.contains(&driver.as_str()),
        driver,
        mtu: link.mtu,
        running: link.running,
        program: link.xdp.map(|program| (program.id, program.mode)),
        queues: (channels.present.combined, channels.most.combined),
    }))
}

/// Drivers of Linux that set `XDP_FEATURES` or have an XDP path of their own, of those that a gateway may have.
const NATIVE: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "ena",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];
