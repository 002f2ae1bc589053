//! An API on two private servers that see their clients' own addresses: `mode = "nat"`.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::no_leaks;
use crate::DATAPATH;
use crate::lab::{Arms, DEADLINE, Datapath, Download, Egret, INTERNET, Lab, NAT, Options, PUBLIC, Result, Web};

fn server(lab: &Lab, number: u8) -> Result<Web> {
    let web = Web::start(lab.client(number), 5000)?;
    web.write("index.html", &format!("server {number}\n"))?;
    Ok(web)
}

fn servers(lab: &Lab) -> Result<[Web; 2]> {
    Ok([server(lab, 1)?, server(lab, 2)?])
}

/// A listener in front of both, beside NAT. It forgives them what a busy machine makes them miss.
fn config(lab: &Lab, more: &str) -> String {
    let target = |number| format!("\"{}:5000\"", Lab::client_address(number));
    lab.config(&format!(
        "\n[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:443\"\nmode = \"nat\"\ntargets = [{}, {}]\n\
         algorithm = \"round-robin\"\n{more}\n\
         [forward.health]\ntype = \"http\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\nhealthy_threshold = 2\n\
         unhealthy_threshold = 5\n",
        target(1),
        target(2)
    ))
}

fn curl(page: &str) -> String {
    format!("curl -sS --max-time 10 http://{PUBLIC}:443/{page}")
}

/// What the API answers somebody on the internet, so many times.
fn ask(lab: &Lab, count: u32) -> Result<Vec<String>> {
    (0..count).map(|_| Ok(lab.internet().run(&curl(""))?.trim().to_owned())).collect()
}

fn targets(egret: &Egret) -> Result<Vec<serde_json::Value>> {
    Ok(egret.status()?["listeners"][0]["targets"].as_array().cloned().unwrap_or_default())
}

fn wait_states(lab: &Lab, egret: &Egret, wanted: [&str; 2]) -> Result {
    let are = |targets: &[serde_json::Value]| {
        targets.len() == 2 && targets.iter().zip(wanted).all(|(target, wanted)| target["state"] == wanted)
    };
    lab.nat().wait_for("the targets' states", || Ok(are(&targets(egret)?)))
}

fn up(lab: &Lab, more: &str) -> Result<Egret> {
    let egret = Egret::start(lab.nat(), &config(lab, more))?;
    wait_states(lab, &egret, ["healthy", "healthy"])?;
    Ok(egret)
}

#[test]
fn servers_see_their_clients_and_only_healthy_ones_are_asked() -> Result {
    for arms in [Arms::One, Arms::Two] {
        let lab = Lab::new(Options { arms, ..Options::default() })?;
        let web = Web::start(lab.internet(), 80)?;
        let [one, other] = servers(&lab)?;
        let egret = up(&lab, "")?;
        let mut answers = ask(&lab, 6)?;
        answers.sort();
        assert_eq!((&*answers[0], &*answers[2], &*answers[3]), ("server 1", "server 1", "server 2"));
        assert!(one.clients().contains(&INTERNET.to_string()));
        drop(other);
        wait_states(&lab, &egret, ["healthy", "unhealthy"])?;
        assert_eq!(ask(&lab, 4)?, vec!["server 1"; 4]);
        let other = server(&lab, 2)?;
        wait_states(&lab, &egret, ["healthy", "healthy"])?;
        assert!(ask(&lab, 2)?.contains(&"server 2".to_owned()));
        let seen = lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
        assert!(seen.starts_with(&PUBLIC.to_string()), "NAT goes on beside it: {seen}");
        let listener = &egret.status()?["listeners"][0];
        assert_eq!((listener["mode"].as_str(), listener["opened"].as_u64()), (Some("nat"), Some(12)));
        drop((web, one, other));
        no_leaks(&lab)?;
    }
    Ok(())
}

#[test]
fn client_inside_the_vpc_may_use_the_public_address() -> Result {
    for preserve in [true, false] {
        let lab = Lab::new(Options { clients: 3, ..Options::default() })?;
        let _servers = servers(&lab)?;
        let _egret = up(&lab, &format!("preserve_client_ip = {preserve}"))?;
        // One of the servers is its own client: it must not see a packet from itself.
        for client in [3, 1, 1] {
            let answer = lab.client(client).run(&curl(""))?;
            assert!(answer.starts_with("server "), "{answer}");
        }
    }
    Ok(())
}

