//! What the engine tells the rest of Egret: verdicts, counters, and events of sessions.

use std::time::Duration;

use serde::Serialize;

use super::census::Census;
use super::offload::Usage;
use super::tcp::TcpState;
use super::wheel;
use crate::time::Instant;
use crate::wire::{Endpoint, Malformed, Protocol};

/// One of our two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Internal,
    External,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Internal => Self::External,
            Self::External => Self::Internal,
        }
    }
}

/// What is to become of a packet. After every call, whatever [`super::Engine::poll_transmit`] holds is to be
/// sent as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Translated in place: send it on the side opposite to where it came from.
    Forward,
    /// Translated in place, from one internal endpoint to another: send it on the internal side.
    Hairpin,
    /// Taken over by the engine: it leaves by `poll_transmit`, at once as fragments, or once the first fragment
    /// of its datagram, or its session from the fast path, has come.
    Queued,
    /// Dropped, and an answer to its sender (RST or ICMP) is in `poll_transmit`.
    Reply(DropReason),
    /// Dropped.
    Drop(DropReason),
}

/// A packet that the engine made or held back. Complete checksums, at most the side's MTU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The side to send it on.
    pub side: Side,
    /// The packet from its IPv4 header on.
    pub packet: Vec<u8>,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// Idle for its timeout.
    Expired,
    /// TCP: both sides closed it and the transitory timeout passed.
    Finished,
    /// TCP: reset, and the transitory timeout passed.
    Reset,
    /// TCP: a new connection on the same endpoints took its place.
    Reopened,
    /// Its external address left the configuration.
    AddressRemoved,
    /// A target that has not answered was left for another one.
    Unanswered,
    /// No target took it.
    Refused,
    /// Its target was taken out of service, and both ends were told.
    Cut,
}

impl CloseReason {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 8] = [
        Self::Expired,
        Self::Finished,
        Self::Reset,
        Self::Reopened,
        Self::AddressRemoved,
        Self::Unanswered,
        Self::Refused,
        Self::Cut,
    ];

    /// The label, in snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::Reopened => "reopened",
            Self::AddressRemoved => "address_removed",
            Self::Unanswered => "unanswered",
            Self::Refused => "refused",
            Self::Cut => "cut",
        }
    }
}

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Traffic in one direction only.
    Unreplied,
    /// Traffic in both directions.
    Replied,
    #[serde(untagged)]
    Tcp(TcpState),
}

/// A session at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SessionRecord {
    pub protocol: Protocol,
    pub internal: Endpoint,
    /// The private external address and port that stand for `internal`.
    pub external: Endpoint,
    pub remote: Endpoint,
    pub state: SessionState,
    /// Who sent the first packet.
    pub opened_by: Side,
    #[serde(skip)]
    pub opened_at: Instant,
    /// Since the first packet.
    #[serde(rename = "age_seconds", serialize_with = "seconds")]
    pub age: Duration,
    /// Since the last packet.
    #[serde(rename = "idle_seconds", serialize_with = "seconds")]
    pub idle: Duration,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    /// The fast path carries it: the counts lack what its flows hold ([`super::Engine::flow_keys`]).
    pub offloaded: bool,
    /// What [`super::Engine::account`] has not told yet; of a closed session, the rest.
    #[serde(skip)]
    pub fresh: Traffic,
    /// It took its external port: it was the first of its mapping.
    #[serde(skip)]
    pub took_port: bool,
}

impl SessionRecord {
    /// Adds what the session's flows hold at `now`, `out` being that of its internal endpoint.
    pub fn add(&mut self, now: Instant, out: Usage, back: Usage) {
        self.packets_out += out.packets;
        self.bytes_out += out.bytes;
        self.packets_in += back.packets;
        self.bytes_in += back.bytes;
        self.fresh.packets += out.packets + back.packets;
        self.fresh.bytes += out.bytes + back.bytes;
        let last_use = wheel::instant(wheel::tick(out.last_use.max(back.last_use)));
        self.idle = self.idle.min(now - last_use);
    }
}

