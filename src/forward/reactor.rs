//! The threads that carry connections.
//!
//! Owns a thread for each processor, with an epoll set of its own, and runs a future there for each connection, which
//! never leaves its thread. It stands beside tokio, which runs all the rest, since it is cheaper where connections come
//! and go (`docs/decisions/0014-connections-have-threads-of-their-own.md`): who waits for a socket is known by the socket,
//! so that nothing is registered for a wait, and nothing is locked.
//!
//! Whatever else a future waits for wakes it by its waker, as in any executor. A future is polled as a whole: parts of it
//! that have wakers of their own, as those of a `FuturesUnordered`, would miss what this module tells.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The threads of a process. They start when they are first needed, and end when this is dropped.
#[derive(Debug, Default)]
pub struct Reactor {
    threads: Mutex<Vec<Arc<Inbox>>>,
}

/// Futures that are dropped when this is.
#[derive(Debug)]
pub(super) struct Team(Membership);

/// What members of a team have new ones begin by.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    team: u64,
    /// The team is no more: whoever is on the way to a thread does not begin.
    over: Arc<AtomicBool>,
    threads: Arc<[Arc<Inbox>]>,
}

/// What a thread is told by others.
#[derive(Debug)]
struct Inbox {
    messages: Mutex<Vec<Message>>,
    bell: EventFd,
    /// Futures that are there, or on their way.
    load: AtomicUsize,
}

enum Message {
    /// Makes a future there.
    Begin(Membership, Box<dyn FnOnce() -> Task + Send>),
    /// Polls whoever has this place.
    Wake(usize),
    /// Drops the futures of a team.
    End(u64),
    Stop,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A thread's own.
struct Local {
    epoll: Epoll,
    inbox: Arc<Inbox>,
    watched: RefCell<Slab<Rc<Watched>>>,
    /// How many there were so far.
    watched_ever: Cell<u32>,
    places: RefCell<Slab<Place>>,
    /// By place. They outlast whoever has it: to be woken for nothing does no harm.
    wakers: RefCell<Vec<Waker>>,
    /// Who is to be polled next.
    queue: RefCell<VecDeque<usize>>,
    /// Who is to be polled when, at the latest.
    due: RefCell<BTreeSet<(Instant, usize)>>,
    /// As of the last look at the clock.
    now: Cell<Instant>,
    /// The place of who is being polled.
    current: Cell<usize>,
}

/// Where a future is.
struct Place {
    team: u64,
    /// With its waker. It is not here while it is polled.
    task: Option<(Task, Waker)>,
    queued: bool,
    /// It was woken, and not by a socket alone.
    woken: bool,
    /// See [`Local::due`].
    due: Option<Instant>,
}

/// A socket in the epoll set of its thread, which is told of changes, not of states (`EPOLLET`).
#[derive(Debug)]
pub(super) struct Watched {
    /// Its place among all, and above that how many there were before, so that no other one is taken for it.
    token: u64,
    ready: Cell<Ready>,
    /// The place of who is polled when that changes.
    waits: Cell<usize>,
}

/// What a socket may be ready for: until it is asked, nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ready(u8);

impl Ready {
    /// Something can be read, if only an error or the end.
    pub(super) const READABLE: Self = Self(1);
    pub(super) const WRITABLE: Self = Self(2);
    /// The other side has said its last, or there is an error. It stays so.
    pub(super) const READ_CLOSED: Self = Self(4);
    pub(super) const ERROR: Self = Self(8);
    /// There was urgent data: a read ends where it was, whatever follows. It stays so.
    pub(super) const URGENT: Self = Self(16);

    pub(super) const fn is(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }

