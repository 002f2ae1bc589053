//! What the BPF programs go by to tell NAT's packets from the kernel's: `bpf/classify.h`.
//!
//! Owns the three maps of it that every program has, and the limits of what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use aya::maps::xdp::XdpMapError;
use aya::maps::{Array, HashMap, Map, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError};
use ipnet::Ipv4Net;

use super::sys::{Address, Ports, Prefix, Rules};
use crate::nat;
use crate::wire::Protocol;

/// Which of our sides an interface has; one-armed, it has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    pub internal: bool,
    pub external: bool,
}

/// Why a BPF program of ours cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error("the BPF program cannot be loaded")]
    Load(#[source] Box<EbpfError>),
    #[error("the BPF program lacks {0}")]
    Missing(&'static str),
    #[error("the kernel refuses the BPF program")]
    Program(#[source] Box<ProgramError>),
    #[error("the kernel does not load the BPF program")]
    Verifier(#[source] io::Error),
    #[error("the BPF program's map cannot be written")]
    Map(#[from] MapError),
    #[error("the BPF program's map of interfaces cannot be written")]
    Devices(#[from] XdpMapError),
    #[error("a flow table of {mebibytes} MiB cannot be had")]
    FlowTable { mebibytes: u64, source: io::Error },
    #[error("the kernel gives no randomness")]
    Randomness(#[source] io::Error),
    #[error("{count} {what} prefixes, of which the BPF program holds {limit}, even after joining neighbours")]
    TooManyPrefixes { what: &'static str, count: usize, limit: usize },
    #[error("{count} addresses of this host and external addresses, of which the BPF program holds {limit}")]
    TooManyAddresses { count: usize, limit: usize },
}

impl From<EbpfError> for BpfError {
    fn from(error: EbpfError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<ProgramError> for BpfError {
    fn from(error: ProgramError) -> Self {
        match error {
            // The verifier's log is as long as the program.
            ProgramError::LoadError { io_error, verifier_log } => {
                tracing::debug!(%verifier_log, "the kernel does not load a BPF program");
                Self::Verifier(io_error)
            }
            error => Self::Program(Box::new(error)),
        }
    }
}

/// Has the kernel load a program. Its verifier gives up at any signal, and wants to be asked again.
///
/// # Errors
/// See [`BpfError`].
pub fn load(mut attempt: impl FnMut() -> Result<(), BpfError>) -> Result<(), BpfError> {
    for _ in 1..LOAD_ATTEMPTS {
        match attempt() {
            Err(BpfError::Verifier(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    attempt()
}

/// What the classifier goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifierConfig {
    rules: Rules,
    ports: Box<Ports>,
    external: BTreeSet<Ipv4Addr>,
}

impl ClassifierConfig {
    /// # Errors
    /// More prefixes than the classifier holds.
    pub fn new(roles: Roles, bypass: &[Ipv4Net], config: &nat::Config) -> Result<Self, BpfError> {
        let mut written = Rules {
            roles: u32::from(roles.internal) * Rules::ROLE_INTERNAL
                + u32::from(roles.external) * Rules::ROLE_EXTERNAL,
            internal_count: 0,
            bypass_count: 0,
            shared_only: 0,
            internal: [Prefix::default(); Rules::INTERNAL_PREFIXES],
            bypass: [Prefix::default(); Rules::BYPASS_PREFIXES],
            first: [Address::default(); Rules::FIRST_ADDRESSES],
            all_first: 0,
            zero: 0,
        };
        written.internal_count = fill(&mut written.internal, "internal", &config.internal)?;
        written.bypass_count = fill(&mut written.bypass, "bypass", bypass)?;
        Ok(Self {
            rules: written,
            ports: ports_of(config),
            external: config.external_addresses.iter().map(|address| address.private).collect(),
        })
    }

    /// For a packet socket beside XDP: only what is the kernel's as well comes by it.
    #[must_use]
    pub fn shared_only(mut self) -> Self {
        self.rules.shared_only = 1;
        self
    }

    /// The external addresses, as they are on the wire.
    #[must_use]
    pub const fn external(&self) -> &BTreeSet<Ipv4Addr> {
        &self.external
    }
}

/// The maps of one loaded object.
#[derive(Debug, Default)]
pub struct Classifier {
    /// What the addresses' map holds.
    kinds: BTreeMap<Ipv4Addr, u32>,
    /// What the rules hold of it.
    first: [Address; Rules::FIRST_ADDRESSES],
}

impl Classifier {
    /// Writes a changed configuration, or changed addresses of this host, into the maps.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn configure(
        &mut self,
        ebpf: &mut Ebpf,
        config: &ClassifierConfig,
        host: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), BpfError> {
        let kinds = kinds_of(&config.external, host)?;
        let rules = with_first(config.rules, &kinds);
        let mut map: HashMap<_, u32, u32> = HashMap::try_from(map_mut(ebpf, "ADDRESS_KINDS")?)?;
        for (address, kind) in &kinds {
            if self.kinds.get(address) != Some(kind) {
                map.insert(network_order(*address), kind, 0)?;
            }
        }
        Array::<_, Ports>::try_from(map_mut(ebpf, "PORTS")?)?.set(0, *config.ports, 0)?;
        // Programs read the rules while they are written. An address that stays may get another place there, or none: until
        // all of them have theirs, what is not found in the rules is looked for in the map.
        let mut written = Array::<_, Rules>::try_from(map_mut(ebpf, "RULES")?)?;
        for step in [
            Rules { first: self.first, all_first: 0, ..rules },
            Rules { first: rules.first, all_first: 0, ..rules },
            rules,
        ] {
            written.set(0, step, 0)?;
        }
        self.first = rules.first;
        let mut map: HashMap<_, u32, u32> = HashMap::try_from(map_mut(ebpf, "ADDRESS_KINDS")?)?;
        for address in self.kinds.keys().filter(|address| !kinds.contains_key(address)) {
            map.remove(&network_order(*address))?;
        }
        self.kinds = kinds;
        Ok(())
    }
}

/// A map of a loaded object.
///
/// # Errors
/// There is none of this name.
pub fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, BpfError> {
    ebpf.map_mut(name).ok_or(BpfError::Missing(name))
}

/// A program of a loaded object.
///
/// # Errors
/// There is none of this name, or it is of another type.
pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    Ok(ebpf.program_mut(name).ok_or(BpfError::Missing(name))?.try_into()?)
}

fn fill(places: &mut [Prefix], what: &'static str, prefixes: &[Ipv4Net]) -> Result<u32, BpfError> {
    let prefixes = Ipv4Net::aggregate(&prefixes.to_vec());
    if prefixes.len() > places.len() {
        return Err(BpfError::TooManyPrefixes { what, count: prefixes.len(), limit: places.len() });
    }
    let mut count = 0;
    for (place, prefix) in places.iter_mut().zip(&prefixes) {
        *place = Prefix { address: network_order(prefix.network()), mask: network_order(prefix.netmask()) };
        count += 1;
    }
    Ok(count)
}

fn kinds_of(
    external: &BTreeSet<Ipv4Addr>,
    host: &BTreeSet<Ipv4Addr>,
) -> Result<BTreeMap<Ipv4Addr, u32>, BpfError> {
    let mut kinds: BTreeMap<_, _> = host.iter().map(|address| (*address, ADDRESS_HOST)).collect();
    for address in external {
        *kinds.entry(*address).or_default() |= ADDRESS_EXTERNAL;
    }
    if kinds.len() > ADDRESSES {
        return Err(BpfError::TooManyAddresses { count: kinds.len(), limit: ADDRESSES });
    }
    Ok(kinds)
}

/// The rules with the first addresses of all: external ones are those of most packets.
fn with_first(mut rules: Rules, kinds: &BTreeMap<Ipv4Addr, u32>) -> Rules {
    let is_external = |kind: &u32| kind & ADDRESS_EXTERNAL != 0;
    let external = kinds.iter().filter(|(_, kind)| is_external(kind));
    let others = kinds.iter().filter(|(_, kind)| !is_external(kind));
    for (place, (address, kind)) in rules.first.iter_mut().zip(external.chain(others)) {
        *place = Address { address: network_order(*address), kind: *kind };
    }
    rules.all_first = u32::from(kinds.len() <= rules.first.len());
    rules
}

fn ports_of(config: &nat::Config) -> Box<Ports> {
    let mut ports = Box::new(Ports { tcp: [0; 1024], udp: [0; 1024] });
    for port in config.port_range.clone() {
        set(&mut ports.tcp, port, true);
        set(&mut ports.udp, port, true);
    }
    let excluded = config.excluded_ports.iter().map(|(protocol, port)| (*protocol, *port, false));
    // Last: a static mapping, or a service, is NAT's even on a port that no mapping may take by itself.
    let mapped = config.static_mappings.iter().map(|mapping| (mapping.protocol, mapping.external.port, true));
    let served = config.services.iter().map(|service| (Protocol::TCP, service.external.port, true));
    for (protocol, port, owned) in excluded.chain(mapped).chain(served) {
        match protocol {
            Protocol::TCP => set(&mut ports.tcp, port, owned),
            Protocol::UDP => set(&mut ports.udp, port, owned),
            _ => {}
        }
    }
    ports
}

fn set(words: &mut [u64; 1024], port: u16, owned: bool) {
    let word = &mut words[usize::from(port) / 64];
    let bit = 1 << (port % 64);
    *word = if owned { *word | bit } else { *word & !bit };
}

/// The address as a word that lies in memory as it does in a packet.
pub fn network_order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// As many as libbpf makes.
const LOAD_ATTEMPTS: u32 = 5;
// As in `bpf/classify.h`.
const ADDRESS_HOST: u32 = 1;
const ADDRESS_EXTERNAL: u32 = 2;
const ADDRESSES: usize = 1024;

#[cfg(test)]
mod tests;