/// As behind the gateway of another zone.
#[test]
fn server_with_another_way_out_is_seen_to_answer_nobody() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    lab.client(2).run(&format!("ip route add blackhole {INTERNET}/32"))?;
    let mut egret = up(&lab, "connect_timeout = \"500ms\"")?;
    // Whoever is sent to it is not lost: at the second SYN, after a second, the other one is asked.
    assert_eq!(ask(&lab, 2)?, vec!["server 1"; 2]);
    lab.nat().wait_for("what is wrong", || Ok(targets(&egret)?[1]["astray"] == true))?;
    let shown = egret.command(&["status"])?.stdout;
    assert!(shown.contains("preserve_client_ip = false"), "{shown}");

    egret.reload(&config(&lab, "preserve_client_ip = false"))?;
    egret.process.wait_for_log("configuration reloaded")?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let mut answers = ask(&lab, 4)?;
    answers.sort();
    assert_eq!(answers, ["server 1", "server 1", "server 2", "server 2"]);
    let seen = lab.internet().run(&curl("whoami"))?;
    assert!(seen.starts_with(&NAT.to_string()), "{seen}");
    Ok(())
}

#[test]
fn established_connections_run_in_the_fast_path_and_survive_a_reload() -> Result {
    for (preserve, arms) in [(true, Arms::One), (false, Arms::Two)] {
        let lab = Lab::new(Options { arms, ..Options::default() })?;
        let [one, other] = servers(&lab)?;
        for web in [&one, &other] {
            web.put("large", LARGE)?;
        }
        let more = format!("preserve_client_ip = {preserve}");
        let mut egret = up(&lab, &more)?;
        let download = Download::start(lab.internet(), PUBLIC, 443, "large")?;
        lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
        if DATAPATH == Datapath::Xdp {
            let flows = || Ok(egret.status()?["fast_path"]["flows"].as_u64() >= Some(2));
            lab.nat().wait_for("flows in the fast path", flows)?;
        }
        egret.reload(&config(&lab, &format!("{more}\nconnection_limit = 7")))?;
        egret.process.wait_for_log("configuration reloaded")?;
        assert!(download.finish()? == one.get("large")?, "other bytes came");
    }
    Ok(())
}

#[test]
fn drained_server_keeps_its_connections_for_a_while_and_gets_no_others() -> Result {
    let lab = Lab::new(Options::default())?;
    let [one, other] = servers(&lab)?;
    for web in [&one, &other] {
        web.put("large", LARGE)?;
    }
    let mut egret = up(&lab, "deregistration_delay = \"1s\"\naccess_log = true")?;
    let mut download = lab.internet().spawn(&format!("{} --limit-rate 4M --output got", curl("large")))?;
    lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
    let busy = targets(&egret)?.iter().position(|target| target["connections"] == 1).unwrap_or(2);
    let (drained, left) = [(1, "server 2"), (2, "server 1")][busy];
    let target = format!("{}:5000", Lab::client_address(drained));
    assert!(egret.command(&["drain", "api", &target])?.status.success());
    assert_eq!(ask(&lab, 4)?, vec![left; 4]);
    assert!(!download.wait(DEADLINE)?.success(), "was to be reset after a second");
    assert!(download.log().contains("reset by peer"), "{}", download.log());
    egret.process.wait_for_log(&format!("target={target}"))?;
    lab.nat().wait_for("the target to be drained", || Ok(targets(&egret)?[busy]["state"] == "drained"))?;
    assert!(egret.command(&["drain", "api", &target, "--undo"])?.status.success());
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let ended = &egret.status()?["listeners"][0]["ended"];
    assert_eq!((ended["cut"].as_u64(), ended["unserved"].as_u64()), (Some(1), Some(0)));
    Ok(())
}

/// Its port is none that NAT has by itself.
#[test]
fn listener_that_is_taken_away_lets_its_connections_end() -> Result {
    let lab = Lab::new(Options::default())?;
    let [one, other] = servers(&lab)?;
    for web in [&one, &other] {
        web.put("large", LARGE)?;
    }
    let mut egret = up(&lab, "")?;
    let download = Download::start(lab.internet(), PUBLIC, 443, "large")?;
    lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
    egret.reload(&lab.config(""))?;
    egret.process.wait_for_log("configuration reloaded")?;
    let refused = lab.internet().try_run(&curl(""))?;
    assert_eq!(refused.status.code(), Some(7), "connection refused: {refused:?}");
    assert!(download.finish()? == one.get("large")?, "other bytes came");
    Ok(())
}

