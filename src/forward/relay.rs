//! One client's connection and one target's, made into one.
//!
//! Data goes by splice(2), or through a buffer of the thread's where it comes in small pieces; a connection has no buffer
//! of its own. Each side is read only as fast as the other takes it. An end of data on one side is passed on as such while
//! the other direction goes on (RFC 9293 section 3.6: half-close); a reset is passed on as a reset.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::time::Instant;

use super::pipe::{Pipe, Pipes};
use super::reactor::{Ready, aside, now, sleep_until};
use super::stream::Stream;

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

/// Bytes that relays have carried, counted as they go.
#[derive(Debug, Default)]
pub struct Carried {
    pub to_target: AtomicU64,
    pub to_client: AtomicU64,
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

/// Relays between the two until both are done, one is reset, nothing has come for `idle`, or `cut` is done. Both are then
/// over. `carried` counts what goes by this relay, too.
pub async fn relay(
    client: Stream,
    target: Stream,
    pipes: &Pipes,
    carried: &Carried,
    idle: Duration,
    cut: impl Future<Output = ()>,
) -> Relayed {
    // Also of a relay that is dropped.
    let mut unfinished = Unfinished { streams: [&client, &target], finished: false };
    let activity = Activity::new();
    let mut to_target = Way::new(&client, &target, Side::Client, &carried.to_target);
    let mut to_client = Way::new(&target, &client, Side::Target, &carried.to_client);
    let given_up = pin!(given_up(&activity, idle, cut));
    let ended = tokio::select! {
        // What has come is passed on before anything else is looked at.
        biased;
        ended = both(&mut to_target, &mut to_client, pipes, &activity) => ended.map_or_else(|ended| ended, |()| Ended::Closed),
        ended = aside(given_up) => ended,
    };
    unfinished.finished = ended == Ended::Closed;
    let relayed = Relayed { bytes_to_target: to_target.bytes, bytes_to_client: to_client.bytes, ended };
    drop(unfinished);
    if ended == Ended::Closed && relayed.bytes_to_target.max(relayed.bytes_to_client) <= MOST_OF_SHORT {
        target.retire();
    }
    relayed
}

/// Waits until `both` directions are done, a side has failed, there was no activity for `idle`, or `cut` is done. Unless
/// all is done, and also if it is dropped, the sockets of client and target will be reset when they are closed.
pub(super) async fn supervise<T>(
    [client, target]: [&Stream; 2],
    both: impl Future<Output = Result<T, Ended>>,
    activity: &Activity,
    idle: Duration,
    cut: impl Future<Output = ()>,
) -> Ended {
    let mut unfinished = Unfinished { streams: [client, target], finished: false };
    let given_up = pin!(given_up(activity, idle, cut));
    let ended = tokio::select! {
        // What has come is passed on before anything else is looked at.
        biased;
        done = both => done.map_or_else(|ended| ended, |_| Ended::Closed),
        () = failure(client) => Ended::Reset(Side::Client),
        () = failure(target) => Ended::Reset(Side::Target),
        ended = aside(given_up) => ended,
    };
    unfinished.finished = ended == Ended::Closed;
    ended
}

/// Ends when there was no activity for `idle`, or `cut` is done.
async fn given_up(activity: &Activity, idle: Duration, cut: impl Future<Output = ()>) -> Ended {
    tokio::select! {
        biased;
        () = activity.silence(idle) => Ended::Idle,
        () = cut => Ended::Cut,
    }
}

/// Carries both ways, each until its source has said all.
async fn both<'a>(
    to_target: &mut Way<'a>,
    to_client: &mut Way<'a>,
    pipes: &Pipes,
    activity: &Activity,
) -> Result<(), Ended> {
    let (client, target) = (to_target.source, to_client.source);
    let (mut to_target, mut to_client) =
        (pin!(to_target.carry(pipes, activity)), pin!(to_client.carry(pipes, activity)));
    let first = first_done(to_target.as_mut(), to_client.as_mut()).await?;
    let (from, to, other) = match first {
        Side::Client => (client, target, to_client),
        Side::Target => (target, client, to_target),
    };
    to.shutdown();
    tokio::select! {
        biased;
        done = other => done,
        () = failure(from) => Err(Ended::Reset(first)),
    }
}

