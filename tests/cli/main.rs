//! The program as its users have it: the real binary, a real broker on a free port, real pipes.
#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

mod broker;
mod life;

use broker::{Broker, Finished, LONG, forebay};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;

fn lines_of(bytes: &[u8]) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    std::str::from_utf8(bytes).unwrap().lines().map(parse).collect()
}

#[test]
fn bytes_come_back_as_they_went() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "bytes"]);
    let input = b"plain\n\n\r\n\xff\xfe\x00\x80 not text\nwindows\r\n\n\xc3\xa4\n".as_slice();
    broker.run(&["publish", "bytes"], input).expect(0);
    assert_eq!(broker.ok(&["consume", "bytes"]).stdout, input);
    assert_eq!(broker.show("bytes")["ready"], 0);

    broker.run(&["publish", "bytes"], b"\nno newline at the end").expect(0);
    assert_eq!(broker.ok(&["consume", "bytes"]).stdout, b"\nno newline at the end\n");

    broker.run(&["publish", "bytes"], b"").expect(0);
    assert_eq!(broker.ok(&["consume", "bytes"]).stdout, b"");
}

#[test]
fn arguments_generated_bodies_and_headers() {
    let broker = Broker::start();
    broker.ok(&["publish", "made", "--create", "one", "two\nlines", ""]);
    assert_eq!(broker.ok(&["consume", "made"]).stdout, b"one\ntwo\nlines\n\n");

    broker.ok(&["publish", "made", "--count", "3000", "--size", "20"]);
    let out = broker.ok(&["consume", "made"]).stdout;
    assert_eq!((out.len(), &out[..21]), (3000 * 21, b"0000000000 abcdefghi\n".as_slice()));

    let headers = ["--header", "a=1", "--header", "b=x=y"];
    broker.ok(&[["publish", "made", "body"].as_slice(), &headers].concat());
    let messages = lines_of(&broker.ok(&["consume", "made", "--json"]).stdout);
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["headers"], json!({ "a": "1", "b": "x=y" }));

    let summary = broker.ok(&["publish", "made", "--json", "--rate", "200", "1", "2", "3"]);
    let summary = &lines_of(&summary.stdout)[0];
    assert_eq!((&summary["confirmed"], &summary["bytes"]), (&json!(3), &json!(3)));
    assert!(summary["elapsed_us"].as_u64() >= Some(10_000), "two intervals of 5 ms: {summary}");
}

#[test]
fn a_delivered_message_has_every_field() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "fields"]);
    broker.run(&["publish", "fields"], b"text\n\xff\n").expect(0);
    let messages = lines_of(&broker.ok(&["consume", "fields", "--json"]).stdout);
    let first = messages[0].as_object().unwrap();
    let fields = [
        "queue",
        "sequence",
        "delivery_id",
        "attempts",
        "redelivered",
        "accepted_at",
        "accepted_us",
        "message_id",
        "content_type",
        "correlation_id",
        "reply_to",
        "trace_context",
        "headers",
        "body_bytes",
        "body",
    ];
    assert_eq!(
        first.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
        fields.into_iter().collect()
    );
    assert_eq!(
        (&first["queue"], &first["delivery_id"], &first["attempts"], &first["redelivered"]),
        (&json!("fields"), &json!(1), &json!(1), &json!(false))
    );
    assert!(first["accepted_at"].as_str().unwrap().starts_with("20"));
    assert_eq!((&first["body"], &messages[1]["body_base64"]), (&json!("text"), &json!("/w==")));
    let sequence = |at: usize| messages[at]["sequence"].as_u64().unwrap();
    assert_eq!(sequence(1), sequence(0) + 1);
}

#[test]
fn count_takes_that_many_and_never_more() {
    let broker = Broker::start();
    broker.ok(&["publish", "ten", "--create", "--count", "10"]);
    let taken = broker.ok(&["consume", "ten", "--count", "3"]);
    assert_eq!(taken.lines(), 3);
    let queue = broker.show("ten");
    let numbers = ["ready", "in_flight", "delivered", "acked", "returned"].map(|name| &queue[name]);
    assert_eq!(numbers, [7, 0, 3, 3, 0].map(Value::from).each_ref());

    assert_eq!(broker.ok(&["consume", "ten", "--count", "100"]).lines(), 7);
    assert_eq!(broker.ok(&["consume", "ten", "--count", "0"]).lines(), 0);
    assert_eq!(broker.ok(&["consume", "ten", "--count", "1"]).lines(), 0);
}

