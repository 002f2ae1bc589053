//! What would have to change at EC2: desired compared with observed, without a request.
//!
//! Refused, and told as a [`Problem`]: to touch a table that is not named or tagged, or is another VPC's; to replace a
//! route that leads anywhere but to a NAT (another network interface, a NAT gateway) or nowhere; to take an Elastic IP
//! that somebody else uses. What was not observed is not judged.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::ec2::{ElasticIp, NetworkInterface, Route, RouteTable, Tables};

/// How it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The network interfaces that forward: without source/destination check.
    pub forwarding: BTreeSet<String>,
    pub routes: Option<Routes>,
    pub elastic_ips: Option<ElasticIps>,
}

/// Routes that lead to a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    pub eni: String,
    /// The interface's.
    pub vpc: String,
    pub tables: Tables,
    pub destinations: Vec<Ipv4Net>,
}

/// Elastic IPs that a network interface has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElasticIps {
    pub eni: String,
    /// Allocation ids, in the order in which they are tried.
    pub pool: Vec<String>,
    /// How many of the pool.
    pub count: usize,
}

/// How it is, as far as it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub interfaces: Option<Vec<NetworkInterface>>,
    pub tables: Option<Vec<RouteTable>>,
    pub elastic_ips: Option<Vec<ElasticIp>>,
}

/// What is to be done, in this order, and what cannot be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub problems: Vec<Problem>,
}

/// One call that writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    SwitchCheckOff {
        eni: String,
    },
    CreateRoute {
        table: String,
        destination: Ipv4Net,
        eni: String,
    },
    ReplaceRoute {
        table: String,
        destination: Ipv4Net,
        eni: String,
        from: Route,
    },
    /// One more private address for Elastic IPs; which one, EC2 says.
    AssignAddress {
        eni: String,
    },
    Associate {
        allocation: String,
        public: Ipv4Addr,
        eni: String,
        private: Ipv4Addr,
    },
}

/// What keeps the desired from being had, for people to mend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    #[error("EC2 does not show the network interface {0}")]
    NoInterface(String),
    #[error("there is no route table {0}; correct aws.route_tables")]
    NoTable(String),
    #[error("no route table of {vpc} has the tags of aws.route_table_tags")]
    NoTaggedTable { vpc: String },
    #[error("the route table {table} is in {vpc}, not in this interface's VPC; correct aws.route_tables")]
    OtherVpc { table: String, vpc: String },
    #[error(
        "{destination} of the route table {table} leads to {target}: a public subnet's, left alone; \
         name the private subnets' tables"
    )]
    PublicTable { table: String, destination: Ipv4Net, target: String },
    #[error(
        "{destination} of the route table {table} leads to {target}, left alone; delete that route, and it is made anew"
    )]
    OtherWay { table: String, destination: Ipv4Net, target: String },
    #[error("there is no Elastic IP {0}; correct aws.elastic_ips")]
    NoElasticIp(String),
    #[error("{missing} more Elastic IPs are wanted, and all others of aws.elastic_ips are in use elsewhere")]
    PoolInUse { missing: usize },
}

/// All that is to be done.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = checks(desired, observed);
    for part in [routes(desired, observed), elastic_ips(desired, observed)] {
        plan.changes.extend(part.changes);
        plan.problems.extend(part.problems);
    }
    plan
}

/// The part of the source/destination checks.
pub(super) fn checks(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let Some(interfaces) = &observed.interfaces else { return plan };
    for eni in &desired.forwarding {
        match interfaces.iter().find(|interface| interface.id == *eni) {
            None => plan.problems.push(Problem::NoInterface(eni.clone())),
            Some(interface) if interface.source_dest_check => {
                plan.changes.push(Change::SwitchCheckOff { eni: eni.clone() });
            }
            Some(_) => {}
        }
    }
    plan
}

/// The part of the routes.
pub(super) fn routes(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let (Some(desired), Some(tables)) = (&desired.routes, &observed.tables) else { return plan };
    let wanted: Vec<&RouteTable> = match &desired.tables {
        Tables::Ids(ids) => {
            let find = |id: &String| tables.iter().find(|table| table.id == *id);
            let absent = ids.iter().filter(|id| find(id).is_none());
            plan.problems.extend(absent.map(|id| Problem::NoTable(id.clone())));
            ids.iter().filter_map(find).collect()
        }
        Tables::Tagged { vpc, .. } => {
            if tables.is_empty() {
                plan.problems.push(Problem::NoTaggedTable { vpc: vpc.clone() });
            }
            tables.iter().collect()
        }
    };
    for table in wanted {
        if table.vpc == desired.vpc {
            plan_table(&mut plan, desired, table);
        } else {
            let (table, vpc) = (table.id.clone(), table.vpc.clone());
            plan.problems.push(Problem::OtherVpc { table, vpc });
        }
    }
    plan
}

