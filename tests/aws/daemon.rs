//! The daemon as on an instance: in the lab's VPC, with the metadata service and EC2 as stubs on the loopback
//! interface of its network namespace.

use std::fs::File;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::ec2::{ALL, ALLOCATION, ENI, Ec2, Fault, OTHER_ALLOCATION, OTHER_ENI, OTHER_TABLE, TABLE};
use crate::environment;
use crate::http::{Answer, serve};
use crate::imds::{self, Tree};
use crate::lab::{Arms, DEADLINE, Egret, Host, INTERNET, Lab, NAT, Options, Output, PUBLIC, Result, Web};

/// What the stubs tell, to be changed and looked at while they run.
pub struct Cloud {
    imds: Arc<Mutex<Imds>>,
    ec2: Arc<Mutex<Ec2>>,
    environment: Vec<String>,
    /// Dropped, it ends the stubs.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Imds {
    tree: Tree,
    answers: bool,
}

impl Cloud {
    /// The stubs, in the host's namespace.
    pub fn start(host: &Host) -> Result<Self> {
        host.run("ip link set lo up")?;
        host.run(&format!(
            "ip link set ens5 address {}",
            imds::MAC.map(|octet| format!("{octet:02x}")).join(":")
        ))?;
        let imds = Arc::new(Mutex::new(Imds { tree: environment::tree(), answers: true }));
        let ec2 = Arc::new(Mutex::new(Ec2::new()));
        let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
        let (stop, stopped) = oneshot::channel();
        let (told, addresses) = mpsc::channel();
        let stubs = (Arc::clone(&imds), Arc::clone(&ec2));
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (imds, ec2) = stubs;
                let imds = serve(move |request| {
                    let imds = imds.lock().unwrap();
                    if imds.answers { imds::answer(&imds.tree, request) } else { Answer::Silence }
                });
                let ec2 = serve(move |request| ec2.lock().unwrap().answer(request));
                told.send((imds.await, ec2.await)).unwrap();
                let _ = stopped.await;
            });
        });
        let (imds_address, ec2_address) = addresses.recv_timeout(DEADLINE)?;
        let environment = vec![
            "env".to_owned(),
            "HOME=/nonexistent".to_owned(),
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{imds_address}"),
            format!("AWS_ENDPOINT_URL_EC2=http://{ec2_address}"),
        ];
        Ok(Self { imds, ec2, environment, stop: Some(stop), thread: Some(thread) })
    }

    fn spawn(&self, host: &Host, toml: &str) -> Result<Egret> {
        let wrapper: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        Egret::spawn_under(host, toml, &wrapper)
    }

    /// Runs a command of Egret with a configuration, up to its end.
    pub fn run(&self, host: &Host, toml: &str, command: &[&str]) -> Result<Output> {
        let config = host.directory.join("once.toml").display().to_string();
        std::fs::write(&config, toml)?;
        let mut arguments: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        arguments.push(env!("CARGO_BIN_EXE_egret"));
        arguments.extend(command);
        arguments.extend(["--config", &config]);
        host.run_for(DEADLINE, &arguments, "")
    }

    fn imds(&self, change: impl FnOnce(&mut Imds)) {
        change(&mut self.imds.lock().unwrap());
    }

    pub fn ec2<T>(&self, look: impl FnOnce(&mut Ec2) -> T) -> T {
        look(&mut self.ec2.lock().unwrap())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until the status, of a daemon that is ready, has this value.
fn wait_for_status(host: &Host, egret: &Egret, key: &str, value: &Value) -> Result<Value> {
    let mut status = Value::Null;
    host.wait_for(&format!("{key}: {value}"), || {
        let output = egret.try_status()?;
        status = serde_json::from_str(&output.stdout).unwrap_or_default();
        Ok(output.status.success() && status[key] == *value)
    })?;
    Ok(status)
}

/// What the tree of the metadata service says, as the status shows it.
fn internal() -> Value {
    json!(["10.0.0.0/16", "100.64.0.0/20"])
}

fn external() -> Value {
    json!([{ "private": NAT, "public": PUBLIC }])
}

#[test]
fn empty_configuration_is_a_nat_instance_that_knows_itself() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let mut cloud = Cloud::start(lab.nat())?;
    cloud.environment.push("EGRET_LOG=trace".to_owned());
    let mut egret = cloud.spawn(lab.nat(), "")?;
    let status = wait_for_status(lab.nat(), &egret, "source_dest_check", &json!("off"))?;
    assert_eq!(status["internal"], internal());
    assert_eq!(status["bypass"], internal());
    assert_eq!(status["external_addresses"], external());
    assert_eq!(cloud.ec2(|ec2| (*ec2.check(ENI), ec2.writes())), (false, 1));
    let text = egret.command(&["status"])?.success()?.stdout;
    assert!(text.contains("source/dest check off") && text.contains("(public 203.0.113.7)"), "{text}");
    lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    assert!(egret.stop(DEADLINE)?.success());
    let log = egret.process.log();
    assert!(log.contains("DEBUG") && log.contains("http"), "the SDK logs: {log}");
    for credential in [imds::TOKEN, "SecretAccessKey"] {
        assert!(!log.contains(credential), "{credential} is logged");
    }
    Ok(())
}

