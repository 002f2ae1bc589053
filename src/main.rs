//! The binary: parses the command line, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;
use egret::cli::{self, Cli};

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("egret: {error:#}");
            ExitCode::from(if cli::is_unreachable(&error) { 2 } else { 1 })
        }
    }
}
