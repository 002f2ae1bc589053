//! The time that a datagram takes there and back between two programs: this one again, on a client and on the
//! internet host.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::generator::{Frames, OTHERS_PROCESSOR, Pace};
use super::host::NatHost;
use super::lab::{Failure, INTERNET, Lab, Process, Result, Transport};
use super::process;

/// What half, and all but a hundredth, of the exchanges did not take longer than.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub half: Duration,
    pub tail: Duration,
}

/// Measures while `frames` go through the NAT host as well.
pub fn under_load(host: &mut NatHost, frames: Frames, pace: Pace, exchanges: u32) -> Result<Times> {
    let _server = serve(&host.lab)?;
    let program = std::env::current_exe()?.display().to_string();
    let client = host.lab.client(1).clone();
    let mut asking = client.spawn_with(&[&program, "ask", &exchanges.to_string()])?;
    // Sends until the client has ended.
    while asking.ended()?.is_none() {
        host.generator.send(frames, u64::from(u32::MAX), pace, SLICE)?;
    }
    let log = asking.log();
    let numbers: Vec<u64> = log.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [half, tail] => Ok(Times { half: Duration::from_nanos(half), tail: Duration::from_nanos(tail) }),
        _ => Err(Failure::new(format!("the client of the ping-pong said: {log}"))),
    }
}

fn serve(lab: &Lab) -> Result<Process> {
    let program = std::env::current_exe()?.display().to_string();
    let server = lab.internet().spawn_with(&[&program, "answer"])?;
    lab.internet().wait_listening(Transport::Udp, PORT)?;
    Ok(server)
}

/// What this program is asked to do on a host of the lab, if it is.
pub fn requested(arguments: &[String]) -> Option<Result> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["answer"] => Some(answer()),
        ["ask", exchanges] => Some(ask(exchanges)),
        _ => None,
    }
}

fn answer() -> Result {
    process::pin(Pid::from_raw(0), OTHERS_PROCESSOR)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let mut buffer = [0; 64];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], from)?;
    }
}

fn ask(exchanges: &str) -> Result {
    process::pin(Pid::from_raw(0), OTHERS_PROCESSOR)?;
    let exchanges: u32 = exchanges.parse()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddrV4::new(INTERNET, PORT))?;
    socket.set_read_timeout(Some(LOST))?;
    let mut times = Vec::new();
    let mut buffer = [0; 64];
    for number in 0..exchanges + WARM_UP {
        let start = Instant::now();
        socket.send(&number.to_ne_bytes())?;
        // A late answer is to another question.
        while let Ok(length) = socket.recv(&mut buffer) {
            if buffer[..length] == number.to_ne_bytes() {
                break;
            }
        }
        if number >= WARM_UP {
            // One that is lost counts as what it was waited for.
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let (half, tail) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{} {}", half.as_nanos(), tail.as_nanos());
    Ok(())
}

const PORT: u16 = 7;
const WARM_UP: u32 = 100;
const LOST: Duration = Duration::from_millis(100);
const SLICE: Duration = Duration::from_millis(100);
