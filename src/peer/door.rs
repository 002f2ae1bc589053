//! Where peers come in: connections are taken, and each is given a moment to say who it is.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::connect::{HANDSHAKE_TIMEOUT, answer, tune};
use super::refusal::Refusal;
use super::{Common, Peers};

/// Takes connections in until this is dropped, and with it those that nobody has answered for yet.
pub(super) async fn attend(socket: TcpListener, common: Arc<Common>, peers: Arc<Peers>) {
    let mut strangers = Strangers::default();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, address)) => {
                    if let Some(left) = strangers.make_room() {
                        common.refused(left, None, Refusal::Crowded);
                    }
                    let (common, peers) = (Arc::clone(&common), Arc::clone(&peers));
                    strangers.add(address, meet(stream, address, common, peers));
                }
                // It had gone before its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Of this host, as no descriptor: it does not get better by asking again at once.
                Err(error) => {
                    tracing::debug!(%error, "accepting peers pauses");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = strangers.tasks.join_next() => {}
        }
    }
}

/// Finds out who has connected; a peer's task has the connection from then on.
async fn meet(stream: TcpStream, address: SocketAddr, common: Arc<Common>, peers: Arc<Peers>) {
    tune(&stream, common.silence());
    let key = common.key();
    let judge = |names: &_| peers.judge(&common.gateway, names);
    let (peer, refusal) = match timeout(HANDSHAKE_TIMEOUT, answer(stream, address, &key, judge)).await {
        Ok(Ok((names, candidate))) => return peers.give(&names.dialling, candidate),
        Ok(Err(refused)) => refused,
        Err(_) => (None, Refusal::Late),
    };
    common.refused(address, peer.as_deref(), refusal);
}

/// Connections that have not said yet who they are: only so many, so that nobody can use up memory and descriptors
/// without the key. When there is one too many, the oldest goes of whoever has the most. A peer needs its place for a
/// few milliseconds, and is not pushed out by those who come from elsewhere and say nothing.
#[derive(Default)]
struct Strangers {
    tasks: JoinSet<()>,
    /// The oldest first. Some may have ended.
    known: VecDeque<(SocketAddr, AbortHandle)>,
}

impl Strangers {
    /// Gives who had to go.
    fn make_room(&mut self) -> Option<SocketAddr> {
        self.known.retain(|(_, task)| !task.is_finished());
        if self.known.len() < MOST_STRANGERS {
            return None;
        }
        let of = |ip: IpAddr| self.known.iter().filter(|(address, _)| address.ip() == ip).count();
        let most = self.known.iter().map(|(address, _)| of(address.ip())).max()?;
        let oldest = self.known.iter().position(|(address, _)| of(address.ip()) == most)?;
        let (address, task) = self.known.remove(oldest)?;
        task.abort();
        Some(address)
    }

    fn add(&mut self, address: SocketAddr, meeting: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(meeting);
        self.known.push_back((address, task));
    }
}

const MOST_STRANGERS: usize = 16;
const PAUSE: Duration = Duration::from_millis(20);
