//! Rankings under simulated time.

use super::*;

fn bytes(bytes: u64) -> Tally {
    Tally { bytes, packets: 1, sessions: 0, ports: 0 }
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

fn ranked(talkers: &mut Talkers, now: Instant, window: Window) -> Vec<(Ipv4Addr, u64)> {
    let top = talkers.top(now, window, Measure::Bytes, 10);
    top.internal.iter().map(|talker| (talker.address, talker.tally.bytes)).collect()
}

const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

#[test]
fn whoever_had_most_comes_first_with_all_that_it_had() {
    let mut talkers = Talkers::default();
    for (last, amount) in [(1, 100), (2, 500), (1, 200), (3, 50)] {
        talkers.add(at(1), address(last), REMOTE, bytes(amount));
    }
    let expected = [(address(2), 500), (address(1), 300), (address(3), 50)];
    assert_eq!(ranked(&mut talkers, at(2), Window::Minute), expected);
    let top = talkers.top(at(2), Window::Hour, Measure::Packets, 1);
    assert_eq!((top.internal[0].address, top.internal[0].tally.packets), (address(1), 2));
    assert_eq!(top.internal[0].error, 0, "few are counted exactly");
}

#[test]
fn remotes_are_counted_by_their_network() {
    let mut talkers = Talkers::default();
    for last in 1..=9 {
        talkers.add(at(1), address(1), Ipv4Addr::new(198, 51, 100, last), bytes(10));
    }
    talkers.add(at(1), address(1), Ipv4Addr::new(203, 0, 113, 1), bytes(80));
    let top = talkers.top(at(1), Window::Minute, Measure::Bytes, 10).remote;
    let networks: Vec<_> = top.iter().map(|talker| (talker.address, talker.tally.bytes)).collect();
    assert_eq!(networks, [([198, 51, 100, 0].into(), 90), ([203, 0, 113, 0].into(), 80)]);
}

#[test]
fn the_minute_forgets_after_a_minute_and_the_hour_after_an_hour() {
    let mut talkers = Talkers::default();
    talkers.add(at(0), address(1), REMOTE, bytes(100));
    talkers.add(at(45), address(2), REMOTE, bytes(10));
    assert_eq!(ranked(&mut talkers, at(46), Window::Minute), [(address(1), 100), (address(2), 10)]);
    assert_eq!(ranked(&mut talkers, at(75), Window::Minute), [(address(2), 10)]);
    assert_eq!(ranked(&mut talkers, at(200), Window::Minute), []);
    let both = [(address(1), 100), (address(2), 10)];
    assert_eq!(ranked(&mut talkers, at(200), Window::Hour), both);
    assert_eq!(ranked(&mut talkers, at(3_290), Window::Hour), both);
    assert_eq!(ranked(&mut talkers, at(4_000), Window::Hour), []);
}

#[test]
fn a_long_silence_leaves_nothing_behind() {
    let mut talkers = Talkers::default();
    talkers.add(at(0), address(1), REMOTE, bytes(100));
    assert_eq!(ranked(&mut talkers, at(1_000_000), Window::Hour), []);
    talkers.add(at(1_000_001), address(2), REMOTE, bytes(7));
    assert_eq!(ranked(&mut talkers, at(1_000_050), Window::Minute), [(address(2), 7)]);
    assert_eq!(ranked(&mut talkers, at(1_000_070), Window::Minute), []);
}

#[test]
fn a_heavy_one_is_found_among_very_many_and_its_error_is_told() {
    let mut talkers = Talkers::default();
    let mut whole = 0;
    for round in 0..100_000_u32 {
        let crowd = Ipv4Addr::from_bits(0x0a01_0000 + round);
        talkers.add(at(1), crowd, REMOTE, bytes(10));
        whole += 10;
        if round % 10 == 0 {
            talkers.add(at(1), address(1), REMOTE, bytes(20));
            whole += 20;
        }
    }
    let first = talkers.top(at(1), Window::Minute, Measure::Bytes, 1).internal[0];
    assert_eq!(first.address, address(1));
    assert!(first.tally.bytes >= 200_000 && first.tally.bytes - first.error <= 200_000, "{first:?}");
    assert!(first.error <= whole / 64, "{first:?}");
}

#[test]
fn memory_is_bounded_whatever_the_number_of_addresses() {
    let mut talkers = Talkers::default();
    for second in 0..7_200 {
        for part in 0..300_u32 {
            let crowd = Ipv4Addr::from_bits(part.wrapping_mul(0x9e37_79b9) ^ second);
            talkers.add(at(second.into()), crowd, crowd, Tally { bytes: 1, packets: 1, sessions: 1, ports: 1 });
        }
    }
    assert!(talkers.internal.memory() + talkers.remote.memory() < 1 << 20, "a mebibyte");
}
