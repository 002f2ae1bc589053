//! The fleet's state in the words that others are told it by.

use crate::admin::{GatewayReport, PeerReport};
use crate::failover::{GatewayStatus, Health, Host, Life, PeerStatus, Role, Why};

/// `not_handed_over`: why it was last not.
pub(super) fn gateway(status: &GatewayStatus, not_handed_over: Option<&String>) -> GatewayReport {
    GatewayReport {
        gateway: status.gateway.clone(),
        host: match &status.host {
            Host::Instance(name) => Some(name.clone()),
            Host::Unknown | Host::Nobody | Host::Stranger(_) => None,
        },
        role: role(status.role).to_owned(),
        since_seconds: status.since_seconds,
        why: status.why.map(|why| why.to_string()),
        observed_seconds: status.observed_seconds,
        trouble: status.trouble.clone(),
        offered_to: status.offered_to.clone(),
        not_handed_over: not_handed_over.cloned(),
    }
}

/// `last_error`: what the link to it last came to grief by.
pub(super) fn peer(status: &PeerStatus, last_error: Option<String>) -> PeerReport {
    PeerReport {
        peer: status.peer.clone(),
        state: life(status.life).to_owned(),
        connected: status.linked,
        health: status.health.map(words),
        leaving: status.leaving,
        silent_seconds: status.silent_seconds,
        round_trip_seconds: status.round_trip_seconds,
        refused: status.refused.clone(),
        last_error,
    }
}

/// As metrics have it.
pub(super) const fn came(why: Why) -> &'static str {
    match why {
        Why::Found => "found",
        Why::Free => "free",
        Why::Silence => "silence",
        Why::Unwell => "unwell",
        Why::HandOver(_) => "hand_over",
    }
}

pub(super) const fn role(role: Role) -> &'static str {
    match role {
        Role::Standby => "standby",
        Role::Taking => "taking",
        Role::Active => "active",
        Role::Fallback => "fallback",
    }
}

const fn life(life: Life) -> &'static str {
    match life {
        Life::Alive => "alive",
        Life::Suspect => "suspect",
        Life::Dead => "dead",
    }
}

pub(super) fn words(health: Health) -> String {
    let mut unwell = Vec::new();
    if !health.worker {
        unwell.push("the packet worker does not answer");
    } else if !health.datapath {
        unwell.push("packets would not flow");
    }
    if health.egress == Some(false) {
        unwell.push("the internet is not reached");
    }
    if health.aws == Some(false) {
        unwell.push("EC2's API does not answer");
    }
    match (unwell.is_empty(), health.egress) {
        (true, None) => "not known yet".to_owned(),
        (true, Some(_)) => "well".to_owned(),
        (false, _) => unwell.join(", "),
    }
}
