//! Flows that are installed and removed while the program reads them: the kernel uses a removed flow's memory again at
//! once, and another processor may be in the middle of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as Clock};

use super::rig::{Action, Arms, Rig, framed, in_namespace, tuple_of};
use super::support::*;
use crate::datapath::sys;
use crate::nat::{Config, Flow, FlowKeys, FlowPair, Side, TcpMarks};
use crate::time::Instant;
use crate::wire::{Endpoint, FiveTuple, Protocol};

const FLOWS: usize = 4;

/// Session `number`: no two share an endpoint, before or after.
fn session(number: u8) -> FlowPair {
    let number_of = |base: u16| base + u16::from(number);
    let internal = Endpoint::new([10, 0, 0, 2 + number].into(), number_of(4000));
    let external = Endpoint::new(EXTERNAL, number_of(20_000));
    let remote = Endpoint::new([198, 51, 100, 1 + number].into(), number_of(7000));
    let out = Flow {
        matches: FiveTuple { protocol: Protocol::UDP, source: internal, destination: remote },
        source: external,
        destination: remote,
        from: Side::Internal,
        to: Side::External,
        mtu: 1500,
        marks: TcpMarks::default(),
    };
    let matches = FiveTuple { protocol: Protocol::UDP, source: remote, destination: external };
    let (from, to) = (Side::External, Side::Internal);
    FlowPair { out, back: Flow { matches, source: remote, destination: internal, from, to, ..out } }
}

/// However the thread ends that the other one waits for.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many hits there were, and what came out wrong.
fn race(duration: Duration) -> (u64, Vec<String>) {
    in_namespace(|| {
        let config = Config { offload_after: Some(1), ..config() };
        let mut rig = Rig::new(Arms::One, &config, 2);
        let sessions: Vec<FlowPair> = (0..FLOWS as u8).map(session).collect();
        let frames: Vec<_> = sessions
            .iter()
            .flat_map(|pair| [pair.out, pair.back])
            .map(|flow| (flow, framed(0, &udp(flow.matches.source, flow.matches.destination).bytes())))
            .collect();
        let (mut hits, mut wrong) = (0, Vec::new());
        let stop = AtomicBool::new(false);
        let (mut program, flows, next_hops) = rig.parts();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Two flows of a time in a map for two: the next session's are where the last one's were.
                let now = Instant::from_nanos(sys::monotonic_nanos().unwrap_or(0));
                while !stop.load(Ordering::Relaxed) {
                    for pair in &sessions {
                        flows.install(now, pair, next_hops).expect("there is room");
                        let keys: FlowKeys = pair.keys();
                        flows.remove(now, &keys);
                    }
                }
            });
            let _stop = SetAtEnd(&stop);
            let end = clock() + duration;
            while clock() < end {
                for (flow, frame) in frames.iter().cycle().take(4096) {
                    let Action::Send(_, sent) = program.run(0, frame) else { continue };
                    hits += 1;
                    let (sent, complaint) = (tuple_of(&sent[14..]), checksum_complaint(&sent[14..]));
                    if (sent.source, sent.destination) != (flow.source, flow.destination) || complaint.is_some()
                    {
                        wrong.push(format!("{flow:?}: {sent:?} {complaint:?}"));
                    }
                }
            }
        });
        (hits, wrong)
    })
}

#[expect(clippy::disallowed_methods, reason = "a race is in real time")]
fn clock() -> Clock {
    Clock::now()
}

#[test]
fn flow_is_never_translated_as_the_one_that_takes_its_place() {
    let (hits, wrong) = race(Duration::from_secs(3));
    assert!(hits > 1_000, "{hits} hits: they hardly met");
    assert!(wrong.is_empty(), "{} of {hits}: {}", wrong.len(), wrong[0]);
}
