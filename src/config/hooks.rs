//! The keys `launching_hook` and `terminating_hook` of the section `[aws]`.

use super::Hooks;
use super::reader::{Reader, Section, quoted};
use super::render::{optional, string};

pub(super) fn read(reader: &mut Reader<'_>, section: &Section<'_>) -> Hooks {
    let mut hook = |key| reader.parsed(section, key, name).map(|name| name.value);
    Hooks { launching: hook("launching_hook"), terminating: hook("terminating_hook") }
}

/// Writes what [`read`] reads.
pub(super) fn write(out: &mut String, hooks: &Hooks) -> std::fmt::Result {
    optional(out, "launching_hook", hooks.launching.as_deref().map(string), "none")?;
    optional(out, "terminating_hook", hooks.terminating.as_deref().map(string), "none")
}

/// <https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_PutLifecycleHook.html>
fn name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/');
    if text.is_empty() || text.len() > LONGEST || !text.bytes().all(good) {
        return Err(format!(
            "{} is not the name of a lifecycle hook; use up to {LONGEST} letters, digits, -, _ and /",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

const LONGEST: usize = 255;
