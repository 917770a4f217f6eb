//! The byte budget of a shard and the chunks charged to it: everything that grows is counted here,
//! and what does not fit is refused by the name of the limit.
//!
//! The limit is the broker's. Each shard has a reserve that is always its own; the rest lies in a
//! [`CommonBudget`] from which the shards borrow in grants, and to which each gives back every tick
//! what it does not need, so that one busy shard can use nearly all. A lone shard has borrowed
//! everything for good.
//!
//! A reserve stays free of messages, so that acks, answers and drains go on when memory is full:
//! chunks may use the limit less the reserve, connections and handles the limit less half of it,
//! and only what deliveries need may use it all.

use crate::base::chunk_pool::{ChunkPool, ChunkWriter};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, RECORD_CONTENT_BYTES_MAX, RECORD_HEADER_BYTES,
};
use crate::protocol::error::ErrorCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What bytes are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Slabs of chunks: messages.
    Chunks,
    /// Connections and what they hold back.
    Connections,
    /// Queue objects with their names.
    Queues,
    /// Producer and consumer handles, and what is remembered of producer ids.
    Handles,
    /// Leases and returned runs.
    InFlight,
    /// What waits between shards, as much as ever may.
    Mailboxes,
    /// Messages on their way from one queue to another.
    Moves,
}

const ACCOUNTS: usize = 7;

impl Account {
    /// All of them, with the names that figures have.
    pub const ALL: [(Account, &'static str); ACCOUNTS] = [
        (Account::Chunks, "chunks"),
        (Account::Connections, "connections"),
        (Account::Queues, "queues"),
        (Account::Handles, "handles"),
        (Account::InFlight, "in_flight"),
        (Account::Mailboxes, "mailboxes"),
        (Account::Moves, "moves"),
    ];
}

/// There is no room in the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory limit of {limit_bytes} bytes leaves no room")]
pub struct MemoryFull {
    /// The limit of the shard.
    pub limit_bytes: u64,
}

/// The memory that no shard has borrowed.
#[derive(Debug)]
pub struct CommonBudget {
    left_bytes: AtomicU64,
    /// What should be left, for a shard that found too little; 0: none did.
    wanted_bytes: AtomicU64,
    /// What is borrowed at a time.
    grant_bytes: u64,
}

impl CommonBudget {
    /// What the limit leaves beside the reserves of all shards.
    ///
    /// # Panics
    /// If it leaves nothing; the configuration checks it first.
    pub fn new(limit_bytes: u64, reserve_bytes: u64, shards: u32, grant_bytes: u64) -> Arc<Self> {
        let left_bytes = limit_bytes.checked_sub(reserve_bytes * u64::from(shards));
        let left_bytes = left_bytes.filter(|left| *left > 0).expect("room beside the reserves");
        let (left_bytes, wanted_bytes) = (AtomicU64::new(left_bytes), AtomicU64::new(0));
        Arc::new(CommonBudget { left_bytes, wanted_bytes, grant_bytes })
    }

    /// Bytes that nobody has borrowed.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }

    /// What a shard wants to be left, while that is not so; else 0.
    fn wanted_bytes(&self) -> u64 {
        let wanted = self.wanted_bytes.load(Ordering::Relaxed);
        if self.left_bytes() < wanted { wanted } else { 0 }
    }

    /// Lends `missing` bytes, rounded up to whole grants where there is as much; 0 if there is
    /// not even what is missing.
    fn lend(&self, missing: u64) -> u64 {
        let granted = |left: u64| match left >= missing {
            true => left.min(missing.next_multiple_of(self.grant_bytes)),
            false => 0,
        };
        // The counter is all there is to it: no other memory is read because of its value.
        let relaxed = Ordering::Relaxed;
        let before =
            self.left_bytes.fetch_update(relaxed, relaxed, |left| Some(left - granted(left)));
        before.map_or(0, granted)
    }

