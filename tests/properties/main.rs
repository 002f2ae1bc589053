//! Properties that hold for all packets and all sequences of packets.

#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "what is wrong in a test is to fail it"
)]

mod offload;
mod sequences;
mod simulator;
#[path = "../support/mod.rs"]
mod support;
mod translation;
mod twins;
mod world;
