//! Memory for batches of frames, and `recvmmsg(2)` and `sendmmsg(2)` on it.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Frames in a batch.
pub const BATCH: usize = BATCH_COUNT as usize;
const BATCH_COUNT: libc::c_uint = 64;

/// The tag in each received frame, see `bpf/filter.bpf.c`; the virtio-net header and the link-layer addresses before it.
const TAG: usize = 4;
const BEFORE_TAG: usize = 10 + 12;

/// Room for a batch of received frames. It is not touched before a frame needs it, so that it costs memory only for
/// the frames that really come.
pub struct Frames {
    memory: NonNull<[u8]>,
    /// Point into `memory`, one each.
    vectors: Box<[libc::iovec; BATCH]>,
    /// Point to `vectors`, one each.
    messages: Box<[libc::mmsghdr; BATCH]>,
    received: usize,
}

impl Frames {
    /// The largest frame there is room for, in bytes, with its virtio-net and Ethernet headers, and the tag between.
    const FRAME_BYTES: usize = 10 + 14 + TAG + 65535;
    /// A multiple of the cache line.
    const STRIDE: usize = Self::FRAME_BYTES.next_multiple_of(64);

    #[must_use]
    pub fn new() -> Self {
        let memory = NonNull::from(Box::leak(vec![0_u8; BATCH * Self::STRIDE].into_boxed_slice()));
        let mut vectors = Box::new(
            [const { libc::iovec { iov_base: std::ptr::null_mut(), iov_len: Self::FRAME_BYTES } }; BATCH],
        );
        let mut messages = Box::new(no_messages());
        for (index, (vector, message)) in vectors.iter_mut().zip(messages.iter_mut()).enumerate() {
            // SAFETY: `index < BATCH`, and the memory is of `BATCH` strides.
            vector.iov_base = unsafe { memory.cast::<u8>().add(index * Self::STRIDE) }.as_ptr().cast();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        Self { memory, vectors, messages, received: 0 }
    }

    /// The frame at `index` of the last batch, without the tag that the filter has put in; or `None` if it was longer
    /// than there is room for, or there is no such frame.
    pub fn frame_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        self.whole_mut(index)?.get_mut(TAG..)
    }

    fn whole_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let (start, length) = self.place(index)?;
        // SAFETY: `place` gives a range within one stride of `memory`; `&mut self` makes the borrow unique.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) })
    }

    /// As [`Self::frame_mut`], to read.
    pub fn frame(&self, index: usize) -> Option<&[u8]> {
        let (start, length) = self.place(index)?;
        // SAFETY: as in `whole_mut`; `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), length) }.get(TAG..)
    }

    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.received = 0;
        // SAFETY: every header points to one vector, every vector to a stride of `memory`, all owned by `self` and
        // nowhere borrowed while `self` is borrowed uniquely.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                BATCH_COUNT,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        self.received = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for index in 0..self.received {
            self.untag(index);
        }
        Ok(self.received)
    }

    /// Moves what is before the tag to where it ends.
    fn untag(&mut self, index: usize) {
        if let Some(before) = self.whole_mut(index).and_then(|whole| whole.get_mut(..BEFORE_TAG + TAG)) {
            before.copy_within(..BEFORE_TAG, TAG);
        }
    }

    fn place(&self, index: usize) -> Option<(NonNull<u8>, usize)> {
        if index >= self.received || self.messages[index].msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let length = (self.messages[index].msg_len as usize).min(Self::FRAME_BYTES);
        Some((NonNull::new(self.vectors[index].iov_base.cast())?, length))
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: the memory came from a leaked box, and nothing else frees it.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

/// Room for the headers of a batch that is to be sent.
pub struct Outgoing {
    vectors: Box<[libc::iovec; BATCH]>,
    messages: Box<[libc::mmsghdr; BATCH]>,
}

impl Outgoing {
    #[must_use]
    pub fn new() -> Self {
        let vectors = [const { libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 } }; BATCH];
        Self { vectors: Box::new(vectors), messages: Box::new(no_messages()) }
    }

    /// Sends the first [`BATCH`] of `frames` at most.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, frames: &[&[u8]]) -> io::Result<usize> {
        let count = frames.len().min(BATCH);
        for ((vector, message), frame) in self.vectors.iter_mut().zip(self.messages.iter_mut()).zip(frames) {
            vector.iov_base = frame.as_ptr().cast_mut().cast();
            vector.iov_len = frame.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `count` headers point to vectors, and those to `frames`, which outlive the call and
        // which sendmmsg only reads.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                libc::c_uint::try_from(count).unwrap_or(BATCH_COUNT),
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl Default for Outgoing {
    fn default() -> Self {
        Self::new()
    }
}

fn no_messages() -> [libc::mmsghdr; BATCH] {
    // SAFETY: `mmsghdr` is plain data, for which zeroes mean: no name, no vectors, no control data.
    unsafe { mem::zeroed() }
}
