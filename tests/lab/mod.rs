//! A VPC in network namespaces: private clients, the VPC's router with its internet gateway, the NAT host, and a
//! host on the internet. Shared by the netns tests, the demo and the benches.
//!
//! As on EC2, all hosts of the VPC have the router as their only neighbour; the router sends the private subnets'
//! default route to the NAT host, and its internet gateway maps the public address to the NAT host's private
//! one. Nothing outside of the lab's own namespaces is touched, and all of it is removed on drop, on a panic, on
//! SIGINT and SIGTERM, and, after a SIGKILL, by the next lab.
//!
//! Whoever includes this says which datapath it is about: `const DATAPATH: lab::Datapath` beside `mod lab`.

#![allow(dead_code, reason = "each of its users needs another part")]
#![allow(clippy::disallowed_methods, reason = "what runs here are real programs, in real time")]
#![allow(clippy::panic, reason = "a mistake of the test itself")]

mod cleanup;
mod clients;
mod egret;
mod fabric;
mod host;
mod servers;

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::DATAPATH;

#[allow(unused_imports, reason = "as above")]
pub use self::{
    cleanup::remove_kept,
    clients::{Asked, Asking, Download, answers, ask, connect, inside},
    egret::{Egret, Nat, kernel_nat, masquerade},
    fabric::{Fabric, gateway_address, public_of_host},
    host::{DEADLINE, Failure, Host, Journal, Output, Process, Result, Transport, ended_by, wait_for},
    servers::{Dns, Iperf, Stun, Web},
};

/// The lab's own BPF programs, `bpf/lab.bpf.c`.
pub const PROGRAMS: &str = concat!(env!("OUT_DIR"), "/lab.bpf.o");
/// What the private subnets, and the VPC in all, take their addresses from.
pub const VPC: &str = "10.0.0.0/16";
/// The NAT host's (external) address, as it is on the wire.
pub const NAT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// The NAT host's address on its second interface, if it has two.
pub const NAT_INTERNAL: Ipv4Addr = Ipv4Addr::new(10, 0, 250, 10);
/// What the internet gateway makes of [`NAT`].
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// The internet host, which answers on two more addresses.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub const INTERNET_2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// A host behind the internet host, on a link of its own.
pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Addresses that the router sends to the first client besides its own.
pub const CLIENT1_PREFIX: &str = "10.0.101.0/24";

/// The MTU of a VPC, in bytes, as far as the datapath goes: drivers do XDP only with frames that fit a page.
pub const JUMBO: u32 = match DATAPATH {
    Datapath::AfPacket => 9001,
    Datapath::Xdp => 3498,
};

/// How frames get to Egret. It is what [`Lab::config`] asks for, and what the NAT host's links are made fit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    AfPacket,
    /// The router's ends of the NAT host's links have an XDP program that passes, without which veth delivers
    /// nothing of what XDP sends, and compute every checksum and cut every super-frame, as on veth XDP would not
    /// see that this is yet to be done. What holds for super-frames is therefore shown with `AfPacket` alone.
    Xdp,
}

impl Datapath {
    /// As the configuration has it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::AfPacket => "af_packet",
            Self::Xdp => "xdp",
        }
    }
}

/// How many interfaces the NAT host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// One, `ens5`, for both sides.
    One,
    /// `ens5` to the outside, `ens6` to the inside.
    Two,
}

/// What stands between the VPC and the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// Maps [`PUBLIC`] to [`NAT`], both ways, as an Elastic IP does. It reassembles fragments on the way.
    ElasticIp,
    /// Only routes: the world sees [`NAT`]. It costs least, and passes everything as it is.
    Routed,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Options {
    pub datapath: Datapath,
    pub arms: Arms,
    pub gateway: Gateway,
    /// At least one; odd ones are in the one private subnet (10.0.1.0/24), even ones in the other (10.0.2.0/24).
    pub clients: u8,
    /// Hosts that may translate: more than one, and a [`Fabric`] has to say which of them does.
    pub gateways: u8,
    /// Of the links inside the VPC, in bytes.
    pub mtu: u32,
    /// Of the link to the internet host, in bytes.
    pub internet_mtu: u32,
    /// Of the link from the internet host to [`FAR`], if that is to exist.
    pub far_mtu: Option<u32>,
    /// Leave the links' checksum and segmentation offloads on, as they are by default, or switch all off.
    pub offloads: bool,
    /// Keep to readable names (`egret-demo-nat`) and survive the drop.
    pub keep: bool,
    /// Hold the journal back (see [`Lab::journal`]) instead of printing it.
    pub quiet: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            datapath: DATAPATH,
            arms: Arms::One,
            gateway: Gateway::ElasticIp,
            clients: 2,
            gateways: 1,
            mtu: 1500,
            internet_mtu: 1500,
            far_mtu: None,
            offloads: true,
            keep: false,
            quiet: false,
        }
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    options: Options,
    prefix: String,
    directory: PathBuf,
    journal: Arc<Journal>,
    hosts: Vec<Host>,
}

