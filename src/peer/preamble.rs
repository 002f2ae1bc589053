//! What both sides of a connection say in the clear, before anything else: the protocol, its version, and their names or
//! what is wrong with them. Without any input or output.

use std::fmt;

use serde::Serialize;

/// What a side holds against a connection, and tells the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its first bytes are not the protocol's.
    NotEgret,
    /// It speaks this version.
    Version(u8),
    /// It bears the name of whoever it talks to.
    OwnName,
    /// No peer of this name is configured.
    Unknown,
    /// It looks for somebody else here.
    Misdirected,
    /// Of two peers, the one whose name sorts first dials.
    Role,
    /// What it says was not made with the shared key, or has changed on its way.
    Key,
    /// Another instance of this name is connected, and alive.
    Claimed,
    /// Its first message does not introduce it.
    Hello,
}

/// The names of both sides of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub dialling: String,
    pub dialled: String,
}

/// The preamble of whoever dials, to which names are always short enough.
pub(super) fn write(names: &Names) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    for name in [&names.dialling, &names.dialled] {
        // A longer one is none, and refused by whoever reads it.
        let name = name.as_bytes().get(..name.len().min(MOST_NAME)).unwrap_or_default();
        bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(name);
    }
    bytes
}

/// Understands the preamble of whoever dials; gives the names, and where it ends.
///
/// # Errors
/// [`Fault::NotEgret`] or [`Fault::Version`].
pub fn read(frame: &[u8]) -> Result<(Names, usize), Fault> {
    let rest = frame.strip_prefix(MAGIC).ok_or(Fault::NotEgret)?;
    let (version, rest) = rest.split_first().ok_or(Fault::NotEgret)?;
    if *version != VERSION {
        return Err(Fault::Version(*version));
    }
    let (dialling, rest) = name(rest)?;
    let (dialled, rest) = name(rest)?;
    Ok((Names { dialling, dialled }, frame.len() - rest.len()))
}

/// The preamble of the other side, which refuses, or not.
pub(super) fn write_answer(fault: Option<Fault>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[VERSION, fault.map_or(NO_FAULT, Fault::code)]);
    bytes
}

/// Understands the preamble of the other side; gives where it ends.
///
/// # Errors
/// What is wrong with it, or else what it says to be wrong with this side.
pub fn read_answer(frame: &[u8]) -> Result<usize, Verdict> {
    let not_egret = Verdict::Found(Fault::NotEgret);
    let Some([version, code, rest @ ..]) = frame.strip_prefix(MAGIC) else { return Err(not_egret) };
    if *version != VERSION {
        return Err(Verdict::Found(Fault::Version(*version)));
    }
    if *code != NO_FAULT {
        return Err(Fault::from_code(*code).map_or(not_egret, Verdict::Told));
    }
    Ok(frame.len() - rest.len())
}

/// Whether a gateway may have this name: 1 to 63 lower-case letters, digits and `-`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MOST_NAME).contains(&text.len()) && text.bytes().all(good)
}

/// Who refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Found(Fault),
    Told(Fault),
}

impl Fault {
    /// A name for counters.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotEgret => "not_egret",
            Self::Version(_) => "version",
            Self::OwnName => "own_name",
            Self::Unknown => "unknown",
            Self::Misdirected => "misdirected",
            Self::Role => "role",
            Self::Key => "key",
            Self::Claimed => "claimed",
            Self::Hello => "hello",
        }
    }

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::NotEgret => 1,
            Self::Version(_) => 2,
            Self::OwnName => 3,
            Self::Unknown => 4,
            Self::Misdirected => 5,
            Self::Role => 6,
            Self::Key => 7,
            Self::Claimed => 8,
            Self::Hello => 9,
        }
    }

    /// Unset for what only a later version says, and for the version, which is told by itself.
    pub(super) const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::NotEgret,
            3 => Self::OwnName,
            4 => Self::Unknown,
            5 => Self::Misdirected,
            6 => Self::Role,
            7 => Self::Key,
            8 => Self::Claimed,
            9 => Self::Hello,
            _ => return None,
        })
    }
}

/// As said of the other side.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEgret => f.write_str("does not speak the protocol of Egret's peers"),
            Self::Version(version) => {
                write!(
                    f,
                    "speaks version {version} of the peers' protocol, not {VERSION}; run the same Egret on both"
                )
            }
            Self::OwnName => f.write_str("has the same failover.gateway; each instance needs one of its own"),
            Self::Unknown => f.write_str("is not among failover.peers"),
            Self::Misdirected => {
                f.write_str("looks for another gateway at this address; see its failover.peers")
            }
            Self::Role => f.write_str("dials, though its name sorts after the other's"),
            Self::Key => {
                f.write_str("has another key, or its handshake was changed on the way; see failover.key_file")
            }
            Self::Claimed => f.write_str("has the name of another instance, which is connected"),
            Self::Hello => f.write_str(
                "does not introduce itself as this version of Egret understands it; run the same on both",
            ),
        }
    }
}

fn name(bytes: &[u8]) -> Result<(String, &[u8]), Fault> {
    let (length, rest) = bytes.split_first().ok_or(Fault::NotEgret)?;
    let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or(Fault::NotEgret)?;
    let name = std::str::from_utf8(name).ok().filter(|name| is_name(name)).ok_or(Fault::NotEgret)?;
    Ok((name.to_owned(), rest))
}

const MAGIC: &[u8] = b"egret";
const NO_FAULT: u8 = 0;
const MOST_NAME: usize = 63;

/// Of everything that is said on a link but the contents of messages.
pub const VERSION: u8 = 1;

/// Bytes of the longest preamble, of either side.
pub(super) const MOST_PREAMBLE: usize = MAGIC.len() + 1 + 2 * (1 + MOST_NAME);
