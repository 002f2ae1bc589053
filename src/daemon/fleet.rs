//! Failover, brought together: [`crate::failover::Fleet`] decides, the link carries what it says to peers, the executor
//! makes its calls at EC2. Owns the order in which one hears of the other, and nothing that could be decided.

mod memory;
mod report;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use self::memory::{Kept, Memory};
use super::aws::{CALL_TIMEOUT, Seen};
use super::egress;
use super::gateways::{Order, Prepared, Ready, Standing};
use super::peer_key;
use super::whereabouts::{Answer, Whereabouts};
use super::with_causes;
use crate::admin::{FleetReport, GatewayReport};
use crate::aws::{self, Calls, Ec2, Executor, Failure, Identity, NotDone, Parameters, Place, Tables};
use crate::config::{self, Aws, FailoverPeer, KeySource, PeerKey, RouteTables};
use crate::failover::{
    Action, Call, CallError, CallId, Config, Done, Event, Fleet, Gateway, Health, Held, Hello, Life,
    Observation, Role, Timing,
};
use crate::peer::{self, Link};
use crate::time;

/// Looks after gateways for ever, from when this instance's identity is known.
pub(super) async fn run(
    mut prepared: Prepared,
    seen: watch::Sender<Seen>,
    mut wanted: watch::Receiver<Aws>,
    calls: Calls,
) {
    let mut key = prepared.key.take();
    let mut meanwhile = Meanwhile { configured: watch::Sender::new(prepared.config.clone()), leaving: false };
    let (standing, mut latest) = (prepared.ends.standing.clone(), meanwhile.configured.subscribe());
    let gateway = prepared.config.gateway.clone();
    let known = async {
        let identities = identities(&seen).await;
        let (external, internal) = &identities;
        let sdk = aws::sdk_config(&external.region).await;
        let whereabouts = Whereabouts::new(&sdk, &external.vpc, calls.clone());
        let parameters = Parameters::new(&sdk, calls.clone(), CALL_TIMEOUT);
        let ec2 = Ec2::new(&sdk, calls, CALL_TIMEOUT);
        let tables = find_tables(&ec2, &mut wanted, &external.vpc).await;
        let place =
            Place { external: external.eni.clone(), internal: internal.eni.clone(), vpc: external.vpc.clone() };
        let key = match key.take() {
            Some(key) => key,
            None => {
                peer_key::find(&parameters, &mut latest, |reason| tell_no_key(&standing, &gateway, reason))
                    .await
            }
        };
        (ec2, place, tables, whereabouts, Keys { parameters: Arc::new(parameters), key })
    };
    let (ec2, place, tables, whereabouts, keys) = tokio::select! {
        known = known => known,
        () = meanwhile.refuse(&mut prepared.ends.orders) => return,
    };
    match Tender::new(prepared, seen, wanted, ec2, (place, tables, whereabouts, keys)) {
        Ok((mut tender, ends)) => {
            tender.catch_up(meanwhile);
            tender.run(ends).await;
        }
        Err(error) => tracing::error!(error, "failover does not work"),
    }
}

/// What the tender listens to.
struct Sources {
    link: mpsc::Receiver<peer::Event>,
    orders: mpsc::Receiver<Order>,
    egress: watch::Receiver<Option<bool>>,
    _probing: JoinSet<()>,
}

/// The key that peers share, and whom to ask for another.
struct Keys {
    parameters: Arc<Parameters>,
    key: PeerKey,
}

struct Tender {
    fleet: Fleet,
    link: Link,
    whereabouts: Whereabouts,
    executor: Executor,
    ec2: Ec2,
    place: Place,
    config: config::Failover,
    keys: Keys,
    /// Of the home gateway.
    tables: Vec<String>,
    start: Instant,
    doing: JoinSet<Finished>,
    seen: watch::Sender<Seen>,
    wanted: watch::Receiver<Aws>,
    ready: watch::Receiver<Ready>,
    standing: watch::Sender<Standing>,
    probes: watch::Sender<Vec<std::net::SocketAddr>>,
    /// The internet answers, as far as it was asked.
    egress: Option<bool>,
    /// EC2's API answers.
    api: Option<bool>,
    leaving: bool,
    /// Public addresses by allocation, as observed.
    public: BTreeMap<String, Ipv4Addr>,
    held: BTreeMap<String, Vec<Held>>,
    /// Gateways that came here, by why, and what the last of these took.
    takeovers: BTreeMap<&'static str, u64>,
    last_takeover: Option<Duration>,
    /// Why a gateway was last not handed over.
    not_handed_over: BTreeMap<String, String>,
    /// The latest complaint about calls, so that each is made once.
    complaint: Option<String>,
    /// Secondary private addresses that were seen to.
    places: usize,
    memory: Memory,
}

