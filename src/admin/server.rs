//! The daemon's side of the control socket.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::protocol::{
    Addresses, AwsReport, FastPathReport, FleetReport, ListenerReport, MAX_SESSIONS, NoticeReport, Request,
    Response, Session, SessionCounts, SessionQuery, Sessions, Status, TargetReport, TlsReport, TrafficReport,
};
use crate::balance::{Refusal, State, TargetSnapshot};
use crate::datapath::{self, Chosen, FastPath, Miss, SessionFilter, SessionPage, Snapshot, Stopped};
use crate::forward::{self, HalfOpen, Mode};
use crate::nat::{self, DropReason, SessionRecord, Traffic};
use crate::wire::{Endpoint, Protocol};

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
    /// What is about to happen to this instance.
    pub notices: Vec<NoticeReport>,
    /// Whether listeners take no more connections because of that.
    pub draining: bool,
}

/// What clients may take of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At once; further ones wait.
    pub connections: usize,
    /// For a whole request to come in; whoever takes longer is disconnected.
    pub request_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16, request_time: Duration::from_secs(10) }
    }
}

/// Answers on `listener` until the future is dropped.
pub async fn serve<S: Source>(
    listener: UnixListener,
    source: S,
    description: watch::Receiver<Description>,
    limits: Limits,
) {
    let Limits { connections, request_time } = limits;
    let server = Arc::new(Server { source, description, request_time, scans: Semaphore::new(1) });
    let connections = Arc::new(Semaphore::new(connections));
    loop {
        // Waiting here leaves further clients in the socket's backlog, and then without a connection.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "control connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            if let Err(error) = server.converse(stream).await {
                tracing::debug!(%error, "control connection ended");
            }
            drop(permit);
        });
    }
}

struct Server<S> {
    source: S,
    description: watch::Receiver<Description>,
    request_time: Duration,
    /// One scan at a time: a long answer takes memory.
    scans: Semaphore,
}

impl<S: Source> Server<S> {
    async fn converse(&self, stream: UnixStream) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut bounded = (&mut reader).take(MAX_REQUEST_BYTES);
            timeout(self.request_time, bounded.read_until(b'\n', &mut line)).await??;
            if line.is_empty() {
                return Ok(());
            }
            let complete = line.ends_with(b"\n");
            let answer = if !complete && line.len() as u64 == MAX_REQUEST_BYTES {
                Answer::error(format!("the request is longer than {MAX_REQUEST_BYTES} bytes"))
            } else {
                match timeout(ANSWER_TIME, self.answer(&line)).await {
                    Ok(answer) => answer,
                    Err(_) => Answer::error("the answer took too long".to_owned()),
                }
            };
            timeout(ANSWER_TIME, answer.write(&mut writer)).await??;
            if !complete {
                return Ok(());
            }
        }
    }

    async fn answer(&self, line: &[u8]) -> Answer {
        let result = match serde_json::from_slice(line) {
            Ok(Request::Status {}) => self.status().await,
            Ok(Request::Sessions(query)) => match filter(&query) {
                Ok(filter) => self.sessions(filter, query.limit).await,
                Err(message) => return Answer::error(message),
            },
            Ok(Request::Drain { listener, target, undo }) => {
                return match self.source.set_draining(&listener, target, !undo).await {
                    Ok(()) => Answer::Short(Response::Done {}),
                    Err(message) => Answer::error(message),
                };
            }
            Ok(Request::Handover { gateway, to }) => {
                return match self.source.hand_over(gateway, to).await {
                    Ok(gateway) => Answer::Short(Response::Offered { gateway }),
                    Err(message) => Answer::error(message),
                };
            }
            Err(error) => return Answer::error(format!("not a request: {error}")),
        };
        result.unwrap_or_else(|stopped| Answer::error(stopped.to_string()))
    }

    async fn status(&self) -> Result<Answer, Stopped> {
        let snapshot = self.source.snapshot().await?;
        let description = self.description.borrow().clone();
        let listeners = self.source.listeners().await?.into_iter().map(listener).collect();
        let fleet = self.source.fleet();
        let status = Status { listeners, fleet, ..status(snapshot, description) };
        Ok(Answer::Short(Response::Status(Box::new(status))))
    }

    async fn sessions(&self, filter: SessionFilter, limit: usize) -> Result<Answer, Stopped> {
        let _permit = self.scans.acquire().await;
        let mut newest = Newest::new(limit);
        let mut from = Some(0);
        while let Some(place) = from {
            let page = self.source.scan_sessions(place, filter).await?;
            page.records.into_iter().for_each(|record| newest.add(record));
            from = page.next;
        }
        let counters = self.source.snapshot().await?.counters;
        let head = Sessions {
            sessions: Vec::new(),
            matched: newest.seen,
            live: counters.sessions,
            mappings: counters.mappings,
        };
        Ok(Answer::Sessions(head, newest.into_sorted()))
    }
}

/// A response on its way out.
enum Answer {
    Short(Response),
    /// [`Response::Sessions`] whose list is made while it is written: as one text it would take much memory.
    Sessions(Sessions, Vec<Reverse<ByAge>>),
}

impl Answer {
    fn error(message: String) -> Self {
        Self::Short(Response::Error(message))
    }