/// Something that happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Opened(SessionRecord),
    /// A reply came: for TCP, the handshake is complete.
    Established(SessionRecord),
    Closed(SessionRecord, CloseReason),
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a packet was dropped. Each is a label of one counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The label, in snake case.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say.
    Truncated = "truncated",
    /// Not IPv4, or a header field that contradicts another.
    BadHeader = "bad_header",
    /// The IP header or ICMP checksum is wrong.
    BadChecksum = "bad_checksum",
    /// IP options (RFC 7126 allows to drop them).
    IpOptions = "ip_options",
    /// TCP flags that no stack sends.
    BadFlags = "bad_flags",
    /// A source or destination that must not cross a router (RFC 1812 section 5.3.7), or both the same.
    Martian = "martian",
    /// From inside, but not from an internal prefix.
    NotInternal = "not_internal",
    /// From outside, to an address that is not external.
    NotExternal = "not_external",
    /// No session and no mapping that it may use.
    NoSession = "no_session",
    /// A mapping, but the filter does not let this remote in.
    Filtered = "filtered",
    /// TCP from inside, or to a service, without a session.
    TcpNoSession = "tcp_no_session",
    /// An RST outside of the window (RFC 7857 section 2.2).
    RstOutOfWindow = "rst_out_of_window",
    /// TTL used up here.
    TtlExceeded = "ttl_exceeded",
    /// Too big for the next link, and must not be fragmented.
    TooBig = "too_big",
    /// No port, identifier or address left for it.
    PortsExhausted = "ports_exhausted",
    /// The limit of sessions in all.
    SessionLimit = "session_limit",
    /// The limit of sessions of this internal address.
    AddressSessionLimit = "address_session_limit",
    /// The limit of new sessions per second of this internal address.
    AddressRateLimit = "address_rate_limit",
    /// Fragments that overlap, or too many of one datagram (RFC 1858, RFC 5722).
    FragmentOverlap = "fragment_overlap",
    /// No memory left for fragments that wait.
    FragmentLimit = "fragment_limit",
    /// The first fragment did not come in time.
    FragmentTimeout = "fragment_timeout",
    /// To a service, by a client that may not, or not that often.
    NotAdmitted = "not_admitted",
    /// To a service that has no target for it.
    NoTarget = "no_target",
    /// An ICMP error about a packet that no session sent.
    IcmpNoSession = "icmp_no_session",
    /// An ICMP message that a NAT does not pass (RFC 5508 REQ-10 and REQ-11).
    IcmpType = "icmp_type",
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Truncated => Self::Truncated,
            Malformed::BadHeader => Self::BadHeader,
            Malformed::BadChecksum => Self::BadChecksum,
            Malformed::Options => Self::IpOptions,
            Malformed::BadFlags => Self::BadFlags,
            Malformed::Martian => Self::Martian,
            Malformed::IcmpType => Self::IcmpType,
        }
    }
}

/// Everything that the engine counts. Plain numbers that only rise, but for the gauges at the end.
///
/// Of packets that is what came by the engine: whoever runs a fast path adds what that has carried to the four
/// directions and to `hairpinned`. Sessions' own counts need no such addition once their flows are home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets and bytes (of IPv4) in the four directions in which a NAT gateway counts them.
    pub in_from_internal: Traffic,
    pub out_to_external: Traffic,
    pub in_from_external: Traffic,
    pub out_to_internal: Traffic,
    pub hairpinned: Traffic,
    pub sessions_opened: u64,
    pub sessions_established: u64,
    pub sessions_closed: u64,
    /// By [`CloseReason`], in the order of [`CloseReason::ALL`].
    pub closed: [u64; CloseReason::ALL.len()],
    /// Mappings that share their external endpoint with another.
    pub ports_overloaded: u64,
    /// ICMP errors translated.
    pub icmp_errors: u64,
    pub fragments: u64,
    /// Packets that were cut to fit the MTU.
    pub fragmented: u64,
    /// RST and ICMP answers sent, and those withheld by the rate limit.
    pub replies: u64,
    pub replies_limited: u64,
    /// Events that nobody fetched in time.
    pub events_lost: u64,
    /// Conversations offered to the fast path, and those that it had no room for.
    pub offloads: u64,
    pub offloads_refused: u64,
    /// By [`DropReason`], in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// Gauges: live sessions, those of them in the fast path, and mappings; internal addresses with a session;
    /// bytes of waiting fragments.
    pub sessions: u32,
    pub census: Census,
    pub offloaded: u32,
    pub mappings: u32,
    pub internal_addresses: u32,
    pub fragment_bytes: usize,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            in_from_internal: Traffic::default(),
            out_to_external: Traffic::default(),
            in_from_external: Traffic::default(),
            out_to_internal: Traffic::default(),
            hairpinned: Traffic::default(),
            sessions_opened: 0,
            sessions_established: 0,
            sessions_closed: 0,
            closed: [0; CloseReason::ALL.len()],
            ports_overloaded: 0,
            icmp_errors: 0,
            fragments: 0,
            fragmented: 0,
            replies: 0,
            replies_limited: 0,
            events_lost: 0,
            offloads: 0,
            offloads_refused: 0,
            drops: [0; DropReason::ALL.len()],
            sessions: 0,
            census: Census::default(),
            offloaded: 0,
            mappings: 0,
            internal_addresses: 0,
            fragment_bytes: 0,
        }
    }
}

impl Counters {
    /// How many packets were dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }
}

/// Packets and their bytes, counted from the IPv4 header on; a super-frame counts as one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

impl Traffic {
    /// Counts one packet of `bytes`.
    pub fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}
