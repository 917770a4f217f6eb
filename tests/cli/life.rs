//! Subscriptions, leases and dead letters, as their users have them.

use crate::broker::{Broker, Finished};
use crate::lines_of;
use serde_json::{Value, json};
use std::io::Read as _;
use std::process::Stdio;

fn subscription(broker: &Broker, queue: &str, name: &str) -> Value {
    let shown = broker.ok(&["subscription", "show", queue, name, "--json"]);
    serde_json::from_slice(&shown.stdout).unwrap()
}

fn letters(broker: &Broker, arguments: &[&str]) -> Vec<Value> {
    let shown = broker.ok(&[["dlq", "show"].as_slice(), arguments, &["--json"]].concat());
    lines_of(&shown.stdout)
}

fn told(finished: &Finished, part: &str) {
    assert!(finished.errors().contains(part), "no {part} in {}", finished.errors());
    assert_eq!(finished.errors().lines().count(), 1, "{}", finished.errors());
}

#[test]
fn every_subscription_gets_everything() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "events", "--subscription", "a", "--subscription", "b"]);
    broker.ok(&["publish", "events", "1", "2", "3"]);
    assert_eq!(broker.ok(&["consume", "events", "--subscription", "a"]).stdout, b"1\n2\n3\n");
    broker.ok(&["publish", "events", "4"]);
    assert_eq!(broker.ok(&["consume", "events", "--subscription", "b"]).stdout, b"1\n2\n3\n4\n");

    // Later ones: from now on, or from what is still there for another.
    broker.ok(&["subscription", "create", "events", "late"]);
    broker.ok(&["subscription", "create", "events", "old", "--start", "oldest"]);
    broker.ok(&["publish", "events", "5"]);
    let consume = |name| broker.ok(&["consume", "events", "--subscription", name]).text();
    assert_eq!((consume("late").as_str(), consume("old").as_str()), ("5\n", "4\n5\n"));

    let queue = broker.show("events");
    let ready: Vec<(&str, u64)> = queue["subscriptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shown| (shown["name"].as_str().unwrap(), shown["ready"].as_u64().unwrap()))
        .collect();
    assert_eq!(ready, [("a", 2), ("b", 1), ("late", 0), ("old", 0)]);
    assert_eq!((&queue["published"], &queue["acked"]), (&json!(5), &json!(3 + 4 + 1 + 2)));
    let text = broker.ok(&["queue", "show", "events"]).text();
    assert!(text.contains("SUBSCRIPTION") && text.contains("late"), "{text}");

    let deleted = broker.ok(&["subscription", "delete", "events", "a", "--json"]);
    assert_eq!(lines_of(&deleted.stdout)[0]["messages"], 2);
    let missing = broker.run(&["consume", "events", "--subscription", "a"], b"").expect(3);
    told(&missing, "has no subscription `a`");
    let peeked = broker.ok(&["queue", "peek", "events", "--subscription", "b", "--json"]);
    assert_eq!(lines_of(&peeked.stdout)[0]["body"], "5");
    broker.ok(&["queue", "purge", "events", "--subscription", "b"]);
    assert_eq!(broker.show("events")["bytes"], 0);
}

