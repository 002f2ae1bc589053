//! A listener: takes clients' connections in, and gives each a target.
//!
//! Owns the listening socket, its door (who may come in, how many, how often) and the connections that came by it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::Common;
use super::descriptors::Pair;
use super::discover::{Followed, Followers, Tell};
use super::group::{Claim, TargetGroup};
use super::latency::Latency;
use super::probe::{Check, connect_error};
use super::proxy_protocol::{self, Header, MOST_BYTES, Version};
use super::reactor::{self, Membership, Team, now, sleep_until, yield_now};
use super::relay::{Carried, Ended, Relayed, Side, acknowledge_at_once};
use super::service::HalfOpen;
use super::sources::{SourceReport, Sources};
use super::stream::{Ears, Stream};
use super::tls::{self, Certificates, Client, shake_hands};
use crate::balance::{self, Admission, AdmissionCounters, CheckError, ConfigError, Limits, Snapshot, Target};

/// What a listener forwards, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Names it in logs, metrics and commands.
    pub name: String,
    pub listen: SocketAddr,
    pub mode: Mode,
    pub limits: Limits,
    pub group: balance::Config,
    pub check: Check,
    pub targets: Vec<Target>,
    /// Where more targets are found.
    pub followed: Vec<Followed>,
    /// For a target to take a connection; then the next one is tried.
    pub connect_timeout: Duration,
    /// How long a connection may be silent.
    pub idle_timeout: Duration,
    /// What targets are told of the client by.
    pub proxy_protocol: Option<Version>,
    /// Each connection has to say by such a header who its client is.
    pub accept_proxy_protocol: bool,
    /// A line in the log for each connection.
    pub access_log: bool,
    /// Clients come by TLS.
    pub tls: Option<tls::Config>,
    /// How often both sides are asked whether they are still there, when they are silent.
    pub keepalive: Option<Duration>,
}

/// Who carries a listener's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The proxy: [`Listener`].
    #[default]
    Proxy,
    /// The NAT engine, for which [`super::Service`] has the targets.
    Nat {
        /// Targets see their clients' own addresses.
        preserve_client_ip: bool,
    },
}

impl Mode {
    /// As the configuration has it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Nat { .. } => "nat",
        }
    }
}

/// A listener that listens. Dropping it closes all of its connections.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    followers: Followers,
    stop: watch::Sender<()>,
    /// Those who accept, and all connections.
    _team: Team,
    /// Each of them has a sender of it.
    ended: mpsc::Receiver<()>,
    following: JoinHandle<()>,
}

/// What is to be seen of a listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub name: String,
    pub listen: SocketAddr,
    pub mode: Mode,
    pub counters: Counters,
    pub admission: AdmissionCounters,
    pub group: Snapshot,
    /// Of health checks that passed, and of connections to targets that came about; of the latter `nat` has none.
    pub check_latency: Latency,
    pub connect_latency: Latency,
    /// Targets that leave clients waiting; the proxy has none, since it asks another one.
    pub half_open: Vec<HalfOpen>,
    pub tls: Option<tls::Report>,
    pub sources: Vec<SourceReport>,
}

/// Of all connections so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub bytes_to_target: u64,
    pub bytes_to_client: u64,
    /// How relays have ended.
    pub closed: u64,
    pub reset_by_client: u64,
    pub reset_by_target: u64,
    /// Silent for too long.
    pub idle: u64,
    /// Their target became unhealthy or had drained for long enough, or the listener was closed.
    pub cut: u64,
    /// No target would take them.
    pub unserved: u64,
    /// They did not begin with a header of the PROXY protocol, as they had to.
    pub bad_headers: u64,
    /// Their TLS handshake did not come about.
    pub handshakes_failed: u64,
    /// How often accepting had to wait, since this host was short of descriptors or memory.
    pub accept_pauses: u64,
}

