//! Dead letters and redrive between queues of different shards: nothing is lost on the way,
//! nothing is there twice, and nobody waits for a full ring.

use super::shards::*;
use super::verbs::*;
use super::*;
use crate::format::dead_letter;
use crate::protocol::hot::{Nack, NackKind, NackRange};
use crate::queue::Queue;
use crate::queue::memory::Account;
use crate::shard::router::home;

/// A name at `shard` whose dead letters go to another one.
fn name_with_far_dead(shard: usize, shards: u32) -> String {
    let is_far = |name: &String| home(&format!("{name}.dead"), shards, shards) as usize != shard;
    let mut names = (0..).map(|nth| name_at(shard, shards, nth));
    names.find(is_far).unwrap()
}

fn queue<'a>(town: &'a Town, name: &str) -> &'a Queue {
    let shards = town.cores.len() as u32;
    let core = &town.cores[home(name, shards, shards) as usize];
    core.queues().find(|(known, _)| *known == name).expect("the queue").1
}

fn reject(first: u64, last: u64) -> Vec<u8> {
    let (handle, kind) = (2, NackKind::Rejected);
    let range = NackRange { handle, kind, first, last, delay_ms: None };
    encode(Opcode::Nack, 0, 7, &Nack { ranges: vec![range], text: "no" }.encode())
}

/// Nothing is on its way, nothing is remembered, nothing is charged.
fn assert_settled(town: &Town) {
    for core in &town.cores {
        assert_eq!(core.budget().used_by(Account::Moves), 0);
        assert!(core.parked_moves.is_empty());
        for (name, queue) in core.queues() {
            assert_eq!((queue.dead_lettering(), queue.unsettled_moves()), (0, 0), "{name}");
        }
    }
}

#[test]
fn dead_letters_cross_and_come_back() {
    for shape in [roomy(), tiny()] {
        let mut town = Town::new(2, shape);
        let client = town.open(0);
        let name = name_with_far_dead(0, 2);
        let dead = format!("{name}.dead");
        town.create(client, &name);
        town.produce(client, &name, 1);
        let bodies: Vec<Vec<u8>> = (0..100u8).map(|nth| vec![nth; 500]).collect();
        let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        town.frame(client, Opcode::Publish, 1, &batch_of(0, 1, &bodies));
        assert_eq!(bodies_of(&town.consume(client, &name, 2)).len(), 100);
        town.bytes(client, &reject(1, 100));
        town.turns(300);
        town.take(client);
        assert_settled(&town);
        assert_eq!(queue(&town, &name).counters().dead_lettered, 100);
        let moved = queue(&town, &dead);
        assert_eq!((moved.ready(), moved.counters().moved_in), (100, 100));
        // And back; the request goes to the other shard, the messages come from there.
        let credit = CreditEntry { handle: 2, messages: 100, bytes: 1 << 20 };
        town.frame(client, Opcode::Credit, 0, &credit.encode());
        let redrive = wire::RedriveT { queue: dead.clone(), ..Default::default() };
        let redrive = Request::Redrive(redrive).encode();
        town.bytes(client, &encode(Opcode::Redrive, 0, 9, &redrive));
        town.turns(300);
        let frames = town.take(client);
        let answer = frames.iter().find(|(header, _)| header.correlation == 9).unwrap();
        match Answer::decode(Opcode::Redriven, &answer.1) {
            Ok(Answer::Redriven(done)) => {
                assert_eq!((done.messages, done.refused, done.finished), (100, 0, true));
            }
            other => panic!("{other:?}"),
        }
        let back: Vec<Vec<u8>> = deliveries(&frames, 2).into_iter().map(|m| m.2).collect();
        assert_eq!(back.iter().map(Vec::as_slice).collect::<Vec<_>>(), bodies);
        assert_eq!(dead_letter::hops(&first_properties(&frames)), 0);
        assert_settled(&town);
        assert_eq!(queue(&town, &dead).messages(), 0);
    }
}

