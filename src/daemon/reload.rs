//! `SIGHUP`, and news of the cloud: a new configuration under running sessions. A bad one changes nothing.

use std::net::SocketAddr;

use super::services::address;
use super::{Running, external, facts, has_proxies, served, warn_unserved, with_causes};
use crate::admin::Description;
use crate::config::{self, Admin, Aws, CloudFacts, Config, Failover, HostFacts, Resolved, Switch};
use crate::forward::{Config as Forward, Mode};
use crate::nat;

impl Running {
    /// Reads the file and the tags again and applies what can be applied; says what needs a restart.
    pub(super) async fn reload(&mut self) {
        self.manager.reloading();
        let outcome = self.read_again().await;
        for problem in outcome.as_ref().err().into_iter().flatten() {
            tracing::error!(problem, "configuration not reloaded");
        }
        self.manager.reloaded(outcome.as_ref().map_err(|problems| problems.join("; ")).err());
        self.cloud.refresh();
    }

    async fn read_again(&mut self) -> Result<(), Vec<String>> {
        tracing::info!(file = %self.sources.file().display(), "reloading the configuration");
        let config = self.sources.load(&self.proc).await;
        let config = config.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        log_settings(&config);
        log_warnings(&config);
        self.adopt(config).await?;
        // Even if nothing else has changed, the key may have.
        if let Some(failover) = &self.config.failover {
            self.gateways.configure(failover);
        }
        tracing::info!("configuration reloaded");
        Ok(())
    }

    /// Applies what the cloud has told since it was last looked at.
    pub(super) async fn follow_cloud(&mut self) {
        self.description.send_modify(|description| {
            description.source_dest_check = self.cloud.source_dest_check();
            description.aws = self.cloud.report();
            let fails = description.aws.as_ref().is_some_and(|aws| !aws.failures.is_empty());
            let since = description.aws_failing_since;
            description.aws_failing_since = fails.then(|| since.unwrap_or_else(tokio::time::Instant::now));
        });
        let applied = self.cloud.applied();
        if applied == self.applied {
            return;
        }
        let before = self.description.borrow().nat.clone();
        if let Err(problems) = self.adopt(self.config.clone()).await {
            self.applied = applied;
            for problem in problems {
                tracing::error!(problem, "changed identity not applied");
            }
        } else {
            let nat = &self.description.borrow().nat;
            if *nat != before {
                tracing::info!(external = external(nat), internal = ?nat.internal, "changed identity applied");
            }
        }
    }

    /// Makes what a configuration means now, with what the host and the cloud tell, the running one.
    pub(super) async fn adopt(&mut self, mut config: Config) -> Result<(), Vec<String>> {
        let kept = keep_modes(&self.config.forward, &mut config.forward);
        let running = self.description.borrow().clone();
        let applied = self.cloud.applied();
        // Their sockets count among the host's, whose ports are not NAT's.
        let forward = if self.draining.is_some() { Vec::new() } else { config.forward.clone() };
        let listeners = self.forwarding.prepare(&forward).map_err(|error| vec![with_causes(&error)])?;
        let mut resolved = self.resolve(&config, &running, applied.0.clone())?;
        warn_unserved(&config, &resolved);
        let open = self.services.open().await.map_err(|stopped| vec![stopped.to_string()])?;
        let retired = retired(&running.nat.services, &resolved.nat, &config, &open);
        resolved.nat.services.extend(retired);
        // That the worker has gone is about to be seen by the supervisor too.
        let bypass = resolved.datapath.bypass.clone();
        self.services.configure(&served(&forward)).map_err(|error| vec![error.to_string()])?;
        let reconfigured = self.handle.reconfigure(resolved.nat.clone(), bypass.clone()).await;
        reconfigured
            .map_err(|stopped| vec![stopped.to_string()])?
            .map_err(|refused| vec![refused.to_string()])?;
        self.forwarding.adopt(listeners).map_err(|error| vec![error.to_string()])?;
        for (key, old, new) in self.frozen(&config, &running) {
            tracing::warn!(key, old, new, "change takes effect only after a restart");
        }
        for (listener, old, new) in kept {
            let (key, old, new) = ("forward.mode", old.label(), new.label());
            tracing::warn!(
                key,
                listener,
                old,
                new,
                "change takes effect only after a restart, and so does all else of this listener"
            );
        }
        // What is frozen is compared with what runs.
        let (Aws { enabled, hooks, .. }, listen) = (self.config.aws.clone(), self.config.admin.listen);
        let (aws, admin) = (Aws { enabled, hooks, ..config.aws }, Admin { listen, ..config.admin });
        // Whether there is a fleet, and this instance's name in it, are frozen as well.
        let failover = match (&self.config.failover, config.failover) {
            (Some(ours), Some(new)) => Some(Failover { gateway: ours.gateway.clone(), ..new }),
            (ours, _) => ours.clone(),
        };
        self.config = Config { aws, failover, admin, ..config };
        self.cloud.want(&self.config.aws);
        self.session_log.configure(&self.config.session_log);
        self.applied = applied;
        self.description.send_modify(|description| {
            description.nat = resolved.nat;
            description.config.bypass = bypass;
            description.nat_gateway_price_per_gb = self.config.admin.nat_gateway_price_per_gb.dollars();
        });
        Ok(())
    }

