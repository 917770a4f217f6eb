//! Chunks that leave memory and come back: order, what needs no records, losses, who waits.

use super::large::roomy;
use super::*;
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, CHUNK_HEADER_BYTES, RECORD_HEADER_BYTES,
};
use crate::queue::consumer::PullState;
use crate::queue::memory::Overflow;
use crate::queue::spill::Eviction;
use crate::queue::tests::disk::TestDisk;

/// A bench with a disk, and so many messages of 1000 bytes, of which a chunk holds few.
fn spilled(messages: usize, options: QueueOptions) -> (Bench, TestDisk) {
    let mut bench = Bench::new(options);
    for nth in 0..messages {
        assert_eq!(bench.publish(&[&body(nth)]), None);
    }
    (bench, TestDisk::new())
}

fn body(nth: usize) -> String {
    format!("{nth:01000}")
}

fn bodies(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(body).collect()
}

impl Bench {
    fn spill_all(&mut self, disk: &mut TestDisk) {
        disk.spill(&mut self.queue, usize::MAX, true);
        disk.evict(&mut self.queue, 0);
        TestDisk::check(&self.queue);
    }

    /// Reads one chunk that somebody waits for.
    fn read(&mut self, disk: &mut TestDisk) -> bool {
        let read = disk.refill(&mut self.queue, &mut self.memory, 0);
        TestDisk::check(&self.queue);
        read
    }

    /// All that comes out, however often a chunk must be read for it.
    fn all_bodies(&mut self, disk: &mut TestDisk) -> Vec<String> {
        let mut all = self.bodies();
        for _ in 0..1000 {
            if !self.read(disk) {
                return all;
            }
            all.extend(self.bodies());
        }
        panic!("it is read again and again");
    }

    fn large(&mut self, fragments: usize) {
        assert_eq!(self.publish_large(fragments), Ok(()));
    }
}

#[test]
fn subscriptions_at_different_places_get_everything_in_order_from_disk() {
    let (mut bench, mut disk) = spilled(60, options());
    let late = bench.subscribe("late", Start::Oldest);
    let consumer = bench.consumer(2, 20, false);
    assert_eq!(bench.bodies(), bodies(0..20));
    bench.spill_all(&mut disk);
    assert_eq!(bench.queue.memory_bytes(), 0);
    assert_eq!(bench.queue.spilled_messages(), 60);
    // New ones come behind those on disk.
    for nth in 60..70 {
        bench.publish(&[&body(nth)]);
    }
    assert!(bench.queue.add_credit(consumer, 1000, 1 << 20));
    assert_eq!(bench.all_bodies(&mut disk), bodies(20..70));
    bench.consumer_of(late, 3, 1000, true);
    bench.spill_all(&mut disk);
    assert_eq!(bench.all_bodies(&mut disk), bodies(0..70));
    bench.queue.ack(consumer, 1, 70, &mut bench.memory).unwrap();
    assert_eq!((bench.queue.memory_bytes(), bench.queue.bytes()), (0, 0));
    assert_eq!((bench.queue.spilled_messages(), bench.queue.spilled_bytes()), (0, 0));
}

#[test]
fn the_newest_chunk_goes_first_and_what_a_cursor_needs_stays() {
    let (mut bench, mut disk) = spilled(40, options());
    bench.consumer(2, 1, false);
    assert_eq!(bench.bodies(), bodies(0..1));
    let spillable = bench.queue.spillable_bytes();
    assert!(spillable > 0 && bench.queue.tail_bytes() > 0);
    let first = bench.queue.take_victim(false).unwrap();
    let second = bench.queue.take_victim(false).unwrap();
    assert!(first.chunk > second.chunk);
    assert!(bench.queue.spillable_bytes() < spillable);
    for victim in [first, second] {
        bench.queue.handle_spill_failed(victim.chunk);
    }
    assert_eq!(bench.queue.spillable_bytes(), spillable);
    TestDisk::check(&bench.queue);
    let tail = bench.queue.tail_bytes();
    while disk.spill(&mut bench.queue, 1, false) > 0 {}
    assert_eq!((bench.queue.spillable_bytes(), bench.queue.tail_bytes()), (0, tail));
    // The first chunk, where the cursor stands, is on disk and in memory.
    assert_eq!(disk.clean, [0]);
    assert_eq!(bench.queue.evict(0, 1), Eviction::Needed);
    assert!(bench.queue.take_victim(true).is_some());
    assert_eq!(bench.queue.tail_bytes(), 0);
    assert!(bench.queue.take_victim(true).is_none());
}

