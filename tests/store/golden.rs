//! The data directory of format version 1 that stands in `tests/store/v1/`: how it was made, to the
//! byte. What the journal's code writes today must be the same; what it reads must stay readable.

use forebay::base::pages::Pages;
use forebay::format::batch::{self, BatchBuilder, BatchPrefix};
use forebay::format::change::{
    Failure, FragmentOf, MoveName, PublishedHead, QueueDefinition, SubscriptionDefinition,
    encode_done, encode_failed, encode_moves, encode_producers, encode_queue_deleted,
    encode_subscription_deleted,
};
use forebay::format::journal::{CARRIED, RecordKind, StoreId};
use forebay::format::properties::{PropertiesBuilder, Tag};
use forebay::format::record;
use forebay::limits::DISK_ALIGN_BYTES;
use forebay::protocol::control::Request;
use forebay::protocol::wire;
use forebay::server::stores;
use forebay::storage::journal::{Journal, JournalRequest, JournalShape, file_name, file_numbers};
use forebay::storage::replay::{Recovered, SurveyError, read_journal};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub const PAGE: u64 = DISK_ALIGN_BYTES as u64;
const STORE: StoreId = StoreId(*b"forebay golden 1");
const SHAPE: JournalShape =
    JournalShape { segment_bytes: 8 * PAGE, group_bytes_max: 3 * 4096, prewrite_bytes: 4 * PAGE };
/// 2026-01-02 03:04:05 UTC.
const AT_US: u64 = 1_767_323_045_000_000;

const JOBS: u64 = 1 << 32 | 1;
const MAIL: u64 = 1 << 32 | 2;
const GONE: u64 = 1 << 32 | 3;
const JOBS_DEFAULT: u64 = JOBS;
const MAIL_A: u64 = MAIL;
const MAIL_B: u64 = 1 << 32 | 3;
const PRODUCER: u64 = 77;

/// A body: short, or so many bytes.
pub fn body(queue: &str, sequence: u64) -> Vec<u8> {
    let mut body = format!("{queue} {sequence}").into_bytes();
    match (queue, sequence) {
        ("jobs", 4) => body.resize(5000, b'.'),
        ("jobs", 7) => body.resize(6000, b'+'),
        _ => {}
    }
    body
}

/// Makes all of the directory.
pub fn make(directory: &Path) {
    stores::write(directory, &[STORE]).unwrap();
    let mut journal = Maker::open(directory);
    // Segment 1.
    journal.define_queue(JOBS, "jobs");
    journal.define_subscription(JOBS, JOBS_DEFAULT, "default", "jobs");
    journal.group();
    journal.define_queue(MAIL, "mail");
    journal.define_subscription(MAIL, MAIL_A, "a", "mail");
    journal.define_subscription(MAIL, MAIL_B, "b", "mail");
    journal.group();
    journal.publish(JOBS, "jobs", 1..4);
    journal.group();
    journal.publish(MAIL, "mail", 1..3);
    journal.group();
    journal.publish(JOBS, "jobs", 4..6);
    journal.group();
    journal.record(RecordKind::Acks, |body| encode_done(JOBS, JOBS_DEFAULT, [(1, 2)], body));
    journal.group();
    // Segment 2.
    journal.publish(JOBS, "jobs", 6..7);
    journal.group();
    journal.publish(MAIL, "mail", 3..4);
    journal.define_queue(GONE, "gone");
    journal.group();
    journal.publish_large(JOBS, "jobs", 7);
    journal.group();
    let failure = Failure {
        first: 1,
        count: 1,
        attempts: 2,
        failures: 1,
        first_failed_us: AT_US,
        last_failed_us: AT_US + 1,
        due_us: 0,
        rejected: false,
    };
    journal.record(RecordKind::Attempts, |body| encode_failed(MAIL, MAIL_A, [failure], body));
    journal.record(RecordKind::QueueDeleted, |body| encode_queue_deleted(GONE, body));
    journal.group();
    journal.record(RecordKind::Acks, |body| encode_done(MAIL, MAIL_B, [(1, 3)], body));
    journal.group();
    drop(journal);
    // Another epoch, as after a crash: segment 3.
    let mut journal = Maker::open(directory);
    journal.publish(JOBS, "jobs", 8..9);
    journal.group();
    let from = MoveName { store: 0, queue: MAIL, subscription: MAIL_A, sequence: 9 };
    journal.record(RecordKind::Moves, |body| encode_moves(JOBS, [from], body));
    journal.record(RecordKind::MovesSettled, |body| encode_moves(JOBS, [from], body));
    journal.record(RecordKind::Producers, |body| encode_producers(JOBS, [(PRODUCER, 8)], body));
    let never = MAIL_B + 1;
    journal.record(RecordKind::SubscriptionDeleted, |body| {
        encode_subscription_deleted(MAIL, never, body);
    });
    journal.group();
    journal.publish(JOBS, "jobs", 9..10);
    journal.group();
}

/// Writes a journal into a directory.
struct Maker<'a> {
    directory: &'a Path,
    journal: Journal,
    files: BTreeMap<u32, File>,
}

