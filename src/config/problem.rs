//! What can be wrong with a configuration, located.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Who says what a key is set to.
///
/// Displayed as a message begins: `egret.toml`, `variable EGRET_NAT__MAPPING`, `tag egret:nat.mapping`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// As it was named to [`super::load`].
    File(Arc<Path>),
    /// Of the environment, by its name.
    Variable(Arc<str>),
    /// Of the instance, by its key.
    Tag(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => write!(f, "variable {}", name.escape_debug()),
            Self::Tag(key) => write!(f, "tag {}", key.escape_debug()),
        }
    }
}

/// One thing that is wrong, or doubtful, in a configuration.
///
/// Displayed on one line: `egret.toml:12: nat.mapping: "cone" is not known; use endpoint-independent or
/// address-and-port-dependent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    /// Line of the file, from 1; unset if the problem is with the file as a whole, or not in a file.
    pub line: Option<usize>,
    /// Column in characters, from 1; set for errors of TOML's syntax only.
    pub column: Option<usize>,
    /// The key's full path, such as `nat.timeouts.udp`; empty if no key is concerned.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl Problem {
    pub(super) const fn is_of_tag(&self) -> bool {
        matches!(self.origin, Origin::Tag(_))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.origin)?;
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

/// Everything that is wrong: at least one problem, in the order of the lines.
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
