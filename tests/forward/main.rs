//! Forwarding, between sockets on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod certificates;
mod headers;
mod listener;
mod names;
#[path = "../support/pki.rs"]
mod pki;
mod pressure;
mod probe;
mod relay;
mod service;
mod target;
mod tls;
mod tls_support;

/// How many segments have come by a connection, its handshake's too.
fn segments_in(stream: &tokio::net::TcpStream) -> u32 {
    let [here, there] = [stream.local_addr(), stream.peer_addr()].map(|address| address.unwrap().port());
    let filter = format!("sport = :{here} and dport = :{there}");
    let seen = std::process::Command::new("ss").args(["-tinH", &filter]).output().unwrap();
    let seen = String::from_utf8(seen.stdout).unwrap();
    let count = seen.split_whitespace().find_map(|word| word.strip_prefix("segs_in:"));
    count.unwrap_or_else(|| panic!("no segments: {seen}")).parse().unwrap()
}
