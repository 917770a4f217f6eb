//! Redrives into queues whose shard is short of memory for a while: they wait, skip nothing, keep
//! the order, and end all the same.

use super::shards::*;
use super::*;
use crate::base::chunk_pool::ChunkWriter;
use crate::format::dead_letter;
use crate::format::properties::PropertiesBuilder;
use crate::limits::{REDRIVE_RETRY_MS, REDRIVE_WAIT_MS_MAX};
use crate::queue::memory::Account;

const LETTERS: u64 = 300;
const BODY_BYTES: usize = 20_000;

/// All memory that a core has for messages.
fn take_memory(core: &mut Core) -> Vec<ChunkWriter> {
    std::iter::from_fn(|| core.memory.take_chunk(BODY_BYTES, 0).ok()).collect()
}

/// A batch of one dead letter of queue `origin`, whose body says which it is.
fn letter(origin: &str, nth: u64) -> Vec<u8> {
    let mut properties = PropertiesBuilder::default();
    properties.header(dead_letter::QUEUE, origin.as_bytes()).unwrap();
    let mut builder = BatchBuilder::default();
    let mut body = vec![0; BODY_BYTES];
    body[..8].copy_from_slice(&nth.to_le_bytes());
    builder.push(0, properties.bytes(), &body);
    builder.finish(0, 0, nth).to_vec()
}

/// Which letters a target was given, as its consumer 9 gets them.
fn numbers(frames: &[Frame]) -> Vec<u64> {
    let number = |(_, body): &(u64, Vec<u8>)| u64::from_le_bytes(body[..8].try_into().unwrap());
    bodies_of(frames).iter().map(number).collect()
}

fn consumer_of_all(queue: &str) -> Vec<u8> {
    let request = Request::ConsumerOpen(wire::ConsumerOpenT {
        queue: queue.into(),
        credit_messages: 1000,
        credit_bytes: 64 << 20,
        ..wire::ConsumerOpenT::default()
    });
    encode(Opcode::ConsumerOpen, 9, 7, &request.encode())
}

fn redrive(queue: &str, after_sequence: u64, count_max: u32) -> Vec<u8> {
    let body =
        wire::RedriveT { queue: queue.into(), after_sequence, count_max, ..Default::default() };
    encode(Opcode::Redrive, 0, 3, &Request::Redrive(body).encode())
}

fn answer(frames: &[Frame]) -> Option<Answer> {
    let (header, payload) = frames.iter().find(|(header, _)| header.correlation == 3)?;
    Some(Answer::decode(Opcode::from_u8(header.opcode).unwrap(), payload).unwrap())
}

fn redriven(frames: &[Frame]) -> Option<wire::RedrivenT> {
    answer(frames).map(|answer| match answer {
        Answer::Redriven(body) => body,
        other => panic!("{other:?}"),
    })
}

/// Letters in `grave` that came from `origin`, at the client's shards.
fn far(shape: crate::shard::post::PostShape) -> (Town, Client, [String; 2]) {
    let mut town = Town::new(2, shape);
    let client = town.open(0);
    let [origin, grave] = [name_at(1, 2, 0), name_at(0, 2, 0)];
    town.create(client, &origin);
    town.create(client, &grave);
    town.produce(client, &grave, 1);
    for nth in 1..=LETTERS {
        town.frame(client, Opcode::Publish, 1, &letter(&origin, nth));
    }
    (town, client, [origin, grave])
}

/// The memory of the shard that has the origin, what the other one gives back included.
fn fill(town: &mut Town, but: usize) -> Vec<ChunkWriter> {
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.extend(take_memory(&mut town.cores[1]));
        town.turns(1);
    }
    taken.truncate(taken.len() - but);
    taken
}

/// What a new consumer of all that is there gets.
fn arrived(town: &mut Town, client: Client, queue: &str) -> Vec<u64> {
    town.bytes(client, &consumer_of_all(queue));
    town.turns(300);
    numbers(&town.take(client))
}

fn pass(town: &mut Town, ms: u64) {
    town.now.mono = town.now.mono.plus_ms(ms);
    town.turns(50);
}

/// Lets time pass until the redrive is answered: the answer, and after how many milliseconds.
fn wait_for_answer(town: &mut Town, client: Client) -> (wire::RedrivenT, u64) {
    for waits in 0..10_000 {
        if let Some(done) = redriven(&town.take(client)) {
            return (done, waits * REDRIVE_RETRY_MS);
        }
        pass(town, REDRIVE_RETRY_MS);
    }
    panic!("it is never answered");
}

#[test]
fn a_redrive_waits_until_there_is_memory_and_skips_nothing() {
    for (shape, count, chunks) in
        [(roomy(), 200, 0), (tiny(), 200, 0), (roomy(), 30, 0), (roomy(), 300, 4)]
    {
        let (mut town, client, [origin, grave]) = far(shape);
        let taken = fill(&mut town, chunks);
        town.bytes(client, &redrive(&grave, 0, count));
        for _ in 0..30 {
            pass(&mut town, 100);
            assert_eq!(redriven(&town.take(client)), None);
        }
        assert!(town.cores.iter().all(|core| !core.has_work()), "it waits for the time only");
        let wait = town.cores[0].next_deadline().unwrap();
        assert!(wait.as_millis() <= u128::from(REDRIVE_RETRY_MS));
        drop(taken);
        let (done, _) = wait_for_answer(&mut town, client);
        assert_eq!((done.messages, done.refused), (u64::from(count), 0), "{:?}", done.reason);
        assert_eq!((done.last_sequence, done.reason), (u64::from(count), None));
        assert_eq!(arrived(&mut town, client, &origin), (1..=u64::from(count)).collect::<Vec<_>>());
    }
}

