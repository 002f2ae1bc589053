//! `egret drain`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::admin::client::Client;
use crate::config::DEFAULT_SOCKET;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The listener's name.
    listener: String,
    /// The target's address, such as 10.0.1.10:5000.
    target: SocketAddr,
    /// Back into service.
    #[arg(long)]
    undo: bool,
    /// The daemon's control socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { listener, target, undo, socket } = arguments;
    Client::connect(socket)?.drain(listener, *target, *undo)?;
    let state = if *undo { "is in service again once its check has passed" } else { "gets no new connections" };
    print(|out| writeln!(out, "{target} of {listener} {state}"))?;
    Ok(ExitCode::SUCCESS)
}
