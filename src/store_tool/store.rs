//! One store as a start would find it: its files, what its records add up to, which messages are
//! there, which are lost, and what would refuse the start.

use crate::base::pages::Pages;
use crate::base::range_set::RangeSet;
use crate::format::change::{Change, Published};
use crate::format::journal::{CARRIED, Group, Record, SegmentHeader, StoreId};
use crate::limits::{DISK_ALIGN_BYTES, JOURNAL_GROUP_HEADER_BYTES, JOURNAL_RECORD_HEADER_BYTES};
use crate::protocol::control::Request;
use crate::protocol::frame::Opcode;
use crate::storage::bodies::Bodies;
use crate::storage::journal;
use crate::storage::replay::{self, Damage, Recovered, SurveyError};
use crate::storage::state::{StoreState, SubscriptionState};
use crate::store_tool::directory::Directory;
use crate::store_tool::examine::{Problem, Remedy};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
pub struct StoreView {
    pub number: u32,
    pub id: StoreId,
    pub files: Vec<FileView>,
    pub recovered: Recovered,
    /// After the last record.
    pub state: StoreState,
    /// By number: names that queues were ever said to have.
    pub names: BTreeMap<u64, String>,
    /// By number of the queue: what is known of its messages.
    pub messages: BTreeMap<u64, Messages>,
    pub losses: Vec<Loss>,
    /// Queues of which there are records and no definition. They were deleted, or it is lost.
    pub undefined: u64,
}

/// One file.
pub struct FileView {
    pub file: u32,
    pub bytes: u64,
    pub header: Option<SegmentHeader>,
    /// Sequences of its first group and one past the last, how many, and their bytes.
    pub groups: Option<(u64, u64)>,
    pub group_count: u64,
    pub group_bytes: u64,
    /// Where the device refuses to read.
    pub unreadable: Vec<u64>,
}

/// Messages of a queue as the log has them.
#[derive(Default)]
pub struct Messages {
    /// Those that stand there.
    there: RangeSet,
    bodies: Bodies,
    /// The next that should come, and the last group that brought any.
    next: u64,
    group: u64,
    holes: Vec<Hole>,
}

/// Messages that were passed over: they would stand between two groups.
struct Hole {
    first: u64,
    end: u64,
    after: u64,
    before: u64,
}

/// Messages that a subscription should have, and that stand nowhere.
pub struct Loss {
    pub queue: String,
    pub subscription: String,
    pub first: u64,
    pub end: u64,
    /// Indices of the damages that may have taken them.
    pub by: Vec<usize>,
}

/// Why a store is not read to its end.
enum Stop {
    Survey(SurveyError),
    File(u32, std::io::Error),
}

impl From<SurveyError> for Stop {
    fn from(error: SurveyError) -> Stop {
        Stop::Survey(error)
    }
}

/// What is gathered while the log is read.
#[derive(Default)]
struct Gathered {
    state: StoreState,
    names: BTreeMap<u64, String>,
    messages: BTreeMap<u64, Messages>,
    files: BTreeMap<u32, FileView>,
    problems: Vec<Problem>,
}

impl StoreView {
    /// Reads all of a store, without the files that a start refuses: these are problems.
    pub fn read(
        directory: &Directory,
        number: u32,
        id: StoreId,
        mut files: Vec<u32>,
        problems: &mut Vec<Problem>,
    ) -> StoreView {
        loop {
            let mut gathered = Gathered::default();
            let recovered = replay::read_journal(
                &mut gathered,
                id,
                files.iter().copied(),
                |gathered, file, bytes, _| read_file(directory, gathered, number, file, bytes),
                |gathered, file, group| {
                    gathered.add(number, file, &group);
                    Ok(())
                },
            );
            let (file, what, is_refused) = match recovered {
                Ok(recovered) => {
                    problems.append(&mut gathered.problems);
                    return gathered.finish(number, id, recovered, problems);
                }
                Err(Stop::Survey(error @ SurveyError::Version { file, .. })) => {
                    (file, error.to_string(), true)
                }
                Err(Stop::Survey(error @ SurveyError::Store { file })) => {
                    (file, error.to_string(), true)
                }
                Err(Stop::File(file, error)) => (file, format!("cannot be read: {error}"), true),
            };
            files.retain(|&other| other != file);
            let name = journal::file_name(number, file);
            problems.push(Problem {
                remedy: Remedy::Quarantine,
                is_refused,
                ..Problem::new(name, what)
            });
        }
    }

