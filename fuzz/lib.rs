//! The engine alone, under the name of the whole library: the fuzzers are built with flags that reach every
//! dependency, and the other layers' would take minutes.

#[path = "../src/nat/mod.rs"]
pub mod nat;
#[path = "../src/time.rs"]
pub mod time;
#[path = "../src/wire/mod.rs"]
pub mod wire;
