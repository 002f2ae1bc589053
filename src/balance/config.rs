//! What a target group and a listener's door can be told. Plain data; the defaults are those of a network load
//! balancer with a TCP listener, where it has one (Elastic Load Balancing, "Health checks for Network Load Balancer
//! target groups" and "Target groups for your Network Load Balancers").

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A target group's configuration; who its targets are is told apart, by [`super::Group::set_targets`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub health: HealthCheck,
    pub algorithm: Algorithm,
    /// Lead an address that has been here before to the same target; `None`: every connection is chosen anew.
    pub stickiness: Option<Stickiness>,
    pub on_unhealthy: OnUnhealthy,
    /// How long connections of a target that leaves may go on before they are closed.
    pub deregistration_delay: Duration,
    /// Keys the hash of [`Algorithm::FlowHash`]. Instances that share it send a client to the same target; clients
    /// that know it can choose theirs.
    pub key: [u8; 16],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            health: HealthCheck::default(),
            algorithm: Algorithm::default(),
            stickiness: None,
            on_unhealthy: OnUnhealthy::default(),
            deregistration_delay: Duration::from_secs(300),
            key: *b"egret flow hash.",
        }
    }
}

impl Config {
    /// # Errors
    /// What is wrong with it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let HealthCheck { interval, timeout, healthy_threshold, unhealthy_threshold } = self.health;
        if !(SHORTEST_INTERVAL..=LONGEST).contains(&interval) {
            return Err(ConfigError::Interval(interval));
        }
        if timeout.is_zero() || timeout > interval {
            return Err(ConfigError::Timeout { timeout, interval });
        }
        for (name, threshold) in [("healthy", healthy_threshold), ("unhealthy", unhealthy_threshold)] {
            if threshold == 0 {
                return Err(ConfigError::Threshold(name));
            }
        }
        if self.deregistration_delay > LONGEST {
            return Err(ConfigError::DeregistrationDelay(self.deregistration_delay));
        }
        match self.stickiness {
            Some(Stickiness { idle_timeout, .. }) if idle_timeout.is_zero() => {
                Err(ConfigError::StickinessTimeout)
            }
            Some(Stickiness { most_clients: 0, .. }) => Err(ConfigError::NoClients),
            _ => Ok(()),
        }
    }
}

/// When targets are checked, and how often they must pass or fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// From one check of a target to its next, on average: each is up to a tenth early or late.
    pub interval: Duration,
    /// A check that has no answer by then has failed. At most `interval`, so that a target is never asked twice at
    /// once.
    pub timeout: Duration,
    /// Checks in a row that make an unhealthy target healthy. A new one needs a single check: "after your target is
    /// registered, it must pass one health check to be considered healthy".
    pub healthy_threshold: u8,
    /// Checks, or connects, in a row that make a target unhealthy by failing.
    pub unhealthy_threshold: u8,
}

impl HealthCheck {
    /// The timeout of HTTP and HTTPS checks, where TCP ones have that of [`HealthCheck::default`].
    pub const HTTP_TIMEOUT: Duration = Duration::from_secs(6);
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            healthy_threshold: 5,
            unhealthy_threshold: 2,
        }
    }
}

/// How a target is chosen among those that may serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// By the client's address and port, the same on every instance (Maglev hashing).
    #[default]
    FlowHash,
    /// In turns, as many as the weight says.
    RoundRobin,
    /// The one with the fewest connections for its weight.
    LeastConnections,
}

/// Stickiness by source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stickiness {
    /// An address that opens no connection for this long is forgotten.
    pub idle_timeout: Duration,
    /// Addresses that are remembered; one more makes the one forgotten that was away the longest.
    pub most_clients: u32,
}

impl Default for Stickiness {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(3600), most_clients: 16_384 }
    }
}

/// What happens to the connections of a target that fails its checks. Connects that fail make it unhealthy too, but
/// as long as its checks pass it keeps the connections that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnhealthy {
    /// They are reset, "unless the unhealthy target triggers the load balancer to fail open".
    #[default]
    Reset,
    Keep,
}

/// One target as it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub address: SocketAddr,
    /// Its share of connections, relative to those of the others; with 0 it is checked, but gets none.
    pub weight: u16,
    /// Serves only while no other target is healthy.
    pub backup: bool,
}

impl Target {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let ip = self.address.ip();
        if self.address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return Err(ConfigError::Target(self.address));
        }
        Ok(())
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, weight: 1, backup: false }
    }
}

/// Who may connect to a listener, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prefixes of clients; at least one.
    pub allow: Vec<IpNet>,
    /// Connections at one time, at least one.
    pub connections: u32,
    /// Connections that one client address (of IPv6, one /64) may open in a second, with a burst of as many; 0 for
    /// no limit.
    pub new_connections_per_second: u32,
    /// Client addresses whose rate is watched; one more makes the one forgotten that was away the longest.
    pub most_clients: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let everybody = [
            Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).map(IpNet::V4),
            Ipv6Net::new(Ipv6Addr::UNSPECIFIED, 0).map(IpNet::V6),
        ];
        Self {
            allow: everybody.into_iter().flatten().collect(),
            connections: 16_384,
            new_connections_per_second: 0,
            most_clients: 16_384,
        }
    }
}

impl Limits {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.allow.is_empty() {
            Err(ConfigError::NobodyAllowed)
        } else if self.connections == 0 {
            Err(ConfigError::NoConnections)
        } else if self.new_connections_per_second > 0 && self.most_clients == 0 {
            Err(ConfigError::NoClients)
        } else {
            Ok(())
        }
    }
}

/// Why a configuration, or a list of targets, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the health check's interval of {0:?} is not between {SHORTEST_INTERVAL:?} and a day")]
    Interval(Duration),
    #[error("the health check's timeout of {timeout:?} is not between 0 and the interval of {interval:?}")]
    Timeout { timeout: Duration, interval: Duration },
    #[error("the {0} threshold is 0")]
    Threshold(&'static str),
    #[error("the deregistration delay of {0:?} is more than a day")]
    DeregistrationDelay(Duration),
    #[error("the idle timeout of stickiness is 0")]
    StickinessTimeout,
    #[error("no client address may be remembered")]
    NoClients,
    #[error("{0} cannot be a target")]
    Target(SocketAddr),
    #[error("{0} targets are more than {MOST_TARGETS}")]
    TooManyTargets(usize),
    #[error("the allow-list is empty, and nobody could connect")]
    NobodyAllowed,
    #[error("the connection limit is 0")]
    NoConnections,
}

/// The most targets of a group. Each has some 60 places of the hash table at the least.
pub const MOST_TARGETS: usize = 256;
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(86_400);
