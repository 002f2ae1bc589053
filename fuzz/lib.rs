//! What is without IO, under the name of the whole library: the fuzzers are built with flags that reach every
//! dependency, and the other layers' would take minutes.

#[path = "../src/failover/mod.rs"]
pub mod failover;
#[path = "../src/nat/mod.rs"]
pub mod nat;
/// What a peer says, without its encryption.
#[path = "../src/peer"]
pub mod peer {
    pub mod payload;
    pub mod preamble;
}
#[path = "../src/time.rs"]
pub mod time;
#[path = "../src/wire/mod.rs"]
pub mod wire;