    /// What a configuration means with the interfaces that are in use.
    fn resolve(
        &mut self,
        config: &Config,
        running: &Description,
        cloud: Option<CloudFacts>,
    ) -> Result<Resolved, Vec<String>> {
        let one = |error: &dyn std::error::Error| vec![with_causes(error)];
        self.settings.separate_ports(&config.nat.port_range).map_err(|error| one(&error))?;
        if has_proxies(config) {
            self.settings.reuse_ports().map_err(|error| one(&error))?;
        }
        let interfaces = [&*running.config.external.name, &*running.config.internal.name];
        self.settings.stop_forwarding(&interfaces).map_err(|error| one(&error))?;
        let host = HostFacts { cloud, ..facts(&self.proc).map_err(|error| one(&error))? };
        let mut config = config.clone();
        config.nat.external_interface = Some(running.config.external.name.clone());
        config.nat.internal_interface = Some(running.config.internal.name.clone());
        let errors = |errors: Vec<config::ResolveError>| errors.iter().map(ToString::to_string).collect();
        config::resolve(&config, &host).map_err(errors)
    }

    /// What differs from what runs and stays as it is: key, running value, value of the file.
    fn frozen(&self, config: &Config, running: &Description) -> Vec<(&'static str, String, String)> {
        let mut frozen = Vec::new();
        let mut compare = |key, old: String, new: String| {
            if old != new {
                frozen.push((key, old, new));
            }
        };
        let external = &running.config.external.name;
        let internal = &running.config.internal.name;
        if let Some(name) = &config.nat.external_interface {
            compare("nat.external_interface", external.clone(), name.clone());
        }
        let new_internal = config.nat.internal_interface.as_ref().or(config.nat.external_interface.as_ref());
        if let Some(name) = new_internal {
            compare("nat.internal_interface", internal.clone(), name.clone());
        } else if self.config.nat.internal_interface.is_some() {
            compare("nat.internal_interface", internal.clone(), external.clone());
        }
        let (datapath, adjust_mtu) = (running.config.datapath, running.config.xdp.adjust_mtu);
        compare("datapath", datapath.label().to_owned(), config.datapath.label().to_owned());
        compare("xdp.adjust_mtu", adjust_mtu.to_string(), config.xdp.adjust_mtu.to_string());
        compare("aws.enabled", switch(self.config.aws.enabled), switch(config.aws.enabled));
        let hook = |hook: &Option<String>| hook.clone().unwrap_or_else(|| "none".to_owned());
        let (ours, new) = (&self.config.aws.hooks, &config.aws.hooks);
        compare("aws.launching_hook", hook(&ours.launching), hook(&new.launching));
        compare("aws.terminating_hook", hook(&ours.terminating), hook(&new.terminating));
        let listen = |listen: Option<SocketAddr>| listen.map_or("off".to_owned(), |listen| listen.to_string());
        compare("admin.listen", listen(self.config.admin.listen), listen(config.admin.listen));
        let gateway = |config: &Config| {
            config.failover.as_ref().map_or_else(|| "none".to_owned(), |failover| failover.gateway.clone())
        };
        compare("failover.gateway", gateway(&self.config), gateway(config));
        if self.options.socket.is_none() {
            let path = |path: &std::path::Path| path.display().to_string();
            compare("admin.socket", path(self.socket.path()), path(&config.admin.socket));
        }
        frozen
    }
}

/// Has listeners whose address stays go on as they are if another mode is wanted: nobody can take over connections from
/// the proxy, or from the engine. Only the name is the new one, which no other listener has. Gives them, with the mode that
/// they have and the one that is wanted.
fn keep_modes(running: &[Forward], wanted: &mut [Forward]) -> Vec<(String, Mode, Mode)> {
    let mut kept = Vec::new();
    for listener in wanted {
        let is_other = |running: &&Forward| {
            running.listen == listener.listen && (running.mode == Mode::Proxy) != (listener.mode == Mode::Proxy)
        };
        let Some(running) = running.iter().find(is_other) else { continue };
        let old = Forward { name: listener.name.clone(), ..running.clone() };
        kept.push((listener.name.clone(), running.mode, listener.mode));
        *listener = old;
    }
    kept
}

/// The services that there are no more, but for connections that may go on for a while: their ports have to stay NAT's.
/// Those at an address that is no external one any more have ended.
fn retired(
    running: &[nat::Service],
    wanted: &nat::Config,
    config: &Config,
    open: &[SocketAddr],
) -> Vec<nat::Service> {
    let is_gone = |service: &&nat::Service| {
        let taken = config
            .forward
            .iter()
            .any(|forward| forward.mode == Mode::Proxy && forward.listen.port() == service.external.port);
        let is_ours = wanted.external_addresses.iter().any(|ours| ours.private == service.external.address);
        is_ours && !taken && wanted.services.iter().all(|wanted| wanted.external != service.external)
    };
    let gone = running.iter().filter(is_gone).filter(|service| open.contains(&address(service.listener())));
    gone.map(|service| nat::Service { retired: true, ..*service }).collect()
}

fn switch(switch: Switch) -> String {
    match switch {
        Switch::Auto => "auto",
        Switch::On => "true",
        Switch::Off => "false",
    }
    .to_owned()
}

/// Says what is not set where an operator looks first.
pub(super) fn log_settings(config: &Config) {
    for set in &config.set {
        tracing::info!(key = set.key, by = %set.origin, "configuration key is set outside of the file");
    }
}

/// Says what is doubtful in a file that is used all the same.
pub(super) fn log_warnings(config: &Config) {
    for problem in &config.warnings {
        tracing::warn!(%problem, "configuration is doubtful");
    }
}
