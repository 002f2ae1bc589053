//! The same traces through an engine alone and through program and engine come out the same, byte for byte.
//!
//! What is not compared is when a flow was last used, as the kernel's clock cannot be moved; [`Rig`] checks that the
//! program writes what that clock says, and goes by the test's.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::rig::{Arms, Rig, in_namespace};
use super::support::{Carrier, config};
use super::twins::{Twins, doing};

fn compare(arms: Arms) {
    let cases = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let setting = (any::<u8>(), any::<u64>(), 1..5_u16, 0..ROOMS.len());
    let doings = prop::collection::vec(doing(), 1..150);
    // One for each number of flows, unless a case fails in it.
    let spare = RefCell::new(ROOMS.map(|_| None::<Rig>));
    let total = RefCell::new([0; 3]);
    let result = TestRunner::new(cases).run(&(setting, doings), |((choice, seed, after, room), doings)| {
        let rig = spare.borrow_mut()[room].take();
        let (flows, homes) = ROOMS[room];
        let rig = rig.map_or_else(|| Rig::with_homes(arms, &config(), flows, homes), Rig::anew);
        let nat = Twins::new(choice, seed, after, rig).live(&doings);
        for (total, part) in total.borrow_mut().iter_mut().zip(nat.fast_path.traffic()) {
            *total += part.packets;
        }
        spare.borrow_mut()[room] = Some(nat.fast_path);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    let total = total.into_inner();
    assert!(total.iter().all(|&packets| packets > u64::from(CASES) / 4), "the program had its part: {total:?}");
}

#[test]
fn program_on_one_interface_does_as_the_engine_does() {
    in_namespace(|| compare(Arms::One));
}

#[test]
fn program_on_two_interfaces_does_as_the_engine_does() {
    in_namespace(|| compare(Arms::Two));
}

const CASES: u32 = 400;
/// How many flows the table holds, and how many homes they have.
const ROOMS: [(u32, u32); 3] = [(3, 6), (12, 2), (1024, 2048)];
