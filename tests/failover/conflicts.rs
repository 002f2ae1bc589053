//! Peers that contradict: refused with a reason, and nothing is done for them.

use egret::failover::{
    Action, Answer, CallId, Config, ConfigError, Done, Event, Failback, Fleet, Gateway, Health, Heartbeat,
    Hello, Hosting, Message, Observation, Offer, Planned, Refusal, Reply, Role, Timing, Unwilling, VERSION,
    Why,
};
use egret::time::Instant;

fn gateway(letter: char, heirs: &[&str]) -> Gateway {
    Gateway {
        name: format!("az-{letter}"),
        allocations: vec![format!("eipalloc-{letter}")],
        route_tables: vec![format!("rtb-{letter}")],
        destinations: vec!["0.0.0.0/0".parse().unwrap()],
        heirs: heirs.iter().map(|heir| (*heir).to_owned()).collect(),
        failback: Failback::Auto,
        fallback: None,
    }
}

fn config() -> Config {
    Config { eni: "eni-a".to_owned(), home: gateway('a', &["az-b", "az-c"]), timing: Timing::default() }
}

fn hello(letter: char) -> Hello {
    Hello { version: VERSION, eni: format!("eni-{letter}"), gateway: gateway(letter, &["az-a"]) }
}

fn fleet() -> Fleet {
    Fleet::new(config(), [1; 16], NOW).unwrap()
}

const NOW: Instant = Instant::from_millis(5_000);

fn refusals(fleet: &mut Fleet) -> Vec<(String, Refusal)> {
    let events = std::iter::from_fn(|| fleet.poll_event());
    events
        .filter_map(|event| match event {
            Event::PeerRefused { peer, why } => Some((peer, why)),
            _ => None,
        })
        .collect()
}

/// What is said of a peer that says this.
fn refusal(hello: Hello) -> Refusal {
    let mut fleet = fleet();
    fleet.handle_up(NOW, "az-b", hello);
    let refusals = refusals(&mut fleet);
    let [(peer, why)] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!(peer, "az-b");
    let status = fleet.status(NOW);
    assert_eq!(status.peers[0].refused, Some(why.to_string()));
    assert_eq!(status.gateways.len(), 1, "its gateway is none of ours");
    // An offer of it comes to nothing.
    let offer = Offer { gateway: "az-b".to_owned(), number: 1, why: Planned::Operator };
    fleet.handle_message(NOW, "az-b", Message::Offer(offer));
    let mut actions = std::iter::from_fn(|| fleet.poll_action());
    assert!(!actions.any(|action| matches!(action, Action::Adopt { .. } | Action::Call { .. })));
    why.clone()
}

#[test]
fn other_version_is_refused() {
    let why = refusal(Hello { version: 7, ..hello('b') });
    assert_eq!(why.to_string(), "it speaks version 7 of the protocol, and this instance 1");
}

#[test]
fn other_version_is_refused_whatever_else_it_says() {
    let strange = Hello { version: 7, eni: "!".to_owned(), ..hello('b') };
    assert_eq!(refusal(strange), Refusal::Version { ours: VERSION, theirs: 7 });
}

#[test]
fn claim_of_the_own_home_is_refused() {
    let why = refusal(Hello { gateway: gateway('a', &["az-b"]), ..hello('b') });
    assert_eq!(why, Refusal::OwnHome("az-a".to_owned()));
}

#[test]
fn another_name_than_that_of_the_link_is_refused() {
    let why = refusal(hello('c'));
    assert_eq!(why, Refusal::Name { expected: "az-b".to_owned(), told: "az-c".to_owned() });
}

#[test]
fn claim_of_the_own_address_table_or_interface_is_refused() {
    let mut other = hello('b');
    other.gateway.allocations.push("eipalloc-a".to_owned());
    let claims = |what: &str| Refusal::Claims { what: what.to_owned(), of: "az-a".to_owned() };
    assert_eq!(refusal(other), claims("eipalloc-a"));
    let mut other = hello('b');
    other.gateway.route_tables = vec!["rtb-a".to_owned()];
    assert_eq!(refusal(other), claims("rtb-a"));
    let other = Hello { eni: "eni-a".to_owned(), ..hello('b') };
    assert_eq!(refusal(other), Refusal::Interface("eni-a".to_owned(), "az-a".to_owned()));
}

