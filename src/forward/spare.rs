//! Sockets whose connection to a target is over, for the next one to the same target.
//!
//! To make a socket and to take it down again is about a tenth of what a short connection costs, and the kernel can have
//! one connect once more (connect(2), `AF_UNSPEC`): `docs/decisions/0015-sockets-are-used-again.md`. Each thread keeps a
//! few.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;

use super::descriptors;
use super::stream::Stream;

/// Keeps a socket until its connection is over, and then until it is wanted.
pub(super) fn keep(stream: Stream) {
    let too_many = SPARE.with_borrow_mut(|spare| {
        let most = *spare.most.get_or_insert_with(descriptors::most_spare);
        spare.sockets.push_back(stream);
        if spare.sockets.len() > most { spare.sockets.pop_front() } else { None }
    });
    drop(too_many);
}

/// One that is as new, if there is any.
pub(super) fn take(target: SocketAddr) -> Option<Stream> {
    let stream = SPARE.with_borrow_mut(|spare| {
        let oldest = spare.sockets.iter().position(|stream| stream.is_for(target))?;
        spare.sockets.get(oldest)?.is_over().then(|| spare.sockets.remove(oldest))?
    })?;
    stream.renew().is_ok().then_some(stream)
}

/// A thread's.
#[derive(Default)]
struct Spare {
    /// The oldest first.
    sockets: VecDeque<Stream>,
    most: Option<usize>,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

#[cfg(test)]
mod tests;