#[test]
fn subscriptions_are_made_shown_changed_and_deleted() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "q", "--lease", "2m", "--max-attempts", "3"]);
    let shown = subscription(&broker, "q", "default");
    let rules = ["lease_ms", "max_attempts", "backoff", "dead_letter", "unacked_max"];
    let expected = json!([120_000, 3, "exponential:1s..5m", "q.dead", 0]);
    assert_eq!(json!(rules.map(|name| &shown[name])), expected);

    let rules_of_s = ["--backoff", "list:1s,10s", "--max-attempts", "unlimited"];
    let create = ["subscription", "create", "q", "s", "--unacked-max", "7"];
    let create = [create.as_slice(), &rules_of_s, &["--expires-after", "1h"]].concat();
    let created = |arguments: &[&str]| {
        let done = broker.ok(&[arguments, &["--json"]].concat());
        lines_of(&done.stdout)[0]["created"].clone()
    };
    assert_eq!((created(&create), created(&create)), (json!(true), json!(false)));
    let other = broker.run(&["subscription", "create", "q", "s"], b"").expect(1);
    told(&other, "forebay subscription update q s");
    let shown = subscription(&broker, "q", "s");
    let names = ["backoff", "max_attempts", "unacked_max", "expires_after_ms"];
    let expected = json!(["list:1s,10s", null, 7, 3_600_000]);
    assert_eq!(json!(names.map(|name| &shown[name])), expected);

    broker.ok(&["subscription", "update", "q", "s", "--lease", "5s", "--dead-letter", "graves"]);
    let shown = subscription(&broker, "q", "s");
    assert_eq!(
        json!([shown["lease_ms"], shown["dead_letter"], shown["unacked_max"]]),
        json!([5000, "graves", 7])
    );

    let listed = broker.ok(&["subscription", "list", "q", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let names: Vec<&Value> = listed.as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["default", "s"]);
    assert!(broker.ok(&["subscription", "show", "q", "s"]).text().contains("unlimited"));

    let reader = broker.spawn(&["consume", "q", "--subscription", "s", "--follow"]);
    broker.wait_until("q", |queue| queue["consumers"] == 1);
    told(&broker.run(&["subscription", "delete", "q", "s"], b"").expect(1), "--force");
    broker.ok(&["subscription", "delete", "q", "s", "--force"]);
    drop(reader);
}

#[test]
fn what_cannot_be_is_refused_and_explained() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "q"]);
    for (arguments, part) in [
        (["subscription", "create", "q", "s", "--lease", "0"].as_slice(), "lease"),
        (&["subscription", "create", "q", "s", "--lease", "2d"], "lease"),
        (&["subscription", "create", "q", "s", "--max-attempts", "10001"], "10000"),
        (&["subscription", "create", "q", "s", "--dead-letter", "q"], "q"),
        (&["subscription", "create", "q", "s", "--expires-after", "10ms"], "expires_after"),
        (&["subscription", "create", "q", "s", "--backoff", "fixed"], "fixed:1s"),
        (&["subscription", "create", "q", "bad name"], "names are"),
        (&["queue", "create", "other", "--subscription", "$x"], "names are"),
    ] {
        told(&broker.run(arguments, b"").expect(2), part);
    }
    for (arguments, part) in [
        (["subscription", "show", "q", "none"].as_slice(), "forebay subscription create q none"),
        (&["subscription", "delete", "q", "none"], "forebay subscription list q"),
        (&["subscription", "update", "q", "none", "--lease", "1s"], "no subscription `none`"),
        (&["queue", "peek", "q", "--subscription", "none"], "no subscription `none`"),
        (&["queue", "purge", "q", "--subscription", "none"], "no subscription `none`"),
        (&["dlq", "show", "q", "--subscription", "none"], "no subscription `none`"),
        (&["subscription", "list", "none"], "forebay queue create none"),
        (&["dlq", "show", "none"], "forebay queue create none"),
        (&["dlq", "redrive", "none"], "forebay queue create none"),
    ] {
        told(&broker.run(arguments, b"").expect(3), part);
    }
    assert_eq!(broker.ok(&["dlq", "show", "q"]).text(), "no dead letters are ready\n");
    broker.ok(&["dlq", "redrive", "q"]);
    // What exists is taken as it is, unless something else is asked of it.
    broker.ok(&["queue", "create", "q"]);
    let other = broker.run(&["queue", "create", "q", "--lease", "9s"], b"").expect(1);
    told(&other, "with other options of its subscription `default`");
    let other = broker.run(&["queue", "create", "q", "--subscription", "audit"], b"").expect(1);
    told(&other, "without a subscription `audit`");
    // Nobody would get it, and nobody waits for ever.
    broker.ok(&["subscription", "delete", "q", "default"]);
    told(&broker.run(&["publish", "q", "x"], b"").expect(1), "has no subscription");
}

