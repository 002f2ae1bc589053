//! Changes of the configuration while the fast path carries sessions.

use egret::datapath::{Choice, SessionFilter};
use egret::nat::{self, ExternalAddress, FilteringBehaviour};

use crate::{
    CLIENT, EXTERNAL, PUBLIC, SERVER, assert_carried, block_on, exchange, exchange_for_a_while, snapshot,
    start, two_armed_for, udp, wait_ready,
};

/// As [`start`] has it.
fn running() -> nat::Config {
    nat::Config {
        internal: vec!["10.0.0.0/16".parse().expect("a prefix")],
        external_addresses: vec![ExternalAddress { private: EXTERNAL, public: Some(PUBLIC) }],
        filtering: FilteringBehaviour::EndpointIndependent,
        ..nat::Config::default()
    }
}

#[test]
fn flows_stay_away_when_nothing_changes() {
    let lab = two_armed_for(Choice::Xdp);
    let worker = start(&lab, Choice::Xdp, "ext", "int");
    let handle = worker.handle();
    let bypass = running().internal;
    exchange_for_a_while(&udp(&lab, "client", (CLIENT, 4000)), &udp(&lab, "server", (SERVER, 4000)));
    assert_carried(&worker, 2);
    let reconfigured = block_on(handle.reconfigure(running(), bypass.clone()));
    assert_eq!(reconfigured.expect("the worker runs"), Ok(()));
    assert_carried(&worker, 2);
    let bad = nat::Config { external_addresses: Vec::new(), ..running() };
    let refused = block_on(handle.reconfigure(bad, bypass));
    assert_eq!(refused.expect("the worker runs"), Err(nat::ConfigError::NoExternalAddress));
    assert_carried(&worker, 2);
    // Whose destinations they go to has changed.
    let reconfigured = block_on(handle.reconfigure(running(), Vec::new()));
    assert_eq!(reconfigured.expect("the worker runs"), Ok(()));
    assert_carried(&worker, 0);
    worker.stop().expect("a clean end");
}

#[test]
fn thousands_come_home_in_steps_before_the_changes_are_made_in_their_order() {
    let lab = two_armed_for(Choice::Xdp);
    let worker = start(&lab, Choice::Xdp, "ext", "int");
    let handle = worker.handle();
    wait_ready(&handle);
    let clients: Vec<_> = (0..32).map(|number| udp(&lab, "client", (CLIENT, 4_000 + number))).collect();
    let servers: Vec<_> = (0..256).map(|number| udp(&lab, "server", (SERVER, 4_000 + number))).collect();
    for client in &clients {
        for server in &servers {
            exchange_for_a_while(client, server);
        }
    }
    let sessions = u32::try_from(clients.len() * servers.len()).expect("few");
    assert_carried(&worker, 2 * sessions);

    // Their records are completed from the flows, which takes time: in many pages.
    let (mut from, mut pages, mut packets, mut seen) = (Some(0), 0, 0, 0);
    while let Some(place) = from {
        let page = block_on(handle.scan_sessions(place, SessionFilter::default())).expect("the worker runs");
        seen += page.records.len();
        packets += page.records.iter().map(|record| record.packets_out + record.packets_in).sum::<u64>();
        (from, pages) = (page.next, pages + 1);
    }
    assert_eq!((seen, packets), (sessions as usize, 20 * u64::from(sessions)));
    assert!(pages > 8, "{pages}");

    let elsewhere = ExternalAddress { private: [192, 0, 2, 77].into(), public: None };
    let mut first = running();
    first.external_addresses.push(elsewhere);
    let second = nat::Config { external_mtu: 1400, ..running() };
    let turns = handle.turns();
    let (first, second) = block_on(async {
        tokio::join!(handle.reconfigure(first, Vec::new()), handle.reconfigure(second, Vec::new()))
    });
    let turns = handle.turns() - turns;
    // The first step is of the turn that waits already.
    assert!(turns >= 7, "all came home at once, in {turns} turns");
    assert_eq!((first.expect("the worker runs"), second.expect("the worker runs")), (Ok(()), Ok(())));
    let after = snapshot(&handle);
    assert_eq!(after.not_ready, Vec::<String>::new(), "the second is in force");
    assert_eq!((after.counters.offloaded, after.counters.sessions), (0, sessions));
    assert_carried(&worker, 0);
    for (client, server) in clients.iter().zip(&servers) {
        exchange(client, server);
    }
    exchange_for_a_while(&clients[0], &servers[0]);
    assert_carried(&worker, 2);
    worker.stop().expect("a clean end");
}
