//! `forebay store` on directories that are whole, damaged or refused, and what a broker makes of
//! them: the real program on real files. `golden` makes the directory that all begin with.
#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod golden;
mod refused;

use common::{Broker, forebay, outcome};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The directory of format version 1.
fn v1() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/v1")
}

/// A copy of it.
struct Place {
    place: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(v1()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
        }
        Place { place }
    }

    fn path(&self) -> &Path {
        self.place.path()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    fn flip(&self, name: &str, at: u64) {
        let mut bytes = self.read(name);
        bytes[at as usize] ^= 0x10;
        self.write(name, &bytes);
    }

    /// All that stands in it, by name; the lock apart.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name != "forebay.lock")
            .map(|name| (name.clone(), self.read(&name)))
            .collect();
        files.sort();
        files
    }

    /// Exit code, standard output, standard error of `forebay store ...`.
    fn tool(&self, verb: &str, flags: &[&str]) -> (i32, String, String) {
        let mut command = forebay();
        command.args(["store", verb]).arg(self.path()).args(flags);
        let (code, out, error) = outcome(&mut command);
        (code.unwrap(), out, error)
    }

    fn json(&self, verb: &str, flags: &[&str]) -> (i32, Value) {
        let (code, out, error) = self.tool(verb, &[&["--json"], flags].concat());
        let value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
        (code, value)
    }

    fn broker(&self) -> Broker {
        let flags = ["--disk-limit", "0", "--shards", "1", "--log", "warn"];
        Broker::start_in(forebay(), self.path(), &flags)
    }

    /// What the broker says that refuses to start.
    fn refusal(&self) -> String {
        let mut serve = forebay();
        serve.args(["serve", "--listen", "127.0.0.1:0", "--memory-limit", "64MiB"]);
        let (code, _, error) = outcome(serve.arg("--data-dir").arg(self.path()));
        assert_eq!(code, Some(2), "{error}");
        error
    }
}

/// Sequences of the messages that a subscription gets, each of which has its body; they are acked.
fn taken(broker: &Broker, queue: &str, subscription: &str) -> Vec<u64> {
    let mut consume = forebay();
    consume.args(["consume", queue, "--subscription", subscription, "--json"]);
    consume.args(["--server", &broker.address.to_string()]);
    let (code, out, error) = outcome(&mut consume);
    assert_eq!(code, Some(0), "{error}");
    let sequence = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let sequence = line["sequence"].as_u64().unwrap();
        let body = golden::body(queue, sequence);
        assert_eq!(line["body"].as_str().unwrap().as_bytes(), body, "{queue} {sequence}");
        sequence
    };
    out.lines().map(sequence).collect()
}

#[test]
fn the_directory_of_version_1_is_what_is_written_today() {
    let place = tempfile::tempdir().unwrap();
    golden::make(place.path());
    // To make it anew, when version 2 has its own.
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        std::fs::create_dir_all(v1()).unwrap();
        for entry in std::fs::read_dir(place.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), v1().join(entry.file_name())).unwrap();
        }
    }
    let names = |path: &Path| {
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(names(place.path()), names(&v1()));
    for name in names(&v1()) {
        let (made, kept) = (place.path().join(&name), v1().join(&name));
        assert!(std::fs::read(made).unwrap() == std::fs::read(kept).unwrap(), "{name:?}");
    }
}

