//! The PROXY protocol as its specification has it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::net::{IpAddr, SocketAddr};

use egret::forward::proxy_protocol::{Header, MOST_BYTES, ParseError, Version, encode, parse};
use proptest::prelude::*;

const SIGNATURE: &[u8] = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a";

fn at(endpoint: &str) -> SocketAddr {
    endpoint.parse().unwrap()
}

fn proxied(source: &str, destination: &str) -> Header {
    Header::Proxied { source: at(source), destination: at(destination) }
}

fn header(bytes: &[u8]) -> Header {
    let (header, length) = parse(bytes).unwrap().unwrap();
    assert_eq!(length, bytes.len());
    header
}

/// A version 2 header with this version and command, family and transport, and what follows them.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

#[test]
fn text_is_as_in_the_specification() {
    let line = encode(Version::V1, at("192.168.0.1:56324"), at("192.168.0.11:443"));
    assert_eq!(line, b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
    assert_eq!(header(&line), proxied("192.168.0.1:56324", "192.168.0.11:443"));
    let line = encode(Version::V1, at("[2001:db8::1]:1"), at("[2001:db8::ffff]:65535"));
    assert_eq!(line, b"PROXY TCP6 2001:db8:0:0:0:0:0:1 2001:db8:0:0:0:0:0:ffff 1 65535\r\n");
}

#[test]
fn binary_is_as_in_the_specification() {
    let bytes = encode(Version::V2, at("192.0.2.1:258"), at("198.51.100.2:443"));
    let rest = [192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 1, 187];
    assert_eq!(bytes, binary(0x21, 0x11, &rest));
    let bytes = encode(Version::V2, at("[2001:db8::1]:258"), at("[2001:db8::2]:443"));
    assert_eq!(bytes[12..16], [0x21, 0x21, 0, 36]);
    assert_eq!(header(&bytes), proxied("[2001:db8::1]:258", "[2001:db8::2]:443"));
}

#[test]
fn mapped_addresses_are_sent_as_ipv4() {
    for version in [Version::V1, Version::V2] {
        let mapped = encode(version, at("[::ffff:192.0.2.1]:5"), at("[::ffff:192.0.2.2]:6"));
        assert_eq!(mapped, encode(version, at("192.0.2.1:5"), at("192.0.2.2:6")));
    }
}

#[test]
fn two_families_are_sent_as_ipv6() {
    let line = encode(Version::V1, at("192.0.2.1:5"), at("[2001:db8::2]:6"));
    assert_eq!(line, b"PROXY TCP6 0:0:0:0:0:ffff:c000:201 2001:db8:0:0:0:0:0:2 5 6\r\n");
}

#[test]
fn lines_that_match_are_taken() {
    let worst = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
    assert_eq!(worst.len(), 107);
    for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN whatever \x01 it is\r\n", &worst] {
        assert_eq!(header(line.as_bytes()), Header::Local, "{line:?}");
    }
    let line = "PROXY TCP6 2001:DB8::1 ::1 0 65535\r\n";
    assert_eq!(header(line.as_bytes()), proxied("[2001:db8::1]:0", "[::1]:65535"));
}

#[test]
fn lines_that_do_not_match_exactly_are_refused() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4\t192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\u{e9}\r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(ParseError::Line), "{line:?}");
    }
    assert_eq!(parse(b"PROXY TCP4 \xff\r\n"), Err(ParseError::Line));
}

#[test]
fn line_that_does_not_end_in_time_is_refused() {
    let line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
    assert_eq!(parse(&line[..106]), Ok(None));
    assert_eq!(parse(&line[..107]), Err(ParseError::TooLong));
    let late = [&line[..106], b"\r\n"].concat();
    assert_eq!(parse(&late), Err(ParseError::TooLong));
    let in_time = [&line[..105], b"\r\n"].concat();
    assert_eq!(header(&in_time), Header::Local);
}

#[test]
fn other_protocols_are_refused_at_their_first_byte_that_differs() {
    for (bytes, enough) in [
        (b"GET / HTTP/1.1\r\n".as_slice(), 1),
        (b"\x16\x03\x01\x02\x00", 1),
        (b"PRI * HTTP/2.0\r\n", 3),
        (b"PROXY\r\n", 6),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", 5),
        (b"\r\n\r\n\0\r\nQUIT\r\n", 12),
    ] {
        assert_eq!(parse(&bytes[..enough - 1]), Ok(None), "{bytes:?}");
        assert_eq!(parse(&bytes[..enough]), Err(ParseError::NoHeader), "{bytes:?}");
    }
}

