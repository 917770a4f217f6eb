//! Several shards: clients on the wrong one get what they would get on the right one, and full
//! rings hold up nobody else.

use super::*;
use crate::limits::GATHERS_MAX;
use crate::queue::memory::CommonBudget;
use crate::shard::post::PostShape;
use crate::shard::router::home;

/// Some shards with their sockets scripted, ticked by hand.
pub(super) struct Town {
    pub cores: Vec<Core>,
    pub office: Arc<Office>,
    pub now: Now,
    sockets: u32,
    /// What the clients were sent and did not take yet, by shard and connection.
    sent: std::collections::BTreeMap<(usize, Key), Vec<u8>>,
    /// Clients that take nothing.
    deaf: Vec<(usize, Key)>,
}

pub(super) type Client = (usize, Key);

impl Town {
    pub fn new(shards: u32, shape: PostShape) -> Town {
        Town::with(shards, shape, |config| config)
    }

    pub fn with(
        shards: u32,
        shape: PostShape,
        change: impl Fn(ShardConfig) -> ShardConfig,
    ) -> Town {
        let now = Now { mono: Mono(1_000_000_000), wall: Wall(1_700_000_000_000_000) };
        let limit_bytes = 64 << 20;
        let reserve_bytes = limits::MEMORY_RESERVE_BYTES_MIN as u64;
        let common = CommonBudget::new(limit_bytes, reserve_bytes, shards, 4 << 20);
        let office = Office::new(shards, shape, common);
        let cores = (0..shards).map(|shard| {
            let config =
                ShardConfig { shard, shards, stores: shards, ..ShardConfig::new(limit_bytes) };
            let config = change(config);
            let mut core = Core::new(config, Rc::new(HeapSlabs), now);
            let common = Arc::clone(office.budget());
            let budget = Budget::shared(limit_bytes, reserve_bytes, common);
            let post = Post::new(shard as usize, Arc::clone(&office), Box::new(|_| ()));
            core.join(post, budget);
            core
        });
        let cores = cores.collect();
        Town { cores, office, now, sockets: 0, sent: Default::default(), deaf: Vec::new() }
    }

    pub fn open(&mut self, shard: usize) -> Client {
        self.sockets += 1;
        let key = self.cores[shard].handle_connected(Socket(self.sockets), self.now).unwrap();
        let client = (shard, key);
        self.bytes(client, &frame::preamble(1));
        let hello = Request::Hello(wire::HelloT::default());
        let answer = self.ask(client, hello, 0);
        assert!(matches!(answer, Answer::HelloOk(_)), "{answer:?}");
        client
    }

    /// Bytes of a client, read by its shard; nobody else runs.
    pub fn bytes(&mut self, (shard, key): Client, bytes: &[u8]) {
        let core = &mut self.cores[shard];
        let mut all = vec![0; core.inbox_bytes(key) + bytes.len()];
        let kept = core.inbox_bytes(key);
        core.begin_read(key, &mut all).expect("it is not parked");
        all[kept..].copy_from_slice(bytes);
        core.handle_bytes(key, &all, bytes.len(), self.now);
    }

    pub fn tick(&mut self, shard: usize) {
        let core = &mut self.cores[shard];
        core.begin_tick(self.now);
        core.receive_mail();
        core.unpark(self.now);
        core.handle_deadlines(self.now);
        core.deliver(self.now);
        core.unblock();
        core.confirm();
        while let Some((key, place)) = core.poll_flush() {
            if let Place::Shard { shard: to, connection } = place {
                if core.send_replies(key, to, connection) {
                    core.handle_closed(key);
                }
                continue;
            }
            if self.deaf.contains(&(shard, key)) {
                continue;
            }
            let mut sink = Sink(Vec::new());
            let flushed = core.outbound(key).unwrap().flush(&mut sink, Socket(0));
            core.handle_flushed(key, flushed, self.now);
            self.sent.entry((shard, key)).or_default().extend(sink.0);
        }
        core.send_mail();
    }

    pub fn turns(&mut self, count: usize) {
        for _ in 0..count {
            (0..self.cores.len()).for_each(|shard| self.tick(shard));
        }
    }

    pub fn take(&mut self, client: Client) -> Vec<Frame> {
        frames_of(&self.sent.remove(&client).unwrap_or_default())
    }

