//! Holds the import rule: a module imports only from lower ranks, and ranks 0 and 1 do no input or output.
//!
//! Works on the text of `src/**/*.rs`: comments, literals and `#[cfg(test)]` modules are taken away, and every
//! path that begins with `crate`, `super`, `self`, the name of a crate, or `std` is judged. It does not expand
//! macros, and so refuses `include!` and `#[path]`, which would hide files from it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Each module of the tree, whether it is *sans-IO*, and what it may import.
const TABLE: &[(&str, bool, &[&str])] = &[
    ("wire", true, &[]),
    ("time", true, &[]),
    ("nat", true, &["wire", "time"]),
    ("balance", true, &["time"]),
    ("failover", true, &["time"]),
    ("talkers", true, &["time"]),
    ("datapath", false, &["nat", "talkers", "wire", "time"]),
    ("forward", false, &["balance", "time"]),
    ("aws", false, &["failover"]),
    ("peer", false, &["failover", "nat"]),
    ("config", false, &["nat", "balance", "failover", "datapath", "forward", "aws", "peer", "wire", "time"]),
    ("metrics", false, &["nat", "balance", "failover", "datapath", "forward", "aws", "peer", "wire", "time"]),
    (
        "admin",
        false,
        &[
            "nat", "balance", "failover", "talkers", "datapath", "forward", "aws", "peer", "wire", "time",
            "metrics",
        ],
    ),
    (
        "daemon",
        false,
        &[
            "nat", "balance", "failover", "talkers", "datapath", "forward", "aws", "peer", "wire", "time",
            "config", "metrics", "admin",
        ],
    ),
    ("cli", false, &["config", "daemon", "admin"]),
    ("main", false, &["cli", "config", "daemon", "admin"]),
    // Declares the modules, and names none.
    ("lib", false, &[]),
];

/// What a sans-IO module may name of the crates that the package depends on.
const SANS_IO_CRATES: &[&str] = &["datasketches", "ipnet", "pnet_packet", "serde", "siphasher", "thiserror"];

/// Modules of std, and items of modules that are otherwise free, that do input or output, read a clock, or
/// differ from run to run.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::os",
    "std::process",
    "std::thread",
    "std::sync::mpsc",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::hash::RandomState",
    "std::collections::hash_map::RandomState",
    "std::hash::DefaultHasher",
    "std::collections::hash_map::DefaultHasher",
];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &["datapath::sys", "datapath::xdp"];

