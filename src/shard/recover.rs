//! Brings the durable queues of a store back before the broker serves.
//!
//! ```text
//! survey        which files are the journal, in which order
//! first pass    all records  -> what the store adds up to; queues and subscriptions are made
//! second pass   the bodies that somebody still wants -> their queues
//! ```
//!
//! What does not fit into memory goes to disk as ever: between the bodies the shard's disk goes on.

use crate::base::pages::Pages;
use crate::base::slot_map::Key;
use crate::base::time::Wall;
use crate::format::change::{Change, ChangeError, FragmentOf};
use crate::format::journal::{Record, StoreId};
use crate::io::{Clock, Disk, FileId, Net, World};
use crate::limits::{DISK_ALIGN_BYTES, RESTORE_WAITS_MAX};
use crate::protocol::control::Request;
use crate::protocol::frame::Opcode;
use crate::queue::Queue;
use crate::queue::durable::SubscriptionState;
use crate::queue::memory::MemoryFull;
use crate::queue::restore::{RestoredSubscription, Restoring};
use crate::shard::Shard;
use crate::shard::carry::note_body;
use crate::shard::core::{Core, QueueSlot};
use crate::shard::options::{Refused, queue_options, subscription_options};
use crate::shard::store::Store;
use crate::storage::bodies::{Bodies, Body};
use crate::storage::journal::{self, JournalShape};
use crate::storage::replay::{self, Damage, Recovered, SurveyError};
use crate::storage::state::{QueueState, StoreState};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Why a store does not come back. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The system refused to list, open or read.
    #[error("cannot read {name}: {error}")]
    Read {
        /// Which file.
        name: String,
        /// As the system says.
        error: std::io::Error,
    },
    /// The journal is not to be touched.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// A record that this program does not understand, in a group that is whole.
    #[error("journal record in group {group}: {error}")]
    Record {
        /// Sequence of the group.
        group: u64,
        /// What is wrong with it.
        error: ChangeError,
    },
    /// Options that this program does not understand.
    #[error("queue `{queue}`: {reason}")]
    Options {
        /// Which queue.
        queue: String,
        /// What is wrong.
        reason: String,
    },
    /// What the store holds fits neither memory nor disk.
    #[error("{0}: what the journal holds does not fit; raise memory_limit or disk_limit")]
    Memory(MemoryFull),
}

/// What a recovery has brought.
#[derive(Debug, Default)]
pub struct RecoveredStore {
    /// Queues.
    pub queues: usize,
    /// Messages, once for each queue.
    pub messages: u64,
    /// Bytes of segments that were read.
    pub read_bytes: u64,
    /// How long it took.
    pub took_ms: u64,
    /// Messages that stand nowhere, once for each subscription.
    pub lost: u64,
    /// What of the journal was damaged.
    pub damages: Vec<Damage>,
}

/// A queue that is coming back.
struct Returning {
    key: Key,
    subscriptions: Vec<Restoring>,
    next_sequence: u64,
    bodies: Bodies,
    /// Where the large message begins whose fragments come.
    large_group: u64,
}

impl Returning {
    /// The group where a message begins of which something stands in `group`.
    fn begin_of(&mut self, fragment: Option<FragmentOf>, group: u64) -> u64 {
        match fragment {
            Some(part) if part.nth > 0 => return self.large_group,
            Some(_) => self.large_group = group,
            None => {}
        }
        group
    }
}

