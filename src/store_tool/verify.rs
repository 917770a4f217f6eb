//! `store verify`: a line for each thing that is wrong; the exit code says whether there is any.

use crate::cli::{Exit, Failure, Outcome, Output, messages};
use crate::storage::replay::Damage;
use crate::store_tool::directory::Directory;
use crate::store_tool::examine::{Examined, Problem};
use crate::store_tool::store::{Loss, StoreView};
use serde::Serialize;

/// Something that is wrong.
#[derive(Serialize)]
pub struct Fault {
    /// `damage`: a start says it and goes on; `refused`: a start ends with it; `unusable`: a start
    /// leaves it alone.
    kind: &'static str,
    file: Option<String>,
    offset: Option<u64>,
    what: String,
    /// Sequences of the groups that are lost: the first, and one past the last.
    groups_lost: Option<(u64, u64)>,
    /// They were surely on the device once.
    was_synced: bool,
}

/// Messages of a subscription that are lost.
#[derive(Serialize)]
pub struct Lost<'a> {
    store: u32,
    queue: &'a str,
    subscription: &'a str,
    /// Sequences: the first, and one past the last.
    first_sequence: u64,
    end_sequence: u64,
    messages: u64,
    /// Where the damage is that may have taken them.
    by: Vec<String>,
}

/// Something that is no damage, and good to know.
#[derive(Serialize)]
pub struct Note {
    store: u32,
    what: String,
}

#[derive(Serialize)]
struct Report<'a> {
    sound: bool,
    faults: &'a [Fault],
    lost: &'a [Lost<'a>],
    notes: &'a [Note],
}

/// Runs `store verify`.
pub fn run(directory: &Directory, mut out: Output) -> Outcome {
    let examined = Examined::of(directory)?;
    let (faults, lost, notes) = (faults(&examined), lost(&examined), notes(&examined));
    let sound = examined.is_sound();
    if out.json {
        out.json_line(&Report { sound, faults: &faults, lost: &lost, notes: &notes })?;
    } else {
        out.text(lines(&faults, &lost, &notes))?;
        if sound {
            let groups = examined.stores.iter().flat_map(|store| &store.files);
            let groups: u64 = groups.map(|file| file.group_count).sum();
            let stores = examined.stores.len();
            out.text(format!("sound: {stores} stores, {groups} groups of records\n"))?;
        }
    }
    out.flush()?;
    if sound { Ok(()) } else { Err(damaged(directory, &examined).into()) }
}

/// What the user is told at the end, with exit code 6.
pub fn damaged(directory: &Directory, examined: &Examined) -> Failure {
    let path = directory.path().display();
    let is_refused = examined.problems.iter().any(|problem| problem.is_refused);
    let (text, hint) = if is_refused {
        (" and a broker does not start on it", format!("forebay store repair {path} --dry-run"))
    } else {
        let hint = "a broker starts on it, with what is whole".to_owned();
        (", as said above", hint)
    };
    let text = format!("{path} is damaged{text}");
    Failure::new(Exit::Damaged, "damaged", text).hint(hint)
}

/// All that is wrong.
pub fn faults(examined: &Examined) -> Vec<Fault> {
    let mut faults: Vec<Fault> = examined.problems.iter().map(problem).collect();
    for store in &examined.stores {
        faults.extend(store.recovered.damages.iter().map(|of| damage(store, of)));
    }
    faults
}

fn problem(of: &Problem) -> Fault {
    Fault {
        kind: if of.is_refused { "refused" } else { "unusable" },
        file: Some(of.file.clone()),
        offset: of.offset,
        what: of.what.clone(),
        groups_lost: None,
        was_synced: false,
    }
}

fn damage(store: &StoreView, of: &Damage) -> Fault {
    let what = match of.why {
        Some(why) if of.lost.is_empty() => format!("header of the segment: {why}"),
        Some(why) => why.to_string(),
        None => "what should follow is nowhere".to_owned(),
    };
    Fault {
        kind: "damage",
        file: store.file_of(of),
        offset: Some(of.offset),
        what,
        groups_lost: (!of.lost.is_empty()).then_some((of.lost.start, of.lost.end)),
        was_synced: of.was_synced,
    }
}

/// All messages that are lost.
pub fn lost(examined: &Examined) -> Vec<Lost<'_>> {
    let of = |store: &'_ StoreView, loss: &Loss| -> Vec<String> {
        let place = |&nth: &usize| {
            let damage = store.recovered.damages.get(nth)?;
            let file = store.file_of(damage).unwrap_or_else(|| "nowhere".to_owned());
            Some(format!("{file}:{}", damage.offset))
        };
        loss.by.iter().filter_map(place).collect()
    };
    let mut all = Vec::new();
    for store in &examined.stores {
        all.extend(store.losses.iter().map(|loss| Lost {
            store: store.number,
            queue: &loss.queue,
            subscription: &loss.subscription,
            first_sequence: loss.first,
            end_sequence: loss.end,
            messages: loss.end - loss.first,
            by: of(store, loss),
        }));
    }
    all
}

/// All that is good to know.
pub fn notes(examined: &Examined) -> Vec<Note> {
    let mut notes = Vec::new();
    for store in &examined.stores {
        let mut note = |what: String| notes.push(Note { store: store.number, what });
        if let Some(torn) = store.recovered.torn {
            note(format!("the log ends in a group that is not whole ({torn}), as after a crash"));
        }
        for file in &store.files {
            for at in &file.unreadable {
                note(format!("file {} cannot be read at byte {at} and behind it", file.file));
            }
        }
        let is_hit = store.recovered.damages.iter().any(|damage| !damage.lost.is_empty());
        if is_hit && store.undefined > 0 {
            let count = store.undefined;
            note(format!("{count} queues have records and no definition: deleted, or it is lost"));
        }
    }
    notes
}

/// All of it for people, a line each.
pub fn lines(faults: &[Fault], lost: &[Lost<'_>], notes: &[Note]) -> String {
    let mut text = String::new();
    for fault in faults {
        let file = fault.file.as_deref().unwrap_or("the log");
        let at = fault.offset.map_or(String::new(), |at| format!(" at byte {at}"));
        let groups = match fault.groups_lost {
            None if fault.kind == "damage" => "; nothing is lost".to_owned(),
            None => String::new(),
            Some((first, end)) if first + 1 == end => format!("; group {first} is lost"),
            Some((first, end)) => format!("; groups {first} to {} are lost", end - 1),
        };
        text.push_str(&format!("{}: {file}{at}: {}{groups}\n", fault.kind, fault.what));
    }
    for lost in lost {
        let (first, last) = (lost.first_sequence, lost.end_sequence - 1);
        let which = if first == last { format!("{first}") } else { format!("{first} to {last}") };
        let by =
            if lost.by.is_empty() { String::new() } else { format!("; {}", lost.by.join(", ")) };
        let count = messages(lost.messages);
        text.push_str(&format!(
            "lost: queue {}, subscription {}: {count} ({which}){by}\n",
            lost.queue, lost.subscription
        ));
    }
    for note in notes {
        text.push_str(&format!("note: store {}: {}\n", note.store, note.what));
    }
    text
}
