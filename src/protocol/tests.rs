//! Golden bytes and properties of the protocol: preamble, frames, hot payloads, control bodies.
//! `tests/session.rs` holds a whole session and ties it to docs/PROTOCOL.md.

mod session;

use super::control::{Answer, ControlError, Request};
use super::error::ErrorCode;
use super::frame::{self, FrameError, FrameHeader, Opcode};
use super::hot::{
    AckDone, AckRange, Confirm, CreditEntry, DeliverHeader, ExtendRange, Nack, NackKind, NackRange,
    Pull, PullDone, Reached,
};
use super::wire;
use crate::limits::{
    ANSWER_PAYLOAD_BYTES_MAX, CONTROL_PAYLOAD_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, LIST_COUNT_MAX,
    NACK_TEXT_BYTES_MAX, NAME_BYTES_MAX, PEEK_COUNT_MAX,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn golden_preamble() {
    assert_eq!(frame::preamble(1).to_vec(), hex("46424159 0100 0000"));
    assert_eq!(frame::preamble_version(&frame::preamble(0x1234)), Some(0x1234));
    assert_eq!(frame::preamble_version(&[0; 8]), None);
    for bit in 0..64 {
        let mut bytes = frame::preamble(1);
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(frame::preamble_version(&bytes), Some(1), "bit {bit}");
        assert_eq!(frame::preamble_version(&bytes).is_some(), (32..48).contains(&bit));
    }
}

#[test]
fn golden_frame_header() {
    let header = FrameHeader {
        payload_bytes: 0x0001_0203,
        opcode: Opcode::Publish as u8,
        flags: 4,
        handle: 0x0506_0708,
        correlation: 0x090a_0b0c,
    };
    assert_eq!(header.encode().to_vec(), hex("03020100 12 04 0000 08070605 0c0b0a09"));
    assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
}

#[test]
fn a_frame_header_that_cannot_be_is_refused() {
    let mut bytes = FrameHeader::new(Opcode::Publish, 1, FRAME_PAYLOAD_BYTES_MAX).encode();
    assert!(FrameHeader::decode_from_client(&bytes).is_ok());
    bytes[6] = 1;
    assert_eq!(FrameHeader::decode(&bytes), Err(FrameError::Reserved));
    for payload_bytes in [FRAME_PAYLOAD_BYTES_MAX as u32 + 1, u32::MAX] {
        let bytes = FrameHeader::new(Opcode::Publish, 1, payload_bytes as usize).encode();
        let limit_bytes = FRAME_PAYLOAD_BYTES_MAX as u32;
        let too_large = Err(FrameError::TooLarge { payload_bytes, limit_bytes });
        assert_eq!(FrameHeader::decode(&bytes), too_large);
        assert_eq!(FrameHeader::decode_from_client(&bytes), too_large);
    }
    // A client's control frames have a smaller limit; the broker's answers have not.
    for opcode in Opcode::ALL.iter().filter(|opcode| **opcode != Opcode::Publish) {
        let bytes = FrameHeader::new(*opcode, 0, CONTROL_PAYLOAD_BYTES_MAX).encode();
        assert!(FrameHeader::decode_from_client(&bytes).is_ok());
        let bytes = FrameHeader::new(*opcode, 0, CONTROL_PAYLOAD_BYTES_MAX + 1).encode();
        assert!(FrameHeader::decode(&bytes).is_ok());
        assert!(FrameHeader::decode_from_client(&bytes).is_err(), "{opcode:?}");
    }
}

#[test]
fn golden_confirm() {
    let confirm = Confirm {
        sequence: 0x0102_0304_0506_0708,
        window_bytes_total: 0x1112_1314_1516_1718,
        duplicates: 0x2122_2324,
        dropped: 0x3132_3334,
        reached: Reached::Synced,
    };
    let bytes = hex("0807060504030201 1817161514131211 24232221 34333231 02 00000000000000");
    assert_eq!(confirm.encode().to_vec(), bytes);
    assert_eq!(Confirm::decode(&bytes), Some(confirm));
    let mut unknown = bytes.clone();
    unknown[24] = 3;
    assert_eq!(Confirm::decode(&unknown), None);
    assert_eq!(Confirm::decode(&bytes[..31]), None);
}

#[test]
fn golden_deliver_header() {
    let header = DeliverHeader {
        delivery_id: 0x0102_0304_0506_0708,
        base_sequence: 0x1112_1314_1516_1718,
        accepted_us: 0x2122_2324_2526_2728,
        record_count: 0x3132_3334,
        crc32c: 0x4142_4344,
        attempts: 0x5152,
        flags: 0x6162,
        priority: 0x71,
    };
    let bytes = hex("0807060504030201 1817161514131211 2827262524232221 34333231 44434241
         5251 6261 71 0000000000000000000000");
    assert_eq!(header.encode().to_vec(), bytes);
    let mut payload = bytes.clone();
    payload.extend_from_slice(b"records");
    assert_eq!(DeliverHeader::decode(&payload), Some((header, b"records".as_slice())));
    assert_eq!(DeliverHeader::decode(&bytes[..47]), None);
}

#[test]
fn golden_credit_and_ack() {
    let credit = CreditEntry { handle: 0x0102_0304, messages: 0x1112_1314, bytes: 0x2122 };
    let bytes = hex("04030201 14131211 2221000000000000");
    assert_eq!(credit.encode().to_vec(), bytes);
    let twice = [bytes.as_slice(), &bytes].concat();
    assert_eq!(CreditEntry::decode_all(&twice).unwrap().collect::<Vec<_>>(), [credit, credit]);
    assert!(CreditEntry::decode_all(&twice[1..]).is_none());

    let range = AckRange { handle: 0x0102_0304, first: 0x1112, last: 0x2122 };
    let bytes = hex("04030201 00000000 1211000000000000 2221000000000000");
    assert_eq!(range.encode().to_vec(), bytes);
    let twice = [bytes.as_slice(), &bytes].concat();
    assert_eq!(AckRange::decode_all(&twice).unwrap().collect::<Vec<_>>(), [range, range]);
    assert!(AckRange::decode_all(&twice[1..]).is_none());
    assert_eq!(AckRange::decode_all(&[]).unwrap().count(), 0);

    let done = AckDone { acked: 0x0102, late: 0x0304 };
    assert_eq!(done.encode().to_vec(), hex("0201000000000000 0403000000000000"));
    assert_eq!(AckDone::decode(&done.encode()), Some(done));
    assert_eq!(AckDone::decode(&[0; 15]), None);
}

#[test]
fn golden_pull() {
    let pull = Pull { messages_max: 0x0102_0304, wait_ms: 0x1112_1314, bytes_max: 0x2122 };
    assert_eq!(pull.encode().to_vec(), hex("04030201 14131211 2221000000000000"));
    assert_eq!(Pull::decode(&pull.encode()), Some(pull));
    assert_eq!(Pull::decode(&[0; 17]), None);
    let done = PullDone { messages: 0x0102_0304 };
    assert_eq!(done.encode().to_vec(), hex("04030201 00000000"));
    assert_eq!(PullDone::decode(&done.encode()), Some(done));
    assert_eq!(PullDone::decode(&[0; 7]), None);
}

#[test]
fn numbers_and_names_are_one_to_one() {
    for number in 0..=u8::MAX {
        let known = Opcode::ALL.iter().find(|opcode| **opcode as u8 == number).copied();
        assert_eq!(Opcode::from_u8(number), known);
    }
    assert_eq!(Opcode::from_u8(0), None, "all-zero bytes are no frame that anybody knows");
    let mut names: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_u16(*code as u16), Some(*code));
        assert_eq!(ErrorCode::from_name(code.name()), Some(*code));
        let snake = |name: String| {
            let parts = name.split_inclusive(|_: char| true).map(|letter| {
                let upper = letter.chars().any(char::is_uppercase);
                format!("{}{}", if upper { "_" } else { "" }, letter.to_lowercase())
            });
            parts.collect::<String>().trim_start_matches('_').to_owned()
        };
        assert_eq!(snake(format!("{code:?}")), code.name());
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ErrorCode::ALL.len());
    assert_eq!(ErrorCode::from_u16(0), None);
    assert_eq!(ErrorCode::from_name("no_origin"), None);
}