impl<W: World> Shard<W> {
    /// Brings back the store with this number and id, or begins it; before the first tick, after
    /// [`Shard::open_spill`].
    ///
    /// # Errors
    /// If it cannot come back whole, for a reason that is no damage.
    pub fn open_store(
        &mut self,
        number: u32,
        id: StoreId,
        shape: JournalShape,
    ) -> Result<RecoveredStore, RecoverError> {
        let files = self.open_journal(number)?;
        if files.iter().all(Option::is_none) {
            self.core.stores.add(Store::new(number, id, shape, None, files));
            return Ok(RecoveredStore::default());
        }
        if let Some(budget) = self.core.spill.budget() {
            budget.charge(files.iter().flatten().count() as u64 * shape.segment_bytes);
        }
        self.core.now = self.clock.now();
        let began = self.core.now.mono;
        let mut brought = RecoveredStore::default();
        let mut state = StoreState::default();
        let mut recovered = self.read_journal(number, id, &files, |_, group, record| {
            state.apply(record).map_err(|error| RecoverError::Record { group, error })
        })?;
        state.finish();
        let is_short = |file: &u32| {
            let id = files.get(*file as usize).copied().flatten();
            id.and_then(|id| self.disk.file_len(id).ok())
                .is_none_or(|len| len < shape.segment_bytes)
        };
        recovered.unmade = recovered.spares.extract_if(.., |file| is_short(file)).collect();
        let mut store = Store::new(number, id, shape, Some(&recovered), files.clone());
        let mut returning = BTreeMap::new();
        let index = self.core.stores.iter().count();
        for (&queue, of) in &mut state.queues {
            let back = self.core.return_queue(&mut store, index, queue, of)?;
            returning.insert(queue, back);
        }
        self.core.stores.add(store);
        self.read_journal(number, id, &files, |shard, group, record| {
            let Ok(Change::Published(published)) = Change::decode(record) else { return Ok(()) };
            let Some(back) = returning.get_mut(&published.queue) else { return Ok(()) };
            let group = back.begin_of(published.fragment, group);
            let mut bodies = std::mem::take(&mut back.bodies);
            let returned = bodies.add(&published, |body| {
                let (first, end) = body.range();
                if !state.is_live(published.queue, first, end) {
                    return Ok(());
                }
                shard.return_body(back, group, body)
            });
            back.bodies = bodies;
            returned
        })?;
        for back in returning.into_values() {
            let Some(slot) = self.core.queues.at_mut(back.key) else { continue };
            brought.lost += slot.queue.restore_end(back.next_sequence, &mut self.core.memory);
            brought.queues += 1;
            brought.messages += slot.queue.messages();
            let end_sequence = slot.queue.sequences().1;
            self.core.stores.at(index).note_returned(back.key, end_sequence);
            self.core.arm_queue(back.key);
            self.core.activate(back.key);
        }
        brought.took_ms = self.clock.now().mono.ms_since(began);
        brought.read_bytes = recovered.live.len() as u64 * shape.segment_bytes;
        brought.damages = recovered.damages;
        Ok(brought)
    }

    /// Opens what there is of a journal.
    fn open_journal(&mut self, store: u32) -> Result<Vec<Option<FileId>>, RecoverError> {
        let prefix = format!("journal-{store}-");
        let read = |name: &str| {
            let name = name.to_owned();
            move |error| RecoverError::Read { name, error }
        };
        let mut files = Vec::new();
        for name in self.disk.names(&prefix).map_err(read(&prefix))? {
            let Some((_, number)) = journal::file_numbers(&name) else { continue };
            let opened = self.disk.open(&name).map_err(read(&name))?;
            if files.len() <= number as usize {
                files.resize(number as usize + 1, None);
            }
            files[number as usize] = Some(opened);
        }
        Ok(files)
    }

