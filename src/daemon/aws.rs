//! AWS as a [`Cloud`]. A task for each interface that forwards finds its identity, and asks the metadata service again
//! from time to time, since an Elastic IP may be associated at any moment. Another keeps up at EC2 what is desired of
//! these interfaces: the source/destination checks of all of them off, routes to the internal one, Elastic IPs on the
//! external one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::cloud::{Check, Cloud, Known};
use super::fleet;
use super::gateways::Prepared;
use super::with_causes;
use crate::admin::{AwsReport, ElasticIpReport, RouteReport};
use crate::aws::{
    self, Calls, Desired, Ec2, ElasticIps, Error, Identity, Imds, Reconciler, Routes, State, Tables, Timing,
    Way,
};
use crate::config::{Aws, CloudFacts, RouteTables, Switch};
use crate::datapath::{self, Interface};
use crate::failover::Held;
use crate::nat::ExternalAddress;

pub(super) fn is_on(switch: Switch) -> bool {
    match switch {
        Switch::Auto => aws::on_ec2(),
        Switch::On => true,
        Switch::Off => false,
    }
}

/// Starts the tasks, once the external interface's identity is known or has been waited for long enough.
pub(super) async fn start(
    (external, internal): (&Interface, &Interface),
    wanted: &Aws,
    calls: Calls,
    failover: Option<Prepared>,
) -> Cloud {
    let interfaces = interfaces(external, internal);
    let imds = Imds::new();
    let held = failover.as_ref().map(|_| BTreeMap::new());
    let mut seen = Seen { identities: vec![None; interfaces.len()], state: None, held };
    seen.identities[EXTERNAL] = first_identity(&imds, external).await;
    let known = watch::Sender::new(seen.known(BTreeSet::new()));
    let receiver = known.subscribe();
    let seen = watch::Sender::new(seen);
    let (wanted, ending) = (watch::Sender::new(wanted.clone()), watch::Sender::new(false));
    let refresh = Arc::<Notify>::default();
    let mut tasks = JoinSet::new();
    for (index, interface) in interfaces.into_iter().enumerate() {
        let (imds, interface, seen) = (imds.clone(), interface.clone(), seen.clone());
        let tender = Tender { imds, interface, index, every: REFRESH, seen, refresh: Arc::clone(&refresh) };
        tasks.spawn(tender.run());
    }
    if let Some(prepared) = failover {
        tasks.spawn(fleet::run(prepared, seen.clone(), wanted.subscribe(), calls.clone()));
    }
    let wishes = (wanted.subscribe(), ending.subscribe());
    tasks.spawn(reconcile(seen.clone(), wishes, Arc::clone(&refresh), calls));
    tasks.spawn(tell(external.clone(), seen.subscribe(), known));
    Cloud::new(receiver, (wanted, ending), refresh, tasks)
}

/// What would be done at EC2 now, and what could not be; nothing is. With it, what the metadata service tells.
pub(super) async fn foresee(
    (external, internal): (&Interface, &Interface),
    wanted: &Aws,
) -> Result<(aws::Plan, Option<CloudFacts>), Box<dyn std::error::Error + Send + Sync>> {
    let imds = Imds::new();
    let mut identities = Vec::new();
    for interface in interfaces(external, internal) {
        identities.push(Some(imds.identity(interface.mac).await?));
    }
    let region = identities.iter().flatten().next().map(|identity| identity.region.clone()).unwrap_or_default();
    let seen = Seen { identities, state: None, held: None };
    let desired = seen.desired(wanted);
    let ec2 = Ec2::new(&aws::sdk_config(&region).await, Calls::default(), CALL_TIMEOUT);
    Ok((aws::plan(&desired, &Box::pin(aws::observe(&ec2, &desired)).await?), seen.facts()))
}

/// Those that forward; the external one has the first place.
fn interfaces<'a>(external: &'a Interface, internal: &'a Interface) -> Vec<&'a Interface> {
    let mut interfaces = vec![external, internal];
    interfaces.dedup();
    interfaces
}

