//! The flow table: an open hash table in memory that the program reads in place.
//!
//! Owns which slot a flow is in. That is one of the [`PROBES`] slots from the flow's home on, and the home has the
//! reach: how far its flows lie at most, which is as far as `find` in `bpf/xdp.bpf.c` looks. Nothing is ever moved, since
//! the program may be reading it: a removed flow leaves a slot for the next, and where none is left there is no room.

use std::io;
use std::os::fd::BorrowedFd;

use crate::datapath::sys::{self, FlowKey, FlowSlot, Slots, high_half};

/// See the module.
#[derive(Debug)]
pub struct Table {
    slots: Slots,
    hash: Hash,
}

/// Where a flow is looked for first; the program does the same.
#[derive(Clone, Copy, Debug)]
pub struct Hash {
    pub homes: u32,
    /// Random, so that nobody can choose endpoints of one home; odd.
    pub keys: [u64; 2],
}

/// Why a flow is not in the table.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    #[error("no slot is free near the flow's home")]
    Crowded,
    #[error("there is a flow of this key already")]
    Taken,
}

impl Table {
    /// The empty table in the map `fd`, which has [`Hash::slots`] slots.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn new(fd: BorrowedFd<'_>, hash: Hash) -> io::Result<Self> {
        Ok(Self { slots: Slots::map(fd, hash.slots() as usize)?, hash })
    }

    /// The flow of this key.
    #[must_use]
    pub fn get(&self, key: &FlowKey) -> Option<FlowSlot> {
        self.find(key).map(|slot| self.slots.get(slot))
    }

    /// Has the program find a flow by its key. Gives the flow a seal, and leaves the reach to the table.
    ///
    /// # Errors
    /// See [`InsertError`].
    pub fn insert(&mut self, flow: FlowSlot) -> Result<(), InsertError> {
        let key = flow.key();
        if self.find(&key).is_some() {
            return Err(InsertError::Taken);
        }
        let home = self.hash.home(&key);
        let is_free = |distance: &u8| self.slots.get(home + usize::from(*distance)).is_empty();
        let distance = (0..PROBES).find(is_free).ok_or(InsertError::Crowded)?;
        self.slots.put(home + usize::from(distance), flow.sealed());
        if distance > self.slots.get(home).reach {
            self.slots.set_reach(home, distance);
        }
        Ok(())
    }

    /// Has the program no longer find the flow of this key; gives it.
    pub fn remove(&mut self, key: &FlowKey) -> Option<FlowSlot> {
        let slot = self.find(key)?;
        let flow = self.slots.take(slot);
        // If it was the farthest one of its home, those that are left do not lie as far.
        let home = self.hash.home(key);
        let is_of_home = |distance: &u8| {
            let flow = self.slots.get(home + usize::from(*distance));
            !flow.is_empty() && self.hash.home(&flow.key()) == home
        };
        let before = self.slots.get(home).reach;
        let reach = (1..=before).rev().find(is_of_home).unwrap_or(0);
        if reach != before {
            self.slots.set_reach(home, reach);
        }
        Some(flow)
    }

    fn find(&self, key: &FlowKey) -> Option<usize> {
        let home = self.hash.home(key);
        let reach = usize::from(self.slots.get(home).reach);
        (home..=home + reach).find(|&slot| self.slots.get(slot).key() == *key)
    }
}

#[cfg(test)]
impl Table {
    /// Writes anything into the slot of a flow.
    pub fn overwrite(&mut self, key: &FlowKey, flow: FlowSlot) {
        let slot = self.find(key).expect("it is there");
        self.slots.put(slot, flow);
    }

    /// As [`Slots::smear`], over a flow.
    pub fn smear(&mut self, key: &FlowKey, flow: FlowSlot, first: usize) {
        let slot = self.find(key).expect("it is there");
        self.slots.smear(slot, flow, first);
    }
}

impl Hash {
    /// A new one. The more homes there are for each flow, the fewer are not in theirs; two leave hardly any without room.
    ///
    /// # Errors
    /// As `getrandom(2)`.
    pub fn random(homes: u32) -> io::Result<Self> {
        let random = u128::from_ne_bytes(sys::random_seed()?);
        #[expect(clippy::cast_possible_truncation, reason = "a half each")]
        Ok(Self { homes, keys: [random as u64 | 1, (random >> 64) as u64 | 1] })
    }

    /// How many slots a table has.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.homes.saturating_add(PROBES as u32 - 1)
    }

    /// `home_of` in `bpf/xdp.bpf.c`.
    fn home(&self, key: &FlowKey) -> usize {
        let [a, b] = key.words();
        let hash = a.wrapping_mul(self.keys[0]);
        let hash = (hash ^ hash >> 32).wrapping_add(b).wrapping_mul(self.keys[1]);
        high_half(u64::from(high_half(hash)) * u64::from(self.homes)) as usize
    }
}

