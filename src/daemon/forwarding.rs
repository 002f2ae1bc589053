//! The proxies of `[[forward]]`: started, changed and stopped as the configuration says.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::passed::Passed;
use crate::datapath;
use crate::forward::{self, Common, Config, Discover, Error, Listener, Mode, Report};

/// All listeners. Those of the same address are the same, whatever else changes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwarding {
    common: Arc<Common>,
    passed: Arc<Passed>,
    listeners: Arc<Mutex<BTreeMap<SocketAddr, Running>>>,
}

#[derive(Debug)]
struct Running {
    listener: Listener,
    /// How long its connections may go on when it is taken away.
    grace: Duration,
}

/// Listeners that are to be, with the sockets of the new ones. Clients may connect to these already, and wait.
#[derive(Debug)]
pub(super) struct Prepared(Vec<(Config, Option<TcpListener>)>);

impl Forwarding {
    /// One that takes sockets of `passed`, where they are of a listener's address, instead of binding.
    pub(super) fn new(passed: Passed) -> Self {
        Self { passed: Arc::new(passed), ..Self::default() }
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
            let known = running.get(&config.listen).and_then(|running| running.listener.tls());
            // Files that are in use already may be bad by now: that is no reason to change nothing else.
            if let Some(tls) = config.tls.as_ref().filter(|tls| known.as_ref() != Some(tls)) {
                let entry = format!("forward[{index}]");
                forward::tls::check(tls).map_err(|error| Error::Tls { entry, error })?;
            }
            if running.contains_key(&config.listen) {
                return Ok((config.clone(), None));
            }
            let failed = |source| Error::Listen { address: config.listen, source };
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
            let (listen, grace) = (config.listen, config.group.deregistration_delay);
            let listener = match (left.remove(&listen), socket) {
                (Some(there), _) => {
                    if let Err(error) = there.listener.reconfigure(config) {
                        outcome = Err(error.into());
                    }
                    there.listener
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
            running.insert(listen, Running { listener, grace });
        }
        for (listen, Running { listener, grace }) in left {
            tracing::info!(%listen, "listener closed, its connections may go on for a while");
            tokio::spawn(listener.stop(grace));
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

    /// Takes no more connections, and lets those that are there go on for `grace`.
    pub(super) async fn stop(&self, grace: Duration) {
        let mut stopping = JoinSet::new();
        for (_, running) in std::mem::take(&mut *self.lock()) {
            stopping.spawn(running.listener.stop(grace));
        }
        while stopping.join_next().await.is_some() {}
    }

    /// How long connections may go on when the daemon stops: the longest of the deregistration delays, if there are
    /// any connections.
    pub(super) fn grace(&self) -> Duration {
        let listeners = self.lock();
        let open = listeners.values().filter(|running| running.listener.report().admission.open > 0);
        open.map(|running| running.grace).max().unwrap_or_default()
    }

    /// All listeners, by address.
    pub(super) fn reports(&self) -> Vec<Report> {
        self.lock().values().map(|running| running.listener.report()).collect()
    }

    /// Takes a target out of service, or back into it: whether there is such a target, if there is such a listener.
    pub(super) fn set_draining(&self, name: &str, target: SocketAddr, draining: bool) -> Option<bool> {
        let listeners = self.lock();
        let named = listeners.values().find(|running| running.listener.report().name == name);
        named.map(|running| running.listener.set_draining(target, draining))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Running>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
