//! Instances that have a tag, as targets to forward to: their private addresses in one VPC.
//!
//! However many listeners ask for a tag, EC2 is asked at most once a minute, and after failures at growing intervals;
//! in between, whoever asks is given the last answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{Filter, Reservation};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::call::{Backoff, Calls, Failure, once};

/// Finds the running instances of one VPC by their tags.
#[derive(Debug)]
pub struct TaggedInstances {
    client: Client,
    calls: Calls,
    vpc: String,
    pace: Pace,
    /// By key and value. Who asks waits for who asked before: there are few, and they want the same.
    known: Mutex<BTreeMap<(String, String), Known>>,
}

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long an answer holds.
    pub interval: Duration,
    /// For one API call in all.
    pub call_timeout: Duration,
    /// The wait after the first failure; doubled by each further one, up to the interval.
    pub backoff: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(1),
            call_timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
        }
    }
}

#[derive(Debug)]
struct Known {
    answer: Result<BTreeSet<Ipv4Addr>, Failure>,
    until: Instant,
    backoff: Backoff,
}

impl TaggedInstances {
    /// Of the VPC `vpc`, with the credentials, region and endpoint of `config`. Makes no request yet.
    #[must_use]
    pub fn new(config: &SdkConfig, vpc: &str, calls: Calls, pace: Pace) -> Self {
        let client = Client::new(&once(config, pace.call_timeout));
        Self { client, calls, vpc: vpc.to_owned(), pace, known: Mutex::default() }
    }

    /// The primary private addresses of the running instances that have this tag, and how long that holds.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn find(&self, key: &str, value: &str) -> Result<(BTreeSet<Ipv4Addr>, Duration), Failure> {
        let mut known = self.known.lock().await;
        let new = || Known {
            answer: Ok(BTreeSet::new()),
            until: Instant::now(),
            backoff: Backoff::new(self.pace.backoff, self.pace.interval),
        };
        let known = known.entry((key.to_owned(), value.to_owned())).or_insert_with(new);
        if known.until <= Instant::now() {
            known.answer = self.ask(key, value).await;
            let holds = if known.answer.is_ok() {
                known.backoff.succeeded();
                self.pace.interval
            } else {
                known.backoff.failed()
            };
            known.until = Instant::now() + holds;
        }
        let holds = known.until.saturating_duration_since(Instant::now());
        known.answer.clone().map(|addresses| (addresses, holds))
    }

    async fn ask(&self, key: &str, value: &str) -> Result<BTreeSet<Ipv4Addr>, Failure> {
        let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
        let mut addresses = BTreeSet::new();
        let mut next = None;
        for _ in 0..MOST_PAGES {
            let request = self
                .client
                .describe_instances()
                .filters(filter(&format!("tag:{key}"), &literal(value)))
                .filters(filter("vpc-id", &self.vpc))
                .filters(filter("instance-state-name", "running"))
                .max_results(PAGE)
                .set_next_token(next);
            let answer = self.calls.make(ACTION, request.send()).await?;
            for instance in answer.reservations().iter().flat_map(Reservation::instances) {
                let Some(address) = instance.private_ip_address() else { continue };
                let address = address.parse().map_err(|_| unclear("an address that is none"))?;
                if instance.vpc_id() == Some(&self.vpc) {
                    addresses.insert(address);
                }
            }
            next = answer.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(addresses);
            }
        }
        Err(unclear("more instances than can be targets"))
    }
}

/// A value as a filter takes it, in which `*` and `?` stand for anything.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>
fn literal(value: &str) -> String {
    let escaped = |c: char| matches!(c, '*' | '?' | '\\').then_some('\\').into_iter().chain([c]);
    value.chars().flat_map(escaped).collect()
}

fn unclear(reason: &str) -> Failure {
    Failure::Unavailable { action: ACTION, reason: reason.to_owned() }
}

const ACTION: &str = "ec2:DescribeInstances";
/// The most that EC2 gives at once.
const PAGE: i32 = 1000;
const MOST_PAGES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_for_itself_alone() {
        assert_eq!(literal("api"), "api");
        assert_eq!(literal("a*b?c\\d"), "a\\*b\\?c\\\\d");
    }
}