#[test]
fn what_stands_on_disk_is_acked_returned_purged_and_deleted_without_a_read() {
    let (mut bench, mut disk) = spilled(30, options());
    let consumer = bench.consumer(2, 20, false);
    assert_eq!(bench.bodies().len(), 20);
    bench.spill_all(&mut disk);
    bench.queue.ack(consumer, 3, 9, &mut bench.memory).unwrap();
    bench.nack(consumer, NackKind::Returned, 1, 2);
    bench.nack(consumer, NackKind::Failed, 10, 11);
    bench.nack(consumer, NackKind::Rejected, 12, 12);
    assert_eq!((bench.queue.ready(), bench.queue.in_flight(), bench.queue.delayed()), (12, 8, 2));
    let each = bench.queue.bytes() / 23;
    bench.pass(60_000);
    assert_eq!((bench.queue.in_flight(), bench.queue.bytes()), (0, 23 * each));
    assert_eq!(bench.queue.memory_bytes(), 0);
    bench.queue.purge(None, &mut bench.memory);
    assert_eq!((bench.queue.messages(), bench.queue.bytes()), (1, each));
    let removed = bench.queue.delete(&mut bench.memory);
    assert_eq!(removed, (1, each));
    bench.memory.shrink(0);
    assert_eq!(bench.memory.budget.used_bytes(), 0);
}

#[test]
fn what_comes_back_is_not_overtaken_while_it_is_read() {
    let (mut bench, mut disk) = spilled(30, options());
    let first = bench.consumer(2, 4, false);
    assert_eq!(bench.bodies(), bodies(0..4));
    bench.queue.ack(first, 2, 2, &mut bench.memory).unwrap();
    bench.spill_all(&mut disk);
    bench.queue.close_consumer(first, bench.now, &mut bench.memory);
    bench.publish(&["new"]);
    bench.consumer(3, 100, true);
    assert!(bench.bodies().is_empty() && bench.queue.wants_refill(1));
    assert!(bench.queue.take_waited() && !bench.queue.take_waited());
    assert!(bench.queue.subscription(bench.subscription).unwrap().waits_for_disk());
    let mut expected = bodies(0..30);
    expected.remove(1);
    expected.push("new".into());
    assert_eq!(bench.all_bodies(&mut disk), expected);
}

#[test]
fn a_large_message_comes_fragment_by_fragment_and_dies_whole() {
    let mut bench = Bench::with(
        roomy(),
        SubscriptionOptions { max_attempts: 1, ..SubscriptionOptions::default() },
    );
    let mut disk = TestDisk::new();
    bench.large(12);
    bench.publish(&["behind"]);
    bench.spill_all(&mut disk);
    let consumer = bench.consumer(2, 1, false);
    let (mut fragments, mut reads) = (0, 0);
    while reads < 100 {
        while let Some(delivery) =
            bench.queue.poll_delivery(bench.now, &mut bench.memory, &mut |_| true)
        {
            let bytes = delivery.bytes.chunk.slice(delivery.bytes.range.clone());
            let record = Records::new(bytes).next().unwrap();
            assert!(record.body.iter().all(|&byte| byte == b'0' + fragments));
            fragments += 1;
        }
        if !bench.read(&mut disk) {
            break;
        }
        reads += 1;
        disk.evict(&mut bench.queue, 1);
    }
    assert_eq!(fragments, 12);
    assert!(reads >= 3, "{reads} chunks were read");
    bench.spill_all(&mut disk);
    bench.nack(consumer, NackKind::Failed, 1, 1);
    // All of it must be there at once.
    let mut out = None;
    for _ in 0..20 {
        out = bench.queue.poll_move(bench.now);
        if out.is_some() || !bench.read(&mut disk) {
            break;
        }
        disk.evict(&mut bench.queue, 1);
    }
    let out = out.expect("it is sent when all of it is there");
    let record_max = bench.memory.record_content_bytes_max();
    let moved = bench.queue.move_out(&out.run, record_max, |own| Some(own.to_vec()));
    assert!(moved.unwrap().unwrap().bytes() > 12 * 200_000);
    bench.queue.handle_moved(bench.subscription, 1, Ok(()), bench.now, &mut bench.memory);
    assert_eq!(bench.queue.messages(), 1);
    TestDisk::check(&bench.queue);
}

