//! A take-over against moto, an EC2 that others wrote, with packets that go as its route tables say.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ec2::Client;
use egret::aws::{Calls, Ec2, Tables};
use nix::sys::signal::Signal;

use crate::imds::{self, Tree};
use crate::lab::{
    DEADLINE, Egret, Fabric, Host, INTERNET, Lab, Options, Result, Transport, gateway_address, inside, wait_for,
};
use crate::reconcile::config;
use crate::vpc::{KEY, NAMES, in_namespace, key_file, number, tree};

const ENDPOINT: &str = "http://10.0.0.1:5555";

/// What moto has named things.
#[derive(Clone, Debug)]
struct Site {
    vpc: String,
    enis: Vec<String>,
    tables: Vec<String>,
    allocations: Vec<String>,
}

/// Two interfaces, and two route tables and Elastic IPs that nobody has.
async fn build() -> Site {
    let client = Client::new(&config(ENDPOINT));
    let vpc = client.create_vpc().cidr_block("10.0.0.0/16").send().await.unwrap();
    let vpc = vpc.vpc().and_then(|vpc| vpc.vpc_id()).unwrap().to_owned();
    let subnet = client.create_subnet().vpc_id(&vpc).cidr_block("10.0.0.0/24").send().await.unwrap();
    let subnet = subnet.subnet().and_then(|subnet| subnet.subnet_id()).unwrap().to_owned();
    let gateway = client.create_internet_gateway().send().await.unwrap();
    let gateway = gateway.internet_gateway().and_then(|it| it.internet_gateway_id()).unwrap().to_owned();
    client.attach_internet_gateway().vpc_id(&vpc).internet_gateway_id(&gateway).send().await.unwrap();
    let mut site = Site { vpc, enis: Vec::new(), tables: Vec::new(), allocations: Vec::new() };
    for index in 0..2 {
        let private = gateway_address(number(index)).to_string();
        let eni = client.create_network_interface().subnet_id(&subnet).private_ip_address(private).send().await;
        let eni =
            eni.unwrap().network_interface().and_then(|eni| eni.network_interface_id()).unwrap().to_owned();
        let table = client.create_route_table().vpc_id(&site.vpc).send().await.unwrap();
        let table = table.route_table().and_then(|table| table.route_table_id()).unwrap().to_owned();
        let address = client.allocate_address().send().await.unwrap();
        site.enis.push(eni);
        site.tables.push(table);
        site.allocations.push(address.allocation_id().unwrap().to_owned());
    }
    site
}

/// How packets go, as moto describes it.
async fn look(site: Site) -> Fabric {
    let ec2 = Ec2::new(&config(ENDPOINT), Calls::default(), Duration::from_secs(20));
    let tables = ec2.route_tables(&Tables::Ids(site.tables.clone())).await.unwrap();
    let addresses = ec2.elastic_ips(&site.allocations).await.unwrap();
    let host = |eni: &str| site.enis.iter().position(|known| known == eni).map(number);
    let route = |index: usize| {
        let table = tables.iter().find(|table| table.id == site.tables[index])?;
        let route = table.routes.iter().find(|route| route.destination.prefix_len() == 0)?;
        host(&route.target)
    };
    let used = addresses.iter().filter_map(|address| {
        let association = address.association.as_ref()?;
        // Moto's public addresses are of the loopback network.
        let index = site.allocations.iter().position(|known| *known == address.allocation)?;
        let public = Ipv4Addr::new(203, 0, 113, 6 + number(index));
        Some((public, (host(association.eni.as_deref()?)?, association.private?)))
    });
    Fabric { routes: (0..2).map(|index| (number(index), route(index))).collect(), addresses: used.collect() }
}

/// Something that is asked of moto, from where it is.
fn ask<T: Send + 'static, F: Future<Output = T>>(
    router: &Host,
    question: impl FnOnce() -> F + Send + 'static,
) -> Result<T> {
    inside(router, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(question())
    })
}

