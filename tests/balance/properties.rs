//! Any sequence of what can happen to a group, compared with a model that is as simple as can be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use egret::balance::{
    Algorithm, CheckError, CloseCause, Config, Event, Group, HealthCheck, OnUnhealthy, Probe, Serving, State,
    Stickiness, Target,
};
use egret::time::Instant;
use proptest::prelude::*;

use crate::rig::{at, client};

/// Targets are numbers below this.
const NUMBERS: u8 = 6;

#[derive(Clone, Debug)]
enum Step {
    SetTargets(Vec<(u8, u16, bool)>),
    /// The oldest probe without an answer gets one; if `late`, after its deadline.
    Answer {
        well: bool,
        late: bool,
    },
    Connect {
        number: u8,
        well: bool,
    },
    Select {
        client: u32,
        exclude: Vec<u8>,
    },
    Close {
        number: u8,
    },
    Drain(u8),
    Undrain(u8),
    Wait {
        millis: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let target = (0..NUMBERS, prop_oneof![1 => Just(0_u16), 5 => 1..5_u16], prop::bool::weighted(0.25));
    prop_oneof![
        1 => prop::collection::vec(target, 0..7).prop_map(Step::SetTargets),
        6 => (prop::bool::weighted(0.6), prop::bool::weighted(0.1))
            .prop_map(|(well, late)| Step::Answer { well, late }),
        2 => (0..NUMBERS, any::<bool>()).prop_map(|(number, well)| Step::Connect { number, well }),
        6 => (0..40_u32, prop::collection::vec(0..NUMBERS, 0..3))
            .prop_map(|(client, exclude)| Step::Select { client, exclude }),
        4 => (0..NUMBERS).prop_map(|number| Step::Close { number }),
        1 => (0..NUMBERS).prop_map(Step::Drain),
        1 => (0..NUMBERS).prop_map(Step::Undrain),
        5 => prop_oneof![0..50_u64, 0..1_500_u64, 0..30_000_u64].prop_map(|millis| Step::Wait { millis }),
    ]
}

fn configuration() -> impl Strategy<Value = Config> {
    let algorithm =
        prop_oneof![Just(Algorithm::FlowHash), Just(Algorithm::RoundRobin), Just(Algorithm::LeastConnections)];
    let stickiness = prop::option::of((1..20_000_u64, 1..20_u32).prop_map(|(millis, most_clients)| {
        Stickiness { idle_timeout: Duration::from_millis(millis), most_clients }
    }));
    let health =
        (200..2_000_u64, 1..=100_u32, 1..4_u8, 1..4_u8).prop_map(|(millis, percent, healthy, unhealthy)| {
            let interval = Duration::from_millis(millis);
            let timeout = interval * percent / 100;
            HealthCheck { interval, timeout, healthy_threshold: healthy, unhealthy_threshold: unhealthy }
        });
    (algorithm, stickiness, health, any::<bool>(), 0..20_000_u64).prop_map(
        |(algorithm, stickiness, health, keep, delay)| Config {
            algorithm,
            stickiness,
            health,
            on_unhealthy: if keep { OnUnhealthy::Keep } else { OnUnhealthy::Reset },
            deregistration_delay: Duration::from_millis(delay),
            ..Config::default()
        },
    )
}

/// What should be known of a target.
#[derive(Clone, Debug)]
struct Model {
    target: Target,
    /// What checks have said since the target was new or came back, or its state last changed; the last comes last.
    checks: Vec<bool>,
    connects: Vec<bool>,
    condition: Condition,
    /// Out of service since, and on request or not.
    leaving: Option<(Instant, bool)>,
    connections: u32,
    last_probe: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Condition {
    Initial,
    Healthy,
    Unhealthy,
}

impl Model {
    fn new(target: Target) -> Self {
        Self {
            target,
            checks: Vec::new(),
            connects: Vec::new(),
            condition: Condition::Initial,
            leaving: None,
            connections: 0,
            last_probe: None,
        }
    }

    fn come_back(&mut self) {
        *self = Self { connections: self.connections, last_probe: None, ..Self::new(self.target) };
    }

    fn become_(&mut self, condition: Condition) {
        self.condition = condition;
        self.checks.clear();
        self.connects.clear();
    }

    fn checked(&mut self, well: bool, health: &HealthCheck) {
        self.checks.push(well);
        let in_a_row = self.checks.iter().rev().take_while(|check| **check == well).count();
        let enough = match (self.condition, well) {
            (Condition::Initial, true) => 1,
            (Condition::Unhealthy, true) => usize::from(health.healthy_threshold),
            (Condition::Unhealthy, false) | (Condition::Healthy, true) => usize::MAX,
            (_, false) => usize::from(health.unhealthy_threshold),
        };
        if in_a_row >= enough {
            self.become_(if well { Condition::Healthy } else { Condition::Unhealthy });
        }
    }

    fn connected(&mut self, well: bool, health: &HealthCheck) {
        self.connects.push(well);
        let in_a_row = self.connects.iter().rev().take_while(|connect| !**connect).count();
        if self.condition != Condition::Unhealthy && in_a_row >= usize::from(health.unhealthy_threshold) {
            self.become_(Condition::Unhealthy);
        }
    }

