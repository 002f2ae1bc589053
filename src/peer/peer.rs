//! One peer: the task that keeps a connection with it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::connect::{Candidate, Connection, DialError, dial};
use super::payload::{self, Payload};
use super::preamble::{Fault, Names};
use super::queue::Queue;
use super::report::{self, PeerReport, Record};
use super::sealed::{FrameError, Opener, Sealer};
use super::{Common, Down, Event};
use crate::failover::Message;

/// What is known of a peer, by its task and by others.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) gateway: String,
    /// This side dials.
    dials: bool,
    addresses: Mutex<Vec<SocketAddr>>,
    moved: Notify,
    pub(super) queue: Queue,
    record: Mutex<Record>,
    common: Arc<Common>,
}

impl Peer {
    pub(super) fn new(gateway: String, addresses: Vec<SocketAddr>, common: Arc<Common>) -> Self {
        Self {
            dials: super::dials(&common.gateway, &gateway),
            gateway,
            addresses: Mutex::new(addresses),
            moved: Notify::new(),
            queue: Queue::default(),
            record: Mutex::default(),
            common,
        }
    }

    /// Where it is from now on. A connection that was dialled to elsewhere ends.
    pub(super) fn set_addresses(&self, addresses: &[SocketAddr]) {
        let before = std::mem::replace(&mut *lock(&self.addresses), addresses.to_vec());
        if before != addresses && self.dials {
            self.moved.notify_one();
        }
    }

    pub(super) fn report(&self) -> PeerReport {
        let addresses = lock(&self.addresses).clone();
        let record = self.record();
        PeerReport {
            gateway: self.gateway.clone(),
            addresses,
            connected: record.connected(),
            counters: report::Counters { dropped: self.queue.dropped(), ..record.counters },
            last_error: record.last_error.clone(),
        }
    }

    /// Keeps a connection until this is dropped. `candidates` are those who have dialled and shown that they have the key.
    pub(super) async fn keep(&self, mut candidates: mpsc::Receiver<Candidate>) {
        let mut backoff = Backoff::default();
        let mut next = None;
        loop {
            let connection = match next.take() {
                Some(connection) => connection,
                None => self.find(&mut candidates, &mut backoff).await,
            };
            let up = Event::Up { peer: self.gateway.clone(), hello: connection.hello.clone() };
            self.connected(&connection);
            self.common.tell(up).await;
            self.record().is_announced = true;
            let start = Instant::now();
            let (why, newer) = self.carry(connection, &mut candidates).await;
            // A connection that ends at once is no success.
            if start.elapsed() > LONGEST_WAIT {
                backoff = Backoff::default();
            }
            self.disconnected(why).await;
            next = newer;
        }
    }

    /// To be called when [`Self::keep`] is dropped.
    pub(super) async fn removed(&self) {
        let is_announced = self.record().is_announced;
        if is_announced {
            self.disconnected(Down::Removed).await;
        }
    }

