//! Links between instances, between sockets on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod claims;
mod fleet;
mod hostile;
mod keys;
mod messages;
mod node;
mod proxy;
mod stranger;
mod trouble;
