//! Targets, and a listener in front of them.

use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use egret::balance::{self, HealthCheck, State, TargetSnapshot};
use egret::forward::{Check, Common, Config, Listener, Report, bind};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// A server that greets whoever connects with its name, and sends back what comes.
pub struct Target {
    pub address: SocketAddr,
    name: String,
    serving: JoinSet<()>,
    /// Takes no more connections once this is told.
    deaf: Arc<Notify>,
    /// The same as that of the task that serves.
    socket: std::net::TcpListener,
}

/// Where a target was: whoever connects is refused, and nobody else is given the port by chance.
pub struct Place {
    pub address: SocketAddr,
    _socket: std::net::TcpListener,
}

impl Target {
    pub fn start(name: &str) -> Self {
        Self::at(name, "127.0.0.1:0".parse().unwrap())
    }

    pub fn at(name: &str, address: SocketAddr) -> Self {
        let socket = bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(socket.try_clone().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        let greeting = name.to_owned();
        let deaf = Arc::new(Notify::new());
        let told = Arc::clone(&deaf);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => connections.spawn(echo(accepted.unwrap().0, greeting.clone())),
                    () = told.notified() => break,
                };
            }
            let _ = SockRef::from(&listener).shutdown(Shutdown::Read);
            while connections.join_next().await.is_some() {}
        });
        Self { address, name: name.to_owned(), serving, deaf, socket }
    }

    /// Refuses connections from now on, and keeps those that it has.
    pub fn stop_listening(&self) {
        self.deaf.notify_one();
    }

    /// Is gone, with all of its connections.
    pub async fn stop(mut self) -> (String, Place) {
        self.serving.shutdown().await;
        // To close it would not be enough: a program that another test starts just now has a copy of it until it runs.
        SockRef::from(&self.socket).shutdown(Shutdown::Read).unwrap();
        (self.name, Place { address: self.address, _socket: self.socket })
    }
}

async fn echo(mut stream: TcpStream, name: String) {
    let _ = stream.write_all(format!("{name:8}").as_bytes()).await;
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// In front of these targets, in turns, with checks at the shortest interval.
pub fn config(targets: &[SocketAddr]) -> Config {
    let health = HealthCheck {
        interval: Duration::from_millis(200),
        timeout: Duration::from_millis(200),
        healthy_threshold: 2,
        unhealthy_threshold: 2,
    };
    Config {
        name: "api".to_owned(),
        mode: egret::forward::Mode::Proxy,
        listen: "127.0.0.1:0".parse().unwrap(),
        limits: balance::Limits::default(),
        group: balance::Config {
            health,
            algorithm: balance::Algorithm::RoundRobin,
            ..balance::Config::default()
        },
        check: Check::default(),
        targets: targets.iter().copied().map(Into::into).collect(),
        followed: Vec::new(),
        connect_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(350),
        proxy_protocol: None,
        accept_proxy_protocol: false,
        access_log: true,
        tls: None,
        keepalive: None,
    }
}

/// Listens, and gives where.
pub fn start(config: Config) -> (Listener, SocketAddr) {
    start_with(config, Common::default())
}

pub fn start_with(config: Config, common: Common) -> (Listener, SocketAddr) {
    let socket = bind(config.listen).unwrap();
    let address = socket.local_addr().unwrap();
    (Listener::start(config, socket, Arc::new(common), [7; 16]).unwrap(), address)
}

/// Who answers a new connection, and the connection; nobody if it is reset.
pub async fn call(listener: SocketAddr) -> Option<(String, TcpStream)> {
    let mut stream = match TcpStream::connect(listener).await {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
        stream => stream.unwrap(),
    };
    let mut name = [0; 8];
    stream.read_exact(&mut name).await.ok()?;
    Some((String::from_utf8(name.to_vec()).unwrap().trim().to_owned(), stream))
}

/// Who answers one connection after the other.
pub async fn callers(listener: SocketAddr, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(call(listener).await.map_or_else(|| "nobody".to_owned(), |(name, _)| name));
    }
    names
}

/// Waits until a target is in some state.
pub async fn wait_state(listener: &Listener, target: SocketAddr, wanted: impl Fn(State) -> bool) {
    let is_so = |snapshot: &TargetSnapshot| snapshot.address == target && wanted(snapshot.state);
    wait_for(listener, |report| report.group.targets.iter().any(is_so)).await;
}

/// Waits until a listener's report is as wanted.
pub async fn wait_for(listener: &Listener, wanted: impl Fn(&Report) -> bool) {
    for _ in 0..500 {
        if wanted(&listener.report()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", listener.report());
}

pub async fn wait_healthy(listener: &Listener, targets: &[SocketAddr]) {
    for target in targets {
        wait_state(listener, *target, |state| state == State::Healthy).await;
    }
}
