//! `egret log-level`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::admin::client::Client;
use crate::config::DEFAULT_SOCKET;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What is to be logged, as in EGRET_LOG: `debug`, or `info,egret::sessions=debug`. Left out: what is logged is
    /// printed.
    filter: Option<String>,
    /// The daemon's control socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

pub(super) fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let filter = Client::connect(&arguments.socket)?.log_level(arguments.filter)?;
    print(|out| writeln!(out, "{filter}"))?;
    Ok(ExitCode::SUCCESS)
}
