//! What leaves the machine: actions and events, and the book of calls that are not answered yet.

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::action::{Action, Call, CallError, CallId};
use super::event::Event;
use crate::time::Instant;

/// The way out, with a source of jitter.
#[derive(Debug)]
pub(super) struct Out {
    pub actions: VecDeque<Action>,
    events: VecDeque<Event>,
    pub events_lost: u64,
    calls: BTreeMap<CallId, Pending>,
    next_id: u64,
    random: SipHasher13,
    drawn: u64,
    /// Look at EC2 as soon as may be.
    pub hurry: bool,
    /// Something changed that peers should know now.
    pub beat: bool,
}

/// A call in flight.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub gateway: String,
    pub call: Call,
    pub until: Instant,
}

impl Out {
    pub fn new(seed: [u8; 16]) -> Self {
        Self {
            actions: VecDeque::new(),
            events: VecDeque::new(),
            events_lost: 0,
            calls: BTreeMap::new(),
            next_id: 1,
            random: SipHasher13::new_with_key(&seed),
            drawn: 0,
            hurry: false,
            beat: false,
        }
    }

    pub fn event(&mut self, event: Event) {
        if self.events.len() < MOST_EVENTS {
            self.events.push_back(event);
        } else {
            self.events_lost += 1;
        }
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the next call or observation will be numbered: whatever is numbered so or higher was asked after now.
    pub const fn mark(&self) -> u64 {
        self.next_id
    }

    pub fn id(&mut self) -> CallId {
        self.next_id += 1;
        CallId(self.next_id - 1)
    }

    pub fn call(&mut self, pending: Pending, begin_by: Instant) {
        let id = self.id();
        let Pending { gateway, call, .. } = pending.clone();
        self.actions.push_back(Action::Call { id, gateway, call, begin_by });
        self.calls.insert(id, pending);
    }

    pub fn answered(&mut self, id: CallId) -> Option<Pending> {
        self.calls.remove(&id)
    }

    /// The calls that nobody has answered in time.
    pub fn overdue(&mut self, now: Instant) -> Vec<Pending> {
        let overdue: Vec<CallId> =
            self.calls.iter().filter(|(_, pending)| pending.until <= now).map(|(id, _)| *id).collect();
        overdue.into_iter().filter_map(|id| self.calls.remove(&id)).collect()
    }

    pub fn failed(&mut self, gateway: Option<&str>, call: &'static str, error: CallError) {
        self.event(Event::CallFailed { gateway: gateway.map(str::to_owned), call, error });
    }

    /// `duration`, up to a tenth more or less.
    pub fn jitter(&mut self, duration: Duration) -> Duration {
        self.drawn += 1;
        let mut hasher = self.random;
        hasher.write_u64(self.drawn);
        let thousandths = 900 + u32::try_from(hasher.finish() % 201).unwrap_or(100);
        duration * thousandths / 1_000
    }

    /// The wait after so many failures in a row: doubled each time, with jitter.
    pub fn backoff(&mut self, first: Duration, most: Duration, failures: u32) -> Duration {
        let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        self.jitter(doubled.min(most))
    }
}

impl Call {
    /// The call's name at EC2.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Disassociate { .. } => "DisassociateAddress",
            Self::Associate { .. } => "AssociateAddress",
            Self::Route { exists: true, .. } => "ReplaceRoute",
            Self::Route { exists: false, .. } => "CreateRoute",
        }
    }
}

/// That nobody has fetched yet.
const MOST_EVENTS: usize = 1_024;
