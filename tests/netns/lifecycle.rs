//! Start, stop, crash, and what happens to the links meanwhile.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::no_leaks;
use crate::lab::{Arms, DEADLINE, Datapath, Download, Egret, Host, INTERNET, Iperf, Lab, Options, Result, Web};

/// What a NAT instance may change on its host, as it is now.
pub(super) fn settings(host: &Host) -> Result<String> {
    host.shell(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ip_local_port_range \
         /proc/sys/net/ipv4/ip_local_reserved_ports; grep . /proc/sys/net/ipv4/conf/*/*; \
         tc qdisc show; for i in /sys/class/net/*; do i=${i##*/}; tc filter show dev $i ingress; \
         tc filter show dev $i egress; ethtool -k $i; done; nft list ruleset; ip rule; ip route show table all; \
         ip -d link | sed 's/ state [A-Z]* / /'",
    )
}

/// Whether a page of the internet is had, on a machine that may be busy.
pub(super) fn fetch(host: &Host) -> Result<bool> {
    fetch_within(host, 10)
}

fn fetch_within(host: &Host, seconds: u32) -> Result<bool> {
    Ok(host.try_run(&format!("curl -sS --max-time {seconds} http://{INTERNET}/whoami"))?.status.success())
}

/// Where nothing translates, for as long as a page takes otherwise.
fn nothing_comes_through(host: &Host) -> Result<bool> {
    Ok(!fetch_within(host, 1)?)
}

#[test]
fn sigterm_ends_it_within_a_second_and_leaves_the_host_as_found() -> Result {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for arms in [Arms::One, Arms::Two] {
            let lab = Lab::new(Options { arms, ..Options::default() })?;
            let _web = Web::start(lab.internet(), 80)?;
            let before = settings(lab.nat())?;
            let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
            assert!(fetch(lab.client(1))?);
            assert_ne!(settings(lab.nat())?, before, "a running egret shows");
            let asked = Instant::now();
            egret.process.signal(signal)?;
            let status = egret.process.wait(DEADLINE)?;
            let took = asked.elapsed();
            assert!(status.success(), "{status}");
            assert!(took < Duration::from_secs(1), "it took {took:?}");
            assert_eq!(settings(lab.nat())?, before);
            assert_eq!(egret.try_status()?.status.code(), Some(2), "status of what is not there");
            assert!(nothing_comes_through(lab.client(1))?);
            no_leaks(&lab)?;
        }
    }
    Ok(())
}

#[test]
fn sigterm_ends_it_within_a_second_under_load() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = Iperf::start(lab.internet())?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    let mut load =
        lab.client(1).spawn(&format!("iperf3 --client {INTERNET} --time 60 --parallel 4 --bidir"))?;
    let moved = || -> Result<u64> {
        Ok(egret.status()?["traffic"]["out_to_external"]["bytes"].as_u64().unwrap_or_default())
    };
    lab.nat().wait_for("load", || Ok(moved()? > 100 << 20))?;
    assert_eq!(load.ended()?, None, "{}", load.log());
    let asked = Instant::now();
    let status = egret.stop(DEADLINE)?;
    let took = asked.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    no_leaks(&lab)
}

#[test]
fn reload_keeps_connections() -> Result {
    let lab = Lab::new(Options::default())?;
    let web = Web::start(lab.internet(), 80)?;
    web.put("large", 32 << 20)?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    let download = Download::start(lab.client(1), INTERNET, 80, "large")?;
    lab.nat().wait_for("the download", || Ok(egret.sessions("")?.len() == 1))?;
    let before = egret.sessions("")?;
    egret.reload(&lab.config("mapping = \"nonsense\""))?;
    egret.process.wait_for_log("configuration not reloaded")?;
    egret.reload(&lab.config("filtering = \"endpoint-independent\""))?;
    egret.process.wait_for_log("configuration reloaded")?;
    assert!(download.finish()? == web.get("large")?, "other bytes came");
    let after = egret.sessions("")?;
    assert_eq!(after.len(), 1, "{after:?}");
    assert_eq!(after[0]["external"], before[0]["external"]);
    no_leaks(&lab)
}

