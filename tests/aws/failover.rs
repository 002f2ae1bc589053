//! A fleet: daemons in a VPC, each with a metadata service of its own, and one EC2, whose routes and addresses are those
//! by which packets really go: moto, but where a test needs what only the stub does (private addresses that are secondary,
//! an interface without room, an EC2 that minds what it is asked).

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::ec2::{ALL, ElasticIp, Fault};
use crate::lab::{
    DEADLINE, Egret, Failure, Host, INTERNET, Process, Result, Transport, Web, gateway_address, wait_for,
};
use crate::moto_vpc;
use crate::vpc::{KEY, NAMES, Vpc, number};

/// What a take-over may take in all, silence included. A machine that is busy with other tests has its share in that.
const BOUND: Duration = Duration::from_secs(15);

/// A fleet in its VPC.
struct Site {
    instances: Vec<Option<Egret>>,
    _web: Web,
    _moto: Option<Process>,
    vpc: Vpc,
}

/// Who plays EC2.
#[derive(Clone, Copy, Debug)]
enum Cloud {
    Stub,
    Moto,
}

impl std::ops::Deref for Site {
    type Target = Vpc;

    fn deref(&self) -> &Vpc {
        &self.vpc
    }
}

impl Site {
    /// With so many instances, none of which runs yet.
    fn new(cloud: Cloud, count: usize) -> Result<Self> {
        let (vpc, moto) = match cloud {
            Cloud::Stub => (Vpc::new(count, false)?, None),
            Cloud::Moto => moto_vpc::build(count).map(|(vpc, moto)| (vpc, Some(moto)))?,
        };
        let web = Web::start(vpc.lab.internet(), 80)?;
        Ok(Self { instances: (0..count).map(|_| None).collect(), _web: web, _moto: moto, vpc })
    }

    /// With all instances up, each of which has its home gateway.
    fn settled(cloud: Cloud, count: usize) -> Result<Self> {
        let mut site = Self::new(cloud, count)?;
        for index in 0..count {
            site.start(index, &site.config(index))?;
        }
        for index in 0..count {
            site.wait_active(index, index)?;
        }
        site.wait("everybody knows everybody", |site| {
            Ok((0..count).all(|index| {
                let fleet = site.fleet(index);
                let peers = fleet["peers"].as_array().cloned().unwrap_or_default();
                let gateways = fleet["gateways"].as_array().cloned().unwrap_or_default();
                peers.len() == count - 1
                    && peers.iter().all(|peer| peer["state"] == "alive" && peer["health"] == "well")
                    && gateways.len() == count
                    && gateways.iter().all(|gateway| gateway["host"] == gateway["gateway"])
            }))
        })?;
        Ok(site)
    }

    fn start(&mut self, index: usize, toml: &str) -> Result {
        self.instances[index] = Some(self.vpc.spawn(index, toml)?);
        Ok(())
    }

    fn egret(&self, index: usize) -> &Egret {
        self.instances[index].as_ref().expect("it was started")
    }

    /// As an operator would write it, with a shorter hold-down.
    fn config(&self, index: usize) -> String {
        self.config_with(index, KEY, "hold_down = \"5s\"")
    }

    /// What an instance says of its fleet.
    fn fleet(&self, index: usize) -> Value {
        let output = self.egret(index).try_status();
        let status: Value =
            output.map_or(Value::Null, |output| serde_json::from_str(&output.stdout).unwrap_or_default());
        status["fleet"].clone()
    }

    /// What an instance says of a gateway.
    fn gateway(&self, index: usize, gateway: usize) -> Value {
        let fleet = self.fleet(index);
        let gateways = fleet["gateways"].as_array().cloned().unwrap_or_default();
        gateways.into_iter().find(|known| known["gateway"] == NAMES[gateway]).unwrap_or_default()
    }

