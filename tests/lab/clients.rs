//! Clients that are no programs, but threads of this process in a host's namespace.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::host::{Failure, Host, Result};
use super::{Lab, PUBLIC};

/// Does something in a host's namespace. Sockets that it makes stay there.
///
/// # Errors
/// If there is no such namespace.
pub fn inside<T: Send + 'static>(host: &Host, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
    let worker = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    });
    worker.join().map_err(|_| Failure::new("a client has panicked"))?
}

/// Connections from the internet to a port of the public address.
///
/// # Errors
/// If one is refused.
pub fn connect(lab: &Lab, port: u16, count: usize) -> Result<Vec<TcpStream>> {
    inside(lab.internet(), move || {
        let connect = |_| Ok(TcpStream::connect(SocketAddr::from((PUBLIC, port)))?);
        (0..count).map(connect).collect()
    })?
}

/// Asks for a page by a connection of its own, and gives the answer's body.
///
/// # Errors
/// If it is not had in time.
pub fn ask(address: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let address = SocketAddr::from((address, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.trim().to_owned()),
        _ => Err(std::io::Error::other(format!("the answer was {answer:?}"))),
    }
}

/// Somebody on the internet who asks for a page of the API again and again.
#[derive(Debug)]
pub struct Asking {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Asked>>>,
}

/// One question.
#[derive(Debug)]
pub struct Asked {
    pub begun: Instant,
    pub took: Duration,
    pub answer: std::io::Result<String>,
}

impl Asking {
    /// # Errors
    /// If there is no such lab.
    pub fn start(lab: &Lab, port: u16) -> Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let namespace = File::open(format!("/run/netns/{}", lab.internet().namespace))?;
        let ended = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let mut all = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = ask(PUBLIC, port);
                all.push(Asked { begun, took: begun.elapsed(), answer });
            }
            Ok(all)
        });
        Ok(Self { ends, thread })
    }

    /// Ends, and gives all that was asked.
    ///
    /// # Errors
    /// If it could not begin.
    pub fn stop(self) -> Result<Vec<Asked>> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| Failure::new("a client has panicked"))?
    }
}

/// The answers, all of which must be there.
///
/// # Errors
/// If one failed.
pub fn answers(asked: impl IntoIterator<Item = Asked>) -> Result<Vec<String>> {
    let answer = |asked: Asked| {
        let Asked { took, answer, .. } = asked;
        answer.map_err(|error| Failure::new(format!("a request failed after {took:.1?}: {error}")))
    };
    asked.into_iter().map(answer).collect()
}

const PATIENCE: Duration = Duration::from_secs(10);
