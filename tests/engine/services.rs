//! Services: connections to an external endpoint that go to one of several targets.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egret::nat::{Answer, Balancer, CloseReason, Closed, DropReason, Refusal, Side};
use egret::time::Instant;
use egret::wire::Endpoint;

use crate::support::*;

const SERVICE: (Ipv4Addr, u16) = (EXTERNAL, 443);
const ONE: &str = "10.0.0.8:8443";
const OTHER: &str = "10.0.0.9:8443";
const CLIENT: &str = "198.51.100.1:7000";
const INSIDE: &str = "10.0.0.50:7000";

/// Why a connection ended, and who has reset it.
type End = (CloseReason, Option<Side>);

/// What a balancer was told, and what it says.
#[derive(Debug, Default)]
struct Said {
    /// Given in turns.
    targets: Vec<Endpoint>,
    turn: usize,
    refuse: Option<Refusal>,
    open: u32,
    /// How many there may be.
    most: Option<u32>,
    cuts: Vec<(Endpoint, Endpoint)>,
    clients: Vec<Endpoint>,
    answers: Vec<(Endpoint, Answer)>,
    closed: Vec<(Endpoint, Option<End>)>,
}

#[derive(Clone, Debug, Default)]
struct Turns(Arc<Mutex<Said>>);

impl Turns {
    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.0.lock().expect("not poisoned")
    }
}

impl Balancer for Turns {
    fn select(
        &mut self,
        _: Instant,
        service: Endpoint,
        client: Endpoint,
        avoid: Option<Endpoint>,
    ) -> Result<Endpoint, Refusal> {
        assert_eq!(service, ep(SERVICE));
        let mut said = self.said();
        said.clients.push(client);
        if let Some(refusal) = said.refuse {
            return Err(refusal);
        }
        if said.most.is_some_and(|most| said.open >= most) {
            return Err(Refusal::NotAdmitted);
        }
        said.open += 1;
        loop {
            let target = said.targets[said.turn % said.targets.len()];
            said.turn += 1;
            if Some(target) != avoid {
                return Ok(target);
            }
        }
    }

    fn is_full_for(&mut self, _: Endpoint, _: Endpoint) -> bool {
        let said = self.said();
        said.most.is_some_and(|most| said.open >= most)
    }

    fn handle_answer(&mut self, _: Instant, _: Endpoint, target: Endpoint, answer: Answer) {
        self.said().answers.push((target, answer));
    }

    fn handle_closed(&mut self, _: Instant, _: Endpoint, target: Endpoint, how: Option<&Closed>) {
        let mut said = self.said();
        said.open -= 1;
        said.closed.push((target, how.map(|how| (how.reason, how.reset_by))));
    }

    fn poll_cut(&mut self) -> Option<(Endpoint, Endpoint)> {
        self.said().cuts.pop()
    }

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        (!self.said().cuts.is_empty()).then_some(Instant::ORIGIN)
    }
}

fn nat(preserve_client_ip: bool) -> (Nat, Turns) {
    let mut nat = Nat::with(|c| c.services = vec![service(SERVICE, preserve_client_ip)]);
    let turns = Turns::default();
    turns.said().targets = vec![ep(ONE), ep(OTHER)];
    nat.engine.set_balancer(Box::new(turns.clone()));
    (nat, turns)
}

/// A handshake of `client`; gives the target, and as whom it sees the client.
fn connect(nat: &mut Nat, client: &str) -> (Endpoint, Endpoint) {
    let syn = nat.inbound(tcp(client, SERVICE, SYN).seq(1000)).to_internal();
    let answer = nat.out(tcp(syn.destination, syn.source, SYN | ACK).seq(9000).ack(1001)).to_external();
    assert_eq!((answer.source, answer.destination), (ep(SERVICE), ep(client)));
    let ack = nat.inbound(tcp(client, SERVICE, ACK).seq(1001).ack(9001)).to_internal();
    assert_eq!((ack.source, ack.destination), (syn.source, syn.destination));
    (syn.destination, syn.source)
}

#[test]
fn target_sees_the_clients_own_address() {
    let (mut nat, turns) = nat(true);
    assert_eq!(connect(&mut nat, CLIENT), (ep(ONE), ep(CLIENT)));
    assert_eq!(connect(&mut nat, "198.51.100.2:7000"), (ep(OTHER), ep("198.51.100.2:7000")));
    let accepted = [(ep(ONE), Answer::Accepted), (ep(OTHER), Answer::Accepted)];
    assert_eq!(turns.said().answers, accepted);
    assert_eq!((nat.counters().sessions, nat.counters().mappings), (2, 2));
    nat.assert_empties();
    let closed = turns.said().closed.clone();
    let expired = Some((CloseReason::Expired, None));
    assert!(closed.contains(&(ep(ONE), expired)) && closed.contains(&(ep(OTHER), expired)));
    assert_eq!(closed.len(), 2);
}

