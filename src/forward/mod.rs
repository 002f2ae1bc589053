//! Forwarding TCP to healthy targets: the proxy, and what the NAT engine needs to do the same.
//!
//! Owns listeners and the connections that came by them, each of which is a client's on one side and a target's on the
//! other. Which target that is, and whether it is well, is [`crate::balance`]'s judgement; here it is asked and acted
//! upon. `listener` is where a connection's way begins, `group` has the targets, which `discover` and the `resolver` find
//! where they are known by a name, `probe` asks them, `relay` carries the data from `stream` to `stream` through a `pipe`, on
//! the threads of the `reactor`, and leaves a `spare` socket; `tls` is around that, if clients are to come by TLS. A `service` is a listener whose
//! connections the NAT engine carries.

mod descriptors;
mod discover;
mod group;
mod latency;
mod listener;
mod pipe;
mod probe;
pub mod proxy_protocol;
mod reactor;
mod relay;
mod resolver;
mod service;
mod sources;
mod spare;
mod stream;
pub mod tls;

use std::sync::Arc;

pub use descriptors::Descriptors;
pub use discover::{
    Discover, DiscoverError, Finding, Followed, Followers, Found, LATEST, SOONEST, Source, Tell,
};
pub use group::log;
pub use latency::Latency;
pub use listener::{Config, Counters, Error, Listener, Mode, Report, bind};
pub use pipe::Pipes;
pub use probe::{Check, HttpQuestion, Question};
pub use reactor::Reactor;
pub use relay::{Carried, Ended, Relayed, Side, relay};
pub use resolver::Resolver;
pub use service::{Errand, HalfOpen, Refused, Service};
pub use sources::SourceReport;
pub use stream::Stream;

/// What all listeners of a process have in common.
#[derive(Debug)]
pub struct Common {
    /// Carries the connections.
    pub reactor: Reactor,
    pub pipes: Pipes,
    pub descriptors: Descriptors,
    /// Finds the targets that are known by a name.
    pub discover: Arc<dyn Discover>,
}

/// Those of the process and of the host.
impl Default for Common {
    fn default() -> Self {
        Self {
            reactor: Reactor::default(),
            pipes: Pipes::default(),
            descriptors: Descriptors::default(),
            discover: Arc::new(Resolver::default()),
        }
    }
}