/// Where a crate may be named, if not everywhere.
const CONFINED: &[(&str, &[&str])] = &[
    ("anyhow", &["cli", "main"]),
    ("clap", &["cli", "main"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("sd_notify", &["daemon"]),
    ("aws_config", &["aws"]),
    ("aws_sdk_autoscaling", &["aws"]),
    ("aws_sdk_ec2", &["aws"]),
    ("aya", &["datapath"]),
    ("tokio_rustls", &["forward"]),
    ("webpki", &["forward"]),
    ("hickory_resolver", &["forward"]),
    ("listenfd", &["daemon"]),
    ("prometheus", &["metrics"]),
    ("datasketches", &["talkers"]),
    ("ratatui", &["cli"]),
    ("getrandom", &["peer"]),
    ("snow", &["peer"]),
    ("zeroize", &["peer"]),
];

#[test]
fn modules_import_only_from_lower_ranks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crates = dependencies(&std::fs::read_to_string(root.join("Cargo.toml")).unwrap());
    assert!(crates.contains("tokio") && crates.contains("pnet_packet"), "Cargo.toml was understood");
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    assert!(files.len() > 10, "the sources were found");
    let sources: Vec<(PathBuf, String)> = files
        .iter()
        .map(|file| {
            (file.strip_prefix(root.join("src")).unwrap().to_owned(), std::fs::read_to_string(file).unwrap())
        })
        .collect();
    let tests = test_files(&sources);
    let checked = sources.iter().filter(|(file, _)| !tests.iter().any(|test| within(file, test)));
    let violations: Vec<String> =
        checked.flat_map(|(file, text)| check(file, text, &crates)).map(|v| v.to_string()).collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn the_table_has_no_cycle() {
    for (module, _, imports) in TABLE {
        let mut reached: Vec<&str> = imports.to_vec();
        let mut next = 0;
        while let Some(name) = reached.get(next).copied() {
            assert_ne!(name, *module, "{module} imports itself by way of others");
            let (_, _, further) = TABLE.iter().find(|(of, _, _)| *of == name).unwrap();
            reached.extend(further.iter().filter(|name| !reached.contains(name)).collect::<Vec<_>>());
            next += 1;
        }
    }
}

#[test]
fn forbidden_sources_are_refused() {
    let refused: &[(&str, &str, &str)] = &[
        ("nat/mod.rs", "use crate::datapath::Config;", "datapath"),
        ("nat/mod.rs", "use crate::{\n wire::Packet,\n config::{self, Config},\n};", "config"),
        ("nat/mod.rs", "fn f() { let _ = crate::admin::bind; }", "admin"),
        ("nat/mod.rs", "use super::balance::Group;", "balance"),
        ("nat/tcp.rs", "use super::super::balance;", "balance"),
        ("nat/tcp.rs", "use super::{State, super::datapath::Handle};", "datapath"),
        ("nat/tcp.rs", "mod inner { use super::super::super::datapath; }", "datapath"),
        ("nat/tcp.rs", "use self::super::super::datapath;", "datapath"),
        ("nat/tcp.rs", "use super::super::*;", "root"),
        ("nat/tcp.rs", "use crate as egret;", "root"),
        ("nat/tcp.rs", "pub(in crate::datapath) fn f() {}", "datapath"),
        ("nat/tcp.rs", "macro_rules! m { () => { $crate::datapath::spawn() } }", "datapath"),
        ("wire/mod.rs", "use crate::time::Instant;", "time"),
        ("balance/mod.rs", "use crate::failover::Event;", "failover"),
        ("datapath/mod.rs", "use crate::forward::Relay;", "forward"),
        ("peer/mod.rs", "use crate::datapath::Handle;", "datapath"),
        ("config/mod.rs", "use crate::admin::Status;", "admin"),
        ("metrics/mod.rs", "use crate::admin::Status;", "admin"),
        ("daemon/mod.rs", "use crate::cli::Cli;", "cli"),
        ("cli/mod.rs", "use crate::nat::Engine;", "nat"),
        ("main.rs", "use egret::datapath::spawn;", "datapath"),
        ("lib.rs", "pub use crate::nat::Engine;", "nat"),
        ("extra/mod.rs", "fn f() {}", "extra"),
        ("nat/mod.rs", "use std::time::Instant;", "std::time::Instant"),
        ("nat/mod.rs", "use std::time::{Duration, SystemTime};", "std::time::SystemTime"),
        ("nat/mod.rs", "use std::{fmt, fs};", "std::fs"),
        ("nat/mod.rs", "fn f() { std::fs::read(\"x\"); }", "std::fs"),
        ("nat/mod.rs", "use ::std::net::{Ipv4Addr, UdpSocket};", "std::net::UdpSocket"),
        ("nat/mod.rs", "use std::net::*;", "std::net::*"),
        ("nat/mod.rs", "use std::collections::hash_map::RandomState;", "RandomState"),
        ("failover/mod.rs", "use tokio::sync::mpsc;", "tokio"),
        ("nat/mod.rs", "fn f() -> u64 { rand::random() }", "rand"),
        ("wire/mod.rs", "fn f() { libc::getpid(); }", "libc"),
        ("balance/mod.rs", "use {tokio::time};", "tokio"),
        ("nat/mod.rs", "fn f() { unsafe { g() } }", "unsafe"),
        ("daemon/mod.rs", "unsafe fn f() {}", "unsafe"),
        ("datapath/system.rs", "unsafe fn f() {}", "unsafe"),
        ("daemon/mod.rs", "use anyhow::Result;", "anyhow"),
        ("datapath/mod.rs", "use aws_sdk_ec2::Client;", "aws_sdk_ec2"),
        ("nat/mod.rs", "#[path = \"../datapath/mod.rs\"] mod other;", "path"),
        ("nat/mod.rs", "include!(\"../datapath/mod.rs\");", "include"),
        ("nat/mod.rs", "extern crate tokio;", "tokio"),
        ("nat/mod.rs", "/* a /* nested */ comment */ use crate::datapath;", "datapath"),
        ("nat/mod.rs", "const Q: char = '\"'; use crate::datapath; const R: char = '\"';", "datapath"),
        ("nat/mod.rs", "const Q: &str = r#\"\"\"#; use crate::datapath;", "datapath"),
        ("nat/mod.rs", "#[cfg(test)]\nmod tests { }\nuse crate::datapath;", "datapath"),
        ("nat/mod.rs", "#[cfg(not(test))]\nmod real { use crate::datapath; }", "datapath"),
    ];
    for (file, source, what) in refused {
        let violations = check_alone(file, source);
        assert!(
            violations.iter().any(|violation| violation.what.contains(what)),
            "{file}: {source}: {violations:?}"
        );
    }
}

#[test]
fn allowed_sources_pass() {
    let allowed: &[(&str, &str)] = &[
        ("nat/mod.rs", "use crate::wire::{Packet, self}; use crate::time::Instant; use std::time::Duration;"),
        ("nat/mod.rs", "use std::net::{Ipv4Addr, SocketAddrV4}; use pnet_packet::tcp;"),
        ("nat/tcp.rs", "use super::event::Side; use super::super::wire; use crate::nat::Config;"),
        ("nat/tcp.rs", "mod inner { use super::super::event; use super::super::super::wire; }"),
        ("nat/tcp.rs", "// use crate::datapath;\n/* unsafe */ const A: &str = \"use crate::datapath\";"),
        ("nat/tcp.rs", "fn f<'crate_>(a: &'crate_ str) -> char { '\\'' }"),
        ("nat/tcp.rs", "#[cfg(test)] mod tests { use std::fs; use crate::datapath; }"),
        ("nat/tcp.rs", "fn f(tokio: u8) -> u8 { tokio } // a name, not a path"),
        ("datapath/sys.rs", "fn f() { unsafe { g() } }"),
        ("datapath/sys/ring.rs", "use super::super::super::nat; fn f() { unsafe { g() } }"),
        ("datapath/xdp/mod.rs", "fn f() { unsafe { g() } }"),
        ("admin/mod.rs", "use crate::metrics::Registry; use tokio::net::UnixListener;"),
        ("main.rs", "use egret::cli::Cli; use anyhow::Result;"),
        ("lib.rs", "pub mod nat; pub mod datapath;"),
    ];
    for (file, source) in allowed {
        let violations = check_alone(file, source);
        assert!(violations.is_empty(), "{file}: {source}: {violations:?}");
    }
}

#[test]
fn files_of_test_modules_are_known_by_their_declaration() {
    let source = |file: &str, text: &str| (PathBuf::from(file), text.to_owned());
    let sources = [
        source("nat/mod.rs", "#[cfg(test)]\nmod tests;\nmod testing;"),
        source("nat/tcp.rs", "#[cfg(test)] mod pair;"),
    ];
    let tests = test_files(&sources);
    let is_test = |file: &str| tests.iter().any(|test| within(Path::new(file), test));
    assert!(is_test("nat/tests.rs") && is_test("nat/tests/mod.rs") && is_test("nat/tests/hairpin.rs"));
    assert!(is_test("nat/tcp/pair.rs"));
    assert!(!is_test("nat/testing.rs") && !is_test("nat/pair.rs") && !is_test("nat/tcp.rs"));
}

fn check_alone(file: &str, source: &str) -> Vec<Violation> {
    let crates = ["tokio", "rand", "libc", "pnet_packet", "anyhow", "aws_sdk_ec2"];
    check(Path::new(file), source, &crates.iter().map(|name| (*name).to_owned()).collect())
}

#[derive(Debug)]
struct Violation {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Judges one file, given by its path below `src`.
fn check(file: &Path, text: &str, crates: &HashSet<String>) -> Vec<Violation> {
    let mut checker = Checker { file, module: module_of(file), crates, violations: Vec::new() };
    let name = checker.module.first().cloned().unwrap_or_default();
    if TABLE.iter().all(|(module, _, _)| *module != name) {
        checker.refuse(1, format!("the module {name} is not in the table"));
        return checker.violations;
    }
    checker.run(&without_test_modules(&tokens(text)));
    checker.violations
}

struct Checker<'a> {
    file: &'a Path,
    module: Vec<String>,
    crates: &'a HashSet<String>,
    violations: Vec<Violation>,
}

impl Checker<'_> {
    fn refuse(&mut self, line: usize, what: String) {
        self.violations.push(Violation { file: self.file.to_owned(), line, what });
    }

    fn run(&mut self, tokens: &[Token]) {
        // Inline modules, each with the depth of its braces.
        let mut inline: Vec<(String, usize)> = Vec::new();
        let mut depth = 0;
        let mut index = 0;
        while let Some(token) = tokens.get(index) {
            let text = token.text.as_str();
            let after = |offset: usize| tokens.get(index + offset).map_or("", |token| token.text.as_str());
            let before = if index == 0 { "" } else { tokens[index - 1].text.as_str() };
            match text {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    if inline.last().is_some_and(|(_, at)| *at > depth) {
                        inline.pop();
                    }
                }
                "mod" if after(2) == "{" => inline.push((after(1).to_owned(), depth + 1)),
                "unsafe" => self.judge_unsafe(token.line),
                "include" if after(1) == "!" => {
                    self.refuse(token.line, "include! hides what it names".to_owned());
                }
                "path" if before == "[" && after(1) == "=" => {
                    self.refuse(token.line, "#[path] hides the file that it names".to_owned());
                }
                _ => {}
            }
            // The begin of a path: `::` before it is that of `::std`, or of a path that was judged already.
            let leading = before == "::"
                && (index < 2
                    || !is_name(&tokens[index - 2].text)
                    || KEYWORDS.contains(&&*tokens[index - 2].text));
            let in_use = before == "use" || before == "crate" && after(1) == ";";
            if is_name(text) && (before != "::" || leading) && before != "." {
                let mut base = self.module.clone();
                if matches!(self.file.file_name().and_then(|name| name.to_str()), Some("lib.rs" | "main.rs")) {
                    base.clear();
                }
                base.extend(inline.iter().map(|(name, _)| name.clone()));
                if let Some(path) = begin(text, &base, self) {
                    if after(1) == "::" {
                        self.follow(path, tokens, index + 2, &base);
                    } else if in_use {
                        self.judge(&path, token.line);
                    }
                }
            }
            if text == "{" && before == "use" {
                self.group(&Begun::Nothing, tokens, index + 1, &inline_base(&self.module, &inline));
            }
            index += 1;
        }
    }

    /// Follows a path from the token after its last `::`, into groups as well.
    fn follow(&mut self, path: Begun, tokens: &[Token], index: usize, base: &[String]) {
        let Some(token) = tokens.get(index) else { return };
        match token.text.as_str() {
            "{" => {
                self.group(&path, tokens, index + 1, base);
            }
            name => {
                let path = path.then(name);
                if tokens.get(index + 1).is_some_and(|next| next.text == "::") {
                    self.follow(path, tokens, index + 2, base);
                } else {
                    self.judge(&path, token.line);
                }
            }
        }
    }

    /// Follows each item of a group; gives the place after its closing brace.
    fn group(&mut self, path: &Begun, tokens: &[Token], mut index: usize, base: &[String]) -> usize {
        let mut fresh = true;
        while let Some(token) = tokens.get(index) {
            match token.text.as_str() {
                "}" => return index + 1,
                "," => fresh = true,
                "{" => {
                    // A nested group was followed with the item that it belongs to.
                    index = skip_group(tokens, index);
                    continue;
                }
                _ if fresh => {
                    fresh = false;
                    if matches!(path, Begun::Nothing) {
                        if let Some(begun) = begin(&token.text, base, self)
                            && tokens.get(index + 1).is_some_and(|next| next.text == "::")
                        {
                            self.follow(begun, tokens, index + 2, base);
                        }
                    } else {
                        self.follow(path.clone(), tokens, index, base);
                    }
                }
                _ => {}
            }
            index += 1;
        }
        index
    }

    fn judge(&mut self, path: &Begun, line: usize) {
        match path {
            Begun::Nothing => {}
            Begun::Local(path) => self.judge_local(path, line),
            Begun::Foreign(path) => self.judge_foreign(path, line),
        }
    }

    fn judge_local(&mut self, path: &[String], line: usize) {
        let own = self.module[0].clone();
        match path.first().map(String::as_str) {
            None | Some("*" | "self" | "as") => {
                self.refuse(line, format!("{own} takes hold of the root, and so of everything"));
            }
            Some(target) if target == own => {}
            Some(target) => {
                let known = TABLE.iter().any(|(module, _, _)| *module == target);
                let (_, _, imports) = TABLE.iter().find(|(module, _, _)| *module == own).expect("checked");
                if !imports.contains(&target) {
                    let what = if known { "a module that it may not" } else { "an unknown module" };
                    self.refuse(line, format!("{own} imports {what}: {target}"));
                }
            }
        }
    }

    fn judge_foreign(&mut self, path: &[String], line: usize) {
        let own = self.module[0].clone();
        let name = path[0].as_str();
        if let Some((_, modules)) = CONFINED.iter().find(|(confined, _)| *confined == name)
            && !modules.contains(&own.as_str())
        {
            self.refuse(line, format!("{own} names the crate {name}, which only {modules:?} may"));
        }
        let sans_io = TABLE.iter().any(|(module, sans_io, _)| *module == own && *sans_io);
        if !sans_io {
            return;
        }
        if name != "std" {
            if !SANS_IO_CRATES.contains(&name) {
                self.refuse(line, format!("{own} is sans-IO and names the crate {name}"));
            }
            return;
        }
        let full = path.join("::");
        let is_impure = |impure: &&&str| {
            // The item itself or something in it, or a glob that takes it in.
            full == **impure
                || full.starts_with(&format!("{impure}::"))
                || full.strip_suffix('*').is_some_and(|prefix| impure.starts_with(prefix))
        };
        if IMPURE.iter().any(|impure| is_impure(&impure)) {
            self.refuse(line, format!("{own} is sans-IO and names {full}"));
        }
    }

    fn judge_unsafe(&mut self, line: usize) {
        let module = self.module.join("::");
        let allowed = |place: &&str| module == **place || module.starts_with(&format!("{place}::"));
        if !UNSAFE.iter().any(allowed) {
            self.refuse(line, format!("unsafe in {module}"));
        }
    }
}

