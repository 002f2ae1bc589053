//! `egret import`: the configuration that means the same as that of another NAT instance.
//!
//! Owns what their keys mean for Egret. It reads files and executes nothing; what it writes is a valid configuration,
//! since each key is checked before it is written, and what has no equivalent is said there and on standard error.

mod alternat;
mod fck_nat;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::assignments::{Assignment, Assignments};
use super::{Format, print, print_json};
use crate::config;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Whose files they are. Default: as their names or their keys tell.
    #[arg(long, value_enum)]
    from: Option<Project>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// The files, such as /etc/fck-nat.conf or /etc/alternat.conf. What a later one says stands above the earlier ones.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Project {
    FckNat,
    Alternat,
}

/// What becomes of a configuration.
#[derive(Debug, Default, Serialize)]
struct Imported {
    toml: String,
    notes: Vec<Note>,
}

/// What has no equivalent, or one that differs.
#[derive(Debug, Serialize)]
struct Note {
    /// The key with its value, or what else it is about.
    about: String,
    /// Sentences, one a line.
    says: String,
}

/// A configuration in the making.
#[derive(Debug, Default)]
struct Draft {
    /// Section, key, and the value as TOML.
    keys: Vec<(&'static str, &'static str, toml::Value)>,
    notes: Vec<Note>,
}

pub(super) fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut draft = Draft::default();
    let mut all: Vec<Assignment> = Vec::new();
    for file in &arguments.files {
        let read = Assignments::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        for line in read.others {
            let about = format!("{:?}, line {line}", file.display().to_string());
            draft.note(&about, "Not of the form KEY=value, and so not looked at.");
        }
        for assignment in read.all {
            all.retain(|earlier| earlier.key != assignment.key);
            all.push(assignment);
        }
    }
    let Some(project) = arguments.from.or_else(|| recognise(&arguments.files, &all)) else {
        bail!("neither the names nor the keys tell whose files they are; say it with --from");
    };
    for Assignment { key, value, is_expanded, .. } in all {
        if is_expanded {
            draft.note(&shown(&key, &value), "A shell would expand this. Write down what it comes to.");
        } else if !value.trim().is_empty() {
            match project {
                Project::FckNat => fck_nat::import(&mut draft, &key, value.trim()),
                Project::Alternat => alternat::import(&mut draft, &key, value.trim()),
            }
        }
    }
    draft.notes.extend(match project {
        Project::FckNat => fck_nat::notes(),
        Project::Alternat => alternat::notes(),
    });
    let imported = draft.finish(&arguments.files);
    if arguments.output == Format::Json {
        print_json(&imported)?;
    } else {
        print(|out| out.write_all(imported.toml.as_bytes()))?;
        for Note { about, says } in &imported.notes {
            eprintln!("{about}: {}", says.replace('\n', "\n  "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// By the name of a file, or else by a key.
fn recognise(files: &[PathBuf], all: &[Assignment]) -> Option<Project> {
    let is_named = |word: &str| {
        let name = |file: &PathBuf| file.file_name().map(|name| name.to_string_lossy().into_owned());
        files.iter().filter_map(name).any(|name| name.contains(word))
    };
    let has = |keys: &[&str]| all.iter().any(|assignment| keys.contains(&assignment.key.as_str()));
    let is_fck_nat = (is_named("fck-nat"), has(fck_nat::KEYS));
    let is_alternat = (is_named("alternat"), has(alternat::KEYS));
    match (is_fck_nat, is_alternat) {
        ((true, _), (false, _)) | ((false, true), (false, false)) => Some(Project::FckNat),
        ((false, _), (true, _)) | ((false, false), (false, true)) => Some(Project::Alternat),
        _ => None,
    }
}

impl Draft {
    fn note(&mut self, about: &str, says: &str) {
        self.notes.push(Note { about: about.to_owned(), says: says.to_owned() });
    }

    /// Sets a key for `about`, unless the value makes no sense to Egret.
    fn set(&mut self, about: &str, section: &'static str, key: &'static str, value: impl Into<toml::Value>) {
        let value = value.into();
        let alone = format!("[{section}]\n{key} = {value}\n");
        match config::parse(Path::new(section), alone.as_bytes()) {
            Ok(_) => self.keys.push((section, key, value)),
            Err(problems) => {
                let problems: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
                self.note(about, &format!("{section}.{key} cannot be this: {}.", problems.join("; ")));
            }
        }
    }

    fn finish(mut self, files: &[PathBuf]) -> Imported {
        self.keys.sort_by_key(|(section, _, _)| *section);
        let mut toml = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut toml, files);
        Imported { toml, notes: self.notes }
    }

    fn write(&self, out: &mut String, files: &[PathBuf]) -> std::fmt::Result {
        let names: Vec<String> = files.iter().map(|file| format!("{:?}", file.display().to_string())).collect();
        writeln!(out, "# From {}.", names.join(", "))?;
        for Note { about, says } in &self.notes {
            writeln!(out, "#\n# {about}:")?;
            for line in says.lines() {
                writeln!(out, "#   {line}")?;
            }
        }
        let mut last = None;
        for (section, key, value) in &self.keys {
            if last.replace(section) != Some(section) {
                writeln!(out, "\n[{section}]")?;
            }
            writeln!(out, "{key} = {value}")?;
        }
        Ok(())
    }
}

/// A key with its value, fit for a terminal and a comment.
fn shown(key: &str, value: &str) -> String {
    let short: String = value.chars().take(SHOWN).collect();
    let rest = if short.len() < value.len() { "..." } else { "" };
    format!("{key} = {short:?}{rest}")
}

/// How many characters of a value are repeated.
const SHOWN: usize = 60;