impl Counters {
    /// How connections have ended, and how many so, in snake case.
    #[must_use]
    pub const fn ended(&self) -> [(&'static str, u64); 8] {
        [
            ("closed", self.closed),
            ("reset_by_client", self.reset_by_client),
            ("reset_by_target", self.reset_by_target),
            ("idle", self.idle),
            ("cut", self.cut),
            ("unserved", self.unserved),
            ("bad_header", self.bad_headers),
            ("handshake_failed", self.handshakes_failed),
        ]
    }

    /// Counts a connection.
    pub(super) const fn add(&mut self, relayed: Relayed) {
        self.bytes_to_target += relayed.bytes_to_target;
        self.bytes_to_client += relayed.bytes_to_client;
        let how = match relayed.ended {
            Ended::Closed => &mut self.closed,
            Ended::Reset(Side::Client) => &mut self.reset_by_client,
            Ended::Reset(Side::Target) => &mut self.reset_by_target,
            Ended::Idle => &mut self.idle,
            Ended::Cut => &mut self.cut,
        };
        *how += 1;
    }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `name` is the listener's.
    #[error("forward {name}: cannot listen on {address}")]
    Listen { name: String, address: SocketAddr, source: io::Error },
    #[error("cannot start the threads that carry connections")]
    Threads(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `entry` is what is wrong in: its section, or its name.
    #[error("{entry}.tls.{}: {error}", .error.key)]
    Tls { entry: String, error: tls::Error },
}

#[derive(Debug)]
struct Shared {
    config: Mutex<Arc<Config>>,
    group: Arc<TargetGroup>,
    admission: Mutex<Admission>,
    common: Arc<Common>,
    certificates: Certificates,
    counted: Counted,
    /// Threads that cannot accept, and when that was last said.
    pausing: AtomicUsize,
    warned: Mutex<Option<Instant>>,
    connect_latency: Mutex<Latency>,
}

#[derive(Debug, Default)]
struct Counted {
    carried: Carried,
    closed: AtomicU64,
    reset_by_client: AtomicU64,
    reset_by_target: AtomicU64,
    idle: AtomicU64,
    cut: AtomicU64,
    unserved: AtomicU64,
    bad_headers: AtomicU64,
    handshakes_failed: AtomicU64,
    accept_pauses: AtomicU64,
}

/// Binds a socket and has it listen. Clients wait in its queue until it is given to a [`Listener`]. An address that this
/// host does not have may be one that it is going to be given, such as a secondary address on EC2: then they come.
///
/// # Errors
/// As bind(2) and listen(2).
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A new process may follow at once on one that had connections.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match socket.bind(&address.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            if address.is_ipv6() {
                socket.set_freebind_v6(true)?;
            } else {
                socket.set_freebind_v4(true)?;
            }
            socket.bind(&address.into())?;
            tracing::warn!(%address, "this host does not have the address of a listener, whose clients come when it does");
        }
        bound => bound?,
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listener {
    /// Takes in connections of `socket` from now on. Needs a tokio runtime. `seed` is random.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(
        config: Config,
        socket: std::net::TcpListener,
        common: Arc<Common>,
        seed: [u8; 16],
    ) -> Result<Self, Error> {
        let failed = |source| Error::Listen { name: config.name.clone(), address: config.listen, source };
        socket.set_nonblocking(true).map_err(failed)?;
        SockRef::from(&socket).set_tcp_nodelay(true).map_err(failed)?;
        let socket = Arc::new(mio::net::TcpListener::from_std(socket));
        let sources = Sources::new(&config.targets, &config.followed);
        let group = TargetGroup::new(&config.name, config.group.clone(), config.check.clone(), sources, seed)?;
        let group = Arc::new(group);
        let admission = Admission::new(config.limits.clone(), seed)?;
        let team = common.reactor.team().map_err(Error::Threads)?;
        let certificates = Certificates::new(&config.name, config.tls.as_ref());
        let certificates = certificates.map_err(|error| Error::Tls { entry: config.name.clone(), error })?;
        let followers = Followers::new(Arc::clone(&common.discover));
        let told = Arc::clone(&group);
        let tell: Tell = Arc::new(move |source, found| told.found(source, found));
        followers.follow(&config.followed, &tell);
        let shared = Arc::new(Shared {
            config: Mutex::new(Arc::new(config)),
            group: Arc::clone(&group),
            admission: Mutex::new(admission),
            common,
            certificates,
            counted: Counted::default(),
            pausing: AtomicUsize::new(0),
            warned: Mutex::default(),
            connect_latency: Mutex::default(),
        });
        let (stop, stopping) = watch::channel(());
        let (alive, ended) = mpsc::channel(1);
        let accepting = Arc::clone(&shared);
        team.begin(move |team| accept(socket, accepting, stopping, alive, team));
        let followed = Arc::clone(&shared);
        let following = tokio::spawn(async move {
            tokio::join!(followed.group.follow(), followed.certificates.follow());
        });
        Ok(Self { shared, followers, stop, _team: team, ended, following })
    }

    /// Changes what it does from the next connection on. It goes on listening where it does: `config.listen` is not
    /// looked at.
    ///
    /// # Errors
    /// See [`Error`]; then nothing has changed, but for certificates.
    pub fn reconfigure(&self, config: Config) -> Result<(), Error> {
        // The door's limits are checked first, and by a door that nobody uses.
        Admission::new(config.limits.clone(), [0; 16])?;
        let certificates = self.shared.certificates.reconfigure(config.tls.as_ref());
        certificates.map_err(|error| Error::Tls { entry: config.name.clone(), error })?;
        let (group, check) = (config.group.clone(), config.check.clone());
        self.shared.group.reconfigure(group, check, &config.targets, &config.followed)?;
        self.shared.admission().reconfigure(config.limits.clone())?;
        let told = Arc::clone(&self.shared.group);
        let tell: Tell = Arc::new(move |source, found| told.found(source, found));
        self.followers.follow(&config.followed, &tell);
        *lock(&self.shared.config) = Arc::new(config);
        Ok(())
    }

    /// Takes a target out of service, or back into it; `false` if there is none of this address.
    #[must_use]
    pub fn set_draining(&self, target: SocketAddr, draining: bool) -> bool {
        self.shared.group.set_draining(target, draining)
    }

    /// What it is configured to do.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.shared.config()
    }

