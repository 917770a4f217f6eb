//! The stores of a shard: what changes in their durable queues goes to their journals, and what
//! waits for that to be safe goes on.
//!
//! ```text
//! end of a tick:  note_changes -> tell_journals -> Journal::append -> poll_journal -> the disk
//! next tick:      handle_journal -> confirms, answers, moves that are done or settled
//! ```
//!
//! There is no timer: while a group is being written, the next one gathers. Nothing here does I/O.

use crate::base::chunk_pool::ChunkRef;
use crate::base::pages::Pages;
use crate::base::slot_map::Key;
use crate::base::time::Mono;
use crate::format::change::{MoveName, PublishedHead, encode_queue_deleted};
use crate::format::journal::{RecordKind, StoreId};
use crate::io::{DiskRequest, FileId};
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::FrameHeader;
use crate::protocol::hot::Reached;
use crate::queue::outbox::QueueChange;
use crate::shard::carry::{Round, note_body, tell_change, tell_definition, tell_subscription};
use crate::shard::core::{Core, QueueSlot};
use crate::shard::moves::{Move, MoveDone};
use crate::shard::options::Refused;
use crate::storage::journal::{
    AppendError, Journal, JournalCounters, JournalRequest, JournalShape, Progress,
};
use crate::storage::replay::Recovered;
use crate::storage::spill::error_text;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::ops::Range;

/// The tags of a journal's requests have this bit, and below it the store and the journal's tag.
const JOURNAL_TAG: u64 = 1 << 63;
const STORE_SHIFT: u32 = 48;
/// Changes that wait for room in a group, over which no queue is asked for more.
const BACKLOG_MAX: usize = 4096;
/// What a segment fails with that `disk_limit` has no room for.
const NO_BUDGET: ErrorKind = ErrorKind::QuotaExceeded;
/// So many segments a journal has whatever `disk_limit` says: without them it cannot go on.
const SEGMENTS_MIN: usize = 4;
/// A segment that could not be made is tried again after so long.
const RETRY_MS: u64 = 1000;

/// What waits for room in a group, in order.
enum Waiting {
    Record(Pending),
    /// Waits for all in front of it to be synced.
    Deferred(Deferred),
}

/// A record on its way to the journal.
struct Pending {
    kind: RecordKind,
    flags: u8,
    /// The body, or what stands in front of `batches`.
    head: Vec<u8>,
    batches: Option<(ChunkRef, Range<usize>)>,
    /// Its queue, and one past the last message that is told with it.
    queue: Key,
    end_sequence: u64,
    wants_synced: bool,
}

/// Messages of a queue before `end_sequence` are told with a group.
struct Told {
    group: u64,
    queue: Key,
    end_sequence: u64,
}

/// Something that waits until all that was told before it is synced.
pub(super) enum Deferred {
    /// A connection's request is answered.
    Answer(Key, FrameHeader, Box<Answer>),
    /// A message leaves for another queue: that it is here, and why it goes, cannot be forgotten
    /// any more, so nobody else gets it and no other message gets its sequence.
    Ask(Box<Move>),
    /// A move is done here: the source's home is to know.
    Moved(usize, MoveDone),
    /// A move is noted here: its target, on that shard, may forget it.
    Settle(usize, Key, MoveName),
    /// A round is over: the log before this group can go.
    RoundEnd(u64),
}

/// One store.
pub(super) struct Store {
    number: u32,
    id: StoreId,
    shape: JournalShape,
    /// Once it has had a durable queue.
    journal: Option<Journal>,
    /// Of the journal, by number.
    files: Vec<Option<FileId>>,
    /// Queues that have something to tell, each once.
    changed: VecDeque<Key>,
    backlog: VecDeque<Waiting>,
    /// Told and not written, told and not synced; in the order of groups.
    unwritten: VecDeque<Told>,
    unsynced: VecDeque<Told>,
    /// Waits for what changes until the end of the tick.
    deferring: Vec<Deferred>,
    /// With the group that they wait for.
    deferred: VecDeque<(u64, Deferred)>,
    last_group: u64,
    pub(super) round: Round,
    /// Zeros for new segments, while they are not being written; and the journal's tag of that.
    zeros: Option<Pages>,
    writing_zeros: Option<u64>,
    /// Number of the next queue.
    next_queue: u64,
    /// It was said that nothing is written any more, or that there is no room.
    said: Option<String>,
    retry_due: Mono,
}

