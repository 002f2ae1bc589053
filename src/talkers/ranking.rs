//! A ranking of addresses within sliding windows.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use datasketches::frequencies::{ErrorType, FrequentItemsSketch};
use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// What an address has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Both ways, of IPv4.
    pub bytes: u64,
    pub packets: u64,
    /// Opened.
    pub sessions: u64,
    /// External ports taken.
    pub ports: u64,
}

/// By what is ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    #[default]
    Bytes,
    Packets,
    Sessions,
    Ports,
}

/// Since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    Minute,
    Hour,
}

/// An address that talks much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Talker {
    pub address: Ipv4Addr,
    pub tally: Tally,
    /// By how much the measure that is ranked by may be too high.
    pub error: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ranking {
    /// When the newest slot of the minute ends.
    slot_end: Instant,
    /// When the newest slot of the hour ends.
    part_end: Instant,
    /// The newest last: at most [`SLOTS`] of ten seconds.
    slots: VecDeque<Sketches>,
    /// The newest last: at most [`PARTS`] of five minutes, without the newest slot.
    parts: VecDeque<Sketches>,
}

impl Ranking {
    /// Takes in what an address has had.
    pub fn add(&mut self, now: Instant, address: Ipv4Addr, tally: Tally) {
        self.turn(now);
        if let Some(newest) = self.slots.back_mut() {
            newest.add(address, tally);
        }
    }

    /// Those that had most of `by` within `window`, at most `count`.
    pub fn top(&mut self, now: Instant, window: Window, by: Measure, count: usize) -> Vec<Talker> {
        self.turn(now);
        let newest = self.slots.back();
        let all = match window {
            Window::Minute => self.slots.iter().collect::<Vec<_>>(),
            Window::Hour => self.parts.iter().chain(newest).collect(),
        };
        let Some(sum) = all.into_iter().fold(None, |sum: Option<Sketches>, slot| match sum {
            Some(mut sum) => {
                sum.merge(slot);
                Some(sum)
            }
            None => Some(slot.clone()),
        }) else {
            return Vec::new();
        };
        sum.top(by, count)
    }

    /// In bytes, about.
    #[cfg(test)]
    pub fn memory(&self) -> usize {
        let all = self.slots.iter().chain(&self.parts).flat_map(|slot| &slot.sketches);
        all.map(|sketch| sketch.current_map_capacity() * 4 / 3 * 16).sum()
    }

    /// Begins new slots as time goes by, and lets the old ones go.
    fn turn(&mut self, now: Instant) {
        if self.slots.is_empty() {
            self.slots.push_back(Sketches::new());
            self.parts.push_back(Sketches::new());
            (self.slot_end, self.part_end) = (now + SLOT, now + PART);
        }
        let mut turns = 0;
        while self.slot_end <= now && turns <= SLOTS {
            if let (Some(slot), Some(part)) = (self.slots.back(), self.parts.back_mut()) {
                part.merge(slot);
            }
            self.slots.push_back(Sketches::new());
            if self.slots.len() > SLOTS {
                self.slots.pop_front();
            }
            self.slot_end += SLOT;
            turns += 1;
        }
        if self.slot_end <= now {
            // After a long silence they are all empty.
            self.slot_end = now + SLOT;
        }
        turns = 0;
        while self.part_end <= now && turns <= PARTS {
            self.parts.push_back(Sketches::new());
            if self.parts.len() > PARTS {
                self.parts.pop_front();
            }
            self.part_end += PART;
            turns += 1;
        }
        if self.part_end <= now {
            self.part_end = now + PART;
        }
    }
}

/// One for each measure.
#[derive(Clone, Debug)]
struct Sketches {
    /// In the order of [`Measure`]; empty if the sketch refuses its size, which a test has it not do.
    sketches: Vec<FrequentItemsSketch<u32>>,
}

impl Sketches {
    fn new() -> Self {
        Self { sketches: (0..4).filter_map(|_| FrequentItemsSketch::new(COUNTERS).ok()).collect() }
    }

    fn add(&mut self, address: Ipv4Addr, tally: Tally) {
        let Tally { bytes, packets, sessions, ports } = tally;
        for (sketch, count) in self.sketches.iter_mut().zip([bytes, packets, sessions, ports]) {
            sketch.update_with_count(address.to_bits(), count);
        }
    }

    fn merge(&mut self, other: &Self) {
        for (sketch, other) in self.sketches.iter_mut().zip(&other.sketches) {
            sketch.merge(other);
        }
    }

    fn top(&self, by: Measure, count: usize) -> Vec<Talker> {
        let Some(ranked) = self.sketches.get(by as usize) else { return Vec::new() };
        let estimate = |measure: Measure, address: u32| {
            self.sketches.get(measure as usize).map_or(0, |sketch| sketch.estimate(&address))
        };
        let rows = ranked.frequent_items(ErrorType::NoFalseNegatives).into_iter().take(count);
        let talkers = rows.map(|row| Talker {
            address: Ipv4Addr::from_bits(*row.item()),
            tally: Tally {
                bytes: estimate(Measure::Bytes, *row.item()),
                packets: estimate(Measure::Packets, *row.item()),
                sessions: estimate(Measure::Sessions, *row.item()),
                ports: estimate(Measure::Ports, *row.item()),
            },
            error: row.upper_bound() - row.lower_bound(),
        });
        talkers.collect()
    }
}

/// Places of a sketch's table, of which three quarters are used: with four measures, two kinds, and all slots, some
/// 700 KiB when all are full.
const COUNTERS: usize = 256;
const SLOT: Duration = Duration::from_secs(10);
const SLOTS: usize = 6;
const PART: Duration = Duration::from_secs(300);
const PARTS: usize = 12;
