//! Messages that come from other queues: each once, under the limits, for whom they are meant.

use super::*;
use crate::format::change::MoveName;
use crate::limits::MOVE_KEYS_MAX;
use crate::queue::memory::Account;
use crate::queue::moved::{Accepted, MoveKey, MoveRefused, MovedMessage};

fn key(sequence: u64) -> MoveKey {
    let name = MoveName { store: 0, queue: 1, subscription: 1, sequence };
    MoveKey { name, shard: 0, queue: NOBODY, subscription: NOBODY }
}

/// A message out of another queue.
fn message(body: &str) -> MovedMessage {
    let mut source = Bench::new(options());
    source.publish(&[body]);
    let run = source.queue.ready_behind(source.subscription, 0, 1).unwrap()[0];
    let record_max = source.memory.record_content_bytes_max();
    source.queue.move_out(&run, record_max, |own| Some(own.to_vec())).unwrap().unwrap()
}

impl Bench {
    fn accept(
        &mut self,
        sequence: u64,
        message: &MovedMessage,
        only: Option<&str>,
    ) -> Result<Accepted, MoveRefused> {
        self.queue.accept_move(key(sequence), message, only, Wall(9), &mut self.memory)
    }
}

#[test]
fn the_same_move_is_done_once_until_its_source_has_settled_it() {
    let mut bench = Bench::new(options());
    let before = bench.memory.budget.used_by(Account::Queues);
    let moved = message("moved");
    assert_eq!(bench.accept(1, &moved, None), Ok(Accepted::Done));
    for _ in 0..3 {
        assert_eq!(bench.accept(1, &moved, None), Ok(Accepted::Duplicate));
    }
    assert_eq!(bench.accept(2, &moved, None), Ok(Accepted::Done));
    assert_eq!((bench.queue.ready(), bench.queue.unsettled_moves()), (2, 2));
    let counters = bench.queue.counters();
    assert_eq!((counters.published, counters.moved_in), (2, 2));
    for sequence in [1, 2, 2, 3] {
        bench.queue.settle_move(key(sequence).name, &mut bench.memory);
    }
    assert_eq!(bench.queue.unsettled_moves(), 0);
    let own = bench.queue.log.descriptor_bytes() as u64;
    assert_eq!(bench.memory.budget.used_by(Account::Queues), before + own);
    bench.consumer(2, 10, false);
    let bodies: Vec<_> = bench.deliveries().into_iter().map(|delivery| delivery.3).collect();
    assert_eq!(bodies, ["moved", "moved"]);
}

#[test]
fn what_is_refused_changes_nothing_and_is_taken_later() {
    let mut bench = Bench::new(QueueOptions { messages_max: 1, ..options() });
    let moved = message("moved");
    bench.publish(&["first"]);
    let full = MoveRefused::Code(ErrorCode::QueueMessagesMax);
    for _ in 0..3 {
        assert_eq!(bench.accept(1, &moved, None), Err(full));
    }
    assert_eq!((bench.queue.unsettled_moves(), bench.queue.counters().moved_in), (0, 0));
    // It blocks nobody: no producer was refused.
    assert!(bench.queue.blocked().is_none());
    bench.queue.purge(None, &mut bench.memory);
    assert_eq!(bench.accept(1, &moved, None), Ok(Accepted::Done));
    // A limit for one message holds for what is the producer's in it.
    let mut bench = Bench::new(QueueOptions { message_bytes_max: 4, ..options() });
    let refused = Err(MoveRefused::Code(ErrorCode::MessageTooLarge));
    assert_eq!(bench.accept(1, &moved, None), refused);
}

#[test]
fn moves_that_nobody_settles_are_bounded() {
    let mut bench = Bench::new(options());
    bench.consumer(2, 1_000_000, true);
    let moved = message("");
    for sequence in 1..=MOVE_KEYS_MAX as u64 {
        assert_eq!(bench.accept(sequence, &moved, None), Ok(Accepted::Done));
        if sequence % 1000 == 0 {
            bench.deliveries();
        }
    }
    let next = MOVE_KEYS_MAX as u64 + 1;
    assert_eq!(bench.accept(next, &moved, None), Err(MoveRefused::Unsettled));
    bench.queue.settle_move(key(1).name, &mut bench.memory);
    assert_eq!(bench.accept(next, &moved, None), Ok(Accepted::Done));
}

#[test]
fn a_message_for_one_subscription_is_held_by_that_one_only() {
    let mut bench = Bench::new(options());
    let memory = &mut bench.memory;
    let asked = SubscriptionOptions::default();
    bench.queue.create_subscription("other", asked, Start::Now, bench.now, memory).unwrap();
    let other = bench.queue.subscription_key("other").unwrap();
    let moved = message("moved");
    assert_eq!(bench.accept(1, &moved, Some("other")), Ok(Accepted::Done));
    // One that is not there: then all get it.
    assert_eq!(bench.accept(2, &moved, Some("none")), Ok(Accepted::Done));
    let ready = |bench: &Bench, key| bench.queue.subscription(key).unwrap().ready();
    assert_eq!((ready(&bench, bench.subscription), ready(&bench, other)), (1, 2));
    bench.several = true;
    bench.consumer(2, 10, true);
    bench.consumer_of(other, 3, 10, true);
    assert_eq!(bench.deliveries().len(), 3);
    assert_eq!(bench.queue.memory_bytes(), 0);
}