/// What the tasks have found out so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Of each interface that forwards.
    pub(super) identities: Vec<Option<Identity>>,
    /// Unset until EC2 was asked.
    state: Option<State>,
    /// The Elastic IPs of the gateways that are here, by gateway. With failover their addresses and routes are the
    /// fleet's business.
    pub(super) held: Option<BTreeMap<String, Vec<Held>>>,
}

impl Seen {
    /// As the rest of the daemon takes it.
    fn known(&self, added: BTreeSet<Ipv4Addr>) -> Known {
        Known { facts: self.facts(), checks: self.checks(), added, report: self.state.as_ref().map(report) }
    }

    /// What the metadata service tells, with what EC2 is known to have associated and it does not tell yet.
    fn facts(&self) -> Option<CloudFacts> {
        let identity = self.identities[EXTERNAL].as_ref()?;
        let pair =
            |address: &aws::Address| ExternalAddress { private: address.private, public: address.public };
        let mut addresses: Vec<ExternalAddress> = identity.addresses.iter().map(pair).collect();
        let of_gateways = self.of_gateways();
        if !of_gateways.is_empty() {
            // Whoever is reached from behind a gateway knows it by these.
            for address in &mut addresses {
                address.public = None;
            }
        }
        for (public, private) in self.associated() {
            match addresses.iter_mut().find(|address| address.private == private) {
                Some(address) => address.public = Some(public),
                None => addresses.push(ExternalAddress { private, public: Some(public) }),
            }
        }
        Some(CloudFacts { internal: identity.vpc_cidrs.clone(), addresses })
    }

    /// Elastic IPs and their private addresses, as they are known to be associated.
    fn associated(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let elastic_ips = self.state.iter().flat_map(|state| &state.elastic_ips);
        elastic_ips.map(|held| (held.public, held.private)).chain(self.of_gateways()).collect()
    }

    fn of_gateways(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let held = self.held.iter().flat_map(BTreeMap::values).flatten();
        held.map(|held| (held.public, held.private)).collect()
    }

    fn checks(&self) -> Vec<Check> {
        let checks = self.state.as_ref().map(|state| &state.checks);
        let check = |identity: &Option<Identity>| match checks?.get(&identity.as_ref()?.eni)? {
            aws::Check::Off => Some(Check::Off),
            aws::Check::Failed(reason) => Some(Check::Failed(reason.clone())),
        };
        self.identities.iter().map(|identity| check(identity).unwrap_or(Check::Unknown)).collect()
    }

    /// What is wanted of the interfaces whose identity is known.
    fn desired(&self, wanted: &Aws) -> Desired {
        let internal = self.identities.last().and_then(Option::as_ref);
        let tables = |vpc: &str| match &wanted.route_tables {
            RouteTables::None => None,
            RouteTables::Ids(ids) => Some(Tables::Ids(ids.clone())),
            RouteTables::Tagged(tags) => Some(Tables::Tagged { vpc: vpc.to_owned(), tags: tags.clone() }),
        };
        let alone = self.held.is_none();
        let routes = internal.filter(|_| alone).and_then(|Identity { eni, vpc, .. }| {
            let destinations = wanted.routes.clone();
            Some(Routes { eni: eni.clone(), vpc: vpc.clone(), tables: tables(vpc)?, destinations })
        });
        let external = self.identities[EXTERNAL].as_ref().filter(|_| alone && !wanted.elastic_ips.is_empty());
        let elastic_ips = external.map(|Identity { eni, .. }| ElasticIps {
            eni: eni.clone(),
            pool: wanted.elastic_ips.clone(),
            count: wanted.elastic_ip_count,
        });
        let forwarding = self.identities.iter().flatten().map(|identity| identity.eni.clone()).collect();
        Desired { forwarding, routes, elastic_ips, ending: false }
    }
}

