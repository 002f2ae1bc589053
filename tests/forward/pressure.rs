//! What is left of the service when descriptors are few and clients are odd.

use std::io::ErrorKind;
use std::time::Duration;

use egret::forward::{Common, Descriptors};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::target::{Target, call, callers, config, start, start_with, wait_for, wait_healthy};

#[tokio::test]
async fn accepting_pauses_while_descriptors_are_short_and_goes_on_afterwards() {
    let target = Target::start("well");
    let common = Common { descriptors: Descriptors::with_limit(16), ..Common::default() };
    let (listener, address) = start_with(config(&[target.address]), common);
    wait_healthy(&listener, &[target.address]).await;
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(call(address).await.unwrap());
    }
    let waiting = tokio::spawn(call(address));
    // It may be more than one: two threads may want the last place for the same client.
    wait_for(&listener, |report| report.counters.accept_pauses > 0).await;
    // Those that are there are served as before.
    for (_, stream) in &mut open {
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
    }
    assert!(!waiting.is_finished(), "a seventh was accepted");
    open.pop();
    let (name, _stream) = waiting.await.unwrap().expect("it waited, and was not refused");
    assert_eq!(name, "well");
    assert_eq!(listener.report().counters.unserved, 0);
}

#[tokio::test]
async fn client_that_dribbles_its_header_is_reset_in_time_and_others_do_not_wait_for_it() {
    let target = Target::start("well");
    let mut config = config(&[target.address]);
    config.accept_proxy_protocol = true;
    let (listener, address) = start(config);
    wait_healthy(&listener, &[target.address]).await;
    let begin = Instant::now();
    let silent = TcpStream::connect(address).await.unwrap();
    let dribbling = TcpStream::connect(address).await.unwrap();
    let (mut from, mut to) = dribbling.into_split();
    let dribbling = tokio::spawn(async move {
        let write = async {
            for byte in b"PROXY TCP4 203.0.113.9 198.51.100.1 40000 443".iter().cycle() {
                to.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            Ok(0)
        };
        let mut answer = [0; 8];
        // Whoever of the two sees the reset first takes it away from the other.
        tokio::select! {
            read = from.read(&mut answer) => read,
            written = write => written,
        }
    });
    for _ in 0..3 {
        let mut quick = TcpStream::connect(address).await.unwrap();
        quick.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
        let mut greeting = [0; 8];
        timeout(Duration::from_secs(2), quick.read_exact(&mut greeting)).await.unwrap().unwrap();
        assert_eq!(&greeting, b"well    ");
    }
    let mut silent = silent;
    for error in [dribbling.await.unwrap(), silent.read(&mut [0; 8]).await] {
        assert_eq!(error.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    }
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    assert_eq!(listener.report().counters.bad_headers, 2);
}

#[tokio::test]
async fn clients_that_end_at_once_leave_nothing_behind() {
    let target = Target::start("well");
    let (listener, address) = start(config(&[target.address]));
    wait_healthy(&listener, &[target.address]).await;
    for number in 0..200 {
        let stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
    }
    wait_for(&listener, |report| report.admission.admitted == 200 && report.admission.open == 0).await;
    assert!(listener.report().group.targets.iter().all(|target| target.connections == 0));
    assert_eq!(callers(address, 1).await, ["well"]);
}

#[tokio::test]
async fn idle_connections_stay_and_still_work() {
    Descriptors::raise().unwrap();
    let target = Target::start("well");
    let (listener, address) = start(config(&[target.address]));
    wait_healthy(&listener, &[target.address]).await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(call(address).await.unwrap().1);
    }
    assert_eq!(listener.report().admission.open, 1000);
    for stream in &mut idle {
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
    }
    drop(idle);
    wait_for(&listener, |report| report.admission.open == 0 && report.counters.closed == 1000).await;
}