impl Maker<'_> {
    /// Goes on where the log ends.
    fn open(directory: &Path) -> Maker<'_> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some((_, number)) = file_numbers(&name) else { continue };
            let path = directory.join(name);
            let file = File::options().read(true).write(true).open(path).unwrap();
            files.insert(number, file);
        }
        let recovered = recover(&mut files);
        let mut maker =
            Maker { directory, journal: Journal::open(STORE, SHAPE, &recovered), files };
        maker.run();
        maker
    }

    fn define_queue(&mut self, queue: u64, name: &str) {
        let mut options = wire::QueueOptionsT::default();
        (options.durable, options.message_bytes_max) = (true, 1 << 20);
        let mut request = wire::QueueCreateT::default();
        (request.name, request.options) = (name.to_owned(), Some(Box::new(options)));
        let options = Request::QueueCreate(request).encode();
        let of =
            QueueDefinition { queue, created_us: AT_US, next_sequence: 1, name, options: &options };
        self.record(RecordKind::Queue, |body| of.encode(body));
    }

    fn define_subscription(&mut self, queue: u64, subscription: u64, name: &str, of: &str) {
        let mut request = wire::SubscriptionCreateT::default();
        (request.queue, request.name) = (of.to_owned(), name.to_owned());
        let options = Request::SubscriptionCreate(request).encode();
        let of = SubscriptionDefinition {
            queue,
            subscription,
            created_us: AT_US,
            start: 1,
            name,
            options: &options,
        };
        self.record(RecordKind::Subscription, |body| of.encode(body));
    }

    fn publish(&mut self, queue: u64, name: &str, sequences: std::ops::Range<u64>) {
        let mut builder = BatchBuilder::default();
        sequences.clone().for_each(|sequence| builder.push(0, &[], &body(name, sequence)));
        let first = sequences.start;
        let head = PublishedHead { queue, moved: None, fragment: None };
        self.batch(&head, first, builder.finish(0, PRODUCER, first));
    }

    /// In two fragments.
    fn publish_large(&mut self, queue: u64, name: &str, sequence: u64) {
        let body = body(name, sequence);
        let parts = body.chunks(body.len() / 2);
        let flags = [record::FRAGMENT_FIRST | record::BROKER_PROPERTIES, record::FRAGMENT_LAST];
        let mut length = PropertiesBuilder::default();
        length.push(Tag::BodyBytesTotal, &(body.len() as u64).to_le_bytes()).unwrap();
        for (nth, (part, flags)) in (0..).zip(parts.zip(flags)) {
            let mut builder = BatchBuilder::default();
            builder.push(flags, if nth == 0 { length.bytes() } else { &[] }, part);
            let fragment = Some(FragmentOf { sequence, nth, count: 2 });
            let head = PublishedHead { queue, moved: None, fragment };
            self.batch(&head, 0, builder.finish(batch::FRAGMENT, PRODUCER, sequence));
        }
    }

    fn batch(&mut self, head: &PublishedHead, base_sequence: u64, wire: &[u8]) {
        let prefix = BatchPrefix { base_sequence, accepted_us: AT_US + base_sequence };
        let mut body = Vec::new();
        head.encode(&mut body);
        let parts = [&body[..], &prefix.encode(), wire];
        self.journal.append(RecordKind::Publish, head.flags(), &parts, true).unwrap();
    }

    fn record(&mut self, kind: RecordKind, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut body = Vec::new();
        encode(&mut body);
        let flags = if kind == RecordKind::Moves { CARRIED } else { 0 };
        self.journal.append(kind, flags, &[&body], true).unwrap();
    }

    /// What was recorded since the last time becomes a group, and is written.
    fn group(&mut self) {
        self.run();
    }

    fn run(&mut self) {
        while let Some(request) = self.journal.poll_request() {
            let (tag, image) = match request {
                JournalRequest::Create { tag, file } => {
                    let path = self.directory.join(file_name(0, file));
                    let mut options = File::options();
                    options.read(true).write(true).create(true).truncate(true);
                    self.files.insert(file, options.open(path).unwrap());
                    (tag, None)
                }
                JournalRequest::Prewrite { tag, file, offset, bytes } => {
                    let zeros = vec![0; bytes as usize];
                    self.files[&file].write_all_at(&zeros, offset).unwrap();
                    (tag, None)
                }
                JournalRequest::Write { tag, file, offset, image, .. } => {
                    self.files[&file].write_all_at(image.as_slice(), offset).unwrap();
                    (tag, Some(image))
                }
                JournalRequest::Sync { tag, .. } => (tag, None),
            };
            self.journal.handle_completed(tag, Ok(()), image);
        }
    }
}

fn recover(files: &mut BTreeMap<u32, File>) -> Recovered {
    let numbers: Vec<u32> = files.keys().copied().collect();
    let read = |files: &mut BTreeMap<u32, File>, number: u32, bytes_max: u64, _: Pages| {
        let file = &files[&number];
        let bytes = file.metadata().unwrap().len().min(bytes_max);
        let mut pages = Pages::zeroed(bytes as usize);
        file.read_exact_at(pages.as_mut_slice(), 0).unwrap();
        Ok::<Pages, SurveyError>(pages)
    };
    read_journal(files, STORE, numbers, read, |_, _, _| Ok(())).unwrap()
}
