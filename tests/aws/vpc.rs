//! A VPC with several instances: each has a metadata service of its own, all have one EC2, and packets really go as its
//! route tables and addresses say. Shared by the tests of failover, its demo, and a bench.

#![allow(dead_code, reason = "each of its users needs another part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "it is a stub of tests")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::ec2::{
    ALLOCATION, ENI, Ec2, ElasticIp, Interface, OTHER_ALLOCATION, OTHER_ENI, OTHER_TABLE, TABLE, Table, VPC,
};
use crate::http::{serve, serve_at};
use crate::imds::{self, Tree};
use crate::lab::{
    DEADLINE, Egret, Fabric, Host, INTERNET, Lab, Options, Result, gateway_address, public_of_host,
};

pub const ENIS: [&str; 3] = [ENI, OTHER_ENI, "eni-0aaaaaaaaaaaaaaa3"];
pub const TABLES: [&str; 3] = [TABLE, OTHER_TABLE, "rtb-0aaaaaaaaaaaaaaa3"];
pub const ALLOCATIONS: [&str; 3] = [ALLOCATION, OTHER_ALLOCATION, "eipalloc-0aaaaaaaaaaaaaaa3"];
/// Of the instances, which are those of their home gateways.
pub const NAMES: [&str; 3] = ["az-a", "az-b", "az-c"];
pub const KEY: &str = "4f1d5f5b0c9a4b60a5cf2d6a8f3b7c1e9d0e2f4a6b8c0d1e3f5a7b9c1d3e5f70";

/// What EC2 has named things, of each instance in turn.
#[derive(Clone, Debug)]
pub struct Ids {
    pub vpc: String,
    pub enis: Vec<String>,
    pub tables: Vec<String>,
    pub allocations: Vec<String>,
    pub nat_gateway: String,
}

/// See the module.
pub struct Vpc {
    pub lab: Arc<Lab>,
    /// The stub, or a relay that shows what there is at moto.
    pub ec2: Arc<Mutex<Ec2>>,
    pub ids: Ids,
    /// What each instance's metadata service tells.
    pub trees: Vec<Arc<Mutex<Tree>>>,
    /// EC2's, and each instance's metadata service's.
    endpoints: (String, Vec<String>),
    ends: Arc<AtomicBool>,
    fabric: Option<JoinHandle<()>>,
    changes: Arc<Mutex<Vec<(Instant, Fabric)>>>,
    stubs: Vec<Stub>,
}

pub type Stub = (oneshot::Sender<()>, JoinHandle<()>);

impl Vpc {
    /// With so many instances, from 2 to 3, on which nothing runs yet; `quiet` as for a lab.
    pub fn new(count: usize, quiet: bool) -> Result<Self> {
        let gateways = u8::try_from(count)?;
        let lab = Lab::new(Options { gateways, quiet, ..Options::default() })?;
        let own = |ids: [&str; 3]| ids[..count].iter().map(|id| (*id).to_owned()).collect();
        let ids = Ids {
            vpc: VPC.to_owned(),
            enis: own(ENIS),
            tables: own(TABLES),
            allocations: own(ALLOCATIONS),
            nat_gateway: "nat-0123456789abcdef0".to_owned(),
        };
        let ec2 = Arc::new(Mutex::new(world(&ids)));
        let stub = Arc::clone(&ec2);
        let served = in_namespace(lab.router(), move || {
            serve_at("10.0.0.1:0", move |request| stub.lock().unwrap().answer(request))
        })?;
        Self::around(lab, ec2, ids, served)
    }