    fn of(events: EpollFlags) -> Self {
        let mut ready = 0;
        for (event, means) in [
            (EpollFlags::EPOLLIN, Self::READABLE.0),
            (EpollFlags::EPOLLOUT, Self::WRITABLE.0),
            (EpollFlags::EPOLLRDHUP, Self::READABLE.0 | Self::READ_CLOSED.0),
            (EpollFlags::EPOLLHUP, Self::READABLE.0 | Self::READ_CLOSED.0 | Self::WRITABLE.0),
            (EpollFlags::EPOLLERR, Self::READABLE.0 | Self::WRITABLE.0 | Self::ERROR.0),
            (EpollFlags::EPOLLPRI, Self::URGENT.0),
        ] {
            if events.contains(event) {
                ready |= means;
            }
        }
        Self(ready)
    }
}

impl Reactor {
    /// A team that has nobody yet.
    ///
    /// # Errors
    /// As `epoll_create(2)`, eventfd(2) and clone(2), when the threads are first needed.
    pub(super) fn team(&self) -> io::Result<Team> {
        let mut threads = lock(&self.threads);
        if threads.is_empty() {
            let count = thread::available_parallelism().map_or(1, usize::from);
            // If one cannot be had, those that were begin to end with this.
            let mut starting = Self::default();
            for number in 0..count {
                lock(&starting.threads).push(start(number)?);
            }
            std::mem::swap(&mut *threads, starting.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        }
        let team = TEAMS.fetch_add(1, Ordering::Relaxed);
        Ok(Team(Membership { team, over: Arc::default(), threads: threads.clone().into() }))
    }

    /// Runs what `begin` makes on one of the threads, and gives what comes of it. It ends with this future at the latest.
    ///
    /// # Errors
    /// As of a thread's start; and if the future has panicked.
    pub async fn run<F>(&self, begin: impl FnOnce() -> F + Send + 'static) -> io::Result<F::Output>
    where
        F: Future<Output: Send> + 'static,
    {
        let team = self.team()?;
        let (tell, told) = oneshot::channel();
        team.0.spawn(|| async {
            let _ = tell.send(begin().await);
        });
        told.await.map_err(io::Error::other)
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        for thread in lock(&self.threads).drain(..) {
            thread.send(Message::Stop);
        }
    }
}

impl Team {
    /// Runs what `begin` makes on each of the threads.
    pub(super) fn begin<F>(&self, begin: impl FnOnce(Membership) -> F + Clone + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        for thread in &*self.0.threads {
            let (begin, membership) = (begin.clone(), self.0.clone());
            thread.begin(&self.0, || begin(membership));
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        for thread in &*self.0.threads {
            thread.send(Message::End(self.0.team));
        }
    }
}

impl Membership {
    /// Runs what `begin` makes: on this thread, and then `begin` is run at once, unless another one has much less to do.
    pub(super) fn spawn<F>(&self, begin: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let load = |thread: &Arc<Inbox>| thread.load.load(Ordering::Relaxed);
        let Some(lightest) = self.threads.iter().min_by_key(|thread| load(thread)) else { return };
        let here = with(|local| {
            // To hand it over costs something, too.
            let own = load(&local.inbox);
            load(lightest) + MOST_AHEAD.max(own / 8) > own
        });
        if here == Some(true) {
            let task = Box::pin(begin());
            with(|local| {
                local.inbox.load.fetch_add(1, Ordering::Relaxed);
                local.spawn(self.team, task);
            });
        } else {
            lightest.begin(self, begin);
        }
    }
}

impl Inbox {
    fn begin<F: Future<Output = ()> + 'static>(
        &self,
        team: &Membership,
        begin: impl FnOnce() -> F + Send + 'static,
    ) {
        self.load.fetch_add(1, Ordering::Relaxed);
        let begin = || {
            let task = begin();
            // What it has begun with is known after that thread's next look at what is ready.
            Box::pin(async {
                yield_now().await;
                task.await;
            }) as Task
        };
        self.send(Message::Begin(team.clone(), Box::new(begin)));
    }

    fn send(&self, message: Message) {
        lock(&self.messages).push(message);
        // It fails only if it has been rung 2^64 times.
        let _ = self.bell.write(1);
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

/// Starts a thread.
fn start(number: usize) -> io::Result<Arc<Inbox>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
    let inbox = Arc::new(Inbox { messages: Mutex::default(), bell, load: AtomicUsize::new(0) });
    let thread = thread::Builder::new().name(format!("egret-forward-{number}"));
    let own = Arc::clone(&inbox);
    thread.spawn(move || {
        LOCAL.with(|local| local.get_or_init(|| Local::new(epoll, own)).run());
    })?;
    Ok(inbox)
}

impl Local {
    fn new(epoll: Epoll, inbox: Arc<Inbox>) -> Self {
        Self {
            epoll,
            inbox,
            watched: RefCell::default(),
            watched_ever: Cell::default(),
            places: RefCell::default(),
            wakers: RefCell::default(),
            queue: RefCell::default(),
            due: RefCell::default(),
            now: Cell::new(Instant::now()),
            current: Cell::default(),
        }
    }

    /// Until it is told to stop.
    fn run(&self) {
        let mut events = vec![EpollEvent::empty(); MOST_EVENTS];
        loop {
            // Those that are queued meanwhile have their turn after the next look at what is ready.
            let turns = self.queue.borrow().len();
            for _ in 0..turns {
                let next = self.queue.borrow_mut().pop_front();
                if let Some(place) = next {
                    self.poll(place);
                }
            }
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // There is nothing else that can be wrong with it, and without it nothing goes on.
                Err(error) => {
                    tracing::error!(%error, "cannot wait for sockets");
                    0
                }
            };
            self.now.set(Instant::now());
            self.wake_due();
            for event in events.iter().take(count) {
                if event.data() == BELL {
                    let _ = self.inbox.bell.read();
                    let messages = std::mem::take(&mut *lock(&self.inbox.messages));
                    for message in messages {
                        match message {
                            Message::Begin(member, begin) if !member.over.load(Ordering::Acquire) => {
                                self.spawn(member.team, begin());
                            }
                            Message::Begin(..) => {
                                self.inbox.load.fetch_sub(1, Ordering::Relaxed);
                            }
                            Message::Wake(place) => self.wake(place),
                            Message::End(team) => self.end(|of| of == team),
                            Message::Stop => return self.end(|_| true),
                        }
                    }
                } else {
                    self.tell(event.data(), Ready::of(event.events()));
                }
            }
        }
    }

    fn spawn(&self, team: u64, task: Task) {
        let mut places = self.places.borrow_mut();
        let entry = places.vacant_entry();
        let place = entry.key();
        let mut wakers = self.wakers.borrow_mut();
        for place in wakers.len()..=place {
            let (inbox, thread) = (Arc::clone(&self.inbox), thread::current().id());
            wakers.push(Arc::new(Alarm { inbox, thread, place }).into());
        }
        let task = Some((task, wakers[place].clone()));
        entry.insert(Place { team, task, queued: false, woken: false, due: None });
        drop(places);
        self.wake(place);
    }

    fn wake(&self, place: usize) {
        self.enqueue(place, true);
    }

    fn enqueue(&self, place: usize, woken: bool) {
        if let Some(there) = self.places.borrow_mut().get_mut(place) {
            there.woken |= woken;
            if !std::mem::replace(&mut there.queued, true) {
                self.queue.borrow_mut().push_back(place);
            }
        }
    }

    fn poll(&self, place: usize) {
        let task = self.places.borrow_mut().get_mut(place).and_then(|there| {
            there.queued = false;
            WOKEN.set(std::mem::take(&mut there.woken));
            there.task.take()
        });
        let Some((mut task, waker)) = task else { return };
        self.current.set(place);
        BUDGET.set(MOST_CALLS);
        let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(&waker))));
        match polled {
            Ok(Poll::Pending) => {
                if let Some(there) = self.places.borrow_mut().get_mut(place) {
                    there.task = Some((task, waker));
                }
            }
            ended => {
                if ended.is_err() {
                    tracing::error!("a connection has ended by a panic");
                }
                self.leave(place, task);
            }
        }
    }

