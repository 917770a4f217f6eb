//! Directories on which a broker does not start, and what `store repair` makes of them.

use crate::common::{Broker, forebay, outcome};
use crate::golden::PAGE;
use crate::{Place, taken};
use forebay::base::checksum::crc32c;
use forebay::shard::router::store_of;
use std::path::PathBuf;

const ALL: [&[u64]; 3] = [&[2, 3, 4, 5, 6, 7, 8, 9], &[1, 2, 3], &[3]];

/// It is refused and says why; a dry run changes nothing; a repair puts aside `kept`, as it was,
/// and then a broker has this.
fn repaired(place: &Place, says: &str, kept: &[&str], comes: [&[u64]; 3]) {
    let refusal = place.refusal();
    assert!(refusal.contains(says), "{refusal}");
    let (code, report) = place.json("verify", &[]);
    assert_eq!((code, report["faults"][0]["kind"].as_str()), (6, Some("refused")), "{report}");
    let before = place.files();
    let (code, text, error) = place.tool("repair", &["--dry-run"]);
    assert!(code == 0 && text.contains("would be"), "{text}{error}");
    assert!(place.files() == before, "a dry run has written");
    let (code, text, error) = place.tool("repair", &[]);
    assert_eq!(code, 0, "{text}{error}");
    let aside = quarantine(place);
    assert_eq!(aside.is_some(), !kept.is_empty(), "{text}");
    for name in kept {
        let (_, was) = before.iter().find(|(other, _)| other == name).unwrap();
        let now = std::fs::read(aside.as_ref().unwrap().join(name)).unwrap();
        assert!(now == *was, "{name} is not as it was: {text}");
    }
    let broker = place.broker();
    let of = [("jobs", "default"), ("mail", "a"), ("mail", "b")];
    for ((queue, subscription), expected) in of.into_iter().zip(comes) {
        assert_eq!(taken(&broker, queue, subscription), expected, "{queue}: {text}");
    }
}

fn quarantine(place: &Place) -> Option<PathBuf> {
    let entries = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path());
    let is_aside = |path: &PathBuf| path.to_str().unwrap().contains("/quarantine-");
    let aside: Vec<PathBuf> = entries.filter(is_aside).collect();
    assert!(aside.len() <= 1);
    aside.into_iter().next()
}

/// Changes a header and its checksum, which is over so many bytes.
fn forge(place: &Place, name: &str, header: u64, bytes: usize, change: impl Fn(&mut [u8])) {
    let mut file = place.read(name);
    let all = &mut file[header as usize..][..bytes];
    change(all);
    let crc = crc32c(&all[4..]);
    all[..4].copy_from_slice(&crc.to_le_bytes());
    place.write(name, &file);
}

#[test]
fn a_segment_of_a_later_version() {
    let place = Place::new();
    forge(&place, "journal-0-000001.log", 0, 80, |header| header[8] = 2);
    // Without segment 2 what it held is lost, and no more.
    let comes = [&[2, 3, 4, 5, 8, 9][..], &[1, 2], &[1, 2]];
    repaired(&place, "version 2 is not supported", &["journal-0-000001.log"], comes);
}

#[test]
fn a_segment_of_another_store() {
    let place = Place::new();
    forge(&place, "journal-0-000003.log", 0, 80, |header| {
        header[4..8].copy_from_slice(b"FBJS");
        header[8] = 1;
        header[16] = 9;
        for at in [32, 40, 56, 72] {
            header[at] = 1;
        }
    });
    repaired(&place, "belongs to another store", &["journal-0-000003.log"], ALL);
}

#[test]
fn a_group_with_a_record_of_a_later_program() {
    let place = Place::new();
    let name = "journal-0-000001.log";
    let at = (2 * PAGE) as usize;
    let file = place.read(name);
    let payload = u32::from_le_bytes(file[at + 12..at + 16].try_into().unwrap()) as usize;
    forge(&place, name, 2 * PAGE, 72 + payload, |group| group[72] = 200);
    // The rest of the segment stays.
    let comes = [ALL[0], &[1, 2][..], &[]];
    repaired(&place, "records of kind 200 are not known", &[name], comes);
}

