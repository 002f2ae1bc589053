//! What is on both sides of the proxies: this program again.

#[path = "backend.rs"]
pub mod backend;
#[path = "client.rs"]
pub mod client;

use std::thread;
use std::time::{Duration, Instant};

use super::lab::Result;

/// The command line for what [`requested`] knows.
pub fn command(arguments: &[&str]) -> Result<String> {
    Ok(format!("{} {}", std::env::current_exe()?.display(), arguments.join(" ")))
}

/// What this program is asked to do on a host of the lab, if it is.
pub fn requested(arguments: &[String]) -> Option<Result> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["answer"] => Some(backend::serve()),
        ["burn"] => burn(),
        [kind, address, connections, ref time @ ..] if address.contains(':') => {
            Some(ask(kind, address, connections, time.first().copied().unwrap_or("0")))
        }
        _ => None,
    }
}

/// Takes half of the time of its processor.
fn burn() -> ! {
    loop {
        let begin = Instant::now();
        while begin.elapsed() < SHARE {
            std::hint::spin_loop();
        }
        thread::sleep(SHARE);
    }
}

fn ask(kind: &str, address: &str, connections: &str, millis: &str) -> Result {
    let (address, connections) = (address.parse()?, connections.parse()?);
    let time = Duration::from_millis(millis.parse()?);
    let done = match kind {
        "bulk" => client::bulk(address, connections, time)?,
        "requests" => client::requests(address, connections, time)?,
        "connections" => client::connections(address, connections, time)?,
        _ => client::hold(address, connections)?,
    };
    println!("{} {} {} {}", done.count, done.rate, done.tail, done.slice_tail);
    Ok(())
}

/// What [`burn`] takes, and then leaves.
const SHARE: Duration = Duration::from_micros(250);