/// What a journal wants done that is no request to the disk.
pub(super) enum JournalAsks {
    /// A file is made, or emptied, and opened.
    Make {
        /// Index of the store.
        store: usize,
        /// Number of the store.
        number: u32,
        /// The journal's.
        tag: u64,
        /// Number of the file.
        file: u32,
        /// Where the file is open already.
        open: Option<FileId>,
    },
    /// A request.
    Request(DiskRequest),
}

/// All stores of a shard.
#[derive(Default)]
pub(super) struct Stores {
    list: Vec<Store>,
    /// Given back by the disk, which has enough to do.
    returned: Option<DiskRequest>,
}

/// See [`Stores::figures`].
#[derive(Default)]
pub(super) struct JournalFigures {
    /// Files that hold the log, and their bytes.
    pub segments: u64,
    pub bytes: u64,
    pub counters: JournalCounters,
    /// `off`, `ready`, or why nothing is taken.
    pub state: String,
}

impl Stores {
    pub fn add(&mut self, store: Store) {
        self.list.push(store);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Store> {
        self.list.iter()
    }

    /// Index of a store of this shard.
    pub fn index_of(&self, number: u32) -> Option<usize> {
        self.list.iter().position(|store| store.number == number)
    }

    pub fn at(&mut self, index: usize) -> &mut Store {
        &mut self.list[index]
    }

    /// Has what was written without a sync synced: acks, and messages that wait for no sync.
    pub fn sync(&mut self) {
        for store in &mut self.list {
            let last_group = store.last_group();
            if let Some(journal) = &mut store.journal
                && journal.progress().synced < last_group
            {
                journal.sync();
            }
        }
    }

    /// Whether everything that was told is synced, as far as it ever will be.
    pub fn is_idle(&self) -> bool {
        self.list.iter().all(Store::is_idle)
    }

    /// Of all journals together.
    pub fn figures(&self) -> JournalFigures {
        let mut all = JournalFigures { state: "off".to_owned(), ..JournalFigures::default() };
        for store in &self.list {
            let Some(journal) = &store.journal else { continue };
            let JournalCounters { groups, records, group_bytes, padding_bytes } =
                journal.counters();
            all.segments += journal.segments().len() as u64;
            all.bytes += journal.segments().len() as u64 * store.shape.segment_bytes;
            all.counters.groups += groups;
            all.counters.records += records;
            all.counters.group_bytes += group_bytes;
            all.counters.padding_bytes += padding_bytes;
            if all.state == "off" {
                all.state = "ready".to_owned();
            }
            if let Some((_, text)) = store.refusal() {
                all.state = text;
            }
        }
        all
    }

    /// Whether durable queues take nothing.
    pub fn is_refusing(&self) -> bool {
        self.list.iter().any(|store| store.refusal().is_some())
    }

    /// Whether a queue has something to tell and the journal takes it.
    pub fn has_work(&self) -> bool {
        self.list.iter().any(|store| {
            let waits = !store.changed.is_empty()
                || !store.deferring.is_empty()
                || store.round.is_under_way();
            waits && store.has_room()
        })
    }
}

impl Store {
    /// A store whose journal, if it has one, was recovered.
    pub fn new(
        number: u32,
        id: StoreId,
        shape: JournalShape,
        recovered: Option<&Recovered>,
        files: Vec<Option<FileId>>,
    ) -> Store {
        let journal = recovered.map(|recovered| Journal::open(id, shape, recovered));
        let (needed, segments) =
            recovered.map_or((1, 0), |recovered| (recovered.needed, recovered.live.len()));
        let round = Round::new(needed, segments);
        let epoch = recovered.map_or(0, |recovered| recovered.epoch) + 1;
        Store {
            number,
            id,
            shape,
            journal,
            files,
            changed: VecDeque::new(),
            backlog: VecDeque::new(),
            unwritten: VecDeque::new(),
            unsynced: VecDeque::new(),
            deferring: Vec::new(),
            deferred: VecDeque::new(),
            last_group: 0,
            round,
            zeros: None,
            writing_zeros: None,
            next_queue: epoch << 40 | u64::from(number) << 32,
            said: None,
            retry_due: Mono(0),
        }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    /// A number that no queue of the store ever had; subscriptions count on from there, too.
    pub fn next_number(&mut self) -> u64 {
        self.next_queue += 1;
        self.next_queue
    }

    pub fn counters(&self) -> JournalCounters {
        self.journal.as_ref().map(Journal::counters).unwrap_or_default()
    }

    /// Why nothing is taken, if so.
    pub fn refusal(&self) -> Option<(ErrorCode, String)> {
        let journal = self.journal.as_ref()?;
        if let Some(poison) = journal.poison() {
            let text = format!(
                "the journal takes nothing more until the broker is started anew: {poison}"
            );
            return Some((ErrorCode::DiskError, text));
        }
        let kind = journal.blocked()?;
        let text = format!("the journal cannot grow: {}", error_text(kind));
        Some(match kind {
            NO_BUDGET => {
                let text =
                    "the journal cannot grow: disk_limit leaves no room; consume, or raise it";
                (ErrorCode::DiskLimit, text.to_owned())
            }
            ErrorKind::StorageFull => (ErrorCode::DiskFull, text),
            _ => (ErrorCode::DiskError, text),
        })
    }

    pub fn journal(&mut self) -> Option<&mut Journal> {
        self.journal.as_mut()
    }

    pub fn progress(&self) -> Progress {
        self.journal.as_ref().map(Journal::progress).unwrap_or_default()
    }

    pub fn oldest_segment(&self) -> Option<u64> {
        self.journal.as_ref()?.segments().next().map(|oldest| oldest.segment)
    }

    pub fn segment_bytes(&self) -> u64 {
        self.shape.segment_bytes
    }

    /// The group that a record told now will be in, or a later one.
    pub fn last_group(&self) -> u64 {
        self.last_group.max(self.progress().written)
    }

    /// Whether queues are to be asked what has changed.
    fn has_room(&self) -> bool {
        self.backlog.len() < BACKLOG_MAX
    }

    /// Nothing of it can be kept any more.
    fn forget_backlog(&mut self) {
        for waiting in self.backlog.drain(..) {
            if let Waiting::Deferred(what) = waiting {
                self.deferred.push_back((u64::MAX, what));
            }
        }
        self.deferred.extend(self.deferring.drain(..).map(|what| (u64::MAX, what)));
        self.unwritten.clear();
        self.unsynced.clear();
    }

    /// Whether no segment can be made now.
    pub fn is_blocked(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.blocked().is_some())
    }