    fn take_back(&self, bytes: u64) {
        self.left_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Bytes used of a limit, by account.
#[derive(Clone, Debug)]
pub struct Budget {
    limit_bytes: u64,
    reserve_bytes: u64,
    /// What the shard may use beside its reserve.
    granted_bytes: u64,
    common: Option<Arc<CommonBudget>>,
    /// It is this shard that wants more to be left.
    wants: bool,
    used_bytes: [u64; ACCOUNTS],
}

impl Budget {
    /// An empty budget of a lone shard.
    ///
    /// # Panics
    /// If the reserve is not below the limit; the configuration checks it first.
    pub fn new(limit_bytes: u64, reserve_bytes: u64) -> Self {
        assert!(reserve_bytes < limit_bytes);
        let granted_bytes = limit_bytes - reserve_bytes;
        let used_bytes = [0; ACCOUNTS];
        let (common, wants) = (None, false);
        Budget { limit_bytes, reserve_bytes, granted_bytes, common, wants, used_bytes }
    }

    /// An empty budget of one of several shards.
    pub fn shared(limit_bytes: u64, reserve_bytes: u64, common: Arc<CommonBudget>) -> Self {
        let (granted_bytes, used_bytes) = (0, [0; ACCOUNTS]);
        let (common, wants) = (Some(common), false);
        Budget { limit_bytes, reserve_bytes, granted_bytes, common, wants, used_bytes }
    }

    /// The limit of the broker.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes that the shard may use without borrowing more, its reserve included.
    pub fn held_bytes(&self) -> u64 {
        self.granted_bytes + self.reserve_bytes
    }

    /// Bytes used in all.
    #[inline]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.iter().sum()
    }

    /// Bytes used by one account.
    pub fn used_by(&self, account: Account) -> u64 {
        self.used_bytes[account as usize]
    }

    /// Bytes that chunks may still take, borrowed ones included.
    pub fn free_for_chunks(&self) -> u64 {
        let common_bytes = self.common.as_ref().map_or(0, |common| common.left_bytes());
        (self.granted_bytes + common_bytes).saturating_sub(self.used_bytes())
    }

    /// Bytes that leases may still take, borrowed ones included.
    pub fn free_for_leases(&self) -> u64 {
        let common_bytes = self.common.as_ref().map_or(0, |common| common.left_bytes());
        (self.held_bytes() + common_bytes).saturating_sub(self.used_bytes())
    }

    /// Whether chunks have used nearly all that they may: little memory is left for what waits.
    pub fn is_short(&self) -> bool {
        self.free_for_chunks() < self.limit_bytes / 8
    }

    /// Charges `bytes`, or changes nothing.
    ///
    /// # Errors
    /// If they do not fit.
    #[inline]
    pub fn try_charge(&mut self, account: Account, bytes: usize) -> Result<(), MemoryFull> {
        let room = self.granted_bytes
            + match account {
                Account::Chunks => 0,
                Account::InFlight => self.reserve_bytes,
                _ => self.reserve_bytes - self.reserve_bytes / 2,
            };
        let wanted = self.used_bytes() + bytes as u64;
        if wanted > room && !self.borrow(wanted - room) {
            return Err(MemoryFull { limit_bytes: self.limit_bytes });
        }
        self.used_bytes[account as usize] += bytes as u64;
        Ok(())
    }

    #[cold]
    fn borrow(&mut self, missing: u64) -> bool {
        let lent = self.common.as_ref().map_or(0, |common| common.lend(missing));
        self.granted_bytes += lent;
        if lent == 0 {
            self.want(missing);
        }
        lent > 0
    }

    /// Asks the other shards to leave so many bytes, or a grant if that is more. It holds until
    /// that is left.
    pub fn want(&mut self, bytes: u64) {
        let Some(common) = &self.common else { return };
        common.wanted_bytes.fetch_max(bytes.max(common.grant_bytes), Ordering::Relaxed);
        self.wants = true;
    }

    /// What another shard wants to be left, while that is not so; else 0.
    pub fn wanted_by_others(&self) -> u64 {
        match &self.common {
            Some(common) if !self.wants => common.wanted_bytes(),
            _ => 0,
        }
    }

    /// Once per tick: gives back what was borrowed and is not needed, but for one grant that is
    /// kept for what comes next, unless another shard may be in want of it; and borrows what was
    /// used beyond the grants, as far as it can.
    pub fn settle(&mut self) {
        let Some(common) = &self.common else { return };
        let (used, grant_bytes) = (self.used_bytes(), common.grant_bytes);
        let spare = self.granted_bytes.saturating_sub(used);
        let wanted = common.wanted_bytes();
        if wanted == 0 {
            common.wanted_bytes.store(0, Ordering::Relaxed);
            self.wants = false;
        }
        let want = wanted > 0 || common.left_bytes() < grant_bytes;
        let kept = if want { 0 } else { grant_bytes };
        if spare >= kept + grant_bytes || (want && spare > 0) {
            common.take_back(spare - kept);
            self.granted_bytes -= spare - kept;
        }
        if used > self.held_bytes() {
            self.borrow(used - self.held_bytes());
        }
    }

    /// Charges `bytes` whether they fit or not: for what is bounded by another limit and must not
    /// fail halfway.
    #[inline]
    pub fn charge(&mut self, account: Account, bytes: usize) {
        self.used_bytes[account as usize] += bytes as u64;
    }

    /// Gives charged bytes back.
    ///
    /// # Panics
    /// If more is given back than was charged.
    #[inline]
    pub fn release(&mut self, account: Account, bytes: usize) {
        let used = &mut self.used_bytes[account as usize];
        *used = used.checked_sub(bytes as u64).expect("a release of what was never charged");
    }
}

/// What becomes of messages that memory has no room for. The shard says it every tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Nothing is spilled to disk.
    #[default]
    Off,
    /// They are written to disk as fast as it goes.
    Working,
    /// The disk has no room for them: why, and the limit in bytes.
    Full(ErrorCode, u64),
    /// The disk cannot be written.
    Failing,
}

impl Overflow {
    /// Why a publish is refused when memory is full.
    pub fn code(self) -> ErrorCode {
        match self {
            Overflow::Off | Overflow::Working => ErrorCode::MemoryLimit,
            Overflow::Full(code, _) => code,
            Overflow::Failing => ErrorCode::DiskError,
        }
    }
}

/// Chunks and the budget they are charged to.
pub struct Memory {
    /// The budget of the shard.
    pub budget: Budget,
    /// What becomes of messages that it has no room for.
    pub overflow: Overflow,
    /// While chunks leave memory for disk: what one queue may take for the chunk that it fills, if
    /// it has not more in memory already.
    tail_bytes_max: Option<u64>,
    pool: ChunkPool,
    /// A largest chunk is set aside, so that one can always be read from disk.
    keeps_chunk: bool,
    kept_chunk: Option<ChunkWriter>,
}

impl Memory {
    /// An empty memory.
    pub fn new(budget: Budget, pool: ChunkPool) -> Self {
        let (overflow, tail_bytes_max) = (Overflow::Off, None);
        Memory { budget, overflow, tail_bytes_max, pool, keeps_chunk: false, kept_chunk: None }
    }

