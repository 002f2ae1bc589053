//! What peers have told, over a restart.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::daemon::whereabouts::Addresses;
use crate::failover::Hello;

/// Where it is kept, if there is a place for it.
pub(super) struct Memory {
    file: Option<PathBuf>,
    kept: Kept,
}

/// What is kept.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// How peers introduced themselves.
    pub known: Vec<Hello>,
    /// Where those were that are found by a tag.
    pub found: Addresses,
}

impl Memory {
    /// In the state directory that systemd gives (systemd.exec(5), `StateDirectory=`).
    pub fn new() -> Self {
        let directory = std::env::var_os("STATE_DIRECTORY");
        Self { file: directory.map(|directory| Path::new(&directory).join(FILE)), kept: Kept::default() }
    }

    /// Keeps it, if it is news. A failure is told.
    pub fn keep(&mut self, what: Kept) {
        let Some(file) = &self.file else { return };
        if what == Kept::default() || what == self.kept {
            return;
        }
        let written = serde_json::to_vec(&what).map_err(std::io::Error::from).and_then(|text| {
            let fresh = file.with_extension("new");
            std::fs::write(&fresh, text)?;
            std::fs::rename(fresh, file)
        });
        if let Err(error) = written {
            tracing::warn!(file = %file.display(), %error, "what peers have told is not kept");
        }
        self.kept = what;
    }

    /// What was kept before the restart. A file that is not readable is told, and is nothing.
    pub fn recall(&self) -> Option<Kept> {
        let file = self.file.as_ref()?;
        let text = std::fs::read(file).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| {
                tracing::warn!(file = %file.display(), %error, "what peers had told is not readable");
            })
            .ok()
    }
}

const FILE: &str = "peers.json";
