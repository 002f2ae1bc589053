//! Programs that we did not write, and packets made by hand, against a NAT host in a lab of its own.
//!
//! Every test builds its own lab, so that all can run at once; they need root. With `EGRET_LAB_NAT=kernel` the
//! tests that hold for any NAT run against the kernel's, to tell a fault of the lab from one of Egret.
//!
//! The same for every datapath: `tests/netns` and `tests/netns_xdp` say which, and [`crate::lab::Datapath`] what
//! that means.

mod discovery;
mod forwarding;
mod hairpinning;
mod hostile;
mod lifecycle;
mod nat_mode;
mod own_traffic;
#[path = "../support/pki.rs"]
mod pki;
mod programs;
mod sandbox;
mod talkers;
mod wire;

use crate::lab::{self, Failure, Host, Lab, Process, Result};

/// The path of one of the scripts beside this file.
pub fn script(name: &str) -> String {
    format!("{}/tests/netns/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// `python3` is Debian's own, which has scapy.
fn python(name: &str) -> String {
    format!("/usr/bin/python3 -B {}", script(name))
}

/// `sockets.py serve` on a host, once it answers.
fn serve(host: &Host, port: u16) -> Result<Process> {
    let process = host.spawn(&format!("{} serve {port}", python("sockets.py")))?;
    host.wait_listening(lab::Transport::Udp, port)?;
    host.wait_listening(lab::Transport::Tcp, port)?;
    Ok(process)
}

/// # Errors
/// If anything with a private source has come out to the internet.
fn no_leaks(lab: &Lab) -> Result {
    match lab.leaks()? {
        0 => Ok(()),
        leaks => Err(Failure::new(format!("{leaks} packets with a private source came out to the internet"))),
    }
}

/// That the lab would see what these tests say does not happen.
mod lab_itself {
    use crate::lab::{Gateway, INTERNET, Lab, Options, Result, kernel_nat};

    #[test]
    fn counts_packets_that_leak() -> Result {
        let lab = Lab::new(Options::default())?;
        // Forwarding without translating.
        lab.nat().run("sysctl -q -w net.ipv4.ip_forward=1")?;
        let ping = lab.client(1).try_run(&format!("ping -c 1 -W 1 {INTERNET}"))?;
        assert!(!ping.status.success(), "a private client was answered without a NAT: {ping}");
        assert_eq!(lab.leaks()?, 1);
        Ok(())
    }

    #[test]
    fn carries_traffic_with_the_kernels_nat() -> Result {
        for gateway in [Gateway::ElasticIp, Gateway::Routed] {
            let lab = Lab::new(Options { gateway, ..Options::default() })?;
            kernel_nat(&lab)?;
            let _server = super::serve(lab.internet(), 7000)?;
            let ask = format!("{} ask UDP {INTERNET} 7000", super::python("sockets.py"));
            let seen = lab.client(2).run(&ask)?;
            assert!(seen.starts_with(&lab.seen_address().to_string()), "the server saw {seen}");
            super::no_leaks(&lab)?;
        }
        Ok(())
    }
}