/// Keeps up what is desired, from the first identity on.
async fn reconcile(
    seen: watch::Sender<Seen>,
    (mut wanted, mut ending): (watch::Receiver<Aws>, watch::Receiver<bool>),
    refresh: Arc<Notify>,
    calls: Calls,
) {
    let mut changes = seen.subscribe();
    let any = |seen: &Seen| seen.identities.iter().flatten().next().map(|identity| identity.region.clone());
    let Some(region) = changes.wait_for(|seen| any(seen).is_some()).await.ok().and_then(|seen| any(&seen))
    else {
        return;
    };
    let ec2 = Ec2::new(&aws::sdk_config(&region).await, calls, CALL_TIMEOUT);
    let desired = |seen: &Seen, wanted: &Aws, ending: bool| Desired { ending, ..seen.desired(wanted) };
    let now = desired(&changes.borrow_and_update(), &wanted.borrow_and_update(), *ending.borrow_and_update());
    let sender = watch::Sender::new(now);
    let reconciler = Reconciler::new(ec2, sender.subscribe(), refresh, Timing::default());
    let mut state = reconciler.state();
    let follow = async {
        loop {
            tokio::select! {
                Ok(()) = changes.changed() => {}
                Ok(()) = wanted.changed() => {}
                Ok(()) = ending.changed() => {}
                else => return,
            }
            let (seen, wanted) = (changes.borrow_and_update(), wanted.borrow_and_update());
            let now = desired(&seen, &wanted, *ending.borrow_and_update());
            drop((seen, wanted));
            set(&sender, now);
        }
    };
    let report = async {
        while state.changed().await.is_ok() {
            let state = state.borrow_and_update().clone();
            seen.send_modify(|seen| seen.state = Some(state));
        }
    };
    tokio::join!(reconciler.run(), follow, report);
}

/// Tells the rest of the daemon what is seen, as it changes. Before an Elastic IP is told of, the host has its private
/// address: EC2 assigns secondary ones without a word to the host. Others may take it away again, as networkd does when
/// it is restarted (networkd.conf(5)), so that is looked after.
async fn tell(external: Interface, mut seen: watch::Receiver<Seen>, known: watch::Sender<Known>) {
    let mut added = BTreeSet::new();
    let mut failed = BTreeMap::new();
    loop {
        let now = seen.borrow_and_update().clone();
        let held: BTreeSet<_> = now.associated().into_iter().map(|(_, private)| private).collect();
        for private in missing(&external, &held) {
            let interface = &external.name;
            match datapath::add_address(&external, private) {
                Ok(()) => {
                    tracing::info!(interface, %private, "address of an elastic ip added to the interface");
                    added.insert(private);
                    failed.remove(&private);
                }
                Err(error) => {
                    let reason = error.to_string();
                    if failed.insert(private, reason.clone()) != Some(reason) {
                        tracing::error!(interface, %private, %error, "address of an elastic ip not added");
                    }
                }
            }
        }
        set(&known, now.known(added.clone()));
        if let Ok(Err(_)) = timeout(LOOK, seen.changed()).await {
            return;
        }
    }
}

/// Of these addresses, those that the host does not have. The interface's first one is DHCP's affair.
fn missing(external: &Interface, held: &BTreeSet<Ipv4Addr>) -> Vec<Ipv4Addr> {
    if held.is_empty() {
        return Vec::new();
    }
    let here: BTreeSet<Ipv4Addr> =
        datapath::interfaces().into_iter().flat_map(|interface| interface.addresses).collect();
    let missing = held.difference(&here).filter(|private| external.addresses.first() != Some(private));
    missing.copied().collect()
}

/// Wakes those who watch only if there is something new.
fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|current| {
        let is_new = *current != value;
        *current = value;
        is_new
    });
}

fn report(state: &State) -> AwsReport {
    let check = |check: &aws::Check| match check {
        aws::Check::Off => Check::Off.to_string(),
        aws::Check::Failed(reason) => Check::Failed(reason.clone()).to_string(),
    };
    let route = |route: &aws::RouteState| {
        let (state, target) = match &route.way {
            Way::Ours => ("active", None),
            Way::None => ("missing", None),
            Way::BlackHole(target) => ("blackhole", Some(target.clone())),
            Way::Other(target) => ("elsewhere", Some(target.clone())),
        };
        let (route_table, destination) = (route.table.clone(), route.destination);
        RouteReport { route_table, destination, state: state.to_owned(), target }
    };
    let elastic_ip = |held: &aws::HeldElasticIp| ElasticIpReport {
        allocation: held.allocation.clone(),
        public: held.public,
        private: held.private,
    };
    let mut calls = BTreeMap::<String, BTreeMap<String, u64>>::new();
    for ((action, outcome), count) in &state.calls {
        calls.entry((*action).to_owned()).or_default().insert(outcome.label().to_owned(), *count);
    }
    AwsReport {
        source_dest_checks: state.checks.iter().map(|(eni, state)| (eni.clone(), check(state))).collect(),
        routes: state.routes.iter().map(route).collect(),
        elastic_ips: state.elastic_ips.iter().map(elastic_ip).collect(),
        problems: state.problems.iter().map(ToString::to_string).collect(),
        failures: state.failures.iter().map(ToString::to_string).collect(),
        calls,
    }
}

