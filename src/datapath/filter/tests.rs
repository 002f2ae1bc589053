use aya::programs::{TestRun, TestRunOptions};

use super::super::sys::Rules;
use super::*;
use crate::datapath::classifier::Roles;
use crate::nat;

/// Runs in a network namespace of its own, which is gone afterwards. Needs root.
fn apart<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// As [`apart`], with an interface. Needs iproute2.
fn with_interface(test: impl FnOnce(&str) + Send) {
    apart(|| {
        ip("ip", "link add eth0 type veth peer name peer");
        test("eth0");
    });
}

fn ip(program: &str, arguments: &str) -> String {
    let output = std::process::Command::new(program).args(arguments.split(' ')).output().expect("installed");
    assert!(output.status.success(), "{program} {arguments}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn loaded() -> Filter {
    let config =
        nat::Config { internal: vec!["192.0.2.0/24".parse().expect("a prefix")], ..nat::Config::default() };
    let rules = ClassifierConfig::new(Roles { internal: true, external: true }, &[], &config).expect("few");
    Filter::load(&rules, &BTreeSet::new()).expect("the kernel takes it")
}

#[test]
fn filter_on_clsact_goes_when_it_is_dropped() {
    with_interface(|interface| {
        let mut filter = loaded();
        filter.divert_by_clsact(interface).expect("attached");
        assert!(ip("tc", "filter show dev eth0 ingress").contains(DIVERT));
        drop(filter);
        assert!(!ip("tc", "filter show dev eth0 ingress").contains(DIVERT));
    });
}

#[test]
fn filter_that_a_killed_process_left_behind_is_removed() {
    with_interface(|interface| {
        let mut killed = loaded();
        killed.divert_by_clsact(interface).expect("attached");
        // What SIGKILL does: nothing is undone.
        let _ = std::mem::ManuallyDrop::new(killed);
        let mut filter = loaded();
        filter.divert(interface).expect("attached");
        assert!(!ip("tc", "filter show dev eth0 ingress").contains(DIVERT));
    });
}

/// Whose a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Kernel,
    Nat,
    Both,
}

/// What both make of an IPv4 packet, which is the same.
fn owner(filters: &mut [Filter; 2], packet: &[u8]) -> Owner {
    // What is copied really is: to a loopback device that is down.
    let [few, many] = apart(|| filters.each_mut().map(|filter| owner_by(filter, packet)));
    assert_eq!(few, many, "however many addresses there are");
    few
}

/// What the program makes of an IPv4 packet, run by the kernel without any interface.
fn owner_by(filter: &mut Filter, packet: &[u8]) -> Owner {
    let (owner, frame) = filter.run(packet);
    let tagged = [&ETHERNET[..12], &TAG, &ETHERNET[12..], packet].concat();
    let expected = if owner == Owner::Nat { tagged } else { [&ETHERNET, packet].concat() };
    assert_eq!(frame, expected, "{owner:?}");
    owner
}

impl Filter {
    /// Whether the packet socket gets an IPv4 packet, if only a copy of it.
    pub(in crate::datapath) fn captures(&mut self, packet: &[u8]) -> bool {
        self.run(packet).0 != Owner::Kernel
    }

    /// What becomes of an IPv4 packet, and of its frame.
    fn run(&mut self, packet: &[u8]) -> (Owner, Vec<u8>) {
        let frame = [&ETHERNET, packet].concat();
        let mut out = vec![0; frame.len() + TAG.len()];
        // The begin of a `struct __sk_buff`, and all of it, which may grow.
        let (context, mut after) = ([[0; 4], [0; 4], MARK.to_ne_bytes()].concat(), [0; 512]);
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            ..TestRunOptions::new()
        };
        let divert = program::<SchedClassifier>(&mut self.ebpf, DIVERT).expect("loaded");
        let ran = divert.test_run(options).expect("the kernel runs it");
        let owner = match ran.return_value.cast_signed() {
            -1 => Owner::Kernel, // TC_ACT_UNSPEC
            0 => Owner::Nat,     // TC_ACT_OK
            3 => Owner::Both,    // TC_ACT_PIPE
            other => panic!("{other}"),
        };
        let mark = after[8..12].try_into().map(u32::from_ne_bytes).expect("four bytes");
        assert_eq!(mark, if owner == Owner::Nat { HANDED_OVER } else { MARK }, "{owner:?}");
        out.truncate(ran.data_size_out as usize);
        (owner, out)
    }
}

