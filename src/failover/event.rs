//! What a fleet tells: events for the log, and how everything stands.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::CallError;
use super::config::ConfigError;
use super::message::{Health, Planned, Role, Unwilling};

/// Something that whoever reads the log wants to know. Everything but [`Event::CallFailed`] is a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer's definition is taken.
    PeerKnown {
        peer: String,
    },
    /// Nothing is done for this peer until it tells something else.
    PeerRefused {
        peer: String,
        why: Refusal,
    },
    PeerChanged {
        peer: String,
        from: Life,
        to: Life,
    },
    /// A peer has become unwell, or well again.
    PeerHealth {
        peer: String,
        health: Health,
    },
    /// The first address is somewhere else than before.
    Moved {
        gateway: String,
        from: Host,
        to: Host,
    },
    TakingOver {
        gateway: String,
        why: Why,
    },
    /// Taking it over has ended without success.
    Abandoned {
        gateway: String,
        why: Abandoned,
    },
    /// Addresses and routes are observed to be here.
    Active {
        gateway: String,
        why: Why,
        took: Duration,
    },
    /// Nobody is well: the routes lead to the standby NAT gateway now.
    FellBack {
        gateway: String,
    },
    /// Routes are taken back from the standby NAT gateway.
    TakenBack {
        gateway: String,
    },
    StoodDown {
        gateway: String,
        host: Host,
    },
    /// An address or a route was not as it should be, and is put back.
    Mending {
        gateway: String,
        what: String,
    },
    Offered {
        gateway: String,
        to: String,
        why: Planned,
    },
    /// An offer has come to nothing.
    NotHandedOver {
        gateway: String,
        to: String,
        why: NotHandedOver,
    },
    CallFailed {
        gateway: Option<String>,
        call: &'static str,
        error: CallError,
    },
    /// Nothing was called for this long, and all that was known is stale.
    Asleep {
        gap: Duration,
    },
}

/// Whether a peer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Heard within `dead_after`.
    Alive,
    /// Silent, but not enough of the others miss it.
    Suspect,
    /// Silent for most of those who could hear it.
    Dead,
}

/// Where a gateway's first address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "of")]
pub enum Host {
    /// Not observed yet.
    Unknown,
    /// Associated with nothing.
    Nobody,
    /// Its name; the own one as well.
    Instance(String),
    /// On an interface of nobody in the fleet, whose id this is.
    Stranger(String),
}

/// Why a gateway is, or was, taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The address was here when this instance came.
    Found,
    /// Nobody had the address.
    Free,
    /// The host is dead.
    Silence,
    /// The host lives, and says that it is unwell.
    Unwell,
    /// The host has offered it.
    HandOver(Planned),
}

/// Why a take-over has ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Abandoned {
    /// Somebody else has the address.
    Lost,
    /// The reason is gone: the host is heard again, or well.
    NoReason,
    /// This instance is not fit any more.
    Unfit,
    /// It has taken too long.
    TooLong,
}

/// Why a hand-over has come to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NotHandedOver {
    #[error("refused: {0}")]
    Refused(Unwilling),
    #[error("there was no answer")]
    NoAnswer,
    #[error("it was not done in time")]
    TooLong,
    #[error("the peer gave up")]
    GaveUp,
    #[error("it was called off")]
    CalledOff,
}

/// Why nothing is done for a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it speaks version {theirs} of the protocol, and this instance {ours}")]
    Version { ours: u32, theirs: u32 },
    #[error("it is reached as {expected} and says that its home gateway is {told}")]
    Name { expected: String, told: String },
    #[error("it claims this instance's home gateway {0}")]
    OwnHome(String),
    #[error("it claims the network interface {0} of {1}")]
    Interface(String, String),
    #[error("it claims {what}, which belongs to gateway {of}")]
    Claims { what: String, of: String },
    #[error("it is no peer in this instance's configuration")]
    Unknown,
    #[error("its definition is wrong: {0}")]
    Wrong(#[from] ConfigError),
}

/// Why an operator's order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("there is no gateway {0}")]
    NoGateway(String),
    #[error("{0} is no peer")]
    NoPeer(String),
    #[error("{peer} is none of the heirs of {gateway}")]
    NoHeir { gateway: String, peer: String },
    #[error("gateway {gateway} is not active here, but {host}: give the order there")]
    NotHere { gateway: String, host: Host },
    #[error("{0} is not heard")]
    NotHeard(String),
    #[error("{0} is heard: give the order there")]
    Heard(String),
    #[error("{peer} is heard by {by}: give the order there")]
    HeardBy { peer: String, by: String },
    #[error("this instance is not well, or does not know yet whether it is")]
    Unfit,
    #[error("no gateway is at {0}, as far as EC2 has shown")]
    NothingThere(String),
    #[error("a hand-over of gateway {0} is under way")]
    UnderWay(String),
}

/// How everything stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    pub name: String,
    pub health: Health,
    pub leaving: bool,
    pub gateways: Vec<GatewayStatus>,
    pub peers: Vec<PeerStatus>,
}

/// How a gateway stands, as this instance sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GatewayStatus {
    pub gateway: String,
    pub host: Host,
    /// What this instance is to it.
    pub role: Role,
    /// For how long the host has been the host, as far as was seen.
    pub since_seconds: Option<f64>,
    /// Why it has come to where it is, or is coming here. Of another host's, as far as it has told.
    pub why: Option<Why>,
    /// The age of the last observation.
    pub observed_seconds: Option<f64>,
    /// What keeps it from being as it should, if it is known.
    pub trouble: Option<String>,
    /// To whom it is being handed over.
    pub offered_to: Option<String>,
}

/// How a peer stands, as this instance sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerStatus {
    pub peer: String,
    pub life: Life,
    pub linked: bool,
    /// As it has last told.
    pub health: Option<Health>,
    pub leaving: bool,
    pub silent_seconds: f64,
    /// Of the last heartbeat that came back.
    pub round_trip_seconds: Option<f64>,
    /// Why nothing is done for it.
    pub refused: Option<String>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not observed yet"),
            Self::Nobody => f.write_str("nowhere"),
            Self::Instance(name) => write!(f, "at {name}"),
            Self::Stranger(eni) => write!(f, "on {eni}, which is nobody's of the fleet"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Found => "the address was here at the start",
            Self::Free => "nobody had the address",
            Self::Silence => "the host was silent",
            Self::Unwell => "the host was unwell",
            Self::HandOver(Planned::Operator) => "an operator's order",
            Self::HandOver(Planned::Leaving) => "the host was about to stop",
            Self::HandOver(Planned::Failback) => "failback",
        })
    }
}
