//! The section `[session_log]`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::reader::{Reader, Section, quoted};
use super::render::{optional, string};

/// Which lines are written about sessions, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLog {
    /// Unset: nowhere.
    pub to: Option<SessionLogTarget>,
    /// A line when a session begins as well.
    pub opened: bool,
    /// A line for each remote endpoint that no internal address has talked to before.
    pub new_destinations: bool,
    /// At least 1; more are lost, and counted.
    pub lines_per_second: u32,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionLogTarget {
    /// Which under systemd is the journal.
    Stdout,
    /// An absolute path.
    File(PathBuf),
}

impl Default for SessionLog {
    fn default() -> Self {
        Self { to: None, opened: false, new_destinations: false, lines_per_second: 1000 }
    }
}

pub(super) fn read(reader: &mut Reader<'_>, root: &Section<'_>) -> SessionLog {
    let default = SessionLog::default();
    let Some(section) = reader.section(root, "session_log") else { return default };
    let to = reader.parsed(&section, "to", target).map(|to| to.value);
    let opened = reader.boolean(&section, "opened").unwrap_or(default.opened);
    let new_destinations = reader.boolean(&section, "new_destinations").unwrap_or(default.new_destinations);
    let rate = reader.integer(&section, "lines_per_second", 1..=1_000_000, "lines");
    let lines_per_second = rate.map_or(default.lines_per_second, |rate| rate.value);
    SessionLog { to, opened, new_destinations, lines_per_second }
}

/// Writes what [`read`] reads.
pub(super) fn write(out: &mut String, log: &SessionLog) -> std::fmt::Result {
    writeln!(out, "\n[session_log]")?;
    let to = log.to.as_ref().map(|to| match to {
        SessionLogTarget::Stdout => string(STDOUT),
        SessionLogTarget::File(path) => string(&path.to_string_lossy()),
    });
    optional(out, "to", to, "no log")?;
    writeln!(out, "opened = {}", log.opened)?;
    writeln!(out, "new_destinations = {}", log.new_destinations)?;
    writeln!(out, "lines_per_second = {}", log.lines_per_second)
}

fn target(text: &str) -> Result<SessionLogTarget, String> {
    let path = Path::new(text);
    if text == STDOUT {
        Ok(SessionLogTarget::Stdout)
    } else if path.is_absolute() && path.file_name().is_some() && !text.contains('\0') && !text.ends_with('/') {
        Ok(SessionLogTarget::File(path.to_owned()))
    } else {
        Err(format!("{} is neither \"stdout\" nor the absolute path of a file", quoted(text)))
    }
}

const STDOUT: &str = "stdout";
