//! The sections `[forward.tls]`. What is in the files that they name is looked at when the daemon takes them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::keys;
use super::reader::{Place, Reader, Section, quoted};
use super::render::{optional, string, word};
use crate::forward::tls::{Config, Version};

/// The section of a listener, if it has one.
pub(super) fn read(reader: &mut Reader<'_>, listener: &Section<'_>) -> Option<Config> {
    let section = reader.section(listener, "tls")?;
    keys::check_section(reader, &section, KEYS);
    let certificate = needed(reader, listener, &section, "certificate");
    let key = needed(reader, listener, &section, "key");
    let client_ca = reader.parsed(&section, "client_ca", path).map(|path| path.value);
    let min_version = reader.choice(&section, "min_version", VERSIONS).unwrap_or_default();
    let alpn = alpn(reader, &section);
    Some(Config { certificate: certificate?, key: key?, client_ca, min_version, alpn })
}

/// The section again, with every default.
pub(super) fn write(out: &mut String, config: &Config) -> std::fmt::Result {
    let path = |path: &Path| string(&path.to_string_lossy());
    writeln!(out, "\n[forward.tls]\ncertificate = {}", path(&config.certificate))?;
    writeln!(out, "key = {}", path(&config.key))?;
    optional(out, "client_ca", config.client_ca.as_deref().map(path), "clients need no certificate")?;
    writeln!(out, "min_version = \"{}\"", word(VERSIONS, config.min_version))?;
    let alpn: Vec<String> = config.alpn.iter().map(|protocol| string(protocol)).collect();
    writeln!(out, "alpn = [{}]", alpn.join(", "))
}

/// A path that has to be there.
fn needed(
    reader: &mut Reader<'_>,
    listener: &Section<'_>,
    section: &Section<'_>,
    key: &str,
) -> Option<PathBuf> {
    if !section.keys().any(|(name, _)| name == key)
        && let Some(place) = place(listener)
    {
        reader.error(&place, format!("has no {key}; name a file in PEM"));
    }
    reader.parsed(section, key, path).map(|path| path.value)
}

/// Where the section is.
fn place(listener: &Section<'_>) -> Option<Place> {
    listener.keys().find_map(|(name, place)| (name == "tls").then_some(place))
}

fn alpn(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<String> {
    let Some(array) = reader.array(section, "alpn") else { return Vec::new() };
    if array.value.len() > MOST_PROTOCOLS {
        let message = format!("has {} protocols; use at most {MOST_PROTOCOLS}", array.value.len());
        reader.error(&array.place, message);
        return Vec::new();
    }
    let read = array.value.into_iter().filter_map(|field| reader.parsed_field(field, protocol));
    read.map(|protocol| protocol.value).collect()
}

/// RFC 7301 section 3.1 allows from 1 to 255 bytes; those that are registered are shorter, and text.
fn protocol(text: &str) -> Result<String, String> {
    let good = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > LONGEST_PROTOCOL || !good {
        return Err(format!("{} is not a protocol; use such as \"h2\" or \"http/1.1\"", quoted(text)));
    }
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() || path.file_name().is_none() || text.contains('\0') {
        return Err(format!(
            "{} is not an absolute path of a file, such as /etc/egret/tls/cert.pem",
            quoted(text)
        ));
    }
    Ok(path.to_owned())
}

const KEYS: &[&str] = &["certificate", "key", "client_ca", "min_version", "alpn"];
const VERSIONS: &[(&str, Version)] = &[("1.2", Version::Tls12), ("1.3", Version::Tls13)];
const MOST_PROTOCOLS: usize = 16;
const LONGEST_PROTOCOL: usize = 64;
