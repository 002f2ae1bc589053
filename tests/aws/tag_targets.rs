//! Targets by tag: what EC2 is asked, how often, and what becomes of the answers.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use egret::aws::{Calls, Failure, Outcome, Pace, TaggedInstances};

use crate::fleet::{Fault, Fleet, Instance, OUR_VPC};
use crate::http::serve;
use crate::lab::{Lab, Options, PUBLIC, Result, Web, ask, inside};
use crate::site::Site;

const PACE: Pace = Pace {
    interval: Duration::from_millis(200),
    call_timeout: Duration::from_secs(10),
    backoff: Duration::from_millis(20),
};
/// Of a service that says nothing.
const GIVEN_UP: Duration = Duration::from_millis(500);

/// A client configuration for a stub.
pub async fn stub(fleet: &Arc<Mutex<Fleet>>) -> SdkConfig {
    let fleet = Arc::clone(fleet);
    let address = serve(move |request| fleet.lock().unwrap().answer(request)).await;
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .endpoint_url(format!("http://{address}"))
        .build()
}

struct World {
    fleet: Arc<Mutex<Fleet>>,
    calls: Calls,
    instances: TaggedInstances,
}

impl World {
    async fn new(instances: Vec<Instance>, pace: Pace) -> Self {
        let fleet = Arc::new(Mutex::new(Fleet { instances, ..Fleet::default() }));
        let calls = Calls::default();
        let instances = TaggedInstances::new(&stub(&fleet).await, OUR_VPC, calls.clone(), pace);
        Self { fleet, calls, instances }
    }

    fn fleet<T>(&self, look: impl FnOnce(&mut Fleet) -> T) -> T {
        look(&mut self.fleet.lock().unwrap())
    }

    async fn find(&self, value: &str) -> std::result::Result<BTreeSet<Ipv4Addr>, Failure> {
        self.instances.find("role", value).await.map(|(addresses, _)| addresses)
    }

