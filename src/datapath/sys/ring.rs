//! A ring that is shared with the kernel: one side produces, the other consumes, and each writes its own index.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mapping::Mapping;

/// One of the four rings of an `AF_XDP` socket. Entries are integers, or structs of integers.
#[derive(Debug)]
pub struct Ring<T> {
    mapping: Mapping,
    /// Where its parts lie in the mapping, in bytes.
    offsets: libc::xdp_ring_offset,
    entries: u32,
    /// Our own index; only we write it.
    own: u32,
    entry: std::marker::PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    /// The ring of `entries`, a power of two, that a socket has at `page`.
    ///
    /// # Errors
    /// As `mmap(2)`; the kernel says that the ring is somewhere else than in the mapping.
    pub fn map(
        socket: BorrowedFd<'_>,
        offsets: libc::xdp_ring_offset,
        entries: u32,
        page: libc::off_t,
    ) -> io::Result<Self> {
        let end = |offset: u64, bytes: usize| usize::try_from(offset).ok()?.checked_add(bytes);
        let length = end(offsets.desc, entries as usize * size_of::<T>());
        let length = length.ok_or(io::ErrorKind::InvalidData)?;
        let inside = |offset| offset % 4 == 0 && end(offset, 4).is_some_and(|end| end <= length);
        let aligned = usize::try_from(offsets.desc).is_ok_and(|desc| desc.is_multiple_of(align_of::<T>()));
        if ![offsets.producer, offsets.consumer, offsets.flags].into_iter().all(inside)
            || !aligned
            || !entries.is_power_of_two()
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mapping = Mapping::shared(socket, page, length)?;
        Ok(Self { mapping, offsets, entries, own: 0, entry: std::marker::PhantomData })
    }

    /// Puts an entry in; gives it back when there is no room. [`Self::publish`] shows it to the kernel.
    pub fn produce(&mut self, entry: T) -> Result<(), T> {
        if self.own.wrapping_sub(self.index(self.offsets.consumer).load(Ordering::Acquire)) >= self.entries {
            return Err(entry);
        }
        let place = self.place(self.own);
        // SAFETY: the place is in the mapping, aligned, and ours until it is published.
        unsafe { place.write_volatile(entry) };
        self.own = self.own.wrapping_add(1);
        Ok(())
    }

    /// Shows the kernel what was produced.
    pub fn publish(&self) {
        self.index(self.offsets.producer).store(self.own, Ordering::Release);
    }

    /// What was produced and not yet consumed.
    pub fn unconsumed(&self) -> u32 {
        self.own.wrapping_sub(self.index(self.offsets.consumer).load(Ordering::Acquire))
    }

    /// Takes the next entry of the kernel's. [`Self::release`] gives its place back.
    pub fn consume(&mut self) -> Option<T> {
        if self.index(self.offsets.producer).load(Ordering::Acquire) == self.own {
            return None;
        }
        let place = self.place(self.own);
        // SAFETY: the place is in the mapping, aligned, and was published by the kernel; any bits are a valid entry.
        let entry = unsafe { place.read_volatile() };
        self.own = self.own.wrapping_add(1);
        Some(entry)
    }

    /// Gives the kernel the places of what was consumed.
    pub fn release(&self) {
        self.index(self.offsets.consumer).store(self.own, Ordering::Release);
    }

    /// Whether the kernel sleeps on this ring and wants a system call.
    pub fn needs_wakeup(&self) -> bool {
        self.index(self.offsets.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn index(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: `map` has checked that the four bytes lie in the mapping, and that they are aligned; both sides use
        // them as an atomic integer only.
        unsafe { self.at::<AtomicU32>(offset).as_ref() }
    }

    fn place(&self, index: u32) -> NonNull<T> {
        let entry = u64::from(index & (self.entries - 1)) * size_of::<T>() as u64;
        self.at(self.offsets.desc + entry)
    }

    fn at<U>(&self, offset: u64) -> NonNull<U> {
        // SAFETY: callers stay within the mapping: see `map`.
        unsafe { self.mapping.start().add(usize::try_from(offset).unwrap_or(0)) }.cast()
    }
}
