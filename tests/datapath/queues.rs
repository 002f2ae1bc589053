//! Interfaces with several queues, under XDP: each queue has a socket of its own.

use std::time::Duration;

use egret::datapath::{Choice, Config, Worker, XdpConfig, interfaces, spawn};
use egret::nat::{self, ExternalAddress};

use crate::namespaces::Lab;
use crate::{CLIENT, EXTERNAL, SERVER, receive, snapshot, two_armed, udp, wait_for, wait_ready};

/// The four ends of the two links.
const ENDS: [(&str, &str); 4] = [("client", "eth0"), ("nat", "int"), ("nat", "ext"), ("server", "eth0")];

/// Peers complete their checksums, and have a program that passes.
fn lab() -> Lab {
    let lab = two_armed();
    for (name, interface) in ENDS {
        lab.command(name, &format!("ethtool -K {interface} tx off sg off tso off gso off gro off"));
    }
    for name in ["client", "server"] {
        let object = concat!(env!("OUT_DIR"), "/lab.bpf.o");
        lab.command(name, &format!("ip link set eth0 xdpdrv obj {object} program pass"));
    }
    lab
}

/// Every end receives and sends by so many queues. veth wants each that is sent by to be received by as well.
fn set_queues(lab: &Lab, count: u32) {
    for kind in ["rx", "tx"] {
        for (name, interface) in ENDS {
            lab.command(name, &format!("ethtool -L {interface} {kind} {count}"));
        }
    }
    wait_up(lab);
}

/// The number of queues is changed without a carrier.
fn wait_up(lab: &Lab) {
    for (name, interface) in ENDS {
        lab.wait_up(name, interface);
    }
}

fn start(lab: &Lab) -> Worker {
    let worker = lab.run("nat", || {
        let all = interfaces();
        let named = |name: &str| all.iter().find(|interface| interface.name == name).expect("made").clone();
        let engine = nat::Config {
            internal: vec!["10.0.0.0/16".parse().expect("a prefix")],
            external_addresses: vec![ExternalAddress { private: EXTERNAL, public: None }],
            ..nat::Config::default()
        };
        let config = Config {
            external: named("ext"),
            internal: named("int"),
            bypass: vec!["10.0.0.0/16".parse().expect("a prefix")],
            datapath: Choice::Xdp,
            xdp: XdpConfig::default(),
        };
        spawn(config, engine, Box::new(nat::NoTargets)).expect("the worker starts")
    });
    wait_ready(&worker.handle());
    worker
}

/// Sessions of as many client ports, some of which come by each queue. Gives how many questions got no answer.
fn open_sessions(lab: &Lab, first_port: u16) -> u32 {
    let server = udp(lab, "server", (SERVER, first_port));
    let mut lost = 0;
    for port in first_port..first_port + 32 {
        let client = udp(lab, "client", (CLIENT, port));
        wait_for("an answer", || {
            let mut buffer = [0; 16];
            client.send_to(b"question", (SERVER, first_port)).expect("sendable");
            let answered = receive(&server, &mut buffer)
                .and_then(|(_, seen)| server.send_to(b"answer", seen))
                .and_then(|_| receive(&client, &mut buffer));
            lost += u32::from(answered.is_err());
            answered.is_ok()
        });
    }
    lost
}

#[test]
fn sessions_come_by_every_queue() {
    let lab = lab();
    set_queues(&lab, 2);
    let worker = start(&lab);
    assert_eq!(open_sessions(&lab, 4000), 0);
    let fast_path = snapshot(&worker.handle()).fast_path.expect("it is xdp");
    assert_eq!(fast_path.unserved, 0);
    worker.stop().expect("a clean end");
}

/// The sockets' memory has no room for them, and is made anew: the kernel lets go of the old sockets only after a while.
#[test]
fn frames_that_are_longer_than_before_pass_once_the_mtu_is_raised() {
    let lab = lab();
    set_queues(&lab, 2);
    let worker = start(&lab);
    assert_eq!(open_sessions(&lab, 4000), 0);
    for mtu in [3000, 1500, 3000] {
        for (name, interface) in ENDS {
            lab.ip(name, &format!("link set {interface} mtu {mtu}"));
        }
    }
    wait_ready(&worker.handle());
    let client = udp(&lab, "client", (CLIENT, 5000));
    let server = udp(&lab, "server", (SERVER, 5000));
    server.set_read_timeout(Some(Duration::from_millis(200))).expect("settable");
    let sent: Vec<u8> = (0..2500_u16).map(|number| number.to_be_bytes()[1]).collect();
    let mut received = vec![0; 4000];
    wait_for("the long datagram", || {
        client.send_to(&sent, (SERVER, 5000)).expect("sendable");
        server.recv_from(&mut received).is_ok_and(|(length, _)| received[..length] == sent)
    });
    assert_eq!(open_sessions(&lab, 6000), 0);
    worker.stop().expect("a clean end");
}

#[test]
fn queues_that_only_receive_are_served_by_those_that_send() {
    let lab = lab();
    set_queues(&lab, 2);
    for (name, interface) in [("nat", "int"), ("nat", "ext")] {
        lab.command(name, &format!("ethtool -L {interface} tx 1"));
    }
    wait_up(&lab);
    let worker = start(&lab);
    assert_eq!(open_sessions(&lab, 4000), 0);
    worker.stop().expect("a clean end");
}
