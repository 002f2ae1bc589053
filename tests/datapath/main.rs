//! The datapaths between network namespaces: real sockets on both sides, the engine in the middle.
//!
//! Needs root, iproute2, ethtool and ping. Each test makes its own namespaces and takes them away again.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what is wrong in a test is to fail it"
)]

mod namespaces;
mod queues;
mod reconfigure;
#[allow(clippy::cast_possible_truncation, reason = "numbers of hosts and sessions")]
mod stress;
#[allow(clippy::cast_possible_truncation, clippy::wrong_self_convention, reason = "as where it is used most")]
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use egret::datapath::{
    Choice, Config, Handle, SessionFilter, Snapshot, Worker, XdpConfig, default_route_interface, interfaces,
    spawn,
};
use egret::nat::{self, ExternalAddress, FilteringBehaviour};
use egret::wire::Protocol;
use namespaces::Lab;

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// client 10.0.1.10 -- 10.0.1.1 nat 192.0.2.10 -- 192.0.2.1 server 198.51.100.10
fn two_armed() -> Lab {
    let lab = Lab::new(&["client", "nat", "server"]);
    lab.veth(("client", "eth0"), ("nat", "int"));
    lab.veth(("server", "eth0"), ("nat", "ext"));
    lab.ip("client", "addr add 10.0.1.10/24 dev eth0");
    lab.ip("client", "route add default via 10.0.1.1");
    lab.ip("nat", "addr add 10.0.1.1/24 dev int");
    lab.ip("nat", "addr add 192.0.2.10/24 dev ext");
    lab.ip("nat", "route add default via 192.0.2.1");
    lab.ip("server", "addr add 192.0.2.1/24 dev eth0");
    lab.ip("server", "addr add 198.51.100.10/32 dev lo");
    lab.sysctl("nat", "net.ipv4.ip_local_port_range", "61000 65535");
    lab
}

/// Clients 10.0.1.10 and .11, NAT host 192.0.2.10 and server 198.51.100.10, each on a port of a router that sends the
/// clients' packets for elsewhere to the NAT host.
fn one_armed() -> Lab {
    let lab = Lab::new(&["client", "other", "router", "nat", "server"]);
    lab.ip("router", "link add subnet type bridge");
    lab.ip("router", "link set subnet up");
    for (name, address) in [("client", "10.0.1.10/24"), ("other", "10.0.1.11/24")] {
        lab.veth((name, "eth0"), ("router", name));
        lab.ip("router", &format!("link set {name} master subnet"));
        lab.ip(name, &format!("addr add {address} dev eth0"));
        lab.ip(name, "route add default via 10.0.1.1");
    }
    lab.veth(("nat", "eth0"), ("router", "nat"));
    lab.veth(("server", "eth0"), ("router", "server"));
    lab.ip("router", "addr add 10.0.1.1/24 dev subnet");
    lab.ip("router", "addr add 192.0.2.1/24 dev nat");
    lab.ip("router", "addr add 198.51.100.1/24 dev server");
    lab.wait_up("router", "subnet");
    lab.ip("router", "rule add iif subnet lookup 100");
    lab.ip("router", "route add default via 192.0.2.10 table 100");
    lab.ip("nat", "addr add 192.0.2.10/24 dev eth0");
    lab.ip("nat", "route add default via 192.0.2.1");
    lab.ip("server", "addr add 198.51.100.10/24 dev eth0");
    lab.ip("server", "route add default via 198.51.100.1");
    lab.sysctl("router", "net.ipv4.ip_forward", "1");
    lab
}

fn two_armed_for(datapath: Choice) -> Lab {
    let lab = two_armed();
    for name in ["client", "server"] {
        fit(&lab, datapath, name, "eth0");
    }
    lab
}

fn one_armed_for(datapath: Choice) -> Lab {
    let lab = one_armed();
    fit(&lab, datapath, "router", "nat");
    lab
}

/// What XDP on veth wants of the other end: whole checksums, frames of a usual length, and a program of its own.
fn fit(lab: &Lab, datapath: Choice, name: &str, interface: &str) {
    if datapath == Choice::Xdp {
        let object = concat!(env!("OUT_DIR"), "/lab.bpf.o");
        lab.command(name, &format!("ethtool -K {interface} tx off sg off tso off gso off gro off"));
        lab.command(name, &format!("ip link set {interface} xdpdrv obj {object} program pass"));
    }
}

