//! The VPC of [`crate::vpc`] at moto, an EC2 that others wrote. Between the daemons and moto stands a relay that takes
//! note of each request, can fail it, and passes the rest on as it is; what moto then has is where packets go, and shows
//! before whoever has changed it is answered.
//!
//! Moto's public addresses are of the loopback network: the internet has others in their place. It has all Elastic IPs
//! of an interface on its primary address.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use aws_sdk_ec2::Client;
use egret::aws::{Calls, Ec2 as Asked, Tables};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::ec2::{Ec2, ElasticIp, Table};
use crate::http::{Answer, Request, serve_at};
use crate::lab::{
    DEADLINE, Failure, Lab, Options, Process, Result, Transport, gateway_address, inside, wait_for,
};
use crate::reconcile::config;
use crate::vpc::{Ids, Vpc, in_namespace, number, world};

const MOTO: &str = "10.0.0.1:5555";

/// With so many instances, and moto, which ends when it is dropped.
pub fn build(count: usize) -> Result<(Vpc, Process)> {
    let lab = Lab::new(Options { gateways: u8::try_from(count)?, ..Options::default() })?;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/target/moto/bin/moto_server");
    if !std::path::Path::new(program).is_file() {
        return Err(Failure::new(format!("no {program}: `make test` installs it, or `make moto`")));
    }
    let (address, port) = MOTO.split_once(':').expect("an address and a port");
    let moto = lab.router().spawn(&format!("{program} -H {address} -p {port}"))?;
    // It takes its time to start.
    wait_for("moto", DEADLINE * 2, || Ok(lab.router().wait_listening(Transport::Tcp, port.parse()?).is_ok()))?;
    let ids = inside(lab.router(), move || in_turn(create(count)))?;
    let ec2 = Arc::new(Mutex::new(world(&ids)));
    let (look, looks) = unbounded_channel();
    let (relay, shown, known) = (Arc::clone(&ec2), Arc::clone(&ec2), ids.clone());
    let served = in_namespace(lab.router(), move || {
        // In the same network namespace, for as long as there is a relay.
        std::thread::spawn(move || in_turn(follow(&shown, &known, looks)));
        serve_at("10.0.0.1:0", move |request| pass(&relay, &look, request))
    })?;
    Ok((Vpc::around(lab, ec2, ids, served)?, moto))
}

fn in_turn<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// For each instance an interface, a route table and an Elastic IP that is free.
async fn create(count: usize) -> Ids {
    let client = Client::new(&config(&format!("http://{MOTO}")));
    let vpc = client.create_vpc().cidr_block("10.0.0.0/16").send().await.unwrap();
    let vpc = vpc.vpc().and_then(|vpc| vpc.vpc_id()).unwrap().to_owned();
    // So large that the private addresses that moto assigns at random are not those of hosts here.
    let subnet = client.create_subnet().vpc_id(&vpc).cidr_block("10.0.0.0/17").send().await.unwrap();
    let subnet = subnet.subnet().and_then(|subnet| subnet.subnet_id()).unwrap().to_owned();
    let gateway = client.create_internet_gateway().send().await.unwrap();
    let gateway = gateway.internet_gateway().and_then(|it| it.internet_gateway_id()).unwrap().to_owned();
    client.attach_internet_gateway().vpc_id(&vpc).internet_gateway_id(&gateway).send().await.unwrap();
    let of_nat = client.allocate_address().send().await.unwrap();
    let nat = client.create_nat_gateway().subnet_id(&subnet).set_allocation_id(of_nat.allocation_id);
    let nat = nat.send().await.unwrap().nat_gateway.and_then(|nat| nat.nat_gateway_id).unwrap();
    let (enis, tables, allocations) = (Vec::new(), Vec::new(), Vec::new());
    let mut ids = Ids { vpc, enis, tables, allocations, nat_gateway: nat };
    for index in 0..count {
        let private = gateway_address(number(index)).to_string();
        let eni = client.create_network_interface().subnet_id(&subnet).private_ip_address(private).send().await;
        ids.enis.push(eni.unwrap().network_interface.and_then(|eni| eni.network_interface_id).unwrap());
        let table = client.create_route_table().vpc_id(&ids.vpc).send().await.unwrap();
        ids.tables.push(table.route_table.and_then(|table| table.route_table_id).unwrap());
        let address = client.allocate_address().send().await.unwrap();
        ids.allocations.push(address.allocation_id.unwrap());
    }
    ids
}

/// Passes a request on, unless there is to be a fault.
fn pass(relay: &Mutex<Ec2>, look: &UnboundedSender<Shown>, request: &Request) -> Answer {
    let action = match relay.lock().unwrap().admit(request) {
        Ok((action, form)) => {
            assert!(action != "AssociateAddress" || form.get("AllowReassociation") == "false");
            action
        }
        Err(answer) => return answer,
    };
    let answer = ask(request).unwrap_or(Answer::Closed);
    if !action.starts_with("Describe") {
        let (shown, is_shown) = mpsc::channel();
        look.send(shown).expect("somebody looks");
        if is_shown.recv_timeout(DEADLINE).is_err() {
            return Answer::Closed;
        }
    }
    answer
}

fn ask(request: &Request) -> std::io::Result<Answer> {
    let moto: SocketAddr = MOTO.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&moto, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let headers = ["authorization", "content-type", "x-amz-date", "user-agent"];
    let headers = headers.iter().filter_map(|name| Some(format!("{name}: {}\r\n", request.header(name)?)));
    let (headers, body) = (headers.collect::<String>(), &request.body);
    let (method, path, length) = (&request.method, &request.path, body.len());
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: {MOTO}\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let malformed = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    Ok(Answer::Http(status, "content-type: text/xml\r\n", body.to_owned()))
}

/// Whom to tell that what there is now shows.
type Shown = mpsc::Sender<()>;

/// Shows what there is at moto whenever it is asked to.
async fn follow(shown: &Mutex<Ec2>, ids: &Ids, mut looks: UnboundedReceiver<Shown>) {
    let ec2 = Asked::new(&config(&format!("http://{MOTO}")), Calls::default(), Duration::from_secs(20));
    while let Some(is_shown) = looks.recv().await {
        let tables = ec2.route_tables(&Tables::Ids(ids.tables.clone())).await;
        let addresses = ec2.elastic_ips(&ids.allocations).await;
        if let (Ok(tables), Ok(addresses)) = (tables, addresses) {
            let world = &mut shown.lock().unwrap().world;
            world.tables = tables.into_iter().map(|table| (table.id.clone(), as_table(ids, table))).collect();
            world.elastic_ips =
                addresses.into_iter().map(|ip| (ip.allocation.clone(), as_address(ids, ip))).collect();
            let _ = is_shown.send(());
        }
    }
}

fn as_table(ids: &Ids, table: egret::aws::RouteTable) -> Table {
    let routes = table.routes.into_iter();
    let routes = routes.map(|route| (route.destination.to_string(), route.target, route.active)).collect();
    Table { vpc: ids.vpc.clone(), tags: std::collections::BTreeMap::default(), routes }
}

fn as_address(ids: &Ids, ip: egret::aws::ElasticIp) -> ElasticIp {
    let index = ids.allocations.iter().position(|known| *known == ip.allocation).expect("asked for");
    let used = ip.association.and_then(|association| Some((association.eni?, association.private?)));
    ElasticIp { public: Ipv4Addr::new(203, 0, 113, 6 + number(index)), used, associations: 0 }
}
