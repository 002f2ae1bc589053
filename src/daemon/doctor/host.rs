//! The host: its kernel, interfaces and settings, and whether the configuration fits them.

use super::super::proc::Proc;
use super::super::{Error, Refusal, checks, with_causes};
use super::{Finding, Remedy, Severity};
use crate::admin::Status;
use crate::config::{self, Config, HOST_PORTS, HostFacts, ResolveError};
use crate::datapath::probe::{self, LARGEST_XDP_MTU, Link};
use crate::datapath::{Choice, Interface};
use crate::forward::Mode;
use crate::wire::Protocol;

/// What the checks go by.
pub(super) struct Here<'a> {
    pub(super) proc: &'a Proc,
    pub(super) config: &'a Config,
    pub(super) facts: &'a HostFacts,
    /// Of the daemon, if it runs.
    pub(super) status: Option<&'a Status>,
    pub(super) sides: &'a Sides,
}

/// Our interfaces, as far as they are there.
#[derive(Clone, Debug, Default)]
pub(super) struct Sides {
    pub(super) external: Option<Interface>,
    pub(super) internal: Option<Interface>,
}

impl Sides {
    pub(super) fn find(config: &Config, facts: &HostFacts) -> Self {
        let external = config.nat.external_interface.as_ref().or(facts.default_route.as_ref());
        let internal = config.nat.internal_interface.as_ref().or(external);
        let find = |name: Option<&String>| {
            facts.interfaces.iter().find(|interface| Some(&interface.name) == name).cloned()
        };
        Self { external: find(external), internal: find(internal) }
    }

    /// Each of them once.
    pub(super) fn each(&self) -> Vec<&Interface> {
        let mut each: Vec<_> = self.external.iter().chain(&self.internal).collect();
        each.dedup();
        each
    }
}

