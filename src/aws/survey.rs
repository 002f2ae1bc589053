//! What `egret doctor` asks EC2, and Auto Scaling: how the VPC around our network interfaces is set up, and which calls are allowed.
//!
//! Changes nothing: what would write is only tried with `DryRun`, which EC2 answers with `DryRunOperation` where the
//! call is allowed (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/CommonParameters.html>). Answers are
//! parsed once; one that lacks what is asked for is a failure. IPv6 is left out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::ProvideCredentials;
use aws_sdk_ec2::types::{self, AttributeBooleanValue, Filter, RouteState};
use ipnet::Ipv4Net;

use super::call::{Calls, Failure, once};

/// A client of EC2 that only looks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Survey {
    client: Client,
    scaling: aws_sdk_autoscaling::Client,
    calls: Calls,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eni {
    pub id: String,
    pub subnet: String,
    pub source_dest_check: bool,
    /// The ids of its security groups.
    pub groups: Vec<String>,
    /// The primary one first.
    pub addresses: Vec<EniAddress>,
}

/// A private address of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniAddress {
    pub private: Ipv4Addr,
    pub public: Option<Ipv4Addr>,
    /// Of the Elastic IP; unset if the public address is one that EC2 lends until the instance stops.
    pub allocation: Option<String>,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub id: String,
    pub cidr: Ipv4Net,
}

/// A route table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub id: String,
    /// It holds for the subnets that no table names.
    pub is_main: bool,
    pub subnets: Vec<String>,
    pub tags: BTreeMap<String, String>,
    pub routes: Vec<Way>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub destination: Ipv4Net,
    /// The id of what it leads to, or `local`.
    pub target: String,
    /// Otherwise it is a black hole.
    pub active: bool,
}

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub id: String,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
}

/// What a rule of a security group lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All protocols and ports, not just some.
    pub everything: bool,
    pub prefixes: Vec<Ipv4Net>,
    /// It also names other groups or prefix lists, which are not looked into.
    pub has_references: bool,
}

/// An Elastic IP, and the id of the association that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Associated {
    pub allocation: String,
    pub association: String,
}

/// What Egret calls and nobody can try: these have no `DryRun`.
pub const WITHOUT_DRY_RUN: [&str; 2] = ["ec2:AssignPrivateIpAddresses", "autoscaling:CompleteLifecycleAction"];

/// A call that is tried without being made, or made because it only looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
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
    },
    AssociateAddress {
        allocation: String,
        eni: String,
    },
    DisassociateAddress(Associated),
    DescribeAddresses,
    /// Of this instance.
    DescribeAutoScalingInstances {
        instance: String,
    },
    DescribeInstances,
}

impl Attempt {
    /// The action, as in an IAM policy.
    #[must_use]
    pub const fn action(&self) -> &'static str {
        match self {
            Self::SwitchCheckOff { .. } => "ec2:ModifyNetworkInterfaceAttribute",
            Self::CreateRoute { .. } => "ec2:CreateRoute",
            Self::ReplaceRoute { .. } => "ec2:ReplaceRoute",
            Self::AssociateAddress { .. } => "ec2:AssociateAddress",
            Self::DisassociateAddress(_) => "ec2:DisassociateAddress",
            Self::DescribeAutoScalingInstances { .. } => "autoscaling:DescribeAutoScalingInstances",
            Self::DescribeAddresses => "ec2:DescribeAddresses",
            Self::DescribeInstances => "ec2:DescribeInstances",
        }
    }

    /// The id of what it would change, or whose change a policy may allow.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        match self {
            Self::SwitchCheckOff { eni } => Some(eni),
            Self::CreateRoute { table, .. } | Self::ReplaceRoute { table, .. } => Some(table),
            Self::AssociateAddress { allocation, .. }
            | Self::DisassociateAddress(Associated { allocation, .. }) => Some(allocation),
            Self::DescribeAddresses | Self::DescribeInstances | Self::DescribeAutoScalingInstances { .. } => {
                None
            }
        }
    }
}

impl Survey {
    /// With the credentials, region and endpoint of `config`; a call may take `within`. Makes no request yet.
    #[must_use]
    pub fn new(config: &SdkConfig, within: Duration) -> Self {
        let config = once(config, within);
        let scaling = aws_sdk_autoscaling::Client::new(&config);
        Self { client: Client::new(&config), scaling, calls: Calls::default() }
    }

    /// The network interfaces with these ids.
    ///
    /// # Errors
    /// See [`Failure`]; one that does not exist is refused.
    pub async fn enis(&self, ids: &[String]) -> Result<Vec<Eni>, Failure> {
        const ACTION: &str = "ec2:DescribeNetworkInterfaces";
        let request = self.client.describe_network_interfaces().set_network_interface_ids(Some(ids.to_vec()));
        let answer = self.calls.make(ACTION, request.send()).await?;
        understood(ACTION, answer.network_interfaces(), eni)
    }