    /// Number of size classes.
    pub fn class_count(&self) -> usize {
        self.pool.shape().class_bytes.len()
    }

    /// Says that memory is full enough for chunks to leave it, and what one queue may take then for
    /// the chunk that it fills; `None`: it is not.
    ///
    /// Many queues with a large chunk each, nearly empty, would fill memory with nothing. So a
    /// queue that has little in memory gets chunks of the share that it would have if all were
    /// alike, and one that fills them faster than they are written has more in memory, and gets
    /// larger ones.
    pub fn press(&mut self, tail_bytes_max: Option<u64>) {
        self.tail_bytes_max = tail_bytes_max;
    }

    /// The largest class for the next chunk of a queue that has so many bytes in memory.
    pub fn tail_class_max(&self, held_bytes: u64) -> usize {
        let Some(tail_bytes_max) = self.tail_bytes_max else { return usize::MAX };
        let bytes_max = tail_bytes_max.max(held_bytes);
        let classes = &self.pool.shape().class_bytes;
        classes.partition_point(|&bytes| bytes as u64 <= bytes_max).saturating_sub(1)
    }

    /// Sets a largest chunk aside from now on, for [`Memory::take_refill_chunk`].
    pub fn keep_refill_chunk(&mut self) {
        self.keeps_chunk = true;
        self.set_aside();
    }

    /// Takes a chunk that an image of so many bytes, header included, is read into: any, or the one
    /// that was set aside. `None` while that is out too.
    pub fn take_refill_chunk(&mut self, image_bytes: usize) -> Option<ChunkWriter> {
        let content_bytes = image_bytes.saturating_sub(self.pool.shape().header_bytes);
        let taken = self.take_chunk(content_bytes, 0).ok();
        taken.or_else(|| self.kept_chunk.take_if(|kept| kept.capacity_bytes() >= image_bytes))
    }

