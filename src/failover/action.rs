//! What is to be done, what was seen, and how it went: between [`super::Fleet`] and whoever talks to EC2.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::config::Gateway;
use super::message::Message;
use crate::time::Instant;

/// Something to do, in any order and side by side unless an answer is awaited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send it on the link to this peer; drop it if there is none.
    Send { to: String, message: Message },
    /// Look at the addresses and routes of these gateways (`DescribeAddresses`, `DescribeRouteTables`), and answer
    /// by [`super::Fleet::handle_observation`].
    Observe { id: CallId, gateways: Vec<Gateway> },
    /// Change something at EC2, and answer by [`super::Fleet::handle_outcome`]. If it cannot be begun before
    /// `begin_by`, it must not be begun: answer [`CallError::NotMade`].
    Call { id: CallId, gateway: String, call: Call, begin_by: Instant },
    /// Install what is known of the gateway's sessions, and answer by [`super::Fleet::handle_adopted`].
    Adopt { gateway: String },
    /// Addresses and routes are observed to be here: these are the pairs that the datapath translates to.
    Active { gateway: String, addresses: Vec<Held> },
    /// The gateway is somebody else's now, or has not come here after all: what was adopted or active of it ends.
    StandDown { gateway: String },
}

/// Tells calls and observations of one [`super::Fleet`] apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A change at EC2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `DisassociateAddress` of exactly this association.
    Disassociate { association: String },
    /// `AssociateAddress` with a private address of the own interface that has no Elastic IP, with
    /// `AllowReassociation=false`. Which address, and whether one is to be assigned first, the executor decides.
    Associate { allocation: String },
    /// `ReplaceRoute`, or `CreateRoute` if it does not exist.
    Route { table: String, destination: Ipv4Net, target: String, exists: bool },
}

/// What a successful [`Call`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    Disassociated,
    /// With the new association's id, and the private address.
    Associated {
        association: String,
        private: Ipv4Addr,
    },
    Routed,
}

/// Why a call did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CallError {
    /// `InvalidAssociationID.NotFound`: somebody was faster.
    #[error("the association is gone")]
    StaleAssociation,
    /// `Resource.AlreadyAssociated`: somebody was faster.
    #[error("the address is associated")]
    AlreadyAssociated,
    /// `InvalidAllocationID.NotFound`, `InvalidRouteTableID.NotFound`, `InvalidRoute.NotFound`, ...
    #[error("it does not exist")]
    NotFound,
    #[error("throttled")]
    Throttled,
    /// By EC2, for another reason: a permission, a limit, a parameter.
    #[error("refused")]
    Refused,
    /// It was too late to begin, and nothing was sent.
    #[error("not made")]
    NotMade,
    /// No answer: it may have happened, or may yet happen.
    #[error("no answer")]
    Unknown,
}

/// A gateway's addresses and routes, as EC2 has described them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub gateway: String,
    /// In the order of [`Gateway::allocations`]; those that do not exist are left out.
    pub addresses: Vec<Address>,
    /// The wanted destinations that exist in the gateway's tables.
    pub routes: Vec<Route>,
}

/// An Elastic IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub allocation: String,
    pub public: Ipv4Addr,
    pub association: Option<Association>,
}

/// What an Elastic IP is associated with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    pub id: String,
    pub eni: String,
    pub private: Option<Ipv4Addr>,
}

/// A route of a gateway's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub table: String,
    pub destination: Ipv4Net,
    /// `eni-...`, `nat-...`, or whatever else it leads to.
    pub target: String,
    /// Otherwise a black hole.
    pub active: bool,
}

/// An address pair that a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub public: Ipv4Addr,
    pub private: Ipv4Addr,
}
