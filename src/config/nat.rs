//! The section `[nat]`.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::reader::{Field, Located, Reader, Section, quoted};
use super::{HOST_PORTS, Limits, Nat, Profile, is_host_address, keys};
use crate::nat::{
    Config as Engine, ExternalAddress, FilteringBehaviour, MappingBehaviour, OnExhaustion, Timeouts,
};

/// Reads the section, and checks its keys against each other.
pub(super) fn read(reader: &mut Reader<'_>, root: &Section<'_>) -> Nat {
    let mut nat = defaults();
    let Some(section) = &reader.section(root, "nat") else { return nat };
    let interface =
        |reader: &mut Reader<'_>, key| reader.parsed(section, key, interface_name).map(|name| name.value);
    nat.external_interface = interface(reader, "external_interface");
    nat.internal_interface = interface(reader, "internal_interface");
    let internal = prefixes(reader, section, "internal", false);
    let bypass = prefixes(reader, section, "bypass", true);
    nat.external_addresses = external_addresses(reader, section, internal.as_deref().unwrap_or_default());
    nat.internal = internal.map(values);
    nat.bypass = bypass.map(values);
    if let Some(range) = reader.parsed(section, "port_range", port_range) {
        nat.port_range = range.value;
    }
    nat.mapping = reader.choice(section, "mapping", MAPPINGS).unwrap_or_default();
    nat.filtering = reader.choice(section, "filtering", FILTERINGS).unwrap_or_default();
    nat.on_exhaustion = reader.choice(section, "on_exhaustion", EXHAUSTIONS).unwrap_or_default();
    nat.profile = reader.choice(section, "profile", PROFILES).unwrap_or_default();
    if let Some(mtu) = reader.integer(section, "external_mtu", MTU, "bytes") {
        nat.external_mtu = mtu.value;
    }
    if let Some(mss) = reader.integer::<u16>(section, "mss_clamp", MSS, "bytes") {
        if mss.value > nat.external_mtu.saturating_sub(TCP_HEADERS) {
            let message = format!(
                "does nothing: a segment of {} bytes is longer than external_mtu ({}) lets through",
                mss.value, nat.external_mtu
            );
            reader.warning(&mss.place, message);
        }
        nat.mss_clamp = Some(mss.value);
    }
    nat.answer_unsolicited_syn = reader.boolean(section, "answer_unsolicited_syn").unwrap_or_default();
    nat.timeouts = nat.profile.timeouts();
    if let Some(timeouts) = reader.section(section, "timeouts") {
        read_timeouts(reader, &timeouts, &mut nat.timeouts);
    }
    if let Some(limits) = reader.section(section, "limits") {
        read_limits(reader, &limits, &mut nat.limits);
    }
    nat
}

impl Profile {
    /// The idle timeouts of the profile.
    #[must_use]
    pub fn timeouts(self) -> Timeouts {
        match self {
            Self::Rfc => Timeouts::default(),
            Self::AwsNatGateway => Timeouts::aws_nat_gateway(),
        }
    }
}

/// What holds for an empty file.
fn defaults() -> Nat {
    let engine = Engine::default();
    Nat {
        external_interface: None,
        internal_interface: None,
        internal: None,
        bypass: None,
        external_addresses: None,
        port_range: engine.port_range,
        mapping: engine.mapping,
        filtering: engine.filtering,
        on_exhaustion: engine.on_exhaustion,
        profile: Profile::default(),
        external_mtu: engine.external_mtu,
        mss_clamp: engine.mss_clamp,
        answer_unsolicited_syn: engine.answer_unsolicited_syn,
        timeouts: engine.timeouts,
        limits: Limits {
            sessions: 0,
            sessions_per_address: 0,
            new_sessions_per_second: engine.limits.new_sessions_per_second,
            fragment_memory: engine.limits.fragment_bytes,
        },
    }
}

/// Each timeout, with a warning for one below what its RFC demands. A profile that is below on purpose is not
/// warned about: only what the file itself names is.
fn read_timeouts(reader: &mut Reader<'_>, section: &Section<'_>, timeouts: &mut Timeouts) {
    let all = [
        ("tcp_established", &mut timeouts.tcp_established, Some((7440_u64, "RFC 5382 REQ-5"))),
        ("tcp_transitory", &mut timeouts.tcp_transitory, Some((240, "RFC 5382 REQ-5"))),
        ("udp", &mut timeouts.udp, Some((120, "RFC 4787 REQ-5"))),
        ("udp_unreplied", &mut timeouts.udp_unreplied, Some((120, "RFC 4787 REQ-5"))),
        ("icmp_query", &mut timeouts.icmp_query, Some((60, "RFC 5508 REQ-2"))),
        ("other", &mut timeouts.other, None),
    ];
    for (key, timeout, minimum) in all {
        let Some(read) = reader.duration(section, key, &TIMEOUT) else { continue };
        *timeout = read.value;
        if let Some((seconds, source)) = minimum
            && read.value < Duration::from_secs(seconds)
        {
            let minimum = humantime::format_duration(Duration::from_secs(seconds));
            reader.warning(&read.place, format!("below {minimum}, the least that {source} allows"));
        }
    }
}

