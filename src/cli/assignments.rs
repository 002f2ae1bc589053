//! Files of `KEY=value` lines, in the form that a shell and systemd's `EnvironmentFile=` both read. Nothing is executed
//! or expanded: what a shell would expand is only recognised.

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
    let text = text.strip_prefix("export ").unwrap_or(text).trim_start();
    let (key, rest) = text.split_once('=')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if key.is_empty() || !key.bytes().all(is_name) || key.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    let (value, is_expanded) = value(rest)?;
    Some(Assignment { line, key: key.to_owned(), value, is_expanded })
}

/// The value up to a blank outside of quotes, after which nothing but a comment may come; and whether something in it
/// is expanded. None if a quote is not closed, or more comes.
fn value(text: &str) -> Option<(String, bool)> {
    let (mut value, mut is_expanded) = (String::new(), false);
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (Some('\''), _) => value.push(c),
            (None, ' ' | '\t') => {
                let rest = chars.as_str().trim_start();
                return (rest.is_empty() || rest.starts_with('#')).then_some((value, is_expanded));
            }
            (None, ';' | '&' | '|' | '<' | '>' | '(' | ')') => return None,
            (None, '\\') => value.push(chars.next()?),
            (Some(_), '\\') => match chars.next()? {
                escaped @ ('"' | '\\' | '$' | '`') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            (_, '$' | '`') => {
                is_expanded = true;
                value.push(c);
            }
            _ => value.push(c),
        }
    }
    quote.is_none().then_some((value, is_expanded))
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
    fn other_lines_are_told_by_their_number() {
        let text = "# a comment\n\n; another\necho a=b\n1a=b\na=b c\na=\"b\na=b; rm -r /\n=b\na-b=c\nif true\na=$(b)\nok=1";
        let found = Assignments::parse(text);
        assert_eq!(found.others, [4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(found.all.iter().map(|a| a.key.as_str()).collect::<Vec<_>>(), ["ok"]);
        assert_eq!(found.all[0].line, 13);
    }
}
