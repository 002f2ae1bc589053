//! The control socket: how `egret status` and `egret sessions` ask the daemon.
//!
//! Owns the protocol (JSON objects, one a line, a response for each request), the server's side of it and a
//! client. It refuses to be expensive: the size of a request, the time it may take, the connections at once and
//! the length of an answer are bounded. Of what the daemon does it changes one thing:
//! whether a forwarding target is in service.

pub mod client;
mod lock;
mod protocol;
mod server;

pub use lock::{BindError, Socket, bind};
pub use protocol::{
    Addresses, AwsReport, Drops, ElasticIpReport, FastPathReport, FleetReport, GatewayReport, ListenerReport,
    MAX_SESSIONS, NoticeReport, PeerReport, Request, Response, RouteReport, Session, SessionCounts,
    SessionQuery, Sessions, SourceReport, Status, TargetReport, TlsReport, TrafficReport,
};
pub use server::{Description, Limits, Source, serve};
