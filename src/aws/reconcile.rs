//! What is desired at EC2, kept up for ever: observe, plan, execute, and look again.
//!
//! A pass observes with at most three calls (network interfaces, route tables, Elastic IPs; none for what is not
//! desired), and a steady one writes nothing. The source/destination checks come first, before anything else is even
//! asked: with the check on, EC2 drops every packet that we forward. After a write or a failure the next pass comes
//! soon, at growing intervals; otherwise in about a minute. Nothing is remembered from pass to pass that EC2 could
//! contradict, but for private addresses that it has assigned and does not show yet: they are not asked for twice.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::call::{Backoff, Failure, Outcome};
use super::ec2::{Association, Ec2, ElasticIp, NetworkInterface, PrivateAddress, Route, RouteTable};
use super::plan::{self, Change, Desired, Observed, Plan, Problem};

/// Keeps the desired up for as long as [`run`](Self::run) is polled.
#[derive(Debug)]
pub struct Reconciler {
    ec2: Ec2,
    desired: watch::Receiver<Desired>,
    refresh: Arc<Notify>,
    timing: Timing,
    state: watch::Sender<State>,
    /// Assigned lately; EC2 may not show them yet.
    assigned: Vec<(String, Ipv4Addr, Instant)>,
    /// What was complained about, and when last.
    complaints: BTreeMap<String, Instant>,
}

/// How it is, as of the last pass that saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The source/destination check of each interface that forwards.
    pub checks: BTreeMap<String, Check>,
    /// Every destination of every table, in the order of the tables.
    pub routes: Vec<RouteState>,
    /// Those of the pool that the interface has.
    pub elastic_ips: Vec<HeldElasticIp>,
    /// What keeps the desired from being had.
    pub problems: Vec<Problem>,
    /// How calls of the last pass failed; they are made again.
    pub failures: Vec<Failure>,
    /// How calls have gone since the start, by action and outcome.
    pub calls: BTreeMap<(&'static str, Outcome), u64>,
}

/// What is known of a source/destination check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Seen off, or switched off by us.
    Off,
    /// For this reason it may be on. Tried again.
    Failed(String),
}

/// Where packets to a destination go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteState {
    pub table: String,
    pub destination: Ipv4Net,
    pub way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// To our interface.
    Ours,
    /// Nowhere.
    None,
    /// Nowhere, since this target is not there or does not run.
    BlackHole(String),
    /// To this target.
    Other(String),
}

/// An Elastic IP of the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldElasticIp {
    pub allocation: String,
    pub public: Ipv4Addr,
    pub private: Ipv4Addr,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two passes that had nothing to do; up to a tenth more or less, at random.
    pub interval: Duration,
    /// The wait after a write or a failure, as [`Backoff`] has it.
    pub backoff: Duration,
    pub max_backoff: Duration,
    /// How often a problem that stays the same is logged again.
    pub log_again: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(1),
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_mins(1),
            log_again: Duration::from_mins(10),
        }
    }
}

/// What there is now, of what `desired` is about.
///
/// # Errors
/// The first call that failed.
pub async fn observe(ec2: &Ec2, desired: &Desired) -> Result<Observed, Failure> {
    let (interfaces, tables, elastic_ips) =
        tokio::join!(interfaces(ec2, desired), tables(ec2, desired), addresses(ec2, desired));
    Ok(Observed {
        interfaces: interfaces.transpose()?,
        tables: tables.transpose()?,
        elastic_ips: elastic_ips.transpose()?,
    })
}

impl Reconciler {
    /// For what `desired` says at each moment; a pass is also made when `refresh` notifies. Makes no request yet.
    #[must_use]
    pub fn new(ec2: Ec2, desired: watch::Receiver<Desired>, refresh: Arc<Notify>, timing: Timing) -> Self {
        let state = watch::Sender::default();
        Self { ec2, desired, refresh, timing, state, assigned: Vec::new(), complaints: BTreeMap::new() }
    }

