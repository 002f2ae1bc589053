//! What instances tell each other. Plain data; how it travels is `peer`'s business, and so is who may speak.
//!
//! Fields that a reader does not know are skipped, so that a version can add some; what changes a meaning changes
//! [`VERSION`]. Every message has passed [`Message::check`] before anything believes it. Replicated sessions will be a
//! kind of their own beside these, in frames that this module never sees: they are many and binary, these are few
//! and readable.

use serde::{Deserialize, Serialize};

use super::config::{self, ConfigError, Gateway, MOST_PEERS};
use super::event::Why;

/// The protocol's version. Peers of another are refused.
pub const VERSION: u32 = 1;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Message {
    Hello(Hello),
    Heartbeat(Heartbeat),
    Offer(Offer),
    Answer(Answer),
}

/// Who is speaking. The first message on every connection, and again when the configuration has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub eni: String,
    /// The home gateway; its name is the speaker's.
    pub gateway: Gateway,
}

/// I live, and this is how. Sent at a fixed pace, and at once when something of it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts up from the connection's begin.
    pub sequence: u64,
    /// For the round trip.
    pub echo: Option<Echo>,
    pub health: Health,
    /// Is about to stop, and takes nothing over.
    pub leaving: bool,
    /// The peers that the sender has not heard for `dead_after`. One that it has only begun to listen for is not
    /// among them.
    pub misses: Vec<String>,
    /// The gateways that the sender has, or is about to have.
    pub hosts: Vec<Hosting>,
}

/// The last heartbeat that the sender has heard, and how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    pub sequence: u64,
    pub held_micros: u64,
}

/// How far a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosting {
    pub gateway: String,
    pub role: Role,
    /// Of the first address, if the sender has it: that it was heard with this very one proves that it lived since.
    pub association: Option<String>,
    /// Why it has come to the sender, or is coming. For people to read; nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
}

/// What an instance is to a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    #[default]
    Standby,
    /// Is taking it over.
    Taking,
    /// Addresses and routes are observed to be its own.
    Active,
    /// Has the address, while the routes lead to the fallback.
    Fallback,
}

/// How an instance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The packet worker answers.
    pub worker: bool,
    /// The datapath is attached.
    pub datapath: bool,
    /// Whether the internet can be reached; `None` until that is known.
    pub egress: Option<bool>,
    /// Whether EC2's API answers. A warning only.
    pub aws: Option<bool>,
}

/// Will you take this gateway? The sender has it, goes on forwarding, and keeps its hands off while it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub gateway: String,
    /// Tells this offer from the sender's others.
    pub number: u64,
    pub why: Planned,
}

/// Why a gateway is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Planned {
    /// An operator said so: it stays there.
    Operator,
    /// The host is about to stop.
    Leaving,
    /// Its home is well again.
    Failback,
}

/// To an [`Offer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub gateway: String,
    /// That of the offer.
    pub number: u64,
    pub reply: Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is being taken. That it has been is seen, not told.
    Accepted,
    Refused(Unwilling),
    /// After [`Reply::Accepted`]: it will not be taken after all.
    GaveUp,
}

/// Why an instance does not take a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Unwilling {
    #[error("it does not know the gateway, or has refused its definition")]
    UnknownGateway,
    #[error("it is none of the gateway's heirs")]
    NoHeir,
    #[error("it is about to stop")]
    Leaving,
    #[error("its packet worker or datapath does not work")]
    Datapath,
    #[error("it does not reach the internet, or does not know yet whether it does")]
    Egress,
}

impl Health {
    /// Fit to host.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        self.forwards() && matches!(self.egress, Some(true))
    }

    /// Known not to be fit. While the egress is not known, neither this nor [`Self::is_well`].
    #[must_use]
    pub const fn is_unwell(&self) -> bool {
        !self.forwards() || matches!(self.egress, Some(false))
    }

    /// Could forward, if there were an internet.
    #[must_use]
    pub const fn forwards(&self) -> bool {
        self.worker && self.datapath
    }
}

impl Message {
    /// Whether what came from outside is of a size and shape that a true one can have.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Heartbeat(heartbeat) => {
                let hosts = heartbeat.hosts.iter().map(|hosting| &hosting.gateway);
                for (what, count) in [("peers", heartbeat.misses.len()), ("gateways", heartbeat.hosts.len())] {
                    if count > MOST_PEERS + 1 {
                        let gateway = "of a heartbeat".to_owned();
                        return Err(ConfigError::TooMany { gateway, what, count, most: MOST_PEERS + 1 });
                    }
                }
                let mut associations =
                    heartbeat.hosts.iter().filter_map(|hosting| hosting.association.as_ref());
                associations.try_for_each(|id| config::check_id(id, "eipassoc-"))?;
                heartbeat.misses.iter().chain(hosts).try_for_each(|name| config::check_name(name))
            }
            Self::Offer(Offer { gateway, .. }) | Self::Answer(Answer { gateway, .. }) => {
                config::check_name(gateway)
            }
        }
    }
}

impl Hello {
    /// As [`Message::check`]. Another version is not looked at any further: it may mean something else.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.version != VERSION {
            return Ok(());
        }
        config::check_id(&self.eni, "eni-")?;
        self.gateway.check()
    }
}
