//! The protocol, against a worker that is made up.

use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;

use tokio::io::AsyncBufReadExt;

use super::*;
use crate::admin::client::Client;
use crate::admin::testing::{Fake, description, fake};
use crate::admin::{Measure, TrafficReport};
use crate::datapath::{FastPath, Miss};
use crate::nat::{DropReason, Traffic};

/// A server on a socket of its own, in the current runtime.
fn start(name: &str, source: Fake) -> PathBuf {
    start_with(name, source, Limits::default())
}

fn start_with(name: &str, source: Fake, limits: Limits) -> PathBuf {
    let path = std::env::temp_dir().join(format!("egret-admin-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = StdListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (sender, receiver) = watch::channel(description());
    tokio::spawn(async move {
        serve(UnixListener::from_std(listener).unwrap(), source, receiver, limits).await;
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
    let unready = Fake { not_ready: vec!["no next hop".to_owned()], ..fake() };
    let status = with_client(start("status", unready), Client::status).await.unwrap();
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
async fn talkers_come_with_their_networks_and_a_limit() {
    let path = start("talkers", fake());
    let told = with_client(path.clone(), |client| client.talkers(Measure::Bytes, 5)).await.unwrap();
    assert_eq!(told.last_minute, told.last_hour);
    assert_eq!(told.last_minute.internal[0].who, "10.0.0.1");
    assert_eq!(told.last_minute.remote[0].who, "192.0.2.0/24");
    assert_eq!((told.last_hour.remote[0].bytes, told.last_hour.remote[0].ports), (1000, 1));
    let refused = with_client(path, |client| client.talkers(Measure::Bytes, 101)).await.unwrap_err();
    assert_eq!(refused.to_string(), "the daemon refused: limit is 101; use at most 100");
}

#[tokio::test]
async fn peer_is_declared_dead_or_it_is_said_why_not() {
    let path = start("declared-dead", fake());
    let declare = async |peer: &str| {
        let peer = peer.to_owned();
        with_client(path.clone(), |client| client.declare_dead(peer)).await
    };
    assert_eq!(declare("az-b").await.unwrap(), ["az-b"]);
    assert_eq!(declare("az-x").await.unwrap_err().to_string(), "the daemon refused: az-x is no peer");
}

#[tokio::test]
async fn log_level_is_told_and_changed() {
    let path = start("log-level", fake());
    let level = async |filter: Option<&str>| {
        let filter = filter.map(str::to_owned);
        with_client(path.clone(), |client| client.log_level(filter)).await
    };
    assert_eq!(level(None).await.unwrap(), "info");
    assert_eq!(level(Some("debug")).await.unwrap(), "debug");
    assert_eq!(
        level(Some("nonsense")).await.unwrap_err().to_string(),
        "the daemon refused: nonsense is no filter"
    );
}

#[test]
fn root_and_whoever_runs_the_daemon_may_change_something() {
    let ours = nix::unistd::geteuid().as_raw();
    assert!(is_trusted(0) && is_trusted(ours));
    assert!(!is_trusted(65_534) && !is_trusted(ours + 1000));
}

#[tokio::test]
async fn status_tells_what_a_nat_gateway_would_have_taken() {
    let status = with_client(start("price", fake()), Client::status).await.unwrap();
    assert_eq!(status.processed.bytes, 100);
    let expected = 100.0 / f64::from(1 << 30) * 0.045;
    assert!((status.processed.nat_gateway_price - expected).abs() < 1e-12, "{:?}", status.processed);
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
    let busy = Fake { fast_path: Some(counters), ..fake() };
    let status = with_client(start("fast", busy), Client::status).await.unwrap();
    assert_eq!((status.datapath.as_str(), status.datapath_fallback), ("xdp", None));
    let told = status.fast_path.unwrap();
    assert_eq!(told.translated["hairpinned"], TrafficReport { packets: 30, bytes: 3000 });
    assert_eq!(
        (told.misses["no_flow"], told.misses["no_next_hop"], told.misses.len()),
        (4, 5, Miss::ALL.len())
    );
    assert_eq!((told.flows, told.capacity, told.passed, told.unserved), (2, 64, 7, 8));
    assert_eq!(told.hit_ratio, Some(0.75), "60 of 80");
    let idle = Fake { fast_path: Some(FastPath::default()), ..fake() };
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
