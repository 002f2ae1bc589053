//! `egret generate`: what packages hold beside the program, made from the command line's own description.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The directory, which has to be there.
    directory: PathBuf,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut command = Cli::command();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, "egret", &arguments.directory)?;
    }
    // `egret help` needs no page for each of its arguments.
    clap_mangen::generate_to(command.disable_help_subcommand(true), &arguments.directory)?;
    Ok(ExitCode::SUCCESS)
}
