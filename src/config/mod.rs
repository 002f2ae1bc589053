//! The configuration file: TOML in, validated and typed configuration out.
//!
//! Owns what may stand in `egret.toml` ([`load`]), what may be set from outside of it ([`Settings`]), and how the parts
//! that both leave open follow from the host ([`resolve()`]). All problems are reported at once, each with its line and
//! key, what is wrong and what is allowed; nothing half-valid gets past this module. It reads the one file that it is
//! given and nothing else: the host's facts, its environment and its tags are arguments.

mod admin;
mod aws;
mod failover;
mod forward;
mod hooks;
mod keys;
mod nat;
mod problem;
mod reader;
mod render;
mod resolve;
mod session_log;
mod settings;
mod targets;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use toml::de::DeTable;

use crate::datapath::{Choice, XdpConfig};
use crate::failover::Failback;
use crate::forward::Config as Forward;
use crate::nat::{ExternalAddress, FilteringBehaviour, MappingBehaviour, OnExhaustion, Timeouts};
/// What is in `failover.key_file` or `failover.key_parameter`.
pub use crate::peer::Key as PeerKey;
pub use admin::{DEFAULT_LISTEN, DEFAULT_SOCKET, Price};
pub use problem::{Origin, Problem, Problems};
use reader::{Reader, Section};
pub use render::render;
pub use resolve::{CloudFacts, HostFacts, ResolveError, Resolved, interfaces, resolve};
pub use session_log::{SessionLog, SessionLogTarget};
pub use settings::{Set, Settings, TAG_PREFIX};

/// Where the configuration is looked for if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/egret/egret.toml";

/// The host's ephemeral ports while Egret runs. NAT's ports lie below them.
pub const HOST_PORTS: RangeInclusive<u16> = 61_000..=65_535;

/// What a file and settings say, validated; what they leave open is filled in by [`resolve()`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that this was read from; unset if there was none at the default path.
    pub file: Option<PathBuf>,
    pub datapath: Choice,
    pub xdp: XdpConfig,
    pub nat: Nat,
    /// The sections `[[forward]]`; no two share a name or an address.
    pub forward: Vec<Forward>,
    pub aws: Aws,
    /// Unset without the section: the gateway is this instance's for as long as it lives.
    pub failover: Option<Failover>,
    pub admin: Admin,
    pub session_log: SessionLog,
    /// What is set from outside of the file.
    pub set: Vec<Set>,
    /// What is doubtful in the file, in the order of the lines, and tags that are left out.
    pub warnings: Vec<Problem>,
}

/// The section `[nat]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Default: the default route's.
    pub external_interface: Option<String>,
    /// Default: the external one (one-armed).
    pub internal_interface: Option<String>,
    /// Default: see [`resolve()`].
    pub internal: Option<Vec<Ipv4Net>>,
    /// Default: as `internal`.
    pub bypass: Option<Vec<Ipv4Net>>,
    /// Default: the external interface's first IPv4 address.
    pub external_addresses: Option<Vec<ExternalAddress>>,
    pub port_range: RangeInclusive<u16>,
    pub mapping: MappingBehaviour,
    pub filtering: FilteringBehaviour,
    pub on_exhaustion: OnExhaustion,
    pub profile: Profile,
    /// Bytes.
    pub external_mtu: u16,
    /// Bytes.
    pub mss_clamp: Option<u16>,
    pub answer_unsolicited_syn: bool,
    /// Those of the profile, but for those that the file names.
    pub timeouts: Timeouts,
    pub limits: Limits,
}

/// The section `[nat.limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// 0: from the machine's memory.
    pub sessions: u32,
    /// 0: a quarter of `sessions`.
    pub sessions_per_address: u32,
    /// 0: no limit.
    pub new_sessions_per_second: u32,
    /// Bytes.
    pub fragment_memory: usize,
}

/// A set of idle timeouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Those of RFC 4787, 5382 and 5508.
    #[default]
    Rfc,
    /// 350 s for everything, as a managed NAT gateway.
    AwsNatGateway,
}

