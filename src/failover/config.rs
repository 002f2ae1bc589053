//! What a fleet can be told: the home gateway, who may inherit it, and how patient to be. Plain data.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// One instance's part in a fleet. The instance is named by its home gateway, and its peers are that gateway's heirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The network interface that addresses and routes come to, `eni-...`.
    pub eni: String,
    pub home: Gateway,
    pub timing: Timing,
}

/// What moves as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Lower-case letters, digits and `-`; at most 63.
    pub name: String,
    /// Elastic IPs, `eipalloc-...`. Whoever holds the first is the gateway's host: it is the fence.
    pub allocations: Vec<String>,
    /// `rtb-...`
    pub route_tables: Vec<String>,
    /// What each of the tables leads to the host.
    pub destinations: Vec<Ipv4Net>,
    /// Names of the peers that may adopt it, the first choice first.
    pub heirs: Vec<String>,
    pub failback: Failback,
    /// A managed NAT gateway, `nat-...`, that gets the routes when nobody is well.
    pub fallback: Option<String>,
}

/// How a gateway gets home when its home instance is well again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failback {
    /// By itself, after the hold-down. Not if an operator has sent it away.
    #[default]
    Auto,
    /// By an operator's order only.
    Manual,
}

/// How patient to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats to a peer.
    pub heartbeat: Duration,
    /// The silence that means death. At least three heartbeats.
    pub dead_after: Duration,
    /// After a move, before another that is not needed; also how long health must have lasted before a failback.
    pub hold_down: Duration,
    /// Between two observations while nothing happens.
    pub observe_every: Duration,
    /// How long a living peer must have said that it is unwell before its gateways are taken.
    pub unwell_for: Duration,
    /// How long each heir has before the next one in the order tries; what an offer may take to be answered.
    pub turn: Duration,
    /// What a call may take. Without an answer by then, nobody knows whether it has happened.
    pub call_within: Duration,
    /// What a hand-over may take once it is accepted.
    pub hand_over_within: Duration,
    /// The first wait after a failure, and the longest; each is twice the one before, with jitter.
    pub retry: Duration,
    pub max_retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            dead_after: Duration::from_millis(1_500),
            hold_down: Duration::from_mins(2),
            observe_every: Duration::from_mins(1),
            unwell_for: Duration::from_secs(2),
            turn: Duration::from_secs(10),
            call_within: Duration::from_secs(10),
            hand_over_within: Duration::from_secs(30),
            retry: Duration::from_millis(500),
            max_retry: Duration::from_secs(30),
        }
    }
}

/// What is wrong with a configuration or a gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{0:?} is no name: lower-case letters, digits and `-`, at most {MOST_NAME}")]
    Name(String),
    #[error("{0:?} is no id of the kind `{1}...`")]
    Id(String, &'static str),
    #[error("gateway {0} has no Elastic IP: it is what decides who hosts")]
    NoAllocation(String),
    #[error("gateway {gateway} has {count} {what}, at most {most} are possible")]
    TooMany { gateway: String, what: &'static str, count: usize, most: usize },
    #[error("gateway {gateway} has {what} twice")]
    Twice { gateway: String, what: String },
    #[error("gateway {0} is its own heir")]
    OwnHeir(String),
    #[error(
        "heartbeats every {heartbeat:?}, so death needs at least three of them of silence, not {dead_after:?}"
    )]
    DeadAfter { heartbeat: Duration, dead_after: Duration },
    #[error("{0} must not be zero")]
    Zero(&'static str),
    #[error("an instance's name and interface cannot change while it runs")]
    Identity,
}

impl Config {
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_id(&self.eni, "eni-")?;
        self.home.check()?;
        self.timing.check()
    }
}

impl Gateway {
    /// Whether it is whole, small enough, and does not contradict itself. What a peer tells is checked alike.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_name(&self.name)?;
        if self.allocations.is_empty() {
            return Err(ConfigError::NoAllocation(self.name.clone()));
        }
        let counts = [
            ("Elastic IPs", self.allocations.len(), MOST_ALLOCATIONS),
            ("route tables", self.route_tables.len(), MOST_ROUTE_TABLES),
            ("destinations", self.destinations.len(), MOST_DESTINATIONS),
            ("heirs", self.heirs.len(), MOST_PEERS),
        ];
        for (what, count, most) in counts {
            if count > most {
                return Err(ConfigError::TooMany { gateway: self.name.clone(), what, count, most });
            }
        }
        self.allocations.iter().try_for_each(|id| check_id(id, "eipalloc-"))?;
        self.route_tables.iter().try_for_each(|id| check_id(id, "rtb-"))?;
        self.fallback.iter().try_for_each(|id| check_id(id, "nat-"))?;
        self.heirs.iter().try_for_each(|heir| check_name(heir))?;
        if self.heirs.contains(&self.name) {
            return Err(ConfigError::OwnHeir(self.name.clone()));
        }
        let mut seen = BTreeSet::new();
        let destinations = self.destinations.iter().map(|net| net.trunc().to_string());
        let ids = self.allocations.iter().chain(&self.route_tables).chain(&self.heirs).cloned();
        match ids.chain(destinations).find(|what| !seen.insert(what.clone())) {
            Some(what) => Err(ConfigError::Twice { gateway: self.name.clone(), what }),
            None => Ok(()),
        }
    }

    /// The fence.
    pub(super) fn first(&self) -> &str {
        self.allocations.first().map_or("", String::as_str)
    }

    /// Who may host it, the first choice first: its home, and its heirs.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.name).chain(&self.heirs)
    }

    /// Every route that must lead to the host.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&String, Ipv4Net)> {
        self.route_tables.iter().flat_map(|table| self.destinations.iter().map(move |net| (table, *net)))
    }
}

impl Timing {
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Self { heartbeat, dead_after, .. } = *self;
        let positive = [
            ("heartbeat", heartbeat),
            ("observe_every", self.observe_every),
            ("turn", self.turn),
            ("call_within", self.call_within),
            ("hand_over_within", self.hand_over_within),
            ("retry", self.retry),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| value.is_zero()) {
            return Err(ConfigError::Zero(name));
        }
        if dead_after < heartbeat * 3 {
            return Err(ConfigError::DeadAfter { heartbeat, dead_after });
        }
        Ok(())
    }
}

pub(super) fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name = (1..=MOST_NAME).contains(&name.len()) && name.chars().all(fits);
    is_name.then_some(()).ok_or_else(|| ConfigError::Name(name.chars().take(MOST_NAME).collect()))
}

pub(super) fn check_id(id: &str, prefix: &'static str) -> Result<(), ConfigError> {
    let fits =
        |rest: &str| (1..=MOST_ID).contains(&rest.len()) && rest.chars().all(|c| c.is_ascii_alphanumeric());
    let is_id = id.strip_prefix(prefix).is_some_and(fits);
    is_id.then_some(()).ok_or_else(|| ConfigError::Id(id.chars().take(MOST_ID).collect(), prefix))
}

/// Peers of one instance.
pub const MOST_PEERS: usize = 7;
/// Elastic IPs of one gateway.
pub const MOST_ALLOCATIONS: usize = 16;
/// Route tables of one gateway.
pub const MOST_ROUTE_TABLES: usize = 32;
/// Destinations of one gateway.
pub const MOST_DESTINATIONS: usize = 16;

const MOST_NAME: usize = 63;
const MOST_ID: usize = 64;
