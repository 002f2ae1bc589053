//! The daemon's side of the control socket.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::protocol::{MAX_SESSIONS, MAX_TALKERS, Request, Response, Session, SessionQuery, Sessions};
use super::view::{Description, Source, View};
use crate::datapath::{SessionFilter, Stopped};
use crate::nat::SessionRecord;
use crate::wire::{Endpoint, Protocol};

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
    let view = View::new(source, description);
    let server = Arc::new(Server { view, request_time, scans: Semaphore::new(1) });
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
    view: View<S>,
    request_time: Duration,
    /// One scan at a time: a long answer takes memory.
    scans: Semaphore,
}

impl<S: Source> Server<S> {
    async fn converse(&self, stream: UnixStream) -> std::io::Result<()> {
        // As it was when the client connected.
        let may_change = stream.peer_cred().is_ok_and(|peer| is_trusted(peer.uid()));
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
                match timeout(ANSWER_TIME, self.answer(&line, may_change)).await {
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

    async fn answer(&self, line: &[u8], may_change: bool) -> Answer {
        let result = match serde_json::from_slice::<Request>(line) {
            Ok(request) if request.changes_something() && !may_change => {
                return Answer::error("only root may change something".to_owned());
            }
            Ok(Request::Status {}) => {
                self.view.status().await.map(|status| Answer::Short(Response::Status(Box::new(status))))
            }
            Ok(Request::Sessions(query)) => match filter(&query) {
                Ok(filter) => self.sessions(filter, query.limit).await,
                Err(message) => return Answer::error(message),
            },
            Ok(Request::Talkers { limit, .. }) if limit > MAX_TALKERS => {
                return Answer::error(format!("limit is {limit}; use at most {MAX_TALKERS}"));
            }
            Ok(Request::Talkers { by, limit }) => {
                self.view.talkers(by, limit).await.map(|talkers| Answer::Short(Response::Talkers(talkers)))
            }
            Ok(Request::LogLevel { filter }) => {
                return match self.view.source.log_level(filter.as_deref()) {
                    Ok(filter) => Answer::Short(Response::LogLevel(filter)),
                    Err(message) => Answer::error(message),
                };
            }
            Ok(Request::Drain { listener, target, undo }) => {
                return match self.view.source.set_draining(&listener, target, !undo).await {
                    Ok(()) => Answer::Short(Response::Done {}),
                    Err(message) => Answer::error(message),
                };
            }
            Ok(Request::Handover { gateway, to }) => {
                return match self.view.source.hand_over(gateway, to).await {
                    Ok(gateway) => Answer::Short(Response::Offered { gateway }),
                    Err(message) => Answer::error(message),
                };
            }
            Ok(Request::DeclareDead { peer }) => {
                return match self.view.source.declare_dead(peer).await {
                    Ok(gateways) => Answer::Short(Response::Orphaned { gateways }),
                    Err(message) => Answer::error(message),
                };
            }
            Err(error) => return Answer::error(format!("not a request: {error}")),
        };
        result.unwrap_or_else(|stopped| Answer::error(stopped.to_string()))
    }

    async fn sessions(&self, filter: SessionFilter, limit: usize) -> Result<Answer, Stopped> {
        let _permit = self.scans.acquire().await;
        let mut newest = Newest::new(limit);
        let mut from = Some(0);
        while let Some(place) = from {
            let page = self.view.source.scan_sessions(place, filter).await?;
            page.records.into_iter().for_each(|record| newest.add(record));
            from = page.next;
        }
        let counters = self.view.source.snapshot().await?.counters;
        let head = Sessions {
            sessions: Vec::new(),
            matched: newest.seen,
            live: counters.sessions,
            mappings: counters.mappings,
        };
        Ok(Answer::Sessions(head, newest.into_sorted()))
    }
}

/// Whether a user may change what the daemon does: root, or whoever runs it. Whoever else may use the socket may look.
fn is_trusted(user: u32) -> bool {
    user == 0 || user == nix::unistd::geteuid().as_raw()
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

const MAX_REQUEST_BYTES: u64 = 64 << 10;
const ANSWER_TIME: Duration = Duration::from_secs(30);
const WRITE_BYTES: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
