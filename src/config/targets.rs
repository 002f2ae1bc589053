//! The key `targets` of a section `[[forward]]`: addresses, and names by which targets are found.

use std::net::{IpAddr, SocketAddr};

use super::reader::{Field, Reader, Section, quoted};
use super::render::string;
use super::{Switch, forward::required, is_host_address, keys};
use crate::balance::{MOST_TARGETS, Target};
use crate::forward::{Config, Followed, Source};

/// Addresses or names, or tables with one of them, a weight, and whether it is a backup.
pub(super) fn read(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
    section: &Section<'_>,
) -> (Vec<Target>, Vec<Followed>) {
    let (mut fixed, mut followed) = (Vec::<Target>::new(), Vec::<Followed>::new());
    let Some(array) = reader.array(section, "targets") else {
        if !section.keys().any(|(name, _)| name == "targets") {
            reader.error(field.place(), "has no targets; name them, as in targets = [\"10.0.1.10:5000\"]");
        }
        return (fixed, followed);
    };
    if array.value.is_empty() || array.value.len() > MOST_TARGETS {
        let message = format!("has {} targets; use from 1 to {MOST_TARGETS}", array.value.len());
        reader.error(&array.place, message);
        return (fixed, followed);
    }
    for field in array.value {
        let place = field.place().clone();
        let Some((origin, weight, backup)) = target(reader, field) else { continue };
        let is_known = match &origin {
            Origin::Address(address) => fixed.iter().any(|other| other.address == *address),
            Origin::Source(source) => followed.iter().any(|other| other.source == *source),
        };
        if is_known {
            reader.error(&place, format!("{origin} is there twice; remove one"));
        }
        match origin {
            Origin::Address(address) => fixed.push(Target { address, weight, backup }),
            Origin::Source(source) => followed.push(Followed { source, weight, backup }),
        }
    }
    (fixed, followed)
}

/// They again, as items of an array.
pub(super) fn write(config: &Config) -> Vec<String> {
    let item = |origin: &dyn std::fmt::Display, weight: u16, backup: bool| {
        let origin = string(&origin.to_string());
        match (weight, backup) {
            (1, false) => origin,
            _ => format!("{{ address = {origin}, weight = {weight}, backup = {backup} }}"),
        }
    };
    let fixed = config.targets.iter().map(|target| item(&target.address, target.weight, target.backup));
    let followed =
        config.followed.iter().map(|followed| item(&followed.source, followed.weight, followed.backup));
    fixed.chain(followed).collect()
}

/// What an item names.
#[derive(Debug)]
enum Origin {
    Address(SocketAddr),
    Source(Source),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Source(source) => source.fmt(f),
        }
    }
}

/// One item, its weight, and whether it is a backup.
fn target(reader: &mut Reader<'_>, field: Field<'_>) -> Option<(Origin, u16, bool)> {
    if !field.is_table() {
        return reader.parsed_field(field, origin).map(|origin| (origin.value, 1, false));
    }
    let table = reader.table(&field)?;
    keys::check_section(reader, &table, &["address", "weight", "backup"]);
    let origin = required(reader, &field, &table, "address", origin)?;
    let weight = reader.integer(&table, "weight", 0..=1000, "shares").map_or(1, |weight| weight.value);
    Some((origin.value, weight, reader.boolean(&table, "backup").unwrap_or_default()))
}

fn origin(text: &str) -> Result<Origin, String> {
    if let Some(tag) = text.strip_prefix("ec2-tag:") {
        if !cfg!(feature = "aws") {
            return Err("this egret was built without AWS support; use addresses, or a name".to_owned());
        }
        let source = |(key, value, port)| Origin::Source(Source::Ec2Tag { key, value, port });
        return ec2_tag(tag).map(source).ok_or_else(|| {
            format!("{} is not a tag and a port; use such as \"ec2-tag:role=api:5000\"", quoted(text))
        });
    }
    if let Some(name) = text.strip_prefix("dns:") {
        return dns(name).map(Origin::Source).ok_or_else(|| {
            format!("{} is not a name and a port; use such as \"dns:internal-alb.example:80\"", quoted(text))
        });
    }
    let address = text.parse::<SocketAddr>().ok().filter(|address| match address.ip() {
        IpAddr::V4(ip) => (is_host_address(ip) || ip.is_loopback()) && address.port() != 0,
        IpAddr::V6(_) => false,
    });
    address.map(Origin::Address).ok_or_else(|| {
        format!("{} is not an IPv4 address and a port; use such as \"10.0.1.10:5000\"", quoted(text))
    })
}

/// `internal-alb.example:80`. Names are as those of hosts (RFC 1123 section 2.1), and may have underscores; they are
/// the same in upper and lower case.
fn dns(text: &str) -> Option<Source> {
    let (name, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let is_label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=LONGEST_LABEL).contains(&label.len())
            && label.bytes().all(good)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let labels = name.strip_suffix('.').unwrap_or(name);
    // An address is no name: what looks like one is a mistake.
    let has_letter = labels.bytes().any(|byte| byte.is_ascii_alphabetic());
    let good = name.len() <= LONGEST_NAME && has_letter && labels.split('.').all(is_label);
    good.then(|| Source::Dns { name: name.to_ascii_lowercase(), port })
}

/// `role=api:5000`: key, value and port. The key ends at the first `=`, and the value at the last `:`.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>
pub(super) fn ec2_tag(text: &str) -> Option<(String, String, u16)> {
    let (tag, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let (key, value) = tag.split_once('=')?;
    let fits = |text: &str, most: usize| text.chars().count() <= most && !text.chars().any(char::is_control);
    let good = !key.is_empty() && fits(key, LONGEST_TAG_KEY) && fits(value, LONGEST_TAG_VALUE);
    good.then(|| (key.to_owned(), value.to_owned(), port))
}

/// Notes targets by tag beside `aws.enabled = false`.
pub(super) fn check(reader: &mut Reader<'_>, root: &Section<'_>, listeners: &[Config], enabled: Switch) {
    let is_tag = |followed: &Followed| matches!(followed.source, Source::Ec2Tag { .. });
    let tagged = listeners.iter().find(|config| config.followed.iter().any(is_tag));
    let place = root.subsection("aws").and_then(|aws| aws.keys().find(|(name, _)| *name == "enabled"));
    if let (Some(config), Some((_, place)), Switch::Off) = (tagged, place, enabled) {
        let message = format!(
            "forward {} has targets by tag, which only AWS knows; use \"auto\", or other targets",
            config.name
        );
        reader.error(&place, message);
    }
}

const LONGEST_TAG_KEY: usize = 128;
const LONGEST_TAG_VALUE: usize = 256;
/// RFC 1035 section 2.3.4.
const LONGEST_LABEL: usize = 63;
const LONGEST_NAME: usize = 253;