#[test]
fn connections_of_one_target_share_a_mapping() {
    let (mut nat, turns) = nat(true);
    turns.said().targets = vec![ep(ONE)];
    for port in 7000..7100 {
        connect(&mut nat, &format!("198.51.100.1:{port}"));
    }
    assert_eq!((nat.counters().sessions, nat.counters().mappings), (100, 1));
    nat.assert_empties();
    assert_eq!(turns.said().closed.len(), 100);
}

/// For a target whose way out is not this NAT.
#[test]
fn target_sees_an_address_of_ours_if_the_clients_is_not_preserved() {
    let (mut nat, turns) = nat(false);
    let (target, seen) = connect(&mut nat, CLIENT);
    assert_eq!((target, seen.address), (ep(ONE), EXTERNAL));
    assert_ne!(seen, ep(SERVICE));
    assert_eq!(turns.said().clients, [ep(CLIENT)], "the balancer knows who it is");
    let data = nat.inbound(tcp(CLIENT, SERVICE, ACK).seq(1001).ack(9001).payload(b"question")).to_internal();
    assert_eq!((data.source, data.destination), (seen, target));
    let data = nat.out(tcp(target, seen, ACK).seq(9001).ack(1009).payload(b"answer")).to_external();
    assert_eq!((data.source, data.destination), (ep(SERVICE), ep(CLIENT)));
    let fin = nat.out(tcp(target, seen, FIN | ACK).seq(9007).ack(1009)).to_external();
    assert_eq!(fin.destination, ep(CLIENT));
    let fin = nat.inbound(tcp(CLIENT, SERVICE, FIN | ACK).seq(1009).ack(9008)).to_internal();
    assert_eq!(fin.source, seen);
    assert_eq!(turns.said().closed.len(), 1, "over, though it is remembered for a while");
    nat.assert_empties();
    assert_eq!(turns.said().closed, [(ep(ONE), Some((CloseReason::Finished, None)))]);
}

#[test]
fn client_inside_reaches_a_service_by_either_address() {
    for preserve in [true, false] {
        for address in [EXTERNAL, PUBLIC] {
            let (mut nat, turns) = nat(preserve);
            let syn = nat.out(tcp(INSIDE, (address, 443), SYN)).to_internal();
            assert_eq!((syn.source.address, syn.destination), (address, ep(ONE)));
            let answer = nat.out(tcp(ONE, syn.source, SYN | ACK).seq(9000).ack(1001)).to_internal();
            assert_eq!((answer.source, answer.destination), (ep((address, 443)), ep(INSIDE)));
            assert_eq!(turns.said().clients, [ep(INSIDE)]);
            nat.assert_empties();
        }
    }
}

/// With 5 s of patience: the SYN of the first second goes to the same target, that of the seventh to another.
#[test]
fn silent_target_is_left_for_another() {
    for preserve in [true, false] {
        let (mut nat, turns) = nat(preserve);
        assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN)).to_internal().destination, ep(ONE));
        nat.advance(Duration::from_secs(1));
        assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN)).to_internal().destination, ep(ONE));
        nat.advance(Duration::from_secs(6));
        assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN)).to_internal().destination, ep(OTHER));
        assert_eq!(turns.said().answers, [(ep(ONE), Answer::Silent)]);
        assert_eq!(turns.said().closed, [(ep(ONE), Some((CloseReason::Unanswered, None)))]);
        nat.assert_empties();
    }
}

#[test]
fn refusal_of_a_target_is_told_and_passed_on() {
    let (mut nat, turns) = nat(true);
    let syn = nat.inbound(tcp(CLIENT, SERVICE, SYN).seq(1000)).to_internal();
    let reset = nat.out(tcp(syn.destination, CLIENT, RST | ACK).ack(1001)).to_external();
    assert_eq!(reset.source, ep(SERVICE));
    assert_eq!(turns.said().answers, [(ep(ONE), Answer::Refused)]);
    nat.assert_empties();
    assert_eq!(turns.said().closed, [(ep(ONE), Some((CloseReason::Reset, Some(Side::Internal))))]);
}

