//! Targets that are known by a name.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egret::balance::State;
use egret::forward::{
    Common, Config, Discover, DiscoverError, Finding, Followed, Found, Listener, Resolver, Source,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::target::{Target, call, callers, config, start_with, wait_for, wait_healthy, wait_state};

/// What a name server says to whoever asks.
#[derive(Clone, Debug)]
enum Answer {
    Addresses(Vec<Ipv4Addr>, u32),
    NoSuchName,
}

/// A name server on loopback.
struct NameServer {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    questions: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl NameServer {
    async fn start(answer: Answer) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (answer, questions) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let mut serving = JoinSet::new();
        let (said, counted) = (Arc::clone(&answer), Arc::clone(&questions));
        serving.spawn(async move {
            let mut question = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut question).await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let response = respond(&question[..length], &said.lock().unwrap().clone());
                socket.send_to(&response, from).await.unwrap();
            }
        });
        Self { address, answer, questions, _serving: serving }
    }

    fn say(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn questions(&self) -> usize {
        self.questions.load(Ordering::Relaxed)
    }

    fn common(&self) -> Common {
        Common { discover: Arc::new(Resolver::asking(vec![self.address])), ..Common::default() }
    }
}

/// RFC 1035 section 4.
fn respond(question: &[u8], answer: &Answer) -> Vec<u8> {
    let (addresses, ttl, code) = match answer {
        Answer::Addresses(addresses, ttl) => (&addresses[..], *ttl, 0),
        Answer::NoSuchName => (&[][..], 0, 3),
    };
    let name = question[12..].iter().position(|byte| *byte == 0).expect("the end of the name");
    let count = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    let mut response = question[..2].to_vec();
    response.extend([0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0]);
    response.extend(&question[12..12 + name + 5]);
    for address in addresses {
        response.extend([0xc0, 12, 0, 1, 0, 1]);
        response.extend(ttl.to_be_bytes());
        response.extend([0, 4]);
        response.extend(address.octets());
    }
    response
}

fn followed(port: u16) -> Followed {
    let source = Source::Dns { name: "api.example".to_owned(), port };
    Followed { source, weight: 1, backup: false }
}

/// In front of a name alone.
fn by_name(port: u16) -> Config {
    Config { followed: vec![followed(port)], ..config(&[]) }
}

const ONE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Two servers at one port of two addresses.
fn servers() -> (Target, Target) {
    loop {
        let one = Target::start("one");
        let address = SocketAddr::new(OTHER.into(), one.address.port());
        // Somebody else's test may have it.
        if std::net::TcpListener::bind(address).is_ok() {
            return (one, Target::at("other", address));
        }
    }
}

#[tokio::test]
async fn targets_move_with_the_addresses_of_their_name() {
    let (one, other) = servers();
    let names = NameServer::start(Answer::Addresses(vec![ONE], 1)).await;
    let (listener, address) = start_with(by_name(one.address.port()), names.common());
    wait_healthy(&listener, &[one.address]).await;
    let (_, mut old) = call(address).await.unwrap();
    names.say(Answer::Addresses(vec![ONE, OTHER], 1));
    wait_healthy(&listener, &[one.address, other.address]).await;
    names.say(Answer::Addresses(vec![OTHER], 1));
    wait_state(&listener, one.address, |state| state == State::Draining).await;
    assert_eq!(callers(address, 4).await, vec!["other"; 4]);
    old.write_all(b"hello").await.unwrap();
    old.read_exact(&mut [0; 5]).await.expect("the old connection goes on");
    drop(old);
    wait_for(&listener, |report| report.group.targets.len() == 1).await;
    let report = listener.report();
    assert_eq!((report.sources[0].targets, &report.sources[0].error), (1, &None));
}

