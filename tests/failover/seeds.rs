//! Chance decides how large the fleet is, how bad its network and EC2 are, and what goes wrong. Whatever it is, what
//! must hold does, and once all is quiet every gateway is whole again.
//!
//! `EGRET_SEEDS=10000` tries as many; `EGRET_SEED=n` replays one, and tells what happens.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use egret::failover::{Event, Failback, Fleet, Timing};

use crate::chance::Chance;
use crate::net::Quality;
use crate::world::{Node, Setup, Trouble, World, name};

#[test]
fn whatever_goes_wrong_nothing_splits_and_all_ends_well() {
    let seen = Seen::default();
    if let Some(seed) = number("EGRET_SEED") {
        let end = run(seed, true, &seen).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        println!("seed {seed}: well {:.1} s after the last fault", end.as_secs_f64());
        return;
    }
    let seeds = number("EGRET_SEEDS").unwrap_or(500);
    let (next, failed, longest) = (AtomicU64::new(1), AtomicBool::new(false), AtomicU64::new(0));
    let failures = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed > seeds {
                    break;
                }
                match run(seed, false, &seen) {
                    Ok(took) => _ = longest.fetch_max(took.as_millis() as u64, Ordering::Relaxed),
                    Err(wrong) => {
                        failed.store(true, Ordering::Relaxed);
                        failures.push(format!(
                            "seed {seed}: {wrong}\nreplay it: EGRET_SEED={seed} cargo test --release \
                             --no-default-features --test failover nothing_splits -- --nocapture"
                        ));
                    }
                }
            }
            failures
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let longest = Duration::from_millis(longest.load(Ordering::Relaxed)).as_secs_f64();
    println!(
        "{seeds} seeds: all well at most {longest:.1} s after the last fault, of {} s allowed",
        BOUND.as_secs()
    );
    seen.has_all();
}

/// How often what has happened, so that chance cannot come to try nothing.
#[derive(Default)]
struct Seen(Mutex<BTreeMap<String, u64>>);

impl Seen {
    fn add(&self, world: &World) {
        let mut seen = self.0.lock().unwrap();
        for (_, event) in world.nodes.iter().flat_map(|node| &node.events) {
            let what = match event {
                Event::Active { why, .. } => format!("active, {why:?}"),
                Event::Abandoned { why, .. } => format!("abandoned, {why:?}"),
                Event::CallFailed { error, .. } => format!("call failed, {error:?}"),
                Event::FellBack { .. } => "fell back".to_owned(),
                Event::TakenBack { .. } => "taken back".to_owned(),
                Event::Mending { .. } => "mending".to_owned(),
                _ => continue,
            };
            *seen.entry(what).or_default() += 1;
        }
    }

    fn has_all(&self) {
        let seen = self.0.lock().unwrap();
        println!("{seen:#?}");
        for what in [
            "active, Found",
            "active, Free",
            "active, Silence",
            "active, Unwell",
            "active, HandOver(Operator)",
            "active, HandOver(Leaving)",
            "active, HandOver(Failback)",
            "abandoned, Lost",
            "abandoned, NoReason",
            "abandoned, Unfit",
            "abandoned, TooLong",
            "call failed, StaleAssociation",
            "call failed, AlreadyAssociated",
            "call failed, Throttled",
            "call failed, NotMade",
            "call failed, Unknown",
            "fell back",
            "taken back",
            "mending",
        ] {
            assert!(seen.contains_key(what), "in none of the seeds: {what}");
        }
    }
}

/// Runs one; how long after the last fault it was well for good.
fn run(seed: u64, trace: bool, seen: &Seen) -> Result<Duration, String> {
    let mut chance = Chance::new(seed);
    let setup = setup(seed, &mut chance);
    let mut world = World::new(&setup);
    world.trace = trace;
    if trace {
        println!("{setup:#?}");
    }
    world.trouble = trouble(&mut chance);
    for index in 0..setup.instances {
        world.run(chance.between(Duration::ZERO, Duration::from_secs(3)));
        world.start(index);
    }
    let mut faults = Faults { trace, ..Faults::default() };
    let until = world.now + chance.between(Duration::from_secs(20), Duration::from_secs(120));
    while world.now < until && world.wrong.is_empty() {
        let most = *chance.pick(&[500, 5_000, 20_000]);
        world.run(chance.between(Duration::ZERO, Duration::from_millis(most)));
        faults.happen(&mut world, &mut chance);
    }
    faults.end(&mut world, &mut chance);
    world.trouble = Trouble::default();
    let end = settle(&mut world);
    seen.add(&world);
    end
}

/// Runs until all is well, and stays so.
fn settle(world: &mut World) -> Result<Duration, String> {
    let (begin, until) = (world.now, world.now + BOUND);
    let mut well_since = None;
    loop {
        world.run(Duration::from_millis(500));
        if let Some(wrong) = world.wrong.first() {
            return Err(wrong.clone());
        }
        match (world.unsettled(), well_since) {
            (None, None) => well_since = Some(world.now),
            (None, Some(since)) if world.now - since >= HOLD_DOWN * 2 => return Ok(since - begin),
            (None, Some(_)) => {}
            (Some(wrong), _) if world.now >= until => return Err(format!("it does not end well: {wrong}")),
            (Some(_), _) => well_since = None,
        }
    }
}