    fn wait(&self, what: &str, mut condition: impl FnMut(&Self) -> Result<bool>) -> Result {
        let waited = wait_for(what, DEADLINE, || condition(self));
        waited.map_err(|failure| {
            let state = |index| format!("{}: {:#}", NAMES[index], self.fleet(index));
            let running = (0..self.instances.len()).filter(|index| self.instances[*index].is_some());
            Failure::new(format!("{failure:?}\n{}", running.map(state).collect::<Vec<_>>().join("\n")))
        })
    }

    fn wait_active(&self, index: usize, gateway: usize) -> Result {
        self.wait(&format!("{} to be active at {}", NAMES[gateway], NAMES[index]), |site| {
            Ok(site.gateway(index, gateway)["role"] == "active")
        })
    }

    /// Waits until a gateway is an instance's at EC2, and packets go that way; gives how long that was.
    fn wait_moved(&self, gateway: usize, to: usize, begun: Instant) -> Result<Duration> {
        self.wait(&format!("{} to be moved to {}", NAMES[gateway], NAMES[to]), |site| {
            Ok(site.at_ec2(gateway) == (Some(to), Some(to)))
        })?;
        let moved = begun.elapsed();
        let client = self.lab.client(number(gateway));
        client.wait_for("an echo from the internet", || {
            Ok(client.try_run(&format!("ping -n -c 1 -W 0.1 {INTERNET}"))?.status.success())
        })?;
        let (name, at, flows) = (NAMES[gateway], NAMES[to], begun.elapsed());
        println!("{name} at {at} after {moved:.2?}, packets flow after {flows:.2?}");
        self.answers(gateway)?;
        assert!(moved < BOUND, "{} moved after {moved:?}", NAMES[gateway]);
        Ok(moved)
    }

    /// A client of the gateway's subnet reaches the internet, and is seen by an Elastic IP; by an instance's own address
    /// only while the gateway is on its way.
    fn answers(&self, gateway: usize) -> Result {
        let client = self.lab.client(number(gateway));
        let ask = format!("curl -sS --max-time 1 http://{INTERNET}/whoami");
        client.wait_for("an answer from the internet", || {
            let seen = client.try_run(&ask)?.stdout;
            let public = |ip: &ElasticIp| seen.starts_with(&format!("{}:", ip.public));
            Ok(self.ec2.lock().unwrap().world.elastic_ips.values().any(public))
        })
    }

    /// Has an operator hand a gateway over, as soon as the peer is steady.
    fn hand_over(&self, index: usize, arguments: &[&str]) -> Result<String> {
        let mut said = String::new();
        self.wait("a hand-over", |site| {
            let output = site.egret(index).command(&[&["handover"], arguments].concat())?;
            said = output.stdout;
            Ok(output.status.success())
        })?;
        Ok(said)
    }

    fn kill(&mut self, index: usize) -> Result {
        let mut egret = self.instances[index].take().expect("it runs");
        egret.process.signal(Signal::SIGKILL)?;
        egret.process.wait(DEADLINE)?;
        Ok(())
    }

    /// Cuts an instance's way to the internet, and leaves the VPC and EC2's API to it.
    fn cut_egress(&self, index: usize) -> Result {
        let name = if index == 0 { "nat".to_owned() } else { format!("nat{}", index + 1) };
        self.lab.router().nft(&format!(
            "table ip cut {{\n chain forward {{\n type filter hook forward priority -10\n\
             iifname \"{name}\" oifname \"internet\" drop\n }}\n}}\n"
        ))
    }
}

/// A ping that goes on, and what it has lost.
struct Ping {
    process: Process,
}

impl Ping {
    fn start(client: &Host) -> Result<Self> {
        Ok(Self { process: client.spawn(&format!("ping -n -i 0.02 -O {INTERNET}"))? })
    }

