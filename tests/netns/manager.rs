//! What a service manager hears of the daemon: `sd_notify(3)`, here with a socket in its place.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::lab::{DEADLINE, Egret, Host, Lab, Options, Result, wait_for};
use crate::suite::script;

/// The socket that the daemon is given.
struct Manager {
    socket: UnixDatagram,
    wrapper: Vec<String>,
}

impl Manager {
    fn new(lab: &Lab) -> Result<Self> {
        let path = lab.directory().join("manager.sock");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(WATCHDOG * 5))?;
        let wrapper = vec![
            "env".to_owned(),
            format!("NOTIFY_SOCKET={}", path.display()),
            format!("WATCHDOG_USEC={}", WATCHDOG.as_micros()),
        ];
        Ok(Self { socket, wrapper })
    }

    fn start(&self, host: &Host, toml: &str) -> Result<Egret> {
        Egret::spawn_under(host, toml, &self.wrapper.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What is said next; nothing, if that takes longer than a watchdog would wait.
    fn hear(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// All that is said until there are lines that begin with each of these, in whatever order.
    fn hear_until(&self, lines: &[&str]) -> Result<Vec<String>> {
        self.hear_all(&lines.join(", "), |heard, _| lines.iter().all(|line| has(heard, line)))
    }

    /// All that is said until `ends` holds of it, and of whether nothing was said for longer than a watchdog would wait.
    fn hear_all(&self, what: &str, ends: impl Fn(&[String], bool) -> bool) -> Result<Vec<String>> {
        let mut heard = Vec::new();
        wait_for(what, DEADLINE, || {
            let said = self.hear();
            heard.extend(said.iter().flat_map(|said| said.lines()).map(str::to_owned));
            Ok(ends(&heard, said.is_none()))
        })?;
        Ok(heard)
    }
}

fn has(heard: &[String], line: &str) -> bool {
    heard.iter().any(|said| said.starts_with(line))
}

#[test]
fn hears_of_the_start_of_reloads_and_of_the_end() -> Result {
    let lab = Lab::new(Options::default())?;
    let manager = Manager::new(&lab)?;
    let mut egret = manager.start(lab.nat(), &lab.config(""))?;
    manager.hear_until(&["READY=1", WELL, "WATCHDOG=1"])?;

    egret.reload(&lab.config("filtering = \"endpoint-independent\""))?;
    let heard = manager.hear_until(&["RELOADING=1"])?;
    let now = heard.iter().find_map(|said| said.strip_prefix("MONOTONIC_USEC="));
    assert!(now.is_some_and(|now| now.parse::<u64>().is_ok_and(|now| now > 0)), "{heard:?}");
    manager.hear_until(&["READY=1"])?;

    egret.reload(&lab.config("mapping = \"nonsense\""))?;
    manager.hear_until(&["RELOADING=1"])?;
    // While the packet worker is slow to answer, that stands in the place of the sessions.
    let tells = |said: &String| {
        said.starts_with("STATUS=not reloaded: ") && said.contains("nat.mapping") && said.ends_with("sessions")
    };
    manager.hear_all("READY=1, and why not", |heard, _| has(heard, "READY=1") && heard.iter().any(tells))?;
    egret.reload(&lab.config(""))?;
    manager.hear_until(&[WELL])?;

    assert!(egret.stop(DEADLINE)?.success());
    manager.hear_until(&["STOPPING=1"])?;
    Ok(())
}

#[test]
fn hears_that_it_is_ready_only_when_packets_flow_and_meanwhile_that_it_goes_on() -> Result {
    let lab = Lab::new(Options::default())?;
    lab.nat().run("ip route del default")?;
    let manager = Manager::new(&lab)?;
    let mut egret = manager.start(lab.nat(), &lab.config(""))?;
    let mut heard = manager.hear_until(&["STATUS=not ready: ", "EXTEND_TIMEOUT_USEC="])?;
    // A reload ends with READY=1, which would not be true.
    egret.reload(&lab.config("filtering = \"endpoint-independent\""))?;
    egret.process.wait_for_log("configuration reloaded")?;
    heard.extend(manager.hear_until(&["EXTEND_TIMEOUT_USEC="])?);
    assert!(!has(&heard, "READY=1"), "{heard:?}");
    lab.nat().run("ip route add default via 10.0.0.1")?;
    manager.hear_until(&["READY=1"])?;
    Ok(())
}

#[test]
fn hears_why_it_does_not_run() -> Result {
    let lab = Lab::new(Options::default())?;
    let manager = Manager::new(&lab)?;
    let mut egret = manager.start(lab.nat(), &lab.config("").replace("\"ens5\"", "\"ens9\""))?;
    assert!(!egret.process.wait(DEADLINE)?.success());
    let heard = manager.hear_until(&["STATUS="])?;
    assert!(heard.iter().any(|said| said.contains("ens9")) && !has(&heard, "READY=1"), "{heard:?}");
    Ok(())
}

#[test]
fn hears_nothing_of_life_while_the_packet_worker_is_stuck_and_all_else_is_well() -> Result {
    let lab = Lab::new(Options::default())?;
    let manager = Manager::new(&lab)?;
    let egret = manager.start(lab.nat(), &lab.config(""))?;
    manager.hear_until(&["READY=1", WELL, "WATCHDOG=1"])?;

    let hold = format!("/usr/bin/python3 -B {} {} egret-packets", script("hold_thread.py"), egret.process.id());
    let mut holder = lab.nat().spawn(&hold)?;
    holder.wait_for_log("held")?;
    // What was on its way, with one beat more at most, up to what is said because it is held; then nothing, for five
    // times as long as a watchdog would wait.
    let heard = manager.hear_all("silence", |_, is_silent| is_silent)?;
    let last = heard.iter().rfind(|said| said.starts_with("STATUS=")).map(String::as_str);
    assert_eq!(last, Some("STATUS=the packet worker does not answer"), "{heard:?}");
    let healthy = lab.nat().run("curl -sS --max-time 5 http://127.0.0.1:9464/healthz")?;
    assert_eq!(healthy, "ok\n", "the rest of the daemon is to live");

    drop(holder);
    manager.hear_until(&["WATCHDOG=1", WELL])?;
    Ok(())
}

const WELL: &str = "STATUS=af_packet, 0 sessions";

/// After which a manager would end the daemon.
const WATCHDOG: Duration = Duration::from_millis(600);
