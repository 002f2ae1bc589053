//! Entries with small, stable names.

/// The name of an entry in a [`Slab`].
pub type Id = u32;

/// No entry.
pub const NONE: Id = Id::MAX;

/// A table of entries that never moves them: it grows by chunks, so that no insertion copies the table, and
/// reuses the places of removed entries.
#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Box<[Option<T>]>>,
    free: Vec<Id>,
    len: u32,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub const fn len(&self) -> u32 {
        self.len
    }

    /// How many places there are; ids are below it.
    pub fn places(&self) -> u32 {
        u32::try_from(self.chunks.len() * CHUNK).unwrap_or(NONE)
    }

    pub fn get(&self, id: Id) -> Option<&T> {
        let id = id as usize;
        self.chunks.get(id / CHUNK)?.get(id % CHUNK)?.as_ref()
    }

    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let id = id as usize;
        self.chunks.get_mut(id / CHUNK)?.get_mut(id % CHUNK)?.as_mut()
    }

    /// Adds `entry` in the lowest place that the last removals left, or in a new one.
    pub fn insert(&mut self, entry: T) -> Id {
        if self.free.is_empty() {
            let first = self.places();
            self.chunks.push((0..CHUNK).map(|_| None).collect());
            if self.free.capacity() < self.places() as usize {
                // Room for every place, taken while the list is empty: no later removal has to move it.
                self.free = Vec::with_capacity((self.places() as usize).next_power_of_two());
            }
            self.free.extend((first..self.places()).rev());
        }
        let id = self.free.pop().unwrap_or(NONE);
        if let Some(place) =
            self.chunks.get_mut(id as usize / CHUNK).and_then(|c| c.get_mut(id as usize % CHUNK))
        {
            *place = Some(entry);
            self.len += 1;
        }
        id
    }

    pub fn remove(&mut self, id: Id) -> Option<T> {
        let index = id as usize;
        let entry = self.chunks.get_mut(index / CHUNK)?.get_mut(index % CHUNK)?.take()?;
        self.free.push(id);
        self.len -= 1;
        Some(entry)
    }
}

/// Small enough that a new one costs some 20 µs, most of it the kernel's for fresh pages.
const CHUNK: usize = 256;