/// A request of each kind, with something in its fields.
fn requests() -> Vec<Request> {
    let name = || "orders.eu".to_owned();
    let options = wire::QueueOptionsT {
        durable: true,
        messages_max: 1_000_000,
        bytes_max: u64::MAX,
        on_full: wire::OnFull::DropOldest,
        message_bytes_max: 7,
        confirm: wire::ConfirmAt::Written,
    };
    let hello = wire::HelloT {
        client_name: Some("example".to_owned()),
        token: Some("secret".to_owned()),
        features: 3,
        attach: Some(name()),
        heartbeat_ms: 5000,
    };
    let consumer = wire::ConsumerOpenT {
        queue: name(),
        subscription: Some("default".to_owned()),
        auto_ack: true,
        checksum: true,
        credit_messages: 256,
        credit_bytes: 4 << 20,
        lease_ms: 5000,
        unacked_max: 7,
    };
    let create = wire::QueueCreateT {
        name: name(),
        options: Some(Box::new(options.clone())),
        subscriptions: Some(vec!["mail".to_owned(), "audit".to_owned()]),
        subscription_options: Some(Box::new(subscription_options())),
    };
    let update = wire::QueueUpdateT { name: name(), options: Box::new(options), set: 15 };
    vec![
        Request::Hello(hello),
        Request::ProducerOpen(wire::ProducerOpenT {
            queue: name(),
            producer_id: u64::MAX,
            next_sequence: 9,
        }),
        Request::ConsumerOpen(consumer),
        Request::QueueCreate(create),
        Request::QueueUpdate(update),
        Request::QueueDelete(wire::QueueDeleteT { name: name(), if_empty: true }),
        Request::QueuePurge(wire::QueuePurgeT {
            name: name(),
            subscription: Some("mail".to_owned()),
        }),
        Request::QueueList(wire::QueueListT {
            prefix: Some("or".to_owned()),
            after: Some(name()),
            count_max: 7,
        }),
        Request::QueueDescribe(wire::QueueDescribeT { name: name() }),
        Request::QueuePeek(wire::QueuePeekT {
            name: name(),
            count_max: 3,
            skip: 4,
            subscription: Some("mail".to_owned()),
        }),
        Request::BrokerStats(wire::BrokerStatsT {}),
        Request::Trim(wire::TrimT {}),
    ]
}

