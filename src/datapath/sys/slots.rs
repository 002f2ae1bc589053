//! The memory of the flow table, which the program reads and counts in: `FLOWS` in `bpf/xdp.bpf.c`.
//!
//! Knows how a slot is changed under the eyes of the program; which slot a flow belongs in is the table's to know.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::mapping::Mapping;
use super::shared::FlowSlot;

/// All slots. The program may be in any of them at any time, on any processor.
///
/// What makes that harmless is the seal: whatever mixture of an old and a new flow the program has read, it believes
/// only what was sealed as one, and what is removed is believed no longer once its key is gone. The order of the writes
/// keeps mixtures rare; nothing depends on it, nor on the order in which another processor sees them.
#[derive(Debug)]
pub struct Slots {
    memory: Mapping,
    count: usize,
}

impl Slots {
    /// Those of the map `fd`, of which there are `count`.
    ///
    /// # Errors
    /// As `mmap(2)`: `EINVAL` if the map has fewer.
    pub fn map(fd: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let length = count.checked_mul(size_of::<FlowSlot>()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { memory: Mapping::shared(fd, 0, length)?, count })
    }

    /// What is in a slot.
    ///
    /// # Panics
    /// There is no such slot; the same below.
    #[must_use]
    pub fn get(&self, slot: usize) -> FlowSlot {
        FlowSlot::from_words(self.words()[slot].each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// Puts a flow, sealed, into a slot. The slot's reach stays.
    pub fn put(&mut self, slot: usize, flow: FlowSlot) {
        let flow = FlowSlot { reach: self.get(slot).reach, ..flow };
        self.clear(slot);
        fence(Ordering::Release);
        for (place, word) in flow.words().into_iter().enumerate().filter(|(place, _)| *place != KEY) {
            self.words()[slot][place].store(word, Ordering::Relaxed);
        }
        self.words()[slot][KEY].store(flow.words()[KEY], Ordering::Release);
    }

    /// Leaves no flow in a slot, and gives what was there. The slot's reach stays. What the program counts of a packet
    /// that it has in hand at this moment is lost.
    pub fn take(&mut self, slot: usize) -> FlowSlot {
        let before = self.get(slot);
        self.clear(slot);
        // What is read now has all packets that found the flow, but for those.
        fence(Ordering::SeqCst);
        let FlowSlot { window, last_use, packets, bytes, end, acknowledged, .. } = self.get(slot);
        FlowSlot { window, last_use, packets, bytes, end, acknowledged, ..before }
    }

    /// Sets how far flows lie at most whose home the slot is.
    pub fn set_reach(&mut self, slot: usize, reach: u8) {
        let words = FlowSlot { reach, ..self.get(slot) }.words();
        self.words()[slot][KEY].store(words[KEY], Ordering::Relaxed);
    }

    /// What [`Self::put`] may look like from another processor: word by word, from any of them on.
    #[cfg(test)]
    pub fn smear(&mut self, slot: usize, flow: FlowSlot, first: usize) {
        for place in (0..WORDS).map(|place| (first + place) % WORDS) {
            self.words()[slot][place].store(flow.words()[place], Ordering::Relaxed);
            std::hint::spin_loop();
        }
    }

    fn clear(&mut self, slot: usize) {
        let words = FlowSlot { reach: self.get(slot).reach, ..FlowSlot::default() }.words();
        self.words()[slot][KEY].store(words[KEY], Ordering::Relaxed);
    }

    fn words(&self) -> &[[AtomicU64; WORDS]] {
        // SAFETY: so many slots lie in the mapping, which begins with a page and lives as long as `self`. The program
        // writes there as it likes, which is what atomic accesses are for.
        unsafe { std::slice::from_raw_parts(self.memory.start().as_ptr().cast(), self.count) }
    }
}

const WORDS: usize = size_of::<FlowSlot>() / size_of::<u64>();
/// The word with the protocol, 0 where there is no flow, and with the reach. The program writes nothing in it.
const KEY: usize = 1;