#[test]
fn what_fails_too_often_is_a_dead_letter_and_comes_back() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "jobs", "--max-attempts", "2", "--backoff", "none"]);
    broker.ok(&["publish", "jobs", "good", "bad", "--header", "kind=test"]);
    let nack = ["consume", "jobs", "--count", "1", "--nack", "--reason"];
    let first = |reason| broker.ok(&[nack.as_slice(), &[reason]].concat()).text();
    // Without back-off a failed message is ready at its old place.
    assert_eq!((first("first try").as_str(), first("no luck").as_str()), ("good\n", "good\n"));
    broker.ok(&["consume", "jobs", "--count", "1", "--reject", "--reason", "no such job"]);
    broker.wait_until("jobs", |queue| queue["dead_lettered"] == 2);

    let letters_now = letters(&broker, &["jobs"]);
    let of = |at: usize| {
        let names = ["body", "origin_queue", "origin_subscription", "reason", "error"];
        json!(names.map(|name| &letters_now[at][name]))
    };
    assert_eq!(of(0), json!(["good", "jobs", "default", "max_attempts", "no luck"]));
    assert_eq!(of(1), json!(["bad", "jobs", "default", "rejected", "no such job"]));
    let attempts = letters_now.iter().map(|letter| letter["origin_attempts"].as_u64().unwrap());
    assert_eq!(attempts.collect::<Vec<_>>(), [2, 1]);
    assert_eq!(letters_now[0]["headers"]["kind"], "test");
    assert!(
        letters_now[0]["first_failed_us"].as_u64() <= letters_now[0]["last_failed_us"].as_u64()
    );
    // The queue of dead letters itself may be named, and there are few columns but for people.
    assert_eq!(letters(&broker, &["jobs.dead", "--count", "1"]).len(), 1);
    let table = broker.ok(&["dlq", "show", "jobs"]).text();
    assert!(table.contains("jobs/default") && table.contains("no such job"), "{table}");

    let filter = ["dlq", "redrive", "jobs", "--filter", "dead-letter-reason=rejected", "--json"];
    let done = &lines_of(&broker.ok(&filter).stdout)[0];
    assert_eq!((&done["messages"], &done["dead_letter_queue"]), (&json!(1), &json!("jobs.dead")));
    broker.ok(&["dlq", "redrive", "jobs"]);
    let back = lines_of(&broker.ok(&["consume", "jobs", "--json"]).stdout);
    let shown: Vec<Value> =
        back.iter().map(|one| json!([one["body"], one["attempts"], one["headers"]])).collect();
    let headers = json!({ "kind": "test" });
    assert_eq!(shown, [json!(["bad", 1, headers]), json!(["good", 1, headers])]);
    let dead = broker.show("jobs.dead");
    assert_eq!(
        json!([dead["published"], dead["moved_in"], dead["redriven"], dead["ready"]]),
        json!([2, 2, 2, 0])
    );
    let jobs = broker.show("jobs");
    assert_eq!(
        json!([jobs["published"], jobs["moved_in"], jobs["dead_lettered"], jobs["acked"]]),
        json!([4, 2, 2, 2])
    );
}

