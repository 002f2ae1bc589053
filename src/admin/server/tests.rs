//! The protocol, against a worker that is made up.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;

use tokio::io::AsyncBufReadExt;

use super::*;
use crate::admin::client::Client;
use crate::nat::{SessionState, Side};
use crate::time::Instant;

/// A table of sessions in places, in pages of two.
#[derive(Clone)]
struct Fake {
    sessions: Arc<Vec<SessionRecord>>,
    not_ready: Vec<String>,
    fast_path: Option<FastPath>,
}

impl Source for Fake {
    async fn listeners(&self) -> Result<Vec<forward::Report>, Stopped> {
        Ok(Vec::new())
    }

    fn fleet(&self) -> Option<FleetReport> {
        None
    }

    async fn hand_over(&self, _: Option<String>, to: String) -> Result<String, String> {
        if to == "az-b" { Ok("az-a".to_owned()) } else { Err(format!("{to} is no peer")) }
    }

    async fn set_draining(&self, listener: &str, _: SocketAddr, _: bool) -> Result<(), String> {
        Err(format!("there is no listener {listener}"))
    }

    async fn snapshot(&self) -> Result<Snapshot, Stopped> {
        let mut counters = nat::Counters { sessions: 5, mappings: 4, ..nat::Counters::default() };
        counters.drops[DropReason::NoSession as usize] = 7;
        counters.in_from_internal.add(100);
        Ok(Snapshot {
            counters,
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
    }
}

fn fake() -> Fake {
    let opened = [
        (Protocol::TCP, 30),
        (Protocol::UDP, 10),
        (Protocol::TCP, 50),
        (Protocol::TCP, 20),
        (Protocol::UDP, 40),
    ];
    let sessions = opened.iter().map(|(protocol, opened)| record(*protocol, *opened)).collect();
    Fake { sessions: Arc::new(sessions), not_ready: Vec::new(), fast_path: None }
}

fn description() -> Description {
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
    Description { chosen, config, nat, source_dest_check, aws: None, notices: Vec::new(), draining: false }
}

/// A server on a socket of its own, in the current runtime.
fn start(name: &str, fake: Fake) -> PathBuf {
    start_with(name, fake, Limits::default())
}

fn start_with(name: &str, fake: Fake, limits: Limits) -> PathBuf {
    let path = std::env::temp_dir().join(format!("egret-admin-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = StdListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (sender, receiver) = watch::channel(description());
    tokio::spawn(async move {
        serve(UnixListener::from_std(listener).unwrap(), fake, receiver, limits).await;
        drop(sender);
    });
    path
}

/// What the server answers to these bytes, a string a line.
async fn raw(path: &PathBuf, request: &[u8]) -> Vec<String> {
    let (reader, mut writer) = UnixStream::connect(path).await.unwrap().into_split();
    // The server may close in the middle of a request that it refuses.
    let _ = writer.write_all(request).await;
    drop(writer);
    let mut lines = BufReader::new(reader).lines();
    let mut answers = Vec::new();
    while let Ok(Some(line)) = lines.next_line().await {
        answers.push(line);
    }
    answers
}

async fn with_client<T: Send + 'static>(
    path: PathBuf,
    ask: impl FnOnce(&mut Client) -> T + Send + 'static,
) -> T {
    tokio::task::spawn_blocking(move || ask(&mut Client::connect(&path).unwrap())).await.unwrap()
}

fn internal_ports(sessions: &Sessions) -> Vec<u16> {
    sessions.sessions.iter().map(|session| session.internal.port()).collect()
}

#[tokio::test]
async fn sessions_come_newest_first_over_all_pages() {
    let path = start("newest", fake());
    let sessions = with_client(path, |client| client.sessions(SessionQuery::default())).await.unwrap();
    assert_eq!(internal_ports(&sessions), [50, 40, 30, 20, 10]);
    assert_eq!((sessions.matched, sessions.live, sessions.mappings), (5, 5, 4));
    assert_eq!(sessions.sessions[0].state, "unreplied");
    assert_eq!(sessions.sessions[0].opened_by, "internal");
}

#[tokio::test]
async fn the_limit_keeps_the_newest_and_the_filter_counts_what_it_matched() {
    let path = start("limit", fake());
    let query = SessionQuery { protocol: Some("tcp".to_owned()), limit: 2, ..SessionQuery::default() };
    let sessions = with_client(path, |client| client.sessions(query)).await.unwrap();
    assert_eq!(internal_ports(&sessions), [50, 30]);
    assert_eq!(sessions.matched, 3);
}

#[tokio::test]
async fn status_tells_readiness_traffic_and_drops() {
    let fake = Fake { not_ready: vec!["no next hop".to_owned()], ..fake() };
    let status = with_client(start("status", fake), Client::status).await.unwrap();
    assert!(!status.ready);
    assert_eq!(status.not_ready, ["no next hop"]);
    assert_eq!(status.external_interface, "eth7");
    assert_eq!(status.source_dest_check.as_deref(), Some("off"));
    assert_eq!(status.drops["no_session"], 7);
    assert_eq!(status.drops.len(), DropReason::ALL.len());
    assert_eq!(status.traffic["in_from_internal"], TrafficReport { packets: 1, bytes: 100 });
    assert!(status.datapath_counters.contains_key("received"), "{:?}", status.datapath_counters);
}

#[tokio::test]
async fn status_tells_what_the_fast_path_does() {
    let to = |packets| Traffic { packets, bytes: packets * 100 };
    let counters = FastPath {
        out_to_external: to(10),
        out_to_internal: to(20),
        hairpinned: to(30),
        misses: [4, 5, 6, 0, 5],
        passed: 7,
        unserved: 8,
        flows: 2,
        capacity: 64,
    };
    let fake = Fake { fast_path: Some(counters), ..fake() };
    let status = with_client(start("fast", fake), Client::status).await.unwrap();
    assert_eq!((status.datapath.as_str(), status.datapath_fallback), ("xdp", None));
    let told = status.fast_path.unwrap();
    assert_eq!(told.translated["hairpinned"], TrafficReport { packets: 30, bytes: 3000 });
    assert_eq!(
        (told.misses["no_flow"], told.misses["no_next_hop"], told.misses.len()),
        (4, 5, Miss::ALL.len())
    );
    assert_eq!((told.flows, told.capacity, told.passed, told.unserved), (2, 64, 7, 8));
    assert_eq!(told.hit_ratio, Some(0.75), "60 of 80");
    let idle = Fake { fast_path: Some(FastPath::default()), ..self::fake() };
    let status = with_client(start("idle", idle), Client::status).await.unwrap();
    assert_eq!(status.fast_path.unwrap().hit_ratio, None);
}

#[tokio::test]
async fn one_connection_may_ask_again_and_after_a_mistake() {
    let path = start("again", fake());
    let answers = raw(
        &path,
        b"{\"command\":\"status\"}\nnonsense\n{\"command\":\"sessions\",\"limit\":1}\n{\"command\":\"status\"}",
    )
    .await;
    assert_eq!(answers.len(), 4, "{answers:?}");
    assert!(answers[0].starts_with("{\"status\":{"), "{answers:?}");
    assert!(answers[1].starts_with("{\"error\":\"not a request"), "{answers:?}");
    assert!(answers[2].starts_with("{\"sessions\":{"), "{answers:?}");
    assert!(answers[3].starts_with("{\"status\":{"), "a last line needs no line feed: {answers:?}");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_a_reason() {
    let path = start("refused", fake());
    for (request, reason) in [
        ("{\"command\":\"stop\"}\n", "unknown variant `stop`"),
        ("{\"command\":\"status\",\"verbose\":true}\n", "unknown field `verbose`"),
        ("{\"command\":\"sessions\",\"prot\":\"tcp\"}\n", "unknown field `prot`"),
        ("{\"command\":\"sessions\",\"protocol\":\"sctp\"}\n", "not known"),
        ("{\"command\":\"sessions\",\"limit\":100001}\n", "use at most 100000"),
        ("{\"command\":\"sessions\",\"internal\":\"10.0.0.0/33\"}\n", "not a request"),
        ("\n", "not a request"),
    ] {
        let answers = raw(&path, request.as_bytes()).await;
        assert_eq!(answers.len(), 1, "{request}: {answers:?}");
        assert!(answers[0].contains("\"error\"") && answers[0].contains(reason), "{request}: {answers:?}");
    }
}

#[tokio::test]
async fn a_request_without_end_is_cut_off() {
    let path = start("long", fake());
    let endless = vec![b' '; 1 << 20];
    let answers = raw(&path, &endless).await;
    // Closing with unread input may reset the connection before the answer is read; either way it ends.
    assert!(answers.is_empty() || answers[0].contains("longer than 65536"), "{answers:?}");
    let answers = raw(&path, &vec![b' '; 64 << 10]).await;
    assert!(answers[0].contains("longer than 65536"), "{answers:?}");
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_stay() {
    let limits = Limits { connections: 2, request_time: Duration::from_millis(200) };
    let path = start_with("silent", fake(), limits);
    let before = tokio::time::Instant::now();
    let mut silent = Vec::new();
    for _ in 0..limits.connections {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    // All connections are taken; the next one is answered once their time is up.
    let answers = timeout(Duration::from_secs(20), raw(&path, b"{\"command\":\"status\"}\n")).await.unwrap();
    assert!(answers[0].starts_with("{\"status\":"), "{answers:?}");
    assert!(before.elapsed() >= limits.request_time, "{:?}", before.elapsed());
}
