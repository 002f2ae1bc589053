//! What a fleet of instances asks of EC2: how gateways stand, and the changes that a take-over is made of.
//!
//! Decides nothing but which private address an Elastic IP comes to: a secondary one as long as the interface has room,
//! so that the host's own way out, by its primary address, does not depend on who has the gateway. Refused, whatever is
//! asked: a route of another VPC's table, and one that leads anywhere but to a network interface, to a NAT gateway, or
//! nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::call::Failure;
use super::ec2::{Ec2, PrivateAddress, Route, RouteTable, Tables};
use super::plan::Problem;
use crate::failover::{self, Address, Call, CallError, Done, Gateway, Observation};

/// Makes a fleet's calls. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Executor {
    ec2: Ec2,
    place: Place,
    known: Arc<Mutex<Known>>,
    /// Held while room is made, so that none is made twice.
    making_room: Arc<tokio::sync::Mutex<()>>,
}

/// Where gateways come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The network interface that has the Elastic IPs, by which the fleet knows this instance.
    pub external: String,
    /// The one that routes lead to; the same, if there is only one.
    pub internal: String,
    pub vpc: String,
}

/// Why a call was not made, or did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error(transparent)]
    Refused(#[from] Problem),
}

#[derive(Debug, Default)]
struct Known {
    /// The tables as they were last seen.
    tables: BTreeMap<String, RouteTable>,
    /// Private addresses that are being associated, or were just now: EC2 may not show it yet.
    taken: BTreeMap<Ipv4Addr, Instant>,
    /// Private addresses that were just assigned, likewise.
    assigned: BTreeMap<Ipv4Addr, Instant>,
}

impl NotDone {
    /// As the fleet takes it.
    #[must_use]
    pub fn kind(&self) -> CallError {
        match self {
            Self::Refused(_) | Self::Failed(Failure::Unauthorized { .. }) => CallError::Refused,
            Self::Failed(Failure::Throttled { .. }) => CallError::Throttled,
            Self::Failed(Failure::Unavailable { .. }) => CallError::Unknown,
            Self::Failed(Failure::Refused { code, .. }) => match code.as_str() {
                "InvalidAssociationID.NotFound" => CallError::StaleAssociation,
                "Resource.AlreadyAssociated" => CallError::AlreadyAssociated,
                // A route came or went meanwhile: to be looked at again.
                "RouteAlreadyExists" | "InvalidRoute.NotFound" => CallError::Unknown,
                code if code.ends_with(".NotFound") => CallError::NotFound,
                _ => CallError::Refused,
            },
        }
    }
}

impl Executor {
    /// Makes no call yet.
    #[must_use]
    pub fn new(ec2: Ec2, place: Place) -> Self {
        Self { ec2, place, known: Arc::default(), making_room: Arc::default() }
    }

