//! The source/destination check of one network interface: off, and put back off whenever it drifts. With the
//! check on, EC2 drops every packet that we forward.
//!
//! Observes with `DescribeNetworkInterfaces` and writes with `ModifyNetworkInterfaceAttribute` only when the check
//! is seen on. The SDK's own retries are off: one request an attempt, at a rate that is decided here.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::AttributeBooleanValue;
use tokio::sync::watch;
use tokio::time::Instant;

use super::call::{self, Backoff, Calls, once};

/// Keeps the check of one interface off for as long as [`run`](Self::run) is polled.
#[derive(Debug)]
pub struct SourceDestCheck {
    client: Client,
    calls: Calls,
    eni: String,
    timing: Timing,
    state: watch::Sender<State>,
}

/// What is known of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not asked yet.
    Unknown,
    /// Seen off, or switched off by us, in the last pass.
    Off,
    /// The last pass failed, for this reason; the check may be on. Tried again.
    Failed(String),
}

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two passes that went well.
    pub interval: Duration,
    /// For one API call in all, from fetching credentials to the answer's last byte.
    pub call_timeout: Duration,
    /// The wait after the first failure; doubled by each further one, and shortened by up to half at random.
    pub backoff: Duration,
    pub max_backoff: Duration,
    /// How often a failure that stays the same is logged again.
    pub log_again: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(1),
            call_timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_mins(1),
            log_again: Duration::from_mins(10),
        }
    }
}

impl SourceDestCheck {
    /// For the interface `eni`, with the credentials, region and endpoint of `config`. Makes no request yet.
    #[must_use]
    pub fn new(config: &SdkConfig, eni: &str, timing: Timing) -> Self {
        let client = Client::new(&once(config, timing.call_timeout));
        Self {
            client,
            calls: Calls::default(),
            eni: eni.to_owned(),
            timing,
            state: watch::Sender::new(State::Unknown),
        }
    }

    /// The state as it changes. The sender goes when `run`'s future is dropped.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Observes and mends for ever; drop the future to stop. Needs a tokio runtime with time and IO.
    pub async fn run(self) {
        let mut backoff = Backoff::new(self.timing.backoff, self.timing.max_backoff);
        let mut was_off = false;
        let mut logged: Option<(String, Instant)> = None;
        loop {
            let wait = match self.pass().await {
                Ok(switched) => {
                    let eni = &self.eni;
                    let had_failed = backoff.succeeded();
                    match (switched, was_off) {
                        (true, true) => {
                            tracing::warn!(eni, "source/dest check had been switched on, off again");
                        }
                        (true, false) => tracing::info!(eni, "source/dest check switched off"),
                        (false, false) => tracing::info!(eni, "source/dest check is off"),
                        (false, true) if had_failed => tracing::info!(eni, "source/dest check is still off"),
                        (false, true) => {}
                    }
                    (was_off, logged) = (true, None);
                    self.set(State::Off);
                    self.timing.interval
                }
                Err(error) => {
                    let reason = error.to_string();
                    let is_news = logged
                        .as_ref()
                        .is_none_or(|(last, at)| *last != reason || at.elapsed() >= self.timing.log_again);
                    if is_news {
                        tracing::error!(eni = self.eni, %error, "source/dest check cannot be kept off");
                        logged = Some((reason.clone(), Instant::now()));
                    }
                    self.set(State::Failed(reason));
                    backoff.failed()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether the check was on and had to be switched off.
    async fn pass(&self) -> Result<bool, Failure> {
        let request = self.client.describe_network_interfaces().network_interface_ids(&self.eni);
        let answer = self.calls.make("ec2:DescribeNetworkInterfaces", request.send()).await?;
        let is_on = answer
            .network_interfaces()
            .iter()
            .find(|interface| interface.network_interface_id() == Some(&self.eni))
            .and_then(aws_sdk_ec2::types::NetworkInterface::source_dest_check)
            .ok_or(Failure::NotShown)?;
        if is_on {
            let off = AttributeBooleanValue::builder().value(false).build();
            let request = self.client.modify_network_interface_attribute().network_interface_id(&self.eni);
            let request = request.source_dest_check(off).send();
            self.calls.make("ec2:ModifyNetworkInterfaceAttribute", request).await?;
        }
        Ok(is_on)
    }

    fn set(&self, state: State) {
        self.state.send_if_modified(|current| {
            let is_new = *current != state;
            *current = state;
            is_new
        });
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Call(#[from] call::Failure),
    #[error("ec2:DescribeNetworkInterfaces does not show the interface's source/dest check")]
    NotShown,
}
