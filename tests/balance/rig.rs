//! A target group, its targets, and a clock that only the test moves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use egret::balance::{
    CheckError, Close, Config, Event, Group, HealthCheck, Probe, Serving, State, Target, TargetSnapshot, Why,
};
use egret::time::Instant;

/// What a target says to a check: `None` is silence.
pub type Answer = Option<Result<(), CheckError>>;

pub const WELL: Answer = Some(Ok(()));
pub const REFUSES: Answer = Some(Err(CheckError::Refused));
pub const SILENT: Answer = None;

/// Targets answer the checks at once, by what the test says of them.
pub struct Rig {
    pub now: Instant,
    pub group: Group,
    answers: BTreeMap<SocketAddr, Answer>,
    /// All probes that were made, with their time.
    pub probes: Vec<(Instant, Probe)>,
    pub events: Vec<Event>,
    pub closes: Vec<Close>,
}

impl Rig {
    pub fn new(config: Config, targets: &[Target]) -> Self {
        Self::seeded(config, targets, [7; 16])
    }

    pub fn seeded(config: Config, targets: &[Target], seed: [u8; 16]) -> Self {
        let mut rig = Self {
            now: Instant::from_millis(1_000_000),
            group: Group::new(config, seed).unwrap(),
            answers: BTreeMap::new(),
            probes: Vec::new(),
            events: Vec::new(),
            closes: Vec::new(),
        };
        rig.set_targets(targets);
        rig
    }

    /// One whose targets have passed their first check; what led there is forgotten.
    pub fn healthy(config: Config, targets: &[Target]) -> Self {
        let mut rig = Self::new(config, targets);
        rig.run(Duration::from_secs(1));
        rig.forget();
        rig
    }

    pub fn forget(&mut self) {
        self.events.clear();
        self.closes.clear();
        self.probes.clear();
    }

    pub fn set_targets(&mut self, targets: &[Target]) {
        self.group.set_targets(self.now, targets).unwrap();
        self.turn();
    }

    /// From now on `target` answers so; until it is told, a target is well.
    pub fn answer(&mut self, target: SocketAddr, answer: Answer) {
        self.answers.insert(target, answer);
    }

    /// Lets time pass, from one timeout to the next.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.turn();
            match self.group.poll_timeout() {
                Some(at) if at <= end => {
                    assert!(at > self.now, "what is due is done");
                    self.now = at;
                }
                _ => break,
            }
        }
        self.now = end;
        self.turn();
    }

    /// Lets time pass until `target` has been checked `checks` times more.
    pub fn run_checks(&mut self, target: SocketAddr, checks: usize) {
        let count = |rig: &Self| rig.probes.iter().filter(|(_, probe)| probe.target == target).count();
        let enough = count(self) + checks;
        while count(self) < enough {
            self.now = self.group.poll_timeout().expect("checks go on").max(self.now);
            self.turn();
        }
    }

    /// What is to be done after each call.
    pub fn turn(&mut self) {
        self.group.handle_timeout(self.now);
        while let Some(probe) = self.group.poll_probe(self.now) {
            self.probes.push((self.now, probe));
            if let Some(result) = self.answers.get(&probe.target).copied().unwrap_or(WELL) {
                self.group.handle_probe(self.now, probe.id, result);
            }
        }
        while let Some(event) = self.group.poll_event() {
            self.events.push(event);
        }
        while let Some(close) = self.group.poll_close() {
            self.closes.push(close);
        }
    }

    pub fn select(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        self.group.select(self.now, client, &[])
    }

    /// A connection that is over at once.
    pub fn visit(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        let target = self.select(client);
        if let Some(target) = target {
            self.close(target);
        }
        target
    }

    pub fn connect(&mut self, target: SocketAddr, result: Result<(), CheckError>) {
        self.group.handle_connect(self.now, target, result);
        self.turn();
    }

    pub fn close(&mut self, target: SocketAddr) {
        self.group.closed(self.now, target);
        self.turn();
    }

    pub fn drain(&mut self, target: SocketAddr) -> bool {
        let known = self.group.drain(self.now, target);
        self.turn();
        known
    }

    pub fn undrain(&mut self, target: SocketAddr) -> bool {
        let known = self.group.undrain(self.now, target);
        self.turn();
        known
    }

    pub fn find(&self, target: SocketAddr) -> Option<TargetSnapshot> {
        self.group.snapshot(self.now).targets.into_iter().find(|found| found.address == target)
    }

    pub fn state(&self, target: SocketAddr) -> State {
        self.find(target).expect("a known target").state
    }

    pub fn connections(&self, target: SocketAddr) -> u32 {
        self.find(target).expect("a known target").connections
    }

    /// The changes of who serves, in order.
    pub fn serving_changes(&self) -> Vec<(Serving, Serving)> {
        let change = |event: &Event| match event {
            Event::ServingChanged { from, to } => Some((*from, *to)),
            _ => None,
        };
        self.events.iter().filter_map(change).collect()
    }
}

/// Target number `number`.
pub fn at(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 5000))
}

pub fn targets(numbers: impl IntoIterator<Item = u8>) -> Vec<Target> {
    numbers.into_iter().map(|number| at(number).into()).collect()
}

pub fn weighted(number: u8, weight: u16) -> Target {
    Target { weight, ..at(number).into() }
}

pub fn backup(number: u8) -> Target {
    Target { backup: true, ..at(number).into() }
}

/// One of 10 million clients.
pub fn client(number: u32) -> SocketAddr {
    let [_, high, mid, low] = number.to_be_bytes();
    SocketAddr::from(([198, high, mid, low], 1024 + (number % 60_000) as u16))
}

pub fn config() -> Config {
    Config::default()
}

/// Checks twice a second that count at once.
pub fn quick() -> Config {
    let second = Duration::from_millis(500);
    let health =
        HealthCheck { interval: second, timeout: second, healthy_threshold: 1, unhealthy_threshold: 1 };
    Config { health, ..config() }
}

pub fn refused_check() -> State {
    State::Unhealthy(Why::HealthCheck(CheckError::Refused))
}

pub const SECOND: Duration = Duration::from_secs(1);
