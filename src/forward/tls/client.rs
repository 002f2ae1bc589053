//! A client's connection, by TLS or without, and its relay.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy, sink, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::forward::pipe::Pipes;
use crate::forward::relay::{self, Activity, Carried, Ended, Relayed, Side};

/// A connection that may be relayed.
#[derive(Debug)]
pub(in crate::forward) enum Client {
    Plain(TcpStream),
    /// In a box, lest those without pay for it.
    Tls(Box<TlsStream<Shared>>),
}

/// A socket that is read and written by one and watched by another.
#[derive(Clone, Debug)]
pub(in crate::forward) struct Shared(Arc<TcpStream>);

/// Waits for a client to say who it is, if it has to, and to agree on keys.
///
/// # Errors
/// Why that did not come about. The client has been told, as far as it listened.
pub(in crate::forward) async fn shake_hands(
    client: TcpStream,
    server: Arc<ServerConfig>,
) -> io::Result<Client> {
    // The last words of one side are not to wait for an acknowledgement of those before them.
    let _ = client.set_nodelay(true);
    let client = Shared(Arc::new(client));
    let acceptor = TlsAcceptor::from(server);
    let handshake = acceptor.accept_with(client.clone(), |session| session.set_buffer_limit(Some(AT_ONCE)));
    match timeout(HANDSHAKE_TIME, handshake).await {
        Ok(Ok(stream)) => Ok(Client::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            client.hang_up().await;
            Err(error)
        }
        Err(_) => {
            let _ = SockRef::from(&*client.0).set_linger(Some(Duration::ZERO));
            Err(ErrorKind::TimedOut.into())
        }
    }
}

impl Client {
    pub(in crate::forward) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.get_ref().0.0,
        }
    }

    /// Whether there is something to be passed on already. Of TLS nobody knows before it is read.
    pub(in crate::forward) fn has_spoken(&self) -> bool {
        match self {
            Self::Plain(stream) => {
                let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
                // Unlike a read it leaves an error for the relay, which tells a reset from an end.
                nix::poll::poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
            }
            Self::Tls(_) => false,
        }
    }

    /// As [`relay::relay`]; without TLS it is that. Bytes are those that were in the TLS.
    pub(in crate::forward) async fn relay(
        self,
        target: TcpStream,
        pipes: &Pipes,
        carried: &Carried,
        idle: Duration,
        cut: impl Future<Output = ()>,
    ) -> Relayed {
        match self {
            Self::Plain(client) => relay::relay(client, target, pipes, carried, idle, cut).await,
            // In a box, too.
            Self::Tls(client) => Box::pin(relay_tls(*client, target, carried, idle, cut)).await,
        }
    }
}

/// The end of data is `close_notify` on the client's side, and each direction ends for itself (RFC 8446 section 6.1;
/// before TLS 1.3 a client that ends its own ends both, and may not hear the rest).
async fn relay_tls(
    client: TlsStream<Shared>,
    target: TcpStream,
    carried: &Carried,
    idle: Duration,
    cut: impl Future<Output = ()>,
) -> Relayed {
    let (client_socket, target) = (client.get_ref().0.clone(), Shared(Arc::new(target)));
    let (from_client, into_client) = split(client);
    let activity = Activity::new();
    let to_target = Way::new(Side::Client, &carried.to_target);
    let to_client = Way::new(Side::Target, &carried.to_client);
    let both = async {
        let mut out = pin!(to_target.carry(from_client, target.clone(), &activity, &to_client.ended));
        let mut back = pin!(to_client.carry(target.clone(), into_client, &activity, &to_target.ended));
        match relay::first_done(out.as_mut(), back.as_mut()).await? {
            Side::Client => back.await,
            Side::Target => out.await,
        }
    };
    let ended = relay::supervise([&client_socket.0, &target.0], both, &activity, idle, cut).await;
    Relayed { bytes_to_target: to_target.bytes(), bytes_to_client: to_client.bytes(), ended }
}

/// One direction.
struct Way<'a> {
    /// Where it begins.
    from: Side,
    bytes: AtomicU64,
    /// With those of other relays.
    all_bytes: &'a AtomicU64,
    /// All was said.
    ended: AtomicBool,
}

impl<'a> Way<'a> {
    const fn new(from: Side, all_bytes: &'a AtomicU64) -> Self {
        Self { from, bytes: AtomicU64::new(0), all_bytes, ended: AtomicBool::new(false) }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Carries all that the source has to say, and then that it has ended.
    async fn carry(
        &self,
        mut source: impl AsyncRead + Unpin,
        mut destination: impl AsyncWrite + Unpin,
        activity: &Activity,
        other_ended: &AtomicBool,
    ) -> Result<(), Ended> {
        let to = if self.from == Side::Client { Side::Target } else { Side::Client };
        loop {
            let data = match next(&mut source).await {
                Ok(data) if data.is_empty() => break,
                Ok(data) => data,
                // Without close_notify, who knows who has cut the data off: what may be a part is not to be taken for the
                // whole. Many clients leave it out when they have heard the end, and then it does not matter.
                Err(error)
                    if error.kind() == ErrorKind::UnexpectedEof && other_ended.load(Ordering::Relaxed) =>
                {
                    break;
                }
                Err(_) => return Err(Ended::Reset(self.from)),
            };
            activity.note();
            destination.write_all(&data).await.map_err(|_| Ended::Reset(to))?;
            destination.flush().await.map_err(|_| Ended::Reset(to))?;
            for count in [&self.bytes, self.all_bytes] {
                count.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            activity.note();
        }
        self.ended.store(true, Ordering::Relaxed);
        // If it is not connected any more, the other direction says how that came.
        let _ = destination.shutdown().await;
        Ok(())
    }
}

/// What comes next; nothing at the end. There is no buffer while nothing comes.
async fn next(source: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    poll_fn(|context| {
        let mut data = Vec::with_capacity(AT_ONCE);
        let read = pin!(source.read_buf(&mut data)).poll(context);
        read.map_ok(|_| data)
    })
    .await
}

impl Shared {
    /// Ends a connection whose last bytes, which say why, are still on their way: a reset, which follows when it is
    /// closed with something unread, would overtake them.
    async fn hang_up(&self) {
        let _ = SockRef::from(&*self.0).shutdown(Shutdown::Write);
        let mut rest = self.clone().take(MOST_UNREAD);
        let _ = timeout(HANG_UP_TIME, copy(&mut rest, &mut sink())).await;
    }
}

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(data) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

/// For a handshake, from the first byte to the last.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// For a client to hear why there is none.
const HANG_UP_TIME: Duration = Duration::from_secs(1);
const MOST_UNREAD: u64 = 64 << 10;
/// Bytes that a direction holds at most in clear, and again in TLS.
const AT_ONCE: usize = 32 << 10;
