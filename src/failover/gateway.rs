//! What is known of one gateway: as EC2 has described it, and as own calls have changed it since.
//!
//! Descriptions are eventually consistent. One that shows an association that is known to have ended, or misses one
//! that was just made, is older than what is known, and is not taken.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipnet::Ipv4Net;

use super::action::{Action, Address, Association, Call, CallError, Done, Held, Observation, Route};
use super::config::Gateway;
use super::event::{Abandoned, Event, GatewayStatus, Host, Why};
use super::hold::{Offered, Way};
use super::message::{Answer, Hosting, Message, Reply, Role};
use super::out::{Out, Pending};
use super::peer::{Me, View};
use super::take::Claim;
use crate::time::Instant;

/// A gateway, home or a peer's.
#[derive(Debug)]
pub(super) struct Tracked {
    pub definition: Gateway,
    pub seen: Option<Observation>,
    /// Whether `seen` may be acted on.
    pub is_fresh: bool,
    /// Whether `seen` is an observation, with nothing written since.
    pub is_confirmed: bool,
    /// Observations that were asked for before this mark do not count.
    mark: u64,
    calls: usize,
    pub retry_at: Instant,
    failures: u32,
    /// Since when the first address is where it is, and how it came there.
    pub host_since: Option<Instant>,
    pub coming: Coming,
    /// Who had the first address before nobody had it.
    pub last_host: Host,
    pub free_since: Option<Instant>,
    /// Associations that have ended: by own hand, or as far as was seen. Of those it is not certain, since it may have
    /// been the description that was old; they count until then.
    past: VecDeque<(String, Option<Instant>)>,
    /// Addresses that were associated with the own interface lately.
    gained: BTreeMap<String, Instant>,
    /// Routes that were written lately.
    routed: BTreeMap<(String, Ipv4Net), Instant>,
    /// What EC2 does not know or refuses; left alone for a while.
    hopeless: BTreeMap<String, (Instant, CallError)>,
    pub role: Role,
    pub why: Option<Why>,
    /// What its host has told of why it came there, with the association that it came by.
    told: Option<(String, Why)>,
    pub claim: Option<Claim>,
    pub way: Way,
    pub offer: Option<Offered>,
    /// When whom was offered the gateway in vain.
    pub in_vain: BTreeMap<String, Instant>,
    /// Since when routes lead to a peer's interface that should lead here.
    pub drifting: Option<Instant>,
    pub announced: Vec<Held>,
}

/// How the first address came to where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coming {
    /// It was there when it was first looked for.
    Found,
    /// It was somewhere else before.
    Seen,
    /// This instance had offered it.
    Consented,
}

impl Tracked {
    pub fn new(now: Instant, definition: Gateway) -> Self {
        Self {
            definition,
            seen: None,
            is_fresh: false,
            is_confirmed: false,
            mark: 0,
            calls: 0,
            retry_at: now,
            failures: 0,
            host_since: None,
            coming: Coming::Found,
            last_host: Host::Unknown,
            free_since: None,
            past: VecDeque::new(),
            gained: BTreeMap::new(),
            routed: BTreeMap::new(),
            hopeless: BTreeMap::new(),
            role: Role::Standby,
            why: None,
            told: None,
            claim: None,
            way: Way::Own,
            offer: None,
            in_vain: BTreeMap::new(),
            drifting: None,
            announced: Vec::new(),
        }
    }

    pub fn redefine(&mut self, definition: Gateway, out: &mut Out) {
        if self.definition != definition {
            self.definition = definition;
            self.distrust(out);
            self.seen = None;
            self.gained.clear();
            self.routed.clear();
            self.hopeless.clear();
        }
    }

    /// What is known must be observed anew before it is acted on.
    pub fn distrust(&mut self, out: &mut Out) {
        self.is_fresh = false;
        self.is_confirmed = false;
        self.mark = out.mark();
        out.hurry = true;
    }