/// Something that was done beside.
enum Finished {
    Observed(CallId, Result<Vec<Observation>, Failure>),
    Made { id: CallId, gateway: String, call: Call, result: Result<Done, NotDone> },
    Tables(Result<Vec<String>, Failure>),
    Found(FailoverPeer, Answer),
    Key(KeySource, Result<PeerKey, String>),
    Places(usize, Result<(), Failure>),
}

impl Tender {
    fn new(
        prepared: Prepared,
        seen: watch::Sender<Seen>,
        mut wanted: watch::Receiver<Aws>,
        ec2: Ec2,
        (place, tables, whereabouts, keys): (Place, Vec<String>, Whereabouts, Keys),
    ) -> Result<(Self, Sources), String> {
        let Prepared { config, socket, seed, ends, .. } = prepared;
        let aws = wanted.borrow_and_update().clone();
        let start = Instant::now();
        let fleet = Fleet::new(fleet_config(&config, &aws, &place, &tables), seed, time::Instant::ORIGIN);
        let fleet = fleet.map_err(|error| error.to_string())?;
        let (link, events) = Link::start(link_config(&config, &keys.key, &whereabouts), socket, &fleet.hello())
            .map_err(|error| format!("there is no link: {}", with_causes(&error)))?;
        let executor = Executor::new(ec2.clone(), place.clone());
        let (probes, addresses) = watch::channel(config.egress_probes.clone());
        let mut probing = JoinSet::new();
        let (told, egress) = watch::channel(None);
        probing.spawn(egress::watch(addresses, told));
        let tender = Self {
            fleet,
            link,
            whereabouts,
            executor,
            ec2,
            place,
            config,
            keys,
            tables,
            start,
            doing: JoinSet::new(),
            seen,
            wanted,
            ready: ends.ready,
            standing: ends.standing,
            probes,
            egress: None,
            api: None,
            leaving: false,
            public: BTreeMap::new(),
            held: BTreeMap::new(),
            takeovers: ["free", "silence", "unwell", "hand_over"].map(|why| (why, 0)).into(),
            last_takeover: None,
            not_handed_over: BTreeMap::new(),
            complaint: None,
            places: 0,
            memory: Memory::new(),
        };
        let sources = Sources { link: events, orders: ends.orders, egress, _probing: probing };
        Ok((tender, sources))
    }

    async fn run(mut self, mut sources: Sources) {
        tracing::info!(
            gateway = self.config.gateway,
            eni = self.place.external,
            listen = %self.link.listen(),
            route_tables = ?self.tables,
            "failover begins"
        );
        self.recall();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(TABLES_EVERY);
        looks.reset();
        loop {
            self.follow();
            let until = self.start + Duration::from_nanos(self.fleet.poll_timeout().as_nanos());
            tokio::select! {
                Some(event) = sources.link.recv() => self.heard(event),
                Some(finished) = self.doing.join_next() => match finished {
                    Ok(finished) => self.finished(finished),
                    Err(error) => tracing::error!(%error, "a call was not seen through"),
                },
                Some(order) = sources.orders.recv() => self.obey(order),
                Ok(()) = sources.egress.changed() => {
                    self.egress = *sources.egress.borrow_and_update();
                    self.tell_health();
                }
                Ok(()) = self.wanted.changed() => self.reconfigure(self.config.clone()),
                _ = ticks.tick() => {
                    self.tell_health();
                    self.look_for_peers();
                    self.publish();
                }
                _ = looks.tick() => self.look_for_tables(),
                () = sleep_until(until) => self.fleet.handle_timeout(self.now()),
            }
        }
    }

