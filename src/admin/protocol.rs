//! What goes over the control socket. A request is one JSON object on one line, and so is its response.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use crate::forward::SourceReport;
pub use crate::talkers::Measure;

/// What a client may ask: `{"command":"status"}`, `{"command":"sessions","protocol":"tcp","limit":10}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status {},
    Sessions(SessionQuery),
    /// `{"command":"talkers","by":"sessions","limit":5}`
    Talkers {
        #[serde(default)]
        by: Measure,
        /// At most [`MAX_TALKERS`] of each kind.
        #[serde(default = "default_talkers")]
        limit: usize,
    },
    /// `{"command":"log_level","filter":"debug"}`: what is logged from now on; without a filter, what is logged.
    LogLevel {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<String>,
    },
    /// `{"command":"drain","listener":"api","target":"10.0.1.10:5000","undo":false}`
    Drain {
        listener: String,
        target: SocketAddr,
        /// Back into service.
        #[serde(default)]
        undo: bool,
    },
    /// `{"command":"handover","to":"az-b"}`
    Handover {
        /// The instance's home gateway if unset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<String>,
        to: String,
    },
    /// `{"command":"declare_dead","peer":"az-b"}`
    DeclareDead {
        peer: String,
    },
}

impl Request {
    /// Whether the daemon is another afterwards.
    #[must_use]
    pub const fn changes_something(&self) -> bool {
        match self {
            Self::Status {} | Self::Sessions(_) | Self::Talkers { .. } | Self::LogLevel { filter: None } => {
                false
            }
            Self::LogLevel { filter: Some(_) }
            | Self::Drain { .. }
            | Self::Handover { .. }
            | Self::DeclareDead { .. } => true,
        }
    }
}

/// Which sessions, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionQuery {
    /// `tcp`, `udp`, `icmp`, or an IP protocol number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal: Option<Ipv4Net>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Ipv4Net>,
    /// A port of the internal, external or remote endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// At most [`MAX_SESSIONS`].
    pub limit: usize,
}

impl Default for SessionQuery {
    fn default() -> Self {
        Self { protocol: None, internal: None, remote: None, port: None, limit: 100 }
    }
}

/// The most sessions in one response.
pub const MAX_SESSIONS: usize = 100_000;

/// The most talkers of a kind in one response: more than that the sketches do not tell apart.
pub const MAX_TALKERS: usize = 100;

const fn default_talkers() -> usize {
    10
}

/// The daemon's answer: `{"status":{...}}`, `{"sessions":{...}}` or `{"error":"..."}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Sessions(Sessions),
    Talkers(TalkersReport),
    /// The filter in force.
    LogLevel(String),
    Done {},
    /// This gateway is being handed over; what comes of it, the status tells.
    Offered {
        gateway: String,
    },
    /// These gateways are at a peer that is taken for dead; what becomes of them, the status tells.
    Orphaned {
        gateways: Vec<String>,
    },
    /// The request was not understood or could not be answered.
    Error(String),
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub uptime_seconds: u64,
    /// Whether packets would really flow.
    pub ready: bool,
    /// Why not; empty if ready.
    pub not_ready: Vec<String>,
    /// What is wrong although packets flow.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub degraded: Vec<String>,
    /// `xdp` or `af_packet`.
    pub datapath: String,
    /// Why it is not `xdp`; absent if that was ruled out by the configuration.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub datapath_fallback: Option<String>,
    pub external_interface: String,
    pub internal_interface: String,
    pub external_addresses: Vec<Addresses>,
    pub internal: Vec<Ipv4Net>,
    pub bypass: Vec<Ipv4Net>,
    /// EC2's source/destination check of our interfaces: `off`, `unknown`, or `failed: ` and why. It is absent if
    /// AWS is not asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_dest_check: Option<String>,
    /// What is kept up at EC2; absent if AWS is not asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub aws: Option<AwsReport>,
    /// The fleet that this instance is in; absent without failover, and until its identity is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fleet: Option<FleetReport>,
    /// What is about to happen to this instance; absent if nothing is known of.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notices: Vec<NoticeReport>,
    /// The instance is about to end: listeners take no more connections.
    #[serde(default)]
    pub draining: bool,
    pub sessions: SessionCounts,
    /// How the ports of each external address are used, in the order of the configuration.
    pub ports: Vec<PortsReport>,
    /// What a managed NAT gateway would have processed.
    pub processed: ProcessedReport,
    /// All of it, the fast path's too.
    pub traffic: BTreeMap<String, TrafficReport>,
    /// Packets dropped, by reason. Reasons without a drop are there as well.
    pub drops: Drops,
    /// The engine's other counters.
    pub engine: BTreeMap<String, u64>,
    /// What the BPF program does by itself; absent if the datapath has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fast_path: Option<FastPathReport>,
    /// The counters of the datapath.
    pub datapath_counters: BTreeMap<String, u64>,
    /// What is forwarded; absent if nothing is.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub listeners: Vec<ListenerReport>,
}