    /// Asks until it is answered so.
    async fn until(&self, wanted: impl Fn(&std::result::Result<BTreeSet<Ipv4Addr>, Failure>) -> bool) {
        let asking = async {
            while !wanted(&self.find("api").await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asking).await.expect("in time");
    }
}

fn addresses(all: &[&str]) -> BTreeSet<Ipv4Addr> {
    all.iter().map(|address| address.parse().unwrap()).collect()
}

#[tokio::test]
async fn running_instances_of_the_vpc_that_have_the_tag_are_found() {
    let elsewhere = Instance { vpc: "vpc-0fffffff", ..Instance::new("10.0.1.12", "role", "api") };
    let stopped = Instance { state: "stopped", ..Instance::new("10.0.1.13", "role", "api") };
    let all = vec![
        Instance::new("10.0.1.10", "role", "api"),
        Instance::new("10.0.2.10", "role", "api"),
        Instance::new("10.0.1.11", "role", "web"),
        Instance::new("10.0.1.14", "name", "api"),
        elsewhere,
        stopped,
    ];
    let world = World::new(all, PACE).await;
    assert_eq!(world.find("api").await.unwrap(), addresses(&["10.0.1.10", "10.0.2.10"]));
    assert_eq!(world.find("db").await.unwrap(), addresses(&[]));
}

#[tokio::test]
async fn wildcards_in_a_value_stand_for_themselves() {
    let all = vec![
        Instance::new("10.0.1.10", "role", "a*"),
        Instance::new("10.0.1.11", "role", "api"),
        Instance::new("10.0.1.12", "role", "a\\*"),
    ];
    let world = World::new(all, PACE).await;
    assert_eq!(world.find("a*").await.unwrap(), addresses(&["10.0.1.10"]));
    assert_eq!(world.find("a\\*").await.unwrap(), addresses(&["10.0.1.12"]));
}

#[tokio::test]
async fn all_pages_of_an_answer_count_but_not_without_end() {
    let all: Vec<_> = (1..=8).map(|last| Instance::new(&format!("10.0.1.{last}"), "role", "api")).collect();
    let world = World::new(all, PACE).await;
    world.fleet(|fleet| fleet.page = 2);
    assert_eq!(world.find("api").await.unwrap().len(), 8);
    assert_eq!(world.fleet(|fleet| fleet.calls.len()), 4);
    world.fleet(|fleet| fleet.page = 1);
    world.until(std::result::Result::is_err).await;
    assert_eq!(
        world.find("api").await.unwrap_err().to_string(),
        "ec2:DescribeInstances has no answer: more instances than can be targets"
    );
}

#[tokio::test]
async fn however_many_ask_ec2_is_asked_once_an_interval() {
    let pace = Pace { interval: Duration::from_mins(1), ..PACE };
    let world = World::new(vec![Instance::new("10.0.1.10", "role", "api")], pace).await;
    let many = (0..20).map(|_| world.instances.find("role", "api"));
    for asked in many {
        let (found, holds) = asked.await.unwrap();
        assert_eq!(found, addresses(&["10.0.1.10"]));
        assert!(holds > Duration::from_secs(30) && holds <= pace.interval, "{holds:?}");
    }
    assert_eq!(world.fleet(|fleet| fleet.calls.clone()), ["DescribeInstances"]);
    assert_eq!(
        world.calls.counts().into_iter().collect::<Vec<_>>(),
        [(("ec2:DescribeInstances", Outcome::Done), 1)]
    );
}

#[tokio::test]
async fn instances_that_come_and_go_are_followed() {
    let world = World::new(vec![Instance::new("10.0.1.10", "role", "api")], PACE).await;
    assert_eq!(world.find("api").await.unwrap(), addresses(&["10.0.1.10"]));
    world.fleet(|fleet| fleet.instances = vec![Instance::new("10.0.1.11", "role", "api")]);
    world.until(|found| *found == Ok(addresses(&["10.0.1.11"]))).await;
}

#[tokio::test]
async fn every_failure_is_told_asked_about_less_and_less_and_recovered_from() {
    let malformed = Instance::new("10.0.1.999", "role", "api");
    for (fault, instance, named) in [
        (Some(Fault::Closed), None, "ec2:DescribeInstances has no answer: dispatch failure"),
        (Some(Fault::Silence), None, "ec2:DescribeInstances has no answer: request has timed out"),
        (Some(Fault::Rubbish), None, "ec2:DescribeInstances has no answer: "),
        (
            Some(Fault::Error("DescribeInstances", 503, "RequestLimitExceeded")),
            None,
            "ec2:DescribeInstances is throttled: RequestLimitExceeded",
        ),
        (
            Some(Fault::Error("DescribeInstances", 403, "UnauthorizedOperation")),
            None,
            "the instance's role does not allow ec2:DescribeInstances",
        ),
        (None, Some(malformed), "ec2:DescribeInstances has no answer: an address that is none"),
    ] {
        let is_silent = matches!(fault, Some(Fault::Silence));
        let pace = Pace { call_timeout: if is_silent { GIVEN_UP } else { PACE.call_timeout }, ..PACE };
        // At least half of the wait after a first failure is still to come.
        let slow = Pace { interval: Duration::from_mins(2), backoff: Duration::from_mins(1), ..pace };
        let world = World::new(instance.clone().into_iter().collect(), slow).await;
        world.fleet(|fleet| fleet.fault = fault);
        world.find("api").await.unwrap_err();
        world.find("api").await.unwrap_err();
        assert_eq!(world.fleet(|fleet| fleet.calls.len()), 1, "{fault:?}");
        let world = World::new(instance.into_iter().collect(), pace).await;
        world.fleet(|fleet| fleet.fault = fault);
        let reason = world.find("api").await.unwrap_err().to_string();
        assert!(reason.starts_with(named), "{fault:?}: {reason}");
        world.fleet(|fleet| {
            fleet.fault = None;
            fleet.instances = vec![Instance::new("10.0.1.10", "role", "api")];
        });
        world.until(|found| *found == Ok(addresses(&["10.0.1.10"]))).await;
    }
}

#[test]
fn instances_with_a_tag_get_connections_and_keep_them_when_ec2_fails() -> Result {
    let lab = Lab::new(Options::default())?;
    let web = Web::start(lab.client(1), 5000)?;
    web.write("index.html", "server 1\n")?;
    let site = Site::start(lab.nat())?;
    let address = Lab::client_address(1).to_string();
    site.fleet(|fleet| fleet.instances = vec![Instance::new(&address, "egret:role", "api")]);
    let listener = "\n[[forward]]\nname = \"api\"\nlisten = \"0.0.0.0:5000\"\ntargets = [\"ec2-tag:egret:role=api:5000\"]\n\
                    [forward.health]\ninterval = \"200ms\"\n";
    let egret = site.spawn(lab.nat(), listener)?;
    let asked = || -> Result<String> { Ok(inside(lab.internet(), || ask(PUBLIC, 5000))??) };
    lab.nat().wait_for("an answer of the target", || Ok(asked().is_ok_and(|answer| answer == "server 1")))?;
    let sources = egret.status()?["listeners"][0]["sources"].clone();
    assert_eq!(sources[0]["source"], "ec2-tag:egret:role=api:5000");
    assert_eq!(sources[0]["targets"], 1);
    site.fleet(|fleet| fleet.fault = Some(Fault::Closed));
    egret.reload(&format!("{listener}\n[nat]\nexternal_mtu = 1400\n"))?;
    assert_eq!(asked()?, "server 1");
    // Another tag, which nothing is known of yet: the listener says why it has no targets.
    egret.reload(&listener.replace("role=api", "role=web"))?;
    lab.nat().wait_for("the failure to be seen", || {
        let source = egret.status()?["listeners"][0]["sources"][0].clone();
        Ok(source["error"]
            .as_str()
            .is_some_and(|error| error.starts_with("ec2:DescribeInstances has no answer")))
    })?;
    assert_eq!(asked()?, "server 1", "what was known stays until there is something else");
    Ok(())
}
