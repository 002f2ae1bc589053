//! An instance with its links, and what happens on them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use egret::failover::{Failback, Gateway, Health, Heartbeat, Hello, Message, Offer, Planned, VERSION};
use egret::peer::{self, Config, Down, Event, Key, Link, PeerReport};
use socket2::SockRef;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

/// Dropping it ends its links.
pub struct Node {
    pub link: Link,
    pub name: String,
    events: Receiver<Event>,
}

/// Long enough for a laden machine; nothing that is expected takes as long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// So long that a laden machine does not make it matter.
pub const LONG: Duration = Duration::from_secs(30);

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A socket that listens at a free port.
pub fn socket() -> TcpListener {
    peer::bind(SocketAddr::new(LOCALHOST, 0)).unwrap()
}

/// Listens where somebody has just ended: a program that another test starts has a copy of that socket until it runs.
pub async fn socket_at(address: SocketAddr) -> TcpListener {
    let bound = async {
        loop {
            match peer::bind(address) {
                Ok(socket) => return socket,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(PATIENCE, bound).await.unwrap()
}

/// A port where nobody listens for now. Nobody else is given it by chance, and it can be bound again.
pub fn vacant() -> SocketAddr {
    let socket: &TcpListener = Box::leak(Box::new(socket()));
    SockRef::from(socket).shutdown(Shutdown::Read).unwrap();
    socket.local_addr().unwrap()
}

pub fn hello(name: &str) -> Hello {
    let gateway = Gateway {
        name: name.to_owned(),
        allocations: vec!["eipalloc-0123456789abcdef0".to_owned()],
        route_tables: vec!["rtb-0123456789abcdef0".to_owned()],
        destinations: vec!["0.0.0.0/0".parse().unwrap()],
        heirs: Vec::new(),
        failback: Failback::Auto,
        fallback: None,
    };
    Hello { version: VERSION, eni: "eni-0123456789abcdef0".to_owned(), gateway }
}

/// A message that is told from others by its number.
pub fn offer(number: u64) -> Message {
    Message::Offer(Offer { gateway: "a".to_owned(), number, why: Planned::Operator })
}

pub fn heartbeat(sequence: u64) -> Message {
    Message::Heartbeat(Heartbeat {
        sequence,
        echo: None,
        health: Health::default(),
        leaving: false,
        misses: Vec::new(),
        hosts: Vec::new(),
    })
}

pub fn config(name: &str, key: &Key, peers: &[(&str, SocketAddr)]) -> Config {
    let peers: BTreeMap<_, _> =
        peers.iter().map(|(name, address)| ((*name).to_owned(), vec![*address])).collect();
    Config { gateway: name.to_owned(), key: key.clone(), peers, silence: LONG }
}

impl Node {
    pub fn start(config: Config, socket: TcpListener) -> Self {
        let name = config.gateway.clone();
        let (link, events) = Link::start(config, socket, &hello(&name)).unwrap();
        Self { link, name, events }
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        self.until(Some).await
    }

    /// Leaves events out until one is right.
    pub async fn until<T>(&mut self, mut right: impl FnMut(Event) -> Option<T>) -> T {
        let mut others = Vec::new();
        let found = timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.unwrap();
                others.push(format!("{event:?}"));
                if let Some(found) = right(event) {
                    return found;
                }
            }
        });
        let Ok(found) = found.await else {
            panic!("{} waits in vain; {:#?} after {others:#?}", self.name, self.link.report())
        };
        found
    }

    pub async fn up(&mut self, name: &str) -> Hello {
        self.until(|event| match event {
            Event::Up { peer, hello } if peer == name => Some(hello),
            _ => None,
        })
        .await
    }

    pub async fn down(&mut self, name: &str) -> Down {
        self.until(|event| match event {
            Event::Down { peer, why } if peer == name => Some(why),
            _ => None,
        })
        .await
    }

    pub async fn refusal(&mut self) -> peer::Refusal {
        self.until(|event| match event {
            Event::Refused { why, .. } => Some(why),
            _ => None,
        })
        .await
    }

    /// The next message, of anybody.
    pub async fn message(&mut self) -> (String, Message) {
        self.until(|event| match event {
            Event::Message { peer, message } => Some((peer, message)),
            _ => None,
        })
        .await
    }

    /// What has happened and was not looked at yet.
    pub fn pending(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    pub fn of(&self, name: &str) -> PeerReport {
        self.link.report().peers.into_iter().find(|peer| peer.gateway == name).unwrap()
    }

    pub fn refused(&self, label: &str) -> u64 {
        self.link.report().refused.get(label).copied().unwrap_or(0)
    }
}

/// Two that have found each other; `a` dials.
pub async fn pair(key: &Key) -> (Node, Node) {
    let (one, other) = (socket(), socket());
    let (at_a, at_b) = (one.local_addr().unwrap(), other.local_addr().unwrap());
    let mut b = Node::start(config("b", key, &[("a", at_a)]), other);
    let mut a = Node::start(config("a", key, &[("b", at_b)]), one);
    a.up("b").await;
    b.up("a").await;
    (a, b)
}

/// A message each way arrives.
pub async fn assert_talking(one: &mut Node, other: &mut Node, number: u64) {
    says(one, other, number).await;
    says(other, one, number).await;
}

async fn says(from: &mut Node, to: &mut Node, number: u64) {
    assert!(from.link.send(&to.name, &offer(number)), "{} is connected with {}", from.name, to.name);
    assert_eq!(to.message().await, (from.name.clone(), offer(number)));
}