    /// The state as it changes. The sender goes when `run`'s future is dropped.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Makes passes for ever; drop the future to stop. Needs a tokio runtime with time and IO.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.backoff, self.timing.max_backoff);
        let refresh = Arc::clone(&self.refresh);
        loop {
            // From here on, so that nothing that is asked for during the pass is missed.
            let refreshed = refresh.notified();
            let desired = self.desired.borrow_and_update().clone();
            let mut pass = Pass::new(self.state.borrow().clone());
            Box::pin(self.pass(&desired, &mut pass)).await;
            let is_settled = pass.writes == 0 && pass.state.failures.is_empty();
            self.complain(&pass);
            self.publish(&mut pass);
            let wait = if is_settled {
                if backoff.succeeded() && pass.state.problems.is_empty() {
                    tracing::info!("aws is as desired");
                }
                let thousandths = 900 + u32::try_from(RandomState::new().hash_one(0) % 200).unwrap_or(100);
                // Whoever comes in our place waits for what we give up.
                let often = if desired.ending { AT_THE_END } else { 1 };
                self.timing.interval * thousandths / 1000 / often
            } else {
                backoff.failed()
            };
            // Whoever asks often does not get passes any sooner than this.
            let least = wait.min(self.timing.backoff);
            sleep(least).await;
            tokio::select! {
                () = sleep(wait.saturating_sub(least)) => {}
                () = refreshed => {}
                Ok(()) = self.desired.changed() => {}
            }
        }
    }

    async fn pass(&mut self, desired: &Desired, pass: &mut Pass) {
        pass.state.checks.retain(|eni, _| desired.forwarding.contains(eni));
        match interfaces(&self.ec2, desired).await {
            None => {}
            Some(Ok(interfaces)) => pass.observed.interfaces = Some(interfaces),
            Some(Err(failure)) => {
                let failed = Check::Failed(failure.to_string());
                pass.state.checks =
                    desired.forwarding.iter().map(|eni| (eni.clone(), failed.clone())).collect();
                pass.state.failures.push(failure);
            }
        }
        self.add_assigned(&mut pass.observed);
        let checks = plan::checks(desired, &pass.observed);
        self.execute(checks, pass).await;
        pass.note_checks(desired);
        self.publish(pass);
        if pass.is_throttled() {
            return;
        }
        let (tables, elastic_ips) = tokio::join!(tables(&self.ec2, desired), addresses(&self.ec2, desired));
        pass.observed.tables = tables.and_then(|tables| pass.take(tables));
        pass.observed.elastic_ips = elastic_ips.and_then(|addresses| pass.take(addresses));
        if !pass.is_throttled() {
            let routes = plan::routes(desired, &pass.observed);
            self.execute(routes, pass).await;
        }
        pass.note_routes(desired);
        let count = desired.elastic_ips.as_ref().map_or(0, |desired| desired.count);
        for _ in 0..=count {
            if pass.is_throttled() {
                break;
            }
            // Once more after each address that was assigned, now that it is known which it is.
            let plan = plan::elastic_ips(desired, &pass.observed);
            let assigns = plan.changes.iter().any(|change| matches!(change, Change::AssignAddress { .. }));
            if !self.execute(plan, pass).await || !assigns {
                break;
            }
        }
        pass.note_elastic_ips(desired);
    }

    /// Makes the changes of one part; gives whether all of them were made. A refusal concerns one resource, and the
    /// next is tried all the same.
    async fn execute(&mut self, plan: Plan, pass: &mut Pass) -> bool {
        let known = std::mem::take(&mut pass.state.problems);
        let fresh = plan.problems.into_iter().filter(|problem| !known.contains(problem)).collect::<Vec<_>>();
        pass.state.problems = known.into_iter().chain(fresh).collect();
        let mut all = true;
        for change in plan.changes {
            pass.writes += 1;
            match self.make(&change, pass).await {
                Ok(()) => pass.done(&change),
                Err(failure) => {
                    all = false;
                    if let Change::SwitchCheckOff { eni } = &change {
                        let failed = Check::Failed(failure.to_string());
                        pass.state.checks.insert(eni.clone(), failed);
                    }
                    let is_refusal = failure.outcome() == Outcome::Refused;
                    if !pass.state.failures.contains(&failure) {
                        pass.state.failures.push(failure);
                    }
                    if !is_refusal {
                        break;
                    }
                }
            }
        }
        all
    }

    async fn make(&mut self, change: &Change, pass: &mut Pass) -> Result<(), Failure> {
        match change {
            Change::SwitchCheckOff { eni } => {
                self.ec2.switch_check_off(eni).await?;
                if pass.state.checks.get(eni) == Some(&Check::Off) {
                    tracing::warn!(eni, "source/dest check had been switched on, off again");
                } else {
                    tracing::info!(eni, "source/dest check switched off");
                }
            }
            Change::CreateRoute { table, destination, eni } => {
                self.ec2.create_route(table, *destination, eni).await?;
                tracing::info!(route_table = table, %destination, eni, "route created");
            }
            Change::ReplaceRoute { table, destination, eni, from } => {
                self.ec2.replace_route(table, *destination, eni).await?;
                let (target, active) = (&from.target, from.active);
                tracing::info!(route_table = table, %destination, eni, from = target, active, "route replaced");
            }
            Change::AssignAddress { eni } => {
                let private = self.ec2.assign_private_address(eni).await?;
                tracing::info!(eni, %private, "private address assigned");
                self.assigned.push((eni.clone(), private, Instant::now()));
                self.add_assigned(&mut pass.observed);
            }
            Change::Associate { allocation, public, eni, private } => {
                self.ec2.associate_address(allocation, eni, *private).await?;
                tracing::info!(allocation, %public, eni, %private, "elastic ip associated");
            }
            Change::GiveUp { allocation, public, association } => {
                self.ec2.disassociate_address(association).await?;
                tracing::info!(allocation, %public, "elastic ip given up to the instance that has the routes");
            }
        }
        Ok(())
    }

    /// Adds to the interfaces what was assigned and is not shown yet.
    fn add_assigned(&mut self, observed: &mut Observed) {
        let Some(interfaces) = &mut observed.interfaces else { return };
        self.assigned.retain(|(_, _, at)| at.elapsed() < FORGET_ASSIGNED);
        for (eni, private, _) in &self.assigned {
            let Some(interface) = interfaces.iter_mut().find(|interface| interface.id == *eni) else {
                continue;
            };
            if interface.addresses.iter().all(|address| address.private != *private) {
                interface.addresses.push(PrivateAddress { private: *private, allocation: None });
            }
        }
    }

    /// Logs problems and failures that are new, or old and still there.
    fn complain(&mut self, pass: &Pass) {
        let problems = pass.state.problems.iter().map(ToString::to_string);
        let failures = pass.state.failures.iter().map(ToString::to_string);
        let current: BTreeSet<String> = problems.chain(failures).collect();
        self.complaints.retain(|complaint, _| current.contains(complaint));
        for reason in current {
            let is_due = self.complaints.get(&reason).is_none_or(|at| at.elapsed() >= self.timing.log_again);
            if is_due {
                tracing::error!(reason, "aws is not as desired");
                self.complaints.insert(reason, Instant::now());
            }
        }
    }

    fn publish(&self, pass: &mut Pass) {
        pass.state.calls = self.ec2.calls().counts();
        self.state.send_if_modified(|current| {
            let is_new = *current != pass.state;
            current.clone_from(&pass.state);
            is_new
        });
    }
}

