//! Flows that are installed and removed while the program reads them: a removed flow's slot is used again at once, and
//! another processor may be in the middle of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as Clock};

use super::super::flows::Flows;
use super::rig::{Action, Arms, Rig, framed, in_namespace, tuple_of};
use super::support::*;
use crate::datapath::next_hop::NextHops;
use crate::datapath::sys;
use crate::nat::{Config, Flow, FlowPair, Side, TcpMarks};
use crate::time::Instant;
use crate::wire::{Endpoint, FiveTuple, Protocol};

const SESSIONS: u8 = 4;

/// Session `number`: no two share an endpoint, before or after.
pub fn session(number: u8) -> FlowPair {
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

/// Has the program read while another thread writes, again and again. Gives how many hits there were, and what came out
/// wrong.
fn race(duration: Duration, mut write: impl FnMut(&mut Flows, &NextHops) + Send) -> (u64, Vec<String>) {
    in_namespace(|| {
        let config = Config { offload_after: Some(1), ..config() };
        // All have one home: the next session's flows are where the last one's were.
        let mut rig = Rig::with_homes(Arms::One, &config, 2, 1);
        let frames: Vec<_> = (0..SESSIONS)
            .map(session)
            .flat_map(|pair| [pair.out, pair.back])
            .map(|flow| (flow, framed(0, &udp(flow.matches.source, flow.matches.destination).bytes())))
            .collect();
        let (mut hits, mut wrong) = (0, Vec::new());
        let stop = AtomicBool::new(false);
        let (mut program, flows, next_hops) = rig.parts();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    write(flows, next_hops);
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

fn assert_right((hits, wrong): (u64, Vec<String>)) {
    assert!(hits > 1_000, "{hits} hits: they hardly met");
    assert!(wrong.is_empty(), "{} of {hits}: {}", wrong.len(), wrong[0]);
}

#[test]
fn flow_is_never_translated_as_the_one_that_takes_its_place() {
    let now = Instant::from_nanos(sys::monotonic_nanos().expect("a clock"));
    assert_right(race(Duration::from_secs(2), |flows, next_hops| {
        for pair in (0..SESSIONS).map(session) {
            flows.install(now, &pair, next_hops).expect("there is room");
            flows.remove(now, &pair.keys());
        }
    }));
}

/// A processor may see another's writes late and in any order; ours hardly ever does, so that they are made that way.
#[test]
fn flow_that_is_half_another_is_not_translated() {
    let flows_of = |number| {
        let pair = session(number);
        [pair.out.matches, pair.back.matches]
    };
    let mut slots = Vec::new();
    assert_right(race(Duration::from_secs(2), |flows, next_hops| {
        if slots.is_empty() {
            for number in 0..SESSIONS {
                if number > 0 {
                    flows.remove(Instant::ORIGIN, &session(number - 1).keys());
                }
                flows.install(Instant::ORIGIN, &session(number), next_hops).expect("there is room");
                slots.push(flows_of(number).map(|tuple| flows.value(&tuple).expect("installed")));
            }
        }
        for first in 0..8 {
            for number in 0..SESSIONS {
                let before = flows_of((number + SESSIONS - 1) % SESSIONS);
                for (tuple, slot) in before.iter().zip(slots[usize::from(number)]) {
                    flows.smear(tuple, slot, first);
                }
            }
        }
    }));
}
