//! Where the configuration comes from: the file, the variables of the environment above it, and the tags of the instance
//! below it.
//!
//! Owns when tags are asked for, and what holds without an answer: those that were told before, and at the start none, as
//! nothing waits for the metadata service for long. Until they have been told once, they are asked for again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::proc::Proc;
use super::{facts, with_causes};
use crate::config::{self, Config, Problems, ResolveError, Settings, Switch};

/// See the module.
#[derive(Debug)]
pub(super) struct Sources {
    file: PathBuf,
    variables: Vec<(OsString, OsString)>,
    /// Those that are meant for Egret, as they were told last; unset until they have been.
    tags: Option<BTreeMap<String, String>>,
    /// Why tags were asked for in vain the last time, if they were.
    in_vain: Option<Unknown>,
    /// Asks even where AWS is not found by itself.
    insist: bool,
}

impl Sources {
    /// The file, and the variables of this process.
    pub(super) fn new(file: &Path) -> Self {
        Self::with_variables(file, std::env::vars_os().collect())
    }

    pub(super) fn with_variables(file: &Path, variables: Vec<(OsString, OsString)>) -> Self {
        Self { file: file.to_owned(), variables, tags: None, in_vain: None, insist: false }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the tags should be known, and are not.
    pub(super) const fn lacks_tags(&self) -> bool {
        self.in_vain.is_some() && self.tags.is_none()
    }

    /// Reads all of them again; takes some 2 s at most.
    ///
    /// # Errors
    /// Everything that is wrong with the file and the variables. Tags that are wrong, or that do not fit the host, are
    /// left out, which is a warning in the log, or of the configuration.
    pub(super) async fn load(&mut self, proc: &Proc) -> Result<Config, Problems> {
        let settings = Settings::from_variables(self.variables.iter().cloned());
        let without = config::load(&self.file, &settings);
        // What is wrong without tags may be right with them.
        self.ask(without.as_ref().map_or(Switch::Auto, |config| config.aws.enabled)).await;
        let Some(tags) = self.tags.as_ref().filter(|tags| !tags.is_empty()) else { return without };
        let with = config::load(&self.file, &settings.with_tags(tags))?;
        let Ok(without) = without else { return Ok(with) };
        // What does not fit either way is not the tags' doing, and the cloud may yet tell that it fits.
        let before = misfits(&without, proc);
        let errors: Vec<_> = misfits(&with, proc).into_iter().filter(|error| !before.contains(error)).collect();
        if errors.is_empty() {
            return Ok(with);
        }
        for error in errors {
            tracing::warn!(%error, "instance tags do not fit this host, all of them are left out");
        }
        Ok(without)
    }

    async fn ask(&mut self, aws: Switch) {
        let aws = if self.insist && aws == Switch::Auto { Switch::On } else { aws };
        let Some(told) = tags(aws).await else { return };
        self.in_vain = None;
        match told {
            Ok(tags) => self.tags = Some(tags),
            Err(error) => {
                let reason = with_causes(&*error);
                // A metadata service that says nothing at all is warned of where its facts are missed.
                tracing::info!(error = reason, "instance tags not known, going on without news of them");
                self.in_vain = Some(error);
            }
        }
    }
}

/// Ends when the metadata service has tags to tell, which it had not so far; never, if nobody is to be asked.
pub(super) async fn tags_at_last(aws: Switch) {
    let mut wait = FIRST_WAIT;
    loop {
        sleep(wait).await;
        match tags(aws).await {
            Some(Ok(_)) => return,
            Some(Err(_)) => wait = (wait * 2).min(LONGEST_WAIT),
            None => std::future::pending().await,
        }
    }
}

/// What of a configuration this host cannot have.
fn misfits(config: &Config, proc: &Proc) -> Vec<ResolveError> {
    // That the host cannot be looked at is told by whoever needs to.
    facts(proc).map(|host| config::resolve(config, &host).err().unwrap_or_default()).unwrap_or_default()
}

/// What the service would run with: the file, these variables, and the tags of this instance. `insist` is to ask for
/// tags even where AWS is not found by itself, and that there is an answer; otherwise they count if they are to be had.
///
/// # Errors
/// Tags are insisted on and not known. Within, everything that is wrong with the configuration.
pub fn would_load(
    file: &Path,
    variables: Vec<(OsString, OsString)>,
    insist: bool,
) -> Result<Result<Config, Problems>, Unknown> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut sources = Sources { insist, ..Sources::with_variables(file, variables) };
    let loaded = runtime.block_on(sources.load(&Proc::at(Path::new("/proc"))));
    match (&sources.tags, sources.in_vain) {
        (None, Some(error)) if insist => Err(error),
        (None, None) if insist && cfg!(feature = "aws") => Err("aws.enabled is false".into()),
        (None, None) if insist => Err("this egret was built without AWS support".into()),
        _ => Ok(loaded),
    }
}

/// Why tags are not known.
pub type Unknown = Box<dyn std::error::Error + Send + Sync>;

/// None if nobody is to be asked.
#[cfg(feature = "aws")]
async fn tags(aws: Switch) -> Option<Result<BTreeMap<String, String>, Unknown>> {
    use crate::aws::Imds;

    // Of an answer that comes from the host beside.
    const PATIENCE: Duration = Duration::from_secs(2);
    if !super::aws::is_on(aws) {
        return None;
    }
    let asked = tokio::time::timeout(PATIENCE, async { Imds::new().tags(config::TAG_PREFIX).await }).await;
    Some(match asked {
        Ok(told) => told.map_err(Into::into),
        Err(_) => Err(format!("the metadata service has not answered within {PATIENCE:?}").into()),
    })
}

#[cfg(not(feature = "aws"))]
#[allow(clippy::unused_async, reason = "with AWS support it waits")]
async fn tags(_: Switch) -> Option<Result<BTreeMap<String, String>, Unknown>> {
    None
}

/// Between two questions for tags that were not told.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
