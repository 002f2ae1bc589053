//! What is in a sealed frame: a byte for the kind, and what it is the kind of.
//!
//! Control messages are JSON: there are a few in a second, and who looks for an error can read them. Kinds that this
//! version does not know are left out, as are messages: an older instance goes on beside a newer one.

use super::preamble::Fault;
use crate::failover::Message;

/// What a payload means.
#[derive(Debug, PartialEq)]
pub enum Payload {
    /// Of a size and shape that a true one can have. The first one on a connection is a [`Message::Hello`].
    Message(Message),
    /// In place of the first message: why there is none.
    Refused(Fault),
    /// Nothing that this version understands.
    Other,
}

/// Why there are no bytes for a message.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("the message is longer than a frame")]
    TooLong,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// A payload's bytes.
///
/// # Errors
/// See [`EncodeError`].
pub fn message(message: &Message) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = vec![MESSAGE];
    serde_json::to_writer(&mut bytes, message)?;
    if bytes.len() > MOST_PAYLOAD { Err(EncodeError::TooLong) } else { Ok(bytes) }
}

/// A payload's bytes.
#[must_use]
pub fn refused(fault: Fault) -> Vec<u8> {
    vec![REFUSED, fault.code()]
}

/// Understands a payload of any length and content.
#[must_use]
pub fn parse(bytes: &[u8]) -> Payload {
    match bytes {
        [MESSAGE, json @ ..] => {
            let message = serde_json::from_slice(json).ok().filter(|message: &Message| message.check().is_ok());
            message.map_or(Payload::Other, Payload::Message)
        }
        [REFUSED, code] => Fault::from_code(*code).map_or(Payload::Other, Payload::Refused),
        _ => Payload::Other,
    }
}

/// The longest payload: a message of the Noise framework without its tag.
const MOST_PAYLOAD: usize = 65_535 - 16;

const MESSAGE: u8 = 1;
const REFUSED: u8 = 2;