/// Makes these the tags of the instance.
fn tag(cloud: &Cloud, tags: &[(&str, &str)]) {
    let keys: Vec<&str> = tags.iter().map(|(key, _)| *key).collect();
    cloud.imds(|imds| {
        imds.tree.insert("tags/instance".to_owned(), keys.join("\n"));
        let of = |(key, text): &(&str, &str)| (format!("tags/instance/{key}"), (*text).to_owned());
        imds.tree.extend(tags.iter().map(of));
    });
}

#[test]
fn tags_set_what_the_file_leaves_open_and_are_kept_while_nobody_tells_them() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    tag(&cloud, &[("Name", "gate"), ("egret:nat.bypass", "10.9.0.0/16"), ("egret:nat.mapping", "cone")]);
    let mut egret = cloud.spawn(lab.nat(), "")?;
    wait_for_status(lab.nat(), &egret, "bypass", &json!(["10.9.0.0/16"]))?;
    let said = egret.process.log();
    assert!(said.contains("tag egret:nat.mapping") && said.contains("the tag is left out"), "{said}");
    tag(&cloud, &[("egret:nat.bypass", "10.8.0.0/16")]);
    egret.reload("")?;
    wait_for_status(lab.nat(), &egret, "bypass", &json!(["10.8.0.0/16"]))?;
    cloud.imds(|imds| imds.answers = false);
    egret.reload("[nat]\nexternal_mtu = 1400")?;
    egret.process.wait_for_log("instance tags not known")?;
    cloud.imds(|imds| imds.answers = true);
    egret.reload("[nat]\nbypass = [\"10.7.0.0/16\"]")?;
    wait_for_status(lab.nat(), &egret, "bypass", &json!(["10.7.0.0/16"]))?;
    egret.process.wait_for_log("has no effect")?;
    let said = egret.process.log();
    assert!(!said.contains("configuration not reloaded"), "{said}");
    Ok(())
}

#[test]
fn tags_that_do_not_fit_the_host_do_not_keep_it_from_starting() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    tag(&cloud, &[("egret:nat.external_interface", "none0")]);
    let egret = cloud.spawn(lab.nat(), "")?;
    wait_for_status(lab.nat(), &egret, "internal", &internal())?;
    let said = egret.process.log();
    assert!(said.contains("instance tags do not fit this host"), "{said}");
    Ok(())
}

