//! Pulls: when they end, and what they cost.

use super::*;

fn pull(correlation: u32, messages_left: u32, deadline: Mono) -> PullState {
    let (bytes_left, brought, over) = (u64::MAX, 0, false);
    PullState { correlation, messages_left, bytes_left, deadline, brought, over, late: false }
}

impl Bench {
    fn pull(&mut self, key: ConsumerKey, correlation: u32, messages: u32, ms: u64) {
        let state = pull(correlation, messages, self.now.mono.plus_ms(ms));
        self.queue.pull(key, state, &mut self.memory).unwrap();
    }

    fn ends(&mut self) -> Vec<(u32, u32)> {
        let mut ends = Vec::new();
        while let Some(end) = self.queue.poll_pull_end(self.now.mono, &mut self.memory) {
            ends.push((end.correlation, end.messages));
        }
        ends
    }
}

#[test]
fn a_pull_ends_full_or_with_what_is_at_hand_or_with_its_time() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 0, false);
    bench.pull(consumer, 1, 2, 1000);
    bench.pull(consumer, 2, 5, 1000);
    bench.pull(consumer, 3, 5, 1000);
    bench.publish(&["a", "b", "c"]);
    assert_eq!(bench.bodies(), ["a", "b", "c"]);
    assert_eq!(bench.ends(), [(1, 2), (2, 1)]);
    assert_eq!(bench.queue.next_deadline(), Some(Mono(0).plus_ms(1000)));
    bench.pass(1000);
    assert_eq!(bench.ends(), [(3, 0)]);
    assert_eq!(bench.queue.pull_count(consumer), 0);
}

#[test]
fn a_pull_ends_though_there_is_more_that_its_consumer_may_not_have() {
    let mut bench = Bench::new(options());
    let limited = ConsumerOptions {
        auto_ack: false,
        checksum: false,
        credit_messages: 0,
        credit_bytes: 0,
        lease_ms: 0,
        unacked_max: 1,
    };
    let consumer =
        bench.queue.open_consumer(bench.subscription, owner(2), limited, &mut bench.memory);
    bench.pull(consumer, 1, 10, 1000);
    bench.pull(consumer, 2, 10, 500);
    bench.publish(&["a", "b"]);
    assert_eq!(bench.bodies(), ["a"]);
    assert_eq!((bench.ends(), bench.queue.ready()), (vec![(1, 1)], 1));
    bench.pass(500);
    assert_eq!(bench.ends(), [(2, 0)], "time is time, whatever is ready");
}

#[test]
fn pulls_are_charged_and_given_back() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 0, false);
    let before = bench.memory.budget.used_by(Account::Handles);
    (0..10).for_each(|nth| bench.pull(consumer, nth, 1, 1000));
    let with = bench.memory.budget.used_by(Account::Handles);
    assert!(with >= before + 10 * size_of::<PullState>() as u64);
    let free = bench.memory.budget.free_for_leases() as usize;
    bench.memory.budget.charge(Account::Connections, free);
    assert!(bench.queue.pull(consumer, pull(11, 1, Mono(1)), &mut bench.memory).is_err());
    bench.queue.close_consumer(consumer, bench.now, &mut bench.memory);
    assert!(bench.memory.budget.used_by(Account::Handles) < before);
    assert!(bench.ends().is_empty(), "nobody is there to be told");
    assert_eq!(bench.queue.next_deadline(), None);
}