    /// This instance was asleep. What was begun is seen through; what was only meant is thought over.
    pub fn woke(&mut self, out: &mut Out) {
        self.distrust(out);
        if self.claim.as_ref().is_some_and(|claim| !claim.is_begun()) {
            self.abandon(Abandoned::NoReason, out);
        }
    }

    /// Whether nothing about it is under way.
    pub fn is_settled(&self) -> bool {
        self.is_confirmed && self.claim.is_none() && self.drifting.is_none() && self.free_since.is_none()
    }

    /// One step towards what should be.
    pub fn work(&mut self, view: &View<'_>, out: &mut Out) {
        if self.calls > 0 || view.now < self.retry_at || !self.is_fresh {
            return;
        }
        if self.association(self.definition.first()).is_some_and(|held| held.eni == view.me.eni) {
            self.hold(view, out);
        } else {
            let host = self.host(view);
            if self.is_leaving_for(&host, view) {
                return;
            }
            // That nobody has it now does not say that nobody had it since.
            if self.role != Role::Standby && self.claim.is_none() {
                self.stand_by(host, out);
            }
            if self.claim.is_none() {
                self.consider(view, out);
            }
            if self.claim.is_some() {
                self.advance(view, out);
            }
        }
    }

    /// Where the first address is.
    pub fn host(&self, view: &View<'_>) -> Host {
        let Some(first) = self.address(self.definition.first()) else { return Host::Unknown };
        match &first.association {
            None => Host::Nobody,
            Some(Association { eni, .. }) => match view.instance(eni) {
                Some(name) => Host::Instance(name.to_owned()),
                None => Host::Stranger(eni.clone()),
            },
        }
    }

    pub fn address(&self, allocation: &str) -> Option<&Address> {
        self.seen.as_ref()?.addresses.iter().find(|address| address.allocation == allocation)
    }

    pub fn association(&self, allocation: &str) -> Option<&Association> {
        self.address(allocation)?.association.as_ref()
    }

    pub fn route(&self, table: &str, destination: Ipv4Net) -> Option<&Route> {
        let is_it = |route: &&Route| route.table == table && route.destination == destination;
        self.seen.as_ref()?.routes.iter().find(is_it)
    }

    /// The pairs that are here.
    pub fn held(&self, view: &View<'_>) -> Vec<Held> {
        let addresses = self.seen.iter().flat_map(|seen| &seen.addresses);
        let own = addresses.filter_map(|Address { public, association, .. }| {
            let association = association.as_ref().filter(|association| association.eni == view.me.eni)?;
            Some(Held { public: *public, private: association.private? })
        });
        own.collect()
    }

    /// Takes an observation in that was asked for as `number`; `false` if it is older than what is known.
    pub fn observe(&mut self, number: u64, observation: Observation, view: &View<'_>, out: &mut Out) -> bool {
        let is_outdated =
            observation.addresses.iter().any(|address| self.is_outdated(address, view.now).is_some());
        if is_outdated || self.calls > 0 || number < self.mark {
            if self.is_fence_in_doubt(&observation, view) {
                self.is_fresh = false;
                self.is_confirmed = false;
                out.hurry |= !is_outdated;
            }
            return false;
        }
        let before = self.host(view);
        let known = self.association(self.definition.first()).cloned();
        for address in self.seen.iter().flat_map(|seen| &seen.addresses) {
            let now = observation.addresses.iter().find(|now| now.allocation == address.allocation);
            if let Some(ended) = &address.association
                && now.and_then(|now| now.association.as_ref()).is_some_and(|now| now.id != ended.id)
            {
                remember(&mut self.past, &ended.id, Some(view.now + SETTLED));
            }
        }
        let had_seen = self.seen.is_some();
        self.seen = Some(observation);
        self.is_fresh = true;
        self.is_confirmed = true;
        let first = self.association(self.definition.first()).cloned();
        if first.as_ref().map(|first| &first.id) != known.as_ref().map(|known| &known.id) || !had_seen {
            self.settle_first(view.now, known.is_some() || self.free_since.is_some(), before.clone());
            if self.has_consented(&self.host(view)) {
                self.coming = Coming::Consented;
            }
        }
        let host = self.host(view);
        if host != before {
            out.event(Event::Moved { gateway: self.definition.name.clone(), from: before, to: host });
            out.hurry = true;
        }
        true
    }