#[test]
fn a_whole_directory_is_shown_and_nothing_is_written() {
    let place = Place::new();
    let before = place.files();
    let (code, report) = place.json("inspect", &[]);
    assert_eq!((code, &report["sound"]), (0, &Value::Bool(true)), "{report}");
    let store = &report["stores"][0];
    assert_eq!((&store["epoch"], &store["end_group"]), (&2.into(), &15.into()), "{store}");
    let held = |queue: usize, subscription: usize| {
        let of = &store["queues"][queue]["subscriptions"][subscription];
        (of["name"].as_str().unwrap().to_owned(), of["messages"].as_u64().unwrap())
    };
    assert_eq!(held(0, 0), ("default".to_owned(), 8));
    assert_eq!((held(1, 0), held(1, 1)), (("a".to_owned(), 3), ("b".to_owned(), 1)));
    assert_eq!(store["queues"][0]["next_sequence"], 10);
    assert_eq!(store["queues"][1]["subscriptions"][0]["failed"], 1);
    let role = |segment: &Value| segment["role"].as_str().unwrap().to_owned();
    let roles: Vec<String> = store["segments"].as_array().unwrap().iter().map(role).collect();
    assert_eq!(roles, ["live", "live", "live", "spare"]);
    let (code, text, _) = place.tool("verify", &[]);
    assert_eq!((code, text.as_str()), (0, "sound: 1 stores, 14 groups of records\n"));
    let (code, text, _) = place.tool("repair", &[]);
    assert_eq!((code, text.as_str()), (0, "nothing to repair: a broker starts on it\n"));
    assert!(place.tool("inspect", &[]).1.contains("jobs"));
    assert!(place.files() == before, "something was written");
}

#[test]
fn each_record_is_a_line_of_a_dump() {
    let place = Place::new();
    let (_, all, _) = place.tool("dump", &["--json"]);
    let all: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut kinds: Vec<&str> = all.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let every = [
        "acks",
        "attempts",
        "moves",
        "moves_settled",
        "producers",
        "publish",
        "queue",
        "queue_deleted",
        "subscription",
        "subscription_deleted",
    ];
    assert_eq!(kinds, every);
    let (_, mail, _) = place.tool("dump", &["--json", "--bodies", "--queue", "mail"]);
    let mail: Vec<Value> = mail.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(mail.iter().all(|line| line["queue"] == "mail"));
    let published: Vec<&Value> = mail.iter().filter(|line| line["kind"] == "publish").collect();
    let place_of = |line: &Value| (line["file"].clone(), line["offset"].clone());
    let at = 4 * golden::PAGE + 72;
    assert_eq!(place_of(published[0]), ("journal-0-000000.log".into(), at.into()));
    // "mail 3"
    assert_eq!(published[1]["messages"][0]["body"], "bWFpbCAz");
    let (_, none, _) = place.tool("dump", &["--store", "1"]);
    assert_eq!(none, "");
    let (_, people, _) = place.tool("dump", &["--queue", "jobs"]);
    assert!(people.starts_with("store=0 group=1 file=journal-0-000000.log"), "{people}");
}

#[test]
fn a_directory_in_use_and_one_that_is_none_are_refused() {
    let place = Place::new();
    let broker = place.broker();
    let (code, _, error) = place.tool("verify", &[]);
    let holder = format!("is held by process {}; stop it first", broker.pid());
    assert!(code == 2 && error.contains(&holder), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let mut command = forebay();
    let (code, _, error) = outcome(command.args(["store", "repair"]).arg(empty.path()));
    assert!(code == Some(2) && error.contains("is no data dir of a broker"), "{error}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn two_crashes_in_a_row_over_a_torn_tail_lose_nothing_that_was_confirmed() {
    let place = Place::new();
    // The last group, of which only the first sector came to the device.
    let mut last = place.read("journal-0-000002.log");
    last[3 * 4096 + 100..4 * 4096].fill(0);
    place.write("journal-0-000002.log", &last);
    let (code, report) = place.json("verify", &[]);
    assert_eq!((code, &report["sound"]), (0, &Value::Bool(true)), "{report}");
    assert!(report["notes"][0]["what"].as_str().unwrap().contains("as after a crash"), "{report}");
    let flags = ["--disk-limit", "0", "--shards", "1", "--log", "warn"];
    let broker = place.broker().restart(&flags);
    let mut publish = forebay();
    publish.args(["publish", "mail", "mail 4", "--server", &broker.address.to_string()]);
    assert_eq!(outcome(&mut publish).0, Some(0));
    let broker = broker.restart(&flags).restart(&flags);
    assert_eq!(taken(&broker, "jobs", "default"), [2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(taken(&broker, "mail", "a"), [1, 2, 3, 4]);
    assert_eq!(taken(&broker, "mail", "b"), [3, 4]);
    drop(broker);
    let (code, text, _) = place.tool("verify", &[]);
    assert_eq!(code, 0, "{text}");
}