    fn leave(&self, place: usize, task: Task) {
        // What it drops may well use this thread's own.
        if catch_unwind(AssertUnwindSafe(|| drop(task))).is_err() {
            tracing::error!("the end of a connection was a panic");
        }
        let Some(left) = self.places.borrow_mut().try_remove(place) else { return };
        self.inbox.load.fetch_sub(1, Ordering::Relaxed);
        if let Some(due) = left.due {
            self.due.borrow_mut().remove(&(due, place));
        }
    }

    /// Drops the futures of some teams.
    fn end(&self, is_one: impl Fn(u64) -> bool) {
        let places = self.places.borrow();
        let those: Vec<usize> =
            places.iter().filter(|(_, there)| is_one(there.team)).map(|(place, _)| place).collect();
        drop(places);
        for place in those {
            let task = self.places.borrow_mut().get_mut(place).and_then(|there| there.task.take());
            if let Some((task, _)) = task {
                self.leave(place, task);
            }
        }
    }

    fn tell(&self, token: u64, ready: Ready) {
        let place = usize::try_from(token & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let watched = self.watched.borrow();
        let Some(watched) = watched.get(place).filter(|watched| watched.token == token) else { return };
        watched.ready.set(Ready(watched.ready.get().0 | ready.0));
        self.enqueue(watched.waits.get(), false);
    }

    /// How long to wait for what is ready.
    fn patience(&self) -> EpollTimeout {
        if !self.queue.borrow().is_empty() {
            return EpollTimeout::ZERO;
        }
        let Some((due, _)) = self.due.borrow().first().copied() else { return EpollTimeout::NONE };
        // Rounded up: whoever is woken too early waits again.
        let wait = due.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    fn wake_due(&self) {
        loop {
            let first = self.due.borrow().first().copied();
            let Some((due, place)) = first.filter(|(due, _)| *due <= self.now.get()) else { return };
            self.due.borrow_mut().remove(&(due, place));
            if let Some(there) = self.places.borrow_mut().get_mut(place) {
                there.due = None;
            }
            self.wake(place);
        }
    }

    /// Has whoever is being polled polled again by then.
    fn wake_by(&self, due: Instant) {
        let place = self.current.get();
        let mut places = self.places.borrow_mut();
        let Some(there) = places.get_mut(place) else { return };
        // Whoever is woken before waits again.
        if there.due.is_none_or(|before| due < before) {
            let mut all = self.due.borrow_mut();
            if let Some(before) = there.due.replace(due) {
                all.remove(&(before, place));
            }
            all.insert((due, place));
        }
    }
}

/// Wakes whoever has a place.
struct Alarm {
    inbox: Arc<Inbox>,
    thread: thread::ThreadId,
    place: usize,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if thread::current().id() == self.thread {
            with(|local| local.wake(self.place));
        } else {
            self.inbox.send(Message::Wake(self.place));
        }
    }
}

impl Watched {
    /// Puts a socket into this thread's set, for whoever is being polled.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`; and on a thread that is none of the reactor's.
    pub(super) fn new(socket: impl AsFd, events: EpollFlags) -> io::Result<Rc<Self>> {
        with(|local| {
            let mut all = local.watched.borrow_mut();
            let entry = all.vacant_entry();
            let ever = local.watched_ever.get().wrapping_add(1);
            local.watched_ever.set(ever);
            let token = u64::from(ever) << 32 | entry.key() as u64;
            local.epoll.add(socket, EpollEvent::new(events | EpollFlags::EPOLLET, token))?;
            let waits = Cell::new(local.current.get());
            let watched = Rc::new(Self { token, ready: Cell::default(), waits });
            entry.insert(Rc::clone(&watched));
            Ok(watched)
        })
        .unwrap_or_else(|| Err(io::Error::other("no thread of the reactor's")))
    }