/// Waits until one way is done, and gives which side has said all. If a way fails as the side that it leads to has reset
/// its connection, the other way still passes on what that side has said before: a connection without a relay in between
/// would have brought it.
pub(super) async fn first_done(
    mut to_target: Pin<&mut impl Future<Output = Result<(), Ended>>>,
    mut to_client: Pin<&mut impl Future<Output = Result<(), Ended>>>,
) -> Result<Side, Ended> {
    tokio::select! {
        biased;
        done = to_target.as_mut() => {
            if done == Err(Ended::Reset(Side::Target)) {
                let _ = to_client.await;
            }
            done.map(|()| Side::Client)
        }
        done = to_client.as_mut() => {
            if done == Err(Ended::Reset(Side::Client)) {
                let _ = to_target.await;
            }
            done.map(|()| Side::Target)
        }
    }
}

/// Has what a target says acknowledged as by default: one that sends its first answer in small pieces may wait for that
/// before the second (Nagle's algorithm, RFC 9293 section 3.7.4), and a late acknowledgement takes 40 ms.
pub(super) fn acknowledge_at_once(target: &Stream) {
    // Without it, all is slower only.
    let _ = target.socket().set_tcp_quickack(true);
}

/// Has both connections reset, unless they are finished.
struct Unfinished<'a> {
    streams: [&'a Stream; 2],
    finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            for stream in self.streams {
                stream.reset_when_closed();
            }
        }
    }
}

/// One direction.
struct Way<'a> {
    source: &'a Stream,
    destination: &'a Stream,
    from: Side,
    bytes: u64,
    /// With those of other relays.
    all_bytes: &'a AtomicU64,
    /// Nothing has been passed on yet.
    is_first: bool,
}