    /// Around an EC2 that is served in the lab already.
    pub fn around(lab: Lab, ec2: Arc<Mutex<Ec2>>, ids: Ids, served: (SocketAddr, Stub)) -> Result<Self> {
        let lab = Arc::new(lab);
        let (address, ec2_stub) = served;
        let mut stubs = vec![ec2_stub];
        let ec2_endpoint = format!("http://{address}");
        let (mut trees, mut imds_endpoints) = (Vec::new(), Vec::new());
        for index in 0..ids.enis.len() {
            let host = lab.gateway(number(index));
            let mac = imds::MAC.map(|octet| format!("{octet:02x}")).join(":");
            host.run(&format!("ip link set ens5 address {mac}"))?;
            let tree = Arc::new(Mutex::new(tree(&ids, index)));
            trees.push(Arc::clone(&tree));
            let (address, stub) =
                in_namespace(host, move || serve(move |request| imds::answer(&tree.lock().unwrap(), request)))?;
            imds_endpoints.push(format!("http://{address}"));
            stubs.push(stub);
        }
        let (ends, changes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let fabric = Some(follow(&lab, &ec2, &ids, &ends, &changes));
        Ok(Self {
            lab,
            ec2,
            ids,
            trees,
            endpoints: (ec2_endpoint, imds_endpoints),
            ends,
            fabric,
            changes,
            stubs,
        })
    }

    /// Starts the daemon on an instance.
    pub fn spawn(&self, index: usize, toml: &str) -> Result<Egret> {
        self.spawn_with(index, toml, &[])
    }

    /// The same, with more in its environment.
    pub fn spawn_with(&self, index: usize, toml: &str, environment: &[&str]) -> Result<Egret> {
        let wrapper = [
            "env".to_owned(),
            "HOME=/nonexistent".to_owned(),
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT={}", self.endpoints.1[index]),
            format!("AWS_ENDPOINT_URL_EC2={}", self.endpoints.0),
        ];
        let wrapper: Vec<&str> =
            wrapper.iter().map(String::as_str).chain(environment.iter().copied()).collect();
        Egret::spawn_under(self.lab.gateway(number(index)), toml, &wrapper)
    }

    /// The configuration of an instance with a gateway of its own, with `more` lines in its `[failover]` table.
    pub fn config_with(&self, index: usize, key: &str, more: &str) -> String {
        let file = key_file(&self.lab, index, key);
        let peer = |other: usize| {
            let address = gateway_address(number(other));
            format!("{{ gateway = \"{}\", address = \"{address}:7946\" }}", NAMES[other])
        };
        let peers: Vec<String> = (0..self.trees.len()).filter(|other| *other != index).map(peer).collect();
        format!(
            "[aws]\nroute_tables = [\"{}\"]\nelastic_ips = [\"{}\"]\n\n[failover]\ngateway = \"{}\"\nkey_file = \"{}\"\n\
             listen = \"{}:7946\"\npeers = [{}]\negress_probes = [\"{INTERNET}:80\", \"{INTERNET}:7\"]\n{more}\n",
            self.ids.tables[index],
            self.ids.allocations[index],
            NAMES[index],
            file.display(),
            gateway_address(number(index)),
            peers.join(", ")
        )
    }

    /// Whose a gateway is at EC2: its Elastic IP and its route.
    pub fn at_ec2(&self, gateway: usize) -> (Option<usize>, Option<usize>) {
        let ec2 = self.ec2.lock().unwrap();
        let whose = |eni: &str| self.ids.enis.iter().position(|known| *known == eni);
        let address = ec2.used(&self.ids.allocations[gateway]).and_then(|(eni, _)| whose(eni));
        (address, ec2.route(&self.ids.tables[gateway], "0.0.0.0/0").and_then(whose))
    }

    /// How packets went, since each of these moments.
    pub fn changes(&self) -> Vec<(Instant, Fabric)> {
        self.changes.lock().unwrap().clone()
    }
}

impl Drop for Vpc {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(fabric) = self.fabric.take() {
            let _ = fabric.join();
        }
        for (stop, thread) in self.stubs.drain(..) {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// The number that the lab has for an instance.
pub fn number(index: usize) -> u8 {
    u8::try_from(index + 1).expect("few")
}

/// A key file of an instance.
pub fn key_file(lab: &Lab, index: usize, key: &str) -> PathBuf {
    let file = lab.directory().join(format!("peer-{index}.key"));
    std::fs::write(&file, key).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

/// For each instance an interface, a route table and an Elastic IP that is free.
pub fn world(ids: &Ids) -> Ec2 {
    let mut ec2 = Ec2::new();
    ec2.world.interfaces.clear();
    ec2.world.tables.clear();
    ec2.world.elastic_ips.clear();
    for (index, eni) in ids.enis.iter().enumerate() {
        let interface = Interface { check: true, addresses: vec![gateway_address(number(index))], room: 50 };
        ec2.world.interfaces.insert(eni.clone(), interface);
        let local = ("10.0.0.0/16".to_owned(), "local".to_owned(), true);
        let table = Table { vpc: ids.vpc.clone(), tags: BTreeMap::new(), routes: vec![local] };
        ec2.world.tables.insert(ids.tables[index].clone(), table);
        let public = Ipv4Addr::new(203, 0, 113, 6 + number(index));
        let free = ElasticIp { public, used: None, associations: 0 };
        ec2.world.elastic_ips.insert(ids.allocations[index].clone(), free);
    }
    ec2
}

/// The metadata of an instance, whose primary address has a public one of its own.
pub fn tree(ids: &Ids, index: usize) -> Tree {
    let mut tree = imds::tree_with_role();
    tree.retain(|path, _| !path.contains("ipv4-associations"));
    let (private, public) = (gateway_address(number(index)), public_of_host(number(index)));
    let interface = imds::INTERFACE;
    for (path, text) in [
        (format!("{interface}/interface-id"), ids.enis[index].clone()),
        (format!("{interface}/vpc-id"), ids.vpc.clone()),
        (format!("{interface}/local-ipv4s"), private.to_string()),
        (format!("{interface}/public-ipv4s"), public.to_string()),
        (format!("{interface}/ipv4-associations/{public}"), private.to_string()),
        ("instance-id".to_owned(), format!("i-0123456789abcdef{index}")),
    ] {
        tree.insert(path, text);
    }
    tree
}

/// A server in a host's namespace, and its address.
pub fn in_namespace<F: Future<Output = SocketAddr>>(
    host: &Host,
    serve: impl FnOnce() -> F + Send + 'static,
) -> Result<(SocketAddr, Stub)> {
    let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
    let (stop, stopped) = oneshot::channel();
    let (told, address) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            told.send(serve().await).unwrap();
            let _ = stopped.await;
        });
    });
    Ok((address.recv_timeout(DEADLINE)?, (stop, thread)))
}

