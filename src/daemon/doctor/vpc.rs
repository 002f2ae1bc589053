//! What the route tables and security groups of a VPC mean for a gateway in it. Asks nobody.

use ipnet::Ipv4Net;

use super::{Finding, Remedy, Severity};
use crate::aws::survey::{Eni, Group, Rule, Subnet, Table, Way};

/// The VPC of our interfaces.
#[derive(Clone, Debug)]
pub(super) struct Vpc {
    pub(super) subnets: Vec<Subnet>,
    pub(super) tables: Vec<Table>,
    /// The tables that the configuration names: their routes are Egret's to make.
    pub(super) named: Vec<String>,
    pub(super) running: bool,
}

impl Vpc {
    /// The subnet of the external interface leads to an internet gateway, by which translated packets leave.
    pub(super) fn own_subnet(&self, eni: &Eni) -> Finding {
        const WHAT: &str = "internet gateway";
        let Some(table) = self.table_of(&eni.subnet) else {
            let detail = format!("no route table is shown for {}", eni.subnet);
            return Finding::new(Severity::Warning, WHAT, detail, Remedy::words("try again later"));
        };
        let default = default_of(table);
        if let Some(way) = default.filter(|way| is_internet_gateway(way)) {
            return Finding::ok(WHAT, format!("{} of {} leads to {}", table.id, eni.subnet, way.target));
        }
        let (verb, now) = match default {
            None => ("create-route", "has no default route".to_owned()),
            Some(way) => ("replace-route", format!("leads to {}", way.target)),
        };
        let remedy = format!(
            "aws ec2 {verb} --route-table-id {} --destination-cidr-block 0.0.0.0/0 --gateway-id igw-ID",
            table.id
        );
        let detail = format!("{} of our own subnet {} {now}", table.id, eni.subnet);
        Finding::error(WHAT, detail, Remedy::run(remedy))
    }

    /// Whether the private subnets lead to a gateway; gives those that lead to this interface as well.
    pub(super) fn private_subnets(&self, eni: &str) -> (Vec<Finding>, Vec<Ipv4Net>) {
        const WHAT: &str = "routes";
        let (mut findings, mut served) = (Vec::new(), Vec::new());
        let mut elsewhere = Vec::new();
        for subnet in &self.subnets {
            let Some(table) = self.table_of(&subnet.id) else { continue };
            let name = format!("{} ({})", subnet.id, subnet.cidr);
            match default_of(table) {
                Some(way) if way.active && is_internet_gateway(way) => {}
                Some(way) if way.active && way.target == eni => served.push(subnet.cidr),
                Some(way) if way.active => elsewhere.push(format!("{name} to {}", way.target)),
                Some(way) => {
                    let state = format!("leads to {}, which is a black hole", way.target);
                    findings.push(self.not_led(&name, table, &state, "replace-route", eni, Severity::Error));
                }
                None => {
                    let state = "has no default route";
                    findings.push(self.not_led(&name, table, state, "create-route", eni, Severity::Warning));
                }
            }
        }
        if !elsewhere.is_empty() {
            findings.insert(0, Finding::ok(WHAT, format!("of another gateway: {}", elsewhere.join(", "))));
        }
        if !served.is_empty() {
            let list: Vec<String> = served.iter().map(ToString::to_string).collect();
            findings.insert(0, Finding::ok(WHAT, format!("{} to {eni}", list.join(", "))));
        } else if findings.iter().all(|finding| finding.severity == Severity::Ok) {
            let remedy = Remedy::run(format!(
                "aws ec2 create-route --route-table-id rtb-ID --destination-cidr-block 0.0.0.0/0 \
                 --network-interface-id {eni}"
            ));
            let detail = format!("no private subnet leads to {eni}");
            findings.push(Finding::new(Severity::Warning, WHAT, detail, remedy));
        }
        (findings, served)
    }

