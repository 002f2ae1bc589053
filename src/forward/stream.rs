//! Sockets of the reactor's: they are asked at once, and waited for only if they are not ready.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use nix::{libc, setsockopt_impl, sockopt_impl};
use rustix::net::{RecvFlags, SendFlags, connect_unspec, recv, send};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::time::Instant;

use super::reactor::{Ready, Watched, now};
use super::spare;

/// A connection. It stays on the thread that has made it.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    watched: Rc<Watched>,
    /// What first went wrong with it: the kernel tells an error once, to whoever asks first.
    failure: Cell<Option<ErrorKind>>,
    /// See [`Self::shutdown`].
    has_said_all: Cell<bool>,
    /// Of one that was made here.
    origin: Option<Box<Origin>>,
    /// It has what is not to stay with a socket.
    is_altered: Cell<bool>,
}

/// What a socket was made for, and when.
#[derive(Debug)]
struct Origin {
    target: SocketAddr,
    made: Instant,
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
        let (failure, has_said_all, origin, is_altered) = Default::default();
        Ok(Self { socket, watched, failure, has_said_all, origin, is_altered })
    }

    /// Connects. What is to be sent first then acknowledges the target's SYN as well, if there `is_more`: a packet less,
    /// and the target is woken once instead of twice. Whatever is sent goes out as it comes, in whatever pieces, and not
    /// when what was sent before is acknowledged (Nagle's algorithm).
    ///
    /// # Errors
    /// As connect(2).
    pub(super) async fn connect(target: SocketAddr, is_more: bool) -> io::Result<Self> {
        let stream = match spare::take(target) {
            Some(stream) => stream,
            None => Self::unconnected(target)?,
        };
        if is_more {
            // Without it, all is as it was.
            let _ = stream.socket().set_tcp_quickack(false);
        }
        match stream.socket().connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
            _ => {}
        }
        // Until then it was ready, for nothing.
        stream.watched.renew();
        stream.writable().await;
        if stream.ready().is(Ready::ERROR)
            && let Some(error) = stream.socket.take_error()?
        {
            return Err(error);
        }
        Ok(stream)
    }

    fn unconnected(target: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // Without it, all is slower only.
        let _ = socket.set_tcp_nodelay(true);
        let mut stream = Self::adopt(socket.into())?;
        stream.origin = Some(Box::new(Origin { target, made: now() }));
        Ok(stream)
    }

    /// Ends it when both sides have said all. To the other side that is as if it were dropped; what [`Self::connect`] has
    /// made may then be used again.
    pub(super) fn retire(self) {
        let is_as_new = !self.is_altered.get() && !self.has_failed() && !self.ready().is(Ready::URGENT);
        // What is changed on this host is to hold for all soon.
        if is_as_new && self.origin.as_ref().is_some_and(|origin| now() - origin.made < MOST_AGE) {
            if !self.has_said_all.get() {
                self.shutdown();
            }
            self.watched.is_nobodys();
            spare::keep(self);
        }
    }

    /// Whether it was made for this target.
    pub(super) fn is_for(&self, target: SocketAddr) -> bool {
        self.origin.as_ref().is_some_and(|origin| origin.target == target)
    }

    /// Whether the other side has acknowledged our end, after its own. Until then the kernel may have to say it once more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.socket.peer_addr(), Err(error) if error.kind() == ErrorKind::NotConnected)
    }

    /// Makes one that is over as new.
    ///
    /// # Errors
    /// As connect(2), and as setsockopt(2) without `CAP_NET_ADMIN`.
    pub(super) fn renew(&self) -> io::Result<()> {
        connect_unspec(self)?;
        // The kernel would go on counting: nobody is to know by the last connection's sequence numbers where the next one's
        // begin (RFC 6528), and to a target that remembers the last one, they begin behind it. From 0 it begins as ever.
        setsockopt(self, sockopt::TcpRepair, &1)?;
        setsockopt(self, TcpRepairQueue, &SEND_QUEUE)?;
        setsockopt(self, TcpQueueSeq, &0)?;
        setsockopt(self, sockopt::TcpRepair, &0)?;
        self.has_said_all.set(false);
        Ok(())
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
        let read = self.attempt(Ready::READABLE, || Ok(recv(&self.socket, &mut *room, RecvFlags::empty())?.0));
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
    pub(super) fn send(&self, data: &[u8], flags: SendFlags) -> io::Result<usize> {
        self.attempt(Ready::WRITABLE, || Ok(send(&self.socket, data, flags | SendFlags::NOSIGNAL)?))
    }

    /// # Errors
    /// As send(2).
    pub(super) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            self.writable().await;
            match self.send(data, SendFlags::empty()) {
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
        self.has_said_all.set(true);
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Has the other side asked whether it is still there when it is silent.
    pub(super) fn keep_alive(&self, keepalive: &TcpKeepalive) {
        self.is_altered.set(true);
        let _ = self.socket().set_tcp_keepalive(keepalive);
    }

    /// Closing then sends a reset (socket(7)), or nothing, if it came from there.
    pub(super) fn reset_when_closed(&self) {
        self.is_altered.set(true);
        let _ = self.socket().set_linger(Some(Duration::ZERO));
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

sockopt_impl!(
    /// tcp_repair: which queue is meant.
    TcpRepairQueue,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_REPAIR_QUEUE,
    u32
);
sockopt_impl!(
    /// tcp_repair: where the queue's sequence numbers go on.
    TcpQueueSeq,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_QUEUE_SEQ,
    u32
);

/// As in linux/tcp.h.
pub(super) const SEND_QUEUE: u32 = 2;
/// A socket is used again until then.
const MOST_AGE: Duration = Duration::from_mins(1);
/// What is told of a connection.
const CHANGES: EpollFlags =
    EpollFlags::EPOLLIN.union(EpollFlags::EPOLLOUT).union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLPRI);
