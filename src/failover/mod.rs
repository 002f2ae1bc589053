//! Who hosts which gateway.
//!
//! A [`Gateway`] moves as one: its Elastic IPs and its routes. Its *host* is the instance that has its first Elastic
//! IP; EC2 says which, and nobody else ever writes its routes. A [`Fleet`] is one instance's part in this: it is told
//! what peers say, how this instance is, and what EC2 shows; it gives messages and calls, and compares what it wants
//! with what is observed for as long as it lives, so that an event that was lost or a call that failed cannot matter.
//!
//! **Fencing** is EC2's own. An address that somebody has is first disassociated by *the association id that was
//! observed*, and then associated with `AllowReassociation=false`: of two that try one wins, and the other sees a
//! stale id or an address that is taken, and stands down.
//!
//! **Steps** of a take-over: have the sessions adopted; dissolve the first address's association; associate it here;
//! then the other addresses; then all routes; observe; be active once all of it is observed.
//!
//! **Reasons** to take a gateway: its host is silent, and most of the others miss it as well; its host says that it
//! is unwell; nobody has the address; its host offers it. Whoever takes is well itself, and it is its turn: home, and
//! then the heirs in their order. It refuses to act on what it cannot know: on silence while it was itself asleep, on
//! a description that is older than what it has done, on its own health while that is unknown.
//!
//! It moves no packets, makes no calls and reads no clock. `config` is what it is told, `message` what instances tell
//! each other, `action` and `event` what comes out; `peer` and `judge` know the peers, `gateway` a gateway, `take`
//! how it is taken, `hold` how it is kept and handed over, `look` when to observe. Why it is so:
//! `docs/decisions/0011-ec2-is-the-fence.md`.

mod action;
mod config;
mod event;
mod gateway;
mod hold;
mod judge;
mod look;
mod message;
mod out;
mod peer;
mod take;

use std::collections::BTreeMap;

pub use action::{Action, Address, Association, Call, CallError, CallId, Done, Held, Observation, Route};
pub use config::{
    Config, ConfigError, Failback, Gateway, MOST_ALLOCATIONS, MOST_DESTINATIONS, MOST_PEERS, MOST_ROUTE_TABLES,
    Timing,
};
pub use event::{
    Abandoned, Event, GatewayStatus, Host, Life, NotHandedOver, OrderError, PeerStatus, Refusal, Status, Why,
};
pub use message::{
    Answer, Echo, Health, Heartbeat, Hello, Hosting, Message, Offer, Planned, Reply, Role, Unwilling, VERSION,
};

use crate::time::Instant;
use gateway::Tracked;
use look::Looks;
use out::Out;
use peer::{Me, Peer, View};

/// One instance's part in a fleet.
///
/// After each call of a `handle_*`, and at [`Self::poll_timeout`] after [`Self::handle_timeout`], ask `poll_action`
/// and `poll_event` until there is nothing.
#[derive(Debug)]
pub struct Fleet {
    config: Config,
    me: Me,
    peers: BTreeMap<String, Peer>,
    gateways: BTreeMap<String, Tracked>,
    looks: Looks,
    out: Out,
    /// When it was last called.
    now: Instant,
    next_beat: Instant,
}

impl Fleet {
    /// An instance that has just come, and knows nothing of how things stand. `seed` spreads what would else happen
    /// in step with others: take it from the system's randomness, or fix it to replay.
    ///
    /// # Errors
    /// What is wrong with `config`.
    pub fn new(config: Config, seed: [u8; 16], now: Instant) -> Result<Self, ConfigError> {
        config.check()?;
        let home = Tracked::new(now, config.home.clone());
        Ok(Self {
            me: Me::new(&config),
            peers: config.home.heirs.iter().map(|name| (name.clone(), Peer::new(now))).collect(),
            gateways: [(config.home.name.clone(), home)].into(),
            looks: Looks::new(now),
            out: Out::new(seed),
            now,
            next_beat: now,
            config,
        })
    }