fn subscription_requests() -> Vec<Request> {
    let name = || "orders.eu".to_owned();
    vec![
        Request::SubscriptionCreate(wire::SubscriptionCreateT {
            queue: name(),
            name: "mail".to_owned(),
            options: Some(Box::new(subscription_options())),
            start: wire::Start::Oldest,
        }),
        Request::SubscriptionUpdate(wire::SubscriptionUpdateT {
            queue: name(),
            name: "mail".to_owned(),
            options: Box::new(subscription_options()),
            set: 63,
        }),
        Request::SubscriptionDelete(wire::SubscriptionDeleteT {
            queue: name(),
            name: "mail".to_owned(),
            force: true,
        }),
        Request::SubscriptionList(wire::SubscriptionListT { queue: name() }),
        Request::SubscriptionDescribe(wire::SubscriptionDescribeT {
            queue: name(),
            name: "mail".to_owned(),
        }),
        Request::Redrive(wire::RedriveT {
            queue: name(),
            target: Some("q".to_owned()),
            count_max: 5,
            after_sequence: 6,
            filter_key: Some("dead-letter-reason".to_owned()),
            filter_value: Some("rejected".to_owned()),
        }),
    ]
}

fn subscription_options() -> wire::SubscriptionOptionsT {
    wire::SubscriptionOptionsT {
        lease_ms: 5000,
        max_attempts: 3,
        backoff: Some(Box::new(wire::BackoffT {
            kind: wire::BackoffKind::List,
            base_ms: 1,
            max_ms: 2,
            jitter: false,
            list_ms: Some(vec![1, 2, 3]),
        })),
        dead_letter: Some("graves".to_owned()),
        unacked_max: 9,
        expires_after_ms: 60_000,
    }
}