#[test]
fn tags_that_come_late_are_followed() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    tag(&cloud, &[("egret:nat.bypass", "10.9.0.0/16")]);
    cloud.imds(|imds| imds.answers = false);
    let egret = cloud.spawn(lab.nat(), "")?;
    wait_for_status(lab.nat(), &egret, "bypass", &json!(["10.0.0.0/8"]))?;
    cloud.imds(|imds| imds.answers = true);
    wait_for_status(lab.nat(), &egret, "bypass", &json!(["10.9.0.0/16"]))?;
    Ok(())
}

#[test]
fn tags_that_come_after_the_identity_are_followed() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    tag(&cloud, &[("egret:nat.bypass", "10.9.0.0/16")]);
    cloud.imds(|imds| imds.answers = false);
    let mut egret = cloud.spawn(lab.nat(), "")?;
    // The daemon waits for its identity when it has given up on the tags.
    egret.process.wait_for_log("instance tags not known")?;
    cloud.imds(|imds| imds.answers = true);
    wait_for_status(lab.nat(), &egret, "bypass", &json!(["10.9.0.0/16"]))?;
    Ok(())
}

#[test]
fn the_checks_of_both_interfaces_are_switched_off() -> Result {
    let lab = Lab::new(Options { arms: Arms::Two, ..Options::default() })?;
    let _web = Web::start(lab.internet(), 80)?;
    let cloud = Cloud::start(lab.nat())?;
    lab.nat().run("ip link set ens6 address 02:29:96:8f:6a:2e")?;
    let mut internal = Tree::new();
    for (path, text) in environment::tree() {
        if let Some(rest) = path.strip_prefix(imds::INTERFACE).filter(|rest| !rest.contains("public")) {
            internal.insert(format!("network/interfaces/macs/02:29:96:8f:6a:2e{rest}"), text);
        }
    }
    internal.insert("network/interfaces/macs/02:29:96:8f:6a:2e/interface-id".to_owned(), OTHER_ENI.to_owned());
    cloud.imds(|imds| imds.tree.extend(internal));
    let egret = cloud.spawn(lab.nat(), "[nat]\ninternal_interface = \"ens6\"")?;
    let status = wait_for_status(lab.nat(), &egret, "source_dest_check", &json!("off"))?;
    assert_eq!(status["external_addresses"], external());
    let checks = cloud.ec2(|ec2| (*ec2.check(ENI), *ec2.check(OTHER_ENI), ec2.writes()));
    assert_eq!(checks, (false, false, 2));
    lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    Ok(())
}

#[test]
fn an_elastic_ip_that_moves_is_followed() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    let mut tree = environment::tree();
    let associations: Tree =
        tree.extract_if(|path, _| path.contains("ipv4") && path.contains("203.0.113.7")).collect();
    let public: Tree = tree.extract_if(|path, _| path.ends_with("public-ipv4s")).collect();
    cloud.imds(|imds| imds.tree = tree);
    let egret = cloud.spawn(lab.nat(), "")?;
    wait_for_status(lab.nat(), &egret, "source_dest_check", &json!("off"))?;
    let bare = wait_for_status(lab.nat(), &egret, "internal", &internal())?;
    assert_eq!(bare["external_addresses"], json!([{ "private": NAT }]));
    cloud.imds(|imds| imds.tree.extend(associations.into_iter().chain(public)));
    // Sooner than the next look.
    egret.reload("")?;
    wait_for_status(lab.nat(), &egret, "external_addresses", &external())?;
    Ok(())
}

