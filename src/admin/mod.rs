//! How the daemon is asked how it is: by its own commands over the control socket, by everybody else over HTTP.
//!
//! Owns the protocol of the socket (JSON objects, one a line, a response for each request), the server's side of it and
//! a client, and the HTTP listener, which only shows. It refuses to be expensive: the size of a request, the time it may
//! take, the connections at once and the length of an answer are bounded. Of what the daemon does it changes one thing,
//! and by the socket alone: whether a forwarding target is in service.

pub mod client;
mod history;
mod http;
mod lock;
mod protocol;
mod server;
#[cfg(test)]
mod testing;
mod view;

pub use history::{Change, HistoryReport, Points};
pub use http::{HttpBindError, HttpLimits, bind_http, serve_http};
pub use lock::{BindError, Socket, bind};
pub use protocol::{
    Addresses, AwsReport, Drops, ElasticIpReport, FastPathReport, FleetReport, GatewayReport, ListenerReport,
    MAX_SESSIONS, MAX_TALKERS, Measure, NoticeReport, PeerReport, PortLoad, PortsReport, ProcessedReport,
    Request, Response, RouteReport, Session, SessionCounts, SessionQuery, Sessions, SourceReport, Status,
    TalkerReport, TalkersOf, TalkersReport, TargetReport, TlsReport, TrafficReport,
};
pub use server::{Limits, serve};
pub use view::{Description, Source, VERSION, standing};