#[test]
fn whoever_gets_no_target_is_reset() {
    for preserve in [true, false] {
        for (refusal, reason) in
            [(Refusal::NotAdmitted, DropReason::NotAdmitted), (Refusal::NoTarget, DropReason::NoTarget)]
        {
            let (mut nat, turns) = nat(preserve);
            turns.said().refuse = Some(refusal);
            assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN).seq(1000)).reason(), reason);
            let answers = nat.transmitted();
            assert_eq!(answers.len(), 1);
            let answer = &answers[0];
            assert_eq!((answer.1.source, answer.1.destination), (ep(SERVICE), ep(CLIENT)));
            assert_eq!(nat.counters().sessions, 0, "and holds nothing");
        }
    }
}

/// As of a host that was started anew: whoever goes on with an old connection learns that it is gone.
#[test]
fn segment_without_a_session_is_reset() {
    for preserve in [true, false] {
        let (mut nat, _) = nat(preserve);
        let late = tcp(CLIENT, SERVICE, ACK).seq(1).ack(77);
        assert_eq!(nat.inbound(late).reason(), DropReason::TcpNoSession);
        assert_eq!(nat.transmitted().len(), 1);
    }
}

#[test]
fn connections_of_a_target_are_cut_with_resets_that_are_believed() {
    for preserve in [true, false] {
        let (mut nat, turns) = nat(preserve);
        let (target, seen) = connect(&mut nat, CLIENT);
        let (other, _) = connect(&mut nat, "198.51.100.2:7000");
        assert_ne!(target, other);
        for _ in 0..10 {
            let _ = nat.inbound(tcp(CLIENT, SERVICE, ACK).seq(1001).ack(9001).payload(b"question"));
            let _ = nat.out(tcp(target, seen, ACK).seq(9001).ack(1009).payload(b"answer"));
        }
        turns.said().cuts.push((ep(SERVICE), target));
        nat.advance(Duration::from_millis(10));
        let resets = nat.transmitted();
        let to = |side: Side| {
            let mut found = resets.iter().filter(|(to, _)| *to == side);
            let (_, reset) = found.next().expect("one");
            assert!(found.next().is_none());
            reset.clone()
        };
        let (to_client, to_target) = (to(Side::External), to(Side::Internal));
        assert_eq!((to_client.source, to_client.destination), (ep(SERVICE), ep(CLIENT)));
        assert_eq!((to_target.source, to_target.destination), (seen, target));
        assert_eq!(
            (to_client.tcp.as_ref().map(|tcp| tcp.seq), to_target.tcp.as_ref().map(|tcp| tcp.seq)),
            (Some(9001), Some(1009))
        );
        assert_eq!(turns.said().closed, [(target, Some((CloseReason::Cut, None)))]);
        let left = nat.sessions();
        assert!(left.iter().all(|session| session.internal != target && session.internal != ep(CLIENT)));
        assert!(!left.is_empty(), "the other target keeps its own");
    }
}

/// Nobody has answered this client yet: its next SYN finds another target.
#[test]
fn unanswered_connection_of_a_target_that_is_cut_is_not_reset() {
    let (mut nat, turns) = nat(true);
    let _ = nat.inbound(tcp(CLIENT, SERVICE, SYN));
    turns.said().cuts.push((ep(SERVICE), ep(ONE)));
    nat.advance(Duration::from_millis(10));
    assert!(nat.transmitted().is_empty());
    assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN)).to_internal().destination, ep(OTHER));
}

/// As [`connect`], by a client that repeats its SYN while it is not let in.
fn connect_in_time(nat: &mut Nat, client: &str) -> (Endpoint, Endpoint) {
    for _ in 0..16 {
        if nat.inbound(tcp(client, SERVICE, SYN).seq(1000)).is_sent() {
            break;
        }
        nat.advance(Duration::from_millis(1));
    }
    connect(nat, client)
}

