//! What can be wrong with a configuration file, located.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// One thing that is wrong, or doubtful, in a configuration file.
///
/// Displayed on one line: `egret.toml:12: nat.mapping: "cone" is not known; use endpoint-independent or
/// address-and-port-dependent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named to [`super::load`].
    pub file: Arc<Path>,
    /// Line, from 1; unset if the problem is with the file as a whole.
    pub line: Option<usize>,
    /// Column in characters, from 1; set for errors of TOML's syntax only.
    pub column: Option<usize>,
    /// The key's full path, such as `nat.timeouts.udp`; empty if no key is concerned.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if let Some(column) = self.column {
            write!(f, "{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Everything that is wrong in a file: at least one problem, in the order of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<Problem>);

impl Problems {
    /// The problems, in the order of the lines.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
