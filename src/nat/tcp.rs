//! A TCP connection as a NAT follows it: RFC 5382, RFC 7857 section 2, and the state machine of RFC 6146
//! section 3.5.2.

use serde::Serialize;

use super::event::Side;
use super::offload::TcpMarks;
use crate::wire::{TcpFlags, TcpSegment};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum TcpState {
    /// One side has sent its SYN.
    SynSent,
    /// Both have, and at least one of them is not yet acknowledged.
    SynReceived,
    Established,
    /// The internal side has sent its FIN.
    FinOut,
    /// The external side has sent its FIN.
    FinIn,
    /// Both have.
    Closing,
    /// One side has reset it.
    Reset,
}

impl TcpState {
    /// Whether the established idle timeout applies; otherwise the transitory one. A half-closed connection may
    /// still carry data for as long as an open one (RFC 6146 section 3.5.2.2).
    #[must_use]
    pub const fn is_established(self) -> bool {
        matches!(self, Self::Established | Self::FinOut | Self::FinIn)
    }
}

/// What a segment means for its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It belongs to the connection, which is now in this state.
    State(TcpState),
    /// It opens a new connection on the same endpoints (RFC 6191).
    Reopen,
    /// An RST that its receiver would not accept (RFC 7857 section 2.2).
    OutOfWindow,
}

/// What has been seen of both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection {
    out: Half,
    inward: Half,
    offer: Offer,
}

/// The last SYN on a connection that is open: a peer that has lost it asks for a new one.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    /// One past its sequence number and data.
    end: u32,
    scale: Option<u8>,
    side: Option<Side>,
}

/// What one side has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Half {
    /// One past the highest sequence number.
    end: u32,
    /// The highest acknowledgement.
    acknowledged: u32,
    /// The last window, before scaling.
    window: u16,
    scale: u8,
    seen: u8,
}

impl Half {
    const SYN: u8 = 1;
    const ACK: u8 = 2;
    const SCALE: u8 = 4;
    /// The window is that of a SYN, which is never scaled (RFC 7323 section 2.2).
    const SYN_WINDOW: u8 = 8;

    const fn has(self, what: u8) -> bool {
        self.seen & what != 0
    }

    const fn reach(&mut self, end: u32) {
        if is_after(end, self.end) {
            self.end = end;
        }
    }

    /// Takes over the acknowledgement of a flow. A flow cannot know what the peer has sent, which ends at `sent`: if
    /// it was made to believe more, its true acknowledgement and window are lost, and all may be acknowledged.
    const fn catch_up(&mut self, marks: &TcpMarks, sent: u32) {
        if is_after(self.acknowledged, marks.acknowledged) {
            return;
        }
        if is_after(marks.acknowledged, sent) {
            self.acknowledged = sent;
        } else {
            self.acknowledged = marks.acknowledged;
            self.window = marks.window;
        }
    }
}

impl Connection {
    /// Follows a segment that `side` has sent while the connection was in `state`.
    pub fn handle_segment(&mut self, state: TcpState, side: Side, segment: &TcpSegment) -> Progress {
        if segment.has(TcpFlags::RST) {
            return if self.accepts_reset(side, segment) {
                Progress::State(TcpState::Reset)
            } else {
                Progress::OutOfWindow
            };
        }
        if segment.is_opening() && matches!(state, TcpState::Closing | TcpState::Reset) {
            return Progress::Reopen;
        }
        if segment.has(TcpFlags::SYN) && !matches!(state, TcpState::SynSent | TcpState::SynReceived) {
            return Progress::State(self.negotiate(state, side, segment));
        }
        self.record(side, segment);
        Progress::State(self.next_state(state, side, segment))
    }

    /// Takes note of how far flows have come that carried its data in both directions.
    pub fn merge(&mut self, out: Option<TcpMarks>, inward: Option<TcpMarks>) {
        if let Some(marks) = out {
            self.out.reach(marks.end);
        }
        if let Some(marks) = inward {
            self.inward.reach(marks.end);
        }
        if let Some(marks) = out {
            self.out.catch_up(&marks, self.inward.end);
        }
        if let Some(marks) = inward {
            self.inward.catch_up(&marks, self.out.end);
        }
    }

    /// Whether the receiver of an RST that `side` has sent surely believes it: its sequence number is the very next that
    /// the receiver expects (RFC 5961 section 3.2), or it refuses the connection.
    pub fn is_certain_reset(&self, side: Side, segment: &TcpSegment) -> bool {
        let receiver = match side {
            Side::Internal => self.inward,
            Side::External => self.out,
        };
        !receiver.has(Half::ACK) || segment.sequence == receiver.acknowledged
    }

    /// How far the internal and the external side have come.
    pub fn marks(&self) -> (TcpMarks, TcpMarks) {
        let marks =
            |half: Half| TcpMarks { end: half.end, acknowledged: half.acknowledged, window: half.window };
        (marks(self.out), marks(self.inward))
    }

    /// Whether its marks say all that there is to say: both sides have opened it and have sent more than their SYN.
    pub const fn is_settled(&self) -> bool {
        self.is_open() && !self.out.has(Half::SYN_WINDOW) && !self.inward.has(Half::SYN_WINDOW)
    }

