//! The composition: reads the configuration, checks and prepares the host, starts the packet worker and the
//! control socket, and supervises them until a signal comes.
//!
//! Owns the order in which things start and stop, and that the host is left as it was found. `SIGTERM` and
//! `SIGINT` stop the daemon, `SIGHUP` reloads the configuration. It never touches a packet.

#[cfg(feature = "aws")]
mod aws;
mod checks;
mod cloud;
mod discovery;
pub mod doctor;
#[cfg(feature = "aws")]
mod egress;
#[cfg(feature = "aws")]
mod fleet;
mod forwarding;
mod gateways;
#[cfg(feature = "aws")]
mod instance;
mod logging;
mod manager;
mod outlook;
mod passed;
#[cfg(feature = "aws")]
mod peer_key;
mod proc;
mod ready;
mod reload;
mod services;
mod session_log;
mod settings;
mod sources;
#[cfg(feature = "aws")]
mod whereabouts;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::admin::{self, Description, FleetReport, NoticeReport};
use crate::config::{self, Config, HostFacts, Problems, ResolveError, Resolved};
use crate::datapath::{self, Handle, Kind, SessionFilter, SessionPage, Snapshot, Stopped, Worker};
use crate::forward::{self, Mode};
use crate::metrics::SessionLogCounts;
use crate::nat;
use crate::talkers::{Measure, Top};
pub use checks::Refusal;
use cloud::{Applied, Cloud, Counted};
use discovery::Discovery;
use forwarding::Forwarding;
pub use gateways::Error as FailoverError;
use gateways::{Gateways, Prepared};
pub use logging::{LogFormat, init_logging};
use manager::Manager;
use outlook::Outlook;
use passed::Passed;
use proc::Proc;
pub use proc::ProcError;
use ready::{Change, Readiness};
use services::Control;
use session_log::SessionLog;
use settings::HostSettings;
use sources::Sources;
pub use sources::{Unknown, would_load};

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The control socket, in place of the file's.
    pub socket: Option<PathBuf>,
}

