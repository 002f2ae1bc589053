//! A hash index over the entries of a slab.
//!
//! Chained, with the links in the entries, and grown by linear hashing (Litwin, 1980): an insertion splits at most
//! a cache line's worth of buckets, so no packet ever pays for a rehash of the whole table. Keys are hashed with SipHash-1-3
//! under a secret key, so nobody can aim for one bucket.

use std::marker::PhantomData;

use siphasher::sip::SipHasher13;

use super::slab::{Id, NONE, Slab};
use crate::wire::{Endpoint, Protocol};

/// What an index needs to know of its entries: one of their keys, and the link that belongs to it.
pub trait Chain {
    type Entry;

    fn key(entry: &Self::Entry) -> Key;
    fn next(entry: &Self::Entry) -> Id;
    fn set_next(entry: &mut Self::Entry, next: Id);
}

/// A protocol and up to two endpoints, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    first: u64,
    second: u64,
}

impl Key {
    pub fn pair(protocol: Protocol, ours: Endpoint, remote: Endpoint) -> Self {
        Self { first: Self::pack(ours) | u64::from(protocol.0) << 48, second: Self::pack(remote) }
    }

    pub fn one(protocol: Protocol, ours: Endpoint) -> Self {
        Self { first: Self::pack(ours) | u64::from(protocol.0) << 48, second: u64::MAX }
    }

    fn pack(endpoint: Endpoint) -> u64 {
        u64::from(endpoint.address.to_bits()) << 16 | u64::from(endpoint.port)
    }
}

/// The secret that keys hashes and random choices.
#[derive(Clone, Copy, Debug)]
pub struct Secret(SipHasher13);

impl Secret {
    pub fn new(seed: [u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(&seed))
    }

    pub fn hash(&self, key: Key) -> u64 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&key.first.to_le_bytes());
        bytes[8..].copy_from_slice(&key.second.to_le_bytes());
        self.0.hash(&bytes)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Index<C> {
    heads: Heads,
    len: usize,
    secret: Secret,
    chain: PhantomData<C>,
}

impl<C: Chain> Index<C> {
    pub fn new(secret: Secret) -> Self {
        Self { heads: Heads::new(), len: 0, secret, chain: PhantomData }
    }

    /// An entry with `key`; of several, any.
    pub fn find(&self, slab: &Slab<C::Entry>, key: Key) -> Option<Id> {
        self.find_among(slab, key, |_| true)
    }

    /// An entry with `key` that is the wanted one.
    pub fn find_among(
        &self,
        slab: &Slab<C::Entry>,
        key: Key,
        is_wanted: impl Fn(&C::Entry) -> bool,
    ) -> Option<Id> {
        let mut id = *self.heads.at(self.bucket(key));
        while let Some(entry) = slab.get(id) {
            if C::key(entry) == key && is_wanted(entry) {
                return Some(id);
            }
            id = C::next(entry);
        }
        None
    }

    /// The entry with `key` if there is exactly one.
    pub fn find_only(&self, slab: &Slab<C::Entry>, key: Key) -> Option<Id> {
        let mut found = None;
        let mut id = *self.heads.at(self.bucket(key));
        while let Some(entry) = slab.get(id) {
            if C::key(entry) == key && found.replace(id).is_some() {
                return None;
            }
            id = C::next(entry);
        }
        found
    }

    pub fn insert(&mut self, slab: &mut Slab<C::Entry>, id: Id) {
        let Some(entry) = slab.get_mut(id) else { return };
        let bucket = self.bucket(C::key(entry));
        C::set_next(entry, self.heads.replace(bucket, id));
        self.len += 1;
        if self.len > self.heads.len {
            // Neighbours together: they share cache lines, and their entries are fetched side by side.
            for _ in 0..SPLITS {
                self.split(slab);
            }
        }
    }

    /// Unlinks the entry; it must still be in the slab with the key that it was inserted with.
    pub fn remove(&mut self, slab: &mut Slab<C::Entry>, id: Id) {
        let Some(entry) = slab.get(id) else { return };
        let (bucket, next) = (self.bucket(C::key(entry)), C::next(entry));
        let mut at = *self.heads.at(bucket);
        if at == id {
            self.heads.replace(bucket, next);
            self.len -= 1;
            return;
        }
        while let Some(entry) = slab.get_mut(at) {
            let following = C::next(entry);
            if following == id {
                C::set_next(entry, next);
                self.len -= 1;
                return;
            }
            at = following;
        }
    }

    /// Adds a bucket and moves to it what belongs there from the one bucket that held it until now.
    fn split(&mut self, slab: &mut Slab<C::Entry>) {
        let new = self.heads.len;
        // Its number without the highest bit.
        let old = new & !(1 << new.ilog2());
        self.heads.push();
        let mut id = self.heads.replace(old, NONE);
        while let Some(entry) = slab.get_mut(id) {
            let next = C::next(entry);
            let bucket = self.bucket(C::key(entry));
            C::set_next(entry, self.heads.replace(bucket, id));
            id = next;
        }
    }

    fn bucket(&self, key: Key) -> usize {
        // Only the low bits matter, and there are fewer buckets than 2^32.
        #[expect(clippy::cast_possible_truncation)]
        let hash = self.secret.hash(key) as usize;
        let mask = self.heads.len.next_power_of_two() - 1;
        let bucket = hash & mask;
        if bucket < self.heads.len { bucket } else { hash & (mask >> 1) }
    }
}

/// The first entry of each bucket. Grows by chunks, so that no growth copies them all.
#[derive(Debug)]
struct Heads {
    chunks: Vec<Box<[Id; CHUNK]>>,
    len: usize,
}

impl Heads {
    fn new() -> Self {
        Self { chunks: vec![Box::new([NONE; CHUNK])], len: CHUNK }
    }

    fn at(&self, bucket: usize) -> &Id {
        &self.chunks[bucket / CHUNK][bucket % CHUNK]
    }

    fn replace(&mut self, bucket: usize, id: Id) -> Id {
        std::mem::replace(&mut self.chunks[bucket / CHUNK][bucket % CHUNK], id)
    }

    fn push(&mut self) {
        if self.len.is_multiple_of(CHUNK) {
            self.chunks.push(Box::new([NONE; CHUNK]));
        }
        self.len += 1;
    }
}

const CHUNK: usize = 1024;
/// Buckets on a cache line.
const SPLITS: usize = 16;
