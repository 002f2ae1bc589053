//! What the engine can be told. Every type here is plain data; [`Config::default`] is the table of RFC 4787,
//! 5382 and 5508 defaults, to which the caller adds prefixes and addresses.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::wire::{Endpoint, Protocol};

/// The engine's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who is translated. A packet from inside whose source is in none of these is dropped.
    pub internal: Vec<Ipv4Net>,
    /// The external address pool, at least one and at most 256. An internal address is paired with one of them
    /// (RFC 4787 REQ-2).
    pub external_addresses: Vec<ExternalAddress>,
    /// Source of the ICMP errors that are sent to the inside; the first external address if unset.
    pub internal_router: Option<Ipv4Addr>,
    /// Ports of the external addresses that mappings may take, for TCP and UDP. ICMP identifiers take all.
    pub port_range: RangeInclusive<u16>,
    /// Ports within `port_range` that belong to the host and are never allocated.
    pub excluded_ports: Vec<(Protocol, u16)>,
    pub mapping: MappingBehaviour,
    pub filtering: FilteringBehaviour,
    pub on_exhaustion: OnExhaustion,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// Largest IPv4 packet, in bytes, that may leave on the external side.
    pub external_mtu: u16,
    /// Largest IPv4 packet, in bytes, that may leave on the internal side.
    pub internal_mtu: u16,
    /// Largest TCP MSS option to let through in a SYN, in bytes; larger ones are lowered to it.
    pub mss_clamp: Option<u16>,
    /// Answer an unsolicited inbound SYN with ICMP port unreachable after 6 s (RFC 5382 REQ-4) instead of with
    /// silence.
    pub answer_unsolicited_syn: bool,
    pub static_mappings: Vec<StaticMapping>,
    pub services: Vec<Service>,
    /// Hand a session with traffic both ways to the fast path after this many of its packets; `None`: there is no
    /// fast path.
    pub offload_after: Option<u16>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            internal: Vec::new(),
            external_addresses: Vec::new(),
            internal_router: None,
            port_range: 1024..=60999,
            excluded_ports: Vec::new(),
            mapping: MappingBehaviour::default(),
            filtering: FilteringBehaviour::default(),
            on_exhaustion: OnExhaustion::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            external_mtu: 1500,
            internal_mtu: 1500,
            mss_clamp: None,
            answer_unsolicited_syn: false,
            static_mappings: Vec::new(),
            services: Vec::new(),
            offload_after: None,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no external address")]
    NoExternalAddress,
    #[error("more than {MOST_ADDRESSES} external addresses")]
    TooManyExternalAddresses,
    #[error("external address {0} is given twice")]
    DuplicateAddress(Ipv4Addr),
    #[error("the port range is empty or begins with 0")]
    PortRange,
    #[error("the {0} MTU of {1} bytes is less than IPv4's minimum of {MIN_MTU}")]
    Mtu(&'static str, u16),
    #[error("static mapping of {0} is not at an external address")]
    StaticMapping(Endpoint),
    #[error("service {0} is not at an external address")]
    Service(Endpoint),
}

impl Config {
    /// Says whether an engine would take it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.external_addresses.is_empty() {
            return Err(ConfigError::NoExternalAddress);
        }
        if self.external_addresses.len() > MOST_ADDRESSES {
            return Err(ConfigError::TooManyExternalAddresses);
        }
        let mut seen = std::collections::HashSet::new();
        let forms = self.external_addresses.iter().flat_map(|address| {
            let public = address.public.filter(|&public| public != address.private);
            std::iter::once(address.private).chain(public)
        });
        for form in forms {
            if !seen.insert(form) {
                return Err(ConfigError::DuplicateAddress(form));
            }
        }
        if self.port_range.is_empty() || *self.port_range.start() == 0 {
            return Err(ConfigError::PortRange);
        }
        for (side, mtu) in [("external", self.external_mtu), ("internal", self.internal_mtu)] {
            if mtu < MIN_MTU {
                return Err(ConfigError::Mtu(side, mtu));
            }
        }
        let is_ours = |endpoint: Endpoint| {
            self.external_addresses.iter().any(|address| address.private == endpoint.address)
        };
        if let Some(mapping) = self.static_mappings.iter().find(|mapping| !is_ours(mapping.external)) {
            return Err(ConfigError::StaticMapping(mapping.external));
        }
        match self.services.iter().find(|service| !is_ours(service.external)) {
            Some(service) => Err(ConfigError::Service(service.external)),
            None => Ok(()),
        }
    }
}

