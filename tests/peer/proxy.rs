//! Somebody on the way between two instances, who can do anything with bytes but has no key.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Dropping it ends its connections.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    connections: AtomicUsize,
    /// Which of the connections, and in which direction, and after how many bytes the lowest bit is turned.
    flip: Option<Flip>,
    flipped: AtomicBool,
    /// What has come from the side that dials, on each connection.
    recorded: Mutex<Vec<Vec<u8>>>,
    /// Connections with a lower number pass nothing on from now on, and end nothing.
    held: watch::Sender<Held>,
}

#[derive(Clone, Copy, Debug)]
pub struct Flip {
    pub to_dialled: bool,
    pub offset: usize,
    pub bit: u8,
}

/// How many of the first connections are held, in which direction.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    to_dialled: usize,
    to_dialling: usize,
}

impl Proxy {
    pub fn start(to: SocketAddr) -> Self {
        Self::start_flipping(to, None)
    }

    /// One that changes a bit of its first connection.
    pub fn start_flipping(to: SocketAddr, flip: Option<Flip>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Little is on its way, so that a reader who stalls is noticed soon.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(128).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            connections: AtomicUsize::new(0),
            flip,
            flipped: AtomicBool::new(false),
            recorded: Mutex::default(),
            held: watch::Sender::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, to, Arc::clone(&shared)));
        Self { address, shared, _tasks: tasks }
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub fn has_flipped(&self) -> bool {
        self.shared.flipped.load(Ordering::SeqCst)
    }

    /// What the dialling side has said on its connection of this number.
    pub fn recorded(&self, connection: usize) -> Vec<u8> {
        self.shared.recorded.lock().unwrap()[connection].clone()
    }

    /// Lets nothing through any more on the connections that there are, and ends none of them.
    pub fn swallow(&self) {
        let all = self.connections();
        self.shared.held.send_replace(Held { to_dialled: all, to_dialling: all });
    }

    /// As [`Self::swallow`], but only what goes to the dialling side.
    pub fn stall_dialling_side(&self) {
        let all = self.connections();
        self.shared.held.send_modify(|held| held.to_dialling = all);
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (dialling, _) = listener.accept().await.unwrap();
        // As if nobody listened: the connection is closed at once.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let Ok(dialled) = socket.connect(to).await else { continue };
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        shared.recorded.lock().unwrap().push(Vec::new());
        connections.spawn(carry(dialling, dialled, number, Arc::clone(&shared)));
    }
}

async fn carry(dialling: TcpStream, dialled: TcpStream, number: usize, shared: Arc<Shared>) {
    let ((from_dialling, to_dialling), (from_dialled, to_dialled)) =
        (dialling.into_split(), dialled.into_split());
    tokio::join!(
        pass(from_dialling, to_dialled, number, true, &shared),
        pass(from_dialled, to_dialling, number, false, &shared)
    );
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    to_dialled: bool,
    shared: &Shared,
) {
    let mut held = shared.held.subscribe();
    let (mut passed, mut bytes) = (0, [0; 2048]);
    loop {
        let is_held = |held: &Held| number < if to_dialled { held.to_dialled } else { held.to_dialling };
        let come = tokio::select! {
            biased;
            _ = held.wait_for(is_held) => None,
            come = from.read(&mut bytes) => Some(come),
        };
        // Held: neither end hears of it.
        let Some(come) = come else { return std::future::pending().await };
        let Ok(come @ 1..) = come else { return };
        if let Some(flip) = shared.flip
            && (number, to_dialled) == (0, flip.to_dialled)
            && (passed..passed + come).contains(&flip.offset)
        {
            bytes[flip.offset - passed] ^= 1 << flip.bit;
            shared.flipped.store(true, Ordering::SeqCst);
        }
        if to_dialled {
            shared.recorded.lock().unwrap()[number].extend_from_slice(&bytes[..come]);
        }
        passed += come;
        if to.write_all(&bytes[..come]).await.is_err() {
            return;
        }
    }
}
