//! The NAT with real packets, which come and go by packet sockets.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]

#[path = "../lab/mod.rs"]
mod lab;
#[path = "suite.rs"]
mod suite;

/// The one that takes super-frames in one piece.
const DATAPATH: lab::Datapath = lab::Datapath::AfPacket;
