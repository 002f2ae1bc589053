//! How a connection becomes one with a peer: both handshakes and both introductions, from either side.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::key::Key;
use super::opening::{self, MOST_OPENING};
use super::payload::{self, Payload};
use super::preamble::{self, Fault, Names};
use super::refusal::Refusal;
use super::sealed::{Channel, Counts, FrameError, read_frame, write_frame};
use crate::failover::{Hello, Message};

/// A connection of which both sides know that the other has the key.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) channel: Channel,
    pub(super) counts: Counts,
    /// How the other side introduced itself.
    pub(super) hello: Hello,
}

/// A connection whose other side has shown that it has the key, and waits for an introduction.
pub(super) struct Candidate(Connection);

/// Why dialling did not lead to a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("the peer {0}")]
    Refused(Refusal),
}

/// Dials a peer, and introduces this side.
pub(super) async fn dial(
    address: SocketAddr,
    from: IpAddr,
    (key, names): (&Key, &Names),
    hello: &[u8],
    silence: Duration,
) -> Result<Connection, DialError> {
    let connecting = timeout(CONNECT_TIMEOUT, connect(address, from)).await;
    let stream = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = stream.map_err(|source| DialError::Connect { address, source })?;
    tune(&stream, silence);
    let introducing = timeout(HANDSHAKE_TIMEOUT, introduce(stream, address, (key, names), hello)).await;
    introducing.unwrap_or(Err(Refusal::Late)).map_err(DialError::Refused)
}

/// Finds out who dials, which is `judge`d as soon as it says a name, and whether that is true.
///
/// # Errors
/// Why not, with the name that it said.
pub(super) async fn answer(
    mut stream: TcpStream,
    address: SocketAddr,
    key: &Key,
    judge: impl FnOnce(&Names) -> Result<(), Fault>,
) -> Result<(Names, Candidate), (Option<String>, Refusal)> {
    let mut frame = Vec::new();
    read_frame(&mut stream, &mut frame, MOST_OPENING).await.map_err(|error| (None, error.into()))?;
    let names = match preamble::read(&frame) {
        Ok((names, _)) => names,
        Err(fault) => return Err((None, refuse(&mut stream, fault).await)),
    };
    let answered = judge(&names).and_then(|()| opening::answer(key, &frame));
    let (answer, channel) = match answered {
        Ok(answered) => answered,
        Err(fault) => return Err((Some(names.dialling), refuse(&mut stream, fault).await)),
    };
    match verify(&mut stream, (&answer, &channel), &names.dialling).await {
        Ok((hello, counts)) => Ok((names, Candidate(Connection { stream, address, channel, counts, hello }))),
        Err(refusal) => Err((Some(names.dialling), refusal)),
    }
}

impl Candidate {
    pub(super) const fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Introduces this side as well, from when on it is a connection.
    pub(super) async fn accept(self, hello: &[u8]) -> Result<Connection, Refusal> {
        let Self(mut connection) = self;
        connection.send(hello).await?;
        Ok(connection)
    }

    /// Says why not.
    pub(super) async fn refuse(self, fault: Fault) {
        let Self(mut connection) = self;
        // It may have gone already; it is counted here all the same.
        let _ = connection.send(&payload::refused(fault)).await;
    }
}

impl Connection {
    async fn send(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        let (_, mut sealer) = self.channel.halves(self.counts);
        let sending = timeout(SEND_TIMEOUT, sealer.send(&mut self.stream, payload)).await;
        sending.map_err(|_| Refusal::Late)??;
        self.counts.sent += 1;
        Ok(())
    }
}

/// What both sides set on their sockets: what is sent is small, and late is as bad as lost.
pub(super) fn tune(stream: &TcpStream, silence: Duration) {
    // Each makes it better, and none is needed.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_user_timeout(Some(silence));
    let _ = socket.set_tcp_thin_linear_timeouts(true);
    // What waits in the queue can still give way, what waits in the kernel cannot.
    let _ = socket.set_tcp_notsent_lowat(NOT_SENT);
}

/// Connects from `from`, if that is an address: it is the one that peers know.
async fn connect(address: SocketAddr, from: IpAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if !from.is_unspecified() && from.is_ipv4() == address.is_ipv4() {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(address).await
}

async fn introduce(
    mut stream: TcpStream,
    address: SocketAddr,
    (key, names): (&Key, &Names),
    hello: &[u8],
) -> Result<Connection, Refusal> {
    // Without the system's randomness.
    let (opening, dialled) = opening::open(key, names).map_err(|_| Refusal::Fault(Fault::Key))?;
    write_frame(&mut stream, &opening).await?;
    let mut frame = Vec::new();
    read_frame(&mut stream, &mut frame, MOST_OPENING).await?;
    let channel = dialled.finish(&frame)?;
    let (mut opener, mut sealer) = channel.halves(Counts::default());
    sealer.send(&mut stream, hello).await?;
    let (payload, _) = opener.receive(&mut stream).await?;
    let hello = read_hello(payload, &names.dialled)?;
    Ok(Connection { stream, address, channel, counts: Counts { sent: 1, received: 1 }, hello })
}

/// Answers, and waits for what only the owner of the key can say.
async fn verify(
    stream: &mut TcpStream,
    (answer, channel): (&[u8], &Channel),
    name: &str,
) -> Result<(Hello, Counts), Refusal> {
    write_frame(stream, answer).await?;
    let (mut opener, _) = channel.halves(Counts::default());
    let (payload, _) = opener.receive(stream).await?;
    Ok((read_hello(payload, name)?, Counts { sent: 0, received: 1 }))
}

/// The first payload of whoever has this name.
fn read_hello(payload: &[u8], name: &str) -> Result<Hello, Refusal> {
    match payload::parse(payload) {
        Payload::Message(Message::Hello(hello)) if hello.gateway.name == name => Ok(hello),
        Payload::Refused(fault) => Err(Refusal::Told(fault)),
        _ => Err(Fault::Hello.into()),
    }
}

async fn refuse(stream: &mut TcpStream, fault: Fault) -> Refusal {
    let _: Result<(), FrameError> = write_frame(stream, &opening::refusal(fault)).await;
    fault.into()
}

/// Within a region answers come after a millisecond or two.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(800);

/// From the first byte to both introductions.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// For an introduction, which the kernel takes at once.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// Bytes.
const NOT_SENT: u32 = 4096;
