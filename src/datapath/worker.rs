//! The packet worker: one OS thread that owns the engine and its datapath.
//!
//! It waits in poll(2) for frames, for the kernel's events and for commands, and takes them in turn: a batch of
//! frames, then whatever else is due, so that neither a flood of packets nor a burst of expiring sessions keeps the
//! other waiting.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{oneshot, watch};

use super::accounting::Accounting;
use super::af_packet::{AfPacket, Port};
use super::classifier::{ClassifierConfig, Roles};
use super::netlink::{self, Change, Events, EventsError, Topology};
use super::sys;
use super::xdp::Xdp;
use super::{Choice, Chosen, Config, Error, Kind, Observer, SessionFilter, SessionPage, Snapshot, Stopped};
use crate::nat::{self, Balancer, Engine, Event, SessionRecord, Side};
use crate::talkers::{Measure, Top, Window};
use crate::time::Instant;

/// Starts the packet worker in the network namespace of the calling thread. Packets flow when this returns, as far
/// as interfaces and neighbours allow: see [`Snapshot::not_ready`]. `balancer` has the targets of the engine's services.
///
/// # Errors
/// See [`Error`]; nothing is left attached then.
pub fn spawn(config: Config, engine_config: nat::Config, balancer: Box<dyn Balancer>) -> Result<Worker, Error> {
    let seed = sys::random_seed().map_err(Error::Randomness)?;
    let mut core = Core::new(config, engine_config, seed)?;
    core.engine.set_balancer(balancer);
    let chosen = core.chosen.clone();
    let wake = Arc::new(
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| Error::Thread(errno.into()))?,
    );
    let (commands, inbox) = mpsc::channel();
    let (alive, stopped) = watch::channel(());
    let turns = Arc::<AtomicU64>::default();
    let handle = Handle { commands, wake: Arc::clone(&wake), stopped, turns: Arc::clone(&turns) };
    let thread = std::thread::Builder::new()
        .name("egret-packets".to_owned())
        .spawn(move || {
            // Dropped however the thread ends, which resolves `stopped`.
            let _alive = alive;
            core.run(&inbox, &wake, &turns);
        })
        .map_err(Error::Thread)?;
    Ok(Worker { handle, chosen, thread: Some(thread) })
}

/// The running worker. Dropping it stops it.
#[derive(Debug)]
pub struct Worker {
    handle: Handle,
    chosen: Chosen,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// A handle to send commands by.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Which datapath it runs.
    #[must_use]
    pub const fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// Stops the worker and waits until it has detached everything, well within a second.
    ///
    /// # Errors
    /// It had panicked.
    pub fn stop(mut self) -> Result<(), Error> {
        self.join()
    }

    fn join(&mut self) -> Result<(), Error> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Fails if it has stopped already.
        let _ = self.handle.send(Command::Stop);
        thread.join().map_err(|_| Error::Panicked)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "the packet worker did not end well");
        }
    }
}

/// Sends commands to the worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    stopped: watch::Receiver<()>,
    turns: Arc<AtomicU64>,
}

impl Handle {
    /// The worker's state.
    ///
    /// # Errors
    /// The worker has stopped.
    pub async fn snapshot(&self) -> Result<Snapshot, Stopped> {
        self.ask(Command::Snapshot).await
    }

    /// The sessions in some places of the table from place `from` on; start with 0. The table changes between calls:
    /// a session that lives throughout is seen once.
    ///
    /// # Errors
    /// The worker has stopped.
    pub async fn scan_sessions(&self, from: u32, filter: SessionFilter) -> Result<SessionPage, Stopped> {
        self.ask(|reply| Command::ScanSessions(from, filter, reply)).await
    }

    /// The most talkative of the last minute and of the last hour, by `by`, at most `count` of each kind.
    ///
    /// # Errors
    /// The worker has stopped.
    pub async fn talkers(&self, by: Measure, count: usize) -> Result<[Top; 2], Stopped> {
        self.ask(|reply| Command::Talkers(by, count, reply)).await
    }

