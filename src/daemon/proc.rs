//! Facts of the host, read from `/proc` (`proc(5)`, `proc_pid_net(5)`). All are of the caller's network namespace.

use std::fs::{File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use crate::wire::Protocol;

/// A mounted proc file system.
#[derive(Clone, Debug)]
pub(super) struct Proc {
    root: PathBuf,
}

/// A file under `/proc` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be {what}; is proc mounted, and may this process use it?")]
pub struct ProcError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) interface: String,
    pub(super) destination: Ipv4Net,
}

impl Proc {
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The text of a file, without white space at its ends.
    pub(super) fn read(&self, file: &str) -> Result<String, ProcError> {
        let path = self.root.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(ProcError { path, what: "read", source }),
        }
    }

    pub(super) fn write(&self, file: &str, text: &str) -> Result<(), ProcError> {
        let path = self.root.join(file);
        std::fs::write(&path, text).map_err(|source| ProcError { path, what: "written", source })
    }

    /// Takes the network namespace for this process, until the file is dropped or the process ends; none if another
    /// holds it. The lock is on the namespace itself, so that nothing is left behind on any disk.
    pub(super) fn lock_namespace(&self) -> Result<Option<File>, ProcError> {
        let path = self.root.join("self/ns/net");
        let failed = |source| ProcError { path: path.clone(), what: "locked", source };
        let namespace = File::open(&path).map_err(failed)?;
        match namespace.try_lock() {
            Ok(()) => Ok(Some(namespace)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The names in a directory, none if it is not there.
    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// `MemTotal` in bytes, 0 if it is not told.
    pub(super) fn memory(&self) -> Result<u64, ProcError> {
        let text = self.read("meminfo")?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kibibytes = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kibibytes.unwrap_or(0).saturating_mul(1024))
    }

    /// The effective capabilities of this process, a bit each (capabilities(7)).
    pub(super) fn capabilities(&self) -> Result<u64, ProcError> {
        let text = self.read("self/status")?;
        let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Ok(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
    }

    /// Where sockets of this host are reached: protocol, local address (0.0.0.0 for all), and port.
    ///
    /// Open TCP connections count as well as listeners: their answers come in at the same port.
    pub(super) fn sockets(&self) -> Result<Vec<(Protocol, Ipv4Addr, u16)>, ProcError> {
        let mut found = Vec::new();
        for (file, protocol) in [("tcp", Protocol::TCP), ("udp", Protocol::UDP)] {
            let text = self.read(&format!("self/net/{file}"))?;
            // Without IPv6 there is no such file.
            let text6 = self.read(&format!("self/net/{file}6")).unwrap_or_default();
            let lines = text.lines().chain(text6.lines());
            found.extend(lines.filter_map(socket).map(|(address, port)| (protocol, address, port)));
        }
        Ok(found)
    }

    /// The IPv4 routes of the main table.
    pub(super) fn routes(&self) -> Result<Vec<Route>, ProcError> {
        Ok(self.read("self/net/route")?.lines().filter_map(route).collect())
    }
}

/// Local address and port of a line of `/proc/net/{tcp,udp}{,6}`; none for the head and for what cannot be
/// reached over IPv4.
fn socket(line: &str) -> Option<(Ipv4Addr, u16)> {
    let mut columns = line.split_whitespace().skip(1);
    let (address, port) = columns.next()?.split_once(':')?;
    let state = columns.nth(1)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if port == 0 || state == TIME_WAIT {
        return None;
    }
    let address = match address.len() {
        8 => native(address)?.into(),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&native(address.get(index * 8..index * 8 + 8)?)?);
            }
            let address = Ipv6Addr::from(bytes);
            if address.is_unspecified() { Ipv4Addr::UNSPECIFIED } else { address.to_ipv4_mapped()? }
        }
        _ => return None,
    };
    Some((address, port))
}

fn route(line: &str) -> Option<Route> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let interface = (*columns.first()?).to_owned();
    let network: Ipv4Addr = native(columns.get(1)?)?.into();
    let mask: Ipv4Addr = native(columns.get(7)?)?.into();
    Some(Route { interface, destination: Ipv4Net::with_netmask(network, mask).ok()? })
}

/// The kernel prints addresses as numbers in the machine's byte order.
fn native(hexadecimal: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hexadecimal, 16).ok().map(u32::to_ne_bytes)
}

/// `TCP_TIME_WAIT` of the kernel's `tcp_states.h`.
const TIME_WAIT: &str = "06";

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid";

    fn line(local: &str, state: &str) -> Option<(Ipv4Addr, u16)> {
        socket(&format!("   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0"))
    }

    fn hex(address: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(address))
    }

    #[test]
    fn sockets_are_read_with_their_addresses() {
        assert_eq!(socket(HEAD), None);
        assert_eq!(line("00000000:0016", "0A"), Some((Ipv4Addr::UNSPECIFIED, 22)));
        assert_eq!(
            line(&format!("{}:8235", hex([192, 0, 2, 7])), "01"),
            Some((Ipv4Addr::new(192, 0, 2, 7), 33333))
        );
        assert_eq!(line(&format!("{}:0000", "0".repeat(8)), "07"), None, "not bound");
        assert_eq!(line("00000000:0016", TIME_WAIT), None);
    }

    #[test]
    fn sockets_of_ipv6_count_where_ipv4_reaches_them() {
        assert_eq!(line(&format!("{}:1F90", "0".repeat(32)), "0A"), Some((Ipv4Addr::UNSPECIFIED, 8080)));
        let mapped = format!("{}{}{}", "0".repeat(16), hex([0, 0, 255, 255]), hex([192, 0, 2, 7]));
        assert_eq!(line(&format!("{mapped}:1F90"), "0A"), Some((Ipv4Addr::new(192, 0, 2, 7), 8080)));
        let own = format!("{}{}{}", hex([0x20, 1, 0x0d, 0xb8]), "0".repeat(16), hex([0, 0, 0, 1]));
        assert_eq!(line(&format!("{own}:1F90"), "0A"), None);
    }

    #[test]
    fn routes_are_read_and_their_head_is_not() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
        assert_eq!(route(head), None);
        let line = format!(
            "eth1\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0",
            hex([10, 1, 0, 0]),
            hex([255, 255, 0, 0])
        );
        let destination = "10.1.0.0/16".parse().unwrap();
        assert_eq!(route(&line), Some(Route { interface: "eth1".to_owned(), destination }));
    }

    #[test]
    fn the_real_files_are_understood() {
        let proc = Proc::at(Path::new("/proc"));
        assert!(proc.memory().unwrap() > 1 << 20);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(proc.sockets().unwrap().contains(&(Protocol::TCP, Ipv4Addr::LOCALHOST, port)));
    }
}
