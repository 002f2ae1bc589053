//! `egret check-config`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, ValueEnum};

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
    /// Count the tags of this instance as well, as the metadata service tells them: they must be known (`needed`), or
    /// they count if the service would find them (`found`).
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true,
          default_missing_value = "needed")]
    tags: Option<Tags>,
    /// Print nothing but what is wrong or doubtful.
    #[arg(long)]
    quiet: bool,
}

/// When tags count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tags {
    Needed,
    Found,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let variables = arguments.environment.variables()?;
    let loaded = match arguments.tags {
        None => config::load(&arguments.file, &Settings::from_variables(variables)),
        Some(tags) => daemon::would_load(&arguments.file, variables, tags == Tags::Needed)
            .map_err(|error| anyhow!("tags are not known: {}", daemon::with_causes(&*error)))?,
    };
    match loaded {
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
