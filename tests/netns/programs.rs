//! Programs of every day, on private clients, to servers on the internet.

use super::{no_leaks, python, serve};
use crate::lab::{
    Arms, Dns, FAR, Failure, INTERNET, Iperf, JUMBO, Lab, NAT, NAT_INTERNAL, Nat, Options, Result, Web,
};

#[test]
fn programs_work_one_armed_with_offloads() -> Result {
    programs_work(Options::default())
}

#[test]
fn programs_work_one_armed_without_offloads() -> Result {
    programs_work(Options { offloads: false, ..Options::default() })
}

#[test]
fn programs_work_two_armed_with_offloads() -> Result {
    programs_work(Options { arms: Arms::Two, ..Options::default() })
}

#[test]
fn programs_work_two_armed_without_offloads() -> Result {
    programs_work(Options { arms: Arms::Two, offloads: false, ..Options::default() })
}

#[test]
fn programs_work_with_jumbo_frames_in_the_vpc() -> Result {
    programs_work(Options { mtu: JUMBO, ..Options::default() })
}

#[test]
fn programs_work_with_jumbo_frames_without_offloads() -> Result {
    programs_work(Options { mtu: JUMBO, offloads: false, ..Options::default() })
}

fn programs_work(options: Options) -> Result {
    let lab = Lab::new(options)?;
    let web = Web::start(lab.internet(), 80)?;
    let _dns = Dns::start(lab.internet())?;
    let _nat = Nat::start(&lab, "")?;
    let seen = lab.seen_address().to_string();

    for client in [1, 2] {
        let answer = lab.client(client).run(&format!("curl -sS --max-time 10 http://{INTERNET}/whoami"))?;
        assert!(answer.starts_with(&format!("{seen}:")), "the server saw {answer}");
    }
    // A request is logged after it was answered.
    lab.internet().wait_for("the log", || Ok(web.clients().len() >= 2))?;
    assert_eq!(web.clients(), [seen.clone(), seen]);

    web.put("large", 16 << 20)?;
    let client = lab.client(1);
    let got = client.shell(&format!("curl -sS --max-time 20 http://{INTERNET}/large | sha256sum"))?;
    let kept = lab.internet().run("sha256sum web-internet-80/files/large")?;
    assert_eq!(got.get(..64), kept.get(..64), "the file came with other bytes");

    for transport in ["+notcp", "+tcp"] {
        let answer = client.run(&format!("dig {transport} +short +tries=3 @{INTERNET} www.example"))?;
        assert_eq!(answer.trim(), INTERNET.to_string());
        // Its answer by UDP comes in fragments.
        let answer = client.run(&format!(
            "dig {transport} +ignore +tries=3 +bufsize=4096 +short @{INTERNET} big.example TXT"
        ))?;
        assert_eq!(answer.lines().count(), 8, "{answer}");
    }

    let ping = client.run(&format!("ping -c 3 -i 0.2 -W 2 {INTERNET}"))?;
    assert!(ping.contains(" 0% packet loss"), "{ping}");

    for direction in ["", "--reverse", "--bidir"] {
        let rate = Iperf::measure(client, lab.internet(), INTERNET, &format!("--time 1 {direction}"))?;
        assert!(rate > FLOWS, "iperf3 {direction}: only {rate:.0} bit/s");
    }
    for direction in ["", "--reverse"] {
        let rate = Iperf::measure(
            client,
            lab.internet(),
            INTERNET,
            &format!("--udp --bitrate 5M --time 1 {direction}"),
        )?;
        // What a receiver that has to wait for a processor loses is its own loss.
        assert!(rate > FLOWS, "iperf3 --udp {direction}: only {rate:.0} of 5000000 bit/s");
    }
    no_leaks(&lab)
}

#[test]
fn datagrams_larger_than_the_mtu_pass_both_ways() -> Result {
    for options in [Options::default(), Options { mtu: JUMBO, ..Options::default() }] {
        let lab = Lab::new(options)?;
        let _nat = Nat::start(&lab, "")?;
        for size in [2000, 4000, 20000] {
            let ping = lab.client(1).run(&format!("ping -c 2 -i 0.2 -W 2 -M dont -s {size} {INTERNET}"))?;
            assert!(ping.contains(" 0% packet loss"), "{ping}");
        }
        no_leaks(&lab)?;
    }
    Ok(())
}

