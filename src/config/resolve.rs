//! What a configuration means on this host: defaults that follow from interfaces, routes and memory.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{Config, Limits};
use crate::forward::Mode;
use crate::wire::{Endpoint, Protocol};
use crate::{datapath, nat};

/// What [`resolve`] has to know of the host.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    pub interfaces: Vec<datapath::Interface>,
    /// The interface of the default route.
    pub default_route: Option<String>,
    /// `MemTotal`, in bytes.
    pub memory: u64,
    /// Ports on which sockets of the host are reached at an external address.
    pub ports: Vec<(Protocol, Ipv4Addr, u16)>,
    /// Unset if there is no cloud, or it has not told yet.
    pub cloud: Option<CloudFacts>,
}

/// What the cloud tells of the network around the external interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloudFacts {
    /// The prefixes of the private network (the VPC).
    pub internal: Vec<Ipv4Net>,
    /// What the cloud has assigned to the interface, whether the host has it or not; the primary address first.
    pub addresses: Vec<nat::ExternalAddress>,
}

/// Everything that the packet worker needs.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub datapath: datapath::Config,
    pub nat: nat::Config,
}

/// Why a configuration does not fit the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("there is no default route to take the external interface from; set nat.external_interface")]
    NoDefaultRoute,
    #[error("{key}: there is no interface {name}; use one of: {present}")]
    NoInterface { key: &'static str, name: String, present: String },
    #[error("the interface {name} has no IPv4 address; give it one, or choose another {key}")]
    NoAddress { key: &'static str, name: String },
    #[error(
        "nat.external_addresses: the interface {name} does not have {address}; add it (ip address add \
         {address}/32 dev {name}) or remove it from the file"
    )]
    NotOnInterface { name: String, address: Ipv4Addr },
    #[error(
        "nat.port_range: the host's own sockets take every {protocol} port of {lower}-{upper}; choose another \
         range or stop what listens there"
    )]
    PortsTaken { protocol: Protocol, lower: u16, upper: u16 },
    #[error(
        "forward {name}: listen: {address} is no external address ({present}); use one of these, or 0.0.0.0 for all"
    )]
    NotExternal { name: String, address: IpAddr, present: String },
    #[error(
        "forward {name}: listen: port {port} is taken by a socket of this host; use another, or stop what listens there \
         (of a listener that was a proxy until now: restart)"
    )]
    PortInUse { name: String, port: u16 },
    #[error(
        "forward {name}: targets: {address} is in no internal prefix, so that its answers would not be translated; add \
         it to nat.internal, or set mode = \"proxy\""
    )]
    NotInternal { name: String, address: IpAddr },
}

