//! Large messages that memory runs out for while their fragments come.

use super::*;
use crate::format::batch;
use crate::format::properties::{PropertiesBuilder, Tag};
use crate::format::record;
use crate::queue::policy::Refusal;

const FRAGMENT_BYTES: usize = 200_000;

/// Options of a queue that takes large messages.
pub(super) fn roomy() -> QueueOptions {
    QueueOptions { message_bytes_max: 1 << 24, ..options() }
}

impl Bench {
    /// Publishes a message of so many fragments, up to the first that is refused.
    pub(super) fn publish_large(&mut self, fragments: usize) -> Result<(), Refusal> {
        let mut properties = PropertiesBuilder::default();
        let total = (fragments * FRAGMENT_BYTES) as u64;
        properties.push(Tag::BodyBytesTotal, &total.to_le_bytes()).unwrap();
        for nth in 0..fragments {
            let first = nth == 0;
            let flags = if first { record::FRAGMENT_FIRST | record::BROKER_PROPERTIES } else { 0 }
                | if nth + 1 == fragments { record::FRAGMENT_LAST } else { 0 };
            let mut builder = BatchBuilder::default();
            let properties = if first { properties.bytes() } else { b"" };
            builder.push(flags, properties, &vec![b'0' + nth as u8; FRAGMENT_BYTES]);
            let wire = builder.finish(batch::FRAGMENT, 0, self.sequence).to_vec();
            self.queue.grant_window(self.producer);
            let taken = self.queue.publish(self.producer, &wire, Wall(5), &mut self.memory);
            taken.map_err(|refusal| refusal.expect("nothing was refused before"))?;
        }
        self.sequence += 1;
        Ok(())
    }
}

/// Of 4 MB each, so that the fourth one finds no room for its last fragments.
fn three_and_a_refusal(on_full: OnFull) -> (Bench, Refusal) {
    let mut bench = Bench::new(QueueOptions { on_full, ..roomy() });
    for _ in 0..3 {
        assert_eq!(bench.publish_large(20), Ok(()));
    }
    let refusal = bench.publish_large(20).unwrap_err();
    assert_eq!((refusal.sequence, refusal.limit), (4, Some(("memory_limit", 16 << 20))));
    assert!(bench.queue.blocked().is_none());
    (bench, refusal)
}

#[test]
fn a_large_message_without_room_is_rejected_only_by_a_queue_that_rejects() {
    for (on_full, code, retry_after_ms) in [
        (OnFull::Block, ErrorCode::NoRoomMidway, 1000),
        (OnFull::DropOldest, ErrorCode::NoRoomMidway, 1),
        (OnFull::Reject, ErrorCode::MemoryLimit, 100),
        (OnFull::DropNewest, ErrorCode::MemoryLimit, 100),
    ] {
        let (_, refusal) = three_and_a_refusal(on_full);
        assert_eq!((refusal.code, refusal.retry_after_ms), (code, retry_after_ms), "{on_full:?}");
    }
}

#[test]
fn what_found_no_room_midway_is_taken_once_there_is_some() {
    let (mut bench, _) = three_and_a_refusal(OnFull::Block);
    bench.queue.purge(None, &mut bench.memory);
    assert_eq!(bench.publish_large(20), Ok(()));
    // One was dropped for it already.
    let (mut bench, _) = three_and_a_refusal(OnFull::DropOldest);
    assert_eq!(bench.queue.counters().dropped_oldest, 1);
    assert_eq!(bench.publish_large(20), Ok(()));
    assert_eq!((bench.queue.ready(), bench.queue.counters().dropped_oldest), (3, 1));
}
