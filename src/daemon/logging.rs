//! The log: to standard error, as text or as JSON, filtered by `EGRET_LOG`.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Starts logging for the process, at info unless `EGRET_LOG` says otherwise (the syntax is `EnvFilter`'s, such
/// as `debug` or `egret::admin=trace`). What would show credentials is never logged. Does nothing if logging was started already.
pub fn init_logging(format: LogFormat) {
    let builder = || EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let (filter, refused) = match builder().with_env_var(VARIABLE).try_from_env() {
        Ok(filter) => (filter, None),
        Err(error) => (builder().parse_lossy(""), std::env::var_os(VARIABLE).map(|_| error)),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => {
            let subscriber = subscriber.with_target(false).with_ansi(std::io::stderr().is_terminal());
            subscriber.finish().with(filter_fn(is_discreet)).try_init()
        }
        LogFormat::Json => {
            subscriber.json().flatten_event(true).finish().with(filter_fn(is_discreet)).try_init()
        }
    };
    if let (Ok(()), Some(error)) = (started, refused) {
        tracing::warn!(variable = VARIABLE, %error, "log filter not understood, logging at info");
    }
}

/// At trace, the AWS SDK logs the headers of requests, with the metadata service's token.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    *metadata.level() != Level::TRACE || !metadata.target().starts_with("aws_")
}

const VARIABLE: &str = "EGRET_LOG";