    fn now(&self) -> time::Instant {
        time::Instant::ORIGIN + self.start.elapsed()
    }

    /// Does what the fleet wants done, and says what it has to say.
    fn follow(&mut self) {
        while let Some(action) = self.fleet.poll_action() {
            self.act(action);
        }
        let mut is_news = false;
        while let Some(event) = self.fleet.poll_event() {
            self.note(&event);
            is_news = true;
        }
        // An address that came for a gateway which was then given up.
        let hosted: Vec<String> = self.fleet.hosted().map(|(gateway, _)| gateway.to_owned()).collect();
        let before = self.held.len();
        self.held.retain(|gateway, _| hosted.contains(gateway));
        if self.held.len() != before {
            self.tell_held();
        }
        if is_news {
            self.remember();
            self.make_room();
            self.publish();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { to, message } => {
                // Whether it arrives, the answer tells, or silence.
                let _ = self.link.send(&to, &message);
            }
            Action::Observe { id, gateways } => {
                let executor = self.executor.clone();
                self.doing
                    .spawn(async move { Finished::Observed(id, Box::pin(executor.observe(&gateways)).await) });
            }
            Action::Call { id, begin_by, .. } if self.now() > begin_by => {
                self.fleet.handle_outcome(self.now(), id, Err(CallError::NotMade));
            }
            Action::Call { id, gateway, call, .. } => {
                let executor = self.executor.clone();
                self.doing.spawn(async move {
                    let result = executor.make(&call).await;
                    Finished::Made { id, gateway, call, result }
                });
            }
            // There are no sessions to install yet.
            Action::Adopt { gateway } => self.fleet.handle_adopted(self.now(), &gateway),
            Action::Active { gateway, addresses } => {
                self.held.insert(gateway, addresses);
                self.tell_held();
            }
            Action::StandDown { gateway } => {
                self.held.remove(&gateway);
                self.tell_held();
            }
        }
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            Finished::Observed(id, seen) => {
                let failure = seen.as_ref().err().map(ToString::to_string);
                self.heard_of_api(failure);
                if let Ok(observations) = &seen {
                    let addresses = observations.iter().flat_map(|observation| &observation.addresses);
                    self.public.extend(addresses.map(|address| (address.allocation.clone(), address.public)));
                }
                let seen = seen.map_err(|failure| NotDone::from(failure).kind());
                self.fleet.handle_observation(self.now(), id, seen);
            }
            Finished::Made { id, gateway, call, result } => self.made(id, gateway, &call, result),
            Finished::Tables(Ok(tables)) if tables.is_empty() => {
                tracing::warn!(
                    "no route table has the tags of aws.route_table_tags any more, going on with those that had"
                );
            }
            Finished::Tables(Ok(tables)) if tables != self.tables => {
                tracing::info!(route_tables = ?tables, "other route tables have the tags now");
                self.tables = tables;
                self.reconfigure(self.config.clone());
            }
            Finished::Tables(Ok(_)) => {}
            Finished::Tables(Err(failure)) => self.heard_of_api(Some(failure.to_string())),
            Finished::Found(peer, answer) => {
                let own: Vec<Ipv4Addr> = {
                    let seen = self.seen.borrow();
                    let addresses = seen.identities.iter().flatten().flat_map(|identity| &identity.addresses);
                    addresses.map(|address| address.private).collect()
                };
                if self.whereabouts.answered(&self.config, &peer, answer, &own) {
                    let found = self.whereabouts.found().get(&peer.gateway);
                    tracing::info!(peer = peer.gateway, addresses = ?found, "peer found by its tag");
                    self.relink(None);
                    self.remember();
                }
            }
            Finished::Key(source, _) if source != self.config.key => {}
            Finished::Key(_, Ok(key)) => {
                self.keys.key = key;
                self.relink(None);
            }
            Finished::Key(_, Err(reason)) => {
                tracing::error!(reason, "peer key not read, the old one stays until the next reload");
            }
            Finished::Places(places, Ok(())) => self.places = places,
            Finished::Places(_, Err(failure)) => {
                tracing::error!(reason = %failure, "no room for elastic ips of others: they could not be taken over");
            }
        }
    }

    fn made(&mut self, id: CallId, gateway: String, call: &Call, result: Result<Done, NotDone>) {
        match &result {
            Ok(done) => {
                tracing::info!(gateway, call = call.name(), what = what(call), "done");
                if let (Call::Associate { allocation }, Done::Associated { private, .. }) = (call, done)
                    && let Some(public) = self.public.get(allocation)
                {
                    // The packets come as soon as a route leads here.
                    let pair = Held { public: *public, private: *private };
                    self.held.entry(gateway).or_default().push(pair);
                    self.tell_held();
                }
            }
            Err(error) => {
                tracing::warn!(gateway, call = call.name(), what = what(call), reason = %error, "not done");
            }
        }
        self.fleet.handle_outcome(self.now(), id, result.map_err(|error| error.kind()));
    }

    fn heard_of_api(&mut self, failure: Option<String>) {
        self.api = Some(failure.is_none());
        if failure.is_some() && failure != self.complaint {
            tracing::warn!(reason = failure, "ec2 does not say how gateways stand");
        }
        self.complaint = failure;
    }

    fn heard(&mut self, event: peer::Event) {
        let now = self.now();
        match event {
            peer::Event::Up { peer, hello } => self.fleet.handle_up(now, &peer, hello),
            peer::Event::Message { peer, message } => self.fleet.handle_message(now, &peer, message),
            peer::Event::Down { peer, .. } => self.fleet.handle_down(now, &peer),
            // The link has said so, and nothing has changed.
            peer::Event::Refused { .. } => {}
        }
    }

    fn obey(&mut self, order: Order) {
        let now = self.now();
        match order {
            Order::HandOver { gateway, to, answer } => {
                let gateway = gateway.unwrap_or_else(|| self.config.gateway.clone());
                self.not_handed_over.remove(&gateway);
                let ordered = self.fleet.hand_over(now, &gateway, &to).map_err(|error| error.to_string());
                self.follow();
                self.publish();
                let _ = answer.send(ordered.map(|()| gateway));
            }
            Order::DeclareDead { peer, answer } => {
                let ordered = self.fleet.declare_dead(now, &peer).map_err(|error| error.to_string());
                tracing::warn!(peer, refused = ordered.as_ref().err(), "an operator declares a peer dead");
                self.follow();
                self.publish();
                let _ = answer.send(ordered);
            }
            Order::Leave { leaving, heard } => {
                self.leave(leaving);
                let _ = heard.send(());
            }
            Order::Configure(config) => {
                self.reconfigure(config);
                self.look_for_key();
            }
        }
    }

    fn leave(&mut self, leaving: bool) {
        self.leaving = leaving;
        self.fleet.handle_leaving(self.now(), leaving);
        self.follow();
        self.publish();
    }

    /// Carries out what was ordered before this was there.
    fn catch_up(&mut self, meanwhile: Meanwhile) {
        let Meanwhile { configured, leaving } = meanwhile;
        let config = configured.borrow().clone();
        if config != self.config {
            self.reconfigure(config);
            self.look_for_key();
        }
        if leaving {
            self.leave(true);
        }
    }

    fn tell_health(&mut self) {
        let ready = *self.ready.borrow();
        let worker = ready.at.elapsed() < STALE;
        // Without anybody to ask, the next hop stands for the internet: readiness has asked it.
        let egress =
            if self.config.egress_probes.is_empty() { Some(worker && ready.is_ready) } else { self.egress };
        let health = Health { worker, datapath: ready.is_ready, egress, aws: self.api };
        self.fleet.handle_health(self.now(), health);
    }

    /// Applies a changed configuration as far as it can be.
    fn reconfigure(&mut self, config: config::Failover) {
        let aws = self.wanted.borrow_and_update().clone();
        if let RouteTables::Ids(tables) = &aws.route_tables {
            self.tables.clone_from(tables);
        } else {
            self.look_for_tables();
        }
        let config = config::Failover { gateway: self.config.gateway.clone(), ..config };
        let socket = match (config.listen != self.config.listen).then(|| peer::bind(config.listen)) {
            Some(Ok(socket)) => Some(socket),
            Some(Err(error)) => {
                tracing::error!(listen = %config.listen, %error, "failover.listen cannot be had, the old one stays");
                None
            }
            None => None,
        };
        let changed =
            self.fleet.handle_config(self.now(), fleet_config(&config, &aws, &self.place, &self.tables));
        if let Err(error) = changed {
            tracing::error!(%error, "failover not reconfigured");
            return;
        }
        self.whereabouts.reconfigure(&self.config, &config);
        self.probes.send_replace(config.egress_probes.clone());
        self.config = config;
        self.relink(socket);
    }

    /// Has the link follow the configuration, the key, and where peers are.
    fn relink(&mut self, socket: Option<std::net::TcpListener>) {
        let config = link_config(&self.config, &self.keys.key, &self.whereabouts);
        let relinked = self.link.reconfigure(config, socket);
        let relinked = relinked.and_then(|()| self.link.set_hello(&self.fleet.hello()));
        if let Err(error) = relinked {
            tracing::error!(%error, "link to peers not reconfigured");
        }
    }

    /// Reads the key anew.
    fn look_for_key(&mut self) {
        let (parameters, source) = (Arc::clone(&self.keys.parameters), self.config.key.clone());
        self.doing.spawn(async move {
            let key = peer_key::read(&parameters, &source).await;
            Finished::Key(source, key)
        });
    }

    /// Asks EC2 where those are that are named by a tag, and that there is no link with.
    fn look_for_peers(&mut self) {
        let links = self.link.report();
        let is_connected =
            |name: &str| links.peers.iter().any(|link| link.gateway == name && link.connected.is_some());
        for question in self.whereabouts.questions(&self.config, is_connected) {
            self.doing.spawn(async move {
                let answer = question.ask().await;
                Finished::Found(question.peer, answer)
            });
        }
    }

    fn look_for_tables(&mut self) {
        let which = self.wanted.borrow().route_tables.clone();
        if matches!(which, RouteTables::Tagged(_)) {
            let (ec2, vpc) = (self.ec2.clone(), self.place.vpc.clone());
            self.doing.spawn(async move { Finished::Tables(tables(&ec2, &which, &vpc).await) });
        }
    }

    /// Has private addresses assigned for what may come.
    fn make_room(&mut self) {
        let heir = |hello: &&Hello| hello.gateway.heirs.contains(&self.config.gateway);
        let peers = self.fleet.known().filter(heir).map(|hello| hello.gateway.allocations.len());
        let places = peers.sum::<usize>() + self.wanted.borrow().elastic_ips.len();
        if places > self.places {
            // Once for each number: when it is needed, it is tried again in any case.
            self.places = places;
            let executor = self.executor.clone();
            self.doing.spawn(async move { Finished::Places(places, executor.prepare(places).await) });
        }
    }

    fn tell_held(&self) {
        self.seen.send_if_modified(|seen| {
            let is_new = seen.held.as_ref() != Some(&self.held);
            seen.held = Some(self.held.clone());
            is_new
        });
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::PeerRefused { peer, why } => tracing::error!(peer, reason = %why, "peer refused"),
            Event::PeerKnown { peer } => tracing::info!(peer, "peer known"),
            Event::PeerChanged { peer, from, to } => {
                if *to == Life::Alive {
                    tracing::info!(peer, from = ?from, to = ?to, "peer changed");
                } else {
                    tracing::warn!(peer, from = ?from, to = ?to, "peer changed");
                }
            }
            Event::PeerHealth { peer, health } => {
                tracing::warn!(peer, health = ?health, "peer's health changed");
            }
            Event::Moved { gateway, from, to } => {
                self.not_handed_over.remove(gateway);
                tracing::info!(gateway, %from, %to, "gateway moved");
            }
            Event::TakingOver { gateway, why } => tracing::warn!(gateway, %why, "taking over"),
            Event::Abandoned { gateway, why } => tracing::warn!(gateway, why = ?why, "not taken over"),
            Event::Active { gateway, why, took } => {
                self.not_handed_over.remove(gateway);
                if let Some(times) = self.takeovers.get_mut(report::came(*why)) {
                    *times += 1;
                    self.last_takeover = Some(*took);
                }
                tracing::info!(gateway, %why, seconds = took.as_secs_f64(), "gateway is here");
            }
            Event::FellBack { gateway } => {
                tracing::error!(gateway, "nobody is well: routes lead to the standby nat gateway");
            }
            Event::TakenBack { gateway } => {
                tracing::info!(gateway, "routes taken back from the standby nat gateway");
            }
            Event::StoodDown { gateway, host } => tracing::warn!(gateway, %host, "gateway is here no more"),
            Event::Mending { gateway, what } => tracing::warn!(gateway, what, "not as it should be, put back"),
            Event::Offered { gateway, to, why } => tracing::info!(gateway, to, why = ?why, "gateway offered"),
            Event::NotHandedOver { gateway, to, why } => {
                tracing::warn!(gateway, to, reason = %why, "gateway not handed over");
                self.not_handed_over.insert(gateway.clone(), why.to_string());
            }
            // Told with its reason where it was made.
            Event::CallFailed { .. } => {}
            Event::Asleep { gap } => {
                tracing::warn!(seconds = gap.as_secs_f64(), "was asleep: looks anew before anything is done");
            }
        }
    }

    fn publish(&self) {
        let status = self.fleet.status(self.now());
        let links = self.link.report();
        let not_handed_over = |name: &str| self.not_handed_over.get(name);
        let gateways: Vec<GatewayReport> = status
            .gateways
            .iter()
            .map(|gateway| report::gateway(gateway, not_handed_over(&gateway.gateway)))
            .collect();
        let last_error = |name: &str| {
            let link = || links.peers.iter().find(|link| link.gateway == name)?.last_error.clone();
            self.whereabouts.why_lost(name).map(str::to_owned).or_else(link)
        };
        let peers = status.peers.iter().map(|peer| report::peer(peer, last_error(&peer.peer))).collect();
        let home = gateways.iter().find(|gateway| gateway.gateway == self.config.gateway);
        let is_in_place = home.is_some_and(|home| match &home.host {
            Some(host) => *host != self.config.gateway || home.role == report::role(Role::Active),
            None => false,
        });
        let hosts = self.fleet.hosted().any(|(_, role)| role != Role::Fallback);
        let takers = status.peers.iter().any(|peer| {
            peer.linked
                && !peer.leaving
                && peer.refused.is_none()
                && peer.health.is_some_and(|health| health.is_well())
        });
        let told = FleetReport {
            name: status.name,
            health: report::words(status.health),
            leaving: status.leaving,
            takeovers: self.takeovers.iter().map(|(why, times)| ((*why).to_owned(), *times)).collect(),
            last_takeover_seconds: self.last_takeover.map(|took| took.as_secs_f64()),
            gateways,
            peers,
        };
        let is_leaving = self.leaving && hosts && takers;
        self.standing.send_replace(Standing { report: Some(told), is_in_place, is_leaving });
    }

    fn remember(&mut self) {
        let known = self.fleet.known().cloned().collect();
        self.memory.keep(Kept { known, found: self.whereabouts.found().clone() });
    }

    fn recall(&mut self) {
        let Some(Kept { known, found }) = self.memory.recall() else { return };
        let now = self.now();
        for hello in known {
            self.fleet.remember(now, hello);
        }
        self.whereabouts.recall(&self.config, found);
        self.relink(None);
    }
}

