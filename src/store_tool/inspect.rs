//! `store inspect`: what a data directory holds.

use crate::base::units::show_bytes;
use crate::cli::wall::rfc3339;
use crate::cli::{Align, Outcome, Output, Table, thousands};
use crate::protocol::control::Request;
use crate::protocol::frame::Opcode;
use crate::protocol::wire::{ConfirmAt, OnFull};
use crate::storage::journal;
use crate::storage::state::{Definition, QueueState};
use crate::store_tool::directory::Directory;
use crate::store_tool::examine::Examined;
use crate::store_tool::store::{FileView, StoreView};
use crate::store_tool::verify::{Fault, Lost, Note, faults, lines, lost, notes};
use serde::Serialize;

#[derive(Serialize)]
struct Report<'a> {
    stores: Vec<Store<'a>>,
    sound: bool,
    faults: &'a [Fault],
    lost: &'a [Lost<'a>],
    notes: &'a [Note],
}

#[derive(Serialize)]
struct Store<'a> {
    store: u32,
    id: String,
    epoch: u64,
    /// One past the last group, its segment, and where it ends there.
    end_group: u64,
    end_segment: u64,
    end_offset: u64,
    /// The first group that is needed.
    needed_group: u64,
    segments: Vec<Segment>,
    queues: Vec<Queue<'a>>,
}

#[derive(Serialize)]
struct Segment {
    file: String,
    /// `live`, `spare` or `unknown`.
    role: &'static str,
    bytes: u64,
    /// As its header says, if that is whole.
    epoch: Option<u64>,
    segment: Option<u64>,
    first_group: Option<u64>,
    end_group: Option<u64>,
    groups: u64,
    group_bytes: u64,
}

#[derive(Serialize)]
struct Queue<'a> {
    name: &'a str,
    number: u64,
    created_at: String,
    created_us: u64,
    next_sequence: u64,
    producers: usize,
    /// `null` where they are not understood.
    confirm: Option<&'static str>,
    messages_max: Option<u64>,
    bytes_max: Option<u64>,
    message_bytes_max: Option<u64>,
    on_full: Option<&'static str>,
    subscriptions: Vec<Subscription<'a>>,
}

#[derive(Serialize)]
struct Subscription<'a> {
    name: &'a str,
    number: u64,
    created_at: String,
    created_us: u64,
    /// Nothing before it is held.
    start: u64,
    messages: u64,
    failed: u64,
}

/// Runs `store inspect`.
pub fn run(directory: &Directory, mut out: Output) -> Outcome {
    let examined = Examined::of(directory)?;
    let (faults, lost, notes) = (faults(&examined), lost(&examined), notes(&examined));
    let stores: Vec<Store<'_>> = examined.stores.iter().map(store).collect();
    if out.json {
        let sound = examined.is_sound();
        out.json_line(&Report { stores, sound, faults: &faults, lost: &lost, notes: &notes })?;
    } else {
        stores.iter().try_for_each(|store| out.text(shown(store)))?;
        out.text(lines(&faults, &lost, &notes))?;
    }
    out.flush()
}

fn store(of: &StoreView) -> Store<'_> {
    let recovered = &of.recovered;
    Store {
        store: of.number,
        id: of.id.0.iter().map(|byte| format!("{byte:02x}")).collect(),
        epoch: recovered.epoch,
        end_group: recovered.end.group,
        end_segment: recovered.end.segment,
        end_offset: recovered.end.offset,
        needed_group: recovered.needed,
        segments: of.files.iter().map(|file| segment(of, file)).collect(),
        queues: of.state.queues.iter().map(|(&number, queue_)| queue(of, number, queue_)).collect(),
    }
}

fn segment(store: &StoreView, of: &FileView) -> Segment {
    Segment {
        file: journal::file_name(store.number, of.file),
        role: store.role(of.file),
        bytes: of.bytes,
        epoch: of.header.map(|header| header.epoch),
        segment: of.header.map(|header| header.segment),
        first_group: of.groups.map(|(first, _)| first),
        end_group: of.groups.map(|(_, end)| end),
        groups: of.group_count,
        group_bytes: of.group_bytes,
    }
}

