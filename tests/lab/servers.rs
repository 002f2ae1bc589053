//! Servers that we did not write, for the hosts of a lab.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::host::{Failure, Host, Process, Result, Transport};
use super::{INTERNET, INTERNET_2};

/// nginx, with a page that tells the client's address (`/whoami`) and the files of its directory.
#[derive(Debug)]
pub struct Web {
    pub process: Process,
    directory: PathBuf,
}

impl Web {
    /// # Errors
    /// If it does not come up.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_with(host, port, "", "")
    }

    /// As [`Self::start`], behind something that says by the PROXY protocol who the client is.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_behind(host: &Host, port: u16) -> Result<Self> {
        let trust = "set_real_ip_from 0.0.0.0/0; real_ip_header proxy_protocol;";
        Self::start_with(host, port, " proxy_protocol", trust)
    }

    fn start_with(host: &Host, port: u16, listen: &str, more: &str) -> Result<Self> {
        let directory = host.directory.join(format!("web-{}-{port}", host.role));
        let files = directory.join("files");
        fs::create_dir_all(&files)?;
        fs::write(files.join("index.html"), "<!doctype html><title>A page</title><p>A page.</p>\n")?;
        let config = directory.join("nginx.conf");
        let (root, files_root) = (directory.display(), files.display());
        fs::write(
            &config,
            format!(
                "daemon off; master_process off; user root; pid {root}/pid; error_log stderr;\n\
                 events {{ worker_connections 512; }}\n\
                 http {{ access_log {root}/access.log; sendfile on; default_type text/html;\n\
                 client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
                 uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
                 server {{ listen {port}{listen}; root {files_root}; {more}\n\
                 location = /whoami {{ default_type text/plain; return 200 \"$remote_addr:$remote_port\\n\"; }} }} }}\n"
            ),
        )?;
        let process = host.spawn(&format!("nginx -p {root} -e stderr -c {}", config.display()))?;
        host.wait_listening(Transport::Tcp, port)?;
        Ok(Self { process, directory })
    }

    /// Puts a text under `/name`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result {
        Ok(fs::write(self.directory.join("files").join(name), text)?)
    }

    /// Puts a file of `size` bytes, all different from place to place, under `/name`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&self, name: &str, size: usize) -> Result {
        let path = self.directory.join("files").join(name);
        // A multiplicative generator: no two stretches are alike, so that a swapped or repeated one shows.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend(state.to_be_bytes());
        }
        bytes.truncate(size);
        fs::write(path, bytes)?;
        Ok(())
    }

    /// What is under `/name`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn get(&self, name: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.directory.join("files").join(name))?)
    }

    /// The client addresses of its access log, one a request.
    #[must_use]
    pub fn clients(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.join("access.log")).unwrap_or_default();
        log.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }
}

/// dnsmasq, which answers for `www.example`, and for `big.example` with a text that UDP without EDNS cuts.
#[derive(Debug)]
pub struct Dns {
    pub process: Process,
}

impl Dns {
    /// # Errors
    /// If it does not come up.
    pub fn start(host: &Host) -> Result<Self> {
        let config = host.directory.join(format!("dnsmasq-{}.conf", host.role));
        let mut lines = format!(
            "keep-in-foreground\nedns-packet-max=4096\nno-resolv\nno-hosts\nlog-queries\nlog-facility=-\nuser=root\n\
             address=/www.example/{INTERNET}\n"
        );
        for number in 0..8 {
            let _ = writeln!(lines, "txt-record=big.example,{number}{}", "x".repeat(200));
        }
        fs::write(&config, lines)?;
        let process = host.spawn(&format!("dnsmasq --conf-file={}", config.display()))?;
        host.wait_listening(Transport::Udp, 53)?;
        host.wait_listening(Transport::Tcp, 53)?;
        Ok(Self { process })
    }
}

/// An iperf3 server that stays.
#[derive(Debug)]
pub struct Iperf {
    pub process: Process,
}

impl Iperf {
    /// # Errors
    /// If it does not come up.
    pub fn start(host: &Host) -> Result<Self> {
        let process = host.spawn("iperf3 --server")?;
        host.wait_listening(Transport::Tcp, 5201)?;
        Ok(Self { process })
    }

    /// Runs a client against a server of its own, which is on `host` at `address`; gives bits per second as the
    /// receiver saw them. (A server that stays closes its listener for a moment after each client.)
    ///
    /// # Errors
    /// If it fails.
    pub fn measure(client: &Host, host: &Host, address: Ipv4Addr, options: &str) -> Result<f64> {
        let _server = host.spawn("iperf3 --server --one-off --port 5202")?;
        host.wait_listening(Transport::Tcp, 5202)?;
        let result = client.run(&format!("iperf3 --client {address} --port 5202 --json {options}"))?;
        let result: serde_json::Value = serde_json::from_str(&result)?;
        let end = &result["end"];
        let rate =
            end["sum_received"]["bits_per_second"].as_f64().or_else(|| end["sum"]["bits_per_second"].as_f64());
        rate.ok_or_else(|| Failure::new(format!("no rate in {result}")))
    }
}

/// coturn's STUN server on the two addresses of the internet host, for NAT behaviour discovery (RFC 5780).
#[derive(Debug)]
pub struct Stun {
    pub process: Process,
}

impl Stun {
    /// # Errors
    /// If it does not come up.
    pub fn start(host: &Host) -> Result<Self> {
        let mut process = host.spawn(&format!(
            "turnserver -n --no-auth --no-tls --no-dtls --no-cli --log-file stdout --simple-log --pidfile {0}/stun.pid \
             --userdb {0}/turndb --listening-ip {INTERNET} --listening-ip {INTERNET_2} --listening-port 3478 \
             --alt-listening-port 3479",
            host.directory.display()
        ))?;
        // On both addresses by both ports, one after the other.
        for address in [INTERNET, INTERNET_2] {
            for port in [3478, 3479] {
                host.wait_for("the STUN server", || {
                    if let Some(status) = process.ended()? {
                        return Err(Failure::new(format!("it ended, {status}:\n{}", process.log())));
                    }
                    let bound = host.run(&format!("ss -Hlnu src {address}:{port}"))?;
                    Ok(!bound.trim().is_empty())
                })?;
            }
        }
        Ok(Self { process })
    }
}
