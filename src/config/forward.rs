//! The sections `[[forward]]`.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::nat::MOST_SESSIONS;
use super::reader::{Field, Located, Reader, Section, quoted};
use super::render::{optional, string, word};
use super::{HOST_PORTS, keys, targets, tls};
use crate::balance::{self, Algorithm, HealthCheck, Limits, OnUnhealthy, Stickiness};
use crate::forward::proxy_protocol::Version;
use crate::forward::{Check, Config, HttpQuestion, Mode, Question};

/// Reads all of them. Those with a mistake are left out, which is noted.
pub(super) fn read(reader: &mut Reader<'_>, root: &Section<'_>) -> Vec<Config> {
    let Some(array) = reader.array(root, "forward") else { return Vec::new() };
    if array.value.len() > MOST_LISTENERS {
        let message = format!("has {} listeners; use at most {MOST_LISTENERS}", array.value.len());
        reader.error(&array.place, message);
        return Vec::new();
    }
    let mut found: Vec<(Located<String>, Located<SocketAddr>, Mode)> = Vec::new();
    let mut listeners = Vec::new();
    for field in &array.value {
        let Some(section) = reader.table(field) else { continue };
        keys::check_section(reader, &section, KEYS);
        let name = required(reader, field, &section, "name", name);
        let listen = required(reader, field, &section, "listen", listen);
        let config = listener(reader, field, &section);
        let (Some(name), Some(listen)) = (name, listen) else { continue };
        if let Mode::Nat { .. } = config.mode
            && HOST_PORTS.contains(&listen.value.port())
        {
            let message = format!(
                "port {} is one of the host's own ({}-{}); use one below",
                listen.value.port(),
                HOST_PORTS.start(),
                HOST_PORTS.end()
            );
            reader.error(&listen.place, message);
        }
        for (other, address, mode) in &found {
            if other.value == name.value {
                let message = format!("{} is already {}; use another", quoted(&name.value), other.place.key);
                reader.error(&name.place, message);
            }
            if collide(*mode, address.value, config.mode, listen.value) {
                let message = format!(
                    "{} is taken by {} ({}); use another",
                    listen.value, address.place.key, address.value
                );
                reader.error(&listen.place, message);
            }
        }
        found.push((name.clone(), listen.clone(), config.mode));
        listeners.push(Config { name: name.value, listen: listen.value, ..config });
    }
    listeners
}

/// A section again, with every default.
pub(super) fn write(out: &mut String, config: &Config) -> std::fmt::Result {
    let time = |key: &str, time: Duration| format!("{key} = \"{}\"", humantime::format_duration(time));
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    writeln!(
        out,
        "\n[[forward]]\nname = \"{}\"\nlisten = \"{}\"\nmode = \"{}\"",
        config.name,
        config.listen,
        word(MODES, config.mode != Mode::Proxy)
    )?;
    if let Mode::Nat { preserve_client_ip } = config.mode {
        writeln!(out, "preserve_client_ip = {preserve_client_ip}")?;
    }
    writeln!(out, "targets = {}", list(targets::write(config)))?;
    let group = &config.group;
    writeln!(out, "algorithm = \"{}\"", word(ALGORITHMS, group.algorithm))?;
    let stickiness = group.stickiness.map_or(Duration::ZERO, |stickiness| stickiness.idle_timeout);
    writeln!(out, "{}", time("stickiness", stickiness))?;
    writeln!(
        out,
        "allow = {}",
        list(config.limits.allow.iter().map(|prefix| format!("\"{prefix}\"")).collect())
    )?;
    writeln!(out, "connection_limit = {}", config.limits.connections)?;
    writeln!(out, "new_connections_per_second = {}", config.limits.new_connections_per_second)?;
    writeln!(out, "{}", time("connect_timeout", config.connect_timeout))?;
    if config.mode == Mode::Proxy {
        writeln!(out, "{}", time("idle_timeout", config.idle_timeout))?;
        writeln!(out, "{}", time("keepalive", config.keepalive.unwrap_or_default()))?;
    }
    writeln!(out, "{}", time("deregistration_delay", group.deregistration_delay))?;
    writeln!(out, "on_unhealthy = \"{}\"", word(ON_UNHEALTHY, group.on_unhealthy))?;
    if config.mode == Mode::Proxy {
        writeln!(out, "proxy_protocol = \"{}\"", word(PROXY_PROTOCOLS, config.proxy_protocol))?;
        writeln!(out, "accept_proxy_protocol = {}", config.accept_proxy_protocol)?;
    }
    writeln!(out, "access_log = {}", config.access_log)?;
    writeln!(out, "\n[forward.health]")?;
    let kind = match &config.check.question {
        Question::Tcp => Kind::Tcp,
        Question::Http(_) => Kind::Http,
        Question::Https(_) => Kind::Https,
    };
    writeln!(out, "type = \"{}\"", word(TYPES, kind))?;
    match &config.check.question {
        Question::Tcp => {}
        Question::Http(question) | Question::Https(question) => {
            let HttpQuestion { path, host, matcher } = question;
            writeln!(out, "path = {}", string(path))?;
            optional(out, "host", host.as_deref().map(string), "the target's address")?;
            let range = |range: &RangeInclusive<u16>| format!("{}-{}", range.start(), range.end());
            writeln!(out, "matcher = \"{}\"", matcher.iter().map(range).collect::<Vec<_>>().join(","))?;
        }
    }
    writeln!(out, "port = {}", config.check.port.unwrap_or(0))?;
    writeln!(out, "{}", time("interval", group.health.interval))?;
    writeln!(out, "{}", time("timeout", group.health.timeout))?;
    writeln!(out, "healthy_threshold = {}", group.health.healthy_threshold)?;
    writeln!(out, "unhealthy_threshold = {}", group.health.unhealthy_threshold)?;
    config.tls.as_ref().map_or(Ok(()), |config| tls::write(out, config))
}