    /// Has `observer` told of what happens to sessions from now on.
    ///
    /// # Errors
    /// The worker has stopped.
    pub fn observe(&self, observer: Box<dyn Observer>) -> Result<(), Stopped> {
        self.send(Command::Observe(observer))
    }

    /// Changes the engine's configuration and the destinations that are never translated. On an error, which comes at
    /// once, nothing has changed. Otherwise the answer comes when the change is in force: after all flows have come
    /// home from the fast path, and after the changes that were asked for before. More internal prefixes than a filter
    /// holds (32, after joining neighbouring ones) leave the filter as it is, and the worker not ready.
    ///
    /// # Errors
    /// The worker has stopped; within, that the configuration is not usable.
    pub async fn reconfigure(
        &self,
        config: nat::Config,
        bypass: Vec<Ipv4Net>,
    ) -> Result<Result<(), nat::ConfigError>, Stopped> {
        self.ask(|reply| Command::Reconfigure(Box::new(Reconfiguration { config, bypass, reply }))).await
    }

    /// Waits until the worker has stopped, for whatever reason.
    pub async fn stopped(&self) {
        // Nothing is ever sent: this ends when the sender is gone.
        let _ = self.stopped.clone().changed().await;
    }

    /// How often the worker has taken in what there was, and done what was due: the beat by which it is known to be
    /// well. It turns at least once a second, and whenever it is woken.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Has the worker turn, and its balancer look what it was sent.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then the worker is awake.
        let _ = self.wake.write(1);
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| Stopped)
    }

    fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)?;
        self.wake();
        Ok(())
    }
}

#[derive(Debug)]
enum Command {
    Snapshot(oneshot::Sender<Snapshot>),
    ScanSessions(u32, SessionFilter, oneshot::Sender<SessionPage>),
    Talkers(Measure, usize, oneshot::Sender<[Top; 2]>),
    Observe(Box<dyn Observer>),
    Reconfigure(Box<Reconfiguration>),
    Stop,
}

/// A configuration that somebody wants in force.
#[derive(Debug)]
struct Reconfiguration {
    config: nat::Config,
    bypass: Vec<Ipv4Net>,
    reply: oneshot::Sender<Result<(), nat::ConfigError>>,
}

/// What is sent to the thread; [`AfPacket`], with its buffers, is made there.
struct Core {
    started: std::time::Instant,
    config: Config,
    engine: Engine,
    ports: Vec<Port>,
    xdp: Option<Xdp>,
    chosen: Chosen,
    events: Events,
    topology: Topology,
}

