//! The virtio-net header that every frame of the packet socket begins with (virtio 1.2, 5.1.6; `PACKET_VNET_HDR` of
//! `packet(7)`).
//!
//! Refuses super-frames of any kind but TCP over IPv4 and UDP over IPv4: the engine cannot account for them.

use std::num::NonZeroU16;

use crate::wire::Offload;

/// The header, in the byte order of the host, as packet sockets have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    header_length: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VnetHeader {
    pub const BYTES: usize = 10;

    #[must_use]
    pub fn read(bytes: [u8; Self::BYTES]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            header_length: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            checksum_start: u16::from_ne_bytes([s0, s1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// As [`Self::read`], of a frame that has had a tag of four bytes in its Ethernet header.
    #[must_use]
    pub fn received(bytes: [u8; Self::BYTES]) -> Self {
        let header = Self::read(bytes);
        let [header_length, checksum_start] =
            [header.header_length, header.checksum_start].map(|length| length.saturating_sub(TAG));
        Self { header_length, checksum_start, ..header }
    }

    #[must_use]
    pub fn bytes(self) -> [u8; Self::BYTES] {
        let [h0, h1] = self.header_length.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// What the engine must know of it; `None` for a super-frame of a kind that it does not. `transport` is where
    /// the transport header begins, in bytes from the Ethernet header on.
    #[must_use]
    pub fn offload(self, transport: usize) -> Option<Offload> {
        let partial = self.flags & NEEDS_CHECKSUM != 0;
        // Further in, it is that of a packet in a tunnel: payload to us.
        let ours = usize::from(self.checksum_start) == transport;
        let segment_size = match self.gso_type & !GSO_ECN {
            GSO_NONE => None,
            // The header cannot say that a super-frame is one within a tunnel.
            GSO_TCPV4 | GSO_UDP_L4 if partial && !ours => return None,
            GSO_TCPV4 | GSO_UDP_L4 => Some(NonZeroU16::new(self.gso_size)?),
            _ => return None,
        };
        Some(Offload { partial_checksum: partial && ours, segment_size })
    }

    /// The header to send the translated frame with. Headers neither move nor grow in translation, so the place of
    /// the checksum stays.
    /// `before` is what [`Self::offload`] gave, `offload` what the engine left of it.
    #[must_use]
    pub fn translated(self, before: Offload, offload: Offload) -> Self {
        let mut header = Self::default();
        let completed = before.partial_checksum && !offload.partial_checksum;
        if self.flags & NEEDS_CHECKSUM != 0 && !completed {
            header.flags = NEEDS_CHECKSUM;
            header.checksum_start = self.checksum_start;
            header.checksum_offset = self.checksum_offset;
        }
        if let Some(size) = offload.segment_size {
            header.gso_type = self.gso_type;
            header.gso_size = size.get();
            // What the kernel lays out linearly, the rest being pages; received, it is whatever the driver did.
            header.header_length = self.header_length.min(LINEAR_BYTES);
        }
        header
    }
}

const TAG: u16 = 4;

// linux/virtio_net.h
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Ethernet, IPv4 without options, and the longest TCP header.
const LINEAR_BYTES: u16 = 14 + 20 + 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn received(flags: u8, gso_type: u8, gso_size: u16) -> VnetHeader {
        VnetHeader { flags, gso_type, header_length: 2962, gso_size, checksum_start: 34, checksum_offset: 16 }
    }

    #[test]
    fn bytes_are_read_back_as_written() {
        let header = received(NEEDS_CHECKSUM, GSO_TCPV4, 1448);
        assert_eq!(VnetHeader::read(header.bytes()), header);
    }

    #[test]
    fn tag_that_is_gone_does_not_count() {
        let header = received(NEEDS_CHECKSUM, GSO_TCPV4, 1448);
        let tagged = VnetHeader { header_length: header.header_length + 4, checksum_start: 38, ..header };
        assert_eq!(VnetHeader::received(tagged.bytes()), header);
    }

    #[test]
    fn plain_frame_goes_out_plain() {
        let header = received(2 /* DATA_VALID */, GSO_NONE, 0);
        let offload = header.offload(34).expect("known");
        assert_eq!(offload, Offload::default());
        assert_eq!(header.translated(offload, offload), VnetHeader::default());
    }

    #[test]
    fn partial_checksum_keeps_its_place() {
        let header = received(NEEDS_CHECKSUM, GSO_NONE, 0);
        let offload = header.offload(34).expect("known");
        let sent = header.translated(offload, offload);
        assert_eq!((sent.flags, sent.checksum_start, sent.checksum_offset), (NEEDS_CHECKSUM, 34, 16));
        assert_eq!(sent.gso_type, GSO_NONE);
    }

    #[test]
    fn checksum_that_the_engine_completed_is_left_alone() {
        let header = received(NEEDS_CHECKSUM, GSO_NONE, 0);
        let before = header.offload(34).expect("known");
        assert_eq!(header.translated(before, Offload::default()), VnetHeader::default());
    }

    #[test]
    fn checksum_within_a_tunnel_is_left_to_the_kernel() {
        let mut header = received(NEEDS_CHECKSUM, GSO_NONE, 0);
        header.checksum_start = 84;
        let offload = header.offload(34).expect("known");
        assert!(!offload.partial_checksum);
        let sent = header.translated(offload, offload);
        assert_eq!((sent.flags, sent.checksum_start), (NEEDS_CHECKSUM, 84));
        header.gso_type = GSO_TCPV4;
        header.gso_size = 1400;
        assert_eq!(header.offload(34), None);
    }

    #[test]
    fn super_frame_takes_the_segment_size_that_the_engine_chose() {
        let header = received(NEEDS_CHECKSUM, GSO_TCPV4 | GSO_ECN, 8948);
        let mut offload = header.offload(34).expect("known");
        assert_eq!(offload.segment_size, NonZeroU16::new(8948));
        offload.segment_size = NonZeroU16::new(1448);
        let sent = header.translated(header.offload(34).expect("known"), offload);
        assert_eq!((sent.gso_type, sent.gso_size), (GSO_TCPV4 | GSO_ECN, 1448));
        assert!(sent.header_length <= LINEAR_BYTES);
    }

    #[test]
    fn unknown_super_frames_are_refused() {
        assert_eq!(received(NEEDS_CHECKSUM, 4 /* TCPV6 */, 1440).offload(34), None);
        assert_eq!(received(NEEDS_CHECKSUM, 3 /* UDP fragmentation */, 1480).offload(34), None);
        assert_eq!(received(NEEDS_CHECKSUM, GSO_UDP_L4, 0).offload(34), None);
    }
}
