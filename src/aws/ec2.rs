//! The calls of EC2 that Egret makes, and their answers as plain types.
//!
//! Each call is named as in an IAM policy, made through [`Calls`], and observes or changes one thing; what to do with
//! it is decided elsewhere. An answer is parsed once: one that lacks what is asked for, or is longer than a true one
//! can be, is a failure, never a guess. What no part of Egret looks at (IPv6, prefix lists) is left out.
//!
//! An Elastic IP that is in use is never taken: `AllowReassociation` is always false, so that EC2 itself decides
//! between two that want the same one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{self, AttributeBooleanValue, Filter, RouteOrigin, RouteState};
use ipnet::Ipv4Net;

use super::call::{Calls, Failure, once};

/// A client of EC2. Cheap to clone; clones count their calls together.
#[derive(Clone, Debug)]
pub struct Ec2 {
    client: Client,
    calls: Calls,
}

/// A network interface (ENI).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInterface {
    pub id: String,
    pub source_dest_check: bool,
    /// The primary one first.
    pub addresses: Vec<PrivateAddress>,
}

/// A private address of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateAddress {
    pub private: Ipv4Addr,
    /// Of the Elastic IP that is associated with it.
    pub allocation: Option<String>,
}

/// A route table, with its routes of IPv4 that somebody made; those that a VPN gateway propagates are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    pub id: String,
    pub vpc: String,
    pub routes: Vec<Route>,
}

/// A route of a route table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: Ipv4Net,
    /// The id of what it leads to (`eni-`, `nat-`, `igw-`, ...), or `local`.
    pub target: String,
    /// Otherwise it is a black hole: its target is not there, or does not run.
    pub active: bool,
}

/// Which route tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tables {
    /// These, in any VPC.
    Ids(Vec<String>),
    /// Those of this VPC that have all of the tags.
    Tagged { vpc: String, tags: BTreeMap<String, String> },
}

/// An Elastic IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElasticIp {
    pub allocation: String,
    pub public: Ipv4Addr,
    pub association: Option<Association>,
}

/// What an Elastic IP is associated with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    pub id: String,
    pub eni: Option<String>,
    pub private: Option<Ipv4Addr>,
}

impl ElasticIp {
    /// Whether it is associated with this network interface.
    #[must_use]
    pub fn is_on(&self, eni: &str) -> bool {
        self.association.as_ref().is_some_and(|association| association.eni.as_deref() == Some(eni))
    }

    /// The private address that it is associated with.
    #[must_use]
    pub fn private(&self) -> Option<Ipv4Addr> {
        self.association.as_ref().and_then(|association| association.private)
    }
}

impl Ec2 {
    /// With the credentials, region and endpoint of `config`; a call may take `within`, and is made once. Makes no
    /// request yet.
    #[must_use]
    pub fn new(config: &SdkConfig, calls: Calls, within: Duration) -> Self {
        Self { client: Client::new(&once(config, within)), calls }
    }

    /// How its calls have gone so far.
    #[must_use]
    pub const fn calls(&self) -> &Calls {
        &self.calls
    }

    /// The interfaces of these ids.
    ///
    /// # Errors
    /// See [`Failure`]; one that does not exist is refused.
    pub async fn network_interfaces(&self, ids: &[String]) -> Result<Vec<NetworkInterface>, Failure> {
        const ACTION: &str = "ec2:DescribeNetworkInterfaces";
        let request = self.client.describe_network_interfaces().set_network_interface_ids(Some(ids.to_vec()));
        let answer = self.calls.make(ACTION, request.send()).await?;
        let interfaces = bounded(ACTION, answer.network_interfaces(), ids.len())?;
        interfaces.iter().map(|given| interface(given).ok_or_else(|| malformed(ACTION))).collect()
    }