    fn is_poisoned(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.poison().is_some())
    }

    fn is_idle(&self) -> bool {
        let Some(journal) = &self.journal else { return true };
        journal.poison().is_some()
            || (self.changed.is_empty()
                && self.backlog.is_empty()
                && self.deferring.is_empty()
                && self.deferred.is_empty()
                && journal.progress().synced >= self.last_group())
    }

    /// Messages of a queue came back from disk: they are not synced before the journal says so.
    pub fn note_returned(&mut self, queue: Key, end_sequence: u64) {
        let group = self.progress().written;
        self.unsynced.push_back(Told { group, queue, end_sequence });
    }

    /// Puts a record behind all that waits.
    pub fn push(&mut self, kind: RecordKind, flags: u8, body: Vec<u8>, queue: Key) {
        let pending = Pending {
            kind,
            flags,
            head: body,
            batches: None,
            queue,
            end_sequence: 0,
            wants_synced: false,
        };
        self.backlog.push_back(Waiting::Record(pending));
    }

    /// Does something once all that was told until now is synced.
    pub fn defer(&mut self, what: Deferred) {
        self.deferring.push(what);
    }

    /// Begins a journal, if there is none.
    fn begin(&mut self) {
        let begun = || Journal::open(self.id, self.shape, &Recovered::default());
        self.journal.get_or_insert_with(begun);
    }

    /// Gives the journal what waits, until its group is full.
    fn append_backlog(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        while let Some(waiting) = self.backlog.pop_front() {
            let pending = match waiting {
                Waiting::Record(pending) => pending,
                Waiting::Deferred(what) => {
                    // What was read back at the start counts as told, and is not synced at first.
                    let last_group = self.last_group.max(journal.progress().written);
                    self.deferred.push_back((last_group, what));
                    journal.sync();
                    continue;
                }
            };
            let Pending { kind, flags, head, batches, wants_synced, .. } = &pending;
            let appended = match batches {
                Some((chunk, range)) => {
                    let batches = chunk.slice(range.clone());
                    journal.append(*kind, *flags, &[head, batches], *wants_synced)
                }
                None => journal.append(*kind, *flags, &[head], *wants_synced),
            };
            match appended {
                Ok(group) => {
                    self.last_group = group;
                    let (queue, end_sequence) = (pending.queue, pending.end_sequence);
                    if end_sequence == 0 {
                        continue;
                    }
                    match self.unwritten.back_mut() {
                        Some(last) if last.group == group && last.queue == queue => {
                            last.end_sequence = end_sequence;
                        }
                        _ => self.unwritten.push_back(Told { group, queue, end_sequence }),
                    }
                }
                Err(AppendError::Full | AppendError::Poisoned(_)) => {
                    self.backlog.push_front(Waiting::Record(pending));
                    return;
                }
            }
        }
    }

