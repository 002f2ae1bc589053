//! The internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

use std::net::Ipv4Addr;

/// The one's complement sum of `bytes`, taken as big-endian 16-bit words, an odd last byte padded with zero.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut chunks = bytes.chunks_exact(4);
    let mut total: u64 = 0;
    for chunk in &mut chunks {
        total += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    fold(total + u64::from(u32::from_be_bytes(last)))
}

/// The checksum to put into a header whose checksum field is zero in `bytes`. Over bytes that contain a right
/// checksum it is 0.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The sum of the pseudo-header of TCP and UDP (RFC 9293 section 3.1), for `length` bytes of header and data.
#[must_use]
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> u16 {
    let total = u64::from(source.to_bits())
        + u64::from(destination.to_bits())
        + u64::from(protocol)
        + u64::from(length);
    fold(total)
}

/// What a set of rewritten fields does to a checksum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adjustment {
    total: u64,
}

impl Adjustment {
    /// A 16-bit field changes. It must lie at an even offset from where the checksum begins.
    pub fn word(&mut self, old: u16, new: u16) {
        self.total += u64::from(!old) + u64::from(new);
    }

    /// An address changes.
    pub fn address(&mut self, old: Ipv4Addr, new: Ipv4Addr) {
        self.total += u64::from(!old.to_bits()) + u64::from(new.to_bits());
    }

    /// The checksum after the change.
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !self.apply_to_sum(!checksum)
    }

    /// A sum that has not been inverted, after the change: what a partial checksum holds.
    #[must_use]
    pub fn apply_to_sum(self, sum: u16) -> u16 {
        fold(u64::from(sum) + self.total)
    }
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // The loop left at most 16 bits.
    #[expect(clippy::cast_possible_truncation)]
    let folded = total as u16;
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_of_the_example_in_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn odd_length_is_padded_with_zero() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x6834);
        assert_eq!(sum(&[0x12]), 0x1200);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn update_of_the_example_in_rfc_1624() {
        let mut change = Adjustment::default();
        change.word(0x5555, 0x3285);
        assert_eq!(change.apply(0xdd2f), 0x0000);
    }
}
