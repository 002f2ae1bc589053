//! A fleet, its EC2, its network, and a clock that only the simulation moves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use egret::failover::{
    Action, Call, CallError, CallId, Config, Done, Event, Failback, Fleet, Gateway, Health, Held, Hello, Life,
    Message, Observation, OrderError, Timing, Why,
};
use egret::time::Instant;

use crate::chance::Chance;
use crate::checks::{Checks, Knowledge};
use crate::ec2::Ec2;
use crate::net::{Net, Quality, Way};

/// How a world is made.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub instances: usize,
    pub timing: Timing,
    pub allocations: usize,
    pub tables: usize,
    pub failback: Failback,
    pub fallback: bool,
    pub quality: Quality,
    /// How old descriptions can be.
    pub lag: Duration,
    /// What a call takes.
    pub api: (Duration, Duration),
}

impl Default for Setup {
    fn default() -> Self {
        let millis = Duration::from_millis;
        Self {
            seed: 1,
            instances: 2,
            timing: Timing::default(),
            allocations: 1,
            tables: 1,
            failback: Failback::Auto,
            fallback: false,
            quality: Quality { delay: millis(1), jitter: millis(1), loss: 0 },
            lag: millis(0),
            api: (millis(50), millis(150)),
        }
    }
}

pub struct World {
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub ec2: Ec2,
    pub net: Net,
    pub chance: Chance,
    pub trouble: Trouble,
    pub checks: Checks,
    /// What is wrong; the first is what counts.
    pub wrong: Vec<String>,
    pub trace: bool,
    api: (Duration, Duration),
    queue: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    events: Vec<Option<Happening>>,
    free: Vec<usize>,
    number: u64,
}

/// How calls fare, in thousandths of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    pub throttled: u64,
    /// Never gets there.
    pub request_lost: u64,
    /// Happens, and is answered with a timeout.
    pub answer_lost: u64,
    /// Happens long after it was given up.
    pub late: u64,
}

/// An instance.
#[allow(clippy::struct_excessive_bools, reason = "each is a way to be unwell, and they are independent")]
pub struct Node {
    pub config: Config,
    /// `None` while it does not run.
    pub fleet: Option<Fleet>,
    /// Counts starts; what belongs to an earlier one is void.
    pub life: u64,
    pub is_paused: bool,
    /// Is paused between deciding on its next change and calling EC2.
    pub is_trapped: bool,
    pub is_terminated: bool,
    pub egress: bool,
    pub worker: bool,
    /// Whether health is told at all.
    pub probes: bool,
    /// Whether it reaches EC2.
    pub api: bool,
    /// What its daemon has kept.
    pub disk: Vec<Hello>,
    /// Its clock began then, and runs so much too fast.
    origin: u64,
    ppm: u64,
    armed: Option<Instant>,
    waiting: Vec<Input>,
    held_back: Vec<Job>,
    pub active: BTreeMap<String, Vec<Held>>,
    pub knowledge: BTreeMap<String, Knowledge>,
    pub ids: BTreeSet<String>,
    /// When it asked for the observation in flight.
    asked: BTreeMap<CallId, Instant>,
    /// Which gateways its calls in flight are about.
    calls: BTreeMap<CallId, String>,
    pub why: BTreeMap<String, Why>,
    /// Whom an operator has declared dead there, who may be alive.
    pub declared: BTreeSet<String>,
    pub events: Vec<(Instant, Event)>,
    pub looks: u64,
    pub changes: u64,
}

#[derive(Clone, Debug)]
enum Input {
    Up(String, Box<Hello>),
    Down(String),
    Message(String, Message),
    /// With what moment it shows.
    Observed(CallId, Instant, Result<Vec<Observation>, CallError>),
    Outcome(CallId, Call, Result<Done, CallError>),
    Adopted(String),
    Health,
    Timer,
}

