//! IPv4 packets in memory: reading headers, checking them, and rewriting them in place.
//!
//! Owns what a header may look like before anything else of Egret believes it: [`Headers::parse`] checks every
//! length, the IP header checksum (RFC 791) and the ICMP checksum (RFC 792), and refuses what no honest stack
//! sends. Reading and rewriting allocate nothing, and no input panics. Field access goes through the views of
//! `pnet_packet`.

pub mod checksum;
mod headers;
pub mod icmp;
mod packet;
mod tuple;

pub use headers::{Embedded, Fragment, Headers, Malformed, TcpSegment, Transport};
pub use packet::{Offload, Packet, fragments};
pub use pnet_packet::tcp::TcpFlags;
pub use tuple::{Endpoint, FiveTuple, Protocol};
