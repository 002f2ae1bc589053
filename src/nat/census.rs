//! How many sessions there are of each protocol in each state, kept up as they change: nobody walks the table for it.

use super::event::SessionState;
use super::tcp::TcpState;
use crate::wire::Protocol;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    counts: [[u32; STATES.len()]; PROTOCOLS.len()],
}

impl Census {
    /// Each protocol (`tcp`, `udp`, `icmp`, `other`) with each state that it can be in, both in snake case.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u32)> {
        PROTOCOLS.iter().zip(&self.counts).flat_map(|(&protocol, counts)| {
            let of_tcp = protocol == "tcp";
            let states = STATES.iter().zip(counts).enumerate();
            let possible = states.filter(move |(place, _)| (*place >= FIRST_OF_TCP) == of_tcp);
            possible.map(move |(_, (&state, &count))| (protocol, state, count))
        })
    }

    pub(super) fn add(&mut self, protocol: Protocol, state: SessionState) {
        *self.place(protocol, state) += 1;
    }

    pub(super) fn remove(&mut self, protocol: Protocol, state: SessionState) {
        let count = self.place(protocol, state);
        *count = count.saturating_sub(1);
    }

    const fn place(&mut self, protocol: Protocol, state: SessionState) -> &mut u32 {
        let protocol = match protocol {
            Protocol::TCP => 0,
            Protocol::UDP => 1,
            Protocol::ICMP => 2,
            _ => 3,
        };
        let state = match state {
            SessionState::Unreplied => 0,
            SessionState::Replied => 1,
            SessionState::Tcp(TcpState::SynSent) => FIRST_OF_TCP,
            SessionState::Tcp(TcpState::SynReceived) => 3,
            SessionState::Tcp(TcpState::Established) => 4,
            SessionState::Tcp(TcpState::FinOut) => 5,
            SessionState::Tcp(TcpState::FinIn) => 6,
            SessionState::Tcp(TcpState::Closing) => 7,
            SessionState::Tcp(TcpState::Reset) => 8,
        };
        &mut self.counts[protocol][state]
    }
}

const PROTOCOLS: [&str; 4] = ["tcp", "udp", "icmp", "other"];
const STATES: [&str; 9] = [
    "unreplied",
    "replied",
    "syn_sent",
    "syn_received",
    "established",
    "fin_out",
    "fin_in",
    "closing",
    "reset",
];
const FIRST_OF_TCP: usize = 2;
