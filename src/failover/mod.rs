//! Who hosts which gateway.
//!
//! A [`Gateway`] moves as one: its Elastic IPs and its routes. Whoever holds its first Elastic IP, as EC2 says, is its
//! host; nobody else ever writes its routes.

mod action;
mod config;
mod event;
mod message;

pub use action::{Action, Address, Association, Call, CallError, CallId, Done, Held, Observation, Route};
pub use config::{
    Config, ConfigError, Failback, Gateway, MOST_ALLOCATIONS, MOST_DESTINATIONS, MOST_PEERS, MOST_ROUTE_TABLES,
    Timing,
};
pub use event::{
    Abandoned, Event, GatewayStatus, Host, Life, NotHandedOver, OrderError, PeerStatus, Refusal, Status, Why,
};
pub use message::{
    Answer, Echo, Health, Heartbeat, Hello, Hosting, Message, Offer, Planned, Reply, Role, Unwilling, VERSION,
};
