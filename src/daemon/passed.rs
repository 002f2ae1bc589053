//! Listening sockets that the service manager has passed on (`sd_listen_fds(3)`).
//!
//! They outlive the daemon: clients that come while there is none wait in a socket's queue for the next. A socket is
//! known by its address alone; names (`LISTEN_FDNAMES`) say nothing here.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;

use listenfd::ListenFd;
use socket2::SockRef;

/// Sockets by the address on which they listen.
#[derive(Debug, Default)]
pub(super) struct Passed(Vec<(SocketAddr, TcpListener)>);

impl Passed {
    /// Those that the environment tells of, which it does once. To be called while the process has no thread but the
    /// first, and no other descriptor of its own.
    pub(super) fn take() -> Self {
        let mut environment = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..environment.len() {
            let taken = environment.take_tcp_listener(index);
            match taken.map(|socket| socket.and_then(with_address)) {
                Ok(Some(socket)) => sockets.push(socket),
                Ok(None) => tracing::warn!(index, "passed socket does not listen, it is closed"),
                Err(error) => {
                    tracing::warn!(index, %error, "passed descriptor is no socket of TCP, it is closed");
                    if let Ok(Some(other)) = environment.take_raw_fd(index) {
                        close(other);
                    }
                }
            }
        }
        Self(sockets)
    }

    /// The socket of this address, if there is one. It is kept as well, since it goes on listening whatever becomes of
    /// the one that is given.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(super) fn get(&self, address: SocketAddr) -> std::io::Result<Option<TcpListener>> {
        let found = self.0.iter().find(|(own, _)| *own == address);
        found.map(|(_, socket)| socket.try_clone()).transpose()
    }

    /// Closes those of other addresses than these, and says so.
    pub(super) fn keep(&mut self, addresses: &[SocketAddr]) {
        self.0.retain(|(address, _)| {
            let is_wanted = addresses.contains(address);
            if !is_wanted {
                tracing::warn!(%address, "passed socket is no listener's, it is closed: name its address in [[forward]]");
            }
            is_wanted
        });
    }
}

/// A socket that listens, with its address.
fn with_address(socket: TcpListener) -> Option<(SocketAddr, TcpListener)> {
    let listens = SockRef::from(&socket).is_listener().unwrap_or_default();
    let address = socket.local_addr().ok().filter(|_| listens)?;
    Some((address, socket))
}

fn close(descriptor: RawFd) {
    if let Err(error) = nix::unistd::close(descriptor) {
        tracing::debug!(%error, "passed descriptor was not open");
    }
}