    /// The chunk set aside comes before all others: nobody else takes it when it is free again.
    #[cold]
    fn set_aside(&mut self) {
        let largest = self.class_count() - 1;
        self.kept_chunk = self.pool.take(largest);
        if self.kept_chunk.is_none() && self.grow(largest) {
            self.kept_chunk = self.pool.take(largest);
        }
    }

    /// Takes a chunk with room for `content_bytes`, of the class `preferred` or, where that is too
    /// small or none is to be had, of another.
    ///
    /// # Errors
    /// When the budget or the system has no memory for one.
    pub fn take_chunk(
        &mut self,
        content_bytes: usize,
        preferred: usize,
    ) -> Result<ChunkWriter, MemoryFull> {
        if self.keeps_chunk && self.kept_chunk.is_none() {
            self.set_aside();
        }
        let shape = self.pool.shape();
        let needed = content_bytes + shape.header_bytes;
        let smallest = shape.class_bytes.iter().position(|&bytes| bytes >= needed);
        let full = MemoryFull { limit_bytes: self.budget.limit_bytes };
        let smallest = smallest.ok_or(full)?;
        let preferred = preferred.clamp(smallest, self.class_count() - 1);
        if let Some(chunk) = self.pool.take(preferred) {
            return Ok(chunk);
        }
        if self.grow(preferred) {
            return self.pool.take(preferred).ok_or(full);
        }
        (smallest..self.class_count()).find_map(|class| self.pool.take(class)).ok_or(full)
    }

    /// Properties and body that one record may have at most, for a batch stands in one chunk.
    pub fn record_content_bytes_max(&self) -> usize {
        let shape = self.pool.shape();
        let chunk_bytes = shape.class_bytes.last().map_or(0, |bytes| bytes - shape.header_bytes);
        let head_bytes = BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES + RECORD_HEADER_BYTES;
        chunk_bytes.saturating_sub(head_bytes).min(RECORD_CONTENT_BYTES_MAX)
    }

    /// Charges what is not a chunk, or changes nothing. Free slabs give way to it.
    ///
    /// # Errors
    /// If it does not fit beside the chunks that are used.
    pub fn try_charge(&mut self, account: Account, bytes: usize) -> Result<(), MemoryFull> {
        self.budget.try_charge(account, bytes).or_else(|_| {
            self.shrink(0);
            self.budget.try_charge(account, bytes)
        })
    }

    /// Whether [`Memory::take_chunk`] for so many bytes would find one, the system willing.
    pub fn could_take(&self, content_bytes: usize) -> bool {
        let shape = self.pool.shape();
        self.budget.free_for_chunks() >= shape.slab_bytes as u64
            || self.pool.has_free(content_bytes + shape.header_bytes)
    }

    /// Bytes of chunks that are charged and free.
    pub fn free_chunk_bytes(&self) -> usize {
        self.pool.free_bytes()
    }

    /// Bytes of the chunk that is set aside for a refill, while nobody has it.
    pub fn kept_chunk_bytes(&self) -> usize {
        self.kept_chunk.as_ref().map_or(0, ChunkWriter::capacity_bytes)
    }

    /// Chunks that somebody writes or reads.
    pub fn used_chunks(&self) -> usize {
        self.pool.used_chunks()
    }

    /// Gives free slabs back to the system, all but `spare`.
    pub fn shrink(&mut self, spare: usize) {
        let given = self.pool.shrink(spare);
        self.budget.release(Account::Chunks, given);
    }

