//! Failover under virtual time: a fleet of two to five instances, a model of EC2, a model of the network between them,
//! and whatever can go wrong with each. Nothing here waits: hours pass in seconds.
//!
//! `world` is the simulation, `ec2` and `net` its models, and `checks` what must hold at every step. `seeds` lets
//! chance choose what goes wrong; the other modules show one behaviour by one test.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what is wrong in a test is to fail it"
)]

mod chance;
mod checks;
mod ec2;
mod net;
mod seeds;
mod world;