    fn serves(&self) -> Option<Serving> {
        match self.condition {
            _ if self.leaving.is_some() || self.target.weight == 0 => None,
            Condition::Healthy if self.target.backup => Some(Serving::Backups),
            Condition::Healthy => Some(Serving::Primaries),
            Condition::Initial if self.target.backup => Some(Serving::UntriedBackups),
            Condition::Initial => Some(Serving::Untried),
            Condition::Unhealthy => Some(Serving::FailOpen),
        }
    }

    fn label(&self) -> &'static str {
        match (&self.leaving, self.condition) {
            (Some((_, true)), _) if self.connections == 0 => "drained",
            (Some(_), _) => "draining",
            (None, Condition::Initial) => "initial",
            (None, Condition::Healthy) => "healthy",
            (None, Condition::Unhealthy) => "unhealthy",
        }
    }
}

struct World {
    now: Instant,
    config: Config,
    group: Group,
    models: BTreeMap<SocketAddr, Model>,
    in_flight: Vec<Probe>,
    /// As the events have told it.
    told: BTreeMap<SocketAddr, &'static str>,
    told_serving: Serving,
}

impl World {
    fn new(config: Config, seed: u8) -> Self {
        Self {
            now: Instant::from_millis(77),
            group: Group::new(config.clone(), [seed; 16]).unwrap(),
            config,
            models: BTreeMap::new(),
            in_flight: Vec::new(),
            told: BTreeMap::new(),
            told_serving: Serving::Nobody,
        }
    }

    fn serving(&self) -> Serving {
        self.models.values().filter_map(Model::serves).min().unwrap_or(Serving::Nobody)
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::SetTargets(list) => {
                let target = |(number, weight, backup): &(u8, u16, bool)| Target {
                    address: at(*number),
                    weight: *weight,
                    backup: *backup,
                };
                let list: Vec<Target> = list.iter().map(target).collect();
                self.group.set_targets(self.now, &list).unwrap();
                self.set_targets(&list);
            }
            Step::Answer { well, late } => self.answer(*well, *late),
            Step::Connect { number, well } => {
                let result = if *well { Ok(()) } else { Err(CheckError::Refused) };
                self.group.handle_connect(self.now, at(*number), result);
                if let Some(model) = self.models.get_mut(&at(*number)) {
                    model.connected(*well, &self.config.health);
                }
            }
            Step::Select { client, exclude } => self.select(*client, exclude),
            Step::Close { number } => {
                self.group.closed(self.now, at(*number));
                if let Some(model) = self.models.get_mut(&at(*number)) {
                    model.connections = model.connections.saturating_sub(1);
                }
            }
            Step::Drain(number) => {
                let drained = self.group.drain(self.now, at(*number));
                let now = self.now;
                let model = self
                    .models
                    .get_mut(&at(*number))
                    .filter(|model| !matches!(model.leaving, Some((_, false))));
                assert_eq!(drained, model.is_some());
                if let Some(model) = model {
                    model.leaving = model.leaving.or(Some((now, true)));
                }
            }
            Step::Undrain(number) => {
                let undrained = self.group.undrain(self.now, at(*number));
                let model = self
                    .models
                    .get_mut(&at(*number))
                    .filter(|model| !matches!(model.leaving, Some((_, false))));
                assert_eq!(undrained, model.is_some());
                if let Some(model) = model.filter(|model| model.leaving.is_some()) {
                    model.come_back();
                }
            }
            Step::Wait { millis } => self.now += Duration::from_millis(*millis),
        }
        self.models.retain(|_, model| model.connections > 0 || !matches!(model.leaving, Some((_, false))));
        self.turn();
        self.compare();
    }

    fn set_targets(&mut self, list: &[Target]) {
        for (address, model) in &mut self.models {
            if list.iter().all(|target| target.address != *address) {
                model.leaving = Some((model.leaving.map_or(self.now, |(since, _)| since), false));
            }
        }
        let mut seen = BTreeSet::new();
        for target in list.iter().filter(|target| seen.insert(target.address)) {
            let model = self.models.entry(target.address).or_insert_with(|| Model::new(*target));
            model.target = *target;
            if matches!(model.leaving, Some((_, false))) {
                model.come_back();
            }
        }
    }

    fn answer(&mut self, well: bool, late: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let probe = self.in_flight.remove(0);
        if late {
            self.now = self.now.max(probe.deadline + Duration::from_nanos(1));
            self.in_flight.insert(0, probe);
        }
        let result = if well { Ok(()) } else { Err(CheckError::Reset) };
        let ignored = self.group.snapshot(self.now).counters.probes_late;
        self.group.handle_probe(self.now, probe.id, result);
        assert_eq!(self.group.snapshot(self.now).counters.probes_late - ignored, u64::from(late));
        if !late {
            self.models.get_mut(&probe.target).unwrap().checked(well, &self.config.health);
        }
    }

