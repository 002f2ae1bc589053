//! What must hold, whatever happens.

use std::collections::BTreeMap;
use std::time::Duration;

use egret::failover::{Call, Done, Gateway, Host, Life, Observation, Planned, Role, Why};
use egret::time::Instant;

use crate::ec2::Ec2;
use crate::world::{Node, World};

#[derive(Debug)]
pub struct Checks {
    gateways: Vec<Gateway>,
    hold_down: Duration,
    pub moves: Vec<Move>,
    /// By gateway, the interface that had the first address last.
    hosts: BTreeMap<String, String>,
    last_fault: Option<Instant>,
    /// Whether a link is cut.
    pub has_cut: bool,
}

/// A gateway has gone from one instance to another.
#[derive(Clone, Debug)]
pub struct Move {
    pub at: Instant,
    pub gateway: String,
}

/// Whether an instance has a gateway's first address, as far as it was told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Knowledge {
    /// By what it was told last.
    last: bool,
    /// By the newest of what it was told, which is of this moment.
    newest: bool,
    of: Instant,
    /// When it last called or was answered.
    wrote: Instant,
    /// Whether it has observed since.
    is_observed: bool,
}

impl Checks {
    pub fn new(gateways: Vec<Gateway>, hold_down: Duration) -> Self {
        Self {
            gateways,
            hold_down,
            moves: Vec::new(),
            hosts: BTreeMap::new(),
            last_fault: None,
            has_cut: false,
        }
    }

    /// Something is, or just was, not as it should be.
    pub fn fault(&mut self, now: Instant) {
        self.last_fault = Some(now);
    }

    pub fn observed(node: &mut Node, asked: Instant, at: Instant, seen: &[Observation]) {
        for observation in seen {
            let knowledge = node.knowledge.entry(observation.gateway.clone()).or_default();
            knowledge.is_observed |= asked >= knowledge.wrote;
            let ids = observation.addresses.iter().filter_map(|address| address.association.as_ref());
            node.ids.extend(ids.map(|association| association.id.clone()));
            let is_own = |address: &egret::failover::Address| {
                address.association.as_ref().is_some_and(|association| association.eni == node.config.eni)
            };
            let has = observation.addresses.first().is_some_and(is_own);
            Self::learn(node, &observation.gateway, at, has);
        }
    }

    /// A call is made, or answered.
    pub fn wrote(node: &mut Node, now: Instant, gateway: &str) {
        let knowledge = node.knowledge.entry(gateway.to_owned()).or_default();
        knowledge.wrote = now;
        knowledge.is_observed = false;
    }

    /// An instance says that it is active: it has looked since it last changed something.
    pub fn active(node: &Node, gateway: &str) -> Option<String> {
        let is_observed = node.knowledge.get(gateway).is_some_and(|knowledge| knowledge.is_observed);
        let me = &node.config.home.name;
        (!is_observed).then(|| format!("{me} is active for {gateway} without having looked"))
    }

    /// An association that was made is known from its answer.
    pub fn done(&self, node: &mut Node, now: Instant, call: &Call, done: &Done) {
        if let (Call::Associate { allocation }, Done::Associated { association, .. }) = (call, done) {
            node.ids.insert(association.clone());
            if let Some(gateway) = self.of_first(allocation) {
                Self::learn(node, &gateway, now, true);
            }
        }
    }

    fn learn(node: &mut Node, gateway: &str, at: Instant, has: bool) {
        let knowledge = node.knowledge.entry(gateway.to_owned()).or_default();
        knowledge.last = has;
        if at >= knowledge.of {
            knowledge.newest = has;
            knowledge.of = at;
        }
    }

    /// An instance is about to call: nobody writes routes of a gateway that it does not host.
    pub fn called(&self, node: &Node, gateway: &str, call: &Call) -> Option<String> {
        let Call::Route { table, .. } = call else { return None };
        let knowledge = node.knowledge.get(gateway).copied().unwrap_or_default();
        let me = &node.config.home.name;
        let is_its =
            self.gateways.iter().any(|known| known.name == gateway && known.route_tables.contains(table));
        if !is_its {
            return Some(format!("{me} writes a route of {table}, which is not {gateway}'s"));
        }
        (!knowledge.last && !knowledge.newest)
            .then(|| format!("{me} writes a route of {gateway}, whose first address it does not have"))
    }

    /// A call has changed the truth.
    pub fn changed(
        &mut self,
        now: Instant,
        nodes: &[Node],
        index: usize,
        life: u64,
        call: &Call,
    ) -> Option<String> {
        let node = &nodes[index];
        let me = &node.config.home.name;
        match call {
            Call::Disassociate { association } if node.life == life && !node.ids.contains(association) => {
                Some(format!("{me} ends {association}, which it has never observed"))
            }
            Call::Associate { allocation } => {
                let gateway = self.of_first(allocation)?;
                let last = self.hosts.insert(gateway.clone(), node.config.eni.clone());
                if last.is_none_or(|last| last == node.config.eni) {
                    return None;
                }
                let why = node.why.get(&gateway).copied();
                let before =
                    self.moves.iter().rev().find(|moved| moved.gateway == gateway).map(|moved| moved.at);
                self.moves.push(Move { at: now, gateway: gateway.clone() });
                self.judge(now, nodes, me, &gateway, why, before)
            }
            Call::Disassociate { .. } | Call::Route { .. } => None,
        }
    }

