//! Targets that are known by a name, and sockets that outlive the daemon.

use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::api::{listener, report, server, target, wait_states};
use crate::lab::{
    Asked, Asking, DEADLINE, Egret, INTERNET, Lab, Options, PUBLIC, Result, Transport, Web, answers, ask,
    connect, inside,
};

/// What the API answers somebody on the internet.
fn answer(lab: &Lab) -> Result<String> {
    Ok(inside(lab.internet(), || ask(PUBLIC, 5000))??)
}

#[test]
fn targets_follow_a_name_of_the_hosts_own_resolver() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers: [Web; 2] = [server(&lab, 1)?, server(&lab, 2)?];
    let hosts = lab.directory().join("hosts");
    let resolv_conf = lab.directory().join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver {INTERNET}\n"))?;
    let name = |number| fs::write(&hosts, format!("{} api.example\n", Lab::client_address(number)));
    name(1)?;
    let dns = lab.internet().spawn(&format!(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --addn-hosts={} --local-ttl=1 \
         --user=root --log-facility=-",
        hosts.display()
    ))?;
    lab.internet().wait_listening(Transport::Udp, 53)?;
    // `ip netns exec` has given it mounts of its own.
    let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", resolv_conf.display());
    let config = lab.config(&listener("api", 5000, &["dns:api.example:5000".to_owned()], ""));
    let egret = Egret::start_under(lab.nat(), &config, &["sh", "-c", &mount, "sh"])?;
    wait_states(&lab, &egret, "api", &["healthy"])?;
    assert_eq!(report(&egret, "api")?["sources"][0]["source"], "dns:api.example:5000");
    assert_eq!(answer(&lab)?, "server 1");
    name(2)?;
    dns.signal(Signal::SIGHUP)?;
    lab.nat().wait_for("the other server", || Ok(answer(&lab)? == "server 2"))?;
    drop(dns);
    lab.nat()
        .wait_for("the failure to be seen", || Ok(!report(&egret, "api")?["sources"][0]["error"].is_null()))?;
    assert_eq!(answer(&lab)?, "server 2", "what was known stays");
    Ok(())
}

#[test]
fn restart_of_the_daemon_refuses_nobody_while_its_socket_is_held() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = server(&lab, 1)?;
    let go = lab.directory().join("go");
    let script = crate::suite::script("hold_sockets.py");
    let go_argument = go.display().to_string();
    let wrapper = ["/usr/bin/python3", "-B", &script, "0.0.0.0", "5000", &go_argument];
    let config = lab.config(&listener("api", 5000, &[target(1)], "deregistration_delay = \"10s\""));
    fs::write(&go, "")?;
    let mut egret = Egret::start_under(lab.nat(), &config, &wrapper)?;
    wait_states(&lab, &egret, "api", &["healthy"])?;
    let log = egret.process.log();
    assert!(log.contains("passed socket is no listener's"), "{log}");
    assert!(log.contains("passed descriptor is no socket of TCP"), "{log}");
    let asking = Asking::start(&lab, 5000)?;
    asking.wait_for("answers", |asked| asked.len() > 5)?;
    egret.process.signal(Signal::SIGTERM)?;
    egret.process.wait_for_log(" stopped")?;
    // Nobody is there, and yet nobody is refused.
    let mut waiting = connect(&lab, 5000, 20)?;
    for stream in &mut waiting {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    }
    assert!(egret.try_status()?.status.code() != Some(0), "the daemon is still there");
    fs::write(&go, "")?;
    for mut stream in waiting {
        let mut got = String::new();
        stream.read_to_string(&mut got)?;
        assert!(got.ends_with("server 1\n"), "{got}");
    }
    wait_states(&lab, &egret, "api", &["healthy"])?;
    let again = Instant::now();
    let since = |asked: &&Asked| asked.begun >= again;
    asking.wait_for("answers", |asked| asked.iter().filter(since).count() > 5)?;
    let all = answers(asking.stop()?)?;
    assert!(all.iter().all(|answer| answer == "server 1"), "{all:?}");
    Ok(())
}
