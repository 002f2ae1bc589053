//! One test for each requirement of the NAT RFCs that applies, named for the behaviour that it shows.
//! `docs/rfc-compliance.md` lists them; `compliance` checks that list.

#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "what is wrong in a test is to fail it"
)]

mod compliance;
mod rfc4787;
mod rfc4787_packets;
mod rfc5382;
mod rfc5382_sessions;
mod rfc5508;
mod rfc5508_errors;
mod rfc6888;
mod rfc7857;
#[path = "../support/mod.rs"]
mod support;
