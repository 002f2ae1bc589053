//! The status page, rendered by a browser: the numbers are those of the daemon, and one that is gone is shown as gone.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use egret::admin::{
    self, Description, FleetReport, GatewayReport, HistoryReport, HttpLimits, PeerReport, Source,
};
use egret::balance::{
    self, AdmissionCounters, CheckError, Serving, State, TargetCounters, TargetSnapshot, Why,
};
use egret::datapath::{self, Chosen, SessionFilter, SessionPage, Snapshot, Stopped};
use egret::forward::{self, Latency, Mode, Report};
use egret::metrics::SessionLogCounts;
use egret::nat::{self, AddressUse, DropReason};
use egret::talkers::{Measure, Talkers, Tally, Top, Window};
use egret::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A daemon that is made up; or one whose worker has gone.
#[derive(Clone)]
struct Daemon {
    gone: bool,
    not_ready: Vec<String>,
}

impl Source for Daemon {
    async fn snapshot(&self) -> Result<Snapshot, Stopped> {
        if self.gone {
            return Err(Stopped);
        }
        let mut counters =
            nat::Counters { sessions: 1_234, sessions_opened: 98_765, ..nat::Counters::default() };
        counters.drops[DropReason::NoSession as usize] = 4_321;
        counters.out_to_external = nat::Traffic { packets: 777, bytes: 3 << 30 };
        counters.in_from_internal = nat::Traffic { packets: 778, bytes: 100 << 30 };
        let address = AddressUse {
            private: Ipv4Addr::new(192, 0, 2, 2),
            tcp: (30_000, 60_000),
            udp: (1, 60_000),
            icmp: (0, 65_536),
            mappings: 30_001,
            failures: 0,
        };
        Ok(Snapshot {
            counters,
            addresses: vec![address],
            datapath: datapath::Counters::default(),
            fast_path: None,
            not_ready: self.not_ready.clone(),
            uptime: Duration::from_secs(3_700),
        })
    }

    async fn scan_sessions(&self, _: u32, _: SessionFilter) -> Result<SessionPage, Stopped> {
        Ok(SessionPage::default())
    }

    async fn listeners(&self) -> Result<Vec<Report>, Stopped> {
        Ok(vec![report()])
    }

    fn fleet(&self) -> Option<FleetReport> {
        let gateway = |name: &str, role: &str, host: Option<&str>| GatewayReport {
            gateway: name.to_owned(),
            role: role.to_owned(),
            host: host.map(str::to_owned),
            since_seconds: Some(125.0),
            ..GatewayReport::default()
        };
        Some(FleetReport {
            name: "az-a".to_owned(),
            health: "well".to_owned(),
            gateways: vec![gateway("az-a", "active", Some("az-a")), gateway("az-b", "standby", None)],
            peers: vec![PeerReport {
                peer: "az-b".to_owned(),
                state: "suspect".to_owned(),
                silent_seconds: 1.25,
                last_error: Some("connection refused".to_owned()),
                ..PeerReport::default()
            }],
            ..FleetReport::default()
        })
    }

    async fn hand_over(&self, _: Option<String>, _: String) -> Result<String, String> {
        Err("nothing is handed over by HTTP".to_owned())
    }

    async fn declare_dead(&self, _: String) -> Result<Vec<String>, String> {
        Err("the page changes nothing".to_owned())
    }

    fn log_level(&self, _: Option<&str>) -> Result<String, String> {
        Err("nothing changes by HTTP".to_owned())
    }

    async fn talkers(&self, by: Measure, count: usize) -> Result<[Top; 2], Stopped> {
        let mut talkers = Talkers::default();
        let remote = Ipv4Addr::new(198, 51, 100, 7);
        for (last, bytes) in [(10, 5 << 20), (11, 1 << 20)] {
            let tally = Tally { bytes, packets: 10, sessions: 2, ports: 1 };
            talkers.add(Instant::ORIGIN, Ipv4Addr::new(10, 0, 1, last), remote, tally);
        }
        Ok([Window::Minute, Window::Hour].map(|window| talkers.top(Instant::ORIGIN, window, by, count)))
    }

    fn session_log(&self) -> Option<SessionLogCounts> {
        None
    }

    async fn driver_statistics(&self, _: &str) -> Vec<(String, u64)> {
        Vec::new()
    }

    async fn set_draining(&self, _: &str, _: SocketAddr, _: bool) -> Result<(), String> {
        Err("nothing drains by HTTP".to_owned())
    }
}

fn report() -> Report {
    let target = |last, state| TargetSnapshot {
        address: SocketAddr::from(([10, 0, 1, last], 5000)),
        weight: 1,
        backup: false,
        state,
        since: Duration::from_secs(125),
        connections: 3,
        counters: TargetCounters { probes: 50, probes_failed: 2, ..TargetCounters::default() },
    };
    Report {
        name: "<api>".to_owned(),
        listen: "0.0.0.0:5000".parse().unwrap(),
        mode: Mode::Proxy,
        counters: forward::Counters::default(),
        admission: AdmissionCounters::default(),
        group: balance::Snapshot {
            serving: Serving::Primaries,
            targets: vec![
                target(20, State::Healthy),
                target(21, State::Unhealthy(Why::HealthCheck(CheckError::Status(503)))),
            ],
            counters: balance::Counters::default(),
        },
        check_latency: Latency::default(),
        connect_latency: Latency::default(),
        half_open: Vec::new(),
        tls: None,
        sources: Vec::new(),
    }
}

