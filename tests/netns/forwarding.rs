//! An API on two private servers, reached from the internet by the Elastic IP.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::no_leaks;
use super::pki::{Authority, SERVER};
use crate::lab::{
    DEADLINE, Download, Egret, INTERNET, Lab, NAT, Options, PUBLIC, Process, Result, Transport, Web,
};

/// A private web server, whose page says which one it is.
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
        "\n[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [{}, {}]\nalgorithm = \"round-robin\"\n{more}\n\
         [forward.health]\ntype = \"http\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\nhealthy_threshold = 2\n\
         unhealthy_threshold = 5\n",
        target(1),
        target(2)
    ))
}

/// What the API answers somebody on the internet, so many times.
fn ask(lab: &Lab, count: u32) -> Result<Vec<String>> {
    let ask = format!("curl -sS --max-time 5 http://{PUBLIC}:5000/");
    (0..count).map(|_| Ok(lab.internet().run(&ask)?.trim().to_owned())).collect()
}

/// The states of the targets.
fn states(egret: &Egret) -> Result<Vec<String>> {
    let status = egret.status()?;
    let targets = status["listeners"][0]["targets"].as_array().cloned().unwrap_or_default();
    Ok(targets.iter().filter_map(|target| target["state"].as_str().map(str::to_owned)).collect())
}

fn wait_states(lab: &Lab, egret: &Egret, wanted: [&str; 2]) -> Result {
    lab.nat().wait_for("the targets' states", || Ok(states(egret)? == wanted))
}

#[test]
fn only_healthy_servers_are_asked_and_nat_goes_on_beside_it() -> Result {
    let lab = Lab::new(Options::default())?;
    let web = Web::start(lab.internet(), 80)?;
    let [one, other] = servers(&lab)?;
    let egret = Egret::start(lab.nat(), &config(&lab, ""))?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let mut answers = ask(&lab, 6)?;
    answers.sort();
    assert_eq!((&*answers[0], &*answers[2], &*answers[3]), ("server 1", "server 1", "server 2"));
    drop(other);
    // At once: who refuses is not asked twice.
    assert_eq!(ask(&lab, 4)?, vec!["server 1"; 4]);
    wait_states(&lab, &egret, ["healthy", "unhealthy"])?;
    assert_eq!(ask(&lab, 4)?, vec!["server 1"; 4]);
    let other = server(&lab, 2)?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let seen = lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    assert!(seen.starts_with(&PUBLIC.to_string()), "{seen}");
    drop((web, one, other));
    no_leaks(&lab)
}

#[test]
fn drained_server_gets_no_connections_until_it_is_wanted_again() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    let egret = Egret::start(lab.nat(), &config(&lab, ""))?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let target = format!("{}:5000", Lab::client_address(1));
    assert!(egret.command(&["drain", "api", &target])?.status.success());
    assert_eq!(ask(&lab, 4)?, vec!["server 2"; 4]);
    wait_states(&lab, &egret, ["drained", "healthy"])?;
    assert!(egret.command(&["drain", "api", &target, "--undo"])?.status.success());
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    assert!(ask(&lab, 2)?.contains(&"server 1".to_owned()));
    assert_eq!(egret.command(&["drain", "other", &target])?.status.code(), Some(1));
    Ok(())
}

/// Says that it has said all before it has heard all, and then whether it hears an end.
const PATIENT: &str = "import socket, socketserver
class Patient(socketserver.BaseRequestHandler):
    def handle(self):
        asked = self.request.recv(100)
        self.request.sendall(b'answer to ' + asked)
        self.request.shutdown(socket.SHUT_WR)
        print('heard', asked.decode().strip(), self.request.recv(100), flush=True)
socketserver.ThreadingTCPServer(('', 5000), Patient).serve_forever()
";