#[test]
fn variables_stand_above_the_file_at_the_start_and_at_a_reload() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let environment = ["env", "EGRET_NAT__PORT_RANGE=40000-40009", "EGRET_ADMIN__LISTEN=off"];
    let mut egret = Egret::start_under(lab.nat(), &lab.config("port_range = \"1024-2000\""), &environment)?;
    let external_port = |egret: &Egret| -> Result<u64> {
        assert!(fetch(lab.client(1))?);
        let port = egret.sessions("")?.first().and_then(|session| {
            let external = session["external"].as_str()?;
            external.rsplit_once(':')?.1.parse().ok()
        });
        Ok(port.unwrap_or_default())
    };
    assert!((40_000..=40_009).contains(&external_port(&egret)?));
    let said = egret.process.log();
    let tells = |line: &str| line.contains("set outside of the file") && line.contains("EGRET_NAT__PORT_RANGE");
    assert!(said.lines().any(tells), "{said}");
    egret.reload(&lab.config("port_range = \"3000-4000\""))?;
    egret.process.wait_for_log("configuration reloaded")?;
    assert!((40_000..=40_009).contains(&external_port(&egret)?));
    egret.stop(DEADLINE)?;
    let mut refused = Egret::spawn_under(lab.nat(), &lab.config(""), &["env", "EGRET_NAT__PORTRANGE=1-2"])?;
    assert!(!refused.process.wait(DEADLINE)?.success());
    let said = refused.process.log();
    assert!(
        said.contains("variable EGRET_NAT__PORTRANGE") && said.contains("EGRET_NAT__PORT_RANGE?"),
        "{said}"
    );
    Ok(())
}

#[test]
fn change_of_the_datapath_waits_for_a_restart() -> Result {
    let lab = Lab::new(Options::default())?;
    let config = lab.config("");
    let (present, other) = if config.contains("\"xdp\"") { ("xdp", "af_packet") } else { ("af_packet", "xdp") };
    let mut egret = Egret::start(lab.nat(), &config)?;
    let other =
        lab.config("[xdp]\nadjust_mtu = true").replace(&format!("\"{present}\""), &format!("\"{other}\""));
    egret.reload(&other)?;
    egret.process.wait_for_log("configuration reloaded")?;
    let said = egret.process.log();
    let frozen = |line: &str| line.contains("change takes effect only after a restart");
    for key in ["datapath", "xdp.adjust_mtu"] {
        assert!(said.lines().any(|line| frozen(line) && line.contains(key)), "{key}: {said}");
    }
    let status = egret.status()?;
    assert_eq!(status["datapath"], present);
    assert!(status["datapath_fallback"].is_null(), "{status}");
    assert_eq!(status["fast_path"].is_object(), present == "xdp", "{status}");
    Ok(())
}

#[test]
fn empty_configuration_is_a_working_nat() -> Result {
    // It leaves the choice to Egret, which takes XDP where it can.
    let lab = Lab::new(Options { datapath: Datapath::Xdp, ..Options::default() })?;
    let _web = Web::start(lab.internet(), 80)?;
    let _egret = Egret::start(lab.nat(), "")?;
    for client in [1, 2] {
        assert!(fetch(lab.client(client))?, "client {client}");
    }
    no_leaks(&lab)
}

#[test]
fn starts_again_after_a_kill() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let before = settings(lab.nat())?;
    let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
    assert!(fetch(lab.client(1))?);
    egret.process.signal(Signal::SIGKILL)?;
    egret.process.wait(DEADLINE)?;
    assert!(nothing_comes_through(lab.client(1))?);
    for _ in 0..2 {
        let mut egret = Egret::start(lab.nat(), &lab.config(""))?;
        assert!(fetch(lab.client(1))?);
        egret.stop(DEADLINE)?;
    }
    // What the killed one had changed is all that may be left: the host's ephemeral ports.
    let kept =
        |text: &str| text.lines().filter(|line| line.contains("qdisc") || line.contains("filter")).count();
    assert_eq!(kept(&settings(lab.nat())?), kept(&before), "a filter is left behind");
    no_leaks(&lab)
}