impl Here<'_> {
    pub(super) fn examine(&self) -> Result<Vec<Finding>, Error> {
        let missing = checks::capabilities(self.proc)?;
        let mut findings = self.kernel(missing.is_empty());
        findings.push(self.capabilities(&missing));
        for interface in self.sides.each() {
            if let Some(link) = probe::link(interface.index)? {
                findings.push(up(interface, &link));
                findings.push(self.xdp(&interface.name, &link));
            }
        }
        findings.extend(self.fit()?);
        findings.push(self.ports()?);
        findings.extend(self.listeners());
        findings.push(self.forwarding()?);
        Ok(findings)
    }

    fn kernel(&self, may_load: bool) -> Vec<Finding> {
        let kernel = probe::kernel();
        let release = &kernel.release;
        if !may_load {
            let remedy = Remedy::run("sudo egret doctor");
            let detail = format!("Linux {release}; what it can do is only seen by root");
            return vec![Finding::new(Severity::Note, "kernel", detail, remedy)];
        }
        let mut findings = Vec::new();
        if let Err(error) = &kernel.filter {
            let remedy = Remedy::words(
                "boot a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT and CONFIG_NET_SCH_INGRESS",
            );
            findings.push(Finding::error("bpf", with_causes(error), remedy));
        }
        let xdp = match (&kernel.xdp, &kernel.af_xdp) {
            (Err(error), _) => Some(with_causes(error)),
            (_, Err(error)) => Some(format!("no AF_XDP socket: {error}")),
            (Ok(()), Ok(())) => None,
        };
        if let Some(reason) = xdp {
            let remedy = Remedy::words("boot Linux 5.18 or later with CONFIG_XDP_SOCKETS");
            findings.push(self.without_xdp("xdp", format!("not with this kernel: {reason}"), remedy));
        }
        if findings.is_empty() {
            findings.push(Finding::ok("kernel", format!("Linux {release}, with BPF and AF_XDP")));
        }
        findings
    }

    fn capabilities(&self, missing: &[Refusal]) -> Finding {
        const WHAT: &str = "capabilities";
        if missing.is_empty() {
            return Finding::ok(WHAT, "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON");
        }
        let names: Vec<&str> = missing
            .iter()
            .filter_map(|refusal| match refusal {
                Refusal::Capability(name) => Some(*name),
                _ => None,
            })
            .collect();
        let detail = format!("without {}", names.join(", "));
        match self.status {
            // It is the doctor's own that are missing.
            Some(_) => Finding::new(Severity::Note, WHAT, detail, Remedy::run("sudo egret doctor")),
            None => Finding::error(
                WHAT,
                detail,
                Remedy::words(format!("run it as root, or grant AmbientCapabilities={}", names.join(" "))),
            ),
        }
    }

    fn xdp(&self, name: &str, link: &Link) -> Finding {
        let what = format!("xdp {name}");
        let driver = &link.driver;
        let is_ours = self.status.is_some_and(|status| status.datapath == "xdp");
        if self.config.datapath == Choice::AfPacket {
            return Finding::ok(&what, "not asked for (datapath = \"af_packet\")");
        }
        if is_ours && link.program.is_some() {
            return Finding::ok(&what, format!("runs, driver {driver}"));
        }
        if let Some((id, mode)) = link.program {
            let detail = format!("another program is attached (id {id}, {mode} mode), and is not replaced");
            let remedy = Remedy::run(format!("ip link set dev {name} xdp off"));
            return self.without_xdp(&what, detail, remedy);
        }
        if !link.native_xdp {
            let detail = format!("the driver {driver} is not known to do it; packet sockets are taken");
            let remedy = Remedy::words("datapath = \"af_packet\" says that this is meant");
            return self.without_xdp(&what, detail, remedy);
        }
        if link.mtu > LARGEST_XDP_MTU && !self.config.xdp.adjust_mtu {
            let detail =
                format!("the MTU of {} is more than {LARGEST_XDP_MTU}, which {driver} takes", link.mtu);
            let remedy = Remedy::run(format!("ip link set dev {name} mtu {LARGEST_XDP_MTU}"));
            return self.without_xdp(&what, detail, remedy);
        }
        let (present, most) = link.queues;
        let queues = match driver.as_str() {
            "ena" if present > most / 2 => format!(", {} of {present} queues stay", most / 2),
            _ => String::new(),
        };
        let mtu = if link.mtu > LARGEST_XDP_MTU {
            format!(", the MTU becomes {LARGEST_XDP_MTU}")
        } else {
            format!(", MTU {}", link.mtu)
        };
        Finding::ok(&what, format!("driver {driver}{mtu}{queues}"))
    }

    /// Without XDP it goes by packet sockets, unless XDP alone is wanted.
    fn without_xdp(&self, what: &str, detail: String, remedy: Remedy) -> Finding {
        let severity = match self.config.datapath {
            Choice::Xdp => Severity::Error,
            Choice::Auto | Choice::AfPacket => Severity::Note,
        };
        Finding::new(severity, what, detail, remedy)
    }

    /// Whether the configuration fits this host.
    fn fit(&self) -> Result<Vec<Finding>, Error> {
        const WHAT: &str = "addresses";
        let resolved = match config::resolve(self.config, self.facts) {
            Ok(resolved) => resolved,
            Err(errors) => return Ok(errors.iter().map(misfit).collect()),
        };
        let mut findings = vec![Finding::ok(WHAT, super::super::external(&resolved.nat))];
        if let Some(prefixes) = &self.config.nat.internal {
            let name = &resolved.datapath.internal.name;
            findings.extend(checks::reverse_path(self.proc, name, prefixes)?.iter().map(|refusal| {
                let run = format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2 net.ipv4.conf.all.rp_filter=2");
                Finding::error("rp_filter", first_part(&refusal.to_string()), Remedy::run(run))
            }));
        }
        Ok(findings)
    }

    /// NAT's ports and the host's own are disjoint while Egret runs.
    fn ports(&self) -> Result<Finding, Error> {
        const WHAT: &str = "ports";
        let nat = &self.config.nat.port_range;
        let found = self.proc.read("sys/net/ipv4/ip_local_port_range")?;
        let bounds: Vec<u16> = found.split_whitespace().filter_map(|bound| bound.parse().ok()).collect();
        let (lower, upper) = match bounds[..] {
            [lower, upper] => (lower, upper),
            _ => (0, u16::MAX),
        };
        let nats = format!("NAT {}-{}", nat.start(), nat.end());
        let is_apart = lower > *nat.end() || upper < *nat.start();
        let (first, last) = (HOST_PORTS.start(), HOST_PORTS.end());
        Ok(match (is_apart, self.status) {
            (true, _) => Finding::ok(WHAT, format!("{nats}, the host {lower}-{upper}")),
            (false, None) => Finding::ok(WHAT, format!("{nats}; the host is moved to {first}-{last}")),
            (false, Some(_)) => {
                let remedy = Remedy::run(format!("sysctl -w net.ipv4.ip_local_port_range=\"{first} {last}\""));
                Finding::error(WHAT, format!("{nats} and the host {lower}-{upper} overlap"), remedy)
            }
        })
    }

    /// Ports of listeners that somebody else has, while the daemon does not run and has them itself.
    fn listeners(&self) -> Vec<Finding> {
        if self.status.is_some() {
            return Vec::new();
        }
        let proxies = self.config.forward.iter().filter(|forward| forward.mode == Mode::Proxy);
        let taken = proxies.filter(|forward| {
            self.facts.ports.iter().any(|(protocol, address, port)| {
                let (ip, listen) = (forward.listen.ip(), forward.listen.port());
                let meets = address.is_unspecified() || ip.is_unspecified() || ip == *address;
                *protocol == Protocol::TCP && *port == listen && meets
            })
        });
        taken
            .map(|forward| {
                let (name, listen) = (&forward.name, forward.listen);
                let detail = format!("{name}: a socket of this host has port {}", listen.port());
                let remedy = Remedy::run(format!("ss -tlnp 'sport = :{}'", listen.port()));
                Finding::error("forward", detail, remedy)
            })
            .collect()
    }

    /// The kernel forwards nothing on our interfaces.
    fn forwarding(&self) -> Result<Finding, Error> {
        const WHAT: &str = "ip_forward";
        let mut on = Vec::new();
        if self.proc.read("sys/net/ipv4/ip_forward")? != "0" {
            on.push("net.ipv4.ip_forward".to_owned());
        }
        for interface in self.sides.each() {
            let name = &interface.name;
            if self.proc.read(&format!("sys/net/ipv4/conf/{name}/forwarding"))? != "0" {
                on.push(format!("net.ipv4.conf.{name}.forwarding"));
            }
        }
        if on.is_empty() {
            return Ok(Finding::ok(WHAT, "off: nothing leaves untranslated"));
        }
        let settings: Vec<String> = on.iter().map(|name| format!("{name}=0")).collect();
        let remedy = Remedy::run(format!("sysctl -w {}", settings.join(" ")));
        Ok(match self.status {
            Some(_) => Finding::error(WHAT, "on: packets may leave untranslated", remedy),
            None => {
                let detail = "on: packets may leave untranslated until egret runs, which switches it off";
                Finding::new(Severity::Warning, WHAT, detail, remedy)
            }
        })
    }
}

