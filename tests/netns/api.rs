//! What the tests of forwarding share: an API on private servers.

use serde_json::Value;

use crate::lab::{Egret, Failure, Lab, Result, Web};

/// A section `[[forward]]` that checks its targets often, and forgives them what a busy machine makes them miss.
pub fn listener(name: &str, port: u16, targets: &[String], more: &str) -> String {
    let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
    format!(
        "\n[[forward]]\nname = \"{name}\"\nlisten = \"0.0.0.0:{port}\"\ntargets = [{}]\n\
         algorithm = \"round-robin\"\n{more}\n[forward.health]\ninterval = \"200ms\"\ntimeout = \"200ms\"\n\
         healthy_threshold = 2\nunhealthy_threshold = 5\n",
        targets.join(", ")
    )
}

/// Port 5000 of a private host.
pub fn target(number: u8) -> String {
    format!("{}:5000", Lab::client_address(number))
}

/// A private web server at port 5000, whose page says which one it is.
pub fn server(lab: &Lab, number: u8) -> Result<Web> {
    let web = Web::start(lab.client(number), 5000)?;
    web.write("index.html", &format!("server {number}\n"))?;
    Ok(web)
}

/// What is told of the listener of this name.
pub fn report(egret: &Egret, name: &str) -> Result<Value> {
    let status = egret.status()?;
    let found = status["listeners"].as_array().and_then(|all| all.iter().find(|report| report["name"] == name));
    found.cloned().ok_or_else(|| Failure::new(format!("there is no listener {name} in {status}")))
}

pub fn wait_states(lab: &Lab, egret: &Egret, name: &str, wanted: &[&str]) -> Result {
    lab.nat().wait_for("the targets' states", || {
        let report = report(egret, name)?;
        let targets = report["targets"].as_array().cloned().unwrap_or_default();
        Ok(targets.iter().map(|target| target["state"].as_str().unwrap_or_default()).eq(wanted.iter().copied()))
    })
}

/// The memory that a process has for itself, in KiB.
pub fn memory_kib(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| Failure::new(format!("no memory in {status}")))
}