/// A path on its way.
#[derive(Clone, Debug)]
enum Begun {
    Nothing,
    /// Of this crate, from its root on.
    Local(Vec<String>),
    /// Of another crate, with its name.
    Foreign(Vec<String>),
}

impl Begun {
    fn then(mut self, name: &str) -> Self {
        match &mut self {
            Self::Local(path) if name == "super" => {
                path.pop();
            }
            Self::Local(path) | Self::Foreign(path) if name != "self" => path.push(name.to_owned()),
            _ => {}
        }
        self
    }
}

/// What a name at the begin of a path means; `None` if it is something of the module itself.
fn begin(name: &str, base: &[String], checker: &Checker<'_>) -> Option<Begun> {
    match name {
        "crate" => Some(Begun::Local(Vec::new())),
        "egret" if checker.module[0] == "main" => Some(Begun::Local(Vec::new())),
        "self" => Some(Begun::Local(base.to_vec())),
        "super" => Some(Begun::Local(base[..base.len().saturating_sub(1)].to_vec())),
        "std" => Some(Begun::Foreign(vec![name.to_owned()])),
        _ if checker.crates.contains(name) => Some(Begun::Foreign(vec![name.to_owned()])),
        _ => None,
    }
}

fn inline_base(module: &[String], inline: &[(String, usize)]) -> Vec<String> {
    module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect()
}

