//! The XDP program, `bpf/xdp.bpf.c`: loaded once, attached to each of our interfaces.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{Array, DevMap, Map, MapError, PerCpuArray, XskMap};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::table::{Hash, Table};
use crate::datapath::classifier::{BpfError, Classifier, ClassifierConfig, load, map_mut, program};
use crate::datapath::sys::{FastPathCounters, FlowSlot, OurInterface, OurInterfaces, XdpLink};

/// The loaded program.
pub struct Program {
    ebpf: Ebpf,
    classifier: Classifier,
    written: OurInterfaces,
    hash: Hash,
}

impl Program {
    /// Loads the program, with a flow table of so many homes; nothing is attached yet.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn load(homes: u32, config: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<Self, BpfError> {
        let hash = Hash::random(homes).map_err(BpfError::Randomness)?;
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .map_max_entries("FLOWS", hash.slots())
            .override_global("HOMES", &hash.homes, true)
            .override_global("HASH_KEYS", &hash.keys, true)
            .load(OBJECT)
            .map_err(|error| match error {
                EbpfError::MapError(MapError::CreateError { name, io_error }) if name == "FLOWS" => {
                    no_table(hash, io_error)
                }
                error => error.into(),
            })?;
        let xdp = program::<Xdp>(&mut ebpf, PROGRAM)?;
        load(|| xdp.load())?;
        let mut loaded =
            Self { ebpf, classifier: Classifier::default(), written: OurInterfaces::default(), hash };
        loaded.configure(config, host)?;
        Ok(loaded)
    }

    /// The table of flows, and the map of next hops. There is one of each.
    ///
    /// # Errors
    /// They have been taken already, or the table cannot be mapped.
    pub fn take_maps(&mut self) -> Result<(Table, Map), BpfError> {
        let next_hops = self.ebpf.take_map("NEXT_HOP_WORDS").ok_or(BpfError::Missing("NEXT_HOP_WORDS"))?;
        let Map::Array(flows) = map_mut(&mut self.ebpf, "FLOWS")? else {
            return Err(BpfError::Missing("FLOWS"));
        };
        let table = Table::new(flows.fd().as_fd(), self.hash).map_err(|error| no_table(self.hash, error))?;
        Ok((table, next_hops))
    }

    /// As [`Classifier::configure`].
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn configure(&mut self, config: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<(), BpfError> {
        self.classifier.configure(&mut self.ebpf, config, host)
    }

    /// Says which our interfaces are: frames that come in by another, or for another MAC address, are the kernel's.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn set_interfaces(&mut self, interfaces: OurInterfaces) -> Result<(), BpfError> {
        if interfaces == self.written {
            return Ok(());
        }
        let map = map_mut(&mut self.ebpf, "OUR_INTERFACES")?;
        Array::<_, OurInterfaces>::try_from(map)?.set(0, interfaces, 0)?;
        let mut devices = DevMap::try_from(map_mut(&mut self.ebpf, "DEVICES")?)?;
        for (place, OurInterface { index, .. }) in (0..).zip(interfaces) {
            if index != 0 {
                devices.set(place, index, None, 0)?;
            }
        }
        self.written = interfaces;
        Ok(())
    }

    /// Attaches the program.
    ///
    /// # Errors
    /// As [`XdpLink::attach`].
    pub fn attach(&mut self, interface: u32) -> io::Result<XdpLink> {
        let program = program::<Xdp>(&mut self.ebpf, PROGRAM).map_err(io::Error::other)?;
        XdpLink::attach(program.fd().map_err(io::Error::other)?.as_fd(), interface)
    }

    /// Has NAT's packets of a queue go to this socket; `None`: to nobody.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn set_socket(
        &mut self,
        place: usize,
        queue: u32,
        socket: Option<&impl AsRawFd>,
    ) -> Result<(), BpfError> {
        let mut sockets = XskMap::try_from(map_mut(&mut self.ebpf, "SOCKETS")?)?;
        let at = u32::try_from(place).unwrap_or(u32::MAX).saturating_mul(QUEUES).saturating_add(queue);
        match socket {
            Some(socket) => sockets.set(at, socket.as_raw_fd(), 0)?,
            None => sockets.unset(at)?,
        }
        Ok(())
    }

    /// What was counted, on all processors.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn counters(&mut self) -> Result<FastPathCounters, BpfError> {
        let map = map_mut(&mut self.ebpf, "COUNTERS")?;
        let each = PerCpuArray::<_, FastPathCounters>::try_from(map)?.get(&0, 0)?;
        let mut sum = FastPathCounters::default();
        for one in each.iter() {
            let add = |into: &mut [u64], from: &[u64]| into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
            add(&mut sum.packets, &one.packets);
            add(&mut sum.bytes, &one.bytes);
            add(&mut sum.misses, &one.misses);
            sum.passed += one.passed;
            sum.unserved += one.unserved;
        }
        Ok(sum)
    }

    /// The program itself, to be run on packets of a test's.
    #[cfg(test)]
    pub fn program(&mut self) -> &mut Xdp {
        program(&mut self.ebpf, PROGRAM).unwrap_or_else(|error| unreachable!("it was loaded: {error}"))
    }
}

fn no_table(hash: Hash, source: io::Error) -> BpfError {
    let bytes = u64::from(hash.slots()) * size_of::<FlowSlot>() as u64;
    BpfError::FlowTable { mebibytes: bytes >> 20, source }
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp.bpf.o"));

const PROGRAM: &str = "egret_xdp";

/// As in `bpf/xdp.bpf.c`.
pub const QUEUES: u32 = 64;
