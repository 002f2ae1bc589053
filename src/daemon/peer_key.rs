//! The key of the fleet, from where the configuration says that it is. It is held in memory only, and shown nowhere.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::with_causes;
use crate::aws::{Backoff, Parameters, Secret};
use crate::config::{Failover, KeySource, PeerKey};

/// Reads it once.
///
/// # Errors
/// Why there is none, and what to do.
pub(super) async fn read(parameters: &Parameters, source: &KeySource) -> Result<PeerKey, String> {
    match source {
        KeySource::File(path) => {
            PeerKey::read(path).map_err(|error| format!("failover.key_file: {}", with_causes(&error)))
        }
        KeySource::Parameter(name) => {
            let secret =
                parameters.get(name).await.map_err(|error| format!("failover.key_parameter: {error}"))?;
            understood(name, &secret)
        }
    }
}

/// What a parameter holds, if that is a key.
///
/// # Errors
/// It is none, and what to do.
pub(super) fn understood(name: &str, secret: &Secret) -> Result<PeerKey, String> {
    PeerKey::from_line(secret.as_str().as_bytes()).ok_or_else(|| {
        format!(
            "failover.key_parameter: what {name} holds is no key, which is 64 hexadecimal digits; put one there: \
             aws ssm put-parameter --overwrite --type SecureString --name {name} --value \"$(openssl rand -hex 32)\""
        )
    })
}

/// Reads it until it is there, however long that takes; `say` is told why it is not.
pub(super) async fn find(
    parameters: &Parameters,
    configured: &mut watch::Receiver<Failover>,
    say: impl Fn(&str),
) -> PeerKey {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut known = String::new();
    loop {
        let source = configured.borrow_and_update().key.clone();
        match read(parameters, &source).await {
            Ok(key) => return key,
            Err(reason) => {
                if reason != known {
                    tracing::error!(reason, "no peer key: failover waits for it, nat does not");
                    say(&reason);
                    known = reason;
                }
            }
        }
        let _ = timeout(backoff.failed(), configured.changed()).await;
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