    /// Changes the configuration. Gateways of peers that are gone from it are kept while this instance has them.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed. Name and interface stay as they are.
    pub fn handle_config(&mut self, now: Instant, config: Config) -> Result<(), ConfigError> {
        config.check()?;
        if config.eni != self.config.eni || config.home.name != self.config.home.name {
            return Err(ConfigError::Identity);
        }
        self.advance(now);
        self.peers.retain(|name, _| config.home.heirs.contains(name));
        for name in &config.home.heirs {
            self.peers.entry(name.clone()).or_insert_with(|| Peer::new(now));
        }
        self.me.timing = config.timing;
        self.config = config;
        self.judge();
        let hello = self.hello();
        for (name, _) in self.peers.iter().filter(|(_, peer)| peer.linked) {
            let message = Message::Hello(hello.clone());
            self.out.actions.push_back(Action::Send { to: name.clone(), message });
        }
        self.settle(now);
        Ok(())
    }

    /// What this instance tells a peer first of all.
    #[must_use]
    pub fn hello(&self) -> Hello {
        Hello { version: VERSION, eni: self.config.eni.clone(), gateway: self.config.home.clone() }
    }

    /// What peers have told that is in use: worth keeping over a restart, for [`Self::remember`].
    pub fn known(&self) -> impl Iterator<Item = &Hello> {
        self.peers.values().filter(|peer| peer.is_known).filter_map(|peer| peer.told.as_ref())
    }

    /// What a peer had told before this instance restarted, so that its gateway can be adopted even if it is dead by
    /// now. Counts until the peer tells something itself.
    pub fn remember(&mut self, now: Instant, hello: Hello) {
        self.advance(now);
        if let Some(peer) = self.peers.get_mut(&hello.gateway.name)
            && peer.told.is_none()
        {
            peer.told = Some(hello);
        }
        self.judge();
        self.settle(now);
    }

    /// There is a connection with this peer, and this is what it has told first.
    pub fn handle_up(&mut self, now: Instant, peer: &str, hello: Hello) {
        self.advance(now);
        match self.peers.get_mut(peer) {
            Some(peer) => {
                peer.up();
                peer.heard(now);
                peer.told = Some(hello);
                self.judge();
            }
            None => {
                let why = Refusal::Unknown;
                self.out.event(Event::PeerRefused { peer: peer.to_owned(), why });
            }
        }
        self.out.beat = true;
        self.settle(now);
    }

