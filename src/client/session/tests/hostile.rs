//! A producer against a broker of a hundred lines that grants tiny windows, refuses by dice, cuts
//! the connection anywhere and forgets producers: whatever happens, each message is answered once,
//! what is confirmed is stored once and in order, what failed is not stored.

use super::*;
use crate::base::prng::Prng;

/// What a broker knows of one queue and its one producer.
struct Hostile {
    dice: Prng,
    /// Producer id and its last sequence.
    producer: Option<(u64, u64)>,
    stored: Vec<u64>,
    /// Refuses all until a batch begins there.
    resume: Option<u64>,
    received_bytes_total: u64,
    blocked: bool,
    answers: Vec<u8>,
}

/// Messages whose number divides by this are refused for good.
const BAD: u64 = 13;

impl Hostile {
    fn frame(&mut self, opcode: Opcode, correlation: u32, payload: &[u8]) {
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, 1, payload.len()) };
        self.answers.extend_from_slice(&header.encode());
        self.answers.extend_from_slice(payload);
    }

    fn window(&mut self) -> u64 {
        self.received_bytes_total + 80 + self.dice.below(400)
    }

    fn answer(&mut self, answer: &Answer, correlation: u32) {
        self.frame(answer.opcode(), correlation, &answer.encode());
    }

    fn refuse(&mut self, code: ErrorCode, sequence: u64, retry_after_ms: u32) {
        self.resume = Some(sequence);
        let error = wire::ErrorT {
            code: code as u16,
            sequence,
            retry_after_ms,
            window_bytes_total: self.window(),
            ..wire::ErrorT::default()
        };
        self.answer(&Answer::PublishError(error), 0);
    }

    fn open(&mut self, body: &wire::ProducerOpenT, correlation: u32) {
        let known = self.producer.filter(|(id, _)| *id == body.producer_id);
        (self.resume, self.received_bytes_total, self.blocked) = (None, 0, false);
        if known.is_none() && body.next_sequence > 1 {
            let code = ErrorCode::ProducerUnknown as u16;
            let error = wire::ErrorT { code, ..wire::ErrorT::default() };
            return self.answer(&Answer::Error(error), correlation);
        }
        let last_sequence = known.map_or(0, |(_, last)| last);
        self.producer = Some((body.producer_id, last_sequence));
        let opened = wire::ProducerOpenedT {
            last_sequence,
            window_bytes_total: self.window(),
            message_bytes_max: 1000,
            ..wire::ProducerOpenedT::default()
        };
        self.answer(&Answer::ProducerOpened(opened), correlation);
    }

    fn publish(&mut self, payload: &[u8]) {
        let batch = Batch::decode(payload).expect("a sound batch");
        let (id, last) = self.producer.expect("an open producer");
        assert_eq!(batch.header.producer_id, id);
        self.received_bytes_total += payload.len() as u64;
        let first = batch.header.producer_sequence;
        if self.resume.is_some_and(|sequence| sequence != first) {
            return;
        }
        assert_eq!(first, last + 1, "neither gap nor overlap within a connection");
        self.resume = None;
        match self.dice.below(12) {
            0 => return self.refuse(ErrorCode::ChecksumMismatch, first, 0),
            1 => {
                // Blocks: the word follows behind the refusal, as PROTOCOL.md has it.
                self.refuse(ErrorCode::QueueMessagesMax, first, 1000);
                self.blocked = true;
                return self.answer(&Answer::Blocked(wire::BlockedT::default()), 0);
            }
            _ => {}
        }
        let fits = self.dice.below(2 * u64::from(batch.header.record_count)) + 1;
        for (nth, record) in Records::new(batch.records()).enumerate() {
            let sequence = first + nth as u64;
            let number = u64::from_le_bytes(record.body[..8].try_into().unwrap());
            if nth as u64 == fits {
                self.confirm();
                return self.refuse(ErrorCode::WindowExceeded, sequence, 3);
            }
            if number.is_multiple_of(BAD) {
                self.confirm();
                return self.refuse(ErrorCode::MessageTooLarge, sequence, 0);
            }
            self.stored.push(number);
            self.producer = Some((id, sequence));
        }
        self.confirm();
    }

    fn confirm(&mut self) {
        let (sequence, window_bytes_total) =
            (self.producer.expect("an open producer").1, self.window());
        let reached = Reached::Memory;
        let confirm = Confirm { sequence, window_bytes_total, duplicates: 0, dropped: 0, reached };
        if sequence > 0 {
            self.frame(Opcode::Confirm, 0, &confirm.encode());
        }
    }

    fn handle(&mut self, header: &FrameHeader, payload: &[u8]) {
        match Opcode::from_u8(header.opcode).unwrap() {
            Opcode::Hello => {
                self.answers.extend_from_slice(&frame::preamble(frame::VERSION));
                let hello = Answer::HelloOk(wire::HelloOkT::default());
                self.answer(&hello, header.correlation);
            }
            Opcode::Ping => self.frame(Opcode::Pong, header.correlation, &[]),
            Opcode::ProducerOpen => match Request::decode(Opcode::ProducerOpen, payload) {
                Ok(Request::ProducerOpen(body)) => self.open(&body, header.correlation),
                other => panic!("{other:?}"),
            },
            Opcode::Publish => self.publish(payload),
            other => panic!("{other:?} was not expected"),
        }
        if self.blocked && self.dice.chance(300) {
            self.blocked = false;
            let window_bytes_total = self.window();
            self.answer(&Answer::Unblocked(wire::UnblockedT { window_bytes_total }), 0);
        }
    }
}

