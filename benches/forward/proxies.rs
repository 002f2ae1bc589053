//! A client and a backend on one host, and the three proxies on a host each, one link away from them.

use std::cell::Cell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;

use super::lab::{
    Datapath, Egret, Failure, Gateway, Host, Lab, NAT, Options, Process, Result, Transport, masquerade,
};
use super::load::client::{Done, HOLDING};
use super::load::{backend, command};
use super::process;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Egret,
    Haproxy,
    Nginx,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Egret, Self::Haproxy, Self::Nginx];
}

/// See the module.
pub struct Site {
    lab: Lab,
    /// What takes up what comes to each of the proxies' hosts.
    receivers: Vec<Pid>,
    super_frames: Cell<bool>,
    _backend: Process,
}

/// A proxy that runs.
pub struct Proxy {
    address: SocketAddr,
    /// Where it is meant for much data.
    bulk: SocketAddr,
    /// Where Egret is no proxy.
    nat: SocketAddr,
    process: Running,
    receiver: u32,
}

enum Running {
    Egret(Egret),
    Other(Process),
}

/// What a proxy did for a client.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub done: Done,
    /// Of a processor, what the kernel received for it included.
    pub time: Duration,
}

impl Site {
    pub fn new(datapath: Datapath) -> Result<Self> {
        let options = Options { datapath, gateway: Gateway::Routed, quiet: true, ..Options::default() };
        let lab = Lab::new(options)?;
        let router = lab.router();
        for number in 1..=TARGETS {
            router.run(&format!("ip address add {}/32 dev lo", target(number)))?;
        }
        // As many connections a second as there can be, and each with a port of its own.
        router.shell("sysctl -q -w net.ipv4.ip_local_port_range='10000 65535'")?;
        let mut receivers = Vec::new();
        for kind in Kind::ALL {
            let host = host(&lab, kind);
            receivers.push(steer(host, "ens5", ITS_PROCESSOR)?);
            steer(router, &host.role, OTHERS_PROCESSOR)?;
        }
        let backend = on(OTHERS_PROCESSOR, router, &command(&["answer"])?)?;
        router.wait_listening(Transport::Tcp, backend::PORT)?;
        Ok(Self { lab, receivers, super_frames: Cell::new(true), _backend: backend })
    }

    /// Whether links carry super-frames, as if network cards cut them. What comes from a link that does is taken up by
    /// its sender's processor; what comes from another by that of whom it is for, as from a real network.
    pub fn set_super_frames(&self, wanted: bool) -> Result {
        if self.super_frames.replace(wanted) == wanted {
            return Ok(());
        }
        let state = if wanted { "on" } else { "off" };
        for kind in Kind::ALL {
            let host = host(&self.lab, kind);
            host.run(&format!("ethtool -K ens5 tso {state}"))?;
            self.lab.router().run(&format!("ethtool -K {} tso {state}", host.role))?;
        }
        Ok(())
    }

    /// Has the kernel masquerade on the hosts of the others for private subnets, as Egret does on its own.
    pub fn have_others_masquerade(&self) -> Result {
        for kind in [Kind::Haproxy, Kind::Nginx] {
            let host = host(&self.lab, kind);
            masquerade(host, address(kind))?;
            // Else there would soon be no room for another connection.
            host.run("sysctl -q -w net.netfilter.nf_conntrack_tcp_timeout_time_wait=5")?;
        }
        Ok(())
    }

    /// Takes half of the proxies' processor away, until what is given is dropped.
    pub fn halve(&self) -> Result<Process> {
        on(ITS_PROCESSOR, self.lab.router(), &format!("chrt --fifo 50 {}", command(&["burn"])?))
    }

    /// Starts all kinds, see [`Self::start`].
    pub fn start_all(&self) -> Result<Vec<Proxy>> {
        Kind::ALL.into_iter().map(|kind| self.start(kind)).collect()
    }

