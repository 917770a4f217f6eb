//! The shards' threads: one for each, on a core of its own where there are as many, all started
//! before anybody is told that the broker is ready, and all ended together. A shard that fails ends
//! the broker: its queues are gone, and half a broker would go on as if they had never been.

use crate::config::{Config, DiskBackend};
use crate::format::journal::StoreId;
use crate::io::affinity;
use crate::io::any_disk::AnyDisk;
use crate::io::clock::SystemClock;
use crate::io::memory::MappedSlabs;
use crate::io::mio_net::{MioNet, NetWaker};
use crate::io::thread_disk::WakeUp;
use crate::io::uring_disk::Refusal;
use crate::io::{Clock, RealWorld, World, volume};
use crate::limits::{ADOPTIONS_MAX, MEMORY_GRANT_BYTES, memory_reserve_bytes};
use crate::queue::memory::CommonBudget;
use crate::server::disk_limit::SPILL_FILE_NAMES;
use crate::server::{ServeError, shard_config};
use crate::shard::mailbox::Commands;
use crate::shard::post::{Office, PostShape};
use crate::shard::recover::RecoveredStore;
use crate::shard::{Adoptions, Shard, Status, adoptions};
use crate::storage::journal::JournalShape;
use crate::storage::spill::{DiskBudget, SpillShape};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// For connections that were just closed to take the last bytes, at the very end.
const FINISH_MS: u64 = 500;

/// After so long a client may have given a connection up that nobody accepted.
const PATIENCE_MS: u64 = 1000;

/// What a shard's thread has to say.
enum Word {
    /// It is about to serve, with a disk of this kind.
    Started(DiskKind),
    /// It has ended.
    Ended(Result<(), ServeError>),
}

/// Which backend a shard's disk has, and why it is not the better one.
#[derive(Debug)]
struct DiskKind {
    name: &'static str,
    refusal: Option<Refusal>,
}

/// The threads that serve.
pub struct Threads {
    words: Receiver<(usize, Word)>,
    handles: Vec<JoinHandle<()>>,
}

/// What every shard needs of the others; nothing for a lone one.
#[derive(Clone)]
struct Neighbours {
    office: Arc<Office>,
    adoptions: Adoptions<RealWorld>,
    wakers: Arc<Vec<NetWaker>>,
}

/// Starts a thread for each net. Returns when all of them serve.
///
/// # Errors
/// If one of them cannot.
pub fn start(
    config: &Config,
    data_dir: &Path,
    stores: &[StoreId],
    nets: Vec<MioNet>,
    commands: &[Commands],
) -> Result<Threads, ServeError> {
    let shards = config.shards;
    let wakers = Arc::new(nets.iter().map(MioNet::waker).collect::<Vec<_>>());
    let neighbours = (shards > 1).then(|| {
        let limit = config.memory_limit_bytes;
        let reserve = memory_reserve_bytes(limit, shards);
        let common = CommonBudget::new(limit, reserve, shards, MEMORY_GRANT_BYTES as u64);
        let office = Office::new(shards, PostShape::of(shards), common);
        Neighbours { office, adoptions: adoptions::<RealWorld>(shards, ADOPTIONS_MAX), wakers }
    });
    let disk_limit_bytes = config.disk_limit_bytes.unwrap_or(0);
    let disk_budget = DiskBudget::new(disk_limit_bytes);
    remove_old_spill(data_dir, if disk_limit_bytes == 0 { 0 } else { shards })?;
    // Two words from each, so nobody ever waits to be heard.
    let (sender, words) = sync_channel(2 * nets.len());
    let mut handles = Vec::with_capacity(nets.len());
    // Nobody serves before all are back: what one has may be meant for another.
    let mut all_back = Vec::with_capacity(nets.len());
    for (nth, net) in nets.into_iter().enumerate() {
        let (back, go) = sync_channel(1);
        all_back.push(back);
        let thread = ShardThread {
            nth,
            config: config.clone(),
            data_dir: data_dir.to_owned(),
            net,
            commands: Arc::clone(&commands[nth]),
            neighbours: neighbours.clone(),
            disk_budget: Arc::clone(&disk_budget),
            stores: stores.to_vec(),
            go,
        };
        let mouth = Mouth { nth, sender: sender.clone(), outcome: Err(ServeError::Fault(nth)) };
        let builder = std::thread::Builder::new().name(format!("shard-{nth}"));
        let run = move || {
            let mut mouth = mouth;
            mouth.outcome = thread.serve(&mouth);
            // Said here, or by a panic on its way out.
            drop(mouth);
        };
        handles.push(builder.spawn(run).map_err(ServeError::Start)?);
    }
    let threads = Threads { words, handles };
    let mut kinds = Vec::with_capacity(threads.handles.len());
    for _ in 0..threads.handles.len() {
        match threads.words.recv() {
            Ok((nth, Word::Started(kind))) => kinds.push((nth, kind)),
            Ok((_, Word::Ended(outcome))) => outcome?,
            Err(_) => return Err(ServeError::Fault(0)),
        }
    }
    log_disks(&kinds);
    for back in &all_back {
        // A thread that has ended says so by itself.
        let _ = back.send(());
    }
    Ok(threads)
}

