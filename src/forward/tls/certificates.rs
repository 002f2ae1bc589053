//! A listener's certificate and key, which change with their files.
//!
//! The files are looked at every few seconds rather than watched: a look costs some system calls, and sees through
//! symbolic links, renames and mounts alike. What is new holds from the next handshake on; connections that are open do
//! not notice. What is new and bad is told once, and what was before stays.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::UnixTime;

use super::files::{Loaded, load};
use super::{Config, Error};

/// See the module. Empty for a listener without TLS.
#[derive(Debug)]
pub(in crate::forward) struct Certificates {
    /// The listener's, for the log.
    name: String,
    held: Mutex<Option<Held>>,
}

/// What is to be seen of a listener's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When the certificate ends, in seconds since 1970; unset if it does not.
    pub expiry: Option<u64>,
    /// Whether clients need a certificate.
    pub mutual: bool,
}

#[derive(Debug)]
struct Held {
    config: Config,
    loaded: Loaded,
    /// The files as they were when they were last loaded, even in vain.
    seen: Looks,
    told_expired: bool,
}

/// By certificate, key and CA; unset where there is no file.
type Looks = [Option<Look>; 3];

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    /// When it was last written, renamed, or otherwise changed: seconds and nanoseconds.
    changed: (i64, i64),
}

impl Certificates {
    /// # Errors
    /// What is wrong with the files.
    pub(in crate::forward) fn new(name: &str, config: Option<&Config>) -> Result<Self, Error> {
        let held = config.map(|config| Held::load(name, config)).transpose()?;
        Ok(Self { name: name.to_owned(), held: Mutex::new(held) })
    }

    /// Changes what files there are. If they are those that were, they are looked at now, and may well be bad.
    ///
    /// # Errors
    /// What is wrong with new files; then nothing has changed.
    pub(in crate::forward) fn reconfigure(&self, config: Option<&Config>) -> Result<(), Error> {
        let mut held = self.lock();
        match (&mut *held, config) {
            (Some(held), Some(config)) if held.config == *config => {
                let looks = looks(config);
                if looks != held.seen {
                    held.reload(&self.name, looks);
                }
            }
            (held, config) => *held = config.map(|config| Held::load(&self.name, config)).transpose()?,
        }
        Ok(())
    }

    /// For the next handshake; unset if there is to be none.
    pub(in crate::forward) fn current(&self) -> Option<Arc<ServerConfig>> {
        self.lock().as_ref().map(|held| Arc::clone(&held.loaded.server))
    }

    pub(in crate::forward) fn report(&self) -> Option<Report> {
        self.lock().as_ref().map(|held| Report {
            expiry: held.loaded.expiry.map(|expiry| expiry.as_secs()),
            mutual: held.config.client_ca.is_some(),
        })
    }

    /// Looks at the files, for ever.
    pub(in crate::forward) async fn follow(&self) {
        let mut before = None;
        loop {
            sleep(LOOK_EVERY).await;
            let mut held = self.lock();
            let Some(held) = &mut *held else { continue };
            let now = looks(&held.config);
            // Whoever has written the one file may not have written the other yet: they have to stay for a while.
            if now != held.seen && before == Some(now) {
                held.reload(&self.name, now);
            }
            held.tell_expired(&self.name);
            before = Some(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn load(listener: &str, config: &Config) -> Result<Self, Error> {
        // Looked at first, so that a change after that is seen.
        let seen = looks(config);
        let mut held = Self { config: config.clone(), loaded: load(config)?, seen, told_expired: false };
        held.tell_expired(listener);
        Ok(held)
    }

    fn reload(&mut self, listener: &str, looks: Looks) {
        self.seen = looks;
        match load(&self.config) {
            Ok(loaded) => {
                tracing::info!(listener, certificate = %self.config.certificate.display(), "certificate reloaded");
                (self.loaded, self.told_expired) = (loaded, false);
            }
            Err(error) => {
                tracing::error!(listener, key = error.key, %error, "certificate not reloaded, the last one stays");
            }
        }
    }

    /// Once a certificate. Clients will say so as well, but not here.
    fn tell_expired(&mut self, listener: &str) {
        let expired = self.loaded.expiry.is_some_and(|expiry| expiry < UnixTime::now());
        if expired && !self.told_expired {
            let certificate = self.config.certificate.display();
            tracing::warn!(listener, %certificate, "certificate has expired: clients will refuse it");
        }
        self.told_expired = expired;
    }
}

fn looks(config: &Config) -> Looks {
    let files = [Some(&config.certificate), Some(&config.key), config.client_ca.as_ref()];
    files.map(|file| file.and_then(|file| Look::at(file).ok()))
}

impl Look {
    fn at(file: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(file)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(2);
