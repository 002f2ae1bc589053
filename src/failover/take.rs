//! Taking a gateway: whether there is a reason, whose turn it is, and the steps until the first address is here.

use std::time::Duration;

use super::action::{Action, Call};
use super::event::{Abandoned, Event, Host, Life, Why};
use super::gateway::{Coming, Tracked};
use super::message::{Health, Offer, Role, Unwilling};
use super::out::Out;
use super::peer::View;
use crate::time::Instant;

/// An attempt to take a gateway.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub why: Why,
    pub since: Instant,
    /// The association that it means to end; `None` if there was none.
    from: Option<String>,
    /// Something was sent to EC2 that may have left the address with nobody.
    is_begun: bool,
    /// The first address was here: if it is not any more, somebody has taken it since.
    pub has_arrived: bool,
    /// When the sessions are installed, or no longer waited for.
    adopted_by: Instant,
    /// The peer that has offered it, and the offer's number.
    pub consent: Option<(String, u64)>,
}

impl Claim {
    pub const fn new(why: Why, since: Instant) -> Self {
        Self { why, since, from: None, is_begun: false, has_arrived: false, adopted_by: since, consent: None }
    }

    pub const fn is_begun(&self) -> bool {
        self.is_begun
    }

    pub const fn has_consent(&self) -> bool {
        self.consent.is_some()
    }
}

impl Tracked {
    /// Begins to take it if there is a reason, and it is this instance's turn.
    pub fn consider(&mut self, view: &View<'_>, out: &mut Out) {
        if let Some((why, from)) = self.reason(view)
            && from <= view.now
        {
            self.begin(Claim::new(why, view.now), view, out);
        }
    }

    /// Begins, with the sessions: they are to be there before the address is. What is known of a host that fell silent
    /// is looked at once more, which gives a heartbeat that is only late the time to arrive.
    pub fn begin(&mut self, mut claim: Claim, view: &View<'_>, out: &mut Out) {
        claim.from = self.association(self.definition.first()).map(|association| association.id.clone());
        if claim.why != Why::Found {
            claim.adopted_by = view.now + view.me.timing.heartbeat * 4;
            out.actions.push_back(Action::Adopt { gateway: self.definition.name.clone() });
        }
        if claim.why == Why::Silence {
            self.distrust(out);
        }
        out.event(Event::TakingOver { gateway: self.definition.name.clone(), why: claim.why });
        self.claim = Some(claim);
        self.role = Role::Taking;
        out.beat = true;
    }

    /// Takes it from a host that has offered it, and is fit to.
    ///
    /// # Errors
    /// Why not.
    pub fn accept(
        &mut self,
        from: &str,
        offer: &Offer,
        view: &View<'_>,
        out: &mut Out,
    ) -> Result<(), Unwilling> {
        if self.is_refused(view) {
            return Err(Unwilling::UnknownGateway);
        }
        if !self.definition.candidates().any(|candidate| *candidate == view.me.name) {
            return Err(Unwilling::NoHeir);
        }
        if matches!(self.role, Role::Active | Role::Fallback) {
            self.distrust(out);
            return Ok(());
        }
        let (why, consent) = (Why::HandOver(offer.why), Some((from.to_owned(), offer.number)));
        match &mut self.claim {
            Some(claim) if claim.is_begun => (claim.why, claim.consent) = (why, consent),
            _ => self.begin(Claim { consent, ..Claim::new(why, view.now) }, view, out),
        }
        if self.host(view) != Host::Instance(from.to_owned()) {
            self.distrust(out);
        }
        Ok(())
    }

    /// Why this instance should take it without being asked, and from when on it is its turn.
    fn reason(&self, view: &View<'_>) -> Option<(Why, Instant)> {
        let me = &view.me.name;
        if !self.definition.candidates().any(|candidate| candidate == me) || self.is_refused(view) {
            return None;
        }
        let timing = &view.me.timing;
        let host = self.host(view);
        let (why, needed) = match &host {
            Host::Unknown | Host::Stranger(_) => return None,
            Host::Nobody => (Why::Free, self.free_since? + self.patience(view)),
            Host::Instance(name) => {
                let peer = view.peers.get(name)?;
                match peer.life {
                    Life::Alive if peer.refused.is_none() => {
                        (Why::Unwell, peer.condition.unwell_since()? + timing.unwell_for)
                    }
                    Life::Dead => (Why::Silence, self.silence_counts(name, view)?),
                    _ => return None,
                }
            }
        };
        // The fallback serves: there is no hurry, and a passing health is no reason.
        let well_for =
            if self.leads_to_fallback() && why != Why::Free { timing.hold_down } else { timing.unwell_for };
        let is_fit = view.is_fit() && view.me.health.well_for(view.now).is_some_and(|well| well >= well_for);
        // Home may need this very address to reach the internet at all.
        let may_try = why == Why::Free
            && self.definition.name == *me
            && view.me.leaving.is_none()
            && view.me.health.health.is_some_and(|health| health.forwards());
        if !is_fit && !may_try {
            return None;
        }
        let is_last = !is_fit && view.me.health.health.is_some_and(|health: Health| health.is_unwell());
        let ahead = self
            .definition
            .candidates()
            .take_while(|candidate| is_last || *candidate != me)
            .filter(|candidate| host != Host::Instance((*candidate).clone()) && view.is_able(candidate))
            .count();
        let turns = u32::try_from(ahead).unwrap_or(u32::MAX);
        Some((why, needed + timing.turn.saturating_mul(turns)))
    }

