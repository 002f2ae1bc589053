//! What a line says.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::nat::{CloseReason, SessionRecord, SessionState, Side};
use crate::wire::{Endpoint, Protocol};

/// See the module.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line {
    Opened(Opened),
    Closed(Closed),
    /// The first session with a remote endpoint that is remembered.
    NewDestination {
        #[serde(serialize_with = "rfc3339")]
        time: SystemTime,
        protocol: Protocol,
        internal: Ipv4Addr,
        remote: SocketAddrV4,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Opened {
    #[serde(serialize_with = "rfc3339")]
    time: SystemTime,
    #[serde(flatten)]
    session: Session,
}

#[derive(Debug, Serialize)]
pub(super) struct Closed {
    #[serde(serialize_with = "rfc3339")]
    time: SystemTime,
    #[serde(flatten)]
    session: Session,
    reason: &'static str,
    state: SessionState,
    #[serde(serialize_with = "rfc3339")]
    opened_at: SystemTime,
    seconds: f64,
    packets_out: u64,
    bytes_out: u64,
    packets_in: u64,
    bytes_in: u64,
}

#[derive(Debug, Serialize)]
struct Session {
    protocol: Protocol,
    internal: SocketAddrV4,
    external: SocketAddrV4,
    remote: SocketAddrV4,
    opened_by: Side,
}

impl Line {
    pub(super) fn opened(time: SystemTime, record: &SessionRecord) -> Self {
        Self::Opened(Opened { time, session: session(record) })
    }

    pub(super) fn closed(time: SystemTime, record: &SessionRecord, reason: CloseReason) -> Self {
        Self::Closed(Closed {
            time,
            session: session(record),
            reason: reason.label(),
            state: record.state,
            opened_at: time.checked_sub(record.age).unwrap_or(time),
            seconds: record.age.as_secs_f64(),
            packets_out: record.packets_out,
            bytes_out: record.bytes_out,
            packets_in: record.packets_in,
            bytes_in: record.bytes_in,
        })
    }

    pub(super) fn destination(time: SystemTime, record: &SessionRecord) -> Self {
        Self::NewDestination {
            time,
            protocol: record.protocol,
            internal: record.internal.address,
            remote: address(record.remote),
        }
    }
}

fn session(record: &SessionRecord) -> Session {
    Session {
        protocol: record.protocol,
        internal: address(record.internal),
        external: address(record.external),
        remote: address(record.remote),
        opened_by: record.opened_by,
    }
}

fn address(endpoint: Endpoint) -> SocketAddrV4 {
    SocketAddrV4::new(endpoint.address, endpoint.port)
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}
