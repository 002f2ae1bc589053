//! AWS as a [`Cloud`]: a task for each interface that forwards. It finds the interface's identity, keeps its
//! source/destination check off, and asks the metadata service again from time to time, since an Elastic IP may be
//! associated at any moment.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::cloud::{Check, Cloud, Known};
use super::with_causes;
use crate::aws::{self, Error, Identity, Imds, SourceDestCheck, State, Timing};
use crate::config::{CloudFacts, Switch};
use crate::datapath::{self, Interface};
use crate::nat::ExternalAddress;

pub(super) fn is_on(switch: Switch) -> bool {
    match switch {
        Switch::Auto => aws::on_ec2(),
        Switch::On => true,
        Switch::Off => false,
    }
}

/// Starts the tasks, once the external interface's identity is known or has been waited for long enough.
pub(super) async fn start(config: &datapath::Config) -> Cloud {
    let mut interfaces = vec![&config.external, &config.internal];
    interfaces.dedup();
    let checks = vec![Check::Unknown; interfaces.len()];
    let (known, receiver) = watch::channel(Known { facts: None, checks });
    let refresh = Arc::new(Notify::new());
    let imds = Imds::new();
    let mut found = first_identity(&imds, &config.external).await;
    if let Some(identity) = &found {
        known.send_modify(|known| known.facts = Some(facts(identity)));
    }
    let mut tasks = JoinSet::new();
    for (index, interface) in interfaces.into_iter().enumerate() {
        let tender = Tender {
            imds: imds.clone(),
            interface: interface.clone(),
            index,
            every: REFRESH,
            known: known.clone(),
            refresh: Arc::clone(&refresh),
        };
        tasks.spawn(tender.run(found.take()));
    }
    Cloud::new(receiver, refresh, tasks)
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

/// Looks after one interface.
struct Tender {
    imds: Imds,
    interface: Interface,
    /// Of its check among the known ones; the external interface has the first.
    index: usize,
    /// How often it is asked about.
    every: Duration,
    known: watch::Sender<Known>,
    refresh: Arc<Notify>,
}

impl Tender {
    async fn run(self, found: Option<Identity>) {
        let identity = match found {
            Some(identity) => identity,
            None => self.find().await,
        };
        let Identity { region, eni, vpc, .. } = &identity;
        tracing::info!(interface = self.interface.name, eni, vpc, region, "identity found");
        let check = SourceDestCheck::new(&aws::sdk_config(region).await, eni, Timing::default());
        let state = check.state();
        tokio::join!(check.run(), self.report(state), self.follow(&identity));
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

    /// Tells of the check's state as it changes.
    async fn report(&self, mut state: watch::Receiver<State>) {
        loop {
            let check = match &*state.borrow_and_update() {
                State::Unknown => Check::Unknown,
                State::Off => Check::Off,
                State::Failed(reason) => Check::Failed(reason.clone()),
            };
            self.change(|known| known.checks[self.index] = check);
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells of the identity, now and whenever it has changed. One that is no longer told stays as it was.
    async fn follow(&self, identity: &Identity) {
        self.publish(identity);
        let mut is_well = true;
        loop {
            tokio::select! {
                () = sleep(self.every) => {}
                () = self.refresh.notified() => {}
            }
            match self.imds.identity(self.interface.mac).await {
                Ok(identity) => {
                    is_well = true;
                    self.publish(&identity);
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

    fn publish(&self, identity: &Identity) {
        if self.index == EXTERNAL {
            self.change(|known| known.facts = Some(facts(identity)));
        }
    }

    /// Wakes those who watch only if there is something new.
    fn change(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_if_modified(|known| {
            let before = known.clone();
            change(known);
            *known != before
        });
    }
}

fn facts(identity: &Identity) -> CloudFacts {
    let pair = |address: &aws::Address| ExternalAddress { private: address.private, public: address.public };
    CloudFacts {
        internal: identity.vpc_cidrs.clone(),
        addresses: identity.addresses.iter().map(pair).collect(),
    }
}

/// The place of the external interface.
const EXTERNAL: usize = 0;

/// How long the start waits for the metadata service.
const START_TIME: Duration = Duration::from_secs(5);

/// After a first failure; doubled by each further one.
const RETRY: Duration = Duration::from_millis(250);

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
        let (known, mut receiver) = watch::channel(Known::default());
        let tender = Tender {
            imds: Imds::at(&serve(Arc::clone(&tree))).unwrap(),
            interface,
            index: EXTERNAL,
            every: Duration::from_millis(10),
            known,
            refresh: Arc::default(),
        };
        let mut follower = JoinSet::new();
        follower.spawn(async move {
            let identity = tender.find().await;
            tender.follow(&identity).await;
        });
        let mut public = async || {
            let known = timeout(Duration::from_secs(20), receiver.changed());
            known.await.expect("a change in time").unwrap();
            receiver.borrow_and_update().facts.as_ref().unwrap().addresses[0].public
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
