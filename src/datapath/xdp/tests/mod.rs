//! The program, run by the kernel on packets of ours: `BPF_PROG_TEST_RUN`. Needs root, and iproute2.

#![allow(clippy::cast_possible_truncation, clippy::wrong_self_convention, reason = "as in tests/")]

mod collisions;
mod oracle;
mod program;
mod race;
mod rig;

#[path = "../../../../tests/support/mod.rs"]
mod support;
#[path = "../../../../tests/properties/twins.rs"]
mod twins;
