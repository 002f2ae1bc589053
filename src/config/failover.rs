//! The section `[failover]`. The key itself is looked at when the daemon takes it.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::{Field, Located, Place, Reader, Section, quoted};
use super::render::{optional, string, word};
use super::{
    Aws, Failover, FailoverPeer, KeySource, PeerAddress, RouteTables, Switch, aws, forward, is_host_address,
    keys, targets,
};
use crate::failover::{Failback, MOST_ALLOCATIONS, MOST_DESTINATIONS, MOST_PEERS, MOST_ROUTE_TABLES, Timing};
use crate::forward::{Config as Forward, Mode};
use crate::peer;

/// Reads the section, and checks it against the others. All Elastic IPs of `aws` belong to the gateway from then on.
pub(super) fn read(
    reader: &mut Reader<'_>,
    root: &Section<'_>,
    aws: &mut Aws,
    listeners: &[Forward],
) -> Option<Failover> {
    let section = &reader.section(root, "failover")?;
    let place = &root.keys().find_map(|(name, place)| (name == "failover").then_some(place))?;
    if !cfg!(feature = "aws") {
        reader.error(place, "this egret was built without AWS support, which failover needs");
    }
    let timing = Timing::default();
    let gateway = needed(reader, place, section, "gateway", name);
    let key = key(reader, place, section);
    let listen = needed(reader, place, section, "listen", listen);
    let peers = peers(reader, place, section, gateway.as_ref());
    let fallback_nat_gateway =
        reader.parsed(section, "fallback_nat_gateway", |text| aws::id("nat-", text)).map(|id| id.value);
    let heartbeat_interval =
        reader.duration(section, "heartbeat_interval", &HEARTBEAT).map_or(timing.heartbeat, |time| time.value);
    let dead_after = reader.duration(section, "dead_after", &DEAD_AFTER);
    if let Some(time) = dead_after.as_ref().filter(|time| time.value < heartbeat_interval * 3) {
        let least = humantime::format_duration(heartbeat_interval * 3);
        let message = format!("less than three of failover.heartbeat_interval; use at least \"{least}\"");
        reader.error(&time.place, message);
    } else if dead_after.is_none() && timing.dead_after < heartbeat_interval * 3 {
        let message = "longer than a third of failover.dead_after; set that as well";
        let key = section.keys().find(|(name, _)| *name == "heartbeat_interval");
        reader.error(&key.map_or_else(|| place.clone(), |(_, place)| place), message);
    }
    let failback = reader.choice(section, "failback", FAILBACKS).unwrap_or_default();
    let hold_down = reader.duration(section, "hold_down", &HOLD_DOWN);
    let egress_probes = egress_probes(reader, section);
    check_aws(reader, root, place, aws);
    if let Some(listen) = &listen {
        check_ports(reader, listen, &peers, listeners);
    }
    Some(Failover {
        gateway: gateway?.value,
        key: key?,
        listen: listen?.value,
        peers,
        fallback_nat_gateway,
        heartbeat_interval,
        dead_after: dead_after.map_or(timing.dead_after, |time| time.value),
        failback,
        hold_down: hold_down.map_or(timing.hold_down, |time| time.value),
        egress_probes,
    })
}

/// Writes what [`read`] reads.
pub(super) fn write(out: &mut String, failover: &Failover) -> std::fmt::Result {
    let peer = |peer: &FailoverPeer| {
        format!("{{ gateway = {}, address = {} }}", string(&peer.gateway), string(&peer.address.to_string()))
    };
    let time = |key: &str, time: Duration| format!("{key} = \"{}\"", humantime::format_duration(time));
    writeln!(out, "\n[failover]\ngateway = {}", string(&failover.gateway))?;
    match &failover.key {
        KeySource::File(path) => writeln!(out, "key_file = {}", string(&path.to_string_lossy()))?,
        KeySource::Parameter(name) => writeln!(out, "key_parameter = {}", string(name))?,
    }
    writeln!(out, "listen = \"{}\"", failover.listen)?;
    writeln!(out, "peers = [{}]", failover.peers.iter().map(peer).collect::<Vec<_>>().join(", "))?;
    let fallback = failover.fallback_nat_gateway.as_deref().map(string);
    optional(out, "fallback_nat_gateway", fallback, "none")?;
    writeln!(out, "{}", time("heartbeat_interval", failover.heartbeat_interval))?;
    writeln!(out, "{}", time("dead_after", failover.dead_after))?;
    writeln!(out, "failback = \"{}\"", word(FAILBACKS, failover.failback))?;
    writeln!(out, "{}", time("hold_down", failover.hold_down))?;
    let probes: Vec<String> = failover.egress_probes.iter().map(|probe| format!("\"{probe}\"")).collect();
    writeln!(out, "egress_probes = [{}]", probes.join(", "))
}