    fn select(&mut self, number: u32, exclude: &[u8]) {
        let excluded: Vec<SocketAddr> = exclude.iter().map(|number| at(*number)).collect();
        let serving = self.serving();
        let chosen = self.group.select(self.now, client(number), &excluded);
        let ranks = self.models.iter().filter(|(address, _)| !excluded.contains(address));
        let ranks = ranks.filter_map(|(_, model)| model.serves());
        let best = ranks.filter(|rank| *rank != Serving::FailOpen || serving == Serving::FailOpen).min();
        let rank = chosen.map(|target| {
            assert!(!excluded.contains(&target), "{target} was excluded");
            self.models[&target].serves().expect("a target that serves")
        });
        assert_eq!(rank, best, "{:?}", self.models);
        if let Some(target) = chosen {
            self.models.get_mut(&target).unwrap().connections += 1;
        }
    }

    /// Does what is due, and follows what the group says.
    fn turn(&mut self) {
        self.group.handle_timeout(self.now);
        let config = self.config.clone();
        let overdue = |probe: &Probe| probe.deadline <= self.now;
        for probe in self.in_flight.iter().filter(|probe| overdue(probe)) {
            // It may be that the target has left since.
            if let Some(model) = self.models.get_mut(&probe.target) {
                model.checked(false, &config.health);
            }
        }
        self.in_flight.retain(|probe| !overdue(probe));
        while let Some(probe) = self.group.poll_probe(self.now) {
            let model = self.models.get_mut(&probe.target).expect("a known target");
            assert_eq!(model.leaving, None, "who leaves is not checked");
            assert!(self.in_flight.iter().all(|other| other.target != probe.target), "one at a time");
            assert_eq!(probe.deadline, self.now + config.health.timeout);
            if let Some(last) = model.last_probe.replace(self.now) {
                assert!(self.now - last >= config.health.interval * 9 / 10, "too soon");
            }
            self.in_flight.push(probe);
        }
        assert!(self.group.poll_timeout().is_none_or(|at| at > self.now), "what is due is done");
        while let Some(close) = self.group.poll_close() {
            let model = &self.models[&close.target];
            assert!(model.connections > 0);
            match close.cause {
                CloseCause::Unhealthy => assert_eq!(config.on_unhealthy, OnUnhealthy::Reset),
                CloseCause::Deregistered => {
                    let (since, _) = model.leaving.expect("who leaves");
                    assert!(self.now - since >= config.deregistration_delay);
                }
            }
        }
        while let Some(event) = self.group.poll_event() {
            self.hear(event);
        }
    }

    /// Events tell a story without gaps.
    fn hear(&mut self, event: Event) {
        match event {
            Event::Added { target } => {
                assert_eq!(self.told.insert(target, State::Initial.label()), None);
            }
            Event::StateChanged { target, from, to } => {
                assert_ne!(from.label(), to.label());
                assert_eq!(self.told.insert(target, to.label()), Some(from.label()));
            }
            Event::Removed { target } => {
                assert_eq!(self.told.remove(&target), Some("draining"));
            }
            Event::ServingChanged { from, to } => {
                assert!(from != to && from == self.told_serving);
                self.told_serving = to;
            }
        }
    }

    fn compare(&mut self) {
        let leaving =
            |probe: &Probe| self.models.get(&probe.target).is_none_or(|model| model.leaving.is_some());
        self.in_flight.retain(|probe| !leaving(probe));
        let snapshot = self.group.snapshot(self.now);
        let known: Vec<_> = snapshot
            .targets
            .iter()
            .map(|target| {
                (target.address, target.weight, target.backup, target.state.label(), target.connections)
            })
            .collect();
        let expected: Vec<_> = self
            .models
            .iter()
            .map(|(address, model)| {
                (*address, model.target.weight, model.target.backup, model.label(), model.connections)
            })
            .collect();
        assert_eq!(known, expected);
        assert_eq!(snapshot.serving, self.serving());
        assert_eq!(self.told_serving, self.serving());
        let told: Vec<_> = self.told.iter().map(|(address, label)| (*address, *label)).collect();
        let labels: Vec<_> = self.models.iter().map(|(address, model)| (*address, model.label())).collect();
        assert_eq!(told, labels);
        let eligible: Vec<_> = self.group.eligible().map(|(address, _)| address).collect();
        let serving = self.serving();
        let serve = self.models.iter().filter(|(_, model)| model.serves() == Some(serving));
        assert_eq!(eligible, serve.map(|(address, _)| *address).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn group_does_as_the_model_and_leaves_nothing_behind(
        config in configuration(),
        seed in any::<u8>(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(config, seed);
        world.take(&Step::SetTargets((0..4).map(|number| (number, 1, false)).collect()));
        for step in &steps {
            world.take(step);
        }
        world.take(&Step::SetTargets(Vec::new()));
        let left: Vec<u32> = world.models.values().map(|model| model.connections).collect();
        for _ in 0..left.iter().copied().max().unwrap_or(0) {
            for number in 0..NUMBERS {
                world.take(&Step::Close { number });
            }
        }
        prop_assert!(world.models.is_empty());
        prop_assert_eq!(world.group.poll_timeout(), None);
    }
}