fn skip_group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// `nat/tcp.rs` is `nat::tcp`, `nat/mod.rs` is `nat`.
fn module_of(file: &Path) -> Vec<String> {
    let path = file.with_extension("");
    let mut parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.len() > 1 && parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The files and directories of modules that are declared with `#[cfg(test)] mod name;`.
fn test_files(sources: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (file, text) in sources {
        let tokens = tokens(text);
        for index in 0..tokens.len() {
            if let Some(at) = test_module(&tokens, index)
                && tokens.get(at + 2).is_some_and(|token| token.text == ";")
            {
                let stem = file.file_stem().and_then(|stem| stem.to_str());
                let directory = match stem {
                    Some("mod" | "lib" | "main") => file.parent().unwrap_or(file).to_owned(),
                    _ => file.with_extension(""),
                };
                found.push(directory.join(&tokens[at + 1].text));
            }
        }
    }
    found
}

/// Whether a file is that of a module, or below it.
fn within(file: &Path, module: &Path) -> bool {
    file == module.with_extension("rs") || file.starts_with(module)
}

/// The place of `mod` if `#[cfg(test)] mod` begins here.
fn test_module(tokens: &[Token], index: usize) -> Option<usize> {
    const ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let attribute = tokens.get(index..index + ATTRIBUTE.len())?;
    let is_attribute = attribute.iter().zip(ATTRIBUTE).all(|(token, text)| token.text == text);
    let at = index + ATTRIBUTE.len();
    (is_attribute && tokens.get(at)?.text == "mod").then_some(at)
}

fn without_test_modules(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        match test_module(tokens, index) {
            Some(at) if tokens.get(at + 2).is_some_and(|token| token.text == "{") => {
                index = skip_group(tokens, at + 2);
            }
            _ => {
                kept.push(tokens[index].clone());
                index += 1;
            }
        }
    }
    kept
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
}

