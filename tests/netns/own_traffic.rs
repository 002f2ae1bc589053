//! The NAT host's own traffic, which Egret leaves alone, and NAT's traffic, which the host's kernel leaves alone.

use super::{no_leaks, python, serve};
use crate::lab::{
    Arms, Dns, Egret, INTERNET, Iperf, Lab, NAT, NAT_INTERNAL, Options, PUBLIC, Result, Transport, Web,
};

fn host_stays_reachable(arms: Arms) -> Result {
    let lab = Lab::new(Options { arms, ..Options::default() })?;
    let _web = Web::start(lab.internet(), 80)?;
    let _dns = Dns::start(lab.internet())?;
    let host = lab.nat();
    // One below the NAT port range, as SSH is, and one within it.
    let listen = |port| {
        host.spawn_with(&[
            "socat",
            "-t20",
            &format!("TCP4-LISTEN:{port},fork,reuseaddr"),
            "SYSTEM:echo the host itself",
        ])
    };
    let (_low, _within) = (listen(22)?, listen(8080)?);
    host.wait_listening(Transport::Tcp, 22)?;
    host.wait_listening(Transport::Tcp, 8080)?;
    let _egret = Egret::start(host, &lab.config(""))?;

    let mut ways = vec![(lab.client(1), NAT), (lab.client(2), NAT), (lab.internet(), PUBLIC)];
    if arms == Arms::Two {
        ways.push((lab.client(1), NAT_INTERNAL));
    }
    for (from, to) in ways {
        for port in [22, 8080] {
            let said = from.run(&format!("socat -t 20 - TCP4:{to}:{port},connect-timeout=20"))?;
            assert_eq!(said, "the host itself\n", "from {} to {to}:{port}", from.role);
        }
        let ping = from.run(&format!("ping -c 2 -i 0.2 -W 2 {to}"))?;
        assert!(ping.contains(" 0% packet loss"), "from {}: {ping}", from.role);
    }

    let seen = host.run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    assert!(seen.starts_with(&format!("{PUBLIC}:")), "{seen}");
    for transport in ["+notcp", "+tcp"] {
        let answer = host.run(&format!("dig {transport} +short +tries=3 @{INTERNET} www.example"))?;
        assert_eq!(answer.trim(), INTERNET.to_string());
    }
    let ping = host.run(&format!("ping -c 2 -i 0.2 -W 2 {INTERNET}"))?;
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    let ping = host.run(&format!("ping -c 2 -i 0.2 -W 2 -s 4000 {}", Lab::client_address(1)))?;
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    no_leaks(&lab)
}

#[test]
fn host_stays_reachable_and_reaches_out_one_armed() -> Result {
    host_stays_reachable(Arms::One)
}

#[test]
fn host_stays_reachable_and_reaches_out_two_armed() -> Result {
    host_stays_reachable(Arms::Two)
}

#[test]
fn broadcasts_like_dhcps_reach_the_host() -> Result {
    let lab = Lab::new(Options::default())?;
    let _egret = Egret::start(lab.nat(), &lab.config(""))?;
    let mut client = lab.nat().spawn("socat -u UDP4-RECV:68,reuseaddr STDOUT")?;
    lab.nat().wait_listening(Transport::Udp, 68)?;
    lab.router().shell(
        "echo an offer | socat -u - UDP4:255.255.255.255:68,broadcast,bind=10.0.0.1:67,so-bindtodevice=nat",
    )?;
    client.wait_for_log("an offer")
}

/// Counts what the kernel itself sends: what Egret sends does not pass its output hook.
const KERNELS_ANSWERS: &str = "table ip answers {\n counter resets { }\n counter unreachable { }\n\
     chain output {\n type filter hook output priority 0\n\
     tcp flags & rst == rst counter name resets\n\
     icmp type { destination-unreachable, time-exceeded, redirect } counter name unreachable\n }\n}\n";

#[test]
fn kernel_does_not_answer_nats_packets() -> Result {
    for (arms, offloads) in [(Arms::One, true), (Arms::One, false), (Arms::Two, true)] {
        let lab = Lab::new(Options { arms, offloads, ..Options::default() })?;
        let host = lab.nat();
        host.nft(KERNELS_ANSWERS)?;
        let answers = || -> Result<(u64, u64)> {
            Ok((host.nft_counter("ip answers", "resets")?, host.nft_counter("ip answers", "unreachable")?))
        };
        let _web = Web::start(lab.internet(), 80)?;
        let _server = serve(lab.internet(), 7000)?;
        let egret = Egret::start(host, &lab.config(""))?;
        let client = lab.client(1);
        for _ in 0..3 {
            client.run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
            client.run(&format!("{} ask UDP {INTERNET} 7000", python("sockets.py")))?;
        }
        Iperf::measure(client, lab.internet(), INTERNET, "--time 1")?;
        client.run(&format!("ping -c 2 -i 0.2 -s 3000 {INTERNET}"))?;
        client.run(&format!("traceroute -n -q 1 -N 1 {INTERNET}"))?;
        // From outside, to NAT ports that nobody has opened: by TCP, UDP and ICMP error.
        let before = egret.dropped("no_session")?;
        lab.internet()
            .run(&format!("nmap -n -Pn -sS -p 5000-5009 --max-retries 0 --host-timeout 10s {PUBLIC}"))?;
        lab.internet().shell(&format!("echo x | socat -u - UDP4:{PUBLIC}:5000"))?;
        host.wait_for("the probes to be counted", || Ok(egret.dropped("no_session")? >= before + 11))?;
        assert_eq!(answers()?, (0, 0), "(RSTs, ICMP errors) of the kernel");
        // The counters do count: below the NAT port range the host answers for itself.
        lab.internet().run(&format!("nmap -n -Pn -sS -p 23 --max-retries 0 {PUBLIC}"))?;
        assert_eq!(answers()?, (1, 0));
        no_leaks(&lab)?;
    }
    Ok(())
}