    /// Those of the route tables that there are, page by page.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn route_tables(&self, which: &Tables) -> Result<Vec<RouteTable>, Failure> {
        const ACTION: &str = "ec2:DescribeRouteTables";
        let filters: Vec<Filter> = match which {
            Tables::Ids(ids) => vec![filter("route-table-id", ids.clone())],
            Tables::Tagged { vpc, tags } => std::iter::once(filter("vpc-id", vec![vpc.clone()]))
                .chain(tags.iter().map(|(key, value)| filter(&format!("tag:{key}"), vec![literal(value)])))
                .collect(),
        };
        let mut tables = Vec::new();
        let mut next = None;
        for _ in 0..MAX_PAGES {
            let request = self.client.describe_route_tables().set_filters(Some(filters.clone()));
            let request = request.max_results(PAGE).set_next_token(next);
            let answer = self.calls.make(ACTION, request.send()).await?;
            for given in bounded(ACTION, answer.route_tables(), MAX_ITEMS)? {
                tables.push(route_table(given).ok_or_else(|| malformed(ACTION))?);
            }
            next = answer.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(tables);
            }
        }
        Err(Failure::Unavailable { action: ACTION, reason: format!("more than {MAX_PAGES} pages") })
    }

    /// Those of the Elastic IPs with these allocation ids that there are.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn elastic_ips(&self, allocations: &[String]) -> Result<Vec<ElasticIp>, Failure> {
        const ACTION: &str = "ec2:DescribeAddresses";
        let filter = filter("allocation-id", allocations.to_vec());
        let answer = self.calls.make(ACTION, self.client.describe_addresses().filters(filter).send()).await?;
        let addresses = bounded(ACTION, answer.addresses(), allocations.len())?;
        addresses.iter().map(|given| elastic_ip(given).ok_or_else(|| malformed(ACTION))).collect()
    }

    /// Switches the source/destination check off.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn switch_check_off(&self, eni: &str) -> Result<(), Failure> {
        let off = AttributeBooleanValue::builder().value(false).build();
        let request = self.client.modify_network_interface_attribute().network_interface_id(eni);
        let request = request.source_dest_check(off).send();
        self.calls.make("ec2:ModifyNetworkInterfaceAttribute", request).await?;
        Ok(())
    }

    /// Makes a route to a network interface (`eni-`) or a NAT gateway (`nat-`) where there is none to this destination.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn create_route(&self, table: &str, destination: Ipv4Net, target: &str) -> Result<(), Failure> {
        let (eni, nat) = by_kind(target);
        let request = self.client.create_route().route_table_id(table);
        let request = request.set_network_interface_id(eni).set_nat_gateway_id(nat);
        let request = request.destination_cidr_block(destination.to_string());
        self.calls.make("ec2:CreateRoute", request.send()).await?;
        Ok(())
    }

    /// Has the route to this destination lead to a network interface (`eni-`) or a NAT gateway (`nat-`) from now on.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn replace_route(&self, table: &str, destination: Ipv4Net, target: &str) -> Result<(), Failure> {
        let (eni, nat) = by_kind(target);
        let request = self.client.replace_route().route_table_id(table);
        let request = request.set_network_interface_id(eni).set_nat_gateway_id(nat);
        let request = request.destination_cidr_block(destination.to_string());
        self.calls.make("ec2:ReplaceRoute", request.send()).await?;
        Ok(())
    }

    /// Has EC2 assign one more private address of the subnet, and gives it.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn assign_private_address(&self, eni: &str) -> Result<Ipv4Addr, Failure> {
        const ACTION: &str = "ec2:AssignPrivateIpAddresses";
        let request = self.client.assign_private_ip_addresses().network_interface_id(eni);
        let answer = self.calls.make(ACTION, request.secondary_private_ip_address_count(1).send()).await?;
        let assigned = answer.assigned_private_ip_addresses().first();
        assigned.and_then(|given| parsed(given.private_ip_address())).ok_or_else(|| malformed(ACTION))
    }

    /// Associates an Elastic IP that is free with a private address of a network interface, and gives the id of the
    /// association.
    ///
    /// # Errors
    /// See [`Failure`]; one that is in use elsewhere is refused.
    pub async fn associate_address(
        &self,
        allocation: &str,
        eni: &str,
        private: Ipv4Addr,
    ) -> Result<String, Failure> {
        const ACTION: &str = "ec2:AssociateAddress";
        let request = self.client.associate_address().allocation_id(allocation).network_interface_id(eni);
        let request = request.private_ip_address(private.to_string()).allow_reassociation(false);
        let answer = self.calls.make(ACTION, request.send()).await?;
        id(answer.association_id()).ok_or_else(|| malformed(ACTION))
    }

    /// Ends exactly this association of an Elastic IP.
    ///
    /// # Errors
    /// See [`Failure`]; one that is there no more is refused.
    pub async fn disassociate_address(&self, association: &str) -> Result<(), Failure> {
        let request = self.client.disassociate_address().association_id(association);
        self.calls.make("ec2:DisassociateAddress", request.send()).await?;
        Ok(())
    }
}

