//! How a connection begins: what both sides say in the clear, and the handshake that covers it.
//!
//! Owns the first frame each way, without any input or output:
//!
//! | from the dialling side | bytes | | from the other | bytes |
//! |---|---|---|---|---|
//! | `egret` | 5 | | `egret` | 5 |
//! | version | 1 | | version | 1 |
//! | own name's length, and name | 1 + 1..=63 | | [`super::Fault`], or 0 | 1 |
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

use snow::{Builder, HandshakeState};

use super::key::Key;
use super::preamble::{self, Fault, MOST_PREAMBLE, Names, Verdict};
use super::sealed::{Channel, MOST_FRAME};

/// A handshake whose second message is awaited.
pub(super) struct Dialled(HandshakeState);

/// The first frame of whoever dials, and what to do with the answer.
///
/// # Errors
/// There is no randomness for a fresh key.
pub(super) fn open(key: &Key, names: &Names) -> Result<(Vec<u8>, Dialled), snow::Error> {
    let mut frame = preamble::write(names);
    let mut state = builder(key, &frame)?.build_initiator()?;
    let mut message = [0; NOISE_MESSAGE];
    let length = state.write_message(&[], &mut message)?;
    frame.extend_from_slice(&message[..length]);
    Ok((frame, Dialled(state)))
}

/// The answer to a first frame whose names are right, and the channel.
///
/// # Errors
/// What is wrong with the frame, of which the other side is to be told by [`refusal`].
pub(super) fn answer(key: &Key, frame: &[u8]) -> Result<(Vec<u8>, Channel), Fault> {
    let (_, end) = preamble::read(frame)?;
    let (preamble, message) = frame.split_at(end);
    let (channel, message) = respond(key, preamble, message).map_err(|_| Fault::Key)?;
    let mut answer = preamble::write_answer(None);
    answer.extend_from_slice(&message);
    Ok((answer, channel))
}

/// The answer to a first frame that is refused.
pub(super) fn refusal(fault: Fault) -> Vec<u8> {
    preamble::write_answer(Some(fault))
}

impl Dialled {
    /// Understands the answer.
    ///
    /// # Errors
    /// As [`preamble::read_answer`]; or the handshake does not verify.
    pub(super) fn finish(mut self, frame: &[u8]) -> Result<Channel, Verdict> {
        let message = &frame[preamble::read_answer(frame)?..];
        let unverified = |_| Verdict::Found(Fault::Key);
        self.0.read_message(message, &mut []).map_err(unverified)?;
        self.0.into_stateless_transport_mode().map(Channel::new).map_err(unverified)
    }
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

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// A key, and the tag of an empty payload.
const NOISE_MESSAGE: usize = 32 + 16;

/// The longest first frame, either way; longer ones are not read.
pub(super) const MOST_OPENING: usize = MOST_PREAMBLE + NOISE_MESSAGE;
const _: () = assert!(MOST_OPENING <= MOST_FRAME);