    /// The subnets of a VPC.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn subnets(&self, vpc: &str) -> Result<Vec<Subnet>, Failure> {
        const ACTION: &str = "ec2:DescribeSubnets";
        let (mut subnets, mut next) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let request = self.client.describe_subnets().filters(of_vpc(vpc)).set_next_token(next);
            let answer = self.calls.make(ACTION, request.send()).await?;
            subnets.extend(understood(ACTION, answer.subnets(), |given| {
                Some(Subnet { id: text(given.subnet_id())?, cidr: parsed(given.cidr_block())? })
            })?);
            next = further(answer.next_token());
            if next.is_none() {
                return Ok(subnets);
            }
        }
        Err(too_long(ACTION))
    }

    /// The route tables of a VPC.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn tables(&self, vpc: &str) -> Result<Vec<Table>, Failure> {
        const ACTION: &str = "ec2:DescribeRouteTables";
        let (mut tables, mut next) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let request = self.client.describe_route_tables().filters(of_vpc(vpc)).set_next_token(next);
            let answer = self.calls.make(ACTION, request.send()).await?;
            tables.extend(understood(ACTION, answer.route_tables(), table)?);
            next = further(answer.next_token());
            if next.is_none() {
                return Ok(tables);
            }
        }
        Err(too_long(ACTION))
    }

    /// The security groups with these ids.
    ///
    /// # Errors
    /// See [`Failure`]; one that does not exist is refused.
    pub async fn groups(&self, ids: &[String]) -> Result<Vec<Group>, Failure> {
        const ACTION: &str = "ec2:DescribeSecurityGroups";
        // Without ids EC2 would give all there are.
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let request = self.client.describe_security_groups().set_group_ids(Some(ids.to_vec()));
        let answer = self.calls.make(ACTION, request.send()).await?;
        understood(ACTION, answer.security_groups(), |given| {
            let rules = |given: &[types::IpPermission]| given.iter().map(rule).collect::<Option<_>>();
            let (ingress, egress) = (given.ip_permissions(), given.ip_permissions_egress());
            Some(Group { id: text(given.group_id())?, ingress: rules(ingress)?, egress: rules(egress)? })
        })
    }

    /// Those of the Elastic IPs with these allocation ids that are associated.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn associated(&self, allocations: &[String]) -> Result<Vec<Associated>, Failure> {
        // Without ids EC2 would give all there are.
        if allocations.is_empty() {
            return Ok(Vec::new());
        }
        let filter = Filter::builder().name("allocation-id").set_values(Some(allocations.to_vec())).build();
        let request = self.client.describe_addresses().filters(filter);
        let answer = self.calls.make("ec2:DescribeAddresses", request.send()).await?;
        let associated = answer.addresses().iter().take(MAX_ITEMS).filter_map(|given| {
            let (allocation, association) = (text(given.allocation_id())?, text(given.association_id())?);
            Some(Associated { allocation, association })
        });
        Ok(associated.collect())
    }

    /// Finds out whether a call would be allowed.
    ///
    /// # Errors
    /// [`Failure::Unauthorized`] if not; any other if it cannot be told.
    pub async fn attempt(&self, attempt: &Attempt) -> Result<(), Failure> {
        let (action, client) = (attempt.action(), &self.client);
        let answer = match attempt {
            Attempt::SwitchCheckOff { eni } => {
                let off = AttributeBooleanValue::builder().value(false).build();
                let request = client.modify_network_interface_attribute().network_interface_id(eni);
                let request = request.source_dest_check(off).dry_run(true);
                self.calls.make(action, request.send()).await.map(drop)
            }
            Attempt::CreateRoute { table, destination, eni } => {
                let request = client.create_route().route_table_id(table).network_interface_id(eni);
                let request = request.destination_cidr_block(destination.to_string()).dry_run(true);
                self.calls.make(action, request.send()).await.map(drop)
            }
            Attempt::ReplaceRoute { table, destination, eni } => {
                let request = client.replace_route().route_table_id(table).network_interface_id(eni);
                let request = request.destination_cidr_block(destination.to_string()).dry_run(true);
                self.calls.make(action, request.send()).await.map(drop)
            }
            Attempt::AssociateAddress { allocation, eni } => {
                let request = client.associate_address().allocation_id(allocation).network_interface_id(eni);
                let request = request.allow_reassociation(false).dry_run(true);
                self.calls.make(action, request.send()).await.map(drop)
            }
            Attempt::DisassociateAddress(Associated { association, .. }) => {
                let request = client.disassociate_address().association_id(association).dry_run(true);
                self.calls.make(action, request.send()).await.map(drop)
            }
            Attempt::DescribeAutoScalingInstances { instance } => {
                let request = self.scaling.describe_auto_scaling_instances().instance_ids(instance);
                self.calls.make(action, request.send()).await.map(drop)
            }
            Attempt::DescribeAddresses => {
                let request = client.describe_addresses().dry_run(true);
                self.calls.make(action, request.send()).await.map(drop)
            }
            Attempt::DescribeInstances => {
                let request = client.describe_instances().dry_run(true);
                self.calls.make(action, request.send()).await.map(drop)
            }
        };
        match answer {
            Err(failure) if failure.code() == Some("DryRunOperation") => Ok(()),
            answer => answer,
        }
    }
}

