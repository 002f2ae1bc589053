//! Keys that are set from outside of the file: by variables of the environment, which stand above it, and by tags of the
//! instance, which stand below it (`docs/decisions/0013`).
//!
//! Owns how their names stand for keys, and how a text becomes a value: TOML if it can be read as that, and otherwise a
//! string, or for a key that has a list of strings the items between its commas. What is empty is not set. It refuses
//! what a file refuses, and tags for sections that open the host to others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys;
use super::problem::{Origin, Problem};
use super::reader::{Place, Reader, Section, alternatives};

/// How the keys of tags begin that are meant for Egret.
pub const TAG_PREFIX: &str = "egret:";

/// What is set from outside of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    variables: Vec<Setting>,
    tags: Vec<Setting>,
}

/// A key that holds as it was set from outside of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The key's full path, such as `nat.timeouts.udp`.
    pub key: String,
    /// Never the file.
    pub origin: Origin,
}

/// One key with its value, neither of which may make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    origin: Origin,
    /// The key's full path.
    path: String,
    text: String,
}

impl Settings {
    /// Those of an environment: `EGRET_NAT__PORT_RANGE` is `nat.port_range`. Of others than `EGRET_*` nothing is taken,
    /// nor is `EGRET_LOG`.
    #[must_use]
    pub fn from_variables(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut variables = Vec::new();
        for (name, text) in environment {
            let (Some(name), text) = (name.to_str(), text.to_string_lossy()) else { continue };
            let Some(key) = name.strip_prefix(VARIABLE_PREFIX).filter(|_| name != LOG) else { continue };
            // Names are in upper case and keys in lower case; any other name is no key's.
            let is_upper = !key.bytes().any(|byte| byte.is_ascii_lowercase());
            let path = key.replace("__", ".");
            let path = if is_upper { path.to_ascii_lowercase() } else { path.to_ascii_uppercase() };
            variables.extend(Setting::new(Origin::Variable(name.into()), path, &text));
        }
        variables.sort_by(|a, b| a.path.cmp(&b.path));
        Self { variables, tags: Vec::new() }
    }

    /// These with the tags of an instance: `egret:nat.port_range` is `nat.port_range`. Of others than `egret:*` nothing
    /// is taken, nor is `egret:gateway`.
    #[must_use]
    pub fn with_tags(self, tags: &BTreeMap<String, String>) -> Self {
        let ours = tags.iter().filter_map(|(key, text)| {
            let path = key.strip_prefix(TAG_PREFIX).filter(|_| key != MARK)?;
            Setting::new(Origin::Tag(Arc::from(key.as_str())), path.to_owned(), text)
        });
        Self { tags: ours.collect(), ..self }
    }

    pub(super) fn has_tags(&self) -> bool {
        !self.tags.is_empty()
    }

    /// Forgets the tags that are to blame for something, or if none is by itself, the one without which all is right, or
    /// else all of them. Gives what is to be told.
    pub(super) fn leave_out(
        &mut self,
        problems: Vec<Problem>,
        is_right: impl Fn(&Self) -> bool,
    ) -> Vec<Problem> {
        let (mut told, others): (Vec<_>, Vec<_>) = problems.into_iter().partition(Problem::is_of_tag);
        let end = if told.is_empty() {
            told = others;
            let without = |left_out: &Setting| {
                let tags = self.tags.iter().filter(|tag| *tag != left_out).cloned().collect();
                Self { tags, ..self.clone() }
            };
            if let Some(tag) = self.tags.iter().find(|tag| is_right(&without(tag))).cloned() {
                *self = without(&tag);
                format!("; {} is left out", tag.origin)
            } else {
                self.tags.clear();
                "; all tags are left out".to_owned()
            }
        } else {
            self.tags.retain(|tag| told.iter().all(|problem| problem.origin != tag.origin));
            "; the tag is left out".to_owned()
        };
        for problem in &mut told {
            problem.message.push_str(&end);
        }
        told
    }

    /// Sets the keys of a document, and gives which. What is wrong with names is noted, and which tags have no effect.
    pub(super) fn put_into<'t>(&'t self, document: &mut DeTable<'t>, reader: &mut Reader<'_>) -> Vec<Set> {
        let mut set = Vec::new();
        for setting in self.variables.iter().chain(&self.tags) {
            let place = reader.place_outside(setting.origin.clone(), &setting.path);
            let value = match setting.value(&place.span()) {
                Ok(value) => value,
                Err(message) => {
                    reader.error(&place, message);
                    continue;
                }
            };
            let is_tag = matches!(setting.origin, Origin::Tag(_));
            if let Some(other) = find(document, &setting.path).filter(|_| is_tag) {
                let (origin, line) = reader.origin(&other);
                let line = line.map(|line| format!(":{line}")).unwrap_or_default();
                reader.warning(&place, format!("has no effect; {origin}{line} sets the key"));
                continue;
            }
            put(document, setting, value, &place);
            set.push(Set { key: setting.path.clone(), origin: setting.origin.clone() });
        }
        set
    }
}