    async fn write(self, writer: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let (head, records) = match self {
            Self::Short(response) => (response, Vec::new()),
            Self::Sessions(head, records) => (Response::Sessions(head), records),
        };
        let head = serde_json::to_string(&head)?;
        // The list goes where the head has an empty one.
        let split = if records.is_empty() { None } else { head.split_once("[]") };
        let (before, after) = split.map_or((head.as_str(), ""), |(before, after)| (before, after));
        let mut writer = BufWriter::with_capacity(WRITE_BYTES, writer);
        writer.write_all(before.as_bytes()).await?;
        for (index, Reverse(by_age)) in records.iter().enumerate() {
            writer.write_all(if index == 0 { b"[" } else { b"," }).await?;
            writer.write_all(&serde_json::to_vec(&session(&by_age.record))?).await?;
        }
        if !records.is_empty() {
            writer.write_all(b"]").await?;
        }
        writer.write_all(after.as_bytes()).await?;
        writer.write_all(b"\n").await?;
        writer.flush().await
    }
}

/// Keeps the newest of many sessions: a heap with the oldest on top, which goes when there are too many.
struct Newest {
    limit: usize,
    seen: u64,
    heap: BinaryHeap<Reverse<ByAge>>,
}

impl Newest {
    fn new(limit: usize) -> Self {
        Self { limit, seen: 0, heap: BinaryHeap::new() }
    }

    fn add(&mut self, record: SessionRecord) {
        self.seen += 1;
        self.heap.push(Reverse(ByAge { order: self.seen, record }));
        if self.heap.len() > self.limit {
            self.heap.pop();
        }
    }

    /// The newest first.
    fn into_sorted(self) -> Vec<Reverse<ByAge>> {
        self.heap.into_sorted_vec()
    }
}

/// Orders sessions by when they were opened, and those of the same moment by their places: later ones are
/// further on in a table that grows.
struct ByAge {
    order: u64,
    record: SessionRecord,
}

impl Ord for ByAge {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |of: &Self| (of.record.opened_at, of.order);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for ByAge {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByAge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByAge {}

fn filter(query: &SessionQuery) -> Result<SessionFilter, String> {
    if query.limit > MAX_SESSIONS {
        return Err(format!("limit is {}; use at most {MAX_SESSIONS}", query.limit));
    }
    let protocol = query.protocol.as_deref().map(|name| match name {
        "tcp" => Ok(Protocol::TCP),
        "udp" => Ok(Protocol::UDP),
        "icmp" => Ok(Protocol::ICMP),
        number => number
            .parse()
            .map(Protocol)
            .map_err(|_| format!("protocol {number:?} is not known; use tcp, udp, icmp or a number to 255")),
    });
    Ok(SessionFilter {
        protocol: protocol.transpose()?,
        internal: query.internal,
        remote: query.remote,
        port: query.port,
    })
}

fn listener(report: forward::Report) -> ListenerReport {
    let forward::Report { name, listen, mode, counters, admission, group, half_open, tls, sources } = report;
    let refused = Refusal::ALL.map(|refusal| (refusal.label().to_owned(), admission.refused(refusal)));
    let ended = [
        ("closed", counters.closed),
        ("reset_by_client", counters.reset_by_client),
        ("reset_by_target", counters.reset_by_target),
        ("idle", counters.idle),
        ("cut", counters.cut),
        ("unserved", counters.unserved),
        ("bad_header", counters.bad_headers),
        ("handshake_failed", counters.handshakes_failed),
    ];
    ListenerReport {
        name,
        listen,
        mode: match mode {
            Mode::Proxy => "proxy",
            Mode::Nat { .. } => "nat",
        }
        .to_owned(),
        serving: group.serving.label().to_owned(),
        connections: admission.open,
        opened: admission.admitted,
        refused: refused.into(),
        ended: ended.map(|(how, count)| (how.to_owned(), count)).into(),
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

fn session(record: &SessionRecord) -> Session {
    let endpoint = |endpoint: Endpoint| SocketAddrV4::new(endpoint.address, endpoint.port);
    Session {
        protocol: record.protocol.to_string(),
        internal: endpoint(record.internal),
        external: endpoint(record.external),
        remote: endpoint(record.remote),
        state: label(&record.state),
        opened_by: label(&record.opened_by),
        age_seconds: record.age.as_secs_f64(),
        idle_seconds: record.idle.as_secs_f64(),
        packets_out: record.packets_out,
        bytes_out: record.bytes_out,
        packets_in: record.packets_in,
        bytes_in: record.bytes_in,
    }
}

/// The name under which serde knows a variant without fields.
fn label(variant: &impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(label)) => label,
        _ => String::new(),
    }
}

fn status(snapshot: Snapshot, description: Description) -> Status {
    let Description { chosen, config, nat, source_dest_check, aws, notices, draining } = description;
    let counters = &snapshot.counters;
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: snapshot.uptime.as_secs(),
        ready: snapshot.not_ready.is_empty(),
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

const MAX_REQUEST_BYTES: u64 = 64 << 10;
const ANSWER_TIME: Duration = Duration::from_secs(30);
const WRITE_BYTES: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