fn subscription(name: &str) -> wire::SubscriptionDescriptionT {
    wire::SubscriptionDescriptionT {
        queue: "q".to_owned(),
        name: name.to_owned(),
        options: Box::new(subscription_options()),
        failed: 4,
        ..Default::default()
    }
}

fn description(name: &str) -> wire::QueueDescriptionT {
    wire::QueueDescriptionT {
        name: name.to_owned(),
        ready: 1,
        blocked_reason: Some("queue_messages_max".to_owned()),
        shard: 7,
        ..wire::QueueDescriptionT::default()
    }
}

/// An answer of each kind, the listings as long as they get.
fn answers() -> Vec<Answer> {
    let error = wire::ErrorT {
        code: ErrorCode::QueueBytesMax as u16,
        text: Some("full".to_owned()),
        retry_after_ms: 1000,
        limit_name: Some("bytes_max".to_owned()),
        limit_value: 5,
        sequence: 6,
        window_bytes_total: 7,
    };
    let long_name = "n".repeat(NAME_BYTES_MAX);
    let queues = (0..LIST_COUNT_MAX).map(|_| description(&long_name)).collect();
    let peeked = |nth| wire::PeekedMessageT {
        sequence: u64::from(nth),
        properties: Some(vec![2, 1, 0, 9]),
        body: Some(vec![7; 100]),
        body_bytes: 100,
        ..wire::PeekedMessageT::default()
    };
    let messages = (0..PEEK_COUNT_MAX).map(peeked).collect();
    vec![
        Answer::HelloOk(wire::HelloOkT { shards: 4, ..Default::default() }),
        Answer::Error(error.clone()),
        Answer::PublishError(error),
        Answer::Drain(wire::DrainT { reason: Some("bye".to_owned()), deadline_ms: 5000 }),
        Answer::ProducerOpened(wire::ProducerOpenedT { last_sequence: 3, ..Default::default() }),
        Answer::Blocked(wire::BlockedT { code: 68, ..Default::default() }),
        Answer::Unblocked(wire::UnblockedT { window_bytes_total: 9 }),
        Answer::ConsumerOpened(wire::ConsumerOpenedT {
            in_flight_max: 8,
            lease_ms: 9,
            home_shard: 1,
        }),
        Answer::QueueDone(wire::QueueDoneT { created: true }),
        Answer::QueueRemoved(wire::QueueRemovedT { messages: 1, bytes: 2 }),
        Answer::QueueListing(wire::QueueListingT { queues: Some(queues), more: true }),
        Answer::QueueDescription(description("q")),
        Answer::PeekedMessages(wire::PeekedMessagesT { messages: Some(messages), more: true }),
        Answer::Stats(wire::StatsT { ticks: 3, ..Default::default() }),
        Answer::SubscriptionListing(wire::SubscriptionListingT {
            subscriptions: Some(vec![subscription("audit"), subscription("mail")]),
        }),
        Answer::SubscriptionDescription(subscription("mail")),
        Answer::Redriven(wire::RedrivenT {
            messages: 1,
            last_sequence: 2,
            finished: true,
            refused: 3,
            reason: Some("queue_bytes_max".to_owned()),
        }),
        Answer::Trimmed(wire::TrimmedT { released_bytes: 1, disk_allocated_bytes: 2 }),
    ]
}

