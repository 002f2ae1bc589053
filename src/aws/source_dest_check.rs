//! The source/destination check of one network interface: off, and put back off whenever it drifts. With the
//! check on, EC2 drops every packet that we forward.
//!
//! Observes with `DescribeNetworkInterfaces` and writes with `ModifyNetworkInterfaceAttribute` only when the check
//! is seen on. The SDK's own retries are off: one request an attempt, at a rate that is decided here.

use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::AttributeBooleanValue;
use tokio::sync::watch;
use tokio::time::Instant;

/// Keeps the check of one interface off for as long as [`run`](Self::run) is polled.
#[derive(Debug)]
pub struct SourceDestCheck {
    client: Client,
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
        let config = aws_sdk_ec2::config::Builder::from(config)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(timing.call_timeout).build())
            .build();
        let client = Client::from_conf(config);
        Self { client, eni: eni.to_owned(), timing, state: watch::Sender::new(State::Unknown) }
    }

    /// The state as it changes. The sender goes when `run`'s future is dropped.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Observes and mends for ever; drop the future to stop. Needs a tokio runtime with time and IO.
    pub async fn run(self) {
        let mut failures = 0;
        let mut was_off = false;
        let mut logged: Option<(String, Instant)> = None;
        loop {
            let wait = match self.pass().await {
                Ok(switched) => {
                    let eni = &self.eni;
                    match (switched, was_off) {
                        (true, true) => {
                            tracing::warn!(eni, "source/dest check had been switched on, off again");
                        }
                        (true, false) => tracing::info!(eni, "source/dest check switched off"),
                        (false, false) => tracing::info!(eni, "source/dest check is off"),
                        (false, true) if failures > 0 => tracing::info!(eni, "source/dest check is still off"),
                        (false, true) => {}
                    }
                    (failures, was_off, logged) = (0, true, None);
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
                    failures += 1;
                    backoff(&self.timing, failures, RandomState::new().hash_one(failures))
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether the check was on and had to be switched off.
    async fn pass(&self) -> Result<bool, Failure> {
        let request = self.client.describe_network_interfaces().network_interface_ids(&self.eni);
        let answer = request.send().await.map_err(|error| failure("ec2:DescribeNetworkInterfaces", &error))?;
        let is_on = answer
            .network_interfaces()
            .iter()
            .find(|interface| interface.network_interface_id() == Some(&self.eni))
            .and_then(aws_sdk_ec2::types::NetworkInterface::source_dest_check)
            .ok_or(Failure::NotShown)?;
        if is_on {
            let off = AttributeBooleanValue::builder().value(false).build();
            let request = self.client.modify_network_interface_attribute().network_interface_id(&self.eni);
            let answer = request.source_dest_check(off).send().await;
            answer.map_err(|error| failure("ec2:ModifyNetworkInterfaceAttribute", &error))?;
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

/// Why a pass failed; `action` is named as in an IAM policy.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the instance's role does not allow {action}")]
    Unauthorized { action: &'static str },
    #[error("{action} failed: {reason}")]
    Call { action: &'static str, reason: String },
    #[error("ec2:DescribeNetworkInterfaces does not show the interface's source/dest check")]
    NotShown,
}

fn failure<E>(action: &'static str, error: &SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let reason = match (error.code(), error.message()) {
        // Its message is an encoded blob without use for a reader.
        (Some("UnauthorizedOperation"), _) => return Failure::Unauthorized { action },
        (Some(code), message) => format!("{code}: {}", message.unwrap_or_default()),
        (None, _) => causes(error),
    };
    Failure::Call { action, reason: reason.chars().take(MAX_REASON_CHARS).collect() }
}

/// The messages of an error and of what caused it: the SDK's outermost one says only "dispatch failure".
fn causes(error: &dyn StdError) -> String {
    let mut chain = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        chain.push_str(": ");
        chain.push_str(&error.to_string());
        cause = error.source();
    }
    chain
}

/// The wait after `failures` failures in a row, at least one. `random` spreads it, so that instances that failed
/// together do not come back together.
fn backoff(timing: &Timing, failures: u32, random: u64) -> Duration {
    let doubled = timing.backoff.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
    let longest = doubled.min(timing.max_backoff);
    let thousandths = 500 + u32::try_from(random % 501).unwrap_or(0);
    longest * thousandths / 1000
}

const MAX_REASON_CHARS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_limit_and_is_spread_over_the_upper_half() {
        let timing = Timing::default();
        assert_eq!(backoff(&timing, 1, 500), Duration::from_secs(1));
        assert_eq!(backoff(&timing, 1, 0), Duration::from_millis(500));
        assert_eq!(backoff(&timing, 4, 500), Duration::from_secs(8));
        assert_eq!(backoff(&timing, 7, 500), Duration::from_mins(1));
        assert_eq!(backoff(&timing, u32::MAX, 500), Duration::from_mins(1));
        assert_eq!(backoff(&timing, u32::MAX, 0), Duration::from_secs(30));
    }
}
