//! Asks DNS for targets.
//!
//! The host's own resolver configuration holds (`/etc/resolv.conf`, `/etc/hosts`), and is read for each question: it
//! changes with the network, and questions are rare. Nothing is cached here: when an answer is out of date is
//! [`super::discover`]'s to know.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::discover::{Discover, DiscoverError, Finding, Found, Source};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    /// In place of the host's.
    servers: Vec<SocketAddr>,
}

impl Resolver {
    /// One that asks these servers, by UDP or TCP, whatever the host is configured to.
    #[must_use]
    pub const fn asking(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    async fn resolve(&self, name: &str, port: u16) -> Result<Found, DiscoverError> {
        let resolver = self.build().map_err(|error| DiscoverError::Failed(error.to_string()))?;
        let answer = resolver.lookup(name, RecordType::A).await.map_err(|error| discover_error(&error))?;
        // Those of the names on the way (CNAME) hold as well.
        let ttl_seconds = answer.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
        let address = |data: &RData| match data {
            RData::A(address) => Some(SocketAddr::new(IpAddr::V4(address.0), port)),
            _ => None,
        };
        let addresses = answer.answers().iter().filter_map(|record| address(&record.data)).collect();
        Ok(Found { addresses, valid_for: Duration::from_secs(u64::from(ttl_seconds)) })
    }

    fn build(&self) -> Result<TokioResolver, NetError> {
        let mut builder = if self.servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = self.servers.iter().map(|server| {
                let mut ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for way in &mut ways {
                    way.port = server.port();
                }
                NameServerConfig::new(server.ip(), true, ways.into())
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.cache_size = 0;
        // By itself it takes any port, and answers to most of them are NAT's: the system knows which are the host's.
        options.os_port_selection = true;
        builder.build()
    }
}

impl Discover for Resolver {
    fn find<'a>(&'a self, source: &'a Source) -> Finding<'a> {
        match source {
            Source::Dns { name, port } => Box::pin(self.resolve(name, *port)),
        }
    }
}

fn discover_error(error: &NetError) -> DiscoverError {
    match error {
        error if error.is_nx_domain() => DiscoverError::NoSuchName,
        error if error.is_no_records_found() => DiscoverError::NoAddress,
        NetError::Timeout => DiscoverError::TimedOut,
        error => DiscoverError::Failed(error.to_string()),
    }
}
