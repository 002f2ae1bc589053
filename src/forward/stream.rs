//! Sockets of the reactor's: they are asked at once, and waited for only if they are not ready.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::reactor::{Ready, Watched};

/// A connection. It stays on the thread that has made it.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    watched: Rc<Watched>,
    /// What first went wrong with it: the kernel tells an error once, to whoever asks first.
    failure: Cell<Option<ErrorKind>>,
}

/// A socket that listens, and may do so on several threads.
#[derive(Debug)]
pub(super) struct Ears<'a> {
    socket: &'a mio::net::TcpListener,
    watched: Rc<Watched>,
}

impl Stream {
    /// Takes in a connection that does not block.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`; and on a thread that is none of the reactor's.
    pub fn adopt(socket: TcpStream) -> io::Result<Self> {
        let watched = Watched::new(&socket, CHANGES)?;
        Ok(Self { socket, watched, failure: Cell::default() })
    }

    /// Connects. What is to be sent first then acknowledges the target's SYN as well, if there `is_more`: a packet less,
    /// and the target is woken once instead of twice.
    ///
    /// # Errors
    /// As connect(2).
    pub(super) async fn connect(target: SocketAddr, is_more: bool) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
        if is_more {
            // Without it, all is as it was.
            let _ = socket.set_tcp_quickack(false);
        }
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
            _ => {}
        }
        let stream = Self::adopt(socket.into())?;
        stream.writable().await;
        if stream.ready().is(Ready::ERROR)
            && let Some(error) = stream.socket.take_error()?
        {
            return Err(error);
        }
        Ok(stream)
    }

    /// Takes it over from the future that has made it.
    pub(super) fn is_mine(&self) {
        self.watched.is_mine();
    }

    pub(super) fn ready(&self) -> Ready {
        self.watched.ready()
    }

    /// See [`Watched::clear`].
    pub(super) fn clear(&self, what: Ready) {
        self.watched.clear(what);
    }

    pub(super) async fn readable(&self) {
        self.is(Ready::READABLE).await;
    }

    pub(super) async fn writable(&self) {
        self.is(Ready::WRITABLE).await;
    }

    pub(super) async fn failed(&self) {
        self.is(Ready::ERROR).await;
    }

    async fn is(&self, what: Ready) {
        poll_fn(|_| self.watched.poll(what)).await;
    }

    /// See [`Watched::attempt`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn attempt<T>(&self, what: Ready, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let done = self.watched.attempt(what, act);
        if let Err(error) = &done
            && error.kind() != ErrorKind::WouldBlock
            && self.failure.get().is_none()
        {
            self.failure.set(Some(error.kind()));
        }
        done
    }

    /// Whether something has gone wrong with it, of which the kernel may say nothing any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Whether it was reset before the other side had said its last: after that, a reset is a broken pipe in Linux.
    fn is_cut_off(&self) -> bool {
        self.failure.get().is_some_and(|kind| kind != ErrorKind::BrokenPipe)
    }

    /// Reads what has come, as far as there is room.
    ///
    /// # Errors
    /// As read(2); `WouldBlock` if that is nothing. What a reset has cut off ends with an error, though the reset was told
    /// to a call before.
    pub(super) fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        let read = self.attempt(Ready::READABLE, || (&self.socket).read(room));
        if matches!(read, Ok(0)) && self.is_cut_off() {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if matches!(&read, Ok(length) if *length < room.len()) {
            self.has_run_dry();
        }
        read
    }

    /// Less came than there was room for, which is all that there was: to ask again would only tell so (epoll(7)). Of the
    /// end nobody is told twice, and before urgent data a read ends early.
    pub(super) fn has_run_dry(&self) {
        if !self.ready().is(Ready::READ_CLOSED) && !self.ready().is(Ready::URGENT) {
            self.clear(Ready::READABLE);
        }
    }

    /// What has come, which stays where it is.
    ///
    /// # Errors
    /// As recv(2).
    pub(super) async fn peek(&self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            self.readable().await;
            match self.attempt(Ready::READABLE, || self.socket.peek(room)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                peeked => return peeked,
            }
        }
    }

    /// Takes what was peeked at.
    ///
    /// # Errors
    /// As recv(2).
    pub(super) fn skip(&self, room: &mut [u8]) -> io::Result<()> {
        (&self.socket).read_exact(room)
    }

    /// # Errors
    /// As send(2); `WouldBlock` if nothing is taken now.
    pub(super) fn send(&self, data: &[u8], flags: i32) -> io::Result<usize> {
        self.attempt(Ready::WRITABLE, || self.socket().send_with_flags(data, flags))
    }

    /// # Errors
    /// As send(2).
    pub(super) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            self.writable().await;
            match self.send(data, 0) {
                Ok(written) => data = data.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn socket(&self) -> SockRef<'_> {
        SockRef::from(&self.socket)
    }

    /// Says that nothing follows. If it is not connected any more, whoever reads is told how that came.
    pub(super) fn shutdown(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Closing then sends a reset (socket(7)), or nothing, if it came from there.
    pub(super) fn reset_when_closed(&self) {
        let _ = self.socket().set_linger(Some(std::time::Duration::ZERO));
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.watched.forget();
    }
}

impl<'a> Ears<'a> {
    /// # Errors
    /// As `epoll_ctl(2)`; and on a thread that is none of the reactor's.
    pub(super) fn new(socket: &'a mio::net::TcpListener) -> io::Result<Self> {
        // One thread is told of each connection, not all.
        let watched = Watched::new(socket, EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE)?;
        Ok(Self { socket, watched })
    }

    /// Ends when there may be a connection.
    pub(super) async fn readable(&self) {
        poll_fn(|_| self.watched.poll(Ready::READABLE)).await;
    }

    /// # Errors
    /// As accept(2); `WouldBlock` if there is none.
    pub(super) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let accepted = self.watched.attempt(Ready::READABLE, || self.socket.accept());
        accepted.map(|(stream, address)| (stream.into(), address))
    }
}

impl Drop for Ears<'_> {
    fn drop(&mut self) {
        // Other threads have it, too, and systemd may.
        self.watched.take_out(self.socket);
    }
}

/// What is told of a connection.
const CHANGES: EpollFlags =
    EpollFlags::EPOLLIN.union(EpollFlags::EPOLLOUT).union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLPRI);