    pub fn frame(
        &mut self,
        client: Client,
        opcode: Opcode,
        handle: u32,
        payload: &[u8],
    ) -> Vec<Frame> {
        self.bytes(client, &encode(opcode, handle, 7, payload));
        self.turns(3);
        self.take(client)
    }

    pub fn ask(&mut self, client: Client, request: Request, handle: u32) -> Answer {
        let frames = self.frame(client, request.opcode(), handle, &request.encode());
        let (header, payload) = frames.first().expect("an answer");
        assert_eq!((header.correlation, header.handle), (7, handle));
        Answer::decode(Opcode::from_u8(header.opcode).unwrap(), payload).unwrap()
    }

    pub fn create(&mut self, client: Client, name: &str) {
        let body = wire::QueueCreateT { name: name.into(), ..Default::default() };
        let answer = self.ask(client, Request::QueueCreate(body), 0);
        assert!(matches!(answer, Answer::QueueDone(_)), "{answer:?}");
    }

    pub fn produce(&mut self, client: Client, queue: &str, handle: u32) -> u32 {
        let body = wire::ProducerOpenT { queue: queue.into(), producer_id: 0, next_sequence: 1 };
        match self.ask(client, Request::ProducerOpen(body), handle) {
            Answer::ProducerOpened(opened) => opened.home_shard,
            other => panic!("{other:?}"),
        }
    }

    pub fn consume(&mut self, client: Client, queue: &str, handle: u32) -> Vec<Frame> {
        let request = Request::ConsumerOpen(wire::ConsumerOpenT {
            queue: queue.into(),
            credit_messages: 100,
            credit_bytes: 1 << 20,
            ..wire::ConsumerOpenT::default()
        });
        let mut frames = self.frame(client, Opcode::ConsumerOpen, handle, &request.encode());
        assert_eq!(frames.remove(0).0.opcode, Opcode::ConsumerOpened as u8);
        frames
    }

    pub fn remotes(&self) -> usize {
        self.cores.iter().flat_map(|core| &core.remotes).map(|remotes| remotes.len()).sum()
    }
}

/// A name whose home is `shard`.
pub(super) fn name_at(shard: usize, shards: u32, nth: u32) -> String {
    let mut names = (0..).map(|n| format!("q{n}"));
    let at_home = |name: &String| home(name, shards, shards) as usize == shard;
    names.by_ref().filter(at_home).nth(nth as usize).unwrap()
}

pub(super) fn roomy() -> PostShape {
    PostShape::of(2)
}

pub(super) fn tiny() -> PostShape {
    PostShape { ring_parcels: 1, parcel_bytes: 64 }
}

#[test]
fn a_message_crosses_and_so_does_its_ack() {
    for shape in [roomy(), tiny()] {
        let mut town = Town::new(2, shape);
        let client = town.open(0);
        let name = name_at(1, 2, 0);
        town.create(client, &name);
        assert!(town.cores[0].names.is_empty() && town.cores[1].names.len() == 1);
        assert_eq!(town.produce(client, &name, 1), 1);
        let frames = town.frame(client, Opcode::Publish, 1, &batch_of(0, 1, &[b"one", b"two"]));
        assert_eq!(confirm_of(&frames).sequence, 2);
        let frames = town.consume(client, &name, 2);
        assert_eq!(bodies_of(&frames), [(1, b"one".to_vec()), (2, b"two".to_vec())]);
        let range = AckRange { handle: 2, first: 1, last: 2 };
        let frames = town.frame(client, Opcode::Ack, 0, &range.encode());
        assert_eq!(AckDone::decode(&frames[0].1), Some(AckDone { acked: 2, late: 0 }));
        // The client goes, and with it everything that it had there.
        assert_eq!(town.remotes(), 1);
        assert!(town.cores[0].handle_closed(client.1).is_some());
        town.turns(3);
        assert_eq!(town.remotes(), 0);
        let queue = town.cores[1].queues().next().unwrap().1;
        assert_eq!((queue.producer_count(), queue.consumer_count()), (0, 0));
    }
}

