//! A consumer against a broker that answers by dice, in any order, twice, wrongly or not at all:
//! nothing panics, what is sent is sound, and each `ack_now` has one answer.

use super::*;
use crate::base::prng::Prng;
use crate::limits::{EXTEND_RANGES_MAX, NACK_RANGES_MAX};
use crate::protocol::hot::{AckDone, AckRange, ExtendRange, Nack, NackKind};
use std::collections::BTreeSet;

struct World {
    dice: Prng,
    session: Session,
    now: Mono,
    handle: u32,
    delivered: u64,
    /// Correlations of frames that want an answer, with their opcode.
    wanted: Vec<(u8, u32)>,
    /// Of `ack_now`.
    asked: BTreeSet<u32>,
    greeted: bool,
    open: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut session =
            Session::new(SessionConfig { probe_ms: 5000, seed, ..SessionConfig::default() });
        let settings =
            ConsumerSettings { queue: "q".into(), hold_ms: 10_000, ..ConsumerSettings::default() };
        let handle = session.open_consumer(settings).unwrap();
        World {
            dice: Prng::new(seed),
            session,
            now: NOW,
            handle,
            delivered: 0,
            wanted: Vec::new(),
            asked: BTreeSet::new(),
            greeted: false,
            open: false,
        }
    }

    fn give(&mut self, opcode: Opcode, handle: u32, correlation: u32, payload: &[u8]) {
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, handle, payload.len()) };
        let bytes = [&header.encode(), payload].concat();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let taken = self.session.handle_bytes(self.now, rest);
            rest = &rest[taken..];
            self.events();
            if taken == 0 {
                break;
            }
        }
    }

    fn answer(&mut self, answer: &Answer, handle: u32, correlation: u32) {
        self.give(answer.opcode(), handle, correlation, &answer.encode());
    }

    fn events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Acked { correlation, .. }
                | Event::Refused { correlation, .. }
                | Event::Unanswered { correlation } => {
                    assert!(self.asked.remove(&correlation), "an answer too many");
                }
                Event::Lost(_) => {
                    self.session.handle_disconnected();
                    (self.open, self.greeted) = (false, false);
                    self.wanted.clear();
                }
                Event::ConsumerOpened { .. } => (self.open, self.delivered) = (true, 0),
                Event::ConsumerDown { .. } => self.open = false,
                _ => {}
            }
        }
        if self.session.connection() > 0 && self.wanted.is_empty() && !self.greeted {
            assert!(self.asked.is_empty(), "with its connection each question ends");
        }
    }

    /// Reads what the session sends, as a broker would.
    fn read(&mut self) {
        let mut bytes = Vec::new();
        self.session.poll_transmit(self.now, &mut bytes);
        let mut rest = &bytes[..];
        if rest.starts_with(&frame::MAGIC) {
            rest = &rest[PREAMBLE_BYTES..];
        }
        while let Some((header, behind)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::decode_from_client(header).unwrap();
            let (payload, behind) = behind.split_at(header.payload_bytes as usize);
            rest = behind;
            let range = |first: u64, last: u64| assert!(0 < first && first <= last);
            match Opcode::from_u8(header.opcode) {
                Some(Opcode::Ack) => {
                    AckRange::decode_all(payload).unwrap().for_each(|r| range(r.first, r.last));
                }
                Some(Opcode::Nack) => {
                    let nack = Nack::decode(payload).expect("a sound nack");
                    assert!((1..=NACK_RANGES_MAX).contains(&nack.ranges.len()));
                    nack.ranges.iter().for_each(|r| range(r.first, r.last));
                }
                Some(Opcode::Extend) => {
                    let ranges: Vec<_> = ExtendRange::decode_all(payload).unwrap().collect();
                    assert!((1..=EXTEND_RANGES_MAX).contains(&ranges.len()));
                    ranges.iter().for_each(|r| range(r.first, r.last));
                }
                _ => {}
            }
            if header.correlation != 0 {
                self.wanted.push((header.opcode, header.correlation));
            }
        }
    }

    fn connect(&mut self) {
        self.session.handle_connected(self.now);
        self.read();
        self.session.handle_bytes(self.now, &frame::preamble(frame::VERSION));
        self.greeted = true;
    }

    /// The broker does something: mostly what it owes, sometimes not.
    fn broker(&mut self) {
        let bogus = self.dice.chance(5);
        match self.dice.below(10) {
            0..=4 if !self.wanted.is_empty() => {
                let at = self.dice.below(self.wanted.len() as u64) as usize;
                let hello = self.wanted.iter().position(|w| w.0 == Opcode::Hello as u8);
                let (opcode, correlation) = self.wanted.remove(hello.unwrap_or(at));
                self.reply(Opcode::from_u8(opcode).unwrap(), correlation + u32::from(bogus));
            }
            5..=7 if self.open => {
                let count = self.dice.range(1, 200) as u32;
                let records: Vec<_> = (0..count).map(|nth| record(0, nth, &[], b"x")).collect();
                let first = self.delivered + 1 + u64::from(bogus);
                self.delivered += u64::from(count);
                self.give(Opcode::Deliver, self.handle, 0, &deliver(first, 0, &records));
            }
            8 => {
                let codes = [ErrorCode::LateAck, ErrorCode::NeverDelivered];
                let code = match self.dice.below(40) {
                    0 => ErrorCode::SubscriptionDeleted,
                    _ => *self.dice.pick(&codes),
                };
                let error = wire::ErrorT { code: code as u16, ..wire::ErrorT::default() };
                let handle = [self.handle, 0, 77][self.dice.below(3) as usize];
                if self.session.is_connected() {
                    self.answer(&Answer::Error(error), handle, 0);
                }
            }
            _ if bogus => {
                let opcode = *self.dice.pick(Opcode::ALL);
                let bytes: Vec<u8> =
                    (0..self.dice.below(60)).map(|_| self.dice.next_u64() as u8).collect();
                let handle = self.dice.below(3) as u32;
                let correlation = self.dice.below(5) as u32;
                self.give(opcode, handle, correlation, &bytes);
            }
            _ => {}
        }
    }

    fn reply(&mut self, opcode: Opcode, correlation: u32) {
        if self.dice.chance(100) && opcode != Opcode::Hello {
            let code = ErrorCode::NeverDelivered as u16;
            let error = wire::ErrorT { code, ..wire::ErrorT::default() };
            return self.answer(&Answer::Error(error), 0, correlation);
        }
        match opcode {
            Opcode::Hello => {
                self.answer(&Answer::HelloOk(wire::HelloOkT::default()), 0, correlation);
            }
            Opcode::ConsumerOpen => {
                let lease_ms = [0, 100, 1000, u32::MAX][self.dice.below(4) as usize];
                let opened = wire::ConsumerOpenedT { lease_ms, ..Default::default() };
                self.answer(&Answer::ConsumerOpened(opened), self.handle, correlation);
            }
            Opcode::Ack | Opcode::Nack => {
                let done = AckDone { acked: self.dice.next_u64(), late: self.dice.next_u64() };
                self.give(Opcode::AckDone, 0, correlation, &done.encode());
            }
            Opcode::Ping => self.give(Opcode::Pong, 0, correlation, &[]),
            _ => {}
        }
    }

    /// The caller does something.
    fn caller(&mut self) {
        let connection = self.session.connection();
        let connection = if self.dice.chance(50) { connection.wrapping_sub(1) } else { connection };
        let first = self.dice.range(1, self.delivered.max(1));
        let last = first + self.dice.below(70);
        match self.dice.below(6) {
            0 => drop(self.session.ack(self.handle, connection, first, last)),
            1 => {
                let kinds = [NackKind::Failed, NackKind::Returned, NackKind::Rejected];
                let kind = *self.dice.pick(&kinds);
                let text = *self.dice.pick(&["", "why", "another"]);
                let refusal = Refusal { kind, delay_ms: None, text };
                self.session.nack(self.handle, connection, first, last, &refusal);
            }
            2 => {
                let lease_ms = self.dice.below(3) as u32 * 500;
                self.session.extend(self.handle, connection, first, last, lease_ms);
            }
            3 => self.asked.extend(self.session.ack_now()),
            4 => {
                self.now = self.now.plus_ms(self.dice.below(400));
                self.session.handle_timeout(self.now);
            }
            _ if self.dice.chance(30) && self.session.connection() > 0 && self.greeted => {
                self.session.handle_disconnected();
                (self.open, self.greeted) = (false, false);
                self.wanted.clear();
            }
            _ => self.session.reopen(self.handle),
        }
        self.events();
    }
}

#[test]
fn a_consumer_survives_a_hostile_broker() {
    let (mut answered, mut connections) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            if !world.greeted {
                world.connect();
            }
            world.caller();
            let before = world.asked.len();
            world.read();
            world.broker();
            answered += before.saturating_sub(world.asked.len());
        }
        connections += world.session.connection();
    }
    assert!(answered > 1000 && connections > 400, "{answered} answers, {connections} connections");
}