/// What a route is to lead to, as network interface or as NAT gateway.
fn by_kind(target: &str) -> (Option<String>, Option<String>) {
    let target = target.to_owned();
    if target.starts_with("nat-") { (None, Some(target)) } else { (Some(target), None) }
}

fn interface(given: &types::NetworkInterface) -> Option<NetworkInterface> {
    let mut addresses = given.private_ip_addresses().iter().collect::<Vec<_>>();
    addresses.sort_by_key(|address| !address.primary().unwrap_or_default());
    let address = |given: &&types::NetworkInterfacePrivateIpAddress| {
        let allocation = given.association().and_then(|association| association.allocation_id());
        Some(PrivateAddress {
            private: parsed(given.private_ip_address())?,
            allocation: allocation.filter(|id| !id.is_empty()).map(str::to_owned),
        })
    };
    Some(NetworkInterface {
        id: id(given.network_interface_id())?,
        source_dest_check: given.source_dest_check()?,
        addresses: addresses.iter().map(address).collect::<Option<_>>()?,
    })
}

fn route_table(given: &types::RouteTable) -> Option<RouteTable> {
    let of_ipv4 = given.routes().iter().filter(|route| {
        route.destination_cidr_block().is_some()
            && route.origin() != Some(&RouteOrigin::EnableVgwRoutePropagation)
    });
    let routes = of_ipv4.take(MAX_ITEMS).map(route).collect::<Option<_>>()?;
    Some(RouteTable { id: id(given.route_table_id())?, vpc: id(given.vpc_id())?, routes })
}

fn route(given: &types::Route) -> Option<Route> {
    // A route to an instance has its interface as well, and that is what packets reach.
    let target = given
        .network_interface_id()
        .or(given.nat_gateway_id())
        .or(given.gateway_id())
        .or(given.transit_gateway_id())
        .or(given.vpc_peering_connection_id())
        .or(given.instance_id())
        .or(given.carrier_gateway_id())
        .or(given.local_gateway_id())
        .or(given.core_network_arn())
        .or(given.odb_network_arn());
    Some(Route {
        destination: parsed::<Ipv4Net>(given.destination_cidr_block())?.trunc(),
        target: target.map_or_else(|| "unknown".to_owned(), |target| target.chars().take(MAX_ID).collect()),
        active: given.state() != Some(&RouteState::Blackhole),
    })
}

fn elastic_ip(given: &types::Address) -> Option<ElasticIp> {
    let association = match given.association_id() {
        None | Some("") => None,
        given_id => Some(Association {
            id: id(given_id)?,
            eni: id(given.network_interface_id()),
            private: parsed(given.private_ip_address()),
        }),
    };
    Some(ElasticIp { allocation: id(given.allocation_id())?, public: parsed(given.public_ip())?, association })
}

fn filter(name: &str, values: Vec<String>) -> Filter {
    Filter::builder().name(name).set_values(Some(values)).build()
}

/// A value that a filter takes as it is: `*` and `?` would stand for others.
fn literal(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for char in value.chars() {
        if matches!(char, '*' | '?' | '\\') {
            escaped.push('\\');
        }
        escaped.push(char);
    }
    escaped
}

fn id(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty() && text.len() <= MAX_ID && text.is_ascii()).map(str::to_owned)
}

fn parsed<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
    text?.parse().ok()
}

fn bounded<'a, T>(action: &'static str, items: &'a [T], most: usize) -> Result<&'a [T], Failure> {
    if items.len() <= most {
        return Ok(items);
    }
    let reason = format!("its answer has {} items, and at most {most} were asked for", items.len());
    Err(Failure::Unavailable { action, reason })
}

fn malformed(action: &'static str) -> Failure {
    Failure::Unavailable { action, reason: "its answer cannot be understood".to_owned() }
}

/// The tables of a VPC are 200 unless AWS allows more.
const MAX_PAGES: usize = 10;
const PAGE: i32 = 100;
/// More than a page has tables, or a table routes.
const MAX_ITEMS: usize = 1000;
/// The longest id is an ARN of a core network.
const MAX_ID: usize = 128;
