//! The PROXY protocol, versions 1 and 2: a header before a connection's own bytes that says whose it is.
//!
//! By "The PROXY protocol, versions 1 & 2" (haproxy.org, `proxy-protocol.txt`), whose sections are cited. What is after
//! the addresses of a version 2 header (TLVs) is skipped, checksums included, as section 2.2 allows. Whether a listener
//! takes headers at all is for its configuration to say: section 2 forbids to guess, since anybody could then claim to
//! be anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The format of a header to send; [`parse`] takes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    V2,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The connection is on behalf of `source`, who connected to `destination`.
    Proxied { source: SocketAddr, destination: SocketAddr },
    /// Nothing: the connection's own endpoints count. It is the sender's own, as for a health check, or is for
    /// somebody whose address is not that of a TCP connection.
    Local,
}

/// A header as sent: at most 107 bytes, to be written before all else and in one piece (section 2). IPv4 addresses
/// that are mapped into IPv6 are sent as the IPv4 addresses that they are.
#[must_use]
pub fn encode(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let endpoints = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Family::V4(from, to),
        (from, to) => Family::V6(to_v6(from), to_v6(to)),
    };
    let ports = (source.port(), destination.port());
    match version {
        Version::V1 => encode_line(&endpoints, ports),
        Version::V2 => encode_binary(&endpoints, ports),
    }
}

/// The header at the begin of `bytes`, and its length; `None` if it goes on after them, which it does not beyond
/// [`MOST_BYTES`]. What follows it is the connection's own.
///
/// # Errors
/// Why this is no header; the connection is to be dropped (section 2.1).
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ParseError> {
    if begins_with(bytes, SIGNATURE) {
        parse_binary(bytes)
    } else if begins_with(bytes, LINE) {
        parse_line(bytes)
    } else {
        Err(ParseError::NoHeader)
    }
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("no PROXY protocol header")]
    NoHeader,
    #[error("a PROXY protocol header of more bytes than are allowed")]
    TooLong,
    #[error("a malformed PROXY protocol header of version 1")]
    Line,
    #[error("PROXY protocol version or command {0:#04x} is unknown")]
    Command(u8),
    #[error("PROXY protocol address family or transport {0:#04x} is unknown")]
    Family(u8),
    #[error("a PROXY protocol header too short for its addresses")]
    Addresses,
}

/// Source and destination.
enum Family {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Whether `bytes` begin with `start`, as far as they go.
fn begins_with(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, expected)| byte == expected)
}

/// Section 2.1.
fn encode_line(endpoints: &Family, (source, destination): (u16, u16)) -> Vec<u8> {
    match endpoints {
        Family::V4(from, to) => format!("PROXY TCP4 {from} {to} {source} {destination}\r\n"),
        Family::V6(from, to) => {
            // All in hexadecimal: the dotted form of mapped addresses is not among those that are allowed.
            let text = |address: &Ipv6Addr| address.segments().map(|segment| format!("{segment:x}")).join(":");
            format!("PROXY TCP6 {} {} {source} {destination}\r\n", text(from), text(to))
        }
    }
    .into_bytes()
}

fn parse_line(bytes: &[u8]) -> Result<Option<(Header, usize)>, ParseError> {
    let Some(end) = bytes.windows(2).take(LONGEST_LINE - 1).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= LONGEST_LINE { Err(ParseError::TooLong) } else { Ok(None) };
    };
    let line = bytes.get(LINE.len()..end).and_then(|line| std::str::from_utf8(line).ok());
    let header = line.and_then(read_line).ok_or(ParseError::Line)?;
    Ok(Some((header, end + 2)))
}

/// What is between `PROXY ` and the end of the line.
fn read_line(line: &str) -> Option<Header> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // What follows it "must be ignored".
        return Some(Header::Local);
    }
    let mut address = || -> Option<IpAddr> {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse().ok().map(IpAddr::V4),
            "TCP6" => word.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (from, to) = (address()?, address()?);
    let mut port = || -> Option<u16> {
        // `parse` would take a sign and zeros before the number.
        let word = words.next()?;
        let port: u16 = word.parse().ok()?;
        (port.to_string() == word).then_some(port)
    };
    let (source, destination) = (SocketAddr::new(from, port()?), SocketAddr::new(to, port()?));
    words.next().is_none().then_some(Header::Proxied { source, destination })
}

/// Section 2.2.
fn encode_binary(endpoints: &Family, (source, destination): (u16, u16)) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.push(VERSION | PROXY);
    match endpoints {
        Family::V4(from, to) => {
            bytes.extend([TCP_OVER_V4, 0, 12]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        Family::V6(from, to) => {
            bytes.extend([TCP_OVER_V6, 0, 36]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
    }
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes
}

fn parse_binary(bytes: &[u8]) -> Result<Option<(Header, usize)>, ParseError> {
    let Some((&[command, family, high, low], rest)) =
        bytes.get(SIGNATURE.len()..).and_then(|rest| rest.split_first_chunk())
    else {
        return Ok(None);
    };
    let many = usize::from(u16::from_be_bytes([high, low]));
    let length = SIGNATURE.len() + 4 + many;
    if command != VERSION | PROXY && command != VERSION | LOCAL {
        return Err(ParseError::Command(command));
    }
    if length > MOST_BYTES {
        return Err(ParseError::TooLong);
    }
    let Some(rest) = rest.get(..many) else { return Ok(None) };
    // The family "is ignored" in a connection of the sender's own.
    let header = if command == VERSION | LOCAL { Header::Local } else { read_addresses(family, rest)? };
    Ok(Some((header, length)))
}

fn read_addresses(family: u8, bytes: &[u8]) -> Result<Header, ParseError> {
    let header = match family {
        TCP_OVER_V4 => read_endpoints::<4>(bytes),
        TCP_OVER_V6 => read_endpoints::<16>(bytes),
        // UDP and UNIX sockets, and what is unspecified.
        _ if family >> 4 <= 3 && family & 0xf <= 2 => return Ok(Header::Local),
        _ => return Err(ParseError::Family(family)),
    };
    header.ok_or(ParseError::Addresses)
}

/// Two addresses of `N` bytes, and their ports.
fn read_endpoints<const N: usize>(bytes: &[u8]) -> Option<Header>
where
    IpAddr: From<[u8; N]>,
{
    let (from, rest) = bytes.split_first_chunk::<N>()?;
    let (to, rest) = rest.split_first_chunk::<N>()?;
    let (source, rest) = rest.split_first_chunk::<2>()?;
    let (destination, _) = rest.split_first_chunk::<2>()?;
    Some(Header::Proxied {
        source: SocketAddr::new(IpAddr::from(*from), u16::from_be_bytes(*source)),
        destination: SocketAddr::new(IpAddr::from(*to), u16::from_be_bytes(*destination)),
    })
}

/// The longest header that is taken. They are meant to fit into 536 bytes (section 2); those with a client's TLS
/// certificate may be longer.
pub const MOST_BYTES: usize = 2048;
/// Section 2.1: `PROXY UNKNOWN` with two IPv6 addresses and their ports, and the end of the line.
const LONGEST_LINE: usize = 107;
const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION: u8 = 0x20;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const TCP_OVER_V4: u8 = 0x11;
const TCP_OVER_V6: u8 = 0x21;