/// What holds for all that a section leaves out.
fn defaults() -> Config {
    Config {
        name: String::new(),
        listen: SocketAddr::from(([0, 0, 0, 0], 0)),
        mode: Mode::default(),
        limits: Limits::default(),
        group: balance::Config::default(),
        check: Check::default(),
        targets: Vec::new(),
        followed: Vec::new(),
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(350),
        proxy_protocol: None,
        accept_proxy_protocol: false,
        access_log: false,
        tls: None,
        keepalive: None,
    }
}

/// All but name and address.
fn listener(reader: &mut Reader<'_>, field: &Field<'_>, section: &Section<'_>) -> Config {
    let mut config = defaults();
    let is_nat = reader.choice(section, "mode", MODES).unwrap_or_default();
    let preserve_client_ip = reader.boolean(section, "preserve_client_ip");
    if is_nat {
        config.mode = Mode::Nat { preserve_client_ip: preserve_client_ip.unwrap_or(true) };
    }
    for key in PROXY_KEYS.iter().filter(|_| is_nat) {
        if let Some((_, place)) = section.keys().find(|(name, _)| name == key) {
            reader.error(&place, "is of mode = \"proxy\"; leave it out, or set that mode");
        }
    }
    (config.targets, config.followed) = targets::read(reader, field, section);
    if let Some(allow) = prefixes(reader, section) {
        config.limits.allow = allow;
    }
    if let Some(most) = reader.integer(section, "connection_limit", CONNECTIONS, "connections") {
        config.limits.connections = most.value;
    }
    if let Some(rate) = reader.integer(section, "new_connections_per_second", 0..=1_000_000, "connections") {
        config.limits.new_connections_per_second = rate.value;
    }
    if let Some(time) = reader.duration(section, "connect_timeout", &CONNECT_TIMEOUT) {
        config.connect_timeout = time.value;
    }
    if let Some(time) = reader.duration(section, "idle_timeout", &IDLE_TIMEOUT) {
        config.idle_timeout = time.value;
    }
    if let Some(time) = reader.duration(section, "keepalive", &KEEPALIVE) {
        config.keepalive = Some(time.value).filter(|time| !time.is_zero());
        // tcp(7) counts in seconds.
        if time.value.subsec_nanos() > 0 {
            reader.error(&time.place, "not of whole seconds; use such as \"30s\", or \"0s\" for none");
        }
    }
    config.access_log = reader.boolean(section, "access_log").unwrap_or_default();
    config.group.algorithm = reader.choice(section, "algorithm", ALGORITHMS).unwrap_or_default();
    config.group.on_unhealthy = reader.choice(section, "on_unhealthy", ON_UNHEALTHY).unwrap_or_default();
    if let Some(time) = reader.duration(section, "deregistration_delay", &DEREGISTRATION_DELAY) {
        config.group.deregistration_delay = time.value;
    }
    if let Some(time) = reader.duration(section, "stickiness", &STICKINESS)
        && !time.value.is_zero()
    {
        config.group.stickiness = Some(Stickiness { idle_timeout: time.value, ..Stickiness::default() });
    }
    if let Some(health) = reader.section(section, "health") {
        keys::check_section(reader, &health, HEALTH_KEYS);
        (config.group.health, config.check) = health_check(reader, &health);
    }
    config.proxy_protocol = reader.choice(section, "proxy_protocol", PROXY_PROTOCOLS).unwrap_or_default();
    config.accept_proxy_protocol = reader.boolean(section, "accept_proxy_protocol").unwrap_or_default();
    config.check.proxy_protocol = config.proxy_protocol;
    config.tls = tls::read(reader, section);
    config
}

