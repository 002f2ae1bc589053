//! The proxies of `[[forward]]`: started, changed and stopped as the configuration says.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::passed::Passed;
use crate::datapath;
use crate::forward::{self, Common, Config, Discover, Error, Listener, Mode, Report};

/// All listeners. Those of the same address are the same, whatever else changes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwarding {
    common: Arc<Common>,
    passed: Arc<Passed>,
    listeners: Arc<Mutex<BTreeMap<SocketAddr, Listener>>>,
    retired: Arc<Retired>,
}

/// Listeners that were taken away, each for as long as it has connections, and its deregistration delay at most.
#[derive(Debug, Default)]
struct Retired {
    /// Each has a receiver, and does not wait any longer when it is told to.
    hurry: watch::Sender<()>,
    /// When the last of them has ended, at the latest.
    until: Mutex<Option<Instant>>,
}

/// Listeners that are to be, with the sockets of the new ones. Clients may connect to these already, and wait.
#[derive(Debug)]
pub(super) struct Prepared(Vec<(Config, Option<TcpListener>)>);

impl Forwarding {
    /// One that takes sockets of `passed`, where they are of a listener's address, instead of binding, and has `discover`
    /// find the targets that are known by a name.
    pub(super) fn new(passed: Passed, discover: Arc<dyn Discover>) -> Self {
        let common = Common { discover, ..Common::default() };
        Self { common: Arc::new(common), passed: Arc::new(passed), ..Self::default() }
    }

    /// Who finds targets that are known by a name.
    pub(super) fn discover(&self) -> Arc<dyn Discover> {
        Arc::clone(&self.common.discover)
    }

    /// Binds what is new. Nothing has changed yet.
    ///
    /// # Errors
    /// An address cannot be listened on, or what TLS needs is not there.
    pub(super) fn prepare(&self, wanted: &[Config]) -> Result<Prepared, Error> {
        let running = self.lock();
        let prepare = |(index, config): (usize, &Config)| {
            let known = running.get(&config.listen).and_then(|listener| listener.config().tls.clone());
            // Files that are in use already may be bad by now: that is no reason to change nothing else.
            if let Some(tls) = config.tls.as_ref().filter(|tls| known.as_ref() != Some(tls)) {
                let entry = format!("forward[{index}]");
                forward::tls::check(tls).map_err(|error| Error::Tls { entry, error })?;
            }
            if running.contains_key(&config.listen) {
                return Ok((config.clone(), None));
            }
            let failed = |source| Error::Listen { name: config.name.clone(), address: config.listen, source };
            let passed = self.passed.get(config.listen).map_err(failed)?;
            let socket = passed.map_or_else(|| forward::bind(config.listen), Ok).map_err(failed)?;
            Ok((config.clone(), Some(socket)))
        };
        let proxies = wanted.iter().enumerate().filter(|(_, config)| config.mode == Mode::Proxy);
        proxies.map(prepare).collect::<Result<_, _>>().map(Prepared)
    }

    /// Makes those that were prepared the running ones. Others take no more connections; what they have may go on for
    /// their deregistration delay. Needs a tokio runtime.
    ///
    /// # Errors
    /// The system's randomness, or a configuration that is not usable, of which [`crate::config`] lets none through. The
    /// listener that it is about stays as it was, or is not there; the others are as wanted.
    pub(super) fn adopt(&self, prepared: Prepared) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut running = self.lock();
        let mut left = std::mem::take(&mut *running);
        let mut outcome = Ok(());
        for (config, socket) in prepared.0 {
            let listen = config.listen;
            let listener = match (left.remove(&listen), socket) {
                (Some(there), _) => {
                    if let Err(error) = there.reconfigure(config) {
                        outcome = Err(error.into());
                    }
                    there
                }
                (None, Some(socket)) => match self.start(config, socket) {
                    Ok(listener) => listener,
                    Err(error) => {
                        outcome = Err(error);
                        continue;
                    }
                },
                (None, None) => continue,
            };
            running.insert(listen, listener);
        }
        for (listen, listener) in left {
            tracing::info!(%listen, "listener closed, its connections may go on for a while");
            self.retired.take_in(listener);
        }
        outcome
    }

    fn start(
        &self,
        config: Config,
        socket: TcpListener,
    ) -> Result<Listener, Box<dyn std::error::Error + Send + Sync>> {
        tracing::info!(listener = config.name, listen = %config.listen, targets = config.targets.len(), "listening");
        Ok(Listener::start(config, socket, Arc::clone(&self.common), datapath::random_seed()?)?)
    }

    /// Takes no more connections, and waits until the last has ended, also of the listeners that were taken away before:
    /// each may go on for its listener's deregistration delay.
    pub(super) async fn stop(&self) {
        self.retire();
        self.retired.hurry.closed().await;
    }

    /// Ends all connections.
    pub(super) async fn cut(&self) {
        self.retire();
        self.retired.hurry.send_replace(());
        self.retired.hurry.closed().await;
    }

    fn retire(&self) {
        for listener in std::mem::take(&mut *self.lock()).into_values() {
            self.retired.take_in(listener);
        }
    }

    /// How long connections may go on when the daemon stops, if there are any: until then all of [`Self::stop`] is over.
    pub(super) fn grace(&self) -> Duration {
        let listeners = self.lock();
        let open = listeners.values().filter(|listener| listener.report().admission.open > 0);
        let longest = open.map(|listener| listener.config().group.deregistration_delay).max();
        longest.unwrap_or_default().max(self.retired.grace())
    }

    /// All listeners, by address.
    pub(super) fn reports(&self) -> Vec<Report> {
        self.lock().values().map(Listener::report).collect()
    }

    /// Takes a target out of service, or back into it: whether there is such a target, if there is such a listener.
    pub(super) fn set_draining(&self, name: &str, target: SocketAddr, draining: bool) -> Option<bool> {
        let listeners = self.lock();
        let named = listeners.values().find(|listener| listener.config().name == name);
        named.map(|listener| listener.set_draining(target, draining))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Retired {
    /// Has a listener take no more connections.
    fn take_in(&self, mut listener: Listener) {
        let mut hurry = self.hurry.subscribe();
        let grace = listener.config().group.deregistration_delay;
        let end = Instant::now() + grace;
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(Some(end));
        tokio::spawn(async move {
            let over = async {
                tokio::select! {
                    () = sleep(grace) => {}
                    _ = hurry.changed() => {}
                }
            };
            listener.stop(over).await;
            drop((listener, hurry));
        });
    }

    /// How long the last of them may still have connections, if there are any.
    fn grace(&self) -> Duration {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = until.filter(|_| self.hurry.receiver_count() > 0);
        until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default()
    }
}
