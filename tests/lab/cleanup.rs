//! Removes what labs leave: namespaces, the programs in them, and their directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::host::{Result, run_outside};

/// Of the namespaces of a lab; the process id of its owner follows.
pub const PREFIX: &str = "egret-lab-";

/// Of the namespaces of a demo that is kept.
pub const KEPT_PREFIX: &str = "egret-demo-";

/// Whether this process has begun a demo that is to be kept: if interrupted, it is not.
pub static BUILDS_KEPT: AtomicBool = AtomicBool::new(false);

/// Removes what dead runs left, and sees to it that SIGINT and SIGTERM remove what this one has.
pub fn prepare() -> Result {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = remove_stale();
        thread::spawn(remove_on_signal);
    });
    result
}

/// Removes the demo that was kept; tells whether there was one.
///
/// # Errors
/// If the namespaces cannot be listed.
pub fn remove_kept() -> Result<bool> {
    let any = !namespaces(KEPT_PREFIX)?.is_empty();
    remove(KEPT_PREFIX);
    Ok(any)
}

/// The namespaces whose names begin with `prefix`.
pub fn namespaces(prefix: &str) -> Result<Vec<String>> {
    let listed = run_outside(&["ip", "netns", "list"], "")?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect())
}

/// Where a lab keeps its files.
pub fn directory(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(prefix.trim_end_matches('-'))
}

/// Removes all that belongs to `prefix`, as far as it can be.
pub fn remove(prefix: &str) {
    for namespace in namespaces(prefix).unwrap_or_default() {
        let programs = run_outside(&["ip", "netns", "pids", &namespace], "").unwrap_or_default();
        for id in programs.lines().filter_map(|line| line.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = run_outside(&["ip", "netns", "delete", &namespace], "");
    }
    let name = prefix.trim_end_matches('-');
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if found == name || found.starts_with(prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn remove_stale() -> Result {
    let mut names = namespaces(PREFIX)?;
    if let Ok(entries) = fs::read_dir(std::env::temp_dir()) {
        names.extend(entries.flatten().map(|entry| format!("{}-", entry.file_name().to_string_lossy())));
    }
    for name in names {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let mut parts = rest.splitn(3, '-');
        if let (Some(owner), Some(number)) = (parts.next(), parts.next())
            && owner.parse::<u32>().is_ok()
            && !Path::new("/proc").join(owner).exists()
        {
            remove(&format!("{PREFIX}{owner}-{number}-"));
        }
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "all that a destructor would do is done")]
fn remove_on_signal() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let status = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        tokio::select! {
            _ = interrupt.recv() => Some(130),
            _ = terminate.recv() => Some(143),
        }
    });
    if let Some(status) = status {
        remove(&format!("{PREFIX}{}-", std::process::id()));
        if BUILDS_KEPT.load(Ordering::Relaxed) {
            remove(KEPT_PREFIX);
        }
        std::process::exit(status);
    }
}