#[test]
fn target_hears_the_end_that_was_lost_though_the_next_connection_has_begun() -> Result {
    let lab = Lab::new(Options::default())?;
    let target = lab.client(1);
    let script = target.directory.join("patient.py");
    std::fs::write(&script, PATIENT)?;
    let mut server = target.spawn(&format!("python3 {}", script.display()))?;
    target.wait_listening(Transport::Tcp, 5000)?;
    let listener = format!(
        "\n[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [\"{}:5000\"]\n\
         [forward.health]\ntype = \"tcp\"\ninterval = \"5m\"\n",
        Lab::client_address(1)
    );
    // On one processor, so that there is one thread, which has all the sockets.
    let _egret = Egret::start_under(lab.nat(), &lab.config(&listener), &["taskset", "--cpu-list", "0"])?;
    // The client's end comes after all, and so in a packet of its own.
    let ask = |words: &str| {
        lab.internet().shell(&format!("{{ echo {words}; sleep 1; }} | socat -t 5 - TCP:{PUBLIC}:5000"))
    };
    // So that a socket has had its connection.
    assert_eq!(ask("zero")?, "answer to zero\n");
    server.wait_for_log("heard zero b''")?;
    target.nft("table ip lost {\n chain in {\n type filter hook input priority 0\n tcp dport 5000 tcp flags & fin == fin drop\n }\n}\n")?;
    assert_eq!(ask("one")?, "answer to one\n");
    assert_eq!(ask("two")?, "answer to two\n");
    assert!(!server.log().contains("heard one"), "no end was lost");
    target.run("nft delete table ip lost")?;
    server.wait_for_log("heard one b''")?;
    server.wait_for_log("heard two b''")
}

#[test]
fn reload_keeps_forwarded_connections_and_opens_what_is_new() -> Result {
    let lab = Lab::new(Options::default())?;
    let [one, _other] = servers(&lab)?;
    one.put("large", LARGE)?;
    let first = config(&lab, "").replace(&format!(", \"{}:5000\"", Lab::client_address(2)), "");
    let mut egret = Egret::start(lab.nat(), &first)?;
    lab.nat().wait_for("health", || Ok(states(&egret)? == ["healthy"]))?;
    let download = Download::start(lab.internet(), PUBLIC, 5000, "large")?;
    lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
    egret.reload(
        &first.replace("name = \"api\"\nlisten = \"0.0.0.0:5000\"", "name = \"api\"\nlisten = \"nonsense\""),
    )?;
    egret.process.wait_for_log("configuration not reloaded")?;
    let second = first
        .split("[[forward]]")
        .nth(1)
        .map(|section| section.replace("api", "api2").replace("0.0.0.0:5000", "0.0.0.0:5001"));
    egret.reload(&format!("{first}\n[[forward]]{}", second.unwrap_or_default()))?;
    egret.process.wait_for_log("configuration reloaded")?;
    let answer = lab.internet().run(&format!("curl -sS --max-time 5 http://{PUBLIC}:5001/"))?;
    assert_eq!(answer, "server 1\n");
    assert!(download.finish()? == one.get("large")?, "other bytes came");
    Ok(())
}

#[test]
fn stopping_lets_a_forwarded_download_end() -> Result {
    let lab = Lab::new(Options::default())?;
    let [one, _other] = servers(&lab)?;
    one.put("large", LARGE)?;
    let mut egret = Egret::start(lab.nat(), &config(&lab, ""))?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let target = format!("{}:5000", Lab::client_address(2));
    assert!(egret.command(&["drain", "api", &target])?.status.success());
    let download = Download::start(lab.internet(), PUBLIC, 5000, "large")?;
    lab.nat().wait_for("the download", || Ok(egret.status()?["listeners"][0]["connections"] == 1))?;
    egret.process.signal(Signal::SIGTERM)?;
    egret.process.wait_for_log("waiting for forwarded connections to end")?;
    lab.internet().wait_for("new connections to be refused", || {
        let asked = lab.internet().try_run(&format!("curl -sS --max-time 5 http://{PUBLIC}:5000/"))?;
        Ok(!asked.status.success())
    })?;
    assert_eq!(egret.process.ended()?, None, "it did not wait");
    assert!(download.finish()? == one.get("large")?, "other bytes came");
    assert!(egret.process.wait(DEADLINE)?.success());
    Ok(())
}