    /// What is to be seen now.
    #[must_use]
    pub fn report(&self) -> Report {
        let config = self.shared.config();
        Report {
            name: config.name.clone(),
            listen: config.listen,
            mode: config.mode,
            half_open: Vec::new(),
            counters: self.shared.counted.now(),
            admission: self.shared.admission().counters(),
            group: self.shared.group.snapshot(),
            check_latency: self.shared.group.check_latency(),
            connect_latency: *lock(&self.shared.connect_latency),
            tls: self.shared.certificates.report(),
            sources: self.shared.group.sources(),
        }
    }

    /// Takes in no more connections, lets those that are there go on until `over` is done, and cuts what is left then.
    /// Of those that were cut there is nothing left either when this ends, unless they had not come to a target yet.
    pub async fn stop(&mut self, over: impl Future<Output = ()>) {
        self.stop.send_replace(());
        tokio::select! {
            // Nobody sends anything.
            _ = self.ended.recv() => return,
            () = over => self.shared.group.close(),
        }
        // Each tells how it ended; one that waits for its header or its handshake is not told.
        let _ = timeout(CUT_TIME, self.ended.recv()).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Shared {
    fn config(&self) -> Arc<Config> {
        Arc::clone(&lock(&self.config))
    }

    fn admission(&self) -> MutexGuard<'_, Admission> {
        lock(&self.admission)
    }

    /// Sees a connection through from its first moment to its last.
    async fn serve(&self, client: Stream, mut address: SocketAddr) {
        let (config, start) = (self.config(), now());
        let mut listener = None;
        if config.accept_proxy_protocol {
            let header = reactor::timeout(HEADER_TIME, Box::pin(take_header(&client))).await;
            match header.unwrap_or(Err(HeaderError::TooLate)) {
                Ok(Header::Proxied { source, destination }) => {
                    (address, listener) = (source, Some(destination));
                }
                Ok(Header::Local) => {}
                Err(error) => {
                    tracing::debug!(listener = config.name, client = %address, %error, "connection refused");
                    self.counted.bad_headers.fetch_add(1, Ordering::Relaxed);
                    log_unserved(&config, address, start, "bad header");
                    return client.reset_when_closed();
                }
            }
        }
        let header = match config.proxy_protocol {
            Some(version) => {
                let Some(listener) = listener.or_else(|| client.local_address().ok()) else { return };
                Some(proxy_protocol::encode(version, address, listener))
            }
            None => None,
        };
        let client = match self.certificates.current() {
            None => Client::Plain(client),
            Some(server) => match Box::pin(shake_hands(client, server)).await {
                Ok(client) => client,
                Err(error) => {
                    tracing::debug!(listener = config.name, client = %address, %error, "handshake failed");
                    self.counted.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                    log_unserved(&config, address, start, "handshake failed");
                    return;
                }
            },
        };
        let speaks_first = header.is_some() || client.has_spoken();
        let Some((to_target, mut claim)) = self.connect(&config, address, speaks_first).await else {
            client.socket().reset_when_closed();
            self.counted.unserved.fetch_add(1, Ordering::Relaxed);
            log_unserved(&config, address, start, "no target");
            return;
        };
        if let Some(interval) = config.keepalive {
            for stream in [client.socket(), &to_target] {
                stream.keep_alive(&keepalive(interval));
            }
        }
        if let Some(header) = header {
            // It fits the empty buffer; if the target is gone already, the relay finds out.
            let _ = to_target.write_all(&header).await;
            acknowledge_at_once(&to_target);
        }
        let relayed = {
            // Each function that it is handed to would hold it once more.
            let cut = pin!(claim.is_cut());
            client.relay(to_target, &self.common.pipes, &self.counted.carried, config.idle_timeout, cut).await
        };
        self.counted.add(relayed.ended);
        if config.access_log {
            tracing::info!(
                listener = config.name,
                client = %address,
                target = %claim.target,
                bytes_to_target = relayed.bytes_to_target,
                bytes_to_client = relayed.bytes_to_client,
                seconds = (now() - start).as_secs_f64(),
                ended = relayed.ended.label(),
                "connection"
            );
        }
    }

    /// A connection to a target, with the claim on it: to the best one, or to another if that cannot be had.
    /// `speaks_first`: there is something to be sent as soon as there is a connection.
    async fn connect(
        &self,
        config: &Config,
        client: SocketAddr,
        speaks_first: bool,
    ) -> Option<(Stream, Claim<'_>)> {
        let mut tried = Vec::new();
        while tried.len() < MOST_TRIES
            && let Some(claim) = self.group.claim(client, &tried)
        {
            let start = now();
            let attempt = Stream::connect(claim.target, speaks_first);
            match reactor::timeout(config.connect_timeout, attempt).await {
                Some(Ok(stream)) => {
                    lock(&self.connect_latency).observe(now() - start);
                    claim.connected(Ok(()));
                    return Some((stream, claim));
                }
                Some(Err(error)) => match connect_error(&error) {
                    Some(failure) => claim.connected(Err(failure)),
                    // Of this host, such as no port left towards this target: another one has its own.
                    None => {
                        tracing::debug!(listener = config.name, target = %claim.target, %error, "cannot connect");
                    }
                },
                None => claim.connected(Err(CheckError::TimedOut)),
            }
            tried.push(claim.target);
        }
        None
    }
}

/// The access log's line of a connection that has got no target.
fn log_unserved(config: &Config, client: SocketAddr, start: Instant, ended: &str) {
    if config.access_log {
        let seconds = (now() - start).as_secs_f64();
        tracing::info!(listener = config.name, %client, seconds, ended, "connection");
    }
}

impl Counted {
    fn add(&self, ended: Ended) {
        let how = match ended {
            Ended::Closed => &self.closed,
            Ended::Reset(Side::Client) => &self.reset_by_client,
            Ended::Reset(Side::Target) => &self.reset_by_target,
            Ended::Idle => &self.idle,
            Ended::Cut => &self.cut,
        };
        how.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            bytes_to_target: of(&self.carried.to_target),
            bytes_to_client: of(&self.carried.to_client),
            closed: of(&self.closed),
            reset_by_client: of(&self.reset_by_client),
            reset_by_target: of(&self.reset_by_target),
            idle: of(&self.idle),
            cut: of(&self.cut),
            unserved: of(&self.unserved),
            bad_headers: of(&self.bad_headers),
            handshakes_failed: of(&self.handshakes_failed),
            accept_pauses: of(&self.accept_pauses),
        }
    }
}

