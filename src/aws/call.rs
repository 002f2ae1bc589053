//! How every API call is made: once, within a time, counted, and with an error that says what to do.
//!
//! The SDK's own retries are off: when to try again is decided by whoever calls, with [`Backoff`].

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

/// How calls have gone so far, by action and outcome. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    counts: Arc<Mutex<BTreeMap<(&'static str, Outcome), u64>>>,
}

/// How a call has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    Done,
    /// The instance's role lacks the action.
    Unauthorized,
    /// Too many calls, of this instance or of others in the account.
    Throttled,
    /// There is no such resource, or it is not in a state for this.
    Refused,
    /// No answer, or none that can be understood: the network, or the service.
    Unavailable,
}

impl Outcome {
    /// In snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unauthorized => "unauthorized",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why a call has failed; `action` is named as in an IAM policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the instance's role does not allow {action}")]
    Unauthorized { action: &'static str },
    #[error("{action} is throttled: {code}")]
    Throttled { action: &'static str, code: String },
    #[error("{action} refused: {code}: {message}")]
    Refused { action: &'static str, code: String, message: String },
    #[error("{action} has no answer: {reason}")]
    Unavailable { action: &'static str, reason: String },
}

impl Failure {
    /// What it counts as.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Unauthorized { .. } => Outcome::Unauthorized,
            Self::Throttled { .. } => Outcome::Throttled,
            Self::Refused { .. } => Outcome::Refused,
            Self::Unavailable { .. } => Outcome::Unavailable,
        }
    }

    /// EC2's error code, of a call that was refused.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl Calls {
    /// Makes a call, and counts it.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn make<T, E>(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let result = call.await.map_err(|error| failure(action, &error));
        self.count(action, &result);
        result
    }

    /// Counts a call that was made otherwise.
    pub(super) fn count<T>(&self, action: &'static str, result: &Result<T, Failure>) {
        let outcome = result.as_ref().map_or_else(Failure::outcome, |_| Outcome::Done);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((action, outcome)).or_default() += 1;
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(&'static str, Outcome), u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// `config`, with one try a call, which may take `within` in all: from fetching credentials to the answer's last byte.
#[must_use]
pub fn once(config: &SdkConfig, within: Duration) -> SdkConfig {
    config
        .to_builder()
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(within).build())
        .build()
}

/// How long to wait after failures in a row: doubled by each, and shortened by up to half at random, so that instances
/// that failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// From `first` to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.wait(RandomState::new().hash_one(self.failures))
    }

    /// It has gone well; gives whether it had failed before.
    pub const fn succeeded(&mut self) -> bool {
        let had_failed = self.failures > 0;
        self.failures = 0;
        had_failed
    }

    fn wait(&self, random: u64) -> Duration {
        let doublings = self.failures.saturating_sub(1);
        let doubled = self.first.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let thousandths = 500 + u32::try_from(random % 501).unwrap_or(0);
        doubled.min(self.longest) * thousandths / 1000
    }
}

fn failure<E>(action: &'static str, error: &SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let Some(code) = error.code() else {
        return Failure::Unavailable { action, reason: shortened(&causes(error)) };
    };
    of_code(action, code, error.message().unwrap_or_default())
}

/// What a service means by an error's code.
pub(super) fn of_code(action: &'static str, code: &str, message: &str) -> Failure {
    match code {
        // Its message is an encoded blob without use for a reader.
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => Failure::Unauthorized { action },
        _ if THROTTLING.contains(&code) => Failure::Throttled { action, code: shortened(code) },
        _ if UNAVAILABLE.contains(&code) => {
            Failure::Unavailable { action, reason: shortened(&format!("{code}: {message}")) }
        }
        _ => Failure::Refused { action, code: shortened(code), message: shortened(message) },
    }
}

/// The messages of an error and of what caused it: the SDK's outermost one says only "dispatch failure".
pub(super) fn causes(error: &dyn StdError) -> String {
    let causes = std::iter::successors(error.source(), |cause: &&dyn StdError| (**cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_CHARS).collect()
}

/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html> and the codes that other services use.
const THROTTLING: &[&str] = &[
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "EC2ThrottledException",
    "TooManyRequestsException",
];
/// Errors of the server, <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>.
const UNAVAILABLE: &[&str] =
    &["InternalError", "InternalFailure", "InternalServerError", "ServiceUnavailable", "Unavailable"];
const MAX_CHARS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_limit_and_is_spread_over_the_upper_half() {
        let wait = |failures, random| {
            Backoff { failures, ..Backoff::new(Duration::from_secs(1), Duration::from_mins(1)) }.wait(random)
        };
        assert_eq!(wait(1, 500), Duration::from_secs(1));
        assert_eq!(wait(1, 0), Duration::from_millis(500));
        assert_eq!(wait(4, 500), Duration::from_secs(8));
        assert_eq!(wait(7, 500), Duration::from_mins(1));
        assert_eq!(wait(u32::MAX, 500), Duration::from_mins(1));
        assert_eq!(wait(u32::MAX, 0), Duration::from_secs(30));
    }

    #[test]
    fn backoff_begins_anew_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        assert!(!backoff.succeeded());
        let first = backoff.failed();
        let _ = (backoff.failed(), backoff.failed());
        assert!(backoff.succeeded());
        assert!(backoff.failed() <= Duration::from_secs(1) && first <= Duration::from_secs(1));
    }
}