    /// How these gateways stand, by two calls.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn observe(&self, gateways: &[Gateway]) -> Result<Vec<Observation>, Failure> {
        let all = |ids: fn(&Gateway) -> &Vec<String>| {
            let distinct: BTreeSet<String> = gateways.iter().flat_map(ids).cloned().collect();
            distinct.into_iter().collect::<Vec<_>>()
        };
        let allocations = all(|gateway| &gateway.allocations);
        let tables = Tables::Ids(all(|gateway| &gateway.route_tables));
        let (addresses, tables) =
            tokio::join!(self.ec2.elastic_ips(&allocations), self.ec2.route_tables(&tables));
        let (addresses, tables) = (addresses?, tables?);
        let address = |allocation: &String| {
            let found = addresses.iter().find(|address| address.allocation == *allocation)?;
            let association = found.association.as_ref().map(|association| failover::Association {
                id: association.id.clone(),
                eni: association.eni.clone().unwrap_or_default(),
                private: association.private,
            });
            Some(Address { allocation: allocation.clone(), public: found.public, association })
        };
        let observed = gateways.iter().map(|gateway| Observation {
            gateway: gateway.name.clone(),
            addresses: gateway.allocations.iter().filter_map(address).collect(),
            routes: self.routes(gateway, &tables),
        });
        let observed = observed.collect();
        self.known().tables = tables.into_iter().map(|table| (table.id.clone(), table)).collect();
        Ok(observed)
    }

    /// Makes one change.
    ///
    /// # Errors
    /// See [`NotDone`].
    pub async fn make(&self, call: &Call) -> Result<Done, NotDone> {
        match call {
            Call::Disassociate { association } => {
                self.ec2.disassociate_address(association).await?;
                Ok(Done::Disassociated)
            }
            Call::Associate { allocation } => {
                let private = self.spare().await?;
                let associated = self.ec2.associate_address(allocation, &self.place.external, private).await;
                match associated {
                    Ok(association) => Ok(Done::Associated { association, private }),
                    Err(failure) => {
                        // Unless it has happened all the same.
                        if !matches!(failure, Failure::Unavailable { .. }) {
                            self.known().taken.remove(&private);
                        }
                        Err(failure.into())
                    }
                }
            }
            Call::Route { table, destination, target, exists } => {
                self.refuse(table, *destination)?;
                let target = if *target == self.place.external { &self.place.internal } else { target };
                if *exists {
                    self.ec2.replace_route(table, *destination, target).await?;
                } else {
                    self.ec2.create_route(table, *destination, target).await?;
                }
                Ok(Done::Routed)
            }
        }
    }

    /// Sees to it that there is room for so many Elastic IPs: what keeps an address from being assigned is better known
    /// before it is needed.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn prepare(&self, places: usize) -> Result<(), Failure> {
        let _making_room = self.making_room.lock().await;
        let there = self.addresses().await?.len().saturating_sub(1);
        for missing in (1..=places.saturating_sub(there)).rev() {
            let assigned = self.ec2.assign_private_address(&self.place.external).await;
            let private = match assigned {
                // The primary one has to do, as it does on the smallest instances.
                Err(failure) if missing == 1 && is_full(&failure) => return Ok(()),
                assigned => assigned?,
            };
            tracing::info!(eni = self.place.external, %private, "private address assigned, for an elastic ip to come");
            self.known().assigned.insert(private, Instant::now());
        }
        Ok(())
    }

    /// A private address without an Elastic IP, which is the caller's from now on.
    async fn spare(&self) -> Result<Ipv4Addr, Failure> {
        if let Some(private) = self.take_secondary(&self.addresses().await?) {
            return Ok(private);
        }
        // What is being made meanwhile is as good, and may be the last there is.
        let _making_room = self.making_room.lock().await;
        let addresses = self.addresses().await?;
        if let Some(private) = self.take_secondary(&addresses) {
            return Ok(private);
        }
        let private = match self.ec2.assign_private_address(&self.place.external).await {
            Err(failure) if is_full(&failure) => {
                return addresses.first().and_then(|address| self.take(address)).ok_or(failure);
            }
            assigned => assigned?,
        };
        tracing::info!(eni = self.place.external, %private, "private address assigned, for an elastic ip");
        self.known().taken.insert(private, Instant::now());
        Ok(private)
    }

    fn take_secondary(&self, addresses: &[PrivateAddress]) -> Option<Ipv4Addr> {
        addresses.iter().skip(1).find_map(|address| self.take(address))
    }

    fn take(&self, address: &PrivateAddress) -> Option<Ipv4Addr> {
        let mut known = self.known();
        known.taken.retain(|_, at| at.elapsed() < SETTLED);
        let is_free = address.allocation.is_none() && !known.taken.contains_key(&address.private);
        is_free.then(|| {
            known.taken.insert(address.private, Instant::now());
            address.private
        })
    }

    /// The private addresses, the primary one first.
    async fn addresses(&self) -> Result<Vec<PrivateAddress>, Failure> {
        let interfaces = self.ec2.network_interfaces(std::slice::from_ref(&self.place.external)).await?;
        let mut addresses: Vec<PrivateAddress> =
            interfaces.into_iter().flat_map(|interface| interface.addresses).collect();
        let mut known = self.known();
        known.assigned.retain(|_, at| at.elapsed() < SETTLED);
        let is_shown = |private: Ipv4Addr| addresses.iter().any(|address| address.private == private);
        let unseen: Vec<_> = known.assigned.keys().copied().filter(|private| !is_shown(*private)).collect();
        addresses.extend(unseen.into_iter().map(|private| PrivateAddress { private, allocation: None }));
        Ok(addresses)
    }

    /// The wanted destinations that are in the gateway's tables.
    fn routes(&self, gateway: &Gateway, tables: &[RouteTable]) -> Vec<failover::Route> {
        let own = tables.iter().filter(|table| gateway.route_tables.contains(&table.id));
        let routes = own.flat_map(|table| table.routes.iter().map(move |route| (table, route)));
        let wanted = routes.filter(|(_, route)| gateway.destinations.contains(&route.destination));
        let route = |(table, route): (&RouteTable, &Route)| failover::Route {
            table: table.id.clone(),
            destination: route.destination,
            target: if route.target == self.place.internal { &self.place.external } else { &route.target }
                .clone(),
            active: route.active,
        };
        wanted.map(route).collect()
    }

    /// Whether a route must be left alone.
    fn refuse(&self, table: &str, destination: Ipv4Net) -> Result<(), Problem> {
        let known = self.known();
        let Some(RouteTable { vpc, routes, .. }) = known.tables.get(table) else {
            return Err(Problem::NoTable(table.to_owned()));
        };
        let table = table.to_owned();
        if *vpc != self.place.vpc {
            return Err(Problem::OtherVpc { table, vpc: vpc.clone() });
        }
        let Some(route) = routes.iter().find(|route| route.destination == destination) else { return Ok(()) };
        let target = route.target.clone();
        if target.starts_with("igw-") {
            Err(Problem::PublicTable { table, destination, target })
        } else if route.active && !target.starts_with("eni-") && !target.starts_with("nat-") {
            Err(Problem::OtherWay { table, destination, target })
        } else {
            Ok(())
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The interface has as many addresses as its instance's type allows.
fn is_full(failure: &Failure) -> bool {
    failure.code() == Some("PrivateIpAddressLimitExceeded")
}

/// By then EC2 shows what was done.
const SETTLED: Duration = Duration::from_secs(60);
