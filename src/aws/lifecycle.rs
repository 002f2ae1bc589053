//! The instance's part in the lifecycle of its Auto Scaling group: it says when it is ready to serve, and when it is
//! ready to end, where hooks of the group wait for that.
//!
//! Nothing is taken for granted: what state the group has the instance in is asked first, and asked again after each
//! step, so that an action that was completed by somebody else, or has timed out, is nothing to complain of.
//! <https://docs.aws.amazon.com/autoscaling/ec2/userguide/lifecycle-hooks.html>

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_autoscaling::Client;

use super::call::{Backoff, Calls, Failure, once};

/// The lifecycle of one instance.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    client: Client,
    calls: Calls,
    instance: String,
    timing: Waits,
}

/// How long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// For one API call in all.
    pub call_timeout: Duration,
    /// Before the state is asked for again, after the first time; doubled by each further one.
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(10),
            first: Duration::from_secs(2),
            longest: Duration::from_mins(1),
        }
    }
}

/// What a hook waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    Launching,
    Terminating,
}

/// How a transition went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proceeded {
    /// The hook's action is completed.
    Completed,
    /// Nothing waits, and nothing will: it is over, or the instance is in no group.
    NothingWaits,
}

/// Where the group has the instance.
#[derive(Debug)]
struct Membership {
    group: String,
    state: String,
}

impl Lifecycle {
    /// Of the instance `i-...`, with the credentials, region and endpoint of `config`. Makes no request yet.
    #[must_use]
    pub fn new(config: &SdkConfig, instance: &str, calls: Calls, timing: Waits) -> Self {
        let client = Client::new(&once(config, timing.call_timeout));
        Self { client, calls, instance: instance.to_owned(), timing }
    }

    /// Lets a transition that waits for `hook` go on, as soon as it waits. Tries until that is done, however long that
    /// takes; drop the future to stop.
    pub async fn proceed(&self, transition: Transition, hook: &str) -> Proceeded {
        let mut waits = Backoff::new(self.timing.first, self.timing.longest);
        let mut complained = None;
        loop {
            match self.step(transition, hook).await {
                Ok(Some(proceeded)) => return proceeded,
                Ok(None) => {}
                Err(error) => {
                    let reason = error.to_string();
                    if complained.as_ref() != Some(&reason) {
                        tracing::error!(hook, %error, "lifecycle action not completed, tried again");
                        complained = Some(reason);
                    }
                }
            }
            tokio::time::sleep(waits.failed()).await;
        }
    }

    /// Nothing, if there is something to wait for.
    async fn step(&self, transition: Transition, hook: &str) -> Result<Option<Proceeded>, Failure> {
        let Some(Membership { group, state }) = self.membership().await? else {
            return Ok(Some(Proceeded::NothingWaits));
        };
        let (waits, before): (&str, &[&str]) = match transition {
            Transition::Launching => ("Pending:Wait", &["Pending"]),
            Transition::Terminating => {
                ("Terminating:Wait", &["InService", "Standby", "EnteringStandby", "Terminating"])
            }
        };
        // In a warm pool the states are the same, with a word before them.
        let plain = state.strip_prefix("Warmed:").unwrap_or(&state);
        if before.contains(&plain) {
            return Ok(None);
        }
        if plain != waits {
            return Ok(Some(Proceeded::NothingWaits));
        }
        let request = self
            .client
            .complete_lifecycle_action()
            .auto_scaling_group_name(&group)
            .lifecycle_hook_name(hook)
            .instance_id(&self.instance)
            .lifecycle_action_result("CONTINUE");
        self.calls.make("autoscaling:CompleteLifecycleAction", request.send()).await?;
        tracing::info!(hook, group, state, "lifecycle action completed");
        Ok(Some(Proceeded::Completed))
    }

    async fn membership(&self) -> Result<Option<Membership>, Failure> {
        let action = "autoscaling:DescribeAutoScalingInstances";
        let request = self.client.describe_auto_scaling_instances().instance_ids(&self.instance);
        let answer = self.calls.make(action, request.send()).await?;
        let ours = |instance: &&aws_sdk_autoscaling::types::AutoScalingInstanceDetails| {
            instance.instance_id() == Some(&self.instance)
        };
        let Some(found) = answer.auto_scaling_instances().iter().find(ours) else { return Ok(None) };
        let (Some(group), Some(state)) = (found.auto_scaling_group_name(), found.lifecycle_state()) else {
            let reason = "neither group nor state of the instance".to_owned();
            return Err(Failure::Unavailable { action, reason });
        };
        Ok(Some(Membership { group: group.to_owned(), state: state.to_owned() }))
    }
}
