//! `egret peer-key`.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::print;
use crate::config::PeerKey;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A new file for it, which only its owner can read, and the daemon's group egret if there is one. Default: standard
    /// output.
    file: Option<PathBuf>,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let key = PeerKey::generate()?;
    match &arguments.file {
        Some(file) => {
            key.write_new(file)?;
            share(file)?;
        }
        None => print(|out| out.write_all(key.to_line().as_bytes()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Root makes the key, and the service reads it.
fn share(file: &Path) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let Ok(Some(group)) = nix::unistd::Group::from_name("egret") else { return Ok(()) };
    let shared = chown(file, None, Some(group.gid.as_raw()))
        .and_then(|()| std::fs::set_permissions(file, Permissions::from_mode(0o640)));
    shared.with_context(|| format!("{} cannot be given to the group egret", file.display()))
}