#[test]
fn the_sum_of_a_queue_can_be_checked() {
    let broker = Broker::start();
    let limit = ["--messages-max", "8", "--on-full", "drop-oldest"];
    broker.ok(&[["queue", "create", "sum"].as_slice(), &limit].concat());
    broker.ok(&["publish", "sum", "--count", "12"]);
    broker.ok(&["consume", "sum", "--count", "2"]);
    broker.ok(&["consume", "sum", "--count", "1", "--auto-ack"]);
    let purged = broker.ok(&["queue", "purge", "sum", "--json"]);
    assert_eq!(lines_of(&purged.stdout)[0]["messages"], 5);
    broker.ok(&["publish", "sum", "--count", "4"]);

    let queue = broker.show("sum");
    let number = |name: &str| queue[name].as_u64().unwrap_or_else(|| panic!("{name}: {queue}"));
    let ways_out = ["acked", "dead_lettered", "expired", "dropped_oldest", "dropped_newest"];
    let sum = ways_out.iter().map(|name| number(name)).sum::<u64>()
        + ["purged", "lost_damaged"].iter().map(|name| number(name)).sum::<u64>()
        + ["ready", "in_flight", "delayed"].iter().map(|name| number(name)).sum::<u64>();
    assert_eq!(number("published"), sum, "{queue}");
    assert_eq!(
        ["published", "dropped_oldest", "acked", "purged", "ready"].map(number),
        [16, 4, 3, 5, 4]
    );
    assert!(number("memory_bytes") >= number("bytes") && number("bytes") > 0);
    assert_eq!(number("spilled_bytes"), 0);
}

#[test]
fn peek_takes_nothing() {
    let broker = Broker::start();
    broker.ok(&["publish", "peeked", "--create", "a", "b", "c", "d"]);
    let seen = broker.ok(&["queue", "peek", "peeked", "--skip", "1", "--count", "2", "--json"]);
    let bodies: Vec<Value> =
        lines_of(&seen.stdout).iter().map(|line| line["body"].clone()).collect();
    assert_eq!(bodies, ["b", "c"]);
    let table = broker.ok(&["queue", "peek", "peeked"]).text();
    assert_eq!(table.lines().count(), 5, "{table}");
    assert_eq!(broker.show("peeked")["ready"], 4);
    assert_eq!(broker.ok(&["consume", "peeked"]).stdout, b"a\nb\nc\nd\n");
}

#[test]
fn queues_are_listed_changed_and_deleted() {
    let broker = Broker::start();
    for name in ["b.two", "a.one", "b.one"] {
        let created = broker.ok(&["queue", "create", name, "--json"]);
        assert_eq!(lines_of(&created.stdout)[0]["created"], true);
    }
    let again = broker.ok(&["queue", "create", "a.one", "--json"]);
    assert_eq!(lines_of(&again.stdout)[0]["created"], false);
    let other = broker.run(&["queue", "create", "a.one", "--messages-max", "5"], b"").expect(1);
    assert!(other.errors().contains("queue_exists"), "{}", other.errors());

    let names = |arguments: &[&str]| -> Vec<String> {
        let listed: Value = serde_json::from_slice(&broker.ok(arguments).stdout).unwrap();
        let name = |queue: &Value| queue["name"].as_str().unwrap().to_owned();
        listed.as_array().unwrap().iter().map(name).collect()
    };
    assert_eq!(names(&["queue", "list", "--json"]), ["a.one", "b.one", "b.two"]);
    assert_eq!(names(&["queue", "list", "b.", "--json"]), ["b.one", "b.two"]);
    assert_eq!(names(&["queue", "list", "c.", "--json"]), [""; 0]);
    assert!(broker.ok(&["queue", "list"]).text().starts_with("NAME "));

    broker.ok(&["queue", "update", "a.one", "--messages-max", "7", "--on-full", "reject"]);
    let queue = broker.show("a.one");
    assert_eq!((&queue["messages_max"], &queue["on_full"]), (&json!(7), &json!("reject")));

    broker.ok(&["publish", "a.one", "x"]);
    broker.run(&["queue", "delete", "a.one", "--if-empty"], b"").expect(1);
    broker.ok(&["queue", "delete", "a.one"]);
    broker.ok(&["queue", "delete", "b.one", "--if-empty"]);
    assert_eq!(names(&["queue", "list", "--json"]), ["b.two"]);
}

