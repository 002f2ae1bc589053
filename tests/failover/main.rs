//! Failover under virtual time: a fleet of two to five instances, a model of EC2, a model of the network between them,
//! and whatever can go wrong with each. Nothing here waits: hours pass in seconds.
//!
//! A clock of the wall cannot matter, since a fleet has none: what is given to it is monotonic, and every instance's
//! begins at another time and runs at another speed.
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
mod conflicts;
mod ec2;
mod endurance;
mod fallback;
mod hand_over;
mod net;
mod partitions;
mod queries;
mod seeds;
mod take_over;
mod world;
