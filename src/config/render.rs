//! A configuration as TOML again, with every default spelled out.

use std::fmt::Write;
use std::time::Duration;

use super::nat::{EXHAUSTIONS, FILTERINGS, MAPPINGS, PROFILES};
use super::{Config, Nat, admin, aws, failover, forward, session_log};

/// The effective configuration: TOML that says the same as the file and the defaults together. What follows
/// from the host is left out, with a comment in its place.
#[must_use]
pub fn render(config: &Config) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, config);
    out
}

fn write(out: &mut String, config: &Config) -> std::fmt::Result {
    writeln!(out, "datapath = {:?}", config.datapath.label())?;
    writeln!(out, "\n[xdp]\nadjust_mtu = {}", config.xdp.adjust_mtu)?;
    writeln!(out, "\n[nat]")?;
    write_nat(out, &config.nat)?;
    for listener in &config.forward {
        forward::write(out, listener)?;
    }
    aws::write(out, &config.aws)?;
    config.failover.as_ref().map_or(Ok(()), |section| failover::write(out, section))?;
    admin::write(out, &config.admin)?;
    session_log::write(out, &config.session_log)
}

fn write_nat(out: &mut String, nat: &Nat) -> std::fmt::Result {
    let interface = |name: &Option<String>| name.as_deref().map(string);
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let prefixes = |nets: &Option<Vec<ipnet::Ipv4Net>>| {
        nets.as_ref().map(|nets| list(nets.iter().map(|net| format!("\"{net}\"")).collect()))
    };
    let addresses = nat.external_addresses.as_ref().map(|addresses| {
        let item = |address: &crate::nat::ExternalAddress| match address.public {
            Some(public) => format!("{{ private = \"{}\", public = \"{public}\" }}", address.private),
            None => format!("{{ private = \"{}\" }}", address.private),
        };
        list(addresses.iter().map(item).collect())
    });
    optional(out, "external_interface", interface(&nat.external_interface), "the default route's")?;
    optional(out, "internal_interface", interface(&nat.internal_interface), "the external one")?;
    optional(
        out,
        "internal",
        prefixes(&nat.internal),
        "the VPC's, or the private network of the internal interface",
    )?;
    optional(out, "bypass", prefixes(&nat.bypass), "as internal")?;
    optional(
        out,
        "external_addresses",
        addresses,
        "the Elastic IPs, or the external interface's first address",
    )?;
    writeln!(out, "port_range = \"{}-{}\"", nat.port_range.start(), nat.port_range.end())?;
    writeln!(out, "mapping = {:?}", word(MAPPINGS, nat.mapping))?;
    writeln!(out, "filtering = {:?}", word(FILTERINGS, nat.filtering))?;
    writeln!(out, "on_exhaustion = {:?}", word(EXHAUSTIONS, nat.on_exhaustion))?;
    writeln!(out, "profile = {:?}", word(PROFILES, nat.profile))?;
    writeln!(out, "external_mtu = {}", nat.external_mtu)?;
    optional(out, "mss_clamp", nat.mss_clamp.map(|mss| mss.to_string()), "off")?;
    writeln!(out, "answer_unsolicited_syn = {}", nat.answer_unsolicited_syn)?;
    writeln!(out, "\n[nat.timeouts]")?;
    let timeout = |out: &mut String, key: &str, timeout: Duration| {
        writeln!(out, "{key} = \"{}\"", humantime::format_duration(timeout))
    };
    timeout(out, "tcp_established", nat.timeouts.tcp_established)?;
    timeout(out, "tcp_transitory", nat.timeouts.tcp_transitory)?;
    timeout(out, "udp", nat.timeouts.udp)?;
    timeout(out, "udp_unreplied", nat.timeouts.udp_unreplied)?;
    timeout(out, "icmp_query", nat.timeouts.icmp_query)?;
    timeout(out, "other", nat.timeouts.other)?;
    writeln!(out, "\n[nat.limits]")?;
    let limits = &nat.limits;
    let note = |zero: bool, meaning: &str| if zero { format!(" # {meaning}") } else { String::new() };
    writeln!(out, "sessions = {}{}", limits.sessions, note(limits.sessions == 0, "from the memory"))?;
    let per_address = limits.sessions_per_address;
    writeln!(out, "sessions_per_address = {per_address}{}", note(per_address == 0, "a quarter of sessions"))?;
    let rate = limits.new_sessions_per_second;
    writeln!(out, "new_sessions_per_second = {rate}{}", note(rate == 0, "no limit"))?;
    writeln!(out, "fragment_memory = {}", limits.fragment_memory)
}

pub(super) fn optional(out: &mut String, key: &str, value: Option<String>, default: &str) -> std::fmt::Result {
    match value {
        Some(value) => writeln!(out, "{key} = {value}"),
        None => writeln!(out, "# {key}: {default}"),
    }
}

pub(super) fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, candidate)| *candidate == value).map_or("", |(word, _)| *word)
}

pub(super) fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