fn start(lab: &Lab, datapath: Choice, external: &'static str, internal: &'static str) -> Worker {
    lab.run("nat", move || {
        let all = interfaces();
        let named =
            |name: &str| all.iter().find(|interface| interface.name == name).expect("it was made").clone();
        let engine = nat::Config {
            internal: vec!["10.0.0.0/16".parse().expect("a prefix")],
            external_addresses: vec![ExternalAddress { private: EXTERNAL, public: Some(PUBLIC) }],
            filtering: FilteringBehaviour::EndpointIndependent,
            ..nat::Config::default()
        };
        let config = Config {
            external: named(external),
            internal: named(internal),
            bypass: vec!["10.0.0.0/16".parse().expect("a prefix")],
            datapath,
            xdp: XdpConfig::default(),
        };
        spawn(config, engine, Box::new(nat::NoTargets)).expect("the worker starts")
    })
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn snapshot(handle: &Handle) -> Snapshot {
    block_on(handle.snapshot()).expect("the worker runs")
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_ready(handle: &Handle) {
    let mut reasons = Vec::new();
    wait_for("ready", || {
        let now = snapshot(handle).not_ready;
        if now != reasons {
            println!("not ready: {now:?}");
            reasons = now;
        }
        reasons.is_empty()
    });
}

/// A TCP server that sends back what it gets; gives its address, and who connected.
fn echo_server(lab: &Lab) -> (SocketAddr, std::thread::JoinHandle<SocketAddr>) {
    let listener = lab.run("server", || TcpListener::bind((SERVER, 0)).expect("a free port"));
    let address = listener.local_addr().expect("bound");
    let thread = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("a client");
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stream.read(&mut buffer).expect("readable") {
                0 => return peer,
                count => stream.write_all(&buffer[..count]).expect("writable"),
            }
        }
    });
    (address, thread)
}

/// Sends megabytes there and back, and compares.
fn transfer(lab: &Lab, server: SocketAddr) {
    lab.run("client", move || {
        let began = Instant::now();
        let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).expect("a connection");
        assert!(began.elapsed() < Duration::from_millis(900), "the first packet was lost");
        stream.set_read_timeout(Some(TIMEOUT)).expect("settable");
        let sent: Vec<u8> = (0..8_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut received = vec![0; sent.len()];
        let mut writer = stream.try_clone().expect("clonable");
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&sent).expect("writable"));
            stream.read_exact(&mut received).expect("readable");
        });
        assert!(received == sent, "the data changed on its way");
    });
}

fn udp(lab: &Lab, name: &str, address: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = lab.run(name, move || UdpSocket::bind(address).expect("a free port"));
    socket.set_read_timeout(Some(TIMEOUT)).expect("settable");
    socket
}

/// As `recv_from`, which a process that is stopped and goes on does not do by itself (signal(7)).
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// One datagram there and one back; gives the client as the server saw it.
fn exchange(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 100];
    for socket in [client, server] {
        socket.set_read_timeout(Some(TIMEOUT)).expect("settable");
    }
    client.send_to(b"question", server.local_addr().expect("bound")).expect("sendable");
    let (_, seen) = receive(server, &mut buffer).expect("the question comes");
    server.send_to(b"answer", seen).expect("sendable");
    let (count, from) = receive(client, &mut buffer).expect("the answer comes");
    assert_eq!((&buffer[..count], from), (&b"answer"[..], server.local_addr().expect("bound")));
    seen
}

/// Enough of them for the fast path to carry the session, where there is one.
fn exchange_for_a_while(client: &UdpSocket, server: &UdpSocket) {
    for _ in 0..10 {
        exchange(client, server);
    }
}

/// As many flows are in the fast path, where there is one.
fn assert_carried(worker: &Worker, flows: u32) {
    if let Some(fast_path) = snapshot(&worker.handle()).fast_path {
        assert_eq!(fast_path.flows, flows);
    }
}

/// For what is to come.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For what is to become true.
const DEADLINE: Duration = Duration::from_secs(30);