    fn grow(&mut self, class: usize) -> bool {
        let slab_bytes = self.pool.shape().slab_bytes;
        if self.budget.try_charge(Account::Chunks, slab_bytes).is_err() {
            // A free slab of another class may serve.
            return self.pool.cut_anew(class);
        }
        if self.pool.grow(class) {
            return true;
        }
        self.budget.release(Account::Chunks, slab_bytes);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::chunk_pool::{HeapSlabs, PoolShape};
    use std::rc::Rc;

    fn memory(limit_bytes: u64, reserve_bytes: u64) -> Memory {
        let shape =
            PoolShape { slab_bytes: 16384, class_bytes: vec![4096, 16384], header_bytes: 64 };
        let pool = ChunkPool::new(shape, Rc::new(HeapSlabs));
        Memory::new(Budget::new(limit_bytes, reserve_bytes), pool)
    }

    #[test]
    fn chunks_leave_the_reserve_alone() {
        let mut memory = memory(40_000, 4_000);
        let first = memory.take_chunk(10_000, 0).unwrap();
        assert_eq!(first.class(), 1);
        let _second = memory.take_chunk(10_000, 0).unwrap();
        assert!(memory.take_chunk(100, 0).is_err());
        assert_eq!(memory.budget.used_by(Account::Chunks), 32_768);
        memory.budget.try_charge(Account::Handles, 5_000).unwrap();
        assert!(memory.budget.try_charge(Account::Handles, 1_000).is_err());
        memory.budget.try_charge(Account::InFlight, 2_000).unwrap();
    }

    #[test]
    fn shards_borrow_from_one_another_and_keep_their_reserves() {
        let common = CommonBudget::new(100_000, 10_000, 2, 16_000);
        let mut first = Budget::shared(100_000, 10_000, Arc::clone(&common));
        let mut second = first.clone();
        assert_eq!(first.free_for_chunks(), 80_000);
        first.try_charge(Account::Chunks, 70_000).unwrap();
        assert_eq!(common.left_bytes(), 0);
        assert!(second.try_charge(Account::Chunks, 1).is_err());
        // The others know that it is in want, until a grant is left.
        assert_eq!((first.wanted_by_others(), second.wanted_by_others()), (16_000, 0));
        // The reserve is there whatever the other has taken.
        second.try_charge(Account::Handles, 5_000).unwrap();
        assert!(second.try_charge(Account::Handles, 1).is_err());
        second.try_charge(Account::InFlight, 5_000).unwrap();
        // What is freed goes back; where nothing is left all of it: who is idle starves nobody.
        first.release(Account::Chunks, 70_000);
        first.settle();
        assert_eq!((common.left_bytes(), first.wanted_by_others()), (80_000, 0));
        // Where there is enough, one grant is kept.
        first.try_charge(Account::Chunks, 30_000).unwrap();
        first.release(Account::Chunks, 30_000);
        first.settle();
        assert_eq!(common.left_bytes(), 64_000);
        second.try_charge(Account::Chunks, 50_000).unwrap();
        assert_eq!(common.left_bytes(), 0);
        assert_eq!(first.held_bytes() + second.held_bytes(), 100_000);
        assert!(first.try_charge(Account::Chunks, 16_001).is_err());
    }

    #[test]
    fn what_must_be_charged_is_borrowed_afterwards() {
        let common = CommonBudget::new(100_000, 10_000, 2, 16_000);
        let mut budget = Budget::shared(100_000, 10_000, Arc::clone(&common));
        budget.charge(Account::Connections, 30_000);
        budget.settle();
        assert!(budget.held_bytes() >= 30_000);
        assert_eq!(budget.held_bytes() + common.left_bytes() + 10_000, 100_000);
    }

    #[test]
    fn a_free_slab_serves_another_class() {
        let mut memory = memory(24_000, 4_000);
        drop(memory.take_chunk(10_000, 1).unwrap());
        assert_eq!(memory.take_chunk(100, 0).unwrap().class(), 0);
        assert_eq!(memory.budget.used_by(Account::Chunks), 16_384);
    }

    #[test]
    fn free_slabs_give_way_to_what_is_no_chunk() {
        let mut memory = memory(40_000, 4_000);
        let used = memory.take_chunk(10_000, 1).unwrap();
        drop((memory.take_chunk(10_000, 1).unwrap(), used.class()));
        assert!(memory.budget.try_charge(Account::Queues, 10_000).is_err());
        memory.try_charge(Account::Queues, 10_000).unwrap();
        assert_eq!(memory.budget.used_by(Account::Chunks), 16_384);
        assert!(memory.try_charge(Account::Queues, 20_000).is_err());
        assert_eq!(memory.budget.used_by(Account::Queues), 10_000);
    }

    #[test]
    fn a_content_over_the_largest_class_is_refused() {
        assert!(memory(1 << 20, 0).take_chunk(16_384 - 63, 0).is_err());
    }
}