fn up(interface: &Interface, link: &Link) -> Finding {
    let what = format!("interface {}", interface.name);
    if !link.running {
        let remedy = Remedy::run(format!("ip link set dev {} up", interface.name));
        return Finding::error(&what, "down, or without a carrier", remedy);
    }
    let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() {
        let remedy = Remedy::run(format!("ip address add ADDRESS/PREFIX dev {}", interface.name));
        return Finding::error(&what, "up, and has no IPv4 address", remedy);
    }
    Finding::ok(&what, format!("up, {}", addresses.join(", ")))
}

fn misfit(error: &ResolveError) -> Finding {
    let message = error.to_string();
    let what = match error {
        ResolveError::NoDefaultRoute | ResolveError::NoInterface { .. } => "interface",
        ResolveError::NoAddress { .. } | ResolveError::NotOnInterface { .. } => "addresses",
        ResolveError::PortsTaken { .. } => "ports",
        _ => "forward",
    };
    let remedy = match error {
        ResolveError::NotOnInterface { name, address } => {
            Remedy::run(format!("ip address add {address}/32 dev {name}"))
        }
        ResolveError::PortInUse { port, .. } => Remedy::run(format!("ss -tlnp 'sport = :{port}'")),
        _ => Remedy::words(message.split_once("; ").map_or("change the configuration", |(_, rest)| rest)),
    };
    Finding::error(what, first_part(&message), remedy)
}

/// Our messages say what is wrong, and after a semicolon what to do.
fn first_part(message: &str) -> String {
    message.split_once("; ").map_or(message, |(first, _)| first).to_owned()
}