#[test]
fn connection_of_the_senders_own_is_local_whatever_it_says() {
    for (family, rest) in [(0x00, &[][..]), (0x11, &[1; 12]), (0xff, &[7; 3])] {
        assert_eq!(header(&binary(0x20, family, rest)), Header::Local);
    }
}

#[test]
fn families_that_are_not_of_tcp_are_local() {
    for family in [0x00, 0x01, 0x02, 0x10, 0x12, 0x20, 0x22, 0x30, 0x31, 0x32] {
        assert_eq!(header(&binary(0x21, family, &[1; 216])), Header::Local, "{family:#x}");
    }
}

#[test]
fn unassigned_values_are_refused() {
    for command in (0..=255).filter(|command| *command != 0x20 && *command != 0x21) {
        assert_eq!(parse(&binary(command, 0x11, &[1; 12])), Err(ParseError::Command(command)));
    }
    for family in [0x03, 0x13, 0x1f, 0x40, 0x41, 0xff] {
        assert_eq!(parse(&binary(0x21, family, &[1; 216])), Err(ParseError::Family(family)));
    }
}

#[test]
fn addresses_must_be_complete() {
    assert_eq!(parse(&binary(0x21, 0x11, &[1; 11])), Err(ParseError::Addresses));
    assert_eq!(parse(&binary(0x21, 0x21, &[1; 35])), Err(ParseError::Addresses));
}

#[test]
fn what_follows_the_addresses_is_skipped() {
    let addresses = [192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 1, 187];
    // A network load balancer's: the VPC endpoint that the client came by (PP2_TYPE_AWS).
    let endpoint = [&[0xea, 0, 5, 1][..], b"vpce"].concat();
    let bytes = binary(0x21, 0x11, &[&addresses[..], &endpoint].concat());
    assert_eq!(header(&bytes), proxied("192.0.2.1:258", "198.51.100.2:443"));
}

#[test]
fn header_has_a_greatest_length() {
    let most = binary(0x21, 0x11, &vec![1; MOST_BYTES - 16]);
    assert!(parse(&most).unwrap().is_some());
    let more = binary(0x21, 0x11, &vec![1; MOST_BYTES - 15]);
    assert_eq!(parse(&more[..16]), Err(ParseError::TooLong), "before the rest of it has come");
}

fn endpoint() -> impl Strategy<Value = (bool, [u8; 16], u16)> {
    any::<(bool, [u8; 16], u16)>()
}

fn family(v6: bool, octets: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = octets;
    if v6 { IpAddr::from(octets) } else { IpAddr::from([a, b, c, d]) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sent_is_understood_however_it_is_cut(
        (v6, from, source) in endpoint(),
        (_, to, destination) in endpoint(),
        text in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let source = SocketAddr::new(family(v6, from).to_canonical(), source);
        let destination = SocketAddr::new(family(v6, to).to_canonical(), destination);
        prop_assume!(source.is_ipv4() == destination.is_ipv4());
        let header = encode(if text { Version::V1 } else { Version::V2 }, source, destination);
        prop_assert!(header.len() <= 107);
        let bytes = [header.as_slice(), &payload].concat();
        for end in 0..header.len() {
            prop_assert_eq!(parse(&bytes[..end]), Ok(None), "{} bytes", end);
        }
        let expected = Ok(Some((Header::Proxied { source, destination }, header.len())));
        for end in header.len()..=bytes.len() {
            prop_assert_eq!(parse(&bytes[..end]), expected);
        }
    }

    #[test]
    fn no_bytes_panic_or_are_kept_for_ever(
        start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", SIGNATURE,
            b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00"]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
        fill in any::<u8>(),
    ) {
        let mut bytes = [start, &rest].concat();
        if let Ok(Some((_, length))) = parse(&bytes) {
            prop_assert!(length <= bytes.len());
        }
        bytes.resize(MOST_BYTES.max(bytes.len()), fill);
        prop_assert_ne!(parse(&bytes), Ok(None), "whoever has this many knows");
    }

    #[test]
    fn verdict_does_not_change_with_more_bytes(
        text in any::<bool>(),
        at in 0..60_usize,
        with in any::<u8>(),
        more in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let version = if text { Version::V1 } else { Version::V2 };
        let mut bytes = encode(version, "192.0.2.1:1000".parse().unwrap(), "192.0.2.2:443".parse().unwrap());
        let at = at % bytes.len();
        bytes[at] = with;
        if let verdict @ (Ok(Some(_)) | Err(_)) = parse(&bytes) {
            bytes.extend(&more);
            prop_assert_eq!(parse(&bytes), verdict);
        }
    }
}
