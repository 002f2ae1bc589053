//! Any sequence of packets, waits and reconfigurations: see `tests/support/steps.rs` for what must hold.
#![no_main]

#[path = "../../tests/support/mod.rs"]
mod support;

use egret::nat::Side;
use libfuzzer_sys::fuzz_target;
use support::{Random, Step, walk};

fuzz_target!(init: write_seeds(), |data: &[u8]| {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let mut steps = Vec::new();
    while let Some(step) = decode(&mut rest) {
        steps.push(step);
        if steps.len() == MOST_STEPS {
            break;
        }
    }
    walk(choice, 1, &steps);
});

/// Takes one step off the front of `data`.
fn decode(data: &mut &[u8]) -> Option<Step> {
    let (&[kind, a, b, c, d, e, f, g], rest) = data.split_first_chunk::<8>()?;
    *data = rest;
    let side = if kind & 0x80 == 0 { Side::Internal } else { Side::External };
    Some(match kind % 16 {
        0 => Step::Wait { millis: u32::from_be_bytes([0, a & 0x7f, b, c]) },
        1 => Step::Wait { millis: u32::from(a) * 10 },
        2 => Step::Reconfigure(a),
        3 => {
            let (noise, rest) = data.split_at(data.len().min(usize::from(a) % 100));
            *data = rest;
            Step::Noise { side, bytes: noise.to_vec() }
        }
        _ => {
            let mutate = (e < 32).then_some((u16::from(f), g));
            Step::Packet { side, from: a, to: b, kind: c, port: d, mutate, cut: kind & 0x40 != 0 }
        }
    })
}

fn write_seeds() {
    let Some(directory) = std::env::var_os("EGRET_FUZZ_SEEDS") else { return };
    for seed in 0..32 {
        // Without seeds the fuzzer only starts slower.
        let path = std::path::Path::new(&directory).join(format!("seed-{seed}"));
        let _ = std::fs::write(path, Random(seed).bytes(1 + 8 * (4 + 8 * seed as usize)));
    }
}

/// Longer sequences find no more and take longer.
const MOST_STEPS: usize = 300;