#[test]
fn a_far_target_that_is_missing_or_full_is_tried_again() {
    let mut town = Town::new(2, roomy());
    let client = town.open(0);
    let (name, target) = (name_at(0, 2, 0), name_at(1, 2, 0));
    let body = wire::QueueCreateT {
        name: name.clone(),
        subscription_options: Some(Box::new(wire::SubscriptionOptionsT {
            dead_letter: Some(target.clone()),
            ..Default::default()
        })),
        ..Default::default()
    };
    town.ask(client, Request::QueueCreate(body), 0);
    town.produce(client, &name, 1);
    town.frame(client, Opcode::Publish, 1, &batch_of(0, 1, &[b"a", b"b", b"c"]));
    town.consume(client, &name, 2);
    town.bytes(client, &reject(1, 3));
    town.turns(5);
    town.take(client);
    let reason = |town: &Town| {
        let (_, subscription) = queue(town, &name).subscriptions().next().unwrap();
        subscription.dead_letter_reason()
    };
    assert_eq!(reason(&town), Some("queue_not_found"));
    let options = wire::QueueOptionsT { messages_max: 2, ..Default::default() };
    let options = Some(Box::new(options));
    let body = wire::QueueCreateT { name: target.clone(), options, ..Default::default() };
    town.ask(client, Request::QueueCreate(body), 0);
    for _ in 0..4 {
        town.now.mono = town.now.mono.plus_ms(1000);
        town.turns(5);
    }
    assert_eq!((reason(&town), queue(&town, &target).ready()), (Some("queue_messages_max"), 2));
    assert_eq!(queue(&town, &name).dead_lettering(), 1);
    let purge = wire::QueuePurgeT { name: target.clone(), subscription: None };
    town.ask(client, Request::QueuePurge(purge), 0);
    town.now.mono = town.now.mono.plus_ms(1000);
    town.turns(5);
    assert_eq!((reason(&town), queue(&town, &target).ready()), (None, 1));
    assert_settled(&town);
}

/// Every shard sends its dead letters to another one, through rings that hold one tiny parcel,
/// while half of them sleep.
#[test]
fn a_circle_of_moves_through_full_rings_does_not_lock_up() {
    for shards in [2, 4] {
        let mut town = Town::new(shards, tiny());
        let count = shards as usize;
        let clients: Vec<Client> = (0..count).map(|shard| town.open(shard)).collect();
        let names: Vec<_> = (0..count).map(|shard| name_with_far_dead(shard, shards)).collect();
        for (name, &client) in names.iter().zip(&clients) {
            town.create(client, name);
            town.produce(client, name, 1);
            let bodies: Vec<&[u8]> = vec![&[7; 2000]; 50];
            town.frame(client, Opcode::Publish, 1, &batch_of(0, 1, &bodies));
            assert_eq!(bodies_of(&town.consume(client, name, 2)).len(), 50);
        }
        for &client in &clients {
            town.bytes(client, &reject(1, 50));
        }
        let mut was_full = false;
        for round in 0..2000 {
            for shard in 0..count {
                if (round / 3 + shard) % 2 == 0 {
                    town.tick(shard);
                    was_full |= town.office.has_full_ring();
                }
            }
        }
        assert!(was_full);
        assert_settled(&town);
        for name in &names {
            assert_eq!(queue(&town, name).counters().dead_lettered, 50);
            assert_eq!(queue(&town, &format!("{name}.dead")).ready(), 50);
        }
    }
}

#[test]
fn a_source_or_a_target_that_goes_meanwhile_leaves_nothing_behind() {
    for goes_first in [true, false] {
        let mut town = Town::new(2, tiny());
        let client = town.open(0);
        let name = name_with_far_dead(0, 2);
        town.create(client, &name);
        town.produce(client, &name, 1);
        town.frame(client, Opcode::Publish, 1, &batch_of(0, 1, &[&b"x"[..]; 50]));
        town.consume(client, &name, 2);
        town.bytes(client, &reject(1, 50));
        town.tick(0);
        if !goes_first {
            town.turns(2);
        }
        let gone = if goes_first { name.clone() } else { format!("{name}.dead") };
        let body = wire::QueueDeleteT { name: gone, if_empty: false };
        town.frame(client, Opcode::QueueDelete, 0, &Request::QueueDelete(body).encode());
        for _ in 0..5 {
            town.now.mono = town.now.mono.plus_ms(1000);
            town.turns(100);
        }
        assert_settled(&town);
    }
}
