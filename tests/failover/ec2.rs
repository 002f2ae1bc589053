//! A model of EC2, as far as failover touches it (Amazon EC2 API Reference: `DescribeAddresses`,
//! `DescribeRouteTables`, `DisassociateAddress`, `AssociateAddress`, `ReplaceRoute`, `CreateRoute`; "Eventual
//! consistency in the Amazon EC2 API"). Changes are atomic, and are decided by the truth; descriptions may show what
//! was some time ago, addresses and routes not from the same moment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use egret::failover::{Address, Association, Call, CallError, Done, Gateway, Observation, Route};
use egret::time::Instant;
use ipnet::Ipv4Net;

use crate::chance::Chance;

#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// By allocation.
    pub addresses: BTreeMap<String, Option<Association>>,
    pub routes: BTreeMap<(String, Ipv4Net), String>,
    pub tables: BTreeSet<String>,
    /// Interfaces that are gone, or whose instance does not run.
    pub black_holes: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Ec2 {
    pub truth: Truth,
    /// What was true from when on, the newest last.
    history: VecDeque<(Instant, Truth)>,
    made: u32,
    /// How old a description can be.
    pub lag: Duration,
}

impl Ec2 {
    pub fn new(gateways: &[Gateway], lag: Duration) -> Self {
        let mut truth = Truth::default();
        for gateway in gateways {
            truth.addresses.extend(gateway.allocations.iter().map(|id| (id.clone(), None)));
            truth.tables.extend(gateway.route_tables.iter().cloned());
        }
        Self { history: [(Instant::ORIGIN, truth.clone())].into(), truth, made: 0, lag }
    }

    /// What `DescribeAddresses` and `DescribeRouteTables` show, and the moment that the addresses are of.
    pub fn describe(
        &self,
        now: Instant,
        gateways: &[Gateway],
        chance: &mut Chance,
    ) -> (Instant, Vec<Observation>) {
        let (at, addresses) = self.view(now, chance);
        let (_, routes) = self.view(now, chance);
        let describe = |gateway: &Gateway| Observation {
            gateway: gateway.name.clone(),
            addresses: gateway
                .allocations
                .iter()
                .filter_map(|id| {
                    let association = addresses.addresses.get(id)?.clone();
                    Some(Address { allocation: id.clone(), public: public(id), association })
                })
                .collect(),
            routes: routes
                .routes
                .iter()
                .filter(|((table, destination), _)| {
                    gateway.route_tables.contains(table) && gateway.destinations.contains(destination)
                })
                .map(|((table, destination), target)| Route {
                    table: table.clone(),
                    destination: *destination,
                    target: target.clone(),
                    active: !routes.black_holes.contains(target),
                })
                .collect(),
        };
        (at, gateways.iter().map(describe).collect())
    }

    /// A moment that is not too long ago; most often, this one.
    fn view(&self, now: Instant, chance: &mut Chance) -> (Instant, &Truth) {
        let lag = if chance.permille(600) { Duration::ZERO } else { chance.between(Duration::ZERO, self.lag) };
        let nanos = now.as_nanos().saturating_sub(lag.as_nanos() as u64);
        let at = Instant::from_nanos(nanos);
        let view = self.history.iter().rev().find(|(since, _)| *since <= at).or(self.history.front());
        (at, &view.unwrap().1)
    }

    /// Makes a change for the instance with this interface.
    pub fn change(&mut self, now: Instant, eni: &str, call: &Call) -> Result<Done, CallError> {
        let result = self.decide(eni, call);
        if result.is_ok() {
            self.note(now);
        }
        result
    }

    fn decide(&mut self, eni: &str, call: &Call) -> Result<Done, CallError> {
        match call {
            Call::Disassociate { association } => {
                let held = self
                    .truth
                    .addresses
                    .values_mut()
                    .find(|held| held.as_ref().is_some_and(|held| held.id == *association));
                *held.ok_or(CallError::StaleAssociation)? = None;
                Ok(Done::Disassociated)
            }
            Call::Associate { allocation } => {
                let held = self.truth.addresses.get_mut(allocation).ok_or(CallError::NotFound)?;
                if held.is_some() {
                    return Err(CallError::AlreadyAssociated);
                }
                self.made += 1;
                let id = format!("eipassoc-{}", self.made);
                let private = Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 0, 2, 0)) + self.made % 256);
                *held = Some(Association { id: id.clone(), eni: eni.to_owned(), private: Some(private) });
                Ok(Done::Associated { association: id, private })
            }
            Call::Route { table, destination, target, .. } => {
                if !self.truth.tables.contains(table) {
                    return Err(CallError::NotFound);
                }
                self.truth.routes.insert((table.clone(), *destination), target.clone());
                Ok(Done::Routed)
            }
        }
    }

    /// The instance is gone, and its interface with it.
    pub fn terminate(&mut self, now: Instant, eni: &str) {
        for held in self.truth.addresses.values_mut() {
            held.take_if(|held| held.eni == eni);
        }
        self.truth.black_holes.insert(eni.to_owned());
        self.note(now);
    }

    pub fn holder(&self, allocation: &str) -> Option<&str> {
        self.truth.addresses.get(allocation)?.as_ref().map(|held| held.eni.as_str())
    }

    pub fn note(&mut self, now: Instant) {
        self.history.push_back((now, self.truth.clone()));
        // The first one that is old enough for every view stays.
        while self.history.get(1).is_some_and(|(since, _)| now - *since > self.lag) {
            self.history.pop_front();
        }
    }
}

pub fn public(allocation: &str) -> Ipv4Addr {
    let sum = allocation.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(7).wrapping_add(byte));
    Ipv4Addr::new(203, 0, 113, sum)
}