#[test]
fn ranges_of_several_shards_are_cut_and_their_answers_gathered() {
    let mut town = Town::new(3, roomy());
    let client = town.open(0);
    let names: Vec<String> = (0..3).map(|shard| name_at(shard, 3, 0)).collect();
    for (nth, name) in (0..).zip(&names) {
        town.create(client, name);
        town.produce(client, name, 10 + nth);
        town.frame(client, Opcode::Publish, 10 + nth, &batch_of(0, 1, &[b"a", b"b"]));
        assert_eq!(bodies_of(&town.consume(client, name, 20 + nth)).len(), 2);
    }
    let range = |nth: u32, last| AckRange { handle: 20 + nth, first: 1, last }.encode();
    let all = [range(0, 1), range(1, 2), range(2, 1)].concat();
    let frames = town.frame(client, Opcode::Ack, 0, &all);
    assert_eq!(frames.len(), 1);
    assert_eq!(AckDone::decode(&frames[0].1), Some(AckDone { acked: 4, late: 0 }));
    // One of them at fault makes the answer a fault, and the others are acked all the same.
    let all = [range(0, 2), range(1, 2), range(2, 9)].concat();
    let frames = town.frame(client, Opcode::Ack, 0, &all);
    assert_eq!((frames.len(), first_code(&frames)), (1, ErrorCode::NeverDelivered));
    let held: Vec<u64> =
        town.cores.iter().map(|core| core.queues().next().unwrap().1.in_flight()).collect();
    assert_eq!(held, [0, 0, 1]);
    let credit = |nth: u32| CreditEntry { handle: 20 + nth, messages: 5, bytes: 10 }.encode();
    let frames = town.frame(client, Opcode::Credit, 0, &[credit(0), credit(1), credit(2)].concat());
    assert!(frames.is_empty());
    // A frame cut short is as wrong as with one shard.
    let frames = town.frame(client, Opcode::Ack, 0, &all[..30]);
    assert_eq!(first_code(&frames), ErrorCode::BadFrame);
}

#[test]
fn a_gathered_answer_overtakes_nothing() {
    let mut town = Town::new(2, roomy());
    let client = town.open(0);
    let names = [0, 1].map(|shard| name_at(shard, 2, 0));
    for (nth, name) in (0..).zip(&names) {
        town.create(client, name);
        town.produce(client, name, 10 + nth);
        town.frame(client, Opcode::Publish, 10 + nth, &batch_of(0, 1, &[b"a"]));
        assert_eq!(bodies_of(&town.consume(client, name, 20 + nth)).len(), 1);
    }
    // Both are answered by the other shard at once, the ack last; its part here is done before.
    let describe = wire::QueueDescribeT { name: names[1].clone() };
    let describe = Request::QueueDescribe(describe);
    let mut all = encode(Opcode::QueueDescribe, 0, 6, &describe.encode());
    let range = |nth: u32| AckRange { handle: 20 + nth, first: 1, last: 1 }.encode();
    all.extend(encode(Opcode::Ack, 0, 7, &[range(0), range(1)].concat()));
    town.bytes(client, &all);
    town.turns(3);
    let answers: Vec<_> = town.take(client).iter().map(|(header, _)| header.correlation).collect();
    assert_eq!(answers, [6, 7]);
}

#[test]
fn lists_and_figures_are_of_all_shards() {
    let mut town = Town::new(3, tiny());
    let client = town.open(1);
    let mut names: Vec<String> =
        (0..3).flat_map(|s| [name_at(s, 3, 0), name_at(s, 3, 1)]).collect();
    names.iter().for_each(|name| town.create(client, name));
    names.sort();
    let list = |count_max| Request::QueueList(wire::QueueListT { count_max, ..Default::default() });
    let Answer::QueueListing(all) = town.ask(client, list(4), 0) else { panic!() };
    let listed: Vec<_> = all.queues.unwrap().into_iter().map(|queue| queue.name).collect();
    assert_eq!((&listed[..], all.more), (&names[..4], true));
    let Answer::Stats(stats) = town.ask(client, Request::BrokerStats(wire::BrokerStatsT {}), 0)
    else {
        panic!()
    };
    assert_eq!((stats.queues, stats.connections, stats.shards), (6, 1, 3));
    assert_eq!(stats.memory_limit_bytes, 64 << 20);
    assert!(stats.crossed_bytes > 0);
    // Each has one answer, and nothing is left that would wait for another.
    for request in [Request::Trim(wire::TrimT {}), Request::BrokerStats(wire::BrokerStatsT {})] {
        for _ in 0..=GATHERS_MAX {
            let frames = town.frame(client, request.opcode(), 0, &request.encode());
            assert_eq!(frames.len(), 1, "{request:?}");
        }
    }
}