    /// A SYN on an open connection changes nothing until the other side takes it up (RFC 5961 section 4).
    fn negotiate(&mut self, state: TcpState, side: Side, segment: &TcpSegment) -> TcpState {
        let offer = self.offer;
        if segment.is_opening() {
            let end = segment.sequence.wrapping_add(segment.length);
            self.offer = Offer { end, scale: segment.window_scale, side: Some(side) };
            return state;
        }
        // It may acknowledge less than all of the data that came with the SYN (RFC 7413).
        let taken_up = offer.end.wrapping_sub(segment.acknowledgement) < 1 << 16;
        if offer.side != Some(side.opposite()) || !taken_up {
            return state;
        }
        let scaled = if offer.scale.is_some() { Half::SCALE } else { 0 };
        let offered = Half {
            end: offer.end,
            scale: offer.scale.unwrap_or(0),
            seen: Half::SYN | scaled,
            ..Half::default()
        };
        *self = match side {
            Side::Internal => Self { inward: offered, ..Self::default() },
            Side::External => Self { out: offered, ..Self::default() },
        };
        self.record(side, segment);
        TcpState::SynReceived
    }

    fn next_state(&self, state: TcpState, side: Side, segment: &TcpSegment) -> TcpState {
        let fin = segment.has(TcpFlags::FIN);
        match state {
            TcpState::SynSent | TcpState::SynReceived => {
                if self.is_open() {
                    if fin { half_closed_by(side) } else { TcpState::Established }
                } else if self.out.has(Half::SYN) && self.inward.has(Half::SYN) {
                    TcpState::SynReceived
                } else {
                    state
                }
            }
            TcpState::Established if fin => half_closed_by(side),
            TcpState::FinOut if fin && side == Side::External => TcpState::Closing,
            TcpState::FinIn if fin && side == Side::Internal => TcpState::Closing,
            // RFC 6146: the reset was not believed by its receiver, the connection lives.
            TcpState::Reset => TcpState::Established,
            _ => state,
        }
    }

    /// Whether both sides have sent a SYN and acknowledged the other's.
    const fn is_open(&self) -> bool {
        let seen = Half::SYN | Half::ACK;
        self.out.seen & seen == seen && self.inward.seen & seen == seen
    }

    /// RFC 5961 section 3 as far as a NAT can see: the sequence number lies in the window that the receiver has
    /// last advertised. While the receiver has acknowledged nothing, the RST must acknowledge its SYN (RFC 9293
    /// section 3.10.7.3), or follow directly on what the sender itself has sent.
    fn accepts_reset(&self, side: Side, segment: &TcpSegment) -> bool {
        let (sender, receiver) = match side {
            Side::Internal => (self.out, self.inward),
            Side::External => (self.inward, self.out),
        };
        if receiver.has(Half::ACK) {
            let both = sender.has(Half::SCALE) && receiver.has(Half::SCALE);
            let scaled = both && !receiver.has(Half::SYN_WINDOW);
            let window = u32::from(receiver.window) << if scaled { receiver.scale } else { 0 };
            return segment.sequence.wrapping_sub(receiver.acknowledged) <= window;
        }
        let refuses =
            receiver.has(Half::SYN) && segment.has(TcpFlags::ACK) && segment.acknowledgement == receiver.end;
        refuses || (sender.has(Half::SYN) && segment.sequence == sender.end)
    }

    fn record(&mut self, side: Side, segment: &TcpSegment) {
        let (half, peer) = match side {
            Side::Internal => (&mut self.out, &mut self.inward),
            Side::External => (&mut self.inward, &mut self.out),
        };
        let end = segment.sequence.wrapping_add(segment.length);
        if segment.has(TcpFlags::SYN) {
            half.seen |= Half::SYN;
            half.end = end;
            // Whatever the peer acknowledged before, it was not this.
            if is_after(peer.acknowledged, end) {
                peer.seen &= !Half::ACK;
            }
            if let Some(scale) = segment.window_scale {
                half.scale = scale;
                half.seen |= Half::SCALE;
            }
        } else {
            half.reach(end);
        }
        if segment.has(TcpFlags::ACK) {
            let first = !half.has(Half::ACK);
            let news = first || is_after(segment.acknowledgement, half.acknowledged);
            // What acknowledges data that was never sent is not believed.
            let possible = !peer.has(Half::SYN) || !is_after(segment.acknowledgement, peer.end);
            if possible && news {
                half.acknowledged = segment.acknowledgement;
                half.seen |= Half::ACK;
            }
            if possible && segment.acknowledgement == half.acknowledged {
                half.window = segment.window;
                half.seen &= !Half::SYN_WINDOW;
                if segment.has(TcpFlags::SYN) {
                    half.seen |= Half::SYN_WINDOW;
                }
            }
        }
    }
}

const fn half_closed_by(side: Side) -> TcpState {
    match side {
        Side::Internal => TcpState::FinOut,
        Side::External => TcpState::FinIn,
    }
}

/// Whether sequence number `a` comes after `b` (RFC 9293 section 3.4).
const fn is_after(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance < 1 << 31
}
