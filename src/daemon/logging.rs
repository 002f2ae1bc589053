//! The log: to standard error, as text or as JSON, filtered by `EGRET_LOG`.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
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
            let subscriber = subscriber.with_filter_reloading();
            let handle = subscriber.reload_handle();
            let started = subscriber.finish().with(filter_fn(is_discreet)).try_init();
            started.inspect(|()| remember(handle))
        }
        LogFormat::Json => {
            let subscriber = subscriber.json().flatten_event(true).with_filter_reloading();
            let handle = subscriber.reload_handle();
            let started = subscriber.finish().with(filter_fn(is_discreet)).try_init();
            started.inspect(|()| remember(handle))
        }
    };
    if let (Ok(()), Some(error)) = (started, refused) {
        tracing::warn!(variable = VARIABLE, %error, "log filter not understood, logging at info");
    }
}

/// What is logged, after that was changed to `filter`, if there is one.
///
/// # Errors
/// The filter makes no sense, or logging was never started.
pub(super) fn level(filter: Option<&str>) -> Result<String, String> {
    let access = FILTER.get().ok_or("there is no log")?;
    let filter =
        filter.map(|filter| EnvFilter::try_new(filter).map_err(|error| format!("not a log filter: {error}")));
    let is_new = filter.is_some();
    let told = access(filter.transpose()?)?;
    if is_new {
        tracing::info!(filter = told, "log filter changed");
    }
    Ok(told)
}

/// Keeps the way to the filter of the process's log.
fn remember<S: 'static>(handle: Handle<EnvFilter, S>) {
    let access = move |filter: Option<EnvFilter>| {
        let gone = |error: tracing_subscriber::reload::Error| error.to_string();
        if let Some(filter) = filter {
            handle.reload(filter).map_err(gone)?;
        }
        handle.with_current(ToString::to_string).map_err(gone)
    };
    // The log is started once.
    let _ = FILTER.set(Box::new(access));
}

/// Changes the filter, if there is one, and tells the one in force.
type Access = Box<dyn Fn(Option<EnvFilter>) -> Result<String, String> + Send + Sync>;

static FILTER: OnceLock<Access> = OnceLock::new();

/// At trace, the AWS SDK logs the headers of requests, with the metadata service's token.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    *metadata.level() != Level::TRACE || !metadata.target().starts_with("aws_")
}

const VARIABLE: &str = "EGRET_LOG";
