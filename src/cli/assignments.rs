//! Files of `KEY=value` lines, as a shell reads them; systemd's `EnvironmentFile=` (systemd.exec(5)) reads most of that
//! alike. Nothing is executed or expanded: what a shell would expand is only recognised.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::Path;

/// What a file says, line by line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Assignments {
    pub(super) all: Vec<Assignment>,
    /// The numbers, from 1, of lines that are none.
    pub(super) others: Vec<usize>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
    /// Whether a shell would put something else in place of a part of the value.
    pub(super) is_expanded: bool,
    /// Whether systemd reads it otherwise: it knows no `export`, no comment beside a value, and quotes only around a
    /// whole value.
    pub(super) is_of_shell: bool,
}

impl Assignments {
    /// # Errors
    /// The file cannot be read, or is longer than any of its kind.
    pub(super) fn read(path: &Path) -> std::io::Result<Self> {
        let mut text = String::new();
        File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::new(ErrorKind::FileTooLarge, format!("longer than {MAX_BYTES} bytes")));
        }
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut assignments = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            match assignment(index + 1, line) {
                Some(assignment) => assignments.all.push(assignment),
                None => assignments.others.push(index + 1),
            }
        }
        assignments
    }
}

fn assignment(line: usize, text: &str) -> Option<Assignment> {
    let exported = text.strip_prefix("export ");
    let text = exported.unwrap_or(text).trim_start();
    let (key, rest) = text.split_once('=')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if key.is_empty() || !key.bytes().all(is_name) || key.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    let Value { text, is_expanded, is_of_shell } = value(rest)?;
    let is_of_shell = is_of_shell || exported.is_some();
    Some(Assignment { line, key: key.to_owned(), value: text, is_expanded, is_of_shell })
}

#[derive(Default)]
struct Value {
    text: String,
    is_expanded: bool,
    is_of_shell: bool,
}

/// The value up to a blank outside of quotes, after which nothing but a comment may come. None if a quote is not closed,
/// or more comes.
fn value(text: &str) -> Option<Value> {
    let mut value = Value::default();
    let (mut quote, mut is_bare) = (None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => {
                quote = Some(c);
                value.is_of_shell |= is_bare;
            }
            (Some(open), _) if open == c => quote = None,
            (Some('\''), _) => value.text.push(c),
            (None, ' ' | '\t') => {
                let rest = chars.as_str().trim_start();
                value.is_of_shell |= !rest.is_empty();
                return (rest.is_empty() || rest.starts_with('#')).then_some(value);
            }
            (None, ';' | '&' | '|' | '<' | '>' | '(' | ')') => return None,
            (None, '\\') => value.text.push(chars.next()?),
            (Some(_), '\\') => match chars.next()? {
                escaped @ ('"' | '\\' | '$' | '`') => value.text.push(escaped),
                other => value.text.extend(['\\', other]),
            },
            (_, c) => {
                value.is_expanded |= matches!(c, '$' | '`');
                value.text.push(c);
            }
        }
        is_bare |= quote.is_none() && !matches!(c, '\'' | '"');
    }
    quote.is_none().then_some(value)
}

const MAX_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, String, bool)> {
        let all = Assignments::parse(text).all;
        all.into_iter().map(|found| (found.key, found.value, found.is_expanded)).collect()
    }

    #[test]
    fn values_are_what_a_shell_makes_of_them() {
        for (text, expected) in [
            ("a=b", "b"),
            ("a=", ""),
            ("  export a=b  ", "b"),
            ("a=b # c", "b"),
            ("a=b#c", "b#c"),
            ("a=\"b c\"", "b c"),
            ("a='b \"$c\"'", "b \"$c\""),
            ("a=\"b \\\"c\\\" \\n\"", "b \"c\" \\n"),
            ("a=b\\ c", "b c"),
            ("a=\"b\"'c'd", "bcd"),
            ("a=b=c", "b=c"),
        ] {
            assert_eq!(values(text), [("a".to_owned(), expected.to_owned(), false)], "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_expand_is_recognised() {
        for text in ["a=$b", "a=\"${b}\"", "a=`b`", "a=\"`b`\""] {
            assert!(values(text)[0].2, "{text}");
        }
    }

    #[test]
    fn what_systemd_reads_otherwise_is_recognised() {
        let is_of_shell = |text: &str| Assignments::parse(text).all[0].is_of_shell;
        for text in ["export a=b", "a=b # c", "a=\"b\" # c", "a=b\"c\""] {
            assert!(is_of_shell(text), "{text}");
        }
        for text in ["a=b", "a=\"b # c\"", "a='b'", "a=b#c", "a=b\\ c", "a=\"b\"'c'd", "a= "] {
            assert!(!is_of_shell(text), "{text}");
        }
    }

    #[test]
    fn other_lines_are_told_by_their_number() {
        let text = "# a comment\n\n; another\necho a=b\n1a=b\na=b c\na=\"b\na=b; rm -r /\n=b\na-b=c\nif true\na=$(b)\nok=1";
        let found = Assignments::parse(text);
        assert_eq!(found.others, [4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(found.all.iter().map(|a| a.key.as_str()).collect::<Vec<_>>(), ["ok"]);
        assert_eq!(found.all[0].line, 13);
    }
}
