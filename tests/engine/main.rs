//! The engine beyond the RFCs: malformed input, attackers, limits, static mappings, fragments, segmentation
//! offload, changes of the configuration, and what it tells about itself.

#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "what is wrong in a test is to fail it"
)]

mod accounting;
mod attackers;
mod fast_path;
mod fragments;
mod malformed;
mod mtu;
mod observation;
mod offload;
mod pool;
mod reconfigure;
mod scale;
mod services;
mod static_mappings;
#[path = "../support/mod.rs"]
mod support;
mod tcp;