/// What became of each message, by ordinal - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Confirmed,
    Failed,
}

/// Messages that a game publishes.
const COUNT: u64 = 120;

struct Game {
    dice: Prng,
    broker: Hostile,
    script: Script,
    handle: u32,
    now: Mono,
    up: bool,
    fates: Vec<Fate>,
    renewed: u64,
}

impl Game {
    fn new(seed: u64) -> Game {
        let broker = Hostile {
            dice: Prng::new(seed ^ 1),
            producer: None,
            stored: Vec::new(),
            resume: None,
            received_bytes_total: 0,
            blocked: false,
            answers: Vec::new(),
        };
        let mut script = Script::new();
        let settings = ProducerSettings { queue: "q".into(), producer_id: 5, batch_bytes: 150 };
        let handle = script.session.open_producer(settings).unwrap();
        let (dice, fates) = (Prng::new(seed), Vec::new());
        Game { dice, broker, script, handle, now: NOW, up: false, fates, renewed: 0 }
    }

    /// What the caller does in a step: connects, publishes, sends.
    fn call(&mut self) {
        if !self.up {
            self.script.session.handle_connected(self.now);
            (self.script.greeted, self.up) = (false, true);
            self.broker.answers.clear();
        }
        let published = self.fates.len() as u64;
        if published < COUNT && self.dice.chance(400) {
            let padding = vec![0; self.dice.below(30) as usize];
            let body = [&(published + 1).to_le_bytes()[..], &padding].concat();
            self.script.session.publish(self.handle, &[], false, &body).unwrap();
            self.fates.push(Fate::Open);
        }
        if self.dice.chance(300) {
            self.script.session.send(self.handle);
        }
        if self.script.session.poll_timeout().is_some_and(|at| at <= self.now) {
            self.script.session.handle_timeout(self.now);
        }
    }

    /// What the broker does: takes all, gives some of its answers.
    fn answer(&mut self) {
        for (header, payload) in self.script.sent() {
            self.broker.handle(&header, &payload);
        }
        if self.broker.blocked && self.dice.chance(200) {
            self.broker.handle(&FrameHeader::new(Opcode::Ping, 0, 0), &[]);
        }
        let take = self.dice.below(self.broker.answers.len() as u64 + 1) as usize;
        let taken: Vec<u8> = self.broker.answers.drain(..take).collect();
        assert_eq!(self.script.session.handle_bytes(self.now, &taken), taken.len());
    }

    fn note_events(&mut self) {
        while let Some(event) = self.script.session.poll_event() {
            match event {
                Event::Confirmed { ordinal, .. } => {
                    let open = self.fates[..ordinal as usize].iter_mut();
                    open.filter(|fate| **fate == Fate::Open)
                        .for_each(|fate| *fate = Fate::Confirmed);
                }
                Event::PublishFailed { first, last, .. } => {
                    for fate in &mut self.fates[first as usize - 1..last as usize] {
                        assert_eq!(std::mem::replace(fate, Fate::Failed), Fate::Open);
                    }
                }
                Event::ProducerRenewed { .. } => self.renewed += 1,
                Event::Lost(reason) => panic!("{reason}"),
                _ => {}
            }
        }
    }

    fn is_over(&self) -> bool {
        self.fates.len() as u64 == COUNT && !self.fates.contains(&Fate::Open)
    }

    fn cut(&mut self, forgets: bool) {
        self.script.session.handle_disconnected();
        while self.script.session.poll_event().is_some() {}
        self.up = false;
        if forgets && self.dice.chance(300) {
            self.broker.producer = None;
        }
    }

    fn confirmed(&self) -> Vec<u64> {
        (1..=COUNT).filter(|at| self.fates[*at as usize - 1] == Fate::Confirmed).collect()
    }
}

fn play(seed: u64, forgets: bool) -> Game {
    let mut game = Game::new(seed);
    for _ in 0..100_000 {
        game.now = game.now.plus_ms(1);
        game.call();
        game.answer();
        game.note_events();
        if game.is_over() {
            return game;
        }
        if game.dice.chance(15) {
            game.cut(forgets);
        }
    }
    panic!("seed {seed} makes no progress: {:?}", game.script.session.producer(game.handle));
}

#[test]
fn nothing_is_lost_doubled_or_reordered() {
    for seed in 0..200 {
        let game = play(seed, false);
        assert_eq!(game.broker.stored, game.confirmed(), "seed {seed}");
        let failed = |at: u64| game.fates[at as usize - 1] == Fate::Failed;
        assert!((1..=COUNT).all(|at| failed(at) == at.is_multiple_of(BAD)), "seed {seed}");
    }
}

#[test]
fn a_forgetful_broker_gets_messages_twice_but_loses_none() {
    let mut renewals = 0;
    for seed in 0..200 {
        let mut game = play(seed, true);
        renewals += game.renewed;
        game.broker.stored.sort_unstable();
        game.broker.stored.dedup();
        assert_eq!(game.broker.stored, game.confirmed(), "seed {seed}");
    }
    assert!(renewals > 10, "{renewals} renewals show nothing");
}
