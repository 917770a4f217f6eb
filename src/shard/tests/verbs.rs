//! What the tests of leases, subscriptions and moves say to the broker, in few words.

use super::*;
use crate::format::dead_letter;
use crate::format::properties::PropertiesBuilder;
use crate::protocol::hot::{ExtendRange, Nack, NackKind, NackRange};

/// A delivered message: id, attempts, body.
pub(super) type Delivered = (u64, u16, Vec<u8>);

/// Messages of delivery frames of a handle.
pub(super) fn deliveries(frames: &[Frame], handle: u32) -> Vec<Delivered> {
    let mut delivered = Vec::new();
    for (header, payload) in frames {
        if header.opcode == Opcode::Deliver as u8 && header.handle == handle {
            let (deliver, records) = DeliverHeader::decode(payload).unwrap();
            for (nth, record) in record::Records::new(records).enumerate() {
                let id = deliver.delivery_id + nth as u64;
                delivered.push((id, deliver.attempts, record.body.to_vec()));
            }
        }
    }
    delivered
}

/// Properties of the first delivered message.
pub(super) fn first_properties(frames: &[Frame]) -> Vec<u8> {
    let frame = frames.iter().find(|(header, _)| header.opcode == Opcode::Deliver as u8);
    let (_, records) = DeliverHeader::decode(&frame.expect("a delivery").1).unwrap();
    record::Records::new(records).next().unwrap().properties.to_vec()
}

/// A dead-letter header as text.
pub(super) fn header_of(properties: &[u8], name: &[u8]) -> String {
    dead_letter::text(properties, name).unwrap_or("absent").to_owned()
}

pub(super) fn batch_with_header(sequence: u64, key: &str, value: &str, body: &[u8]) -> Vec<u8> {
    let mut properties = PropertiesBuilder::default();
    properties.header(key.as_bytes(), value.as_bytes()).unwrap();
    let mut builder = BatchBuilder::default();
    builder.push(0, properties.bytes(), body);
    builder.finish(0, 0, sequence).to_vec()
}

pub(super) fn code_of(answer: &Answer) -> ErrorCode {
    match answer {
        Answer::Error(error) => ErrorCode::from_u16(error.code).unwrap(),
        other => panic!("an error was expected, not {other:?}"),
    }
}

impl Bench {
    /// Time passes; what became due happened.
    pub fn wait(&mut self, ms: u64) {
        self.now.mono = self.now.mono.plus_ms(ms);
        self.now.wall = Wall(self.now.wall.0 + ms * 1000);
        self.core.begin_tick(self.now);
        self.turn();
    }

