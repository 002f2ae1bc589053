//! A client's connection, by TLS or without, and its relay.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy, sink, split};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::forward::pipe::Pipes;
use crate::forward::reactor::{Ready, timeout};
use crate::forward::relay::{self, Activity, Carried, Ended, Relayed, Side};
use crate::forward::stream::Stream;

/// A connection that may be relayed.
#[derive(Debug)]
pub(in crate::forward) enum Client {
    Plain(Stream),
    /// In a box, lest those without pay for it.
    Tls(Box<TlsStream<Shared>>),
}

/// A socket that is read and written by one and watched by another.
#[derive(Clone, Debug)]
pub(in crate::forward) struct Shared(Rc<Stream>);

/// Waits for a client to say who it is, if it has to, and to agree on keys.
///
/// # Errors
/// Why that did not come about. The client has been told, as far as it listened.
pub(in crate::forward) async fn shake_hands(client: Stream, server: Arc<ServerConfig>) -> io::Result<Client> {
    // The last words of one side are not to wait for an acknowledgement of those before them.
    let _ = client.socket().set_tcp_nodelay(true);
    let client = Shared(Rc::new(client));
    let acceptor = TlsAcceptor::from(server);
    let handshake = acceptor.accept_with(client.clone(), |session| session.set_buffer_limit(Some(AT_ONCE)));
    match timeout(HANDSHAKE_TIME, handshake).await {
        Some(Ok(stream)) => Ok(Client::Tls(Box::new(stream))),
        Some(Err(error)) => {
            client.hang_up().await;
            Err(error)
        }
        None => {
            client.0.reset_when_closed();
            Err(ErrorKind::TimedOut.into())
        }
    }
}

impl Client {
    pub(in crate::forward) fn socket(&self) -> &Stream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.get_ref().0.0,
        }
    }

    /// Whether there is something to be passed on already. Of TLS nobody knows before it is read.
    pub(in crate::forward) fn has_spoken(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.ready().is(Ready::READABLE),
            Self::Tls(_) => false,
        }
    }

    /// As [`relay::relay`]; without TLS it is that. Bytes are those that were in the TLS.
    pub(in crate::forward) async fn relay(
        self,
        target: Stream,
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
    target: Stream,
    carried: &Carried,
    idle: Duration,
    cut: impl Future<Output = ()>,
) -> Relayed {
    let (client_socket, target) = (client.get_ref().0.clone(), Shared(Rc::new(target)));
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
    Relayed { bytes_to_target: to_target.bytes.get(), bytes_to_client: to_client.bytes.get(), ended }
}

/// One direction.
struct Way<'a> {
    /// Where it begins.
    from: Side,
    bytes: Cell<u64>,
    /// With those of other relays.
    all_bytes: &'a AtomicU64,
    /// All was said.
    ended: Cell<bool>,
}

impl<'a> Way<'a> {
    const fn new(from: Side, all_bytes: &'a AtomicU64) -> Self {
        Self { from, bytes: Cell::new(0), all_bytes, ended: Cell::new(false) }
    }

    /// Carries all that the source has to say, and then that it has ended.
    async fn carry(
        &self,
        mut source: impl AsyncRead + Unpin,
        mut destination: impl AsyncWrite + Unpin,
        activity: &Activity,
        other_ended: &Cell<bool>,
    ) -> Result<(), Ended> {
        let to = if self.from == Side::Client { Side::Target } else { Side::Client };
        loop {
            let data = match next(&mut source).await {
                Ok(data) if data.is_empty() => break,
                Ok(data) => data,
                // Without close_notify, who knows who has cut the data off: what may be a part is not to be taken for the
                // whole. Many clients leave it out when they have heard the end, and then it does not matter.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof && other_ended.get() => {
                    break;
                }
                Err(_) => return Err(Ended::Reset(self.from)),
            };
            activity.note();
            destination.write_all(&data).await.map_err(|_| Ended::Reset(to))?;
            destination.flush().await.map_err(|_| Ended::Reset(to))?;
            self.bytes.set(self.bytes.get() + data.len() as u64);
            self.all_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            activity.note();
        }
        self.ended.set(true);
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
        self.0.shutdown();
        let mut rest = self.clone().take(MOST_UNREAD);
        let _ = timeout(HANG_UP_TIME, copy(&mut rest, &mut sink())).await;
    }
}

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.0.ready().is(Ready::READABLE) {
            return Poll::Pending;
        }
        match self.0.read(buffer.initialize_unfilled()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
            read => Poll::Ready(read.map(|length| buffer.advance(length))),
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.0.send(data, SendFlags::empty()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
            sent => Poll::Ready(sent),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shutdown();
        Poll::Ready(Ok(()))
    }
}

/// For a handshake, from the first byte to the last.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// For a client to hear why there is none.
const HANG_UP_TIME: Duration = Duration::from_secs(1);
const MOST_UNREAD: u64 = 64 << 10;
/// Bytes that a direction holds at most in clear, and again in TLS.
const AT_ONCE: usize = 32 << 10;