#[test]
fn says_that_it_is_not_ready_while_the_link_is_down_and_goes_on_when_it_is_up() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    assert!(fetch(lab.client(1))?);
    lab.nat().run("ip link set ens5 down")?;
    lab.nat().wait_for("not ready", || Ok(egret.try_status()?.status.code() == Some(1)))?;
    lab.nat().run("ip link set ens5 up")?;
    lab.nat().run("ip route add default via 10.0.0.1")?;
    lab.nat().wait_for("ready", || Ok(egret.try_status()?.status.success()))?;
    lab.client(1).wait_for("traffic", || fetch_within(lab.client(1), 1))?;
    no_leaks(&lab)
}

#[test]
fn follows_the_router_to_another_mac() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let _egret = Egret::start(lab.nat(), &lab.config(""))?;
    assert!(fetch(lab.client(1))?);
    lab.router().run("ip link set nat address 02:00:00:00:00:99")?;
    // The router's next ARP request tells the host; nothing else does. One that follows an earlier answer at once is
    // not believed, so there are several.
    lab.client(1).wait_for("traffic by the new MAC", || {
        lab.router().run("ip neigh flush dev nat")?;
        fetch_within(lab.client(1), 1)
    })?;
    no_leaks(&lab)
}

/// Has egret fail to start; gives what it said.
fn refusal(host: &Host, toml: &str, wrapper: &[&str]) -> Result<String> {
    let mut egret = Egret::spawn_under(host, toml, wrapper)?;
    let status = egret.process.wait(DEADLINE)?;
    assert!(!status.success(), "it has started, or ended well: {}", egret.process.log());
    let said = egret.process.log();
    assert!(!said.contains("panicked"), "{said}");
    Ok(said)
}

#[test]
fn missing_interface_is_named() -> Result {
    let lab = Lab::new(Options::default())?;
    let said = refusal(lab.nat(), &lab.config("").replace("\"ens5\"", "\"ens9\""), &[])?;
    assert!(said.contains("ens9"), "{said}");
    Ok(())
}

#[test]
fn interface_that_is_down_is_named() -> Result {
    let lab = Lab::new(Options::default())?;
    lab.nat().run("ip link set ens5 down")?;
    let said = refusal(lab.nat(), &lab.config(""), &[])?;
    assert!(said.contains("ens5") && said.contains("down"), "{said}");
    Ok(())
}

#[test]
fn missing_capability_is_named() -> Result {
    let lab = Lab::new(Options::default())?;
    for capability in ["net_raw", "net_admin"] {
        let drop = format!("-{capability}");
        let wrapper = ["setpriv", "--bounding-set", &drop, "--inh-caps", &drop];
        let said = refusal(lab.nat(), &lab.config(""), &wrapper)?;
        assert!(said.to_lowercase().contains(&format!("cap_{capability}")), "{said}");
    }
    Ok(())
}

#[test]
fn port_range_that_leaves_the_host_no_ports_is_refused() -> Result {
    let lab = Lab::new(Options::default())?;
    let before = settings(lab.nat())?;
    let said = refusal(lab.nat(), &lab.config("port_range = \"1024-65535\""), &[])?;
    assert!(said.contains("port_range") || said.contains("port range"), "{said}");
    assert_eq!(settings(lab.nat())?, before);
    Ok(())
}

#[test]
fn second_egret_is_refused_and_the_first_goes_on() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let mut first = Egret::start(lab.nat(), &lab.config(""))?;
    let running = settings(lab.nat())?;
    let said = refusal(lab.nat(), &lab.config(""), &[])?;
    assert!(said.contains("already") || said.contains("another"), "{said}");
    assert_eq!(settings(lab.nat())?, running, "the second has changed the host");
    assert!(fetch(lab.client(1))?, "no traffic through the first");
    first.stop(DEADLINE)?;
    Ok(())
}