fn read_limits(reader: &mut Reader<'_>, section: &Section<'_>, limits: &mut Limits) {
    if let Some(sessions) = reader.integer(section, "sessions", 0..=MOST_SESSIONS, "sessions") {
        limits.sessions = sessions.value;
    }
    if let Some(read) = reader.integer(section, "sessions_per_address", 0..=MOST_SESSIONS, "sessions") {
        limits.sessions_per_address = read.value;
        if limits.sessions != 0 && read.value > limits.sessions {
            let message = format!("more than nat.limits.sessions ({}); use at most as many", limits.sessions);
            reader.error(&read.place, message);
        }
    }
    if let Some(rate) = reader.integer(section, "new_sessions_per_second", 0..=1_000_000, "sessions") {
        limits.new_sessions_per_second = rate.value;
    }
    if let Some(bytes) = reader.integer(section, "fragment_memory", FRAGMENT_MEMORY, "bytes") {
        limits.fragment_memory = bytes.value;
    }
}

/// A list of prefixes, without those that are wrong.
fn prefixes(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    key: &str,
    may_be_empty: bool,
) -> Option<Vec<Located<Ipv4Net>>> {
    let array = reader.array(section, key)?;
    if array.value.is_empty() && !may_be_empty {
        reader.error(&array.place, "empty: nobody would be translated; name a prefix, or leave the key out");
    }
    if array.value.len() > MOST_PREFIXES {
        reader.error(&array.place, format!("has {} prefixes; use at most {MOST_PREFIXES}", array.value.len()));
        return None;
    }
    let mut found: Vec<Located<Ipv4Net>> = Vec::new();
    for field in array.value {
        let Some(read) = reader.parsed_field(field, prefix) else { continue };
        if let Some(other) = found.iter().find(|other| other.value == read.value) {
            let message = format!("{} is already {}; remove one", read.value, other.place.key);
            reader.error(&read.place, message);
            continue;
        }
        for other in &found {
            let (inner, outer) = if read.value.prefix_len() > other.value.prefix_len() {
                (&read, other)
            } else {
                (other, &read)
            };
            if outer.value.contains(&inner.value) {
                let message = format!("{} lies within {} already", inner.value, outer.value);
                reader.warning(&inner.place, message);
            }
        }
        found.push(read);
    }
    Some(found)
}

fn prefix(text: &str) -> Result<Ipv4Net, String> {
    let Ok(prefix) = text.parse::<Ipv4Net>() else {
        return Err(format!("{} is not an IPv4 prefix; use one such as \"10.0.0.0/16\"", quoted(text)));
    };
    if prefix.prefix_len() == 0 {
        return Err(format!("{} is the whole internet; name the private networks", quoted(text)));
    }
    if prefix.trunc() != prefix {
        return Err(format!("{} has host bits set; use \"{}\"", quoted(text), prefix.trunc()));
    }
    if !is_host_address(prefix.network()) || !is_host_address(prefix.broadcast()) {
        return Err(format!("{} holds addresses that no host can have; use a private network", quoted(text)));
    }
    Ok(prefix)
}

/// The pool, without what is wrong in it.
fn external_addresses(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    internal: &[Located<Ipv4Net>],
) -> Option<Vec<ExternalAddress>> {
    let array = reader.array(section, "external_addresses")?;
    if array.value.is_empty() {
        reader.error(&array.place, "empty; name an address, or leave the key out for the interface's own");
    }
    if array.value.len() > MOST_ADDRESSES {
        let message = format!("has {} addresses; use at most {MOST_ADDRESSES}", array.value.len());
        reader.error(&array.place, message);
        return None;
    }
    // Where each address was first named: neither side of a pair may repeat any other.
    let mut seen: HashMap<Ipv4Addr, String> = HashMap::new();
    let mut found = Vec::new();
    for field in &array.value {
        let Some((private, public)) = external_address(reader, field) else { continue };
        for address in [Some(&private), public.as_ref()].into_iter().flatten() {
            if let Some(first) = seen.get(&address.value) {
                reader.error(&address.place, format!("{} is already {first}; remove one", address.value));
            } else {
                seen.insert(address.value, address.place.key.clone());
            }
        }
        if let Some(public) = &public
            && let Some(net) = internal.iter().find(|net| net.value.contains(&public.value))
        {
            let message = format!(
                "{} lies within {} ({}), whose addresses the internet does not see; name the address that \
                 remotes see, or leave it out",
                public.value, net.place.key, net.value
            );
            reader.error(&public.place, message);
        }
        found.push(ExternalAddress { private: private.value, public: public.map(|public| public.value) });
    }
    Some(found)
}

