//! Hosting a gateway: the rest of its addresses and its routes, the fallback, and handing it over.

use super::action::{Action, Call, Route};
use super::config::Failback;
use super::event::{Event, Host, Life, NotHandedOver, OrderError, Why};
use super::gateway::{SETTLED, Tracked, key};
use super::message::{Answer, Message, Offer, Planned, Reply, Role};
use super::out::Out;
use super::peer::{Peer, View};
use super::take::Claim;
use crate::time::Instant;

/// Where the routes of a gateway that is hosted here are to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the own interface.
    Own,
    /// To the standby NAT gateway, since then.
    Fallback(Instant),
}

/// A gateway that is offered to a peer. Until that is over, nothing of it is touched from here.
#[derive(Clone, Debug)]
pub(super) struct Offered {
    pub to: String,
    pub number: u64,
    is_accepted: bool,
    until: Instant,
}

impl Tracked {
    /// One step of a host: whatever is not as it should be is put right, and then the gateway is active.
    pub fn hold(&mut self, view: &View<'_>, out: &mut Out) {
        if self.role == Role::Standby {
            self.begin(Claim::new(Why::Found, view.now), view, out);
        }
        if let Some(claim) = &mut self.claim {
            claim.has_arrived = true;
        }
        if let Some(claim) = &self.claim
            && matches!(claim.why, Why::Found | Why::Free)
            && self.way == Way::Own
            && self.leads_to_fallback()
        {
            self.way = Way::Fallback(view.now);
        }
        if self.offer.is_some() && self.follow_offer(view, out) {
            return;
        }
        self.choose_way(view, out);
        if self.mend_addresses(view, out) || self.mend_routes(view, out) || !self.is_confirmed {
            return;
        }
        self.be_host(view, out);
        if self.offer.is_none() {
            self.offer_if_due(view, out);
        }
    }

    /// Whether the routes lead to the fallback, as far as they are anywhere.
    pub fn leads_to_fallback(&self) -> bool {
        let Some(fallback) = &self.definition.fallback else { return false };
        self.seen.iter().flat_map(|seen| &seen.routes).any(|route| route.target == *fallback)
    }

    /// The fallback serves while nobody is fit to; what it serves is taken back after the hold-down only.
    fn choose_way(&mut self, view: &View<'_>, out: &mut Out) {
        let timing = &view.me.timing;
        let gateway = &self.definition.name;
        match self.way {
            Way::Own if self.definition.fallback.is_some() => {
                let Some(unfit) = view.unfit_since() else { return };
                // Those who could take it get their chance, as long as they use it.
                let is_vain = |name: &String| self.in_vain.get(name).is_some_and(|at| *at >= unfit);
                let mut heirs = self.definition.candidates().filter(|name| view.is_able(name));
                if heirs.all(is_vain) || view.now - unfit >= timing.turn * 3 {
                    self.way = Way::Fallback(view.now);
                    out.event(Event::FellBack { gateway: gateway.clone() });
                }
            }
            Way::Fallback(since) => {
                let is_well = view.is_fit()
                    && view.me.health.well_for(view.now).is_some_and(|well| well >= timing.hold_down);
                if is_well && view.now - since >= timing.hold_down || self.definition.fallback.is_none() {
                    self.way = Way::Own;
                    out.event(Event::TakenBack { gateway: gateway.clone() });
                }
            }
            Way::Own => {}
        }
    }

    /// Brings the other addresses here, one step at a time; whether there was one to make.
    fn mend_addresses(&mut self, view: &View<'_>, out: &mut Out) -> bool {
        for allocation in self.definition.allocations.clone() {
            let Some(address) = self.address(&allocation) else { continue };
            let call = match &address.association {
                Some(held) if held.eni == view.me.eni => continue,
                Some(held) => Call::Disassociate { association: held.id.clone() },
                None => Call::Associate { allocation: allocation.clone() },
            };
            if !self.is_hopeless(&allocation, view) {
                self.mending(&allocation, out);
                self.call(call, view, out);
                return true;
            }
        }
        false
    }

