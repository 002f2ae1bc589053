//! A host of the lab: one network namespace, the programs that run in it, and what they printed.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a program may take where nothing else is said.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub type Result<T = ()> = std::result::Result<T, Failure>;

/// What went wrong, for a person to read.
pub struct Failure(pub String);

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

// A test that returns an error has it printed with `Debug`.
impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self(message)
    }
}

/// Every command of a lab with what came of it: shown when a test fails.
#[derive(Debug, Default)]
pub struct Journal {
    /// Holds the lines back instead of printing them at once, which under a test means: into its captured output.
    pub held: Option<Mutex<String>>,
}

impl Journal {
    pub fn add(&self, line: &str) {
        match &self.held {
            None => println!("{line}"),
            Some(held) => {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.push_str(line);
                held.push('\n');
            }
        }
    }
}

/// What a finished program left.
#[derive(Clone, Debug)]
pub struct Output {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Output {
    /// The output of a program that must have ended well.
    ///
    /// # Errors
    /// If its exit status was not 0.
    pub fn success(self) -> Result<Self> {
        if self.status.success() { Ok(self) } else { Err(Failure(self.to_string())) }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr, elapsed } = self;
        write!(formatter, "$ {command}  # {status}, {elapsed:.1?}")?;
        for (text, mark) in [(stdout, "  "), (stderr, "  ! ")] {
            for line in text.lines().take(LINES_SHOWN) {
                write!(formatter, "\n{mark}{line}")?;
            }
        }
        Ok(())
    }
}

/// A host of the lab.
#[derive(Clone, Debug)]
pub struct Host {
    /// `client1`, `router`, `nat`, ...
    pub role: String,
    pub namespace: String,
    /// Where its programs may leave files.
    pub directory: PathBuf,
    pub journal: Arc<Journal>,
}

impl Host {
    /// Runs `command`, split at white space, and gives its standard output.
    ///
    /// # Errors
    /// If it fails, or takes longer than [`DEADLINE`].
    pub fn run(&self, command: &str) -> Result<String> {
        Ok(self.try_run(command)?.success()?.stdout)
    }

    /// Runs `command`, split at white space, whatever its exit status.
    ///
    /// # Errors
    /// If it cannot be run, or takes longer than [`DEADLINE`].
    pub fn try_run(&self, command: &str) -> Result<Output> {
        self.run_for(DEADLINE, &words(command), "")
    }

    /// Runs a line of shell, and gives its standard output.
    ///
    /// # Errors
    /// As for [`Host::run`].
    pub fn shell(&self, line: &str) -> Result<String> {
        Ok(self.run_for(DEADLINE, &["sh", "-c", line], "")?.success()?.stdout)
    }

    /// Runs a program that is given `input`, for at most `deadline`.
    ///
    /// # Errors
    /// If it cannot be run, or has not ended by then.
    pub fn run_for(&self, deadline: Duration, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(&mut command, format!("{}: {}", self.role, arguments.join(" ")), deadline, input);
        match &output {
            Ok(output) => self.journal.add(&output.to_string()),
            Err(failure) => self.journal.add(&failure.0),
        }
        output
    }

    /// Starts a program that goes on until it is dropped. Its output goes to a log.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, command: &str) -> Result<Process> {
        self.spawn_with(&words(command))
    }

    /// As [`Host::spawn`], with the arguments apart.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_with(&self, arguments: &[&str]) -> Result<Process> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = Path::new(arguments[0]).file_name().map_or("program".into(), |name| name.to_string_lossy());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = self.directory.join(format!("{}-{name}-{number}.log", self.role));
        let file = File::create(&log)?;
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn()?;
        let command = format!("{}: {}", self.role, arguments.join(" "));
        self.journal.add(&format!("$ {command} &"));
        Ok(Process { child: Some(child), ended: None, command, log, journal: Arc::clone(&self.journal) })
    }

    /// Polls `condition` until it holds.
    ///
    /// # Errors
    /// If it does not within [`DEADLINE`], or if asking fails.
    pub fn wait_for(&self, what: &str, condition: impl FnMut() -> Result<bool>) -> Result {
        wait_for(&format!("{}: {what}", self.role), DEADLINE, condition)
    }

    /// Waits until something listens on `port`.
    ///
    /// # Errors
    /// If nothing does in time.
    pub fn wait_listening(&self, protocol: Transport, port: u16) -> Result {
        let option = match protocol {
            Transport::Tcp => "-Hlnt",
            Transport::Udp => "-Hlnu",
        };
        let port = format!("sport = :{port}");
        self.wait_for(&format!("a listener, {port}"), || {
            let output = finish(
                self.command(&["ss", option, &port]).stdout(Stdio::piped()).stderr(Stdio::piped()),
                "ss".to_owned(),
                DEADLINE,
                "",
            )?;
            Ok(!output.success()?.stdout.trim().is_empty())
        })
    }

    /// What a named counter of an nft table, such as `ip filter`, stands at: packets.
    ///
    /// # Errors
    /// If there is no such counter.
    pub fn nft_counter(&self, table: &str, name: &str) -> Result<u64> {
        let listed = self.run(&format!("nft -j list counter {table} {name}"))?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        listed["nftables"]
            .as_array()
            .and_then(|entries| entries.iter().find_map(|entry| entry["counter"]["packets"].as_u64()))
            .ok_or_else(|| Failure::new(format!("no counter {name} in {table}")))
    }

    /// Loads an nft rule set.
    ///
    /// # Errors
    /// If nft refuses it.
    pub fn nft(&self, rules: &str) -> Result {
        self.run_for(DEADLINE, &["nft", "-f", "-"], rules)?.success()?;
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).args(arguments);
        command.env("LC_ALL", "C").current_dir(&self.directory).process_group(0);
        // What tests and benches are told by variables is none of the daemon's, which would take it for keys.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EGRET_") && name != "EGRET_LOG" {
                command.env_remove(name);
            }
        }
        command
    }
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A program that runs in the background, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    ended: Option<ExitStatus>,
    command: String,
    log: PathBuf,
    journal: Arc<Journal>,
}

