//! Peers whose addresses change, as those of an Auto Scaling group's instances do, and that are found by a tag.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::ec2::Fault;
use crate::lab::{DEADLINE, Egret, INTERNET, Result, gateway_address, wait_for};
use crate::vpc::{ALLOCATIONS, KEY, NAMES, TABLES, Vpc, key_file, number};

const TAG: &str = "egret:gateway";

/// Two gateways, for which there are three machines.
struct Site {
    vpc: Vpc,
}

impl Site {
    /// None of which runs yet.
    fn new() -> Result<Self> {
        Ok(Self { vpc: Vpc::new(3, false)? })
    }

    /// What an Auto Scaling group's template would have: nothing that is one machine's.
    fn config(&self, gateway: usize) -> String {
        let peer = NAMES[1 - gateway];
        format!(
            "[aws]\nroute_tables = [\"{}\"]\nelastic_ips = [\"{}\"]\n\n[failover]\ngateway = \"{}\"\n\
             key_file = \"{}\"\nlisten = \"0.0.0.0:7946\"\nhold_down = \"5s\"\n\
             peers = [{{ gateway = \"{peer}\", address = \"ec2-tag:{TAG}={peer}:7946\" }}]\n\
             egress_probes = [\"{INTERNET}:80\", \"{INTERNET}:7\"]\n",
            TABLES[gateway],
            ALLOCATIONS[gateway],
            NAMES[gateway],
            key_file(&self.vpc.lab, gateway, KEY).display(),
        )
    }

    /// Starts a machine as the instance of a gateway, which remembers nothing of others.
    fn launch(&self, machine: usize, gateway: usize) -> Result<Egret> {
        let directory = self.vpc.lab.directory().join(format!("state-{machine}"));
        std::fs::create_dir_all(&directory)?;
        let state = format!("STATE_DIRECTORY={}", directory.display());
        self.vpc.spawn_with(machine, &self.config(gateway), &[&state])
    }

    /// Has EC2 show these machines as running, each with the tag of a gateway.
    fn show(&self, machines: &[(usize, usize)]) {
        let tag = |gateway: usize| (TAG.to_owned(), NAMES[gateway].to_owned());
        let shown = |(machine, gateway): &(usize, usize)| (gateway_address(number(*machine)), tag(*gateway));
        self.vpc.ec2.lock().unwrap().world.instances = machines.iter().map(shown).collect();
    }

    fn made(&self, action: &str) -> usize {
        self.vpc.ec2.lock().unwrap().made(action)
    }
}

/// What an instance says of its only peer, once it says anything.
fn peer(egret: &Egret) -> Value {
    let status = egret.try_status().ok().and_then(|output| serde_json::from_str::<Value>(&output.stdout).ok());
    status.map_or(Value::Null, |status| status["fleet"]["peers"][0].clone())
}

fn wait_peer(egret: &Egret, what: &str, right: impl Fn(&Value) -> bool) -> Result {
    wait_for(what, DEADLINE, || Ok(right(&peer(egret))))
}

fn wait_well(egret: &Egret) -> Result {
    wait_peer(egret, "the peer to be alive and well", |peer| {
        (&peer["state"], &peer["connected"], &peer["health"]) == (&"alive".into(), &true.into(), &"well".into())
    })
}

fn wait_at(site: &Site, gateway: usize, machine: usize) -> Result {
    wait_for(&format!("{} to be at machine {machine}", NAMES[gateway]), DEADLINE * 2, || {
        Ok(site.vpc.at_ec2(gateway) == (Some(machine), Some(machine)))
    })
}

fn kill(mut egret: Egret) -> Result {
    egret.process.signal(Signal::SIGKILL)?;
    egret.process.wait(DEADLINE)?;
    Ok(())
}

#[test]
fn peer_that_is_replaced_at_another_address_is_found_by_its_tag_and_gets_its_gateway_back() -> Result {
    let site = Site::new()?;
    // Of those that have a tag, one is the asking instance itself, as a careless operator may have it.
    site.show(&[(0, 0), (1, 1), (0, 1)]);
    let (a, b) = (site.launch(0, 0)?, site.launch(1, 1)?);
    for egret in [&a, &b] {
        wait_well(egret)?;
    }
    wait_at(&site, 0, 0)?;
    wait_at(&site, 1, 1)?;
    assert!(!a.process.log().contains("own name"), "{}", a.process.log());
    // While they are connected, nobody asks.
    let asked = site.made("DescribeInstances");
    kill(b)?;
    wait_at(&site, 1, 0)?;
    // The old machine is still there and has the tag, as while its group lets it end slowly.
    site.show(&[(1, 1), (2, 1)]);
    let b = site.launch(2, 1)?;
    for egret in [&a, &b] {
        wait_well(egret)?;
    }
    assert!(site.made("DescribeInstances") > asked);
    assert!(peer(&a)["last_error"].is_null(), "{}", peer(&a));
    // Well for long enough, it gets home what is its own.
    wait_at(&site, 1, 2)?;
    assert_eq!(site.vpc.at_ec2(0), (Some(0), Some(0)));
    Ok(())
}

#[test]
fn peer_that_is_not_found_is_waited_for_and_found_again_without_ec2() -> Result {
    let site = Site::new()?;
    let a = site.launch(0, 0)?;
    wait_at(&site, 0, 0)?;
    wait_peer(&a, "the peer not to be found", |peer| {
        let why = peer["last_error"].as_str().unwrap_or_default();
        why == format!("not found: no other running instance of this VPC has the tag {TAG}=az-b")
    })?;
    let text = a.command(&["status"])?.success()?.stdout;
    assert!(text.contains("not found: no other running instance"), "{text}");
    site.show(&[(1, 1)]);
    let b = site.launch(1, 1)?;
    wait_well(&a)?;
    wait_at(&site, 1, 1)?;
    // A restart while EC2 does not say where anybody is: what was known holds.
    kill(a)?;
    site.vpc.ec2.lock().unwrap().fault = Fault::Closed("DescribeInstances");
    let a = site.launch(0, 0)?;
    wait_well(&a)?;
    wait_well(&b)?;
    Ok(())
}