#[test]
fn a_handle_is_whose_it_is() {
    let mut town = Town::new(2, roomy());
    let client = town.open(0);
    let names = [name_at(0, 2, 0), name_at(1, 2, 0)];
    names.iter().for_each(|name| town.create(client, name));
    town.produce(client, &names[1], 1);
    for name in &names {
        let body = wire::ProducerOpenT { queue: name.clone(), ..Default::default() };
        match town.ask(client, Request::ProducerOpen(body), 1) {
            Answer::Error(error) => assert_eq!(error.code, ErrorCode::BadHandle as u16),
            other => panic!("{other:?}"),
        }
    }
    // One that could not be opened is free, and one that is closed as well: also for the other
    // shard, and without waiting for the answers.
    let body = wire::ProducerOpenT { queue: names[1].clone() + "x", ..Default::default() };
    let absent = home(&body.queue, 2, 2);
    let open = |queue: &str| {
        let body = wire::ProducerOpenT { queue: queue.into(), next_sequence: 1, producer_id: 0 };
        encode(Opcode::ProducerOpen, 2, 8, &Request::ProducerOpen(body).encode())
    };
    assert!(absent < 2);
    let absent = [
        open(&(names[1].clone() + "x")),
        open(&names[1]),
        encode(Opcode::ProducerClose, 2, 9, &[]),
        open(&names[0]),
        encode(Opcode::Publish, 2, 0, &batch_of(0, 1, &[b"here"])),
    ];
    town.bytes(client, &absent.concat());
    town.turns(6);
    let frames = town.take(client);
    let opcodes: Vec<_> = frames.iter().map(|f| Opcode::from_u8(f.0.opcode).unwrap()).collect();
    use Opcode::{Closed, Confirm, Error, ProducerOpened};
    assert_eq!(opcodes, [Error, ProducerOpened, Closed, ProducerOpened, Confirm]);
    assert_eq!(town.cores[0].queues().next().unwrap().1.ready(), 1);
    // A deleted queue closes the handle here too.
    let body = wire::QueueDeleteT { name: names[1].clone(), if_empty: false };
    let frames = town.frame(client, Opcode::QueueDelete, 0, &Request::QueueDelete(body).encode());
    assert!(frames.iter().any(|(header, _)| header.opcode == Closed as u8));
    let frames = town.frame(client, Opcode::Publish, 1, &batch_of(0, 1, &[b"late"]));
    assert_eq!(first_code(&frames), ErrorCode::UnknownHandle);
}

#[test]
fn a_client_that_reads_nothing_is_sent_only_so_much_across() {
    let mut town = Town::new(2, roomy());
    let (client, other) = (town.open(0), town.open(0));
    let names = [name_at(1, 2, 0), name_at(1, 2, 1)];
    for name in &names {
        town.create(client, name);
    }
    town.produce(other, &names[0], 1);
    let body = vec![7; 60_000];
    for sequence in 1..=40 {
        let batch = batch_of(0, sequence, &[&body]);
        town.frame(other, Opcode::Publish, 1, &batch);
    }
    town.deaf.push(client);
    let request = wire::ConsumerOpenT {
        queue: names[0].clone(),
        credit_messages: 100,
        credit_bytes: 1 << 30,
        ..wire::ConsumerOpenT::default()
    };
    town.frame(client, Opcode::ConsumerOpen, 2, &Request::ConsumerOpen(request).encode());
    town.turns(10);
    let unsent = |town: &mut Town| town.cores[0].outbound(client.1).unwrap().unsent_bytes();
    let waiting = unsent(&mut town);
    let soft = limits::UNSENT_BYTES_SOFT;
    assert!((soft..2 * soft).contains(&waiting));
    // Others go on; and so does this one, once it reads.
    town.create(other, &name_at(1, 2, 2));
    town.deaf.clear();
    town.cores[0].flush_later(client.1);
    town.turns(20);
    assert_eq!(bodies_of(&town.take(client)).len(), 40);
    assert_eq!(unsent(&mut town), 0);
    let remote = town.cores[1].connections.iter().find(|(_, c)| c.out.unsent_bytes() > 0);
    assert!(remote.is_none(), "everything was reported");
}

