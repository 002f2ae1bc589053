//! The BPF filter of one interface: which packets are NAT's.
//!
//! Owns the loaded programs and their maps; see `bpf/filter.bpf.c` for the rules. With kernels from 6.6 on the tc
//! program hangs on a TCX link and is gone with the process, however it ends. Older ones keep a filter on the clsact
//! qdisc until it is taken away: what a killed process left behind is removed by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, Map, MapError};
use aya::programs::tc::{self, NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, Program, ProgramError, SchedClassifier, SocketFilter, TcAttachType};
use aya::{Ebpf, EbpfError, EbpfLoader};
use ipnet::Ipv4Net;

use super::sys::{Ports, Prefix, Rules};
use crate::nat;
use crate::wire::Protocol;

/// Which of our sides an interface has; one-armed, it has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    pub internal: bool,
    pub external: bool,
}

/// Why an interface has no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("the packet filter cannot be loaded")]
    Load(#[source] Box<EbpfError>),
    #[error("the packet filter lacks {0}")]
    Missing(&'static str),
    #[error("the kernel refuses the packet filter")]
    Program(#[source] Box<ProgramError>),
    #[error("the packet filter's map cannot be written")]
    Map(#[from] MapError),
    #[error("{count} {what} prefixes, of which the packet filter holds {limit}, even after joining neighbours")]
    TooManyPrefixes { what: &'static str, count: usize, limit: usize },
    #[error("{count} addresses of this host and external addresses, of which the packet filter holds {limit}")]
    TooManyAddresses { count: usize, limit: usize },
}

impl From<EbpfError> for FilterError {
    fn from(error: EbpfError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<ProgramError> for FilterError {
    fn from(error: ProgramError) -> Self {
        Self::Program(Box::new(error))
    }
}

/// What the filter goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterConfig {
    rules: Rules,
    ports: Box<Ports>,
    external: BTreeSet<Ipv4Addr>,
}

impl FilterConfig {
    /// # Errors
    /// More prefixes than the filter holds.
    pub fn new(roles: Roles, bypass: &[Ipv4Net], config: &nat::Config) -> Result<Self, FilterError> {
        let mut written = Rules {
            roles: u32::from(roles.internal) * Rules::ROLE_INTERNAL
                + u32::from(roles.external) * Rules::ROLE_EXTERNAL,
            internal_count: 0,
            bypass_count: 0,
            padding: 0,
            internal: [Prefix::default(); Rules::INTERNAL_PREFIXES],
            bypass: [Prefix::default(); Rules::BYPASS_PREFIXES],
        };
        written.internal_count = fill(&mut written.internal, "internal", &config.internal)?;
        written.bypass_count = fill(&mut written.bypass, "bypass", bypass)?;
        Ok(Self {
            rules: written,
            ports: ports_of(config),
            external: config.external_addresses.iter().map(|address| address.private).collect(),
        })
    }
}

/// A loaded filter. Dropping it detaches it.
pub struct Filter {
    ebpf: Ebpf,
    /// What the addresses' map holds.
    kinds: BTreeMap<Ipv4Addr, u32>,
}

impl Filter {
    /// Loads the programs; nothing is attached yet.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn load(config: &FilterConfig, host: &BTreeSet<Ipv4Addr>) -> Result<Self, FilterError> {
        let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT)?;
        program::<SocketFilter>(&mut ebpf, CAPTURE)?.load()?;
        program::<SchedClassifier>(&mut ebpf, DIVERT)?.load()?;
        let mut filter = Self { ebpf, kinds: BTreeMap::new() };
        filter.configure(config, host)?;
        Ok(filter)
    }

    /// Lets only NAT's packets through to the socket.
    ///
    /// # Errors
    /// As `SO_ATTACH_BPF`.
    pub fn capture(&mut self, socket: impl AsFd) -> Result<(), FilterError> {
        Ok(program::<SocketFilter>(&mut self.ebpf, CAPTURE)?.attach(socket)?)
    }

    /// Keeps NAT's packets of this interface from the kernel, from now on until the filter is dropped.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn divert(&mut self, interface: &str) -> Result<(), FilterError> {
        // What a killed process left behind; as a rule there is nothing.
        if tc::qdisc_detach_program(interface, TcAttachType::Ingress, DIVERT).is_ok() {
            tracing::info!(interface, "removed the filter that an earlier run left behind");
        }
        let tcx = TcAttachOptions::TcxOrder(LinkOrder::default());
        match self.attach(interface, tcx) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::debug!(interface, %error, "no tcx, using clsact");
                self.divert_by_clsact(interface)
            }
        }
    }

    /// As [`Self::divert`] on kernels before 6.6. The empty qdisc stays, since others may have come to use it.
    fn divert_by_clsact(&mut self, interface: &str) -> Result<(), FilterError> {
        // Refused when the interface has one already, which then serves.
        let _ = tc::qdisc_add_clsact(interface);
        self.attach(interface, TcAttachOptions::Netlink(NlOptions::default()))
    }

    fn attach(&mut self, interface: &str, options: TcAttachOptions) -> Result<(), FilterError> {
        let program = program::<SchedClassifier>(&mut self.ebpf, DIVERT)?;
        program.attach_with_options(interface, TcAttachType::Ingress, options)?;
        Ok(())
    }

    /// Writes a changed configuration, or changed addresses of this host, into the maps.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn configure(&mut self, config: &FilterConfig, host: &BTreeSet<Ipv4Addr>) -> Result<(), FilterError> {
        let kinds = kinds_of(&config.external, host)?;
        let mut map: HashMap<_, u32, u32> = HashMap::try_from(map_mut(&mut self.ebpf, "ADDRESS_KINDS")?)?;
        for address in self.kinds.keys().filter(|address| !kinds.contains_key(address)) {
            map.remove(&network_order(*address))?;
        }
        for (address, kind) in &kinds {
            if self.kinds.get(address) != Some(kind) {
                map.insert(network_order(*address), kind, 0)?;
            }
        }
        self.kinds = kinds;
        Array::<_, Ports>::try_from(map_mut(&mut self.ebpf, "PORTS")?)?.set(0, *config.ports, 0)?;
        Array::<_, Rules>::try_from(map_mut(&mut self.ebpf, "RULES")?)?.set(0, config.rules, 0)?;
        Ok(())
    }
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, FilterError> {
    ebpf.map_mut(name).ok_or(FilterError::Missing(name))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, FilterError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    Ok(ebpf.program_mut(name).ok_or(FilterError::Missing(name))?.try_into()?)
}

