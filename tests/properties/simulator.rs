//! Many clients talk to many servers over bad links for many virtual hours. Every payload names who may see it.
//!
//! `EGRET_SIMULATION_SEED=n cargo test --release --test properties simulat` replays the run with that seed.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use egret::nat::{Config, MappingBehaviour, Side};
use egret::wire::{Endpoint, Protocol};

use super::world::{Happening, Link, World};
use crate::support::*;

/// A client's exchange with a server: stop and wait, with retransmission.
#[derive(Debug)]
struct Conversation {
    protocol: Protocol,
    local: Endpoint,
    remote: Endpoint,
    /// What has been got done: for TCP the handshake is the first step and the end the last one.
    step: u32,
    steps: u32,
    tries: u32,
    /// Of TCP: the next sequence number to send and to receive.
    seq: u32,
    expected: u32,
    resets: bool,
    done: bool,
}

/// What a server knows of a TCP connection.
#[derive(Debug)]
struct Served {
    first: u32,
    expected: u32,
    seq: u32,
    reply: Vec<u8>,
}

#[derive(Debug)]
enum Timer {
    /// A client begins something.
    Begin(u32),
    /// A conversation sends its step, again if `tries` is still what it was.
    Send {
        number: usize,
        step: u32,
        tries: u32,
    },
    Attack,
}

#[derive(Default, Debug)]
struct Tally {
    begun: u32,
    finished: u32,
    given_up: u32,
    broken: u32,
}

struct Simulation {
    world: World<Timer>,
    conversations: Vec<Conversation>,
    /// Of live and recent conversations: nobody begins another with the same endpoints.
    busy: HashSet<(Protocol, Endpoint, Endpoint)>,
    by_local: HashMap<(Protocol, Endpoint, Endpoint), usize>,
    served: HashMap<(Endpoint, Endpoint), Served>,
    tally: Tally,
}

impl Simulation {
    fn new(config: Config, seed: u64, link: Link) -> Self {
        Self {
            world: World::new(config, seed, link),
            conversations: Vec::new(),
            busy: HashSet::new(),
            by_local: HashMap::new(),
            served: HashMap::new(),
            tally: Tally::default(),
        }
    }

