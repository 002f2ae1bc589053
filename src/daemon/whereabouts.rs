//! Where peers are that the configuration names by a tag: an instance of an Auto Scaling group has no address that stays.
//!
//! Owns when EC2 is asked, and what holds while it does not answer. It is asked only about peers that this side dials
//! and has no link with; a take-over never waits for it. Refused: to believe the tag. Whoever answers at one of these
//! addresses has to have the key and the name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::aws::CALL_TIMEOUT;
use crate::aws::{Calls, Failure, Pace, SdkConfig, TaggedInstances};
use crate::config::{Failover, FailoverPeer, PeerAddress};
use crate::peer;

/// Addresses by peer.
pub(super) type Addresses = BTreeMap<String, Vec<SocketAddr>>;

/// What EC2 says of a tag: the addresses of the instances that have it.
pub(super) type Answer = Result<BTreeSet<Ipv4Addr>, Failure>;

/// See the module.
#[derive(Debug)]
pub(super) struct Whereabouts {
    instances: Arc<TaggedInstances>,
    /// Of peers named by a tag, as last found.
    found: Addresses,
    /// Why a peer was not found when EC2 was last asked.
    lost: BTreeMap<String, String>,
    /// Of whom there is no answer yet.
    asked: BTreeSet<String>,
}

/// A question about a peer, to be asked beside.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) peer: FailoverPeer,
    instances: Arc<TaggedInstances>,
}

impl Question {
    pub(super) async fn ask(&self) -> Answer {
        match &self.peer.address {
            PeerAddress::Tagged { key, value, .. } => {
                self.instances.find(key, value).await.map(|(addresses, _)| addresses)
            }
            PeerAddress::Fixed(_) => Ok(BTreeSet::new()),
        }
    }
}

impl Whereabouts {
    /// Of peers in the VPC `vpc`. Makes no request yet.
    pub(super) fn new(sdk: &SdkConfig, vpc: &str, calls: Calls) -> Self {
        let pace = Pace { interval: EVERY, call_timeout: CALL_TIMEOUT, ..Pace::default() };
        let instances = Arc::new(TaggedInstances::new(sdk, vpc, calls, pace));
        Self { instances, found: BTreeMap::new(), lost: BTreeMap::new(), asked: BTreeSet::new() }
    }

    /// What was [`found`](Self::found) by an earlier process holds until EC2 says something else.
    pub(super) fn recall(&mut self, config: &Failover, found: Addresses) {
        let is_tagged = |name: &String| {
            let peer = config.peers.iter().find(|peer| peer.gateway == *name);
            peer.is_some_and(|peer| matches!(peer.address, PeerAddress::Tagged { .. }))
        };
        self.found.extend(found.into_iter().filter(|(name, _)| is_tagged(name)));
    }

    /// What was found by tags so far.
    pub(super) const fn found(&self) -> &Addresses {
        &self.found
    }

    /// Forgets what was found by tags that peers no longer have.
    pub(super) fn reconfigure(&mut self, old: &Failover, new: &Failover) {
        let stays =
            |name: &String| old.peers.iter().any(|peer| peer.gateway == *name && new.peers.contains(peer));
        self.found.retain(|name, _| stays(name));
        self.lost.retain(|name, _| stays(name));
    }

    /// Where peers are dialled: nowhere yet, if one was never found.
    pub(super) fn addresses(&self, config: &Failover) -> Addresses {
        let of = |peer: &FailoverPeer| match &peer.address {
            PeerAddress::Fixed(address) => vec![*address],
            PeerAddress::Tagged { .. } => self.found.get(&peer.gateway).cloned().unwrap_or_default(),
        };
        config.peers.iter().map(|peer| (peer.gateway.clone(), of(peer))).collect()
    }

    /// Why a peer was not found, if that is so.
    pub(super) fn why_lost(&self, peer: &str) -> Option<&str> {
        self.lost.get(peer).map(String::as_str)
    }

    /// What is to be asked now; EC2 is asked less often than that.
    pub(super) fn questions(
        &mut self,
        config: &Failover,
        is_connected: impl Fn(&str) -> bool,
    ) -> Vec<Question> {
        let mut questions = Vec::new();
        for peer in &config.peers {
            let is_tagged = matches!(peer.address, PeerAddress::Tagged { .. });
            if !is_tagged || !peer::dials(&config.gateway, &peer.gateway) {
                continue;
            }
            if is_connected(&peer.gateway) {
                self.lost.remove(&peer.gateway);
            } else if self.asked.insert(peer.gateway.clone()) {
                questions.push(Question { peer: peer.clone(), instances: Arc::clone(&self.instances) });
            }
        }
        questions
    }

    /// Takes an answer, but for the `own` addresses; gives whether the peer is to be dialled elsewhere from now on.
    pub(super) fn answered(
        &mut self,
        config: &Failover,
        peer: &FailoverPeer,
        answer: Answer,
        own: &[Ipv4Addr],
    ) -> bool {
        let FailoverPeer { gateway, address } = peer;
        self.asked.remove(gateway);
        let PeerAddress::Tagged { key, value, port } = address else { return false };
        if !config.peers.contains(peer) {
            return false;
        }
        let why = match answer {
            Ok(addresses) => {
                let others = addresses.into_iter().filter(|address| !own.contains(address));
                let others: Vec<SocketAddr> = others.map(|address| (address, *port).into()).collect();
                if !others.is_empty() {
                    self.lost.remove(gateway);
                    return self.found.insert(gateway.clone(), others.clone()).as_ref() != Some(&others);
                }
                format!("not found: no other running instance of this VPC has the tag {key}={value}")
            }
            Err(failure) => format!("not found: {failure}"),
        };
        // What was found last is tried for as long as there is nothing else.
        if self.lost.get(gateway) != Some(&why) {
            tracing::warn!(peer = gateway, reason = why, "peer is not found by its tag");
            self.lost.insert(gateway.clone(), why);
        }
        false
    }
}