/// Takes connections in until it is told to stop.
async fn accept(
    socket: Arc<mio::net::TcpListener>,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<()>,
    alive: mpsc::Sender<()>,
    team: Membership,
) {
    let descriptors = &shared.common.descriptors;
    let ears = match Ears::new(&socket) {
        Ok(ears) => ears,
        Err(error) => {
            tracing::error!(%error, "cannot wait for connections");
            return;
        }
    };
    loop {
        for _ in 0..MOST_AT_ONCE {
            tokio::select! {
                () = ears.readable() => {}
                _ = stopping.changed() => return,
            }
            // Whoever is accepted has all that it needs.
            let pair = match descriptors.try_take() {
                Some(pair) => pair,
                None => {
                    let _pause = Pause::begin(&shared, "all descriptors for connections are taken");
                    tokio::select! {
                        pair = descriptors.take() => pair,
                        _ = stopping.changed() => return,
                    }
                }
            };
            match ears.accept() {
                Ok((client, address)) => admit(&shared, client, address, pair, &alive, &team),
                // Another thread was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It had gone before its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Of this host, as no memory: it does not get better by asking again at once.
                Err(error) => {
                    let _pause = Pause::begin(&shared, &error.to_string());
                    sleep_until(now() + ACCEPT_PAUSE).await;
                }
            }
        }
        yield_now().await;
    }
}