    /// Goes once over the journal: each record, with its group's sequence, in order.
    fn read_journal(
        &mut self,
        store: u32,
        id: StoreId,
        files: &[Option<FileId>],
        mut each: impl FnMut(&mut Self, u64, &Record<'_>) -> Result<(), RecoverError>,
    ) -> Result<Recovered, RecoverError> {
        let file_of = |number: u32| files[number as usize].expect("only files that are there");
        let there = (0..).zip(files).filter(|(_, file)| file.is_some()).map(|(number, _)| number);
        replay::read_journal(
            self,
            id,
            there,
            |shard, number, bytes, into| {
                shard.read_file(store, number, file_of(number), bytes, into)
            },
            |shard, _, group| {
                group.records().try_for_each(|record| each(shard, group.group, &record))
            },
        )
    }

    fn read_file(
        &mut self,
        store: u32,
        number: u32,
        file: FileId,
        bytes_max: u64,
        mut pages: Pages,
    ) -> Result<Pages, RecoverError> {
        let read = |error| RecoverError::Read { name: journal::file_name(store, number), error };
        let bytes = self.disk.file_len(file).map_err(read)?.min(bytes_max) as usize;
        pages.stretch(bytes.next_multiple_of(DISK_ALIGN_BYTES));
        let mut at = 0;
        while at < pages.len() {
            let part = (pages.len() - at).min(READ_BYTES);
            let into = &mut pages.as_mut_slice()[at..at + part];
            // What the device does not give is as if it were not there: damage, and no end.
            match self.disk.read_now(file, at as u64, into) {
                Ok(0) => {
                    pages.as_mut_slice()[at..].fill(0);
                    break;
                }
                Ok(got) => {
                    let end = got.next_multiple_of(DISK_ALIGN_BYTES);
                    into[got..end].fill(0);
                    at += end;
                }
                Err(error) => {
                    let file = journal::file_name(store, number);
                    tracing::error!(file, at, %error, "the journal cannot be read there");
                    into.fill(0);
                    at += part;
                }
            }
        }
        Ok(pages)
    }

    /// Puts a body back; where memory is full, when the disk has made room.
    fn return_body(
        &mut self,
        back: &mut Returning,
        group: u64,
        body: Body<'_>,
    ) -> Result<(), RecoverError> {
        let mut waits = 0;
        loop {
            let Core { queues, memory, spill, now, .. } = &mut self.core;
            let Some(slot) = queues.at_mut(back.key) else { return Ok(()) };
            let queue = &mut slot.queue;
            let all = &mut back.subscriptions;
            let returned = match body {
                Body::Batch { batch, .. } => queue.restore_batch(batch, all, *now, memory),
                Body::Large { sequence, parts } => {
                    queue.restore_large(sequence, parts, all, *now, memory)
                }
            };
            match returned {
                Ok(()) => {
                    note_body(&mut slot.bodies, group, body.range().0);
                    spill.note(back.key, slot, false);
                    return Ok(());
                }
                Err(full) if waits == RESTORE_WAITS_MAX => return Err(RecoverError::Memory(full)),
                Err(_) => waits += 1,
            }
            self.make_room()?;
        }
    }

    /// Lets the disk go on, and waits for it for a moment.
    fn make_room(&mut self) -> Result<(), RecoverError> {
        let read = |error| RecoverError::Read { name: "the poller".to_owned(), error };
        self.spill();
        self.events.clear();
        self.net.poll(Some(WAIT), &mut self.events).map_err(read)?;
        self.sort_events();
        self.core.now = self.clock.now();
        self.complete_disk();
        Ok(())
    }
}

impl Core {
    /// Makes a queue as its store remembers it, still without messages.
    fn return_queue(
        &mut self,
        store: &mut Store,
        index: usize,
        number: u64,
        of: &mut QueueState,
    ) -> Result<Returning, RecoverError> {
        let definition = of.definition.take().unwrap_or_default();
        let name = definition.name;
        let wrong = |reason: String| RecoverError::Options { queue: name.clone(), reason };
        let options = match Request::decode(Opcode::QueueCreate, &definition.options) {
            Ok(Request::QueueCreate(body)) => body.options,
            Ok(_) => None,
            Err(error) => return Err(wrong(error.to_string())),
        };
        // A limit that was lowered since holds for what is published from now on.
        let options = options.map(|mut options| {
            let max = self.config.message_bytes_max;
            options.message_bytes_max = options.message_bytes_max.min(max);
            *options
        });
        let options = queue_options(options.as_ref(), self.config.message_bytes_max);
        let options = options.map_err(|refused: Refused| wrong(refused.text))?;
        let (bounds, created) = (self.config.bounds, Wall(definition.created_us));
        let seed = self.now.wall.0 ^ number.rotate_left(17);
        let memory = &mut self.memory;
        let queue = Queue::new(&name, options, bounds, number, created, seed, memory);
        let mut queue = queue.map_err(RecoverError::Memory)?;
        queue.restore(store.next_number());
        let mut subscriptions = Vec::with_capacity(of.subscriptions.len());
        for (&number, subscription) in &mut of.subscriptions {
            let definition = subscription.definition.take().unwrap_or_default();
            let own = match Request::decode(Opcode::SubscriptionCreate, &definition.options) {
                Ok(Request::SubscriptionCreate(body)) => body.options,
                Ok(_) => None,
                Err(error) => return Err(wrong(error.to_string())),
            };
            let own = subscription_options(&name, own.as_deref());
            let restored = RestoredSubscription {
                name: &definition.name,
                number,
                options: own.map_err(|refused: Refused| wrong(refused.text))?,
                created: Wall(definition.created_us),
            };
            let told = SubscriptionState {
                start: subscription.start,
                done: subscription.done.iter().collect(),
                failures: subscription.failures.values().copied().collect(),
            };
            let now = self.now;
            let back = queue.restore_subscription(restored, told, now, &mut self.memory);
            subscriptions.push(back.map_err(RecoverError::Memory)?);
        }
        let (producers, moves) = (std::mem::take(&mut of.producers), std::mem::take(&mut of.moves));
        let end_sequence = of.next_sequence.max(1);
        queue.restore_known(producers, moves, end_sequence, &mut self.memory);
        let slot = QueueSlot { store: Some(index), ..QueueSlot::new(queue, store.number()) };
        let key = self.queues.insert(Box::new(slot));
        self.names.insert(Rc::from(name.as_str()), key);
        Ok(Returning {
            key,
            subscriptions,
            next_sequence: of.next_sequence.max(1),
            bodies: Bodies::default(),
            large_group: 0,
        })
    }
}

/// Bytes that are read at a time.
const READ_BYTES: usize = 4 << 20;
/// How long the disk is waited for at a time.
const WAIT: Duration = Duration::from_millis(1);
