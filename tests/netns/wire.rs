//! Single packets, made by hand with scapy and looked at on the wire (`translation.py`).

use super::python;
use crate::lab::{Egret, JUMBO, Lab, Options, Result};

/// Keeps the router's kernel out of it: the script alone answers, as client and as remote.
const SILENT_ROUTER: &str = "table ip silent {\n chain early {\n type filter hook prerouting priority -500\n iifname \"nat\" drop\n }\n}\n";

/// Runs a script in the router's place on the NAT host's link; gives what it prints.
pub fn play_router(lab: &Lab, egret: &Egret, script: &str, argument: &str) -> Result<String> {
    lab.router().nft(SILENT_ROUTER)?;
    let mac = lab.nat().run("cat /sys/class/net/ens5/address")?;
    let status = egret.command_line("status --output json");
    let script = python(script);
    let mut arguments: Vec<&str> = script.split(' ').collect();
    arguments.extend(["nat", mac.trim(), &status]);
    arguments.extend(argument.split_whitespace());
    Ok(lab.router().run_for(std::time::Duration::from_secs(120), &arguments, "")?.success()?.stdout)
}

fn holds(check: &str, more: &str, mtu: u32) -> Result {
    let lab = Lab::new(Options { mtu, offloads: false, ..Options::default() })?;
    let egret = Egret::start(lab.nat(), &lab.config(more))?;
    play_router(&lab, &egret, "translation.py", check)?;
    Ok(())
}

#[test]
fn icmp_error_from_outside_reaches_the_client() -> Result {
    holds("icmp_error_from_outside_reaches_the_client", "", 1500)
}

#[test]
fn icmp_error_from_inside_reaches_the_remote() -> Result {
    holds("icmp_error_from_inside_reaches_the_remote", "", 1500)
}

#[test]
fn udp_checksum_zero_stays_zero_and_a_wrong_one_wrong() -> Result {
    holds("udp_checksum_zero_stays_zero_and_a_wrong_one_wrong", "", 1500)
}

#[test]
fn used_up_ttl_is_reported_to_the_sender() -> Result {
    holds("used_up_ttl_is_reported_to_the_sender", "", 1500)
}

#[test]
fn tcp_from_inside_without_a_session_is_reset() -> Result {
    holds("tcp_from_inside_without_a_session_is_reset", "", 1500)
}

#[test]
fn reset_counts_only_within_the_window() -> Result {
    holds("reset_counts_only_within_the_window", "", 1500)
}

#[test]
fn datagram_too_big_for_the_way_out_is_cut_or_refused() -> Result {
    holds("datagram_too_big_for_the_way_out", "", JUMBO)
}

#[test]
fn fragments_of_two_hosts_do_not_collide() -> Result {
    holds("fragments_of_two_hosts_do_not_collide", "", 1500)
}

#[test]
fn fragments_pass_in_any_order_both_ways() -> Result {
    holds("fragments_pass_in_any_order", "", 1500)
}
