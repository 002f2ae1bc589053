//! Whether the internet is reached: hosts there are asked for a TCP connection, again and again.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Asks for ever, and tells what came of it: one that answers is enough, and it takes two rounds without any to be sure
/// that there is none. Nothing is told while there is nobody to ask.
pub(super) async fn watch(mut probes: watch::Receiver<Vec<SocketAddr>>, reached: watch::Sender<Option<bool>>) {
    let mut failures = 0;
    loop {
        let addresses = probes.borrow_and_update().clone();
        if addresses.is_empty() {
            reached.send_if_modified(|reached| reached.take().is_some());
            if probes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let answered = any_answers(addresses).await;
        failures = if answered { 0 } else { failures + 1 };
        if answered || failures >= ROUNDS {
            reached.send_if_modified(|reached| reached.replace(answered) != Some(answered));
        }
        sleep(PAUSE).await;
    }
}

async fn any_answers(addresses: Vec<SocketAddr>) -> bool {
    let mut attempts = JoinSet::new();
    for address in addresses {
        attempts.spawn(async move {
            // A refusal has come all the way, too.
            let result = timeout(PATIENCE, TcpStream::connect(address)).await;
            matches!(result, Ok(Ok(_)))
                || matches!(result, Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused)
        });
    }
    while let Some(answered) = attempts.join_next().await {
        if matches!(answered, Ok(true)) {
            return true;
        }
    }
    false
}

const ROUNDS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_answers_or_refuses_is_enough_and_none_is_told_after_two_rounds() {
        let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = there.local_addr().unwrap();
        // Nothing listens on the discard port of the loopback interface.
        for address in [there, "127.0.0.1:9".parse().unwrap()] {
            assert!(any_answers(vec![address]).await, "{address}");
        }
        // A group, to which there is no connection, and nothing is sent.
        let nowhere: SocketAddr = "224.0.0.1:9".parse().unwrap();
        assert!(any_answers(vec![nowhere, there]).await);
        let (_probes, asked) = watch::channel(vec![nowhere]);
        let (told, mut reached) = watch::channel(None);
        let watching = tokio::spawn(watch(asked, told));
        reached.wait_for(|reached| *reached == Some(false)).await.unwrap();
        watching.abort();
    }
}