/// Begins a download that goes on for longer than any of these tests.
fn download(lab: &Lab, egret: &Egret, port: u16) -> Result<Process> {
    let fetch =
        format!("curl -sS --max-time 60 --limit-rate 2M --output got{port} http://{PUBLIC}:{port}/large");
    let download = lab.internet().spawn(&fetch)?;
    let is_open = |listener: &serde_json::Value| {
        listener["listen"].as_str().is_some_and(|listen| listen.ends_with(&format!(":{port}")))
            && listener["connections"] == 1
    };
    lab.nat().wait_for("the download", || {
        Ok(egret.status()?["listeners"].as_array().into_iter().flatten().any(is_open))
    })?;
    Ok(download)
}

fn wait_reset(download: &mut Process) -> Result {
    assert!(!download.wait(DEADLINE)?.success(), "it was not cut off");
    assert!(download.log().contains("reset by peer"), "{}", download.log());
    Ok(())
}

/// A configuration with a second listener, on port 5001, that differs in these lines.
fn with_second(first: &str, replaced: &str, by: &str) -> String {
    let section = first.split("[[forward]]").nth(1).unwrap_or_default();
    let second = section.replace("\"api\"", "\"second\"").replace(":5000\"\ntargets", ":5001\"\ntargets");
    format!("{first}\n[[forward]]{}", second.replace(replaced, by))
}

#[test]
fn each_listener_stops_after_its_own_delay_and_tells_what_it_cuts() -> Result {
    let lab = Lab::new(Options::default())?;
    let servers = servers(&lab)?;
    for web in &servers {
        web.put("large", LARGE)?;
    }
    let delay = |seconds: u32| format!("deregistration_delay = \"{seconds}s\"");
    let first = config(&lab, &format!("access_log = true\n{}", delay(1)));
    let mut egret = Egret::start(lab.nat(), &with_second(&first, &delay(1), &delay(30)))?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let (mut short, mut long) = (download(&lab, &egret, 5000)?, download(&lab, &egret, 5001)?);
    egret.process.signal(Signal::SIGTERM)?;
    wait_reset(&mut short)?;
    egret.process.wait_for_log("ended=\"cut\"")?;
    assert_eq!(long.ended()?, None, "the other may go on for longer");
    // The second signal.
    egret.process.signal(Signal::SIGTERM)?;
    wait_reset(&mut long)?;
    assert!(egret.process.wait(DEADLINE)?.success());
    let said = egret.process.log();
    assert_eq!(said.matches("ended=\"cut\"").count(), 2, "{said}");
    Ok(())
}

#[test]
fn listener_that_a_reload_took_away_has_its_delay_at_a_stop_too() -> Result {
    let lab = Lab::new(Options::default())?;
    let servers = servers(&lab)?;
    for web in &servers {
        web.put("large", LARGE)?;
    }
    let mut egret = Egret::start(lab.nat(), &config(&lab, "deregistration_delay = \"3s\""))?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let mut download = download(&lab, &egret, 5000)?;
    let removed = Instant::now();
    egret.reload(&lab.config(""))?;
    egret.process.wait_for_log("listener closed")?;
    egret.process.signal(Signal::SIGTERM)?;
    egret.process.wait_for_log("waiting for forwarded connections to end")?;
    wait_reset(&mut download)?;
    assert!(removed.elapsed() > Duration::from_millis(2500), "{:?}", removed.elapsed());
    assert!(egret.process.wait(DEADLINE)?.success());
    Ok(())
}

