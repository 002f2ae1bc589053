//! How it is in a world: in truth, and as its instances see it.

use egret::failover::{Event, Gateway, GatewayStatus, PeerStatus, Status};

use crate::world::{World, name};

impl World {
    /// Fails the test if anything that must hold did not.
    pub fn well(&self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong[0]);
    }

    pub fn status(&self, index: usize) -> Status {
        self.nodes[index].fleet.as_ref().unwrap().status(self.local(index))
    }

    pub fn gateway(&self, index: usize, gateway: usize) -> GatewayStatus {
        let name = name(gateway);
        self.status(index).gateways.into_iter().find(|status| status.gateway == name).unwrap()
    }

    pub fn peer(&self, index: usize, peer: usize) -> PeerStatus {
        let name = name(peer);
        self.status(index).peers.into_iter().find(|status| status.peer == name).unwrap()
    }

    pub fn definition(&self, gateway: usize) -> &Gateway {
        &self.nodes[gateway].config.home
    }

    /// Who has a gateway's first address, in truth.
    pub fn host_of(&self, gateway: usize) -> Option<usize> {
        let eni = self.ec2.holder(&self.definition(gateway).allocations[0])?;
        self.nodes.iter().position(|node| node.config.eni == eni)
    }

    /// Whether all addresses and routes of a gateway are at an instance, in truth.
    pub fn is_at(&self, gateway: usize, index: usize) -> bool {
        self.has_addresses(gateway, index) && self.routes_lead_to(gateway, &self.nodes[index].config.eni)
    }

    pub fn has_addresses(&self, gateway: usize, index: usize) -> bool {
        let eni = self.nodes[index].config.eni.as_str();
        self.definition(gateway).allocations.iter().all(|id| self.ec2.holder(id) == Some(eni))
    }

    pub fn routes_lead_to(&self, gateway: usize, target: &str) -> bool {
        let definition = self.definition(gateway);
        definition.route_tables.iter().all(|table| {
            let mut destinations = definition.destinations.iter();
            destinations.all(|destination| {
                self.ec2.truth.routes.get(&(table.clone(), *destination)).is_some_and(|to| to == target)
            })
        })
    }

    /// How often a gateway has gone from one instance to another.
    pub fn moves(&self, gateway: usize) -> usize {
        self.checks.moves.iter().filter(|moved| moved.gateway == name(gateway)).count()
    }

    pub fn has_event(&self, index: usize, is_it: impl Fn(&Event) -> bool) -> bool {
        self.nodes[index].events.iter().any(|(_, event)| is_it(event))
    }
}
