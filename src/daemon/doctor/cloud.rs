//! The cloud: the metadata service, credentials, permissions, and what EC2 says of our network interfaces.

use std::time::Duration;

use tokio::task::JoinSet;

use super::super::{aws as tasks, peer_key as keys, with_causes};
use super::host::Sides;
use super::{Finding, Remedy, Severity, vpc};
use crate::aws::survey::{self, Associated, Attempt, Eni, Survey, WITHOUT_DRY_RUN};
use crate::aws::{self, Calls, Failure, Identity, Imds, ParameterError, Parameters, SdkConfig};
use crate::config::{CloudFacts, Config, FailoverPeer, KeySource, PeerAddress, RouteTables, Switch};
use crate::datapath::Interface;
use crate::forward::{Followed, Source};
use crate::nat::ExternalAddress;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Cloud {
    pub(super) findings: Vec<Finding>,
    /// What the metadata service tells.
    pub(super) facts: Option<CloudFacts>,
}

/// Our network interfaces.
struct Ours {
    external: Identity,
    internal: Identity,
}

/// Asks everything that there is to ask, if AWS is on.
pub(super) async fn examine(config: &Config, sides: &Sides, running: bool) -> Cloud {
    let mut cloud = Cloud::default();
    if !tasks::is_on(config.aws.enabled) {
        let why = match config.aws.enabled {
            Switch::Off => "aws.enabled = false",
            Switch::Auto | Switch::On => "this is no EC2 instance",
        };
        cloud.findings.push(Finding::ok("aws", format!("not asked: {why}")));
        return cloud;
    }
    let Some(ours) = identities(sides, &mut cloud.findings).await else { return cloud };
    cloud.facts = Some(facts(&ours.external));
    let sdk = aws::sdk_config(&ours.external.region).await;
    if let Err(reason) = survey::credentials(&sdk, CALL_TIME).await {
        let remedy = Remedy::run(format!(
            "aws ec2 associate-iam-instance-profile --instance-id {} --iam-instance-profile Name=egret",
            instance_id().await
        ));
        let detail = format!("none, and so no call is allowed: {reason}");
        cloud.findings.push(Finding::error("credentials", detail, remedy));
        return cloud;
    }
    let survey = Survey::new(&sdk, CALL_TIME);
    let asking = Asking { survey, config, ours, running };
    let (findings, key) = tokio::join!(Box::pin(asking.ask()), peer_key(config, &sdk));
    cloud.findings.extend(findings.into_iter().chain(key));
    cloud
}

/// Whether the key of the fleet is where the configuration has it, if that is a parameter.
async fn peer_key(config: &Config, sdk: &SdkConfig) -> Option<Finding> {
    const WHAT: &str = "peer key";
    let KeySource::Parameter(name) = &config.failover.as_ref()?.key else { return None };
    let mend = || Remedy::words("put the key into the parameter, once for all instances (docs/failover.md)");
    let parameters = Parameters::new(sdk, Calls::default(), CALL_TIME);
    let secret = match parameters.get(name).await {
        Ok(secret) => secret,
        Err(error @ ParameterError::Unauthorized { .. }) => {
            let remedy = Remedy::words(format!(
                "allow ssm:GetParameter on the parameter {name} to the instance's role (docs/iam-policy.json)"
            ));
            return Some(Finding::error("permission", error.to_string(), remedy));
        }
        Err(error) => return Some(Finding::error(WHAT, error.to_string(), mend())),
    };
    Some(match keys::understood(name, &secret) {
        Ok(_) => Finding::ok(WHAT, format!("read from the parameter {name}")),
        Err(reason) => Finding::error(WHAT, reason, mend()),
    })
}

async fn identities(sides: &Sides, findings: &mut Vec<Finding>) -> Option<Ours> {
    const WHAT: &str = "metadata";
    let (Some(external), Some(internal)) = (&sides.external, &sides.internal) else { return None };
    let imds = Imds::new();
    let identity = async |interface: &Interface| imds.identity(interface.mac).await;
    let found = if external == internal {
        identity(external).await.map(|identity| Ours { internal: identity.clone(), external: identity })
    } else {
        let (external, internal) = tokio::join!(identity(external), identity(internal));
        external.and_then(|external| Ok(Ours { external, internal: internal? }))
    };
    match found {
        Ok(ours) => {
            let Identity { eni, vpc, region, .. } = &ours.external;
            findings.push(Finding::ok(WHAT, format!("{eni} in {vpc}, {region}")));
            Some(ours)
        }
        Err(
            error @ (aws::Error::UnknownInterface(_) | aws::Error::Malformed { .. } | aws::Error::Missing(_)),
        ) => {
            let remedy =
                Remedy::words("set nat.external_interface and nat.internal_interface to the instance's ENIs");
            findings.push(Finding::error(WHAT, with_causes(&error), remedy));
            None
        }
        Err(error) => {
            let remedy = Remedy::run(format!(
                "aws ec2 modify-instance-metadata-options --instance-id {} --http-endpoint enabled \
                 --http-tokens required --http-put-response-hop-limit 2",
                instance_id().await
            ));
            findings.push(Finding::error(WHAT, with_causes(&error), remedy));
            None
        }
    }
}

