//! The socket's place in the file system: one daemon a path, and no leftovers in the way.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Type};

/// The control socket, listening. Dropping it removes the file and lets another daemon in.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    // Held until the socket's file is gone.
    lock: File,
}

impl Socket {
    /// Another handle of the listening socket, non-blocking.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "control socket not removed");
        }
        // Closing does not do: a program that is being started has a copy of the descriptor until it runs.
        let _ = self.lock.unlock();
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another egret is running (it holds {0}); stop it, or give this one another admin.socket")]
    Running(PathBuf),
    #[error("{0} exists and is not a socket; remove it, or set admin.socket to another path")]
    NotASocket(PathBuf),
    #[error("the control socket {path} cannot be made; set admin.socket to a path that can be written")]
    Io { path: PathBuf, source: io::Error },
}

/// Makes the control socket at `path`, with mode 0660 from its first moment, of the group `egret` if there is one, and its directory if that is not
/// there. A socket that a dead daemon left is replaced. Whether a daemon is alive is known by a lock on
/// `<path>.lock`, which the kernel drops with the process, so that two that start at once cannot both win.
///
/// # Errors
///
/// If another daemon holds the path, or something else is in the way.
pub fn bind(path: &Path) -> Result<Socket, BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    // First of all, so that not even a lock file is put beside something that is none of ours.
    is_leftover(path)?;
    // The parent of a bare name is the empty path.
    if let Some(directory) = path.parent()
        && !directory.as_os_str().is_empty()
        && !directory.exists()
    {
        std::fs::create_dir(directory).map_err(failed)?;
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(&lock_path).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(BindError::Running(path.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    clear(path)?;
    let listener = listen(path).map_err(failed)?;
    Ok(Socket { path: path.to_owned(), listener, lock })
}

/// Whether there is a socket at `path`; an error if there is something else.
fn is_leftover(path: &Path) -> Result<bool, BindError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(true),
        Ok(_) => Err(BindError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(BindError::Io { path: path.to_owned(), source }),
    }
}

/// Removes a socket that nobody listens on any more.
fn clear(path: &Path) -> Result<(), BindError> {
    if !is_leftover(path)? {
        return Ok(());
    }
    // A daemon whose lock file was deleted still answers here.
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::Running(path.to_owned())),
        Err(_) => std::fs::remove_file(path).map_err(|source| BindError::Io { path: path.to_owned(), source }),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file that bind(2) makes takes its mode from the socket, so that nobody else can connect in between.
    fchmod(&socket, Mode::from_bits_truncate(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    // The umask may have taken the group's bits.
    std::fs::set_permissions(path, Permissions::from_mode(MODE))?;
    // Whoever is of that group may look; see the server for who may change something.
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP)
        // The service is of that group itself, and need not be allowed to give files away.
        && std::fs::metadata(path)?.gid() != group.gid.as_raw()
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(group.gid.as_raw()))
    {
        tracing::warn!(%error, group = GROUP, "control socket cannot be given to its group");
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The owner and its group.
const MODE: u32 = 0o660;

const GROUP: &str = "egret";

const BACKLOG: i32 = 16;

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("egret-lock-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn socket_has_its_mode_and_goes_away() {
        let path = directory("mode").join("egret.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_second_daemon_is_refused_while_the_first_lives() {
        let path = directory("second").join("egret.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Running(_))));
        assert!(path.exists(), "the first one's socket is still there");
        drop(first);
        bind(&path).unwrap();
    }

    #[test]
    fn a_live_socket_without_a_lock_is_left_alone() {
        let path = directory("live").join("egret.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Running(_))));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_dead_socket_is_replaced() {
        let path = directory("dead").join("egret.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let dead = UnixListener::bind(&path).unwrap();
        // Closing does not do: a program that another test starts has a copy of the descriptor until it runs.
        SockRef::from(&dead).shutdown(std::net::Shutdown::Both).unwrap();
        drop(dead);
        assert!(path.exists(), "std leaves the file");
        let _socket = bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_removed() {
        let path = directory("file").join("egret.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "and no lock beside it");
    }
}
