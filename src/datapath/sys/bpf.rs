//! What `bpf(2)` can do and aya does not offer.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::Pod;

/// Takes an entry out of a hash map and gives what it held; `None` if there was none. Linux 5.14 or later.
///
/// `K` and `V` must be the map's types: the caller has made sure of their sizes.
///
/// # Errors
/// As `BPF_MAP_LOOKUP_AND_DELETE_ELEM`.
pub fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    /// The part of `union bpf_attr` that element commands use.
    #[repr(C)]
    struct Element {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut value = MaybeUninit::<V>::zeroed();
    let element = Element {
        map: u32::try_from(map.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?,
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the attribute is of the length given; key and value are of the map's sizes, and outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_AND_DELETE_ELEM, &raw const element, size_of::<Element>())
    };
    match result {
        // SAFETY: plain data, zeroed before, and written by the kernel.
        0.. => Ok(Some(unsafe { value.assume_init() })),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            error => Err(error),
        },
    }
}

const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