    /// From when on a host's silence is a reason.
    ///
    /// Silence means little of a host that was not heard since the address came to it: somebody must have brought the
    /// address there, so that it is the link that is broken. Such a host is left alone for a long time, lest two that
    /// do not hear each other take the gateway in turns; unless EC2 itself says that it does not run. Likewise one that
    /// did not hear this instance when it was heard last. An operator's word goes before all that.
    fn silence_counts(&self, host: &str, view: &View<'_>) -> Option<Instant> {
        let peer = view.peers.get(host)?;
        let timing = &view.me.timing;
        let died = peer.dead_since?;
        // An egress that was well before the silence began may have been lost together with the link.
        let is_own_health_newer = view.me.told.is_some_and(|told| peer.heard.is_none_or(|heard| told > heard));
        if !is_own_health_newer {
            return None;
        }
        if peer.is_declared_dead {
            return Some(died);
        }
        let came = self.host_since?;
        let association = self.association(self.definition.first())?;
        let was_heard = peer.heard.is_some_and(|heard| heard >= came) || peer.was_heard_with(&association.id);
        // One that said that it did not hear us has a broken link, and its silence may be no more than that.
        let is_link_well = !peer.misses.contains(&view.me.name);
        if was_heard && is_link_well || self.coming == Coming::Consented || self.is_black_hole() {
            return Some(died);
        }
        let hold_downs = if self.coming == Coming::Found { 1 } else { BLIND_HOLD_DOWNS };
        Some(died.max(came + timing.hold_down.saturating_mul(hold_downs)))
    }

    /// How long an address that nobody has is left to those who may be about to take it.
    fn patience(&self, view: &View<'_>) -> Duration {
        let name = &self.definition.name;
        let is_being_taken = view.peers.values().any(|peer| peer.is_alive() && peer.role(name) == Role::Taking);
        let last_lives = match &self.last_host {
            Host::Instance(last) => view.peers.get(last).is_none_or(|peer| peer.life != Life::Dead),
            Host::Unknown | Host::Nobody | Host::Stranger(_) => *name != view.me.name,
        };
        if is_being_taken || last_lives { view.me.timing.turn } else { Duration::ZERO }
    }

    /// One step towards having the first address.
    pub fn advance(&mut self, view: &View<'_>, out: &mut Out) {
        let Some(claim) = self.claim.clone() else { return };
        if claim.has_arrived {
            return self.abandon(Abandoned::Lost, out);
        }
        let first = self.definition.first().to_owned();
        let Some(address) = self.address(&first) else { return self.abandon(Abandoned::NoReason, out) };
        let association = address.association.clone();
        // An address that this instance may have left with nobody is seen through.
        let is_committed = claim.is_begun && association.is_none();
        if !is_committed && let Err(why) = self.still_stands(&claim, view) {
            return self.abandon(why, out);
        }
        if let Some(held) = &association {
            let is_rightful = match &claim.consent {
                Some((peer, _)) => view.instance(&held.eni) == Some(peer),
                None => claim.from.as_ref() == Some(&held.id),
            };
            if !is_rightful {
                return self.abandon(Abandoned::Lost, out);
            }
        }
        // State first, address last; but a gateway does not wait long for its sessions.
        if view.now < claim.adopted_by || self.is_hopeless(&first, view) {
            return;
        }
        let call = match association {
            Some(held) => Call::Disassociate { association: held.id },
            None => Call::Associate { allocation: first },
        };
        if let Some(claim) = &mut self.claim {
            claim.is_begun = true;
        }
        self.call(call, view, out);
    }

    /// Whether there is still a reason, while nothing has happened yet.
    fn still_stands(&self, claim: &Claim, view: &View<'_>) -> Result<(), Abandoned> {
        if matches!(claim.why, Why::HandOver(_)) {
            let is_late = view.now - claim.since > view.me.timing.hand_over_within;
            return match (view.is_fit(), is_late) {
                (_, true) => Err(Abandoned::TooLong),
                (false, false) => Err(Abandoned::Unfit),
                (true, false) => Ok(()),
            };
        }
        match self.reason(view) {
            Some((why, _)) if why == claim.why => Ok(()),
            _ if view.is_fit() => Err(Abandoned::NoReason),
            _ => Err(Abandoned::Unfit),
        }
    }

    /// The sessions are installed.
    pub fn adopted(&mut self, now: Instant) {
        if let Some(claim) = &mut self.claim {
            claim.adopted_by = now;
        }
    }

    /// Whether its home has told something that contradicts.
    fn is_refused(&self, view: &View<'_>) -> bool {
        view.peers.get(&self.definition.name).is_some_and(|peer| peer.refused.is_some())
    }

    /// Whether EC2 says that the host's interface is not there, or its instance does not run.
    fn is_black_hole(&self) -> bool {
        let Some(held) = self.association(self.definition.first()) else { return false };
        let mut routes = self.seen.iter().flat_map(|seen| &seen.routes);
        routes.any(|route| route.target == held.eni && !route.active)
    }
}

/// How many hold-downs a host is left alone that has not been heard since it got the address.
const BLIND_HOLD_DOWNS: u32 = 10;