    /// Whether a description of an address is older than what is known, and whether that is certain: EC2 shows what was
    /// done after a while, and an association that has ended by own hand never comes back.
    fn is_outdated(&self, address: &Address, now: Instant) -> Option<bool> {
        match &address.association {
            Some(association) => {
                let (_, until) = self.past.iter().find(|(past, _)| *past == association.id)?;
                until.is_none_or(|until| now < until).then_some(until.is_none())
            }
            None => {
                let is_recent = self.gained.get(&address.allocation).is_some_and(|at| now - *at < SETTLED);
                is_recent.then_some(false)
            }
        }
    }

    /// Whether a description that is too old to go by may still be newer than what is known of the fence: then nothing
    /// is done on what was known before it.
    fn is_fence_in_doubt(&self, observation: &Observation, view: &View<'_>) -> bool {
        let first = self.definition.first();
        let Some(known) = self.association(first).filter(|known| known.eni == view.me.eni) else {
            return false;
        };
        let Some(shown) = observation.addresses.iter().find(|address| address.allocation == first) else {
            return false;
        };
        let is_other = shown.association.as_ref().is_none_or(|shown| shown.id != known.id);
        is_other && self.is_outdated(shown, view.now) != Some(true)
    }

    /// The first address is somewhere else than before.
    fn settle_first(&mut self, now: Instant, was_seen_before: bool, before: Host) {
        if self.association(self.definition.first()).is_some() {
            self.host_since = Some(now);
            self.coming = if was_seen_before { Coming::Seen } else { Coming::Found };
            self.free_since = None;
        } else {
            self.last_host = before;
            self.free_since.get_or_insert(now);
        }
    }

    /// Gives a call out.
    pub fn call(&mut self, call: Call, view: &View<'_>, out: &mut Out) {
        self.calls += 1;
        let timing = &view.me.timing;
        let until = view.now + timing.call_within;
        let gateway = self.definition.name.clone();
        out.call(Pending { gateway, call, until }, view.now + timing.dead_after);
        self.mark = out.mark();
    }

    /// Takes in how a call went. What was done is part of what is known from now on.
    pub fn answered(&mut self, call: &Call, result: Result<Done, CallError>, view: &View<'_>, out: &mut Out) {
        self.calls = self.calls.saturating_sub(1);
        self.mark = out.mark();
        self.is_confirmed = false;
        if self.calls == 0 {
            out.hurry = true;
        }
        match (call, result) {
            (_, Err(error)) => self.failed(call, error, view, out),
            (Call::Disassociate { association }, Ok(_)) => {
                remember(&mut self.past, association, None);
                self.set(
                    |address| address.association.as_ref().is_some_and(|a| a.id == *association),
                    None,
                    view,
                );
            }
            (Call::Associate { allocation }, Ok(Done::Associated { association, private })) => {
                let gained = Association { id: association, eni: view.me.eni.clone(), private: Some(private) };
                self.gained.insert(allocation.clone(), view.now);
                self.set(|address| address.allocation == *allocation, Some(gained), view);
            }
            (Call::Route { table, destination, target, .. }, Ok(_)) => {
                self.routed.insert((table.clone(), *destination), view.now);
                let (table, destination, target) = (table.clone(), *destination, target.clone());
                if let Some(seen) = &mut self.seen {
                    seen.routes.retain(|route| (&route.table, route.destination) != (&table, destination));
                    seen.routes.push(Route { table, destination, target, active: true });
                }
            }
            (Call::Associate { .. }, Ok(_)) => self.distrust(out),
        }
        if result_is_first(call, &self.definition) {
            out.beat = true;
        }
        if self.calls == 0 && self.retry_at <= view.now {
            self.failures = 0;
        }
    }