#[test]
fn a_redrive_that_moves_nothing_for_so_long_says_why_and_one_that_did_goes_on_later() {
    let (mut town, client, [origin, grave]) = far(roomy());
    let mut taken = fill(&mut town, 0);
    town.bytes(client, &redrive(&grave, 0, 1000));
    let (done, ms) = wait_for_answer(&mut town, client);
    let bounds = REDRIVE_WAIT_MS_MAX..=REDRIVE_WAIT_MS_MAX + 2 * REDRIVE_RETRY_MS;
    assert!(bounds.contains(&ms), "{ms}");
    assert!(done.refused > 0 && !done.finished, "{done:?}");
    assert_eq!(done.refused + done.messages, done.last_sequence);
    assert_eq!(done.reason.as_deref(), Some("memory_limit"));

    // Some room in between: it has moved something lately, and so nothing is refused.
    let before = done.messages;
    town.bytes(client, &redrive(&grave, 0, 1000));
    (0..30).for_each(|_| pass(&mut town, 100));
    taken.truncate(taken.len() - 4);
    let (done, ms) = wait_for_answer(&mut town, client);
    assert!(ms < REDRIVE_WAIT_MS_MAX, "{ms}");
    assert!(done.messages > 0 && !done.finished, "{done:?}");
    let moved = before + done.messages;
    assert_eq!((done.last_sequence, done.refused, done.reason), (moved, 0, None));
    drop(taken);
    town.bytes(client, &redrive(&grave, moved, 1000));
    let (done, _) = wait_for_answer(&mut town, client);
    assert_eq!((done.messages, done.refused, done.finished), (LETTERS - moved, 0, true));
    assert_eq!(arrived(&mut town, client, &origin), (1..=LETTERS).collect::<Vec<_>>());
}

/// A lone shard with letters in `q.dead`.
fn near() -> (Bench, Key) {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.create(key, "q.dead", wire::QueueOptionsT::default());
    bench.producer(key, "q.dead", 1, 0);
    for nth in 1..=LETTERS {
        bench.frame(key, Opcode::Publish, 1, &letter("q", nth));
    }
    (bench, key)
}

#[test]
fn where_there_is_no_memory_to_carry_a_message_in_the_redrive_waits_too() {
    // Half of the reserve is open to moves, the other half to what leases need.
    for more in [0, limits::MEMORY_RESERVE_BYTES_MIN / 2, limits::MEMORY_RESERVE_BYTES_MIN] {
        let (mut bench, key) = near();
        let taken = take_memory(&mut bench.core);
        assert_eq!(redriven(&bench.bytes(key, &redrive("q.dead", 0, 1000))), None);
        bench.core.memory.budget.charge(Account::Queues, more);
        for _ in 0..100 {
            bench.wait(REDRIVE_RETRY_MS);
            assert_eq!(redriven(&bench.sent(key)), None);
        }
        assert!(!bench.core.can_redrive());
        bench.core.memory.budget.release(Account::Queues, more);
        drop(taken);
        bench.wait(REDRIVE_RETRY_MS);
        bench.settle();
        let done = redriven(&bench.sent(key)).expect("an answer");
        assert_eq!((done.messages, done.refused), (LETTERS, 0), "{:?}", done.reason);
        let mut frames = bench.bytes(key, &consumer_of_all("q"));
        while numbers(&frames).len() < LETTERS as usize {
            bench.wait(0);
            frames.extend(bench.sent(key));
        }
        assert_eq!(numbers(&frames), (1..=LETTERS).collect::<Vec<_>>());
    }
}

#[test]
fn a_redrive_that_waits_ends_with_its_client_or_its_queue() {
    for client_goes in [true, false] {
        let (mut bench, key) = near();
        let other = bench.open();
        let taken = take_memory(&mut bench.core);
        assert_eq!(redriven(&bench.bytes(other, &redrive("q.dead", 0, 1000))), None);
        if client_goes {
            bench.core.handle_closed(other);
        } else {
            let delete = wire::QueueDeleteT { name: "q.dead".into(), if_empty: false };
            let delete = Request::QueueDelete(delete).encode();
            bench.frame(key, Opcode::QueueDelete, 0, &delete);
        }
        assert_eq!(bench.core.redrives.len(), 1);
        bench.wait(REDRIVE_RETRY_MS);
        assert!(bench.core.redrives.is_empty());
        drop(taken);
        assert_eq!(bench.core.budget().used_by(Account::Moves), 0);
        match answer(&bench.sent(other)) {
            Some(Answer::Error(error)) if !client_goes => {
                assert_eq!(ErrorCode::from_u16(error.code), Some(ErrorCode::QueueDeleted));
            }
            None if client_goes => {
                let ready: u64 = bench.core.queues().map(|(_, queue)| queue.ready()).sum();
                assert_eq!(ready, LETTERS, "they are where they were, or moved");
            }
            other => panic!("{other:?}"),
        }
    }
}