#[test]
fn control_bodies_come_back_as_they_went() {
    for request in requests().into_iter().chain(subscription_requests()) {
        let bytes = request.encode();
        assert!(bytes.len() <= CONTROL_PAYLOAD_BYTES_MAX);
        assert_eq!(Request::decode(request.opcode(), &bytes), Ok(request));
    }
    for answer in answers() {
        let bytes = answer.encode();
        assert!(bytes.len() <= ANSWER_PAYLOAD_BYTES_MAX, "{:?}: {}", answer.opcode(), bytes.len());
        assert_eq!(Answer::decode(answer.opcode(), &bytes), Ok(answer));
    }
}

#[test]
fn nacks_and_extends_have_their_layout() {
    let ranges = vec![
        NackRange { handle: 7, kind: NackKind::Failed, first: 1, last: 2, delay_ms: None },
        NackRange { handle: 8, kind: NackKind::Returned, first: 3, last: 3, delay_ms: Some(0) },
        NackRange { handle: 9, kind: NackKind::Rejected, first: 4, last: 9, delay_ms: Some(5) },
    ];
    let nack = Nack { ranges, text: "no öil" };
    let bytes = nack.encode();
    assert_eq!(bytes[..8], [3, 0, 0, 0, 7, 0, 0, 0]);
    assert_eq!(bytes[8..16], [7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[32..40], [255, 255, 255, 255, 0, 0, 0, 0]);
    assert_eq!(Nack::decode(&bytes), Some(nack));
    for cut in 0..bytes.len() {
        assert_eq!(Nack::decode(&bytes[..cut]), None, "{cut}");
    }
    let mut unknown_kind = bytes.clone();
    unknown_kind[12] = 3;
    assert_eq!(Nack::decode(&unknown_kind), None);
    let mut no_text = bytes;
    *no_text.last_mut().unwrap() = 0xff;
    assert_eq!(Nack::decode(&no_text), None);
    let long = Nack { ranges: vec![], text: &"x".repeat(NACK_TEXT_BYTES_MAX + 1) }.encode();
    assert_eq!(Nack::decode(&long), None);

    let range = ExtendRange { handle: 0x0102_0304, lease_ms: 5, first: 0x1112, last: 0x2122 };
    let twice = [range.encode(), range.encode()].concat();
    assert_eq!(twice[..9], [4, 3, 2, 1, 5, 0, 0, 0, 0x12]);
    assert_eq!(ExtendRange::decode_all(&twice).unwrap().collect::<Vec<_>>(), [range, range]);
    assert!(ExtendRange::decode_all(&twice[1..]).is_none());
}

#[test]
fn every_opcode_has_one_kind_of_body() {
    use Opcode as O;
    for &opcode in Opcode::ALL {
        let requested = requests()
            .iter()
            .chain(&subscription_requests())
            .any(|request| request.opcode() == opcode);
        let answered = answers().iter().any(|answer| answer.opcode() == opcode);
        let hot = [O::Publish, O::Confirm, O::Deliver, O::Credit, O::Ack, O::AckDone];
        let other = [O::Nack, O::Extend, O::Pull, O::PullDone, O::Ping, O::Pong, O::Closed];
        let empty = [O::ProducerClose, O::ConsumerClose];
        let fixed = hot.contains(&opcode) || other.contains(&opcode) || empty.contains(&opcode);
        let kinds = [requested, answered, fixed].iter().filter(|kind| **kind).count();
        assert_eq!(kinds, 1, "{opcode:?}");
        if !requested {
            let unexpected = Err(ControlError::Unexpected(opcode));
            assert_eq!(Request::decode(opcode, &[]), unexpected);
        }
        if !answered {
            assert_eq!(Answer::decode(opcode, &[]), Err(ControlError::Unexpected(opcode)));
        }
    }
}

#[test]
fn a_required_name_that_is_missing_is_refused() {
    // A table without any field is a Hello, and a QueuePurge without its name.
    let empty = Request::Hello(wire::HelloT::default()).encode();
    assert!(Request::decode(Opcode::Hello, &empty).is_ok());
    for opcode in [Opcode::QueuePurge, Opcode::QueueUpdate, Opcode::ConsumerOpen] {
        let refused = Request::decode(opcode, &empty);
        assert!(matches!(refused, Err(ControlError::Malformed { .. })), "{refused:?}");
    }
    assert!(Request::decode(Opcode::Hello, &[]).is_err());
}

/// A body that says much with few bytes would cost the broker more than it costs its sender.
#[test]
fn a_body_that_unfolds_is_refused() {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let body = builder.create_vector(&[7u8; 60_000]);
    let message = wire::PeekedMessage::create(
        &mut builder,
        &wire::PeekedMessageArgs { body: Some(body), ..Default::default() },
    );
    let messages = builder.create_vector(&[message; 1000]);
    let root = wire::PeekedMessages::create(
        &mut builder,
        &wire::PeekedMessagesArgs { messages: Some(messages), more: false },
    );
    builder.finish_minimal(root);
    assert!(builder.finished_data().len() < 65_000);
    let refused = Answer::decode(Opcode::PeekedMessages, builder.finished_data());
    assert!(matches!(refused, Err(ControlError::Malformed { .. })));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        if let Some(header) = bytes.first_chunk() {
            let _ = FrameHeader::decode(header);
            let _ = FrameHeader::decode_from_client(header);
        }
        if let Some(preamble) = bytes.first_chunk() {
            let _ = frame::preamble_version(preamble);
        }
        for &opcode in Opcode::ALL {
            let _ = Request::decode(opcode, &bytes);
            let _ = Answer::decode(opcode, &bytes);
        }
        let _ = Confirm::decode(&bytes);
        let _ = DeliverHeader::decode(&bytes);
        let _ = CreditEntry::decode_all(&bytes).map(Iterator::count);
        let _ = AckRange::decode_all(&bytes).map(Iterator::count);
        let _ = ExtendRange::decode_all(&bytes).map(Iterator::count);
        let _ = Nack::decode(&bytes);
        let _ = AckDone::decode(&bytes);
        let _ = Pull::decode(&bytes);
        let _ = PullDone::decode(&bytes);
    }

    /// Bodies that were right and then were changed a little get much further than random ones.
    #[test]
    fn damaged_bodies_never_panic(
        which in any::<prop::sample::Index>(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bodies: Vec<(Opcode, Vec<u8>)> = Vec::new();
        let all = requests().into_iter().chain(subscription_requests());
        bodies.extend(all.map(|request| (request.opcode(), request.encode())));
        bodies.extend(answers().iter().map(|answer| (answer.opcode(), answer.encode())));
        let (opcode, mut bytes) = bodies.swap_remove(which.index(bodies.len()));
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(if whole { bytes.len() } else { keep.index(bytes.len()) });
        // What still decodes can be said again.
        if let Ok(request) = Request::decode(opcode, &bytes) {
            prop_assert_eq!(Request::decode(opcode, &request.encode()), Ok(request));
        }
        if let Ok(answer) = Answer::decode(opcode, &bytes) {
            prop_assert_eq!(Answer::decode(opcode, &answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn headers_come_back_as_they_went(
        payload_bytes in 0..=FRAME_PAYLOAD_BYTES_MAX as u32,
        opcode in any::<u8>(),
        flags in any::<u8>(),
        handle in any::<u32>(),
        correlation in any::<u32>(),
    ) {
        let header = FrameHeader { payload_bytes, opcode, flags, handle, correlation };
        prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
    }
}