impl Process {
    /// What it has printed up to now, on both streams.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Sends a signal to it and to the programs that it started.
    ///
    /// # Errors
    /// If it has gone already.
    pub fn signal(&self, signal: Signal) -> Result {
        let id = i32::try_from(self.id())?;
        self.journal.add(&format!("$ kill -{signal} {id}  # {}", self.command));
        killpg(Pid::from_raw(id), signal)?;
        Ok(())
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none()
            && let Some(child) = &mut self.child
        {
            self.ended = child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("end of `{}`", self.command);
        wait_for(&what, deadline, || Ok(self.ended()?.is_some()))?;
        self.ended.ok_or_else(|| Failure::new(what))
    }

    /// Waits until its log holds `text`.
    ///
    /// # Errors
    /// If it does not in time, or the program ends without having printed it.
    pub fn wait_for_log(&mut self, text: &str) -> Result {
        wait_for(&format!("`{text}` from `{}`", self.command), DEADLINE, || {
            let ended = self.ended()?;
            let printed = self.log().contains(text);
            match ended {
                Some(status) if !printed => {
                    Err(Failure::new(format!("`{}` ended, {status}:\n{}", self.command, self.log())))
                }
                _ => Ok(printed),
            }
        })
    }

    /// Lets it live on after this value; the lab still ends it.
    pub fn detach(mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.ended().ok().flatten();
        if let Some(child) = &mut self.child {
            if ended.is_none() {
                if let Ok(id) = i32::try_from(child.id()) {
                    let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
                }
                let _ = child.wait();
            }
            let ended = ended.map_or("stopped at the end".to_owned(), |status| status.to_string());
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(LINES_SHOWN);
            let mut entry = format!("log of `{}`, {ended}:", self.command);
            for line in log.lines().skip(skipped) {
                entry.push_str("\n  ");
                entry.push_str(line);
            }
            self.journal.add(&entry);
        }
    }
}

/// Polls `condition` until it holds.
///
/// # Errors
/// If it does not within `deadline`, or if asking fails.
pub fn wait_for(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result {
    let end = Instant::now() + deadline;
    while !condition()? {
        if Instant::now() >= end {
            return Err(Failure::new(format!("waited {deadline:?} in vain for: {what}")));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Runs a command outside of every namespace of the lab, such as `ip netns`.
///
/// # Errors
/// If it fails.
pub fn run_outside(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(arguments[0]);
    command.args(&arguments[1..]).env("LC_ALL", "C").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(finish(&mut command, arguments.join(" "), DEADLINE, input)?.success()?.stdout)
}

/// The exit status of a program that was ended by `signal`.
#[must_use]
pub fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal as i32)
}

fn finish(command: &mut Command, line: String, deadline: Duration, input: &str) -> Result<Output> {
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| Failure::new(format!("$ {line}: {error}")))?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input is no failure.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let mut status = None;
    let in_time = wait_for(&line, deadline, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if in_time.is_err() {
        let _ = killpg(group, Signal::SIGKILL);
        status = Some(child.wait()?);
    }
    let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let output = Output {
        command: line,
        status: status.unwrap_or_default(),
        stdout: text(stdout),
        stderr: text(stderr),
        elapsed: start.elapsed(),
    };
    match in_time {
        Ok(()) => Ok(output),
        Err(_) => Err(Failure::new(format!("not finished within {deadline:?}: {output}"))),
    }
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn words(command: &str) -> Vec<&str> {
    command.split_whitespace().collect()
}

/// Fine enough not to be felt, coarse enough to leave the processor to the programs.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

const LINES_SHOWN: usize = 60;