/// The identity, if the metadata service gives it soon; otherwise it says so.
async fn first_identity(imds: &Imds, interface: &Interface) -> Option<Identity> {
    let mut last = None;
    let asking = async {
        loop {
            match imds.identity(interface.mac).await {
                Ok(identity) => return Some(identity),
                Err(error) => {
                    let is_final = matches!(error, Error::UnknownInterface(_) | Error::Malformed { .. });
                    last = Some(error);
                    if is_final {
                        return None;
                    }
                }
            }
            sleep(RETRY).await;
        }
    };
    let found = timeout(START_TIME, asking).await.ok().flatten();
    if found.is_none() {
        let error = last.map_or_else(|| "no answer".to_owned(), |error| with_causes(&error));
        tracing::warn!(
            interface = interface.name,
            error,
            "identity not known, going on with what the interface itself tells; asked for again"
        );
    }
    found
}

/// Looks after one interface's identity.
struct Tender {
    imds: Imds,
    interface: Interface,
    /// Its place among the identities.
    index: usize,
    /// How often it is asked about.
    every: Duration,
    seen: watch::Sender<Seen>,
    refresh: Arc<Notify>,
}

impl Tender {
    async fn run(self) {
        let found = self.seen.borrow().identities[self.index].clone();
        let identity = match found {
            Some(identity) => identity,
            None => self.find().await,
        };
        let Identity { region, eni, vpc, .. } = &identity;
        tracing::info!(interface = self.interface.name, eni, vpc, region, "identity found");
        self.follow(identity).await;
    }

    async fn find(&self) -> Identity {
        let mut wait = RETRY;
        loop {
            sleep(wait).await;
            match self.imds.identity(self.interface.mac).await {
                Ok(identity) => return identity,
                Err(error) => {
                    tracing::debug!(
                        interface = self.interface.name,
                        error = with_causes(&error),
                        "no identity"
                    );
                }
            }
            wait = (wait * 2).min(self.every);
        }
    }

    /// Tells of the identity, now and whenever it has changed. One that is no longer told stays as it was.
    async fn follow(&self, identity: Identity) {
        let mut refreshed = self.refresh.notified();
        self.publish(identity);
        let mut is_well = true;
        loop {
            tokio::select! {
                () = sleep(self.every) => {}
                () = refreshed => {}
            }
            // From here on, so that nothing that is asked for during the look is missed.
            refreshed = self.refresh.notified();
            match self.imds.identity(self.interface.mac).await {
                Ok(identity) => {
                    is_well = true;
                    self.publish(identity);
                }
                Err(error) if is_well => {
                    is_well = false;
                    let interface = &self.interface.name;
                    tracing::warn!(interface, error = with_causes(&error), "identity not told, kept as it was");
                }
                Err(_) => {}
            }
        }
    }

    fn publish(&self, identity: Identity) {
        self.seen.send_if_modified(|seen| {
            let current = &mut seen.identities[self.index];
            let is_new = current.as_ref() != Some(&identity);
            *current = Some(identity);
            is_new
        });
    }
}

/// The place of the external interface.
const EXTERNAL: usize = 0;

/// For one API call in all, from fetching credentials to the answer's last byte.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the start waits for the metadata service.
const START_TIME: Duration = Duration::from_secs(5);