    fn run(&mut self, clients: u32, duration: Duration) {
        for client in 0..clients {
            let wait = self.millis(60_000);
            self.world.set_timer(wait, Timer::Begin(client));
        }
        self.world.set_timer(Duration::from_secs(1), Timer::Attack);
        let end = self.world.now() + duration;
        while let Some(happening) = self.world.next(end) {
            match happening {
                Happening::Timer(Timer::Begin(client)) => self.begin(client),
                Happening::Timer(Timer::Send { number, step, tries }) => self.send(number, step, tries),
                Happening::Timer(Timer::Attack) => self.attack(),
                Happening::Arrival(Side::External, packet) => self.at_server(&packet),
                Happening::Arrival(Side::Internal, packet) => self.at_client(&packet),
            }
            while self.world.nat.engine.poll_event().is_some() {}
        }
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.world.random.below(most))
    }

    fn begin(&mut self, client: u32) {
        let wait = self.millis(120_000);
        self.world.set_timer(wait, Timer::Begin(client));
        let random = &mut self.world.random;
        let protocol = [Protocol::UDP, Protocol::TCP, Protocol::TCP, Protocol::ICMP][random.below(4) as usize];
        // Few ports and few servers: clients choose alike, and soon choose the same again.
        let address = Ipv4Addr::from(0x0a00_0002 + client);
        let local = Endpoint::new(address, 4_000 + random.below(6) as u16);
        let server = Ipv4Addr::from(0xc633_6400 + random.below(5) as u32);
        let port = if protocol == Protocol::ICMP { 0 } else { 80 + random.below(2) as u16 };
        let remote = Endpoint::new(server, port);
        if !self.busy.insert((protocol, local, remote)) {
            return;
        }
        let steps = if protocol == Protocol::TCP { 3 } else { 1 } + random.below(4) as u32;
        let (seq, resets) = (random.next() as u32, random.chance(20));
        let number = self.conversations.len();
        self.conversations.push(Conversation {
            protocol,
            local,
            remote,
            step: 0,
            steps,
            tries: 0,
            seq,
            expected: 0,
            resets,
            done: false,
        });
        self.by_local.insert((protocol, local, remote), number);
        self.tally.begun += 1;
        self.send(number, 0, 0);
    }

    /// Sends the step of a conversation, unless it has got on since the timer was set.
    fn send(&mut self, number: usize, step: u32, tries: u32) {
        let talk = &mut self.conversations[number];
        if talk.done {
            // Its endpoints may be used again.
            self.busy.remove(&(talk.protocol, talk.local, talk.remote));
            return;
        }
        if talk.step != step || talk.tries != tries {
            return;
        }
        if tries == 8 {
            self.tally.given_up += 1;
            self.finish(number);
            return;
        }
        talk.tries += 1;
        let timer = Timer::Send { number, step, tries: talk.tries };
        let wait = Duration::from_secs(1 << talk.tries.min(5));
        let token = format!("{}|{}|{number}|{step}|", talk.local, talk.remote);
        let last = step + 1 == talk.steps;
        let (local, remote) = (talk.local, talk.remote);
        let packet = match talk.protocol {
            Protocol::UDP if number.is_multiple_of(10) => udp(local, remote).payload(padded(&token, 4_000)),
            Protocol::UDP => udp(local, remote).payload(token),
            Protocol::ICMP => ping(local, remote, local.port).payload(token),
            _ if step == 0 => tcp(local, remote, SYN).seq(talk.seq),
            _ if last && talk.resets => tcp(local, remote, RST).seq(talk.seq),
            _ if last => tcp(local, remote, FIN | ACK).seq(talk.seq).ack(talk.expected),
            _ => tcp(local, remote, PSH | ACK).seq(talk.seq).ack(talk.expected).payload(token),
        };
        let packet = packet.bytes();
        let resets = talk.protocol == Protocol::TCP && last && talk.resets;
        self.world.send(Side::Internal, &packet);
        if resets {
            self.tally.finished += 1;
            self.finish(number);
        } else {
            self.world.set_timer(wait, timer);
        }
    }

    fn finish(&mut self, number: usize) {
        let talk = &mut self.conversations[number];
        talk.done = true;
        // Until no packet of it is on its way any more.
        let timer = Timer::Send { number, step: talk.step, tries: talk.tries };
        self.world.set_timer(Duration::from_secs(5), timer);
    }

    /// A step has been answered: the next one comes now, or after an idle time that the NAT must bear.
    fn proceed(&mut self, number: usize) {
        let talk = &mut self.conversations[number];
        talk.step += 1;
        talk.tries = 0;
        let (step, done) = (talk.step, talk.step == talk.steps);
        let idle = match talk.protocol {
            Protocol::TCP => 7_000_000,
            Protocol::UDP => 280_000,
            _ => 55_000,
        };
        if done {
            self.tally.finished += 1;
            self.finish(number);
            return;
        }
        // A client that has sent nothing but a handshake whose last segment was lost is not yet established.
        let may_idle = talk.protocol != Protocol::TCP || step > 1;
        let idle = if may_idle && self.world.random.chance(3) { self.millis(idle) } else { self.millis(500) };
        self.world.set_timer(idle, Timer::Send { number, step, tries: 0 });
    }

    fn at_server(&mut self, packet: &View) {
        let (from, here) = (packet.source, packet.destination);
        if packet.protocol == Protocol::TCP {
            return self.serve_tcp(packet);
        }
        if packet.icmp.as_ref().is_some_and(|icmp| icmp.kind != 8) {
            return;
        }
        let token = String::from_utf8(packet.payload.clone()).expect("a token");
        assert_eq!(token.split('|').nth(1), Some(here.to_string().as_str()), "for another server");
        let answer = match packet.protocol {
            Protocol::UDP => udp(here, from),
            _ => pong(here, from, packet.identifier()),
        };
        self.world.send(Side::External, &answer.payload(token).bytes());
    }

    fn serve_tcp(&mut self, packet: &View) {
        let (from, here) = (packet.source, packet.destination);
        let segment = packet.tcp.as_ref().expect("TCP");
        let key = (here, from);
        if segment.flags & RST != 0 {
            self.served.remove(&key);
            return;
        }
        if segment.flags & SYN != 0 {
            let known = self.served.get(&key).is_some_and(|served| served.first == segment.seq);
            if !known {
                let (seq, expected) = (self.world.random.next() as u32, segment.seq.wrapping_add(1));
                let reply = tcp(here, from, SYN | ACK).seq(seq).ack(expected).bytes();
                let seq = seq.wrapping_add(1);
                self.served.insert(key, Served { first: segment.seq, expected, seq, reply });
            }
        }
        let Some(served) = self.served.get_mut(&key) else { return };
        let fin = segment.flags & FIN != 0;
        let length = u32::try_from(packet.payload.len()).expect("short") + u32::from(fin);
        if segment.flags & SYN == 0 && segment.seq == served.expected && length > 0 {
            if !fin {
                let token = String::from_utf8(packet.payload.clone()).expect("a token");
                assert_eq!(token.split('|').nth(1), Some(here.to_string().as_str()), "for another server");
            }
            served.expected = served.expected.wrapping_add(length);
            let flags = if fin { FIN | ACK } else { PSH | ACK };
            let reply = tcp(here, from, flags).seq(served.seq).ack(served.expected).payload(&packet.payload);
            served.reply = reply.bytes();
            served.seq = served.seq.wrapping_add(length);
        } else if length == 0 && segment.flags & SYN == 0 {
            return;
        }
        // New or seen before, the sender waits for this.
        let reply = served.reply.clone();
        self.world.send(Side::External, &reply);
    }

    fn at_client(&mut self, packet: &View) {
        let mut here = packet.destination;
        if let Some(icmp) = &packet.icmp {
            assert_eq!(icmp.kind, 0, "only echo replies come from servers");
            here.port = icmp.identifier();
        }
        let remote = packet.source;
        let number = self.by_local.get(&(packet.protocol, here, remote)).copied();
        let number = number.unwrap_or_else(|| panic!("{here} never spoke to {remote}: {packet:?}"));
        let token = String::from_utf8(packet.payload.clone()).expect("a token");
        assert!(!token.starts_with("evil"), "an attacker's packet has come in");
        if !token.is_empty() {
            assert_eq!(token.split('|').next(), Some(here.to_string().as_str()), "for another client");
            assert_eq!(token.split('|').nth(1), Some(remote.to_string().as_str()));
        }
        let talk = &mut self.conversations[number];
        if talk.done {
            return;
        }
        let named = |token: &str, at: usize| token.split('|').nth(at).and_then(|part| part.parse().ok());
        let Some(segment) = &packet.tcp else {
            if named(&token, 2) == Some(number) && named(&token, 3) == Some(talk.step as usize) {
                self.proceed(number);
            }
            return;
        };
        if segment.flags & RST != 0 {
            self.tally.broken += 1;
            self.finish(number);
            return;
        }
        if segment.flags & SYN != 0 {
            if talk.step == 0 && segment.ack == talk.seq.wrapping_add(1) {
                talk.seq = segment.ack;
                talk.expected = segment.seq.wrapping_add(1);
                let ack = tcp(here, remote, ACK).seq(talk.seq).ack(talk.expected).bytes();
                self.world.send(Side::Internal, &ack);
                self.proceed(number);
            }
            return;
        }
        if talk.step == 0 || segment.seq != talk.expected {
            return;
        }
        let fin = u32::from(segment.flags & FIN != 0);
        talk.expected = talk.expected.wrapping_add(u32::try_from(token.len()).expect("short") + fin);
        talk.seq = segment.ack;
        if fin != 0 {
            let ack = tcp(here, remote, ACK).seq(talk.seq).ack(talk.expected).bytes();
            self.world.send(Side::Internal, &ack);
        }
        self.proceed(number);
    }

    /// Somebody outside guesses: some packets from nowhere, to ports that are surely in use.
    fn attack(&mut self) {
        self.world.set_timer(Duration::from_secs(2), Timer::Attack);
        for _ in 0..3 {
            let random = &mut self.world.random;
            let from = Endpoint::new(Ipv4Addr::from(0xcb00_7140 + random.below(8) as u32), 80);
            let to = Endpoint::new(EXTERNAL, 4_000 + random.below(6) as u16);
            let flags = [SYN, ACK, RST, SYN | ACK][random.below(4) as usize];
            let packet = match random.below(3) {
                0 => udp(from, to),
                1 => tcp(from, to, flags).seq(random.next() as u32),
                _ => pong(from, to, to.port),
            };
            self.world.send(Side::External, &packet.payload("evil").bytes());
        }
    }
}