impl<'a> Way<'a> {
    const fn new(source: &'a Stream, destination: &'a Stream, from: Side, all_bytes: &'a AtomicU64) -> Self {
        Self { source, destination, from, bytes: 0, all_bytes, is_first: true }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.all_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Carries all that the source has to say.
    async fn carry(&mut self, pipes: &Pipes, activity: &Activity) -> Result<(), Ended> {
        // What comes in small pieces is copied, which costs less than moving it twice.
        let mut much = false;
        loop {
            self.source.readable().await;
            // Of what is behind urgent data, splice(2) knows nothing.
            let spliced = much && !self.source.ready().is(Ready::URGENT);
            let came = if spliced { self.splice(pipes, activity).await? } else { self.copy(activity).await? };
            match came {
                Some(length) => much = length >= MOST_COPIED,
                None => break,
            }
        }
        Ok(())
    }

    /// Passes on what has come, if it is little, else the begin of it. Gives how much that was, and `None` at the end.
    async fn copy(&mut self, activity: &Activity) -> Result<Option<usize>, Ended> {
        let is_last = end_has_come(self.source);
        // Then the end goes out in one segment with what is passed on, which is held for it.
        let flags = if is_last { SendFlags::MORE } else { SendFlags::empty() };
        let (came, left) = ROOM.with_borrow_mut(|room| {
            let came = match self.source.read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((Some(0), Vec::new())),
                Err(_) => return Err(Ended::Reset(self.from)),
                Ok(0) => return Ok((None, Vec::new())),
                Ok(length) => &room[..length],
            };
            activity.note();
            let passed = match self.destination.send(came, flags) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                passed => passed.map_err(|_| Ended::Reset(self.to()))?,
            };
            self.count(passed);
            Ok((Some(came.len()), came[passed..].to_vec()))
        })?;
        let is_whole = !self.source.ready().is(Ready::URGENT);
        let is_all = is_last && is_whole && came.is_some_and(|length| (1..MOST_COPIED).contains(&length));
        if self.is_first && !is_all {
            self.is_first = false;
            // What is said once, as most of what is said in short connections, costs no system call more than that.
            if self.from == Side::Target {
                acknowledge_at_once(self.source);
            }
        }
        if !left.is_empty() {
            self.write(&left, activity).await?;
        }
        // The end has come, and less than there was room for: to ask for more would only tell so.
        Ok(came.filter(|_| !is_all))
    }

    /// Passes on all that comes until there is a pause. Gives how much that was, and nothing if it may be at the end: who
    /// reads knows.
    async fn splice(&mut self, pipes: &Pipes, activity: &Activity) -> Result<Option<usize>, Ended> {
        let mut pipe = pipes.take().await;
        let mut all = 0;
        let came = loop {
            match self.source.attempt(Ready::READABLE, || pipe.fill(self.source)) {
                Ok(0) => break Some(0),
                Ok(length) => all += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Some(all),
                Err(_) => return Err(Ended::Reset(self.from)),
            }
            activity.note();
            self.drain(&mut pipe, activity).await?;
        };
        pipes.give_back(pipe);
        Ok(came)
    }

    async fn drain(&mut self, pipe: &mut Pipe, activity: &Activity) -> Result<(), Ended> {
        while pipe.held() > 0 {
            let moved = self.destination.attempt(Ready::WRITABLE, || pipe.drain(self.destination));
            self.passed(moved, activity).await?;
        }
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8], activity: &Activity) -> Result<(), Ended> {
        while !bytes.is_empty() {
            let written = self.destination.send(bytes, SendFlags::empty());
            bytes = &bytes[self.passed(written, activity).await?..];
        }
        Ok(())
    }

    /// Counts what the destination has taken, and waits until it takes more if that is nothing.
    async fn passed(&mut self, taken: io::Result<usize>, activity: &Activity) -> Result<usize, Ended> {
        let reset = Ended::Reset(self.to());
        match taken {
            Ok(taken) => {
                self.count(taken);
                activity.note();
                Ok(taken)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::select! {
                biased;
                () = self.destination.writable() => Ok(0),
                () = failure(self.source) => Err(Ended::Reset(self.from)),
            },
            Err(_) => Err(reset),
        }
    }

    const fn to(&self) -> Side {
        match self.from {
            Side::Client => Side::Target,
            Side::Target => Side::Client,
        }
    }
}

/// Whether a connection has been told the end of what the other side says, and not by a reset; some of it may be unread.
fn end_has_come(stream: &Stream) -> bool {
    stream.ready().is(Ready::READ_CLOSED) && !stream.ready().is(Ready::ERROR) && !stream.has_failed()
}

/// Ends when a connection has failed. Only for one that nobody reads from: who does is told so. On the heap, as most
/// connections are read from.
fn failure(stream: &Stream) -> Pin<Box<dyn Future<Output = ()> + '_>> {
    Box::pin(async move {
        loop {
            stream.failed().await;
            // The error is taken by whoever sees it first.
            if stream.socket().take_error().is_ok_and(|error| error.is_some()) {
                return;
            }
            stream.clear(Ready::ERROR);
        }
    })
}

/// When data was last seen.
pub(super) struct Activity(Cell<Instant>);

impl Activity {
    pub(super) fn new() -> Self {
        Self(Cell::new(now()))
    }

    pub(super) fn note(&self) {
        self.0.set(now());
    }

    /// Ends when nothing has been seen for so long.
    async fn silence(&self, idle: Duration) {
        loop {
            let until = self.0.get() + idle;
            if until <= now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

thread_local! {
    /// What is copied is on its way only here, and nothing of it is left when another relay has its turn.
    static ROOM: RefCell<[u8; MOST_COPIED]> = const { RefCell::new([0; MOST_COPIED]) };
}

/// Of a connection that has carried more, the kernel may have made the buffers large, and they would stay so.
const MOST_OF_SHORT: u64 = 64 << 10;
/// More than that is spliced. The smallest pipe holds as much (pipe(7), `pipe-user-pages-soft`).
const MOST_COPIED: usize = 8 << 10;