#[test]
fn datagram_that_must_not_be_cut_is_refused_with_the_mtu() -> Result {
    let lab = Lab::new(Options { mtu: JUMBO, ..Options::default() })?;
    let _nat = Nat::start(&lab, "")?;
    let ping = lab.client(1).try_run(&format!("ping -c 1 -W 2 -M do -s 3000 {INTERNET}"))?;
    let told = ping.stdout.contains("mtu = 1500") || ping.stdout.contains("mtu=1500");
    assert!(told, "the client was not told of the MTU: {ping}");
    no_leaks(&lab)
}

#[test]
fn traceroute_names_every_hop_by_icmp_udp_and_tcp() -> Result {
    for (arms, nat) in [(Arms::One, NAT), (Arms::Two, NAT_INTERNAL)] {
        let lab = Lab::new(Options { arms, far_mtu: Some(1500), ..Options::default() })?;
        let _web = Web::start(lab.far(), 80)?;
        let _nat = Nat::start(&lab, "")?;
        for method in ["-I", "-U", "-T", ""] {
            let printed = lab.client(1).run(&format!("traceroute {method} -n -q 1 -N 1 -w 3 {FAR}"))?;
            let hops: Vec<&str> =
                printed.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            let (nat, internet, far) = (nat.to_string(), INTERNET.to_string(), FAR.to_string());
            assert_eq!(hops, ["10.0.1.1", &nat, "10.0.0.1", &internet, &far], "traceroute {method}: {printed}");
        }
        no_leaks(&lab)?;
    }
    Ok(())
}

#[test]
fn tracepath_finds_a_small_mtu_behind_the_internet_host() -> Result {
    let lab = Lab::new(Options { far_mtu: Some(1280), ..Options::default() })?;
    let _nat = Nat::start(&lab, "")?;
    // Port unreachable from the far host ends it, so that it also shows that errors of the last hop come back.
    let printed = lab.client(1).run(&format!("tracepath -n {FAR}"))?;
    assert!(printed.contains("Resume: pmtu 1280 hops 5"), "{printed}");
    no_leaks(&lab)
}

#[test]
fn tcp_follows_a_small_mtu_behind_the_internet_host() -> Result {
    for offloads in [true, false] {
        let lab = Lab::new(Options { far_mtu: Some(1280), offloads, ..Options::default() })?;
        let _nat = Nat::start(&lab, "")?;
        // The far host says that it takes 1240 bytes a segment; this makes the client learn it from the path.
        lab.far().run("ip route replace default via 192.0.2.1 advmss 1460")?;
        for direction in ["", "--reverse"] {
            let rate = Iperf::measure(lab.client(1), lab.far(), FAR, &format!("--time 1 {direction}"))?;
            assert!(rate > FLOWS, "only {rate:.0} bit/s {direction}");
        }
        no_leaks(&lab)?;
    }
    Ok(())
}

#[test]
fn a_hundred_clients_with_one_source_port_reach_one_server() -> Result {
    let lab = Lab::new(Options::default())?;
    for number in 1..=CLIENTS {
        lab.client(1).run(&format!("ip addr add 10.0.101.{number}/32 dev ens5"))?;
    }
    let _server = serve(lab.internet(), 7000)?;
    let _nat = Nat::start(&lab, "")?;
    let script = python("sockets.py");
    let answers = lab.client(1).run(&format!("{script} same_port {CLIENTS} 5000 {INTERNET} 7000"))?;
    let answers: serde_json::Value = serde_json::from_str(&answers)?;
    for protocol in ["udp", "tcp"] {
        let seen = answers[protocol].as_array().ok_or_else(|| Failure::new(answers.to_string()))?;
        let mut seen: Vec<&str> = seen.iter().filter_map(serde_json::Value::as_str).collect();
        let public = format!("{}:", lab.seen_address());
        assert!(seen.iter().all(|endpoint| endpoint.starts_with(&public)), "{seen:?}");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), CLIENTS, "{protocol}: two clients looked the same to the server: {seen:?}");
    }
    no_leaks(&lab)
}

const CLIENTS: usize = 100;

/// In bits per second: less than a busy machine carries, and more than comes by retransmissions alone.
const FLOWS: f64 = 2e6;