fn padded(token: &str, length: usize) -> String {
    format!("{token}{}", "x".repeat(length - token.len()))
}

/// Runs `seed`, or what the environment says instead; a failure names the seed.
fn simulate(seed: u64, hours: u64, link: Link, change: impl Fn(&mut Config)) {
    let seed = std::env::var("EGRET_SIMULATION_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
    let _guard = NameSeed(seed);
    let mut config = config();
    change(&mut config);
    let mut simulation = Simulation::new(config, seed, link);
    simulation.run(40, Duration::from_secs(hours * 3_600));
    let tally = &simulation.tally;
    assert!(tally.begun > 1_000, "{tally:?}");
    assert!(tally.finished * 100 > tally.begun * 95, "{tally:?}");
    assert_eq!(tally.broken, 0, "the NAT has reset a live connection: {tally:?}");
    simulation.world.nat.assert_empties();
}

/// Tells how to replay what has panicked.
struct NameSeed(u64);

impl Drop for NameSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with EGRET_SIMULATION_SEED={}", self.0);
        }
    }
}

const GOOD: Link = Link { loss: 0, doubling: 0, delay: Duration::from_millis(5) };
const BAD: Link = Link { loss: 5, doubling: 5, delay: Duration::from_millis(300) };

#[test]
fn simulated_day_over_good_links() {
    simulate(1, 24, GOOD, |_| {});
}

#[test]
fn simulated_hours_over_bad_links() {
    for seed in 0..4 {
        simulate(seed, 6, BAD, |_| {});
    }
}

#[test]
fn simulated_hours_with_several_addresses_and_dependent_mapping() {
    simulate(7, 6, BAD, |c| {
        c.external_addresses = pool(3);
        c.mapping = MappingBehaviour::AddressAndPortDependent;
    });
}

/// Forty clients on few ports: many mappings share theirs with others.
#[test]
fn simulated_hours_with_overloaded_ports() {
    simulate(8, 6, BAD, |c| c.port_range = 4_000..=4_063);
}

/// Payloads still reach only whom they are for when most packets never see the engine.
#[test]
fn simulated_hours_with_a_fast_path() {
    simulate(9, 6, BAD, |c| {
        c.offload_after = Some(2);
        c.port_range = 4_000..=4_063;
    });
}
