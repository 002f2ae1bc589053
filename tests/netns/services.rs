//! Programs that everybody uses, on both sides of the forwarding.

use std::fs;
use std::os::unix::fs::chown;

use crate::api::{listener, report, target, wait_states};
use crate::lab::{
    DEADLINE, Egret, Host, INTERNET, INTERNET_2, Lab, Options, PUBLIC, Process, Result, Transport, Web,
};

/// What a web server behind port `port` of the public address takes the client for.
fn whoami(lab: &Lab, address: impl std::fmt::Display, port: u16) -> Result<String> {
    let from = "--interface 198.51.100.11 --local-port 45000-45999";
    lab.internet().run(&format!("curl -sS --max-time 5 {from} http://{address}:{port}/whoami"))
}

/// haproxy that takes connections at one address and passes them to another.
fn haproxy(host: &Host, bind: &str, server: &str, port: u16) -> Result<Process> {
    let config = host.directory.join(format!("haproxy-{}.cfg", host.role));
    fs::write(
        &config,
        format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen all\n bind {bind}\n server one {server}\n"
        ),
    )?;
    let process = host.spawn(&format!("haproxy -db -f {}", config.display()))?;
    host.wait_listening(Transport::Tcp, port)?;
    Ok(process)
}

#[test]
fn nginx_learns_the_client_by_either_version_of_the_proxy_protocol() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start_behind(lab.client(1), 5000)?;
    let http = |section: String| section.replace("[forward.health]", "[forward.health]\ntype = \"http\"");
    let config = lab.config(&format!(
        "{}{}",
        http(listener("v1", 5001, &[target(1)], "proxy_protocol = \"v1\"")),
        http(listener("v2", 5002, &[target(1)], "proxy_protocol = \"v2\""))
    ));
    let egret = Egret::start(lab.nat(), &config)?;
    for (name, port) in [("v1", 5001), ("v2", 5002)] {
        wait_states(&lab, &egret, name, &["healthy"])?;
        let seen = whoami(&lab, PUBLIC, port)?;
        assert!(seen.starts_with(&format!("{INTERNET_2}:45")), "{seen}");
    }
    Ok(())
}

#[test]
fn haproxy_in_front_and_behind_hands_the_client_through() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start_behind(lab.client(1), 8000)?;
    let _behind = haproxy(lab.client(1), "0.0.0.0:5000 accept-proxy", "127.0.0.1:8000 send-proxy", 5000)?;
    for version in ["send-proxy", "send-proxy-v2"] {
        let server = format!("{PUBLIC}:5000 {version}");
        let _front = haproxy(lab.internet(), "0.0.0.0:8080", &server, 8080)?;
        let more = format!("allow = [\"{INTERNET}\"]\naccept_proxy_protocol = true\nproxy_protocol = \"v2\"");
        let egret = Egret::start(lab.nat(), &lab.config(&listener("api", 5000, &[target(1)], &more)))?;
        wait_states(&lab, &egret, "api", &["healthy"])?;
        let seen = whoami(&lab, INTERNET, 8080)?;
        assert!(seen.starts_with(&format!("{INTERNET_2}:45")), "{seen}");
    }
    Ok(())
}

#[test]
fn redis_works_through_it_under_its_own_benchmark() -> Result {
    let lab = Lab::new(Options::default())?;
    let _redis = lab.client(1).spawn("redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save")?;
    lab.client(1).wait_listening(Transport::Tcp, 6379)?;
    let redis = format!("{}:6379", Lab::client_address(1));
    let egret = Egret::start(lab.nat(), &lab.config(&listener("redis", 6379, &[redis], "")))?;
    wait_states(&lab, &egret, "redis", &["healthy"])?;
    let benchmark = format!(
        "redis-benchmark -h {PUBLIC} -p 6379 -n 20000 -c 50 -P 8 -d 1000 -t set,get,rpush,lrange_100 --csv"
    );
    // It moves two gigabytes.
    let ran = lab.internet().run_for(DEADLINE * 4, &benchmark.split(' ').collect::<Vec<_>>(), "")?;
    let printed = ran.success()?.stdout;
    for test in ["SET", "GET", "RPUSH", "LRANGE_100 (first 100 elements)"] {
        assert!(printed.contains(&format!("\"{test}\",")), "{test} is not in {printed}");
    }
    let count = lab.internet().run(&format!("redis-cli -h {PUBLIC} llen mylist"))?;
    assert!(count.trim().parse::<u64>()? >= 20_000, "{count}");
    lab.nat().wait_for("the end of its connections", || Ok(report(&egret, "redis")?["connections"] == 0))?;
    let ended = report(&egret, "redis")?["ended"].clone();
    assert!(ended["closed"].as_u64() > Some(100) && ended["cut"] == 0 && ended["unserved"] == 0, "{ended}");
    Ok(())
}

/// A database that a password protects: server and client talk in turns before the first query.
#[test]
fn postgresql_works_through_it() -> Result {
    let lab = Lab::new(Options::default())?;
    let host = lab.client(1);
    let data = lab.directory().join("postgresql");
    fs::create_dir_all(&data)?;
    let user = |option: &str| {
        Ok::<u32, crate::lab::Failure>(host.run(&format!("id {option} postgres"))?.trim().parse()?)
    };
    chown(&data, Some(user("-u")?), Some(user("-g")?))?;
    fs::write(lab.directory().join("password"), "geheim\n")?;
    let programs = host.shell("ls -d /usr/lib/postgresql/*/bin | tail -n 1")?;
    let (programs, data) = (programs.trim(), data.display());
    let begin = format!(
        "runuser -u postgres -- {programs}/initdb --no-sync -A scram-sha-256 --pwfile {}/password -D {data}",
        lab.directory().display()
    );
    // It computes for a while.
    host.run_for(DEADLINE * 4, &begin.split(' ').collect::<Vec<_>>(), "")?.success()?;
    // Anybody who has the password.
    host.shell(&format!("echo 'host all all all scram-sha-256' >>{data}/pg_hba.conf"))?;
    let _server = host.spawn(&format!(
        "runuser -u postgres -- {programs}/postgres -D {data} -c listen_addresses=* -c fsync=off \
         -c unix_socket_directories="
    ))?;
    host.wait_listening(Transport::Tcp, 5432)?;
    let postgresql = format!("{}:5432", Lab::client_address(1));
    let egret = Egret::start(lab.nat(), &lab.config(&listener("postgresql", 5432, &[postgresql], "")))?;
    wait_states(&lab, &egret, "postgresql", &["healthy"])?;
    let ask = format!(
        "psql -At 'host={PUBLIC} user=postgres password=geheim sslmode=disable connect_timeout=5' \
         -c 'select sum(length(repeat(chr(97), 1000) || n)) from generate_series(1, 10000) n'"
    );
    host.wait_for("the database", || Ok(lab.internet().shell(&ask).is_ok()))?;
    assert_eq!(lab.internet().shell(&ask)?.trim(), "10038894");
    Ok(())
}
