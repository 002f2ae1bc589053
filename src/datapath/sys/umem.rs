//! The memory that `AF_XDP` sockets share with the kernel: `UMEM` of the kernel's documentation of `AF_XDP`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mapping::Mapping;
use super::set_option;

/// Chunks of one size for one frame each. Whoever has a [`Chunk`] has its memory; given to a ring, it is the
/// kernel's until it comes back.
#[derive(Debug)]
pub struct Umem {
    memory: Mapping,
    /// Told from all others, so that no chunk is used with another's memory.
    id: u32,
    chunks: u32,
    chunk_bytes: u32,
}

/// The right to a chunk's memory: there is one for each chunk.
#[derive(Debug)]
pub struct Chunk {
    umem: u32,
    index: u32,
}

/// A frame in a chunk.
#[derive(Debug)]
pub struct Frame {
    pub chunk: Chunk,
    /// Where it begins, in bytes from the chunk's beginning.
    pub offset: u32,
    pub length: u32,
}

impl Umem {
    /// Memory for `chunks` frames, and the right to all of it. `chunk_bytes` is 2048 or 4096.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn new(chunks: u32, chunk_bytes: u32) -> io::Result<(Self, Vec<Chunk>)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let memory = Mapping::anonymous(chunks as usize * chunk_bytes as usize)?;
        let all = (0..chunks).map(|index| Chunk { umem: id, index }).collect();
        Ok((Self { memory, id, chunks, chunk_bytes }, all))
    }

    /// The bytes of a frame; fewer than it says, or none, if it does not lie within its chunk.
    pub fn bytes<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let offset = frame.offset.min(self.chunk_bytes);
        let length = frame.length.min(self.chunk_bytes - offset);
        let Some(start) = self.address(&frame.chunk, offset) else { return &mut [] };
        // SAFETY: `length` bytes of the chunk lie behind `start`, in memory that lives as long as `self`; the chunk's
        // only right to it is borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length as usize) }
    }

    /// Registers the memory with the first of the sockets that use it.
    pub(super) fn register(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let registration = libc::xdp_umem_reg {
            addr: self.memory.start().as_ptr() as u64,
            len: self.memory.length() as u64,
            chunk_size: self.chunk_bytes,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set_option(socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
    }

    /// Where a chunk, or a place in it, is, as rings have it.
    pub(super) fn place(&self, chunk: &Chunk, offset: u32) -> u64 {
        u64::from(chunk.index) * u64::from(self.chunk_bytes) + u64::from(offset)
    }

    /// The chunk that a ring gives back, and the offset in it; `None` for what is no place of ours.
    ///
    /// The caller has it from the kernel, which has it from us: there is no other right to the chunk.
    pub(super) fn returned(&self, place: u64) -> Option<(Chunk, u32)> {
        let size = u64::from(self.chunk_bytes);
        let index = u32::try_from(place / size).ok().filter(|&index| index < self.chunks)?;
        Some((Chunk { umem: self.id, index }, u32::try_from(place % size).ok()?))
    }

    fn address(&self, chunk: &Chunk, offset: u32) -> Option<NonNull<u8>> {
        if chunk.umem != self.id || chunk.index >= self.chunks || offset > self.chunk_bytes {
            return None;
        }
        let offset = chunk.index as usize * self.chunk_bytes as usize + offset as usize;
        // SAFETY: within the mapping, which is of `chunks` chunks, or just at its end.
        Some(unsafe { self.memory.start().add(offset) })
    }
}