/// How an external address is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsReport {
    pub address: Ipv4Addr,
    pub tcp: PortLoad,
    pub udp: PortLoad,
    /// Of identifiers.
    pub icmp: PortLoad,
    pub mappings: u32,
    /// Mappings that found no port left.
    pub failures: u64,
}

/// Ports taken, and those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortLoad {
    pub used: u32,
    pub limit: u32,
}

/// What was processed since the start, as a managed NAT gateway is paid for it: whatever comes in, from either side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessedReport {
    pub bytes: u64,
    /// In US dollars, and of 2^30 bytes.
    pub nat_gateway_price_per_gb: f64,
    /// What the gateway would have taken, its hours not counted.
    pub nat_gateway_price: f64,
}

/// Who has talked most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TalkersReport {
    /// By what they are ranked.
    pub by: Measure,
    pub last_minute: TalkersOf,
    pub last_hour: TalkersOf,
}

/// The most talkative of both kinds, the first one first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TalkersOf {
    pub internal: Vec<TalkerReport>,
    /// Networks of 256 addresses.
    pub remote: Vec<TalkerReport>,
}

/// An address or a network, and what it has had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TalkerReport {
    /// `10.0.1.10`, or `198.51.100.0/24`.
    pub who: String,
    /// Both ways.
    pub bytes: u64,
    pub packets: u64,
    /// Opened.
    pub sessions: u64,
    /// External ports taken.
    pub ports: u64,
    /// By how much the measure that is ranked by may be too high.
    pub error: u64,
}

/// Something that is about to happen to this instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeReport {
    /// `spot_interruption`, `rebalance_recommendation`, `termination` or `maintenance`.
    pub kind: String,
    /// What happens, where that is open: `terminate`, `system-reboot`, ...
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// When it happens, or for a recommendation, when it was made, in seconds since 1970; absent if that is not told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at: Option<u64>,
    /// Whether the instance is sure to end by it, and soon.
    pub end: bool,
}

/// What is kept up at EC2, as it was when last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwsReport {
    /// The source/destination check of each network interface that forwards: `off`, or `failed: ` and why.
    pub source_dest_checks: BTreeMap<String, String>,
    pub routes: Vec<RouteReport>,
    /// Those of the pool that this instance has.
    pub elastic_ips: Vec<ElasticIpReport>,
    /// What somebody has to mend.
    pub problems: Vec<String>,
    /// How calls failed when it was last looked at; empty if all went well.
    pub failures: Vec<String>,
    /// Calls since the start, by action and outcome.
    pub calls: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A fleet, as this instance sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetReport {
    /// This instance's, which is that of its home gateway.
    pub name: String,
    /// `well`, `not known yet`, or what is wrong.
    pub health: String,
    /// It is about to stop, and hands its gateways over.
    pub leaving: bool,
    /// How often a gateway came here, by why: `free`, `silence`, `unwell` or `hand_over`.
    #[serde(default)]
    pub takeovers: BTreeMap<String, u64>,
    /// What the last of these took.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_takeover_seconds: Option<f64>,
    pub gateways: Vec<GatewayReport>,
    pub peers: Vec<PeerReport>,
}

/// A gateway of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayReport {
    pub gateway: String,
    /// The instance that has its first Elastic IP; absent if none has, or that is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
    /// What this instance is to it: `active`, `standby`, `taking`, or `fallback` if its routes lead to the standby NAT
    /// gateway.
    pub role: String,
    /// For how long the host has been the host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_seconds: Option<f64>,
    /// Why it came to its host; absent while another host has not told it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// The age of what is known of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed_seconds: Option<f64>,
    /// What somebody has to mend.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trouble: Option<String>,
    /// To whom it is being handed over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offered_to: Option<String>,
    /// Why it was not, the last time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_handed_over: Option<String>,
}

