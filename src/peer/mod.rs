//! The links between instances: one encrypted TCP connection with each peer, for ever.
//!
//! Owns how peers find each other, know each other, and talk. Of two peers the one whose name sorts first dials; it dials
//! again whenever the connection is lost, and the other one takes the newest connection that is truly the peer's. What
//! peers say to each other is [`crate::failover`]'s, and so is what a silence means: a link is taken down when nothing has
//! come for as long as it is configured, and that is all that it knows of time.
//!
//! `preamble` is what is said first, in the clear, `opening` that and the handshake of the Noise framework
//! (<https://noiseprotocol.org/noise.html>, revision 34), `sealed` what follows it, `payload` what is in that. `door` takes
//! connections in, `connect` finds out whose they are, `peer` keeps one, with its `queue` of what is to be sent.
//!
//! Refused: whoever does not have the [`Key`], however often and however oddly; names that nobody has configured; and to
//! wait for anybody. A peer that does not read loses heartbeats, which are superseded, and then its connection.

mod connect;
mod door;
mod key;
mod opening;
pub mod payload;
#[expect(clippy::module_inception, reason = "it is about one peer")]
mod peer;
pub mod preamble;
mod queue;
mod refusal;
mod report;
mod sealed;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::failover::{Hello, Message};
use connect::Candidate;
pub use key::{Key, KeyError};
use peer::Peer;
use preamble::Names;
pub use preamble::{Fault, VERSION, is_name};
pub use refusal::Refusal;
use refusal::Refusals;
pub use report::{Connected, Counters, PeerReport, Report};

/// Who this instance is, and whom it talks to.
#[derive(Clone, Debug)]
pub struct Config {
    /// The own name, which is that of the home gateway; see [`is_name`].
    pub gateway: String,
    pub key: Key,
    /// Where each is dialled, one address after the other, by name; the own one is not among them. One without an address
    /// can only be waited for, until there is another configuration.
    pub peers: BTreeMap<String, Vec<SocketAddr>>,
    /// A connection on which nothing has come for so long, or that takes nothing for so long, ends. Whoever has the link
    /// sends something more often.
    pub silence: Duration,
}

/// The links to all peers. Dropping it ends them.
#[derive(Debug)]
pub struct Link {
    common: Arc<Common>,
    peers: Arc<Peers>,
    door: JoinHandle<()>,
}

/// What happens on the links. Of one peer, in the order in which it happens: messages come between an `Up` and a `Down`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A peer is connected.
    Up {
        peer: String,
        hello: Hello,
    },
    Message {
        peer: String,
        message: Message,
    },
    /// A peer is no longer connected.
    Down {
        peer: String,
        why: Down,
    },
    /// A connection did not come about. Nothing has changed, and when there are many, some are only counted.
    Refused {
        address: SocketAddr,
        peer: Option<String>,
        why: Refusal,
    },
}

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// By the peer.
    Closed,
    /// Nothing has come from it for too long.
    Silent,
    /// It has not taken anything for too long.
    Stalled,
    /// What came was not what the peer had sent.
    Mangled,
    /// The peer has connected anew.
    Replaced,
    /// The configuration has it at another address.
    Moved,
    /// The configuration does not have it any more.
    Removed,
    Io(io::ErrorKind),
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed by the peer",
            Self::Silent => "nothing has come for too long",
            Self::Stalled => "the peer takes nothing",
            Self::Mangled => "what came was changed on its way",
            Self::Replaced => "the peer has connected anew",
            Self::Moved => "the peer has another address now",
            Self::Removed => "no longer a peer",
            Self::Io(kind) => return kind.fmt(f),
        })
    }
}

/// Whether of these two instances `own` is the one that dials.
#[must_use]
pub fn dials(own: &str, peer: &str) -> bool {
    own < peer
}

/// Binds a socket and has it listen. Peers wait in its queue until it is given to a [`Link`].
///
/// # Errors
/// As bind(2) and listen(2).
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A new process may follow at once on one that had connections.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Link {
    /// Connects with all peers from now on, and has `hello` introduce this instance to them. `socket` is of [`bind`].
    /// Needs a tokio runtime. Events have to be taken: peers wait for it.
    ///
    /// # Errors
    /// The socket is of no use.
    pub fn start(
        config: Config,
        socket: std::net::TcpListener,
        hello: &Hello,
    ) -> io::Result<(Self, mpsc::Receiver<Event>)> {
        let (events, receiver) = mpsc::channel(EVENTS);
        let (listen, socket) = prepare(socket)?;
        let settings = Settings { key: config.key, silence: config.silence, listen, hello: introduce(hello)? };
        let common = Arc::new(Common {
            gateway: config.gateway,
            settings: Mutex::new(settings),
            refusals: Refusals::default(),
            events,
        });
        let peers = Arc::new(Peers::default());
        peers.set(&common, &config.peers);
        let door = tokio::spawn(door::attend(socket, Arc::clone(&common), Arc::clone(&peers)));
        Ok((Self { common, peers, door }, receiver))
    }

    /// Sends a message to a peer if it is connected, and gives whether it is. Never waits.
    #[must_use]
    pub fn send(&self, peer: &str, message: &Message) -> bool {
        match payload::message(message) {
            Ok(payload) => self.peers.push(peer, payload, matches!(message, Message::Heartbeat(_))),
            Err(error) => {
                tracing::error!(peer, %error, "message not sent");
                false
            }
        }
    }

    /// Introduces this instance differently from the next connection on. Those who are connected have to be told by a
    /// message.
    ///
    /// # Errors
    /// It is too long for a frame; then nothing has changed.
    pub fn set_hello(&self, hello: &Hello) -> io::Result<()> {
        self.common.settings().hello = introduce(hello)?;
        Ok(())
    }

    /// Changes key, peers and silence, and where it listens, if there is a socket of [`bind`] for that. A new key holds
    /// for new connections; those with peers that stay go on. The name stays as it is: another one makes another link.
    ///
    /// # Errors
    /// The socket is of no use; then nothing has changed.
    pub fn reconfigure(&mut self, config: Config, socket: Option<std::net::TcpListener>) -> io::Result<()> {
        let socket = socket.map(prepare).transpose()?;
        let mut settings = self.common.settings();
        (settings.key, settings.silence) = (config.key, config.silence);
        if let Some((listen, socket)) = socket {
            settings.listen = listen;
            self.door.abort();
            self.door = tokio::spawn(door::attend(socket, Arc::clone(&self.common), Arc::clone(&self.peers)));
        }
        drop(settings);
        self.peers.set(&self.common, &config.peers);
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.common.listen()
    }

    /// What is to be seen now.
    #[must_use]
    pub fn report(&self) -> Report {
        let peers = self.peers.lock().values().map(|running| running.peer.report()).collect();
        Report { peers, refused: self.common.refusals.counts() }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.door.abort();
        for running in self.peers.lock().values() {
            running.task.abort();
        }
    }
}