    /// Leads the routes where they belong, all at once; whether there was one to write or to wait for.
    fn mend_routes(&mut self, view: &View<'_>, out: &mut Out) -> bool {
        let target = match (self.way, &self.definition.fallback) {
            (Way::Fallback(_), Some(nat)) => nat.clone(),
            _ => view.me.eni.clone(),
        };
        let (mut calls, mut waits, mut at_peer, mut at_stranger) = (Vec::new(), false, false, false);
        for (table, destination) in self.definition.routes() {
            let route = self.route(table, destination);
            if route.is_some_and(|route| route.target == target) {
                continue;
            }
            if self.is_hopeless(&key(table, destination), view) || view.is_disputed(table) {
                continue;
            }
            if self.is_just_routed(table, destination, view.now) {
                waits = true;
                continue;
            }
            let instance = route.and_then(|route| view.instance(&route.target));
            at_peer |= instance.is_some_and(|instance| instance != view.me.name);
            let forwards = |route: &Route| route.active && route.target.starts_with("eni-");
            at_stranger |= instance.is_none() && route.is_some_and(forwards);
            let (table, exists, target) = (table.clone(), route.is_some(), target.clone());
            calls.push(Call::Route { table, destination, target, exists });
        }
        // What leads to a peer may have been led there by a new host, whose address EC2 does not show us yet. What leads to
        // a stranger when this instance comes may lead to a peer that has not been heard yet, and claims it too.
        let since = *self.drifting.get_or_insert(view.now);
        let has_come = self.claim.as_ref().is_some_and(|claim| matches!(claim.why, Why::Found | Why::Free));
        let may_be_right = self.claim.is_none() && at_peer || has_come && at_stranger;
        if may_be_right && view.now - since < SETTLED {
            out.hurry |= since == view.now;
            return true;
        }
        if calls.is_empty() || !at_peer {
            self.drifting = None;
        }
        let writes = !calls.is_empty();
        for call in calls {
            if let Call::Route { table, destination, .. } = &call {
                self.mending(&key(table, *destination), out);
            }
            self.call(call, view, out);
        }
        writes || waits
    }

    fn mending(&self, what: &str, out: &mut Out) {
        if self.claim.is_none() {
            out.event(Event::Mending { gateway: self.definition.name.clone(), what: what.to_owned() });
        }
    }

    /// All is observed to be as it should.
    fn be_host(&mut self, view: &View<'_>, out: &mut Out) {
        let role = if self.way == Way::Own { Role::Active } else { Role::Fallback };
        let held = self.held(view);
        if self.announced != held {
            self.announced.clone_from(&held);
            let gateway = self.definition.name.clone();
            out.actions.push_back(Action::Active { gateway, addresses: held });
        }
        if let Some(claim) = self.claim.take() {
            self.why = Some(claim.why);
            let (gateway, took) = (self.definition.name.clone(), view.now - claim.since);
            out.event(Event::Active { gateway, why: claim.why, took });
        }
        if self.role != role {
            self.role = role;
            out.beat = true;
        }
    }

    /// Offers it to a peer if this instance is about to stop, or its home is well again.
    fn offer_if_due(&mut self, view: &View<'_>, out: &mut Out) {
        let timing = &view.me.timing;
        let was_asked = |name: &String, rest| self.in_vain.get(name).is_some_and(|at| view.now - *at < rest);
        if view.me.leaving.is_some() {
            let mut able = self.definition.candidates().filter(|name| view.is_able(name));
            let next = able.find(|name| !was_asked(name, timing.turn)).cloned();
            drop(able);
            if let Some(to) = next {
                self.offer(to, Planned::Leaving, view, out);
            }
            return;
        }
        let home = self.definition.name.clone();
        let is_stable =
            |peer: &Peer| peer.condition.well_for(view.now).is_some_and(|well| well >= timing.hold_down);
        let is_due = home != view.me.name
            && self.definition.failback == Failback::Auto
            && self.why != Some(Why::HandOver(Planned::Operator))
            && view.is_able(&home)
            && view.peers.get(&home).is_some_and(is_stable)
            && self.host_since.is_some_and(|since| view.now - since >= timing.hold_down)
            && !was_asked(&home, timing.hold_down);
        if is_due {
            self.offer(home, Planned::Failback, view, out);
        }
    }