#[test]
fn definition_that_is_wrong_in_itself_is_refused() {
    type Change = fn(&mut Gateway);
    let wrong: [(Change, &str); 5] = [
        (|gateway| gateway.allocations.clear(), "no Elastic IP"),
        (|gateway| gateway.allocations = vec!["eipalloc-b".to_owned(); 2], "twice"),
        (|gateway| gateway.heirs.push("az-b".to_owned()), "its own heir"),
        (|gateway| gateway.route_tables[0] = "rtb-b; reboot".to_owned(), "no id"),
        (
            |gateway| gateway.route_tables = (0..99).map(|number| format!("rtb-{number}")).collect(),
            "99 route tables",
        ),
    ];
    for (change, says) in wrong {
        let mut hello = hello('b');
        change(&mut hello.gateway);
        let why = refusal(hello).to_string();
        assert!(why.contains(says), "{why}");
    }
}

#[test]
fn of_two_peers_that_claim_the_same_the_first_stays() {
    let mut fleet = fleet();
    fleet.handle_up(NOW, "az-c", hello('c'));
    let mut other = hello('b');
    other.gateway.allocations = vec!["eipalloc-c".to_owned()];
    fleet.handle_up(NOW, "az-b", other);
    let why = Refusal::Claims { what: "eipalloc-c".to_owned(), of: "az-c".to_owned() };
    assert_eq!(refusals(&mut fleet), [("az-b".to_owned(), why)]);
    assert_eq!(fleet.known().count(), 1);
    // Once the first no longer claims it, it is the other's.
    let mut changed = hello('c');
    changed.gateway.allocations = vec!["eipalloc-d".to_owned()];
    fleet.handle_message(NOW, "az-c", Message::Hello(changed));
    assert_eq!(fleet.known().count(), 2);
    assert!(fleet.status(NOW).peers.iter().all(|peer| peer.refused.is_none()));
}

#[test]
fn known_peer_that_contradicts_later_is_refused_until_it_does_not() {
    let mut fleet = fleet();
    fleet.handle_up(NOW, "az-b", hello('b'));
    assert!(refusals(&mut fleet).is_empty());
    fleet.handle_message(NOW, "az-b", Message::Hello(Hello { eni: "eni-a".to_owned(), ..hello('b') }));
    assert_eq!(refusals(&mut fleet).len(), 1);
    fleet.handle_message(NOW, "az-b", Message::Hello(hello('b')));
    assert!(fleet.status(NOW).peers[0].refused.is_none());
}

#[test]
fn stranger_is_refused() {
    let mut fleet = fleet();
    fleet.handle_up(NOW, "az-z", hello('z'));
    assert_eq!(refusals(&mut fleet), [("az-z".to_owned(), Refusal::Unknown)]);
    assert_eq!(fleet.status(NOW).peers.len(), 2);
}

#[test]
fn offer_of_a_gateway_that_is_not_to_be_inherited_is_refused() {
    let mut fleet = fleet();
    fleet.handle_health(NOW, Health { worker: true, datapath: true, egress: Some(true), aws: None });
    let other = Hello { gateway: gateway('b', &["az-c"]), ..hello('b') };
    fleet.handle_up(NOW, "az-b", other);
    let mut later = NOW;
    for _ in 0..20 {
        later += Timing::default().heartbeat;
        fleet.handle_timeout(later);
    }
    while fleet.poll_action().is_some() {}
    for (gateway, unwilling) in [("az-b", Unwilling::NoHeir), ("az-z", Unwilling::UnknownGateway)] {
        let offer = Offer { gateway: gateway.to_owned(), number: 1, why: Planned::Leaving };
        fleet.handle_message(later, "az-b", Message::Offer(offer));
        let answers = std::iter::from_fn(|| fleet.poll_action()).find_map(|action| match action {
            Action::Send { message: Message::Answer(answer), .. } => Some(answer.reply),
            _ => None,
        });
        assert_eq!(answers, Some(Reply::Refused(unwilling)));
    }
}

#[test]
fn configuration_that_cannot_work_is_refused() {
    let mut wrong = config();
    wrong.timing.dead_after = wrong.timing.heartbeat * 2;
    assert!(matches!(Fleet::new(wrong, [1; 16], NOW), Err(ConfigError::DeadAfter { .. })));
    let mut wrong = config();
    wrong.home.name = "AZ A".to_owned();
    assert!(matches!(Fleet::new(wrong, [1; 16], NOW), Err(ConfigError::Name(_))));
    let mut wrong = config();
    wrong.eni = "eth0".to_owned();
    assert!(matches!(Fleet::new(wrong, [1; 16], NOW), Err(ConfigError::Id(..))));
    let mut fleet = fleet();
    let renamed = Config { home: gateway('b', &[]), ..config() };
    assert_eq!(fleet.handle_config(NOW, renamed), Err(ConfigError::Identity));
}

