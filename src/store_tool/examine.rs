//! What a data directory holds and what is wrong with it, as a start of the broker would find it.

use crate::cli::Failure;
use crate::format::journal::{SegmentHeader, StoreId};
use crate::limits::{DISK_ALIGN_BYTES, SHARDS_MAX};
use crate::server::{disk_limit, stores};
use crate::shard::router::store_of;
use crate::storage::journal;
use crate::store_tool::directory::Directory;
use crate::store_tool::store::StoreView;
use std::collections::BTreeMap;

/// See the module.
pub struct Examined {
    pub stores: Vec<StoreView>,
    /// In the order in which they were found.
    pub problems: Vec<Problem>,
}

/// Something that a start refuses, or that nobody can use.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Name of the file.
    pub file: String,
    pub offset: Option<u64>,
    pub what: String,
    /// The broker does not start with it.
    pub is_refused: bool,
    pub remedy: Remedy,
}

/// What a repair does about a [`Problem`].
#[derive(Clone, Debug, PartialEq)]
pub enum Remedy {
    /// Nobody knows.
    None,
    /// The file is moved away.
    Quarantine,
    /// The file is copied, and then the group that stands there is no more.
    Blank { offset: u64, group: u64 },
    /// The file `stores` is made of what the journals say.
    MakeStores(Vec<StoreId>),
}

impl Problem {
    pub fn new(file: String, what: String) -> Problem {
        Problem { file, offset: None, what, is_refused: false, remedy: Remedy::None }
    }
}

impl Examined {
    /// Reads everything.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn of(directory: &Directory) -> Result<Examined, Failure> {
        let journals = directory.journals()?;
        let mut problems = Vec::new();
        if let Err(error) = disk_limit::read(directory.path()) {
            let problem = Problem::new(disk_limit::FILE_NAME.to_owned(), error.to_string());
            problems.push(Problem { is_refused: true, remedy: Remedy::Quarantine, ..problem });
        }
        let known = match stores::read(directory.path()) {
            Ok(Some(ids)) => return Ok(Examined::with(directory, &journals, &ids, problems)),
            Ok(None) if journals.is_empty() => {
                return Ok(Examined { stores: Vec::new(), problems });
            }
            Ok(None) => {
                format!("it is missing, though there are journals of {} stores", journals.len())
            }
            Err(error) => error.to_string(),
        };
        let problem = Problem::new(stores::FILE_NAME.to_owned(), known);
        let nth = problems.len();
        problems.push(Problem { is_refused: true, ..problem });
        let Some(mut ids) = ids_of(directory, &journals) else {
            return Ok(Examined { stores: Vec::new(), problems });
        };
        let mut examined = Examined::with(directory, &journals, &ids, problems);
        if let Some(count) = examined.count_that_fits(ids.len()) {
            let more = count - ids.len();
            ids.extend(stores::new_ids(more).map_err(|error| directory.cannot("read", &error))?);
            examined.problems[nth].remedy = Remedy::MakeStores(ids);
        }
        Ok(examined)
    }

    fn with(
        directory: &Directory,
        journals: &BTreeMap<u32, Vec<u32>>,
        ids: &[StoreId],
        mut problems: Vec<Problem>,
    ) -> Examined {
        let mut views = Vec::with_capacity(ids.len());
        for (number, &id) in (0..).zip(ids) {
            let files = journals.get(&number).cloned().unwrap_or_default();
            views.push(StoreView::read(directory, number, id, files, &mut problems));
        }
        for (&store, files) in journals.range(ids.len() as u32..) {
            problems.extend(files.iter().map(|&file| {
                let what = format!("it is of store {store}, and there are {} stores", ids.len());
                let problem = Problem::new(journal::file_name(store, file), what);
                Problem { remedy: Remedy::Quarantine, ..problem }
            }));
        }
        Examined { stores: views, problems }
    }

    /// The number of stores with which each queue is where its name belongs: a store that never had
    /// a durable queue has no journal.
    fn count_that_fits(&self, least: usize) -> Option<usize> {
        let is_home = |store: &StoreView, count: usize| {
            let mut names = store.state.queues.values().filter_map(|of| of.definition.as_ref());
            names.all(|of| store_of(&of.name, count as u32) == store.number)
        };
        (least..=SHARDS_MAX as usize)
            .find(|&count| self.stores.iter().all(|store| is_home(store, count)))
    }

    /// Groups of all stores that are lost.
    pub fn damages(&self) -> usize {
        self.stores.iter().map(|store| store.recovered.damages.len()).sum()
    }

    /// Whether nothing at all is wrong.
    pub fn is_sound(&self) -> bool {
        let store = |store: &StoreView| store.losses.is_empty();
        self.problems.is_empty() && self.damages() == 0 && self.stores.iter().all(store)
    }
}

/// The ids of the stores up to the last that has a journal, as the headers of its segments say;
/// `None` if those of a journal say nothing, or not the same.
fn ids_of(directory: &Directory, journals: &BTreeMap<u32, Vec<u32>>) -> Option<Vec<StoreId>> {
    let &last = journals.keys().next_back().filter(|&&last| last < SHARDS_MAX)?;
    let mut ids = stores::new_ids(last as usize + 1).ok()?;
    for (&store, files) in journals {
        let header = |&file: &u32| {
            let head = directory.read(&journal::file_name(store, file), DISK_ALIGN_BYTES as u64);
            SegmentHeader::decode(head.ok()?.0.as_slice()).ok()
        };
        let mut said = files.iter().filter_map(header).map(|header| header.store);
        let id = said.next()?;
        if said.any(|other| other != id) {
            return None;
        }
        ids[store as usize] = id;
    }
    Some(ids)
}