fn plan_table(plan: &mut Plan, desired: &Routes, table: &RouteTable) {
    for destination in &desired.destinations {
        let (id, destination, eni) = (table.id.clone(), *destination, desired.eni.clone());
        let Some(route) = table.routes.iter().find(|route| route.destination == destination) else {
            plan.changes.push(Change::CreateRoute { table: id, destination, eni });
            continue;
        };
        let target = route.target.clone();
        if target.starts_with("igw-") {
            plan.problems.push(Problem::PublicTable { table: id, destination, target });
        } else if target == eni && route.active {
            // As it should be.
        } else if !route.active || target.starts_with("eni-") || target.starts_with("nat-") {
            plan.changes.push(Change::ReplaceRoute { table: id, destination, eni, from: route.clone() });
        } else {
            plan.problems.push(Problem::OtherWay { table: id, destination, target });
        }
    }
}

/// The part of the Elastic IPs.
pub(super) fn elastic_ips(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let (Some(desired), Some(known)) = (&desired.elastic_ips, &observed.elastic_ips) else { return plan };
    let Some(interfaces) = &observed.interfaces else { return plan };
    // That it is not shown is a problem of the checks.
    let Some(interface) = interfaces.iter().find(|interface| interface.id == desired.eni) else { return plan };
    let find = |id: &String| known.iter().find(|address| address.allocation == *id);
    let absent = desired.pool.iter().filter(|id| find(id).is_none());
    plan.problems.extend(absent.map(|id| Problem::NoElasticIp(id.clone())));
    let pool: Vec<&ElasticIp> = desired.pool.iter().filter_map(find).collect();
    let held = held(&pool, &desired.eni).count();
    let mut free = pool.iter().filter(|address| address.association.is_none());
    // One that has an Elastic IP of somebody else's is not free either: EC2 would take that one away from it.
    let is_free = |private: &Ipv4Addr| {
        !pool.iter().any(|address| {
            let association = address.association.as_ref();
            association.is_some_and(|at| at.eni.as_ref() == Some(&desired.eni) && at.private == Some(*private))
        })
    };
    let places = interface.addresses.iter().filter(|address| address.allocation.is_none());
    let mut places = places.map(|address| address.private).filter(is_free);
    let missing = desired.count.saturating_sub(held);
    for done in 0..missing {
        let Some(address) = free.next() else {
            plan.problems.push(Problem::PoolInUse { missing: missing - done });
            break;
        };
        let eni = desired.eni.clone();
        let Some(private) = places.next() else {
            // The others follow once it is known which address it is.
            plan.changes.push(Change::AssignAddress { eni });
            break;
        };
        let (allocation, public) = (address.allocation.clone(), address.public);
        plan.changes.push(Change::Associate { allocation, public, eni, private });
    }
    plan
}

/// Those that a network interface has.
pub(super) fn held<'a>(pool: &'a [&ElasticIp], eni: &'a str) -> impl Iterator<Item = &'a ElasticIp> {
    let is_held = move |address: &&ElasticIp| {
        let association = address.association.as_ref();
        association.is_some_and(|association| association.eni.as_deref() == Some(eni))
    };
    pool.iter().copied().filter(is_held)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchCheckOff { eni } => write!(f, "switch the source/dest check of {eni} off"),
            Self::CreateRoute { table, destination, eni } => {
                write!(f, "create the route {destination} of {table} to {eni}")
            }
            Self::ReplaceRoute { table, destination, eni, from } => {
                let hole = if from.active { "" } else { ", a black hole" };
                write!(f, "replace the route {destination} of {table}: to {eni}, now to {}{hole}", from.target)
            }
            Self::AssignAddress { eni } => {
                write!(f, "assign one more private address to {eni}, for an Elastic IP")
            }
            Self::Associate { allocation, public, eni, private } => {
                write!(f, "associate the Elastic IP {allocation} ({public}) with {private} of {eni}")
            }
        }
    }
}
