//! Egret: a user-space NAT instance for a VPC.
//!
//! The modules form ranks, and each imports only from lower ones, which `tests/layering.rs` holds:
//!
//! | rank | modules |
//! |---|---|
//! | 0 | [`wire`]: headers in memory; [`time`]: time as an argument |
//! | 1 | [`nat`]: the NAT engine; [`balance`]: target groups; [`failover`]: who hosts which gateway; [`talkers`]: who talks most |
//! | 2 | [`datapath`]: moving packets; [`forward`]: forwarding TCP; `aws` (a feature): EC2; [`peer`]: between instances |
//! | 3 | [`config`]: the file; [`metrics`]: what Prometheus scrapes; [`admin`]: the control socket and HTTP |
//! | 4 | [`daemon`]: the composition |
//! | 5 | [`cli`]: the command line |
//!
//! Ranks 0 and 1 are *sans-IO*: they are given bytes, events, `now` and a seed, and return verdicts and actions.

// The library by its name, as what it shares with tests/ knows it.
#[cfg(test)]
extern crate self as egret;

pub mod admin;
#[cfg(feature = "aws")]
pub mod aws;
pub mod balance;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod failover;
pub mod forward;
pub mod metrics;
pub mod nat;
pub mod peer;
pub mod talkers;
pub mod time;
pub mod wire;
