//! The command line: arguments in, text and an exit code out.
//!
//! Owns how things look on a terminal; what they mean is the daemon's, the configuration's and the control
//! socket's. Output goes to standard output, and a reader who goes away early (`| head`) is no error; the log
//! and errors go to standard error.

mod doctor;
mod drain;
mod fleet;
mod generate;
mod handover;
mod log_level;
mod peer_key;
mod sessions;
mod status;
mod text;
mod top;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::admin::{VERSION, client};
use crate::config::{self, DEFAULT_PATH, DEFAULT_SOCKET};
use crate::daemon::{self, LogFormat};

/// A user-space NAT instance for a VPC.
#[derive(Debug, Parser)]
#[command(version = VERSION, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    ///
    /// SIGTERM and SIGINT stop it, SIGHUP reloads the configuration. EGRET_LOG sets what is logged (such as
    /// "debug"). Exit code: 0 when stopped by a signal, 1 when it could not start or failed. With --dry-run: 0, or 1 if
    /// something keeps the desired from being had.
    Run(Run),
    /// Check a configuration file and print what holds with its defaults.
    ///
    /// Exit code: 0 if it is valid, 1 if not.
    CheckConfig {
        /// The file.
        #[arg(default_value = DEFAULT_PATH)]
        file: PathBuf,
        /// Print nothing but what is wrong or doubtful.
        #[arg(long)]
        quiet: bool,
    },
    /// Show how the daemon is.
    ///
    /// Exit code: 0 if it is ready, 1 if it runs and is not ready, 2 if it gives no answer.
    Status(Ask),
    /// List sessions, the newest first.
    ///
    /// Exit code: 0, or 2 if the daemon gives no answer.
    Sessions(sessions::Arguments),
    /// Take a target of a listener out of service: it gets no new connections, and those that it has may go on for
    /// the deregistration delay.
    ///
    /// Exit code: 0, 1 if there is no such listener or target, or 2 if the daemon gives no answer.
    Drain(drain::Arguments),
    /// Watch rates, sessions, talkers and targets in the terminal.
    ///
    /// Exit code: 0, or 2 if the daemon gives no answer.
    Top(top::Arguments),
    /// Change what the running daemon logs, until it ends, or print what that is.
    ///
    /// Exit code: 0, 1 if the filter makes no sense, or 2 if the daemon gives no answer.
    LogLevel(log_level::Arguments),
    /// Hand a gateway over to a peer, which goes on with it while this instance still forwards.
    ///
    /// Exit code: 0 when the peer has it, 1 if it does not take it, or 2 if the daemon gives no answer.
    Handover(handover::Arguments),
    /// Look for what stands in the way of a working gateway, and say what to do about it. Changes nothing; the daemon
    /// may run or not.
    ///
    /// Exit code: 0 if nothing is wrong, 1 with warnings, 2 with errors.
    Doctor(doctor::Arguments),
    /// Make the key that the peers of a fleet share. Each of them gets a copy.
    ///
    /// Exit code: 0, or 1 if the file is there already or cannot be written.
    PeerKey(peer_key::Arguments),
    /// Write manual pages and shell completions into a directory, for packages.
    #[command(hide = true)]
    Generate(generate::Arguments),
}

#[derive(Debug, Args)]
struct Run {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// The control socket, in place of the file's admin.socket.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// Print what would be changed at EC2, and change nothing, there or here.
    #[arg(long = "dry-run")]
    foresee: bool,
    /// How to print that.
    #[arg(long, value_enum, default_value_t = Format::Text, requires = "foresee")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What all commands have that ask the daemon.
#[derive(Debug, Args)]
struct Ask {
    /// The daemon's control socket.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// What is to be shown to the user, who then gets the exit code 1; or 2 if [`is_unreachable`].
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(run) if run.foresee => foresee(run),
            Command::Run(run) => Ok(execute_run(run)),
            Command::CheckConfig { file, quiet } => execute_check(&file, quiet),
            Command::Status(ask) => status::execute(&ask),
            Command::Sessions(arguments) => sessions::execute(arguments),
            Command::Drain(arguments) => drain::execute(&arguments),
            Command::Top(arguments) => top::execute(&arguments),
            Command::LogLevel(arguments) => log_level::execute(arguments),
            Command::Handover(arguments) => handover::execute(arguments),
            Command::Doctor(arguments) => doctor::execute(arguments),
            Command::PeerKey(arguments) => peer_key::execute(&arguments),
            Command::Generate(arguments) => generate::execute(&arguments),
        }
    }
}

/// Whether an error means that there is no daemon to ask.
#[must_use]
pub fn is_unreachable(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|error| !matches!(error, client::Error::Refused(_)))
}

fn execute_run(run: Run) -> ExitCode {
    init_logging(run.log_format);
    let options = daemon::Options { config: run.config, socket: run.socket };
    let Err(error) = daemon::run(&options) else { return ExitCode::SUCCESS };
    // To the log, where an operator looks, each problem on its own.
    for line in daemon::with_causes(&error).lines() {
        tracing::error!(error = line, "egret does not run");
    }
    ExitCode::FAILURE
}

fn init_logging(format: Format) {
    daemon::init_logging(match format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    });
}

fn foresee(run: Run) -> anyhow::Result<ExitCode> {
    init_logging(run.log_format);
    let foreseen = daemon::foresee(&daemon::Options { config: run.config, socket: run.socket })?;
    if run.output == Format::Json {
        print_json(&foreseen)?;
    } else {
        print(|out| match &foreseen.changes[..] {
            _ if !foreseen.is_on => writeln!(out, "aws is not asked (aws.enabled)"),
            [] => writeln!(out, "nothing to change"),
            changes => changes.iter().try_for_each(|change| writeln!(out, "would {change}")),
        })?;
        for problem in &foreseen.problems {
            eprintln!("{problem}");
        }
    }
    Ok(if foreseen.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn execute_check(file: &Path, quiet: bool) -> anyhow::Result<ExitCode> {
    match config::load(file) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            if quiet {
                return Ok(ExitCode::SUCCESS);
            }
            print(|out| {
                match &config.file {
                    Some(file) => writeln!(out, "# {}: valid; with its defaults it says:", file.display())?,
                    None => writeln!(out, "# no file at {DEFAULT_PATH}; the defaults are:")?,
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

/// Writes to standard output. A reader who has gone is no error.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output cannot be written")
        }
        _ => Ok(()),
    }
}

/// A value as JSON for people: indented, and with a line's end.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    print(|out| writeln!(out, "{text}"))
}