#[test]
fn exit_codes_say_what_happened() {
    let broker = Broker::start();
    for missing in [
        ["queue", "show", "none"].as_slice(),
        &["queue", "delete", "none"],
        &["queue", "purge", "none"],
        &["queue", "peek", "none"],
        &["queue", "update", "none", "--messages-max", "1"],
        &["consume", "none"],
        &["consume", "none", "--follow"],
        &["publish", "none", "x"],
    ] {
        let told = broker.run(missing, b"").expect(3);
        assert!(told.errors().contains("forebay queue create none"), "{}", told.errors());
        assert_eq!(told.errors().lines().count(), 1, "{}", told.errors());
    }
    let told = broker.run(&["queue", "show", "none", "--json"], b"").expect(3);
    let error = &lines_of(told.errors().as_bytes())[0]["error"];
    assert_eq!((&error["code"], &error["exit_code"]), (&json!("queue_not_found"), &json!(3)));

    broker.run(&["queue", "create", "bad name"], b"").expect(2);
    broker.run(&["queue", "create", "$system"], b"").expect(2);
    broker.run(&["queue", "create"], b"").expect(2);
    broker.run(&["queue", "create", "kept", "--confirm", "written"], b"").expect(2);
    broker.ok(&["queue", "create", "kept", "--durable", "--confirm", "written"]);
    // It is there with other options.
    broker.run(&["queue", "create", "kept", "--durable"], b"").expect(1);
}

#[test]
fn ping_tries_once() {
    let broker = Broker::start();
    let answer = broker.ok(&["ping", "--json"]);
    assert!(lines_of(&answer.stdout)[0]["round_trip_us"].as_f64().unwrap() > 0.0);
    let address = broker.address.clone();
    drop(broker);
    let told = Finished::of(forebay(&["ping", "--server", &address]), b"").expect(4);
    assert_eq!(told.errors().lines().count(), 1);
    assert!(told.errors().contains("forebay serve"), "{}", told.errors());
    Finished::of(forebay(&["ping", "--server", "nonsense"]), b"").expect(2);
}

#[test]
fn a_token_keeps_out_who_does_not_know_it() {
    let broker = Broker::start_with(&["--token", "secret"]);
    let told = broker.run(&["ping"], b"").expect(1);
    assert!(told.errors().contains("bad_token"), "{}", told.errors());
    broker.run(&["ping", "--token", "wrong"], b"").expect(1);
    broker.ok(&["ping", "--token", "secret"]);
    let mut by_environment = broker.command(&["stats", "--json"]);
    by_environment.env("FOREBAY_TOKEN", "secret");
    Finished::of(by_environment, b"").expect(0);
}

#[test]
fn stats_show_the_broker() {
    let broker = Broker::start();
    broker.ok(&["publish", "s", "--create", "--count", "50"]);
    let stats = &lines_of(&broker.ok(&["stats", "--json"]).stdout)[0];
    assert_eq!(
        (&stats["queues"], &stats["ready"], &stats["published"]),
        (&json!(1), &json!(50), &json!(50))
    );
    assert!(broker.ok(&["stats"]).text().contains("memory"));

    let mut watch = broker.command(&["stats", "--watch", "--interval", "20ms", "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert!(line["published_per_s"].is_number());
    }
    drop(lines);
    assert!(watch.wait().unwrap().success(), "a reader that went away is no fault");
}

#[test]
fn consume_waits_when_asked_to() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "later"]);
    let waiting = broker.spawn(&["consume", "later", "--timeout", "60s", "--count", "2"]);
    let following = broker.spawn(&["consume", "later", "--follow", "--count", "1"]);
    broker.wait_until("later", |queue| queue["consumers"] == 2);
    broker.ok(&["publish", "later", "a", "b", "c"]);
    let (waited, followed) = (waiting.finish().expect(0), following.finish().expect(0));
    let mut all = [waited.stdout, followed.stdout].concat();
    all.sort_unstable();
    assert_eq!(all, b"\n\n\nabc");
    assert_eq!(broker.ok(&["consume", "later", "--timeout", "50ms"]).stdout, b"");
}

