//! The listeners of `mode = "nat"`: their targets in the packet worker's hands, and what is done for them outside.
//!
//! The worker owns all of their state, so that a new connection waits for nobody. What takes time (probes, log lines)
//! it gives away by a channel, and takes in what comes back when it is woken.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, sleep, timeout};

use crate::balance::{CheckError, ConfigError, Event, ProbeId};
use crate::datapath::{self, Handle, Stopped};
use crate::forward::{
    self, Config, Discover, DiscoverError, Ended, Errand, Followers, Refused, Relayed, Report, Service, Source,
    Tell,
};
use crate::nat::{Answer, Balancer, CloseReason, Closed, Refusal, Side};
use crate::time::Instant;
use crate::wire::Endpoint;

/// Makes both ends: what the packet worker has, and what the daemon has.
pub(super) fn services() -> (Targets, Services) {
    let (to_worker, inbox) = mpsc::channel();
    let (outbox, from_worker) = channel(MOST_WAITING);
    let targets = Targets { services: BTreeMap::new(), inbox, outbox, due: None, lost: 0 };
    (targets, Services { to_worker, from_worker: Some(from_worker) })
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Services {
    to_worker: mpsc::Sender<Input>,
    from_worker: Option<Receiver<Output>>,
}

/// Sends to the packet worker's end, and wakes it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Control {
    to_worker: mpsc::Sender<Input>,
    worker: Handle,
    discover: Arc<dyn Discover>,
    /// By address, of those whose targets are known by a name.
    followers: Arc<Mutex<BTreeMap<SocketAddr, Followers>>>,
}

#[derive(Debug)]
enum Input {
    Configure(Vec<Wanted>),
    /// With how long it took.
    Probed(SocketAddr, ProbeId, Result<Option<()>, CheckError>, Duration),
    Found(SocketAddr, Source, Result<Vec<SocketAddr>, DiscoverError>),
    Drain {
        name: String,
        target: SocketAddr,
        draining: bool,
        reply: oneshot::Sender<Option<bool>>,
    },
    Report(oneshot::Sender<Vec<Report>>),
    Grace(oneshot::Sender<Duration>),
    Open(oneshot::Sender<Vec<SocketAddr>>),
}

/// A listener that is to be, with randomness of its own.
#[derive(Debug)]
struct Wanted {
    config: Config,
    seed: [u8; 16],
}

#[derive(Debug)]
enum Output {
    Probe { listen: SocketAddr, errand: Errand },
    Event { name: String, event: Event },
    Closed { name: String, closed: Closed },
}

impl Services {
    /// Says which listeners there are to be, before there is a worker.
    ///
    /// # Errors
    /// The system's randomness.
    pub(super) fn configure(&self, wanted: &[Config]) -> std::io::Result<()> {
        send_wanted(&self.to_worker, wanted)
    }

    /// Serves the worker from now on, and follows the targets of these listeners. Needs a tokio runtime.
    pub(super) fn start(mut self, worker: Handle, discover: Arc<dyn Discover>, wanted: &[Config]) -> Control {
        let control = Control { to_worker: self.to_worker, worker, discover, followers: Arc::default() };
        control.follow(wanted);
        if let Some(from_worker) = self.from_worker.take() {
            tokio::spawn(attend(from_worker, control.clone()));
        }
        control
    }
}

impl Control {
    /// Says which listeners there are to be. Those of the same address are the same, whatever else changes. Others
    /// take no more connections; what they have may go on for their deregistration delay.
    ///
    /// # Errors
    /// The system's randomness.
    pub(super) fn configure(&self, wanted: &[Config]) -> std::io::Result<()> {
        send_wanted(&self.to_worker, wanted)?;
        self.worker.wake();
        self.follow(wanted);
        Ok(())
    }