/// The section `[aws]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aws {
    /// Whether AWS is asked for anything; `auto`: on EC2 it is.
    pub enabled: Switch,
    /// Which route tables lead to this instance.
    pub route_tables: RouteTables,
    /// The destinations of the routes in them.
    pub routes: Vec<Ipv4Net>,
    /// Allocation ids: a pool, in the order in which they are tried. Empty: none is associated.
    pub elastic_ips: Vec<String>,
    /// How many of the pool; at least 1. With failover, all.
    pub elastic_ip_count: usize,
    /// Lifecycle hooks of the Auto Scaling group, which wait for this instance.
    pub hooks: Hooks,
}

impl Default for Aws {
    fn default() -> Self {
        Self {
            enabled: Switch::default(),
            route_tables: RouteTables::default(),
            routes: vec![Ipv4Net::default()],
            elastic_ips: Vec::new(),
            elastic_ip_count: 1,
            hooks: Hooks::default(),
        }
    }
}

/// The section `[failover]`. With it, [`Aws::elastic_ips`] and [`Aws::route_tables`] are not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// The name of the home gateway, and so of this instance; see [`crate::peer::is_name`].
    pub gateway: String,
    pub key: KeySource,
    pub listen: SocketAddr,
    /// The other instances, the first heir of the gateway first; at least one.
    pub peers: Vec<FailoverPeer>,
    /// A managed NAT gateway, by its id.
    pub fallback_nat_gateway: Option<String>,
    pub heartbeat_interval: Duration,
    /// At least three times `heartbeat_interval`.
    pub dead_after: Duration,
    pub failback: Failback,
    pub hold_down: Duration,
    /// The internet is there if one of these takes a connection. Empty: if the next hop answers.
    pub egress_probes: Vec<SocketAddr>,
}

/// Where the [`PeerKey`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    /// The name of a parameter in Systems Manager's Parameter Store.
    Parameter(String),
}

/// Another instance of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverPeer {
    /// The name of its home gateway.
    pub gateway: String,
    pub address: PeerAddress,
}

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    Fixed(SocketAddr),
    /// At the private address of whichever running instance of this VPC has a tag: one in an Auto Scaling group has no
    /// address that stays.
    Tagged {
        key: String,
        value: String,
        port: u16,
    },
}

/// As the file has it.
impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => address.fmt(f),
            Self::Tagged { key, value, port } => write!(f, "ec2-tag:{key}={value}:{port}"),
        }
    }
}

/// A choice of route tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RouteTables {
    #[default]
    None,
    Ids(Vec<String>),
    /// Those of the VPC that have all of these tags.
    Tagged(BTreeMap<String, String>),
}

/// Names of lifecycle hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Of the transition `autoscaling:EC2_INSTANCE_LAUNCHING`.
    pub launching: Option<String>,
    /// Of the transition `autoscaling:EC2_INSTANCE_TERMINATING`.
    pub terminating: Option<String>,
}

/// `true`, `false`, or whatever fits the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    #[default]
    Auto,
    On,
    Off,
}

/// The section `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where metrics, health and the status page are served by HTTP; unset: nowhere.
    pub listen: Option<SocketAddr>,
    /// The control socket, an absolute path.
    pub socket: PathBuf,
    /// What the bytes that Egret has processed are priced at, for comparison.
    pub nat_gateway_price_per_gb: Price,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: Some(DEFAULT_LISTEN),
            socket: PathBuf::from(DEFAULT_SOCKET),
            nat_gateway_price_per_gb: Price::NAT_GATEWAY,
        }
    }
}

/// Reads a configuration file, under some settings. If there is none at [`DEFAULT_PATH`], everything else has its
/// default and [`Config::file`] is unset; any other file has to exist.
///
/// # Errors
///
/// Everything that is wrong with the file and the variables, at once. If its TOML cannot be parsed, the first error of
/// syntax. A tag that is wrong is none: it is left out, with a warning.
pub fn load(path: &Path, settings: &Settings) -> Result<Config, Problems> {
    match read(path) {
        Ok(bytes) => parse_with(path, &bytes, settings),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
            let config = parse_with(path, b"", settings)?;
            Ok(Config { file: None, ..config })
        }
        Err(error) => {
            let message = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("no such file; create it, or leave it out for the defaults ({DEFAULT_PATH})")
                }
                std::io::ErrorKind::FileTooLarge => format!("longer than {MAX_BYTES} bytes, the most allowed"),
                _ => format!("cannot be read: {error}"),
            };
            Err(whole_file(path, message))
        }
    }
}

