//! A flipped bit in every part of a journal's file: what is said of it, and that a broker starts
//! and has everything else.

use crate::golden::PAGE;
use crate::{Place, taken};
use serde_json::{Value, json};

/// A bit, and what it costs.
struct Flip {
    /// What of the file it is in.
    part: &'static str,
    file: u32,
    at: u64,
    /// In what is said; empty where nothing can be noticed.
    says: &'static str,
    groups_lost: Value,
    /// Sequences that are said to be lost: of `jobs`, of `a` and of `b` of `mail`.
    lost: [&'static [u64]; 3],
    /// Sequences that consumers get.
    comes: [&'static [u64]; 3],
}

const JOBS: &[u64] = &[2, 3, 4, 5, 6, 7, 8, 9];
const ALL: [&[u64]; 3] = [JOBS, &[1, 2, 3], &[3]];
const NONE: [&[u64]; 3] = [&[], &[], &[]];

fn check(flip: &Flip) {
    let Flip { part, file, at, says, .. } = *flip;
    let place = Place::new();
    let name = format!("journal-0-{file:06}.log");
    place.flip(&name, at);
    let before = place.files();
    let (code, report) = place.json("verify", &[]);
    let faults = report["faults"].as_array().unwrap();
    if says.is_empty() {
        assert_eq!((code, faults.len()), (0, 0), "{part}: {report}");
    } else {
        assert_eq!((code, faults.len()), (6, 1), "{part}: {report}");
        assert_eq!(faults[0]["file"], name, "{part}: {report}");
        assert!(faults[0]["what"].as_str().unwrap().contains(says), "{part}: {report}");
        assert_eq!(faults[0]["groups_lost"], flip.groups_lost, "{part}: {report}");
        let of = |at: u64| at / PAGE * PAGE;
        let said = faults[0]["offset"].as_u64();
        assert!(
            said.is_none_or(|said| said <= at && of(at) - of(said) <= PAGE),
            "{part}: {report}"
        );
    }
    let subscriptions = [("jobs", "default"), ("mail", "a"), ("mail", "b")];
    for ((queue, subscription), expected) in subscriptions.into_iter().zip(flip.lost) {
        let of = |lost: &&Value| lost["queue"] == queue && lost["subscription"] == subscription;
        let range = |lost: &Value| {
            assert_eq!(lost["by"], json!([format!("{name}:{}", faults[0]["offset"])]), "{part}");
            lost["first_sequence"].as_u64().unwrap()..lost["end_sequence"].as_u64().unwrap()
        };
        let said: Vec<u64> =
            report["lost"].as_array().unwrap().iter().filter(of).flat_map(range).collect();
        assert_eq!(said, expected, "{part}: {report}");
    }
    // What a start can live with is no business of a repair.
    let (_, text, _) = place.tool("repair", &["--dry-run"]);
    assert!(
        text.starts_with("nothing to repair") || says.contains("nothing of it"),
        "{part}: {text}"
    );
    assert!(place.files() == before, "{part}: something was written");
    let broker = place.broker();
    for ((queue, subscription), expected) in subscriptions.into_iter().zip(flip.comes) {
        assert_eq!(taken(&broker, queue, subscription), expected, "{part}: {queue}");
    }
}

#[test]
fn headers_of_segments() {
    let header = |at| Flip {
        part: "segment header",
        file: 1,
        at,
        says: "header of the segment",
        groups_lost: Value::Null,
        lost: NONE,
        comes: ALL,
    };
    check(&header(0));
    check(&header(5));
    check(&header(50));
    check(&Flip { part: "behind a segment's header", says: "", ..header(300) });
}

#[test]
fn headers_of_groups() {
    let group = |at, says| Flip {
        part: "group header",
        file: 0,
        at: 3 * PAGE + at,
        says,
        groups_lost: json!([3, 4]),
        lost: [&[2, 3], &[], &[]],
        comes: [&[4, 5, 6, 7, 8, 9], &[1, 2, 3], &[3]],
    };
    check(&group(1, "checksum"));
    check(&group(6, "magic"));
    check(&group(13, "checksum"));
    check(&group(50, "checksum"));
    check(&group(64, "a group of epoch"));
}

#[test]
fn records() {
    let record = |part, page: u64, at: u64| Flip {
        part,
        file: 0,
        at: page * PAGE + at,
        says: "checksum",
        groups_lost: json!([page, page + 1]),
        lost: NONE,
        comes: ALL,
    };
    let jobs = [&[4, 5, 6, 7, 8, 9], ALL[1], ALL[2]];
    check(&Flip { lost: [&[2, 3], &[], &[]], comes: jobs, ..record("record header", 3, 72) });
    check(&Flip { lost: [&[2, 3], &[], &[]], comes: jobs, ..record("body", 3, 160) });
    check(&Flip {
        lost: [&[], &[1, 2], &[]],
        comes: [JOBS, &[3], &[3]],
        ..record("body of another queue", 4, 160)
    });
    check(
        &Flip {
            lost: [&[4, 5], &[], &[]],
            comes: [&[2, 3, 6, 7, 8, 9], ALL[1], ALL[2]],
            ..record("second page of a body", 6, 10)
        }
        .group(5),
    );
    // Nothing is lost by a lost ack: the message comes again.
    check(
        &Flip { comes: [&[1, 2, 3, 4, 5, 6, 7, 8, 9], ALL[1], ALL[2]], ..record("acks", 7, 80) }
            .group(6),
    );
    check(
        &Flip {
            file: 1,
            at: 3 * PAGE + 200,
            lost: [&[7], &[], &[]],
            comes: [&[2, 3, 4, 5, 6, 8, 9], ALL[1], ALL[2]],
            ..record("fragment of a large message", 3, 200)
        }
        .group(9),
    );
}

impl Flip {
    fn group(self, group: u64) -> Flip {
        Flip { groups_lost: json!([group, group + 1]), ..self }
    }
}

#[test]
fn what_nobody_looks_at() {
    let at = |part, file, at, says| Flip {
        part,
        file,
        at,
        says,
        groups_lost: Value::Null,
        lost: NONE,
        comes: ALL,
    };
    check(&at("padding", 0, 3 * PAGE + 4000, ""));
    check(&at("behind the end of the log", 2, 6 * PAGE, ""));
    check(&at("zeros of a spare's first page", 3, 50, ""));
    check(&at("a spare", 3, 5 * PAGE, "nothing of it"));
    // Nobody can tell that from the torn tail of a crash.
    let last = at("the very last group", 2, 3 * PAGE + 160, "");
    check(&Flip { comes: [&[2, 3, 4, 5, 6, 7, 8], ALL[1], ALL[2]], ..last });
}

#[test]
fn of_two_damages_each_has_its_own_losses() {
    let place = Place::new();
    place.flip("journal-0-000000.log", 3 * PAGE + 160);
    place.flip("journal-0-000001.log", PAGE + 160);
    let (code, report) = place.json("verify", &[]);
    let lost = |first: u64, end: u64, by: &str| {
        json!({
            "store": 0, "queue": "jobs", "subscription": "default", "first_sequence": first,
            "end_sequence": end, "messages": end - first, "by": [by],
        })
    };
    let both = [lost(2, 4, "journal-0-000000.log:12288"), lost(6, 7, "journal-0-000001.log:4096")];
    assert_eq!((code, &report["lost"]), (6, &json!(both)), "{report}");
    assert_eq!(taken(&place.broker(), "jobs", "default"), [4, 5, 7, 8, 9]);
}

#[test]
fn a_definition() {
    let place = Place::new();
    place.flip("journal-0-000000.log", PAGE + 90);
    let (code, report) = place.json("verify", &[]);
    assert_eq!((code, &report["faults"][0]["groups_lost"]), (6, &json!([1, 2])), "{report}");
    let note = report["notes"][0]["what"].as_str().unwrap();
    assert!(note.contains("have records and no definition"), "{report}");
    let (_, text, error) = place.tool("verify", &[]);
    let said = "damage: journal-0-000000.log at byte 4096: checksum ";
    assert!(text.starts_with(said) && text.contains("; group 1 is lost\n"), "{text}");
    assert!(error.contains("is damaged, as said above; a broker starts on it"), "{error}");
    let broker = place.broker();
    assert_eq!(taken(&broker, "mail", "a"), [1, 2, 3]);
    assert_eq!(taken(&broker, "mail", "b"), [3]);
}