/// Removes spill files but for those of so many shards: of an earlier run with more, or that
/// spilled. What stands in them is worth nothing.
fn remove_old_spill(data_dir: &Path, shards: u32) -> Result<(), ServeError> {
    let (prefix, suffix) = SPILL_FILE_NAMES;
    let of_no_shard = |name: &str| {
        let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        let number = number.and_then(|number| number.parse::<u32>().ok());
        number.is_some_and(|number| number >= shards)
    };
    volume::remove_files(data_dir, of_no_shard).map_err(ServeError::Start)
}

/// One line for each backend that is in use.
fn log_disks(kinds: &[(usize, DiskKind)]) {
    let mut said = Vec::new();
    for (nth, kind) in kinds {
        if said.contains(&kind.name) {
            continue;
        }
        said.push(kind.name);
        let shards = kinds.iter().filter(|(_, other)| other.name == kind.name).count();
        match &kind.refusal {
            None => tracing::info!(backend = kind.name, shards, "disk"),
            Some(why) => {
                let shard = *nth;
                tracing::warn!(backend = kind.name, shards, shard, %why, "disk without io_uring");
            }
        }
    }
}

/// Says what has come back, and what has not.
fn log_store(store: u32, back: &RecoveredStore) {
    let RecoveredStore { queues, messages, read_bytes, took_ms, lost, damages } = back;
    if *read_bytes > 0 {
        tracing::info!(store, queues, messages, read_bytes, took_ms, "recovered");
    }
    for damage in damages {
        tracing::error!(store, %damage, "damage");
    }
    if *lost > 0 {
        tracing::error!(store, lost, "messages are lost: they stand nowhere any more");
    }
}

/// The disk that the configuration asks for; for the thread that will use it.
fn disk(
    backend: DiskBackend,
    data_dir: &Path,
    net: &MioNet,
) -> Result<(AnyDisk, DiskKind), ServeError> {
    let waker = net.waker();
    let wake_up: WakeUp = Arc::new(move || waker.wake());
    let (disk, refusal) = match backend {
        DiskBackend::Threads => {
            (AnyDisk::threads(data_dir, wake_up).map_err(ServeError::Start)?, None)
        }
        DiskBackend::IoUring => (AnyDisk::uring(data_dir)?, None),
        DiskBackend::Auto => AnyDisk::auto(|| AnyDisk::uring(data_dir), data_dir, wake_up)
            .map_err(ServeError::Start)?,
    };
    if let Some(event) = disk.event() {
        net.watch(event).map_err(ServeError::Start)?;
    }
    let kind = DiskKind { name: disk.name(), refusal };
    Ok((disk, kind))
}

impl Threads {
    /// Waits until all have ended, or one has failed.
    ///
    /// # Errors
    /// Of the first that failed; the others may still run.
    pub fn join(self) -> Result<(), ServeError> {
        for _ in 0..self.handles.len() {
            match self.words.recv() {
                Ok((_, Word::Ended(outcome))) => outcome?,
                Ok((nth, Word::Started(_))) => return Err(ServeError::Fault(nth)),
                Err(_) => return Err(ServeError::Fault(0)),
            }
        }
        // They have said that they are done; this waits for their stacks to be.
        self.handles.into_iter().for_each(|handle| drop(handle.join()));
        Ok(())
    }
}

/// Speaks for a thread, and says how it ended even where it panics.
struct Mouth {
    nth: usize,
    sender: SyncSender<(usize, Word)>,
    outcome: Result<(), ServeError>,
}

impl Drop for Mouth {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        // Nobody hears it only where the broker has ended already.
        let _ = self.sender.send((self.nth, Word::Ended(outcome)));
    }
}