#[test]
fn changed_configuration_is_told_to_the_peers_at_once() {
    let mut fleet = fleet();
    fleet.handle_up(NOW, "az-b", hello('b'));
    while fleet.poll_action().is_some() {}
    let mut changed = config();
    changed.home.route_tables.push("rtb-new".to_owned());
    fleet.handle_config(NOW, changed).unwrap();
    let told = std::iter::from_fn(|| fleet.poll_action()).find_map(|action| match action {
        Action::Send { message: Message::Hello(hello), .. } => Some(hello.gateway.route_tables),
        _ => None,
    });
    assert_eq!(told.unwrap(), ["rtb-a", "rtb-new"]);
}

#[test]
fn messages_survive_json_and_skip_what_they_do_not_know() {
    let heartbeat = Heartbeat {
        sequence: 7,
        echo: None,
        health: Health::default(),
        leaving: false,
        misses: vec!["az-c".to_owned()],
        hosts: vec![Hosting {
            gateway: "az-b".to_owned(),
            role: Role::Active,
            association: Some("eipassoc-1".to_owned()),
            why: Some(Why::HandOver(Planned::Failback)),
        }],
    };
    for message in [Message::Hello(hello('b')), Message::Heartbeat(heartbeat)] {
        let mut json = serde_json::to_value(&message).unwrap();
        json["of_a_later_version"] = serde_json::json!({ "what": 1 });
        let read: Message = serde_json::from_value(json).unwrap();
        assert_eq!(read, message);
        assert_eq!(read.check(), Ok(()));
    }
}

#[test]
fn host_that_does_not_say_why_it_is_one_is_believed() {
    let hosting: Hosting =
        serde_json::from_str(r#"{"gateway":"az-b","role":"active","association":"eipassoc-1"}"#).unwrap();
    assert_eq!((hosting.role, hosting.why), (Role::Active, None));
}

#[test]
fn message_that_is_too_large_or_misshapen_is_not_believed() {
    let heartbeat = |misses: Vec<String>| {
        let health = Health::default();
        Message::Heartbeat(Heartbeat {
            sequence: 1,
            echo: None,
            health,
            leaving: false,
            misses,
            hosts: Vec::new(),
        })
    };
    assert!(heartbeat(vec!["az-c".to_owned(); 9]).check().is_err());
    assert!(heartbeat(vec!["a".repeat(64)]).check().is_err());
    assert!(heartbeat(vec!["../etc".to_owned()]).check().is_err());
    let offer = Offer { gateway: String::new(), number: 1, why: Planned::Operator };
    assert!(Message::Offer(offer).check().is_err());
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut fleet = fleet();
    fleet.handle_up(NOW, "az-b", hello('b'));
    let observe = std::iter::from_fn(|| fleet.poll_action()).find_map(|action| match action {
        Action::Observe { id, .. } => Some(id),
        _ => None,
    });
    let before = fleet.status(NOW);
    let reply = Answer { gateway: "az-a".to_owned(), number: 9, reply: Reply::Accepted };
    fleet.handle_message(NOW, "az-b", Message::Answer(reply));
    fleet.handle_message(NOW, "az-z", Message::Hello(hello('z')));
    fleet.handle_outcome(NOW, CallId(77), Ok(Done::Disassociated));
    fleet.handle_observation(NOW, CallId(77), Ok(Vec::new()));
    fleet.handle_adopted(NOW, "az-a");
    fleet.handle_adopted(NOW, "az-z");
    fleet.handle_down(NOW, "az-z");
    // An observation of gateways that it was not asked for, and of none that it was.
    let stranger = Observation { gateway: "az-z".to_owned(), addresses: Vec::new(), routes: Vec::new() };
    fleet.handle_observation(NOW, observe.unwrap(), Ok(vec![stranger]));
    let after = fleet.status(NOW);
    assert_eq!(after.gateways, before.gateways);
    assert_eq!(after.peers, before.peers);
    assert!(std::iter::from_fn(|| fleet.poll_action()).all(|action| matches!(action, Action::Send { .. })));
}

#[test]
fn events_that_nobody_fetches_are_bounded_and_counted() {
    let mut fleet = fleet();
    for _ in 0..2_000 {
        fleet.handle_up(NOW, "az-z", hello('z'));
    }
    assert_eq!(std::iter::from_fn(|| fleet.poll_event()).count(), 1_024);
    assert_eq!(fleet.events_lost(), 2_000 - 1_024);
}
