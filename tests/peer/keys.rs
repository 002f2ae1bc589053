//! Key files, and `egret peer-key`, which makes them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use egret::peer::{Key, KeyError};

fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("peer-keys-{name}"));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn write(path: &Path, content: impl AsRef<[u8]>, mode: u32) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

#[test]
fn key_that_was_written_is_read_again() {
    let path = scratch("again").join("peer.key");
    let key = Key::generate().unwrap();
    key.write_new(&path).unwrap();
    assert!(Key::read(&path).unwrap() == key);
    assert!(Key::generate().unwrap() != key);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let line = std::fs::read_to_string(&path).unwrap();
    assert_eq!((line.len(), *key.to_line() == line), (65, true));
    assert!(matches!(Key::generate().unwrap().write_new(&path), Err(KeyError::Exists(_))));
    assert!(Key::read(&path).unwrap() == key, "it is still the old one");
}

#[test]
fn key_is_64_digits_with_or_without_an_end_of_the_line() {
    let path = scratch("digits").join("peer.key");
    for content in [DIGITS.to_owned(), format!("{DIGITS}\n"), format!("{DIGITS}\r\n"), DIGITS.to_lowercase()] {
        write(&path, content, 0o600);
        assert_eq!(*Key::read(&path).unwrap().to_line(), format!("{}\n", DIGITS.to_lowercase()));
    }
}

#[test]
fn what_is_not_a_key_is_refused() {
    let path = scratch("malformed").join("peer.key");
    for content in [
        String::new(),
        "\n".to_owned(),
        DIGITS[1..].to_owned(),
        format!("{DIGITS}00"),
        format!("{DIGITS}\n\n"),
        format!("{DIGITS}\n{DIGITS}\n"),
        format!(" {}", &DIGITS[1..]),
        format!("g{}", &DIGITS[1..]),
        format!("+{}", &DIGITS[1..]),
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
        "0".repeat(1 << 20),
    ] {
        write(&path, &content, 0o600);
        let error = Key::read(&path).unwrap_err();
        assert!(matches!(error, KeyError::Malformed(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("is not a key, which is one line of 64 hexadecimal digits"), "{text}");
        assert!(
            content.len() < 8 || !text.contains(&content[..8]),
            "a key that is nearly one is no less a secret"
        );
    }
}

#[test]
fn key_that_others_can_read_or_change_is_refused_with_what_to_do() {
    let path = scratch("modes").join("peer.key");
    for mode in [0o644, 0o604, 0o602, 0o620, 0o660, 0o666] {
        write(&path, DIGITS, mode);
        let error = Key::read(&path).unwrap_err().to_string();
        let path = path.display();
        let expected = format!("(mode {mode:04o}); run: chgrp egret {path} && chmod 640 {path}");
        assert!(error.ends_with(&expected), "{error}");
    }
    for mode in [0o400, 0o600, 0o440, 0o640] {
        write(&path, DIGITS, mode);
        Key::read(&path).unwrap();
    }
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let directory = scratch("kinds");
    let missing = Key::read(&directory.join("peer.key")).unwrap_err();
    assert!(matches!(missing, KeyError::Missing(_)));
    assert!(missing.to_string().contains("peer.key does not exist; make a key"), "{missing}");
    assert!(matches!(Key::read(&directory), Err(KeyError::NotAFile(_))));
    let pipe = directory.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(matches!(Key::read(&pipe), Err(KeyError::NotAFile(_))));
    assert!(matches!(Key::read(&directory.join("no/such/peer.key")), Err(KeyError::Missing(_))));
    let unwritable = Key::generate().unwrap().write_new(&directory.join("no/such/peer.key"));
    assert!(matches!(unwritable, Err(KeyError::Write { .. })));
}

#[test]
fn key_is_shown_by_no_debugging() {
    let key = Key::generate().unwrap();
    assert_eq!(format!("{key:?}"), "Key");
}

#[test]
fn command_makes_a_key_in_a_file_or_on_standard_output() {
    let directory = scratch("command");
    let egret = |arguments: &[&Path]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_egret")).arg("peer-key").args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let path = directory.join("peer.key");
    assert_eq!(egret(&[&path]).0, Some(0));
    let made = Key::read(&path).unwrap();
    let (code, _, error) = egret(&[&path]);
    assert_eq!(code, Some(1));
    assert!(error.contains("is there already"), "{error}");
    assert!(Key::read(&path).unwrap() == made);
    let (code, out, error) = egret(&[]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let other = directory.join("other.key");
    write(&other, out, 0o600);
    assert!(Key::read(&other).unwrap() != made);
}
