//! What is to be sent to a peer: bounded, and never waited for by whoever adds to it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Messages for one peer, while it is connected.
///
/// A heartbeat takes the place of one that still waits: only the last one says how things are. When the queue is full
/// nevertheless, the oldest message goes.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    is_open: bool,
    messages: VecDeque<Waits>,
    dropped: u64,
}

#[derive(Debug)]
struct Waits {
    is_heartbeat: bool,
    payload: Vec<u8>,
}

impl Queue {
    /// Adds a payload; `false` if there is no connection to send it by.
    pub(super) fn push(&self, payload: Vec<u8>, is_heartbeat: bool) -> bool {
        let mut waiting = self.lock();
        if !waiting.is_open {
            return false;
        }
        let superseded = waiting.messages.iter().position(|message| is_heartbeat && message.is_heartbeat);
        if let Some(oldest) = superseded.or_else(|| (waiting.messages.len() >= MOST).then_some(0)) {
            waiting.messages.remove(oldest);
            waiting.dropped += 1;
        }
        waiting.messages.push_back(Waits { is_heartbeat, payload });
        drop(waiting);
        self.wake.notify_one();
        true
    }

    /// Waits for the next payload. There is at most one who does.
    pub(super) async fn next(&self) -> Vec<u8> {
        loop {
            if let Some(message) = self.lock().messages.pop_front() {
                return message.payload;
            }
            self.wake.notified().await;
        }
    }

    /// Forgets what waits; what comes from now on is taken, or not.
    pub(super) fn set_open(&self, is_open: bool) {
        let mut waiting = self.lock();
        waiting.is_open = is_open;
        waiting.messages.clear();
    }

    /// How many messages had to give way.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages. Without a peer that stalls there is hardly ever one.
const MOST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(queue: &Queue) -> Vec<Vec<u8>> {
        queue.lock().messages.iter().map(|message| message.payload.clone()).collect()
    }

    #[test]
    fn heartbeat_takes_the_place_of_one_that_waits() {
        let queue = Queue::default();
        assert!(!queue.push(vec![0], true), "nobody is connected");
        queue.set_open(true);
        assert!(queue.push(vec![1], true));
        assert!(queue.push(vec![2], false));
        assert!(queue.push(vec![3], true));
        assert_eq!(waiting(&queue), [[2], [3]]);
        assert_eq!(queue.dropped(), 1);
    }

    #[test]
    fn full_queue_drops_its_oldest_message() {
        let queue = Queue::default();
        queue.set_open(true);
        for number in 0..MOST + 3 {
            assert!(queue.push(number.to_be_bytes().to_vec(), false));
        }
        let left = waiting(&queue);
        assert_eq!(left.len(), MOST);
        assert_eq!(left[0], 3usize.to_be_bytes());
        assert_eq!(queue.dropped(), 3);
    }

    #[test]
    fn what_waited_for_a_lost_connection_is_not_sent_by_the_next() {
        let queue = Queue::default();
        queue.set_open(true);
        assert!(queue.push(vec![1], false));
        queue.set_open(false);
        assert!(!queue.push(vec![2], false));
        queue.set_open(true);
        assert_eq!(waiting(&queue).len(), 0);
    }
}
