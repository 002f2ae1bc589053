//! The session log: a line of JSON for each session that ends, for each that begins if wanted, and for each destination
//! that nobody has talked to before if wanted.
//!
//! The packet worker puts what happens into a bounded queue and goes on; a thread of its own writes. What does not fit
//! the queue, is beyond the rate, or cannot be written is lost, and counted. A file that was moved away is opened anew,
//! so that it can be rotated by a rename.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant as Clock;

use crate::config::{SessionLog as Config, SessionLogTarget as Target};
use crate::datapath::Observer;
use crate::metrics::SessionLogCounts;
use crate::nat::{Event, Side};
use destinations::Destinations;
use line::Line;

mod destinations;
mod line;

/// The daemon's end. When it and the [`Recorder`] are dropped, the thread writes what is left, and ends.
#[derive(Debug)]
pub(super) struct SessionLog {
    shared: Arc<Shared>,
}

/// The packet worker's end.
#[derive(Debug)]
pub(super) struct Recorder {
    shared: Arc<Shared>,
    queue: SyncSender<Event>,
}

#[derive(Debug, Default)]
struct Shared {
    config: Mutex<Arc<Config>>,
    /// How often `config` was changed, and whether there is anything to be done.
    generation: AtomicU64,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    queue_full: AtomicU64,
    over_rate: AtomicU64,
    not_written: AtomicU64,
}

impl SessionLog {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no room for another thread.
    pub(super) fn start(config: &Config) -> io::Result<(Self, Recorder)> {
        let shared = Arc::new(Shared::default());
        let log = Self { shared: Arc::clone(&shared) };
        log.configure(config);
        let (queue, events) = sync_channel(MOST_WAITING);
        let writer = Writer::new(Arc::clone(&shared));
        std::thread::Builder::new().name("egret-sessions".to_owned()).spawn(move || writer.run(&events))?;
        Ok((log, Recorder { shared, queue }))
    }

    /// Changes what is logged, and where.
    pub(super) fn configure(&self, config: &Config) {
        *self.shared.config() = Arc::new(config.clone());
        let is_on = u64::from(config.to.is_some());
        let next = (self.shared.generation.load(Ordering::Relaxed) | IS_ON) + 1;
        // Odd while there is somebody to write to: one word tells the worker.
        self.shared.generation.store(next | is_on, Ordering::Release);
    }

    /// What has become of the lines so far; unset while there is no log.
    pub(super) fn counts(&self) -> Option<SessionLogCounts> {
        self.shared.config().to.as_ref()?;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { written, queue_full, over_rate, not_written } = &self.shared.counts;
        Some(SessionLogCounts {
            written: of(written),
            queue_full: of(queue_full),
            over_rate: of(over_rate),
            not_written: of(not_written),
        })
    }
}

impl Shared {
    fn config(&self) -> MutexGuard<'_, Arc<Config>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Recorder {
    fn handle_event(&mut self, event: &Event) {
        let is_on = self.shared.generation.load(Ordering::Relaxed) & IS_ON != 0;
        if is_on && !matches!(event, Event::Established(_)) && self.queue.try_send(*event).is_err() {
            self.shared.counts.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the thread has.
struct Writer {
    shared: Arc<Shared>,
    generation: u64,
    config: Arc<Config>,
    output: Option<Output>,
    destinations: Destinations,
    /// Lines that may still be written before the second ends.
    tokens: u32,
    second: Clock,
    /// Lines that are in the output's buffer.
    unflushed: u64,
    complained: Option<Clock>,
}

enum Output {
    Stdout(io::Stdout),
    File { buffer: BufWriter<File>, device: u64, inode: u64 },
}

impl Writer {
    fn new(shared: Arc<Shared>) -> Self {
        let config = Arc::clone(&shared.config());
        Self {
            shared,
            generation: 0,
            config,
            output: None,
            destinations: Destinations::default(),
            tokens: 0,
            second: Clock::now(),
            unflushed: 0,
            complained: None,
        }
    }

    fn run(mut self, events: &Receiver<Event>) {
        loop {
            let received = events.recv_timeout(SECOND);
            self.look_around();
            match received {
                Ok(event) => {
                    self.take_in(&event);
                    // What has come in the meantime goes in the same piece.
                    for event in events.try_iter().take(MOST_WAITING) {
                        self.take_in(&event);
                    }
                    self.flush();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Follows the configuration, the file's name and the time.
    fn look_around(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if self.generation != generation {
            self.generation = generation;
            let config = Arc::clone(&self.shared.config());
            if config.to != self.config.to {
                self.output = None;
            }
            self.config = config;
            self.tokens = self.config.lines_per_second;
        }
        if self.second.elapsed() >= SECOND {
            self.second = Clock::now();
            self.tokens = self.config.lines_per_second;
            if let (Some(Output::File { device, inode, .. }), Some(Target::File(path))) =
                (&self.output, &self.config.to)
                && !std::fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (*device, *inode))
            {
                self.output = None;
            }
        }
    }

    fn take_in(&mut self, event: &Event) {
        #[expect(clippy::disallowed_methods, reason = "a line says when")]
        let now = SystemTime::now();
        match event {
            Event::Opened(record) => {
                let is_outbound = record.opened_by == Side::Internal;
                if self.config.new_destinations && is_outbound && self.destinations.is_new(record) {
                    self.write(&Line::destination(now, record));
                }
                if self.config.opened {
                    self.write(&Line::opened(now, record));
                }
            }
            Event::Closed(record, reason) => self.write(&Line::closed(now, record, *reason)),
            Event::Established(_) => {}
        }
    }

    fn write(&mut self, line: &Line) {
        let Some(target) = &self.config.to else { return };
        let counts = &self.shared.counts;
        let Some(tokens) = self.tokens.checked_sub(1) else {
            counts.over_rate.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.tokens = tokens;
        if self.output.is_none() {
            match Output::open(target) {
                Ok(output) => self.output = Some(output),
                Err(error) => return self.fail(1, &error),
            }
        }
        let Some(output) = &mut self.output else { return };
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            output.write(&bytes)
        });
        match written {
            Ok(()) => self.unflushed += 1,
            Err(error) => self.fail(1, &error),
        }
    }

    fn flush(&mut self) {
        let lines = std::mem::take(&mut self.unflushed);
        match self.output.as_mut().map_or(Ok(()), Output::flush) {
            Ok(()) => {
                self.shared.counts.written.fetch_add(lines, Ordering::Relaxed);
            }
            Err(error) => self.fail(lines, &error),
        }
    }

    /// The next line tries anew.
    fn fail(&mut self, lines: u64, error: &io::Error) {
        self.output = None;
        self.shared.counts.not_written.fetch_add(lines, Ordering::Relaxed);
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained = Some(Clock::now());
            tracing::warn!(%error, "session log cannot be written, lines are lost");
        }
    }
}

impl Output {
    fn open(target: &Target) -> io::Result<Self> {
        let path: &Path = match target {
            Target::Stdout => return Ok(Self::Stdout(io::stdout())),
            Target::File(path) => path,
        };
        // Who talks to whom is not everybody's business.
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let there = file.metadata()?;
        Ok(Self::File { buffer: BufWriter::new(file), device: there.dev(), inode: there.ino() })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.write_all(line),
            Self::File { buffer, .. } => buffer.write_all(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File { buffer, .. } => buffer.flush(),
        }
    }
}

/// Of the generation.
const IS_ON: u64 = 1;
/// Events: a burst of sessions that end with their host.
const MOST_WAITING: usize = 8192;
const SECOND: Duration = Duration::from_secs(1);
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