#[test]
fn a_chunk_that_cannot_be_read_is_counted_and_the_rest_goes_on() {
    let (mut bench, mut disk) = spilled(40, options());
    let other = bench.subscribe("other", Start::Oldest);
    bench.several = true;
    let consumer = bench.consumer(2, 2, false);
    assert_eq!(bench.bodies(), bodies(0..2));
    bench.spill_all(&mut disk);
    bench.queue.add_credit(consumer, 1000, 1 << 20);
    assert!(bench.bodies().is_empty());
    let (lost, count) = disk.lose(&mut bench.queue, bench.now, &mut bench.memory).unwrap();
    assert_eq!(lost.start, 1);
    // Of the two that are in flight the other subscription had none.
    let messages = lost.end - lost.start;
    assert_eq!(count, 2 * messages - 2);
    assert_eq!(bench.queue.handle_lost(0, lost.clone(), bench.now, &mut bench.memory), 0);
    let left = bodies(lost.end as usize - 1..40);
    assert_eq!(bench.all_bodies(&mut disk), left);
    // One of them is acked, the other comes back and is lost then.
    bench.queue.ack(consumer, 1, 1, &mut bench.memory).unwrap();
    bench.nack(consumer, NackKind::Returned, 2, 2);
    bench.queue.ack(consumer, 3, 2 + left.len() as u64, &mut bench.memory).unwrap();
    let shown = bench.queue.subscription(bench.subscription).unwrap();
    assert_eq!((shown.messages(), shown.counters().lost_damaged), (0, messages - 1));
    assert_eq!(shown.bytes(), 0);
    bench.consumer_of(other, 3, 1000, true);
    assert_eq!(bench.all_bodies(&mut disk), left);
    assert_eq!(bench.queue.counters().lost_damaged, 2 * messages - 1);
    assert_eq!((bench.queue.bytes(), bench.queue.memory_bytes()), (0, 0));
    TestDisk::check(&bench.queue);
}

#[test]
#[allow(clippy::single_range_in_vec_init, reason = "one range is what is left")]
fn a_cursor_amid_what_is_lost_goes_on_behind_it() {
    // Batches of four; of the first, two are in flight when the chunk comes back damaged.
    let head = CHUNK_HEADER_BYTES + BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES;
    let text = |nth: usize| format!("{nth:0100}");
    // In the records of the first batch, where the cursor stands; in the second, ahead of it.
    let second = head + 4 * (RECORD_HEADER_BYTES + 100) + BATCH_PREFIX_BYTES;
    for (at, lost, left) in [(head + 20, 2, vec![4..12]), (second + 1, 4, vec![2..4, 8..12])] {
        let mut bench = Bench::new(options());
        let mut disk = TestDisk::new();
        for batch in 0..3 {
            let bodies: Vec<String> = (4 * batch..4 * batch + 4).map(text).collect();
            let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
            assert_eq!(bench.publish(&bodies), None);
        }
        let consumer = bench.consumer(1, 2, false);
        assert_eq!(bench.bodies().len(), 2);
        bench.spill_all(&mut disk);
        bench.queue.add_credit(consumer, 1000, 1 << 20);
        assert!(bench.bodies().is_empty());
        disk.rot_last(at);
        let (now, queue) = (bench.now, &mut bench.queue);
        assert_eq!(disk.refill_damaged(queue, now, &mut bench.memory), lost);
        let left: Vec<String> = left.into_iter().flatten().map(text).collect();
        assert_eq!(bench.all_bodies(&mut disk), left);
        let shown = bench.queue.subscription(bench.subscription).unwrap();
        assert_eq!((shown.ready(), shown.counters().lost_damaged), (0, lost));
        TestDisk::check(&bench.queue);
    }
}

