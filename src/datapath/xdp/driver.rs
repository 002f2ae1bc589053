//! What a network driver demands before it takes a native XDP program.
//!
//! Owns the tries: what stands in the way is found out from the driver's answer and the interface's state, changed
//! where that is allowed, and put back when the program has gone. It never takes a foreign program's place. It knows
//! nothing of the program itself; the caller attaches it.
//!
//! The drivers' reasons: a packet has to fit into one page, beside room for headers, which bounds the MTU (ENA:
//! `ENA_XDP_MAX_MTU`; veth bounds its peer's); and ENA sends what the program sends by queues of its own, as many as
//! there are others, so that at most half of the device's may be in use (amzn-drivers, issues 164 and 240).

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::super::XdpConfig;
use super::super::netlink::{self, AttachedXdp, Events, EventsError, Link};
use super::super::sys::{self, ChannelCounts, Channels};

/// Attaches by `attach`, which has to be in native mode and must not replace a program, and does what the driver
/// demands until that succeeds.
///
/// Keep the two results in this order: what was adjusted can be put back only after the program has gone.
///
/// # Errors
/// See [`DriverError`]; everything is then as it was.
pub fn attach<T>(
    index: u32,
    config: XdpConfig,
    mut attach: impl FnMut() -> io::Result<T>,
) -> Result<(T, Adjusted), DriverError> {
    let found = link(index)?;
    if let Some(program) = found.xdp {
        return Err(foreign(&found.name, program));
    }
    let driver = sys::driver(&found.name).unwrap_or_else(|_| "unknown".to_owned());
    let mut adjusted = Adjusted { interface: found.name.clone(), index, mtu: None, channels: None };
    loop {
        let error = match attach() {
            Ok(attached) => return Ok((attached, adjusted)),
            Err(error) => error,
        };
        let link = link(index)?;
        if let Some(program) = link.xdp {
            return Err(foreign(&link.name, program));
        }
        let channels = sys::channels(&link.name).unwrap_or_default();
        let facts =
            Facts { errno: error.raw_os_error().unwrap_or(0), driver: &driver, mtu: link.mtu, channels };
        tracing::debug!(interface = link.name, %error, ?facts, "driver refuses the program");
        match facts.next(config) {
            Step::LowerMtu(mtu) => adjusted.set_mtu(link.mtu, mtu)?,
            Step::SetChannels(counts) => adjusted.set_channels(channels.present, counts)?,
            Step::GiveUp(reason) => {
                let interface = link.name;
                return Err(DriverError::Refused { interface, driver, reason, source: error });
            }
        }
    }
}

/// Waits until the link is up and has a carrier; some drivers take it down to attach a program. Gives whether it is.
///
/// # Errors
/// The kernel's links cannot be read.
pub fn wait_running(index: u32, at_most: Duration) -> io::Result<bool> {
    let deadline = now() + at_most;
    // Before the link is looked at, so that no change falls in between.
    let mut events = Events::subscribe()?;
    loop {
        if netlink::link(index)?.is_some_and(|link| link.running) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Ok(false);
        }
        // Rounded up, or the last millisecond would be spent spinning.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], left) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match events.read(|_| {}) {
            Ok(()) | Err(EventsError::Overflow) => {}
            Err(EventsError::Io(error)) => return Err(error),
        }
    }
}

/// What was changed at an interface. Dropping it puts that back, but for what somebody else has changed since.
///
/// A process that is killed (`SIGKILL`) has no chance to do so.
#[derive(Debug)]
pub struct Adjusted {
    interface: String,
    index: u32,
    mtu: Option<Change<u32>>,
    channels: Option<Change<ChannelCounts>>,
}

#[derive(Clone, Copy, Debug)]
struct Change<T> {
    found: T,
    set: T,
}

impl Adjusted {
    /// The MTU that was set, if it was changed: the interface's own is another one now than before.
    pub fn mtu(&self) -> Option<u32> {
        self.mtu.map(|change| change.set)
    }

    fn set_mtu(&mut self, present: u32, set: u32) -> Result<(), DriverError> {
        let interface = self.interface.as_str();
        netlink::set_mtu(self.index, set).map_err(|source| DriverError::Mtu {
            interface: interface.to_owned(),
            mtu: set,
            source,
        })?;
        let found = self.mtu.map_or(present, |change| change.found);
        self.mtu = Some(Change { found, set });
        tracing::warn!(interface, found, set, "mtu lowered, as the driver demands for xdp");
        Ok(())
    }

    fn set_channels(&mut self, found: ChannelCounts, set: ChannelCounts) -> Result<(), DriverError> {
        let interface = self.interface.as_str();
        sys::set_channels(interface, set)
            .map_err(|source| DriverError::Channels { interface: interface.to_owned(), source })?;
        self.channels = Some(Change { found, set });
        let (found, set) = (found.combined, set.combined);
        tracing::info!(interface, found, set, "queues reduced, as the driver demands for xdp");
        Ok(())
    }

    fn restore_mtu(&self, change: Change<u32>) -> io::Result<()> {
        let now = netlink::link(self.index)?.map(|link| link.mtu);
        if now == Some(change.set) {
            return netlink::set_mtu(self.index, change.found);
        }
        tracing::info!(interface = self.interface, "mtu was changed by somebody else and is left alone");
        Ok(())
    }

    fn restore_channels(&self, change: Change<ChannelCounts>) -> io::Result<()> {
        if sys::channels(&self.interface)?.present == change.set {
            return sys::set_channels(&self.interface, change.found);
        }
        tracing::info!(interface = self.interface, "queues were changed by somebody else and are left alone");
        Ok(())
    }
}

