//! Whether a peer's definition can be gone by: nothing in it may be somebody else's.

use std::collections::BTreeMap;

use super::config::{Config, Gateway};
use super::event::Refusal;
use super::message::{Hello, VERSION};
use super::peer::Peer;

/// Judges every peer anew, by what it has told last. Of two that contradict each other, the one whose definition is
/// in use stays; a new one that contradicts is refused, whatever it was before.
pub(super) fn judge(config: &Config, peers: &mut BTreeMap<String, Peer>) -> BTreeMap<String, Option<Refusal>> {
    let mut taken = Taken::default();
    taken.take(&config.eni, &config.home);
    let mut order: Vec<(bool, String)> =
        peers.iter().map(|(name, peer)| (!peer.is_known, name.clone())).collect();
    order.sort();
    let mut verdicts = BTreeMap::new();
    for (_, name) in order {
        let Some(peer) = peers.get_mut(&name) else { continue };
        let Some(hello) = &peer.told else { continue };
        let verdict = check(config, &name, hello, &taken).err();
        if verdict.is_none() {
            taken.take(&hello.eni, &hello.gateway);
        }
        peer.is_known = verdict.is_none();
        if peer.refused != verdict {
            peer.refused.clone_from(&verdict);
            verdicts.insert(name, verdict);
        }
    }
    verdicts
}

/// What belongs to somebody, and to which gateway.
#[derive(Debug, Default)]
struct Taken {
    interfaces: BTreeMap<String, String>,
    resources: BTreeMap<String, String>,
}

impl Taken {
    fn take(&mut self, eni: &str, gateway: &Gateway) {
        self.interfaces.insert(eni.to_owned(), gateway.name.clone());
        let resources = gateway.allocations.iter().chain(&gateway.route_tables);
        self.resources.extend(resources.map(|id| (id.clone(), gateway.name.clone())));
    }
}

fn check(config: &Config, name: &str, hello: &Hello, taken: &Taken) -> Result<(), Refusal> {
    if hello.version != VERSION {
        return Err(Refusal::Version { ours: VERSION, theirs: hello.version });
    }
    hello.check()?;
    let gateway = &hello.gateway;
    if gateway.name == config.home.name {
        return Err(Refusal::OwnHome(gateway.name.clone()));
    }
    if gateway.name != name {
        return Err(Refusal::Name { expected: name.to_owned(), told: gateway.name.clone() });
    }
    if let Some(of) = taken.interfaces.get(&hello.eni) {
        return Err(Refusal::Interface(hello.eni.clone(), of.clone()));
    }
    let mut resources = gateway.allocations.iter().chain(&gateway.route_tables);
    match resources.find_map(|id| taken.resources.get_key_value(id)) {
        Some((what, of)) => Err(Refusal::Claims { what: what.clone(), of: of.clone() }),
        None => Ok(()),
    }
}