#[test]
fn who_has_the_front_of_a_lost_large_message_is_told() {
    let mut bench = Bench::new(roomy());
    let mut disk = TestDisk::new();
    bench.large(12);
    bench.publish(&["behind"]);
    bench.consumer(2, 1, false);
    let begun = bench.queue.poll_delivery(bench.now, &mut bench.memory, &mut |_| true);
    assert!(begun.unwrap().fragment);
    bench.spill_all(&mut disk);
    while bench.queue.poll_delivery(bench.now, &mut bench.memory, &mut |_| true).is_some() {}
    // One of its chunks is gone, and so is all of it.
    let refill = loop {
        let refill = bench.queue.poll_refill(Some(3)).expect("one of its chunks is needed next");
        if refill.chunk == 1 {
            break refill;
        }
        bench.queue.handle_refill_put_off(refill.chunk);
        disk.refill(&mut bench.queue, &mut bench.memory, 0);
        while bench.queue.poll_delivery(bench.now, &mut bench.memory, &mut |_| true).is_some() {}
    };
    let range = refill.name.first_sequence..refill.name.end_sequence;
    let count = bench.queue.handle_lost(refill.chunk, range, bench.now, &mut bench.memory);
    assert_eq!(count, 1, "it was in flight, and is lost as what is ready is");
    assert_eq!(bench.queue.poll_closed(), Some((owner(2), ErrorCode::DiskError)));
    assert_eq!((bench.queue.messages(), bench.queue.counters().lost_damaged), (1, 1));
    bench.consumer(3, 10, true);
    assert_eq!(bench.all_bodies(&mut disk), ["behind"]);
    assert_eq!(bench.queue.memory_bytes(), 0);
}

#[test]
fn the_oldest_are_dropped_chunk_by_chunk_where_they_are_on_disk() {
    let options = QueueOptions { messages_max: 40, on_full: OnFull::DropOldest, ..options() };
    let (mut bench, mut disk) = spilled(40, options);
    bench.spill_all(&mut disk);
    assert_eq!(bench.publish(&[&body(40)]), None);
    let dropped = bench.queue.counters().dropped_oldest as usize;
    assert!(dropped > 0 && dropped < 10, "{dropped} were dropped");
    assert_eq!(bench.queue.messages() as usize, 41 - dropped);
    bench.check();
    // Of a chunk that somebody has begun with, nothing is dropped unread.
    let consumer = bench.consumer(2, 1, false);
    assert_eq!(bench.all_bodies(&mut disk), bodies(dropped..dropped + 1));
    bench.queue.close_consumer(consumer, bench.now, &mut bench.memory);
    disk.evict(&mut bench.queue, 0);
    for nth in 41..40 + dropped {
        assert_eq!(bench.publish(&[&body(nth)]), None);
    }
    bench.spill_all(&mut disk);
    // What came back is known as it is; behind it the records must be looked at.
    assert_eq!(bench.publish(&["more"]), None);
    bench.spill_all(&mut disk);
    assert_eq!(bench.publish(&["last"]), Some(ErrorCode::QueueMessagesMax));
    assert!(!bench.queue.poll_unblocked(&bench.memory), "until it is read");
    assert!(bench.read(&mut disk));
    assert!(bench.queue.poll_unblocked(&bench.memory));
    assert_eq!(bench.publish(&["last"]), None);
    bench.consumer(3, 1000, true);
    let all = bench.all_bodies(&mut disk);
    assert_eq!((all.first(), all.last()), (Some(&body(dropped + 2)), Some(&"last".to_owned())));
    assert_eq!(all.len(), 40);
}

#[test]
fn a_pull_whose_time_is_over_waits_for_what_is_being_read() {
    let (mut bench, mut disk) = spilled(30, options());
    bench.spill_all(&mut disk);
    let consumer = bench.consumer(2, 0, false);
    let pull = PullState {
        correlation: 7,
        messages_left: 2,
        bytes_left: 1 << 20,
        deadline: bench.now.mono,
        brought: 0,
        over: false,
        late: false,
    };
    bench.queue.pull(consumer, pull, &mut bench.memory).unwrap();
    assert!(bench.bodies().is_empty());
    assert_eq!(bench.queue.poll_pull_end(bench.now.mono, &mut bench.memory), None);
    assert!(bench.queue.next_deadline().unwrap() > bench.now.mono);
    assert_eq!(bench.all_bodies(&mut disk), bodies(0..2));
    let end = bench.queue.poll_pull_end(bench.now.mono, &mut bench.memory).unwrap();
    assert_eq!((end.correlation, end.messages), (7, 2));
    // But not for ever.
    bench.queue.ack(consumer, 1, 2, &mut bench.memory).unwrap();
    bench.spill_all(&mut disk);
    bench.queue.pull(consumer, pull, &mut bench.memory).unwrap();
    while bench.bodies().is_empty() && bench.read(&mut disk) {}
    while bench.queue.poll_pull_end(bench.now.mono, &mut bench.memory).is_some() {}
    bench.spill_all(&mut disk);
    bench.queue.pull(consumer, PullState { messages_left: 20, ..pull }, &mut bench.memory).unwrap();
    bench.bodies();
    if bench.queue.poll_pull_end(bench.now.mono, &mut bench.memory).is_none() {
        let later = bench.now.mono.plus_ms(10_000);
        assert!(bench.queue.poll_pull_end(later, &mut bench.memory).is_some());
    }
}