fn setup(seed: u64, chance: &mut Chance) -> Setup {
    let millis = Duration::from_millis;
    let seconds = Duration::from_secs;
    Setup {
        seed,
        instances: *chance.pick(&[2, 2, 2, 3, 3, 3, 4, 5]),
        // Everything that is long is shorter, so that it happens often.
        timing: Timing {
            heartbeat: millis(400),
            hold_down: HOLD_DOWN,
            observe_every: seconds(10),
            turn: seconds(5),
            hand_over_within: seconds(15),
            max_retry: seconds(5),
            ..Timing::default()
        },
        allocations: 1 + chance.below(3) as usize,
        tables: 1 + chance.below(2) as usize,
        failback: if chance.permille(700) { Failback::Auto } else { Failback::Manual },
        fallback: chance.permille(500),
        quality: Quality {
            delay: millis(1 + chance.below(20)),
            jitter: millis(*chance.pick(&[0, 10, 200])),
            loss: *chance.pick(&[0, 0, 10]),
        },
        lag: millis(*chance.pick(&[0, 500, 2_000, 4_000, 9_000])),
        api: *chance.pick(&[(millis(20), millis(200)), (millis(100), millis(2_000))]),
    }
}

fn trouble(chance: &mut Chance) -> Trouble {
    let mut permille = || *chance.pick(&[0, 0, 20, 150]);
    Trouble {
        throttled: permille(),
        request_lost: permille() / 2,
        answer_lost: permille() / 2,
        late: permille() / 3,
    }
}

/// What goes wrong.
#[derive(Default)]
struct Faults {
    trace: bool,
    was_replaced: bool,
}

impl Faults {
    fn happen(&mut self, world: &mut World, chance: &mut Chance) {
        let many = world.nodes.len() as u64;
        let one = chance.below(many) as usize;
        let other = (one + 1 + chance.below(many - 1) as usize) % many as usize;
        let kind = chance.below(22);
        if self.trace {
            println!("{:>10.3} FAULT {kind} of {one} and {other}", world.seconds());
        }
        match kind {
            0..=2 => world.crash(one),
            3..=5 if world.nodes[one].fleet.is_none() => world.start(one),
            4 | 5 if world.nodes[one].is_paused => world.wake(one),
            3..=5 => world.pause(one),
            6 => world.part(one, other),
            7 => world.cut(one, other),
            8 => world.isolate(one),
            9 | 10 => world.heal(),
            11 => {
                let egress = world.nodes[one].egress;
                world.set_egress(one, !egress);
            }
            12 => {
                let worker = world.nodes[one].worker;
                world.set_worker(one, !worker);
            }
            13 => {
                let api = world.nodes[one].api;
                world.set_api(one, !api);
            }
            14 => (0..world.nodes.len()).for_each(|index| world.set_api(index, chance.permille(500))),
            15 => {
                world.terminate(one);
                self.was_replaced = true;
            }
            16 => world.set_leaving(one, true),
            17 => world.set_leaving(one, false),
            18 => {
                // It may be refused, which changes nothing.
                let gateway = chance.below(many) as usize;
                let host = world.host_of(gateway).unwrap_or(one);
                let _ = world.hand_over(host, gateway, other);
            }
            19 => world.nodes[one].is_trapped = true,
            20 => {
                // Who may be wrong; one that somebody hears is not believed dead.
                let _ = world.declare_dead(one, other);
            }
            _ => {
                world.isolate(one);
                world.set_egress(one, false);
                world.set_api(one, false);
            }
        }
    }

    /// All faults are over; of an instance that runs no more, the others remember what it told.
    fn end(&self, world: &mut World, chance: &mut Chance) {
        world.heal();
        let down: Vec<usize> =
            (0..world.nodes.len()).filter(|index| world.nodes[*index].fleet.is_none()).collect();
        // One may stay down, if the others know what it had.
        let knows = |node: &Node, gone: usize| {
            let mut told: Vec<_> = node.disk.iter().collect();
            told.extend(node.fleet.iter().flat_map(Fleet::known));
            told.iter().any(|hello| hello.gateway.name == name(gone))
        };
        let is_known = |gone: &usize| {
            (0..world.nodes.len()).filter(|index| index != gone).all(|index| knows(&world.nodes[index], *gone))
        };
        let stays_down =
            down.first().copied().filter(|gone| chance.permille(500) && !self.was_replaced && is_known(gone));
        for index in 0..world.nodes.len() {
            world.set_egress(index, true);
            world.set_worker(index, true);
            world.set_api(index, true);
            world.nodes[index].is_trapped = false;
            world.wake(index);
            world.set_leaving(index, false);
            if world.nodes[index].fleet.is_none() && stays_down != Some(index) {
                world.start(index);
            }
        }
        if self.trace {
            println!("{:>10.3} QUIET, {stays_down:?} stays down", world.seconds());
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}

const HOLD_DOWN: Duration = Duration::from_secs(20);
/// Ten hold-downs are what a host is left alone that was not heard since it got the address; then there are turns.
const BOUND: Duration = Duration::from_secs(300);
