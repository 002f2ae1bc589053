//! The host settings that Egret needs otherwise than it finds them, and their way back.

use std::ops::RangeInclusive;

use super::proc::{Proc, ProcError};
use super::with_causes;
use crate::config::HOST_PORTS;

/// Settings changed so far. Dropping it puts them back as they were found, but for those that somebody else has
/// changed in the meantime.
///
/// A daemon that is killed (`SIGKILL`) has no chance to do so.
#[derive(Debug)]
pub(super) struct HostSettings {
    proc: Proc,
    changed: Vec<Changed>,
}

#[derive(Debug)]
struct Changed {
    file: String,
    found: String,
    /// What was written; unset if the kernel changed it along with another.
    set: Option<String>,
}

impl HostSettings {
    pub(super) fn new(proc: Proc) -> Self {
        Self { proc, changed: Vec::new() }
    }

    /// Moves the host's ephemeral ports above NAT's, if they overlap.
    pub(super) fn separate_ports(&mut self, nat: &RangeInclusive<u16>) -> Result<(), ProcError> {
        let found = self.proc.read(EPHEMERAL)?;
        let bounds: Vec<u16> = found.split_whitespace().filter_map(|bound| bound.parse().ok()).collect();
        if let [lower, upper] = bounds[..]
            && (lower > *nat.end() || upper < *nat.start())
        {
            return Ok(());
        }
        let wanted = format!("{}\t{}", HOST_PORTS.start(), HOST_PORTS.end());
        self.set(EPHEMERAL, &wanted)?;
        tracing::info!(sysctl = EPHEMERAL, found, set = wanted, "host's ephemeral ports moved out of the way");
        Ok(())
    }

    /// Lets the host's own connections use a port again a second after its last one to the same place has ended, which
    /// timestamps make safe (RFC 6191). A port would rest for a minute otherwise, and proxies have few.
    pub(super) fn reuse_ports(&mut self) -> Result<(), ProcError> {
        if self.proc.read(REUSE)? != "1" {
            self.set(REUSE, "1")?;
        }
        Ok(())
    }

    /// Sees to it that the kernel forwards nothing that comes in on these interfaces, so that a packet that is
    /// not translated cannot leave.
    pub(super) fn stop_forwarding(&mut self, interfaces: &[&str]) -> Result<(), ProcError> {
        if self.proc.read(FORWARD)? != "0" {
            // The kernel resets these along with it (`inet_forward_change`).
            for name in self.proc.names(CONF) {
                self.remember(format!("{CONF}/{name}/forwarding"));
            }
            for name in ["all", "default"] {
                self.remember(format!("{CONF}/{name}/accept_redirects"));
            }
            self.set(FORWARD, "0")?;
            tracing::warn!(
                sysctl = FORWARD,
                "forwarding by the kernel switched off: packets that are not translated would have leaked"
            );
        }
        for interface in interfaces {
            let file = format!("{CONF}/{interface}/forwarding");
            if self.proc.read(&file)? != "0" {
                self.set(&file, "0")?;
                tracing::warn!(sysctl = file, "forwarding by the kernel switched off on an interface");
            }
        }
        Ok(())
    }

    fn set(&mut self, file: &str, wanted: &str) -> Result<(), ProcError> {
        let found = self.proc.read(file)?;
        self.proc.write(file, wanted)?;
        self.changed.push(Changed { file: file.to_owned(), found, set: Some(wanted.to_owned()) });
        Ok(())
    }

    fn remember(&mut self, file: String) {
        if let Ok(found) = self.proc.read(&file) {
            self.changed.push(Changed { file, found, set: None });
        }
    }
}

impl Drop for HostSettings {
    fn drop(&mut self) {
        // In reverse: what the kernel resets along with another comes after it.
        while let Some(Changed { file, found, set }) = self.changed.pop() {
            let now = self.proc.read(&file).ok();
            if now.as_deref() == Some(found.as_str()) {
                continue;
            }
            if set.is_some() && set != now {
                tracing::warn!(sysctl = file, found, "setting was changed by somebody else and is left alone");
                continue;
            }
            match self.proc.write(&file, &found) {
                Ok(()) => tracing::debug!(sysctl = file, found, "setting put back"),
                Err(error) => {
                    tracing::warn!(sysctl = file, found, error = with_causes(&error), "setting not put back");
                }
            }
        }
    }
}

