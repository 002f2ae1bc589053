//! What two programs see of the relay between them.

use std::future::pending;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Duration;

use egret::forward::{Carried, Ended, Pipes, Reactor, Relayed, Side, Stream, relay};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::segments_in;

const LONG: Duration = Duration::from_hours(1);

/// Both ends of a connection on loopback.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connected, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

/// A client and a target with a relay in between.
struct Relaying {
    client: TcpStream,
    target: TcpStream,
    relay: JoinHandle<Relayed>,
    /// Cuts it when it is sent or dropped.
    cut: oneshot::Sender<()>,
}

async fn relaying(idle: Duration) -> Relaying {
    let ((client, from_client), (to_target, target)) = (connection().await, connection().await);
    let (cut, is_cut) = oneshot::channel();
    let relay = tokio::spawn(relayed(from_client, to_target, idle, async {
        let _ = is_cut.await;
    }));
    Relaying { client, target, relay, cut }
}

/// What comes of a relay between the two.
async fn relayed(
    client: TcpStream,
    target: TcpStream,
    idle: Duration,
    cut: impl Future<Output = ()> + Send + 'static,
) -> Relayed {
    let [client, target] = [client, target].map(|stream| stream.into_std().unwrap());
    let relaying = move || async move {
        let [client, target] = [client, target].map(|stream| Stream::adopt(stream).unwrap());
        relay(client, target, &Pipes::default(), &Carried::default(), idle, cut).await
    };
    Reactor::default().run(relaying).await.unwrap()
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

async fn assert_reset(mut stream: TcpStream) {
    let error = stream.read(&mut [0; 16]).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Different at each place, so that nothing can be lost, doubled or moved unseen.
fn bytes(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn last_words_and_the_end_come_in_one_segment() {
    let ((mut client, from_client), (to_target, mut target)) = (connection().await, connection().await);
    target.write_all(b"bye").await.unwrap();
    target.shutdown().await.unwrap();
    // The relay is told of both at once.
    while !to_target.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::task::yield_now().await;
    }
    let relay = tokio::spawn(relayed(from_client, to_target, LONG, pending()));
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert_eq!((heard.as_slice(), segments_in(&client)), (&b"bye"[..], 2), "a SYN and data");
    drop(client);
    relay.await.unwrap();
}

/// Of urgent data only its byte is lost.
#[tokio::test]
async fn what_follows_urgent_data_is_passed_on_though_the_end_has_come() {
    // What is before it may be so much that it is spliced.
    for before in [bytes(3, 1), bytes(20_000, 2)] {
        let ((client, from_client), (to_target, mut target)) = (connection().await, connection().await);
        let (socket, after) = (SockRef::from(&client), bytes(5_000, 3));
        for (send, data) in [(0, before.as_slice()), (libc::MSG_OOB, b"!"), (0, &after)] {
            assert_eq!(socket.send_with_flags(data, send).unwrap(), data.len());
        }
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        // The relay is told of all of it at once.
        while !from_client.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
        let relay = tokio::spawn(relayed(from_client, to_target, LONG, pending()));
        let mut heard = Vec::new();
        target.read_to_end(&mut heard).await.unwrap();
        assert!(heard == [before, after].concat(), "{} bytes", heard.len());
        drop(target);
        assert_eq!(relay.await.unwrap().ended, Ended::Closed);
    }
}

#[tokio::test]
async fn last_words_of_a_side_that_resets_are_passed_on() {
    let ((mut client, from_client), (to_target, mut target)) = (connection().await, connection().await);
    client.write_all(b"last words").await.unwrap();
    reset(client);
    // The relay is told of both at once.
    from_client.ready(Interest::ERROR).await.unwrap();
    let relayed = relayed(from_client, to_target, LONG, pending()).await;
    assert_eq!((relayed.ended, relayed.bytes_to_target), (Ended::Reset(Side::Client), 10));
    let mut heard = [0; 10];
    target.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"last words");
    assert_reset(target).await;
}

#[tokio::test]
async fn answer_that_came_before_a_reset_is_passed_on_though_the_request_cannot_be() {
    let ((mut client, from_client), (to_target, mut target)) = (connection().await, connection().await);
    client.write_all(b"a long request").await.unwrap();
    target.write_all(b"no").await.unwrap();
    reset(target);
    from_client.readable().await.unwrap();
    to_target.ready(Interest::ERROR).await.unwrap();
    let relayed = relayed(from_client, to_target, LONG, pending()).await;
    assert_eq!((relayed.ended, relayed.bytes_to_client), (Ended::Reset(Side::Target), 2));
    let mut heard = [0; 2];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"no");
    assert_reset(client).await;
}

