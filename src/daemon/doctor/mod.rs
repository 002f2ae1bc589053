//! What stands in the way of a working gateway, and what to do about each thing: `egret doctor`.
//!
//! Owns the checks, of the host, the configuration, the metadata service, EC2 and the way out. It works beside a
//! running daemon and without one, and changes nothing: what would write at EC2 is only tried (`DryRun`), BPF programs
//! are loaded and thrown away. Every question is bounded in time, and those that wait for a network are asked together.

#[cfg(feature = "aws")]
mod cloud;
mod host;
#[cfg(feature = "aws")]
mod vpc;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::proc::Proc;
use super::sources::Sources;
use super::{Error, with_causes};
use crate::admin::Status;
use crate::admin::client::{self, Client};
#[cfg(feature = "aws")]
use crate::config::HostFacts;
use crate::config::{self, Config, Origin, Problem};

/// What to look at.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The configuration file.
    pub config: PathBuf,
    /// The environment in which the daemon runs.
    pub variables: Vec<(OsString, OsString)>,
    /// The file that some of it was read from.
    pub env_file: Option<PathBuf>,
    /// The daemon's control socket, in place of the file's.
    pub socket: Option<PathBuf>,
    /// Where a connection out is tried to, `host:port` each.
    pub connect: Vec<String>,
}

/// What was found, in the order of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
}

/// One check's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What was looked at.
    pub what: String,
    pub detail: String,
    /// The exact thing to do; nothing is to be done where everything is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
}

/// How bad it is; the greater, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Ok,
    /// Worth knowing, and Egret copes with it.
    Note,
    /// Something does not work, and the rest does.
    Warning,
    /// Packets do not flow, or will not for long.
    Error,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Remedy {
    /// A command, as it is.
    Run(String),
    /// In words.
    Do(String),
}

impl Severity {
    /// In snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Report {
    /// The worst of what was found.
    #[must_use]
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }
}

impl Finding {
    fn ok(what: &str, detail: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, what: what.to_owned(), detail: detail.into(), remedy: None }
    }

    fn new(severity: Severity, what: &str, detail: impl Into<String>, remedy: Remedy) -> Self {
        Self { severity, what: what.to_owned(), detail: detail.into(), remedy: Some(remedy) }
    }

    fn error(what: &str, detail: impl Into<String>, remedy: Remedy) -> Self {
        Self::new(Severity::Error, what, detail, remedy)
    }
}

impl Remedy {
    fn run(command: impl Into<String>) -> Self {
        Self::Run(command.into())
    }

    fn words(words: impl Into<String>) -> Self {
        Self::Do(words.into())
    }
}

/// Looks at everything. Takes some 20 s at most.
///
/// # Errors
/// `/proc`, the interfaces or the routes cannot be read, or there is no runtime to be had.
pub fn examine(examination: &Examination) -> Result<Report, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(look(examination));
    // A name that is still looked up is not waited for.
    runtime.shutdown_background();
    report
}

async fn look(examination: &Examination) -> Result<Report, Error> {
    let mut findings = Vec::new();
    let proc = Proc::at(Path::new("/proc"));
    let config = configuration(examination, &proc, &mut findings).await?;
    let socket = examination.socket.as_deref().unwrap_or(&config.admin.socket);
    let status = daemon(socket, &mut findings);
    let facts = super::facts(&proc)?;
    let sides = host::Sides::find(&config, &facts);
    let connections = connections(&examination.connect);
    #[cfg(feature = "aws")]
    let (cloud, connections) = tokio::join!(cloud::examine(&config, &sides, status.is_some()), connections);
    #[cfg(feature = "aws")]
    let facts = HostFacts { cloud: cloud.facts, ..facts };
    #[cfg(not(feature = "aws"))]
    let connections = connections.await;
    let here =
        host::Here { proc: &proc, config: &config, facts: &facts, status: status.as_ref(), sides: &sides };
    findings.extend(here.examine()?);
    #[cfg(feature = "aws")]
    findings.extend(cloud.findings);
    findings.extend(connections);
    Ok(Report { findings })
}

/// What the daemon would run with, or the defaults in place of what is not valid.
async fn configuration(
    examination: &Examination,
    proc: &Proc,
    findings: &mut Vec<Finding>,
) -> Result<Config, Error> {
    const WHAT: &str = "configuration";
    let path = &examination.config;
    let mend = |problem: &Problem| {
        let env_file = examination.env_file.iter().map(|file| format!(" --env-file {}", file.display()));
        let tags = if matches!(problem.origin, Origin::Tag(_)) { " --tags" } else { "" };
        Remedy::run(format!("egret check-config{}{tags} {}", env_file.collect::<String>(), path.display()))
    };
    match Sources::with_variables(path, examination.variables.clone()).load(proc).await {
        Ok(config) => {
            findings.push(match &config.file {
                Some(file) => Finding::ok(WHAT, format!("{} is valid", file.display())),
                None => Finding::ok(WHAT, format!("no file at {}, the defaults hold", path.display())),
            });
            let doubtful = config.warnings.iter();
            findings.extend(
                doubtful
                    .map(|problem| Finding::new(Severity::Warning, WHAT, problem.to_string(), mend(problem))),
            );
            Ok(config)
        }
        Err(problems) => {
            let each = (&problems).into_iter();
            findings.extend(each.map(|problem| Finding::error(WHAT, problem.to_string(), mend(problem))));
            Ok(config::parse(path, b"")?)
        }
    }
}

/// Asks the daemon, if it runs.
fn daemon(socket: &Path, findings: &mut Vec<Finding>) -> Option<Status> {
    const WHAT: &str = "daemon";
    match Client::connect(socket).and_then(|mut client| client.status()) {
        Ok(status) => {
            findings.push(if status.ready {
                Finding::ok(WHAT, format!("runs and is ready, datapath {}", status.datapath))
            } else {
                let reasons = status.not_ready.join("; ");
                let detail = format!("runs and is not ready: {reasons}");
                Finding::error(WHAT, detail, Remedy::run("egret status"))
            });
            Some(status)
        }
        Err(client::Error::NotRunning { .. }) => {
            let remedy = Remedy::run("systemctl enable --now egret");
            findings.push(Finding::new(Severity::Note, WHAT, "does not run", remedy));
            None
        }
        Err(error) => {
            let remedy = Remedy::words("run this as root, with the version of egret that runs");
            findings.push(Finding::new(Severity::Warning, WHAT, with_causes(&error), remedy));
            None
        }
    }
}

/// Tries real connections out, all at once.
async fn connections(to: &[String]) -> Vec<Finding> {
    const WHAT: &str = "connection";
    let mut tries = JoinSet::new();
    for (place, to) in to.iter().cloned().enumerate() {
        tries.spawn(async move {
            let answer = timeout(CONNECT_TIME, TcpStream::connect(&to)).await;
            let finding = match answer {
                Ok(Ok(_)) => Finding::ok(WHAT, format!("{to} answers")),
                Ok(Err(error)) => Finding::error(WHAT, format!("{to}: {error}"), way_out()),
                Err(_) => {
                    let detail = format!("{to} does not answer within {} s", CONNECT_TIME.as_secs());
                    Finding::error(WHAT, detail, way_out())
                }
            };
            (place, finding)
        });
    }
    let mut found = tries.join_all().await;
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, finding)| finding).collect()
}

fn way_out() -> Remedy {
    Remedy::words(
        "see to the default route (ip route), a public address, and what a security group or network ACL lets out; \
         another address can be tried with --connect",
    )
}

/// For a connection, name lookup and all.
const CONNECT_TIME: Duration = Duration::from_secs(3);
