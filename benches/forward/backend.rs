//! The server behind the proxies: this program again. It answers each request with as many bytes as that asks for, and
//! with as little work, and in as few packets, as can be: it shares a processor with the clients, which has to be less
//! full than the proxies'. A long answer is a file's, and not copied; for a short one, that would be more work. The last
//! answer and the connection's end are one segment, and it is what acknowledges the request: on veth, an end apart, which
//! the engine sends, would overtake the answer that XDP has sent.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::MSG_MORE;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use nix::unistd::ftruncate;
use socket2::SockRef;

use super::super::lab::Result;

pub const PORT: u16 = 6000;

/// A request, which always fills a segment of [`Request::BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// How long the answer is to be.
    pub answer: u64,
    /// Whether that is the last one.
    pub close: bool,
}

impl Request {
    pub const BYTES: usize = 128;

    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.answer.to_be_bytes());
        bytes[8] = u8::from(self.close);
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let (answer, close) = bytes.split_first_chunk().map_or((0, false), |(answer, rest)| {
            (u64::from_be_bytes(*answer), rest.first().is_some_and(|close| *close != 0))
        });
        Self { answer, close }
    }
}

/// A connection, and what it is still to be sent.
struct Connection {
    stream: TcpStream,
    owed: u64,
    close: bool,
}

enum Next {
    Wait(EpollFlags),
    Close,
}

/// Answers for ever.
pub fn serve() -> Result {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    // Of its connections as well.
    listener.set_tcp_nodelay(true)?;
    listener.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    listener.listen(4096)?;
    // Of its connections as well, if they come after.
    listener.set_tcp_quickack(false)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from(listener);
    let content = memfd_create(c"content", MFdFlags::MFD_CLOEXEC)?;
    ftruncate(&content, i64::try_from(CHUNK)?)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let token = |descriptor: &dyn AsRawFd| descriptor.as_raw_fd().unsigned_abs().into();
    let ears = token(&listener);
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, ears))?;
    let mut connections = HashMap::new();
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            if event.data() == ears {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let token = token(&stream);
                    let mut connection = Connection { stream, owed: 0, close: false };
                    // Its request may have come with it.
                    if let Next::Wait(wanted) = connection.go_on(EpollFlags::EPOLLIN, &content) {
                        epoll.add(&connection.stream, EpollEvent::new(wanted, token))?;
                        connections.insert(token, (connection, wanted));
                    }
                }
                continue;
            }
            let Some((connection, waits)) = connections.get_mut(&event.data()) else { continue };
            match connection.go_on(event.events(), &content) {
                Next::Wait(wanted) if *waits == wanted => {}
                Next::Wait(wanted) => {
                    epoll.modify(&connection.stream, &mut EpollEvent::new(wanted, event.data()))?;
                    *waits = wanted;
                }
                Next::Close => {
                    connections.remove(&event.data());
                }
            }
        }
    }
}

impl Connection {
    fn go_on(&mut self, events: EpollFlags, content: &OwnedFd) -> Next {
        if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP) {
            return Next::Close;
        }
        if self.owed == 0 {
            let mut request = [0; Request::BYTES];
            match self.stream.read(&mut request) {
                Ok(Request::BYTES) => {
                    let request = Request::decode(&request);
                    (self.owed, self.close) = (request.answer, request.close);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait(IDLE),
                // The end, or what nobody of ours would send.
                _ => return Next::Close,
            }
        }
        let most = usize::try_from(self.owed).unwrap_or(CHUNK).min(CHUNK);
        let sent = match SHORT.get(..most) {
            Some(answer) if self.close => SockRef::from(&self.stream).send_with_flags(answer, MSG_MORE),
            Some(answer) => self.stream.write(answer),
            None => sendfile(&self.stream, content, Some(&mut 0), most).map_err(io::Error::from),
        };
        match sent {
            Ok(sent) => self.owed -= sent as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Next::Close,
        }
        match (self.owed, self.close) {
            (0, true) => Next::Close,
            (0, false) => Next::Wait(IDLE),
            _ => Next::Wait(EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP),
        }
    }
}

/// Of a connection that is owed nothing. Nobody has sent two requests before the first one is answered, so that one read
/// for each time that something comes is enough.
const IDLE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);
static SHORT: [u8; 4096] = [0; 4096];
/// What is sent at once, at most: others wait meanwhile.
const CHUNK: usize = 1 << 20;