impl Setting {
    fn new(origin: Origin, path: String, text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self { origin, path, text: text.to_owned() })
    }

    /// The value, all of it at one place, or what is wrong.
    fn value(&self, span: &Range<usize>) -> Result<DeValue<'_>, String> {
        keys::check_path(&self.path, |path| self.spell(path))?;
        let section = self.path.split('.').next().unwrap_or_default();
        if matches!(self.origin, Origin::Tag(_)) && !TAGGABLE.contains(&section) {
            return Err(format!("no tag can set this; only {}", alternatives(TAGGABLE)));
        }
        if self.text.len() > LONGEST {
            return Err(format!("has {} bytes; use at most {LONGEST}", self.text.len()));
        }
        match DeValue::parse(&self.text) {
            Ok(value) => Ok(moved(value.into_inner(), span)),
            Err(error) if self.text.starts_with(['[', '{', '"', '\'']) => {
                Err(format!("not TOML: {}", error.message()))
            }
            Err(_) => {
                let string = |text: &'_ str| DeValue::String(text.to_owned().into());
                Ok(if keys::is_list(&self.path) {
                    let items =
                        self.text.split(',').map(|item| Spanned::new(span.clone(), string(item.trim())));
                    DeValue::Array(items.collect())
                } else {
                    string(&self.text)
                })
            }
        }
    }

    /// Another key, as the name of something of the same kind.
    fn spell(&self, path: &str) -> String {
        match self.origin {
            Origin::File(_) => path.to_owned(),
            Origin::Variable(_) => {
                format!("{VARIABLE_PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
            }
            Origin::Tag(_) => format!("{TAG_PREFIX}{path}"),
        }
    }
}

/// Where a key stands in a document.
fn find(document: &DeTable<'_>, path: &str) -> Option<Place> {
    let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
    let root = Section::root(document);
    let mut parents = parents.split('.').filter(|parent| !parent.is_empty());
    let section = parents.try_fold(root, |section, parent| section.subsection(parent))?;
    section.keys().find_map(|(key, place)| (key == name).then_some(place))
}

/// Makes `value` that of the key. Where the document has something else in place of a section, it stays, and whoever
/// reads the section says so.
fn put<'t>(document: &mut DeTable<'t>, setting: &'t Setting, value: DeValue<'t>, place: &Place) {
    let spanned = |value| Spanned::new(place.span(), value);
    let (parents, name) = setting.path.rsplit_once('.').unwrap_or(("", &setting.path));
    let mut table = document;
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        if !table.contains_key(parent) {
            let key = Spanned::new(place.span(), parent.into());
            table.insert(key, spanned(DeValue::Table(DeTable::new())));
        }
        let Some(DeValue::Table(section)) = table.get_mut(parent).map(Spanned::get_mut) else { return };
        table = section;
    }
    // The key has a place as well, which an insertion would leave as it was.
    table.remove(name);
    table.insert(Spanned::new(place.span(), name.into()), spanned(value));
}

/// A value with everything in it at one place. The parser bounds how deep it is.
fn moved<'t>(value: DeValue<'t>, span: &Range<usize>) -> DeValue<'t> {
    let inner = |value: Spanned<DeValue<'t>>| Spanned::new(span.clone(), moved(value.into_inner(), span));
    match value {
        DeValue::Array(array) => DeValue::Array(array.into_iter().map(inner).collect()),
        DeValue::Table(table) => {
            let key = |key: Spanned<_>| Spanned::new(span.clone(), key.into_inner());
            DeValue::Table(table.into_iter().map(|(name, value)| (key(name), inner(value))).collect())
        }
        other => other,
    }
}

const VARIABLE_PREFIX: &str = "EGRET_";
/// What is logged, which is set before there is a configuration.
const LOG: &str = "EGRET_LOG";

/// What marks a resource as Egret's, for the policy of its role (`docs/iam-policy.json`).
const MARK: &str = "egret:gateway";

/// What a tag may set: how packets are translated and moved, and what is looked after at EC2. Whoever may write tags is
/// not to open ports towards the world, or to have files written.
const TAGGABLE: &[&str] = &["datapath", "xdp", "nat", "aws", "failover"];

/// The longest text, in bytes; room for a hundred listeners.
const LONGEST: usize = 64 << 10;