    /// Follows the targets of these listeners from now on, and no others'.
    fn follow(&self, wanted: &[Config]) {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|listen, _| wanted.iter().any(|config| config.listen == *listen));
        for config in wanted {
            let (to_worker, worker, listen) = (self.to_worker.clone(), self.worker.clone(), config.listen);
            let tell: Tell = Arc::new(move |source, found| {
                let _ = to_worker.send(Input::Found(listen, source.clone(), found));
                worker.wake();
            });
            let new = || Followers::new(Arc::clone(&self.discover));
            followers.entry(listen).or_insert_with(new).follow(&config.followed, &tell);
        }
    }

    /// All of them, by address.
    ///
    /// # Errors
    /// The worker has stopped.
    pub(super) async fn reports(&self) -> Result<Vec<Report>, Stopped> {
        self.ask(Input::Report).await
    }

    /// Takes a target out of service, or back into it: whether there is such a target, if there is such a listener.
    ///
    /// # Errors
    /// The worker has stopped.
    pub(super) async fn set_draining(
        &self,
        name: &str,
        target: SocketAddr,
        draining: bool,
    ) -> Result<Option<bool>, Stopped> {
        let name = name.to_owned();
        self.ask(|reply| Input::Drain { name, target, draining, reply }).await
    }

    /// How long connections may go on when the daemon stops: the longest of the deregistration delays of those that have
    /// any.
    ///
    /// # Errors
    /// The worker has stopped.
    pub(super) async fn grace(&self) -> Result<Duration, Stopped> {
        self.ask(Input::Grace).await
    }

    /// The listeners that have connections, those among them that are not wanted any more.
    ///
    /// # Errors
    /// The worker has stopped.
    pub(super) async fn open(&self) -> Result<Vec<SocketAddr>, Stopped> {
        self.ask(Input::Open).await
    }

    /// Takes no more connections, and waits until the last has ended: each may go on for its listener's deregistration
    /// delay, and is then cut by the worker.
    pub(super) async fn stop(&self) {
        self.send(Input::Configure(Vec::new()));
        // Of all that there are: the worker takes no more by now.
        let Ok(grace) = self.grace().await else { return };
        let drained = async {
            while self.grace().await.is_ok_and(|grace| !grace.is_zero()) {
                sleep(DRAIN_LOOK).await;
            }
        };
        let _ = timeout(grace + CUT_TIME, drained).await;
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(input(reply));
        answer.await.map_err(|_| Stopped)
    }

    /// If the worker has gone, so has whoever waits for an answer.
    fn send(&self, input: Input) {
        let _ = self.to_worker.send(input);
        self.worker.wake();
    }
}

fn send_wanted(to_worker: &mpsc::Sender<Input>, wanted: &[Config]) -> std::io::Result<()> {
    let wanted =
        wanted.iter().map(|config| Ok(Wanted { config: config.clone(), seed: datapath::random_seed()? }));
    let _ = to_worker.send(Input::Configure(wanted.collect::<std::io::Result<_>>()?));
    Ok(())
}

/// Does for the worker what takes time, until it has gone.
async fn attend(mut from_worker: Receiver<Output>, control: Control) {
    let mut probes = JoinSet::new();
    loop {
        tokio::select! {
            output = from_worker.recv() => match output {
                Some(Output::Probe { listen, errand: Errand { probe, check, timeout } }) => {
                    probes.spawn(async move {
                        let start = Clock::now();
                        let result = check.ask(probe.target, timeout).await;
                        Input::Probed(listen, probe.id, result, start.elapsed())
                    });
                }
                Some(Output::Event { name, event }) => forward::log(&name, event),
                Some(Output::Closed { name, closed }) => log_closed(&name, &closed),
                None => return,
            },
            Some(Ok(probed)) = probes.join_next() => control.send(probed),
        }
    }
}

fn log_closed(listener: &str, closed: &Closed) {
    let Relayed { bytes_to_target, bytes_to_client, ended } = relayed(closed);
    tracing::info!(
        listener,
        client = %closed.client,
        target = %closed.record.internal,
        bytes_to_target,
        bytes_to_client,
        seconds = closed.record.age.as_secs_f64(),
        ended = ended.label(),
        "connection"
    );
}