/// What an executor does for a fleet.
#[derive(Clone, Debug)]
enum Job {
    Observe(CallId, Vec<Gateway>),
    Call(CallId, Call, Instant),
}

#[derive(Clone, Debug)]
enum Happening {
    Timer(usize, u64),
    Health(usize),
    Dial(Way),
    Input(usize, u64, Input),
    Deliver(Way, u64, Message),
    Begin(usize, u64, Job),
    /// A request is at EC2; whether it will be answered.
    Arrive(usize, u64, String, Job, bool),
}

impl World {
    pub fn new(setup: &Setup) -> Self {
        let mut chance = Chance::new(setup.seed);
        let names: Vec<String> = (0..setup.instances).map(name).collect();
        let gateways: Vec<Gateway> = (0..setup.instances).map(|index| gateway(setup, index, &names)).collect();
        let mut world = Self {
            now: Instant::from_millis(1_000),
            nodes: Vec::new(),
            ec2: Ec2::new(&gateways, setup.lag),
            net: Net::new(setup.quality),
            trouble: Trouble::default(),
            checks: Checks::new(gateways.clone(), setup.timing.hold_down),
            wrong: Vec::new(),
            trace: false,
            api: setup.api,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            number: 0,
            chance: chance.clone(),
        };
        for (index, home) in gateways.into_iter().enumerate() {
            let eni = format!("eni-{}0", letter(index));
            let config = Config { eni, home, timing: setup.timing };
            world.nodes.push(Node {
                config,
                fleet: None,
                life: 0,
                is_paused: false,
                is_trapped: false,
                is_terminated: false,
                egress: true,
                worker: true,
                probes: true,
                api: true,
                disk: Vec::new(),
                origin: chance.below(1 << 50),
                ppm: chance.below(100),
                armed: None,
                waiting: Vec::new(),
                held_back: Vec::new(),
                active: BTreeMap::new(),
                knowledge: BTreeMap::new(),
                ids: BTreeSet::new(),
                asked: BTreeMap::new(),
                calls: BTreeMap::new(),
                why: BTreeMap::new(),
                declared: BTreeSet::new(),
                events: Vec::new(),
                looks: 0,
                changes: 0,
            });
            let phase = world.chance.between(Duration::ZERO, PROBE);
            world.schedule(phase, Happening::Health(index));
        }
        for a in 0..setup.instances {
            for b in a + 1..setup.instances {
                world.schedule(Duration::from_millis(10), Happening::Dial((a, b)));
            }
        }
        world
    }

    /// One in which all have started, and each hosts its own.
    pub fn steady(setup: &Setup) -> Self {
        let mut world = Self::new(setup);
        (0..setup.instances).for_each(|index| world.start(index));
        world.run(Duration::from_secs(30));
        world.well();
        for (index, node) in world.nodes.iter().enumerate() {
            assert_eq!(world.host_of(index), Some(index), "{} is not at home", node.config.home.name);
        }
        world
    }

    /// One who starts, or starts again.
    pub fn start(&mut self, index: usize) {
        let seed = [self.chance.below(256) as u8; 16];
        let local = self.local(index);
        let node = &mut self.nodes[index];
        assert!(node.fleet.is_none(), "it runs");
        if node.is_terminated {
            // Another instance takes the name.
            node.is_terminated = false;
            node.config.eni = format!("eni-{}{}", letter(index), node.life);
        }
        let mut fleet = Fleet::new(node.config.clone(), seed, local).unwrap();
        for hello in node.disk.clone() {
            fleet.remember(local, hello);
        }
        node.fleet = Some(fleet);
        node.life += 1;
        node.armed = None;
        self.checks.fault(self.now);
        // Connections of its former life are reset.
        for peer in (0..self.nodes.len()).filter(|peer| *peer != index) {
            if self.net.disconnect((index, peer)) {
                self.tell_down(peer, index);
            }
        }
        self.after(index);
    }