/// For commands that are to be copied: as the firmware has it on Nitro, or as the metadata service tells it.
async fn instance_id() -> String {
    let tag = std::fs::read_to_string("/sys/class/dmi/id/board_asset_tag").unwrap_or_default();
    if tag.starts_with("i-") {
        return tag.trim().to_owned();
    }
    Imds::new().instance().await.map_or_else(|_| "INSTANCE_ID".to_owned(), |instance| instance.id)
}

/// As the daemon applies them.
fn facts(identity: &Identity) -> CloudFacts {
    let pair = |address: &aws::Address| ExternalAddress { private: address.private, public: address.public };
    CloudFacts {
        internal: identity.vpc_cidrs.clone(),
        addresses: identity.addresses.iter().map(pair).collect(),
    }
}

/// The questions to EC2, once it is known who we are.
struct Asking<'a> {
    survey: Survey,
    config: &'a Config,
    ours: Ours,
    running: bool,
}

impl Asking<'_> {
    async fn ask(&self) -> Vec<Finding> {
        let (survey, vpc) = (&self.survey, &self.ours.internal.vpc);
        let mut ids = vec![self.ours.external.eni.clone(), self.ours.internal.eni.clone()];
        ids.dedup();
        let (enis, subnets, tables, associated) = tokio::join!(
            survey.enis(&ids),
            survey.subnets(vpc),
            survey.tables(vpc),
            survey.associated(&self.config.aws.elastic_ips)
        );
        if let (Err(Failure::Unavailable { reason, .. }), Err(_), Err(_)) = (&enis, &subnets, &tables) {
            return vec![self.no_answer(reason)];
        }
        let mut findings =
            vec![Finding::ok("ec2", format!("the API of {} answers", self.ours.external.region))];
        let enis = keep(enis, Severity::Error, &mut findings).unwrap_or_default();
        let routes_are_ours = self.config.aws.route_tables != RouteTables::None;
        let without = if routes_are_ours { Severity::Error } else { Severity::Warning };
        let tables = keep(tables, without, &mut findings);
        let subnets = keep(subnets, Severity::Warning, &mut findings);
        let named = self.tables(tables.as_deref().unwrap_or_default());
        let mut groups: Vec<String> = enis.iter().flat_map(|eni| eni.groups.clone()).collect();
        groups.sort_unstable();
        groups.dedup();
        let (permissions, groups) = tokio::join!(
            self.permissions(&ids, &named, associated.unwrap_or_default()),
            survey.groups(&groups)
        );
        findings.extend(permissions);
        findings.extend(enis.iter().map(|eni| self.source_dest_check(eni)));
        let groups = keep(groups, Severity::Warning, &mut findings);
        let (external, internal) = (&self.ours.external.eni, &self.ours.internal.eni);
        let find = |id: &String| enis.iter().find(|eni| eni.id == *id);
        if let Some(external) = find(external) {
            findings.push(self.address(external));
        }
        let (Some(subnets), Some(tables)) = (subnets, tables) else { return findings };
        let vpc = vpc::Vpc { subnets, tables, named, running: self.running };
        if let Some(external) = find(external) {
            findings.push(vpc.own_subnet(external));
        }
        let (routes, served) = vpc.private_subnets(internal);
        findings.extend(routes);
        if let (Some(internal), Some(external), Some(groups)) = (find(internal), find(external), groups) {
            findings.push(vpc::ingress(internal, &groups, &served));
            findings.push(vpc::egress(external, &groups));
        }
        findings
    }

    fn no_answer(&self, reason: &str) -> Finding {
        let region = &self.ours.external.region;
        let remedy = Remedy::words(format!(
            "let this instance reach ec2.{region}.amazonaws.com:443: by a public address and a route to an internet \
             gateway, or by an interface endpoint of the VPC (com.amazonaws.{region}.ec2)"
        ));
        Finding::error("ec2", format!("the API does not answer: {reason}"), remedy)
    }

    /// The ids of the tables that the configuration names, by whatever.
    fn tables(&self, tables: &[survey::Table]) -> Vec<String> {
        match &self.config.aws.route_tables {
            RouteTables::None => Vec::new(),
            RouteTables::Ids(ids) => ids.clone(),
            RouteTables::Tagged(tags) => {
                let has_all =
                    |table: &&survey::Table| tags.iter().all(|(key, value)| table.tags.get(key) == Some(value));
                tables.iter().filter(has_all).map(|table| table.id.clone()).collect()
            }
        }
    }

    /// Tries each call that the configuration needs, all at once.
    async fn permissions(
        &self,
        enis: &[String],
        tables: &[String],
        associated: Vec<Associated>,
    ) -> Vec<Finding> {
        const WHAT: &str = "permission";
        let attempts = self.attempts(enis, tables, &associated).await;
        let mut tries = JoinSet::new();
        for (place, attempt) in attempts.into_iter().enumerate() {
            let survey = self.survey.clone();
            tries.spawn(async move {
                let answer = survey.attempt(&attempt).await;
                (place, attempt, answer)
            });
        }
        let mut tried = tries.join_all().await;
        tried.sort_by_key(|(place, ..)| *place);
        let mut findings: Vec<Finding> = Vec::new();
        for (_, attempt, answer) in tried {
            let finding = match answer {
                Ok(()) => Finding::ok(WHAT, format!("{} is allowed", attempt.action())),
                Err(failure @ Failure::Unauthorized { .. }) => {
                    missing(&failure, Severity::Error, attempt.resource())
                }
                Err(failure) => {
                    let remedy = Remedy::words(match attempt.resource() {
                        Some(resource) => format!("see whether {resource} exists, in this region and account"),
                        None => "try again later".to_owned(),
                    });
                    Finding::new(Severity::Warning, WHAT, format!("not to be told: {failure}"), remedy)
                }
            };
            // An action that is allowed is worth one line, whatever it was tried on.
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        findings.extend(self.untried(&associated));
        findings
    }

    async fn attempts(&self, enis: &[String], tables: &[String], associated: &[Associated]) -> Vec<Attempt> {
        let mut attempts: Vec<Attempt> =
            enis.iter().map(|eni| Attempt::SwitchCheckOff { eni: eni.clone() }).collect();
        for table in tables.iter().take(MOST_RESOURCES) {
            if let Some(destination) = self.config.aws.routes.first().copied() {
                let (table, eni) = (table.clone(), self.ours.internal.eni.clone());
                attempts.push(Attempt::CreateRoute { table: table.clone(), destination, eni: eni.clone() });
                attempts.push(Attempt::ReplaceRoute { table, destination, eni });
            }
        }
        if !self.config.aws.elastic_ips.is_empty() {
            attempts.push(Attempt::DescribeAddresses);
        }
        for allocation in self.config.aws.elastic_ips.iter().take(MOST_RESOURCES) {
            let (allocation, eni) = (allocation.clone(), self.ours.external.eni.clone());
            attempts.push(Attempt::AssociateAddress { allocation, eni });
        }
        let is_by_tag = |followed: &Followed| matches!(followed.source, Source::Ec2Tag { .. });
        let is_peer_by_tag = |peer: &FailoverPeer| matches!(peer.address, PeerAddress::Tagged { .. });
        let mut peers = self.config.failover.iter().flat_map(|failover| &failover.peers);
        if self.config.forward.iter().any(|listener| listener.followed.iter().any(is_by_tag))
            || peers.any(is_peer_by_tag)
        {
            attempts.push(Attempt::DescribeInstances);
        }
        if self.config.failover.is_some() {
            let associated = associated.iter().take(MOST_RESOURCES).cloned();
            attempts.extend(associated.map(Attempt::DisassociateAddress));
        }
        if self.has_hooks() {
            attempts.push(Attempt::DescribeAutoScalingInstances { instance: instance_id().await });
        }
        attempts
    }

    /// What the configuration needs, and nobody has tried.
    fn untried(&self, associated: &[Associated]) -> Vec<Finding> {
        let note = |action: &str, why: &str, remedy: &str| {
            let detail = format!("{action} is not tried, as {why}");
            Finding::new(Severity::Note, "permission", detail, Remedy::words(remedy))
        };
        let [assign, complete] = WITHOUT_DRY_RUN;
        let needed = [(assign, !self.config.aws.elastic_ips.is_empty()), (complete, self.has_hooks())];
        let needed = needed.into_iter().filter(|(_, is_needed)| *is_needed).map(|(action, _)| {
            let remedy = format!("see that the instance's role allows {action} (docs/iam-policy.json)");
            note(action, "AWS has no DryRun of it", &remedy)
        });
        let mut notes: Vec<Finding> = needed.collect();
        if self.config.failover.is_some() && associated.is_empty() {
            notes.push(note(
                "ec2:DisassociateAddress",
                "no address of aws.elastic_ips is associated",
                "run egret doctor again when the gateway has a host",
            ));
        }
        notes
    }

    fn has_hooks(&self) -> bool {
        let hooks = &self.config.aws.hooks;
        hooks.launching.is_some() || hooks.terminating.is_some()
    }

    fn source_dest_check(&self, eni: &Eni) -> Finding {
        const WHAT: &str = "source/dest check";
        if !eni.source_dest_check {
            return Finding::ok(WHAT, format!("off at {}", eni.id));
        }
        let remedy = Remedy::run(format!(
            "aws ec2 modify-network-interface-attribute --network-interface-id {} --no-source-dest-check",
            eni.id
        ));
        let detail = format!("on at {}: EC2 drops what is forwarded", eni.id);
        if self.running {
            return Finding::error(WHAT, detail, remedy);
        }
        Finding::new(Severity::Note, WHAT, format!("{detail}; egret switches it off at its start"), remedy)
    }

    /// The public address of the external interface.
    fn address(&self, eni: &Eni) -> Finding {
        const WHAT: &str = "public address";
        let pairs = eni.addresses.iter().filter_map(|address| Some((address, address.public?)));
        let (fixed, lent): (Vec<_>, Vec<_>) = pairs.partition(|(address, _)| address.allocation.is_some());
        let list = |pairs: &[(&survey::EniAddress, std::net::Ipv4Addr)]| {
            let shown = pairs.iter().map(|(address, public)| format!("{public} at {}", address.private));
            shown.collect::<Vec<_>>().join(", ")
        };
        if !fixed.is_empty() {
            return Finding::ok(WHAT, format!("Elastic IP {}", list(&fixed)));
        }
        let allocation = self.config.aws.elastic_ips.first().map_or("eipalloc-ID", String::as_str);
        let remedy = Remedy::run(format!(
            "aws ec2 associate-address --allocation-id {allocation} --network-interface-id {} --no-allow-reassociation",
            eni.id
        ));
        if !lent.is_empty() {
            let detail = format!("{} is no Elastic IP: it is another one after a stop", list(&lent));
            return Finding::new(Severity::Note, WHAT, detail, remedy);
        }
        let comes = !self.running && !self.config.aws.elastic_ips.is_empty();
        let severity = if comes { Severity::Note } else { Severity::Error };
        Finding::new(
            severity,
            WHAT,
            format!("{} has none: nothing comes back from the internet", eni.id),
            remedy,
        )
    }
}

/// What was asked for, or a finding in its place.
fn keep<T>(answer: Result<T, Failure>, severity: Severity, findings: &mut Vec<Finding>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(failure @ Failure::Unauthorized { .. }) => {
            findings.push(missing(&failure, severity, None));
            None
        }
        Err(failure) => {
            let remedy = Remedy::words("try again later");
            findings.push(Finding::new(Severity::Warning, "ec2", failure.to_string(), remedy));
            None
        }
    }
}

fn missing(failure: &Failure, severity: Severity, resource: Option<&str>) -> Finding {
    let on = resource.map(|resource| format!(" on {resource}")).unwrap_or_default();
    let Failure::Unauthorized { action } = failure else {
        return Finding::new(severity, "permission", failure.to_string(), Remedy::words("try again later"));
    };
    let remedy = Remedy::words(format!(
        "allow {action}{on} to the instance's role (docs/iam-policy.json, whose conditions want the tag egret:gateway)"
    ));
    Finding::new(severity, "permission", format!("{action}{on} is not allowed"), remedy)
}

/// For one call, or for credentials.
const CALL_TIME: Duration = Duration::from_secs(5);

/// Of how many tables and addresses each permission is tried.
const MOST_RESOURCES: usize = 16;
