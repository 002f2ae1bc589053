//! How the daemon is at one moment, put together from what its parts tell.
//!
//! Owns what [`Status`] says and in which words; who asks, and how it gets there, is the servers' affair.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::protocol::{
    Addresses, AwsReport, FastPathReport, FleetReport, ListenerReport, Measure, NoticeReport, PortLoad,
    PortsReport, ProcessedReport, SessionCounts, Status, TalkerReport, TalkersOf, TalkersReport, TargetReport,
    TlsReport, TrafficReport,
};
use crate::balance::{Refusal, State, TargetSnapshot};
use crate::datapath::{self, Chosen, FastPath, Miss, SessionFilter, SessionPage, Snapshot, Stopped};
use crate::forward::{self, HalfOpen};
use crate::metrics::{self, SessionLogCounts};
use crate::nat::{self, DropReason, Traffic};
use crate::talkers::{Talker, Tally, Top};

/// Where the answers come from: the packet worker, or something like it.
pub trait Source: Clone + Send + Sync + 'static {
    /// The counters of this moment.
    fn snapshot(&self) -> impl Future<Output = Result<Snapshot, Stopped>> + Send;

    /// The sessions of one bounded part of the table, from the place `from` on.
    fn scan_sessions(
        &self,
        from: u32,
        filter: SessionFilter,
    ) -> impl Future<Output = Result<SessionPage, Stopped>> + Send;

    /// The listeners that forward.
    fn listeners(&self) -> impl Future<Output = Result<Vec<forward::Report>, Stopped>> + Send;

    /// The fleet, if this instance is in one.
    fn fleet(&self) -> Option<FleetReport>;

    /// Has a gateway, or else the home gateway, handed over to a peer. Gives its name.
    ///
    /// # Errors
    /// Why that is not even tried.
    fn hand_over(
        &self,
        gateway: Option<String>,
        to: String,
    ) -> impl Future<Output = Result<String, String>> + Send;

    /// Has a peer taken for dead on an operator's word. Gives the gateways that it has.
    ///
    /// # Errors
    /// Why that word does not count.
    fn declare_dead(&self, peer: String) -> impl Future<Output = Result<Vec<String>, String>> + Send;

    /// The most talkative of the last minute and of the last hour.
    fn talkers(&self, by: Measure, count: usize) -> impl Future<Output = Result<[Top; 2], Stopped>> + Send;

    /// What has become of the lines of the session log; unset if there is none.
    fn session_log(&self) -> Option<SessionLogCounts>;

    /// What the driver of an interface counts, by its own names.
    fn driver_statistics(&self, interface: &str) -> impl Future<Output = Vec<(String, u64)>> + Send;

    /// What is logged, after that was changed to `filter`, if there is one.
    ///
    /// # Errors
    /// The filter makes no sense.
    fn log_level(&self, filter: Option<&str>) -> Result<String, String>;

    /// Takes a target of the named listener out of service, or back into it.
    ///
    /// # Errors
    /// There is no such listener, or target.
    fn set_draining(
        &self,
        listener: &str,
        target: SocketAddr,
        draining: bool,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// What the daemon runs with: the part of [`Status`] that is not the packet worker's.
#[derive(Clone, Debug)]
pub struct Description {
    /// The datapath that runs.
    pub chosen: Chosen,
    pub config: datapath::Config,
    pub nat: nat::Config,
    /// The state of EC2's source/destination check, in words; unset if AWS is not asked.
    pub source_dest_check: Option<String>,
    /// Unset if AWS is not asked, or has not answered yet.
    pub aws: Option<AwsReport>,
    /// Since when each look at AWS has had a failure; unset if the last one had none.
    pub aws_failing_since: Option<Instant>,
    /// What is about to happen to this instance.
    pub notices: Vec<NoticeReport>,
    /// Whether listeners take no more connections because of that.
    pub draining: bool,
    /// In US dollars.
    pub nat_gateway_price_per_gb: f64,
}

/// How the daemon is now.
///
/// # Errors
/// The packet worker has stopped.
pub async fn standing<S: Source>(
    source: S,
    description: watch::Receiver<Description>,
) -> Result<Status, Stopped> {
    View::new(source, description).status().await
}

/// The version of this program: what its release says (`EGRET_VERSION` when it was built), or else its package.
pub const VERSION: &str = match option_env!("EGRET_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Both together.
pub(super) struct View<S> {
    pub(super) source: S,
    description: watch::Receiver<Description>,
}

impl<S: Source> View<S> {
    pub(super) const fn new(source: S, description: watch::Receiver<Description>) -> Self {
        Self { source, description }
    }

    /// How the daemon is now.
    pub(super) async fn status(&self) -> Result<Status, Stopped> {
        self.status_at().await.map(|(_, status)| status)
    }

    /// The same, with how long it has been up.
    pub(super) async fn status_at(&self) -> Result<(Duration, Status), Stopped> {
        let snapshot = self.source.snapshot().await?;
        let uptime = snapshot.uptime;
        let description = self.description.borrow().clone();
        let aws_failing = description.aws_failing_since.map(|since| since.elapsed());
        let listeners = self.source.listeners().await?;
        let fleet = self.source.fleet();
        Ok((uptime, whole_status(snapshot, description, listeners, fleet, aws_failing)))
    }

    /// Who talks most.
    pub(super) async fn talkers(&self, by: Measure, limit: usize) -> Result<TalkersReport, Stopped> {
        let [last_minute, last_hour] = self.source.talkers(by, limit).await?.each_ref().map(talkers_of);
        Ok(TalkersReport { by, last_minute, last_hour })
    }

    /// What Prometheus scrapes.
    pub(super) async fn metrics(&self) -> Result<Result<String, metrics::Error>, Stopped> {
        let snapshot = self.source.snapshot().await?;
        let description = self.description.borrow().clone();
        let aws_failing = description.aws_failing_since.map(|since| since.elapsed());
        let listeners = self.source.listeners().await?;
        let (external, internal) = (&description.config.external.name, &description.config.internal.name);
        let mut drivers = vec![("external", self.source.driver_statistics(external).await)];
        if external != internal {
            drivers.push(("internal", self.source.driver_statistics(internal).await));
        }
        let status =
            whole_status(snapshot.clone(), description, listeners.clone(), self.source.fleet(), aws_failing);
        let aws = status.aws.as_ref().map(|aws| metrics::Aws {
            calls: &aws.calls,
            failing: aws_failing.unwrap_or_default(),
            problems: aws.problems.len(),
            source_dest_check_off: status.source_dest_check.as_deref() == Some("off"),
            routes: aws.routes.iter().map(|route| &*route.state).collect(),
            elastic_ips: aws.elastic_ips.len(),
        });
        let fleet = status.fleet.as_ref().map(|fleet| metrics::Fleet {
            gateways: fleet
                .gateways
                .iter()
                .map(|known| (&*known.gateway, known.role == "active", known.host.is_some()))
                .collect(),
            takeovers: fleet.takeovers.iter().map(|(why, times)| (&**why, *times)).collect(),
            last_takeover_seconds: fleet.last_takeover_seconds,
            peers: fleet
                .peers
                .iter()
                .map(|known| (&*known.peer, known.state == "alive", known.round_trip_seconds))
                .collect(),
        });
        Ok(metrics::render(&metrics::Sample {
            version: &status.version,
            datapath: &status.datapath,
            snapshot: &snapshot,
            session_limit: status.sessions.limit,
            degraded: status.degraded.len(),
            draining: status.draining,
            listeners: &listeners,
            session_log: self.source.session_log(),
            aws,
            fleet,
            drivers: &drivers,
        }))
    }
}

fn whole_status(
    snapshot: Snapshot,
    description: Description,
    listeners: Vec<forward::Report>,
    fleet: Option<FleetReport>,
    aws_failing: Option<Duration>,
) -> Status {
    let listeners = listeners.into_iter().map(listener).collect();
    let mut status = Status { fleet, listeners, ..status(snapshot, description) };
    status.degraded = degraded(&status, aws_failing);
    status
}

/// What is wrong although packets flow.
fn degraded(status: &Status, aws_failing: Option<Duration>) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(check) = status.source_dest_check.as_ref().filter(|check| check.starts_with("failed")) {
        reasons.push(format!("source/dest check {check}"));
    }
    if let Some(aws) = &status.aws {
        reasons.extend(aws.problems.iter().cloned());
        if let Some(time) = aws_failing.filter(|time| *time >= FAILING_FOR_LONG) {
            let minutes = time.as_secs() / 60;
            let failures = aws.failures.iter();
            reasons.extend(failures.map(|failure| format!("for {minutes} minutes, {failure}")));
        }
    }
    for gateway in status.fleet.iter().flat_map(|fleet| &fleet.gateways) {
        let trouble = gateway.trouble.as_ref();
        reasons.extend(trouble.map(|trouble| format!("gateway {}: {trouble}", gateway.gateway)));
    }
    for listener in &status.listeners {
        let name = &listener.name;
        match listener.serving.as_str() {
            "fail_open" => {
                reasons.push(format!("listener {name}: all targets are unhealthy, all get connections"));
            }
            "nobody" => reasons.push(format!("listener {name}: there is no target")),
            _ => {}
        }
        let sources = listener.sources.iter();
        reasons.extend(sources.filter_map(|source| {
            let error = source.error.as_ref()?;
            Some(format!("listener {name}: {} is not found: {error}", source.source))
        }));
    }
    reasons
}

fn talkers_of(top: &Top) -> TalkersOf {
    let report = |talker: &Talker, who: String| {
        let Tally { bytes, packets, sessions, ports } = talker.tally;
        TalkerReport { who, bytes, packets, sessions, ports, error: talker.error }
    };
    TalkersOf {
        internal: top.internal.iter().map(|of| report(of, of.address.to_string())).collect(),
        remote: top.remote.iter().map(|of| report(of, format!("{}/24", of.address))).collect(),
    }
}

fn ports(address: &nat::AddressUse) -> PortsReport {
    let load = |(used, limit)| PortLoad { used, limit };
    PortsReport {
        address: address.private,
        tcp: load(address.tcp),
        udp: load(address.udp),
        icmp: load(address.icmp),
        mappings: address.mappings,
        failures: address.failures,
    }
}

fn processed(counters: &nat::Counters, price_per_gb: f64) -> ProcessedReport {
    let bytes = counters.in_from_internal.bytes + counters.in_from_external.bytes;
    #[expect(clippy::cast_precision_loss, reason = "an amount of money for people")]
    let gigabytes = bytes as f64 / f64::from(1 << 30);
    ProcessedReport {
        bytes,
        nat_gateway_price_per_gb: price_per_gb,
        nat_gateway_price: gigabytes * price_per_gb,
    }
}

fn listener(report: forward::Report) -> ListenerReport {
    let forward::Report { name, listen, mode, counters, admission, group, half_open, tls, sources, .. } =
        report;
    let refused = Refusal::ALL.map(|refusal| (refusal.label().to_owned(), admission.refused(refusal)));
    ListenerReport {
        name,
        listen,
        mode: mode.label().to_owned(),
        serving: group.serving.label().to_owned(),
        connections: admission.open,
        opened: admission.admitted,
        refused: refused.into(),
        ended: counters.ended().map(|(how, count)| (how.to_owned(), count)).into(),
        bytes_to_target: counters.bytes_to_target,
        bytes_to_client: counters.bytes_to_client,
        accept_pauses: counters.accept_pauses,
        sources,
        targets: group
            .targets
            .iter()
            .map(|of| target(of, half_open.iter().find(|half_open| half_open.target == of.address)))
            .collect(),
        tls: tls.map(|forward::tls::Report { expiry, mutual }| TlsReport { expiry, mutual }),
    }
}

fn target(target: &TargetSnapshot, half_open: Option<&HalfOpen>) -> TargetReport {
    TargetReport {
        address: target.address,
        state: target.state.label().to_owned(),
        why: match target.state {
            State::Unhealthy(why) => Some(why.to_string()),
            _ => None,
        },
        since_seconds: target.since.as_secs_f64(),
        weight: target.weight,
        backup: target.backup,
        connections: target.connections,
        opened: target.counters.connections_opened,
        connects_failed: target.counters.connects_failed,
        probes: target.counters.probes,
        probes_failed: target.counters.probes_failed,
        half_open: half_open.map_or(0, |of| of.half_open),
        unanswered: half_open.map_or(0, |of| of.unanswered),
        astray: half_open.is_some_and(|of| of.astray),
    }
}

fn status(snapshot: Snapshot, description: Description) -> Status {
    let Description {
        chosen,
        config,
        nat,
        source_dest_check,
        aws,
        notices,
        draining,
        nat_gateway_price_per_gb,
        ..
    } = description;
    let counters = &snapshot.counters;
    Status {
        version: VERSION.to_owned(),
        uptime_seconds: snapshot.uptime.as_secs(),
        ready: snapshot.not_ready.is_empty(),
        degraded: Vec::new(),
        datapath: chosen.kind.label().to_owned(),
        datapath_fallback: chosen.fallback,
        external_interface: config.external.name,
        internal_interface: config.internal.name,
        external_addresses: nat
            .external_addresses
            .iter()
            .map(|address| Addresses { private: address.private, public: address.public })
            .collect(),
        internal: nat.internal,
        bypass: config.bypass,
        source_dest_check,
        aws,
        fleet: None,
        notices,
        draining,
        sessions: SessionCounts {
            live: counters.sessions,
            limit: nat.limits.sessions,
            limit_per_address: nat.limits.sessions_per_address,
            mappings: counters.mappings,
            internal_addresses: counters.internal_addresses,
            opened: counters.sessions_opened,
            established: counters.sessions_established,
            closed: counters.sessions_closed,
        },
        ports: snapshot.addresses.iter().map(ports).collect(),
        processed: processed(counters, nat_gateway_price_per_gb),
        traffic: BTreeMap::from([
            traffic("in_from_internal", counters.in_from_internal),
            traffic("out_to_external", counters.out_to_external),
            traffic("in_from_external", counters.in_from_external),
            traffic("out_to_internal", counters.out_to_internal),
            traffic("hairpinned", counters.hairpinned),
        ]),
        drops: DropReason::ALL.iter().map(|reason| number(reason.label(), counters.dropped(*reason))).collect(),
        engine: BTreeMap::from([
            number("ports_overloaded", counters.ports_overloaded),
            number("icmp_errors", counters.icmp_errors),
            number("fragments", counters.fragments),
            number("fragmented", counters.fragmented),
            number("replies", counters.replies),
            number("replies_limited", counters.replies_limited),
            number("events_lost", counters.events_lost),
            number("fragment_bytes", counters.fragment_bytes as u64),
        ]),
        fast_path: snapshot
            .fast_path
            .as_ref()
            .map(|counters| fast_path(counters, snapshot.counters.offloads_refused)),
        datapath_counters: numbers(&snapshot.datapath),
        listeners: Vec::new(),
        not_ready: snapshot.not_ready,
    }
}

fn fast_path(counters: &FastPath, refused: u64) -> FastPathReport {
    let FastPath { out_to_external, out_to_internal, hairpinned, .. } = *counters;
    let translated: u64 = [out_to_external, out_to_internal, hairpinned].iter().map(|to| to.packets).sum();
    let all = translated + counters.misses.iter().sum::<u64>();
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let hit_ratio = (all > 0).then(|| translated as f64 / all as f64);
    FastPathReport {
        flows: counters.flows,
        capacity: counters.capacity,
        refused,
        hit_ratio,
        translated: BTreeMap::from([
            traffic("out_to_external", out_to_external),
            traffic("out_to_internal", out_to_internal),
            traffic("hairpinned", hairpinned),
        ]),
        misses: Miss::ALL
            .iter()
            .zip(counters.misses)
            .map(|(miss, count)| number(miss.label(), count))
            .collect(),
        passed: counters.passed,
        unserved: counters.unserved,
    }
}

fn traffic(name: &str, traffic: Traffic) -> (String, TrafficReport) {
    (name.to_owned(), TrafficReport { packets: traffic.packets, bytes: traffic.bytes })
}

fn number(name: &str, value: u64) -> (String, u64) {
    (name.to_owned(), value)
}

/// The numeric fields of a flat structure.
fn numbers(counters: &impl serde::Serialize) -> BTreeMap<String, u64> {
    let value = serde_json::to_value(counters).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
}

/// The API is looked at once a minute: this is more than one failure.
const FAILING_FOR_LONG: Duration = Duration::from_secs(150);
