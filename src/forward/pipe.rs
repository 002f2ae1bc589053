//! Pipes, by which data goes from socket to socket without coming to user space (splice(2)).
//!
//! A relay has a pipe only while there is data in it: those that wait for their peers cost two descriptors and no more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::reactor::{now, sleep_until};

/// Empty pipes that can be used again.
#[derive(Debug, Default)]
pub struct Pipes {
    spare: Mutex<Vec<Pipe>>,
}

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
    /// It holds less than others, since this user's pipes had taken too much when it was made (pipe(7),
    /// `pipe-user-pages-soft`).
    is_small: bool,
}

impl Pipes {
    /// An empty pipe. Without a descriptor left it waits for one: what is to be sent is safe where it is.
    pub(super) async fn take(&self) -> Pipe {
        loop {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match spare.map_or_else(Pipe::new, Ok) {
                Ok(pipe) => return pipe,
                Err(error) => {
                    tracing::debug!(%error, "no pipe to be had, waiting");
                    sleep_until(now() + PAUSE).await;
                }
            }
        }
    }

    /// Takes back a pipe, if it is empty, not a small one, which would slow down others when the shortage is over, and
    /// if there are not too many already.
    pub(super) fn give_back(&self, pipe: Pipe) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.held == 0 && !pipe.is_small && spare.len() < MOST_SPARE {
            spare.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // It stays as it is if this user's pipes have taken too much.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Ok(Self::of(reader, writer))
    }

    /// That of these ends, which is empty.
    fn of(reader: OwnedFd, writer: OwnedFd) -> Self {
        let size = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok());
        Self { reader, writer, held: 0, is_small: size.is_none_or(|size| size < DEFAULT_BYTES) }
    }

    /// How many bytes are in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Moves what a socket has received into the pipe, which must be empty. Gives how much that was: nothing at the
    /// end of its data.
    ///
    /// # Errors
    /// As splice(2); `WouldBlock` if there is nothing yet.
    pub(super) fn fill(&mut self, source: impl AsFd) -> io::Result<usize> {
        self.held = splice(source, None, &self.writer, None, MOST_AT_ONCE, FLAGS)?;
        Ok(self.held)
    }

    /// Moves what is in the pipe to a socket, as far as that takes it.
    ///
    /// # Errors
    /// As splice(2); `WouldBlock` if it takes nothing now.
    pub(super) fn drain(&mut self, destination: impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.reader, None, destination, None, self.held, FLAGS)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);
/// What a pipe holds by default (pipe(7)).
const DEFAULT_BYTES: usize = 64 << 10;
/// Four times as much: what has come in the meantime goes on in fewer calls. Measured with one
/// connection, it is 3 % more.
const MOST_AT_ONCE: usize = 256 << 10;
const PIPE_BYTES: i32 = 256 << 10;
/// Between two attempts to get a pipe.
const PAUSE: Duration = Duration::from_millis(20);
/// More would hold descriptors, and memory of the kernel, for nothing.
const MOST_SPARE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pipes_are_not_used_again() {
        let pipes = Pipes::default();
        let kept = || pipes.spare.lock().unwrap().len();
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        // As the kernel makes them when this user's pipes have taken too much.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(8 << 10)).unwrap();
        pipes.give_back(Pipe::of(reader, writer));
        assert_eq!(kept(), 0);
        pipes.give_back(Pipe::new().unwrap());
        assert_eq!(kept(), 1);
    }
}