    /// Offers it because an operator says so.
    ///
    /// # Errors
    /// Why not.
    pub fn order(&mut self, to: &str, view: &View<'_>, out: &mut Out) -> Result<(), OrderError> {
        let gateway = self.definition.name.clone();
        let peer = view.peers.get(to).ok_or_else(|| OrderError::NoPeer(to.to_owned()))?;
        if !self.definition.candidates().any(|candidate| candidate == to) {
            return Err(OrderError::NoHeir { gateway, peer: to.to_owned() });
        }
        if !matches!(self.role, Role::Active | Role::Fallback) {
            return Err(OrderError::NotHere { gateway, host: self.host(view) });
        }
        if !peer.is_alive() || !peer.linked || peer.refused.is_some() {
            return Err(OrderError::NotHeard(to.to_owned()));
        }
        if self.offer.is_some() {
            return Err(OrderError::UnderWay(gateway));
        }
        self.offer(to.to_owned(), Planned::Operator, view, out);
        Ok(())
    }

    fn offer(&mut self, to: String, why: Planned, view: &View<'_>, out: &mut Out) {
        let gateway = self.definition.name.clone();
        let number = out.id().0;
        let until = view.now + view.me.timing.dead_after * 2;
        out.event(Event::Offered { gateway: gateway.clone(), to: to.clone(), why });
        let message = Message::Offer(Offer { gateway, number, why });
        out.actions.push_back(Action::Send { to: to.clone(), message });
        self.offer = Some(Offered { to, number, is_accepted: false, until });
    }

    /// Whether the gateway is just going to the peer that was offered it. Until the peer is active there, this
    /// instance goes on: whoever waits for it to have nothing left waits for the routes as well.
    pub fn is_leaving_for(&self, host: &Host, view: &View<'_>) -> bool {
        let Some(offer) = self.offer.as_ref().filter(|offer| offer.is_accepted) else { return false };
        let is_on_its_way = match host {
            Host::Nobody => true,
            Host::Instance(name) => *name == offer.to,
            Host::Unknown | Host::Stranger(_) => false,
        };
        let is_there = |peer: &Peer| {
            matches!(peer.role(&self.definition.name), Role::Active | Role::Fallback) && *host != Host::Nobody
        };
        let peer = view.peers.get(&offer.to);
        is_on_its_way
            && view.now < offer.until
            && peer.is_some_and(|peer| peer.life != Life::Dead && !is_there(peer))
    }

    /// Whether the host is the one that was offered it, and has accepted.
    pub fn has_consented(&self, host: &Host) -> bool {
        self.offer.as_ref().is_some_and(|offer| offer.is_accepted && *host == Host::Instance(offer.to.clone()))
    }

    /// Looks after an offer that is open; whether it still is.
    fn follow_offer(&mut self, view: &View<'_>, out: &mut Out) -> bool {
        let Some(offer) = &self.offer else { return false };
        let is_gone = view.peers.get(&offer.to).is_none_or(|peer| peer.life == Life::Dead);
        if view.now < offer.until && !is_gone {
            return true;
        }
        let why = if offer.is_accepted { NotHandedOver::TooLong } else { NotHandedOver::NoAnswer };
        self.end_offer(why, view, out);
        false
    }

    fn end_offer(&mut self, why: NotHandedOver, view: &View<'_>, out: &mut Out) {
        let Some(offer) = self.offer.take() else { return };
        self.in_vain.insert(offer.to.clone(), view.now);
        out.event(Event::NotHandedOver { gateway: self.definition.name.clone(), to: offer.to, why });
        // Whatever the peer has done meanwhile is seen before anything is done about it.
        self.distrust(out);
    }

    pub fn handle_answer(&mut self, from: &str, answer: &Answer, view: &View<'_>, out: &mut Out) {
        let Some(offer) = &mut self.offer else { return };
        if offer.to != from || offer.number != answer.number {
            return;
        }
        match answer.reply {
            Reply::Accepted => {
                self.in_vain.remove(from);
                offer.is_accepted = true;
                offer.until = view.now + view.me.timing.hand_over_within;
            }
            Reply::Refused(why) => self.end_offer(NotHandedOver::Refused(why), view, out),
            Reply::GaveUp => self.end_offer(NotHandedOver::GaveUp, view, out),
        }
    }
}
