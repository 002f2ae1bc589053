//! A VPC with several gateways: which host a subnet's route leads to, and which private address an Elastic IP is, are
//! changed while packets flow, as EC2 changes them.
//!
//! The internet gateway keeps no state here: an address that moves takes its open flows with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::host::Result;
use super::{Lab, VPC, ip_batch};

/// How packets go in the VPC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fabric {
    /// By private subnet (1 or 2): the number of the gateway host that its default route leads to.
    pub routes: BTreeMap<u8, Option<u8>>,
    /// By public address: the gateway host, and its private address.
    pub addresses: BTreeMap<Ipv4Addr, (u8, Ipv4Addr)>,
}

/// The name of a host that may translate, from 1.
pub fn role(number: u8) -> String {
    if number == 1 { "nat".to_owned() } else { format!("nat{number}") }
}

/// Its primary private address: the first one's is [`super::NAT`].
#[must_use]
pub const fn gateway_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 9 + number)
}

/// What the internet gateway makes of its primary private address.
#[must_use]
pub const fn public_of_host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 100 + number)
}

impl Fabric {
    /// Makes it so.
    ///
    /// # Errors
    /// If a command fails.
    pub fn apply(&self, lab: &Lab) -> Result {
        let mut batch = String::new();
        for (subnet, host) in &self.routes {
            let route = match host {
                Some(host) => format!("default via {} dev {}", gateway_address(*host), role(*host)),
                None => "blackhole default".to_owned(),
            };
            let _ = writeln!(batch, "route replace {route} table {}", table(*subnet));
        }
        for (host, private) in self.addresses.values() {
            let _ = writeln!(batch, "route replace {private}/32 dev {}", role(*host));
        }
        ip_batch(lab.router(), &batch)?;
        let own = (1..=lab.options.gateways).map(|host| (public_of_host(host), gateway_address(host)));
        let moved = self.addresses.iter().map(|(public, (_, private))| (*public, *private));
        let mut inwards: BTreeMap<Ipv4Addr, Ipv4Addr> = own.collect();
        inwards.extend(moved);
        let mut outwards: BTreeMap<Ipv4Addr, Ipv4Addr> = BTreeMap::new();
        for (public, private) in &inwards {
            // An Elastic IP on a primary address takes the place of the address that the host had by itself.
            if !(outwards.contains_key(private) && (101..=110).contains(&public.octets()[3])) {
                outwards.insert(*private, *public);
            }
        }
        let map = |pairs: &BTreeMap<Ipv4Addr, Ipv4Addr>| {
            pairs.iter().map(|(from, to)| format!("{from} : {to}")).collect::<Vec<_>>().join(", ")
        };
        let (inwards, outwards) = (map(&inwards), map(&outwards));
        lab.router().nft(&format!(
            "table ip internet_gateway {{ }}\nflush table ip internet_gateway\ntable ip internet_gateway {{\n\
             chain inwards {{\n type filter hook prerouting priority -450\n notrack\n\
             iifname \"internet\" ip daddr set ip daddr map {{ {inwards} }}\n }}\n\
             chain closed {{\n type filter hook prerouting priority -460\n\
             iifname \"internet\" ip daddr {VPC} drop\n }}\n\
             chain outwards {{\n type filter hook postrouting priority 0\n\
             oifname \"internet\" ip saddr set ip saddr map {{ {outwards} }}\n }}\n}}\n"
        ))
    }
}

impl Lab {
    /// The host of this number that may translate, from 1.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn gateway(&self, number: u8) -> &super::Host {
        self.host(&role(number))
    }

    /// What several gateways need besides: each its link to the router, which they reach each other by, and for each
    /// private subnet a routing table of its own.
    pub(super) fn fleet(&self) -> Result {
        let mut router = String::new();
        for number in 2..=self.options.gateways {
            let (name, address) = (role(number), gateway_address(number));
            let _ = write!(
                router,
                "link set {name} up\naddr add 10.0.0.1/32 dev {name}\nroute add {address}/32 dev {name}\n"
            );
            ip_batch(
                self.gateway(number),
                &format!(
                    "link set lo up\nlink set ens5 up\naddr add {address}/24 dev ens5\nroute add default via 10.0.0.1\n"
                ),
            )?;
        }
        for number in 1..=self.options.clients {
            let table = table(2 - number % 2);
            let _ = writeln!(router, "rule add pref 150 iif client{number} lookup {table}");
        }
        ip_batch(self.router(), &router)?;
        self.router().shell("for f in /proc/sys/net/ipv4/conf/nat*/proxy_arp; do echo 1 >$f; done")?;
        // An answer to an address that a neighbour has is a proxy's, and comes late unless it is told not to.
        self.router().shell("for f in /proc/sys/net/ipv4/neigh/nat*/proxy_delay; do echo 0 >$f; done")?;
        Fabric { routes: [(1, Some(1)), (2, Some(1))].into(), ..Fabric::default() }.apply(self)
    }
}

const fn table(subnet: u8) -> u32 {
    100 + subnet as u32
}