/// Fills in what the configuration leaves open:
///
/// - the external interface is the default route's, the internal one the same (one-armed);
/// - the external addresses are those of the external interface to which the cloud maps a public one, or else the
///   interface's first;
/// - `internal` is the cloud's private network; without a cloud the private network (of 10.0.0.0/8, 172.16.0.0/12,
///   192.168.0.0/16 and 100.64.0.0/10) that the internal interface's own address lies in, or else the first three
///   of them (RFC 1918);
/// - `bypass` is as `internal`;
/// - ICMP errors to the inside come from the internal interface's first address;
/// - the limit of sessions is what a quarter of the memory holds, from 16,384 to 917,504 (seven eighths of 2^20);
/// - ports of the range on which the host has sockets are excluded;
/// - a listener of the engine's at an address that the cloud has given the interface has no service until the address is
///   an external one.
///
/// # Errors
///
/// Whatever does not fit, all at once.
pub fn resolve(config: &Config, host: &HostFacts) -> Result<Resolved, Vec<ResolveError>> {
    let (external, internal) = interfaces(config, host)?;
    let mut errors = Vec::new();
    let addresses = external_addresses(config, external, host.cloud.as_ref(), &mut errors);
    let of_cloud = || host.cloud.as_ref().map(|cloud| cloud.internal.clone()).filter(|nets| !nets.is_empty());
    let prefixes = config.nat.internal.clone().or_else(of_cloud).unwrap_or_else(|| default_internal(internal));
    let excluded_ports = excluded_ports(config, host, &addresses, &mut errors);
    let services = services(config, host, &addresses, &prefixes, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let nat = nat::Config {
        internal: prefixes.clone(),
        external_addresses: addresses,
        internal_router: internal.addresses.first().copied(),
        port_range: config.nat.port_range.clone(),
        excluded_ports,
        mapping: config.nat.mapping,
        filtering: config.nat.filtering,
        on_exhaustion: config.nat.on_exhaustion,
        timeouts: config.nat.timeouts,
        limits: limits(&config.nat.limits, host.memory),
        external_mtu: config.nat.external_mtu,
        internal_mtu: u16::try_from(internal.mtu).unwrap_or(u16::MAX),
        mss_clamp: config.nat.mss_clamp,
        answer_unsolicited_syn: config.nat.answer_unsolicited_syn,
        static_mappings: Vec::new(),
        services,
        offload_after: None,
    };
    let datapath = datapath::Config {
        external: external.clone(),
        internal: internal.clone(),
        bypass: config.nat.bypass.clone().unwrap_or(prefixes),
        datapath: config.datapath,
        xdp: config.xdp,
    };
    Ok(Resolved { datapath, nat })
}

/// The external and the internal interface, for the cloud to be asked about: whatever else is to fit may follow from what
/// it says.
///
/// # Errors
///
/// There is no such interface.
pub fn interfaces<'a>(
    config: &Config,
    host: &'a HostFacts,
) -> Result<(&'a datapath::Interface, &'a datapath::Interface), Vec<ResolveError>> {
    let external_name = match (&config.nat.external_interface, &host.default_route) {
        (Some(name), _) | (None, Some(name)) => name.as_str(),
        (None, None) => return Err(vec![ResolveError::NoDefaultRoute]),
    };
    let internal_name = config.nat.internal_interface.as_deref().unwrap_or(external_name);
    let external = interface(host, "nat.external_interface", external_name);
    let internal = interface(host, "nat.internal_interface", internal_name);
    match (external, internal) {
        (Ok(external), Ok(internal)) => Ok((external, internal)),
        (Err(error), Err(_)) if external_name == internal_name => Err(vec![error]),
        (external, internal) => Err(external.err().into_iter().chain(internal.err()).collect()),
    }
}

fn interface<'a>(
    host: &'a HostFacts,
    key: &'static str,
    name: &str,
) -> Result<&'a datapath::Interface, ResolveError> {
    host.interfaces.iter().find(|interface| interface.name == name).ok_or_else(|| {
        let present: Vec<&str> = host.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        ResolveError::NoInterface { key, name: name.to_owned(), present: present.join(", ") }
    })
}

fn external_addresses(
    config: &Config,
    external: &datapath::Interface,
    cloud: Option<&CloudFacts>,
    errors: &mut Vec<ResolveError>,
) -> Vec<nat::ExternalAddress> {
    if let Some(configured) = &config.nat.external_addresses {
        let absent = configured.iter().filter(|address| !external.addresses.contains(&address.private));
        errors.extend(absent.map(|address| ResolveError::NotOnInterface {
            name: external.name.clone(),
            address: address.private,
        }));
        return configured.clone();
    }
    let Some(first) = external.addresses.first() else {
        errors.push(ResolveError::NoAddress { key: "nat.external_interface", name: external.name.clone() });
        return Vec::new();
    };
    let mapped = cloud.map(|cloud| mapped_addresses(external, cloud)).unwrap_or_default();
    if mapped.is_empty() { vec![nat::ExternalAddress::from(*first)] } else { mapped }
}

/// The interface's addresses that have a public one. Those without would be a way to nowhere for whoever is paired
/// with them, and what the host does not have would never come in. No address is named twice, whatever the cloud
/// says.
fn mapped_addresses(external: &datapath::Interface, cloud: &CloudFacts) -> Vec<nat::ExternalAddress> {
    let mut seen = HashSet::new();
    let mut mapped = Vec::new();
    for address in &cloud.addresses {
        let Some(public) = address.public else { continue };
        if external.addresses.contains(&address.private) && seen.insert(address.private) && seen.insert(public)
        {
            mapped.push(*address);
        }
    }
    mapped
}

fn default_internal(internal: &datapath::Interface) -> Vec<Ipv4Net> {
    let own = internal.addresses.first();
    match PRIVATE.iter().find(|net| own.is_some_and(|address| net.contains(address))) {
        Some(net) => vec![*net],
        None => PRIVATE[..3].to_vec(),
    }
}

