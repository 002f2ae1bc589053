//! `egret doctor`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::environment::Environment;
use super::{Format, print, print_json};
use crate::config::DEFAULT_PATH;
use crate::daemon::doctor::{Examination, Finding, Remedy, Report, Severity, examine};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(flatten)]
    environment: Environment,
    /// The daemon's control socket, in place of the file's admin.socket.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Where a connection out is tried to; can be given several times.
    #[arg(long, value_name = "HOST:PORT", default_value = "1.1.1.1:443")]
    connect: Vec<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(super) fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { config, environment, socket, connect, output } = arguments;
    let variables = environment.variables()?;
    let env_file = environment.file().cloned();
    let report = examine(&Examination { config, variables, env_file, socket, connect })?;
    match output {
        Format::Text => print(|out| write(out, &report))?,
        Format::Json => print_json(&report)?,
    }
    Ok(match report.worst() {
        Severity::Ok | Severity::Note => ExitCode::SUCCESS,
        Severity::Warning => ExitCode::FAILURE,
        Severity::Error => ExitCode::from(2),
    })
}

/// A line for each check, of at most 80 characters, and what to do below those that are not well.
fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        write_finding(out, finding)?;
    }
    let count =
        |severity: Severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let [errors, warnings, notes, well] =
        [Severity::Error, Severity::Warning, Severity::Note, Severity::Ok].map(count);
    writeln!(out, "\nerrors: {errors}, warnings: {warnings}, notes: {notes}, ok: {well}")
}

fn write_finding(out: &mut dyn Write, finding: &Finding) -> io::Result<()> {
    let Finding { severity, what, detail, remedy } = finding;
    let head = format!("{:<9}{what:<19}", severity.label());
    let mut lines = wrapped(detail, WIDTH - head.chars().count()).into_iter();
    writeln!(out, "{head}{}", lines.next().unwrap_or_default())?;
    for line in lines {
        writeln!(out, "{:<DETAIL$}{line}", "")?;
    }
    match remedy {
        None => Ok(()),
        Some(Remedy::Do(words)) => {
            for (place, line) in wrapped(words, WIDTH - REMEDY - 3).iter().enumerate() {
                writeln!(out, "{:<REMEDY$}{} {line}", "", if place == 0 { "->" } else { "  " })?;
            }
            Ok(())
        }
        Some(Remedy::Run(command)) => {
            // So that it can be copied to a shell as it is.
            let lines = wrapped(command, WIDTH - REMEDY - 4);
            writeln!(out, "{:<REMEDY$}$ {}", "", lines.join(&format!(" \\\n{:<REMEDY$}  ", "")))
        }
    }
}

/// Breaks a text at spaces; a word that is longer than a line has one of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

const WIDTH: usize = 80;
/// Where details begin, unless what was looked at has a longer name.
const DETAIL: usize = 28;
/// Where remedies begin.
const REMEDY: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(severity: Severity, detail: &str, remedy: Option<Remedy>) -> String {
        let mut out = Vec::new();
        let finding = Finding { severity, what: "routes".to_owned(), detail: detail.to_owned(), remedy };
        write_finding(&mut out, &finding).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_well_takes_a_line() {
        assert_eq!(shown(Severity::Ok, "as they are", None), "ok       routes             as they are\n");
    }

    #[test]
    fn a_command_that_is_broken_is_still_a_command() {
        let command =
            "aws ec2 create-route --route-table-id rtb-0123456789abcdef0 --destination-cidr-block 0.0.0.0/0";
        let text = shown(Severity::Warning, &"word ".repeat(20), Some(Remedy::Run(command.to_owned())));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let (_, shell) = text.split_once("$ ").unwrap();
        let joined = shell.replace("\\\n", "");
        assert_eq!(joined.split_whitespace().collect::<Vec<_>>().join(" "), command);
        assert_eq!(shell.matches('\\').count() + 1, shell.lines().count());
    }
}