fn admit(
    shared: &Arc<Shared>,
    client: TcpStream,
    address: SocketAddr,
    pair: Pair,
    alive: &mpsc::Sender<()>,
    team: &Membership,
) {
    let now = shared.group.now();
    if let Err(refusal) = shared.admission().admit(now, address.ip()) {
        refuse(&client);
        tracing::debug!(client = %address, reason = refusal.label(), "connection refused");
        return;
    }
    let admitted = Admitted { shared: Arc::clone(shared), _pair: pair, _alive: alive.clone() };
    team.spawn(move || {
        // What it has said already is known when it has its turn, after this thread's next look at what is ready.
        let client = Stream::adopt(client);
        async move {
            match client {
                Ok(client) => {
                    client.is_mine();
                    admitted.shared.serve(client, address).await;
                }
                Err(error) => tracing::warn!(client = %address, %error, "connection refused"),
            }
        }
    });
}

/// Counts as an open connection until it is dropped.
struct Admitted {
    shared: Arc<Shared>,
    _pair: Pair,
    _alive: mpsc::Sender<()>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.shared.admission().release();
    }
}

/// While a thread cannot accept. However many of them pause at a time, it is one pause.
struct Pause<'a>(&'a Shared);

impl<'a> Pause<'a> {
    /// Counts it, and says so now and then.
    fn begin(shared: &'a Shared, reason: &str) -> Self {
        if shared.pausing.fetch_add(1, Ordering::Relaxed) == 0 {
            shared.counted.accept_pauses.fetch_add(1, Ordering::Relaxed);
            let mut warned = lock(&shared.warned);
            if warned.is_none_or(|at| now() - at > WARNING_INTERVAL) {
                *warned = Some(now());
                let listener = &shared.config().name;
                tracing::warn!(listener, reason, "accepting pauses: clients have to wait");
            }
        }
        Self(shared)
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.pausing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a connection has no header.
#[derive(Debug, thiserror::Error)]
enum HeaderError {
    #[error(transparent)]
    Parse(#[from] proxy_protocol::ParseError),
    #[error("the connection ended within its header")]
    Io(#[from] io::Error),
    #[error("no header in time")]
    TooLate,
}

/// Takes the header of the PROXY protocol from the begin of a connection, and nothing of what follows it.
async fn take_header(client: &Stream) -> Result<Header, HeaderError> {
    let mut taken = Vec::new();
    let mut next = [0; MOST_BYTES];
    loop {
        let come = client.peek(&mut next).await?;
        if come == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let known = taken.len();
        taken.extend_from_slice(&next[..come]);
        let header = proxy_protocol::parse(&taken)?;
        // Of a header that goes on, all that has come is a part.
        let length = header.map_or(taken.len(), |(_, length)| length);
        let taken_now = length.saturating_sub(known);
        client.skip(&mut next[..taken_now])?;
        if taken_now == come && come < MOST_BYTES {
            client.has_run_dry();
        }
        if let Some((header, _)) = header {
            return Ok(header);
        }
    }
}

/// A peer that is gone is noticed after four intervals.
fn keepalive(interval: Duration) -> TcpKeepalive {
    TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(3)
}

/// Closing then resets it.
fn refuse(client: &TcpStream) {
    let _ = SockRef::from(client).set_linger(Some(Duration::ZERO));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connections that wait to be accepted; the kernel bounds it by net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// For connections that are cut to end.
const CUT_TIME: Duration = Duration::from_millis(500);
/// Connections that are taken in at a stretch while others wait.
const MOST_AT_ONCE: usize = 2;
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// For a client's proxy to send its header.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Targets that are tried for one connection.
const MOST_TRIES: usize = 3;