/// Why the daemon did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] Problems),
    #[error("{}", lines(.0))]
    Resolve(Vec<ResolveError>),
    #[error("{}", lines(.0))]
    Refused(Vec<Refusal>),
    #[error(transparent)]
    Socket(#[from] admin::BindError),
    #[error(transparent)]
    Http(#[from] admin::HttpBindError),
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error("the interfaces cannot be listed")]
    Interfaces(#[from] nix::Error),
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    #[error("cannot forward")]
    Forward(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Failover(#[from] FailoverError),
    #[error("AWS does not say what there is")]
    Cloud(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the packet worker ended unexpectedly; its cause is in the log above, if it had one")]
    WorkerEnded,
    #[error("the runtime cannot be started")]
    Runtime(#[from] std::io::Error),
}

/// Runs until `SIGTERM` or `SIGINT`, then puts the host's settings back.
///
/// # Errors
///
/// Whatever keeps the daemon from starting; afterwards, only the unexpected end of the packet worker. The
/// host's settings are put back in either case.
pub fn run(options: &Options) -> Result<(), Error> {
    let passed = Passed::take();
    if let Err(error) = forward::Descriptors::raise() {
        tracing::warn!(%error, "the limit of descriptors cannot be raised");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(supervise(options, passed));
    runtime.shutdown_timeout(STOP_TIME);
    if let Err(error) = &result {
        manager::failed(&with_causes(error));
    }
    result
}

/// What the daemon would do at EC2, in words; see [`foresee`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Foreseen {
    /// Whether AWS is asked at all.
    #[serde(rename = "aws")]
    pub is_on: bool,
    /// In the order in which they would be made.
    pub changes: Vec<String>,
    /// What somebody has to mend.
    pub problems: Vec<String>,
}

/// Looks once at what there is, and finds out what [`run`] would change at EC2 first. Changes nothing, neither there
/// nor on this host, and may be used beside a running daemon.
///
/// # Errors
///
/// The configuration does not fit the host, or AWS does not say what there is.
pub fn foresee(options: &Options) -> Result<Foreseen, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let proc = Proc::at(Path::new("/proc"));
    let config = runtime.block_on(Sources::new(&options.config).load(&proc))?;
    reload::log_warnings(&config);
    let host = facts(&proc)?;
    let interfaces = config::interfaces(&config, &host).map_err(Error::Resolve)?;
    let (foreseen, cloud) = runtime.block_on(cloud::foresee(&config.aws, interfaces)).map_err(Error::Cloud)?;
    config::resolve(&config, &HostFacts { cloud, ..host }).map_err(Error::Resolve)?;
    Ok(foreseen)
}

/// The signals that end the daemon.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one, and says so.
    async fn recv(&mut self) {
        let signal = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal, "stopping");
    }
}

/// Everything that is up while the daemon runs. Fields are dropped in their order: settings before the socket and the lock of the network namespace, which let the next daemon in.
struct Running {
    options: Options,
    proc: Proc,
    sources: Sources,
    config: Config,
    /// What of the cloud is applied.
    applied: Applied,
    description: watch::Sender<Description>,
    handle: Handle,
    cloud: Cloud,
    gateways: Gateways,
    outlook: Outlook,
    /// What of the outlook has been told.
    coming: Vec<NoticeReport>,
    /// Set while listeners take no connections, since this instance is about to end.
    draining: Option<JoinHandle<()>>,
    forwarding: Forwarding,
    services: Control,
    session_log: Arc<SessionLog>,
    settings: HostSettings,
    manager: Manager,
    socket: admin::Socket,
    _namespace: File,
}

/// What is served until the daemon stops.
struct Listeners {
    socket: UnixListener,
    http: Option<TcpListener>,
}

async fn supervise(options: &Options, passed: Passed) -> Result<(), Error> {
    // Before anything is changed: a signal from now on is answered with an orderly stop.
    let mut ends = Ends::new()?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let started = tokio::select! {
        started = start(options, passed) => started?,
        () = ends.recv() => return Ok(()),
    };
    let (mut running, Listeners { socket: listener, http }, worker) = started;
    let (source, description) = (running.source(), running.description.subscribe());
    running.manager.attend(running.handle.clone(), source.clone(), description.clone());
    let mut servers = JoinSet::new();
    if let Some(http) = http {
        let limits = admin::HttpLimits::default();
        servers.spawn(admin::serve_http(http, source.clone(), description.clone(), limits));
    }
    servers.spawn(admin::serve(listener, source, description, admin::Limits::default()));
    let result = follow(&mut running, &mut ends, &mut hang_up).await;
    running.manager.stopping();
    running.leave(ends.recv()).await;
    servers.abort_all();
    let patience = match running.description.borrow().chosen.kind {
        Kind::AfPacket => STOP_TIME,
        Kind::Xdp => DETACH_TIME,
    };
    let stopped = timeout(patience, tokio::task::spawn_blocking(move || worker.stop())).await;
    match stopped {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            tracing::error!(error = with_causes(&error), "packet worker did not stop cleanly");
        }
        Ok(Err(error)) => tracing::error!(%error, "packet worker did not stop cleanly"),
        Err(_) => tracing::error!("packet worker did not stop in time"),
    }
    drop(running);
    if result.is_ok() {
        tracing::info!("stopped");
    }
    result
}

/// Where the control socket's answers come from.
#[derive(Clone, Debug)]
struct Source {
    worker: Handle,
    forwarding: Forwarding,
    services: Control,
    session_log: Arc<SessionLog>,
    gateways: Gateways,
}

impl admin::Source for Source {
    async fn snapshot(&self) -> Result<Snapshot, Stopped> {
        self.worker.snapshot().await
    }

    async fn scan_sessions(&self, from: u32, filter: SessionFilter) -> Result<SessionPage, Stopped> {
        self.worker.scan_sessions(from, filter).await
    }

    async fn listeners(&self) -> Result<Vec<forward::Report>, Stopped> {
        let mut reports = self.forwarding.reports();
        reports.extend(self.services.reports().await?);
        Ok(reports)
    }

    fn log_level(&self, filter: Option<&str>) -> Result<String, String> {
        logging::level(filter)
    }

    async fn talkers(&self, by: Measure, count: usize) -> Result<[Top; 2], Stopped> {
        self.worker.talkers(by, count).await
    }

    fn session_log(&self) -> Option<SessionLogCounts> {
        self.session_log.counts()
    }

    async fn driver_statistics(&self, interface: &str) -> Vec<(String, u64)> {
        let interface = interface.to_owned();
        // Some drivers ask the device.
        let asked = tokio::task::spawn_blocking(move || datapath::driver_statistics(&interface));
        asked.await.unwrap_or_default()
    }

    fn fleet(&self) -> Option<FleetReport> {
        self.gateways.report()
    }

    async fn hand_over(&self, gateway: Option<String>, to: String) -> Result<String, String> {
        self.gateways.hand_over(gateway, to).await
    }

    async fn declare_dead(&self, peer: String) -> Result<Vec<String>, String> {
        self.gateways.declare_dead(peer).await
    }

    async fn set_draining(&self, name: &str, target: SocketAddr, draining: bool) -> Result<(), String> {
        let found = match self.forwarding.set_draining(name, target, draining) {
            Some(found) => Some(found),
            None => {
                let served = self.services.set_draining(name, target, draining).await;
                served.map_err(|stopped| stopped.to_string())?
            }
        };
        match found {
            Some(true) => Ok(()),
            Some(false) => Err(format!("{target} is no target of {name}")),
            None => Err(format!("there is no listener {name}")),
        }
    }
}

/// Whether there is a listener with connections of its own to targets.
fn has_proxies(config: &Config) -> bool {
    config.forward.iter().any(|forward| forward.mode == Mode::Proxy)
}

/// The listeners whose connections the engine carries.
fn served(forward: &[forward::Config]) -> Vec<forward::Config> {
    forward.iter().filter(|forward| forward.mode != Mode::Proxy).cloned().collect()
}

/// Says which listeners nobody can reach for now, as no external address is theirs.
fn warn_unserved(config: &Config, resolved: &Resolved) {
    for forward in config.forward.iter().filter(|forward| forward.mode != Mode::Proxy) {
        let is_it = |service: &nat::Service| services::address(service.listener()) == forward.listen;
        if !resolved.nat.services.iter().any(is_it) {
            tracing::warn!(
                listener = forward.name,
                listen = %forward.listen,
                "no external address is this listener's, which takes no connections until one is"
            );
        }
    }
}

/// Follows signals, the cloud, the worker's life and its readiness until one of them ends the daemon.
async fn follow(running: &mut Running, ends: &mut Ends, hang_up: &mut Signal) -> Result<(), Error> {
    let handle = running.handle.clone();
    let stopped = handle.stopped();
    tokio::pin!(stopped);
    let mut cloud = running.cloud.watch();
    let mut outlook = running.outlook.watch();
    let mut late_tags = Box::pin(sources::tags_at_last(running.config.aws.enabled));
    let (began, mut readiness) = (Instant::now(), Readiness::default());
    let mut ticks = interval(TICK_UNTIL_READY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = ends.recv() => return Ok(()),
            _ = hang_up.recv() => running.reload().await,
            () = &mut late_tags, if running.sources.lacks_tags() => {
                running.reload().await;
                late_tags.set(sources::tags_at_last(running.config.aws.enabled));
            }
            Ok(()) = cloud.changed() => running.follow_cloud().await,
            Ok(()) = outlook.changed() => running.follow_outlook().await,
            () = &mut stopped => return Err(Error::WorkerEnded),
            _ = ticks.tick() => {
                let ready = watch_readiness(&handle, began, &mut readiness).await;
                running.gateways.set_ready(ready);
                if ready {
                    running.manager.ready();
                }
                if ready && running.is_in_place() {
                    running.outlook.in_service();
                }
                ticks.reset_after(if ready { TICK } else { TICK_UNTIL_READY });
            }
        }
    }
}