/// Has packets go as EC2's route tables and addresses say.
fn follow(
    lab: &Arc<Lab>,
    ec2: &Arc<Mutex<Ec2>>,
    ids: &Ids,
    ends: &Arc<AtomicBool>,
    changes: &Arc<Mutex<Vec<(Instant, Fabric)>>>,
) -> JoinHandle<()> {
    let (lab, ec2, ends, changes) = (Arc::clone(lab), Arc::clone(ec2), Arc::clone(ends), Arc::clone(changes));
    let ids = ids.clone();
    std::thread::spawn(move || {
        let mut applied = None;
        while !ends.load(Ordering::Relaxed) {
            let fabric = fabric(&ec2.lock().unwrap(), &ids);
            let mut known = changes.lock().unwrap();
            if known.last().is_none_or(|(_, last)| *last != fabric) {
                known.push((Instant::now(), fabric.clone()));
            }
            drop(known);
            // Not while a link is down that a route is by.
            if applied.as_ref() != Some(&fabric) && fabric.apply(&lab).is_ok() {
                applied = Some(fabric);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    })
}

fn fabric(ec2: &Ec2, ids: &Ids) -> Fabric {
    let whose = |eni: &str| ids.enis.iter().position(|known| *known == eni).map(number);
    let routes = (0..2).map(|index| {
        let table = ids.tables.get(index).filter(|table| ec2.world.tables.contains_key(*table));
        (number(index), table.and_then(|table| ec2.route(table, "0.0.0.0/0")).and_then(whose))
    });
    let used = |ip: &ElasticIp| {
        let (eni, private) = ip.used.as_ref()?;
        Some((ip.public, (whose(eni)?, *private)))
    };
    Fabric { routes: routes.collect(), addresses: ec2.world.elastic_ips.values().filter_map(used).collect() }
}