const EPHEMERAL: &str = "sys/net/ipv4/ip_local_port_range";
const REUSE: &str = "sys/net/ipv4/tcp_tw_reuse";
const FORWARD: &str = "sys/net/ipv4/ip_forward";
const CONF: &str = "sys/net/ipv4/conf";

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Files in the place of `/proc`; what the kernel does along with a write is done by the test.
    fn tree(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("egret-settings-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for (file, text) in files {
            put(&root, file, text);
        }
        root
    }

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn get(root: &Path, file: &str) -> String {
        std::fs::read_to_string(root.join(file)).unwrap()
    }

    #[test]
    fn ephemeral_ports_are_moved_and_put_back_as_found() {
        let root = tree("ports", &[(EPHEMERAL, "32768\t60999\n")]);
        let mut settings = HostSettings::new(Proc::at(&root));
        settings.separate_ports(&(1024..=60_999)).unwrap();
        assert_eq!(get(&root, EPHEMERAL), "61000\t65535");
        drop(settings);
        assert_eq!(get(&root, EPHEMERAL), "32768\t60999");
    }

    #[test]
    fn ephemeral_ports_that_do_not_overlap_are_left_alone() {
        let root = tree("disjoint", &[(EPHEMERAL, "50000\t60999\n")]);
        let mut settings = HostSettings::new(Proc::at(&root));
        settings.separate_ports(&(1024..=49_999)).unwrap();
        assert_eq!(get(&root, EPHEMERAL), "50000\t60999\n");
    }

    #[test]
    fn ports_are_used_again_until_the_end() {
        let root = tree("reuse", &[(REUSE, "2\n")]);
        let mut settings = HostSettings::new(Proc::at(&root));
        settings.reuse_ports().unwrap();
        settings.reuse_ports().unwrap();
        assert_eq!(get(&root, REUSE), "1");
        drop(settings);
        assert_eq!(get(&root, REUSE), "2");
    }

    #[test]
    fn a_setting_that_somebody_else_changed_is_left_alone() {
        let root = tree("other", &[(EPHEMERAL, "32768\t60999\n")]);
        let mut settings = HostSettings::new(Proc::at(&root));
        settings.separate_ports(&(1024..=60_999)).unwrap();
        put(&root, EPHEMERAL, "62000\t65000\n");
        drop(settings);
        assert_eq!(get(&root, EPHEMERAL), "62000\t65000\n");
    }

    #[test]
    fn forwarding_is_stopped_and_what_the_kernel_resets_with_it_is_put_back() {
        let eth0 = "sys/net/ipv4/conf/eth0/forwarding";
        let eth1 = "sys/net/ipv4/conf/eth1/forwarding";
        let redirects = "sys/net/ipv4/conf/all/accept_redirects";
        let root = tree("forward", &[(FORWARD, "1\n"), (eth0, "1\n"), (eth1, "0\n"), (redirects, "0\n")]);
        let mut settings = HostSettings::new(Proc::at(&root));
        settings.stop_forwarding(&["eth0"]).unwrap();
        assert_eq!(get(&root, FORWARD), "0");
        assert_eq!(get(&root, eth0), "0");
        put(&root, redirects, "1\n");
        put(&root, eth1, "1\n");
        drop(settings);
        assert_eq!(get(&root, FORWARD), "1");
        assert_eq!([get(&root, eth0), get(&root, eth1), get(&root, redirects)], ["1", "0", "0"]);
    }

    #[test]
    fn forwarding_of_one_interface_is_stopped() {
        let eth0 = "sys/net/ipv4/conf/eth0/forwarding";
        let root = tree("one", &[(FORWARD, "0\n"), (eth0, "1\n")]);
        let mut settings = HostSettings::new(Proc::at(&root));
        settings.stop_forwarding(&["eth0"]).unwrap();
        assert_eq!(get(&root, eth0), "0");
        drop(settings);
        assert_eq!(get(&root, eth0), "1");
    }
}
