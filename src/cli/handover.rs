//! `egret handover`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tokio::time::Instant;

use super::print;
use crate::admin::GatewayReport;
use crate::admin::client::Client;
use crate::config::DEFAULT_SOCKET;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The peer that is to have it, by the name of its home gateway.
    #[arg(long, required_unless_present = "dead")]
    to: Option<String>,
    /// The gateway; this instance's home gateway if it is left out.
    #[arg(long)]
    gateway: Option<String>,
    /// A peer that is dead for certain, while too few are left to say so: what it has is taken over.
    #[arg(long, value_name = "PEER", conflicts_with_all = ["to", "gateway"])]
    dead: Option<String>,
    /// The daemon's control socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

pub(super) fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { to, gateway, dead, socket } = arguments;
    let mut daemon = Client::connect(&socket)?;
    match (to, dead) {
        (Some(to), _) => hand_over(&mut daemon, gateway, &to),
        (None, Some(peer)) => inherit(&mut daemon, &peer),
        (None, None) => bail!("neither --to nor --dead is given"),
    }
}

fn hand_over(daemon: &mut Client, gateway: Option<String>, to: &str) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let name = daemon.hand_over(gateway, to.to_owned())?;
    while begin.elapsed() < PATIENCE {
        let Some(gateway) = gateways(daemon)?.into_iter().find(|known| known.gateway == name) else {
            bail!("the daemon does not know the gateway {name} any more");
        };
        if gateway.host.as_deref() == Some(to) && gateway.role == "standby" {
            let seconds = begin.elapsed().as_secs_f64();
            print(|out| writeln!(out, "{name} is at {to} after {seconds:.1} s"))?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(why) = gateway.not_handed_over {
            bail!("{name} stays where it is: {to}: {why}");
        }
        std::thread::sleep(PAUSE);
    }
    bail!("{name} is not at {to} after {} s; see egret status", PATIENCE.as_secs())
}

/// Waits until all that a dead peer had has come here, or to another heir.
fn inherit(daemon: &mut Client, peer: &str) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let mut waiting = daemon.declare_dead(peer.to_owned())?;
    while begin.elapsed() < PATIENCE {
        for gateway in gateways(daemon)? {
            let GatewayReport { gateway: name, host: Some(host), role, .. } = gateway else { continue };
            if host != peer && role != "taking" && waiting.contains(&name) {
                waiting.retain(|awaited| *awaited != name);
                let seconds = begin.elapsed().as_secs_f64();
                print(|out| writeln!(out, "{name} is at {host} after {seconds:.1} s"))?;
            }
        }
        if waiting.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(PAUSE);
    }
    bail!("{} not taken over after {} s; see egret status", waiting.join(", "), PATIENCE.as_secs())
}

fn gateways(daemon: &mut Client) -> anyhow::Result<Vec<GatewayReport>> {
    Ok(daemon.status()?.fleet.into_iter().flat_map(|fleet| fleet.gateways).collect())
}

/// Longer than a hand-over may take.
const PATIENCE: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_millis(100);