/// What all links of this instance share.
#[derive(Debug)]
struct Common {
    gateway: String,
    settings: Mutex<Settings>,
    refusals: Refusals,
    events: mpsc::Sender<Event>,
}

#[derive(Debug)]
struct Settings {
    key: Key,
    silence: Duration,
    listen: SocketAddr,
    /// The payload that introduces this instance.
    hello: Arc<[u8]>,
}

impl Common {
    fn key(&self) -> Key {
        self.settings().key.clone()
    }

    fn silence(&self) -> Duration {
        self.settings().silence
    }

    fn listen(&self) -> SocketAddr {
        self.settings().listen
    }

    fn introduction(&self) -> Arc<[u8]> {
        Arc::clone(&self.settings().hello)
    }

    /// Waits for whoever takes events.
    async fn tell(&self, event: Event) {
        // Without one, the link is about to be dropped.
        let _ = self.events.send(event).await;
    }

    /// Notes that a connection did not come about.
    fn refused(&self, address: SocketAddr, peer: Option<&str>, why: Refusal) {
        self.refusals.note(address, peer, why);
        // Whoever can connect can cause them: they leave room for what peers say.
        if self.events.capacity() > EVENTS / 2 {
            let _ = self.events.try_send(Event::Refused { address, peer: peer.map(str::to_owned), why });
        }
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All peers, by name.
#[derive(Debug, Default)]
struct Peers(Mutex<BTreeMap<String, Running>>);

#[derive(Debug)]
struct Running {
    peer: Arc<Peer>,
    candidates: mpsc::Sender<Candidate>,
    task: JoinHandle<()>,
    /// Ends the task when it is dropped.
    _stop: watch::Sender<()>,
}

impl Peers {
    /// Makes these the peers. Those that are there already go on as they are.
    fn set(&self, common: &Arc<Common>, wanted: &BTreeMap<String, Vec<SocketAddr>>) {
        let mut running = self.lock();
        running.retain(|name, _| wanted.contains_key(name));
        for (name, addresses) in wanted {
            match running.get(name) {
                Some(running) => running.peer.set_addresses(addresses),
                None => {
                    running.insert(name.clone(), Running::start(name, addresses, Arc::clone(common)));
                }
            }
        }
    }

    /// Whether those who say these names may connect.
    fn judge(&self, own: &str, names: &Names) -> Result<(), Fault> {
        match names {
            Names { dialled, .. } if dialled != own => Err(Fault::Misdirected),
            Names { dialling, .. } if dialling == own => Err(Fault::OwnName),
            Names { dialling, .. } if !self.lock().contains_key(dialling) => Err(Fault::Unknown),
            Names { dialling, dialled } if dialling > dialled => Err(Fault::Role),
            Names { .. } => Ok(()),
        }
    }

    /// Gives a connection to the peer whose it is. It is closed if that one has another to look at.
    fn give(&self, name: &str, candidate: Candidate) {
        if let Some(running) = self.lock().get(name) {
            let _ = running.candidates.try_send(candidate);
        }
    }

    fn push(&self, name: &str, payload: Vec<u8>, is_heartbeat: bool) -> bool {
        self.lock().get(name).is_some_and(|running| running.peer.queue.push(payload, is_heartbeat))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn start(name: &str, addresses: &[SocketAddr], common: Arc<Common>) -> Self {
        let peer = Arc::new(Peer::new(name.to_owned(), addresses.to_vec(), common));
        let (candidates, receiver) = mpsc::channel(1);
        let (stop, mut stopped) = watch::channel(());
        let kept = Arc::clone(&peer);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = kept.keep(receiver) => {}
                _ = stopped.changed() => {}
            }
            kept.removed().await;
        });
        Self { peer, candidates, task, _stop: stop }
    }
}

fn prepare(socket: std::net::TcpListener) -> io::Result<(SocketAddr, TcpListener)> {
    socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(socket)?;
    Ok((socket.local_addr()?, socket))
}

fn introduce(hello: &Hello) -> io::Result<Arc<[u8]>> {
    payload::message(&Message::Hello(hello.clone())).map(Arc::from).map_err(io::Error::other)
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Events that wait to be taken.
const EVENTS: usize = 256;