/// One shard's thread, before it runs.
struct ShardThread {
    nth: usize,
    config: Config,
    data_dir: PathBuf,
    net: <RealWorld as World>::Net,
    commands: Commands,
    neighbours: Option<Neighbours>,
    disk_budget: Arc<DiskBudget>,
    stores: Vec<StoreId>,
    /// Says when all shards are back.
    go: Receiver<()>,
}

impl ShardThread {
    fn serve(self, mouth: &Mouth) -> Result<(), ServeError> {
        // Its threads inherit what this one is bound to, so they come first.
        let (disk, kind) = disk(self.config.disk_backend, &self.data_dir, &self.net)?;
        if let Some(core) = self.config.pin.get(self.nth) {
            affinity::pin(*core)?;
        }
        let mut shard = Shard::<RealWorld>::new(
            shard_config(&self.config, self.stores.len() as u32, self.nth),
            self.net,
            disk,
            SystemClock::default(),
            Rc::new(MappedSlabs),
            self.commands,
        );
        if let Some(Neighbours { office, adoptions, wakers }) = self.neighbours {
            shard.join(office, adoptions, Box::new(move |to| wakers[to].wake()));
        }
        if self.disk_budget.limit_bytes() > 0 {
            let shards = self.config.shards;
            let shape = SpillShape {
                reserve_bytes: self.config.spill_reserve_bytes / u64::from(shards),
                headroom_bytes: self.config.disk_headroom_bytes,
                ..SpillShape::for_limit(self.disk_budget.limit_bytes(), shards)
            };
            shard.open_spill(shape, self.disk_budget).map_err(ServeError::SpillFile)?;
        }
        let own = (0..).zip(&self.stores);
        let began = shard.world().2.now().mono;
        for (number, &id) in
            own.filter(|(number, _)| number % self.config.shards == self.nth as u32)
        {
            let back = shard.open_store(number, id, JournalShape::default());
            log_store(number, &back.map_err(|error| ServeError::Recover { store: number, error })?);
        }
        let _ = mouth.sender.send((self.nth, Word::Started(kind)));
        // Where the start has failed elsewhere, nobody says it, and this ends as well.
        if self.go.recv().is_err() {
            return Ok(());
        }
        if shard.world().2.now().mono.ms_since(began) > PATIENCE_MS {
            shard.shed_waiting();
        }
        while shard.tick().map_err(ServeError::Ended)? == Status::Running {}
        tracing::info!(shard = self.nth, "drained");
        shard.world().0.finish(FINISH_MS);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::uring_disk::tests::with_call_failing;

    #[test]
    fn a_ring_that_is_refused_ends_the_start_only_where_the_configuration_insists() {
        let place = tempfile::tempdir().unwrap();
        let test = || {
            let net = MioNet::bind(([127, 0, 0, 1], 0).into()).unwrap();
            let error = disk(DiskBackend::IoUring, place.path(), &net).err().unwrap();
            let (disk, kind) = disk(DiskBackend::Auto, place.path(), &net).unwrap();
            assert_eq!((disk.name(), kind.name), ("threads", "threads"));
            (error.exit_code(), error.to_string(), kind.refusal.unwrap().to_string())
        };
        let outcome = with_call_failing(libc::SYS_io_uring_setup, libc::EPERM, test);
        let Some((exit_code, error, why)) = outcome else { return };
        assert_eq!(exit_code, 2);
        assert_eq!(error, format!("cannot start with disk_backend = io_uring: {why}"));
        assert!(why.starts_with("io_uring_setup: Operation not permitted"), "{why}");
        let net = MioNet::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let (_, kind) = disk(DiskBackend::Threads, place.path(), &net).unwrap();
        assert_eq!(kind.name, "threads");
        assert!(kind.refusal.is_none());
    }

    #[test]
    fn a_shard_that_panics_is_named() {
        let (sender, words) = sync_channel(2);
        let mouth = Mouth { nth: 3, sender, outcome: Err(ServeError::Fault(3)) };
        let thread = std::thread::spawn(move || {
            let _mouth = mouth;
            panic!("as a fault of our own would");
        });
        let error = Threads { words, handles: vec![thread] }.join().unwrap_err();
        assert_eq!(error.to_string(), "the broker ended by a fault of its own: shard 3 panicked");
        assert_eq!(error.exit_code(), 1);
    }
}