/// A key that has to be there.
fn needed<T>(
    reader: &mut Reader<'_>,
    place: &Place,
    section: &Section<'_>,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<Located<T>> {
    if !section.keys().any(|(name, _)| name == key) {
        reader.error(place, format!("has no {key}; failover needs it"));
    }
    reader.parsed(section, key, parse)
}

/// One of the two places where the key can be.
fn key(reader: &mut Reader<'_>, place: &Place, section: &Section<'_>) -> Option<KeySource> {
    let place_of = |key: &str| section.keys().find(|(name, _)| *name == key).map(|(_, place)| place);
    match (place_of("key_file"), place_of("key_parameter")) {
        (None, None) => {
            reader.error(place, "has no key_file and no key_parameter; failover needs one of them");
            return None;
        }
        (Some(_), Some(parameter)) => {
            reader.error(&parameter, "cannot stand beside failover.key_file; use one of them");
        }
        _ => {}
    }
    let file = reader.parsed(section, "key_file", path).map(|path| KeySource::File(path.value));
    let parameter = reader.parsed(section, "key_parameter", parameter);
    file.or_else(|| parameter.map(|name| KeySource::Parameter(name.value)))
}

/// The peers, none of which has the name or the address of another.
fn peers(
    reader: &mut Reader<'_>,
    place: &Place,
    section: &Section<'_>,
    own: Option<&Located<String>>,
) -> Vec<FailoverPeer> {
    let Some(array) = reader.array(section, "peers") else {
        if !section.keys().any(|(name, _)| name == "peers") {
            let example = "peers = [{ gateway = \"az-b\", address = \"10.0.3.10:7946\" }]";
            reader.error(place, format!("has no peers; name them, as in {example}"));
        }
        return Vec::new();
    };
    if array.value.is_empty() || array.value.len() > MOST_PEERS {
        let message = format!("has {} peers; use from 1 to {MOST_PEERS}", array.value.len());
        reader.error(&array.place, message);
        return Vec::new();
    }
    let mut found: Vec<(Located<String>, Located<PeerAddress>)> = Vec::new();
    for field in &array.value {
        let Some(peer) = peer_of(reader, field) else { continue };
        let (name, address) = &peer;
        if let Some(own) = own.filter(|own| own.value == name.value) {
            reader.error(&name.place, format!("{} is {}; name the other instances", name.value, own.place.key));
        }
        for (other, at) in &found {
            if other.value == name.value {
                let message = format!("{} is already {}; use another", name.value, other.place.key);
                reader.error(&name.place, message);
            }
            if at.value == address.value {
                let message = format!("{} is already {}; use another", address.value, at.place.key);
                reader.error(&address.place, message);
            }
        }
        found.push(peer);
    }
    let peer = |(name, address): (Located<String>, Located<PeerAddress>)| FailoverPeer {
        gateway: name.value,
        address: address.value,
    };
    found.into_iter().map(peer).collect()
}

