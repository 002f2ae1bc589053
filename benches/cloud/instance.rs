//! The lab's NAT host as an EC2 instance.

use std::collections::HashMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nix::sched::{CloneFlags, setns};

use super::ec2::{ENI, Ec2, VPC};
use super::http::{Answer, serve};
use super::lab::{DEADLINE, Egret, Host, NAT, PUBLIC, Result};

/// Stubs of the metadata service and of EC2, on the loopback interface of a host. They are there until the process ends.
pub struct Instance {
    ec2: Arc<Mutex<Ec2>>,
    environment: Vec<String>,
}

impl Instance {
    pub fn start(host: &Host) -> Result<Self> {
        let mac = host.run("cat /sys/class/net/ens5/address")?.trim().to_owned();
        let tree = metadata(&mac);
        let ec2 = Arc::new(Mutex::new(Ec2::new()));
        let stub = Arc::clone(&ec2);
        let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
        let (told, addresses) = mpsc::channel();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let imds = serve(move |request| {
                    let path = request.path.trim_start_matches("/latest/");
                    let found =
                        if path == "api/token" { Some("token") } else { tree.get(path).map(String::as_str) };
                    let headers = "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
                    match found {
                        Some(text) => Answer::Http(200, headers, text.to_owned()),
                        None => Answer::Http(404, "", String::new()),
                    }
                });
                let ec2 =
                    serve(move |request| stub.lock().unwrap_or_else(PoisonError::into_inner).answer(request));
                told.send((imds.await, ec2.await)).unwrap();
                std::future::pending::<()>().await;
            });
        });
        let (imds, api) = addresses.recv_timeout(DEADLINE)?;
        let environment = vec![
            "env".to_owned(),
            "HOME=/nonexistent".to_owned(),
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{imds}"),
            format!("AWS_ENDPOINT_URL_EC2=http://{api}"),
        ];
        Ok(Self { ec2, environment })
    }

    pub fn spawn(&self, host: &Host, toml: &str) -> Result<Egret> {
        let wrapper: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        Egret::start_under(host, toml, &wrapper)
    }

    pub fn ec2(&self) -> MutexGuard<'_, Ec2> {
        self.ec2.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of an interface with one address that has a public one, and of a role.
fn metadata(mac: &str) -> HashMap<String, String> {
    let (own, public): (Ipv4Addr, Ipv4Addr) = (NAT, PUBLIC);
    let interface = format!("meta-data/network/interfaces/macs/{mac}");
    let role = "meta-data/iam/security-credentials/";
    let credentials = r#"{"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "secret", "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z"}"#;
    HashMap::from([
        (format!("{interface}/interface-id"), ENI.to_owned()),
        (format!("{interface}/vpc-id"), VPC.to_owned()),
        (format!("{interface}/vpc-ipv4-cidr-blocks"), "10.0.0.0/16".to_owned()),
        (format!("{interface}/local-ipv4s"), own.to_string()),
        (format!("{interface}/public-ipv4s"), public.to_string()),
        (format!("{interface}/ipv4-associations/{public}"), own.to_string()),
        ("meta-data/placement/region".to_owned(), "eu-west-1".to_owned()),
        ("meta-data/placement/availability-zone".to_owned(), "eu-west-1a".to_owned()),
        ("meta-data/instance-id".to_owned(), "i-0123456789abcdef0".to_owned()),
        ("meta-data/mac".to_owned(), mac.to_owned()),
        (role.to_owned(), "egret".to_owned()),
        (format!("{role}egret"), credentials.to_owned()),
    ])
}