    /// The connection is gone. What that means, silence tells.
    pub fn handle_down(&mut self, now: Instant, peer: &str) {
        self.advance(now);
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.linked = false;
        }
        self.settle(now);
    }

    /// A peer has said something. What is too large or malformed is not believed.
    pub fn handle_message(&mut self, now: Instant, from: &str, message: Message) {
        self.advance(now);
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.heard(now);
        if let Message::Hello(hello) = message {
            peer.told = Some(hello);
            self.judge();
        } else if peer.is_known && message.check().is_ok() {
            match message {
                Message::Hello(_) => {}
                Message::Heartbeat(heartbeat) => {
                    let before = peer.condition.health;
                    for hosting in &heartbeat.hosts {
                        if let Some(gateway) = self.gateways.get_mut(&hosting.gateway) {
                            gateway.hear(hosting);
                        }
                    }
                    // Whatever the peer has done to a gateway, EC2 shows it.
                    self.out.hurry |= peer.heartbeat(now, heartbeat);
                    if let Some(health) = peer.condition.health
                        && before.is_none_or(|before| before.is_well() != health.is_well())
                    {
                        self.out.event(Event::PeerHealth { peer: from.to_owned(), health });
                    }
                }
                Message::Offer(offer) => self.handle_offer(now, from, &offer),
                Message::Answer(answer) => {
                    let view = View { now, me: &self.me, peers: &self.peers };
                    if let Some(gateway) = self.gateways.get_mut(&answer.gateway) {
                        gateway.handle_answer(from, &answer, &view, &mut self.out);
                    }
                }
            }
        }
        self.settle(now);
    }

    /// How this instance is. To be told at least every second, changed or not: of a peer that falls silent, only an
    /// egress that was well since then can be told from a broken own network.
    pub fn handle_health(&mut self, now: Instant, health: Health) {
        self.advance(now);
        self.me.told = Some(now);
        self.out.beat |= self.me.health.update(now, health);
        self.settle(now);
    }

    /// This instance is about to stop (a notice, or the service's end), or after all it is not. Its gateways are
    /// offered to others as long as it is, and nothing is taken.
    pub fn handle_leaving(&mut self, now: Instant, leaving: bool) {
        self.advance(now);
        if leaving != self.me.leaving.is_some() {
            self.me.leaving = leaving.then_some(now);
            self.out.beat = true;
        }
        self.settle(now);
    }

    /// An operator's order: offer this gateway to that peer.
    ///
    /// # Errors
    /// Why that cannot be. What comes of the offer is told by events.
    pub fn hand_over(&mut self, now: Instant, gateway: &str, to: &str) -> Result<(), OrderError> {
        self.advance(now);
        let view = View { now, me: &self.me, peers: &self.peers };
        let result = match self.gateways.get_mut(gateway) {
            Some(gateway) => gateway.order(to, &view, &mut self.out),
            None => Err(OrderError::NoGateway(gateway.to_owned())),
        };
        self.settle(now);
        result
    }

    /// An operator vouches for it that this peer is dead, where too few are left to say so: of three, two have been lost
    /// at once. It counts until the peer is heard, by anybody. Gives the gateways that the peer has; taking them goes its
    /// usual way, with EC2 as the fence, so that a peer that lives after all stands down.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn declare_dead(&mut self, now: Instant, name: &str) -> Result<Vec<String>, OrderError> {
        self.advance(now);
        let view = View { now, me: &self.me, peers: &self.peers };
        let result = view.may_be_declared_dead(name).and_then(|()| {
            let host = Host::Instance(name.to_owned());
            let there = self.gateways.values().filter(|gateway| gateway.host(&view) == host);
            let there: Vec<String> = there.map(|gateway| gateway.definition.name.clone()).collect();
            if there.is_empty() { Err(OrderError::NothingThere(name.to_owned())) } else { Ok(there) }
        });
        if result.is_ok()
            && let Some(peer) = self.peers.get_mut(name)
        {
            peer.is_declared_dead = true;
        }
        self.settle(now);
        result
    }

    /// The answer to [`Action::Observe`].
    pub fn handle_observation(&mut self, now: Instant, id: CallId, seen: Result<Vec<Observation>, CallError>) {
        self.advance(now);
        if self.looks.end(id) {
            match seen {
                Ok(seen) => self.observed(now, id, seen),
                Err(error) => {
                    self.looks.failed(now, &self.me.timing, &mut self.out);
                    self.out.failed(None, "Describe", error);
                }
            }
        }
        self.settle(now);
    }

    /// The answer to [`Action::Call`].
    pub fn handle_outcome(&mut self, now: Instant, id: CallId, outcome: Result<Done, CallError>) {
        self.advance(now);
        if let Some(pending) = self.out.answered(id) {
            let view = View { now, me: &self.me, peers: &self.peers };
            if let Some(gateway) = self.gateways.get_mut(&pending.gateway) {
                gateway.answered(&pending.call, outcome, &view, &mut self.out);
            }
        }
        self.settle(now);
    }

    /// The answer to [`Action::Adopt`].
    pub fn handle_adopted(&mut self, now: Instant, gateway: &str) {
        self.advance(now);
        if let Some(gateway) = self.gateways.get_mut(gateway) {
            gateway.adopted(now);
        }
        self.settle(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        self.settle(now);
    }

    /// When [`Self::handle_timeout`] must be called at the latest. It is never far: being called much later than this
    /// is how a fleet knows that it was asleep.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let silences = self.peers.values().map(|peer| peer.silent_at(&self.me.timing));
        let retries = self.gateways.values().map(|gateway| gateway.retry_at);
        let later = silences.chain(retries).filter(|at| *at > self.now);
        later.chain([self.next_beat, self.looks.timeout()]).min().unwrap_or(self.next_beat)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.out.actions.pop_front()
    }

    /// The next event. At most 1,024 wait to be fetched; later ones are lost, and counted by [`Self::events_lost`].
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.poll_event()
    }

    /// Events that nobody fetched in time.
    #[must_use]
    pub const fn events_lost(&self) -> u64 {
        self.out.events_lost
    }

    /// The gateways that this instance has or is about to have: none, when one that leaves may stop.
    pub fn hosted(&self) -> impl Iterator<Item = (&str, Role)> {
        let roles = self.gateways.iter().map(|(name, gateway)| (name.as_str(), gateway.role));
        roles.filter(|(_, role)| *role != Role::Standby)
    }

    /// How everything stands.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        let view = View { now, me: &self.me, peers: &self.peers };
        Status {
            name: self.me.name.clone(),
            health: self.me.health.health.unwrap_or_default(),
            leaving: self.me.leaving.is_some(),
            gateways: self.gateways.values().map(|gateway| gateway.status(&view, self.looks.last)).collect(),
            peers: self.peers.iter().map(|(name, peer)| peer.status(now, name)).collect(),
        }
    }

    /// Notices whether this instance was asleep.
    fn advance(&mut self, now: Instant) {
        let gap = now - self.now;
        self.now = self.now.max(now);
        if gap <= self.me.timing.dead_after {
            return;
        }
        self.out.event(Event::Asleep { gap });
        self.me.told = None;
        self.me.health.restart(now);
        for peer in self.peers.values_mut() {
            peer.woke(now);
        }
        self.looks.forget();
        for gateway in self.gateways.values_mut() {
            gateway.woke(&mut self.out);
        }
    }

    /// Draws all conclusions from what was told.
    fn settle(&mut self, now: Instant) {
        self.judge_life(now);
        let view = View { now, me: &self.me, peers: &self.peers };
        for pending in self.out.overdue(now) {
            if let Some(gateway) = self.gateways.get_mut(&pending.gateway) {
                gateway.answered(&pending.call, Err(CallError::Unknown), &view, &mut self.out);
            }
        }
        for gateway in self.gateways.values_mut() {
            gateway.work(&view, &mut self.out);
        }
        let is_wanted = |name: &String, gateway: &mut Tracked| {
            *name == self.me.name || self.peers.contains_key(name) || gateway.role != Role::Standby
        };
        self.gateways.retain(is_wanted);
        self.look(now);
        if self.next_beat <= now || std::mem::take(&mut self.out.beat) {
            self.beat(now);
        }
    }

    fn judge_life(&mut self, now: Instant) {
        for name in self.peers.keys().cloned().collect::<Vec<_>>() {
            let view = View { now, me: &self.me, peers: &self.peers };
            let (life, is_heard) = (view.life(&name), view.who_hears(&name).is_some());
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            // Once somebody hears it, the operator's word of its death is over, not only masked.
            peer.is_declared_dead &= !is_heard;
            if peer.life != life {
                let from = std::mem::replace(&mut peer.life, life);
                peer.dead_since = (life == Life::Dead).then_some(now);
                self.out.event(Event::PeerChanged { peer: name, from, to: life });
                self.out.hurry = true;
            }
        }
    }

    fn look(&mut self, now: Instant) {
        if self.looks.is_overdue(now) {
            self.looks.failed(now, &self.me.timing, &mut self.out);
            self.out.failed(None, "Describe", CallError::Unknown);
        }
        if std::mem::take(&mut self.out.hurry) {
            self.looks.hurry(now, &self.me.timing);
        }
        if self.looks.is_due(now) {
            let id = self.out.id();
            self.looks.begin(now, id, &self.me.timing);
            let gateways = self.gateways.values().map(|gateway| gateway.definition.clone()).collect();
            self.out.actions.push_back(Action::Observe { id, gateways });
        }
    }

    fn observed(&mut self, now: Instant, id: CallId, seen: Vec<Observation>) {
        let view = View { now, me: &self.me, peers: &self.peers };
        let mut is_settled = true;
        for observation in seen {
            if let Some(gateway) = self.gateways.get_mut(&observation.gateway) {
                is_settled &= gateway.observe(id.0, observation, &view, &mut self.out);
            }
        }
        is_settled &= self.gateways.values().all(Tracked::is_settled);
        self.looks.succeeded(now, &self.me.timing, is_settled, &mut self.out);
    }

    fn beat(&mut self, now: Instant) {
        self.next_beat = now + self.me.timing.heartbeat;
        let timing = &self.me.timing;
        let missed = |(_, peer): &(&String, &Peer)| peer.is_silent(now, timing);
        let misses: Vec<String> = self.peers.iter().filter(missed).map(|(name, _)| name.clone()).collect();
        let hosts: Vec<Hosting> =
            self.gateways.values().filter_map(|gateway| gateway.hosting(&self.me)).collect();
        for (to, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.linked) {
            let (sequence, echo) = peer.beat(now);
            let message = Message::Heartbeat(Heartbeat {
                sequence,
                echo,
                health: self.me.health.health.unwrap_or(UNKNOWN),
                leaving: self.me.leaving.is_some(),
                misses: misses.clone(),
                hosts: hosts.clone(),
            });
            self.out.actions.push_back(Action::Send { to: to.clone(), message });
        }
    }

    /// Judges the peers by what they have told, and takes their definitions.
    fn judge(&mut self) {
        for (peer, verdict) in judge::judge(&self.config, &mut self.peers) {
            match verdict {
                Some(why) => self.out.event(Event::PeerRefused { peer, why }),
                None => self.out.event(Event::PeerKnown { peer }),
            }
        }
        let known = self.peers.values().filter_map(Peer::definition).chain([&self.config.home]);
        for definition in known {
            match self.gateways.get_mut(&definition.name) {
                Some(gateway) => gateway.redefine(definition.clone(), &mut self.out),
                None => {
                    let gateway = Tracked::new(self.now, definition.clone());
                    self.gateways.insert(definition.name.clone(), gateway);
                    self.out.hurry = true;
                }
            }
        }
    }

    fn handle_offer(&mut self, now: Instant, from: &str, offer: &Offer) {
        let view = View { now, me: &self.me, peers: &self.peers };
        let unwilling = self.me.unwilling(&view);
        let reply = match (self.gateways.get_mut(&offer.gateway), unwilling) {
            (None, _) => Reply::Refused(Unwilling::UnknownGateway),
            (Some(_), Some(unwilling)) => Reply::Refused(unwilling),
            (Some(gateway), None) => match gateway.accept(from, offer, &view, &mut self.out) {
                Ok(()) => Reply::Accepted,
                Err(unwilling) => Reply::Refused(unwilling),
            },
        };
        let answer = Answer { gateway: offer.gateway.clone(), number: offer.number, reply };
        self.out.actions.push_back(Action::Send { to: from.to_owned(), message: Message::Answer(answer) });
    }
}

impl Me {
    /// Why it takes nothing now.
    fn unwilling(&self, view: &View<'_>) -> Option<Unwilling> {
        if self.leaving.is_some() {
            Some(Unwilling::Leaving)
        } else if !self.health.health.is_some_and(|health| health.forwards()) {
            Some(Unwilling::Datapath)
        } else {
            (!view.is_fit()).then_some(Unwilling::Egress)
        }
    }
}

/// Before anything was told: not known to be unwell, and not known to be well.
const UNKNOWN: Health = Health { worker: true, datapath: true, egress: None, aws: None };
