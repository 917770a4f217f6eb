//! Shards that share one limit: one that gets nothing is given what the others can do without,
//! although each is under its mark by what is free in its own chunks.

use super::shards::*;
use super::*;
use crate::io::{DiskCompletion, DiskRequest, FileId};
use crate::limits::{MIB, SPILL_EXTENT_SLOTS, SPILL_SLOT_BYTES};
use crate::storage::spill::{DiskBudget, SpillShape};

const BODY_BYTES: usize = 100_000;

/// Two shards with disks that take everything, and marks that leave little free.
fn town() -> Town {
    let marks = |config| ShardConfig { watermark_high: 90, watermark_low: 85, ..config };
    let mut town = Town::with(2, roomy(), marks);
    let budget = DiskBudget::new(1 << 40);
    for core in &mut town.cores {
        let shape = SpillShape {
            slot_bytes: SPILL_SLOT_BYTES,
            extent_slots: SPILL_EXTENT_SLOTS,
            reserve_bytes: 0,
            headroom_bytes: 0,
            warm_bytes: 0,
        };
        core.open_spill(FileId(0), shape, Arc::clone(&budget));
    }
    town
}

fn end(request: DiskRequest) -> DiskCompletion {
    let result = Ok(());
    match request {
        DiskRequest::Write { tag, .. } => DiskCompletion::Written { tag, result },
        DiskRequest::Allocate { tag, .. } => DiskCompletion::Allocated { tag, result },
        DiskRequest::Release { tag, .. } => DiskCompletion::Released { tag, result },
        _ => panic!("nobody consumes"),
    }
}

/// Lets all shards run, and their disks, for some time.
fn pass(town: &mut Town, ms: u64) {
    for _ in 0..ms.div_ceil(10) {
        town.now.mono = town.now.mono.plus_ms(10);
        for shard in 0..town.cores.len() {
            town.tick(shard);
            let core = &mut town.cores[shard];
            core.plan_disk(|| None);
            while let Some(request) = core.poll_disk_request() {
                core.handle_disk(end(request));
            }
        }
    }
}

/// Publishes from this sequence on until so many are taken or one is refused: what is next, and
/// the refusal's code.
fn publish(town: &mut Town, client: Client, first: u64, count: u64) -> (u64, Option<ErrorCode>) {
    for sequence in first..first + count {
        let batch = batch_of(0, sequence, &[&[7; BODY_BYTES]]);
        let frames = town.frame(client, Opcode::Publish, 1, &batch);
        pass(town, 10);
        let refused = |(header, _): &&Frame| header.opcode == Opcode::PublishError as u8;
        let refusal = frames.iter().find(refused).map(|frame| error_of(frame).0);
        if refusal.is_some() {
            return (sequence, refusal);
        }
    }
    (first + count, None)
}

/// A client of each shard with a queue there, for which it has producer 1.
fn clients(town: &mut Town) -> [Client; 2] {
    [0, 1].map(|shard| {
        let client = town.open(shard);
        let name = name_at(shard, 2, 0);
        town.create(client, &name);
        town.produce(client, &name, 1);
        client
    })
}

#[test]
fn a_shard_that_gets_no_memory_is_not_refused_for_ever() {
    let mut town = town();
    let [poor, rich] = clients(&mut town);
    // Under its mark, with free slabs that it keeps for itself.
    let mut sequence = 1;
    while town.cores[1].messages_used() < 44 * MIB as u64 {
        let (next, refusal) = publish(&mut town, rich, sequence, 1);
        assert_eq!(refusal, None);
        sequence = next;
    }
    let kept: Vec<_> = (0..8).map(|_| town.cores[1].memory.take_chunk(MIB / 2, 4).ok()).collect();
    drop(kept);
    pass(&mut town, 2000);
    let (mut sequence, mut rounds) = (1, 0);
    while sequence <= 200 {
        let (next, _) = publish(&mut town, poor, sequence, 201 - sequence);
        sequence = next;
        rounds += 1;
        assert!(rounds < 30, "refused at {sequence}, again and again");
        pass(&mut town, 2000);
    }
    assert!(town.cores[1].spill.stats().written_bytes > 0);
}
