//! How a connection begins: what both sides say in the clear, and the handshake that covers it.
//!
//! Owns the first frame each way, without any input or output:
//!
//! | from the dialling side | bytes | | from the other | bytes |
//! |---|---|---|---|---|
//! | `egret` | 5 | | `egret` | 5 |
//! | version | 1 | | version | 1 |
//! | own name's length, and name | 1 + 1..=63 | | [`Fault`], or 0 | 1 |
//! | wanted name's length, and name | 1 + 1..=63 | | without a fault: Noise message 2 | 48 |
//! | Noise message 1 | 48 | | | |
//!
//! The handshake is `NNpsk0` of the Noise framework (revision 34, <https://noiseprotocol.org/noise.html>): fresh keys for
//! each connection, and the shared key from the first message on. The names are its prologue, so that a connection which
//! says another name on its way does not come about. What the other side tells is believed only for the log: it is not
//! covered, since there may be no common key.
//!
//! A recorded first frame is answered like any other, and leads nowhere: whoever replays it does not have the fresh key
//! of it. Hence nobody counts as authenticated before the first frame that follows.

use std::fmt;

use serde::Serialize;
use snow::{Builder, HandshakeState};

use super::key::Key;
use super::sealed::{Channel, MOST_FRAME};

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
pub(super) struct Names {
    pub(super) dialling: String,
    pub(super) dialled: String,
}

/// A handshake whose second message is awaited.
pub(super) struct Dialled(HandshakeState);

/// The first frame of whoever dials, and what to do with the answer.
pub(super) fn open(key: &Key, names: &Names) -> Result<(Vec<u8>, Dialled), snow::Error> {
    let mut frame = Vec::with_capacity(MOST_OPENING);
    frame.extend_from_slice(MAGIC);
    frame.push(VERSION);
    for name in [&names.dialling, &names.dialled] {
        frame.push(u8::try_from(name.len()).map_err(|_| snow::Error::Input)?);
        frame.extend_from_slice(name.as_bytes());
    }
    let mut state = builder(key, &frame)?.build_initiator()?;
    let mut message = [0; NOISE_MESSAGE];
    let length = state.write_message(&[], &mut message)?;
    frame.extend_from_slice(&message[..length]);
    Ok((frame, Dialled(state)))
}

/// Understands the first frame of whoever dials, without its handshake.
///
/// # Errors
/// [`Fault::NotEgret`] or [`Fault::Version`].
pub(super) fn read(frame: &[u8]) -> Result<Names, Fault> {
    let (names, _) = split(frame)?;
    Ok(names)
}

/// The answer to a first frame that [`read`] found to be for this side, and the channel.
///
/// # Errors
/// As [`read`]; or the handshake does not verify.
pub(super) fn answer(key: &Key, frame: &[u8]) -> Result<(Vec<u8>, Channel), Fault> {
    let (_, prologue) = split(frame)?;
    let message = frame.get(prologue..).ok_or(Fault::NotEgret)?;
    let (channel, message) = respond(key, &frame[..prologue], message).map_err(|_| Fault::Key)?;
    let mut answer = header(0);
    answer.extend_from_slice(&message);
    Ok((answer, channel))
}

/// The answer to a first frame that is refused.
pub(super) fn refusal(fault: Fault) -> Vec<u8> {
    header(fault.code())
}

impl Dialled {
    /// Understands the answer.
    ///
    /// # Errors
    /// What is wrong with it, or else what it says to be wrong with this side.
    pub(super) fn finish(mut self, frame: &[u8]) -> Result<Channel, Verdict> {
        let rest = frame.strip_prefix(MAGIC).ok_or(Verdict::Found(Fault::NotEgret))?;
        let [version, code, message @ ..] = rest else { return Err(Verdict::Found(Fault::NotEgret)) };
        if *version != VERSION {
            return Err(Verdict::Found(Fault::Version(*version)));
        }
        if *code != 0 {
            return Err(Fault::from_code(*code).map_or(Verdict::Found(Fault::NotEgret), Verdict::Told));
        }
        let unverified = |_| Verdict::Found(Fault::Key);
        self.0.read_message(message, &mut []).map_err(unverified)?;
        self.0.into_stateless_transport_mode().map(Channel::new).map_err(unverified)
    }
}

/// Who refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
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
            Self::Hello => f.write_str("does not introduce itself"),
        }
    }
}

/// The names, and where the handshake begins.
fn split(frame: &[u8]) -> Result<(Names, usize), Fault> {
    let rest = frame.strip_prefix(MAGIC).ok_or(Fault::NotEgret)?;
    let (version, rest) = rest.split_first().ok_or(Fault::NotEgret)?;
    if *version != VERSION {
        return Err(Fault::Version(*version));
    }
    let (dialling, rest) = name(rest)?;
    let (dialled, rest) = name(rest)?;
    Ok((Names { dialling, dialled }, frame.len() - rest.len()))
}

fn name(bytes: &[u8]) -> Result<(String, &[u8]), Fault> {
    let (length, rest) = bytes.split_first().ok_or(Fault::NotEgret)?;
    let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or(Fault::NotEgret)?;
    let name = std::str::from_utf8(name).ok().filter(|name| super::is_name(name)).ok_or(Fault::NotEgret)?;
    Ok((name.to_owned(), rest))
}

fn respond(key: &Key, prologue: &[u8], message: &[u8]) -> Result<(Channel, Vec<u8>), snow::Error> {
    let mut state = builder(key, prologue)?.build_responder()?;
    state.read_message(message, &mut [])?;
    let mut answer = vec![0; NOISE_MESSAGE];
    let length = state.write_message(&[], &mut answer)?;
    answer.truncate(length);
    Ok((Channel::new(state.into_stateless_transport_mode()?), answer))
}

fn builder<'a>(key: &'a Key, prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
    Builder::new(PATTERN.parse()?).psk(0, key.bytes())?.prologue(prologue)
}

fn header(code: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(MOST_OPENING);
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(&[VERSION, code]);
    frame
}

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const MAGIC: &[u8] = b"egret";

/// Of everything that is said on a link but the contents of messages.
pub const VERSION: u8 = 1;

/// A key, and the tag of an empty payload.
const NOISE_MESSAGE: usize = 32 + 16;

/// The longest first frame, either way; longer ones are not read.
pub(super) const MOST_OPENING: usize = 5 + 1 + 2 * (1 + 63) + NOISE_MESSAGE;
const _: () = assert!(MOST_OPENING <= MOST_FRAME);
