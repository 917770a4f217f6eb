//! Options that cannot be: each gets its code, and the limit with its value where there is one.

use super::verbs::*;
use super::*;

type Change = fn(&mut wire::SubscriptionOptionsT);

fn backoff(options: &mut wire::SubscriptionOptionsT, change: fn(&mut wire::BackoffT)) {
    let mut backoff = wire::BackoffT::default();
    change(&mut backoff);
    options.backoff = Some(Box::new(backoff));
}

#[test]
fn every_option_out_of_range_names_its_limit() {
    let cases: &[(Change, &str, u64)] = &[
        (|o| o.lease_ms = 99, "LEASE_MS_MIN", 100),
        (|o| o.lease_ms = 1, "LEASE_MS_MIN", 100),
        (|o| o.lease_ms = u32::MAX, "LEASE_MS_MAX", 43_200_000),
        (|o| o.max_attempts = 10_001, "ATTEMPTS_MAX", 10_000),
        (|o| o.expires_after_ms = 999, "EXPIRES_AFTER_MS_MIN", 1000),
        (|o| o.expires_after_ms = u64::MAX, "EXPIRES_AFTER_MS_MAX", 31_622_400_000),
        (|o| backoff(o, |b| b.base_ms = u32::MAX), "BACKOFF_MS_MAX", 604_800_000),
        (|o| backoff(o, |b| b.max_ms = u32::MAX), "BACKOFF_MS_MAX", 604_800_000),
        (
            |o| {
                backoff(o, |b| {
                    b.kind = wire::BackoffKind::List;
                    b.list_ms = Some(vec![1; 33]);
                });
            },
            "BACKOFF_LIST_MAX",
            32,
        ),
        (
            |o| {
                backoff(o, |b| {
                    b.kind = wire::BackoffKind::List;
                    b.list_ms = Some(vec![1, 604_800_001]);
                });
            },
            "BACKOFF_MS_MAX",
            604_800_000,
        ),
    ];
    let mut bench = Bench::new();
    let key = bench.open();
    for (change, name, value) in cases {
        let mut options = wire::SubscriptionOptionsT::default();
        change(&mut options);
        match bench.create_with(key, "q", &[], options) {
            Answer::Error(error) => {
                assert_eq!(error.code, ErrorCode::BadOption as u16, "{name}");
                assert_eq!((error.limit_name.as_deref(), error.limit_value), (Some(*name), *value));
                assert!(error.text.unwrap().contains(&value.to_string()), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(bench.core.queues().count(), 0);
}

#[test]
fn options_that_make_no_sense_are_bad_ones() {
    let cases: &[(Change, ErrorCode)] = &[
        (|o| o.dead_letter = Some("q".into()), ErrorCode::BadOption),
        (|o| o.dead_letter = Some("no name".into()), ErrorCode::BadName),
        (|o| o.dead_letter = Some("$system".into()), ErrorCode::BadName),
        (|o| backoff(o, |b| b.kind = wire::BackoffKind(9)), ErrorCode::BadOption),
        (|o| backoff(o, |b| b.kind = wire::BackoffKind::List), ErrorCode::BadOption),
    ];
    let mut bench = Bench::new();
    let key = bench.open();
    for (nth, (change, code)) in cases.iter().enumerate() {
        let mut options = wire::SubscriptionOptionsT::default();
        change(&mut options);
        assert_eq!(code_of(&bench.create_with(key, "q", &[], options)), *code, "case {nth}");
    }
    for (names, code) in [
        (vec!["a", "a"], ErrorCode::BadOption),
        (vec!["a", ""], ErrorCode::BadName),
        (vec!["with/slash"], ErrorCode::BadName),
        (vec!["x"; 257], ErrorCode::SubscriptionsMax),
    ] {
        let answer = bench.create_with(key, "q", &names, wire::SubscriptionOptionsT::default());
        assert_eq!(code_of(&answer), code);
    }
    assert_eq!(bench.core.queues().count(), 0);
}

#[test]
fn zero_means_the_default_and_the_default_may_be_named() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.options.lease_ms, shown.options.max_attempts), (30_000, 20));
    let backoff = shown.options.backoff.unwrap();
    assert_eq!((backoff.kind, backoff.jitter), (wire::BackoffKind::Exponential, true));
    assert_eq!((backoff.base_ms, backoff.max_ms), (1000, 300_000));
    // The same again, in other words.
    let queue = "q".to_owned();
    let same = wire::SubscriptionOptionsT {
        lease_ms: 30_000,
        dead_letter: Some("q.dead".into()),
        backoff: Some(Box::default()),
        ..Default::default()
    };
    let (name, start) = ("default".to_owned(), wire::Start::Now);
    let options = Some(Box::new(same));
    let create = wire::SubscriptionCreateT { queue, name, options, start };
    match bench.ask(key, Request::SubscriptionCreate(create), 0) {
        Answer::QueueDone(done) => assert!(!done.created),
        other => panic!("{other:?}"),
    }
    // A queue that is there is the same only with the subscriptions that are asked for.
    let shorter = wire::SubscriptionOptionsT { lease_ms: 5000, ..Default::default() };
    for (names, options, expected) in [
        (&["default"][..], wire::SubscriptionOptionsT::default(), None),
        (&[], wire::SubscriptionOptionsT::default(), None),
        (&[], shorter, Some(ErrorCode::QueueExists)),
        (&["other"], wire::SubscriptionOptionsT::default(), Some(ErrorCode::QueueExists)),
    ] {
        match (bench.create_with(key, "q", names, options), expected) {
            (Answer::QueueDone(done), None) => assert!(!done.created),
            (answer, Some(code)) => assert_eq!(code_of(&answer), code),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bench.describe(key, "q").subscriptions, 1);
}

#[test]
fn a_consumer_gets_the_lease_that_it_asks_for_or_its_subscriptions() {
    let mut bench = Bench::new();
    let key = bench.open();
    let options = wire::SubscriptionOptionsT { lease_ms: 5000, ..Default::default() };
    bench.create_with(key, "q", &[], options);
    let open = |lease_ms| {
        let queue = "q".into();
        Request::ConsumerOpen(wire::ConsumerOpenT { queue, lease_ms, ..Default::default() })
    };
    for (handle, asked, expected) in [(1, 0, 5000), (2, 100, 100), (3, 43_200_000, 43_200_000)] {
        match bench.ask(key, open(asked), handle) {
            Answer::ConsumerOpened(body) => assert_eq!(body.lease_ms, expected),
            other => panic!("{other:?}"),
        }
    }
    for lease_ms in [1, 99, 43_200_001, u32::MAX] {
        assert_eq!(code_of(&bench.ask(key, open(lease_ms), 9)), ErrorCode::BadOption);
    }
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    let update = |set, options: wire::SubscriptionOptionsT| {
        let options = Box::new(options);
        let (queue, name) = ("q".into(), "default".into());
        Request::SubscriptionUpdate(wire::SubscriptionUpdateT { queue, name, options, set })
    };
    let asked = wire::SubscriptionOptionsT {
        lease_ms: 1,
        max_attempts: 3,
        unacked_max: 7,
        ..Default::default()
    };
    let answer = bench.ask(key, update(2 | 16, asked.clone()), 0);
    assert!(matches!(answer, Answer::QueueDone(_)), "{answer:?}");
    let shown = bench.subscription(key, "q", "default").options;
    assert_eq!((shown.lease_ms, shown.max_attempts, shown.unacked_max), (30_000, 3, 7));
    for set in [0, 64, 1] {
        assert_eq!(code_of(&bench.ask(key, update(set, asked.clone()), 0)), ErrorCode::BadOption);
    }
    let itself = wire::SubscriptionOptionsT { dead_letter: Some("q".into()), ..asked };
    assert_eq!(code_of(&bench.ask(key, update(8, itself), 0)), ErrorCode::BadOption);
}
