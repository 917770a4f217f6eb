//! Dead letters while they are here: their order, their tries, what they say.

use super::*;
use crate::limits::MOVES_MAX;

fn rejecting(count: u64) -> (Bench, ConsumerKey) {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 100_000, false);
    for _ in 0..count {
        bench.publish(&["x"]);
    }
    bench.deliveries();
    (bench, consumer)
}

impl Bench {
    fn sent(&mut self) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some(out) = self.queue.poll_move(self.now) {
            sent.push(out.sequence);
        }
        sent
    }

    fn moved(&mut self, sequence: u64, outcome: Result<(), &'static str>) {
        let (key, now) = (self.subscription, self.now);
        self.queue.handle_moved(key, sequence, outcome, now, &mut self.memory);
        self.check();
    }

    fn reason(&self) -> Option<&'static str> {
        self.queue.subscription(self.subscription).unwrap().dead_letter_reason()
    }
}

#[test]
fn a_rejected_message_is_held_until_its_target_has_it() {
    let (mut bench, consumer) = rejecting(1);
    bench.pass(5);
    bench.nack(consumer, NackKind::Rejected, 1, 1);
    assert_eq!((bench.queue.in_flight(), bench.queue.dead_lettering()), (0, 1));
    let out = bench.queue.poll_move(bench.now).unwrap();
    assert_eq!((out.reason.name(), &*out.text, out.failures), ("rejected", "no good", 0));
    assert_eq!((out.attempts, out.first_failed, out.last_failed), (1, Wall(5001), Wall(5001)));
    assert_eq!(bench.queue.poll_move(bench.now).map(|out| out.sequence), None);
    bench.moved(1, Ok(()));
    assert_eq!((bench.queue.messages(), bench.queue.counters().dead_lettered), (0, 1));
    assert_eq!((bench.queue.memory_bytes(), bench.queue.bytes()), (0, 0));
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
    bench.moved(1, Ok(()));
    bench.moved(77, Err("unknown"));
    assert_eq!(bench.queue.counters().dead_lettered, 1);
}

#[test]
fn so_many_are_on_their_way_and_the_others_wait_in_order() {
    let (mut bench, consumer) = rejecting(200);
    bench.nack(consumer, NackKind::Rejected, 1, 200);
    let max = MOVES_MAX as u64;
    assert_eq!(bench.sent(), (1..=max).collect::<Vec<_>>());
    bench.moved(7, Ok(()));
    assert_eq!(bench.sent(), [max + 1]);
}

#[test]
fn a_target_that_is_full_is_asked_again_each_second_and_the_reason_is_told() {
    let (mut bench, consumer) = rejecting(3);
    bench.nack(consumer, NackKind::Rejected, 1, 3);
    assert_eq!(bench.sent(), [1, 2, 3]);
    (1..=3).for_each(|sequence| bench.moved(sequence, Err("queue_messages_max")));
    assert_eq!((bench.reason(), bench.sent()), (Some("queue_messages_max"), vec![]));
    assert_eq!(bench.queue.next_deadline(), Some(Mono(0).plus_ms(1000)));
    bench.pass(999);
    assert!(bench.sent().is_empty());
    bench.pass(1);
    assert_eq!(bench.sent(), [1, 2, 3]);
    (1..=3).for_each(|sequence| bench.moved(sequence, Ok(())));
    assert_eq!((bench.reason(), bench.queue.messages()), (None, 0));
}

#[test]
fn those_that_can_never_go_hold_up_no_other() {
    let (mut bench, consumer) = rejecting(300);
    bench.nack(consumer, NackKind::Rejected, 1, 300);
    // The first hundred never go.
    for _ in 0..100 {
        for sequence in bench.sent() {
            bench.moved(sequence, if sequence <= 100 { Err("dead_letter_hops") } else { Ok(()) });
        }
        bench.pass(1000);
    }
    assert_eq!((bench.queue.dead_lettering(), bench.queue.counters().dead_lettered), (100, 200));
    assert_eq!(bench.reason(), Some("dead_letter_hops"));
}

#[test]
fn one_that_was_refused_is_tried_again_though_new_ones_keep_coming() {
    let (mut bench, consumer) = rejecting(100);
    bench.nack(consumer, NackKind::Rejected, 1, 1);
    assert_eq!(bench.sent(), [1]);
    bench.moved(1, Err("queue_messages_max"));
    bench.pass(1000);
    bench.nack(consumer, NackKind::Rejected, 2, 100);
    let sent = bench.sent();
    assert_eq!((sent.len(), sent.contains(&1)), (MOVES_MAX, true));
}

#[test]
fn dead_letters_are_neither_purged_nor_dropped_nor_delivered() {
    let (mut bench, consumer) = rejecting(2);
    bench.nack(consumer, NackKind::Rejected, 1, 2);
    bench.sent();
    assert_eq!(bench.queue.purge(None, &mut bench.memory), (0, 0));
    assert!(bench.bodies().is_empty());
    bench.moved(2, Err("gone"));
    assert_eq!(bench.queue.dead_lettering(), 2);
}