    /// Sent and lost.
    fn stop(mut self) -> Result<(u32, u32)> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(DEADLINE)?;
        let log = self.process.log();
        // What was asked last may have had no time to be answered.
        let sequence = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<u32>().ok();
        let answered: Vec<u32> =
            log.lines().filter(|line| line.contains("time=")).filter_map(sequence).collect();
        let sent = answered.iter().max().copied().ok_or_else(|| Failure::new(format!("ping said {log}")))?;
        Ok((sent, sent - u32::try_from(answered.len())?))
    }
}

#[test]
fn each_instance_has_its_home_gateway_and_is_the_others_standby() -> Result {
    let site = Site::settled(Cloud::Stub, 2)?;
    for index in 0..2 {
        assert_eq!(site.at_ec2(index), (Some(index), Some(index)));
        site.answers(index)?;
        let own = format!("203.0.113.{}", 7 + index);
        site.wait("readiness with its own address and no other", |site| {
            let status = site.egret(index).status()?;
            let addresses = status["external_addresses"].as_array().cloned().unwrap_or_default();
            Ok(status["ready"] == true && addresses.len() == 1 && addresses[0]["public"] == own.as_str())
        })?;
        let text = site.egret(index).command(&["status"])?.success()?.stdout;
        assert!(text.contains(&format!("{}: active here", NAMES[index])), "{text}");
        assert!(text.contains(&format!("{}: at {}", NAMES[1 - index], NAMES[1 - index])), "{text}");
        let fleet = text.lines().skip_while(|line| !line.starts_with("fleet"));
        let fleet: Vec<&str> = fleet.take_while(|line| !line.is_empty()).collect();
        assert!(fleet.len() > 4 && fleet.iter().all(|line| line.chars().count() <= 80), "{text}");
    }
    // Room for what may come is made before it comes.
    site.wait("private addresses for both gateways", |site| {
        let ec2 = site.ec2.lock().unwrap();
        Ok(ec2.world.interfaces.values().all(|interface| interface.addresses.len() == 3))
    })?;
    Ok(())
}

#[test]
fn killed_hosts_gateway_is_taken_over_and_goes_home_when_it_is_back() -> Result {
    host_is_killed_and_comes_back(Cloud::Stub)
}

#[test]
fn killed_hosts_gateway_is_taken_over_and_goes_home_when_it_is_back_at_moto() -> Result {
    host_is_killed_and_comes_back(Cloud::Moto)
}

fn host_is_killed_and_comes_back(cloud: Cloud) -> Result {
    let mut site = Site::settled(cloud, 2)?;
    let begun = Instant::now();
    site.kill(0)?;
    site.wait_moved(0, 1, begun)?;
    site.wait_active(1, 0)?;
    assert_eq!(site.at_ec2(1), (Some(1), Some(1)), "its own is still there");
    let why = site.gateway(1, 0)["why"].clone();
    assert_eq!(why, "the host was silent");
    // Back, and well for long enough.
    site.start(0, &site.config(0))?;
    site.wait_active(0, 0)?;
    assert_eq!(site.gateway(0, 0)["why"], "failback");
    site.answers(0)?;
    Ok(())
}

#[test]
fn stopped_host_wakes_as_a_standby_and_writes_nothing() -> Result {
    let site = Site::settled(Cloud::Moto, 2)?;
    site.wait("room for both on both", |site| {
        Ok(site.ec2.lock().unwrap().made("AssignPrivateIpAddresses") >= 4)
    })?;
    let begun = Instant::now();
    site.egret(0).process.signal(Signal::SIGSTOP)?;
    let moved = site.wait_moved(0, 1, begun);
    let writes = site.ec2.lock().unwrap().writes();
    site.egret(0).process.signal(Signal::SIGCONT)?;
    moved?;
    site.wait("the one that slept to know", |site| {
        let gateway = site.gateway(0, 0);
        Ok(gateway["host"] == NAMES[1] && gateway["role"] == "standby")
    })?;
    assert_eq!(site.at_ec2(0), (Some(1), Some(1)));
    assert_eq!(site.ec2.lock().unwrap().writes(), writes, "{}", site.egret(0).process.log());
    Ok(())
}