/// Names that do not end a path, so that `::` after them begins one.
const KEYWORDS: &[&str] =
    &["as", "const", "dyn", "else", "for", "if", "impl", "in", "match", "mut", "ref", "return", "use", "where"];

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::` and single characters; without comments, strings, characters, lifetimes and numbers' insides.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(Token { text: rest[..length].to_owned(), line });
            length
        } else if rest.starts_with("::") {
            tokens.push(Token { text: "::".to_owned(), line });
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(Token { text: first.to_string(), line });
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a string literal, with its prefix, if one begins here.
fn string(text: &str) -> Option<usize> {
    let prefix = text.find(['"', '#']).filter(|at| *at <= 2)?;
    if !matches!(&text[..prefix], "" | "b" | "c" | "r" | "br" | "cr") {
        return None;
    }
    let raw = text[..prefix].ends_with('r');
    let hashes = text[prefix..].bytes().take_while(|byte| *byte == b'#').count();
    if !text[prefix + hashes..].starts_with('"') || hashes > 0 && !raw {
        return None;
    }
    let start = prefix + hashes + 1;
    if raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()));
    }
    let mut escaped = false;
    for (at, c) in text[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// The length of a character literal or of a lifetime's mark.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            text[3.min(text.len())..].find('\'').map_or(text.len(), |at| 3 + at + 1)
        }
        Some((at, c)) if text[at + c.len_utf8()..].starts_with('\'') => at + c.len_utf8() + 1,
        // A lifetime: its name is skipped too, since it could be that of a crate.
        _ => 1 + text[1..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len() - 1),
    }
}

/// The names, as in a path, of what `[dependencies]` holds.
fn dependencies(manifest: &str) -> HashSet<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let table = manifest["dependencies"].as_table().unwrap();
    table.keys().map(|name| name.replace('-', "_")).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