/// As of a server that answers, ends and closes while it is still told more: its end is known before its reset.
#[tokio::test]
async fn answer_that_came_with_an_end_is_passed_on_though_a_reset_follows() {
    let ((mut client, from_client), (to_target, mut target)) = (connection().await, connection().await);
    client.write_all(b"more").await.unwrap();
    target.write_all(b"no").await.unwrap();
    target.shutdown().await.unwrap();
    drop(target);
    from_client.readable().await.unwrap();
    while !to_target.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::task::yield_now().await;
    }
    let [from_client, to_target] = [from_client, to_target].map(|stream| stream.into_std().unwrap());
    let relaying = move || async move {
        let mut provoking = to_target.try_clone().unwrap();
        let [client, target] = [from_client, to_target].map(|stream| Stream::adopt(stream).unwrap());
        // The relay's thread is told of the end, and then there is a reset of which it is not.
        tokio::task::yield_now().await;
        std::io::Write::write_all(&mut provoking, b"much ").unwrap();
        let come = &mut [PollFd::new(provoking.as_fd(), PollFlags::empty())];
        assert_eq!(poll(come, PollTimeout::from(10_000_u16)).unwrap(), 1, "no reset");
        drop(provoking);
        relay(client, target, &Pipes::default(), &Carried::default(), LONG, pending()).await
    };
    let relayed = Reactor::default().run(relaying).await.unwrap();
    assert_eq!((relayed.ended, relayed.bytes_to_client), (Ended::Reset(Side::Target), 2));
    let mut heard = [0; 2];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"no");
    assert_reset(client).await;
}

#[tokio::test]
async fn everything_comes_through_both_ways_at_once() {
    let Relaying { mut client, mut target, relay, cut: _cut } = relaying(LONG).await;
    let (asked, answered) = (bytes(5_000_001, 1), bytes(3_000_003, 2));
    let (mut got_asked, mut got_answered) = (Vec::new(), Vec::new());
    {
        let (mut client_in, mut client_out) = client.split();
        let (mut target_in, mut target_out) = target.split();
        tokio::try_join!(
            async {
                client_out.write_all(&asked).await?;
                client_out.shutdown().await
            },
            async {
                target_out.write_all(&answered).await?;
                target_out.shutdown().await
            },
            client_in.read_to_end(&mut got_answered),
            target_in.read_to_end(&mut got_asked),
        )
        .unwrap();
    }
    assert!(got_asked == asked && got_answered == answered);
    let relayed = relay.await.unwrap();
    assert_eq!(
        relayed,
        Relayed { bytes_to_target: 5_000_001, bytes_to_client: 3_000_003, ended: Ended::Closed }
    );
}

#[tokio::test]
async fn answer_still_comes_after_the_client_has_said_its_last() {
    let Relaying { mut client, mut target, relay, cut: _cut } = relaying(LONG).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    target.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    for part in ["first ", "second"] {
        target.write_all(part.as_bytes()).await.unwrap();
        let mut got = vec![0; part.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, part.as_bytes());
    }
    assert!(!relay.is_finished());
    drop(target);
    assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    assert_eq!(relay.await.unwrap().ended, Ended::Closed);
}

#[tokio::test]
async fn reset_of_one_side_is_a_reset_of_the_other() {
    let Relaying { client, target, relay, cut: _cut } = relaying(LONG).await;
    reset(client);
    assert_reset(target).await;
    assert_eq!(relay.await.unwrap().ended, Ended::Reset(Side::Client));

    let Relaying { client, target, relay, cut: _cut } = relaying(LONG).await;
    reset(target);
    assert_reset(client).await;
    assert_eq!(relay.await.unwrap().ended, Ended::Reset(Side::Target));
}