/// An IPv4 packet; `fragment` is the word of flags and offset.
fn ipv4(protocol: u8, fragment: u16, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv4Addr>().expect("an address").octets();
    let length = u16::try_from(20 + payload.len()).expect("small").to_be_bytes();
    let [high, low] = fragment.to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, high, low, 64, protocol, 0, 0];
    packet.extend(address(source));
    packet.extend(address(destination));
    packet.extend(payload);
    packet
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes(), [0; 2], [0; 2]].concat()
}

fn icmp(kind: u8, about: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], about].concat()
}

/// To the address of the loopback device, which stands in for the interface.
const ETHERNET: [u8; 14] = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 8, 0];
/// What somebody else has marked the packet with, and what `bpf/filter.bpf.c` does.
const MARK: u32 = 7;
const HANDED_OVER: u32 = 0x4547_5254;
/// What the kernel has left of the two when it comes to the socket.
const TAG: [u8; 4] = [0x88, 0xa8, 0x0f, 0xff];
const CLIENT: &str = "10.0.1.10";
const HOST: &str = "10.0.0.10";
const REMOTE: &str = "198.51.100.1";
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;

/// A host at 10.0.0.10, which is the external address, with another address 10.0.0.11; and the same with so many more that
/// these two are not among the first.
fn filter_for(roles: Roles) -> [Filter; 2] {
    let prefixes = ["10.0.0.0/16".parse().expect("a prefix")];
    let more = (1..).take(Rules::FIRST_ADDRESSES).map(|last| Ipv4Addr::new(10, 0, 0, last));
    let more: Vec<Ipv4Addr> = more.collect();
    [&[][..], &more].map(|more| {
        let external = more.iter().copied().chain(HOST.parse::<Ipv4Addr>());
        let config = nat::Config {
            internal: prefixes.to_vec(),
            external_addresses: external.map(Into::into).collect(),
            ..nat::Config::default()
        };
        let host = [HOST, "10.0.0.11"].map(|address| address.parse().expect("an address"));
        let written = ClassifierConfig::new(roles, &prefixes, &config).expect("few");
        Filter::load(&written, &BTreeSet::from(host)).expect("the kernel takes it")
    })
}

#[test]
fn packets_from_inside_are_nats_unless_they_stay_inside() {
    let mut filter = filter_for(Roles { internal: true, external: true });
    for (source, destination, expected) in [
        (CLIENT, REMOTE, Owner::Nat),
        (CLIENT, "10.0.2.1", Owner::Kernel),
        (CLIENT, "10.0.0.11", Owner::Kernel),
        (CLIENT, "224.0.0.251", Owner::Kernel),
        (CLIENT, "255.255.255.255", Owner::Kernel),
        (CLIENT, "169.254.169.254", Owner::Kernel),
        (CLIENT, "127.0.0.1", Owner::Kernel),
        ("203.0.113.1", REMOTE, Owner::Kernel),
    ] {
        for protocol in [ICMP, TCP, UDP, GRE] {
            let packet = ipv4(protocol, 0, source, destination, &ports(5000, 443));
            assert_eq!(owner(&mut filter, &packet), expected, "{protocol} {source} {destination}");
        }
    }
}

