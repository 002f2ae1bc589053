//! A hierarchical timer wheel (Varghese and Lauck, 1987) whose links live in the timed entries.
//!
//! Arming, disarming and firing cost the same whether there is one timer or a million. A packet does not touch
//! its session's timer: the timer fires at the deadline that it was armed with, and whoever is fired looks
//! whether it has been used since and arms again.

#![expect(clippy::cast_possible_truncation, reason = "levels and slots are below 64")]

use super::slab::{Id, NONE, Slab};
use crate::time::Instant;

/// Time in units of 100 ms since the origin; lasts 13 years.
pub type Tick = u32;

/// The tick that `now` lies in.
pub fn tick(now: Instant) -> Tick {
    Tick::try_from(now.as_millis() / TICK_MILLIS).unwrap_or(Tick::MAX)
}

/// The instant at which `tick` begins.
pub fn instant(tick: Tick) -> Instant {
    Instant::from_millis(u64::from(tick) * TICK_MILLIS)
}

/// How many ticks cover `duration`, at least one and at most a quarter of the wheel's span, ten months.
pub fn ticks(duration: std::time::Duration) -> Tick {
    let ticks = duration.as_millis().div_ceil(u128::from(TICK_MILLIS));
    Tick::try_from(ticks).unwrap_or(Tick::MAX).clamp(1, SPAN / 4)
}

/// The part of a timed entry that belongs to the wheel.
#[derive(Clone, Copy, Debug)]
pub struct Timer {
    pub deadline: Tick,
    previous: Id,
    next: Id,
}

impl Timer {
    pub const UNARMED: Self = Self { deadline: 0, previous: NONE, next: NONE };
}

/// An entry with a timer.
pub trait Timed {
    fn timer(&mut self) -> &mut Timer;
}

/// See the module.
#[derive(Debug)]
pub struct Wheel {
    /// First entry of each slot. Level `n` has slots of 64^n ticks.
    slots: [[Id; SLOTS]; LEVELS],
    /// A bit for each slot that is not empty.
    occupied: [u64; LEVELS],
    /// All earlier ticks have been fired.
    now: Tick,
}

impl Wheel {
    pub const fn new(now: Tick) -> Self {
        Self { slots: [[NONE; SLOTS]; LEVELS], occupied: [0; LEVELS], now }
    }

    /// Arms the timer of `id`, which must not be armed, to fire at `deadline`: at once if that is past, and
    /// early if it is more than half of the wheel's span ahead.
    pub fn arm<T: Timed>(&mut self, slab: &mut Slab<T>, id: Id, deadline: Tick) {
        if self.occupied == [0; LEVELS] {
            // Nothing has moved the wheel while it was empty.
            self.now = self.now.max(deadline.saturating_sub(SPAN / 4));
        }
        let deadline = deadline.clamp(self.now, self.now.saturating_add(SPAN / 2));
        // The level of the highest digit in which the deadline differs from now.
        let level = (((deadline ^ self.now) | 1).ilog2() / BITS) as usize;
        let level = level.min(LEVELS - 1);
        let slot = slot(level, deadline);
        let head = self.slots[level][slot];
        let Some(entry) = slab.get_mut(id) else { return };
        *entry.timer() = Timer { deadline, previous: NONE, next: head };
        if let Some(head) = slab.get_mut(head) {
            head.timer().previous = id;
        }
        self.set_head(level, slot, id);
    }

    /// Disarms the timer of `id`, which must be armed.
    pub fn disarm<T: Timed>(&mut self, slab: &mut Slab<T>, id: Id) {
        let Some(entry) = slab.get_mut(id) else { return };
        let Timer { deadline, previous, next } = std::mem::replace(entry.timer(), Timer::UNARMED);
        if let Some(next) = slab.get_mut(next) {
            next.timer().previous = previous;
        }
        if let Some(previous) = slab.get_mut(previous) {
            previous.timer().next = next;
            return;
        }
        // It was the first of its slot; at which level depends on when it was put there.
        let level = (0..LEVELS).find(|&level| self.slots[level][slot(level, deadline)] == id);
        if let Some(level) = level {
            self.set_head(level, slot(level, deadline), next);
        }
    }

    /// Disarms one timer whose deadline is at or before `now` and gives its entry. `None`: there is none left,
    /// or `budget`, which each step takes one from, is used up; then [`Self::next`] is still past.
    pub fn fire<T: Timed>(&mut self, slab: &mut Slab<T>, now: Tick, budget: &mut u32) -> Option<Id> {
        loop {
            let (level, slot, begins) = self.first()?;
            if begins > now || *budget == 0 {
                return None;
            }
            *budget -= 1;
            self.now = begins;
            let id = self.slots[level][slot];
            let deadline = slab.get_mut(id)?.timer().deadline;
            self.disarm(slab, id);
            if level == 0 {
                return Some(id);
            }
            // The slot's time has come: its entries move to lower levels, one by one.
            self.arm(slab, id, deadline);
        }
    }

