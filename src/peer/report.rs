//! What is to be seen of the links.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// Of all links of this instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By name.
    pub peers: Vec<PeerReport>,
    /// How many connections did not come about, by [`super::Refusal::label`].
    pub refused: BTreeMap<&'static str, u64>,
}

/// Of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerReport {
    pub gateway: String,
    /// Where it is configured to be.
    pub addresses: Vec<SocketAddr>,
    /// Unset while it is not connected.
    pub connected: Option<Connected>,
    /// Of all connections with it so far.
    pub counters: Counters,
    /// Why there is no connection, or why the last one ended.
    pub last_error: Option<String>,
}

/// Of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Connected {
    /// The other end.
    pub address: SocketAddr,
    #[serde(rename = "since_seconds", serialize_with = "seconds")]
    pub since: Duration,
    /// How long nothing has come.
    #[serde(rename = "silent_seconds", serialize_with = "seconds")]
    pub silent: Duration,
}

/// Of all connections with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub connections: u64,
    pub frames_sent: u64,
    pub frames_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Messages that gave way in the queue.
    pub dropped: u64,
    /// Payloads that this version does not know.
    pub unknown: u64,
    /// Attempts at a connection that failed, or were refused.
    pub failures: u64,
}

/// What a peer's tasks note.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) connection: Option<Connection>,
    pub(super) counters: Counters,
    pub(super) last_error: Option<String>,
    /// Whoever takes events knows of a connection, and not of its end.
    pub(super) is_announced: bool,
    /// The log says that the peer cannot be reached.
    pub(super) is_known_lost: bool,
}

/// A connection that stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) address: SocketAddr,
    pub(super) since: Instant,
    pub(super) heard: Instant,
}

impl Record {
    pub(super) fn connected(&self) -> Option<Connected> {
        let connection = self.connection?;
        let (since, silent) = (connection.since.elapsed(), connection.heard.elapsed());
        Some(Connected { address: connection.address, since, silent })
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.counters.frames_sent += 1;
        self.counters.bytes_sent += bytes as u64;
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.counters.frames_received += 1;
        self.counters.bytes_received += bytes as u64;
        if let Some(connection) = &mut self.connection {
            connection.heard = Instant::now();
        }
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