    /// From now on whoever is being polled is polled when it changes.
    pub(super) fn is_mine(&self) {
        with(|local| self.waits.set(local.current.get()));
    }

    /// From now on nobody is polled when it changes.
    pub(super) fn is_nobodys(&self) {
        self.waits.set(NOBODY);
    }

    /// It is another connection's from now on, and that is whose future is being polled: of this one nothing is known yet.
    pub(super) fn renew(&self) {
        self.ready.set(Ready::default());
        self.is_mine();
    }

    pub(super) fn ready(&self) -> Ready {
        self.ready.get()
    }

    /// Whether it may be ready, for a future that is polled again when it is, and when others have had their turn.
    pub(super) fn poll(&self, what: Ready) -> Poll<()> {
        if self.ready().is(what) && may_go_on() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Does something for which it may not be ready after all.
    ///
    /// # Errors
    /// As of what is done; `WouldBlock` also without asking, if that is known, or if it is the others' turn.
    pub(super) fn attempt<T>(&self, what: Ready, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if !self.ready().is(what) || !may_go_on() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        BUDGET.set(BUDGET.get().saturating_sub(1));
        let done = act();
        if matches!(&done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.clear(what);
        }
        done
    }

    /// It was asked, and is not ready: until it changes it stays so.
    pub(super) fn clear(&self, what: Ready) {
        self.ready.set(Ready(self.ready.get().0 & !what.0));
    }

    /// Has no more changes told. A socket that nobody else holds leaves the set when it is closed.
    pub(super) fn forget(&self) {
        let place = usize::try_from(self.token & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        with(|local| local.watched.borrow_mut().try_remove(place));
    }

    /// As [`Self::forget`], for a socket that others hold as well: of what is left in the set, others would not be told.
    pub(super) fn take_out(&self, socket: impl AsFd) {
        // It is there.
        with(|local| local.epoll.delete(socket));
        self.forget();
    }
}

/// Whether who is being polled may go on; if not, it is polled again when others have had their turn.
fn may_go_on() -> bool {
    let goes_on = BUDGET.get() > 0;
    if !goes_on {
        with(|local| local.wake(local.current.get()));
    }
    goes_on
}

/// The time, as of this thread's last look at what is ready.
pub(super) fn now() -> Instant {
    with(|local| local.now.get()).unwrap_or_else(Instant::now)
}

/// Ends at that time, or some milliseconds later.
pub(super) async fn sleep_until(due: Instant) {
    poll_fn(|_| {
        if due <= now() {
            return Poll::Ready(());
        }
        with(|local| local.wake_by(due));
        Poll::Pending
    })
    .await;
}

/// Unset if that future takes longer.
pub(super) async fn timeout<T>(most: Duration, future: impl Future<Output = T>) -> Option<T> {
    let end = now() + most;
    let (mut future, mut end) = (pin!(future), pin!(sleep_until(end)));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => end.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// A future that waits for none of this thread's sockets: it is not asked whether it is done when only these have changed.
pub(super) fn aside<T>(mut future: Pin<&mut impl Future<Output = T>>) -> impl Future<Output = T> {
    let mut is_first = true;
    poll_fn(move |context| {
        if std::mem::take(&mut is_first) || WOKEN.get() { future.as_mut().poll(context) } else { Poll::Pending }
    })
}

/// Lets others have their turn, and this thread have its next look at what is ready.
pub(super) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|_| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        with(|local| local.wake(local.current.get()));
        Poll::Pending
    })
    .await;
}

/// Unset if this thread is none of the reactor's.
fn with<T>(with: impl FnOnce(&Local) -> T) -> Option<T> {
    LOCAL.try_with(|local| local.get().map(with)).ok().flatten()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static LOCAL: OnceCell<Local> = const { OnceCell::new() };
    /// What who is being polled may still do before others have their turn. Beside the rest, as it is asked most.
    static BUDGET: Cell<u32> = const { Cell::new(MOST_CALLS) };
    /// Who is being polled was woken, and not by a socket alone.
    static WOKEN: Cell<bool> = const { Cell::new(true) };
}

static TEAMS: AtomicU64 = AtomicU64::new(0);

/// No socket has this token.
const BELL: u64 = u64::MAX;
/// No future has this place.
const NOBODY: usize = usize::MAX;
/// How many more futures than another thread one may have, at the least.
const MOST_AHEAD: usize = 2;
/// What a future may do at a stretch while others wait, in calls: to go on costs less than to be interrupted.
const MOST_CALLS: u32 = 64;
/// Of one look.
const MOST_EVENTS: usize = 256;

#[cfg(test)]
mod tests;