impl Running {
    /// Where answers about it come from.
    fn source(&self) -> Source {
        Source {
            worker: self.handle.clone(),
            forwarding: self.forwarding.clone(),
            services: self.services.clone(),
            session_log: Arc::clone(&self.session_log),
            gateways: self.gateways.clone(),
        }
    }

    /// Whether all that AWS was to do for this instance is done.
    fn is_in_place(&self) -> bool {
        let in_fleet = self.config.failover.is_some();
        self.cloud.is_in_place(in_fleet) && (!in_fleet || self.gateways.is_in_place())
    }
}

/// Gives whether it is ready.
async fn watch_readiness(handle: &Handle, began: Instant, readiness: &mut Readiness) -> bool {
    let missing = match timeout(ANSWER_TIME, handle.snapshot()).await {
        Ok(Ok(snapshot)) => snapshot.not_ready,
        // That it has gone is told by `Handle::stopped`.
        Ok(Err(Stopped)) => return false,
        Err(_) => vec!["the packet worker does not answer".to_owned()],
    };
    match readiness.update(began.elapsed(), &missing) {
        Some(Change::Ready) => tracing::info!("ready"),
        Some(Change::NotReady) => tracing::warn!(reasons = missing.join("; "), "not ready"),
        None => {}
    }
    missing.is_empty()
}

