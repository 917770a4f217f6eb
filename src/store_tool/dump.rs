//! `store dump`: every record of the journals, a line each.

use crate::base::checksum::crc32c;
use crate::cli::{Failure, Outcome, Output};
use crate::format::batch::Batches;
use crate::format::change::{Change, Failure as Failed, MoveName, Published};
use crate::format::journal::{CARRIED, Record};
use crate::format::record::Records;
use crate::limits::BATCH_HEADER_BYTES;
use crate::storage::journal;
use crate::storage::replay::{self, SurveyError};
use crate::store_tool::directory::Directory;
use crate::store_tool::examine::Examined;
use crate::store_tool::store::{StoreView, records};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// What is wanted.
pub struct Picked<'a> {
    pub store: Option<u32>,
    pub queue: Option<&'a str>,
    pub bodies: bool,
}

/// Why it ends early.
enum Stop {
    Survey(SurveyError),
    Read(std::io::Error),
    Out(crate::cli::Stop),
}

impl From<SurveyError> for Stop {
    fn from(error: SurveyError) -> Stop {
        Stop::Survey(error)
    }
}

/// Runs `store dump`.
pub fn run(directory: &Directory, picked: &Picked<'_>, mut out: Output) -> Outcome {
    let examined = Examined::of(directory)?;
    for store in &examined.stores {
        if picked.store.is_some_and(|number| number != store.number) {
            continue;
        }
        let read = replay::read_journal(
            &mut out,
            store.id,
            store.files.iter().map(|file| file.file),
            |_, file, bytes, _| {
                let name = journal::file_name(store.number, file);
                Ok(directory.read(&name, bytes).map_err(Stop::Read)?.0)
            },
            |out, file, group| {
                for (offset, record) in records(&group) {
                    line(store, picked, (file, group.group, offset), &record, out)
                        .map_err(Stop::Out)?;
                }
                Ok(())
            },
        );
        match read {
            Ok(_) => {}
            Err(Stop::Out(stop)) => return Err(stop),
            Err(Stop::Read(error)) => return Err(directory.cannot("read", &error).into()),
            Err(Stop::Survey(error)) => {
                return Err(
                    Failure::new(crate::cli::Exit::Failed, "journal", error.to_string()).into()
                );
            }
        }
    }
    out.flush()
}

fn line(
    store: &StoreView,
    picked: &Picked<'_>,
    (file, group, offset): (u32, u64, u64),
    record: &Record<'_>,
    out: &mut Output,
) -> Outcome {
    let (kind, queue, said) = match Change::decode(record) {
        Ok(change) => say(&change, picked.bodies),
        Err(error) => ("unknown", None, vec![("error", json!(error.to_string()))]),
    };
    let name = queue.and_then(|queue| store.names.get(&queue));
    if picked.queue.is_some_and(|wanted| name.is_none_or(|name| name != wanted)) {
        return Ok(());
    }
    let mut fields = vec![
        ("store", json!(store.number)),
        ("group", json!(group)),
        ("file", json!(journal::file_name(store.number, file))),
        ("offset", json!(offset)),
        ("kind", json!(kind)),
    ];
    fields.extend(name.map(|name| ("queue", json!(name))));
    fields.extend(queue.map(|queue| ("queue_number", json!(queue))));
    if record.flags & CARRIED != 0 {
        fields.push(("carried", json!(true)));
    }
    fields.extend(said);
    if out.json {
        let object: Map<String, Value> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        return out.json_line(&object);
    }
    let shown: Vec<String> = fields
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) if !text.contains(' ') => format!("{name}={text}"),
            value => format!("{name}={value}"),
        })
        .collect();
    out.text(shown.join(" ") + "\n")
}

