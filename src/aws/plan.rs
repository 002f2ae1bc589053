//! What would have to change at EC2: desired compared with observed, without a request.
//!
//! Refused, and told as a [`Problem`]: to touch a table that is not named or tagged, or is another VPC's; to replace a
//! route that leads anywhere but to a NAT (another network interface, a NAT gateway) or nowhere; to take an Elastic IP
//! that somebody else uses. What was not observed is not judged. An instance that is about to end takes nothing any more,
//! so that it does not quarrel with the one in its place.

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
    /// The instance is about to end: no route and no Elastic IP is taken any more, and those Elastic IPs that it has are
    /// given up once all its routes lead to other network interfaces.
    pub ending: bool,
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
    GiveUp {
        allocation: String,
        public: Ipv4Addr,
        association: String,
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
    if desired.ending {
        return plan;
    }
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
    if desired.ending {
        return give_up(desired, observed);
    }
    let mut plan = Plan::default();
    let (Some(desired), Some(known)) = (&desired.elastic_ips, &observed.elastic_ips) else { return plan };
    let Some(interfaces) = &observed.interfaces else { return plan };
    // That it is not shown is a problem of the checks.
    let Some(interface) = interfaces.iter().find(|interface| interface.id == desired.eni) else { return plan };
    let find = |id: &String| known.iter().find(|address| address.allocation == *id);
    let absent = desired.pool.iter().filter(|id| find(id).is_none());
    plan.problems.extend(absent.map(|id| Problem::NoElasticIp(id.clone())));
    let pool: Vec<&ElasticIp> = desired.pool.iter().filter_map(find).collect();
    // Either call may not show yet what the other does.
    let shown = |id: &String| interface.addresses.iter().any(|address| address.allocation.as_ref() == Some(id));
    let is_ours = |address: &&&ElasticIp| shown(&address.allocation) || address.is_on(&desired.eni);
    let held: Vec<&ElasticIp> = pool.iter().filter(is_ours).copied().collect();
    let mut free = pool.iter().filter(|address| address.association.is_none() && !is_ours(address));
    // One that has an Elastic IP of another pool is not free either: EC2 would take that one away from it.
    let places = interface.addresses.iter().filter(|place| place.allocation.is_none());
    let is_taken = |place: Ipv4Addr| held.iter().any(|address| address.private() == Some(place));
    let mut places = places.map(|place| place.private).filter(|place| !is_taken(*place));
    let held = held.len();
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

/// The part of the Elastic IPs of an instance that is about to end.
fn give_up(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let (Some(wanted), Some(known)) = (&desired.elastic_ips, &observed.elastic_ips) else { return plan };
    if !is_replaced(desired, observed) {
        return plan;
    }
    let interfaces = observed.interfaces.iter().flatten();
    let primary = interfaces.filter(|interface| interface.id == wanted.eni).find_map(|it| it.addresses.first());
    let mut held: Vec<&ElasticIp> = known.iter().filter(|address| address.is_on(&wanted.eni)).collect();
    // By the primary address's, EC2 may be reached: it goes last.
    held.sort_by_key(|address| address.private() == primary.map(|place| place.private));
    plan.changes.extend(held.into_iter().filter_map(|address| {
        let (allocation, public) = (address.allocation.clone(), address.public);
        Some(Change::GiveUp { allocation, public, association: address.association.as_ref()?.id.clone() })
    }));
    plan
}

/// Whether another network interface has all our routes.
fn is_replaced(desired: &Desired, observed: &Observed) -> bool {
    let (Some(wanted), Some(tables)) = (&desired.routes, &observed.tables) else { return false };
    if let Tables::Ids(ids) = &wanted.tables
        && !ids.iter().all(|id| tables.iter().any(|table| table.id == *id))
    {
        return false;
    }
    let leads_elsewhere = |table: &RouteTable, destination: &Ipv4Net| {
        let route = table.routes.iter().find(|route| route.destination == *destination);
        route
            .is_some_and(|route| route.active && route.target.starts_with("eni-") && route.target != wanted.eni)
    };
    !tables.is_empty()
        && !wanted.destinations.is_empty()
        && tables.iter().all(|table| wanted.destinations.iter().all(|it| leads_elsewhere(table, it)))
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
            Self::GiveUp { allocation, public, .. } => {
                write!(f, "give up the Elastic IP {allocation} ({public})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ec2::{Association, PrivateAddress};
    use super::*;

    const ENI: &str = "eni-0123456789abcdef0";
    const VPC: &str = "vpc-0a1b2c3d4e5f60718";

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn routes_to(destinations: &[&str]) -> Desired {
        let tables = Tables::Ids(vec!["rtb-a".to_owned()]);
        let destinations = destinations.iter().map(|text| net(text)).collect();
        let routes = Routes { eni: ENI.to_owned(), vpc: VPC.to_owned(), tables, destinations };
        Desired { routes: Some(routes), ..Desired::default() }
    }

    fn table(id: &str, vpc: &str, routes: &[(&str, &str, bool)]) -> RouteTable {
        let route = |(destination, target, active): &(&str, &str, bool)| Route {
            destination: net(destination),
            target: (*target).to_owned(),
            active: *active,
        };
        RouteTable { id: id.to_owned(), vpc: vpc.to_owned(), routes: routes.iter().map(route).collect() }
    }

    fn with_tables(tables: Vec<RouteTable>) -> Observed {
        Observed { tables: Some(tables), ..Observed::default() }
    }

    /// What is done about the default route of the one table that is named.
    fn plan_for(target: &str, active: bool) -> Plan {
        let table = table("rtb-a", VPC, &[("10.0.0.0/16", "local", true), ("0.0.0.0/0", target, active)]);
        plan(&routes_to(&["0.0.0.0/0"]), &with_tables(vec![table]))
    }

    #[test]
    fn missing_routes_are_created_in_the_named_table_alone() {
        let other = table("rtb-b", VPC, &[]);
        let named = table("rtb-a", VPC, &[("198.51.100.0/24", ENI, true)]);
        let plan = plan(&routes_to(&["0.0.0.0/0", "198.51.100.0/24"]), &with_tables(vec![other, named]));
        let (table, destination, eni) = ("rtb-a".to_owned(), net("0.0.0.0/0"), ENI.to_owned());
        assert_eq!(plan.changes, [Change::CreateRoute { table, destination, eni }]);
        assert_eq!(plan.problems, []);
    }

    #[test]
    fn a_route_that_is_ours_and_active_is_left_alone() {
        assert_eq!(plan_for(ENI, true), Plan::default());
    }

    #[test]
    fn other_nats_and_black_holes_are_replaced() {
        let targets = [
            ("eni-0fedcba9876543210", true),
            ("eni-0fedcba9876543210", false),
            ("nat-0123456789abcdef0", true),
            ("nat-0123456789abcdef0", false),
            ("tgw-0123456789abcdef0", false),
            (ENI, false),
        ];
        for (target, active) in targets {
            let plan = plan_for(target, active);
            assert!(matches!(&plan.changes[..], [Change::ReplaceRoute { from, .. }] if from.target == target));
            assert_eq!(plan.problems, [], "{target}");
        }
    }

    #[test]
    fn a_public_subnets_table_is_left_alone_even_if_its_gateway_is_gone() {
        for active in [true, false] {
            let plan = plan_for("igw-0123456789abcdef0", active);
            assert_eq!(plan.changes, []);
            assert!(matches!(plan.problems[..], [Problem::PublicTable { .. }]), "{plan:?}");
        }
    }

    #[test]
    fn a_route_that_leads_elsewhere_on_purpose_is_left_alone() {
        for target in ["tgw-0123456789abcdef0", "pcx-0123456789abcdef0", "vpce-0123456789abcdef0", "local"] {
            let plan = plan_for(target, true);
            assert_eq!(plan.changes, [], "{target}");
            assert!(matches!(plan.problems[..], [Problem::OtherWay { .. }]), "{plan:?}");
        }
    }

    #[test]
    fn tables_that_are_elsewhere_or_nowhere_are_problems() {
        let elsewhere = table("rtb-a", "vpc-0fedcba987654321f", &[]);
        let plan_of = |tables| plan(&routes_to(&["0.0.0.0/0"]), &with_tables(tables));
        assert!(matches!(&plan_of(vec![elsewhere]).problems[..], [Problem::OtherVpc { .. }]));
        assert!(matches!(&plan_of(Vec::new()).problems[..], [Problem::NoTable(id)] if id == "rtb-a"));
        let mut tagged = routes_to(&["0.0.0.0/0"]);
        let tables = Tables::Tagged { vpc: VPC.to_owned(), tags: [("k".to_owned(), "v".to_owned())].into() };
        tagged.routes.as_mut().unwrap().tables = tables;
        let plan = plan(&tagged, &with_tables(Vec::new()));
        assert!(matches!(&plan.problems[..], [Problem::NoTaggedTable { vpc }] if vpc == VPC), "{plan:?}");
    }

    #[test]
    fn what_was_not_observed_is_not_judged() {
        let desired = Desired { forwarding: [ENI.to_owned()].into(), ..pool(&["eipalloc-a"], 1) };
        let desired = Desired { routes: routes_to(&["0.0.0.0/0"]).routes, ..desired };
        assert_eq!(plan(&desired, &Observed::default()), Plan::default());
    }

    fn pool(allocations: &[&str], count: usize) -> Desired {
        let pool = allocations.iter().map(|id| (*id).to_owned()).collect();
        let elastic_ips = Some(ElasticIps { eni: ENI.to_owned(), pool, count });
        Desired { elastic_ips, ..Desired::default() }
    }

    /// An interface with these addresses (last octet, allocation), and Elastic IPs that are used (interface, octet).
    fn with_addresses(places: &[(u8, Option<&str>)], used: &[(&str, Option<(&str, u8)>)]) -> Observed {
        let place = |(host, allocation): &(u8, Option<&str>)| PrivateAddress {
            private: [10, 0, 0, *host].into(),
            allocation: allocation.map(str::to_owned),
        };
        let addresses = places.iter().map(place).collect();
        let interface = NetworkInterface { id: ENI.to_owned(), source_dest_check: false, addresses };
        let elastic_ips = used.iter().zip(1..).map(|((id, used), host)| ElasticIp {
            allocation: (*id).to_owned(),
            public: [203, 0, 113, host].into(),
            association: used.map(|(eni, host)| Association {
                id: "eipassoc-0".to_owned(),
                eni: Some(eni.to_owned()),
                private: Some([10, 0, 0, host].into()),
            }),
        });
        Observed {
            interfaces: Some(vec![interface]),
            elastic_ips: Some(elastic_ips.collect()),
            ..Observed::default()
        }
    }

    /// The associations that are made, as allocation and last octet of the private address.
    fn associated(plan: &Plan) -> Vec<(&str, u8)> {
        let mut associated = Vec::new();
        for change in &plan.changes {
            if let Change::Associate { allocation, private, .. } = change {
                associated.push((allocation.as_str(), private.octets()[3]));
            }
        }
        associated
    }

    #[test]
    fn the_first_free_of_the_pool_is_taken_in_its_order() {
        let used = [("eipalloc-a", Some(("eni-0f", 9))), ("eipalloc-b", None), ("eipalloc-c", None)];
        let observed = with_addresses(&[(10, None), (11, None)], &used);
        let plan_of = |pool: Desired| plan(&pool, &observed);
        assert_eq!(
            associated(&plan_of(pool(&["eipalloc-a", "eipalloc-c", "eipalloc-b"], 1))),
            [("eipalloc-c", 10)]
        );
        let both = plan_of(pool(&["eipalloc-a", "eipalloc-b", "eipalloc-c"], 2));
        assert_eq!(associated(&both), [("eipalloc-b", 10), ("eipalloc-c", 11)]);
        assert_eq!(both.problems, []);
    }

    #[test]
    fn one_that_the_interface_has_counts_whichever_call_shows_it() {
        let shown_by_address =
            with_addresses(&[(10, None)], &[("eipalloc-a", Some((ENI, 10))), ("eipalloc-b", None)]);
        let shown_by_interface =
            with_addresses(&[(10, Some("eipalloc-a"))], &[("eipalloc-a", None), ("eipalloc-b", None)]);
        for observed in [shown_by_address, shown_by_interface] {
            assert_eq!(plan(&pool(&["eipalloc-b", "eipalloc-a"], 1), &observed), Plan::default());
        }
    }

    #[test]
    fn an_address_is_assigned_when_the_interface_has_none_left() {
        // The primary one has an Elastic IP that is not of the pool; it is not taken away.
        let observed =
            with_addresses(&[(10, Some("eipalloc-z"))], &[("eipalloc-a", None), ("eipalloc-b", None)]);
        let plan = plan(&pool(&["eipalloc-a", "eipalloc-b"], 2), &observed);
        assert_eq!(plan.changes, [Change::AssignAddress { eni: ENI.to_owned() }]);
    }

    #[test]
    fn a_pool_in_use_or_unknown_is_a_problem_and_nobody_loses_one() {
        let observed = with_addresses(&[(10, None)], &[("eipalloc-a", Some(("eni-0f", 9)))]);
        let plan = plan(&pool(&["eipalloc-a", "eipalloc-b"], 2), &observed);
        assert_eq!(plan.changes, []);
        let absent = Problem::NoElasticIp("eipalloc-b".to_owned());
        assert_eq!(plan.problems, [absent, Problem::PoolInUse { missing: 2 }]);
    }

    /// What an instance does at its end, with two Elastic IPs, when its one route leads to `target`.
    fn at_the_end(target: &str, active: bool) -> Plan {
        let table = table("rtb-a", VPC, &[("10.0.0.0/16", "local", true), ("0.0.0.0/0", target, active)]);
        let used = [("eipalloc-a", Some((ENI, 10))), ("eipalloc-b", Some((ENI, 11))), ("eipalloc-c", None)];
        let places = [(10, Some("eipalloc-a")), (11, Some("eipalloc-b"))];
        let observed = Observed { tables: Some(vec![table]), ..with_addresses(&places, &used) };
        let desired = Desired { ending: true, ..pool(&["eipalloc-a", "eipalloc-b", "eipalloc-c"], 3) };
        plan(&Desired { routes: routes_to(&["0.0.0.0/0"]).routes, ..desired }, &observed)
    }

    #[test]
    fn at_its_end_an_instance_takes_nothing_and_keeps_its_addresses_while_a_route_is_its() {
        for (target, active) in [
            (ENI, true),
            (ENI, false),
            ("eni-0fedcba9876543210", false),
            ("nat-0123456789abcdef0", true),
            ("tgw-0123456789abcdef0", true),
        ] {
            assert_eq!(at_the_end(target, active), Plan::default(), "{target} {active}");
        }
    }

    #[test]
    fn at_its_end_a_replaced_instance_gives_its_addresses_up_the_primary_one_last() {
        let plan = at_the_end("eni-0fedcba9876543210", true);
        let given_up = plan.changes.iter().map(|change| match change {
            Change::GiveUp { allocation, association, .. } => (allocation.as_str(), association.as_str()),
            other => panic!("{other}"),
        });
        assert_eq!(given_up.collect::<Vec<_>>(), [("eipalloc-b", "eipassoc-0"), ("eipalloc-a", "eipassoc-0")]);
        assert_eq!(plan.problems, []);
    }

    #[test]
    fn at_its_end_an_instance_that_sees_not_all_its_routes_gives_nothing_up() {
        let elsewhere = [("0.0.0.0/0", "eni-0fedcba9876543210", true)];
        let observed = with_addresses(&[(10, Some("eipalloc-a"))], &[("eipalloc-a", Some((ENI, 10)))]);
        let desired = Desired { ending: true, ..pool(&["eipalloc-a"], 1) };
        let plan_of = |routes: Desired, tables: Vec<RouteTable>| {
            let observed = Observed { tables: Some(tables), ..observed.clone() };
            plan(&Desired { routes: routes.routes, ..desired.clone() }, &observed)
        };
        let one = || vec![table("rtb-a", VPC, &elsewhere)];
        assert_eq!(plan_of(routes_to(&["0.0.0.0/0"]), one()).changes.len(), 1);
        assert_eq!(plan_of(routes_to(&["0.0.0.0/0", "198.51.100.0/24"]), one()), Plan::default());
        assert_eq!(plan_of(routes_to(&["0.0.0.0/0"]), Vec::new()), Plan::default());
        let mut two = routes_to(&["0.0.0.0/0"]);
        two.routes.as_mut().unwrap().tables = Tables::Ids(vec!["rtb-a".to_owned(), "rtb-b".to_owned()]);
        assert_eq!(plan_of(two, one()), Plan::default());
        assert_eq!(
            plan_of(Desired::default(), one()),
            Plan::default(),
            "without routes of its own nobody can tell"
        );
    }

    #[test]
    fn checks_come_first_and_an_interface_that_is_not_shown_is_a_problem() {
        let mut observed = with_addresses(&[(10, None)], &[("eipalloc-a", None)]);
        observed.interfaces.as_mut().unwrap()[0].source_dest_check = true;
        let forwarding = [ENI.to_owned(), "eni-0f".to_owned()].into();
        let plan = plan(&Desired { forwarding, ..pool(&["eipalloc-a"], 1) }, &observed);
        assert_eq!(plan.changes[0], Change::SwitchCheckOff { eni: ENI.to_owned() });
        assert_eq!(plan.changes.len(), 2);
        assert_eq!(plan.problems, [Problem::NoInterface("eni-0f".to_owned())]);
    }
}
