//! What clients of a listener see while its targets come, go and fail.

use std::future::{pending, ready};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use egret::balance::{self, Limits, Serving, State};
use egret::forward::{Common, Config, Counters, Listener, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::segments_in;
use crate::target::{Target, call, callers, config, start, wait_for, wait_healthy, wait_state};

/// Says something to the target and hears it again.
async fn works(stream: &mut TcpStream) -> bool {
    let mut heard = [0; 5];
    stream.write_all(b"hello").await.is_ok()
        && stream.read_exact(&mut heard).await.is_ok()
        && &heard == b"hello"
}

#[tokio::test]
async fn healthy_targets_take_turns() {
    let (one, other) = (Target::start("one"), Target::start("other"));
    let (listener, address) = start(config(&[one.address, other.address]));
    wait_healthy(&listener, &[one.address, other.address]).await;
    let mut names = callers(address, 10).await;
    names.sort();
    assert_eq!((names[0].as_str(), names[4].as_str(), names[5].as_str()), ("one", "one", "other"));
    let (_, mut stream) = call(address).await.unwrap();
    assert!(works(&mut stream).await);
}

/// A client that has spoken before its connection is taken in, and the target's side of what it gets.
async fn spoken() -> (TcpStream, TcpStream, Listener) {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(&[target.local_addr().unwrap()]);
    // The client waits in the listener's queue, so that it is known to have spoken.
    let socket = bind(config.listen).unwrap();
    let mut client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let listener = Listener::start(config, socket, Arc::new(Common::default()), [7; 16]).unwrap();
    loop {
        let (mut stream, _) = target.accept().await.unwrap();
        // A health check says nothing.
        if stream.read(&mut [0; 8]).await.is_ok_and(|length| length > 0) {
            return (client, stream, listener);
        }
    }
}

#[tokio::test]
async fn what_a_client_has_said_already_comes_with_the_acknowledgement_of_the_targets_syn() {
    // The kernel acknowledges by itself after 40 ms, in which the listener may not have had its turn.
    let mut segments = Vec::new();
    while !segments.contains(&2) {
        assert!(segments.len() < 10, "more than a SYN and data: {segments:?}");
        let (_client, target, _listener) = spoken().await;
        segments.push(segments_in(&target));
    }
}

#[tokio::test]
async fn target_that_answers_in_small_pieces_is_not_held_up() {
    // The kernel's late acknowledgement takes 40 ms, each time; anything else is chance.
    let mut took = Vec::new();
    while took.iter().all(|took| *took > Duration::from_millis(30)) {
        assert!(took.len() < 10, "{took:?}");
        let (mut client, mut target, _listener) = spoken().await;
        let asked = Instant::now();
        target.write_all(b"head").await.unwrap();
        // It waits until the first is acknowledged (Nagle's algorithm).
        target.write_all(b"body").await.unwrap();
        client.read_exact(&mut [0; 8]).await.unwrap();
        took.push(asked.elapsed());
    }
}

#[tokio::test]
async fn bytes_are_counted_while_a_connection_goes_on() {
    let target = Target::start("one");
    let (listener, address) = start(config(&[target.address]));
    wait_healthy(&listener, &[target.address]).await;
    let (_, mut stream) = call(address).await.unwrap();
    assert!(works(&mut stream).await);
    // It was greeted with eight, and has an echo of five, which is counted when it is on its way.
    let counted = |counters: Counters| (counters.bytes_to_target, counters.bytes_to_client, counters.closed);
    wait_for(&listener, |report| counted(report.counters) == (5, 13, 0)).await;
}

#[tokio::test]
async fn target_that_dies_gets_no_connections_until_it_is_well_again() {
    let (one, other) = (Target::start("one"), Target::start("other"));
    let dead = other.address;
    let (listener, address) = start(config(&[one.address, dead]));
    wait_healthy(&listener, &[one.address, dead]).await;
    let (name, _place) = other.stop().await;
    // Before a check has noticed: the refused connection is tried elsewhere.
    assert_eq!(callers(address, 6).await, vec!["one"; 6]);
    wait_state(&listener, dead, |state| matches!(state, State::Unhealthy(_))).await;
    assert_eq!(callers(address, 6).await, vec!["one"; 6]);
    let _other = Target::at(&name, dead);
    wait_healthy(&listener, &[dead]).await;
    assert!(callers(address, 2).await.contains(&name));
}

#[tokio::test]
async fn all_get_connections_while_all_are_unhealthy() {
    let target = Target::start("well");
    let mut config = config(&[target.address]);
    // The check is of another port, where nobody is.
    let (_, nobody) = Target::start("nobody").stop().await;
    config.check.port = Some(nobody.address.port());
    let (listener, address) = start(config);
    wait_state(&listener, target.address, |state| matches!(state, State::Unhealthy(_))).await;
    assert_eq!(listener.report().group.serving, Serving::FailOpen);
    assert_eq!(callers(address, 3).await, vec!["well"; 3]);
}

#[tokio::test]
async fn client_is_reset_when_there_is_no_target() {
    let (_, gone) = Target::start("gone").stop().await;
    let (listener, address) = start(config(&[gone.address]));
    // It may come before the client knows that it is connected.
    let ended = async { TcpStream::connect(address).await?.read(&mut [0; 8]).await }.await;
    assert_eq!(ended.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    assert_eq!(listener.report().counters.unserved, 1);
}

#[tokio::test]
async fn drained_target_keeps_its_connections_for_the_delay_and_gets_no_new_ones() {
    let (one, other) = (Target::start("one"), Target::start("other"));
    let mut config = config(&[one.address]);
    // Long enough for the other's checks, also on a laden machine.
    config.group.deregistration_delay = Duration::from_secs(5);
    let (listener, address) = start(config.clone());
    wait_healthy(&listener, &[one.address]).await;
    let (_, mut old) = call(address).await.unwrap();
    config.targets = vec![other.address.into()];
    listener.reconfigure(config).unwrap();
    wait_healthy(&listener, &[other.address]).await;
    assert_eq!(callers(address, 4).await, vec!["other"; 4]);
    assert!(works(&mut old).await, "the old connection lives");
    // Until the delay is over.
    let error = old.read(&mut [0; 8]).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    wait_for(&listener, |report| report.counters.cut == 1).await;
}

#[tokio::test]
async fn target_that_leaves_by_the_reload_that_shortens_the_delay_leaves_with_the_new_one() {
    let (one, other) = (Target::start("one"), Target::start("other"));
    let mut config = config(&[one.address]);
    config.group.deregistration_delay = Duration::from_mins(5);
    let (listener, address) = start(config.clone());
    wait_healthy(&listener, &[one.address]).await;
    let (_, mut old) = call(address).await.unwrap();
    config.group.deregistration_delay = Duration::from_millis(100);
    config.targets = vec![other.address.into()];
    listener.reconfigure(config).unwrap();
    let heard = timeout(Duration::from_secs(10), old.read(&mut [0; 8])).await;
    assert_eq!(heard.unwrap().expect_err("a reset").kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn connections_of_an_unhealthy_target_are_reset_or_kept_as_configured() {
    for keep in [false, true] {
        let (one, other) = (Target::start("one"), Target::start("other"));
        let mut config = config(&[one.address, other.address]);
        if keep {
            config.group.on_unhealthy = balance::OnUnhealthy::Keep;
        }
        let (listener, address) = start(config.clone());
        wait_healthy(&listener, &[one.address, other.address]).await;
        let (mut to_one, mut to_other) = (call(address).await.unwrap(), call(address).await.unwrap());
        if to_one.0 != "one" {
            std::mem::swap(&mut to_one, &mut to_other);
        }
        one.stop_listening();
        wait_state(&listener, one.address, |state| matches!(state, State::Unhealthy(_))).await;
        assert_eq!(works(&mut to_one.1).await, keep);
        assert!(works(&mut to_other.1).await, "the other is well");
    }
}

#[tokio::test]
async fn door_keeps_out_who_is_not_allowed_and_who_is_too_many() {
    let target = Target::start("well");
    let mut config = config(&[target.address]);
    config.limits = Limits { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Limits::default() };
    let (listener, address) = start(config.clone());
    wait_healthy(&listener, &[target.address]).await;
    assert_eq!(callers(address, 2).await, vec!["nobody"; 2]);
    config.limits = Limits { connections: 2, ..Limits::default() };
    listener.reconfigure(config).unwrap();
    let (first, second) = (call(address).await, call(address).await);
    assert!(first.is_some() && second.is_some());
    assert_eq!(callers(address, 1).await, ["nobody"]);
    drop(first);
    while listener.report().admission.open > 1 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(callers(address, 1).await, ["well"]);
}

#[tokio::test]
async fn stop_lets_connections_end_in_peace_and_takes_no_new_ones() {
    let target = Target::start("well");
    let (mut listener, address) = start(config(&[target.address]));
    wait_healthy(&listener, &[target.address]).await;
    let (_, mut stream) = call(address).await.unwrap();
    let stopping = tokio::spawn(async move {
        listener.stop(pending()).await;
        listener.report().counters
    });
    while let Ok(stream) = TcpStream::connect(address).await {
        drop(stream);
        sleep(Duration::from_millis(5)).await;
    }
    assert!(works(&mut stream).await);
    assert!(!stopping.is_finished());
    drop(stream);
    assert_eq!(stopping.await.unwrap().cut, 0);
}

/// As one that systemd has passed: it stays open when the listener is taken away.
#[tokio::test]
async fn socket_that_others_hold_too_is_listened_on_again() {
    let target = Target::start("well");
    let held = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (address, common) = (held.local_addr().unwrap(), Arc::new(Common::default()));
    for _ in 0..3 {
        let socket = held.try_clone().unwrap();
        let mut listener =
            Listener::start(config(&[target.address]), socket, Arc::clone(&common), [7; 16]).unwrap();
        for _ in 0..10 {
            let (_, mut stream) =
                timeout(Duration::from_secs(10), call(address)).await.expect("in time").unwrap();
            assert!(works(&mut stream).await);
        }
        listener.stop(ready(())).await;
    }
}

#[tokio::test]
async fn stop_resets_what_has_not_ended_in_time() {
    let target = Target::start("well");
    let (mut listener, address) = start(config(&[target.address]));
    wait_healthy(&listener, &[target.address]).await;
    let (_, mut stream) = call(address).await.unwrap();
    listener.stop(sleep(Duration::from_millis(50))).await;
    assert_eq!(stream.read(&mut [0; 8]).await.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    let report = listener.report();
    assert_eq!((report.counters.cut, report.admission.open), (1, 0), "it was counted, and is over");
}

/// It has no target that it could be cut from.
#[tokio::test]
async fn stop_does_not_wait_for_a_client_that_never_says_who_it_is() {
    let target = Target::start("well");
    let config = Config { accept_proxy_protocol: true, ..config(&[target.address]) };
    let (mut listener, address) = start(config);
    let mut stream = TcpStream::connect(address).await.unwrap();
    wait_for(&listener, |report| report.admission.open == 1).await;
    timeout(Duration::from_secs(3), listener.stop(ready(()))).await.expect("in time");
    drop(listener);
    let ended = stream.read(&mut [0; 8]).await;
    assert!(ended.is_err() || ended.is_ok_and(|length| length == 0));
}

/// Whether a connection of this process from one IPv4 address to another waits to ask whether its peer is still there,
/// as `proc_pid_net(5)` tells.
fn is_kept_alive(local: Option<SocketAddr>, remote: SocketAddr) -> bool {
    let text = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port()),
        SocketAddr::V6(_) => String::new(),
    };
    let (local, remote) = (local.map(text), text(remote));
    let connections = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    connections.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        local.as_ref().is_none_or(|local| fields[1] == local)
            && fields[2] == remote
            && fields[5].starts_with("02:")
    })
}

#[tokio::test]
async fn silent_peers_are_asked_whether_they_are_there_if_so_configured() {
    for keepalive in [None, Some(Duration::from_secs(30))] {
        let target = Target::start("well");
        let (listener, address) = start(Config { keepalive, ..config(&[target.address]) });
        wait_healthy(&listener, &[target.address]).await;
        let (_, mut stream) = call(address).await.unwrap();
        assert!(works(&mut stream).await);
        // What was sent last is acknowledged when an answer has come; until then another timer runs.
        let asked = || {
            [is_kept_alive(Some(address), stream.local_addr().unwrap()), is_kept_alive(None, target.address)]
        };
        for _ in 0..1000 {
            if asked() == [keepalive.is_some(); 2] {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(asked(), [keepalive.is_some(); 2]);
    }
}