/// What was ordered while there was nobody to carry it out.
struct Meanwhile {
    configured: watch::Sender<config::Failover>,
    leaving: bool,
}

impl Meanwhile {
    /// Answers orders, or keeps them for later.
    async fn refuse(&mut self, orders: &mut mpsc::Receiver<Order>) {
        while let Some(order) = orders.recv().await {
            const WHY: &str = "this instance's identity, its route tables or its peer key are not known yet";
            match order {
                Order::HandOver { answer, .. } => _ = answer.send(Err(WHY.to_owned())),
                Order::DeclareDead { answer, .. } => _ = answer.send(Err(WHY.to_owned())),
                Order::Configure(config) => _ = self.configured.send_replace(config),
                Order::Leave { leaving, heard } => {
                    self.leaving = leaving;
                    let _ = heard.send(());
                }
            }
        }
    }
}

/// The instance is in no fleet yet, and says so.
fn tell_no_key(standing: &watch::Sender<Standing>, name: &str, reason: &str) {
    let (name, health) = (name.to_owned(), format!("waits for the peer key: {reason}"));
    let report = Some(FleetReport { name, health, ..FleetReport::default() });
    standing.send_replace(Standing { report, ..Standing::default() });
}

async fn identities(seen: &watch::Sender<Seen>) -> (Identity, Identity) {
    let both = |seen: &Seen| {
        let known: Option<Vec<Identity>> = seen.identities.iter().cloned().collect();
        known.and_then(|known| Some((known.first()?.clone(), known.last()?.clone())))
    };
    let mut changes = seen.subscribe();
    loop {
        if let Some(both) = both(&changes.borrow_and_update()) {
            return both;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The route tables' ids, once there are some.
async fn find_tables(ec2: &Ec2, wanted: &mut watch::Receiver<Aws>, vpc: &str) -> Vec<String> {
    let mut wait = TICK;
    loop {
        let which = wanted.borrow_and_update().route_tables.clone();
        match tables(ec2, &which, vpc).await {
            Ok(tables) if !tables.is_empty() => return tables,
            Ok(_) => tracing::error!("no route table of the VPC has the tags of aws.route_table_tags"),
            Err(failure) => tracing::error!(reason = %failure, "route tables are not known"),
        }
        let _ = timeout(wait, wanted.changed()).await;
        wait = (wait * 2).min(TABLES_EVERY);
    }
}

async fn tables(ec2: &Ec2, which: &RouteTables, vpc: &str) -> Result<Vec<String>, Failure> {
    match which {
        RouteTables::None => Ok(Vec::new()),
        RouteTables::Ids(ids) => Ok(ids.clone()),
        RouteTables::Tagged(tags) => {
            let which = Tables::Tagged { vpc: vpc.to_owned(), tags: tags.clone() };
            let mut ids: Vec<String> =
                ec2.route_tables(&which).await?.into_iter().map(|table| table.id).collect();
            ids.sort();
            Ok(ids)
        }
    }
}

fn fleet_config(config: &config::Failover, aws: &Aws, place: &Place, tables: &[String]) -> Config {
    let timing = Timing {
        heartbeat: config.heartbeat_interval,
        dead_after: config.dead_after,
        hold_down: config.hold_down,
        call_within: CALL_TIMEOUT,
        ..Timing::default()
    };
    let home = Gateway {
        name: config.gateway.clone(),
        allocations: aws.elastic_ips.clone(),
        route_tables: tables.to_vec(),
        destinations: aws.routes.clone(),
        heirs: config.peers.iter().map(|peer| peer.gateway.clone()).collect(),
        failback: config.failback,
        fallback: config.fallback_nat_gateway.clone(),
    };
    Config { eni: place.external.clone(), home, timing }
}

fn link_config(config: &config::Failover, key: &PeerKey, whereabouts: &Whereabouts) -> peer::Config {
    peer::Config {
        gateway: config.gateway.clone(),
        key: key.clone(),
        peers: whereabouts.addresses(config),
        silence: config.dead_after,
    }
}

fn what(call: &Call) -> String {
    match call {
        Call::Disassociate { association } => association.clone(),
        Call::Associate { allocation } => allocation.clone(),
        Call::Route { table, destination, target, .. } => format!("{destination} of {table} to {target}"),
    }
}

/// How often health is told to the fleet, and the fleet's state to others.
const TICK: Duration = Duration::from_millis(500);
/// A worker that has not been heard for so long is not there.
const STALE: Duration = Duration::from_secs(3);
/// How often route tables are looked for by their tags.
const TABLES_EVERY: Duration = Duration::from_mins(10);
