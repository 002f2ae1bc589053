//! What has to hold before packets can be moved. Each refusal says what to do about it.

use ipnet::Ipv4Net;
use nix::net::if_::InterfaceFlags;

use super::proc::{Proc, ProcError, Route};
use crate::datapath;

/// Why the daemon does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the capability {0} is missing; run as root, or grant it (AmbientCapabilities= of systemd)")]
    Capability(&'static str),
    #[error("another egret is running in this network namespace; stop it first")]
    Running,
    #[error("the interface {0} is down; bring it up (ip link set {0} up)")]
    InterfaceDown(String),
    #[error(
        "rp_filter is strict on {interface}, but {prefix} is routed by {route}: the kernel drops what those \
         hosts send to this one; set net.ipv4.conf.{interface}.rp_filter and net.ipv4.conf.all.rp_filter to 2 \
         or 0, or route {prefix} by {interface}"
    )]
    ReversePathFilter { interface: String, prefix: Ipv4Net, route: String },
}

/// The capabilities that are missing.
pub(super) fn capabilities(proc: &Proc) -> Result<Vec<Refusal>, ProcError> {
    let held = proc.capabilities()?;
    let has = |bit: u32| held & (1 << bit) != 0;
    let mut missing = Vec::new();
    if !has(CAP_NET_ADMIN) {
        missing.push(Refusal::Capability("CAP_NET_ADMIN"));
    }
    if !has(CAP_NET_RAW) {
        missing.push(Refusal::Capability("CAP_NET_RAW"));
    }
    // Before it was split up, CAP_SYS_ADMIN held what CAP_BPF and CAP_PERFMON do.
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push(Refusal::Capability("CAP_BPF"));
    }
    // Without it, the kernel does not let programs compute with addresses of packets.
    if !has(CAP_PERFMON) && !has(CAP_SYS_ADMIN) {
        missing.push(Refusal::Capability("CAP_PERFMON"));
    }
    Ok(missing)
}

/// Those of our interfaces that are down.
pub(super) fn interfaces(config: &datapath::Config) -> Result<Vec<Refusal>, nix::Error> {
    let mut names = vec![&config.external.name, &config.internal.name];
    names.dedup();
    let up: Vec<String> = nix::ifaddrs::getifaddrs()?
        .filter(|address| address.flags.contains(InterfaceFlags::IFF_UP))
        .map(|address| address.interface_name)
        .collect();
    Ok(names.into_iter().filter(|name| !up.contains(name)).cloned().map(Refusal::InterfaceDown).collect())
}

/// Internal prefixes whose hosts the kernel would not listen to: the reverse-path filter of the internal
/// interface is strict and their route is by another one. NAT's packets never come to that filter; those of the
/// host's own sockets, and the proxy's, do.
pub(super) fn reverse_path(
    proc: &Proc,
    interface: &str,
    prefixes: &[Ipv4Net],
) -> Result<Vec<Refusal>, ProcError> {
    let mode = |name: &str| -> Result<u8, ProcError> {
        Ok(proc.read(&format!("sys/net/ipv4/conf/{name}/rp_filter"))?.parse().unwrap_or(0))
    };
    if mode("all")?.max(mode(interface)?) != STRICT {
        return Ok(Vec::new());
    }
    let routes = proc.routes()?;
    let refused = prefixes.iter().filter_map(|prefix| {
        let route = elsewhere(&routes, interface, *prefix)?;
        Some(Refusal::ReversePathFilter { interface: interface.to_owned(), prefix: *prefix, route })
    });
    Ok(refused.collect())
}

/// The interface that a prefix is routed by, if that is another one and no part of it is routed by `interface`.
fn elsewhere(routes: &[Route], interface: &str, prefix: Ipv4Net) -> Option<String> {
    let part = |route: &Route| prefix.contains(&route.destination) && route.interface == interface;
    if routes.iter().any(part) {
        return None;
    }
    let covering = routes.iter().filter(|route| route.destination.contains(&prefix));
    let longest = covering.max_by_key(|route| route.destination.prefix_len())?;
    (longest.interface != interface).then(|| longest.interface.clone())
}

/// `rp_filter` by RFC 3704 section 2.2 (ip-sysctl).
const STRICT: u8 = 1;

/// Bits of linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

#[cfg(test)]
mod tests {
    use super::*;

    fn route(interface: &str, destination: &str) -> Route {
        Route { interface: interface.to_owned(), destination: destination.parse().unwrap() }
    }

    fn check(routes: &[Route], prefix: &str) -> Option<String> {
        elsewhere(routes, "eth1", prefix.parse().unwrap())
    }

    #[test]
    fn a_prefix_that_is_routed_elsewhere_is_found() {
        let routes = [route("eth0", "0.0.0.0/0"), route("eth1", "10.0.1.0/24")];
        assert_eq!(check(&routes, "10.1.0.0/16"), Some("eth0".to_owned()));
        assert_eq!(check(&routes, "10.0.1.0/24"), None);
        assert_eq!(check(&routes, "10.0.0.0/16"), None, "a part of it is routed by the interface");
    }

    #[test]
    fn the_longest_route_counts() {
        let routes = [route("eth1", "0.0.0.0/0"), route("eth0", "10.0.0.0/8")];
        assert_eq!(check(&routes, "10.1.0.0/16"), Some("eth0".to_owned()));
        assert_eq!(check(&routes, "192.168.0.0/16"), None);
    }

    #[test]
    fn each_missing_capability_is_named() {
        let root = std::env::temp_dir().join(format!("egret-checks-{}", std::process::id()));
        std::fs::create_dir_all(root.join("self")).unwrap();
        let missing = |mask: u64| {
            std::fs::write(root.join("self/status"), format!("Name:\tegret\nCapEff:\t{mask:016x}\n")).unwrap();
            capabilities(&Proc::at(&root)).unwrap()
        };
        let all = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"].map(Refusal::Capability);
        assert_eq!(missing(0), all);
        assert_eq!(missing(1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN), [Refusal::Capability("CAP_NET_RAW")]);
        let network = 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
        assert_eq!(missing(network | 1 << CAP_BPF), [Refusal::Capability("CAP_PERFMON")]);
        assert_eq!(missing(network | 1 << CAP_BPF | 1 << CAP_PERFMON), []);
    }
}
