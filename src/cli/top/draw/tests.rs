//! What is on the screen, cell by cell.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;

use super::*;
use crate::admin::client::Error;
use crate::admin::{FleetReport, TalkersOf, TalkersReport, TrafficReport};
use crate::cli::status::tests::status;

fn talkers() -> TalkersReport {
    let talker = |who: &str, bytes| TalkerReport {
        who: who.to_owned(),
        bytes,
        packets: bytes / 1000,
        sessions: 12_345,
        ports: 77,
        error: 0,
    };
    let of = |scale: u64| TalkersOf {
        internal: (1..=40).map(|n| talker(&format!("10.0.1.{n}"), scale << (40 - n))).collect(),
        remote: vec![talker("198.51.100.0/24", scale << 30)],
    };
    TalkersReport { by: Measure::Bytes, last_minute: of(1), last_hour: of(60) }
}

/// Ready, and a second later.
fn model() -> Model {
    let begin = Clock::now();
    let first = Status { ready: true, not_ready: Vec::new(), ..status() };
    let mut second = first.clone();
    second.uptime_seconds += 1;
    second.sessions.opened += 1_500;
    let out = TrafficReport { packets: 1_234_567_890 + 100_000, bytes: (1 << 40) + 125_000_000 };
    second.traffic.insert("out_to_external".to_owned(), out);
    second.drops.insert("no_session".to_owned(), 12_345 + 20);
    let mut model = Model::default();
    model.take_in(begin, Ok((first, talkers())));
    model.take_in(begin + Duration::from_secs(1), Ok((second, talkers())));
    model
}

fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let cells = terminal.backend().buffer().content();
    cells.chunks(width.into()).map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
}

fn assert_has(screen: &[String], texts: &[&str]) {
    for text in texts {
        assert!(screen.iter().any(|line| line.contains(text)), "{text}\nis not on\n{}", screen.join("\n"));
    }
}

#[test]
fn everything_fits_80_by_24() {
    let screen = screen(&model(), 80, 24);
    assert_has(
        &screen,
        &[
            "egret 0.1.0   READY   up 2h 4m, xdp on ens5",
            "out           1.0 Gbit/s         100 k/s       1.0 TiB",
            "in               0 bit/s            0 /s       1.0 TiB",
            "sessions  100,000 of 917,504, 1.5 k/s opened, 0 /s closed, 17 private hosts",
            "ports     53,978 of 59,976 of 192.0.2.1 (tcp), 90 %",
            "fast path 98.8 % of packets",
            "drops     no_session 20 /s",
            "processed 1.0 TiB, for which a NAT gateway takes $46.08",
            "hosts, last minute",
            "10.0.1.1             512.0 GiB   12,345",
            "198.51.100.0/24        1.0 GiB   12,345",
            "api on 0.0.0.0:5000, 7 connections",
            "10.0.1.10:5000        unhealthy       7 open   1m 1s  connection refused",
        ],
    );
    assert!(screen[23].starts_with(" q quit"), "{screen:#?}");
}

#[test]
fn a_daemon_that_is_gone_is_shown_as_gone_and_its_reasons_replace_the_last_ones() {
    let mut model = model();
    let path = "/run/egret/egret.sock".into();
    let source = std::io::ErrorKind::ConnectionRefused.into();
    model.take_in(Clock::now(), Err(Error::NotRunning { path, source }));
    assert_has(&screen(&model, 80, 24), &["NO ANSWER", "for 0.0s: no egret answers at /run/egret/egret.sock"]);
    model.take_in(Clock::now(), Ok((Status { ready: true, not_ready: Vec::new(), ..status() }, talkers())));
    assert_has(&screen(&model, 80, 24), &[" READY "]);
}

#[test]
fn what_is_wrong_is_told_without_pushing_the_rest_away() {
    let mut model = Model::default();
    let not_ready = (1..=5).map(|n| format!("interface eth{n} is down")).collect();
    model.take_in(Clock::now(), Ok((Status { not_ready, ..status() }, talkers())));
    let screen = screen(&model, 80, 24);
    let told = ["NOT READY", "interface eth1 is down", "interface eth2 is down", "and 3 more: egret status"];
    assert_has(&screen, &told);
    assert_has(&screen, &["api on 0.0.0.0:5000", "10.0.1.1 "]);
    assert!(!screen.iter().any(|line| line.contains("eth3")), "{screen:#?}");
}

#[test]
fn a_daemon_that_was_started_anew_has_no_rates_at_first() {
    let mut model = model();
    let young = Status { uptime_seconds: 1, ..status() };
    model.take_in(Clock::now() + Duration::from_secs(2), Ok((young, talkers())));
    assert_eq!(model.rates(), None);
}

#[test]
fn keys_choose_by_what_and_since_when_talkers_are_ranked() {
    let mut model = model();
    assert!(!model.press(KeyCode::Char('h')), "both times were told already");
    assert_has(&screen(&model, 80, 24), &["hosts, last hour"]);
    assert!(model.press(KeyCode::Char('s')), "another ranking has to be asked for");
    assert_eq!(model.by(), Measure::Sessions);
    assert_has(&screen(&model, 80, 24), &["sessions    bytes"]);
}

#[test]
fn gateways_are_shown_with_their_hosts() {
    let gateway = |name: &str, role: &str, host: Option<&str>| GatewayReport {
        gateway: name.to_owned(),
        role: role.to_owned(),
        host: host.map(str::to_owned),
        since_seconds: Some(312.0),
        ..GatewayReport::default()
    };
    let fleet = FleetReport {
        name: "az-a".to_owned(),
        health: "well".to_owned(),
        gateways: vec![gateway("az-a", "active", Some("az-a")), gateway("az-b", "taking", None)],
        ..FleetReport::default()
    };
    let mut model = Model::default();
    let status = Status { fleet: Some(fleet), ready: true, not_ready: Vec::new(), ..status() };
    model.take_in(Clock::now(), Ok((status, talkers())));
    let expected = [
        "gateways, az-a is well",
        "  az-a                  active    host az-a 5m 12s",
        "  az-b                  taking    host nobody 5m 12s",
    ];
    assert_has(&screen(&model, 80, 24), &expected);
}

#[test]
fn no_size_of_the_terminal_is_a_problem() {
    let model = model();
    for (width, height) in [(1, 1), (20, 3), (40, 10), (80, 12), (132, 43), (300, 100)] {
        assert_eq!(screen(&model, width, height).len(), usize::from(height));
    }
    let tall = screen(&model, 100, 60);
    assert_has(&tall, &["10.0.1.30"]);
}