type Said = Vec<(&'static str, Value)>;

/// What a record says: its kind, its queue, the rest.
fn say(change: &Change<'_>, bodies: bool) -> (&'static str, Option<u64>, Said) {
    match change {
        Change::Published(published) => {
            ("publish", Some(published.queue), say_published(published, bodies))
        }
        Change::Done { queue, subscription, ranges } => {
            let ranges: Vec<(u64, u64)> = ranges.collect();
            let said = vec![("subscription", json!(subscription)), ("ranges", json!(ranges))];
            ("acks", Some(*queue), said)
        }
        Change::Failed { queue, subscription, entries } => {
            let entries: Vec<Value> = entries.map(say_failed).collect();
            let said = vec![("subscription", json!(subscription)), ("failures", json!(entries))];
            ("attempts", Some(*queue), said)
        }
        Change::Queue(of) => {
            let said = vec![
                ("created_us", json!(of.created_us)),
                ("next_sequence", json!(of.next_sequence)),
                ("options", json!(STANDARD.encode(of.options))),
            ];
            ("queue", Some(of.queue), said)
        }
        Change::QueueDeleted { queue } => ("queue_deleted", Some(*queue), vec![]),
        Change::Subscription(of) => {
            let said = vec![
                ("subscription", json!(of.subscription)),
                ("name", json!(of.name)),
                ("created_us", json!(of.created_us)),
                ("start", json!(of.start)),
                ("options", json!(STANDARD.encode(of.options))),
            ];
            ("subscription", Some(of.queue), said)
        }
        Change::SubscriptionDeleted { queue, subscription } => {
            ("subscription_deleted", Some(*queue), vec![("subscription", json!(subscription))])
        }
        Change::Producers { queue, entries } => {
            let said = |(id, last): (u64, u64)| json!({ "id": id, "last_sequence": last });
            let entries: Vec<Value> = entries.map(said).collect();
            ("producers", Some(*queue), vec![("producers", json!(entries))])
        }
        Change::MovesSettled { queue, moves } => {
            let moves: Vec<Value> = moves.map(say_move).collect();
            ("moves_settled", Some(*queue), vec![("moves", json!(moves))])
        }
        Change::Moves { queue, moves } => {
            let moves: Vec<Value> = moves.map(say_move).collect();
            ("moves", Some(*queue), vec![("moves", json!(moves))])
        }
    }
}

fn say_published(published: &Published<'_>, bodies: bool) -> Said {
    let mut said = Said::new();
    said.extend(published.moved.map(|name| ("moved", say_move(name))));
    if let Some(of) = published.fragment {
        let fragment = json!({ "sequence": of.sequence, "nth": of.nth, "count": of.count });
        said.push(("fragment", fragment));
    }
    let mut messages = Vec::new();
    for batch in Batches::new(published.batches) {
        let first = batch.prefix.base_sequence;
        for record in Records::new(&batch.wire()[BATCH_HEADER_BYTES..]) {
            let mut message = Map::new();
            let sequence = match published.fragment {
                Some(of) => of.sequence,
                None => first + u64::from(record.header.sequence_delta),
            };
            message.insert("sequence".to_owned(), json!(sequence));
            message.insert("accepted_us".to_owned(), json!(batch.prefix.accepted_us));
            message.insert("producer".to_owned(), json!(batch.header.producer_id));
            message.insert("body_bytes".to_owned(), json!(record.body.len()));
            message.insert("body_crc32c".to_owned(), json!(crc32c(record.body)));
            message.insert("properties_bytes".to_owned(), json!(record.properties.len()));
            if bodies {
                message.insert("body".to_owned(), json!(STANDARD.encode(record.body)));
                message.insert("properties".to_owned(), json!(STANDARD.encode(record.properties)));
            }
            messages.push(Value::Object(message));
        }
    }
    said.push(("messages", Value::Array(messages)));
    said
}

fn say_failed(of: Failed) -> Value {
    json!({
        "first": of.first,
        "count": of.count,
        "attempts": of.attempts,
        "failures": of.failures,
        "first_failed_us": of.first_failed_us,
        "last_failed_us": of.last_failed_us,
        "due_us": of.due_us,
        "rejected": of.rejected,
    })
}

fn say_move(of: MoveName) -> Value {
    json!({
        "store": of.store,
        "queue": of.queue,
        "subscription": of.subscription,
        "sequence": of.sequence,
    })
}