/// Its connections there end; that is no reason to go on with an address that is another host's by now.
#[test]
fn external_address_leaves_though_a_listener_has_connections_there() -> Result {
    let lab = Lab::new(Options::default())?;
    let [one, other] = servers(&lab)?;
    for web in [&one, &other] {
        web.put("large", LARGE)?;
    }
    let second = Ipv4Addr::from(u32::from(NAT) + 1);
    lab.nat().run(&format!("ip address add {second}/32 dev ens5"))?;
    let only = config(&lab, "");
    let both = only
        .replace("external_addresses = [", &format!("external_addresses = [{{ private = \"{second}\" }}, "));
    let mut egret = Egret::start(lab.nat(), &both)?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let download =
        lab.client(1).spawn(&format!("curl -sS --limit-rate 1M --output got http://{second}:443/large"))?;
    lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
    egret.reload(&only)?;
    egret.process.wait_for_log("configuration reloaded")?;
    lab.nat().wait_for("its end", || Ok(egret.status()?["listeners"][0]["connections"] == 0))?;
    assert_eq!(ask(&lab, 2)?.len(), 2, "those at the other address are served");
    download.signal(nix::sys::signal::Signal::SIGKILL)?;
    Ok(())
}

/// Three times as many as there may be connections, and none of them ever says more.
#[test]
fn whoever_only_sends_syns_by_foreign_addresses_keeps_nobody_out() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    let egret = up(&lab, "connection_limit = 40\nconnect_timeout = \"1s\"")?;
    let syns = format!(
        "from scapy.all import *\n\
         send([IP(src=f'198.51.100.{{n}}', dst='{PUBLIC}') / TCP(sport=1024 + n, dport=443, flags='S') \
         for n in range(100, 220)], verbose=0)"
    );
    lab.internet().run_for(DEADLINE, &["/usr/bin/python3", "-"], &syns)?.success()?;
    let listener = egret.status()?["listeners"][0].clone();
    assert_eq!(listener["connections"], 40, "{listener}");
    assert!(listener["refused"]["connection_limit"].as_u64() > Some(0), "{listener}");
    std::thread::sleep(Duration::from_secs(1));
    let answers = ask(&lab, 60)?;
    assert!(answers.iter().all(|answer| answer.starts_with("server ")), "{answers:?}");
    Ok(())
}

#[test]
fn door_refuses_with_a_reset() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    let egret = up(&lab, "allow = [\"192.0.2.0/24\"]")?;
    let refused = lab.internet().try_run(&curl(""))?;
    assert_eq!(refused.status.code(), Some(7), "connection refused: {refused:?}");
    let listener = &egret.status()?["listeners"][0];
    assert_eq!(
        (listener["refused"]["not_allowed"].as_u64(), listener["connections"].as_u64()),
        (Some(1), Some(0))
    );
    Ok(())
}

#[test]
fn stopping_lets_a_download_end() -> Result {
    let lab = Lab::new(Options::default())?;
    let [one, other] = servers(&lab)?;
    for web in [&one, &other] {
        web.put("large", LARGE)?;
    }
    let mut egret = up(&lab, "")?;
    let download = Download::start(lab.internet(), PUBLIC, 443, "large")?;
    lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
    egret.process.signal(nix::sys::signal::Signal::SIGTERM)?;
    egret.process.wait_for_log("waiting for forwarded connections to end")?;
    lab.internet().wait_for("new connections to be refused", || {
        Ok(!lab.internet().try_run(&curl(""))?.status.success())
    })?;
    assert_eq!(egret.process.ended()?, None, "it did not wait");
    assert!(download.finish()? == one.get("large")?, "other bytes came");
    assert!(egret.process.wait(DEADLINE)?.success());
    Ok(())
}

#[test]
fn stopping_resets_what_outlasts_its_delay_and_says_so() -> Result {
    let lab = Lab::new(Options::default())?;
    let servers = servers(&lab)?;
    for web in &servers {
        web.put("large", LARGE)?;
    }
    let mut egret = up(&lab, "deregistration_delay = \"1s\"\naccess_log = true")?;
    // It reads what has come before the reset, and has to come to that in time.
    let mut download = lab.internet().spawn(&format!("{} --limit-rate 8M --output got", curl("large")))?;
    lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
    egret.process.signal(nix::sys::signal::Signal::SIGTERM)?;
    assert!(egret.process.wait(DEADLINE)?.success());
    // The line tells that it was Egret: the kernel resets as well, once Egret has gone.
    let said = egret.process.log();
    assert!(said.contains("ended=\"cut\""), "{said}");
    assert!(!download.wait(DEADLINE)?.success(), "was to be reset");
    assert!(download.log().contains("reset by peer"), "{}", download.log());
    Ok(())
}

/// Much more than the buffers of all sockets on its way.
const LARGE: usize = 64 << 20;