    /// What can be done now that the log has come so far.
    fn poll_deferred(&mut self) -> Option<Deferred> {
        let synced = self.progress().synced;
        let (group, _) = self.deferred.front()?;
        if *group > synced {
            return None;
        }
        self.deferred.pop_front().map(|(_, what)| what)
    }

    fn poll_request(&mut self, index: usize) -> Option<JournalAsks> {
        let request = self.journal.as_mut()?.poll_request()?;
        let name = |tag: u64| JOURNAL_TAG | (index as u64) << STORE_SHIFT | tag;
        let files = &self.files;
        let open = |file: u32| {
            files.get(file as usize).copied().flatten().expect("a file is made before it is used")
        };
        Some(match request {
            JournalRequest::Create { tag, file } => {
                let open = files.get(file as usize).copied().flatten();
                JournalAsks::Make { store: index, number: self.number, tag, file, open }
            }
            JournalRequest::Prewrite { tag, file, offset, bytes } => {
                let zeros = self.zeros.take().filter(|zeros| zeros.len() == bytes as usize);
                let pages = zeros.unwrap_or_else(|| Pages::zeroed(bytes as usize));
                self.writing_zeros = Some(tag);
                let (tag, file, sync) = (name(tag), open(file), false);
                JournalAsks::Request(DiskRequest::WritePages { tag, file, offset, pages, sync })
            }
            JournalRequest::Write { tag, file, offset, image, sync } => {
                let (tag, file, pages) = (name(tag), open(file), image);
                JournalAsks::Request(DiskRequest::WritePages { tag, file, offset, pages, sync })
            }
            JournalRequest::Sync { tag, file } => {
                JournalAsks::Request(DiskRequest::Sync { tag: name(tag), file: open(file) })
            }
        })
    }
}

/// Whether the outcome of a request is for a journal.
pub(super) fn is_of_journal(tag: u64) -> bool {
    tag & JOURNAL_TAG != 0
}

impl Core {
    /// The store that a queue of this name is in, if it is durable; its journal is begun.
    pub fn store_for(&mut self, name: &str) -> Result<usize, Refused> {
        let number = crate::shard::router::store_of(name, self.config.stores);
        let Some(index) = self.stores.index_of(number) else {
            let text = "this broker keeps nothing on disk, so it has no durable queues";
            return Err(Refused::new(ErrorCode::Unsupported, text));
        };
        let store = self.stores.at(index);
        if let Some((code, text)) = store.refusal() {
            return Err(Refused::new(code, text));
        }
        store.begin();
        Ok(index)
    }

    /// A durable queue is gone.
    pub fn forget_durable(&mut self, key: Key, slot: &QueueSlot) {
        let Some(index) = slot.store else { return };
        let store = &mut self.stores.list[index];
        store.changed.retain(|&other| other != key);
        let mut body = Vec::new();
        encode_queue_deleted(slot.queue.number(), &mut body);
        store.push(RecordKind::QueueDeleted, 0, body, key);
    }

    /// Answers a request that may have changed a durable queue, or made or deleted it: when that is
    /// safe.
    pub fn answer_when_kept(
        &mut self,
        connection: Key,
        header: &FrameHeader,
        store: Option<usize>,
        answer: Answer,
    ) {
        match store {
            Some(store) => {
                let what = Deferred::Answer(connection, *header, Box::new(answer));
                self.stores.at(store).defer(what);
            }
            None => self.answer(connection, header, &answer),
        }
    }

    /// Why nothing new is taken for a queue, if so.
    pub fn unkept(&self, store: Option<usize>) -> Option<(ErrorCode, String)> {
        self.stores.list.get(store?)?.refusal()
    }

    /// Lists a durable queue that has something to tell.
    pub fn note_changes(&mut self, queue: Key) {
        let Some(slot) = self.queues.at_mut(queue) else { return };
        let Some(store) = slot.store else { return };
        if slot.queue.has_changes() && !std::mem::replace(&mut slot.journaling, true) {
            self.stores.list[store].changed.push_back(queue);
        }
    }

