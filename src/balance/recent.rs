//! A table of limited size that, when it is full, forgets what was not used for the longest time.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Recent<K, V> {
    entries: HashMap<K, Entry<V>, Keyed>,
    /// Keys in the order of their last use.
    by_use: BTreeMap<u64, K>,
    uses: u64,
    most: usize,
    /// Entries that are not used for this long are forgotten.
    idle: Duration,
    evicted: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    used_at: Instant,
    last_use: u64,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    /// An empty table for `most` entries, at least one.
    pub fn new(seed: [u8; 16], most: u32, idle: Duration) -> Self {
        Self {
            entries: HashMap::with_hasher(Keyed(SipHasher13::new_with_key(&seed))),
            by_use: BTreeMap::new(),
            uses: 0,
            most: most.max(1) as usize,
            idle,
            evicted: 0,
        }
    }

    /// Changes the limits; entries beyond them are forgotten.
    pub fn resize(&mut self, most: u32, idle: Duration) {
        while self.entries.len() > most as usize {
            self.remove_oldest();
        }
        self.most = most.max(1) as usize;
        self.idle = idle;
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries that were forgotten for lack of room.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The entry of `key`, which is thereby used; it is made if there is none.
    pub fn entry(&mut self, now: Instant, key: K, value: impl FnOnce() -> V) -> &mut V {
        self.forget_idle(now);
        if self.get(now, &key).is_none()
            && let Some(idle) = self.entries.remove(&key)
        {
            self.by_use.remove(&idle.last_use);
        }
        if !self.entries.contains_key(&key) && self.entries.len() >= self.most {
            self.evict();
        }
        self.uses += 1;
        let entry =
            self.entries.entry(key).or_insert_with(|| Entry { value: value(), used_at: now, last_use: 0 });
        self.by_use.remove(&entry.last_use);
        self.by_use.insert(self.uses, key);
        entry.last_use = self.uses;
        entry.used_at = now;
        &mut entry.value
    }

    /// The entry of `key`, if there is one.
    pub fn get(&self, now: Instant, key: &K) -> Option<&V> {
        let entry = self.entries.get(key)?;
        (now - entry.used_at < self.idle).then_some(&entry.value)
    }

    /// A few at a time, and so none of them waits for long.
    fn forget_idle(&mut self, now: Instant) {
        for _ in 0..2 {
            let Some((_, key)) = self.by_use.first_key_value() else { return };
            if self.entries.get(key).is_some_and(|entry| now - entry.used_at < self.idle) {
                return;
            }
            self.remove_oldest();
        }
    }

    fn evict(&mut self) {
        self.evicted += 1;
        self.remove_oldest();
    }

    fn remove_oldest(&mut self) {
        if let Some((_, key)) = self.by_use.pop_first() {
            self.entries.remove(&key);
        }
    }
}

/// SipHash-1-3 under a secret key.
#[derive(Clone, Copy, Debug)]
struct Keyed(SipHasher13);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}