fn fill(places: &mut [Prefix], what: &'static str, prefixes: &[Ipv4Net]) -> Result<u32, FilterError> {
    let prefixes = Ipv4Net::aggregate(&prefixes.to_vec());
    if prefixes.len() > places.len() {
        return Err(FilterError::TooManyPrefixes { what, count: prefixes.len(), limit: places.len() });
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
) -> Result<BTreeMap<Ipv4Addr, u32>, FilterError> {
    let mut kinds: BTreeMap<_, _> = host.iter().map(|address| (*address, ADDRESS_HOST)).collect();
    for address in external {
        *kinds.entry(*address).or_default() |= ADDRESS_EXTERNAL;
    }
    if kinds.len() > ADDRESSES {
        return Err(FilterError::TooManyAddresses { count: kinds.len(), limit: ADDRESSES });
    }
    Ok(kinds)
}

fn ports_of(config: &nat::Config) -> Box<Ports> {
    let mut ports = Box::new(Ports { tcp: [0; 1024], udp: [0; 1024] });
    for port in config.port_range.clone() {
        set(&mut ports.tcp, port, true);
        set(&mut ports.udp, port, true);
    }
    let excluded = config.excluded_ports.iter().map(|(protocol, port)| (*protocol, *port, false));
    // Last: a static mapping is NAT's even on a port that no mapping may take by itself.
    let mapped = config.static_mappings.iter().map(|mapping| (mapping.protocol, mapping.external.port, true));
    for (protocol, port, owned) in excluded.chain(mapped) {
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
fn network_order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter.bpf.o"));

const CAPTURE: &str = "egret_capture";
const DIVERT: &str = "egret_divert";

// As in `bpf/filter.bpf.c`.
const ADDRESS_HOST: u32 = 1;
const ADDRESS_EXTERNAL: u32 = 2;
const ADDRESSES: usize = 1024;

#[cfg(test)]
mod tests;