#[test]
fn a_list_of_stores_that_is_damaged_or_missing() {
    let place = Place::new();
    place.flip("stores", 30);
    repaired(&place, "forebay store repair", &["stores"], ALL);
    let place = Place::new();
    std::fs::remove_file(place.path().join("stores")).unwrap();
    repaired(&place, "is missing, though there is a journal", &[], ALL);
}

/// Stores without a durable queue have no journal; how many there are decides where names belong.
#[test]
fn a_list_of_stores_of_which_some_have_no_journal() {
    let place = tempfile::tempdir().unwrap();
    let start = || {
        let flags = ["--disk-limit", "0", "--shards", "3", "--log", "warn"];
        Broker::start_in(forebay(), place.path(), &flags)
    };
    let broker = start();
    let is_second_of_three = |name: &String| store_of(name, 3) == 1 && store_of(name, 2) == 0;
    let name = (0..100).map(|at| format!("q{at}")).find(is_second_of_three).unwrap();
    let run = |broker: &Broker, arguments: &[&str]| {
        let mut command = forebay();
        command.args(arguments).args(["--server", &broker.address.to_string()]);
        let (code, out, error) = outcome(&mut command);
        assert_eq!(code, Some(0), "{error}");
        out
    };
    run(&broker, &["queue", "create", &name, "--durable"]);
    run(&broker, &["publish", &name, "kept"]);
    drop(broker);
    std::fs::remove_file(place.path().join("stores")).unwrap();
    let mut repair = forebay();
    let (code, text, error) = outcome(repair.args(["store", "repair"]).arg(place.path()));
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(text.ends_with("  made again of the journals' headers\n"), "{text}");
    assert_eq!(run(&start(), &["consume", &name]), "kept\n");
}

#[test]
fn a_disk_limit_that_is_damaged() {
    let place = Place::new();
    place.write("disk-limit", b"forebay disk limit 1: 1 bytes, crc32c 00000000\n");
    repaired(&place, "disk-limit is damaged", &["disk-limit"], ALL);
}

#[test]
fn nothing_of_a_list_of_stores_can_be_made_without_a_header() {
    let place = Place::new();
    std::fs::remove_file(place.path().join("stores")).unwrap();
    for file in 0..3 {
        place.flip(&format!("journal-0-{file:06}.log"), 20);
    }
    let before = place.files();
    let (code, text, error) = place.tool("repair", &[]);
    assert!(code == 6 && text.contains("left as it is"), "{text}");
    assert!(error.contains("nobody knows a repair for that"), "{error}");
    assert!(place.files() == before, "something was changed");
}

#[test]
fn files_with_names_that_a_journal_never_has_hinder_nobody() {
    let place = Place::new();
    // A table by number of file would not fit any memory.
    place.write("journal-0-4294967294.log", b"");
    place.write("journal-0-1.log", &place.read("journal-0-000000.log"));
    assert_eq!(place.tool("verify", &[]).0, 0);
    assert_eq!(taken(&place.broker(), "jobs", "default"), ALL[0]);
}

#[test]
fn files_that_nobody_knows_are_put_aside_when_that_is_asked_for() {
    let place = Place::new();
    place.flip("journal-0-000003.log", 5 * PAGE);
    place.write("journal-7-000000.log", b"of a store that is not there");
    let (code, report) = place.json("repair", &[]);
    assert_eq!(code, 0, "{report}");
    let done: Vec<&str> = report["done"]
        .as_array()
        .unwrap()
        .iter()
        .map(|done| done["file"].as_str().unwrap())
        .collect();
    assert_eq!(done, ["journal-0-000003.log", "journal-7-000000.log"], "{report}");
    assert_eq!(std::fs::read_dir(quarantine(&place).unwrap()).unwrap().count(), 2);
    assert_eq!(place.tool("verify", &[]).0, 0);
}
