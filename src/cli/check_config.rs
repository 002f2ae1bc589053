//! `egret check-config`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;

use super::environment::Environment;
use super::print;
use crate::config::{self, DEFAULT_PATH, Settings};
use crate::daemon;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file.
    #[arg(default_value = DEFAULT_PATH)]
    file: PathBuf,
    #[command(flatten)]
    environment: Environment,
    /// Count the tags of this instance as well, as the metadata service tells them.
    #[arg(long)]
    tags: bool,
    /// Print nothing but what is wrong or doubtful.
    #[arg(long)]
    quiet: bool,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut settings = Settings::from_variables(arguments.environment.variables()?);
    if arguments.tags {
        let tags = daemon::instance_tags();
        let failed = |error: daemon::Unknown| anyhow!("tags are not known: {}", daemon::with_causes(&*error));
        settings = settings.with_tags(&tags.map_err(failed)?);
    }
    match config::load(&arguments.file, &settings) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            if arguments.quiet {
                return Ok(ExitCode::SUCCESS);
            }
            print(|out| {
                match &config.file {
                    Some(file) => writeln!(out, "# {}: valid; with its defaults it says:", file.display())?,
                    None => writeln!(out, "# no file at {DEFAULT_PATH}; the defaults are:")?,
                }
                for set in &config.set {
                    writeln!(out, "# {}: by {}", set.key, set.origin)?;
                }
                out.write_all(config::render(&config).as_bytes())
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            eprintln!("{problems}");
            Ok(ExitCode::FAILURE)
        }
    }
}
