//! The worker's account of who talks: fed by the events of sessions, and by a look at those that go on.
//!
//! Nothing is done for a packet. Each second a bounded part of the session table is looked at, in steps between two batches:
//! in a small table every session, in one of 64 Ki each once in half a minute. So a session that lives for hours in the fast
//! path counts while it lives, and the work does not grow with the table.

use std::time::Duration;

use super::xdp::Xdp;
use crate::nat::{Engine, Event, SessionRecord, Traffic};
use crate::talkers::{Measure, Talkers, Tally, Top, Window};
use crate::time::Instant;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Accounting {
    talkers: Talkers,
    /// The place of the table to go on from.
    next: u32,
    /// Places to be looked at before the next second begins.
    left: u32,
    second_ends: Instant,
}

impl Accounting {
    /// Takes in something that happened to a session.
    pub(super) fn take_in(&mut self, now: Instant, event: &Event) {
        let (record, tally) = match event {
            Event::Opened(record) => {
                let ports = u64::from(record.took_port);
                (record, Tally { sessions: 1, ports, ..Tally::default() })
            }
            Event::Closed(record, _) => (record, tally(record.fresh)),
            Event::Established(_) => return,
        };
        let SessionRecord { internal, remote, .. } = record;
        self.talkers.add(now, internal.address, remote.address, tally);
    }

    /// Looks at some sessions. Gives whether there are more to be looked at now.
    pub(super) fn look(&mut self, now: Instant, engine: &mut Engine, fast_path: Option<&Xdp>) -> bool {
        if self.second_ends <= now {
            self.second_ends = now + SECOND;
            self.left = engine.places().min(MOST);
        }
        let step = self.left.min(STEP);
        if step == 0 {
            return false;
        }
        let usage = |keys| fast_path.map_or([None; 2], |fast_path| fast_path.usage(now, &keys));
        let talkers = &mut self.talkers;
        let next = engine.account(self.next, step, usage, |internal, remote, traffic| {
            talkers.add(now, internal, remote, tally(traffic));
        });
        self.next = next.unwrap_or_default();
        self.left -= step;
        self.left > 0
    }

    /// The most talkative within a window.
    pub(super) fn top(&mut self, now: Instant, window: Window, by: Measure, count: usize) -> Top {
        self.talkers.top(now, window, by, count)
    }
}

fn tally(traffic: Traffic) -> Tally {
    Tally { bytes: traffic.bytes, packets: traffic.packets, ..Tally::default() }
}

const SECOND: Duration = Duration::from_secs(1);
/// Places looked at in a second. A look takes one to two microseconds, so that all of them are less than half a percent of a
/// processor.
const MOST: u32 = 2048;
/// Places looked at between two batches.
const STEP: u32 = 256;