    /// It is gone between two instructions. Its kernel tells the peers, if it can.
    pub fn crash(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(fleet) = node.fleet.take() else { return };
        node.disk = fleet.known().cloned().collect();
        node.life += 1;
        node.is_paused = false;
        node.armed = None;
        node.waiting.clear();
        node.held_back.clear();
        node.active.clear();
        node.knowledge.clear();
        node.ids.clear();
        node.asked.clear();
        node.calls.clear();
        for peer in 0..self.nodes.len() {
            if peer != index && !self.net.is_cut((index, peer)) && self.net.disconnect((index, peer)) {
                self.tell_down(peer, index);
            }
        }
        self.checks.fault(self.now);
    }

    /// The instance is terminated: nothing of it answers any more.
    pub fn terminate(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if let Some(fleet) = node.fleet.take() {
            node.disk = fleet.known().cloned().collect();
        }
        node.is_terminated = true;
        node.life += 1;
        node.is_paused = false;
        node.waiting.clear();
        node.held_back.clear();
        node.active.clear();
        node.knowledge.clear();
        node.ids.clear();
        node.asked.clear();
        node.calls.clear();
        let eni = node.config.eni.clone();
        self.ec2.terminate(self.now, &eni);
        self.checks.fault(self.now);
        self.check();
    }

    pub fn pause(&mut self, index: usize) {
        if self.nodes[index].fleet.is_some() {
            self.nodes[index].is_paused = true;
            self.checks.fault(self.now);
        }
    }

    /// What has come meanwhile is there at once, in any order; and what was about to be called is called.
    pub fn wake(&mut self, index: usize) {
        if !std::mem::take(&mut self.nodes[index].is_paused) {
            return;
        }
        self.checks.fault(self.now);
        let mut waiting = std::mem::take(&mut self.nodes[index].waiting);
        if self.chance.permille(500) {
            waiting.insert(0, Input::Timer);
        }
        let life = self.nodes[index].life;
        for job in std::mem::take(&mut self.nodes[index].held_back) {
            self.schedule(Duration::from_micros(10), Happening::Begin(index, life, job));
        }
        for input in waiting {
            self.input(index, input);
        }
        self.input(index, Input::Timer);
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.net.cut(self.now, (from, to));
        self.checks.has_cut = true;
        self.checks.fault(self.now);
    }