#[test]
fn a_fatal_fault_far_away_ends_the_connection_and_nothing_else() {
    let mut town = Town::new(2, roomy());
    let (client, other) = (town.open(0), town.open(0));
    let name = name_at(1, 2, 0);
    town.create(client, &name);
    town.consume(client, &name, 2);
    town.produce(other, &name, 1);
    let pull = encode(Opcode::Pull, 2, 1, &[0; 15]);
    // What comes behind it is not carried out.
    let body = wire::QueueDeleteT { name: name.clone(), if_empty: false };
    let delete = encode(Opcode::QueueDelete, 0, 1, &Request::QueueDelete(body).encode());
    town.bytes(client, &[pull, delete].concat());
    town.turns(3);
    assert_eq!(first_code(&town.take(client)), ErrorCode::BadFrame);
    town.now.mono = town.now.mono.plus_ms(1000);
    town.turns(1);
    assert_eq!(town.cores[0].poll_close(), Some(client.1));
    let frames = town.frame(other, Opcode::Publish, 1, &batch_of(0, 1, &[b"fine"]));
    assert_eq!(confirm_of(&frames).sequence, 1);
    assert_eq!(town.remotes(), 1);
}

/// Both shards have a client of the other's queue, every ring holds one tiny parcel, and all ask
/// at once for answers that are much larger than the rings: each shard's ring is full while the
/// other's is. Nobody waits for anybody, so all of it comes through.
#[test]
fn a_circle_of_full_rings_does_not_lock_up() {
    for shards in [2, 4] {
        let mut town = Town::new(shards, tiny());
        let count = shards as usize;
        let clients: Vec<Client> = (0..count).map(|shard| town.open(shard)).collect();
        for (shard, &client) in clients.iter().enumerate() {
            let name = name_at((shard + 1) % count, shards, 0);
            town.create(client, &name);
            town.produce(client, &name, 1);
            town.consume(client, &name, 2);
        }
        // The clients write before any shard has a chance to empty a ring.
        for &client in &clients {
            let publishes = (1..=50).map(|sequence| {
                encode(Opcode::Publish, 1, 0, &batch_of(0, sequence, &[&[7; 2000]]))
            });
            let bytes: Vec<u8> = publishes.flatten().collect();
            town.bytes(client, &bytes);
        }
        assert_eq!(town.cores.iter().map(|core| core.parked.len()).sum::<usize>(), count);
        // Half of the shards sleep through some ticks of the others, then the other half.
        let mut was_full = false;
        for round in 0..1000 {
            for shard in 0..count {
                if (round / 3 + shard) % 2 == 0 {
                    town.tick(shard);
                    was_full |= town.office.has_full_ring();
                }
            }
        }
        assert!(was_full);
        for client in clients {
            let frames = town.take(client);
            assert_eq!(bodies_of(&frames).len(), 50);
            let mut confirms =
                frames.iter().filter(|frame| frame.0.opcode == Opcode::Confirm as u8);
            let last = Confirm::decode(&confirms.next_back().unwrap().1).unwrap();
            assert_eq!(last.sequence, 50);
        }
    }
}

#[test]
fn of_many_that_wait_for_room_only_those_are_looked_at_for_whom_there_is_some() {
    let mut town = Town::new(2, tiny());
    let name = name_at(1, 2, 0);
    let clients = [town.open(0), town.open(0)];
    town.create(clients[0], &name);
    for client in clients {
        town.produce(client, &name, 1);
    }
    for client in clients {
        let publishes = (1..=20)
            .map(|sequence| encode(Opcode::Publish, 1, 0, &batch_of(0, sequence, &[&[7; 2000]])));
        town.bytes(client, &publishes.flatten().collect::<Vec<u8>>());
    }
    let looked_at = |town: &Town, nth: usize| {
        let connection = town.cores[0].connections.at(clients[nth].1).unwrap();
        assert!(connection.parked);
        connection.frame_began
    };
    let before = [looked_at(&town, 0), looked_at(&town, 1)];
    town.now.mono = town.now.mono.plus_ms(1000);
    town.tick(1);
    town.tick(0);
    assert!(looked_at(&town, 0) > before[0] && looked_at(&town, 1) == before[1]);
    town.turns(100);
    let published = |town: &Town| town.cores[1].queues().next().unwrap().1.counters().published;
    assert_eq!((published(&town), town.cores[0].parked.len()), (40, 0));
}
