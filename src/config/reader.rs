//! Typed access to a TOML document that goes on after a problem, so that all of them are found in one pass.
//!
//! serde's derive stops at the first error and knows lines only for some; here each getter notes what is wrong
//! under the key's line and path, says what is allowed, and gives `None`.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Switch;
use super::problem::{Origin, Problem};

/// Collects problems and warnings while a document is read.
pub(super) struct Reader<'i> {
    text: &'i str,
    /// Where each line begins.
    lines: Vec<usize>,
    file: Arc<Path>,
    /// Who else has put something into the document. The places of the first are one past the end of the text, those
    /// of the second one further, and so on.
    others: Vec<Origin>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

/// A table of the document and the path that leads to it.
#[derive(Clone)]
pub(super) struct Section<'a> {
    path: String,
    table: &'a DeTable<'a>,
}

/// Where a value stands, for problems that are found only later.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) key: String,
    offset: usize,
}

/// A value of the document.
pub(super) struct Field<'a> {
    place: Place,
    value: &'a DeValue<'a>,
}

/// A value that was understood, with its place.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<'i> Reader<'i> {
    pub(super) fn new(text: &'i str, file: Arc<Path>) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, lines, file, others: Vec::new(), problems: Vec::new(), warnings: Vec::new() }
    }

    /// The place of a key that is not set in the text.
    pub(super) fn place_outside(&mut self, origin: Origin, key: &str) -> Place {
        self.others.push(origin);
        Place { key: key.to_owned(), offset: self.text.len() + self.others.len() }
    }

    /// Who says what stands there, and in which line of the file.
    pub(super) fn origin(&self, place: &Place) -> (Origin, Option<usize>) {
        let other = place.offset.checked_sub(self.text.len() + 1).and_then(|index| self.others.get(index));
        match other {
            Some(origin) => (origin.clone(), None),
            None => (Origin::File(Arc::clone(&self.file)), Some(self.position(place.offset).0)),
        }
    }

    /// Notes an error.
    pub(super) fn error(&mut self, place: &Place, message: impl Into<String>) {
        let problem = self.problem(place, message.into());
        self.problems.push(problem);
    }

    /// Notes something doubtful that stops nobody.
    pub(super) fn warning(&mut self, place: &Place, message: impl Into<String>) {
        let problem = self.problem(place, message.into());
        self.warnings.push(problem);
    }

    /// Line and column, both from 1, of a byte of the text.
    pub(super) fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }

    fn problem(&self, place: &Place, message: String) -> Problem {
        let (origin, line) = self.origin(place);
        Problem { origin, line, column: None, key: place.key.clone(), message }
    }

    /// The table under `key`, if there is one.
    pub(super) fn section<'a>(&mut self, parent: &Section<'a>, key: &str) -> Option<Section<'a>> {
        let field = parent.field(key)?;
        self.table(&field)
    }

    /// The value as a table.
    pub(super) fn table<'a>(&mut self, field: &Field<'a>) -> Option<Section<'a>> {
        match field.value {
            DeValue::Table(table) => Some(Section { path: field.place.key.clone(), table }),
            _ => self.mismatch(field, "a table"),
        }
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let field = section.field(key)?;
        let text = self.text_of(&field)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let allowed: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("{} is not known; use {}", quoted(text), alternatives(&allowed));
        self.error(&field.place, message);
        None
    }

    /// A whole number within `range`.
    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        range: RangeInclusive<i64>,
        unit: &str,
    ) -> Option<Located<T>> {
        let field = section.field(key)?;
        let DeValue::Integer(integer) = field.value else {
            return self.mismatch(&field, &format!("a whole number of {unit}"));
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let value = number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        if value.is_none() {
            let message = format!(
                "{} is out of range; use a number of {unit} from {} to {}",
                shortened(&integer.to_string()),
                range.start(),
                range.end()
            );
            self.error(&field.place, message);
        }
        value.map(|value| Located { value, place: field.place })
    }

    /// A number within `range`, whole or not.
    pub(super) fn number(
        &mut self,
        section: &Section<'_>,
        key: &str,
        range: &RangeInclusive<f64>,
        unit: &str,
    ) -> Option<f64> {
        let field = section.field(key)?;
        let text = match field.value {
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
            DeValue::Float(float) => float.as_str(),
            _ => return self.mismatch(&field, &format!("a number of {unit}")),
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (text, least, most) = (shortened(text), range.start(), range.end());
            let message = format!("{text} is out of range; use a number of {unit} from {least} to {most}");
            self.error(&field.place, message);
        }
        number
    }

    pub(super) fn boolean(&mut self, section: &Section<'_>, key: &str) -> Option<bool> {
        let field = section.field(key)?;
        match field.value {
            DeValue::Boolean(value) => Some(*value),
            _ => self.mismatch(&field, "true or false"),
        }
    }

    /// `"auto"`, or a boolean.
    pub(super) fn switch(&mut self, section: &Section<'_>, key: &str) -> Option<Located<Switch>> {
        const ALLOWED: &str = "\"auto\", true or false";
        let field = section.field(key)?;
        let value = match field.value {
            DeValue::Boolean(true) => Switch::On,
            DeValue::Boolean(false) => Switch::Off,
            DeValue::String(text) if text == "auto" => Switch::Auto,
            DeValue::String(text) => {
                self.error(&field.place, format!("{} is not known; use {ALLOWED}", quoted(text)));
                return None;
            }
            _ => return self.mismatch(&field, ALLOWED),
        };
        Some(Located { value, place: field.place })
    }

    /// A time with its unit, within `range`.
    pub(super) fn duration(
        &mut self,
        section: &Section<'_>,
        key: &str,
        range: &RangeInclusive<Duration>,
    ) -> Option<Located<Duration>> {
        let allowed = format!(
            "use a time from {} to {}, such as \"300s\" or \"2h4m\"",
            humantime::format_duration(*range.start()),
            humantime::format_duration(*range.end())
        );
        self.parsed(section, key, |text| match humantime::parse_duration(text) {
            Ok(duration) if range.contains(&duration) => Ok(duration),
            Ok(_) => Err(format!("{} is out of range; {allowed}", quoted(text))),
            Err(error) => Err(format!("{} is not a time ({error}); {allowed}", quoted(text))),
        })
    }

    /// A string that `parse` understands or refuses with a message.
    pub(super) fn parsed<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let field = section.field(key)?;
        self.parsed_field(field, parse)
    }

    /// As [`Self::parsed`], for a value in hand.
    pub(super) fn parsed_field<T>(
        &mut self,
        field: Field<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        match parse(self.text_of(&field)?) {
            Ok(value) => Some(Located { value, place: field.place }),
            Err(message) => {
                self.error(&field.place, message);
                None
            }
        }
    }

    /// The values of an array, each with the path `key[index]`, and the place of the array.
    pub(super) fn array<'a>(&mut self, section: &Section<'a>, key: &str) -> Option<Located<Vec<Field<'a>>>> {
        let field = section.field(key)?;
        let DeValue::Array(array) = field.value else {
            return self.mismatch(&field, "an array");
        };
        let value = array
            .iter()
            .enumerate()
            .map(|(index, item)| Field {
                place: Place { key: format!("{}[{index}]", field.place.key), offset: item.span().start },
                value: item.get_ref(),
            })
            .collect();
        Some(Located { value, place: field.place })
    }

    fn text_of<'a>(&mut self, field: &Field<'a>) -> Option<&'a str> {
        // Outside of a file nobody puts in quotes what can be nothing else.
        let is_outside = !matches!(self.origin(&field.place).0, Origin::File(_));
        match field.value {
            DeValue::String(text) => Some(text),
            DeValue::Integer(number) if is_outside && number.radix() == 10 => Some(number.as_str()),
            DeValue::Float(number) if is_outside => Some(number.as_str()),
            DeValue::Boolean(value) if is_outside => Some(if *value { "true" } else { "false" }),
            _ => self.mismatch(field, "a string in quotes"),
        }
    }

    fn mismatch<T>(&mut self, field: &Field<'_>, wanted: &str) -> Option<T> {
        let message = format!("is of the type {}; use {wanted}", field.value.type_str());
        self.error(&field.place, message);
        None
    }
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(table: &'a DeTable<'a>) -> Self {
        Self { path: String::new(), table }
    }

    /// The table under `name`, if it is one.
    pub(super) fn subsection(&self, name: &str) -> Option<Self> {
        let field = self.field(name)?;
        match field.value {
            DeValue::Table(table) => Some(Self { path: field.place.key, table }),
            _ => None,
        }
    }

    /// The path, empty for the whole document.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The names and places of all keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&'a str, Place)> {
        self.table.iter().map(|(key, _)| (key.get_ref().as_ref(), self.place(key)))
    }

    fn field(&self, name: &str) -> Option<Field<'a>> {
        let (key, value) = self.table.get_key_value(name)?;
        Some(Field { place: self.place(key), value: value.get_ref() })
    }

    fn place(&self, key: &Spanned<DeString<'a>>) -> Place {
        let name = key.get_ref();
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let name = if !name.is_empty() && name.len() <= SHOWN && name.chars().all(bare) {
            name.to_string()
        } else {
            quoted(name)
        };
        let key_path = if self.path.is_empty() { name } else { format!("{}.{name}", self.path) };
        Place { key: key_path, offset: key.span().start }
    }
}

impl Place {
    /// For what is put into a document there.
    pub(super) const fn span(&self) -> Range<usize> {
        self.offset..self.offset
    }
}

impl Field<'_> {
    pub(super) const fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn alternatives(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The text in quotes, fit for a terminal: control characters escaped, and not too long.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

fn shortened(text: &(impl Display + ?Sized)) -> String {
    let text = text.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// How many characters of a value a message repeats.
const SHOWN: usize = 60;