/// Such as a secondary address on EC2, after the host was started anew.
#[test]
fn listener_waits_for_an_address_that_its_host_is_given_later() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    let later = Ipv4Addr::from(u32::from(NAT) + 1);
    let waiting = config(&lab, "").replace("0.0.0.0:5000", &format!("{later}:5000"));
    let mut egret = Egret::start(lab.nat(), &waiting)?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    assert!(egret.process.log().contains("does not have the address"), "{}", egret.process.log());
    let ask = format!("curl -sS --max-time 5 http://{later}:5000/");
    assert!(!lab.nat().try_run(&ask)?.status.success());
    lab.nat().run(&format!("ip address add {later}/32 dev ens5"))?;
    let answer = lab.nat().run(&ask)?;
    assert!(answer.starts_with("server "), "{answer}");
    // What another program has is another matter.
    let _taken = Web::start(lab.nat(), 5001)?;
    egret.reload(&waiting.replace(&format!("{later}:5000"), "0.0.0.0:5001"))?;
    egret.process.wait_for_log("configuration not reloaded")?;
    let expected = "forward api: cannot listen on 0.0.0.0:5001";
    assert!(egret.process.log().contains(expected), "{}", egret.process.log());
    Ok(())
}

/// Its checks, which are of another port, find nothing wrong with it.
#[test]
fn target_that_does_not_answer_is_left_for_another_in_time() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    let _checked = [Web::start(lab.client(1), 5001)?, Web::start(lab.client(2), 5001)?];
    lab.client(1)
        .nft("table ip silence { chain input { type filter hook input priority 0; tcp dport 5000 drop\n}\n}")?;
    let checked =
        config(&lab, "connect_timeout = \"300ms\"").replace("type = \"http\"", "type = \"tcp\"\nport = 5001");
    let egret = Egret::start(lab.nat(), &checked)?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    assert_eq!(ask(&lab, 4)?, vec!["server 2"; 4]);
    assert_eq!(egret.status()?["listeners"][0]["ended"]["unserved"], 0);
    Ok(())
}

#[test]
fn change_of_the_mode_waits_for_a_restart_and_keeps_connections() -> Result {
    let lab = Lab::new(Options::default())?;
    let servers = servers(&lab)?;
    for web in &servers {
        web.put("large", LARGE)?;
    }
    let (proxy, nat) = (config(&lab, ""), config(&lab, "mode = \"nat\""));
    for (mode, running, other) in [("proxy", &proxy, &nat), ("nat", &nat, &proxy)] {
        let mut egret = Egret::start(lab.nat(), running)?;
        wait_states(&lab, &egret, ["healthy", "healthy"])?;
        let mut download = download(&lab, &egret, 5000)?;
        // Twice: what runs is what the second is compared with, not what the first has asked for.
        for reload in 1..=2 {
            egret.reload(&with_second(other, "mode = \"nat\"", ""))?;
            let reloaded = || egret.process.log().matches("configuration reloaded").count();
            lab.nat().wait_for("the reload", || Ok(reloaded() == reload))?;
        }
        let said = egret.process.log();
        let tells = |line: &str| line.contains("only after a restart") && line.contains("forward.mode");
        assert!(said.lines().any(tells), "{said}");
        let listeners = egret.status()?["listeners"].clone();
        let api = listeners.as_array().into_iter().flatten().find(|listener| listener["name"] == "api");
        assert_eq!(api.map(|api| &api["mode"]), Some(&mode.into()), "{listeners}");
        assert!(ask(&lab, 1)?[0].starts_with("server "));
        let answer = lab.internet().run(&format!("curl -sS --max-time 5 http://{PUBLIC}:5001/"))?;
        assert!(answer.starts_with("server "), "all else was reloaded: {answer}");
        assert_eq!(download.ended()?, None, "{}", download.log());
        egret.process.signal(Signal::SIGKILL)?;
        egret.process.wait(DEADLINE)?;
        download.signal(Signal::SIGKILL)?;
        download.wait(DEADLINE)?;
    }
    Ok(())
}