#[test]
fn a_redriven_message_that_is_refused_is_ready_again_at_its_place() {
    let mut bench = Bench::new(options());
    bench.publish(&["a", "b", "c", "d"]);
    let (key, now) = (bench.subscription, bench.now);
    let behind = bench.queue.ready_behind(key, 1, 2).unwrap();
    assert_eq!(behind.iter().map(|run| run.sequence).collect::<Vec<_>>(), [2, 3]);
    for sequence in [2, 3] {
        assert_eq!(bench.queue.begin_redrive(key, sequence, &mut bench.memory), Ok(true));
    }
    assert_eq!(bench.queue.begin_redrive(key, 9, &mut bench.memory), Ok(false));
    assert_eq!((bench.queue.ready(), bench.queue.dead_lettering()), (2, 2));
    assert!(bench.queue.poll_move(now).is_none(), "who began a redrive carries it");
    bench.moved(2, Ok(()));
    bench.moved(3, Err("full"));
    assert_eq!((bench.queue.counters().redriven, bench.reason()), (1, None));
    bench.consumer(2, 100, true);
    assert_eq!(bench.bodies(), ["a", "c", "d"]);
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

#[test]
fn the_target_is_named_or_made() {
    let mut bench = Bench::new(options());
    let key = bench.subscription;
    assert_eq!(bench.queue.dead_letter_name(key), "q.dead");
    assert!(bench.queue.makes_dead_letter(key));
    let asked =
        SubscriptionOptions { dead_letter: Some("bin".into()), ..SubscriptionOptions::default() };
    bench.queue.update_subscription(key, asked, bench.now);
    assert_eq!(bench.queue.dead_letter_name(key), "bin");
    assert!(!bench.queue.makes_dead_letter(key));
}

#[test]
fn a_subscription_that_goes_while_its_dead_are_on_their_way_leaves_nothing_behind() {
    let (mut bench, consumer) = rejecting(3);
    bench.nack(consumer, NackKind::Rejected, 1, 2);
    bench.sent();
    let key = bench.subscription;
    let removed = bench.queue.delete_subscription(key, true, &mut bench.memory).unwrap();
    assert_eq!((removed.0, bench.queue.memory_bytes()), (3, 0));
    bench.queue.handle_moved(key, 1, Ok(()), bench.now, &mut bench.memory);
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

#[test]
fn one_that_nobody_takes_holds_up_no_other() {
    let (mut bench, consumer) = rejecting(100);
    bench.nack(consumer, NackKind::Rejected, 1, 1);
    assert_eq!(bench.sent(), [1]);
    bench.moved(1, Err("message_too_large"));
    bench.pass(1000);
    bench.nack(consumer, NackKind::Rejected, 2, 100);
    // As a shard does it whose target is its own: each is answered before the next one goes.
    let (mut gone, mut tries) = (0, 0);
    while let Some(out) = bench.queue.poll_move(bench.now) {
        tries += 1;
        let taken = out.sequence != 1;
        gone += u64::from(taken);
        bench.moved(out.sequence, if taken { Ok(()) } else { Err("message_too_large") });
    }
    assert_eq!((gone, tries), (99, 100));
    assert_eq!(bench.reason(), Some("message_too_large"));
    bench.pass(999);
    assert!(bench.sent().is_empty());
    bench.pass(1);
    assert_eq!(bench.sent(), [1]);
}

#[test]
fn without_memory_to_keep_what_was_said_of_each_nothing_is_said_of_any() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 100_000, false);
    // One stays in flight, so that nothing of the lease is free.
    bench.publish(&["a", "b", "c", "d"]);
    bench.deliveries();
    let reject = |bench: &mut Bench, id, text| {
        let nack =
            NackRequest { kind: NackKind::Rejected, first: id, last: id, delay_ms: None, text };
        bench.queue.nack(consumer, &nack, bench.now, &mut bench.memory).unwrap();
        bench.check();
    };
    let fill = |bench: &mut Bench| {
        let free = bench.memory.budget.free_for_leases() as usize;
        bench.memory.budget.charge(Account::Connections, free);
    };
    let text = |bench: &mut Bench| bench.queue.poll_move(bench.now).unwrap().text.to_string();
    reject(&mut bench, 1, "one");
    fill(&mut bench);
    reject(&mut bench, 2, "one");
    assert_eq!(text(&mut bench), "one");
    fill(&mut bench);
    reject(&mut bench, 3, "another");
    assert_eq!([text(&mut bench), text(&mut bench)], ["", ""]);
    (1..=3).for_each(|sequence| bench.moved(sequence, Ok(())));
    bench.ack(consumer, 4, 4);
    assert_eq!(bench.queue.memory_bytes(), 0);
}
