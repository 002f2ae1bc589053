//! What translates on the NAT host: Egret, or the kernel's masquerading to compare it with.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::host::{DEADLINE, Failure, Host, Output, Process, Result};
use super::{Lab, NAT, VPC};

/// An `egret run` on a host.
#[derive(Debug)]
pub struct Egret {
    pub process: Process,
    host: Host,
    executable: String,
    config: String,
    socket: String,
}

impl Egret {
    /// Starts it with the configuration `toml`, and waits until it is ready.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub fn start(host: &Host, toml: &str) -> Result<Self> {
        Self::start_under(host, toml, &[])
    }

    /// Starts it by another program, as [`Self::spawn_under`], and waits until it is ready.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub fn start_under(host: &Host, toml: &str, wrapper: &[&str]) -> Result<Self> {
        let mut egret = Self::spawn_under(host, toml, wrapper)?;
        host.wait_for("egret to be ready", || {
            if let Some(status) = egret.process.ended()? {
                return Err(Failure::new(format!("egret ended, {status}:\n{}", egret.process.log())));
            }
            Ok(egret.try_status()?.status.success())
        })
        .map_err(|Failure(message)| {
            let last = egret.try_status().map(|output| output.to_string()).unwrap_or_default();
            Failure(format!("{message}\n{last}\n{}", egret.process.log()))
        })?;
        Ok(egret)
    }

    /// Starts it, and does not wait for anything.
    ///
    /// # Errors
    /// If the program cannot be started at all.
    pub fn spawn(host: &Host, toml: &str) -> Result<Self> {
        Self::spawn_under(host, toml, &[])
    }

    /// Starts it by another program, such as one that takes capabilities away.
    ///
    /// # Errors
    /// If the program cannot be started at all.
    pub fn spawn_under(host: &Host, toml: &str, wrapper: &[&str]) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| host.directory.join(format!("egret-{number}.{kind}")).display().to_string();
        let (config, socket) = (file("toml"), file("sock"));
        fs::write(&config, toml)?;
        let executable = executable()?.display().to_string();
        let mut arguments = wrapper.to_vec();
        arguments.extend([executable.as_str(), "run", "--config", &config, "--socket", &socket]);
        let process = host.spawn_with(&arguments)?;
        Ok(Self { process, host: host.clone(), executable, config, socket })
    }

    /// What `egret status` says: `ready`, `sessions`, `traffic`, `drops`, ...
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<Value> {
        let output = self.try_status()?;
        match serde_json::from_str(&output.stdout) {
            // One that is not ready says so by its exit code, and all the rest as ever.
            Ok(status) if output.status.code() == Some(1) => Ok(status),
            _ => Ok(serde_json::from_str(&output.success()?.stdout)?),
        }
    }

    /// Runs `egret status`, whatever comes of it.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn try_status(&self) -> Result<Output> {
        self.command(&["status", "--output", "json"])
    }

    /// How many packets were dropped for the reason of this label.
    ///
    /// # Errors
    /// If there is no such reason.
    pub fn dropped(&self, label: &str) -> Result<u64> {
        let status = self.status()?;
        let count = status["drops"][label].as_u64();
        count.ok_or_else(|| Failure::new(format!("no drop reason {label} in {status}")))
    }

    /// The sessions as `egret sessions` lists them, filtered by `arguments`.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn sessions(&self, arguments: &str) -> Result<Vec<Value>> {
        let mut all = vec!["sessions", "--output", "json"];
        all.extend(arguments.split_whitespace());
        let listed = self.command(&all)?.success()?.stdout;
        let listed: Value = serde_json::from_str(&listed)?;
        let records = listed.as_array().or_else(|| listed["sessions"].as_array());
        records.cloned().ok_or_else(|| Failure::new(format!("no list of sessions: {listed}")))
    }

    /// Runs a command of Egret against this daemon.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut all = vec![self.executable.as_str(), arguments[0], "--socket", &self.socket];
        all.extend(&arguments[1..]);
        self.host.run_for(DEADLINE, &all, "")
    }

    /// The path of its control socket.
    #[must_use]
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Gives it another configuration, as a service manager does.
    ///
    /// # Errors
    /// If the file cannot be written, or the daemon has gone.
    pub fn reload(&self, toml: &str) -> Result {
        // All at once: the daemon may still be reading it for the sake of an earlier reload.
        let new = format!("{}.new", self.config);
        fs::write(&new, toml)?;
        fs::rename(&new, &self.config)?;
        self.process.signal(Signal::SIGHUP)
    }

    /// Ends it as a service manager does.
    ///
    /// # Errors
    /// If it does not end within `deadline`.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(deadline)
    }

    /// The command line of a command of Egret against this daemon, to be run anywhere: the socket is a file.
    #[must_use]
    pub fn command_line(&self, command: &str) -> String {
        format!("{} {command} --socket {}", self.executable, self.socket)
    }
}

/// What translates in a test that does not care which: Egret, or with `EGRET_LAB_NAT=kernel` the kernel, to tell
/// a fault of the lab from one of Egret.
#[derive(Debug)]
pub struct Nat(pub Option<Egret>);

impl Nat {
    /// Starts it, with `more` lines in the `[nat]` table.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(lab: &Lab, more: &str) -> Result<Self> {
        if std::env::var_os("EGRET_LAB_NAT").is_some_and(|value| value == "kernel") {
            kernel_nat(lab)?;
            return Ok(Self(None));
        }
        Ok(Self(Some(Egret::start(lab.nat(), &lab.config(more))?)))
    }
}

/// Has the kernel masquerade on the NAT host.
///
/// # Errors
/// If nft refuses.
pub fn kernel_nat(lab: &Lab) -> Result {
    masquerade(lab.nat(), NAT)
}

/// Has the kernel masquerade on a host that has this address.
///
/// # Errors
/// If nft refuses.
pub fn masquerade(host: &Host, own: Ipv4Addr) -> Result {
    host.run("sysctl -q -w net.ipv4.ip_forward=1")?;
    host.nft(&format!(
        "table ip nat {{\n chain out {{\n type nat hook postrouting priority srcnat\n\
         oifname \"ens5\" ip saddr {VPC} ip saddr != {own} ip daddr != {VPC} masquerade\n }}\n}}\n"
    ))
}

/// The program under test: `LAB_EGRET` in the environment names it, else cargo to tests and benches; an example finds it
/// beside itself.
fn executable() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LAB_EGRET") {
        return Ok(PathBuf::from(path));
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_egret") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("egret"));
    beside.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Failure::new(format!("no egret near {}: build it with `cargo build --release`", own.display()))
    })
}