impl Drop for Adjusted {
    fn drop(&mut self) {
        let interface = self.interface.as_str();
        // An interface that has gone took its settings along.
        if !matches!(netlink::link(self.index), Ok(Some(link)) if link.name == interface) {
            return;
        }
        if let Some(change) = self.channels.take()
            && let Err(error) = self.restore_channels(change)
        {
            tracing::warn!(interface, found = ?change.found, %error, "queues not put back");
        }
        if let Some(change) = self.mtu.take()
            && let Err(error) = self.restore_mtu(change)
        {
            tracing::warn!(interface, found = change.found, %error, "mtu not put back");
        }
    }
}

/// Why there is no native XDP on an interface.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("the state of the interface cannot be read")]
    Netlink(#[source] io::Error),
    #[error("there is no interface with the index {0}")]
    NoInterface(u32),
    #[error(
        "another XDP program is on {interface} (id {id}, {name}, {mode} mode), and is not replaced; stop what \
         attached it"
    )]
    Foreign { interface: String, id: u32, name: String, mode: &'static str },
    #[error("the driver {driver} refuses native XDP on {interface}: {reason}")]
    Refused {
        interface: String,
        driver: String,
        reason: Reason,
        #[source]
        source: io::Error,
    },
    #[error("the MTU of {interface} cannot be set to {mtu}, as native XDP needs")]
    Mtu {
        interface: String,
        mtu: u32,
        #[source]
        source: io::Error,
    },
    #[error("{interface} has more queues than native XDP leaves room for, and their number cannot be changed")]
    Channels {
        interface: String,
        #[source]
        source: io::Error,
    },
}

/// What most likely stands in the way: drivers say little more than a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error(
        "its MTU of {0} is most likely too large; set xdp.adjust_mtu = true, or lower it \
         (ip link set ... mtu {limit})", limit = MTU_LIMITS[0]
    )]
    Mtu(u32),
    #[error("the MTU of its peer is too large; lower it there (ip link set ... mtu {})", MTU_LIMITS[0])]
    PeerMtu,
    #[error("it has fewer receive queues than its peer has transmit queues; use as many (ethtool -L)")]
    Queues,
    #[error(
        "it has none, or not with its present MTU ({0}) and offloads (large-receive-offload of ethtool -k; on \
         virtio_net those of the hypervisor)"
    )]
    NoNative(u32),
    #[error("another program is attached")]
    Busy,
    #[error("this process may not")]
    NotPermitted,
    #[error("the kernel's log may say why")]
    Other,
}

/// What an attempt failed with, and in which state of the interface.
#[derive(Debug)]
struct Facts<'a> {
    errno: i32,
    driver: &'a str,
    mtu: u32,
    channels: Channels,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    LowerMtu(u32),
    SetChannels(ChannelCounts),
    GiveUp(Reason),
}

impl Facts<'_> {
    /// Each step but the last lowers something, so that they come to an end.
    fn next(&self, config: XdpConfig) -> Step {
        match self.errno {
            libc::EBUSY | libc::EEXIST => return Step::GiveUp(Reason::Busy),
            libc::EPERM | libc::EACCES => return Step::GiveUp(Reason::NotPermitted),
            // What it bounds is not its own, so that lowering that would be in vain.
            libc::ERANGE if self.driver == "veth" => return Step::GiveUp(Reason::PeerMtu),
            libc::ENOSPC if self.driver == "veth" => return Step::GiveUp(Reason::Queues),
            _ => {}
        }
        // An MTU of more than a page is certainly too large. Otherwise queues are the likelier cause.
        if self.mtu > MTU_LIMITS[0] {
            return self.lower_mtu(config);
        }
        let half = self.channels.most.combined / 2;
        if self.errno != libc::EOPNOTSUPP && half > 0 && self.channels.present.combined > half {
            return Step::SetChannels(ChannelCounts { combined: half, ..self.channels.present });
        }
        self.lower_mtu(config)
    }

    fn lower_mtu(&self, config: XdpConfig) -> Step {
        match MTU_LIMITS.iter().find(|limit| **limit < self.mtu) {
            Some(limit) if config.adjust_mtu => Step::LowerMtu(*limit),
            _ if self.errno == libc::EOPNOTSUPP => Step::GiveUp(Reason::NoNative(self.mtu)),
            Some(_) => Step::GiveUp(Reason::Mtu(self.mtu)),
            None => Step::GiveUp(Reason::Other),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "there is no packet yet, and no worker to give the time")]
fn now() -> Instant {
    Instant::now()
}

fn link(index: u32) -> Result<Link, DriverError> {
    netlink::link(index).map_err(DriverError::Netlink)?.ok_or(DriverError::NoInterface(index))
}

fn foreign(interface: &str, program: AttachedXdp) -> DriverError {
    let AttachedXdp { id, mode } = program;
    let infos = aya::programs::loaded_programs().filter_map(Result::ok);
    let name = infos.into_iter().find(|info| info.id() == id);
    let name = name.and_then(|info| info.name_as_str().map(str::to_owned)).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| "of unknown name".to_owned());
    DriverError::Foreign { interface: interface.to_owned(), id, name, mode }
}

/// What drivers are known to allow, the largest first: ENA and its like on pages of 4 KiB; those with buffers of
/// 3 KiB (ixgbe); and Ethernet's usual one, which all do.
pub const MTU_LIMITS: [u32; 3] = [3498, 3050, 1500];

#[cfg(test)]
mod tests;