/// How often EC2 is asked about a tag, at most.
const EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const TAGGED: &str = r#"[aws]
route_tables = ["rtb-01234567"]
elastic_ips = ["eipalloc-01234567"]
[failover]
gateway = "az-b"
key_file = "/etc/egret/peer.key"
listen = "0.0.0.0:7946"
peers = [{ gateway = "az-a", address = "ec2-tag:role=a:7946" }, { gateway = "az-c", address = "ec2-tag:role=c:7946" },
  { gateway = "az-d", address = "10.0.4.10:7946" }]
"#;

    fn failover(text: &str) -> Failover {
        let config = crate::config::parse(std::path::Path::new("egret.toml"), text.as_bytes());
        config.unwrap().failover.unwrap()
    }

    fn whereabouts() -> Whereabouts {
        let sdk = SdkConfig::builder().behavior_version(crate::aws::BehaviorVersion::latest()).build();
        Whereabouts::new(&sdk, "vpc-0a1b2c3d4e5f60718", Calls::default())
    }

    fn at(last: &[u8]) -> BTreeSet<Ipv4Addr> {
        last.iter().map(|last| Ipv4Addr::new(10, 0, 3, *last)).collect()
    }

    fn asked(whereabouts: &mut Whereabouts, config: &Failover, connected: &[&str]) -> Vec<String> {
        let questions = whereabouts.questions(config, |peer| connected.contains(&peer));
        questions.into_iter().map(|question| question.peer.gateway).collect()
    }

    #[test]
    fn only_lost_peers_that_this_side_dials_by_a_tag_are_asked_about_and_once_at_a_time() {
        let (mut whereabouts, config) = (whereabouts(), failover(TAGGED));
        assert_eq!(asked(&mut whereabouts, &config, &["az-c"]), [""; 0]);
        assert_eq!(asked(&mut whereabouts, &config, &[]), ["az-c"]);
        assert_eq!(asked(&mut whereabouts, &config, &[]), [""; 0], "there is no answer yet");
        whereabouts.answered(&config, &config.peers[1], Ok(at(&[])), &[]);
        assert_eq!(asked(&mut whereabouts, &config, &[]), ["az-c"]);
    }

    #[test]
    fn all_that_have_the_tag_are_dialled_but_this_instance() {
        let (mut whereabouts, config) = (whereabouts(), failover(TAGGED));
        assert_eq!(whereabouts.addresses(&config)["az-c"], []);
        let own = [Ipv4Addr::new(10, 0, 3, 10)];
        assert!(whereabouts.answered(&config, &config.peers[1], Ok(at(&[10, 11, 12])), &own));
        let addresses = whereabouts.addresses(&config);
        assert_eq!(addresses["az-c"], ["10.0.3.11:7946".parse().unwrap(), "10.0.3.12:7946".parse().unwrap()]);
        assert_eq!(addresses["az-d"], ["10.0.4.10:7946".parse().unwrap()]);
        assert!(!whereabouts.answered(&config, &config.peers[1], Ok(at(&[10, 11, 12])), &own), "no news");
    }

    #[test]
    fn who_is_not_found_is_still_dialled_where_it_was_and_the_reason_is_told() {
        let (mut whereabouts, config) = (whereabouts(), failover(TAGGED));
        let known: Addresses = [("az-c", 11), ("az-d", 12), ("az-x", 13)]
            .map(|(name, last)| (name.to_owned(), vec![SocketAddr::from(([10, 0, 3, last], 7946))]))
            .into();
        whereabouts.recall(&config, known);
        assert_eq!(whereabouts.found().keys().collect::<Vec<_>>(), ["az-c"], "tags only");
        let failure = Failure::Unauthorized { action: "ec2:DescribeInstances" };
        assert!(!whereabouts.answered(&config, &config.peers[1], Err(failure), &[]));
        let reason = "not found: the instance's role does not allow ec2:DescribeInstances";
        assert_eq!(whereabouts.why_lost("az-c"), Some(reason));
        assert!(!whereabouts.answered(&config, &config.peers[1], Ok(at(&[])), &[]));
        let reason = "not found: no other running instance of this VPC has the tag role=c";
        assert_eq!(whereabouts.why_lost("az-c"), Some(reason));
        assert_eq!(whereabouts.addresses(&config)["az-c"], ["10.0.3.11:7946".parse().unwrap()]);
        // The link has come up by itself.
        let _ = whereabouts.questions(&config, |_| true);
        assert_eq!(whereabouts.why_lost("az-c"), None);
    }

    #[test]
    fn another_tag_forgets_what_was_found_by_the_old_one() {
        let (mut whereabouts, config) = (whereabouts(), failover(TAGGED));
        assert!(whereabouts.answered(&config, &config.peers[1], Ok(at(&[11])), &[]));
        let new = failover(&TAGGED.replace("role=c", "role=x"));
        whereabouts.reconfigure(&config, &new);
        assert_eq!(whereabouts.addresses(&new)["az-c"], []);
        // An answer to a question of before says nothing of now.
        assert!(!whereabouts.answered(&new, &config.peers[1], Ok(at(&[11])), &[]));
        assert_eq!(whereabouts.addresses(&new)["az-c"], []);
    }
}
