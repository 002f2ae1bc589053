//! What makes the datagrams: this program again, started on a host of the lab.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};

use super::lab::{Failure, Host, Process, Result};

/// UDP payload that makes an Ethernet frame of 64 bytes, its checksum counted.
const PAYLOAD: [u8; 18] = [0; 18];
/// Five-tuples of a flood.
const FLOWS: usize = 64;
const BATCH: usize = 32;
const FIRST_PORT: u16 = 10_000;

/// Has `host` send 64-byte frames to `remote` as fast as it can, for `time`.
pub fn flood(host: &Host, remote: SocketAddrV4, time: Duration) -> Result<Process> {
    let program = std::env::current_exe()?.display().to_string();
    host.spawn_with(&[&program, "flood", &remote.to_string(), &time.as_millis().to_string()])
}

/// Has `host` send one datagram from each of `ports` ports to each of two remotes.
pub fn open_sessions(host: &Host, ports: u16, remotes: [SocketAddrV4; 2]) -> Result {
    let program = std::env::current_exe()?.display().to_string();
    let [first, second] = remotes.map(|remote| remote.to_string());
    host.run(&format!("{program} sessions {ports} {first} {second}"))?;
    Ok(())
}

/// What this program is asked to do on a host of the lab, if it is.
pub fn requested(arguments: &[String]) -> Option<Result> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["flood", remote, millis] => Some(send_flood(remote, millis)),
        ["sessions", ports, first, second] => Some(send_sessions(ports, [first, second])),
        _ => None,
    }
}

fn send_flood(remote: &str, millis: &str) -> Result {
    let remote: SocketAddrV4 = remote.parse()?;
    let end = Instant::now() + Duration::from_millis(millis.parse()?);
    let mut sockets = Vec::new();
    for _ in 0..FLOWS {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(remote)?;
        sockets.push(socket);
    }
    let messages = [[IoSlice::new(&PAYLOAD)]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    while Instant::now() < end {
        for socket in &sockets {
            match sendmmsg(socket.as_raw_fd(), &mut headers, &messages, [None; BATCH], [], MsgFlags::empty()) {
                // Overload is what this is for: the queue of the interface may be full.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

fn send_sessions(ports: &str, remotes: [&str; 2]) -> Result {
    let mut parsed = Vec::new();
    for remote in remotes {
        parsed.push(remote.parse::<SocketAddrV4>()?);
    }
    for port in (FIRST_PORT..).take(ports.parse()?) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
            .map_err(|error| Failure::new(format!("port {port}: {error}")))?;
        for remote in &parsed {
            socket.send_to(&PAYLOAD, remote)?;
        }
    }
    Ok(())
}