/// As in `bpf/xdp.bpf.c`.
pub const PROBES: u8 = 64;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::fd::{AsFd, OwnedFd};

    use proptest::prelude::*;

    use super::*;
    use crate::datapath::sys::Endpoints;

    fn memory(hash: Hash) -> OwnedFd {
        let fd =
            nix::sys::memfd::memfd_create(c"flows", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a file");
        let bytes = hash.slots() as usize * size_of::<FlowSlot>();
        nix::unistd::ftruncate(&fd, bytes.try_into().expect("few")).expect("of this length");
        fd
    }

    fn table(homes: u32) -> Table {
        let hash = Hash::random(homes).expect("random");
        Table::new(memory(hash).as_fd(), hash).expect("mapped")
    }

    fn flow(number: u32) -> FlowSlot {
        let matches = Endpoints { source: number, destination: !number, source_port: 1, destination_port: 2 };
        FlowSlot { matches, protocol: 17, packets: u64::from(number), ..FlowSlot::default() }
    }

    fn key(number: u32) -> FlowKey {
        flow(number).key()
    }

    /// The reach of the one home.
    fn reach(table: &Table) -> u8 {
        table.slots.get(0).reach
    }

    #[test]
    fn flows_of_one_home_stand_side_by_side_until_there_is_no_room() {
        let mut table = table(1);
        for number in 0..PROBES {
            table.insert(flow(number.into())).expect("room");
            assert_eq!(reach(&table), number);
        }
        assert!(matches!(table.insert(flow(100)), Err(InsertError::Crowded)));
        assert!(matches!(table.insert(flow(7)), Err(InsertError::Taken)));
        for number in 0..u32::from(PROBES) {
            assert_eq!(table.get(&key(number)).map(|flow| flow.packets), Some(u64::from(number)));
        }
        assert_eq!(table.get(&key(100)), None);
        assert_eq!(table.remove(&key(100)), None);
    }

    #[test]
    fn removal_leaves_a_slot_to_the_next_and_all_others_where_they_are() {
        let mut table = table(1);
        for number in 0..u32::from(PROBES) {
            table.insert(flow(number)).expect("room");
        }
        assert_eq!(table.remove(&key(7)).map(|flow| flow.packets), Some(7));
        assert_eq!((table.get(&key(7)), reach(&table)), (None, PROBES - 1));
        assert!(
            (8..u32::from(PROBES)).all(|number| table.get(&key(number)).is_some()),
            "what lies behind it is found"
        );
        table.insert(flow(100)).expect("room");
        assert_eq!(table.slots.get(7).key(), key(100));
        assert!(table.insert(flow(101)).is_err());
    }

    #[test]
    fn reach_is_that_of_the_farthest_flow() {
        let mut table = table(1);
        for number in 0..5 {
            table.insert(flow(number)).expect("room");
        }
        for (removed, expected) in [(2, 4), (4, 3), (3, 1), (0, 1), (1, 0)] {
            table.remove(&key(removed)).expect("there");
            assert_eq!(reach(&table), expected);
        }
    }

    #[test]
    fn flow_in_the_way_does_not_count_for_the_reach_of_another_home() {
        // Flows of both homes: those of the second are in the way of the first one's.
        let mut table = table(2);
        let of_home = |table: &Table, home| {
            (0..).map(key).filter(|key| table.hash.home(key) == home).take(2).collect::<Vec<_>>()
        };
        let (first, second) = (of_home(&table, 0), of_home(&table, 1));
        for key in [first[0], second[0], first[1], second[1]] {
            table.insert(FlowSlot { matches: key.endpoints, ..flow(0) }).expect("room");
        }
        let reaches = |table: &Table| [0, 1].map(|home| table.slots.get(home).reach);
        assert_eq!(reaches(&table), [2, 2]);
        table.remove(&first[1]).expect("there");
        assert_eq!(reaches(&table), [0, 2]);
        assert!([first[0], second[0], second[1]].iter().all(|key| table.get(key).is_some()));
    }

    #[test]
    fn table_is_filled_and_emptied_and_filled_again() {
        const FLOWS: u32 = 1 << 16;
        let mut table = table(2 * FLOWS);
        for base in [0, FLOWS] {
            let numbers = base..base + FLOWS;
            let refused = numbers.clone().filter(|&number| table.insert(flow(number)).is_err()).count();
            assert!(refused < FLOWS as usize / 1000, "{refused} without room");
            let found = numbers.filter(|&number| table.remove(&key(number)).is_some()).count();
            assert_eq!(found + refused, FLOWS as usize);
            for slot in 0..table.hash.slots() as usize {
                let FlowSlot { protocol, reach, .. } = table.slots.get(slot);
                assert_eq!((protocol, reach), (0, 0));
            }
        }
    }

    proptest! {
        #[test]
        fn table_has_what_was_put_in_and_not_taken_out(
            homes in 1..40_u32,
            steps in prop::collection::vec((any::<bool>(), 0..60_u32), 1..300),
        ) {
            let mut table = table(homes);
            let mut model = HashMap::new();
            for (inserts, number) in steps {
                if !inserts {
                    prop_assert_eq!(table.remove(&key(number)).map(|flow| flow.packets), model.remove(&number));
                } else if !model.contains_key(&number) && table.insert(flow(number)).is_ok() {
                    model.insert(number, u64::from(number));
                }
                for number in 0..60 {
                    let found = table.get(&key(number)).map(|flow| flow.packets);
                    prop_assert_eq!(found, model.get(&number).copied());
                }
            }
        }
    }
}