#[test]
fn a_reader_that_goes_away_gets_no_more_and_loses_nothing() {
    let broker = Broker::start();
    broker.ok(&["publish", "pipe", "--create", "--count", "200000", "--size", "100"]);
    let mut consume = broker.command(&["consume", "pipe"]);
    let mut consume =
        consume.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(consume.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(first.starts_with("0000000000 "), "{first}");
    drop(out);
    let mut errors = String::new();
    consume.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((consume.wait().unwrap().code(), errors.as_str()), (Some(0), ""));

    let queue = broker.show("pipe");
    let number = |name: &str| queue[name].as_u64().unwrap();
    assert_eq!((number("in_flight"), number("acked") + number("ready")), (0, 200_000), "{queue}");
    assert!(number("returned") > 0, "{queue}");
    let rest = broker.ok(&["consume", "pipe", "--json", "--count", "1"]);
    assert_eq!(lines_of(&rest.stdout)[0]["redelivered"], true);
    assert_eq!(broker.ok(&["consume", "pipe"]).lines() as u64, number("ready") - 1);
}

#[test]
fn a_full_queue_makes_its_publisher_wait_and_says_so() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "full", "--messages-max", "5"]);
    let mut publish = broker.spawn(&["publish", "full", "--count", "12"]);
    let notice = publish.error_line();
    assert!(notice.contains("messages_max"), "{notice}");
    assert_eq!(broker.show("full")["ready"], 5);
    assert_eq!(broker.ok(&["consume", "full", "--timeout", "60s", "--count", "12"]).lines(), 12);
    publish.finish().expect(0);

    broker.ok(&["publish", "full", "1", "2", "3", "4", "5"]);
    let told = broker.run(&["publish", "full", "6", "--timeout", "200ms", "--json"], b"").expect(5);
    let last = lines_of(told.errors().as_bytes()).pop().unwrap();
    assert_eq!(last["error"]["code"], "timed_out");
    assert_eq!(lines_of(&told.stdout)[0]["confirmed"], 0);
}

#[test]
fn a_queue_that_rejects_ends_the_publish() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "no", "--messages-max", "5", "--on-full", "reject"]);
    let told = broker.run(&["publish", "no", "--count", "12"], b"").expect(1);
    assert!(told.errors().contains("queue_messages_max"), "{}", told.errors());
    assert!(told.errors().contains("(5 of 12 messages are confirmed)"), "{}", told.errors());
    broker.ok(&["queue", "create", "small", "--message-bytes-max", "10"]);
    let told = broker.run(&["publish", "small"], b"0123456789\n01234567890\n").expect(1);
    assert!(told.errors().contains("message_too_large") || told.errors().contains("message 2"));
    assert_eq!(broker.show("small")["ready"], 1);
}

#[test]
fn publish_outlives_a_restart_of_the_broker() {
    let mut broker = Broker::start();
    broker.ok(&["queue", "create", "kept", "--messages-max", "1000"]);
    let mut publish = broker.spawn(&["publish", "kept"]);
    publish.input(b"before 1\nbefore 2\n");
    broker.wait_until("kept", |queue| queue["ready"] == 2);
    broker.restart();
    publish.input(b"after 1\nafter 2");
    let told = publish.finish().expect(0);
    assert!(told.errors().contains("`kept` is gone"), "{}", told.errors());
    let queue = broker.show("kept");
    assert_eq!(queue["messages_max"], 1000, "as it was created");
    assert_eq!(broker.ok(&["consume", "kept"]).stdout, b"after 1\nafter 2\n");
}

#[test]
fn publish_gives_up_when_the_broker_stays_away() {
    let broker = Broker::start();
    let mut publish = broker.spawn(&["publish", "q", "--create", "--timeout", "200ms"]);
    publish.input(b"one\n");
    publish.error_line();
    broker.wait_until("q", |queue| queue["ready"] == 1);
    drop(broker);
    let told = publish.ended().expect(4);
    assert!(told.errors().contains("trying again for"), "{}", told.errors());
    assert!(told.errors().contains("(1 of 1 messages are confirmed)"), "{}", told.errors());
}

#[test]
fn a_queue_that_is_deleted_stays_deleted() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "gone"]);
    let mut publish = broker.spawn(&["publish", "gone"]);
    publish.input(b"one\n");
    broker.wait_until("gone", |queue| queue["ready"] == 1);
    let consume = broker.spawn(&["consume", "gone", "--timeout", "60s"]);
    broker.wait_until("gone", |queue| queue["acked"] == 1);
    broker.ok(&["queue", "delete", "gone"]);
    // It ends though its input does not.
    for command in [publish, consume] {
        let told = command.ended().expect(3);
        assert!(told.errors().contains("`gone` was deleted"), "{}", told.errors());
        assert_eq!(told.errors().lines().count(), 1, "{}", told.errors());
    }
    broker.run(&["queue", "show", "gone"], b"").expect(3);
}