#[test]
fn host_without_a_link_is_replaced_and_stands_by_when_it_is_back() -> Result {
    let site = Site::settled(Cloud::Moto, 2)?;
    let begun = Instant::now();
    site.lab.router().run("ip link set nat down")?;
    site.wait_moved(0, 1, begun)?;
    site.lab.router().run("ip link set nat up")?;
    site.lab.router().run(&format!("ip route replace {}/32 dev nat", gateway_address(1)))?;
    site.wait("the one that was cut off to know", |site| Ok(site.gateway(0, 0)["host"] == NAMES[1]))?;
    assert_eq!(site.at_ec2(0), (Some(1), Some(1)));
    Ok(())
}

#[test]
fn host_without_the_internet_is_replaced() -> Result {
    let site = Site::settled(Cloud::Moto, 2)?;
    let begun = Instant::now();
    site.cut_egress(0)?;
    site.wait_moved(0, 1, begun)?;
    site.wait_active(1, 0)?;
    assert_eq!(site.gateway(1, 0)["why"], "the host was unwell");
    site.wait("its ailment to be named", |site| {
        let peer = &site.fleet(1)["peers"][0];
        Ok(peer["state"] == "alive" && peer["health"] == "the internet is not reached")
    })
}

#[test]
fn spot_notice_hands_the_gateway_over_while_the_host_still_forwards() -> Result {
    host_is_about_to_be_interrupted(Cloud::Stub)
}

#[test]
fn spot_notice_hands_the_gateway_over_at_moto() -> Result {
    host_is_about_to_be_interrupted(Cloud::Moto)
}

fn host_is_about_to_be_interrupted(cloud: Cloud) -> Result {
    let site = Site::settled(cloud, 2)?;
    // A peer that has just become well takes nothing, and is not asked again soon.
    std::thread::sleep(Duration::from_secs(3));
    let ping = Ping::start(site.lab.client(1))?;
    let begun = Instant::now();
    let notice = r#"{"action": "terminate", "time": "2030-09-18T08:22:00Z"}"#;
    site.trees[0].lock().unwrap().insert("spot/instance-action".to_owned(), notice.to_owned());
    site.wait_moved(0, 1, begun)?;
    let (sent, lost) = ping.stop()?;
    println!("{lost} of {sent} pings lost, 20 ms apart");
    assert_eq!(site.gateway(1, 0)["why"], "the host was about to stop");
    Ok(())
}

#[test]
fn operator_moves_a_gateway_and_it_stays_until_it_is_moved_back() -> Result {
    operator_moves_a_gateway(Cloud::Stub)
}

#[test]
fn operator_moves_a_gateway_and_it_stays_until_it_is_moved_back_at_moto() -> Result {
    operator_moves_a_gateway(Cloud::Moto)
}

fn operator_moves_a_gateway(cloud: Cloud) -> Result {
    let site = Site::settled(cloud, 2)?;
    let ping = Ping::start(site.lab.client(1))?;
    let moved = site.hand_over(0, &["--to", "az-b"])?;
    assert!(moved.starts_with("az-a is at az-b after "), "{moved}");
    assert_eq!(site.at_ec2(0), (Some(1), Some(1)));
    site.answers(0)?;
    let (sent, lost) = ping.stop()?;
    println!("{lost} of {sent} pings lost, 20 ms apart");
    // Whoever does not have it cannot give it away, nor to anybody who is no peer.
    let refused = site.egret(0).command(&["handover", "--to", "az-b"])?;
    assert!(
        refused.stderr.contains("gateway az-a is not active here, but at az-b: give the order there"),
        "{refused}"
    );
    assert_eq!(refused.status.code(), Some(1));
    let refused = site.egret(1).command(&["handover", "--gateway", "az-a", "--to", "az-x"])?;
    assert!(refused.stderr.contains("az-x is no peer"), "{refused}");
    // It does not go home by itself, even after the hold-down.
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(site.at_ec2(0), (Some(1), Some(1)));
    site.hand_over(1, &["--gateway", "az-a", "--to", "az-a"])?;
    assert_eq!(site.at_ec2(0), (Some(0), Some(0)));
    site.answers(0)?;
    Ok(())
}

