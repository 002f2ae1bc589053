use std::collections::HashMap;
use std::future::pending;
use std::io::{Read as _, Write as _};
use std::sync::mpsc;

use rustix::net::SendFlags;
use tokio::time::timeout as within;

use super::super::stream::Stream;
use super::*;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn future_is_woken_from_another_thread() {
    let reactor = Reactor::default();
    let (tell, told) = oneshot::channel();
    let (begun, has_begun) = oneshot::channel();
    let running = reactor.run(|| async {
        begun.send(()).unwrap();
        told.await.unwrap()
    });
    let telling = async {
        has_begun.await.unwrap();
        tell.send(7).unwrap();
    };
    let (heard, ()) = within(SOON, async { tokio::join!(running, telling) }).await.expect("in time");
    assert_eq!(heard.unwrap(), 7);
}

fn fails() -> u8 {
    panic!("meant")
}

#[tokio::test]
async fn future_that_panics_takes_nobody_with_it() {
    let reactor = Reactor::default();
    let (waits, ended) = oneshot::channel::<()>();
    let other = reactor.run(|| async { ended.await.is_ok() });
    let panics = reactor.run(|| async { fails() });
    let both = async {
        let panicked = panics.await;
        waits.send(()).unwrap();
        panicked
    };
    let (other, panicked) = within(SOON, async { tokio::join!(other, both) }).await.expect("in time");
    assert!(other.unwrap() && panicked.is_err());
}

/// Tells when it is dropped.
struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn futures_end_with_their_team_and_with_the_reactor() {
    let reactor = Reactor::default();
    let (tell, told) = mpsc::channel();
    let waiting = || {
        let told = Told(tell.clone());
        move || async move {
            let _told = told;
            pending::<()>().await;
        }
    };
    let (one, other) = (reactor.team().unwrap(), reactor.team().unwrap());
    one.0.spawn(waiting());
    other.0.spawn(waiting());
    drop(one);
    told.recv_timeout(SOON).expect("the team is gone");
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "the other is not");
    drop(reactor);
    told.recv_timeout(SOON).expect("the reactor is gone");
}

#[test]
fn no_thread_gets_many_more_than_another() {
    let reactor = Reactor::default();
    let team = reactor.team().unwrap();
    let (tell, told) = mpsc::channel();
    // From one of the threads, as whoever accepts connections.
    let members = team.0.clone();
    team.0.spawn(move || async move {
        for _ in 0..100 {
            let tell = tell.clone();
            members.spawn(move || async move {
                tell.send(thread::current().id()).unwrap();
                pending::<()>().await;
            });
        }
    });
    let mut counts: HashMap<_, usize> = HashMap::new();
    for _ in 0..100 {
        *counts.entry(told.recv_timeout(SOON).unwrap()).or_default() += 1;
    }
    let threads = team.0.threads.len();
    assert_eq!(counts.len(), threads);
    let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(most - least <= MOST_AHEAD.max(most / 8) + 1, "{counts:?}");
}

#[tokio::test]
async fn future_that_could_always_go_on_lets_others_have_their_turn() {
    const BYTES: usize = 1000;
    let reactor = Reactor::default();
    let team = reactor.team().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(&[0; BYTES]).unwrap();
    let (socket, _) = listener.accept().unwrap();
    // All of it is there.
    while socket.peek(&mut [0; BYTES]).unwrap() < BYTES {}
    socket.set_nonblocking(true).unwrap();
    let members = team.0.clone();
    let had_its_turn = reactor.run(move || async move {
        let stream = Stream::adopt(socket).unwrap();
        stream.readable().await;
        let (tell, mut told) = oneshot::channel();
        members.spawn(|| async { tell.send(()).unwrap() });
        for _ in 0..BYTES {
            stream.readable().await;
            // Less than there is, so that there is always more.
            while stream.read(&mut [0]).is_err() {
                stream.readable().await;
            }
        }
        told.try_recv().is_ok()
    });
    assert!(within(SOON, had_its_turn).await.expect("in time").unwrap());
}

#[tokio::test]
async fn what_waits_for_no_socket_is_asked_when_it_was_woken_and_not_for_sockets() {
    let reactor = Reactor::default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let (begun, has_begun) = oneshot::channel();
    let (tell, mut told) = oneshot::channel::<()>();
    let running = reactor.run(move || async move {
        let stream = Stream::adopt(socket).unwrap();
        let (mut begun, asked) = (Some(begun), Cell::new(0));
        let telling = pin!(poll_fn(|context| {
            if let Some(begun) = begun.take() {
                begun.send(()).unwrap();
            }
            asked.set(asked.get() + 1);
            pin!(&mut told).poll(context).map(Result::unwrap)
        }));
        let mut beside = aside(telling);
        loop {
            tokio::select! {
                biased;
                () = stream.readable() => {}
                () = &mut beside => break,
            }
            let mut byte = [0];
            if stream.read(&mut byte).is_ok() {
                stream.send(&byte, SendFlags::empty()).unwrap();
            }
        }
        asked.get()
    });
    let using = async {
        has_begun.await.unwrap();
        for byte in 0..5 {
            let mut echo = [0];
            client.write_all(&[byte]).unwrap();
            client.read_exact(&mut echo).unwrap();
        }
        tell.send(()).unwrap();
    };
    let (asked, ()) = within(SOON, async { tokio::join!(running, using) }).await.expect("in time");
    assert_eq!(asked.unwrap(), 2, "at first, and when it was told");
}

#[tokio::test]
async fn sleep_ends_after_its_time_and_a_timeout_gives_up_on_what_takes_longer() {
    let (slept, longer, shorter) = Reactor::default()
        .run(|| async {
            let begin = now();
            sleep_until(begin + Duration::from_millis(30)).await;
            let slept = Instant::now() - begin;
            let longer = timeout(Duration::from_millis(5), pending::<()>()).await;
            (slept, longer, timeout(SOON, yield_now()).await)
        })
        .await
        .unwrap();
    assert!(slept >= Duration::from_millis(30) && slept < SOON, "{slept:?}");
    assert_eq!((longer, shorter), (None, Some(())));
}
