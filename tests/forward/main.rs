//! Forwarding, between sockets on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod certificates;
mod headers;
mod listener;
mod names;
#[path = "../support/pki.rs"]
mod pki;
mod pressure;
mod probe;
mod relay;
mod service;
mod target;
mod tls;
mod tls_support;
