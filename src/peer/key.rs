//! The key that the peers of a fleet share: 32 bytes, in a file of one line of hexadecimal digits.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::{Zeroize, Zeroizing};

/// A shared key. Wiped from memory when dropped, and shown by no formatting but [`Key::to_line`].
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; LENGTH]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{} does not exist; make a key on one instance (egret peer-key {}), and copy it to its peers", .0.display(), .0.display())]
    Missing(PathBuf),
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    #[error("{} can be read or changed by others (mode {mode:04o}); run: chgrp egret {} && chmod 640 {}", path.display(), path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is not a key, which is one line of {} hexadecimal digits; make one with egret peer-key", .0.display(), LENGTH * 2)]
    Malformed(PathBuf),
    #[error("{} is there already; it is not overwritten, since peers may have it", .0.display())]
    Exists(PathBuf),
    #[error("the system has no randomness to give: {0}")]
    Random(getrandom::Error),
}

impl Key {
    /// A new key of the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Self([0; LENGTH]);
        getrandom::fill(&mut key.0).map_err(KeyError::Random)?;
        Ok(key)
    }

    /// Reads a key file, which nobody but its owner may read or change; its group may read it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KeyError::Missing(path.to_owned()),
            _ => KeyError::Read { path: path.to_owned(), source },
        };
        // A pipe would have the caller wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(KeyError::NotAFile(path.to_owned()));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & EXPOSED != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        Self::from_line(&read(file).map_err(failed)?).ok_or_else(|| KeyError::Malformed(path.to_owned()))
    }

    /// Writes the key into a new file that only its owner can read.
    ///
    /// # Errors
    /// See [`KeyError`]; a file that is there is left alone.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
            _ => KeyError::Write { path: path.to_owned(), source },
        };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(self.to_line().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// What a key file holds, with its line's end.
    #[must_use]
    pub fn to_line(&self) -> Zeroizing<String> {
        // Grown nowhere: a copy of the key would be left behind.
        let mut line = Zeroizing::new(String::with_capacity(LENGTH * 2 + 1));
        for byte in self.0 {
            for digit in [byte >> 4, byte & 15] {
                line.push(char::from_digit(digit.into(), 16).unwrap_or_default());
            }
        }
        line.push('\n');
        line
    }

    pub(super) const fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// Understands what a key file holds: the digits, upper or lower case, and at most one line's end.
    #[must_use]
    pub fn from_line(text: &[u8]) -> Option<Self> {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let digits = text.strip_suffix(b"\r").unwrap_or(text);
        if digits.len() != LENGTH * 2 {
            return None;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut key = Self([0; LENGTH]);
        for (byte, pair) in key.0.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(key)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// At most a byte more than a key file can have.
fn read(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    let most = LENGTH * 2 + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most));
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes; a pre-shared key of the Noise framework (revision 34, section 9).
const LENGTH: usize = 32;

/// Whoever can change the key is a peer as much as who can read it.
const EXPOSED: u32 = 0o037;