fn health_check(reader: &mut Reader<'_>, section: &Section<'_>) -> (HealthCheck, Check) {
    let kind = reader.choice(section, "type", TYPES).unwrap_or_default();
    let mut health = HealthCheck::default();
    if kind != Kind::Tcp {
        health.timeout = HealthCheck::HTTP_TIMEOUT;
    }
    if let Some(interval) = reader.duration(section, "interval", &INTERVAL) {
        health.interval = interval.value;
        // Whoever asks often does not say each time that an answer is wanted before the next question.
        health.timeout = health.timeout.min(interval.value);
    }
    if let Some(timeout) = reader.duration(section, "timeout", &(MOMENT..=*INTERVAL.end())) {
        health.timeout = timeout.value;
        if timeout.value > health.interval {
            let interval = humantime::format_duration(health.interval);
            reader.error(&timeout.place, format!("longer than the interval ({interval}); use at most that"));
        }
    }
    for (key, threshold) in [
        ("healthy_threshold", &mut health.healthy_threshold),
        ("unhealthy_threshold", &mut health.unhealthy_threshold),
    ] {
        if let Some(read) = reader.integer(section, key, THRESHOLD, "checks in a row") {
            *threshold = read.value;
        }
    }
    let port = reader.integer::<u16>(section, "port", 0..=65_535, "a port").map(|port| port.value);
    let question = match kind {
        Kind::Tcp => {
            for key in ["path", "host", "matcher"] {
                if let Some((_, place)) = section.keys().find(|(name, _)| *name == key) {
                    reader.error(&place, "is of HTTP; set type = \"http\" or \"https\" beside it");
                }
            }
            Question::Tcp
        }
        Kind::Http => Question::Http(http_question(reader, section)),
        Kind::Https => Question::Https(http_question(reader, section)),
    };
    (health, Check { question, port: port.filter(|port| *port != 0), proxy_protocol: None })
}

fn http_question(reader: &mut Reader<'_>, section: &Section<'_>) -> HttpQuestion {
    let (path, host) = (reader.parsed(section, "path", path), reader.parsed(section, "host", host));
    let matcher = reader.parsed(section, "matcher", matcher);
    HttpQuestion {
        path: path.map_or_else(|| "/".to_owned(), |path| path.value),
        host: host.map(|host| host.value),
        matcher: matcher.map_or_else(|| vec![200..=399], |matcher| matcher.value),
    }
}

