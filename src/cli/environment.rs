//! The option `--env-file`: the environment in which the service runs, for commands that are run by hand.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use super::assignments::Assignments;

#[derive(Debug, Args)]
pub(super) struct Environment {
    /// A file with variables of the service, which count beside those of this command, such as /etc/egret/egret.env.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

impl Environment {
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.env_file.as_ref()
    }

    /// Those of the file stand above those of this process.
    pub(super) fn variables(&self) -> anyhow::Result<Vec<(OsString, OsString)>> {
        let mut variables: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        if let Some(file) = &self.env_file {
            let read = Assignments::read(file);
            let Assignments { all, others } =
                read.with_context(|| format!("{} cannot be read", file.display()))?;
            if let Some(line) = others.first() {
                bail!("{}:{line}: not of the form NAME=value", file.display());
            }
            for assignment in all {
                if assignment.is_of_shell {
                    bail!(
                        "{}:{}: systemd reads this otherwise than a shell; leave out export, what follows the value, \
                         and quotes within it",
                        file.display(),
                        assignment.line
                    );
                }
                let name = OsString::from(assignment.key);
                variables.retain(|(other, _)| *other != name);
                variables.push((name, assignment.value.into()));
            }
        }
        Ok(variables)
    }
}
