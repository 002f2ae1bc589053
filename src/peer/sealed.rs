//! Frames on a connection: a length of two bytes (big-endian) and as many bytes, which after the opening are a message of
//! the Noise framework.
//!
//! Frames carry no number: both sides count them (section 5.1 of the Noise framework), so that one which is lost, doubled,
//! changed or of another connection does not verify, and ends the connection.

use std::io;

use snow::StatelessTransportState;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What both sides of a connection have agreed upon.
pub(super) struct Channel(StatelessTransportState);

/// The sending half.
pub(super) struct Sealer<'a> {
    channel: &'a Channel,
    next: u64,
    frame: Vec<u8>,
}

/// The receiving half.
pub(super) struct Opener<'a> {
    channel: &'a Channel,
    next: u64,
    frame: Vec<u8>,
    payload: Vec<u8>,
}

/// Where the frames of a connection are counted on from, when its halves are made anew.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Why a frame cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a frame does not verify")]
    Unverified,
    #[error("a frame is longer than allowed")]
    TooLong,
}

impl Channel {
    pub(super) const fn new(state: StatelessTransportState) -> Self {
        Self(state)
    }

    pub(super) const fn halves(&self, counts: Counts) -> (Opener<'_>, Sealer<'_>) {
        let opener = Opener { channel: self, next: counts.received, frame: Vec::new(), payload: Vec::new() };
        (opener, Sealer { channel: self, next: counts.sent, frame: Vec::new() })
    }
}

impl Sealer<'_> {
    /// Sends a payload; gives how many bytes that took. After an error, or when this is not waited for until its end, the
    /// connection is of no use any more.
    pub(super) async fn send(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        payload: &[u8],
    ) -> Result<usize, FrameError> {
        self.frame.resize(2 + payload.len() + TAG, 0);
        let (length, sealed) = self.frame.split_at_mut(2);
        let sealed =
            self.channel.0.write_message(self.next, payload, sealed).map_err(|_| FrameError::TooLong)?;
        length.copy_from_slice(&u16::try_from(sealed).map_err(|_| FrameError::TooLong)?.to_be_bytes());
        self.next += 1;
        stream.write_all(&self.frame).await?;
        Ok(self.frame.len())
    }
}

impl Opener<'_> {
    /// Waits for a payload; gives it with the bytes that it took. As for [`Sealer::send`], after an error, or when this
    /// is not waited for until its end, the connection is of no use any more.
    pub(super) async fn receive(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<(&[u8], usize), FrameError> {
        read_frame(stream, &mut self.frame, MOST_FRAME).await?;
        self.payload.resize(self.frame.len(), 0);
        let length = self.channel.0.read_message(self.next, &self.frame, &mut self.payload);
        let length = length.map_err(|_| FrameError::Unverified)?;
        self.next += 1;
        let payload = self.payload.get(..length).ok_or(FrameError::Unverified)?;
        Ok((payload, 2 + self.frame.len()))
    }
}

/// Reads a frame of at most `most` bytes, sealed or not.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    frame: &mut Vec<u8>,
    most: usize,
) -> Result<(), FrameError> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(FrameError::TooLong);
    }
    frame.resize(length, 0);
    stream.read_exact(frame).await?;
    Ok(())
}

/// Writes a frame that is not sealed.
pub(super) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &[u8],
) -> Result<(), FrameError> {
    let length = u16::try_from(frame.len()).map_err(|_| FrameError::TooLong)?;
    let bytes = [&length.to_be_bytes()[..], frame].concat();
    stream.write_all(&bytes).await?;
    Ok(())
}

/// The longest frame, without its length: what a message of the Noise framework may have.
pub(super) const MOST_FRAME: usize = 65_535;

/// What sealing adds.
const TAG: usize = 16;
