//! The BPF filter of one interface: which packets are NAT's.
//!
//! Owns the loaded program and its maps; see `bpf/filter.bpf.c` for the rules. With kernels from 6.6 on the tc
//! program hangs on a TCX link and is gone with the process, however it ends. Older ones keep a filter on the clsact
//! qdisc until it is taken away: what a killed process left behind is removed by the next.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use aya::programs::tc::{self, NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use super::classifier::{BpfError, Classifier, ClassifierConfig, load, program};

/// A loaded filter. Dropping it detaches it.
pub struct Filter {
    ebpf: Ebpf,
    classifier: Classifier,
}

impl Filter {
    /// Loads the program; nothing is attached yet.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn load(config: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<Self, BpfError> {
        let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT)?;
        let divert = program::<SchedClassifier>(&mut ebpf, DIVERT)?;
        load(|| Ok(divert.load()?))?;
        let mut filter = Self { ebpf, classifier: Classifier::default() };
        filter.configure(config, host)?;
        Ok(filter)
    }

    /// Hands NAT's packets of this interface over to its packet socket instead of the kernel, from now on until the filter
    /// is dropped.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn divert(&mut self, interface: &str) -> Result<(), BpfError> {
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
    fn divert_by_clsact(&mut self, interface: &str) -> Result<(), BpfError> {
        // Refused when the interface has one already, which then serves.
        let _ = tc::qdisc_add_clsact(interface);
        self.attach(interface, TcAttachOptions::Netlink(NlOptions::default()))
    }

    fn attach(&mut self, interface: &str, options: TcAttachOptions) -> Result<(), BpfError> {
        let program = program::<SchedClassifier>(&mut self.ebpf, DIVERT)?;
        program.attach_with_options(interface, TcAttachType::Ingress, options)?;
        Ok(())
    }

    /// As [`Classifier::configure`].
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn configure(&mut self, config: &ClassifierConfig, host: &BTreeSet<Ipv4Addr>) -> Result<(), BpfError> {
        self.classifier.configure(&mut self.ebpf, config, host)
    }
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter.bpf.o"));

const DIVERT: &str = "egret_divert";

#[cfg(test)]
mod tests;
