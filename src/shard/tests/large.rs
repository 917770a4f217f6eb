//! Large messages, in fragments.

use super::*;

pub(super) fn fragments_of(body: &[u8], sequence: u64) -> Vec<Vec<u8>> {
    let mut properties = crate::format::properties::PropertiesBuilder::default();
    let total = body.len() as u64;
    properties.push(crate::format::properties::Tag::BodyBytesTotal, &total.to_le_bytes()).unwrap();
    let pieces: Vec<&[u8]> = body.chunks(200_000).collect();
    let fragment = |(nth, piece): (usize, &&[u8])| {
        let first = nth == 0;
        let flags = if first { record::FRAGMENT_FIRST | record::BROKER_PROPERTIES } else { 0 }
            | if nth + 1 == pieces.len() { record::FRAGMENT_LAST } else { 0 };
        let mut builder = BatchBuilder::default();
        builder.push(flags, if first { properties.bytes() } else { &[] }, piece);
        builder.finish(batch::FRAGMENT, 0, sequence).to_vec()
    };
    pieces.iter().enumerate().map(fragment).collect()
}

#[test]
fn fragments_behind_a_refused_one_are_no_new_beginning() {
    let mut bench = Bench::new();
    let key = bench.open();
    let options = wire::QueueOptionsT {
        bytes_max: 500_000,
        on_full: wire::OnFull::Reject,
        ..wire::QueueOptionsT::default()
    };
    bench.create(key, "q", options);
    bench.producer(key, "q", 1, 0);
    let frames: Vec<Frame> = fragments_of(&[7; 600_000], 1)
        .into_iter()
        .flat_map(|batch| bench.frame(key, Opcode::Publish, 1, &batch))
        .collect();
    assert_eq!(frames.len(), 1, "a refusal is told once");
    assert_eq!(first_code(&frames), ErrorCode::MessageTooLarge);
    let mut frames = Vec::new();
    for batch in fragments_of(&[7; 400_000], 1) {
        frames = bench.frame(key, Opcode::Publish, 1, &batch);
    }
    assert_eq!(confirm_of(&frames).sequence, 1);
}

#[test]
fn a_large_message_travels_in_fragments() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let body: Vec<u8> = (0..600_000u32).map(|n| n as u8).collect();
    let mut frames = Vec::new();
    for batch in fragments_of(&body, 1) {
        frames = bench.frame(key, Opcode::Publish, 1, &batch);
    }
    assert_eq!(confirm_of(&frames).sequence, 1);
    bench.publish(key, 1, 2, &[b"after"]);
    let mut got = bodies_of(&bench.consumer(key, "q", 2, 10));
    for _ in 0..4 {
        bench.core.begin_tick(bench.now);
        bench.turn();
        got.extend(bodies_of(&bench.sent(key)));
    }
    let after = got.pop().unwrap();
    assert_eq!(after, (2, b"after".to_vec()));
    assert!(got.iter().all(|(id, _)| *id == 1));
    assert_eq!(got.into_iter().flat_map(|(_, piece)| piece).collect::<Vec<_>>(), body);
    let range = AckRange { handle: 2, first: 1, last: 2 };
    bench.frame(key, Opcode::Ack, 0, &range.encode());
    assert_eq!(bench.describe(key, "q").memory_bytes, 0);
}