/// Whether there are credentials for calls: of the environment, a profile or the instance's role.
///
/// # Errors
/// Why there are none, in words; never what they are.
pub async fn credentials(config: &SdkConfig, within: Duration) -> Result<(), String> {
    let provider = config.credentials_provider().ok_or("there is nobody to ask for credentials")?;
    match tokio::time::timeout(within, provider.provide_credentials()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no credentials within {within:?}")),
    }
}

fn eni(given: &types::NetworkInterface) -> Option<Eni> {
    let mut addresses: Vec<_> = given.private_ip_addresses().iter().collect();
    addresses.sort_by_key(|address| !address.primary().unwrap_or_default());
    let address = |given: &&types::NetworkInterfacePrivateIpAddress| {
        let association = given.association();
        Some(EniAddress {
            private: parsed(given.private_ip_address())?,
            public: association.and_then(|association| parsed(association.public_ip())),
            allocation: association.and_then(|association| text(association.allocation_id())),
        })
    };
    Some(Eni {
        id: text(given.network_interface_id())?,
        subnet: text(given.subnet_id())?,
        source_dest_check: given.source_dest_check()?,
        groups: given.groups().iter().filter_map(|group| text(group.group_id())).collect(),
        addresses: addresses.iter().map(address).collect::<Option<_>>()?,
    })
}

fn table(given: &types::RouteTable) -> Option<Table> {
    let associations = given.associations();
    let tags = given.tags().iter().filter_map(|tag| Some((text(tag.key())?, tag.value()?.to_owned())));
    let routes = given.routes().iter().filter(|route| route.destination_cidr_block().is_some());
    Some(Table {
        id: text(given.route_table_id())?,
        is_main: associations.iter().any(|association| association.main().unwrap_or_default()),
        subnets: associations.iter().filter_map(|association| text(association.subnet_id())).collect(),
        tags: tags.collect(),
        routes: routes.map(way).collect::<Option<_>>()?,
    })
}

fn way(given: &types::Route) -> Option<Way> {
    // A route to an instance has its interface as well, and that is what packets reach.
    let targets = [
        given.network_interface_id(),
        given.nat_gateway_id(),
        given.gateway_id(),
        given.transit_gateway_id(),
        given.vpc_peering_connection_id(),
        given.instance_id(),
        given.carrier_gateway_id(),
        given.local_gateway_id(),
        given.core_network_arn(),
    ];
    Some(Way {
        destination: parsed::<Ipv4Net>(given.destination_cidr_block())?.trunc(),
        target: targets.into_iter().find_map(text).unwrap_or_else(|| "something unknown".to_owned()),
        active: given.state() != Some(&RouteState::Blackhole),
    })
}

fn rule(given: &types::IpPermission) -> Option<Rule> {
    let prefixes = given.ip_ranges().iter().map(|range| parsed(range.cidr_ip()));
    Some(Rule {
        everything: given.ip_protocol()? == "-1",
        prefixes: prefixes.collect::<Option<_>>()?,
        has_references: !given.user_id_group_pairs().is_empty() || !given.prefix_list_ids().is_empty(),
    })
}

fn of_vpc(vpc: &str) -> Filter {
    Filter::builder().name("vpc-id").values(vpc).build()
}

fn understood<T, U>(
    action: &'static str,
    items: &[T],
    understand: impl Fn(&T) -> Option<U>,
) -> Result<Vec<U>, Failure> {
    let malformed = || Failure::Unavailable { action, reason: "its answer cannot be understood".to_owned() };
    items.iter().take(MAX_ITEMS).map(|item| understand(item).ok_or_else(malformed)).collect()
}

fn further(token: Option<&str>) -> Option<String> {
    token.filter(|token| !token.is_empty()).map(str::to_owned)
}

fn too_long(action: &'static str) -> Failure {
    Failure::Unavailable { action, reason: format!("its answer has more than {MAX_PAGES} pages") }
}

fn text(given: Option<&str>) -> Option<String> {
    given.filter(|text| !text.is_empty() && text.len() <= MAX_TEXT).map(str::to_owned)
}

fn parsed<T: std::str::FromStr>(given: Option<&str>) -> Option<T> {
    given?.parse().ok()
}

/// A VPC has 200 subnets and as many tables, unless AWS allows more.
const MAX_PAGES: usize = 10;
const MAX_ITEMS: usize = 1000;
/// The longest id is an ARN, the longest key of a tag has 128 characters.
const MAX_TEXT: usize = 512;
