use std::io::Write;
use std::process::{Command, Stdio};

use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use super::super::super::sys::XdpLink;
use super::*;

const ADJUST: XdpConfig = XdpConfig { adjust_mtu: true };
const KEEP: XdpConfig = XdpConfig { adjust_mtu: false };

fn combined(most: u32, present: u32) -> Channels {
    let counts = |combined| ChannelCounts { combined, ..ChannelCounts::default() };
    Channels { most: counts(most), present: counts(present) }
}

/// What is done in turn about a driver that answers so to an MTU and a number of combined channels.
fn steps(
    driver: &str,
    config: XdpConfig,
    mut mtu: u32,
    mut channels: Channels,
    answer: fn(u32, u32) -> i32,
) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        let errno = answer(mtu, channels.present.combined);
        if errno == 0 {
            return steps;
        }
        let step = Facts { errno, driver, mtu, channels }.next(config);
        steps.push(step);
        match step {
            Step::LowerMtu(lower) => mtu = lower,
            Step::SetChannels(counts) => channels.present = counts,
            Step::GiveUp(_) => return steps,
        }
    }
}

/// ENA on a machine with room for eight queues.
fn ena(mtu: u32, combined: u32) -> i32 {
    if mtu > 3498 || combined > 4 { libc::EINVAL } else { 0 }
}

#[test]
fn ena_as_it_boots_gets_a_lower_mtu_and_half_of_its_queues() {
    let half = Step::SetChannels(combined(8, 4).present);
    assert_eq!(steps("ena", ADJUST, 9001, combined(8, 8), ena), [Step::LowerMtu(3498), half]);
    assert_eq!(steps("ena", ADJUST, 1500, combined(8, 8), ena), [half]);
    assert_eq!(steps("ena", KEEP, 1500, combined(8, 8), ena), [half]);
    assert_eq!(steps("ena", KEEP, 1500, combined(8, 4), ena), []);
}

#[test]
fn queues_are_left_alone_when_the_mtu_may_not_be_lowered() {
    assert_eq!(steps("ena", KEEP, 9001, combined(8, 8), ena), [Step::GiveUp(Reason::Mtu(9001))]);
}

#[test]
fn mtu_is_lowered_no_further_than_needed() {
    let small = |mtu, _| if mtu > 3072 { libc::EINVAL } else { 0 };
    let lower = [Step::LowerMtu(3498), Step::LowerMtu(3050)];
    assert_eq!(steps("ixgbe", ADJUST, 9000, Channels::default(), small), lower);
    assert_eq!(steps("ixgbe", ADJUST, 3200, Channels::default(), small), [Step::LowerMtu(3050)]);
}

#[test]
fn driver_without_native_mode_is_given_up() {
    let none = |_, _| libc::EOPNOTSUPP;
    assert_eq!(steps("ifb", ADJUST, 1500, combined(8, 8), none), [Step::GiveUp(Reason::NoNative(1500))]);
    assert_eq!(steps("ifb", KEEP, 9000, combined(8, 8), none), [Step::GiveUp(Reason::NoNative(9000))]);
    let end = steps("ifb", ADJUST, 9000, combined(8, 8), none);
    assert_eq!(end.last(), Some(&Step::GiveUp(Reason::NoNative(1500))));
}

#[test]
fn nothing_is_changed_for_what_no_change_can_help() {
    let cases = [
        (libc::EBUSY, Reason::Busy),
        (libc::EEXIST, Reason::Busy),
        (libc::EPERM, Reason::NotPermitted),
        (libc::ERANGE, Reason::PeerMtu),
        (libc::ENOSPC, Reason::Queues),
    ];
    for (errno, reason) in cases {
        let facts = Facts { errno, driver: "veth", mtu: 9001, channels: combined(8, 8) };
        assert_eq!(facts.next(ADJUST), Step::GiveUp(reason));
    }
}

