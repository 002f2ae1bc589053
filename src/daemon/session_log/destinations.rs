//! Which remote endpoints were talked to before, as far as is remembered.

use std::collections::HashSet;

use crate::nat::SessionRecord;
use crate::wire::{Endpoint, Protocol};

/// Two generations: when the younger one is full, the older one is forgotten. A destination that is in use is
/// remembered for as long as fewer others are new than a generation holds.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    young: HashSet<(Protocol, Endpoint)>,
    old: HashSet<(Protocol, Endpoint)>,
}

impl Destinations {
    /// Whether the session's remote endpoint is not remembered; from now on it is.
    pub(super) fn is_new(&mut self, record: &SessionRecord) -> bool {
        let destination = (record.protocol, record.remote);
        if self.young.contains(&destination) {
            return false;
        }
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(destination);
        !self.old.contains(&destination)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// Some 16 bytes each.
pub(super) const GENERATION: usize = 65_536;