/// Sends until nothing more is taken.
async fn fill(stream: &TcpStream) -> usize {
    fill_with(stream, |_| &[0; 8 << 10]).await
}

/// As [`fill`], with what comes after so many bytes.
async fn fill_with<'a>(stream: &TcpStream, next: impl Fn(usize) -> &'a [u8]) -> usize {
    let mut sent = 0;
    loop {
        match stream.try_write(next(sent)) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // What is between the two takes some more for a moment.
                if tokio::time::timeout(Duration::from_millis(300), stream.writable()).await.is_err() {
                    return sent;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn sender_is_held_back_by_a_receiver_that_does_not_read() {
    let Relaying { client, mut target, relay: _relay, cut: _cut } = relaying(LONG).await;
    let sent = fill(&client).await;
    // The buffers of four sockets and a pipe.
    assert!(sent < 32 << 20, "{sent} bytes were taken");
    let mut got = 0;
    let mut buffer = vec![0; 64 << 10];
    while got < sent {
        got += target.read(&mut buffer).await.unwrap();
    }
    assert_eq!(got, sent);
    client.writable().await.unwrap();
}

#[tokio::test]
async fn small_pieces_wait_in_order_for_a_receiver_that_does_not_read() {
    let Relaying { mut client, mut target, relay, cut: _cut } = relaying(LONG).await;
    let all = bytes(32 << 20, 3);
    let sent = fill_with(&client, |sent| &all[sent..sent + 1009]).await;
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    target.read_to_end(&mut got).await.unwrap();
    assert!(got == all[..sent], "{} bytes of {sent}, or others", got.len());
    drop(target);
    assert_eq!(relay.await.unwrap().bytes_to_target, sent as u64);
}

#[tokio::test]
async fn reset_is_passed_on_while_nobody_reads() {
    let Relaying { client, target, relay, cut: _cut } = relaying(LONG).await;
    fill(&client).await;
    reset(client);
    assert_eq!(relay.await.unwrap().ended, Ended::Reset(Side::Client));
    let mut target = target;
    let error = target.read_to_end(&mut Vec::new()).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn both_are_reset_when_it_is_cut() {
    let Relaying { client, target, relay, cut } = relaying(LONG).await;
    cut.send(()).unwrap();
    assert_eq!(relay.await.unwrap().ended, Ended::Cut);
    assert_reset(client).await;
    assert_reset(target).await;
}

#[tokio::test]
async fn both_are_reset_after_the_idle_time_and_not_before() {
    let ((client, from_client), (to_target, target)) = (connection().await, connection().await);
    let (idle, start) = (Duration::from_millis(300), Instant::now());
    let relayed = relayed(from_client, to_target, idle, pending()).await;
    assert_eq!(relayed.ended, Ended::Idle);
    assert!(start.elapsed() >= idle);
    assert_reset(client).await;
    assert_reset(target).await;
}

/// What has been taken from its sender may be on its way to a slow reader for longer than the idle time.
#[tokio::test]
async fn slow_reader_is_not_idle() {
    let ((mut client, from_client), (to_target, mut target)) = (connection().await, connection().await);
    SockRef::from(&client).set_recv_buffer_size(32 << 10).unwrap();
    SockRef::from(&from_client).set_send_buffer_size(32 << 10).unwrap();
    let relay = tokio::spawn(relayed(from_client, to_target, Duration::from_secs(2), pending()));
    // More than a pipe holds, which then takes three seconds.
    let mut left = 400 << 10;
    let sent = bytes(left, 1);
    let sending = tokio::spawn(async move {
        target.write_all(&sent).await.unwrap();
        target.shutdown().await.unwrap();
        target
    });
    while left > 0 {
        let length = client.read(&mut [0; 8 << 10]).await.expect("not yet all");
        assert!(length > 0, "{left} bytes less than were sent");
        left -= length;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(client);
    let _target = sending.await.unwrap();
    assert_eq!(relay.await.unwrap().ended, Ended::Closed);
}
