//! Failover, as the rest of the daemon sees it: orders go in, how it stands comes out. Who decides is [`crate::failover`],
//! and what brings it together with its peers and with EC2 is `fleet`.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::admin::FleetReport;
use crate::config::{Failover, KeySource, PeerKey};
use crate::datapath;
use crate::peer::{self, KeyError};

/// What is said to whoever looks after the gateways, which may be nobody.
#[derive(Clone, Debug)]
pub(super) struct Gateways {
    orders: mpsc::Sender<Order>,
    ready: watch::Sender<Ready>,
    standing: watch::Receiver<Standing>,
}

/// The other ends.
#[derive(Debug)]
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "there is nobody to look after gateways"))]
pub(super) struct Ends {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) ready: watch::Receiver<Ready>,
    pub(super) standing: watch::Sender<Standing>,
}

#[derive(Debug)]
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "there is nobody to obey"))]
pub(super) enum Order {
    HandOver {
        /// The home gateway if unset.
        gateway: Option<String>,
        to: String,
        /// The gateway that is on its way, or why none is.
        answer: oneshot::Sender<Result<String, String>>,
    },
    /// An operator vouches for a peer's death.
    DeclareDead {
        peer: String,
        /// The gateways that it has, or why it is not believed.
        answer: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// This instance is about to stop, or after all it is not.
    Leave {
        leaving: bool,
        /// Answered once gateways are offered.
        heard: oneshot::Sender<()>,
    },
    Configure(Failover),
}

/// Whether the packet worker would forward, as it was when it last said.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "there is nobody to tell"))]
pub(super) struct Ready {
    pub(super) is_ready: bool,
    pub(super) at: Instant,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// Unset without failover, and until the instance knows itself.
    pub(super) report: Option<FleetReport>,
    /// The home gateway has a host that is as it should be.
    pub(super) is_in_place: bool,
    /// Something is still to be handed over, and there is somebody to take it.
    pub(super) is_leaving: bool,
}

/// What can be found wrong before anything is changed.
#[derive(Debug)]
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "there is nobody to look after gateways"))]
pub(super) struct Prepared {
    pub(super) config: Failover,
    /// Unset if it is not on this host: it is asked for later.
    pub(super) key: Option<PeerKey>,
    pub(super) socket: TcpListener,
    pub(super) seed: [u8; 16],
    pub(super) ends: Ends,
}

/// Why there is no failover.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failover.key_file: {0}")]
    Key(#[from] KeyError),
    #[error("failover.listen: cannot listen on {address}")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("the system has no randomness to give")]
    Random(#[source] io::Error),
}

impl Prepared {
    /// # Errors
    /// See [`Error`].
    pub(super) fn new(config: &Failover, ends: Ends) -> Result<Self, Error> {
        let address = config.listen;
        let socket = peer::bind(address).map_err(|source| Error::Listen { address, source })?;
        let key = match &config.key {
            KeySource::File(path) => Some(PeerKey::read(path)?),
            KeySource::Parameter(_) => None,
        };
        let seed = datapath::random_seed().map_err(Error::Random)?;
        Ok(Self { config: config.clone(), key, socket, seed, ends })
    }
}

impl Gateways {
    pub(super) fn new() -> (Self, Ends) {
        let (orders, receiver) = mpsc::channel(16);
        let (ready, is_ready) = watch::channel(Ready { is_ready: false, at: Instant::now() });
        let (standing, stands) = watch::channel(Standing::default());
        let ends = Ends { orders: receiver, ready: is_ready, standing };
        (Self { orders, ready, standing: stands }, ends)
    }

    /// Tells whether packets would flow; to be called about every second.
    pub(super) fn set_ready(&self, is_ready: bool) {
        self.ready.send_replace(Ready { is_ready, at: Instant::now() });
    }

    pub(super) fn report(&self) -> Option<FleetReport> {
        self.standing.borrow().report.clone()
    }

    pub(super) fn is_in_place(&self) -> bool {
        self.standing.borrow().is_in_place
    }

    /// # Errors
    /// Why it is not even tried.
    pub(super) async fn hand_over(&self, gateway: Option<String>, to: String) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::HandOver { gateway, to, answer }).await?;
        answered.await.map_err(|_| NOBODY.to_owned())?
    }

    /// # Errors
    /// Why it is not believed.
    pub(super) async fn declare_dead(&self, peer: String) -> Result<Vec<String>, String> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::DeclareDead { peer, answer }).await?;
        answered.await.map_err(|_| NOBODY.to_owned())?
    }

    async fn order(&self, order: Order) -> Result<(), String> {
        self.orders.send(order).await.map_err(|_| NOBODY.to_owned())
    }

    /// Offers all gateways to others, or takes that back. When it is done, [`Self::left`] knows of it.
    pub(super) async fn leave(&self, leaving: bool) {
        let (heard, is_heard) = oneshot::channel();
        // Without anybody to hear it, there is nothing to hand over.
        if self.orders.send(Order::Leave { leaving, heard }).await.is_ok() {
            let _ = is_heard.await;
        }
    }

    /// Waits until nothing is left to be handed over, but not for longer than that may take.
    pub(super) async fn left(&self) {
        let mut standing = self.standing.clone();
        let left = standing.wait_for(|standing| !standing.is_leaving);
        if timeout(LEAVE_TIME, left).await.is_err() {
            tracing::warn!("gateways were not handed over in time");
        }
    }

    pub(super) fn configure(&self, failover: &Failover) {
        let _ = self.orders.try_send(Order::Configure(failover.clone()));
    }
}

const NOBODY: &str =
    "this instance is in no fleet: the configuration has no [failover], or its identity is not known yet";

/// An offer is answered at once, and a take-over is a few calls; a peer that is throttled is not waited for.
const LEAVE_TIME: Duration = Duration::from_secs(15);