/// After a start of the host it has only its first address, and the second one's Elastic IP may be at a peer.
#[test]
fn listeners_of_a_secondary_address_wait_for_it_and_its_elastic_ip() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    let _web = Web::start(lab.client(1), 5000)?;
    let listener = |name: &str, port: u16, mode: &str| {
        format!(
            "[[forward]]\nname = \"{name}\"\nlisten = \"10.0.0.11:{port}\"\nmode = \"{mode}\"\n\
             targets = [\"{}:5000\", {{ address = \"100.64.0.5:5000\", backup = true }}]\n",
            Lab::client_address(1)
        )
    };
    let toml = listener("carried", 5000, "proxy") + &listener("translated", 443, "nat");
    let mut egret = cloud.spawn(lab.nat(), &toml)?;
    wait_for_status(lab.nat(), &egret, "external_addresses", &external())?;
    egret.process.wait_for_log("this host does not have the address of a listener")?;
    egret.process.wait_for_log("no external address is this listener's")?;
    lab.nat().run("ip address replace 10.0.0.11/32 dev ens5")?;
    let second = Tree::from([
        (format!("{}/public-ipv4s", imds::INTERFACE), format!("{PUBLIC}\n203.0.113.8")),
        (format!("{}/ipv4-associations/203.0.113.8", imds::INTERFACE), "10.0.0.11".to_owned()),
    ]);
    cloud.imds(|imds| imds.tree.extend(second));
    egret.reload(&toml)?;
    let both =
        json!([{ "private": NAT, "public": PUBLIC }, { "private": "10.0.0.11", "public": "203.0.113.8" }]);
    wait_for_status(lab.nat(), &egret, "external_addresses", &both)?;
    for port in [5000, 443] {
        lab.client(2).run(&format!("curl -sS --max-time 5 http://10.0.0.11:{port}/whoami"))?;
    }
    cloud.imds(|imds| imds.tree = environment::tree());
    egret.reload(&toml)?;
    wait_for_status(lab.nat(), &egret, "external_addresses", &external())?;
    assert!(!egret.process.log().contains("ERROR"), "{}", egret.process.log());
    Ok(())
}

#[test]
fn a_metadata_service_that_comes_late_is_not_waited_for_and_then_followed() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let cloud = Cloud::start(lab.nat())?;
    cloud.imds(|imds| imds.answers = false);
    let begin = Instant::now();
    let egret = cloud.spawn(lab.nat(), "[aws]\nenabled = true")?;
    let status = wait_for_status(lab.nat(), &egret, "source_dest_check", &json!("unknown"))?;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(status["internal"], json!(["10.0.0.0/8"]));
    assert_eq!(status["external_addresses"], json!([{ "private": NAT }]));
    let log = egret.process.log();
    // Which datapath it is has a line of its own.
    let warnings =
        log.lines().filter(|line| line.contains("WARN") && !line.contains("xdp cannot be used")).count();
    assert_eq!(warnings, 1, "{log}");
    lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    cloud.imds(|imds| imds.answers = true);
    wait_for_status(lab.nat(), &egret, "external_addresses", &external())?;
    let status = wait_for_status(lab.nat(), &egret, "source_dest_check", &json!("off"))?;
    assert_eq!((&status["internal"], &status["bypass"]), (&internal(), &internal()));
    assert_eq!(cloud.ec2(|ec2| ec2.writes()), 1);
    Ok(())
}

#[test]
fn a_check_that_cannot_be_switched_off_is_shown_and_leaves_it_ready() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    cloud.ec2(|ec2| ec2.fault = Fault::Error("ModifyNetworkInterfaceAttribute", 403, "UnauthorizedOperation"));
    let egret = cloud.spawn(lab.nat(), "")?;
    let failed = "failed: the instance's role does not allow ec2:ModifyNetworkInterfaceAttribute";
    let status = wait_for_status(lab.nat(), &egret, "source_dest_check", &json!(failed))?;
    assert_eq!(status["ready"], json!(true));
    cloud.ec2(|ec2| ec2.fault = Fault::None);
    wait_for_status(lab.nat(), &egret, "source_dest_check", &json!("off"))?;
    Ok(())
}

#[test]
fn aws_that_is_switched_off_is_not_asked() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    let egret = cloud.spawn(lab.nat(), "[aws]\nenabled = false")?;
    let status = wait_for_status(lab.nat(), &egret, "internal", &json!(["10.0.0.0/8"]))?;
    assert_eq!(status.get("source_dest_check"), None);
    assert_eq!(cloud.ec2(|ec2| ec2.calls.len()), 0);
    Ok(())
}