fn queue<'a>(store: &'a StoreView, number: u64, of: &'a QueueState) -> Queue<'a> {
    let (name, created_us, bytes) = said(of.definition.as_ref());
    let options = match Request::decode(Opcode::QueueCreate, bytes) {
        Ok(Request::QueueCreate(body)) => body.options,
        _ => None,
    };
    let options = options.as_deref();
    let subscriptions = of.subscriptions.iter().map(|(&own, subscription)| {
        let (name, created_us, _) = said(subscription.definition.as_ref());
        Subscription {
            name,
            number: own,
            created_at: rfc3339(created_us),
            created_us,
            start: subscription.start,
            messages: store.held(number, subscription),
            failed: subscription.failures.values().map(|failure| u64::from(failure.count)).sum(),
        }
    });
    Queue {
        name,
        number,
        created_at: rfc3339(created_us),
        created_us,
        next_sequence: of.next_sequence,
        producers: of.producers.len(),
        confirm: options
            .map(|of| if of.confirm == ConfirmAt::Written { "written" } else { "synced" }),
        messages_max: options.map(|of| of.messages_max),
        bytes_max: options.map(|of| of.bytes_max),
        message_bytes_max: options.map(|of| of.message_bytes_max),
        on_full: options.map(|of| match of.on_full {
            OnFull::Reject => "reject",
            OnFull::DropOldest => "drop_oldest",
            OnFull::DropNewest => "drop_newest",
            _ => "block",
        }),
        subscriptions: subscriptions.collect(),
    }
}

fn said(of: Option<&Definition>) -> (&str, u64, &[u8]) {
    of.map_or(("", 0, &[]), |of| (&of.name, of.created_us, &of.options))
}

fn shown(store: &Store<'_>) -> String {
    let Store { end_group, end_segment, end_offset, needed_group, .. } = store;
    let mut text = format!(
        "store {}, id {}\n  epoch {}; needed from group {needed_group}; ends before group \
         {end_group}, in segment {end_segment} at byte {end_offset}\n",
        store.store, store.id, store.epoch
    );
    if !store.segments.is_empty() {
        let mut table = Table::new(&[
            ("FILE", Align::Left),
            ("IS", Align::Left),
            ("BYTES", Align::Right),
            ("EPOCH", Align::Right),
            ("SEGMENT", Align::Right),
            ("GROUPS", Align::Left),
            ("IN GROUPS", Align::Right),
        ]);
        let number =
            |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        for of in &store.segments {
            let groups = of.first_group.zip(of.end_group);
            table.row(vec![
                of.file.clone(),
                of.role.to_owned(),
                show_bytes(of.bytes),
                number(of.epoch),
                number(of.segment),
                groups.map_or("-".to_owned(), |(first, end)| format!("{first}..{end}")),
                show_bytes(of.group_bytes),
            ]);
        }
        text.push_str(&table.to_string());
    }
    if !store.queues.is_empty() {
        let mut table = Table::new(&[
            ("QUEUE", Align::Left),
            ("SUBSCRIPTION", Align::Left),
            ("MESSAGES", Align::Right),
            ("FAILED", Align::Right),
            ("FROM", Align::Right),
            ("NEXT", Align::Right),
            ("CONFIRM", Align::Left),
            ("CREATED", Align::Left),
        ]);
        for queue in &store.queues {
            for of in &queue.subscriptions {
                table.row(vec![
                    queue.name.to_owned(),
                    of.name.to_owned(),
                    thousands(of.messages),
                    thousands(of.failed),
                    of.start.to_string(),
                    queue.next_sequence.to_string(),
                    queue.confirm.unwrap_or("-").to_owned(),
                    of.created_at.clone(),
                ]);
            }
        }
        text.push_str(&table.to_string());
    }
    text
}