/// Makes of a function a test of each datapath.
macro_rules! on_both_datapaths {
    ($($test:ident,)*) => {
        mod af_packet {
            $(#[test] fn $test() { super::$test(super::Choice::AfPacket); })*
        }
        mod xdp {
            $(#[test] fn $test() { super::$test(super::Choice::Xdp); })*
        }
    };
}

on_both_datapaths! {
    plain_frames_pass_between_two_interfaces,
    one_interface_serves_both_sides,
    clients_reach_each_other_by_the_public_address,
    traffic_of_the_host_itself_is_untouched_and_unseen,
    kernel_answers_on_nats_ports_only_when_the_worker_has_stopped,
    neighbour_that_moves_is_followed,
    frames_for_a_neighbour_that_does_not_answer_are_dropped_and_counted,
    interface_that_goes_down_and_up_is_used_again,
    interface_that_is_replaced_is_found_by_its_name,
    missing_address_and_route_are_named,
    address_that_the_host_was_just_given_is_not_called_missing,
    reconfiguring_moves_ports_between_nat_and_host,
}

#[test]
fn super_frames_pass_between_two_interfaces() {
    let lab = two_armed();
    let worker = start(&lab, Choice::AfPacket, "ext", "int");
    let (address, server) = echo_server(&lab);
    transfer(&lab, address);
    assert_eq!(server.join().expect("no panic").ip(), EXTERNAL);
    let counters = snapshot(&worker.handle());
    let traffic = counters.counters.out_to_external;
    assert!(traffic.bytes / traffic.packets > 3000, "super-frames stay in one piece: {traffic:?}");
    assert_eq!(counters.datapath.unresolved_dropped, 0);
    assert_eq!(counters.datapath.receive_malformed, 0);
    worker.stop().expect("a clean end");
}

fn plain_frames_pass_between_two_interfaces(datapath: Choice) {
    let lab = two_armed_for(datapath);
    for (name, interface) in [("client", "eth0"), ("server", "eth0"), ("nat", "ext"), ("nat", "int")] {
        lab.command(name, &format!("ethtool -K {interface} tx off rx off sg off tso off gso off gro off"));
    }
    let worker = start(&lab, datapath, "ext", "int");
    let (address, server) = echo_server(&lab);
    transfer(&lab, address);
    assert_eq!(server.join().expect("no panic").ip(), EXTERNAL);
    worker.stop().expect("a clean end");
}

#[test]
fn super_frames_are_cut_where_the_interface_cannot() {
    let lab = two_armed();
    lab.command("nat", "ethtool -K ext tx off tso off gso off");
    let worker = start(&lab, Choice::AfPacket, "ext", "int");
    let (address, server) = echo_server(&lab);
    transfer(&lab, address);
    assert_eq!(server.join().expect("no panic").ip(), EXTERNAL);
    worker.stop().expect("a clean end");
}

fn one_interface_serves_both_sides(datapath: Choice) {
    let lab = one_armed_for(datapath);
    let worker = start(&lab, datapath, "eth0", "eth0");
    wait_ready(&worker.handle());
    let (address, server) = echo_server(&lab);
    transfer(&lab, address);
    assert_eq!(server.join().expect("no panic").ip(), EXTERNAL);
    lab.command("client", &format!("ping -c 1 -W 10 {SERVER}"));

    let page = block_on(worker.handle().scan_sessions(
        0,
        SessionFilter { protocol: Some(Protocol::TCP), port: Some(address.port()), ..SessionFilter::default() },
    ))
    .expect("the worker runs");
    assert_eq!(page.records.len(), 1);
    assert_eq!((page.records[0].internal.address, page.records[0].external.address), (CLIENT, EXTERNAL));
    worker.stop().expect("a clean end");
}

fn clients_reach_each_other_by_the_public_address(datapath: Choice) {
    let lab = one_armed_for(datapath);
    let worker = start(&lab, datapath, "eth0", "eth0");
    let client = udp(&lab, "client", (CLIENT, 4000));
    let server = udp(&lab, "server", (SERVER, 4000));
    let mapped = exchange(&client, &server);
    for external in [PUBLIC, EXTERNAL] {
        let other = udp(&lab, "other", (Ipv4Addr::new(10, 0, 1, 11), 5000));
        other.send_to(b"hello", (external, mapped.port())).expect("sendable");
        let mut buffer = [0; 100];
        let (count, from) = receive(&client, &mut buffer).expect("it comes");
        assert_eq!(&buffer[..count], b"hello");
        assert!(!from.ip().to_string().starts_with("10."), "hairpinned with the external source: {from}");
    }
    worker.stop().expect("a clean end");
}

fn traffic_of_the_host_itself_is_untouched_and_unseen(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    wait_ready(&worker.handle());
    // In: a listener outside of the port range, from both sides, and ping. Out: an ephemeral port.
    for (name, target) in [("server", EXTERNAL), ("client", Ipv4Addr::new(10, 0, 1, 1))] {
        let listener = lab.run("nat", || TcpListener::bind("0.0.0.0:22").expect("a free port"));
        lab.run(name, move || TcpStream::connect_timeout(&(target, 22).into(), TIMEOUT).expect("a connection"));
        drop(listener);
        lab.command(name, &format!("ping -c 1 -W 10 {target}"));
    }
    let (address, server) = echo_server(&lab);
    lab.run("nat", move || drop(TcpStream::connect_timeout(&address, TIMEOUT).expect("a connection")));
    server.join().expect("no panic");
    assert_eq!(snapshot(&worker.handle()).datapath.received, 0, "the worker was woken for nothing");
    // The host's own ping is answered; the worker may see the reply, and lets it be.
    lab.command("nat", &format!("ping -c 1 -W 10 {SERVER}"));
    worker.stop().expect("a clean end");
}

fn kernel_answers_on_nats_ports_only_when_the_worker_has_stopped(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    let refused = |wait: Duration| {
        let socket = udp(&lab, "server", (SERVER, 0));
        socket.connect((EXTERNAL, 5000)).expect("a route");
        socket.set_read_timeout(Some(wait)).expect("settable");
        socket.send(b"anyone?").expect("sendable");
        socket.recv(&mut [0; 10]).expect_err("nobody answers").kind() == std::io::ErrorKind::ConnectionRefused
    };
    assert!(!refused(Duration::from_millis(300)), "the kernel answered for NAT");
    let handle = worker.handle();
    let began = Instant::now();
    worker.stop().expect("a clean end");
    assert!(began.elapsed() < TIMEOUT);
    // A command that another test starts just now has a copy of all that was open until it runs.
    wait_for("the filter to be gone", || refused(Duration::from_millis(300)));
    block_on(handle.stopped());
    assert!(block_on(handle.snapshot()).is_err());
}

fn neighbour_that_moves_is_followed(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    let client = udp(&lab, "client", (CLIENT, 4000));
    let server = udp(&lab, "server", (SERVER, 4000));
    exchange_for_a_while(&client, &server);
    assert_carried(&worker, 2);
    lab.ip("server", "link set eth0 address 02:00:00:00:00:99");
    // It makes itself known by asking for us.
    lab.ip("server", "neigh flush dev eth0");
    lab.command("server", &format!("ping -c 1 -W 10 {EXTERNAL}"));
    // The kernel knows; the worker may not have been told yet.
    server.set_read_timeout(Some(Duration::from_millis(200))).expect("settable");
    wait_for("the new address", || {
        client.send_to(b"there?", (SERVER, 4000)).expect("sendable");
        server.recv_from(&mut [0; 10]).is_ok()
    });
    exchange(&client, &server);
    worker.stop().expect("a clean end");
}

fn frames_for_a_neighbour_that_does_not_answer_are_dropped_and_counted(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    let client = udp(&lab, "client", (CLIENT, 4000));
    client.send_to(b"anyone?", "192.0.2.77:9").expect("sendable");
    wait_for("the drop", || snapshot(&worker.handle()).datapath.unresolved_dropped == 1);
    worker.stop().expect("a clean end");
}

fn interface_that_goes_down_and_up_is_used_again(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    let handle = worker.handle();
    wait_ready(&handle);
    lab.ip("nat", "link set ext down");
    wait_for("not ready", || snapshot(&handle).not_ready.iter().any(|reason| reason.contains("ext is down")));
    lab.ip("nat", "link set ext up");
    lab.wait_up("server", "eth0");
    lab.ip("nat", "route add default via 192.0.2.1");
    wait_ready(&handle);
    exchange(&udp(&lab, "client", (CLIENT, 4000)), &udp(&lab, "server", (SERVER, 4000)));
    worker.stop().expect("a clean end");
}

fn interface_that_is_replaced_is_found_by_its_name(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    let handle = worker.handle();
    wait_ready(&handle);
    let client = udp(&lab, "client", (CLIENT, 4000));
    let server = udp(&lab, "server", (SERVER, 4000));
    exchange_for_a_while(&client, &server);
    assert_carried(&worker, 2);
    lab.ip("nat", "link del ext");
    wait_for("not ready", || {
        snapshot(&handle).not_ready.iter().any(|reason| reason.contains("ext is missing"))
    });
    lab.veth(("server", "eth0"), ("nat", "ext"));
    fit(&lab, datapath, "server", "eth0");
    lab.ip("server", "addr add 192.0.2.1/24 dev eth0");
    lab.ip("nat", "addr add 192.0.2.10/24 dev ext");
    lab.ip("nat", "route add default via 192.0.2.1");
    wait_ready(&handle);
    exchange_for_a_while(&client, &server);
    assert_carried(&worker, 2);
    worker.stop().expect("a clean end");
}

fn missing_address_and_route_are_named(datapath: Choice) {
    let lab = two_armed_for(datapath);
    lab.ip("nat", "addr del 192.0.2.10/24 dev ext");
    let worker = start(&lab, datapath, "ext", "int");
    let reasons = snapshot(&worker.handle()).not_ready;
    assert!(reasons.iter().any(|reason| reason.contains("192.0.2.10 is not on interface ext")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("no default route")), "{reasons:?}");
    worker.stop().expect("a clean end");
}

/// Looks at the host are rationed: while they are, the worker has to be told.
fn address_that_the_host_was_just_given_is_not_called_missing(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    let handle = worker.handle();
    wait_ready(&handle);
    for last in 101..=120 {
        let given = ExternalAddress { private: [192, 0, 2, last].into(), public: None };
        lab.ip("nat", &format!("addr add {}/32 dev ext", given.private));
        let config = nat::Config {
            internal: vec!["10.0.0.0/16".parse().expect("a prefix")],
            external_addresses: vec![given],
            ..nat::Config::default()
        };
        block_on(handle.reconfigure(config, Vec::new()))
            .expect("the worker runs")
            .expect("a good configuration");
        let reasons = snapshot(&handle).not_ready;
        assert!(!reasons.iter().any(|reason| reason.contains("is not on interface")), "{reasons:?}");
    }
    worker.stop().expect("a clean end");
}

#[test]
fn default_route_with_the_lowest_metric_names_the_interface() {
    let lab = two_armed();
    lab.ip("nat", "route add default via 10.0.1.10 metric 50");
    assert_eq!(lab.run("nat", || default_route_interface().expect("readable")), Some("ext".to_owned()));
    lab.ip("nat", "route del default via 192.0.2.1");
    assert_eq!(lab.run("nat", || default_route_interface().expect("readable")), Some("int".to_owned()));
    lab.ip("nat", "route del default via 10.0.1.10");
    assert_eq!(lab.run("nat", || default_route_interface().expect("readable")), None);
}

fn reconfiguring_moves_ports_between_nat_and_host(datapath: Choice) {
    let lab = two_armed_for(datapath);
    let worker = start(&lab, datapath, "ext", "int");
    let handle = worker.handle();
    let host = udp(&lab, "nat", (EXTERNAL, 5000));
    host.set_read_timeout(Some(Duration::from_millis(300))).expect("settable");
    let server = udp(&lab, "server", (SERVER, 0));
    server.send_to(b"for NAT", (EXTERNAL, 5000)).expect("sendable");
    assert!(host.recv(&mut [0; 10]).is_err(), "it is NAT's port");
    let config = nat::Config {
        internal: vec!["10.0.0.0/16".parse().expect("a prefix")],
        external_addresses: vec![EXTERNAL.into()],
        excluded_ports: vec![(Protocol::UDP, 5000)],
        ..nat::Config::default()
    };
    block_on(handle.reconfigure(config, Vec::new())).expect("the worker runs").expect("a good configuration");
    host.set_read_timeout(Some(TIMEOUT)).expect("settable");
    server.send_to(b"for us", (EXTERNAL, 5000)).expect("sendable");
    receive(&host, &mut [0; 10]).expect("it is the host's port now");
    worker.stop().expect("a clean end");
}