#[test]
fn sigterm_ends_it_within_a_second_while_it_waits_for_aws() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    let ports = "sysctl -n net.ipv4.ip_local_port_range";
    let before = lab.nat().run(ports)?;
    for (imds_answers, log) in [(false, "ephemeral ports moved"), (true, "identity found")] {
        cloud.imds(|imds| imds.answers = imds_answers);
        cloud.ec2(|ec2| ec2.fault = Fault::Silence(ALL));
        let mut egret = cloud.spawn(lab.nat(), "")?;
        egret.process.wait_for_log(log)?;
        if imds_answers {
            // Attaching programs to an interface is not broken off.
            egret.process.wait_for_log("started version=")?;
        }
        let asked = Instant::now();
        assert!(egret.stop(DEADLINE)?.success(), "{}", egret.process.log());
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert_eq!(lab.nat().run(ports)?, before);
    }
    Ok(())
}

/// Route tables by id, and both Elastic IPs.
pub fn gateway() -> String {
    format!(
        "[aws]\nroute_tables = [\"{TABLE}\"]\nelastic_ips = [\"{ALLOCATION}\", \"{OTHER_ALLOCATION}\"]\n\
         elastic_ip_count = 2\n"
    )
}

/// The metadata service of an interface with one private address and no public one.
fn bare() -> Tree {
    let mut tree = environment::tree();
    tree.retain(|path, _| !path.contains("public-ipv4s") && !path.contains("ipv4-associations"));
    tree.insert(format!("{}/local-ipv4s", imds::INTERFACE), NAT.to_string());
    tree
}

/// Waits until the status, of a daemon that is ready, has this value in its section `aws`.
fn wait_for_aws(host: &Host, egret: &Egret, key: &str, value: &Value) -> Result<Value> {
    let mut status = Value::Null;
    host.wait_for(&format!("{key}: {value}"), || {
        let output = egret.try_status()?;
        status = serde_json::from_str(&output.stdout).unwrap_or_default();
        Ok(output.status.success() && status["aws"][key] == *value)
    })?;
    Ok(status)
}

fn active(tables: &[&str]) -> Value {
    let route = |table: &&str| json!({ "route_table": table, "destination": "0.0.0.0/0", "state": "active" });
    Value::Array(tables.iter().map(route).collect())
}