/// Understands the text of a configuration file; `path` is only for the messages.
///
/// # Errors
///
/// As [`load`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Config, Problems> {
    parse_with(path, bytes, &Settings::default())
}

/// As [`parse`], under some settings.
///
/// # Errors
///
/// As [`load`].
pub fn parse_with(path: &Path, bytes: &[u8], settings: &Settings) -> Result<Config, Problems> {
    let mut settings = settings.clone();
    let mut left_out = Vec::new();
    // Each round leaves out a tag at least.
    loop {
        match understand(path, bytes, &settings) {
            Ok(mut config) => {
                config.warnings.extend(left_out);
                return Ok(config);
            }
            Err(Problems(problems)) if settings.has_tags() => {
                let is_right = |settings: &Settings| understand(path, bytes, settings).is_ok();
                left_out.extend(settings.leave_out(problems, is_right));
            }
            Err(Problems(mut problems)) => {
                // Without a tag the rest may be wrong only because the tag was.
                problems.extend(left_out.into_iter().filter(Problem::is_of_tag));
                return Err(Problems(problems));
            }
        }
    }
}

fn understand(path: &Path, bytes: &[u8], settings: &Settings) -> Result<Config, Problems> {
    let file: Arc<Path> = Arc::from(path);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = bytes[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
            let message = "not UTF-8, as TOML has to be".to_owned();
            let origin = Origin::File(file);
            let problem = Problem { origin, line: Some(line), column: None, key: String::new(), message };
            return Err(Problems(vec![problem]));
        }
    };
    let mut reader = Reader::new(text, Arc::clone(&file));
    let mut document = match DeTable::parse(text) {
        Ok(document) => document.into_inner(),
        Err(error) => {
            let position = error.span().map(|span| reader.position(span.start));
            let (line, column) = position.unzip();
            let message = format!("not TOML: {}", error.message());
            let origin = Origin::File(file);
            return Err(Problems(vec![Problem { origin, line, column, key: String::new(), message }]));
        }
    };
    let set = settings.put_into(&mut document, &mut reader);
    let root = Section::root(&document);
    keys::check(&mut reader, &root);
    let datapaths = [Choice::Auto, Choice::Xdp, Choice::AfPacket].map(|choice| (choice.label(), choice));
    let datapath = reader.choice(&root, "datapath", &datapaths).unwrap_or_default();
    let xdp = read_xdp(&mut reader, &root);
    let nat = nat::read(&mut reader, &root);
    let forward = forward::read(&mut reader, &root);
    let mut aws = aws::read(&mut reader, &root);
    let failover = failover::read(&mut reader, &root, &mut aws, &forward);
    targets::check(&mut reader, &root, &forward, aws.enabled);
    let admin = admin::read(&mut reader, &root);
    let session_log = session_log::read(&mut reader, &root);
    let Reader { mut problems, mut warnings, .. } = reader;
    problems.sort_by_key(|problem| problem.line);
    warnings.sort_by_key(|problem| problem.line);
    if problems.is_empty() {
        Ok(Config {
            file: Some(path.to_owned()),
            datapath,
            xdp,
            nat,
            forward,
            aws,
            failover,
            admin,
            session_log,
            set,
            warnings,
        })
    } else {
        Err(Problems(problems))
    }
}

fn read_xdp(reader: &mut Reader<'_>, root: &Section<'_>) -> XdpConfig {
    let Some(section) = reader.section(root, "xdp") else { return XdpConfig::default() };
    XdpConfig { adjust_mtu: reader.boolean(&section, "adjust_mtu").unwrap_or_default() }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

fn whole_file(path: &Path, message: String) -> Problems {
    let origin = Origin::File(Arc::from(path));
    Problems(vec![Problem { origin, line: None, column: None, key: String::new(), message }])
}

/// The longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Whether the address is one that a host can have on a network: not 0/8, loopback, multicast or reserved.
fn is_host_address(address: Ipv4Addr) -> bool {
    !(address.octets()[0] == 0 || address.is_loopback() || address.octets()[0] >= 224)
}