    /// What a file is to the log.
    pub fn role(&self, file: u32) -> &'static str {
        if self.recovered.live.iter().any(|live| live.file == file) {
            "live"
        } else if self.recovered.unknown.contains(&file) {
            "unknown"
        } else {
            "spare"
        }
    }

    /// The file that a damage is in.
    pub fn file_of(&self, damage: &Damage) -> Option<String> {
        let live = self.recovered.live.iter().rev().find(|live| live.segment == damage.segment);
        live.map(|live| journal::file_name(self.number, live.file))
    }

    /// Messages that a subscription of the queue holds.
    pub fn held(&self, queue: u64, of: &SubscriptionState) -> u64 {
        let Some(messages) = self.messages.get(&queue) else { return 0 };
        let there = messages.there.iter();
        let wanted = there.map(|(first, end)| gaps(&of.done, first.max(of.start), end));
        wanted.flatten().map(|(first, end)| end - first).sum()
    }
}

/// Goes over the records of a group, each with its offset in the file.
pub fn records<'a>(group: &Group<'a>) -> impl Iterator<Item = (u64, Record<'a>)> + use<'a> {
    let mut offset = group.page as usize * DISK_ALIGN_BYTES + JOURNAL_GROUP_HEADER_BYTES;
    group.records().map(move |record| {
        let at = offset as u64;
        offset += JOURNAL_RECORD_HEADER_BYTES + record.body.len();
        (at, record)
    })
}

fn read_file(
    directory: &Directory,
    gathered: &mut Gathered,
    store: u32,
    file: u32,
    bytes_max: u64,
) -> Result<Pages, Stop> {
    let name = journal::file_name(store, file);
    let bytes = directory.file_len(&name).map_err(|error| Stop::File(file, error))?;
    let (pages, unreadable) =
        directory.read(&name, bytes_max).map_err(|error| Stop::File(file, error))?;
    let header = SegmentHeader::decode(pages.as_slice()).ok();
    let view =
        FileView { file, bytes, header, groups: None, group_count: 0, group_bytes: 0, unreadable };
    gathered.files.insert(file, view);
    Ok(pages)
}

impl Gathered {
    /// A group of the log. One that a start refuses is left out as a whole, for that is what a
    /// repair makes of it.
    fn add(&mut self, store: u32, file: u32, group: &Group<'_>) {
        if let Some(view) = self.files.get_mut(&file) {
            let first = view.groups.map_or(group.group, |(first, _)| first);
            view.groups = Some((first, group.group + 1));
            view.group_count += 1;
            view.group_bytes += group.image_bytes() as u64;
        }
        let wrong = records(group)
            .find_map(|(at, record)| Change::decode(&record).err().map(|error| (at, error)));
        if let Some((at, error)) = wrong {
            let what = format!("in group {}: {error}", group.group);
            let page = u64::from(group.page) * DISK_ALIGN_BYTES as u64;
            let remedy = Remedy::Blank { offset: page, group: group.group };
            let problem = Problem::new(journal::file_name(store, file), what);
            self.problems.push(Problem { offset: Some(at), is_refused: true, remedy, ..problem });
            return;
        }
        for record in group.records() {
            // It was decoded just now.
            let Ok(change) = Change::decode(&record) else { continue };
            let _ = self.state.apply(&record);
            match change {
                Change::Queue(of) => {
                    self.names.insert(of.queue, of.name.to_owned());
                }
                Change::Published(published) => {
                    let of = self.messages.entry(published.queue).or_default();
                    of.add(&published, record.flags & CARRIED != 0, group.group);
                }
                _ => {}
            }
        }
    }

    fn finish(
        mut self,
        number: u32,
        id: StoreId,
        recovered: Recovered,
        problems: &mut Vec<Problem>,
    ) -> StoreView {
        let met: BTreeSet<u64> = self.messages.keys().copied().collect();
        self.state.finish();
        let undefined = met.iter().filter(|queue| !self.state.queues.contains_key(queue)).count();
        problems.extend(recovered.unknown.iter().map(|&file| {
            let what = "nothing of it is a whole part of the journal; a start leaves it alone";
            let problem = Problem::new(journal::file_name(number, file), what.to_owned());
            Problem { remedy: Remedy::Quarantine, ..problem }
        }));
        let mut losses = Vec::new();
        for (queue, of) in &self.state.queues {
            let definition = of.definition.as_ref();
            let name = definition.map_or("", |definition| definition.name.as_str());
            let messages = self.messages.entry(*queue).or_default();
            messages.close(of.next_sequence);
            let mut options = vec![(Opcode::QueueCreate, definition, "")];
            for of_one in of.subscriptions.values() {
                let definition = of_one.definition.as_ref();
                let own = definition.map_or("", |definition| definition.name.as_str());
                options.push((Opcode::SubscriptionCreate, definition, own));
                for (first, end) in gaps(&of_one.done, of_one.start, of.next_sequence.max(1)) {
                    losses.extend(gaps(&messages.there, first.max(1), end).map(|(first, end)| {
                        Loss {
                            queue: name.to_owned(),
                            subscription: own.to_owned(),
                            first,
                            end,
                            by: messages.damages(first, end, &recovered.damages),
                        }
                    }));
                }
            }
            for (opcode, definition, own) in options {
                let bytes = definition.map_or(&[][..], |definition| &definition.options);
                if let Err(error) = Request::decode(opcode, bytes) {
                    let of = if own.is_empty() {
                        String::new()
                    } else {
                        format!(", subscription `{own}`")
                    };
                    let what = format!("options of queue `{name}`{of}: {error}");
                    let file = format!("journal-{number}");
                    problems.push(Problem { is_refused: true, ..Problem::new(file, what) });
                }
            }
        }
        StoreView {
            number,
            id,
            files: self.files.into_values().collect(),
            recovered,
            state: self.state,
            names: self.names,
            messages: self.messages,
            losses,
            undefined: undefined as u64,
        }
    }
}

impl Messages {
    fn add(&mut self, published: &Published<'_>, is_carried: bool, group: u64) {
        let mut bodies = std::mem::take(&mut self.bodies);
        let added: Result<(), std::convert::Infallible> = bodies.add(published, |body| {
            let (first, end) = body.range();
            self.there.add(first, end);
            // What is carried stands out of turn.
            if !is_carried {
                self.pass(first, group);
                (self.next, self.group) = (self.next.max(end), group);
            }
            Ok(())
        });
        let Ok(()) = added;
        self.bodies = bodies;
    }

    /// Nothing more comes, and `next` is where the queue goes on.
    fn close(&mut self, next: u64) {
        self.pass(next, u64::MAX);
    }

    fn pass(&mut self, sequence: u64, before: u64) {
        if sequence > self.next {
            let (first, after) = (self.next, self.group);
            self.holes.push(Hole { first, end: sequence, after, before });
        }
    }

    /// Which damages may have taken `first..end`.
    fn damages(&self, first: u64, end: u64, damages: &[Damage]) -> Vec<usize> {
        let hole = self.holes.iter().find(|hole| hole.first < end && first < hole.end);
        let (after, before) = hole.map_or((0, u64::MAX), |hole| (hole.after, hole.before));
        let hit = |damage: &Damage| {
            !damage.lost.is_empty() && damage.lost.end > after && damage.lost.start < before
        };
        (0..damages.len()).filter(|&nth| hit(&damages[nth])).collect()
    }
}

/// The parts of `first..end` that are not in the set.
fn gaps(set: &RangeSet, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut at = first;
    std::iter::from_fn(move || {
        while let Some(past) = set.end_of(at).filter(|_| at < end) {
            at = past;
        }
        if at >= end {
            return None;
        }
        let from = at;
        at = set.next_from(at).map_or(end, |next| next.min(end));
        Some((from, at))
    })
}
