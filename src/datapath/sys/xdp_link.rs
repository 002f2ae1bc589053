//! Attaching an XDP program: `BPF_LINK_CREATE` and `BPF_LINK_DETACH` of `bpf(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An XDP program on an interface, in native mode. It is detached when this is dropped, and goes with the process
/// however that ends.
#[derive(Debug)]
pub struct XdpLink {
    fd: OwnedFd,
}

impl XdpLink {
    /// Attaches the program. It never takes the place of another one.
    ///
    /// Not by aya, which on `EINVAL`, the way in which drivers say that they cannot, goes on to `IFLA_XDP_FD`: that
    /// would replace what is attached and outlive the process.
    ///
    /// # Errors
    /// `EBUSY` and `EEXIST` when another program is attached; otherwise the driver's. Linux before 5.9: `EINVAL`.
    pub fn attach(program: BorrowedFd<'_>, interface: u32) -> io::Result<Self> {
        let attributes =
            [program.as_raw_fd().cast_unsigned(), interface, BPF_XDP, XDP_FLAGS_DRV_MODE, 0, 0, 0, 0];
        let fd = bpf(BPF_LINK_CREATE, &attributes)?;
        // SAFETY: `fd` was just opened, and nothing else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}

impl Drop for XdpLink {
    fn drop(&mut self) {
        // Closing is not enough: a child between its fork and its exec has the descriptor too.
        if let Err(error) = bpf(BPF_LINK_DETACH, &[self.fd.as_raw_fd().cast_unsigned(), 0, 0, 0, 0, 0, 0, 0]) {
            tracing::debug!(%error, "xdp program not detached, but by closing its link");
        }
    }
}

/// A command with the first words of its part of `union bpf_attr`; the kernel takes what is not given for zero.
fn bpf(command: libc::c_int, attributes: &[u32; 8]) -> io::Result<i32> {
    // SAFETY: the pointer is to the attributes, whose size is given, and which outlive the call. They hold no pointer.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
}

// linux/bpf.h and linux/if_link.h.
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