/// Another instance of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    pub peer: String,
    /// `alive`, `suspect` or `dead`.
    pub state: String,
    pub connected: bool,
    /// As it has told: `well`, `not known yet`, or what is wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub health: Option<String>,
    pub leaving: bool,
    pub silent_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round_trip_seconds: Option<f64>,
    /// Why nothing is done for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// Why there is no connection, or why the last one ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
}

/// A route that is to lead to this instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    pub route_table: String,
    pub destination: Ipv4Net,
    /// `active`: it does; `missing`, `blackhole` or `elsewhere`: it does not.
    pub state: String,
    /// Where it leads to instead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
}

/// An Elastic IP of this instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElasticIpReport {
    pub allocation: String,
    pub public: Ipv4Addr,
    pub private: Ipv4Addr,
}

/// A listener and its targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerReport {
    pub name: String,
    pub listen: SocketAddr,
    /// `proxy` or `nat`.
    pub mode: String,
    /// Who gets new connections: `primaries`, `backups`, `untried`, `untried_backups`, `fail_open` or
    /// `nobody`.
    pub serving: String,
    /// Open now.
    pub connections: u32,
    pub opened: u64,
    /// Connections refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// How connections ended.
    pub ended: BTreeMap<String, u64>,
    pub bytes_to_target: u64,
    pub bytes_to_client: u64,
    /// How often accepting had to wait, since the host was short of descriptors or memory.
    #[serde(default)]
    pub accept_pauses: u64,
    /// Where targets are found that are known by a name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sources: Vec<SourceReport>,
    pub targets: Vec<TargetReport>,
    /// Set if clients come by TLS.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tls: Option<TlsReport>,
}

/// What clients of a listener come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsReport {
    /// When the certificate ends, in seconds since 1970; absent if it does not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expiry: Option<u64>,
    /// Whether they need a certificate.
    pub mutual: bool,
}

/// A target, and how it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    pub address: SocketAddr,
    /// `initial`, `healthy`, `unhealthy`, `draining` or `drained`.
    pub state: String,
    /// Why it is unhealthy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    pub since_seconds: f64,
    pub weight: u16,
    pub backup: bool,
    /// Open now.
    pub connections: u32,
    pub opened: u64,
    pub connects_failed: u64,
    pub probes: u64,
    pub probes_failed: u64,
    /// `nat` only: connections that it has not answered yet, and those that it never has.
    pub half_open: u32,
    pub unanswered: u64,
    /// It passes its checks, and has not answered a single client.
    pub astray: bool,
}

/// Packets by drop reason.
pub type Drops = BTreeMap<String, u64>;

/// An external address: the one on the wire, and the one that the world sees if that is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub private: Ipv4Addr,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub public: Option<Ipv4Addr>,
}

/// How many sessions there are and were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    pub live: u32,
    pub limit: u32,
    pub limit_per_address: u32,
    pub mappings: u32,
    /// Internal addresses with a session.
    pub internal_addresses: u32,
    pub opened: u64,
    pub established: u64,
    pub closed: u64,
}

/// Packets and their IPv4 bytes; a super-frame counts as one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficReport {
    pub packets: u64,
    pub bytes: u64,
}

/// What the fast path has done, and how full it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FastPathReport {
    /// Of a session carried there, each direction is a flow.
    pub flows: u32,
    pub capacity: u32,
    /// How often a session was not taken, for want of room or of a route.
    pub refused: u64,
    /// Translated packets among those and the misses, of 1; absent before the first packet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hit_ratio: Option<f64>,
    /// By the direction in which they left.
    pub translated: BTreeMap<String, TrafficReport>,
    /// Packets left to the engine, by reason.
    pub misses: BTreeMap<String, u64>,
    /// Packets that are the host's, or may be.
    pub passed: u64,
    /// NAT's packets lost because they came by a receive queue that nobody reads.
    pub unserved: u64,
}

/// Some sessions, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    pub sessions: Vec<Session>,
    /// How many sessions the query matched, whether they are listed or not.
    pub matched: u64,
    /// All live sessions and mappings.
    pub live: u32,
    pub mappings: u32,
}

/// A session at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub protocol: String,
    pub internal: SocketAddrV4,
    pub external: SocketAddrV4,
    pub remote: SocketAddrV4,
    pub state: String,
    /// `internal` or `external`.
    pub opened_by: String,
    pub age_seconds: f64,
    pub idle_seconds: f64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
}