    fn set(&mut self, is_it: impl Fn(&Address) -> bool, to: Option<Association>, view: &View<'_>) {
        let before = self.host(view);
        let first = self.definition.first().to_owned();
        let mut addresses = self.seen.iter_mut().flat_map(|seen| &mut seen.addresses);
        if let Some(address) = addresses.find(|address| is_it(address)) {
            address.association = to;
            if address.allocation == first {
                self.settle_first(view.now, true, before);
            }
        }
    }

    fn failed(&mut self, call: &Call, error: CallError, view: &View<'_>, out: &mut Out) {
        out.failed(Some(&self.definition.name), call.name(), error);
        if matches!(error, CallError::NotFound | CallError::Refused) {
            let what = match call {
                Call::Disassociate { association } => association.clone(),
                Call::Associate { allocation } => allocation.clone(),
                Call::Route { table, destination, .. } => key(table, *destination),
            };
            let again = view.me.timing.observe_every;
            self.hopeless.retain(|_, (at, _)| view.now - *at < again);
            self.hopeless.insert(what, (view.now, error));
        }
        match error {
            CallError::StaleAssociation | CallError::AlreadyAssociated => {
                self.distrust(out);
                // With consent there is no rival: what was known of the address was old.
                if self.claim.as_ref().is_some_and(|claim| !claim.has_consent()) {
                    self.abandon(Abandoned::Lost, out);
                }
                self.back_off(view, out);
            }
            CallError::NotMade => self.distrust(out),
            CallError::Unknown => {
                self.distrust(out);
                self.back_off(view, out);
            }
            CallError::NotFound | CallError::Refused | CallError::Throttled => self.back_off(view, out),
        }
    }

    fn back_off(&mut self, view: &View<'_>, out: &mut Out) {
        if self.retry_at <= view.now {
            self.failures += 1;
        }
        let timing = &view.me.timing;
        self.retry_at = view.now + out.backoff(timing.retry, timing.max_retry, self.failures);
    }

    /// Whether this has been refused so lately that it would be again.
    pub fn is_hopeless(&self, what: &str, view: &View<'_>) -> bool {
        let again = view.me.timing.observe_every;
        self.hopeless.get(what).is_some_and(|(at, _)| view.now - *at < again)
    }

    /// Whether a route was written so lately that EC2 may not show it yet.
    pub fn is_just_routed(&self, table: &str, destination: Ipv4Net, now: Instant) -> bool {
        self.routed.get(&(table.to_owned(), destination)).is_some_and(|at| now - *at < SETTLED)
    }

    /// Ends the own attempt to take it.
    pub fn abandon(&mut self, why: Abandoned, out: &mut Out) {
        let Some(claim) = self.claim.take() else { return };
        let gateway = self.definition.name.clone();
        out.event(Event::Abandoned { gateway: gateway.clone(), why });
        if let Some((to, number)) = claim.consent {
            let message = Message::Answer(Answer { gateway, number, reply: Reply::GaveUp });
            out.actions.push_back(Action::Send { to, message });
        }
        if self.announced.is_empty() {
            // What was adopted is not needed.
            out.actions.push_back(Action::StandDown { gateway: self.definition.name.clone() });
        }
        self.stand_by(Host::Unknown, out);
        out.hurry = true;
    }

    /// Is no host any more, nor wants to be.
    pub fn stand_by(&mut self, host: Host, out: &mut Out) {
        let gateway = self.definition.name.clone();
        if !self.announced.is_empty() {
            self.announced.clear();
            out.actions.push_back(Action::StandDown { gateway: gateway.clone() });
            out.event(Event::StoodDown { gateway, host });
        }
        self.claim = None;
        self.offer = None;
        self.way = Way::Own;
        self.why = None;
        self.drifting = None;
        self.role = Role::Standby;
        out.beat = true;
    }