    pub fn part(&mut self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts all links of one instance.
    pub fn isolate(&mut self, index: usize) {
        (0..self.nodes.len()).filter(|peer| *peer != index).for_each(|peer| self.part(index, peer));
    }

    pub fn heal(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                self.heal_way((a, b));
            }
        }
    }

    pub fn heal_way(&mut self, way: Way) {
        if self.net.heal(way) {
            self.checks.has_cut = self.net.has_cut();
            self.checks.fault(self.now);
        }
    }

    pub fn set_egress(&mut self, index: usize, egress: bool) {
        self.nodes[index].egress = egress;
        self.checks.fault(self.now);
    }

    pub fn set_worker(&mut self, index: usize, worker: bool) {
        self.nodes[index].worker = worker;
        self.checks.fault(self.now);
        self.input(index, Input::Health);
    }

    pub fn set_api(&mut self, index: usize, api: bool) {
        self.nodes[index].api = api;
        self.checks.fault(self.now);
    }

    pub fn set_leaving(&mut self, index: usize, leaving: bool) {
        self.checks.fault(self.now);
        self.with(index, |fleet, now| fleet.handle_leaving(now, leaving));
    }

    pub fn hand_over(&mut self, host: usize, gateway: usize, to: usize) -> Result<(), OrderError> {
        let (gateway, to) = (name(gateway), name(to));
        let mut result = Ok(());
        self.with(host, |fleet, now| result = fleet.hand_over(now, &gateway, &to));
        result
    }

    /// An operator tells one that another is dead.
    pub fn declare_dead(&mut self, to: usize, peer: usize) -> Result<Vec<String>, OrderError> {
        let peer = name(peer);
        let was_declared = !self.nodes[to].declared.insert(peer.clone());
        let mut result = Err(OrderError::NoPeer(peer.clone()));
        self.with(to, |fleet, now| result = fleet.declare_dead(now, &peer));
        if result.is_err() && !was_declared {
            self.nodes[to].declared.remove(&peer);
        }
        result
    }

    /// Somebody by hand: the first address goes to nobody.
    pub fn disassociate(&mut self, gateway: usize) {
        let held = self.ec2.truth.addresses[&self.definition(gateway).allocations[0]].clone().unwrap();
        self.ec2.change(self.now, &held.eni, &Call::Disassociate { association: held.id }).unwrap();
    }

    /// Somebody by hand: the first address goes to this interface.
    pub fn reassociate(&mut self, gateway: usize, eni: &str) {
        self.disassociate(gateway);
        let allocation = self.definition(gateway).allocations[0].clone();
        self.ec2.change(self.now, eni, &Call::Associate { allocation }).unwrap();
    }

    /// An instance is given another configuration, and goes on.
    pub fn configure(&mut self, index: usize, config: Config) {
        self.with(index, |fleet, now| fleet.handle_config(now, config).unwrap());
    }

    /// Calls a fleet that runs and is not paused.
    pub fn with(&mut self, index: usize, call: impl FnOnce(&mut Fleet, Instant)) {
        let local = self.local(index);
        let node = &mut self.nodes[index];
        if let Some(fleet) = node.fleet.as_mut()
            && !node.is_paused
        {
            call(fleet, local);
            self.after(index);
        }
    }

    pub fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.wrong.is_empty() && self.step(until) {}
        self.now = self.now.max(until);
    }

    /// Runs until it is so; how long that took.
    pub fn run_until(&mut self, within: Duration, mut is_so: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let (begin, until) = (self.now, self.now + within);
        loop {
            if is_so(self) {
                return Some(self.now - begin);
            }
            if !self.wrong.is_empty() || !self.step(until) {
                return None;
            }
        }
    }

    /// What time it is to an instance.
    pub fn local(&self, index: usize) -> Instant {
        let node = &self.nodes[index];
        let nanos = self.now.as_nanos();
        Instant::from_nanos(node.origin + nanos + nanos / 1_000_000 * node.ppm)
    }

    fn schedule(&mut self, after: Duration, happening: Happening) {
        self.schedule_at(self.now + after, happening);
    }

    fn schedule_at(&mut self, at: Instant, happening: Happening) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(happening);
        self.number += 1;
        self.queue.push(Reverse((at, self.number, slot)));
    }

    fn step(&mut self, until: Instant) -> bool {
        let Some(Reverse((at, _, slot))) = self.queue.peek().copied() else { return false };
        if at > until {
            return false;
        }
        self.queue.pop();
        self.now = at;
        self.free.push(slot);
        match self.events[slot].take().unwrap() {
            Happening::Timer(index, life) if self.nodes[index].life == life => {
                self.nodes[index].armed = None;
                self.input(index, Input::Timer);
            }
            Happening::Health(index) => {
                if self.nodes[index].probes {
                    self.input(index, Input::Health);
                }
                self.schedule(PROBE, Happening::Health(index));
            }
            Happening::Dial(way) => self.dial(way),
            Happening::Input(index, life, input) if self.nodes[index].life == life => self.input(index, input),
            Happening::Deliver(way, number, message) => self.deliver(way, number, message),
            Happening::Begin(index, life, job) if self.nodes[index].life == life => self.begin(index, job),
            Happening::Arrive(index, life, eni, job, answers) => self.arrive(index, life, &eni, job, answers),
            Happening::Timer(..) | Happening::Input(..) | Happening::Begin(..) => {}
        }
        true
    }

    fn input(&mut self, index: usize, input: Input) {
        let local = self.local(index);
        let node = &mut self.nodes[index];
        if node.is_paused {
            // A probe of a process that is stopped is not made, and a timer of it is only noticed later.
            if !matches!(input, Input::Health | Input::Timer) {
                node.waiting.push(input);
            }
            return;
        }
        match &input {
            Input::Observed(id, at, Ok(seen)) => {
                let asked = node.asked.get(id).copied().unwrap_or_default();
                Checks::observed(node, asked, *at, seen);
            }
            Input::Outcome(id, call, outcome) => {
                if let Some(gateway) = node.calls.remove(id)
                    && *outcome != Err(CallError::NotMade)
                {
                    Checks::wrote(node, self.now, &gateway);
                }
                if let Ok(done) = outcome {
                    self.checks.done(node, self.now, call, done);
                }
            }
            _ => {}
        }
        let Some(fleet) = &mut node.fleet else { return };
        match input {
            Input::Up(peer, hello) => fleet.handle_up(local, &peer, *hello),
            Input::Down(peer) => fleet.handle_down(local, &peer),
            Input::Message(peer, message) => fleet.handle_message(local, &peer, message),
            Input::Observed(id, _, seen) => fleet.handle_observation(local, id, seen),
            Input::Outcome(id, _, outcome) => fleet.handle_outcome(local, id, outcome),
            Input::Adopted(gateway) => fleet.handle_adopted(local, &gateway),
            Input::Health => {
                let (worker, egress) = (node.worker, Some(node.egress));
                fleet.handle_health(local, Health { worker, datapath: true, egress, aws: Some(node.api) });
            }
            Input::Timer => fleet.handle_timeout(local),
        }
        self.after(index);
    }

    /// Does what a fleet wants done, and arms its timer.
    fn after(&mut self, index: usize) {
        while let Some(event) = self.nodes[index].fleet.as_mut().and_then(Fleet::poll_event) {
            if self.trace {
                println!("{:>10.3} {} {event:?}", self.seconds(), name(index));
            }
            if let Event::TakingOver { gateway, why } = &event {
                self.nodes[index].why.insert(gateway.clone(), *why);
                if *why == Why::Silence {
                    let wrong = self.lacks_majority(index, gateway);
                    self.accuse(wrong);
                }
            }
            if let Event::PeerChanged { peer, to: Life::Alive, .. } = &event {
                self.nodes[index].declared.remove(peer);
            }
            self.nodes[index].events.push((self.now, event));
        }
        while let Some(action) = self.nodes[index].fleet.as_mut().and_then(Fleet::poll_action) {
            self.act(index, action);
        }
        self.check();
        let Some(fleet) = &self.nodes[index].fleet else { return };
        let at = fleet.poll_timeout();
        let node = &mut self.nodes[index];
        let nanos = u128::from(at.as_nanos().saturating_sub(node.origin)) * 1_000_000;
        let at = Instant::from_nanos((nanos / u128::from(1_000_000 + node.ppm)) as u64 + 2_000);
        let at = at.max(self.now);
        if node.armed.is_none_or(|armed| at < armed) {
            node.armed = Some(at);
            let life = node.life;
            self.schedule_at(at, Happening::Timer(index, life));
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        if self.trace && !matches!(&action, Action::Send { message: Message::Heartbeat(_), .. }) {
            println!("{:>10.3} {} -> {action:?}", self.seconds(), name(index));
        }
        let life = self.nodes[index].life;
        match action {
            Action::Send { to, message } => {
                let to = self.nodes.iter().position(|node| node.config.home.name == to).unwrap();
                let way = (index, to);
                if self.net.is_up(way) {
                    let at = self.net.arrival(self.now, way, &mut self.chance);
                    let number = self.net.number(way);
                    self.schedule_at(at, Happening::Deliver(way, number, message));
                }
            }
            Action::Observe { id, gateways } => {
                let node = &mut self.nodes[index];
                node.looks += 1;
                // One is in flight at a time.
                node.asked = [(id, self.now)].into();
                let after = self.chance.between(Duration::ZERO, Duration::from_millis(3));
                self.schedule(after, Happening::Begin(index, life, Job::Observe(id, gateways)));
            }
            Action::Call { id, gateway, call, begin_by } => {
                self.nodes[index].changes += 1;
                self.nodes[index].calls.insert(id, gateway.clone());
                Checks::wrote(&mut self.nodes[index], self.now, &gateway);
                let wrong = self.checks.called(&self.nodes[index], &gateway, &call);
                self.accuse(wrong);
                let after = self.chance.between(Duration::ZERO, Duration::from_millis(3));
                self.schedule(after, Happening::Begin(index, life, Job::Call(id, call, begin_by)));
                if std::mem::take(&mut self.nodes[index].is_trapped) {
                    self.pause(index);
                }
            }
            Action::Adopt { gateway } => {
                let after = self.chance.between(Duration::from_millis(1), Duration::from_millis(20));
                self.schedule(after, Happening::Input(index, life, Input::Adopted(gateway)));
            }
            Action::Active { gateway, addresses } => {
                let wrong = Checks::active(&self.nodes[index], &gateway);
                self.accuse(wrong);
                self.nodes[index].active.insert(gateway, addresses);
            }
            Action::StandDown { gateway } => {
                self.nodes[index].active.remove(&gateway);
            }
        }
    }

    fn dial(&mut self, way: Way) {
        self.schedule(Duration::from_millis(500), Happening::Dial(way));
        let (a, b) = way;
        let runs = |index: usize| self.nodes[index].fleet.is_some();
        if self.net.is_up(way) {
            let is_gone = !runs(a) || !runs(b);
            if (self.net.is_given_up(self.now, way) || is_gone) && self.net.disconnect(way) {
                self.tell_down(a, b);
                self.tell_down(b, a);
            }
            return;
        }
        let answers = |index: usize| runs(index) && !self.nodes[index].is_paused;
        if answers(a) && answers(b) && !self.net.is_cut(way) {
            self.net.connect(way);
            for (index, peer) in [(a, b), (b, a)] {
                let hello = self.nodes[peer].fleet.as_ref().unwrap().hello();
                let at = self.net.arrival(self.now, (peer, index), &mut self.chance);
                let input = Input::Up(name(peer), Box::new(hello));
                self.schedule_at(at, Happening::Input(index, self.nodes[index].life, input));
            }
        }
    }

    fn tell_down(&mut self, index: usize, peer: usize) {
        let life = self.nodes[index].life;
        self.schedule(self.net.quality.delay, Happening::Input(index, life, Input::Down(name(peer))));
    }

    fn deliver(&mut self, way: Way, number: u64, message: Message) {
        if !self.net.is_up(way) || self.net.number(way) != number {
            return;
        }
        if self.net.is_way_cut(way) {
            // Sent again until the way is open, or the connection is given up.
            self.schedule(Duration::from_millis(200), Happening::Deliver(way, number, message));
            return;
        }
        self.input(way.1, Input::Message(name(way.0), message));
    }

    fn begin(&mut self, index: usize, job: Job) {
        if self.nodes[index].is_paused {
            self.nodes[index].held_back.push(job);
            return;
        }
        let (life, eni) = (self.nodes[index].life, self.nodes[index].config.eni.clone());
        if let Job::Call(id, call, begin_by) = &job
            && self.local(index) > *begin_by
        {
            let input = Input::Outcome(*id, call.clone(), Err(CallError::NotMade));
            return self.schedule(Duration::ZERO, Happening::Input(index, life, input));
        }
        let Trouble { throttled, request_lost, answer_lost, late } = self.trouble;
        let there = self.chance.between(self.api.0 / 2, self.api.1 / 2);
        if !self.nodes[index].api || self.chance.permille(request_lost) {
            self.fail(index, &job, CALL, CallError::Unknown);
        } else if self.chance.permille(throttled) {
            self.fail(index, &job, there * 2, CallError::Throttled);
        } else if self.chance.permille(late) {
            let much_later = self.chance.between(CALL, CALL * 4);
            self.schedule(much_later, Happening::Arrive(index, life, eni, job.clone(), false));
            self.fail(index, &job, CALL, CallError::Unknown);
        } else if self.chance.permille(answer_lost) {
            self.schedule(there, Happening::Arrive(index, life, eni, job.clone(), false));
            self.fail(index, &job, CALL, CallError::Unknown);
        } else {
            self.schedule(there, Happening::Arrive(index, life, eni, job, true));
        }
    }

    fn fail(&mut self, index: usize, job: &Job, after: Duration, error: CallError) {
        let input = match job {
            Job::Observe(id, _) => Input::Observed(*id, self.now, Err(error)),
            Job::Call(id, call, _) => Input::Outcome(*id, call.clone(), Err(error)),
        };
        let life = self.nodes[index].life;
        self.schedule(after, Happening::Input(index, life, input));
    }

    fn arrive(&mut self, index: usize, life: u64, eni: &str, job: Job, answers: bool) {
        let input = match job {
            Job::Observe(id, gateways) => {
                let (at, seen) = self.ec2.describe(self.now, &gateways, &mut self.chance);
                Input::Observed(id, at, Ok(seen))
            }
            Job::Call(id, call, _) => {
                let result = if self.ec2.truth.black_holes.contains(eni) {
                    Err(CallError::Refused)
                } else {
                    self.ec2.change(self.now, eni, &call)
                };
                if self.trace {
                    println!("{:>10.3} ec2: {} {call:?} {result:?}", self.seconds(), name(index));
                }
                if result.is_ok() {
                    let wrong = self.checks.changed(self.now, &self.nodes, index, life, &call);
                    self.accuse(wrong);
                    self.check();
                }
                Input::Outcome(id, call, result)
            }
        };
        if answers {
            let back = self.chance.between(self.api.0 / 2, self.api.1 / 2);
            self.schedule(back, Happening::Input(index, life, input));
        }
    }

    fn check(&mut self) {
        let wrong = self.checks.one_active(&self.nodes, &self.ec2);
        self.accuse(wrong);
    }

    fn accuse(&mut self, wrong: Option<String>) {
        if let Some(wrong) = wrong {
            let wrong = format!("at {:.3} s: {wrong}", self.seconds());
            if self.trace {
                println!("WRONG {wrong}");
            }
            self.wrong.push(wrong);
        }
    }

    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.now.as_nanos()).as_secs_f64()
    }
}

pub fn letter(index: usize) -> char {
    char::from(b'a' + index as u8)
}

pub fn name(index: usize) -> String {
    format!("az-{}", letter(index))
}

fn gateway(setup: &Setup, index: usize, names: &[String]) -> Gateway {
    let letter = letter(index);
    let all = ["0.0.0.0/0", "198.51.100.0/24"];
    Gateway {
        name: names[index].clone(),
        allocations: (0..setup.allocations).map(|number| format!("eipalloc-{letter}{number}")).collect(),
        route_tables: (0..setup.tables).map(|number| format!("rtb-{letter}{number}")).collect(),
        destinations: all[..setup.tables.min(2)].iter().map(|net| net.parse().unwrap()).collect(),
        // The next one first, so that every instance has work.
        heirs: (1..names.len()).map(|ahead| names[(index + ahead) % names.len()].clone()).collect(),
        failback: setup.failback,
        fallback: setup.fallback.then(|| format!("nat-{letter}")),
    }
}

/// How often health is told.
const PROBE: Duration = Duration::from_millis(1_000);
/// What the executor waits for an answer.
const CALL: Duration = Duration::from_secs(5);