#[test]
fn redrive_goes_slowly_partly_or_elsewhere() {
    let broker = Broker::start();
    broker.ok(&["publish", "jobs", "--create", "--count", "20"]);
    broker.ok(&["consume", "jobs", "--reject"]);
    broker.wait_until("jobs", |queue| queue["dead_lettered"] == 20);

    let redrive = |arguments: &[&str]| {
        let all = [["dlq", "redrive", "jobs", "--json"].as_slice(), arguments].concat();
        lines_of(&broker.ok(&all).stdout)[0].clone()
    };
    assert_eq!(redrive(&["--count", "3"])["messages"], 3);
    let slow = redrive(&["--count", "5", "--rate", "20/s"]);
    assert_eq!(slow["messages"], 5);
    assert!(slow["elapsed_us"].as_u64() >= Some(100_000), "{slow}");
    assert_eq!(broker.show("jobs")["ready"], 8);

    broker.ok(&["queue", "create", "elsewhere"]);
    assert_eq!(redrive(&["--count", "4", "--to", "elsewhere"])["messages"], 4);
    assert_eq!(broker.ok(&["consume", "elsewhere"]).lines(), 4);

    broker.ok(&["queue", "create", "tiny", "--messages-max", "2"]);
    let full = broker.run(&["dlq", "redrive", "jobs", "--to", "tiny"], b"").expect(1);
    told(&full, "stay in queue jobs.dead");
    let gone = broker.run(&["dlq", "redrive", "jobs", "--to", "none"], b"");
    assert_ne!(gone.code, Some(0), "{}", gone.errors());
    assert_eq!(
        (broker.show("tiny")["ready"].clone(), broker.show("jobs.dead")["ready"].clone()),
        (json!(2), json!(6))
    );
}

#[test]
fn a_dead_letter_waits_for_its_queue() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "jobs", "--dead-letter", "graves"]);
    broker.ok(&["publish", "jobs", "x", "y"]);
    broker.ok(&["consume", "jobs", "--count", "1", "--reject"]);
    broker.wait_until("jobs", |queue| queue["dead_lettering"] == 1);
    let shown = subscription(&broker, "jobs", "default");
    assert!(shown["dead_letter_reason"].is_string(), "{shown}");
    let text = broker.ok(&["subscription", "show", "jobs", "default"]).text();
    assert!(text.contains("dead letters wait"), "{text}");
    // The others go on meanwhile.
    assert_eq!(broker.ok(&["consume", "jobs"]).stdout, b"y\n");
    broker.ok(&["queue", "create", "graves"]);
    broker.wait_until("graves", |queue| queue["ready"] == 1);
    assert_eq!(letters(&broker, &["jobs"]).len(), 1);

    // A queue of dead letters that others share: only one's own are redriven.
    broker.ok(&["queue", "create", "more", "--dead-letter", "graves"]);
    broker.ok(&["publish", "more", "z"]);
    broker.ok(&["consume", "more", "--reject"]);
    broker.wait_until("graves", |queue| queue["ready"] == 2);
    assert_eq!(letters(&broker, &["more"])[0]["body"], "z");
    let filtered = ["dlq", "redrive", "more", "--filter", "a=b"];
    told(&broker.run(&filtered, b"").expect(2), "forebay dlq redrive graves --filter");
    broker.ok(&["dlq", "redrive", "more"]);
    assert_eq!(
        (broker.ok(&["consume", "more"]).stdout, broker.ok(&["consume", "jobs"]).stdout),
        (b"z\n".to_vec(), Vec::new())
    );
}

#[test]
fn a_lease_ends_and_the_late_ack_is_told() {
    let broker = Broker::start();
    broker.ok(&["queue", "create", "slow", "--backoff", "none"]);
    // More than a pipe takes, so that the first consumer stands still until it is read.
    broker.ok(&["publish", "slow", "--count", "1", "--size", "1MiB"]);
    let mut slow = broker
        .command(&["consume", "slow", "--count", "1", "--lease", "200ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    broker.wait_until("slow", |queue| queue["failed"] == 1);
    let other = broker.ok(&["consume", "slow", "--count", "1", "--json"]);
    let message = &lines_of(&other.stdout)[0];
    assert_eq!(json!([message["attempts"], message["redelivered"]]), json!([2, true]));

    let (mut body, mut errors) = (Vec::new(), String::new());
    slow.stdout.take().unwrap().read_to_end(&mut body).unwrap();
    slow.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(slow.wait().unwrap().success());
    assert_eq!(body.len(), (1 << 20) + 1);
    assert!(errors.contains("came too late"), "{errors}");
    let queue = broker.show("slow");
    assert_eq!(json!([queue["acked"], queue["failed"], queue["ready"]]), json!([1, 1, 0]));
}
