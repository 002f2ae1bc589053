//! The balancing core under virtual time: health, who serves, selection, draining, and the door of a listener.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what is wrong in a test is to fail it"
)]

mod admission;
mod configuration;
mod draining;
mod flow_hash;
mod health;
mod probes;
mod properties;
mod rig;
mod selection;
mod serving;
mod snapshot;
mod stickiness;