/// Runs in a network namespace of its own, with a veth pair `eth0` and `peer`. Needs root, iproute2 and clang.
fn with_veth(options: &str, test: impl FnOnce(u32) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            ip(&format!("link add eth0 {options} type veth peer name peer {options}"));
            ip("link set eth0 up");
            ip("link set peer up");
            test(nix::net::if_::if_nametoindex("eth0").expect("it was made"));
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("installed");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An XDP program that passes everything.
fn passing() -> Ebpf {
    const SOURCE: &[u8] = b"__attribute__((section(\"xdp\"), used)) int pass_all(void *frame) { return 2; }";
    let numbered = (14..=21).map(|version| format!("clang-{version}"));
    let mut names = std::env::var("CLANG").ok().into_iter().chain(["clang".to_owned()]).chain(numbered);
    let mut clang = names
        .find_map(|name| {
            Command::new(name)
                .args(["-target", "bpf", "-O2", "-g", "-x", "c", "-c", "-", "-o", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .ok()
        })
        .expect("clang is installed");
    clang.stdin.take().expect("piped").write_all(SOURCE).expect("it reads");
    let object = clang.wait_with_output().expect("it ends").stdout;
    let mut ebpf = Ebpf::load(&object).expect("an object");
    program(&mut ebpf).load().expect("the kernel takes it");
    ebpf
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut("pass_all").expect("it is there").try_into().expect("an XDP program")
}

fn native(ebpf: &mut Ebpf, index: u32) -> io::Result<XdpLink> {
    let program = program(ebpf).fd().expect("loaded").try_clone().expect("few are open");
    XdpLink::attach(program.as_fd(), index)
}

fn present(index: u32) -> Link {
    netlink::link(index).expect("readable").expect("it is there")
}

#[test]
fn program_is_attached_natively_for_as_long_as_it_is_held() {
    with_veth("", |index| {
        let mut ebpf = passing();
        let (held, adjusted) = attach(index, KEEP, || native(&mut ebpf, index)).expect("veth can");
        assert_eq!(present(index).xdp.map(|program| program.mode), Some("native"));
        assert_eq!(adjusted.mtu(), None);
        assert!(wait_running(index, Duration::from_secs(5)).expect("readable"));
        drop(held);
        assert_eq!(present(index).xdp, None);
    });
}

#[test]
fn foreign_program_is_named_and_stays() {
    for (mode, label) in [(XdpMode::Skb, "generic"), (XdpMode::Driver, "native")] {
        with_veth("", |index| {
            let mut foreign = passing();
            program(&mut foreign).attach("eth0", mode).expect("veth can");
            let before = present(index).xdp.expect("it is attached");
            let mut ebpf = passing();
            let error = attach(index, ADJUST, || native(&mut ebpf, index)).expect_err("it is refused");
            let text = error.to_string();
            assert!(text.contains(&format!("(id {}, pass_all, {label} mode)", before.id)), "{text}");
            assert_eq!(present(index).xdp, Some(before));
        });
    }
}

#[test]
fn program_that_slips_in_between_is_not_replaced() {
    with_veth("", |index| {
        let (mut foreign, mut ebpf) = (passing(), passing());
        let mut held = None;
        let result = attach(index, ADJUST, || {
            held = Some(native(&mut foreign, index)?);
            native(&mut ebpf, index)
        });
        assert!(matches!(result, Err(DriverError::Foreign { .. })), "{result:?}");
        assert_eq!(
            present(index).xdp.map(|program| program.id),
            program(&mut foreign).info().ok().map(|info| info.id())
        );
    });
}

/// Attaches, unless the MTU is above that of a driver such as ENA.
fn like_ena(ebpf: &mut Ebpf, index: u32) -> io::Result<XdpLink> {
    if present(index).mtu > 3498 {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    } else {
        native(ebpf, index)
    }
}

#[test]
fn mtu_is_lowered_if_it_may_be_and_put_back() {
    with_veth("", |index| {
        ip("link set eth0 mtu 9001");
        let mut ebpf = passing();
        let refused = attach(index, KEEP, || like_ena(&mut ebpf, index)).expect_err("it is too large");
        assert!(refused.to_string().contains("MTU of 9001"), "{refused}");
        assert_eq!(present(index).mtu, 9001);
        let (held, adjusted) = attach(index, ADJUST, || like_ena(&mut ebpf, index)).expect("lowered");
        assert_eq!((present(index).mtu, adjusted.mtu()), (3498, Some(3498)));
        drop((held, adjusted));
        assert_eq!(present(index).mtu, 9001);
    });
}

#[test]
fn mtu_that_somebody_else_changed_is_left_alone() {
    with_veth("", |index| {
        ip("link set eth0 mtu 9001");
        let mut ebpf = passing();
        let held = attach(index, ADJUST, || like_ena(&mut ebpf, index)).expect("lowered");
        ip("link set eth0 mtu 1400");
        drop(held);
        assert_eq!(present(index).mtu, 1400);
    });
}

#[test]
fn mtu_that_was_lowered_in_vain_is_put_back() {
    with_veth("", |index| {
        ip("link set eth0 mtu 9001");
        let mut tried = Vec::new();
        let result: Result<((), _), _> = attach(index, ADJUST, || {
            tried.push(present(index).mtu);
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        });
        assert!(matches!(result, Err(DriverError::Refused { reason: Reason::Other, .. })), "{result:?}");
        assert_eq!(tried, [9001, 3498, 3050, 1500]);
        assert_eq!(present(index).mtu, 9001);
    });
}

#[test]
fn peer_whose_mtu_is_too_large_is_named() {
    with_veth("", |index| {
        ip("link set eth0 mtu 9001");
        ip("link set peer mtu 9001");
        let mut ebpf = passing();
        let refused = attach(index, ADJUST, || native(&mut ebpf, index)).expect_err("it is too large");
        assert!(refused.to_string().contains("driver veth refuses native XDP on eth0: the MTU of its peer"));
        assert_eq!(present(index).mtu, 9001, "nothing was changed in vain");
        ip("link set peer mtu 3498");
        attach(index, KEEP, || native(&mut ebpf, index)).expect("that was it");
    });
}

#[test]
fn interface_without_native_mode_is_told() {
    with_veth("", |_| {
        ip("link add br0 type bridge");
        let index = nix::net::if_::if_nametoindex("br0").expect("it was made");
        let mut ebpf = passing();
        let refused = attach(index, ADJUST, || native(&mut ebpf, index)).expect_err("it has none");
        assert!(matches!(refused, DriverError::Refused { reason: Reason::NoNative(1500), .. }), "{refused:?}");
    });
}

#[test]
fn queues_are_set_and_put_back_unless_somebody_else_changed_them() {
    with_veth("numtxqueues 4 numrxqueues 4", |index| {
        let present = || sys::channels("eth0").expect("veth has them").present;
        let found = present();
        assert_eq!((found.receive, found.transmit), (4, 4));
        let set = ChannelCounts { receive: 2, transmit: 2, ..found };
        let adjust = || {
            let mut adjusted = Adjusted { interface: "eth0".to_owned(), index, mtu: None, channels: None };
            adjusted.set_channels(found, set).expect("veth can");
            assert_eq!(present(), set);
            adjusted
        };
        drop(adjust());
        assert_eq!(present(), found);
        let adjusted = adjust();
        let other = ChannelCounts { receive: 3, transmit: 3, ..found };
        sys::set_channels("eth0", other).expect("veth can");
        drop(adjusted);
        assert_eq!(present(), other);
        assert_eq!(sys::driver("eth0").expect("it has one"), "veth");
        let refused = sys::set_channels("eth0", ChannelCounts { receive: 99, ..found });
        assert_eq!(refused.expect_err("too many").raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn link_that_comes_up_is_waited_for() {
    with_veth("", |index| {
        ip("link set peer down");
        assert!(!wait_running(index, Duration::from_millis(20)).expect("readable"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_running(index, Duration::from_secs(30)));
            ip("link set peer up");
            assert!(waiting.join().expect("no panic").expect("readable"));
        });
    });
}

#[test]
fn names_that_no_interface_has_are_refused() {
    for name in ["", "nonesuch", "a-name-of-sixteen", &"x".repeat(1000)] {
        assert_eq!(sys::channels(name).expect_err("none").raw_os_error(), Some(libc::ENODEV), "{name:?}");
    }
    assert!(matches!(attach(1 << 20, KEEP, || Ok(())), Err(DriverError::NoInterface(_))));
}
