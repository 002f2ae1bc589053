//! Network namespaces for one test.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

use crate::wait_for;

/// Namespaces that are gone when this is dropped, also when the test fails.
pub struct Lab {
    prefix: String,
    names: Vec<&'static str>,
}

impl Lab {
    pub fn new(names: &[&'static str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("egret-dp-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { prefix, names: Vec::new() };
        for name in names {
            run("ip", &["netns", "add", &lab.full(name)]);
            lab.names.push(name);
            lab.ip(name, "link set lo up");
        }
        lab
    }

    /// Joins two namespaces by a veth pair, up at both ends: each sends what it is given.
    pub fn veth(&self, a: (&str, &str), b: (&str, &str)) {
        let (ns_a, ns_b) = (self.full(a.0), self.full(b.0));
        let pair = ["link", "add", a.1, "netns", &ns_a, "type", "veth", "peer", "name", b.1, "netns", &ns_b];
        run("ip", &pair);
        self.ip(a.0, &format!("link set {} up", a.1));
        self.ip(b.0, &format!("link set {} up", b.1));
        self.wait_up(a.0, a.1);
        self.wait_up(b.0, b.1);
    }

    /// Waits until an interface sends: the kernel drops what it is given until it has taken note of the carrier, which
    /// it does when it has time.
    pub fn wait_up(&self, name: &str, interface: &str) {
        let full = self.full(name);
        wait_for(&format!("{name}'s {interface} to be up"), || {
            run("ip", &["-n", &full, "link", "show", "dev", interface]).contains(" state UP ")
        });
    }

    pub fn ip(&self, name: &str, arguments: &str) {
        let full = self.full(name);
        let arguments: Vec<_> = ["-n", &full].into_iter().chain(arguments.split(' ')).collect();
        run("ip", &arguments);
    }

    pub fn sysctl(&self, name: &str, key: &str, value: &str) {
        run("ip", &["netns", "exec", &self.full(name), "sysctl", "-qw", &format!("{key}={value}")]);
    }

    /// Runs a command there, which must succeed.
    pub fn command(&self, name: &str, command: &str) {
        let full = self.full(name);
        let arguments: Vec<_> = ["netns", "exec", &full].into_iter().chain(command.split(' ')).collect();
        run("ip", &arguments);
    }

    /// Runs the closure there. Sockets and threads that it makes stay there.
    pub fn run<T: Send>(&self, name: &str, closure: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.full(name))).expect("the namespace exists");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
                closure()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            // Each is tried, whatever became of the others.
            let _ = Command::new("ip").args(["netns", "del", &self.full(name)]).status();
        }
    }
}

/// Gives what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