/// Everything up to the first packet. Nothing fails once the worker is there: it has to be stopped.
async fn start(options: &Options, mut passed: Passed) -> Result<(Running, Listeners, Worker), Error> {
    let proc = Proc::at(Path::new("/proc"));
    let mut sources = Sources::new(&options.config);
    let config = sources.load(&proc).await?;
    match &config.file {
        Some(file) => tracing::info!(file = %file.display(), "configuration read"),
        None => tracing::info!(file = config::DEFAULT_PATH, "no configuration file, using the defaults"),
    }
    reload::log_settings(&config);
    reload::log_warnings(&config);
    refuse(checks::capabilities(&proc)?)?;
    let namespace = proc.lock_namespace()?.ok_or_else(|| Error::Refused(vec![Refusal::Running]))?;
    let socket = admin::bind(options.socket.as_deref().unwrap_or(&config.admin.socket))?;
    let http = match config.admin.listen {
        Some(address) => Some(admin::bind_http(address).await?),
        None => None,
    };
    let listeners = Listeners { socket: UnixListener::from_std(socket.listener()?)?, http };
    // Sockets are looked at after the ports are separate, so that none can slip in between.
    let mut settings = HostSettings::new(proc.clone());
    settings.separate_ports(&config.nat.port_range)?;
    if has_proxies(&config) {
        settings.reuse_ports()?;
    }
    let listen: Vec<SocketAddr> = config.forward.iter().map(|listener| listener.listen).collect();
    passed.keep(&listen);
    let counted = Counted::default();
    let forwarding = Forwarding::new(passed, Arc::new(Discovery::new(config.aws.enabled, &counted)));
    let prepared = forwarding.prepare(&config.forward).map_err(|error| Error::Forward(error.into()))?;
    let (gateways, ends) = Gateways::new();
    let failover = config.failover.as_ref().map(|failover| Prepared::new(failover, ends)).transpose()?;
    let host = facts(&proc)?;
    let interfaces = config::interfaces(&config, &host).map_err(Error::Resolve)?;
    let cloud = Cloud::start(&config.aws, interfaces, &counted, failover).await;
    let applied = cloud.applied();
    // The host may have been given addresses since.
    let host = HostFacts { cloud: applied.0.clone(), ..facts(&proc)? };
    let resolved = config::resolve(&config, &host).map_err(Error::Resolve)?;
    check(&proc, &config, &resolved)?;
    warn_unserved(&config, &resolved);
    let Resolved { datapath, nat } = resolved;
    settings.stop_forwarding(&[&datapath.external.name, &datapath.internal.name])?;
    let (targets, services) = services::services();
    let served = served(&config.forward);
    services.configure(&served)?;
    let (session_log, recorder) = SessionLog::start(&config.session_log)?;
    let worker = datapath::spawn(datapath.clone(), nat.clone(), Box::new(targets))?;
    forwarding.adopt(prepared).map_err(Error::Forward)?;
    let chosen = worker.chosen().clone();
    if let Some(reason) = &chosen.fallback {
        tracing::warn!(reason, "xdp cannot be used, taking packet sockets (af_packet) instead");
    }
    tracing::info!(
        version = admin::VERSION,
        datapath = chosen.kind.label(),
        external_interface = datapath.external.name,
        internal_interface = datapath.internal.name,
        external = external(&nat),
        internal = ?nat.internal,
        sessions = nat.limits.sessions,
        excluded_ports = nat.excluded_ports.len(),
        "started"
    );
    let handle = worker.handle();
    // That it has stopped already is told elsewhere.
    let _ = handle.observe(Box::new(recorder));
    let services = services.start(handle.clone(), forwarding.discover(), &served);
    let (source_dest_check, aws) = (cloud.source_dest_check(), cloud.report());
    let (notices, draining) = (Vec::new(), false);
    let aws_failing_since = None;
    let description = Description {
        chosen,
        config: datapath,
        nat,
        source_dest_check,
        aws,
        aws_failing_since,
        notices,
        draining,
        nat_gateway_price_per_gb: config.admin.nat_gateway_price_per_gb.dollars(),
    };
    let (description, _) = watch::channel(description);
    let outlook = Outlook::start(&config.aws, &counted);
    let running = Running {
        options: options.clone(),
        proc,
        sources,
        config,
        applied,
        description,
        handle,
        cloud,
        gateways,
        outlook,
        coming: Vec::new(),
        draining: None,
        forwarding,
        services,
        session_log: Arc::new(session_log),
        settings,
        manager: Manager::default(),
        socket,
        _namespace: namespace,
    };
    Ok((running, listeners, worker))
}