fn prefixes(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<Vec<IpNet>> {
    let array = reader.array(section, "allow")?;
    if array.value.is_empty() {
        reader.error(&array.place, "empty: nobody could connect; name a prefix, or leave the key out");
    }
    if array.value.len() > MOST_PREFIXES {
        let message = format!("has {} prefixes; use at most {MOST_PREFIXES}", array.value.len());
        reader.error(&array.place, message);
        return None;
    }
    let read = array.value.into_iter().filter_map(|field| reader.parsed_field(field, prefix));
    Some(read.map(|prefix| prefix.value).collect())
}

/// A key that has to be there.
pub(super) fn required<T>(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
    section: &Section<'_>,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<Located<T>> {
    if !section.keys().any(|(name, _)| name == key) {
        reader.error(field.place(), format!("has no {key}; every one needs it"));
    }
    reader.parsed(section, key, parse)
}

fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(good) {
        return Err(format!(
            "{} is not a name; use up to {LONGEST_NAME} letters, digits, - and _",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => {
            Err(format!("{} has no port; use one from 1 to 65535", quoted(text)))
        }
        Ok(address) if !address.is_ipv4() => {
            Err(format!("{} is not IPv4; use such as \"0.0.0.0:5000\"", quoted(text)))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(format!("{} is not an address and a port; use such as \"0.0.0.0:5000\"", quoted(text))),
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let Ok(prefix) = prefix else {
        return Err(format!("{} is not a prefix; use such as \"203.0.113.0/24\"", quoted(text)));
    };
    if prefix.trunc() != prefix {
        return Err(format!("{} has host bits set; use \"{}\"", quoted(text), prefix.trunc()));
    }
    Ok(prefix)
}

/// What may stand in a request line (RFC 9112 section 3.2.1).
fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.len() > LONGEST_PATH || !text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(format!("{} is not a path; use such as \"/health\"", quoted(text)));
    }
    Ok(text.to_owned())
}

fn host(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
    if text.is_empty() || text.len() > LONGEST_HOST || !text.bytes().all(good) {
        return Err(format!("{} is not a host; use such as \"api.example.com\"", quoted(text)));
    }
    Ok(text.to_owned())
}

/// `200-399`, `200,302`.
fn matcher(text: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
    let status = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (200..=599).contains(status));
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(status(first)?..=status(last)?).filter(|range| !range.is_empty())
    };
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    ranges.ok_or_else(|| {
        format!("{} are not HTTP statuses; use such as \"200-399\" or \"200,204\"", quoted(text))
    })
}

/// Whether both cannot be had: at the same address, or at the same port, part of whose packets would be NAT's.
pub(super) fn collide(mode: Mode, one: SocketAddr, other_mode: Mode, other: SocketAddr) -> bool {
    let same = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    let mixed = (mode == Mode::Proxy) != (other_mode == Mode::Proxy);
    one.port() == other.port() && (same || mixed)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Tcp,
    Http,
    Https,
}

/// Whether the NAT engine carries connections.
pub(super) const MODES: &[(&str, bool)] = &[("proxy", false), ("nat", true)];
pub(super) const TYPES: &[(&str, Kind)] = &[("tcp", Kind::Tcp), ("http", Kind::Http), ("https", Kind::Https)];
pub(super) const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("flow-hash", Algorithm::FlowHash),
    ("round-robin", Algorithm::RoundRobin),
    ("least-connections", Algorithm::LeastConnections),
];
pub(super) const PROXY_PROTOCOLS: &[(&str, Option<Version>)] =
    &[("off", None), ("v1", Some(Version::V1)), ("v2", Some(Version::V2))];
pub(super) const ON_UNHEALTHY: &[(&str, OnUnhealthy)] =
    &[("reset", OnUnhealthy::Reset), ("keep", OnUnhealthy::Keep)];

const KEYS: &[&str] = &[
    "name",
    "listen",
    "mode",
    "preserve_client_ip",
    "targets",
    "algorithm",
    "stickiness",
    "allow",
    "connection_limit",
    "new_connections_per_second",
    "connect_timeout",
    "idle_timeout",
    "keepalive",
    "deregistration_delay",
    "on_unhealthy",
    "proxy_protocol",
    "accept_proxy_protocol",
    "access_log",
    "health",
    "tls",
];
/// Of the proxy alone.
const PROXY_KEYS: &[&str] = &["idle_timeout", "keepalive", "proxy_protocol", "accept_proxy_protocol", "tls"];
const HEALTH_KEYS: &[&str] = &[
    "type",
    "path",
    "host",
    "port",
    "matcher",
    "interval",
    "timeout",
    "healthy_threshold",
    "unhealthy_threshold",
];
const MOST_LISTENERS: usize = 64;
const MOST_PREFIXES: usize = 1024;
const LONGEST_NAME: usize = 32;
const LONGEST_PATH: usize = 1024;
/// RFC 1035 section 2.3.4, and a port.
const LONGEST_HOST: usize = 261;
/// In nat mode each of them is a session.
const CONNECTIONS: RangeInclusive<i64> = 1..=MOST_SESSIONS;
const THRESHOLD: RangeInclusive<i64> = 1..=100;
const MOMENT: Duration = Duration::from_millis(10);
const DAY: Duration = Duration::from_secs(24 * 3600);
const CONNECT_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(300);
const IDLE_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
/// The most that tcp(7) takes.
const KEEPALIVE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(32_767);
const DEREGISTRATION_DELAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const STICKINESS: RangeInclusive<Duration> = Duration::ZERO..=DAY;
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(300);