/// The packet worker's end.
#[derive(Debug)]
pub(super) struct Targets {
    services: BTreeMap<SocketAddr, Entry>,
    inbox: mpsc::Receiver<Input>,
    outbox: Sender<Output>,
    /// When something is to be done; asked for all the time.
    due: Option<Instant>,
    /// Log lines that nobody took in time.
    lost: u64,
}

#[derive(Debug)]
struct Entry {
    service: Service,
    /// Taken out of the configuration.
    retired: bool,
}

impl Targets {
    fn find(&mut self, service: Endpoint) -> Option<&mut Entry> {
        self.services.get_mut(&address(service))
    }

    fn configure(&mut self, now: Instant, wanted: Vec<Wanted>) -> Result<(), ConfigError> {
        let mut outcome = Ok(());
        for entry in self.services.values_mut() {
            entry.retired = true;
        }
        for Wanted { config, seed } in wanted {
            let listen = config.listen;
            let result = match self.services.get_mut(&listen) {
                Some(entry) => {
                    entry.retired = false;
                    entry.service.reconfigure(now, config)
                }
                None => Service::new(now, config, seed).map(|service| {
                    self.services.insert(listen, Entry { service, retired: false });
                }),
            };
            outcome = outcome.and(result);
        }
        for entry in self.services.values_mut().filter(|entry| entry.retired) {
            entry.service.retire(now);
        }
        outcome
    }

    fn take_in(&mut self, now: Instant, input: Input) {
        match input {
            Input::Configure(wanted) => {
                // The file's own checks let nothing through that is refused here.
                if let Err(error) = self.configure(now, wanted) {
                    tracing::error!(%error, "listener not configured");
                }
            }
            Input::Probed(listen, id, result, took) => {
                if let Some(entry) = self.services.get_mut(&listen) {
                    if result == Ok(Some(())) {
                        entry.service.observe_check(took);
                    }
                    entry.service.handle_probe(now, id, result);
                }
            }
            Input::Found(listen, source, found) => {
                if let Some(entry) = self.services.get_mut(&listen) {
                    entry.service.handle_found(now, &source, found);
                }
            }
            Input::Drain { name, target, draining, reply } => {
                let is_named = |entry: &&mut Entry| !entry.retired && entry.service.config().name == name;
                let named = self.services.values_mut().find(is_named);
                // Whoever asked may have gone, which is their affair.
                let _ = reply.send(named.map(|entry| entry.service.set_draining(now, target, draining)));
            }
            Input::Report(reply) => {
                let shown = self.services.values().filter(|entry| !entry.retired);
                let _ = reply.send(shown.map(|entry| entry.service.report(now)).collect());
            }
            Input::Open(reply) => {
                let open = self.services.iter().filter(|(_, entry)| entry.service.open() > 0);
                let _ = reply.send(open.map(|(listen, _)| *listen).collect());
            }
            Input::Grace(reply) => {
                let services = self.services.values().map(|entry| &entry.service);
                let open = services.filter(|service| service.open() > 0);
                let grace =
                    open.map(|service| service.config().group.deregistration_delay.max(DRAIN_LOOK)).max();
                let _ = reply.send(grace.unwrap_or_default());
            }
        }
    }

    fn give_out(&mut self, now: Instant) {
        for (listen, entry) in &mut self.services {
            let service = &mut entry.service;
            service.handle_timeout(now);
            while let Some(errand) = service.poll_errand(now) {
                let id = errand.probe.id;
                if self.outbox.try_send(Output::Probe { listen: *listen, errand }).is_err() {
                    service.handle_probe(now, id, Ok(None));
                }
            }
            while let Some(event) = service.poll_event() {
                let name = service.config().name.clone();
                self.lost += u64::from(self.outbox.try_send(Output::Event { name, event }).is_err());
            }
        }
        if self.lost > 0 && self.outbox.capacity() > 0 {
            tracing::warn!(lost = self.lost, "log lines of listeners lost: too many at once");
            self.lost = 0;
        }
        self.services.retain(|_, entry| !(entry.retired && entry.service.is_empty(now)));
        self.due = self.services.values().filter_map(|entry| entry.service.poll_timeout()).min();
    }