    /// A tick at or before the earliest deadline, and later than all fired ones.
    pub fn next(&self) -> Option<Tick> {
        self.first().map(|(_, _, begins)| begins)
    }

    fn set_head(&mut self, level: usize, slot: usize, head: Id) {
        self.slots[level][slot] = head;
        if head == NONE {
            self.occupied[level] &= !(1 << slot);
        } else {
            self.occupied[level] |= 1 << slot;
        }
    }

    /// The occupied slot to turn to next, and the tick at which it begins.
    fn first(&self) -> Option<(usize, usize, Tick)> {
        // A slot of a higher level that has begun is on its way down. Otherwise lower levels come first: all of
        // a level lies before the next slot of the level above.
        let begun = (1..LEVELS).find(|&level| self.occupied[level] & 1 << slot(level, self.now) != 0);
        if let Some(level) = begun {
            return Some((level, slot(level, self.now), self.now));
        }
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let here = slot(level, self.now) as u32;
        // Deadlines are less than half a turn of the top level ahead, so counting on round it finds the first.
        let ahead = self.occupied[level].rotate_right(here).trailing_zeros();
        let shift = BITS * level as u32;
        let begins = ((self.now >> shift) + ahead) << shift;
        Some((level, (here + ahead) as usize % SLOTS, begins))
    }
}

fn slot(level: usize, tick: Tick) -> usize {
    (tick >> (BITS * level as u32)) as usize % SLOTS
}

const TICK_MILLIS: u64 = 100;
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 5;
/// 3.4 years.
const SPAN: Tick = 1 << (BITS * LEVELS as u32);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Entry {
        timer: Timer,
        due: Tick,
    }

    impl Timed for Entry {
        fn timer(&mut self) -> &mut Timer {
            &mut self.timer
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arm(Tick),
        Disarm(usize),
        Advance(Tick),
    }

    fn steps(longest: Tick) -> impl Strategy<Value = Vec<Step>> {
        let span = prop_oneof![0..70_u32, 0..5_000_u32, 0..longest];
        let step = prop_oneof![
            span.clone().prop_map(Step::Arm),
            any::<usize>().prop_map(Step::Disarm),
            span.prop_map(Step::Advance),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// Walks from one promised tick to the next, as the engine does. Gives how many timers fired early; they are
    /// armed again.
    fn run(steps: Vec<Step>) -> usize {
        let (mut wheel, mut slab) = (Wheel::new(0), Slab::new());
        let (mut now, mut armed, mut early) = (0_u32, Vec::new(), 0);
        for step in steps {
            match step {
                Step::Arm(ahead) => {
                    let due = now + ahead;
                    let id = slab.insert(Entry { timer: Timer::UNARMED, due });
                    wheel.arm(&mut slab, id, due);
                    armed.push(id);
                }
                Step::Disarm(which) => {
                    if !armed.is_empty() {
                        let id = armed.swap_remove(which % armed.len());
                        wheel.disarm(&mut slab, id);
                        slab.remove(id);
                    }
                }
                Step::Advance(ahead) => {
                    let end = now.saturating_add(ahead).min(Tick::MAX / 2);
                    while let Some(next) = wheel.next().filter(|&next| next <= end) {
                        now = now.max(next);
                        let mut budget = 3;
                        while let Some(id) = wheel.fire(&mut slab, now, &mut budget) {
                            let due = slab.get(id).expect("a fired entry is live").due;
                            assert!(due >= now, "late by {}", now - due);
                            if due > now {
                                early += 1;
                                wheel.arm(&mut slab, id, due);
                            } else {
                                slab.remove(id);
                                armed.retain(|&other| other != id);
                            }
                        }
                    }
                    now = end;
                    for &id in &armed {
                        assert!(slab.get(id).expect("armed entries are live").due > now, "missed");
                    }
                }
            }
        }
        early
    }

    proptest! {
        #[test]
        fn every_timer_fires_exactly_at_its_deadline_unless_disarmed(steps in steps(400_000)) {
            prop_assert_eq!(run(steps), 0);
        }

        #[test]
        fn timers_of_months_are_never_late(steps in steps(SPAN / 4)) {
            run(steps);
        }
    }
}