    /// A peer has told why it has it. One that has restarted has found it there, which is not why it came.
    pub fn hear(&mut self, hosting: &Hosting) {
        if let Some((association, why)) = hosting.association.as_ref().zip(hosting.why) {
            let is_known = self.told.as_ref().is_some_and(|(told, _)| told == association);
            if why != Why::Found || !is_known {
                self.told = Some((association.clone(), why));
            }
        }
    }

    fn why_here(&self) -> Option<Why> {
        self.claim.as_ref().map(|claim| claim.why).or(self.why)
    }

    /// Of the host that EC2 shows; what was told of another says nothing.
    fn why_there(&self) -> Option<Why> {
        let held = self.association(self.definition.first())?;
        self.told.as_ref().filter(|(association, _)| *association == held.id).map(|(_, why)| *why)
    }

    /// What peers are told of it.
    pub fn hosting(&self, me: &Me) -> Option<Hosting> {
        let held = self.association(self.definition.first()).filter(|held| held.eni == me.eni);
        (self.role != Role::Standby).then(|| Hosting {
            gateway: self.definition.name.clone(),
            role: self.role,
            association: held.map(|held| held.id.clone()),
            why: self.why_here(),
        })
    }

    pub fn status(&self, view: &View<'_>, observed: Option<Instant>) -> GatewayStatus {
        let trouble = self
            .hopeless
            .iter()
            .filter(|(what, _)| self.is_hopeless(what, view))
            .map(|(what, (_, error))| format!("{what}: {error}"));
        let missing =
            self.definition.allocations.iter().filter(|id| self.seen.is_some() && self.address(id).is_none());
        let stranger = match self.host(view) {
            Host::Stranger(eni) => Some(format!(
                "{} is associated with {eni}, which is nobody's of the fleet: disassociate it by hand",
                self.definition.first()
            )),
            _ => None,
        };
        let missing = missing.map(|id| format!("{id} does not exist"));
        let disputed = self.definition.route_tables.iter().filter(|table| view.is_disputed(table));
        let disputed =
            disputed.map(|table| format!("{table} is claimed by a peer as well: its routes are left alone"));
        let troubles: Vec<String> =
            stranger.into_iter().chain(missing).chain(disputed).chain(trouble).collect();
        let seconds = |since: Instant| (view.now - since).as_secs_f64();
        GatewayStatus {
            gateway: self.definition.name.clone(),
            host: self.host(view),
            role: self.role,
            since_seconds: self.host_since.filter(|_| self.free_since.is_none()).map(seconds),
            why: self.why_here().or_else(|| self.why_there()),
            observed_seconds: observed.filter(|_| self.seen.is_some()).map(seconds),
            trouble: (!troubles.is_empty()).then(|| troubles.join("; ")),
            offered_to: self.offer.as_ref().map(|offer| offer.to.clone()),
        }
    }
}

/// How a route is named in messages.
pub(super) fn key(table: &str, destination: Ipv4Net) -> String {
    format!("{destination} of {table}")
}

fn result_is_first(call: &Call, gateway: &Gateway) -> bool {
    matches!(call, Call::Associate { allocation } if allocation == gateway.first())
}

fn remember(past: &mut VecDeque<(String, Option<Instant>)>, ended: &str, until: Option<Instant>) {
    past.retain(|(id, _)| id != ended);
    if past.len() >= MOST_PAST {
        past.pop_front();
    }
    past.push_back((ended.to_owned(), until));
}

/// After so long, EC2 shows what was done.
pub(super) const SETTLED: Duration = Duration::from_secs(5);

/// More than a gateway's addresses can end within what EC2 takes to forget them.
const MOST_PAST: usize = 64;