#[tokio::test]
async fn name_that_does_not_resolve_any_more_keeps_its_targets() {
    let (one, other) = servers();
    let names = NameServer::start(Answer::Addresses(vec![ONE], 1)).await;
    let (listener, address) = start_with(by_name(one.address.port()), names.common());
    wait_healthy(&listener, &[one.address]).await;
    for (answer, error) in [
        (Answer::NoSuchName, "there is no such name"),
        (Answer::Addresses(vec![], 1), "it has no IPv4 address"),
        (Answer::Addresses(vec![Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST], 1), "it has no IPv4 address"),
    ] {
        names.say(answer);
        wait_for(&listener, |report| report.sources[0].error.as_deref() == Some(error)).await;
        assert_eq!(callers(address, 2).await, vec!["one"; 2]);
    }
    names.say(Answer::Addresses(vec![OTHER], 1));
    wait_healthy(&listener, &[other.address]).await;
    wait_for(&listener, |report| report.sources[0].error.is_none()).await;
    assert_eq!(callers(address, 2).await, vec!["other"; 2]);
}

#[tokio::test]
async fn listener_starts_before_its_name_resolves() {
    let target = Target::start("well");
    let names = NameServer::start(Answer::NoSuchName).await;
    let (listener, address) = start_with(by_name(target.address.port()), names.common());
    wait_for(&listener, |report| report.sources[0].error.is_some()).await;
    assert_eq!(callers(address, 1).await, ["nobody"]);
    names.say(Answer::Addresses(vec![ONE], 1));
    wait_healthy(&listener, &[target.address]).await;
    assert_eq!(callers(address, 1).await, ["well"]);
}

#[tokio::test]
async fn name_is_asked_for_again_when_its_time_is_over_but_not_more_than_once_a_second() {
    let (hasty, lasting) = (
        NameServer::start(Answer::Addresses(vec![ONE], 0)).await,
        NameServer::start(Answer::Addresses(vec![ONE], 60)).await,
    );
    let start = Instant::now();
    let (_one, _) = start_with(by_name(1), hasty.common());
    let (_other, _) = start_with(by_name(1), lasting.common());
    while hasty.questions() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(lasting.questions(), 1);
}

/// Says the same to everybody, for long.
#[derive(Debug)]
struct Says(Result<Vec<SocketAddr>, DiscoverError>);

impl Discover for Says {
    fn find<'a>(&'a self, _: &'a Source) -> Finding<'a> {
        let found = self.0.clone().map(|addresses| Found { addresses, valid_for: Duration::from_secs(60) });
        Box::pin(async { found })
    }
}

fn start_saying(config: Config, says: Says) -> (Listener, SocketAddr) {
    start_with(config, Common { discover: Arc::new(says), ..Common::default() })
}

#[tokio::test]
async fn sources_and_addresses_make_one_group() {
    let (fixed, found): (SocketAddr, SocketAddr) =
        ("127.0.0.1:1".parse().unwrap(), "127.0.0.2:1".parse().unwrap());
    let mut config = config(&[fixed]);
    config.followed = vec![Followed { weight: 3, backup: true, ..followed(1) }, followed(2)];
    let (listener, _) = start_saying(config, Says(Ok(vec![found, fixed, found])));
    wait_for(&listener, |report| report.sources[0].targets + report.sources[1].targets == 1).await;
    let targets = listener.report().group.targets;
    let known: Vec<_> = targets.iter().map(|target| (target.address, target.weight, target.backup)).collect();
    assert_eq!(known, [(fixed, 1, false), (found, 3, true)], "the first that names it says what it is");
}

#[tokio::test]
async fn there_are_never_more_targets_than_a_group_can_have() {
    let many = (0..300u16).map(|host| {
        let [high, low] = host.to_be_bytes();
        SocketAddr::from(([127, 1, high, low], 1))
    });
    let (listener, _) = start_saying(by_name(1), Says(Ok(many.collect())));
    wait_for(&listener, |report| report.sources[0].targets == 256).await;
    let report = listener.report();
    assert_eq!((report.group.targets.len(), report.sources[0].left_out), (256, 44));
}

#[tokio::test]
async fn change_from_addresses_to_a_name_waits_for_the_name() {
    let target = Target::start("well");
    let (listener, address) = start_saying(config(&[target.address]), Says(Err(DiscoverError::NoSuchName)));
    wait_healthy(&listener, &[target.address]).await;
    listener.reconfigure(by_name(1)).unwrap();
    wait_for(&listener, |report| report.sources.iter().any(|source| source.error.is_some())).await;
    assert_eq!(callers(address, 2).await, vec!["well"; 2]);
    listener.reconfigure(config(&[])).unwrap();
    assert_eq!(callers(address, 1).await, ["nobody"]);
}
