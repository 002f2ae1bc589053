//! The NAT with real packets, which come and go by XDP.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]

#[path = "../lab/mod.rs"]
mod lab;
#[path = "../netns/suite.rs"]
mod suite;

const DATAPATH: lab::Datapath = lab::Datapath::Xdp;
