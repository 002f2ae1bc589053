//! A daemon that is made up, for the tests of the servers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::protocol::FleetReport;
use super::view::{Description, Source};
use crate::datapath::{self, Chosen, FastPath, SessionFilter, SessionPage, Snapshot, Stopped};
use crate::forward;
use crate::metrics::SessionLogCounts;
use crate::nat::{self, DropReason, SessionRecord, SessionState, Side};
use crate::talkers::{Measure, Talkers, Tally, Top, Window};
use crate::time::Instant;
use crate::wire::{Endpoint, Protocol};

/// A table of sessions in places, in pages of two.
#[derive(Clone)]
pub(super) struct Fake {
    pub(super) sessions: Arc<Vec<SessionRecord>>,
    pub(super) driver: Vec<(String, u64)>,
    pub(super) not_ready: Vec<String>,
    pub(super) fast_path: Option<FastPath>,
}

impl Source for Fake {
    async fn listeners(&self) -> Result<Vec<forward::Report>, Stopped> {
        Ok(Vec::new())
    }

    async fn set_draining(&self, listener: &str, _: SocketAddr, _: bool) -> Result<(), String> {
        Err(format!("there is no listener {listener}"))
    }

    fn fleet(&self) -> Option<FleetReport> {
        None
    }

    async fn hand_over(&self, _: Option<String>, to: String) -> Result<String, String> {
        if to == "az-b" { Ok("az-a".to_owned()) } else { Err(format!("{to} is no peer")) }
    }

    async fn declare_dead(&self, peer: String) -> Result<Vec<String>, String> {
        if peer == "az-b" { Ok(vec![peer]) } else { Err(format!("{peer} is no peer")) }
    }

    fn log_level(&self, filter: Option<&str>) -> Result<String, String> {
        match filter {
            Some("nonsense") => Err("nonsense is no filter".to_owned()),
            filter => Ok(filter.unwrap_or("info").to_owned()),
        }
    }

    async fn talkers(&self, _: Measure, count: usize) -> Result<[Top; 2], Stopped> {
        let mut talkers = Talkers::default();
        let tally = Tally { bytes: 1000, packets: 10, sessions: 2, ports: 1 };
        talkers.add(Instant::ORIGIN, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 80), tally);
        let windows = [Window::Minute, Window::Hour];
        Ok(windows.map(|window| talkers.top(Instant::ORIGIN, window, Measure::Bytes, count)))
    }

    fn session_log(&self) -> Option<SessionLogCounts> {
        None
    }

    async fn driver_statistics(&self, interface: &str) -> Vec<(String, u64)> {
        assert_eq!(interface, "eth7");
        self.driver.clone()
    }

    async fn snapshot(&self) -> Result<Snapshot, Stopped> {
        let mut counters = nat::Counters { sessions: 5, mappings: 4, ..nat::Counters::default() };
        counters.drops[DropReason::NoSession as usize] = 7;
        counters.in_from_internal.add(100);
        Ok(Snapshot {
            counters,
            addresses: Vec::new(),
            datapath: datapath::Counters::default(),
            fast_path: self.fast_path.clone(),
            not_ready: self.not_ready.clone(),
            uptime: Duration::from_secs(62),
        })
    }

    async fn scan_sessions(&self, from: u32, filter: SessionFilter) -> Result<SessionPage, Stopped> {
        let from = from as usize;
        let records = self.sessions.iter().skip(from).take(2);
        let records =
            records.filter(|record| filter.protocol.is_none_or(|protocol| protocol == record.protocol));
        let next = (from + 2 < self.sessions.len()).then(|| u32::try_from(from + 2).unwrap());
        Ok(SessionPage { records: records.copied().collect(), next })
    }
}

fn record(protocol: Protocol, opened: u64) -> SessionRecord {
    let endpoint = |last, port| Endpoint::new(Ipv4Addr::new(192, 0, 2, last), port);
    SessionRecord {
        protocol,
        internal: endpoint(1, u16::try_from(opened).unwrap()),
        external: endpoint(2, 2000),
        remote: endpoint(3, 443),
        state: SessionState::Unreplied,
        opened_by: Side::Internal,
        opened_at: Instant::from_millis(opened),
        age: Duration::from_millis(1500),
        idle: Duration::ZERO,
        packets_out: 1,
        bytes_out: 60,
        packets_in: 0,
        bytes_in: 0,
        offloaded: false,
        fresh: nat::Traffic::default(),
        took_port: false,
    }
}

pub(super) fn fake() -> Fake {
    let opened = [
        (Protocol::TCP, 30),
        (Protocol::UDP, 10),
        (Protocol::TCP, 50),
        (Protocol::TCP, 20),
        (Protocol::UDP, 40),
    ];
    let sessions = opened.iter().map(|(protocol, opened)| record(*protocol, *opened)).collect();
    Fake { sessions: Arc::new(sessions), driver: Vec::new(), not_ready: Vec::new(), fast_path: None }
}

pub(super) fn description() -> Description {
    let interface = datapath::Interface {
        name: "eth7".to_owned(),
        index: 7,
        mac: [2; 6],
        mtu: 1500,
        addresses: vec![Ipv4Addr::new(192, 0, 2, 2)],
    };
    let config = datapath::Config {
        external: interface.clone(),
        internal: interface,
        bypass: Vec::new(),
        datapath: datapath::Choice::Auto,
        xdp: datapath::XdpConfig::default(),
    };
    let external_addresses = vec![Ipv4Addr::new(192, 0, 2, 2).into()];
    let nat = nat::Config { external_addresses, ..nat::Config::default() };
    let source_dest_check = Some("off".to_owned());
    let chosen = Chosen { kind: datapath::Kind::Xdp, fallback: None };
    Description {
        chosen,
        config,
        nat,
        source_dest_check,
        aws: None,
        aws_failing_since: None,
        notices: Vec::new(),
        draining: false,
        nat_gateway_price_per_gb: 0.045,
    }
}