/// One pass, from what was known before it to what is known after.
struct Pass {
    observed: Observed,
    state: State,
    /// Tried, whether they went well or not.
    writes: usize,
}

impl Pass {
    fn new(before: State) -> Self {
        let state = State { problems: Vec::new(), failures: Vec::new(), ..before };
        Self { observed: Observed::default(), state, writes: 0 }
    }

    fn take<T>(&mut self, observed: Result<T, Failure>) -> Option<T> {
        observed.map_err(|failure| self.state.failures.push(failure)).ok()
    }

    fn is_throttled(&self) -> bool {
        self.state.failures.iter().any(|failure| failure.outcome() == Outcome::Throttled)
    }

    /// A change was made: from now on it is part of what is observed.
    fn done(&mut self, change: &Change) {
        match change {
            Change::SwitchCheckOff { eni } => {
                let mut interfaces = self.observed.interfaces.iter_mut().flatten();
                if let Some(interface) = interfaces.find(|interface| interface.id == *eni) {
                    interface.source_dest_check = false;
                }
            }
            Change::CreateRoute { table, destination, eni }
            | Change::ReplaceRoute { table, destination, eni, .. } => {
                let mut tables = self.observed.tables.iter_mut().flatten();
                if let Some(table) = tables.find(|known| known.id == *table) {
                    table.routes.retain(|route| route.destination != *destination);
                    table.routes.push(Route { destination: *destination, target: eni.clone(), active: true });
                }
            }
            Change::AssignAddress { .. } => {}
            Change::Associate { allocation, eni, private, .. } => {
                let mut addresses = self.observed.elastic_ips.iter_mut().flatten();
                if let Some(address) = addresses.find(|address| address.allocation == *allocation) {
                    let (eni, private) = (Some(eni.clone()), Some(*private));
                    address.association = Some(Association { id: String::new(), eni, private });
                }
            }
            Change::GiveUp { allocation, .. } => {
                let mut addresses = self.observed.elastic_ips.iter_mut().flatten();
                if let Some(address) = addresses.find(|address| address.allocation == *allocation) {
                    address.association = None;
                }
            }
        }
    }