#[test]
fn routes_and_elastic_ips_are_had_within_two_seconds() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    cloud.ec2(|ec2| {
        let interface = ec2.world.interfaces.get_mut(ENI).unwrap();
        interface.addresses = vec![NAT];
    });
    cloud.imds(|imds| imds.tree = bare());
    let begin = Instant::now();
    let egret = cloud.spawn(lab.nat(), &gateway())?;
    while cloud.ec2(|ec2| ec2.route(TABLE, "0.0.0.0/0").is_none()) {
        assert!(begin.elapsed() < DEADLINE, "{}", egret.process.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let routed = begin.elapsed();
    assert!(routed < Duration::from_secs(2), "{routed:?}");
    // Before the metadata service tells, and with an address that the host has not had.
    let both = json!([{ "private": NAT, "public": "203.0.113.7" },
        { "private": "10.0.0.30", "public": "203.0.113.8" }]);
    let status = wait_for_status(lab.nat(), &egret, "external_addresses", &both)?;
    assert_eq!(status["aws"]["routes"], active(&[TABLE]));
    assert_eq!(status["aws"]["source_dest_checks"], json!({ ENI: "off" }));
    assert_eq!(status["aws"]["problems"], json!([]));
    assert_eq!(status["aws"]["calls"]["ec2:AssociateAddress"], json!({ "done": 2 }));
    let addresses = lab.nat().run("ip -4 address show dev ens5")?;
    assert!(addresses.contains("inet 10.0.0.30/32"), "{addresses}");
    // As a restart of networkd takes it away.
    lab.nat().run("ip address del 10.0.0.30/32 dev ens5")?;
    lab.nat().wait_for("the address to be back", || {
        Ok(lab.nat().run("ip -4 address show dev ens5")?.contains("inet 10.0.0.30/32"))
    })?;
    // It is ready once it has seen that, too.
    lab.nat().wait_for("readiness", || Ok(egret.try_status()?.status.success()))?;
    let text = egret.command(&["status"])?.stdout;
    assert!(text.contains(&format!("0.0.0.0/0 of {TABLE}: active")), "{text}");
    Ok(())
}

#[test]
fn reloading_changes_which_tables_lead_here() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    let egret = cloud.spawn(lab.nat(), &gateway())?;
    wait_for_aws(lab.nat(), &egret, "routes", &active(&[TABLE]))?;
    egret.reload(&format!("[aws]\nroute_tables = [\"{OTHER_TABLE}\"]"))?;
    wait_for_aws(lab.nat(), &egret, "routes", &active(&[OTHER_TABLE]))?;
    let status = wait_for_aws(lab.nat(), &egret, "elastic_ips", &json!([]))?;
    assert_eq!(status["aws"]["failures"], json!([]));
    // What is no longer wanted is left as it is.
    assert!(cloud.ec2(|ec2| ec2.used(ALLOCATION).is_some() && ec2.route(TABLE, "0.0.0.0/0").is_some()));
    Ok(())
}

#[test]
fn packets_flow_whatever_the_api_does() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let cloud = Cloud::start(lab.nat())?;
    // The lab's internet knows the first of them alone.
    let toml = gateway().replace("elastic_ip_count = 2", "elastic_ip_count = 1");
    let egret = cloud.spawn(lab.nat(), &toml)?;
    wait_for_aws(lab.nat(), &egret, "routes", &active(&[TABLE]))?;
    for fault in [
        Fault::Closed(ALL),
        Fault::Rubbish(ALL),
        Fault::Error(ALL, 503, "RequestLimitExceeded"),
        Fault::Error(ALL, 503, "ServiceUnavailable"),
        Fault::Silence(ALL),
    ] {
        let calls = cloud.ec2(|ec2| {
            ec2.fault = fault;
            ec2.calls.len()
        });
        // A look that nobody answers.
        egret.reload(&toml)?;
        lab.nat().wait_for("a call", || Ok(cloud.ec2(|ec2| ec2.calls.len()) > calls))?;
        lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
        assert_eq!(egret.status()?["ready"], json!(true), "{fault:?}");
        assert_eq!(egret.status()?["aws"]["routes"], active(&[TABLE]), "as last seen");
    }
    Ok(())
}

#[test]
fn an_instance_without_a_role_moves_packets_and_says_what_it_lacks_until_it_has_one() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let cloud = Cloud::start(lab.nat())?;
    cloud.imds(|imds| imds.tree.retain(|path, _| !path.starts_with("iam/")));
    let egret = cloud.spawn(lab.nat(), &gateway())?;
    lab.nat().wait_for("a failure", || {
        let status: Value = serde_json::from_str(&egret.try_status()?.stdout).unwrap_or_default();
        let failure = status["aws"]["failures"][0].as_str().unwrap_or_default().to_owned();
        Ok(failure.contains("credential"))
    })?;
    lab.client(1).run(&format!("curl -sS --max-time 5 http://{INTERNET}/whoami"))?;
    assert_eq!(cloud.ec2(|ec2| ec2.calls.len()), 0, "nothing is asked without credentials");
    cloud.imds(|imds| imds.tree = environment::tree());
    wait_for_aws(lab.nat(), &egret, "routes", &active(&[TABLE]))?;
    Ok(())
}