/// An external address: the private one that is on the wire, and the public one that the internet gateway maps
/// to it and that the world, and a hairpinning client, uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalAddress {
    pub private: Ipv4Addr,
    pub public: Option<Ipv4Addr>,
}

impl From<Ipv4Addr> for ExternalAddress {
    fn from(private: Ipv4Addr) -> Self {
        Self { private, public: None }
    }
}

/// When sessions of one internal endpoint share an external endpoint (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MappingBehaviour {
    #[default]
    EndpointIndependent,
    AddressAndPortDependent,
}

/// Which remotes may send to a mapping (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilteringBehaviour {
    EndpointIndependent,
    #[default]
    AddressAndPortDependent,
}

/// What happens to a new mapping when every port of its external address is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExhaustion {
    /// Share a port between sessions with different remotes.
    #[default]
    Overload,
    /// Refuse with ICMP destination unreachable, communication administratively prohibited.
    Refuse,
}

/// Idle timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Open TCP connections (RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: Duration,
    /// Half-open and closing TCP connections (RFC 5382 REQ-5: at least 4 min).
    pub tcp_transitory: Duration,
    /// UDP with traffic both ways (RFC 4787 REQ-5: 5 min recommended).
    pub udp: Duration,
    /// UDP that nobody has answered (RFC 4787 REQ-5: at least 2 min).
    pub udp_unreplied: Duration,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp_query: Duration,
    /// All other protocols.
    pub other: Duration,
}

impl Timeouts {
    /// A managed NAT gateway's: 350 s for everything.
    #[must_use]
    pub const fn aws_nat_gateway() -> Self {
        let idle = Duration::from_secs(350);
        Self {
            tcp_established: idle,
            tcp_transitory: idle,
            udp: idle,
            udp_unreplied: idle,
            icmp_query: idle,
            other: idle,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(7440),
            tcp_transitory: Duration::from_secs(240),
            udp: Duration::from_secs(300),
            udp_unreplied: Duration::from_secs(120),
            icmp_query: Duration::from_secs(60),
            other: Duration::from_secs(600),
        }
    }
}

/// Bounds on what clients can make the engine hold. A refused session is counted by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions in all.
    pub sessions: u32,
    /// Sessions of one internal address, but for those of a service's clients.
    pub sessions_per_address: u32,
    /// Sessions that one internal address may open in a second, with a burst of as many; 0 for no limit.
    pub new_sessions_per_second: u32,
    /// Bytes of fragments that wait for their first fragment.
    pub fragment_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 1 << 20,
            sessions_per_address: 1 << 18,
            new_sessions_per_second: 0,
            fragment_bytes: 4 << 20,
        }
    }
}

/// A fixed mapping: whatever comes to `external` goes to `internal`, from any remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticMapping {
    pub protocol: Protocol,
    /// The private external address and a port; the port need not lie in the port range.
    pub external: Endpoint,
    pub internal: Endpoint,
}

/// An external TCP endpoint whose connections go to one of several targets each: see [`super::Balancer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The private external address and a port; the port need not lie in the port range.
    pub external: Endpoint,
    /// The listener that it is of is at all external addresses, and goes by the name of 0.0.0.0.
    pub of_all: bool,
    /// Takes no new connections.
    pub retired: bool,
    /// Targets see the client's own address, and answer by way of this NAT. Otherwise they see an external address of
    /// ours, and may have another way out.
    pub preserve_client_ip: bool,
    /// A client that asks again after this long, and had no answer, gets another target.
    pub connect_timeout: Duration,
}

impl Service {
    /// What the balancer calls it.
    #[must_use]
    pub fn listener(&self) -> Endpoint {
        listener(self.external, self.of_all)
    }
}

/// What the balancer calls a service at `external`.
pub fn listener(external: Endpoint, of_all: bool) -> Endpoint {
    if of_all { Endpoint::new(Ipv4Addr::UNSPECIFIED, external.port) } else { external }
}

const MOST_ADDRESSES: usize = 256;
/// RFC 791 section 3.2: every link carries 68 bytes.
const MIN_MTU: u16 = 68;
