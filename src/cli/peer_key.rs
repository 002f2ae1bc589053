//! `egret peer-key`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::config::PeerKey;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A new file for it, which only its owner can read. Default: standard output.
    file: Option<PathBuf>,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let key = PeerKey::generate()?;
    match &arguments.file {
        Some(file) => key.write_new(file)?,
        None => print(|out| out.write_all(key.to_line().as_bytes()))?,
    }
    Ok(ExitCode::SUCCESS)
}