fn description() -> Description {
    let interface = datapath::Interface {
        name: "ens5".to_owned(),
        index: 2,
        mac: [2; 6],
        mtu: 9001,
        addresses: vec![Ipv4Addr::new(192, 0, 2, 2)],
    };
    Description {
        chosen: Chosen { kind: datapath::Kind::AfPacket, fallback: None },
        config: datapath::Config {
            external: interface.clone(),
            internal: interface,
            bypass: Vec::new(),
            datapath: datapath::Choice::Auto,
            xdp: datapath::XdpConfig::default(),
        },
        nat: nat::Config {
            external_addresses: vec![Ipv4Addr::new(192, 0, 2, 2).into()],
            ..nat::Config::default()
        },
        source_dest_check: None,
        aws: None,
        aws_failing_since: None,
        notices: Vec::new(),
        draining: false,
        nat_gateway_price_per_gb: 0.045,
    }
}

/// The page's text, as a browser has it after some seconds of its own time.
async fn rendered(daemon: Daemon) -> String {
    let listener = admin::bind_http("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_sender, receiver) = watch::channel(description());
    let limits = HttpLimits { history_interval: Duration::from_millis(100), ..HttpLimits::default() };
    let is_gone = daemon.gone;
    tokio::spawn(admin::serve_http(listener, daemon, receiver, limits));
    if !is_gone {
        wait_for_points(address).await;
    }
    let profile = std::env::temp_dir().join(format!("egret-page-{}-{}", std::process::id(), address.port()));
    let mut browser = Command::new("timeout");
    browser
        .args(["--kill-after=5", "120", "chromium", "--headless", "--no-sandbox", "--disable-gpu"])
        .args(["--no-first-run", "--disable-dev-shm-usage", "--virtual-time-budget=9000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("http://{address}/"))
        .stderr(Stdio::null());
    let output = tokio::task::spawn_blocking(move || browser.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "chromium, of the Debian package of that name: {}", output.status);
    let _ = std::fs::remove_dir_all(profile);
    text(&String::from_utf8(output.stdout).unwrap())
}

/// Until there is something to draw.
async fn wait_for_points(address: SocketAddr) {
    for _ in 0..200 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET /history.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let history: HistoryReport = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        if history.points.sessions.len() > 5 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no points");
}

/// What is between the tags of the body, before the script.
fn text(dom: &str) -> String {
    let body = dom.split_once("<body").map_or(dom, |(_, body)| body);
    let body = body.split_once("<script>").map_or(body, |(body, _)| body);
    let parts = body.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text.trim());
    parts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" | ")
}

fn assert_shows(page: &str, expected: &[&str]) {
    for text in expected {
        assert!(page.contains(text), "{text}\nis not in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_daemons_numbers() {
    let page = rendered(Daemon { gone: false, not_ready: Vec::new() }).await;
    assert_shows(
        &page,
        &[
            "| ready |",
            "up 1h 1m, af_packet on ens5",
            "Out | 0 bit/s | 3.0 GiB since the start",
            "Sessions | 1,234 | of 1,048,576",
            "Ports | 50.0 % | 30,000 of 60,000 tcp, 192.0.2.2",
            "Dropped | 0/s | 4,321 packets since the start",
            "A NAT gateway takes | $4.50 | for 100 GiB processed",
            "&lt;api&gt; | 0.0.0.0:5000, proxy",
            "10.0.1.20:5000 | healthy | 2m 5s | 3 | 0 | 0 | 2 of 50",
            "10.0.1.21:5000 | unhealthy | 2m 5s | 3 | 0 | 0 | 2 of 50 | health check: HTTP status 503",
            "10.0.1.10 | 5.0 MiB | 10 | 2 | 1",
            "198.51.100.0/24 | 6.0 MiB | 20 | 4 | 2",
            "Throughput | out | in | 0 bit/s",
            "now",
            "Gateways | az-a is well",
            "az-a | active | az-a | 2m 5s",
            "az-b | standby | nobody known",
            "az-b | suspect | 1.3 s | connection refused",
            "no_session | 4,321",
            "out to the world | 777 | 3.0 GiB",
            "98,765 opened",
            "&lt;api&gt;, 10.0.1.21:5000: unhealthy: health check: HTTP status 503",
        ],
    );
    assert!(!page.contains("does not answer"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_why_the_daemon_is_not_ready() {
    let page = rendered(Daemon { gone: false, not_ready: vec!["interface ens5 is down".to_owned()] }).await;
    assert_shows(&page, &["| not ready |", "| interface ens5 is down |"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_clearly_that_the_daemon_is_gone() {
    let page = rendered(Daemon { gone: true, not_ready: Vec::new() }).await;
    assert_shows(&page, &["| no answer |", "The daemon does not answer, for", "the packet worker has stopped"]);
}
