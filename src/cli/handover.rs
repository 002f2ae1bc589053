//! `egret handover`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tokio::time::Instant;

use super::print;
use crate::admin::client::Client;
use crate::config::DEFAULT_SOCKET;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The peer that is to have it, by the name of its home gateway.
    #[arg(long)]
    to: String,
    /// The gateway; this instance's home gateway if it is left out.
    #[arg(long)]
    gateway: Option<String>,
    /// The daemon's control socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

pub(super) fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { to, gateway, socket } = arguments;
    let begin = Instant::now();
    let mut daemon = Client::connect(&socket)?;
    let name = daemon.hand_over(gateway, to.clone())?;
    while begin.elapsed() < PATIENCE {
        let fleet = daemon.status()?.fleet;
        let Some(gateway) =
            fleet.into_iter().flat_map(|fleet| fleet.gateways).find(|known| known.gateway == name)
        else {
            bail!("the daemon does not know the gateway {name} any more");
        };
        if gateway.host.as_ref() == Some(&to) && gateway.role == "standby" {
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

/// Longer than a hand-over may take.
const PATIENCE: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_millis(100);
