//! One client's connection and one target's, made into one.
//!
//! Data goes by splice(2), and each side is read only as fast as the other takes it. An end of data on one side is
//! passed on as such while the other direction goes on (RFC 9293 section 3.6: half-close); a reset is passed on as a
//! reset.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::pipe::{Pipe, Pipes};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Target,
}

/// What came of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    pub bytes_to_target: u64,
    pub bytes_to_client: u64,
    pub ended: Ended,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides have said all that they had to say.
    Closed,
    /// This side has reset its connection, and the other's was reset in turn.
    Reset(Side),
    /// Nothing was said for too long; both were reset.
    Idle,
    /// [`relay`]'s `cut` was done; both were reset.
    Cut,
}

impl Ended {
    /// As the access log has it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset(Side::Client) => "reset by client",
            Self::Reset(Side::Target) => "reset by target",
            Self::Idle => "idle",
            Self::Cut => "cut",
        }
    }
}

/// Relays between the two until both are done, one is reset, nothing has come for `idle`, or `cut` is done. Both are
/// closed afterwards.
pub async fn relay(
    client: TcpStream,
    target: TcpStream,
    pipes: &Pipes,
    idle: Duration,
    cut: impl Future<Output = ()>,
) -> Relayed {
    let activity = Activity::new();
    let [to_target, to_client] = [Way::new(&client, &target), Way::new(&target, &client)];
    let both = async {
        tokio::try_join!(
            to_target.carry(pipes, &activity, Side::Client),
            to_client.carry(pipes, &activity, Side::Target)
        )
    };
    let ended = supervise([&client, &target], both, &activity, idle, cut).await;
    Relayed { bytes_to_target: to_target.bytes(), bytes_to_client: to_client.bytes(), ended }
}

/// Waits until `both` directions are done, a side has failed, there was no activity for `idle`, or `cut` is done. Unless
/// all is done, and also if it is dropped, the sockets of client and target will be reset when they are closed.
pub(super) async fn supervise<T>(
    [client, target]: [&TcpStream; 2],
    both: impl Future<Output = Result<T, Ended>>,
    activity: &Activity,
    idle: Duration,
    cut: impl Future<Output = ()>,
) -> Ended {
    let mut unfinished = Unfinished { streams: [client, target], finished: false };
    let ended = tokio::select! {
        // What has come is passed on before anything else is looked at.
        biased;
        done = both => done.map_or_else(|ended| ended, |_| Ended::Closed),
        () = failure(client) => Ended::Reset(Side::Client),
        () = failure(target) => Ended::Reset(Side::Target),
        () = activity.silence(idle) => Ended::Idle,
        () = cut => Ended::Cut,
    };
    unfinished.finished = ended == Ended::Closed;
    ended
}

/// Has both connections reset, unless they are finished.
struct Unfinished<'a> {
    streams: [&'a TcpStream; 2],
    finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            for stream in self.streams {
                // Closing then sends a reset (socket(7)), or nothing, if it came from there.
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
}

/// One direction.
struct Way<'a> {
    source: &'a TcpStream,
    destination: &'a TcpStream,
    bytes: AtomicU64,
}

impl<'a> Way<'a> {
    const fn new(source: &'a TcpStream, destination: &'a TcpStream) -> Self {
        Self { source, destination, bytes: AtomicU64::new(0) }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Carries all that the source has to say, and then that it has ended. `from` is the source's side.
    async fn carry(&self, pipes: &Pipes, activity: &Activity, from: Side) -> Result<(), Ended> {
        let to = if from == Side::Client { Side::Target } else { Side::Client };
        loop {
            self.source.readable().await.map_err(|_| Ended::Reset(from))?;
            let mut pipe = pipes.take().await;
            let came = self.source.try_io(Interest::READABLE, || pipe.fill(self.source));
            match came {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    pipes.give_back(pipe);
                    continue;
                }
                Err(_) => return Err(Ended::Reset(from)),
            }
            activity.note();
            self.pass_on(&mut pipe).await.map_err(|_| Ended::Reset(to))?;
            activity.note();
            pipes.give_back(pipe);
        }
        // If it is not connected any more, the other direction says how that came.
        let _ = SockRef::from(self.destination).shutdown(std::net::Shutdown::Write);
        Ok(())
    }

    async fn pass_on(&self, pipe: &mut Pipe) -> io::Result<()> {
        while pipe.held() > 0 {
            self.destination.writable().await?;
            match self.destination.try_io(Interest::WRITABLE, || pipe.drain(self.destination)) {
                Ok(moved) => {
                    self.bytes.fetch_add(moved as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Ends when a connection has failed, even while nobody reads from it.
async fn failure(stream: &TcpStream) {
    loop {
        let ready = stream.ready(Interest::ERROR).await;
        // The error is taken by whoever sees it first.
        let failed = ready.is_err() || SockRef::from(stream).take_error().is_ok_and(|error| error.is_some());
        if failed {
            return;
        }
        let _ = stream.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

/// When data was last seen.
pub(super) struct Activity {
    start: Instant,
    /// Since then.
    last_millis: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last_millis: AtomicU64::new(0) }
    }

    pub(super) fn note(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    /// Ends when nothing has been seen for so long.
    async fn silence(&self, idle: Duration) {
        loop {
            let until = self.start + Duration::from_millis(self.last_millis.load(Ordering::Relaxed)) + idle;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}
