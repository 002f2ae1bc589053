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

/// Hands one of the structs below to the driver, which may write to it.
fn call<T: Request>(interface: &str, request: &mut T) -> io::Result<()> {
    let no_device = || io::Error::from_raw_os_error(libc::ENODEV);
    let mut name = [0; libc::IFNAMSIZ];
    // The last byte stays zero.
    let places = name.get_mut(..interface.len()).filter(|places| places.len() < libc::IFNAMSIZ);
    for (place, byte) in places.ok_or_else(no_device)?.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    let data = std::ptr::from_mut(request).cast();
    let mut ifreq = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `ifreq` and the struct that it points to outlive the call. The kernel reads the command that the struct
    // begins with, and copies just as many bytes to and from it as that command's struct has: see `Request`.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A struct of linux/ethtool.h that begins with its own command, in the kernel's layout and with its size.
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

/// linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

// linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