/// The external addresses as log lines have them.
fn external(nat: &nat::Config) -> String {
    let shown = nat.external_addresses.iter().map(|address| match address.public {
        Some(public) => format!("{} ({public})", address.private),
        None => address.private.to_string(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// What the configuration has to know of the host itself.
fn facts(proc: &Proc) -> Result<HostFacts, Error> {
    Ok(HostFacts {
        interfaces: datapath::interfaces(),
        default_route: datapath::default_route_interface()?,
        memory: proc.memory()?,
        ports: proc.sockets()?,
        cloud: None,
    })
}

/// Everything that can be wrong with the interfaces, at once.
fn check(proc: &Proc, config: &Config, resolved: &Resolved) -> Result<(), Error> {
    let mut refusals = checks::interfaces(&resolved.datapath)?;
    // A default is wider than what is really routed; only what somebody wrote is meant.
    if let Some(prefixes) = &config.nat.internal {
        refusals.extend(checks::reverse_path(proc, &resolved.datapath.internal.name, prefixes)?);
    }
    refuse(refusals)
}

fn refuse(refusals: Vec<Refusal>) -> Result<(), Error> {
    if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
}

/// An error with its causes, on one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn lines(items: &[impl std::fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// How often readiness is looked at: each look wakes three threads.
const TICK: Duration = Duration::from_secs(1);
const TICK_UNTIL_READY: Duration = Duration::from_millis(250);

/// How long the worker may take to answer: less than a second, unless it is stuck. Peers are then told that this
/// instance is not well, before the service manager ends it.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// How long the worker, and then the runtime, may take to stop.
const STOP_TIME: Duration = Duration::from_millis(450);

/// How long the worker may take to detach the programs and put the interfaces' settings back: some drivers start the
/// device anew for each.
const DETACH_TIME: Duration = Duration::from_secs(10);