/// After a first failure; doubled by each further one.
const RETRY: Duration = Duration::from_millis(250);
/// How often the host's addresses are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// How often the identity is looked at, and the longest pause after failures.
const REFRESH: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Mutex;

    use super::*;

    const INTERFACE: &str = "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01";

    /// A metadata service, one request a connection, until the test's process ends.
    fn serve(tree: Arc<Mutex<HashMap<String, &'static str>>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut first = String::new();
                stream.read_line(&mut first).unwrap();
                let mut line = first.clone();
                while !line.trim().is_empty() {
                    line.clear();
                    stream.read_line(&mut line).unwrap();
                }
                let path = first.split(' ').nth(1).unwrap_or_default();
                let token = first.starts_with("PUT").then_some("token");
                let (status, text) = match token.or(tree.lock().unwrap().get(path).copied()) {
                    Some(text) => (200, text),
                    None => (404, ""),
                };
                let length = text.len();
                let _ = write!(
                    stream.get_mut(),
                    "HTTP/1.1 {status} Stub\r\nconnection: close\r\ncontent-length: {length}\r\n\
                     x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n{text}"
                );
            }
        });
        format!("http://{address}")
    }

    /// A listener there waits for its gateway to come back.
    #[test]
    fn addresses_of_which_a_gateway_has_gone_are_known_without_a_public_one() {
        let [primary, secondary] = [[10, 0, 0, 10], [10, 0, 0, 11]].map(Ipv4Addr::from);
        let [own, other] = [[203, 0, 113, 7], [203, 0, 113, 8]].map(Ipv4Addr::from);
        let identity = Identity {
            region: "eu-west-1".to_owned(),
            eni: "eni-0123456789abcdef0".to_owned(),
            vpc: "vpc-0a1b2c3d4e5f60718".to_owned(),
            vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
            addresses: vec![
                aws::Address { private: primary, public: Some(own) },
                aws::Address { private: secondary, public: Some(other) },
            ],
        };
        for (public, private) in [(own, primary), (other, secondary)] {
            let held = BTreeMap::from([("zone-a".to_owned(), vec![Held { public, private }])]);
            let seen = Seen { identities: vec![Some(identity.clone())], state: None, held: Some(held) };
            let known = [primary, secondary].map(|address| ExternalAddress {
                private: address,
                public: (address == private).then_some(public),
            });
            assert_eq!(seen.facts().unwrap().addresses, known);
        }
    }

    #[tokio::test]
    async fn an_address_that_is_associated_later_is_noticed_by_itself() {
        let tree = HashMap::from([
            ("/latest/meta-data/placement/region".to_owned(), "eu-west-1"),
            (format!("{INTERFACE}/interface-id"), "eni-0123456789abcdef0"),
            (format!("{INTERFACE}/vpc-id"), "vpc-0a1b2c3d4e5f60718"),
            (format!("{INTERFACE}/vpc-ipv4-cidr-blocks"), "10.0.0.0/16"),
            (format!("{INTERFACE}/local-ipv4s"), "10.0.0.10"),
        ]);
        let tree = Arc::new(Mutex::new(tree));
        let interface = Interface {
            name: "eth7".to_owned(),
            index: 7,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: Vec::new(),
        };
        let (seen, mut receiver) = watch::channel(Seen { identities: vec![None], state: None, held: None });
        let tender = Tender {
            imds: Imds::at(&serve(Arc::clone(&tree))).unwrap(),
            interface,
            index: EXTERNAL,
            every: Duration::from_millis(10),
            seen,
            refresh: Arc::default(),
        };
        let mut follower = JoinSet::new();
        follower.spawn(async move {
            let identity = tender.find().await;
            tender.follow(identity).await;
        });
        let mut public = async || {
            let changed = timeout(Duration::from_secs(20), receiver.changed());
            changed.await.expect("a change in time").unwrap();
            receiver.borrow_and_update().facts().unwrap().addresses[0].public
        };
        assert_eq!(public().await, None);
        {
            let mut tree = tree.lock().unwrap();
            tree.insert(format!("{INTERFACE}/ipv4-associations/203.0.113.7"), "10.0.0.10");
            tree.insert(format!("{INTERFACE}/public-ipv4s"), "203.0.113.7");
        }
        assert_eq!(public().await, Some([203, 0, 113, 7].into()));
    }
}
