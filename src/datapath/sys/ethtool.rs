//! Asking and telling a network driver: `SIOCETHTOOL` of `netdevice(7)`, structs of linux/ethtool.h.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// How many queues an interface has, by their kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// What the device has room for.
    pub most: ChannelCounts,
    pub present: ChannelCounts,
}

/// As `ethtool -l` shows them. A combined channel is a pair of a receive and a transmit queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCounts {
    pub receive: u32,
    pub transmit: u32,
    pub other: u32,
    pub combined: u32,
}

/// The name of the driver: `ena`, `virtio_net`, `veth`.
///
/// # Errors
/// `ENODEV` when there is no such interface, `EOPNOTSUPP` when it has no driver to speak of.
pub fn driver(interface: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    call(interface, &mut info)?;
    let name = CStr::from_bytes_until_nul(&info.driver).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

/// How many channels the interface has and could have.
///
/// # Errors
/// As [`driver`]; `EOPNOTSUPP` when the driver has no channels.
pub fn channels(interface: &str) -> io::Result<Channels> {
    let mut raw = RawChannels { command: ETHTOOL_GCHANNELS, ..RawChannels::default() };
    call(interface, &mut raw)?;
    Ok(Channels { most: raw.most.into(), present: raw.present.into() })
}

/// Gives the interface as many channels. Many drivers take the link down and up again for it.
///
/// # Errors
/// As [`channels`]; `EINVAL` when they are too many or none.
pub fn set_channels(interface: &str, counts: ChannelCounts) -> io::Result<()> {
    let mut raw = RawChannels { command: ETHTOOL_SCHANNELS, present: counts.into(), ..RawChannels::default() };
    call(interface, &mut raw)
}

/// What the driver counts, by its own names. Empty where it has no statistics.
///
/// # Errors
/// As [`driver`].
pub fn statistics(interface: &str) -> io::Result<Vec<(String, u64)>> {
    let mut sets = SetInfo { command: ETHTOOL_GSSET_INFO, reserved: 0, mask: 1 << ETH_SS_STATS, length: 0 };
    call(interface, &mut sets)?;
    // A driver without statistics takes its bit away.
    if sets.mask == 0 {
        return Ok(Vec::new());
    }
    let count = usize::try_from(sets.length).unwrap_or(usize::MAX);
    if count > MOST_STATISTICS {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut names = vec![0; 3 + ROOM_FOR_STATISTICS * NAME_BYTES / 4];
    names[..2].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_STATS]);
    call(interface, &mut names[..])?;
    let mut values = vec![0; 2 + ROOM_FOR_STATISTICS * 2];
    values[0] = ETHTOOL_GSTATS;
    call(interface, &mut values[..])?;
    // A change in between has moved them.
    if [names[2], values[1]] != [sets.length; 2] {
        return Err(io::Error::from_raw_os_error(libc::EAGAIN));
    }
    let names = names[3..].chunks_exact(NAME_BYTES / 4).map(|words| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned()
    });
    let values = values[2..].as_chunks::<2>().0.iter().map(|&[first, second]| {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&first.to_ne_bytes());
        bytes[4..].copy_from_slice(&second.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    });
    Ok(names.zip(values).take(count).collect())
}

/// Hands one of the structs below to the driver, which may write to it.
fn call<T: Request + ?Sized>(interface: &str, request: &mut T) -> io::Result<()> {
    let no_device = || io::Error::from_raw_os_error(libc::ENODEV);
    let mut name = [0; libc::IFNAMSIZ];
    // The last byte stays zero.
    let places = name.get_mut(..interface.len()).filter(|places| places.len() < libc::IFNAMSIZ);
    for (place, byte) in places.ok_or_else(no_device)?.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    let data = std::ptr::from_mut(request).cast::<libc::c_char>();
    let mut ifreq = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `ifreq` and the struct that it points to outlive the call. The kernel reads the command that the struct
    // begins with, and copies to and from it at most as many bytes as it has: see `Request`.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A struct of linux/ethtool.h that begins with its own command, in the kernel's layout and with its size. Where the
/// kernel writes a list, whose length only its driver knows, the struct has room for far more than any driver counts,
/// and than had been announced a moment before.
trait Request {}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// Versions, the bus address and sizes.
    rest: [u8; 160],
}

impl Request for DriverInfo {}

/// `struct ethtool_sset_info`, with room for one length.
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    length: u32,
}

impl Request for SetInfo {}

/// `struct ethtool_gstrings` (command, set, length, names) or `struct ethtool_stats` (command, length, values of two words
/// each), with [`ROOM_FOR_STATISTICS`].
impl Request for [u32] {}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct RawChannels {
    command: u32,
    most: RawCounts,
    present: RawCounts,
}

impl Request for RawChannels {}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawCounts {
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

impl From<RawCounts> for ChannelCounts {
    fn from(raw: RawCounts) -> Self {
        let RawCounts { receive, transmit, other, combined } = raw;
        Self { receive, transmit, other, combined }
    }
}

impl From<ChannelCounts> for RawCounts {
    fn from(counts: ChannelCounts) -> Self {
        let ChannelCounts { receive, transmit, other, combined } = counts;
        Self { receive, transmit, other, combined }
    }
}

const _: () = assert!(size_of::<DriverInfo>() == 196);
const _: () = assert!(size_of::<RawChannels>() == 36);
const _: () = assert!(std::mem::offset_of!(SetInfo, length) == 16);

/// linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

// linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETH_SS_STATS: u32 = 1;
const NAME_BYTES: usize = 32;

/// Of a driver that is asked at all: the largest network cards count some thousand.
const MOST_STATISTICS: usize = 4096;
/// The number follows that of the queues, which somebody may raise between two calls.
const ROOM_FOR_STATISTICS: usize = 4 * MOST_STATISTICS;