impl Core {
    fn new(config: Config, engine_config: nat::Config, seed: [u8; 16]) -> Result<Self, Error> {
        let (started, origin_nanos) = (clock(), sys::monotonic_nanos().map_err(Error::Clock)?);
        // Before the dumps, so that no change falls in between.
        let events = Events::subscribe().map_err(Error::Netlink)?;
        let topology = netlink::dump_topology().map_err(Error::Netlink)?;
        let host = host_addresses(&topology);
        let one_armed = config.external.name == config.internal.name;
        let mut ports =
            vec![Port::new(config.external.name.clone(), Roles { internal: one_armed, external: true })];
        if !one_armed {
            ports.push(Port::new(config.internal.name.clone(), Roles { internal: true, external: false }));
        }
        for port in &mut ports {
            let link = topology.links.iter().find(|link| link.name == port.name);
            let Some(link) = link else { return Err(Error::NoInterface(port.name.clone())) };
            if !port.update(Some(link)) {
                return Err(Error::NotEthernet(port.name.clone()));
            }
        }
        let rules = |port: &Port| ClassifierConfig::new(port.roles, &config.bypass, &engine_config);
        let virtual_ethernet =
            ports.iter().find(|port| sys::driver(&port.name).is_ok_and(|driver| driver == "veth"));
        let (xdp, fallback) = match (config.datapath, virtual_ethernet) {
            (Choice::AfPacket, _) => (None, None),
            (Choice::Auto, Some(port)) => (None, Some(format!("interface {}: {VIRTUAL_ETHERNET}", port.name))),
            (Choice::Auto | Choice::Xdp, _) => {
                let flows = engine_config.limits.sessions.saturating_mul(2).max(2);
                let rules = rules(&ports[0])?;
                match Xdp::new(config.xdp, &ports, &rules, &host, flows, origin_nanos) {
                    Ok(xdp) => (Some(xdp), None),
                    Err(error) if config.datapath == Choice::Auto => (None, Some(with_causes(&error))),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        for port in &mut ports {
            let rules = shared(rules(port)?, xdp.is_some());
            port.open(&rules, &host).map_err(|source| Error::Port { interface: port.name.clone(), source })?;
        }
        let kind = if xdp.is_some() { Kind::Xdp } else { Kind::AfPacket };
        let engine = Engine::new(adapted(engine_config, xdp.as_ref(), ports.len()), seed)?;
        let chosen = Chosen { kind, fallback };
        Ok(Self { started, config, engine, ports, xdp, chosen, events, topology })
    }

    fn run(self, inbox: &mpsc::Receiver<Command>, wake: &EventFd, turns: &AtomicU64) {
        let mut datapath = AfPacket::new(self.ports);
        datapath.forwarding.set_internal(&self.engine.config().internal);
        let mut state = State {
            started: self.started,
            now: Instant::ORIGIN,
            config: self.config,
            engine: self.engine,
            datapath,
            xdp: self.xdp,
            waiting: Vec::new(),
            events: self.events,
            host: BTreeSet::new(),
            addresses: Vec::new(),
            refresh: Refresh::default(),
            tick_at: Instant::ORIGIN,
            accounting: Accounting::default(),
            observer: None,
            xdp_not_before: Instant::ORIGIN,
            trouble: None,
        };
        state.take_topology(self.topology);
        state.refresh = Refresh { wanted: false, neighbours: true, not_before: Instant::ORIGIN };
        state.run(inbox, wake, turns);
    }
}

/// What a packet socket gets: beside XDP, only what is the kernel's as well.
fn shared(rules: ClassifierConfig, beside_xdp: bool) -> ClassifierConfig {
    if beside_xdp { rules.shared_only() } else { rules }
}

/// The engine's configuration, as the datapath needs it: with a fast path to hand sessions to, and with the MTUs that
/// its drivers demanded.
fn adapted(mut config: nat::Config, xdp: Option<&Xdp>, ports: usize) -> nat::Config {
    if let Some(xdp) = xdp {
        config.offload_after = Some(OFFLOAD_AFTER);
        let lower = |mtu: &mut u16, port: usize| {
            if let Some(lowered) = xdp.lowered_mtu(port) {
                *mtu = u16::try_from(lowered).map_or(*mtu, |lowered| lowered.min(*mtu));
            }
        };
        lower(&mut config.external_mtu, 0);
        lower(&mut config.internal_mtu, ports - 1);
    }
    config
}

/// When links, addresses and routes are to be read again.
#[derive(Default)]
struct Refresh {
    wanted: bool,
    neighbours: bool,
    not_before: Instant,
}

struct State {
    started: std::time::Instant,
    now: Instant,
    config: Config,
    engine: Engine,
    datapath: AfPacket,
    /// What carries most packets, if there is one.
    xdp: Option<Xdp>,
    /// Until no flow goes by the configuration in force.
    waiting: Vec<Reconfiguration>,
    events: Events,
    /// Every address of this host.
    host: BTreeSet<Ipv4Addr>,
    /// With the interface that each is on.
    addresses: Vec<(u32, Ipv4Addr)>,
    refresh: Refresh,
    tick_at: Instant,
    accounting: Accounting,
    observer: Option<Box<dyn Observer>>,
    /// When the program may be attached again, if it could not be.
    xdp_not_before: Instant,
    /// What went wrong last, if it has not been mended since.
    trouble: Option<String>,
}

impl State {
    fn run(&mut self, inbox: &mpsc::Receiver<Command>, wake: &EventFd, turns: &AtomicU64) {
        let mut more = false;
        for turn in 1.. {
            // Nobody else writes it.
            turns.store(turn, Ordering::Relaxed);
            let (woken, changed) = self.wait(wake, more);
            self.now =
                Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX));
            more = self.datapath.pump(self.now, &mut self.engine);
            self.serve();
            if let Some(xdp) = &mut self.xdp {
                more |= xdp.pump(self.now, &mut self.engine, &mut self.datapath);
            }
            if woken {
                // Before the commands are taken, so that a later one wakes again.
                let _ = wake.read();
                while let Ok(command) = inbox.try_recv() {
                    if self.handle(command).is_break() {
                        return;
                    }
                }
            }
            self.follow_kernel(changed);
            more |= self.handle_timeouts(woken);
            if let Some(xdp) = &mut self.xdp {
                more |= xdp.follow_engine(self.now, &mut self.engine, &mut self.datapath);
            }
            self.reconfigure_waiting();
            self.drain_events();
            more |= self.accounting.look(self.now, &mut self.engine, self.xdp.as_ref());
        }
    }

    /// Has the fast path do what the engine asks of it, before the engine is given anything else.
    fn serve(&mut self) {
        if let Some(xdp) = &mut self.xdp {
            xdp.serve(self.now, &mut self.engine, &mut self.datapath);
        }
    }

    /// Waits for something to do; `more` says that there is something. Gives whether there are commands, and whether
    /// there are events of the kernel; frames are found by trying.
    fn wait(&self, wake: &EventFd, more: bool) -> (bool, bool) {
        let timeout = if more { PollTimeout::ZERO } else { self.poll_timeout() };
        let mut polled = Vec::with_capacity(4);
        polled.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
        polled.push(PollFd::new(self.events.as_fd(), PollFlags::POLLIN));
        for socket in self.datapath.ports.iter().filter_map(Port::socket) {
            polled.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        for fd in self.xdp.iter().flat_map(Xdp::fds) {
            polled.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        // Interrupted, nothing is ready; the next time tells.
        let _ = nix::poll::poll(&mut polled, timeout);
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        (ready(&polled[0]), ready(&polled[1]))
    }

    fn poll_timeout(&self) -> PollTimeout {
        let refresh = (self.refresh.wanted || self.refresh.neighbours).then_some(self.refresh.not_before);
        let due = [
            self.engine.poll_timeout(),
            self.datapath.forwarding.next_hops.poll_timeout(),
            refresh,
            Some(self.tick_at),
        ];
        let unsent = self.xdp.as_ref().is_some_and(Xdp::has_unsent).then(|| self.now + SOON);
        let Some(due) = due.into_iter().chain([unsent]).flatten().min() else { return PollTimeout::NONE };
        // Rounded up: to wake too early is to wake twice.
        let millis = due.saturating_since(self.now).as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }

    fn handle(&mut self, command: Command) -> std::ops::ControlFlow<()> {
        // Whoever asked may have gone, which is their affair.
        match command {
            Command::Stop => return std::ops::ControlFlow::Break(()),
            Command::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Command::ScanSessions(from, filter, reply) => {
                let mut page = SessionPage::default();
                let places = if self.xdp.is_some() { SCAN_PLACES_XDP } else { SCAN_PLACES };
                page.next = self.engine.scan_sessions(self.now, from, places, |record| {
                    if filter.matches(record) {
                        page.records.push(*record);
                    }
                });
                if let Some(xdp) = &self.xdp {
                    for record in &mut page.records {
                        xdp.add_usage(self.now, &self.engine, record);
                    }
                }
                let _ = reply.send(page);
            }
            Command::Talkers(by, count, reply) => {
                let windows = [Window::Minute, Window::Hour];
                let _ = reply.send(windows.map(|window| self.accounting.top(self.now, window, by, count)));
            }
            Command::Observe(observer) => self.observer = Some(observer),
            Command::Reconfigure(wanted) => self.prepare(*wanted),
        }
        std::ops::ControlFlow::Continue(())
    }

    /// Has the flows come home that go by what is to change.
    fn prepare(&mut self, mut wanted: Reconfiguration) {
        wanted.config = adapted(wanted.config, self.xdp.as_ref(), self.datapath.ports.len());
        if let Err(error) = wanted.config.validate() {
            let _ = wanted.reply.send(Err(error));
            return;
        }
        if !self.is_in_force(&wanted.config, &wanted.bypass)
            && let Some(xdp) = &mut self.xdp
        {
            xdp.recall();
        }
        self.waiting.push(wanted);
    }

    /// Does what waits, in the order in which it was asked for, once all flows are home.
    fn reconfigure_waiting(&mut self) {
        if self.xdp.as_ref().is_some_and(Xdp::is_recalling) {
            return;
        }
        for Reconfiguration { config, bypass, reply } in std::mem::take(&mut self.waiting) {
            let _ = reply.send(self.reconfigure(config, bypass));
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        for port in &self.datapath.ports {
            if let Some(Ok(statistics)) = port.socket().map(sys::PacketSocket::take_statistics) {
                self.datapath.forwarding.counters.receive_dropped += statistics.dropped;
            }
        }
        let forwarding = &mut self.datapath.forwarding;
        forwarding.counters.unresolved_dropped = forwarding.next_hops.dropped();
        let mut counters = self.engine.counters();
        let fast_path = self.xdp.as_mut().map(|xdp| xdp.count(&mut forwarding.counters, &mut counters));
        Snapshot {
            counters,
            addresses: self.engine.address_use(),
            datapath: forwarding.counters,
            fast_path,
            not_ready: self.not_ready(),
            uptime: self.started.elapsed(),
        }
    }

    fn not_ready(&mut self) -> Vec<String> {
        let mut reasons: Vec<String> = self.trouble.iter().cloned().collect();
        for (place, port) in self.datapath.ports.iter().enumerate() {
            if port.index == 0 {
                reasons.push(format!("interface {} is missing", port.name));
            } else if !port.running {
                reasons.push(format!("interface {} is down", port.name));
            } else if !port.is_open() || self.xdp.as_ref().is_some_and(|xdp| !xdp.is_open(place)) {
                reasons.push(format!("interface {} is not open", port.name));
            }
        }
        let external = self.datapath.port(Side::External);
        let (index, name) = (self.datapath.ports[external].index, self.datapath.ports[external].name.clone());
        for private in self.missing_addresses() {
            reasons.push(format!("external address {private} is not on interface {name}"));
        }
        if let Err(reason) = self.datapath.forwarding.next_hops.check_default_route(self.now, index) {
            reasons.push(format!("interface {name}: {reason}"));
        }
        self.send_requests();
        reasons
    }

    /// External addresses that the interface has not, as far as is known.
    fn missing_addresses(&self) -> Vec<Ipv4Addr> {
        let index = self.datapath.ports[self.datapath.port(Side::External)].index;
        let all = self.engine.config().external_addresses.iter().map(|address| address.private);
        all.filter(|private| !self.addresses.contains(&(index, *private))).collect()
    }

    fn is_in_force(&self, config: &nat::Config, bypass: &[Ipv4Net]) -> bool {
        config == self.engine.config() && bypass == self.config.bypass
    }

    fn reconfigure(&mut self, config: nat::Config, bypass: Vec<Ipv4Net>) -> Result<(), nat::ConfigError> {
        if self.is_in_force(&config, &bypass) {
            return Ok(());
        }
        self.engine.reconfigure(self.now, config)?;
        self.serve();
        self.config.bypass = bypass;
        self.datapath.forwarding.set_internal(&self.engine.config().internal);
        if !self.missing_addresses().is_empty() {
            // The host may just have been given one. By the next look, peers would have heard that packets do not flow.
            self.read_anew();
        }
        let trouble = self.configure_filters();
        self.set_trouble(trouble);
        Ok(())
    }

    /// Gives what went wrong.
    fn configure_filters(&mut self) -> Option<String> {
        let mut trouble = None;
        for port in &mut self.datapath.ports {
            let configured = ClassifierConfig::new(port.roles, &self.config.bypass, self.engine.config())
                .and_then(|rules| {
                    if let Some(xdp) = &mut self.xdp {
                        xdp.configure(&rules, &self.host)?;
                    }
                    port.configure(&shared(rules, self.xdp.is_some()), &self.host)
                });
            if let Err(error) = configured {
                trouble = Some(explain(&port.name, &error));
            }
        }
        trouble
    }

    /// Says it once, and again only when it is something else.
    fn set_trouble(&mut self, trouble: Option<String>) {
        match &trouble {
            Some(text) if self.trouble != trouble => tracing::error!(error = text, "interface is not usable"),
            _ => {}
        }
        self.trouble = trouble;
    }

    fn follow_kernel(&mut self, changed: bool) {
        if changed {
            self.read_events();
        }
        if (self.refresh.wanted || self.refresh.neighbours) && self.refresh.not_before <= self.now {
            self.read_anew();
        }
        self.datapath.send_released();
    }

    fn read_events(&mut self) {
        let (next_hops, refresh) = (&mut self.datapath.forwarding.next_hops, &mut self.refresh);
        let result = self.events.read(|change| match change {
            Change::Neighbour(neighbour) => next_hops.update_neighbour(neighbour),
            Change::Topology => refresh.wanted = true,
        });
        match result {
            Ok(()) => {}
            Err(EventsError::Overflow) => {
                self.datapath.forwarding.counters.netlink_overflows += 1;
                self.refresh.wanted = true;
                self.refresh.neighbours = true;
            }
            Err(EventsError::Io(error)) => {
                tracing::warn!(%error, "cannot read the kernel's events");
                self.refresh.wanted = true;
                self.refresh.neighbours = true;
            }
        }
    }

    fn read_anew(&mut self) {
        let began = clock();
        let refresh = std::mem::take(&mut self.refresh);
        let result = netlink::dump_topology().map(|topology| self.take_topology(topology)).and_then(|()| {
            if refresh.neighbours {
                self.datapath.forwarding.next_hops.set_neighbours(netlink::dump_neighbours()?);
            }
            Ok(())
        });
        if let Err(error) = result {
            tracing::warn!(%error, "cannot read the kernel's routes and neighbours");
            self.refresh = Refresh { wanted: true, neighbours: true, not_before: Instant::ORIGIN };
        }
        // A large table that changes all the time is not to take more than a twentieth of the worker's time.
        self.refresh.not_before = self.now + REFRESH_EVERY.max(began.elapsed() * 20);
    }

    fn take_topology(&mut self, topology: Topology) {
        self.host = host_addresses(&topology);
        self.addresses.clone_from(&topology.addresses);
        let mut trouble = None;
        for port in &mut self.datapath.ports {
            let link = topology.links.iter().find(|link| link.name == port.name);
            let (was_running, was_open) = (port.running, port.is_open());
            let must_open = port.update(link);
            if must_open {
                let opened = ClassifierConfig::new(port.roles, &self.config.bypass, self.engine.config())
                    .map_err(Into::into)
                    .and_then(|rules| port.open(&shared(rules, self.xdp.is_some()), &self.host));
                match opened {
                    Ok(()) => tracing::info!(interface = port.name, "interface opened"),
                    Err(error) => trouble = Some(explain(&port.name, &error)),
                }
            }
            match (was_running || was_open, port.running) {
                (true, false) => tracing::warn!(interface = port.name, "interface is down"),
                (false, true) => tracing::info!(interface = port.name, "interface is up"),
                _ => {}
            }
        }
        if let Some(xdp) = &mut self.xdp {
            if self.now < self.xdp_not_before {
                trouble = trouble.or_else(|| self.trouble.clone());
            } else if let Err(error) = xdp.follow_ports(&self.datapath.ports) {
                // A try may take the link down and up, which is a change to follow.
                self.xdp_not_before = self.now + TICK;
                trouble = Some(with_causes(&error));
            }
        }
        let indices = self.datapath.ports.iter().map(|port| port.index).collect();
        self.datapath.forwarding.next_hops.set_interfaces(indices);
        if !self.datapath.forwarding.next_hops.set_routes(topology.routes) {
            tracing::warn!("too many routes, the least specific are ignored");
        }
        trouble = trouble.or(self.configure_filters());
        self.set_trouble(trouble);
    }

    /// Gives whether there is more to do at once. `woken`: somebody may have sent something to the balancer.
    fn handle_timeouts(&mut self, woken: bool) -> bool {
        if woken || self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle_timeout(self.now);
            self.serve();
            self.datapath.queue_transmits(self.now, &mut self.engine);
            self.datapath.flush();
        }
        self.datapath.forwarding.next_hops.handle_timeout(self.now);
        if self.tick_at <= self.now {
            self.tick_at = self.now + TICK;
            // The gateway is kept known while nothing is sent, so that the first packet need not wait.
            let external = self.datapath.ports[self.datapath.port(Side::External)].index;
            let _ = self.datapath.forwarding.next_hops.check_default_route(self.now, external);
            if let Some(xdp) = &mut self.xdp {
                xdp.tick(self.now, &mut self.datapath);
            }
            let xdp_open = |place| self.xdp.as_ref().is_none_or(|xdp| xdp.is_open(place));
            let mut ports = self.datapath.ports.iter().enumerate();
            self.refresh.wanted |= ports.any(|(place, port)| !port.is_open() || !xdp_open(place));
        }
        self.send_requests();
        self.engine.poll_timeout().is_some_and(|at| at <= self.now)
    }

    fn send_requests(&mut self) {
        while let Some((interface, address)) = self.datapath.forwarding.next_hops.poll_request() {
            if let Err(error) = self.events.resolve(interface, address) {
                tracing::debug!(%address, %error, "neighbour could not be asked for");
            }
        }
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            log(&event);
            self.accounting.take_in(self.now, &event);
            if let Some(observer) = &mut self.observer {
                observer.handle_event(&event);
            }
        }
    }
}

/// Here time comes in; below it is an argument.
#[expect(clippy::disallowed_methods, reason = "the worker is who reads the clock for the engine")]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

fn log(event: &Event) {
    if !tracing::enabled!(target: "egret::sessions", tracing::Level::DEBUG) {
        return;
    }
    let (what, record, reason) = match event {
        Event::Opened(record) => ("opened", record, None),
        Event::Established(record) => ("established", record, None),
        Event::Closed(record, reason) => ("closed", record, Some(reason)),
    };
    let SessionRecord { protocol: proto, internal, external, remote, .. } = record;
    tracing::debug!(target: "egret::sessions", what, %proto, %internal, %external, %remote, ?reason, "session");
}

fn explain(interface: &str, error: &(dyn std::error::Error + 'static)) -> String {
    format!("interface {interface}: {}", with_causes(error))
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn host_addresses(topology: &Topology) -> BTreeSet<Ipv4Addr> {
    topology.addresses.iter().map(|(_, address)| *address).collect()
}

const VIRTUAL_ETHERNET: &str = "on veth, checksums that a peer leaves to its device reach XDP incomplete; \
     set datapath = \"xdp\" where the peers complete them (ethtool -K ... tx off)";
/// Packets of a session after which the fast path is to carry it: see `docs/decisions/0005-when-offload-pays.md`.
const OFFLOAD_AFTER: u16 = 6;
/// Places of the session table that are looked at between two batches.
const SCAN_PLACES: u32 = 4096;
/// The same beside XDP, where each session in the fast path takes two system calls.
const SCAN_PLACES_XDP: u32 = 256;
/// How often to look after the gateway, and after interfaces that are not open.
const TICK: Duration = Duration::from_secs(1);
const REFRESH_EVERY: Duration = Duration::from_millis(20);
/// When to try again what the kernel could not take.
const SOON: Duration = Duration::from_millis(1);