    /// Starts a proxy on the processor that is kept for them.
    pub fn start(&self, kind: Kind) -> Result<Proxy> {
        let host = host(&self.lab, kind);
        let own = address(kind);
        let address = SocketAddr::from((own, PORT));
        let bulk = SocketAddr::from((own, if kind == Kind::Haproxy { BULK_PORT } else { PORT }));
        let nat = SocketAddr::from((own, if kind == Kind::Egret { NAT_PORT } else { PORT }));
        let pinned = ["taskset", "--cpu-list", &ITS_PROCESSOR.to_string()].map(str::to_owned);
        let process = match kind {
            Kind::Egret => {
                let config = self.lab.config("") + &egret(address) + &egret_nat(nat);
                Running::Egret(Egret::start_under(host, &config, &pinned.each_ref().map(String::as_str))?)
            }
            Kind::Haproxy => {
                let file = write(host, "haproxy.cfg", &haproxy(address, bulk))?;
                Running::Other(on(ITS_PROCESSOR, host, &format!("haproxy -db -f {file}"))?)
            }
            Kind::Nginx => {
                let file = write(host, "nginx.conf", &nginx(address, &host.directory))?;
                let directory = host.directory.display();
                Running::Other(on(ITS_PROCESSOR, host, &format!("nginx -p {directory} -e stderr -c {file}"))?)
            }
        };
        host.wait_listening(Transport::Tcp, PORT)?;
        let receiver = self.receivers[kind as usize].as_raw().try_into()?;
        let proxy = Proxy { address, bulk, nat, process, receiver };
        // Also shows that it works.
        self.load(&proxy, "requests", 1, Duration::from_millis(50))?;
        self.load(&proxy, "nat", 1, Duration::from_millis(50))?;
        Ok(proxy)
    }

    /// Has a client of this kind use a proxy, by so many connections at once, for some time.
    pub fn load(&self, proxy: &Proxy, kind: &str, connections: usize, time: Duration) -> Result<Work> {
        let (kind, address) = match kind {
            "bulk" => (kind, proxy.bulk),
            "nat" => ("connections", proxy.nat),
            "nat-bulk" if proxy.nat == proxy.address => ("bulk", proxy.bulk),
            "nat-bulk" => ("bulk", proxy.nat),
            _ => (kind, proxy.address),
        };
        let address = address.to_string();
        let (connections, millis) = (connections.to_string(), time.as_millis().to_string());
        let before = proxy.run_time()?;
        let command = command(&[kind, &address, &connections, &millis])?;
        let mut client = on(OTHERS_PROCESSOR, self.lab.router(), &command)?;
        let ended = client.wait(time + PATIENCE)?;
        if !ended.success() {
            return Err(Failure::new(format!("{kind} by {}: {}", proxy.address, client.log())));
        }
        Ok(Work { done: Done::read(&client)?, time: proxy.run_time()?.saturating_sub(before) })
    }

    /// Bytes of memory that a proxy takes for each of so many idle connections.
    pub fn memory(&self, proxy: &Proxy, connections: usize) -> Result<f64> {
        let before = process::resident_bytes(proxy.id())?;
        let command = command(&["hold", &proxy.address.to_string(), &connections.to_string()])?;
        let mut client = on(OTHERS_PROCESSOR, self.lab.router(), &command)?;
        client.wait_for_log(HOLDING)?;
        let after = process::resident_bytes(proxy.id())?;
        Ok((after as f64 - before as f64) / connections as f64)
    }
}

impl Proxy {
    fn id(&self) -> u32 {
        match &self.process {
            Running::Egret(egret) => egret.process.id(),
            Running::Other(process) => process.id(),
        }
    }

    fn run_time(&self) -> Result<Duration> {
        Ok(process::run_time(self.id())? + process::run_time(self.receiver)?)
    }
}

fn host(lab: &Lab, kind: Kind) -> &Host {
    match kind {
        Kind::Egret => lab.nat(),
        Kind::Haproxy => lab.client(1),
        Kind::Nginx => lab.client(2),
    }
}

fn address(kind: Kind) -> Ipv4Addr {
    match kind {
        Kind::Egret => NAT,
        Kind::Haproxy => Lab::client_address(1),
        Kind::Nginx => Lab::client_address(2),
    }
}