fn peer_of(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<(Located<String>, Located<PeerAddress>)> {
    let section = reader.table(field)?;
    keys::check_section(reader, &section, &["gateway", "address"]);
    let name = forward::required(reader, field, &section, "gateway", name);
    let address = forward::required(reader, field, &section, "address", peer_address);
    Some((name?, address?))
}

fn egress_probes(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<SocketAddr> {
    let Some(array) = reader.array(section, "egress_probes") else { return Vec::new() };
    if array.value.len() > MOST_PROBES {
        reader.error(&array.place, format!("has {}; use at most {MOST_PROBES}", array.value.len()));
        return Vec::new();
    }
    let mut probes: Vec<SocketAddr> = Vec::new();
    for field in array.value {
        let Some(probe) = reader.parsed_field(field, host_and_port) else { continue };
        if probes.contains(&probe.value) {
            reader.error(&probe.place, format!("{} is there twice; remove one", probe.value));
        }
        probes.push(probe.value);
    }
    probes
}

/// What a gateway is made of, besides its name: the addresses and routes that move.
fn check_aws(reader: &mut Reader<'_>, root: &Section<'_>, place: &Place, aws: &mut Aws) {
    let place_of = |key: &str| {
        root.subsection("aws").and_then(|aws| aws.keys().find(|(name, _)| *name == key)).map(|(_, place)| place)
    };
    let all = aws.elastic_ips.len();
    if let (Switch::Off, Some(place)) = (aws.enabled, place_of("enabled")) {
        reader.error(&place, "failover moves addresses and routes of AWS; use \"auto\" or true");
    }
    // What is there with a mistake is noted already.
    if all == 0 && place_of("elastic_ips").is_none() {
        let message = "needs aws.elastic_ips: whoever has the first of them is the gateway's host";
        reader.error(place, message);
    }
    let has_tables = place_of("route_tables").is_some() || place_of("route_table_tags").is_some();
    if aws.route_tables == RouteTables::None && !has_tables {
        reader.error(place, "needs aws.route_tables or aws.route_table_tags: their routes lead to the host");
    }
    let tables = if let RouteTables::Ids(ids) = &aws.route_tables { ids.len() } else { 0 };
    for (key, count, most) in [
        ("elastic_ips", all, MOST_ALLOCATIONS),
        ("route_tables", tables, MOST_ROUTE_TABLES),
        ("routes", aws.routes.len(), MOST_DESTINATIONS),
    ] {
        if let Some(place) = place_of(key).filter(|_| count > most) {
            reader.error(&place, format!("has {count}; with failover, use at most {most}"));
        }
    }
    if let Some(place) = place_of("elastic_ip_count").filter(|_| aws.elastic_ip_count < all) {
        let message = format!("failover moves all of aws.elastic_ips ({all}); leave it out");
        reader.error(&place, message);
    }
    aws.elastic_ip_count = all.max(1);
}

/// Whether the address is free for peers. The NAT leaves the port out by itself, as it does for proxies.
fn check_ports(
    reader: &mut Reader<'_>,
    listen: &Located<SocketAddr>,
    peers: &[FailoverPeer],
    listeners: &[Forward],
) {
    for (index, listener) in listeners.iter().enumerate() {
        // Of a port that the engine serves, part of the packets would be its at any address.
        if forward::collide(Mode::Proxy, listen.value, listener.mode, listener.listen) {
            let message = format!(
                "{} is taken by forward[{index}].listen ({}); use another",
                listen.value, listener.listen
            );
            reader.error(&listen.place, message);
        }
    }
    if let Some(peer) = peers.iter().find(|peer| peer.address == PeerAddress::Fixed(listen.value)) {
        reader.error(&listen.place, format!("{} is the address of the peer {}", listen.value, peer.gateway));
    }
}

fn name(text: &str) -> Result<String, String> {
    if !peer::is_name(text) {
        return Err(format!(
            "{} is not the name of a gateway; use up to 63 lower-case letters, digits and -, such as \"az-a\"",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() || path.file_name().is_none() || text.contains('\0') {
        return Err(format!("{} is not an absolute path of a file, such as /etc/egret/peer.key", quoted(text)));
    }
    Ok(path.to_owned())
}

/// <https://docs.aws.amazon.com/systems-manager/latest/userguide/sysman-paramstore-su-create.html>
fn parameter(text: &str) -> Result<String, String> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'/');
    let is_path =
        !text.contains('/') || (text.starts_with('/') && !text.ends_with('/') && !text.contains("//"));
    if text.is_empty() || text.len() > LONGEST_PARAMETER || !text.bytes().all(is_good) || !is_path {
        return Err(format!("{} is not the name of a parameter, such as /egret/peer-key", quoted(text)));
    }
    Ok(text.to_owned())
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let address = address(text).filter(|address| match address.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_loopback() || is_host_address(ip),
        IpAddr::V6(_) => false,
    });
    address.ok_or_else(|| no_address(text))
}

fn host_and_port(text: &str) -> Result<SocketAddr, String> {
    let address = address(text).filter(|address| match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback() || is_host_address(ip),
        IpAddr::V6(_) => false,
    });
    address.ok_or_else(|| no_address(text))
}

fn peer_address(text: &str) -> Result<PeerAddress, String> {
    let Some(tag) = text.strip_prefix("ec2-tag:") else {
        return host_and_port(text).map(PeerAddress::Fixed);
    };
    if !cfg!(feature = "aws") {
        return Err("this egret was built without AWS support; use an address".to_owned());
    }
    let tagged = |(key, value, port)| PeerAddress::Tagged { key, value, port };
    targets::ec2_tag(tag).map(tagged).ok_or_else(|| {
        format!("{} is not a tag and a port; use such as \"ec2-tag:egret:gateway=az-b:7946\"", quoted(text))
    })
}

fn address(text: &str) -> Option<SocketAddr> {
    text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0)
}

fn no_address(text: &str) -> String {
    format!("{} is not an IPv4 address and a port; use such as \"10.0.0.10:7946\"", quoted(text))
}

const FAILBACKS: &[(&str, Failback)] = &[("auto", Failback::Auto), ("manual", Failback::Manual)];
const LONGEST_PARAMETER: usize = 1011;
const MOST_PROBES: usize = 8;
const HEARTBEAT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(10);
const DEAD_AFTER: RangeInclusive<Duration> = Duration::from_millis(150)..=Duration::from_secs(60);
const HOLD_DOWN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
