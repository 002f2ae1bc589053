//! Clients that are no programs, but threads of this process in a host's namespace.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::host::{DEADLINE, Failure, Host, Result, wait_for};
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
pub fn ask(address: Ipv4Addr, port: u16) -> io::Result<String> {
    let address = SocketAddr::from((address, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.trim().to_owned()),
        _ => Err(io::Error::other(format!("the answer was {answer:?}"))),
    }
}

/// Somebody on the internet who asks for a page of the API again and again.
#[derive(Debug)]
pub struct Asking {
    ends: Arc<AtomicBool>,
    all: Arc<Mutex<Vec<Asked>>>,
    thread: JoinHandle<Result>,
}

/// One question.
#[derive(Debug)]
pub struct Asked {
    pub begun: Instant,
    pub took: Duration,
    pub answer: io::Result<String>,
}

impl Asking {
    /// # Errors
    /// If there is no such lab.
    pub fn start(lab: &Lab, port: u16) -> Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let namespace = File::open(format!("/run/netns/{}", lab.internet().namespace))?;
        let all = Arc::default();
        let (ended, asked) = (Arc::clone(&ends), Arc::clone(&all));
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = ask(PUBLIC, port);
                lock(&asked).push(Asked { begun, took: begun.elapsed(), answer });
            }
            Ok(())
        });
        Ok(Self { ends, all, thread })
    }

    /// Waits until `condition` holds of all that was asked up to then.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait_for(&self, what: &str, mut condition: impl FnMut(&[Asked]) -> bool) -> Result {
        wait_for(what, DEADLINE, || Ok(condition(&lock(&self.all))))
    }

    /// Ends, and gives all that was asked.
    ///
    /// # Errors
    /// If it could not begin.
    pub fn stop(self) -> Result<Vec<Asked>> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| Failure::new("a client has panicked"))??;
        Ok(std::mem::take(&mut *lock(&self.all)))
    }
}

fn lock(all: &Mutex<Vec<Asked>>) -> MutexGuard<'_, Vec<Asked>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who downloads a file slowly, and for as long as the test needs: all but its begin is left where it is until
/// [`Self::finish`], so the file must be larger than that and the buffers of all sockets on its way.
#[derive(Debug)]
pub struct Download {
    hurries: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<u8>>>,
}

impl Download {
    /// # Errors
    /// If there is no such host.
    pub fn start(host: &Host, address: Ipv4Addr, port: u16, name: &str) -> Result<Self> {
        let hurries = Arc::new(AtomicBool::new(false));
        let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
        let (hurry, request) = (Arc::clone(&hurries), format!("GET /{name} HTTP/1.0\r\n\r\n"));
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let (mut got, mut chunk) = (Vec::new(), [0; 16 << 10]);
            while !hurry.load(Ordering::Relaxed) {
                if got.len() < BEGIN {
                    let count = stream.read(&mut chunk)?;
                    if count == 0 {
                        return Err(Failure::new("the download ended in its begin"));
                    }
                    got.extend(&chunk[..count]);
                }
                thread::park_timeout(PACE);
            }
            stream.read_to_end(&mut got)?;
            Ok(got)
        });
        Ok(Self { hurries, thread })
    }

    /// Takes all that is left, and gives the whole file.
    ///
    /// # Errors
    /// If the connection broke at any time.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.hurries.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let mut answer = self.thread.join().map_err(|_| Failure::new("a client has panicked"))??;
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
        let head = head.ok_or_else(|| Failure::new("the answer has no head"))?;
        Ok(answer.split_off(head + 4))
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

/// No promise of anybody: a machine may be busy.
const PATIENCE: Duration = DEADLINE;

/// How much of a [`Download`] is taken slowly, in bytes, and the time between two looks for more.
const BEGIN: usize = 8 << 20;
const PACE: Duration = Duration::from_millis(5);
