//! EC2 as a stub: network interfaces, route tables and Elastic IPs of a small VPC, which behave as its documentation
//! says, with faults at will.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::http::{Answer, Request};

pub const ENI: &str = "eni-0123456789abcdef0";
pub const OTHER_ENI: &str = "eni-0fedcba9876543210";
pub const VPC: &str = "vpc-0a1b2c3d4e5f60718";
pub const OTHER_VPC: &str = "vpc-0fedcba9876543210";
pub const TABLE: &str = "rtb-0123456789abcdef0";
pub const OTHER_TABLE: &str = "rtb-0fedcba9876543210";
pub const ALLOCATION: &str = "eipalloc-0123456789abcdef0";
pub const OTHER_ALLOCATION: &str = "eipalloc-0fedcba9876543210";

/// What there is, to be looked at and changed while the stub answers.
#[derive(Debug)]
pub struct Ec2 {
    pub world: World,
    pub fault: Fault,
    /// How late what was written shows.
    pub lag: Duration,
    /// The action of every request, in their order.
    pub calls: Vec<String>,
    /// The access keys that requests were signed with, each once.
    pub keys: Vec<String>,
    /// What there was from each moment on.
    history: VecDeque<(Instant, World)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct World {
    pub interfaces: BTreeMap<String, Interface>,
    pub tables: BTreeMap<String, Table>,
    /// By allocation id.
    pub elastic_ips: BTreeMap<String, ElasticIp>,
    /// Running ones: primary private address, and the only tag.
    pub instances: Vec<(Ipv4Addr, (String, String))>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    pub check: bool,
    /// The primary one first.
    pub addresses: Vec<Ipv4Addr>,
    /// How many addresses its instance's type allows.
    pub room: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub vpc: String,
    pub tags: BTreeMap<String, String>,
    /// Destination, target, and whether it is active.
    pub routes: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ElasticIp {
    pub public: Ipv4Addr,
    pub used: Option<(String, Ipv4Addr)>,
    /// How often it has been associated; its association is named so.
    pub associations: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Of the actions whose name begins so.
    Closed(&'static str),
    Silence(&'static str),
    Rubbish(&'static str),
    /// Well-formed, and without what was asked for.
    Empty(&'static str),
    /// Action, status and code.
    Error(&'static str, u16, &'static str),
}

/// Every action.
pub const ALL: &str = "";
/// What the reconciler writes by.
pub const WRITES: [&str; 5] = [
    "ModifyNetworkInterfaceAttribute",
    "CreateRoute",
    "ReplaceRoute",
    "AssignPrivateIpAddresses",
    "AssociateAddress",
];

impl Ec2 {
    /// Two interfaces with their checks on, three tables with nothing but what every table has, one of them in another
    /// VPC, and two free Elastic IPs.
    pub fn new() -> Self {
        let interface = |host| Interface { check: true, addresses: vec![[10, 0, 0, host].into()], room: 50 };
        let interfaces = [(ENI.to_owned(), interface(10)), (OTHER_ENI.to_owned(), interface(20))];
        let table = |vpc: &str| Table {
            vpc: vpc.to_owned(),
            tags: BTreeMap::new(),
            routes: vec![("10.0.0.0/16".to_owned(), "local".to_owned(), true)],
        };
        let tables = [
            (TABLE.to_owned(), table(VPC)),
            (OTHER_TABLE.to_owned(), table(VPC)),
            ("rtb-00000000".to_owned(), table(OTHER_VPC)),
        ];
        let free = |host| ElasticIp { public: [203, 0, 113, host].into(), used: None, associations: 0 };
        let elastic_ips = [(ALLOCATION.to_owned(), free(7)), (OTHER_ALLOCATION.to_owned(), free(8))];
        Self {
            world: World {
                interfaces: interfaces.into(),
                tables: tables.into(),
                elastic_ips: elastic_ips.into(),
                instances: Vec::new(),
            },
            fault: Fault::None,
            lag: Duration::ZERO,
            calls: Vec::new(),
            keys: Vec::new(),
            history: VecDeque::new(),
        }
    }

    pub fn with(fault: Fault) -> Self {
        Self { fault, ..Self::new() }
    }

    pub fn check(&mut self, eni: &str) -> &mut bool {
        &mut self.world.interfaces.get_mut(eni).unwrap().check
    }

    /// Where the route of a table leads to, if it is active.
    pub fn route(&self, table: &str, destination: &str) -> Option<&str> {
        let routes = &self.world.tables[table].routes;
        let route = routes.iter().find(|(known, _, active)| known == destination && *active);
        route.map(|(_, target, _)| target.as_str())
    }

    /// Puts a route in the place of whatever there is.
    pub fn set_route(&mut self, table: &str, destination: &str, target: &str, active: bool) {
        let routes = &mut self.world.tables.get_mut(table).unwrap().routes;
        routes.retain(|(known, ..)| known != destination);
        routes.push((destination.to_owned(), target.to_owned(), active));
    }

    pub fn used(&self, allocation: &str) -> Option<(&str, Ipv4Addr)> {
        self.world.elastic_ips[allocation].used.as_ref().map(|(eni, private)| (eni.as_str(), *private))
    }

    pub fn made(&self, action: &str) -> usize {
        self.calls.iter().filter(|made| *made == action).count()
    }

    pub fn reads(&self) -> usize {
        self.calls.iter().filter(|made| made.starts_with("Describe")).count()
    }

    pub fn writes(&self) -> usize {
        self.calls.len() - self.reads()
    }

    pub fn answer(&mut self, request: &Request) -> Answer {
        let (action, form) = match self.admit(request) {
            Ok(admitted) => admitted,
            Err(answer) => return answer,
        };
        let before = self.world.clone();
        let now = Instant::now();
        if self.history.is_empty() || !action.starts_with("Describe") {
            self.history.push_back((now, before));
        }
        let answer = self.carry_out(&action, &form, now);
        match answer {
            Ok(content) => xml(&action, &content),
            Err(code) => error(400, code, "The request is refused."),
        }
    }

    /// Takes note of a request, and fails it if there is to be a fault; else its action and fields.
    pub fn admit(&mut self, request: &Request) -> Result<(String, Form), Answer> {
        let signature = request.header("authorization").unwrap();
        assert!(signature.contains("/eu-west-1/ec2/"));
        let key = signature.split_once("Credential=").unwrap().1.split('/').next().unwrap().to_owned();
        if !self.keys.contains(&key) {
            self.keys.push(key);
        }
        let form = Form::parse(&request.body);
        let action = form.get("Action").to_owned();
        self.calls.push(action.clone());
        let is_hit = |prefix: &str| action.starts_with(prefix);
        match self.fault {
            Fault::Closed(prefix) if is_hit(prefix) => Err(Answer::Closed),
            Fault::Silence(prefix) if is_hit(prefix) => Err(Answer::Silence),
            Fault::Rubbish(prefix) if is_hit(prefix) => Err(Answer::Http(200, "", "<html>out of order".into())),
            Fault::Empty(prefix) if is_hit(prefix) => Err(xml(&action, "")),
            Fault::Error(prefix, status, code) if is_hit(prefix) => {
                Err(error(status, code, "Encoded authorization failure message: x7Yz"))
            }
            _ => Ok((action, form)),
        }
    }

    fn carry_out(&mut self, action: &str, form: &Form, now: Instant) -> Result<String, &'static str> {
        let shown = self.shown(now);
        match action {
            "DescribeNetworkInterfaces" => describe_interfaces(&shown, form),
            "DescribeRouteTables" => Ok(describe_tables(&shown, form)),
            "DescribeAddresses" => Ok(describe_addresses(&shown, form)),
            "DescribeInstances" => Ok(describe_instances(&shown, form)),
            "ModifyNetworkInterfaceAttribute" => {
                assert_eq!(form.get("SourceDestCheck.Value"), "false");
                self.interface(form)?.check = false;
                Ok("<return>true</return>".to_owned())
            }
            "CreateRoute" | "ReplaceRoute" => {
                let target = match form.find("NatGatewayId") {
                    Some(nat) => nat.to_owned(),
                    None => {
                        self.interface(form)?;
                        form.get("NetworkInterfaceId").to_owned()
                    }
                };
                let table = self.world.tables.get_mut(form.get("RouteTableId"));
                let table = table.ok_or("InvalidRouteTableID.NotFound")?;
                let destination = form.get("DestinationCidrBlock");
                let found = table.routes.iter().position(|(known, ..)| known == destination);
                match (action, found) {
                    ("CreateRoute", Some(_)) => return Err("RouteAlreadyExists"),
                    ("ReplaceRoute", None) => return Err("InvalidRoute.NotFound"),
                    (_, Some(index)) => {
                        table.routes.remove(index);
                    }
                    (_, None) => {}
                }
                table.routes.push((destination.to_owned(), target, true));
                Ok("<return>true</return>".to_owned())
            }
            "AssignPrivateIpAddresses" => {
                assert_eq!(form.get("SecondaryPrivateIpAddressCount"), "1");
                let all: Vec<Ipv4Addr> =
                    self.world.interfaces.values().flat_map(|known| known.addresses.clone()).collect();
                let next = (30..=99).map(|host| Ipv4Addr::from([10, 0, 0, host])).find(|ip| !all.contains(ip));
                let next = next.unwrap();
                let interface = self.interface(form)?;
                if interface.addresses.len() == interface.room {
                    return Err("PrivateIpAddressLimitExceeded");
                }
                interface.addresses.push(next);
                Ok(format!(
                    "<networkInterfaceId>{ENI}</networkInterfaceId><assignedPrivateIpAddressesSet><item>\
                     <privateIpAddress>{next}</privateIpAddress></item></assignedPrivateIpAddressesSet>"
                ))
            }
            "AssociateAddress" => {
                assert_eq!(form.get("AllowReassociation"), "false", "nobody's may be taken");
                let private: Ipv4Addr = form.get("PrivateIpAddress").parse().unwrap();
                if !self.interface(form)?.addresses.contains(&private) {
                    return Err("InvalidParameterValue");
                }
                let place = (form.get("NetworkInterfaceId").to_owned(), private);
                let allocation = form.get("AllocationId");
                let taken = |(id, known): (&String, &ElasticIp)| {
                    id != allocation && known.used.as_ref() == Some(&place)
                };
                assert!(!self.world.elastic_ips.iter().any(taken), "EC2 would take that one away");
                let address = self.world.elastic_ips.get_mut(allocation);
                let address = address.ok_or("InvalidAllocationID.NotFound")?;
                if address.used.as_ref().is_some_and(|used| *used != place) {
                    return Err("Resource.AlreadyAssociated");
                }
                if address.used.is_none() {
                    address.associations += 1;
                }
                address.used = Some(place);
                let association = address.association();
                Ok(format!("<return>true</return><associationId>{association}</associationId>"))
            }
            "DisassociateAddress" => {
                let association = form.get("AssociationId");
                let mut addresses = self.world.elastic_ips.values_mut();
                let found = addresses.find(|known| known.used.is_some() && known.association() == association);
                found.ok_or("InvalidAssociationID.NotFound")?.used = None;
                Ok("<return>true</return>".to_owned())
            }
            other => panic!("unexpected action {other}"),
        }
    }

    fn interface(&mut self, form: &Form) -> Result<&mut Interface, &'static str> {
        let eni = form.get("NetworkInterfaceId");
        self.world.interfaces.get_mut(eni).ok_or("InvalidNetworkInterfaceID.NotFound")
    }

    /// What there was `lag` ago; what tests change shows at once.
    fn shown(&mut self, now: Instant) -> World {
        if self.lag.is_zero() {
            return self.world.clone();
        }
        // A state in the history was there until the write that put it there.
        while self.history.front().is_some_and(|(until, _)| *until + self.lag < now) {
            self.history.pop_front();
        }
        self.history.front().map_or_else(|| self.world.clone(), |(_, world)| world.clone())
    }
}

impl ElasticIp {
    /// Of the association that it has, or had last.
    fn association(&self) -> String {
        format!("eipassoc-{:02x}{:08x}", self.public.octets()[3], self.associations)
    }
}

fn describe_interfaces(world: &World, form: &Form) -> Result<String, &'static str> {
    let mut items = String::new();
    for eni in form.list("NetworkInterfaceId") {
        let interface = world.interfaces.get(eni).ok_or("InvalidNetworkInterfaceID.NotFound")?;
        let mut addresses = String::new();
        // Not in their order, which is not promised.
        for (index, private) in interface.addresses.iter().enumerate().rev() {
            let used = |(_, known): &(&String, &ElasticIp)| {
                known.used.as_ref().is_some_and(|(of, at)| of == eni && at == private)
            };
            let association = world.elastic_ips.iter().find(used).map_or_else(String::new, |(id, known)| {
                let public = known.public;
                format!(
                    "<association><publicIp>{public}</publicIp><allocationId>{id}</allocationId></association>"
                )
            });
            let primary = index == 0;
            write!(
                addresses,
                "<item><privateIpAddress>{private}</privateIpAddress><primary>{primary}</primary>\
                 {association}</item>"
            )
            .unwrap();
        }
        let check = interface.check;
        write!(
            items,
            "<item><networkInterfaceId>{eni}</networkInterfaceId><vpcId>{VPC}</vpcId>\
             <sourceDestCheck>{check}</sourceDestCheck>\
             <privateIpAddressesSet>{addresses}</privateIpAddressesSet></item>"
        )
        .unwrap();
    }
    Ok(format!("<networkInterfaceSet>{items}</networkInterfaceSet>"))
}

/// Two a page.
fn describe_tables(world: &World, form: &Form) -> String {
    let filters = form.filters();
    let matching = world.tables.iter().filter(|(id, table)| {
        filters.iter().all(|(name, values)| match name.as_str() {
            "route-table-id" => values.contains(id),
            "vpc-id" => values.contains(&table.vpc),
            tag => {
                let value = table.tags.get(tag.strip_prefix("tag:").unwrap());
                value.is_some_and(|value| values.contains(value))
            }
        })
    });
    let start: usize = form.find("NextToken").map_or(0, |token| token.parse().unwrap());
    let mut page = matching.skip(start).peekable();
    let mut items = String::new();
    for (id, table) in page.by_ref().take(2) {
        let mut routes = String::new();
        for (destination, target, active) in &table.routes {
            let kind = match target.split_once('-').map(|(kind, _)| kind) {
                Some("eni") => "networkInterfaceId",
                Some("nat") => "natGatewayId",
                Some("tgw") => "transitGatewayId",
                _ => "gatewayId",
            };
            let state = if *active { "active" } else { "blackhole" };
            write!(
                routes,
                "<item><destinationCidrBlock>{destination}</destinationCidrBlock><{kind}>{target}</{kind}>\
                 <state>{state}</state><origin>CreateRoute</origin></item>"
            )
            .unwrap();
        }
        routes += "<item><destinationIpv6CidrBlock>::/0</destinationIpv6CidrBlock><gatewayId>igw-0</gatewayId>\
                   <state>active</state></item>";
        let vpc = &table.vpc;
        write!(
            items,
            "<item><routeTableId>{id}</routeTableId><vpcId>{vpc}</vpcId><routeSet>{routes}</routeSet></item>"
        )
        .unwrap();
    }
    let more = page.peek().map(|_| format!("<nextToken>{}</nextToken>", start + 2));
    format!("<routeTableSet>{items}</routeTableSet>{}", more.unwrap_or_default())
}

fn describe_addresses(world: &World, form: &Form) -> String {
    let mut items = String::new();
    for (name, values) in form.filters() {
        assert_eq!(name, "allocation-id");
        for (id, address) in world.elastic_ips.iter().filter(|(id, _)| values.contains(id)) {
            let public = address.public;
            let association = address.used.as_ref().map_or_else(String::new, |(eni, private)| {
                let id = address.association();
                format!(
                    "<associationId>{id}</associationId><networkInterfaceId>{eni}</networkInterfaceId>\
                     <privateIpAddress>{private}</privateIpAddress>"
                )
            });
            write!(
                items,
                "<item><publicIp>{public}</publicIp><allocationId>{id}</allocationId>\
                 <domain>vpc</domain>{association}</item>"
            )
            .unwrap();
        }
    }
    format!("<addressesSet>{items}</addressesSet>")
}

fn describe_instances(world: &World, form: &Form) -> String {
    let filters = form.filters();
    let passes = |(name, values): &(String, Vec<String>), tag: &(String, String)| match name.as_str() {
        "vpc-id" => values.iter().any(|value| value == VPC),
        "instance-state-name" => values.iter().any(|value| value == "running"),
        key => key.strip_prefix("tag:") == Some(&tag.0) && values.contains(&tag.1),
    };
    let mut items = String::new();
    for (address, tag) in &world.instances {
        if filters.iter().all(|filter| passes(filter, tag)) {
            write!(
                items,
                "<item><reservationId>r-1</reservationId><instancesSet><item><instanceId>i-1</instanceId>\
                 <privateIpAddress>{address}</privateIpAddress><vpcId>{VPC}</vpcId></item></instancesSet></item>"
            )
            .unwrap();
        }
    }
    format!("<reservationSet>{items}</reservationSet>")
}

/// The fields of an EC2 query.
pub struct Form(BTreeMap<String, String>);

impl Form {
    fn parse(body: &str) -> Self {
        let fields = body.split('&').filter_map(|field| field.split_once('='));
        Self(fields.map(|(name, value)| (decoded(name), decoded(value))).collect())
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn get(&self, name: &str) -> &str {
        self.find(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.0))
    }

    /// `Name.1`, `Name.2`, ...
    fn list(&self, name: &str) -> Vec<&str> {
        (1..).map_while(|number| self.find(&format!("{name}.{number}"))).collect()
    }

    fn filters(&self) -> Vec<(String, Vec<String>)> {
        let filter = |number| {
            let name = self.find(&format!("Filter.{number}.Name"))?.to_owned();
            let values = self.list(&format!("Filter.{number}.Value"));
            Some((name, values.into_iter().map(str::to_owned).collect()))
        };
        (1..).map_while(filter).collect()
    }
}

fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

fn xml(action: &str, content: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>{content}</{action}Response>"
    );
    Answer::Http(200, "content-type: text/xml\r\n", body)
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code>\
         <Message>{message}</Message></Error></Errors><RequestID>ea966190</RequestID></Response>"
    );
    Answer::Http(status, "content-type: text/xml\r\n", body)
}
