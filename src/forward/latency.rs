//! How long things take, counted in buckets.

use std::time::Duration;

use serde::Serialize;

/// See the module. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Of those that took no longer than each of [`Self::BOUNDS`], and longer than the one before.
    counts: [u64; Self::BOUNDS.len()],
    /// Of those that took longer than all of them.
    longer: u64,
    sum: Duration,
}

impl Latency {
    /// The buckets' upper ends.
    pub const BOUNDS: [Duration; 14] = [
        Duration::from_micros(250),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_micros(2500),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(25),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(250),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_millis(2500),
        Duration::from_secs(5),
    ];

    /// Counts one that took so long.
    pub fn observe(&mut self, took: Duration) {
        let bucket = Self::BOUNDS.iter().zip(&mut self.counts).find(|(bound, _)| took <= **bound);
        *bucket.map_or(&mut self.longer, |(_, count)| count) += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Each upper end with how many took no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        Self::BOUNDS.into_iter().zip(self.counts).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }

    /// How many there were, and how long they took together.
    #[must_use]
    pub fn total(&self) -> (u64, Duration) {
        (self.counts.iter().sum::<u64>() + self.longer, self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_falls_into_the_bucket_that_ends_no_sooner() {
        let mut latency = Latency::default();
        for millis in [1, 2, 2, 60, 9_000] {
            latency.observe(Duration::from_millis(millis));
        }
        let counted: Vec<u64> = latency.cumulative().map(|(_, count)| count).collect();
        assert_eq!(counted, [0, 0, 1, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4]);
        assert_eq!(latency.total(), (5, Duration::from_millis(9_065)));
    }
}