#[test]
fn packets_to_an_external_address_are_nats_by_their_port() {
    let mut filter = filter_for(Roles { internal: true, external: true });
    // From inside as well: that is hairpinning.
    for source in [REMOTE, CLIENT] {
        for (protocol, port, expected) in [
            (TCP, 22, Owner::Kernel),
            (TCP, 1024, Owner::Nat),
            (UDP, 60999, Owner::Nat),
            (UDP, 61000, Owner::Kernel),
            (GRE, 0, Owner::Nat),
            (2, 0, Owner::Kernel), // IGMP
        ] {
            let packet = ipv4(protocol, 0, source, HOST, &ports(443, port));
            assert_eq!(owner(&mut filter, &packet), expected, "{protocol} {source} {port}");
            let first = ipv4(protocol, 0x2000, source, HOST, &ports(443, port));
            assert_eq!(owner(&mut filter, &first), expected, "first fragment, {protocol} {source} {port}");
        }
        let later = ipv4(UDP, 0x2000 | 0xb9, source, HOST, &ports(443, 22));
        assert_eq!(owner(&mut filter, &later), Owner::Both, "later fragment");
    }
}

#[test]
fn options_do_not_hide_the_port() {
    let mut filter = filter_for(Roles { internal: true, external: true });
    let mut packet = ipv4(TCP, 0, REMOTE, HOST, &[&[1, 1, 1, 1][..], &ports(443, 2000)].concat());
    packet[0] = 0x46;
    assert_eq!(owner(&mut filter, &packet), Owner::Nat);
}

#[test]
fn icmp_to_an_external_address_is_told_apart() {
    let mut filter = filter_for(Roles { internal: true, external: true });
    for (kind, expected) in
        [(0, Owner::Both), (14, Owner::Both), (8, Owner::Kernel), (13, Owner::Kernel), (5, Owner::Kernel)]
    {
        let packet = ipv4(ICMP, 0, REMOTE, HOST, &icmp(kind, &[0; 28]));
        assert_eq!(owner(&mut filter, &packet), expected, "type {kind}");
    }
}

#[test]
fn icmp_errors_belong_to_who_sent_the_packet_that_they_are_about() {
    let mut filter = filter_for(Roles { internal: true, external: true });
    for (protocol, fragment, source, port, expected) in [
        (TCP, 0, HOST, 5000, Owner::Nat),
        (UDP, 0, HOST, 5000, Owner::Nat),
        (UDP, 0, HOST, 61000, Owner::Kernel),
        (UDP, 0, "10.0.0.11", 5000, Owner::Kernel),
        (UDP, 185, HOST, 61000, Owner::Both),
        (ICMP, 0, HOST, 0x0800, Owner::Both),
        (GRE, 0, HOST, 0, Owner::Nat),
    ] {
        let about = ipv4(protocol, fragment, source, REMOTE, &ports(port, 443));
        for kind in [3, 4, 11, 12] {
            let packet = ipv4(ICMP, 0, "203.0.113.1", HOST, &icmp(kind, &about));
            assert_eq!(owner(&mut filter, &packet), expected, "type {kind}, {protocol} {source} {port}");
        }
    }
}

#[test]
fn roles_limit_what_an_interface_takes() {
    let to_host = ipv4(TCP, 0, REMOTE, HOST, &ports(443, 2000));
    let from_inside = ipv4(TCP, 0, CLIENT, REMOTE, &ports(2000, 443));
    let hairpin = ipv4(TCP, 0, CLIENT, HOST, &ports(2000, 3000));
    let mut external = filter_for(Roles { internal: false, external: true });
    assert_eq!(owner(&mut external, &to_host), Owner::Nat);
    assert_eq!(owner(&mut external, &from_inside), Owner::Kernel);
    let mut internal = filter_for(Roles { internal: true, external: false });
    assert_eq!(owner(&mut internal, &to_host), Owner::Kernel);
    assert_eq!(owner(&mut internal, &from_inside), Owner::Nat);
    assert_eq!(owner(&mut internal, &hairpin), Owner::Nat);
}

#[test]
fn truncated_packets_are_the_kernels_to_drop() {
    let mut filter = filter_for(Roles { internal: true, external: true });
    let packet = ipv4(TCP, 0, REMOTE, HOST, &[1]);
    assert_eq!(owner(&mut filter, &packet), Owner::Kernel);
    let error = ipv4(ICMP, 0, REMOTE, HOST, &icmp(3, &[0x45, 0, 0]));
    assert_eq!(owner(&mut filter, &error), Owner::Kernel);
}