fn spawn(lab: &Lab, site: &Site, index: usize, imds: &str) -> Result<Egret> {
    let other = 1 - index;
    let (own, peer) = (gateway_address(number(index)), gateway_address(number(other)));
    let toml = format!(
        "[aws]\nroute_tables = [\"{}\"]\nelastic_ips = [\"{}\"]\n\n[failover]\ngateway = \"{}\"\nkey_file = \"{}\"\n\
         listen = \"{own}:7946\"\npeers = [{{ gateway = \"{}\", address = \"{peer}:7946\" }}]\n",
        site.tables[index],
        site.allocations[index],
        NAMES[index],
        key_file(lab, index, KEY).display(),
        NAMES[other]
    );
    let imds = format!("AWS_EC2_METADATA_SERVICE_ENDPOINT={imds}");
    let endpoint = format!("AWS_ENDPOINT_URL_EC2={ENDPOINT}");
    Egret::spawn_under(lab.gateway(number(index)), &toml, &["env", "HOME=/nonexistent", &imds, &endpoint])
}

fn metadata(site: &Site, index: usize) -> Tree {
    let mut tree = tree(index);
    tree.insert(format!("{}/interface-id", imds::INTERFACE), site.enis[index].clone());
    tree.insert(format!("{}/vpc-id", imds::INTERFACE), site.vpc.clone());
    tree
}

#[test]
fn killed_hosts_gateway_is_taken_over_at_moto() -> Result {
    let lab = Arc::new(Lab::new(Options { gateways: 2, ..Options::default() })?);
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/target/moto/bin/moto_server");
    let _moto = lab.router().spawn(&format!("{program} -H 10.0.0.1 -p 5555"))?;
    // It takes its time to start.
    wait_for("moto", DEADLINE * 2, || Ok(lab.router().wait_listening(Transport::Tcp, 5555).is_ok()))?;
    let site = ask(lab.router(), build)?;
    let (mut egrets, mut stubs) = (Vec::new(), Vec::new());
    for index in 0..2 {
        let host = lab.gateway(number(index));
        host.run(&format!(
            "ip link set ens5 address {}",
            imds::MAC.map(|octet| format!("{octet:02x}")).join(":")
        ))?;
        let tree = metadata(&site, index);
        let (address, stub) =
            in_namespace(host, move || crate::http::serve(move |request| imds::answer(&tree, request)))?;
        stubs.push(stub);
        egrets.push(spawn(&lab, &site, index, &format!("http://{address}"))?);
    }
    let home = |fabric: &Fabric, hosts: [u8; 2]| {
        fabric.routes == BTreeMap::from([(1, Some(hosts[0])), (2, Some(hosts[1]))])
            && fabric.addresses.len() == 2
    };
    let wait = |hosts| {
        wait_for("moto to have it so", DEADLINE, || {
            let site = site.clone();
            let fabric = ask(lab.router(), move || look(site))?;
            fabric.apply(&lab)?;
            Ok(home(&fabric, hosts))
        })
    };
    wait([1, 2])?;
    let ping = format!("ping -n -c 1 -W 0.2 {INTERNET}");
    lab.client(1).wait_for("an echo", || Ok(lab.client(1).try_run(&ping)?.status.success()))?;
    wait_for("the peers to know each other", DEADLINE, || {
        let status = egrets[1].status()?;
        Ok(status["fleet"]["peers"][0]["state"] == "alive" && status["fleet"]["peers"][0]["health"] == "well")
    })?;
    let killed = Instant::now();
    egrets[0].process.signal(Signal::SIGKILL)?;
    wait([2, 2])?;
    println!("az-a is at az-b, as moto says, after {:.2?}", killed.elapsed());
    lab.client(1).wait_for("an echo", || Ok(lab.client(1).try_run(&ping)?.status.success()))?;
    println!("packets flow after {:.2?}", killed.elapsed());
    for (stop, thread) in stubs {
        drop(stop);
        let _ = thread.join();
    }
    Ok(())
}