    /// Once per tick: what has changed goes to the journals.
    pub fn tell_journals(&mut self) {
        if self.draining.is_some() {
            self.stores.sync();
        }
        for index in 0..self.stores.list.len() {
            self.tell_journal(index);
        }
    }

    fn tell_journal(&mut self, index: usize) {
        let store = &mut self.stores.list[index];
        if store.journal.is_none() {
            return;
        }
        if store.is_blocked() && store.retry_due <= self.now.mono {
            store.retry_due = self.now.mono.plus_ms(RETRY_MS);
            store.journal.as_mut().expect("just seen").retry();
        }
        if store.is_poisoned() {
            // What is told no more would wait for ever.
            store.forget_backlog();
        }
        store.append_backlog();
        while self.stores.list[index].has_room()
            && let Some(key) = self.stores.list[index].changed.pop_front()
        {
            self.tell_queue(index, key);
        }
        if self.stores.list[index].has_room() {
            self.go_on_with_round(index);
            let store = &mut self.stores.list[index];
            store.backlog.extend(store.deferring.drain(..).map(Waiting::Deferred));
        }
        self.stores.list[index].append_backlog();
        // Where all that was told is synced already, nothing more will end.
        while let Some(what) = self.stores.list[index].poll_deferred() {
            self.go_on_with(index, what);
        }
        if self.stores.list[index].is_poisoned() {
            self.fail_deferred(index);
        }
        self.say_refusal(index);
    }

    /// What waits for the journal waits in vain.
    fn fail_deferred(&mut self, index: usize) {
        let (code, text) = match self.stores.list[index].refusal() {
            Some(refusal) => refusal,
            None => return,
        };
        while let Some((_, what)) = self.stores.list[index].deferred.pop_front() {
            match what {
                Deferred::Answer(connection, header, _) => {
                    self.refuse(connection, &header, code, &text);
                }
                Deferred::Ask(asked) => {
                    let home = self.config.shard;
                    let (key, outcome) = (asked.key, Err(code.name()));
                    let bytes = asked.charged_bytes();
                    let done = MoveDone { key, home, target: None, bytes, outcome };
                    self.handle_move_done(done, self.now);
                }
                Deferred::Moved(home, done) => {
                    let outcome = Err(code.name());
                    self.send_move_done(home, MoveDone { outcome, ..done });
                }
                // The target remembers it for ever, which does no harm.
                Deferred::Settle(..) | Deferred::RoundEnd(_) => {}
            }
        }
    }

    /// Says once that a journal takes nothing, and that it does again.
    fn say_refusal(&mut self, index: usize) {
        let store = &mut self.stores.list[index];
        let said = store.refusal().map(|(_, text)| text);
        if said == store.said {
            return;
        }
        let number = store.number;
        match &said {
            Some(text) => tracing::error!(store = number, text, "durable queues take nothing"),
            None => tracing::info!(store = number, "durable queues take again"),
        }
        store.said = said;
    }

    fn tell_queue(&mut self, index: usize, key: Key) {
        let Some(slot) = self.queues.at_mut(key) else { return };
        slot.journaling = false;
        let QueueSlot { queue, bodies, .. } = &mut **slot;
        let (store, now) = (&mut self.stores.list[index], self.now);
        let mut subscribed = Vec::new();
        let mut defined = false;
        let (number, confirm) = (queue.number(), queue.options().confirm);
        queue.drain_changes(|change| match change {
            QueueChange::Defined => defined = true,
            QueueChange::Subscribed(subscription) => subscribed.push(subscription),
            QueueChange::Appended(appended) => {
                let (fragment, moved) = (appended.fragment, appended.moved);
                let head = PublishedHead { queue: number, moved, fragment };
                let mut bytes = Vec::with_capacity(8);
                head.encode(&mut bytes);
                if fragment.is_none_or(|part| part.nth == 0) {
                    // The group is not known yet, but it is no earlier one.
                    note_body(bodies, store.last_group(), appended.first_sequence);
                }
                store.backlog.push_back(Waiting::Record(Pending {
                    kind: RecordKind::Publish,
                    flags: head.flags(),
                    head: bytes,
                    batches: Some((appended.chunk, appended.range)),
                    queue: key,
                    end_sequence: appended.end_sequence,
                    wants_synced: confirm == Reached::Synced,
                }));
            }
            other => tell_change(store, key, number, other, 0),
        });
        if defined {
            tell_definition(store, key, queue, 0);
        }
        for subscription in subscribed {
            tell_subscription(store, (key, queue), subscription, now, 0);
        }
    }

