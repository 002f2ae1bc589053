//! An engine with a fast path, as plain code has it, is the same NAT as an engine without one.

use proptest::prelude::*;

use crate::support::FastPath;
use crate::twins::{Twins, doing};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fast_path_changes_nothing_but_speed(
        choice in any::<u8>(),
        seed in any::<u64>(),
        after in 1..5_u16,
        doings in prop::collection::vec(doing(), 1..150),
    ) {
        Twins::new(choice, seed, after, FastPath::default()).live(&doings);
    }
}