/// Several, as towards each of them a host has only so many ports.
fn target(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 3, number)
}

fn targets(line: impl Fn(u8, SocketAddr) -> String) -> String {
    (1..=TARGETS).map(|number| line(number, SocketAddr::from((target(number), backend::PORT)))).collect()
}

fn on(processor: usize, host: &Host, command: &str) -> Result<Process> {
    host.spawn(&format!("taskset --cpu-list {processor} {command}"))
}

/// Has what comes in by an interface taken up by this processor, which looks for it every so often: as with a network
/// card that moderates its interrupts. Otherwise the sender would interrupt it for each packet, and pay for that.
fn steer(host: &Host, interface: &str, processor: usize) -> Result<Pid> {
    host.run(&format!("ethtool -K {interface} gro on"))?;
    let thread = process::threaded(host, interface)?;
    process::pin(thread, processor)?;
    // As a softirq would: before any program.
    host.run(&format!("chrt --fifo --pid 1 {thread}"))?;
    let nanos = MODERATION.as_nanos();
    host.shell(&format!(
        "cd /sys/class/net/{interface} && echo {nanos} >gro_flush_timeout && echo 10 >napi_defer_hard_irqs"
    ))?;
    Ok(thread)
}

fn write(host: &Host, name: &str, text: &str) -> Result<String> {
    let file = host.directory.join(name);
    fs::write(&file, text)?;
    Ok(file.display().to_string())
}

fn egret(listen: SocketAddr) -> String {
    let targets = targets(|_, address| format!("\"{address}\", "));
    format!(
        "\n[[forward]]\nname = \"bench\"\nlisten = \"{listen}\"\ntargets = [{targets}]\nconnection_limit = {CONNECTIONS}\n"
    )
}

fn egret_nat(listen: SocketAddr) -> String {
    let targets = targets(|_, address| format!("\"{address}\", "));
    format!(
        "\n[[forward]]\nname = \"nat\"\nmode = \"nat\"\npreserve_client_ip = false\nlisten = \"{listen}\"\n\
         targets = [{targets}]\nconnection_limit = 100000\n"
    )
}

/// It knows by itself when to splice, but not always, and told to do so always it is worse at all else: it gets both.
fn haproxy(listen: SocketAddr, bulk: SocketAddr) -> String {
    let servers = targets(|number, address| format!(" server t{number} {address}\n"));
    format!(
        "global\n nbthread 1\n maxconn {CONNECTIONS}\n maxpipes {PIPES}\ndefaults\n mode tcp\n timeout connect 5s\n \
         timeout client 350s\n timeout server 350s\n\
         listen bench\n bind {listen}\n option splice-auto\n{servers}\
         listen bulk\n bind {bulk}\n option splice-request\n option splice-response\n{servers}"
    )
}

fn nginx(listen: SocketAddr, directory: &Path) -> String {
    let servers = targets(|_, address| format!(" server {address};"));
    format!(
        "daemon off; master_process off; user root; worker_processes 1; error_log stderr;\n\
         load_module /usr/lib/nginx/modules/ngx_stream_module.so; pid {}/nginx.pid;\n\
         events {{ worker_connections {}; multi_accept on; }}\n\
         stream {{ upstream bench {{{servers} }}\n\
         server {{ listen {listen} backlog=4096; proxy_pass bench; proxy_connect_timeout 5s; proxy_timeout 350s; }} }}\n",
        directory.display(),
        2 * CONNECTIONS,
    )
}

/// The processors of the proxies, and of what uses them.
const ITS_PROCESSOR: usize = 1;
const OTHERS_PROCESSOR: usize = 0;
const PORT: u16 = 5000;
const BULK_PORT: u16 = 5001;
const NAT_PORT: u16 = 5002;
const TARGETS: u8 = 8;
/// More than are ever open.
const CONNECTIONS: usize = 9_950;
/// Of HAProxy, more than bulk connections need: it would keep descriptors for more, which some systems do not give.
const PIPES: usize = 32;
const MODERATION: Duration = Duration::from_micros(50);
/// How much longer than it should a client may take.
const PATIENCE: Duration = Duration::from_secs(20);
