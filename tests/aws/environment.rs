//! An instance with nothing configured: endpoints from the environment, credentials from the instance's role. The
//! environment belongs to the process, so the client is this test binary again, as a child.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egret::aws::{Imds, SourceDestCheck, State, Timing, sdk_config};

use crate::http::serve;
use crate::imds;
use crate::source_dest_check::{Ec2, Fault, TIMING};

#[tokio::test]
async fn an_unconfigured_instance_finds_itself_and_switches_its_check_off() {
    let ec2 = Arc::new(Mutex::new(Ec2::new(true, Fault::None)));
    let stub = Arc::clone(&ec2);
    let ec2_address = serve(move |request| stub.lock().unwrap().answer(request)).await;
    let tree = tree();
    let imds_address = serve(move |request| imds::answer(&tree, request)).await;
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
    let output = child.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let ec2 = ec2.lock().unwrap();
    assert_eq!((ec2.check, ec2.writes), (false, 1));
}

/// What the metadata service tells an instance with a role.
pub fn tree() -> imds::Tree {
    let mut tree = imds::tree();
    let role = "iam/security-credentials/";
    tree.insert(role.to_owned(), "egret".to_owned());
    let credentials = r#"{"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "secret", "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z"}"#;
    tree.insert(format!("{role}egret"), credentials.to_owned());
    tree
}

#[tokio::test]
#[ignore = "run by the test above, in an environment of its own"]
async fn child() {
    assert!(egret::aws::on_ec2());
    let identity = Imds::new().identity(imds::MAC).await.unwrap();
    let config = sdk_config(&identity.region).await;
    let task = SourceDestCheck::new(
        &config,
        &identity.eni,
        Timing { call_timeout: Duration::from_secs(10), ..TIMING },
    );
    let mut state = task.state();
    tokio::spawn(task.run());
    let settled = state.wait_for(|state| *state != State::Unknown);
    let settled = tokio::time::timeout(Duration::from_secs(20), settled).await.expect("in time");
    assert_eq!(*settled.unwrap(), State::Off);
}