impl Lab {
    /// Builds the namespaces, links, addresses and routes. Nothing translates yet.
    ///
    /// # Errors
    /// If not root, or if a command fails; what had been built is removed.
    pub fn new(options: Options) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            return Err(Failure::new(
                "network namespaces need root: run this as root (`sudo make test`, `sudo make demo`)",
            ));
        }
        cleanup::prepare()?;
        let prefix = if options.keep {
            cleanup::KEPT_PREFIX.to_owned()
        } else {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            format!("{}{}-{number}-", cleanup::PREFIX, std::process::id())
        };
        if options.keep && !cleanup::namespaces(&prefix)?.is_empty() {
            return Err(Failure::new("a kept demo is there already: `make demo-clean` removes it"));
        }
        cleanup::BUILDS_KEPT.fetch_or(options.keep, Ordering::Relaxed);
        let directory = cleanup::directory(&prefix);
        fs::create_dir_all(&directory)?;
        let held = options.quiet.then(|| Mutex::new(String::new()));
        let mut lab =
            Self { options, prefix, directory, journal: Arc::new(Journal { held }), hosts: Vec::new() };
        lab.build()?;
        Ok(lab)
    }

    /// The private client of this number, from 1.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn client(&self, number: u8) -> &Host {
        self.host(&format!("client{number}"))
    }

    #[must_use]
    pub fn router(&self) -> &Host {
        self.host("router")
    }

    /// The host that translates.
    #[must_use]
    pub fn nat(&self) -> &Host {
        self.host("nat")
    }

    #[must_use]
    pub fn internet(&self) -> &Host {
        self.host("internet")
    }

    /// The host behind the internet host.
    ///
    /// # Panics
    /// If [`Options::far_mtu`] was not given.
    #[must_use]
    pub fn far(&self) -> &Host {
        self.host("far")
    }

    /// # Panics
    /// If there is none of this name.
    #[must_use]
    pub fn host(&self, role: &str) -> &Host {
        let found = self.hosts.iter().find(|host| host.role == role);
        found.unwrap_or_else(|| panic!("the lab has no host {role}"))
    }

    /// A client's address.
    #[must_use]
    pub const fn client_address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2 - number % 2, 11 + (number - 1) / 2)
    }

    /// The address that the internet sees.
    #[must_use]
    pub fn seen_address(&self) -> Ipv4Addr {
        match self.options.gateway {
            Gateway::ElasticIp => PUBLIC,
            Gateway::Routed => NAT,
        }
    }

    /// The lab's own directory, removed with it.
    #[must_use]
    pub fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// How many packets with a private source address came out to the internet.
    ///
    /// # Errors
    /// If the counter cannot be read.
    pub fn leaks(&self) -> Result<u64> {
        self.internet().nft_counter("netdev lab", "leaked")
    }

    /// What was held back of the journal.
    #[must_use]
    pub fn journal(&self) -> String {
        let held = self.journal.held.as_ref();
        held.and_then(|held| held.lock().ok().map(|held| held.clone())).unwrap_or_default()
    }

    /// A configuration of Egret for this lab, with `more` lines in its `[nat]` table.
    #[must_use]
    pub fn config(&self, more: &str) -> String {
        let internal = match self.options.arms {
            Arms::One => "ens5",
            Arms::Two => "ens6",
        };
        let external = match self.options.gateway {
            Gateway::ElasticIp => format!("{{ private = \"{NAT}\", public = \"{PUBLIC}\" }}"),
            Gateway::Routed => format!("{{ private = \"{NAT}\" }}"),
        };
        format!(
            "datapath = \"{}\"\n\n[aws]\nenabled = false\n\n[nat]\nexternal_interface = \"ens5\"\ninternal_interface = \"{internal}\"\n\
             internal = [\"{VPC}\"]\nexternal_addresses = [{external}]\n{more}\n",
            self.options.datapath.label()
        )
    }

    fn build(&mut self) -> Result {
        let mut roles = vec!["router".to_owned(), "internet".to_owned()];
        roles.extend((1..=self.options.gateways).map(fabric::role));
        roles.extend((1..=self.options.clients).map(|number| format!("client{number}")));
        if self.options.far_mtu.is_some() {
            roles.push("far".to_owned());
        }
        for role in roles {
            let namespace = format!("{}{role}", self.prefix);
            let directory = self.directory.clone();
            host::run_outside(&["ip", "netns", "add", &namespace], "")?;
            self.hosts.push(Host { role, namespace, directory, journal: Arc::clone(&self.journal) });
        }
        // Before there is a link, so that links begin with it.
        for host in &self.hosts {
            let forward = u8::from(host.role == "router" || host.role == "internet");
            host.run(&format!(
                "sysctl -q -w net.ipv4.ip_forward={forward} net.ipv4.icmp_ratelimit=0 net.ipv4.conf.all.rp_filter=0 \
                 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.send_redirects=0 \
                 net.ipv4.conf.default.send_redirects=0 net.ipv6.conf.all.disable_ipv6=1 \
                 net.ipv6.conf.default.disable_ipv6=1"
            ))?;
        }
        self.links()?;
        self.addresses()?;
        if !self.options.offloads {
            self.switch_offloads_off()?;
        }
        if self.options.datapath == Datapath::Xdp {
            self.fit_for_xdp()?;
        }
        if self.options.gateways > 1 {
            self.fleet()?;
        } else {
            self.internet_gateway()?;
        }
        // The kernel notes it a moment after the other end has come up; until then they show as without a carrier.
        self.nat().wait_for("links that are up", || {
            let links = self.nat().run("ip -br link show up")?;
            Ok(links.lines().all(|link| link.starts_with("lo ") || link.contains(" UP ")))
        })?;
        // The NAT host's own address is private too, and must not come out either where it has a public one.
        let but = match self.options.gateway {
            Gateway::ElasticIp => String::new(),
            Gateway::Routed => format!("ip saddr != {NAT} "),
        };
        self.internet().nft(&format!(
            "table netdev lab {{\n counter leaked {{ }}\n chain ingress {{\n\
             type filter hook ingress device \"ens5\" priority -500\n\
             {but}ip saddr {{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 }} counter name leaked\n }}\n}}\n"
        ))
    }

    /// Each host has `ens5`; the router has one interface for each of them, of the host's name.
    fn links(&self) -> Result {
        let Options { mtu, internet_mtu, .. } = self.options;
        let mut batch = String::new();
        let mut link = |host: &Host, name: &str, peer: &Host, peer_name: &str, mtu: u32| {
            let (namespace, peer) = (&host.namespace, &peer.namespace);
            let _ = writeln!(
                batch,
                "link add name {name} mtu {mtu} netns {namespace} type veth \
                 peer name {peer_name} mtu {mtu} netns {peer}"
            );
        };
        for host in &self.hosts {
            match host.role.as_str() {
                "router" => {}
                "internet" => link(host, "ens5", self.router(), "internet", internet_mtu),
                "far" => {
                    let mtu = self.options.far_mtu.unwrap_or(internet_mtu);
                    link(host, "ens5", self.internet(), "far", mtu);
                }
                role => link(host, "ens5", self.router(), role, mtu),
            }
        }
        if self.options.arms == Arms::Two {
            link(self.nat(), "ens6", self.router(), "nat-internal", mtu);
        }
        host::run_outside(&["ip", "-batch", "-"], &batch)?;
        Ok(())
    }

    fn addresses(&self) -> Result {
        let up = "link set lo up\nlink set ens5 up\n";
        let (nat_inside, inside_interface) = match self.options.arms {
            Arms::One => (NAT, "nat"),
            Arms::Two => (NAT_INTERNAL, "nat-internal"),
        };
        let mut router = format!(
            "link set lo up\nlink set nat up\nlink set internet up\naddr add 10.0.0.1/24 dev nat\n\
             addr add 198.51.100.1/24 dev internet\nroute add default via {INTERNET}\nroute add blackhole {VPC}\n"
        );
        let mut nat = format!("{up}addr add {NAT}/24 dev ens5\nroute add default via 10.0.0.1\n");
        if self.options.arms == Arms::Two {
            router.push_str("link set nat-internal up\naddr add 10.0.250.1/24 dev nat-internal\n");
            let _ = write!(
                nat,
                "link set ens6 up\naddr add {NAT_INTERNAL}/24 dev ens6\nroute add {VPC} via 10.0.250.1 dev ens6\n"
            );
        }
        let _ = writeln!(router, "route add default via {nat_inside} dev {inside_interface} table 100");
        for number in 1..=self.options.clients {
            let (name, address) = (format!("client{number}"), Self::client_address(number));
            let subnet = 2 - number % 2;
            // One link for each client, as every host of a VPC has only the router as its neighbour.
            let _ = write!(
                router,
                "link set {name} up\naddr add 10.0.{subnet}.1/32 dev {name}\nroute add {address}/32 dev {name}\n\
                 rule add pref 100 iif {name} to {VPC} lookup main\nrule add pref 200 iif {name} lookup 100\n"
            );
            let client = format!("{up}addr add {address}/24 dev ens5\nroute add default via 10.0.{subnet}.1\n");
            ip_batch(self.client(number), &client)?;
        }
        let _ = writeln!(router, "route add {CLIENT1_PREFIX} via {}", Self::client_address(1));
        ip_batch(self.router(), &router)?;
        // Its own ICMP errors pass it again, once they are translated.
        self.router().run("sysctl -q -w net.ipv4.conf.all.accept_local=1")?;
        self.router().shell("for f in /proc/sys/net/ipv4/conf/client*/proxy_arp; do echo 1 >$f; done")?;
        ip_batch(self.nat(), &nat)?;
        let mut internet = format!("{up}route add default via 198.51.100.1 onlink dev ens5\n");
        for address in [INTERNET, INTERNET_2] {
            let _ = writeln!(internet, "addr add {address}/24 dev ens5");
        }
        if self.options.far_mtu.is_some() {
            internet.push_str("link set far up\naddr add 192.0.2.1/24 dev far\n");
            let far = format!("{up}addr add {FAR}/24 dev ens5\nroute add default via 192.0.2.1\n");
            ip_batch(self.far(), &far)?;
        }
        ip_batch(self.internet(), &internet)
    }

    fn switch_offloads_off(&self) -> Result {
        for host in &self.hosts {
            host.shell(
                "for i in /sys/class/net/*; do i=${i##*/}; [ $i = lo ] || \
                 ethtool -K $i tx off rx off sg off tso off gso off gro off >/dev/null || exit 1; done",
            )?;
        }
        Ok(())
    }

    fn fit_for_xdp(&self) -> Result {
        let mut ends: Vec<String> = (1..=self.options.gateways).map(fabric::role).collect();
        if self.options.arms == Arms::Two {
            ends.push("nat-internal".to_owned());
        }
        for end in ends {
            // Whatever the router forwards leaves by this end, so that the hosts behind it may keep their offloads.
            self.router().run(&format!("ethtool -K {end} tx off sg off tso off gso off"))?;
            self.router().run(&format!("ip link set {end} xdpdrv obj {PROGRAMS} program pass"))?;
        }
        Ok(())
    }

    /// Connection tracking is only for what the gateway maps: the rest of the router passes packets as they are,
    /// fragments and broken ones included.
    fn internet_gateway(&self) -> Result {
        // Nothing comes in for a private address that has no public one: who leaks is not answered.
        self.router().nft(&format!(
            "table ip closed {{\n chain in {{\n type filter hook forward priority 0\n\
             iifname \"internet\" ip daddr {VPC} ip daddr != {NAT} drop\n }}\n}}\n"
        ))?;
        if self.options.gateway == Gateway::Routed {
            return Ok(());
        }
        // What conntrack takes for invalid, such as a second reset, it would let out untranslated; a gateway of AWS,
        // which keeps no state, would not.
        self.router().nft(&format!(
            "table ip internet_gateway {{\n\
             chain invalid {{\n type filter hook forward priority 0\n\
             iifname \"nat\" ip saddr {NAT} ct state invalid drop\n }}\n\
             chain tracked {{\n type filter hook prerouting priority -450\n\
             iifname \"nat\" ip saddr {NAT} ip daddr != {VPC} return\n\
             iifname \"internet\" ip daddr {PUBLIC} return\n notrack\n }}\n\
             chain inwards {{\n type nat hook prerouting priority dstnat\n\
             iifname \"internet\" ip daddr {PUBLIC} dnat to {NAT}\n }}\n\
             chain outwards {{\n type nat hook postrouting priority srcnat\n\
             oifname \"internet\" ip saddr {NAT} snat to {PUBLIC}\n }}\n}}\n"
        ))?;
        self.router().run("sysctl -q -w net.netfilter.nf_conntrack_tcp_be_liberal=1")?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.options.keep {
            cleanup::remove(&self.prefix);
        }
    }
}

fn ip_batch(host: &Host, batch: &str) -> Result {
    let ran = host.run_for(DEADLINE, &["ip", "-batch", "-"], batch)?;
    ran.success().map_err(|Failure(message)| Failure(format!("{message}\nof:\n{batch}")))?;
    Ok(())
}