/// Whoever sends SYNs by foreign addresses is not there to answer: each takes a place for 5 s, if it is needed.
#[test]
fn handshake_that_should_be_over_makes_room_for_a_connection() {
    for preserve in [true, false] {
        let (mut nat, turns) = nat(preserve);
        turns.said().most = Some(3);
        let (target, seen) = connect(&mut nat, CLIENT);
        let answered = nat.inbound(tcp("198.51.100.2:7000", SERVICE, SYN).seq(1000)).to_internal();
        let answer = tcp(answered.destination, answered.source, SYN | ACK).seq(9000).ack(1001);
        assert!(nat.out(answer).is_sent());
        nat.advance(Duration::from_millis(30));
        let unanswered = nat.inbound(tcp("198.51.100.3:7000", SERVICE, SYN)).to_internal();
        nat.advance(Duration::from_millis(4960));
        assert_eq!(nat.inbound(tcp("198.51.100.4:7000", SERVICE, SYN)).reason(), DropReason::NotAdmitted);
        assert!(turns.said().closed.is_empty());
        nat.advance(Duration::from_millis(10));
        connect_in_time(&mut nat, "198.51.100.5:7000");
        let expired = (answered.destination, Some((CloseReason::Expired, None)));
        assert_eq!(turns.said().closed, [expired]);
        nat.advance(Duration::from_millis(20));
        connect_in_time(&mut nat, "198.51.100.6:7000");
        let given_up = (unanswered.destination, Some((CloseReason::Unanswered, None)));
        assert_eq!(turns.said().closed, [expired, given_up]);
        assert_eq!(nat.inbound(tcp("198.51.100.7:7000", SERVICE, SYN)).reason(), DropReason::NotAdmitted);
        let data =
            nat.inbound(tcp(CLIENT, SERVICE, ACK).seq(1001).ack(9001).payload(b"question")).to_internal();
        assert_eq!((data.source, data.destination), (seen, target), "a connection that is open stays");
        nat.assert_empties();
        assert_eq!(turns.said().open, 0);
    }
}

/// The same where NAT's own limit is what is reached, which leaves services a half.
#[test]
fn handshake_that_should_be_over_makes_room_among_all_sessions() {
    for preserve in [true, false] {
        let (mut nat, turns) = nat(preserve);
        let mut config = nat.engine.config().clone();
        config.limits.sessions = if preserve { 2 } else { 4 };
        nat.reconfigure(config);
        let _ = nat.inbound(tcp("198.51.100.2:7000", SERVICE, SYN)).to_internal();
        assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN)).reason(), DropReason::SessionLimit);
        nat.advance(Duration::from_secs(5));
        connect_in_time(&mut nat, CLIENT);
        assert_eq!(turns.said().closed, [(ep(ONE), Some((CloseReason::Unanswered, None)))]);
        nat.assert_empties();
    }
}

/// A busy listener is no reason for its targets not to call anybody.
#[test]
fn connections_of_clients_take_nothing_from_what_a_target_may_open() {
    let (mut nat, turns) = nat(true);
    turns.said().targets = vec![ep(ONE)];
    let mut config = nat.engine.config().clone();
    config.limits.sessions_per_address = 3;
    nat.reconfigure(config);
    for port in 7000..7010 {
        connect(&mut nat, &format!("198.51.100.1:{port}"));
    }
    let mut open = |port| nat.out(tcp((ep(ONE).address, 5000), (ip("198.51.100.9"), port), SYN));
    assert!((80..83).all(|port| open(port).is_sent()));
    assert_eq!(open(83).reason(), DropReason::AddressSessionLimit);
    nat.assert_empties();
}

#[test]
fn new_connection_on_old_ports_is_chosen_anew() {
    let (mut nat, turns) = nat(true);
    let (target, _) = connect(&mut nat, CLIENT);
    let _ = nat.out(tcp(target, CLIENT, RST).seq(9001));
    assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN).seq(50_000)).to_internal().destination, ep(OTHER));
    assert_eq!(turns.said().closed, [(target, Some((CloseReason::Reset, Some(Side::Internal))))]);
}

#[test]
fn port_of_a_service_is_given_to_nobody_else() {
    let mut nat = Nat::with(|c| {
        c.port_range = 2000..=2009;
        c.services = vec![service((EXTERNAL, 2004), true)];
    });
    for host in 2..40 {
        let outcome = nat.out(tcp((ip(&format!("10.0.0.{host}")), 2004), (ip("198.51.100.1"), host), SYN));
        if let Outcome::Sent(_, sent) = outcome {
            assert_ne!(sent.source.port, 2004);
        }
    }
}

/// Connections live on when their service is taken out of the configuration.
#[test]
fn connection_survives_its_service() {
    for preserve in [true, false] {
        let (mut nat, turns) = nat(preserve);
        let (target, seen) = connect(&mut nat, CLIENT);
        let mut config = nat.engine.config().clone();
        config.services.clear();
        nat.reconfigure(config);
        let data = nat.inbound(tcp(CLIENT, SERVICE, ACK).seq(1001).ack(9001).payload(b"q")).to_internal();
        assert_eq!((data.source, data.destination), (seen, target));
        let data = nat.out(tcp(target, seen, ACK).seq(9001).ack(1002).payload(b"a")).to_external();
        assert_eq!(data.destination, ep(CLIENT));
        assert!(!nat.inbound(tcp("198.51.100.3:1", SERVICE, SYN)).is_sent(), "but no new one");
        nat.assert_empties();
        assert_eq!(turns.said().closed.len(), 1);
    }
}

