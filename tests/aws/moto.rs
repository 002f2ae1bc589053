//! From an empty world to working against moto, an EC2 that others wrote. `make test` installs it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::Client;
use egret::aws::{
    Calls, Check, Desired, Ec2, ElasticIps, Outcome, Reconciler, Routes, Tables, Way, observe, plan,
};
use tokio::sync::{oneshot, watch};

use crate::reconcile::{TIMING, config};

/// A server of moto, until it is dropped.
pub struct Moto {
    process: Child,
    pub endpoint: String,
}

impl Moto {
    pub async fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/moto/bin/moto_server");
        assert!(program.is_file(), "no {}: `make test` installs it, or `make moto`", program.display());
        // On a port of its own choice: one that was free a moment ago may be somebody else's by now.
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut moto = Self { process, endpoint: String::new() };
        let (told, endpoint) = oneshot::channel();
        std::thread::spawn(move || {
            let mut told = Some(told);
            // To its end, as a pipe that nobody reads would stop it.
            for line in lines {
                let endpoint = line.trim().strip_prefix("* Running on ").map(str::to_owned);
                if let Some((told, endpoint)) = endpoint.and_then(|endpoint| Some((told.take()?, endpoint))) {
                    let _ = told.send(endpoint);
                }
            }
        });
        let endpoint = tokio::time::timeout(Duration::from_secs(60), endpoint).await;
        moto.endpoint = endpoint.expect("moto says in time where it listens").expect("it goes on");
        moto
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn an_empty_vpc_of_moto_is_brought_to_work_and_then_left_alone() {
    let moto = Moto::start().await;
    let config = config(&moto.endpoint);
    let client = Client::new(&config);
    let vpc = client.create_vpc().cidr_block("10.7.0.0/16").send().await.unwrap();
    let vpc = vpc.vpc().and_then(|vpc| vpc.vpc_id()).unwrap().to_owned();
    let subnet = client.create_subnet().vpc_id(&vpc).cidr_block("10.7.1.0/24").send().await.unwrap();
    let subnet = subnet.subnet().and_then(|subnet| subnet.subnet_id()).unwrap().to_owned();
    let eni = client.create_network_interface().subnet_id(&subnet).send().await.unwrap();
    let eni = eni.network_interface().and_then(|eni| eni.network_interface_id()).unwrap().to_owned();
    // Elastic IPs are reached by the gateway of the VPC.
    let gateway = client.create_internet_gateway().send().await.unwrap();
    let gateway = gateway.internet_gateway().and_then(|it| it.internet_gateway_id()).unwrap().to_owned();
    client.attach_internet_gateway().vpc_id(&vpc).internet_gateway_id(&gateway).send().await.unwrap();
    let mut tables = Vec::new();
    for _ in 0..2 {
        let table = client.create_route_table().vpc_id(&vpc).send().await.unwrap();
        tables.push(table.route_table().and_then(|table| table.route_table_id()).unwrap().to_owned());
    }
    let mut pool = Vec::new();
    for _ in 0..2 {
        let address = client.allocate_address().send().await.unwrap();
        pool.push(address.allocation_id().unwrap().to_owned());
    }
    let routes = Routes {
        eni: eni.clone(),
        vpc,
        tables: Tables::Ids(vec![tables[0].clone()]),
        destinations: vec!["0.0.0.0/0".parse().unwrap()],
    };
    let desired = Desired {
        forwarding: [eni.clone()].into(),
        routes: Some(routes),
        elastic_ips: Some(ElasticIps { eni: eni.clone(), pool, count: 2 }),
        ending: false,
    };
    let ec2 = Ec2::new(&config, Calls::default(), Duration::from_secs(20));
    let before = plan(&desired, &Box::pin(observe(&ec2, &desired)).await.unwrap());
    assert!(before.changes.len() >= 3 && before.problems.is_empty(), "{before:?}");
    let (_desired, receiver) = watch::channel(desired.clone());
    let reconciler = Reconciler::new(ec2.clone(), receiver, Arc::default(), TIMING);
    let mut state = reconciler.state();
    let task = tokio::spawn(reconciler.run());
    let had = state.wait_for(|state| {
        state.checks.get(&eni) == Some(&Check::Off)
            && matches!(&state.routes[..], [route] if route.way == Way::Ours && route.table == tables[0])
            && state.elastic_ips.len() == 2
            && (&state.problems, &state.failures) == (&Vec::new(), &Vec::new())
    });
    let had = tokio::time::timeout(Duration::from_secs(60), had).await;
    let had = had.map(|state| state.unwrap().clone());
    let had = had.unwrap_or_else(|_| panic!("{:#?}", *state.borrow()));
    assert_ne!(had.elastic_ips[0].private, had.elastic_ips[1].private);
    task.abort();
    let after = Box::pin(observe(&ec2, &desired)).await.unwrap();
    assert_eq!(plan(&desired, &after).changes, []);
    let other = Tables::Ids(vec![tables[1].clone()]);
    assert_eq!(ec2.route_tables(&other).await.unwrap()[0].routes.len(), 1, "not named");
    assert!(ec2.calls().counts().keys().all(|(_, outcome)| *outcome == Outcome::Done), "{:?}", ec2.calls());
}