/// The section that has clients come by TLS, with the certificate in these files.
fn tls(certificate: &Path, key: &Path, client_ca: &Path) -> String {
    let [certificate, key, client_ca] = [certificate, key, client_ca].map(Path::display);
    format!("\n[forward.tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\nclient_ca = \"{client_ca}\"\n")
}

#[test]
fn api_by_tls_is_for_clients_with_a_certificate_of_its_authority() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    let directory = &lab.nat().directory;
    let (authority, clients) = (Authority::new("the servers' CA"), Authority::new("the clients' CA"));
    let put = |name: &str, text: &str| -> Result<PathBuf> {
        let path = directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let (trusted, client_ca) = (put("ca.pem", &authority.pem())?, put("clients.pem", &clients.pem())?);
    let [certificate, key] = authority.server().put(directory, "server");
    let config = format!("{}{}", config(&lab, ""), tls(&certificate, &key, &client_ca));
    let egret = Egret::start(lab.nat(), &config)?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    let ask = |trusted: &Path, identity: Option<&[PathBuf; 2]>, scheme: &str| {
        let identity = identity.map_or_else(String::new, |[certificate, key]| {
            format!("--cert {} --key {}", certificate.display(), key.display())
        });
        lab.internet().try_run(&format!(
            "curl -sS --max-time 5 --cacert {} {identity} --resolve {SERVER}:5000:{PUBLIC} {scheme}://{SERVER}:5000/",
            trusted.display()
        ))
    };
    let right = clients.client().put(directory, "right");
    let wrong = Authority::new("the clients' CA").client().put(directory, "wrong");
    assert!(ask(&trusted, Some(&right), "https")?.success()?.stdout.starts_with("server "));
    for (identity, scheme) in [(None, "https"), (Some(&wrong), "https"), (Some(&right), "http")] {
        let refused = ask(&trusted, identity, scheme)?;
        assert!(!refused.status.success(), "{refused}");
    }
    lab.nat().wait_for("the refused to be counted", || {
        Ok(egret.status()?["listeners"][0]["ended"]["handshake_failed"] == 3)
    })?;
    let listener = egret.status()?["listeners"][0].clone();
    assert_eq!(listener["tls"]["mutual"], true, "{listener}");
    // Another certificate, of another authority, under the running daemon.
    let authority = Authority::new("the next CA");
    let trusted = put("next.pem", &authority.pem())?;
    let _ = authority.server().put(directory, "server");
    lab.nat()
        .wait_for("the next certificate", || Ok(ask(&trusted, Some(&right), "https")?.status.success()))?;
    no_leaks(&lab)
}

#[test]
fn certificate_that_cannot_be_used_is_told_with_its_entry() -> Result {
    let lab = Lab::new(Options::default())?;
    let _servers = servers(&lab)?;
    let nowhere = Path::new("/nowhere.pem");
    let (plain, expected) = (config(&lab, ""), "forward[0].tls.certificate: /nowhere.pem: no such file");
    let bad = format!("{plain}{}", tls(nowhere, nowhere, nowhere));
    let mut refused = Egret::spawn(lab.nat(), &bad)?;
    assert!(!refused.process.wait(DEADLINE)?.success());
    assert!(refused.process.log().contains(expected), "{}", refused.process.log());
    let mut egret = Egret::start(lab.nat(), &plain)?;
    wait_states(&lab, &egret, ["healthy", "healthy"])?;
    egret.reload(&bad)?;
    egret.process.wait_for_log("configuration not reloaded")?;
    assert!(egret.process.log().contains(expected), "{}", egret.process.log());
    assert_eq!(ask(&lab, 1)?.len(), 1, "nothing has changed");
    Ok(())
}

/// Much more than the buffers of all sockets on its way.
const LARGE: usize = 64 << 20;