    fn note_checks(&mut self, desired: &Desired) {
        let Some(interfaces) = &self.observed.interfaces else { return };
        for eni in &desired.forwarding {
            let check = match interfaces.iter().find(|interface| interface.id == *eni) {
                Some(interface) if !interface.source_dest_check => Check::Off,
                Some(_) => match self.state.checks.get(eni) {
                    Some(Check::Failed(_)) => continue,
                    _ => Check::Failed("it is on".to_owned()),
                },
                None => Check::Failed(Problem::NoInterface(eni.clone()).to_string()),
            };
            self.state.checks.insert(eni.clone(), check);
        }
    }

    fn note_routes(&mut self, desired: &Desired) {
        let Some(desired) = &desired.routes else {
            self.state.routes.clear();
            return;
        };
        let Some(tables) = &self.observed.tables else { return };
        let all = tables.iter().filter(|table| table.vpc == desired.vpc).flat_map(|table| {
            desired.destinations.iter().map(|destination| {
                let way = match table.routes.iter().find(|route| route.destination == *destination) {
                    None => Way::None,
                    Some(route) if !route.active => Way::BlackHole(route.target.clone()),
                    Some(route) if route.target == desired.eni => Way::Ours,
                    Some(route) => Way::Other(route.target.clone()),
                };
                RouteState { table: table.id.clone(), destination: *destination, way }
            })
        });
        self.state.routes = all.collect();
    }

    fn note_elastic_ips(&mut self, desired: &Desired) {
        let Some(desired) = &desired.elastic_ips else {
            self.state.elastic_ips.clear();
            return;
        };
        let Some(addresses) = &self.observed.elastic_ips else { return };
        let held = addresses.iter().filter(|address| address.is_on(&desired.eni));
        let held = held.filter_map(|address| {
            let (allocation, public) = (address.allocation.clone(), address.public);
            Some(HeldElasticIp { allocation, public, private: address.private()? })
        });
        self.state.elastic_ips = held.collect();
    }
}

async fn interfaces(ec2: &Ec2, desired: &Desired) -> Option<Result<Vec<NetworkInterface>, Failure>> {
    let ids: Vec<String> = desired.forwarding.iter().cloned().collect();
    if ids.is_empty() { None } else { Some(ec2.network_interfaces(&ids).await) }
}

async fn tables(ec2: &Ec2, desired: &Desired) -> Option<Result<Vec<RouteTable>, Failure>> {
    let routes = desired.routes.as_ref()?;
    Some(ec2.route_tables(&routes.tables).await)
}

async fn addresses(ec2: &Ec2, desired: &Desired) -> Option<Result<Vec<ElasticIp>, Failure>> {
    let elastic_ips = desired.elastic_ips.as_ref()?;
    Some(ec2.elastic_ips(&elastic_ips.pool).await)
}

/// How many times as often passes are made when the instance is about to end.
const AT_THE_END: u32 = 6;

/// Whatever EC2 does not show by then, it has not assigned.
const FORGET_ASSIGNED: Duration = Duration::from_mins(5);
