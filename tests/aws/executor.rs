//! The calls of an instance of a fleet.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use egret::aws::{Calls, Ec2 as Client, Executor, Place};
use egret::failover::Call;

use crate::ec2::{ALLOCATION, ENI, Ec2, VPC};
use crate::http::serve;
use crate::reconcile::config;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn elastic_ip_that_comes_while_room_is_made_for_it_leaves_the_primary_address_alone() {
    let ec2 = Arc::new(Mutex::new(Ec2::new()));
    ec2.lock().unwrap().world.interfaces.get_mut(ENI).unwrap().room = 2;
    let stub = Arc::clone(&ec2);
    let address = serve(move |request| {
        let mut ec2 = stub.lock().unwrap();
        let answer = ec2.answer(request);
        // Both look before there is room, and the one that makes it hears so last, unless the other waits for it.
        let (looks, assigned) = match (ec2.made(LOOK), ec2.made(ASSIGN)) {
            (1, 0) => (2, 0),
            (2, 0) => (2, 1),
            (2, 1) => (2, 2),
            _ => return answer,
        };
        drop(ec2);
        wait(&stub, |ec2| ec2.made(LOOK) >= looks && ec2.made(ASSIGN) >= assigned);
        answer
    })
    .await;
    let client = Client::new(&config(&format!("http://{address}")), Calls::default(), Duration::from_secs(20));
    let place = Place { external: ENI.to_owned(), internal: ENI.to_owned(), vpc: VPC.to_owned() };
    let executor = Executor::new(client, place);
    let associate = Call::Associate { allocation: ALLOCATION.to_owned() };
    let then = async {
        while ec2.lock().unwrap().made(LOOK) == 0 {
            tokio::task::yield_now().await;
        }
        executor.make(&associate).await
    };
    let (prepared, associated) = tokio::join!(executor.prepare(1), then);
    prepared.unwrap();
    associated.unwrap();
    assert_eq!(ec2.lock().unwrap().used(ALLOCATION), Some((ENI, [10, 0, 0, 30].into())));
}

/// For a second at most.
fn wait(ec2: &Mutex<Ec2>, done: impl Fn(&Ec2) -> bool) {
    let begun = Instant::now();
    while !done(&ec2.lock().unwrap()) && begun.elapsed() < Duration::from_secs(1) {
        thread::yield_now();
    }
}

const LOOK: &str = "DescribeNetworkInterfaces";
const ASSIGN: &str = "AssignPrivateIpAddresses";