/// A router beyond the client's side of the NAT, and one before the target.
#[test]
fn icmp_errors_find_both_ends_of_a_hidden_client() {
    let (mut nat, _) = nat(false);
    let (target, seen) = connect(&mut nat, CLIENT);
    let to_client = tcp(SERVICE, CLIENT, ACK).bytes();
    let error = nat.inbound(icmp_error("198.51.100.254", EXTERNAL, (3, 4), &to_client)).to_internal();
    assert_eq!((error.destination.address, error.embedded()), (target.address, (target, seen)));
    let to_target = tcp(seen, target, ACK).bytes();
    let error = nat.out(icmp_error("10.0.0.254", EXTERNAL, (3, 4), &to_target)).to_external();
    assert_eq!((error.destination.address, error.embedded()), (ep(CLIENT).address, (ep(CLIENT), ep(SERVICE))));
}

#[test]
fn third_party_cannot_send_to_a_hidden_clients_mapping() {
    let mut nat = Nat::with(|c| {
        c.services = vec![service(SERVICE, false)];
        c.filtering = egret::nat::FilteringBehaviour::EndpointIndependent;
    });
    let turns = Turns::default();
    turns.said().targets = vec![ep(ONE)];
    nat.engine.set_balancer(Box::new(turns));
    let (_, seen) = connect(&mut nat, CLIENT);
    assert!(!nat.inbound(tcp("198.51.100.66:1", seen, SYN)).is_sent());
}

/// While its connections go on, a service that was taken away keeps its port, and takes nobody in.
#[test]
fn retired_service_refuses_new_connections_and_keeps_old_ones() {
    for preserve in [true, false] {
        let (mut nat, _) = nat(preserve);
        let (target, seen) = connect(&mut nat, CLIENT);
        let mut config = nat.engine.config().clone();
        config.services[0].retired = true;
        nat.reconfigure(config);
        let data = nat.inbound(tcp(CLIENT, SERVICE, ACK).seq(1001).ack(9001).payload(b"q")).to_internal();
        assert_eq!((data.source, data.destination), (seen, target));
        assert_eq!(nat.inbound(tcp("198.51.100.3:1", SERVICE, SYN)).reason(), DropReason::NoTarget);
        let _ = nat.out(tcp(target, seen, RST).seq(9001));
        let again = nat.inbound(tcp(CLIENT, SERVICE, SYN).seq(50_000));
        assert_eq!(again.reason(), DropReason::NoTarget, "nor on the ports of an old one");
    }
}

/// As traceroute sends it: it must not count against a target, nor for the client.
#[test]
fn packet_whose_time_is_up_opens_nothing() {
    for preserve in [true, false] {
        let (mut nat, turns) = nat(preserve);
        assert_eq!(nat.inbound(tcp(CLIENT, SERVICE, SYN).ttl(1)).reason(), DropReason::TtlExceeded);
        assert_eq!((nat.counters().sessions, turns.said().clients.len()), (0, 0));
    }
}

/// RFC 5961: what lies in the window but is not the very next is challenged, and the connection lives.
#[test]
fn connection_counts_until_it_is_surely_reset() {
    let (mut nat, turns) = nat(true);
    let (target, seen) = connect(&mut nat, CLIENT);
    let _ = nat.inbound(tcp(CLIENT, SERVICE, RST).seq(1002));
    let _ = nat.out(tcp(target, seen, ACK).seq(9001).ack(1001));
    assert!(turns.said().closed.is_empty());
    let _ = nat.inbound(tcp(CLIENT, SERVICE, RST).seq(1001));
    assert_eq!(turns.said().closed, [(target, Some((CloseReason::Reset, Some(Side::External))))]);
}

#[test]
fn clients_from_outside_leave_half_of_the_table_to_internal_hosts() {
    for preserve in [true, false] {
        let (mut nat, _) = nat(preserve);
        let mut config = nat.engine.config().clone();
        config.limits.sessions = 40;
        config.limits.sessions_per_address = 40;
        nat.reconfigure(config);
        for port in 7000..7100 {
            let _ = nat.inbound(tcp((ip("198.51.100.1"), port), SERVICE, SYN));
        }
        assert_eq!(nat.counters().sessions, 20);
        for port in 4000..4020 {
            assert!(nat.out(tcp((ip("10.0.0.20"), port), "198.51.100.9:80", SYN)).is_sent());
        }
    }
}