    async fn find(&self, candidates: &mut mpsc::Receiver<Candidate>, backoff: &mut Backoff) -> Connection {
        if self.dials {
            return self.dial(backoff).await;
        }
        loop {
            if let Some(candidate) = candidates.recv().await {
                if let Some(connection) = self.admit(candidate).await {
                    return connection;
                }
            } else {
                // Nobody is left who could find one: this is dropped soon.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn dial(&self, backoff: &mut Backoff) -> Connection {
        let names = Names { dialling: self.common.gateway.clone(), dialled: self.gateway.clone() };
        let mut turn = 0_usize;
        loop {
            if let Some(wait) = backoff.next() {
                sleep(wait).await;
            }
            let address = self.next_address(turn).await;
            turn = turn.wrapping_add(1);
            let own = self.common.introduction();
            let from = self.common.listen().ip();
            let dialled = dial(address, from, (&self.common.key(), &names), &own, self.common.silence()).await;
            match dialled {
                Ok(connection) => return connection,
                Err(error) => {
                    self.failed(&error);
                    if let DialError::Refused(refusal) = error {
                        self.common.refused(address, Some(&self.gateway), refusal);
                    }
                }
            }
        }
    }

    /// Of several, each in its turn; waits for the first one.
    async fn next_address(&self, turn: usize) -> SocketAddr {
        loop {
            {
                let addresses = lock(&self.addresses);
                if let Some(turn) = turn.checked_rem(addresses.len()) {
                    return addresses[turn];
                }
            }
            self.moved.notified().await;
        }
    }

    /// Takes a connection that the peer has dialled: the peer may have started anew, of which the old connection knows
    /// nothing. Only while that is alive, a connection from elsewhere is another instance of the same name.
    async fn admit(&self, candidate: Candidate) -> Option<Connection> {
        let address = candidate.address();
        let current = self.record().connected();
        let is_alive = |current: report::Connected| current.silent < self.common.silence() / 2;
        let admitted =
            if current.is_some_and(|current| current.address.ip() != address.ip() && is_alive(current)) {
                candidate.refuse(Fault::Claimed).await;
                Err(Fault::Claimed.into())
            } else {
                candidate.accept(&self.common.introduction()).await
            };
        admitted
            .map_err(|refusal| {
                self.record().counters.failures += 1;
                self.common.refused(address, Some(&self.gateway), refusal);
            })
            .ok()
    }

    /// Carries messages both ways until the connection ends; gives why, and the connection that takes its place.
    async fn carry(
        &self,
        connection: Connection,
        candidates: &mut mpsc::Receiver<Candidate>,
    ) -> (Down, Option<Connection>) {
        let Connection { mut stream, address, channel, counts, .. } = connection;
        let (opener, sealer) = channel.halves(counts);
        let (mut read, mut write) = stream.split();
        let (mut receiving, mut sending) =
            (pin!(self.receive(&mut read, opener)), pin!(self.send(&mut write, sealer)));
        loop {
            tokio::select! {
                why = &mut receiving => return (why, None),
                why = &mut sending => return (why, None),
                () = self.moved.notified(), if self.dials => {
                    // It may have moved before this connection was dialled.
                    if !lock(&self.addresses).contains(&address) {
                        return (Down::Moved, None);
                    }
                }
                Some(candidate) = candidates.recv() => {
                    if let Some(newer) = self.admit(candidate).await {
                        return (Down::Replaced, Some(newer));
                    }
                }
            }
        }
    }

    async fn receive(&self, stream: &mut (impl AsyncRead + Unpin), mut opener: Opener<'_>) -> Down {
        loop {
            let received = timeout(self.common.silence(), opener.receive(stream)).await;
            let (payload, bytes) = match received {
                Ok(Ok(received)) => received,
                Ok(Err(error)) => return error.into(),
                Err(_) => return Down::Silent,
            };
            self.record().received(bytes);
            match payload::parse(payload) {
                Payload::Message(message) if self.may_say(&message) => {
                    self.common.tell(Event::Message { peer: self.gateway.clone(), message }).await;
                }
                _ => self.record().counters.unknown += 1,
            }
        }
    }

    async fn send(&self, stream: &mut (impl AsyncWrite + Unpin), mut sealer: Sealer<'_>) -> Down {
        loop {
            let payload = self.queue.next().await;
            match timeout(self.common.silence(), sealer.send(stream, &payload)).await {
                Ok(Ok(bytes)) => self.record().sent(bytes),
                Ok(Err(error)) => return error.into(),
                Err(_) => return Down::Stalled,
            }
        }
    }

    /// Nobody becomes somebody else on the way.
    fn may_say(&self, message: &Message) -> bool {
        !matches!(message, Message::Hello(hello) if hello.gateway.name != self.gateway)
    }

    fn connected(&self, connection: &Connection) {
        let (address, now) = (connection.address, Instant::now());
        let mut record = self.record();
        record.connection = Some(report::Connection { address, since: now, heard: now });
        record.counters.connections += 1;
        (record.last_error, record.is_known_lost) = (None, false);
        drop(record);
        self.queue.set_open(true);
        tracing::info!(peer = self.gateway, %address, "peer connected");
    }

    async fn disconnected(&self, why: Down) {
        self.queue.set_open(false);
        {
            let mut record = self.record();
            record.connection = None;
            record.last_error = Some(why.to_string());
        }
        tracing::info!(peer = self.gateway, reason = %why, "peer disconnected");
        self.common.tell(Event::Down { peer: self.gateway.clone(), why }).await;
        self.record().is_announced = false;
    }

    fn failed(&self, error: &DialError) {
        let text = error.to_string();
        let mut record = self.record();
        record.counters.failures += 1;
        if !std::mem::replace(&mut record.is_known_lost, true) {
            tracing::info!(peer = self.gateway, error = text, "peer cannot be reached");
        }
        record.last_error = Some(text);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

/// How long to wait before dialling again: longer and longer, and never at the same moment as others.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Nothing before the first attempt.
    fn next(&mut self) -> Option<Duration> {
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        let doubled = SHORTEST_WAIT * 2u32.saturating_pow(failures.checked_sub(1)?).min(1 << 10);
        let longest = doubled.min(LONGEST_WAIT);
        // Without the system's randomness there is no handshake anyway.
        let share = getrandom::u32().unwrap_or(u32::MAX) >> 16;
        Some(longest / 2 + longest / 2 * share / (1 << 16))
    }
}

/// Of a frame on a connection that stood.
impl From<FrameError> for Down {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Self::Closed,
            FrameError::Io(error) => Self::Io(error.kind()),
            FrameError::Unverified | FrameError::TooLong => Self::Mangled,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