#[test]
fn a_follower_outlives_a_restart_of_the_broker() {
    let mut broker = Broker::start();
    broker.ok(&["queue", "create", "kept"]);
    let mut follow = broker.spawn(&["consume", "kept", "--follow", "--count", "2"]);
    broker.ok(&["publish", "kept", "before"]);
    assert_eq!(follow.output_line(), "before");
    broker.restart();
    broker.ok(&["publish", "kept", "--create", "after"]);
    assert_eq!(follow.finish().expect(0).stdout, b"after\n");
}

#[test]
fn what_was_confirmed_and_what_was_not_after_a_kill_in_full_flow() {
    let mut broker = Broker::start();
    broker.ok(&["queue", "create", "flow"]);
    let publish = broker.spawn(&["publish", "flow", "--count", "300000", "--json"]);
    broker.wait_until("flow", |queue| queue["ready"].as_u64() > Some(10_000));
    broker.restart();
    let told = publish.finish().expect(0);
    let summary = lines_of(&told.stdout).pop().unwrap();
    assert_eq!(summary["confirmed"], 300_000);
    // In order, without a gap, to the end: what came before ended with the broker.
    let out = broker.ok(&["consume", "flow"]).stdout;
    let numbers: Vec<u64> =
        String::from_utf8(out).unwrap().lines().map(|line| line[..10].parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&299_999));
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn publish_waits_for_a_broker_that_is_not_there_yet() {
    let broker = Broker::start();
    let address = broker.address.clone();
    drop(broker);
    let told = forebay(&["publish", "q", "x", "--timeout", "200ms", "--server", &address]);
    let told = Finished::of(told, b"").expect(4);
    assert!(told.errors().contains("trying"), "{}", told.errors());

    let mut publish = forebay(&["publish", "q", "x", "--create", "--server", &address]);
    let mut publish = broker::Running::of(&mut publish);
    assert!(publish.error_line().contains("trying"));
    let broker = Broker::start_at(&address);
    publish.finish().expect(0);
    assert_eq!(broker.ok(&["consume", "q"]).stdout, b"x\n");
}

#[test]
fn serve_says_on_one_line_why_it_does_not_start() {
    let broker = Broker::start();
    let refused = |arguments: &[&str]| {
        let told = Finished::of(forebay(&[&["serve"], arguments].concat()), b"").expect(2);
        let faults = told.errors().lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!((faults, told.stdout.len()), (1, 0), "{}", told.errors());
        told.errors()
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().to_str().unwrap();
    let in_use = refused(&["--listen", &broker.address, "--data-dir", elsewhere]);
    assert!(in_use.contains("address in use"), "{in_use}");
    let in_use = refused(&["--listen", "127.0.0.1:0", "--data-dir", broker.data_dir()]);
    assert!(in_use.contains("data dir in use"), "{in_use}");
    let unknown = refused(&["--frobnicate"]);
    assert_eq!(unknown.lines().count(), 1, "{unknown}");
    refused(&["--memory-limit", "lots"]);
    refused(&["--listen", "0.0.0.0:0"]);
    refused(&["--config", "/nowhere/at/all"]);
}

#[test]
fn serve_ends_when_it_is_told_to() {
    let broker = Broker::start();
    broker.ok(&["publish", "q", "--create", "x"]);
    let follow = broker.spawn(&["consume", "q", "--timeout", "60s", "--count", "5"]);
    broker.wait_until("q", |queue| queue["acked"] == 1);
    let (code, took) = broker.terminate();
    assert_eq!(code, Some(0));
    assert!(took < LONG);
    drop(follow);
}

#[test]
fn settings_come_from_flags_before_environment_before_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("forebay.toml");
    std::fs::File::create(&file)
        .and_then(|mut file| {
            file.write_all(b"memory_limit = '64MiB'\nlog = 'warn'\nlisten = '127.0.0.1:1'\n")
        })
        .unwrap();
    let mut print = forebay(&["serve", "--print-config", "--listen", "127.0.0.1:3"]);
    print
        .env("FOREBAY_CONFIG", &file)
        .env("FOREBAY_LISTEN", "127.0.0.1:2")
        .env("FOREBAY_LOG", "debug");
    let printed = Finished::of(print, b"").expect(0).text();
    for line in ["listen = \"127.0.0.1:3\"", "log = \"debug\"", "memory_limit = \"64MiB\""] {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
}
