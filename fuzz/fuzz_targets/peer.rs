//! Any bytes of a peer: what is said in the clear, and what was sealed by somebody who has the key.
#![no_main]

use egret::failover::{Failback, Gateway, Hello, Message, Offer, Planned, VERSION};
use egret::peer::{payload, preamble};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: write_seeds(), |data: &[u8]| {
    if let Ok((names, end)) = preamble::read(data) {
        assert!(preamble::is_name(&names.dialling) && preamble::is_name(&names.dialled));
        assert!(end <= data.len());
        assert_eq!(preamble::read(&data[..end]), Ok((names, end)), "what follows does not matter");
    }
    if let Ok(end) = preamble::read_answer(data) {
        assert!(end <= data.len());
    }
    if let payload::Payload::Message(message) = payload::parse(data) {
        assert!(message.check().is_ok());
        let again = payload::message(&message).unwrap();
        assert_eq!(payload::parse(&again), payload::Payload::Message(message));
    }
});

fn write_seeds() {
    let Some(directory) = std::env::var_os("EGRET_FUZZ_SEEDS") else { return };
    let gateway = Gateway {
        name: "az-a".to_owned(),
        allocations: vec!["eipalloc-0123456789abcdef0".to_owned()],
        route_tables: vec!["rtb-0123456789abcdef0".to_owned()],
        destinations: vec!["0.0.0.0/0".parse().unwrap()],
        heirs: vec!["az-b".to_owned()],
        failback: Failback::Auto,
        fallback: None,
    };
    let hello = Hello { version: VERSION, eni: "eni-0123456789abcdef0".to_owned(), gateway };
    let offer = Offer { gateway: "az-a".to_owned(), number: 1, why: Planned::Leaving };
    let messages = [Message::Hello(hello), Message::Offer(offer)].map(|message| payload::message(&message).unwrap());
    let preambles = [&b"egret\x01\x04az-a\x04az-b"[..], b"egret\x01\x00"].map(<[u8]>::to_vec);
    for (number, seed) in messages.into_iter().chain(preambles).enumerate() {
        // Without seeds the fuzzer only starts slower.
        let _ = std::fs::write(std::path::Path::new(&directory).join(format!("seed-{number}")), seed);
    }
}
