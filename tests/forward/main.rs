//! Forwarding, between sockets on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod headers;
mod listener;
mod probe;
mod relay;
mod service;
mod target;
