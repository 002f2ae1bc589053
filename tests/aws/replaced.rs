//! A single instance, without failover, that is about to end while the one in its place is there already.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::lab::{DEADLINE, Egret, INTERNET, Result, Web, wait_for};
use crate::vpc::{ALLOCATIONS, ENIS, TABLES, Vpc};

const STATE: &str = "autoscaling/target-lifecycle-state";
/// Of the gateway, as the world knows it.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// Both instances have the same configuration, as a group's template makes it.
fn config() -> String {
    format!("[aws]\nroute_tables = [\"{}\"]\nelastic_ips = [\"{}\"]\n", TABLES[0], ALLOCATIONS[0])
}

fn notices(egret: &Egret) -> Result<Vec<Value>> {
    Ok(egret.status()?["notices"].as_array().cloned().unwrap_or_default())
}

/// Has an instance look at EC2 so many times.
fn look(vpc: &Vpc, egret: &Egret, times: usize) -> Result {
    for _ in 0..times {
        let looked = vpc.ec2.lock().unwrap().made("DescribeAddresses");
        egret.reload(&config())?;
        wait_for("a look at EC2", DEADLINE, || Ok(vpc.ec2.lock().unwrap().made("DescribeAddresses") > looked))?;
    }
    Ok(())
}

#[test]
fn instance_that_ends_gives_way_to_the_one_in_its_place_and_takes_nothing_back() -> Result {
    let vpc = Vpc::new(2, false)?;
    let _web = Web::start(vpc.lab.internet(), 80)?;
    let client = vpc.lab.client(1);
    let seen_as = |public: Ipv4Addr| {
        client.wait_for(&format!("the internet to see {public}"), || {
            let seen = client.try_run(&format!("curl -sS --max-time 1 http://{INTERNET}/whoami"))?.stdout;
            Ok(seen.starts_with(&format!("{public}:")))
        })
    };
    let wait_at = |address: usize, route: usize| {
        wait_for(&format!("address and route at {address} and {route}"), DEADLINE * 2, || {
            Ok(vpc.at_ec2(0) == (Some(address), Some(route)))
        })
    };
    let old = vpc.spawn(0, &config())?;
    wait_at(0, 0)?;
    seen_as(PUBLIC)?;
    vpc.trees[0].lock().unwrap().insert(STATE.to_owned(), "Terminated".to_owned());
    wait_for("the notice", DEADLINE, || Ok(!notices(&old)?.is_empty()))?;
    // As long as nobody else is there, it goes on serving.
    look(&vpc, &old, 2)?;
    assert_eq!(vpc.at_ec2(0), (Some(0), Some(0)));
    seen_as(PUBLIC)?;
    let new = vpc.spawn(1, &config())?;
    wait_for("the route", DEADLINE, || Ok(vpc.at_ec2(0).1 == Some(1)))?;
    wait_for("the address to be given up", DEADLINE, || Ok(vpc.at_ec2(0).0 != Some(0)))?;
    look(&vpc, &new, 1)?;
    wait_at(1, 1)?;
    seen_as(PUBLIC)?;
    // However often it looks: what has gone is gone.
    look(&vpc, &old, 3)?;
    assert_eq!(vpc.at_ec2(0), (Some(1), Some(1)), "{}", old.process.log());
    let ec2 = vpc.ec2.lock().unwrap();
    assert_eq!((ec2.made("CreateRoute"), ec2.made("ReplaceRoute")), (1, 1), "{:?}", ec2.calls);
    assert_eq!((ec2.made("AssociateAddress"), ec2.made("DisassociateAddress")), (2, 1), "{:?}", ec2.calls);
    Ok(())
}

#[test]
fn end_that_is_called_off_lets_the_instance_take_its_route_again() -> Result {
    let vpc = Vpc::new(2, false)?;
    let egret = vpc.spawn(0, &config())?;
    wait_for("its route", DEADLINE, || Ok(vpc.at_ec2(0) == (Some(0), Some(0))))?;
    vpc.trees[0].lock().unwrap().insert(STATE.to_owned(), "Terminated".to_owned());
    wait_for("the notice", DEADLINE, || Ok(!notices(&egret)?.is_empty()))?;
    // One that began before the notice may be looking still.
    look(&vpc, &egret, 2)?;
    vpc.ec2.lock().unwrap().set_route(TABLES[0], "0.0.0.0/0", ENIS[1], true);
    wait_for("the address to be given up", DEADLINE, || Ok(vpc.at_ec2(0) == (None, Some(1))))?;
    vpc.trees[0].lock().unwrap().insert(STATE.to_owned(), "InService".to_owned());
    wait_for("all of it again", DEADLINE, || Ok(vpc.at_ec2(0) == (Some(0), Some(0))))?;
    wait_for("the notice to be gone", DEADLINE, || Ok(notices(&egret)?.is_empty()))
}