    /// What the journals want done on disk next.
    pub fn poll_journal(&mut self) -> Option<JournalAsks> {
        if let Some(request) = self.stores.returned.take() {
            return Some(JournalAsks::Request(request));
        }
        let mut stores = self.stores.list.iter_mut().enumerate();
        stores.find_map(|(index, store)| store.poll_request(index))
    }

    /// Whether there may be a segment more.
    pub fn may_grow(&self, store: usize) -> std::io::Result<()> {
        let Some(budget) = self.spill.budget() else { return Ok(()) };
        let store = &self.stores.list[store];
        let is_over = budget.used_bytes() + store.shape.segment_bytes > budget.limit_bytes();
        if is_over && store.files.iter().flatten().count() >= SEGMENTS_MIN {
            return Err(NO_BUDGET.into());
        }
        Ok(())
    }

    /// A file is there now.
    pub fn note_opened(&mut self, store: usize, file: u32, opened: FileId) {
        let store = &mut self.stores.list[store];
        if store.files.len() <= file as usize {
            store.files.resize(file as usize + 1, None);
        }
        store.files[file as usize] = Some(opened);
        if let Some(budget) = self.spill.budget() {
            budget.charge(store.shape.segment_bytes);
        }
    }

    /// The disk has as many under way as it takes: the request is the next again.
    pub fn return_journal_request(&mut self, request: DiskRequest) {
        self.stores.returned = Some(request);
    }

    /// A file was made, or not.
    pub fn handle_made(&mut self, store: usize, tag: u64, result: Result<(), ErrorKind>) {
        self.handle_journal_of(store, tag, result, None);
    }

    /// Something that a journal wanted done on disk has ended.
    pub fn handle_journal(
        &mut self,
        tag: u64,
        result: Result<(), ErrorKind>,
        pages: Option<Pages>,
    ) {
        let index = (tag & !JOURNAL_TAG) >> STORE_SHIFT;
        let own = tag & ((1 << STORE_SHIFT) - 1);
        self.handle_journal_of(index as usize, own, result, pages);
    }

    fn handle_journal_of(
        &mut self,
        index: usize,
        tag: u64,
        result: Result<(), ErrorKind>,
        pages: Option<Pages>,
    ) {
        let store = &mut self.stores.list[index];
        let Some(journal) = &mut store.journal else { return };
        let before = journal.progress();
        let mut pages = pages;
        if store.writing_zeros.take_if(|own| *own == tag).is_some() {
            store.zeros = pages.take();
        }
        let progress = journal.handle_completed(tag, result, pages);
        if progress == before {
            return;
        }
        self.note_progress(index, progress);
    }

    /// The log has come so far.
    fn note_progress(&mut self, index: usize, progress: Progress) {
        while let Some(told) = take_until(&mut self.stores.list[index].unwritten, progress.written)
        {
            // What is synced at the same time is said once.
            if told.group > progress.synced {
                self.reach(&told, Reached::Written);
            }
            self.stores.list[index].unsynced.push_back(told);
        }
        while let Some(told) = take_until(&mut self.stores.list[index].unsynced, progress.synced) {
            self.reach(&told, Reached::Synced);
        }
        while let Some(what) = self.stores.list[index].poll_deferred() {
            self.go_on_with(index, what);
        }
    }

    fn go_on_with(&mut self, index: usize, what: Deferred) {
        match what {
            Deferred::RoundEnd(needed) => self.stores.at(index).end_round(needed),
            Deferred::Answer(connection, header, answer) => {
                self.answer(connection, &header, &answer);
            }
            Deferred::Ask(asked) => self.ask_move(*asked, self.now),
            Deferred::Moved(home, done) => self.send_move_done(home, done),
            Deferred::Settle(home, target, name) => self.send_settled(home, target, name),
        }
    }

    /// Messages of a queue have come so far.
    fn reach(&mut self, told: &Told, reached: Reached) {
        let Some(slot) = self.queues.at_mut(told.queue) else { return };
        let (queue, to_confirm) = (told.queue, &mut self.to_confirm);
        slot.queue.handle_journaled(reached, told.end_sequence, |producer| {
            to_confirm.push((queue, producer));
        });
        self.activate(queue);
    }
}

fn take_until(told: &mut VecDeque<Told>, group: u64) -> Option<Told> {
    let is_there = told.front().is_some_and(|told| told.group <= group);
    if is_there { told.pop_front() } else { None }
}
