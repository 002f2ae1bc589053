//! A client of the control socket, synchronous, for the command line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Measure, Request, Response, SessionQuery, Sessions, Status, TalkersReport};

/// A connection to a running daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no egret answers at {path}; start it with `egret run`, or name its socket with --socket")]
    NotRunning { path: PathBuf, source: io::Error },
    #[error("no permission to use {path}; be root or of the group that owns it")]
    Denied { path: PathBuf, source: io::Error },
    #[error("the daemon did not answer")]
    Io(#[from] io::Error),
    #[error("the daemon's answer was not understood; is it of the same version?")]
    Protocol(#[from] serde_json::Error),
    #[error("the daemon answered something else than it was asked; is it of the same version?")]
    Unexpected,
    #[error("the daemon refused: {0}")]
    Refused(String),
}

impl Client {
    /// Connects to the daemon whose control socket is `path`.
    ///
    /// # Errors
    ///
    /// If there is none, or it may not be used.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::PermissionDenied => Error::Denied { path, source },
                _ => Error::NotRunning { path, source },
            }
        })?;
        stream.set_read_timeout(Some(TIME))?;
        stream.set_write_timeout(Some(TIME))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// How the daemon is.
    ///
    /// # Errors
    ///
    /// If it does not answer in time, or not with a status.
    pub fn status(&mut self) -> Result<Status, Error> {
        match self.ask(&Request::Status {})? {
            Response::Status(status) => Ok(*status),
            Response::Error(message) => Err(Error::Refused(message)),
            _ => Err(Error::Unexpected),
        }
    }

    /// The newest sessions that `query` asks for.
    ///
    /// # Errors
    ///
    /// If it does not answer in time, or not with sessions.
    pub fn sessions(&mut self, query: SessionQuery) -> Result<Sessions, Error> {
        match self.ask(&Request::Sessions(query))? {
            Response::Sessions(sessions) => Ok(sessions),
            Response::Error(message) => Err(Error::Refused(message)),
            _ => Err(Error::Unexpected),
        }
    }

    /// Who talks most, at most `limit` of each kind.
    ///
    /// # Errors
    ///
    /// If it does not answer in time, or not with talkers.
    pub fn talkers(&mut self, by: Measure, limit: usize) -> Result<TalkersReport, Error> {
        match self.ask(&Request::Talkers { by, limit })? {
            Response::Talkers(talkers) => Ok(talkers),
            Response::Error(message) => Err(Error::Refused(message)),
            _ => Err(Error::Unexpected),
        }
    }

    /// What is logged, after that was changed to `filter`, if there is one.
    ///
    /// # Errors
    ///
    /// If the filter makes no sense, or there is no answer in time.
    pub fn log_level(&mut self, filter: Option<String>) -> Result<String, Error> {
        match self.ask(&Request::LogLevel { filter })? {
            Response::LogLevel(filter) => Ok(filter),
            Response::Error(message) => Err(Error::Refused(message)),
            _ => Err(Error::Unexpected),
        }
    }

    /// Takes a target of a listener out of service, or, with `undo`, back into it.
    ///
    /// # Errors
    ///
    /// If there is no such listener or target, or no answer in time.
    pub fn drain(&mut self, listener: &str, target: SocketAddr, undo: bool) -> Result<(), Error> {
        match self.ask(&Request::Drain { listener: listener.to_owned(), target, undo })? {
            Response::Done {} => Ok(()),
            Response::Error(message) => Err(Error::Refused(message)),
            _ => Err(Error::Unexpected),
        }
    }

    /// Has a gateway, or else the home gateway, handed over to a peer. Gives its name; what comes of it, the status tells.
    ///
    /// # Errors
    ///
    /// If that is not even tried, or no answer in time.
    pub fn hand_over(&mut self, gateway: Option<String>, to: String) -> Result<String, Error> {
        match self.ask(&Request::Handover { gateway, to })? {
            Response::Offered { gateway } => Ok(gateway),
            Response::Error(message) => Err(Error::Refused(message)),
            _ => Err(Error::Unexpected),
        }
    }

    /// Has a peer taken for dead on an operator's word. Gives the gateways that it has; what becomes of them, the status
    /// tells.
    ///
    /// # Errors
    ///
    /// If that word does not count, or no answer in time.
    pub fn declare_dead(&mut self, peer: String) -> Result<Vec<String>, Error> {
        match self.ask(&Request::DeclareDead { peer })? {
            Response::Orphaned { gateways } => Ok(gateways),
            Response::Error(message) => Err(Error::Refused(message)),
            _ => Err(Error::Unexpected),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, Error> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        line.clear();
        (&mut self.stream).take(MAX_RESPONSE_BYTES).read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

/// Longer than the daemon takes for its longest answer.
const TIME: Duration = Duration::from_secs(40);

/// More than [`super::MAX_SESSIONS`] take.
const MAX_RESPONSE_BYTES: u64 = 128 << 20;