    fn not_led(
        &self,
        subnet: &str,
        table: &Table,
        state: &str,
        verb: &str,
        eni: &str,
        severity: Severity,
    ) -> Finding {
        let remedy = Remedy::run(format!(
            "aws ec2 {verb} --route-table-id {} --destination-cidr-block 0.0.0.0/0 --network-interface-id {eni}",
            table.id
        ));
        let detail = format!("{subnet}: {} {state}", table.id);
        if self.named.contains(&table.id) && !self.running {
            let detail = format!("{detail}; egret sees to it once it runs");
            return Finding::new(Severity::Note, "routes", detail, remedy);
        }
        Finding::new(severity, "routes", detail, remedy)
    }

    /// The table that holds for a subnet: its own, or the VPC's main one.
    fn table_of(&self, subnet: &str) -> Option<&Table> {
        let own = self.tables.iter().find(|table| table.subnets.iter().any(|id| id == subnet));
        own.or_else(|| self.tables.iter().find(|table| table.is_main))
    }
}

/// Whether the groups of an interface let in everything that these prefixes send.
pub(super) fn ingress(eni: &Eni, groups: &[Group], prefixes: &[Ipv4Net]) -> Finding {
    const WHAT: &str = "security group in";
    let rules: Vec<&Rule> = of(eni, groups).flat_map(|group| &group.ingress).collect();
    let lets_in = |rule: &Rule, prefix: &Ipv4Net| rule.prefixes.iter().any(|allowed| allowed.contains(prefix));
    let not_all = |prefix: &&Ipv4Net| !rules.iter().any(|rule| rule.everything && lets_in(rule, prefix));
    let kept_out: Vec<&Ipv4Net> = prefixes.iter().filter(not_all).collect();
    if kept_out.is_empty() {
        let which = eni.groups.join(", ");
        return Finding::ok(
            WHAT,
            if prefixes.is_empty() {
                format!("{which}: no private subnet leads here yet")
            } else {
                format!("{which}: every private subnet that leads here is let in")
            },
        );
    }
    let list: Vec<String> = kept_out.iter().map(ToString::to_string).collect();
    let ranges: Vec<String> = list.iter().map(|cidr| format!("{{CidrIp={cidr}}}")).collect();
    let remedy = Remedy::run(format!(
        "aws ec2 authorize-security-group-ingress --group-id {} --ip-permissions 'IpProtocol=-1,IpRanges=[{}]'",
        eni.groups.first().map_or("sg-ID", String::as_str),
        ranges.join(",")
    ));
    let partly = |prefix: &&Ipv4Net| rules.iter().any(|rule| rule.has_references || lets_in(rule, prefix));
    let (severity, how) = if kept_out.iter().all(partly) {
        (Severity::Note, "only some is let in, or by groups and prefix lists, of")
    } else {
        (Severity::Error, "not let in:")
    };
    Finding::new(severity, WHAT, format!("{}: {how} {}", eni.groups.join(", "), list.join(", ")), remedy)
}

/// Whether the groups of an interface let everything out.
pub(super) fn egress(eni: &Eni, groups: &[Group]) -> Finding {
    const WHAT: &str = "security group out";
    let mut rules = of(eni, groups).flat_map(|group| &group.egress);
    let groups = eni.groups.join(", ");
    if rules.any(|rule| rule.everything && rule.prefixes.contains(&Ipv4Net::default())) {
        return Finding::ok(WHAT, format!("{groups}: everything is let out"));
    }
    let remedy = Remedy::run(format!(
        "aws ec2 authorize-security-group-egress --group-id {} --ip-permissions 'IpProtocol=-1,IpRanges=[{{CidrIp=0.0.0.0/0}}]'",
        eni.groups.first().map_or("sg-ID", String::as_str)
    ));
    Finding::new(Severity::Note, WHAT, format!("{groups}: not everything is let out"), remedy)
}

fn of<'a>(eni: &'a Eni, groups: &'a [Group]) -> impl Iterator<Item = &'a Group> {
    groups.iter().filter(|group| eni.groups.contains(&group.id))
}

fn default_of(table: &Table) -> Option<&Way> {
    table.routes.iter().find(|way| way.destination.prefix_len() == 0)
}

fn is_internet_gateway(way: &Way) -> bool {
    way.target.starts_with("igw-")
}