#[test]
fn stopping_service_hands_its_gateways_over_first() -> Result {
    let mut site = Site::settled(Cloud::Moto, 2)?;
    // A peer that has taken it once is steady.
    site.hand_over(0, &["--to", "az-b"])?;
    site.hand_over(1, &["--gateway", "az-a", "--to", "az-a"])?;
    let mut egret = site.instances[0].take().expect("it runs");
    let begun = Instant::now();
    let ended = egret.stop(DEADLINE)?;
    assert!(ended.success(), "{}", egret.process.log());
    assert_eq!(site.at_ec2(0), (Some(1), Some(1)), "{}", egret.process.log());
    site.wait_moved(0, 1, begun)?;
    Ok(())
}

#[test]
fn api_that_is_down_when_the_host_dies_delays_the_takeover_and_no_more() -> Result {
    let mut site = Site::settled(Cloud::Moto, 2)?;
    site.ec2.lock().unwrap().fault = Fault::Closed(ALL);
    site.kill(0)?;
    let calls = site.ec2.lock().unwrap().calls.len();
    site.wait("attempts in vain", |site| Ok(site.ec2.lock().unwrap().calls.len() > calls + 2))?;
    site.answers(1)?;
    assert_eq!(site.at_ec2(0), (Some(0), Some(0)));
    let begun = Instant::now();
    site.ec2.lock().unwrap().fault = Fault::None;
    site.wait_moved(0, 1, begun)?;
    Ok(())
}

#[test]
fn smallest_instances_have_room_for_each_others_gateways() -> Result {
    let mut site = Site::new(Cloud::Stub, 2)?;
    for interface in site.ec2.lock().unwrap().world.interfaces.values_mut() {
        interface.room = 2;
    }
    for index in 0..2 {
        site.start(index, &site.config(index))?;
        site.wait_active(index, index)?;
    }
    site.wait("each to know the other", |site| {
        Ok((0..2).all(|index| site.gateway(index, 1 - index)["host"] == NAMES[1 - index]))
    })?;
    let begun = Instant::now();
    site.kill(0)?;
    site.wait_moved(0, 1, begun)?;
    // Its own is on the secondary address, the other's on the primary one.
    let private = |gateway: usize| {
        site.ec2.lock().unwrap().used(&site.ids.allocations[gateway]).map(|(_, private)| private)
    };
    assert_eq!(private(0), Some(gateway_address(2)));
    assert_ne!(private(1), private(0));
    Ok(())
}

#[test]
fn three_instances_agree_who_is_dead_and_the_first_heir_takes_over() -> Result {
    three_instances_become_one(Cloud::Stub)
}

#[test]
fn three_instances_agree_who_is_dead_and_the_first_heir_takes_over_at_moto() -> Result {
    three_instances_become_one(Cloud::Moto)
}

fn three_instances_become_one(cloud: Cloud) -> Result {
    let mut site = Site::settled(cloud, 3)?;
    let begun = Instant::now();
    site.kill(1)?;
    site.wait_moved(1, 0, begun)?;
    // The next one to die leaves everything to the last.
    site.wait("az-b to be known to be at az-a", |site| Ok(site.gateway(2, 1)["host"] == NAMES[0]))?;
    // Why, its host has told.
    site.wait("the reason", |site| Ok(site.gateway(2, 1)["why"] == "the host was silent"))?;
    let text = site.egret(2).command(&["status"])?.success()?.stdout;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let place = lines.iter().position(|line| line.starts_with("az-b: at az-a for ")).expect("its line");
    assert_eq!(lines[place + 1], "the host was silent", "{text}");
    let begun = Instant::now();
    site.kill(0)?;
    site.wait_moved(0, 2, begun)?;
    site.wait_moved(1, 2, begun)?;
    assert_eq!(site.at_ec2(2), (Some(2), Some(2)));
    Ok(())
}