#[test]
fn a_refusal_says_why_memory_is_full() {
    for (overflow, code) in [
        (Overflow::Off, ErrorCode::MemoryLimit),
        (Overflow::Working, ErrorCode::MemoryLimit),
        (Overflow::Full(ErrorCode::DiskLimit, 99), ErrorCode::DiskLimit),
        (Overflow::Full(ErrorCode::DiskFull, 99), ErrorCode::DiskFull),
        (Overflow::Failing, ErrorCode::DiskError),
    ] {
        let mut bench = Bench::new(options());
        bench.memory.overflow = overflow;
        let body = "x".repeat(100_000);
        let refused = (0..1000).find_map(|_| bench.publish(&[&body]));
        assert_eq!(refused, Some(code));
        assert!(code.is_of_memory() && code.is_retryable());
        assert_eq!(bench.queue.blocked().unwrap().code, code);
        assert!(!bench.queue.poll_unblocked(&bench.memory));
        let mut disk = TestDisk::new();
        bench.spill_all(&mut disk);
        assert!(bench.queue.poll_unblocked(&bench.memory), "{code:?}");
    }
}

#[test]
fn under_pressure_a_queue_with_little_in_memory_gets_small_chunks() {
    let mut bench = Bench::new(options());
    let mut disk = TestDisk::new();
    for nth in 0..600 {
        bench.publish(&[&body(nth)]);
    }
    bench.spill_all(&mut disk);
    bench.memory.press(Some(5000));
    bench.publish(&["one"]);
    assert_eq!(bench.queue.tail_bytes(), 4096);
    // One that has more in memory than its share gets larger ones.
    for nth in 0..100 {
        bench.publish(&[&body(nth)]);
    }
    assert!(bench.queue.tail_bytes() > 4096);
    bench.spill_all(&mut disk);
    bench.memory.press(None);
    for nth in 0..100 {
        bench.publish(&[&body(nth)]);
    }
    assert!(bench.queue.tail_bytes() >= 1 << 18);
}

#[test]
fn one_chunk_can_always_be_read() {
    let mut bench = Bench::new(options());
    bench.memory.keep_refill_chunk();
    let mut taken = Vec::new();
    while let Ok(chunk) = bench.memory.take_chunk(10, 0) {
        taken.push(chunk);
    }
    let refill = bench.memory.take_refill_chunk(1 << 20).unwrap();
    assert!(bench.memory.take_refill_chunk(4096).is_none());
    drop(refill);
    // Nobody else gets it when it is free again.
    assert!(bench.memory.take_chunk(10, 0).is_err());
    assert!(bench.memory.take_refill_chunk(1 << 20).is_some());
    drop(taken);
}

#[test]
fn a_subscription_from_the_oldest_counts_what_is_on_disk() {
    let (mut bench, mut disk) = spilled(30, options());
    let consumer = bench.consumer(2, 5, false);
    assert_eq!(bench.bodies().len(), 5);
    bench.queue.ack(consumer, 2, 3, &mut bench.memory).unwrap();
    bench.spill_all(&mut disk);
    let late = bench.subscribe("late", Start::Oldest);
    let shown = bench.queue.subscription(late).unwrap();
    assert_eq!((shown.messages(), shown.bytes()), (28, bench.queue.bytes()));
    assert_eq!(bench.queue.memory_bytes(), 0);
    let consumer = bench.consumer_of(late, 3, 1000, false);
    let mut expected = bodies(0..30);
    expected.drain(1..3);
    assert_eq!(bench.all_bodies(&mut disk), expected);
    bench.queue.ack(consumer, 1, 28, &mut bench.memory).unwrap();
    assert_eq!(bench.queue.subscription(late).unwrap().bytes(), 0);
}
