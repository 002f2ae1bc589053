//! The log, written to files.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde_json::Value;

use super::destinations::GENERATION;
use super::*;
use crate::nat::{CloseReason, SessionRecord, SessionState, TcpState, Traffic};
use crate::time::Instant;
use crate::wire::{Endpoint, Protocol};

fn record(remote: u16) -> SessionRecord {
    let endpoint = |address: [u8; 4], port| Endpoint::new(Ipv4Addr::from(address), port);
    SessionRecord {
        protocol: Protocol::TCP,
        internal: endpoint([10, 0, 1, 10], 4000),
        external: endpoint([10, 0, 0, 10], 4001),
        remote: endpoint([198, 51, 100, 7], remote),
        state: SessionState::Tcp(TcpState::Closing),
        opened_by: Side::Internal,
        opened_at: Instant::ORIGIN,
        age: Duration::from_millis(1500),
        idle: Duration::ZERO,
        packets_out: 3,
        bytes_out: 180,
        packets_in: 2,
        bytes_in: 120,
        offloaded: false,
        fresh: Traffic::default(),
        took_port: true,
    }
}

fn closed(remote: u16) -> Event {
    Event::Closed(record(remote), CloseReason::Finished)
}

fn path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("egret-session-log-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn to(path: &Path) -> Config {
    Config { to: Some(Target::File(path.to_owned())), ..Config::default() }
}

/// Waits until so many lines are there. The last may be there in part.
fn lines(path: &Path, count: usize) -> Vec<Value> {
    for _ in 0..2000 {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        if whole.len() >= count {
            return whole.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{count} lines do not come: {:?}", std::fs::read_to_string(path));
}

#[test]
fn a_session_that_ends_is_a_line() {
    let path = path("closed");
    let (log, mut recorder) = SessionLog::start(&to(&path)).unwrap();
    recorder.handle_event(&Event::Opened(record(443)));
    recorder.handle_event(&closed(443));
    let line = lines(&path, 1).remove(0);
    let expected = serde_json::json!({
        "event": "closed", "protocol": "tcp", "internal": "10.0.1.10:4000", "external": "10.0.0.10:4001",
        "remote": "198.51.100.7:443", "opened_by": "internal", "reason": "finished", "state": "closing",
        "seconds": 1.5, "packets_out": 3, "bytes_out": 180, "packets_in": 2, "bytes_in": 120,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&line[key], value, "{key}");
    }
    let instant = |key: &str| humantime::parse_rfc3339(line[key].as_str().unwrap()).unwrap();
    assert_eq!(instant("time").duration_since(instant("opened_at")).unwrap(), Duration::from_millis(1500));
    assert_eq!(lines(&path, 1).len(), 1, "the opening is not logged unless wanted");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o640);
    assert!(log.counts().unwrap().queue_full == 0);
}

#[test]
fn openings_and_new_destinations_are_lines_if_wanted() {
    let path = path("opened");
    let config = Config { opened: true, new_destinations: true, ..to(&path) };
    let (_log, mut recorder) = SessionLog::start(&config).unwrap();
    for remote in [443, 443, 80] {
        recorder.handle_event(&Event::Opened(record(remote)));
    }
    recorder.handle_event(&Event::Opened(SessionRecord { opened_by: Side::External, ..record(22) }));
    let events: Vec<_> = lines(&path, 6).iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["new_destination", "opened", "opened", "new_destination", "opened", "opened"]);
}

#[test]
fn lines_beyond_the_rate_are_lost_and_counted() {
    let path = path("rate");
    let (log, mut recorder) = SessionLog::start(&Config { lines_per_second: 10, ..to(&path) }).unwrap();
    for _ in 0..1000 {
        recorder.handle_event(&closed(443));
    }
    lines(&path, 10);
    for _ in 0..2000 {
        let counts = log.counts().unwrap();
        if counts.written + counts.over_rate + counts.queue_full == 1000 {
            // A second may have gone by in between.
            assert!((10..=40).contains(&counts.written), "{counts:?}");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{:?}", log.counts());
}

#[test]
fn nobody_waits_for_a_log_that_does_not_keep_up() {
    let (queue, _events) = sync_channel(2);
    let shared = Arc::new(Shared::default());
    let log = SessionLog { shared: Arc::clone(&shared) };
    log.configure(&to(&path("stuck")));
    let mut recorder = Recorder { shared, queue };
    for _ in 0..5 {
        recorder.handle_event(&closed(443));
    }
    assert_eq!(log.counts().unwrap().queue_full, 3);
}

#[test]
fn a_file_that_was_moved_away_is_made_anew() {
    let path = path("rotated");
    let (_log, mut recorder) = SessionLog::start(&to(&path)).unwrap();
    recorder.handle_event(&closed(1));
    lines(&path, 1);
    let moved = path.with_extension("1");
    std::fs::rename(&path, &moved).unwrap();
    for _ in 0..1000 {
        recorder.handle_event(&closed(2));
        if path.exists() {
            lines(&path, 1);
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} is not made anew", path.display());
}

#[test]
fn what_cannot_be_written_is_counted_and_the_place_may_change() {
    let nowhere = path("no-such-directory").join("log");
    let (log, mut recorder) = SessionLog::start(&to(&nowhere)).unwrap();
    recorder.handle_event(&closed(443));
    for _ in 0..2000 {
        if log.counts().unwrap().not_written == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(log.counts().unwrap().not_written, 1);
    let somewhere = path("somewhere");
    log.configure(&to(&somewhere));
    recorder.handle_event(&closed(443));
    assert_eq!(lines(&somewhere, 1).len(), 1);
    log.configure(&Config::default());
    assert_eq!(log.counts(), None);
    recorder.handle_event(&closed(443));
    assert_eq!(lines(&somewhere, 1).len(), 1, "it is off");
}

#[test]
fn destinations_are_remembered_in_bounded_memory() {
    let mut destinations = Destinations::default();
    let to = |number: usize| {
        let address = Ipv4Addr::from_bits(0xc633_0000 + u32::try_from(number).unwrap());
        SessionRecord { remote: Endpoint::new(address, 443), ..record(443) }
    };
    assert!(destinations.is_new(&to(0)) && !destinations.is_new(&to(0)));
    for number in 1..3 * GENERATION {
        assert!(destinations.is_new(&to(number)));
        assert!(!destinations.is_new(&to(number - 1)), "the last one is remembered");
    }
    assert!(destinations.len() <= 2 * GENERATION);
    assert!(destinations.is_new(&to(0)), "long forgotten");
}
