//! An instance with nothing configured: endpoints from the environment, credentials from the instance's role. The
//! environment belongs to the process, so the client is this test binary again, as a child.

use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use egret::aws::{Calls, Check, Desired, Ec2 as Client, Imds, Reconciler, sdk_config};
use tokio::sync::watch;

use crate::ec2::{ENI, Ec2};
use crate::http::serve;
use crate::imds;
pub use crate::imds::tree_with_role as tree;
use crate::reconcile::TIMING;

/// Runs the child, against a metadata service that tells what `tree` does at that moment.
async fn run_child(ec2: &Arc<Mutex<Ec2>>, tree: impl Fn() -> imds::Tree + Send + Sync + 'static) -> Output {
    let stub = Arc::clone(ec2);
    let ec2_address = serve(move |request| stub.lock().unwrap().answer(request)).await;
    let imds_address = serve(move |request| imds::answer(&tree(), request)).await;
    let child = tokio::task::spawn_blocking(move || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "environment::child", "--ignored", "--nocapture"])
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{imds_address}"))
            .env("AWS_ENDPOINT_URL_EC2", format!("http://{ec2_address}"))
            .output()
            .unwrap()
    });
    child.await.unwrap()
}

#[tokio::test]
async fn an_unconfigured_instance_finds_itself_and_switches_its_check_off() {
    let ec2 = Arc::new(Mutex::new(Ec2::new()));
    let output = run_child(&ec2, tree).await;
    assert!(output.status.success(), "{output:?}");
    let mut ec2 = ec2.lock().unwrap();
    assert_eq!((*ec2.check(ENI), ec2.made("ModifyNetworkInterfaceAttribute")), (false, 1));
}

#[tokio::test]
async fn credentials_that_expire_are_renewed() {
    let ec2 = Arc::new(Mutex::new(Ec2::new()));
    let seen = Arc::clone(&ec2);
    let output = run_child(&ec2, move || {
        let mut tree = tree();
        if seen.lock().unwrap().keys.is_empty() {
            let expiry = rfc3339(SystemTime::now() + Duration::from_secs(5));
            let credentials = &mut *tree.get_mut("iam/security-credentials/egret").unwrap();
            *credentials =
                credentials.replace("2099-01-01T00:00:00Z", &expiry).replace("ASIAEXAMPLE", "ASIASHORT");
        }
        tree
    })
    .await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(ec2.lock().unwrap().keys, ["ASIASHORT", "ASIAEXAMPLE"]);
}

/// RFC 3339, in whole seconds.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    aws_sdk_ec2::primitives::DateTime::from_secs(seconds.try_into().unwrap()).to_string()
}

#[tokio::test]
#[ignore = "run by the test above, in an environment of its own"]
async fn child() {
    assert!(egret::aws::on_ec2());
    let identity = Imds::new().identity(imds::MAC).await.unwrap();
    let config = sdk_config(&identity.region).await;
    let calls = Calls::default();
    let client = Client::new(&config, calls.clone(), Duration::from_secs(10));
    let (_desired, receiver) =
        watch::channel(Desired { forwarding: [identity.eni.clone()].into(), ..Desired::default() });
    let task = Reconciler::new(client, receiver, Arc::default(), TIMING);
    let mut state = task.state();
    tokio::spawn(task.run());
    let off = state.wait_for(|state| state.checks.get(&identity.eni) == Some(&Check::Off));
    tokio::time::timeout(Duration::from_secs(30), off).await.expect("in time").unwrap();
    // Long enough for credentials to be renewed, if they expire soon.
    let begin = Instant::now();
    let later = state.wait_for(|_| begin.elapsed() > Duration::from_secs(7));
    tokio::time::timeout(Duration::from_secs(30), later).await.expect("in time").unwrap();
}