    /// Ticks until nothing is left to do at once.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            self.wait(0);
            if self.core.active.is_empty() {
                return;
            }
        }
        panic!("always something to do");
    }

    pub fn create_with(
        &mut self,
        key: Key,
        name: &str,
        subscriptions: &[&str],
        options: wire::SubscriptionOptionsT,
    ) -> Answer {
        let body = wire::QueueCreateT {
            name: name.into(),
            subscriptions: Some(subscriptions.iter().map(|&name| name.to_owned()).collect()),
            subscription_options: Some(Box::new(options)),
            ..Default::default()
        };
        self.ask(key, Request::QueueCreate(body), 0)
    }

    pub fn subscribe(&mut self, key: Key, queue: &str, name: &str, start: wire::Start) -> Answer {
        let (queue, name) = (queue.to_owned(), name.to_owned());
        let body = wire::SubscriptionCreateT { queue, name, start, options: None };
        self.ask(key, Request::SubscriptionCreate(body), 0)
    }

    pub fn unsubscribe(&mut self, key: Key, queue: &str, name: &str, force: bool) -> Vec<Frame> {
        let (queue, name) = (queue.to_owned(), name.to_owned());
        let body = wire::SubscriptionDeleteT { queue, name, force };
        let request = Request::SubscriptionDelete(body);
        self.frame(key, Opcode::SubscriptionDelete, 0, &request.encode())
    }

    pub fn subscription(
        &mut self,
        key: Key,
        queue: &str,
        name: &str,
    ) -> wire::SubscriptionDescriptionT {
        let (queue, name) = (queue.to_owned(), name.to_owned());
        let body = wire::SubscriptionDescribeT { queue, name };
        match self.ask(key, Request::SubscriptionDescribe(body), 0) {
            Answer::SubscriptionDescription(shown) => {
                let held = shown.ready + shown.in_flight + shown.delayed + shown.dead_lettering;
                let gone = shown.acked
                    + shown.dead_lettered
                    + shown.expired
                    + shown.dropped
                    + shown.purged
                    + shown.redriven;
                assert_eq!(shown.entered, held + gone, "{shown:?}");
                shown
            }
            other => panic!("{other:?}"),
        }
    }

    /// Opens a consumer of a subscription; what it is sent at once.
    pub fn consumer_of(
        &mut self,
        key: Key,
        (queue, subscription): (&str, &str),
        handle: u32,
        credit_messages: u32,
    ) -> Vec<Frame> {
        let body = wire::ConsumerOpenT {
            queue: queue.into(),
            subscription: Some(subscription.into()),
            credit_messages,
            credit_bytes: 1 << 20,
            ..wire::ConsumerOpenT::default()
        };
        let request = Request::ConsumerOpen(body);
        let mut frames = self.frame(key, Opcode::ConsumerOpen, handle, &request.encode());
        assert_eq!(frames.remove(0).0.opcode, Opcode::ConsumerOpened as u8);
        frames
    }

    /// Acks with an answer; other frames behind it.
    pub fn ack(&mut self, key: Key, handle: u32, first: u64, last: u64) -> (AckDone, Vec<Frame>) {
        let range = AckRange { handle, first, last };
        let mut frames = self.frame(key, Opcode::Ack, 0, &range.encode());
        (AckDone::decode(&frames.remove(0).1).expect("ACK_DONE"), frames)
    }

    pub fn nack(
        &mut self,
        key: Key,
        handle: u32,
        kind: NackKind,
        (first, last): (u64, u64),
    ) -> Vec<Frame> {
        self.nack_with(key, NackRange { handle, kind, first, last, delay_ms: None }, "it failed")
    }

    pub fn nack_with(&mut self, key: Key, range: NackRange, text: &str) -> Vec<Frame> {
        let nack = Nack { ranges: vec![range], text };
        self.frame(key, Opcode::Nack, 0, &nack.encode())
    }

    pub fn extend(
        &mut self,
        key: Key,
        handle: u32,
        lease_ms: u32,
        (first, last): (u64, u64),
    ) -> Vec<Frame> {
        let range = ExtendRange { handle, lease_ms, first, last };
        self.frame(key, Opcode::Extend, 0, &range.encode())
    }

    pub fn credit(&mut self, key: Key, handle: u32, messages: u32) -> Vec<Frame> {
        let entry = CreditEntry { handle, messages, bytes: u64::from(messages) * 100 };
        self.frame(key, Opcode::Credit, 0, &entry.encode())
    }

    /// The answer to a redrive, and what else came with it.
    pub fn redrive(&mut self, key: Key, body: wire::RedriveT) -> (Answer, Vec<Frame>) {
        let mut frames = self.frame(key, Opcode::Redrive, 0, &Request::Redrive(body).encode());
        let nth = frames.iter().position(|(header, _)| header.correlation == 7);
        let (header, payload) = frames.remove(nth.expect("an answer"));
        let opcode = Opcode::from_u8(header.opcode).unwrap();
        (Answer::decode(opcode, &payload).unwrap(), frames)
    }
}

/// No waiting: failed messages are ready again at once.
pub(super) fn no_backoff() -> Option<Box<wire::BackoffT>> {
    let kind = wire::BackoffKind::None;
    Some(Box::new(wire::BackoffT { kind, ..wire::BackoffT::default() }))
}

/// Always the same wait.
pub(super) fn fixed(base_ms: u32) -> Option<Box<wire::BackoffT>> {
    let kind = wire::BackoffKind::Fixed;
    let backoff = wire::BackoffT { kind, base_ms, jitter: false, ..wire::BackoffT::default() };
    Some(Box::new(backoff))
}
