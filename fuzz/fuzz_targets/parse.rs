//! Any bytes: the parser does not panic, what it accepts holds together, and a translation keeps its checksums.
#![no_main]

#[path = "../../tests/support/mod.rs"]
mod support;

use egret::wire::{Endpoint, Headers, Packet, Transport};
use libfuzzer_sys::fuzz_target;
use support::*;

fuzz_target!(init: write_seeds(), |data: &[u8]| {
    // As it is, and with the checksums mended, so that more of it is looked at.
    parse(data.to_vec());
    parse(mended(data.to_vec()));
});

fn parse(mut bytes: Vec<u8>) {
    let offered = bytes.len();
    let mut packet = Packet::plain(&mut bytes);
    let Ok(headers) = Headers::parse(&mut packet) else { return };
    assert!(packet.bytes.len() >= 20 && packet.bytes.len() <= offered);
    assert!(packet.headers_length(&headers) <= packet.bytes.len());
    assert!(headers.source != headers.destination);
    let was_right = checksum_complaint(packet.bytes).is_none();
    packet.clamp_mss(&headers, 536);
    packet.set_identification(7);
    let (source, destination) = (Endpoint::new(EXTERNAL, 4000), Endpoint::new(PUBLIC, 53));
    match &headers.transport {
        Transport::Error(embedded) => {
            let addresses = (EXTERNAL, PUBLIC);
            packet.translate_error(&headers, embedded, addresses, (source, destination), 9);
        }
        _ => packet.translate(&headers, source, destination, 9),
    }
    let complaint = checksum_complaint(packet.bytes);
    // Not the other way round: of the two forms of zero that a checksum may have, only one comes out.
    assert!(complaint.is_none() || !was_right, "{complaint:?}: {:02x?}", packet.bytes);
}

/// The bytes with right IP header and ICMP checksums.
fn mended(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() < 28 {
        return bytes;
    }
    bytes[0] = 0x45;
    let length = u16::from_be_bytes([bytes[2], bytes[3]]);
    let length = if usize::from(length) > bytes.len() || length < 20 { bytes.len() } else { length.into() };
    bytes[2..4].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    let sum = pnet_packet::util::checksum(&bytes[..20], 5);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    if bytes[9] == 1 && length >= 28 {
        let sum = pnet_packet::util::checksum(&bytes[20..length], 1);
        bytes[22..24].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn write_seeds() {
    let Some(directory) = std::env::var_os("EGRET_FUZZ_SEEDS") else { return };
    let (inside, outside) = ("10.0.0.2:4000", "198.51.100.1:53");
    let datagram = udp(inside, outside).bytes();
    let syn_options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let seeds = [
        datagram.clone(),
        udp(inside, outside).no_checksum().df().bytes(),
        tcp(inside, outside, SYN).tcp_options(&syn_options).bytes(),
        tcp(inside, outside, FIN | ACK).payload(b"last").bytes(),
        ping("10.0.0.2", "198.51.100.1", 7).bytes(),
        icmp_error("198.51.100.9", "192.0.2.1", (3, 4), &datagram).bytes(),
        icmp_error("198.51.100.9", "192.0.2.1", (11, 0), &ping("192.0.2.1", "198.51.100.1", 7).bytes()).bytes(),
        other("10.0.0.2", "198.51.100.1", 47).bytes(),
        fragment(&udp(inside, outside).filled(200).bytes(), 104).remove(1),
    ];
    for (number, seed) in seeds.iter().enumerate() {
        // Without seeds the fuzzer only starts slower.
        let _ = std::fs::write(std::path::Path::new(&directory).join(format!("seed-{number}")), seed);
    }
}