    /// The packet worker has told a service something, which may have to be passed on at once.
    fn told(&mut self, service: Endpoint) {
        if self.find(service).is_some_and(|entry| entry.service.has_events()) {
            self.due = Some(Instant::ORIGIN);
        }
    }
}

impl Balancer for Targets {
    fn select(
        &mut self,
        now: Instant,
        service: Endpoint,
        client: Endpoint,
        avoid: Option<Endpoint>,
    ) -> Result<Endpoint, Refusal> {
        let entry = self.find(service).filter(|entry| !entry.retired).ok_or(Refusal::NoTarget)?;
        let target = entry.service.select(now, address(client), avoid.map(address));
        match target.map_err(|refused| match refused {
            Refused::NotAdmitted => Refusal::NotAdmitted,
            Refused::NoTarget => Refusal::NoTarget,
        })? {
            SocketAddr::V4(target) => Ok(Endpoint::new(*target.ip(), target.port())),
            // No configuration has one.
            SocketAddr::V6(_) => Err(Refusal::NoTarget),
        }
    }

    fn is_full_for(&mut self, service: Endpoint, client: Endpoint) -> bool {
        self.find(service).is_some_and(|entry| entry.service.is_full_for(client.address.into()))
    }

    fn handle_answer(&mut self, now: Instant, service: Endpoint, target: Endpoint, answer: Answer) {
        let Some(entry) = self.find(service) else { return };
        let answer = match answer {
            Answer::Accepted => Ok(()),
            Answer::Refused => Err(CheckError::Refused),
            Answer::Silent => Err(CheckError::TimedOut),
        };
        entry.service.handle_answer(now, address(target), answer);
        self.told(service);
    }

    fn handle_closed(&mut self, now: Instant, service: Endpoint, target: Endpoint, how: Option<&Closed>) {
        let Some(entry) = self.find(service) else { return };
        let is_answered = how.is_some_and(|closed| closed.is_answered);
        entry.service.handle_closed(now, address(target), is_answered, how.map(relayed));
        let config = entry.service.config();
        if let Some(closed) = how.filter(|_| config.access_log) {
            let line = Output::Closed { name: config.name.clone(), closed: *closed };
            self.lost += u64::from(self.outbox.try_send(line).is_err());
        }
        self.told(service);
    }

    fn poll_cut(&mut self) -> Option<(Endpoint, Endpoint)> {
        self.services.iter_mut().find_map(|(listen, entry)| {
            let (SocketAddr::V4(listen), SocketAddr::V4(target)) = (listen, entry.service.poll_close()?) else {
                return None;
            };
            Some((Endpoint::new(*listen.ip(), listen.port()), Endpoint::new(*target.ip(), target.port())))
        })
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Ok(input) = self.inbox.try_recv() {
            self.take_in(now, input);
        }
        self.give_out(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }
}

fn relayed(closed: &Closed) -> Relayed {
    let ended = match (closed.reason, closed.reset_by) {
        (CloseReason::Cut | CloseReason::AddressRemoved, _) => Ended::Cut,
        (_, Some(Side::Internal)) => Ended::Reset(forward::Side::Target),
        (_, Some(Side::External)) => Ended::Reset(forward::Side::Client),
        (CloseReason::Finished | CloseReason::Reopened, None) => Ended::Closed,
        (CloseReason::Expired | CloseReason::Unanswered | CloseReason::Refused | CloseReason::Reset, None) => {
            Ended::Idle
        }
    };
    Relayed { bytes_to_target: closed.record.bytes_in, bytes_to_client: closed.record.bytes_out, ended }
}

pub(super) fn address(endpoint: Endpoint) -> SocketAddr {
    SocketAddrV4::new(endpoint.address, endpoint.port).into()
}

/// For the worker to cut what is left after its delay, and to send the resets: it goes through its table in small parts.
const CUT_TIME: Duration = Duration::from_secs(1);
/// How often to look whether connections have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
/// Probes and log lines that may wait to be taken up.
const MOST_WAITING: usize = 4096;
