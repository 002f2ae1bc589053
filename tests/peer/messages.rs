//! Payloads: what is sent is understood, and nothing else does harm.

use egret::failover::{Message, VERSION};
use egret::peer::payload::{Payload, message, parse, refused};
use egret::peer::{Fault, is_name};
use proptest::prelude::*;

use crate::node::{heartbeat, hello, offer};

#[test]
fn messages_are_understood_as_they_were_sent() {
    for sent in [Message::Hello(hello("az-a")), heartbeat(u64::MAX), offer(0)] {
        assert_eq!(parse(&message(&sent).unwrap()), Payload::Message(sent));
    }
    assert_eq!(parse(&refused(Fault::Claimed)), Payload::Refused(Fault::Claimed));
}

#[test]
fn message_is_a_byte_for_its_kind_and_json() {
    let bytes = message(&offer(3)).unwrap();
    assert_eq!(bytes[0], 1);
    let json: serde_json::Value = serde_json::from_slice(&bytes[1..]).unwrap();
    assert_eq!(json["kind"], "offer");
    assert_eq!(json["number"], 3);
    let json: serde_json::Value =
        serde_json::from_slice(&message(&Message::Hello(hello("a"))).unwrap()[1..]).unwrap();
    assert_eq!((&json["version"], &json["gateway"]["name"]), (&VERSION.into(), &"a".into()));
}

#[test]
fn message_longer_than_a_frame_is_not_sent() {
    let mut long = hello("a");
    long.eni = "e".repeat(70_000);
    assert!(message(&Message::Hello(long)).is_err());
}

#[test]
fn names_are_short_and_plain() {
    for name in ["a", "az-a", "0", &"a".repeat(63)] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", "A", "a.b", "a_b", "\u{e9}", "a ", &"a".repeat(64)] {
        assert!(!is_name(name), "{name}");
    }
}

proptest! {
    #[test]
    fn no_bytes_are_a_message_that_could_not_be_sent(kind in 0u8..4, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Payload::Message(found) = parse(&[vec![kind], bytes].concat()) {
            prop_assert!(found.check().is_ok());
        }
    }

    #[test]
    fn changed_message_is_another_sound_one_or_none(at in 0usize..400, value in any::<u8>(), sequence in any::<u64>()) {
        for sent in [Message::Hello(hello("az-a")), heartbeat(sequence), offer(sequence)] {
            let mut bytes = message(&sent).unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Payload::Message(found) = parse(&bytes) {
                prop_assert!(found.check().is_ok());
                prop_assert!(message(&found).is_ok());
            }
        }
    }
}
