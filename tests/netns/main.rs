//! The NAT with real packets, which come and go by packet sockets.

#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]

#[path = "../lab/mod.rs"]
mod lab;
#[path = "suite.rs"]
mod suite;

// What the daemon does above the packets is the same for every datapath, and shown with this one alone.
mod api;
mod doctor;
mod manager;
mod observation;
mod operations;
mod packet_socket;
mod pressure;
mod services;
mod targets;

/// The one that takes super-frames in one piece.
const DATAPATH: lab::Datapath = lab::Datapath::AfPacket;