/// One `{ private = ..., public = ... }`.
fn external_address(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
) -> Option<(Located<Ipv4Addr>, Option<Located<Ipv4Addr>>)> {
    let table = reader.table(field)?;
    keys::check_section(reader, &table, &["private", "public"]);
    let public = reader.parsed(&table, "public", address);
    if !table.keys().any(|(name, _)| name == "private") {
        reader
            .error(field.place(), "has no private; use { private = \"10.0.0.10\", public = \"203.0.113.7\" }");
    }
    let private = reader.parsed(&table, "private", address)?;
    Some((private, public))
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) if is_host_address(address) => Ok(address),
        Ok(_) => Err(format!("{} is not an address that a host can have", quoted(text))),
        Err(_) => Err(format!("{} is not an IPv4 address; use one such as \"10.0.0.10\"", quoted(text))),
    }
}

/// `1024-60999`.
fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let top = HOST_PORTS.start() - 1;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0)
    };
    let bounds = text.split_once('-').map(|(lower, upper)| (number(lower.trim()), number(upper.trim())));
    let Some((Some(lower), Some(upper))) = bounds else {
        return Err(format!("{} is not a range of ports; use one such as \"1024-{top}\"", quoted(text)));
    };
    if lower > upper {
        return Err(format!("{} ends before it begins; use \"{upper}-{lower}\"", quoted(text)));
    }
    if upper > top {
        return Err(format!(
            "{} reaches into the host's own ports ({}-{}); end it at {top} or below",
            quoted(text),
            HOST_PORTS.start(),
            HOST_PORTS.end()
        ));
    }
    Ok(lower..=upper)
}

/// What Linux lets an interface be called (`dev_valid_name`).
fn interface_name(text: &str) -> Result<String, String> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
        return Err(format!("{} is not the name of an interface; use one such as \"ens5\"", quoted(text)));
    }
    Ok(text.to_owned())
}

fn values<T>(located: Vec<Located<T>>) -> Vec<T> {
    located.into_iter().map(|located| located.value).collect()
}

pub(super) const MAPPINGS: &[(&str, MappingBehaviour)] = &[
    ("endpoint-independent", MappingBehaviour::EndpointIndependent),
    ("address-and-port-dependent", MappingBehaviour::AddressAndPortDependent),
];

pub(super) const FILTERINGS: &[(&str, FilteringBehaviour)] = &[
    ("address-and-port-dependent", FilteringBehaviour::AddressAndPortDependent),
    ("endpoint-independent", FilteringBehaviour::EndpointIndependent),
];

pub(super) const EXHAUSTIONS: &[(&str, OnExhaustion)] =
    &[("overload", OnExhaustion::Overload), ("refuse", OnExhaustion::Refuse)];

pub(super) const PROFILES: &[(&str, Profile)] =
    &[("rfc", Profile::Rfc), ("aws-nat-gateway", Profile::AwsNatGateway)];

/// From what every IPv4 host must take in one piece (RFC 791: 576; a link may have 68, but none in use has, and
/// such a value is a slip) to the largest jumbo frame.
const MTU: RangeInclusive<i64> = 576..=9216;

/// From what every TCP must take (RFC 9293 section 3.7.1: 536) to what fits the largest `external_mtu`.
const MSS: RangeInclusive<i64> = 536..=9176;

/// IPv4 and TCP headers without options.
const TCP_HEADERS: u16 = 40;

const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);

/// Seven eighths of 2^24: 2.9 GB of sessions.
pub(super) const MOST_SESSIONS: i64 = 14_680_064;

/// From one datagram of the largest size to 256 MiB.
const FRAGMENT_MEMORY: RangeInclusive<i64> = 65_536..=268_435_456;

/// The engine's pool.
const MOST_ADDRESSES: usize = 256;

/// What the packet filter holds of each list.
const MOST_PREFIXES: usize = 64;