    /// Whether a gateway may move now: for a fault, for an order, or long enough after it has moved before.
    fn judge(
        &self,
        now: Instant,
        nodes: &[Node],
        to: &str,
        gateway: &str,
        why: Option<Why>,
        before: Option<Instant>,
    ) -> Option<String> {
        let is_faulty = nodes
            .iter()
            .any(|node| node.fleet.is_none() || node.is_paused || !node.egress || !node.worker || !node.api);
        let has_fault = is_faulty || self.has_cut || self.last_fault.is_some_and(|at| now - at < AFTERMATH);
        let rests = before.is_none_or(|before| now - before >= self.hold_down);
        match why {
            Some(Why::HandOver(Planned::Failback)) if !rests => {
                Some(format!("{gateway} goes home to {to} within the hold-down"))
            }
            Some(Why::HandOver(_)) => None,
            why if !has_fault => Some(format!("{to} takes {gateway} without a fault ({why:?})")),
            _ => None,
        }
    }

    /// Never are two active for one gateway while both have an address of it.
    pub fn one_active(&self, nodes: &[Node], ec2: &Ec2) -> Option<String> {
        for gateway in &self.gateways {
            let has = |node: &&Node| {
                let mut held = gateway.allocations.iter().filter_map(|id| ec2.holder(id));
                node.active.contains_key(&gateway.name) && held.any(|eni| eni == node.config.eni)
            };
            let active: Vec<&str> =
                nodes.iter().filter(has).map(|node| node.config.home.name.as_str()).collect();
            if active.len() > 1 {
                return Some(format!(
                    "{} is active at {active:?}, and all of them have addresses",
                    gateway.name
                ));
            }
        }
        None
    }

    /// Whether the last fault, or the end of one, is so long ago that everybody has noticed.
    fn is_noticed(&self, now: Instant) -> bool {
        self.last_fault.is_none_or(|at| now - at > NOTICED)
    }

    fn of_first(&self, allocation: &str) -> Option<String> {
        self.gateways
            .iter()
            .find(|gateway| gateway.allocations[0] == allocation)
            .map(|gateway| gateway.name.clone())
    }
}

impl World {
    /// Somebody begins to take a gateway because its host is silent. That host must not be one that most of those hear
    /// who count for the taker: all that are not dead to it.
    pub fn lacks_majority(&self, taker: usize, gateway: &str) -> Option<String> {
        let index = self.nodes.iter().position(|node| node.config.home.name == gateway)?;
        // As it believes; it looks once more before it does anything.
        let Host::Instance(host) = self.gateway(taker, index).host else { return None };
        let host = self.nodes.iter().position(|node| node.config.home.name == host)?;
        if self.nodes[taker].declared.contains(&self.nodes[host].config.home.name) {
            return None;
        }
        let counts =
            |other: &usize| *other != host && *other != taker && self.peer(taker, *other).life != Life::Dead;
        let others: Vec<usize> = (0..self.nodes.len()).filter(counts).collect();
        let runs = |index: usize| self.nodes[index].fleet.is_some() && !self.nodes[index].is_paused;
        let hears = |other: &&usize| {
            let way = (host, **other);
            runs(**other) && runs(host) && self.net.is_up(way) && !self.net.is_way_cut(way)
        };
        let hearing = others.iter().filter(hears).count();
        let is_minority = self.checks.is_noticed(self.now) && hearing > 0 && hearing * 2 >= others.len();
        is_minority.then(|| {
            let taker = &self.nodes[taker].config.home.name;
            format!("{taker} takes {gateway} from {host}, which {hearing} of {} others hear", others.len())
        })
    }

    /// What is not as it should be once all is quiet: every gateway is whole at one living instance, all of the living
    /// agree on which, and what they think is true.
    pub fn unsettled(&self) -> Option<String> {
        for index in 0..self.nodes.len() {
            let gateway = self.definition(index).name.clone();
            let Some(host) = self.host_of(index) else { return Some(format!("{gateway} is nowhere")) };
            if self.nodes[host].fleet.is_none() {
                return Some(format!("{gateway} is at {host}, which is dead"));
            }
            if !self.has_addresses(index, host) {
                return Some(format!("{gateway} has addresses elsewhere"));
            }
            let role = self.gateway(host, index).role;
            let fallback = self.definition(index).fallback.as_ref();
            let is_led = match role {
                Role::Active => self.is_at(index, host),
                Role::Fallback => fallback.is_some_and(|nat| self.routes_lead_to(index, nat)),
                Role::Standby | Role::Taking => false,
            };
            if !is_led {
                return Some(format!("the routes of {gateway} are not led by its host, which is {role:?}"));
            }
            if self.nodes[host]
                .active
                .get(&gateway)
                .is_none_or(|held| held.len() != self.definition(index).allocations.len())
            {
                return Some(format!("{gateway} is not announced"));
            }
            for (other, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.fleet.is_some()) {
                let status = self.status(other).gateways.into_iter().find(|status| status.gateway == gateway);
                let thinks = status.as_ref().map(|status| status.host.clone());
                let me = &node.config.home.name;
                // One that has come anew has not heard yet of those who are dead.
                if thinks != Some(Host::Instance(self.nodes[host].config.home.name.clone())) {
                    return Some(format!("{me} thinks that {gateway} is {thinks:?}, not at {host}"));
                }
                if other != host && status.is_some_and(|status| status.role != Role::Standby) {
                    return Some(format!("{me} has a hand in {gateway}"));
                }
            }
        }
        None
    }
}

/// More than death takes to be noticed, and a connection to be made anew.
const NOTICED: Duration = Duration::from_secs(6);

/// How long after a fault what happens may be its consequence: what is silent needs to be noticed, calls fail and are
/// tried again at growing intervals, and heirs wait for their turns.
const AFTERMATH: Duration = Duration::from_secs(60);
