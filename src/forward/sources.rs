//! Who a group's targets are: addresses of the file, and what the sources of the file have last said.
//!
//! Does no IO. The number of targets is bounded by [`MOST_TARGETS`]; those that are beyond are left out, the same ones
//! each time, and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::discover::{DiscoverError, Followed, Source};
use crate::balance::{Group, MOST_TARGETS, Target};
use crate::time::Instant;

/// See the module.
#[derive(Debug)]
pub(super) struct Sources {
    fixed: Vec<Target>,
    followed: Vec<Followed>,
    /// Of each of `followed` that has been asked.
    known: BTreeMap<Source, Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    addresses: BTreeSet<SocketAddr>,
    /// Why the last answer is none.
    error: Option<DiscoverError>,
}

/// What is to be seen of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// As the configuration has it.
    pub source: String,
    /// How many targets it has given.
    pub targets: usize,
    /// How many more there would be, were that not too many.
    pub left_out: usize,
    /// Why its last answer is none: the targets are those of the answer before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// What is new since the answer before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    /// There are other targets, or the first answer since one that was none.
    Answer,
    /// It fails, and did not before.
    Failure,
}

impl Sources {
    pub(super) fn new(fixed: &[Target], followed: &[Followed]) -> Self {
        Self { fixed: fixed.to_vec(), followed: followed.to_vec(), known: BTreeMap::new() }
    }

    /// These, if the file says something else. What sources have said that stay is still known.
    pub(super) fn changed(&self, fixed: &[Target], followed: &[Followed]) -> Self {
        let mut known = self.known.clone();
        known.retain(|source, _| followed.iter().any(|followed| followed.source == *source));
        Self { known, ..Self::new(fixed, followed) }
    }

    /// Takes in what a source has said. One that is not followed any more is ignored, as are addresses that no host
    /// can have; an answer without any other is a failure.
    pub(super) fn found(&mut self, source: &Source, found: Result<Vec<SocketAddr>, DiscoverError>) -> News {
        if !self.followed.iter().any(|followed| followed.source == *source) {
            return News::Nothing;
        }
        let known = self.known.entry(source.clone()).or_default();
        let found = found.and_then(|addresses| {
            let addresses: BTreeSet<_> = addresses.into_iter().filter(is_usable).collect();
            if addresses.is_empty() { Err(DiscoverError::NoAddress) } else { Ok(addresses) }
        });
        match found {
            Ok(addresses) => {
                let has_failed = known.error.take().is_some();
                if !has_failed && known.addresses == addresses {
                    return News::Nothing;
                }
                known.addresses = addresses;
                News::Answer
            }
            Err(error) => match known.error.replace(error) {
                Some(_) => News::Nothing,
                None => News::Failure,
            },
        }
    }

    /// The targets; nothing if those of before are to stay, since there is none yet and a source may still give some.
    pub(super) fn targets(&self) -> Option<Vec<Target>> {
        let all: Vec<Target> = self.by_origin().into_iter().flat_map(|(targets, _)| targets).collect();
        (!all.is_empty() || self.followed.is_empty()).then_some(all)
    }

    /// Takes in what a source has said, and has `group` have the targets that there are then. Says whether there are
    /// others than before.
    pub(super) fn follow(
        &mut self,
        now: Instant,
        listener: &str,
        group: &mut Group,
        source: &Source,
        found: Result<Vec<SocketAddr>, DiscoverError>,
    ) -> bool {
        match self.found(source, found) {
            News::Nothing => false,
            News::Failure => {
                let error = self.error(source).map(ToString::to_string);
                tracing::warn!(listener, %source, error, "targets not found: those known before stay");
                false
            }
            News::Answer => {
                let targets = self.targets().unwrap_or_default();
                tracing::info!(listener, %source, targets = targets.len(), "targets found");
                if let Err(error) = group.set_targets(now, &targets) {
                    tracing::warn!(listener, %source, %error, "targets not usable: those known before stay");
                }
                true
            }
        }
    }

    pub(super) fn reports(&self) -> Vec<SourceReport> {
        let of_sources = self.by_origin().into_iter().skip(1);
        let report = |(followed, (targets, left_out)): (&Followed, (Vec<Target>, usize))| SourceReport {
            source: followed.source.to_string(),
            targets: targets.len(),
            left_out,
            error: self.error(&followed.source).map(ToString::to_string),
        };
        self.followed.iter().zip(of_sources).map(report).collect()
    }

    /// Why a source's last answer is none.
    pub(super) fn error(&self, source: &Source) -> Option<&DiscoverError> {
        self.known.get(source)?.error.as_ref()
    }

    /// Those of the file, then those of each source, each with how many are left out. Of several with one address the
    /// first counts.
    fn by_origin(&self) -> Vec<(Vec<Target>, usize)> {
        let mut taken = BTreeSet::new();
        let mut take = |targets: Vec<Target>| {
            let mut new: Vec<Target> =
                targets.into_iter().filter(|target| !taken.contains(&target.address)).collect();
            let room = MOST_TARGETS.saturating_sub(taken.len());
            let left_out = new.len().saturating_sub(room);
            new.truncate(room);
            taken.extend(new.iter().map(|target| target.address));
            (new, left_out)
        };
        let mut all = vec![take(self.fixed.clone())];
        for Followed { source, weight, backup } in &self.followed {
            let addresses = self.known.get(source).into_iter().flat_map(|known| &known.addresses);
            all.push(take(
                addresses
                    .map(|address| Target { address: *address, weight: *weight, backup: *backup })
                    .collect(),
            ));
        }
        all
    }
}

/// Whether a host can have it.
fn is_usable(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => ip.octets()[0] != 0 && ip.octets()[0] < 224,
        IpAddr::V6(_) => false,
    }
}
