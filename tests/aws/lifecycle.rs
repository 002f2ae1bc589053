//! Lifecycle actions, against a stub of Auto Scaling.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use egret::aws::{Calls, Lifecycle, Outcome, Proceeded, Transition, Waits};

use crate::fleet::{Fault, Fleet, GROUP, OURSELVES};
use crate::tag_targets::stub;

const WAITS: Waits = Waits {
    call_timeout: Duration::from_secs(10),
    first: Duration::from_millis(10),
    longest: Duration::from_millis(40),
};

/// Of a service that says nothing.
const GIVEN_UP: Duration = Duration::from_millis(500);

struct World {
    fleet: Arc<Mutex<Fleet>>,
    calls: Calls,
    lifecycle: Lifecycle,
}

impl World {
    async fn new(state: Option<&'static str>) -> Self {
        Self::with(state, None).await
    }

    async fn with(state: Option<&'static str>, fault: Option<Fault>) -> Self {
        let is_silent = matches!(fault, Some(Fault::Silence));
        let fleet = Arc::new(Mutex::new(Fleet { state, fault, ..Fleet::default() }));
        let calls = Calls::default();
        let waits = Waits { call_timeout: if is_silent { GIVEN_UP } else { WAITS.call_timeout }, ..WAITS };
        let lifecycle = Lifecycle::new(&stub(&fleet).await, OURSELVES, calls.clone(), waits);
        Self { fleet, calls, lifecycle }
    }

    fn fleet<T>(&self, look: impl FnOnce(&mut Fleet) -> T) -> T {
        look(&mut self.fleet.lock().unwrap())
    }

    async fn proceed(&self, transition: Transition) -> Proceeded {
        let proceeded = self.lifecycle.proceed(transition, "hook");
        tokio::time::timeout(Duration::from_secs(20), proceeded).await.expect("in time")
    }

    /// Begins to proceed, and goes on once it has asked several times.
    async fn in_vain(&self, transition: Transition) -> tokio::task::JoinHandle<Proceeded> {
        let lifecycle = self.lifecycle.clone();
        let going = tokio::spawn(async move { lifecycle.proceed(transition, "hook").await });
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.fleet(|fleet| fleet.calls.len()) < 4 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!going.is_finished() && self.fleet(|fleet| fleet.completed.is_empty()));
        going
    }
}

#[tokio::test]
async fn an_action_that_waits_is_completed_once() {
    for (state, transition) in
        [("Pending:Wait", Transition::Launching), ("Terminating:Wait", Transition::Terminating)]
    {
        let world = World::new(Some(state)).await;
        assert_eq!(world.proceed(transition).await, Proceeded::Completed);
        let completed = ["hook", GROUP, OURSELVES, "CONTINUE"].map(str::to_owned);
        assert_eq!(world.fleet(|fleet| fleet.completed.clone()), [completed]);
        let counts: Vec<_> = world.calls.counts().into_iter().collect();
        let expected = [
            (("autoscaling:CompleteLifecycleAction", Outcome::Done), 1),
            (("autoscaling:DescribeAutoScalingInstances", Outcome::Done), 1),
        ];
        assert_eq!(counts, expected);
        assert_eq!(world.proceed(transition).await, Proceeded::NothingWaits);
    }
}

#[tokio::test]
async fn what_is_over_or_in_no_group_is_left_alone() {
    for (state, transition) in [
        (None, Transition::Launching),
        (None, Transition::Terminating),
        (Some("InService"), Transition::Launching),
        (Some("Pending:Proceed"), Transition::Launching),
        (Some("Terminating:Wait"), Transition::Launching),
        (Some("Terminating:Proceed"), Transition::Terminating),
        (Some("Detached"), Transition::Terminating),
    ] {
        let world = World::new(state).await;
        assert_eq!(world.proceed(transition).await, Proceeded::NothingWaits, "{state:?}");
        assert_eq!(world.fleet(|fleet| fleet.calls.clone()), ["DescribeAutoScalingInstances"]);
    }
}

#[tokio::test]
async fn a_transition_that_does_not_wait_yet_is_waited_for() {
    for (before, wait, transition) in [
        ("Pending", "Pending:Wait", Transition::Launching),
        ("InService", "Terminating:Wait", Transition::Terminating),
        ("Terminating", "Terminating:Wait", Transition::Terminating),
    ] {
        let world = World::new(Some(before)).await;
        let going = world.in_vain(transition).await;
        world.fleet(|fleet| fleet.state = Some(wait));
        assert_eq!(going.await.unwrap(), Proceeded::Completed);
    }
}

#[tokio::test]
async fn every_failure_is_recovered_from() {
    for fault in [
        Fault::Closed,
        Fault::Silence,
        Fault::Rubbish,
        Fault::Error("DescribeAutoScalingInstances", 403, "AccessDenied"),
        Fault::Error("CompleteLifecycleAction", 403, "AccessDenied"),
        Fault::Error("CompleteLifecycleAction", 400, "ValidationError"),
    ] {
        let world = World::with(Some("Pending:Wait"), Some(fault)).await;
        let going = world.in_vain(Transition::Launching).await;
        if let Fault::Error(action, _, code) = fault {
            let outcome = if code == "AccessDenied" { Outcome::Unauthorized } else { Outcome::Refused };
            let counts = world.calls.counts();
            let counted = counts.iter().any(|((of, how), _)| of.ends_with(action) && *how == outcome);
            assert!(counted, "{counts:?}");
        }
        world.fleet(|fleet| fleet.fault = None);
        assert_eq!(going.await.unwrap(), Proceeded::Completed, "{fault:?}");
    }
}
