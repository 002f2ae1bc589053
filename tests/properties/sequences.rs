//! Any sequence of packets, honest, forged, or noise: no panic, no entry that stays, no two sessions that cannot
//! be told apart.

use egret::nat::Side;
use proptest::prelude::*;

use crate::support::*;

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Internal), Just(Side::External)]
}

fn step() -> impl Strategy<Value = Step> {
    let mutate = prop::option::weighted(0.2, (any::<u16>(), any::<u8>()));
    let packet = (side(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), mutate, any::<bool>()).prop_map(
        |(side, from, to, kind, port, mutate, cut)| Step::Packet { side, from, to, kind, port, mutate, cut },
    );
    let noise = (side(), prop::collection::vec(any::<u8>(), 0..80)).prop_map(|(side, mut bytes)| {
        if let Some(first) = bytes.first_mut() {
            *first = 0x45;
        }
        Step::Noise { side, bytes }
    });
    let wait =
        prop_oneof![0..500_u32, 0..90_000_u32, 0..8_000_000_u32].prop_map(|millis| Step::Wait { millis });
    prop_oneof![20 => packet, 2 => noise, 2 => wait, 1 => any::<u8>().prop_map(Step::Reconfigure)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_packets_panics_or_leaves_anything_behind(
        choice in any::<u8>(),
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        walk(choice, seed, &steps);
    }
}

/// The same as a plain random walk, longer than proptest's sequences are.
#[test]
fn long_random_walks_leave_nothing_behind() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let steps: Vec<Step> = (0..2_000)
            .map(|_| {
                let [side, from, to, kind, choice, more, other, _] = random.next().to_le_bytes();
                let port = side;
                let side = if side & 1 == 0 { Side::Internal } else { Side::External };
                match choice % 40 {
                    0 => Step::Wait { millis: random.below(400_000) as u32 },
                    1..=3 => Step::Wait { millis: random.below(3_000) as u32 },
                    4 => Step::Noise { side, bytes: random.bytes(usize::from(more) % 90) },
                    5 if more < 32 => Step::Reconfigure(other),
                    _ => {
                        let mutate = (more < 40).then_some((u16::from(other), choice));
                        Step::Packet { side, from, to, kind, port, mutate, cut: other & 1 == 0 }
                    }
                }
            })
            .collect();
        walk(seed as u8, seed, &steps);
    }
}