fn excluded_ports(
    config: &Config,
    host: &HostFacts,
    addresses: &[nat::ExternalAddress],
    errors: &mut Vec<ResolveError>,
) -> Vec<(Protocol, u16)> {
    let range = &config.nat.port_range;
    let mut excluded: Vec<(Protocol, u16)> = host
        .ports
        .iter()
        .filter(|(_, address, port)| {
            let reached = address.is_unspecified() || addresses.iter().any(|pair| pair.private == *address);
            reached && range.contains(port)
        })
        .map(|(protocol, _, port)| (*protocol, *port))
        .collect();
    excluded.sort_unstable();
    excluded.dedup();
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let taken = excluded.iter().filter(|(of, _)| *of == protocol).count();
        if taken == range.len() {
            errors.push(ResolveError::PortsTaken { protocol, lower: *range.start(), upper: *range.end() });
        }
    }
    excluded
}

/// The listeners that the engine serves, once for each external address that they are at.
fn services(
    config: &Config,
    host: &HostFacts,
    addresses: &[nat::ExternalAddress],
    internal: &[Ipv4Net],
    errors: &mut Vec<ResolveError>,
) -> Vec<nat::Service> {
    let mut services = Vec::new();
    for forward in &config.forward {
        let Mode::Nat { preserve_client_ip } = forward.mode else { continue };
        let (name, ip, port) = (|| forward.name.clone(), forward.listen.ip(), forward.listen.port());
        let is_here = |address: Ipv4Addr| ip.is_unspecified() || ip == address;
        let privates = addresses.iter().map(|address| address.private);
        let before = services.len();
        services.extend(privates.clone().filter(|private| is_here(*private)).map(|private| nat::Service {
            external: Endpoint::new(private, port),
            of_all: ip.is_unspecified(),
            retired: false,
            preserve_client_ip,
            connect_timeout: forward.connect_timeout,
        }));
        // One that the cloud has given the interface may have no public address just now, or the host may not have it yet.
        let known = host.cloud.as_ref().filter(|_| config.nat.external_addresses.is_none());
        let may_come = known.is_some_and(|cloud| cloud.addresses.iter().any(|known| ip == known.private));
        if services.len() == before && !may_come {
            let present: Vec<String> = privates.map(|private| private.to_string()).collect();
            errors.push(ResolveError::NotExternal { name: name(), address: ip, present: present.join(", ") });
        }
        let taken = |(protocol, address, taken): &(Protocol, Ipv4Addr, u16)| {
            let reached = address.is_unspecified() || addresses.iter().any(|pair| pair.private == *address);
            *protocol == Protocol::TCP && reached && *taken == port
        };
        if host.ports.iter().any(taken) {
            errors.push(ResolveError::PortInUse { name: name(), port });
        }
        let is_internal = |address: IpAddr| internal.iter().any(|prefix| IpNet::V4(*prefix).contains(&address));
        let outside = forward.targets.iter().map(|target| target.address.ip()).filter(|ip| !is_internal(*ip));
        errors.extend(outside.map(|address| ResolveError::NotInternal { name: name(), address }));
    }
    services
}

fn limits(limits: &Limits, memory: u64) -> nat::Limits {
    let from_memory = (memory / 4 / SESSION_BYTES).clamp(LEAST_SESSIONS, MOST_SESSIONS);
    let sessions = match limits.sessions {
        0 => u32::try_from(from_memory).unwrap_or(u32::MAX),
        sessions => sessions,
    };
    nat::Limits {
        sessions,
        sessions_per_address: match limits.sessions_per_address {
            0 => (sessions / 4).max(1),
            // The file may leave `sessions` to the memory, which may then turn out smaller.
            per_address => per_address.min(sessions),
        },
        new_sessions_per_second: limits.new_sessions_per_second,
        fragment_bytes: limits.fragment_memory,
    }
}

/// What a session takes at most: 190 bytes in the engine, and 256 in the fast path's table (docs/sizing.md).
const SESSION_BYTES: u64 = 448;
const LEAST_SESSIONS: u64 = 16_384;
const MOST_SESSIONS: u64 = 917_504;

/// RFC 1918, and RFC 6598, which VPCs use as well.
const PRIVATE: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
];