#[test]
fn last_of_three_takes_over_at_an_operators_word_if_the_others_die_at_once() -> Result {
    let mut site = Site::settled(Cloud::Moto, 3)?;
    let refused = site.egret(2).command(&["handover", "--dead", "az-a"])?;
    assert!(refused.stderr.contains("az-a is heard: give the order there"), "{refused}");
    assert_eq!(refused.status.code(), Some(1));
    site.egret(1).process.signal(Signal::SIGSTOP)?;
    site.kill(0)?;
    site.kill(1)?;
    site.wait("both to be missed", |site| {
        let peers = site.fleet(2)["peers"].as_array().cloned().unwrap_or_default();
        Ok(peers.iter().all(|peer| peer["state"] == "suspect"))
    })?;
    let said = site.egret(2).command(&["handover", "--dead", "az-a"])?.success()?.stdout;
    assert!(said.starts_with("az-a is at az-c after "), "{said}");
    let begun = Instant::now();
    site.wait_moved(0, 2, begun)?;
    site.wait_moved(1, 2, begun)?;
    Ok(())
}

#[test]
fn without_a_peer_the_routes_go_to_the_standby_nat_gateway_and_come_back() -> Result {
    let mut site = Site::settled(Cloud::Moto, 2)?;
    let fallback = site.ids.nat_gateway.clone();
    let more = format!("hold_down = \"5s\"\nfallback_nat_gateway = \"{fallback}\"");
    let toml = site.config_with(0, KEY, &more);
    site.egret(0).reload(&toml)?;
    site.kill(1)?;
    site.wait_active(0, 1)?;
    let notice = r#"{"action": "terminate", "time": "2030-09-18T08:22:00Z"}"#;
    site.trees[0].lock().unwrap().insert("spot/instance-action".to_owned(), notice.to_owned());
    let target =
        |site: &Site| site.ec2.lock().unwrap().route(&site.ids.tables[0], "0.0.0.0/0").map(str::to_owned);
    site.wait("the standby nat gateway", |site| Ok(target(site).as_ref() == Some(&fallback)))?;
    assert_eq!(site.at_ec2(0).0, Some(0), "whoever writes routes has the address");
    site.trees[0].lock().unwrap().remove("spot/instance-action");
    site.wait("its own route again", |site| Ok(site.at_ec2(0) == (Some(0), Some(0))))?;
    Ok(())
}

#[test]
fn wrong_key_or_a_contradiction_is_refused_and_changes_nothing() -> Result {
    let mut site = Site::new(Cloud::Stub, 2)?;
    site.start(0, &site.config(0))?;
    site.wait_active(0, 0)?;
    let other_key = KEY.replace("4f1d", "0000");
    site.start(1, &site.config_with(1, &other_key, ""))?;
    site.wait_active(1, 1)?;
    site.wait("the stranger to be refused", |site| {
        Ok(site.egret(0).process.log().contains("has another key"))
    })?;
    assert_eq!(site.fleet(0)["peers"][0]["connected"], false);
    // One that has the key, and claims what is another's.
    site.kill(1)?;
    let claims = site.config(1).replace(&site.ids.tables[1], &site.ids.tables[0]);
    site.start(1, &claims)?;
    site.wait("the claim to be refused", |site| {
        let refused = site.fleet(0)["peers"][0]["refused"].as_str().unwrap_or_default().to_owned();
        Ok(refused == format!("it claims {}, which belongs to gateway az-a", site.ids.tables[0]))
    })?;
    assert_eq!(site.at_ec2(0), (Some(0), Some(0)));
    assert!(site.lab.gateway(1).wait_listening(Transport::Tcp, 7946).is_ok());
    Ok(())
}
