//! `egret::aws` through the real SDK over HTTP, against stubs on loopback.
#![cfg(feature = "aws")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "the SDK and the daemon run in real time")]

#[path = "aws/daemon.rs"]
mod daemon;
#[path = "aws/doctor.rs"]
mod doctor;
#[path = "aws/dry_run.rs"]
mod dry_run;
#[path = "aws/ec2.rs"]
mod ec2;
#[path = "aws/environment.rs"]
mod environment;
#[path = "aws/executor.rs"]
mod executor;
#[path = "aws/failover.rs"]
mod failover;
#[path = "aws/fleet.rs"]
mod fleet;
#[path = "aws/http.rs"]
mod http;
#[path = "aws/imds.rs"]
mod imds;
#[path = "aws/key_parameter.rs"]
mod key_parameter;
#[path = "lab/mod.rs"]
mod lab;
#[path = "aws/lifecycle.rs"]
mod lifecycle;
#[path = "aws/moto.rs"]
mod moto;
#[path = "aws/moto_vpc.rs"]
mod moto_vpc;
#[path = "aws/notices.rs"]
mod notices;
#[path = "aws/peers_by_tag.rs"]
mod peers_by_tag;
#[path = "aws/reconcile.rs"]
mod reconcile;
#[path = "aws/replaced.rs"]
mod replaced;
#[path = "aws/site.rs"]
mod site;
#[path = "aws/tag_targets.rs"]
mod tag_targets;
#[path = "aws/vpc.rs"]
mod vpc;

/// What an empty configuration, as these tests have, comes to where drivers can.
const DATAPATH: lab::Datapath = lab::Datapath::Xdp;
