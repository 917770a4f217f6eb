//! What a seed draws before the first step: the broker's configuration, the queues, who takes
//! part, how calm the world is. Everything is tiny, so that every limit is met soon.

use crate::base::chunk_pool::PoolShape;
use crate::limits::KIB;
use crate::protocol::wire::{ConfirmAt, OnFull, QueueOptionsT};
use crate::queue::policy::QueueBounds;
use crate::shard::ShardConfig;
use crate::shard::post::PostShape;
use crate::sim::rules::{self, Feed, Role, RulesPlan, SubscriptionPlan};
use crate::sim::world::Universe;
use crate::storage::journal::JournalShape;
use crate::storage::spill::SpillShape;

/// Of the memory limit, bytes that chunks may not use.
pub const MEMORY_RESERVE_BYTES: u64 = 512 * KIB as u64;

/// A queue of the run.
pub struct QueuePlan {
    /// Its name.
    pub name: String,
    /// What it is created with.
    pub options: QueueOptionsT,
    /// Somebody purges it now and then.
    pub purged: bool,
    /// Somebody deletes and makes it again.
    pub deleted: bool,
    /// Somebody changes its options.
    pub updated: bool,
    /// Consumers may use auto-ack on it.
    pub auto_acks: bool,
    /// Who makes it.
    pub role: Role,
    /// Its subscriptions.
    pub subscriptions: Vec<SubscriptionPlan>,
    /// What these are made with.
    pub rules: RulesPlan,
}

/// See the module.
pub struct Plan {
    /// No connection breaks but by its own fault, so nobody well-behaved may be harmed.
    pub calm: bool,
    /// The broker's configuration.
    pub config: ShardConfig,
    /// Bytes of the largest batch that the pool has room for.
    pub batch_bytes_max: usize,
    /// The queues: first those that are published to, then those of dead letters.
    pub queues: Vec<QueuePlan>,
    /// How many are published to.
    pub work_queues: usize,
    /// Well-behaved clients that speak frames, and how many of them use the client session.
    pub peers: usize,
    /// See above.
    pub session_peers: usize,
    /// Badly behaved ones.
    pub hostiles: usize,
    /// Bytes of a usual body at most.
    pub body_bytes_max: u64,
    /// The broker's process ends now and then, and begins anew.
    pub restarts: bool,
    /// A queue remembers so few producer ids that some are forgotten.
    pub forgets_producers: bool,
    /// Dead letters are moved back now and then, so that messages come out of order.
    pub redrives: bool,
    /// What may wait between two shards.
    pub post: PostShape,
    /// Connections that may wait between two shards.
    pub adoptions_max: usize,
    /// What a shard borrows of the memory at a time.
    pub grant_bytes: u64,
    /// What goes to disk when memory is full; `None`: nothing.
    pub spill: Option<SpillPlan>,
    /// Of the journals of all stores; `None`: nothing is durable.
    pub journal: Option<JournalShape>,
}

/// Sizes of what goes to disk.
#[derive(Clone, Copy, Debug)]
pub struct SpillPlan {
    /// Of each shard's file.
    pub shape: SpillShape,
    /// Of all of them.
    pub limit_bytes: u64,
    /// Of the device, where that has an end.
    pub capacity_bytes: Option<u64>,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(universe: &Universe) -> Plan {
        let calm = universe.chance(300);
        let spills = universe.chance(800);
        let (pool, batch_bytes_max) = draw_pool(universe, spills);
        let pool_slab_bytes = pool.slab_bytes as u64;
        let slabs = [8, 16, 40][universe.index(3)];
        let shards = [1, 1, 2, 2, 3, 4][universe.index(6)];
        let memory_limit_bytes =
            (pool.slab_bytes * slabs) as u64 + u64::from(shards) * (1024 * KIB) as u64;
        let forgets_producers = universe.chance(150);
        let bounds = draw_bounds(universe, batch_bytes_max, forgets_producers);
        let spill = spills.then(|| SpillPlan::draw(universe, &pool, shards));
        let watermark_high = [5, 20, 40, 70][universe.index(4)];
        let config = ShardConfig {
            watermark_high,
            watermark_low: watermark_high * [20, 50, 90][universe.index(3)] / 100,
            memory_limit_bytes,
            memory_reserve_bytes: MEMORY_RESERVE_BYTES,
            message_bytes_max: memory_limit_bytes / (8 * u64::from(shards)),
            shards,
            stores: shards,
            connections_max: [10, 40, 1000][universe.index(3)].max(if calm { 1000 } else { 0 }),
            token: universe.chance(500).then(|| "open sesame".to_owned()),
            pool,
            bounds,
            read_bytes: [512, 4096, 65536][universe.index(3)],
            hello_timeout_ms: 2000,
            frame_timeout_ms: 5000,
            stall_timeout_ms: 3000,
            busy_poll: universe.chance(100),
            server_version: "simulated".into(),
            ..ShardConfig::new(memory_limit_bytes)
        };
        let post = PostShape {
            ring_parcels: [1, 2, 4][universe.index(3)],
            parcel_bytes: [100, 2000, 16_000][universe.index(3)],
        };
        let grant_bytes = [pool_slab_bytes, 4 * pool_slab_bytes][universe.index(2)];
        let count = universe.range(1, 5) as usize;
        let mut queues: Vec<QueuePlan> =
            (0..count).map(|nth| QueuePlan::draw(universe, nth, &config)).collect();
        let graves = rules::draw_graves(universe, &mut queues);
        queues.extend(graves);
        Plan {
            calm,
            batch_bytes_max,
            queues,
            work_queues: count,
            peers: universe.range(2, 6) as usize,
            session_peers: universe.range(0, 2) as usize,
            hostiles: universe.range(0, 4) as usize,
            body_bytes_max: [20, 200, 2000][universe.index(3)],
            restarts: !calm && universe.chance(200),
            forgets_producers,
            redrives: universe.chance(400),
            post,
            adoptions_max: universe.range(1, 3) as usize,
            grant_bytes,
            spill,
            journal: None,
            config,
        }
    }
}

fn draw_bounds(
    universe: &Universe,
    batch_bytes_max: usize,
    forgets_producers: bool,
) -> QueueBounds {
    let bounds = QueueBounds {
        // Two batches at least, as `limits.rs` has it.
        window_bytes: (batch_bytes_max * [2, 3, 8][universe.index(3)]) as u64,
        in_flight_max: [20, 200, 1_000_000][universe.index(3)],
        ack_span_max: [300, 1_000_000][universe.index(2)],
        retry_waiting_max: [5, 50, 1_000_000][universe.index(3)],
        ..QueueBounds::default()
    };
    match forgets_producers {
        true => QueueBounds { producers_max: 3, ..bounds },
        false => bounds,
    }
}

impl SpillPlan {
    fn draw(universe: &Universe, pool: &PoolShape, shards: u32) -> SpillPlan {
        let largest = pool.class_bytes[pool.class_bytes.len() - 1];
        let slot_bytes = largest * [1, 2, 4][universe.index(3)];
        let extent_slots = [1, 2, 4][universe.index(3)];
        let extent_bytes = slot_bytes as u64 * u64::from(extent_slots);
        let extents = |most: [u64; 4]| extent_bytes * most[universe.index(4)];
        let shape = SpillShape {
            slot_bytes,
            extent_slots,
            reserve_bytes: extents([0, 0, 1, 4]),
            headroom_bytes: extents([0, 0, 1, 2]),
            warm_bytes: 0,
        };
        let limit_bytes = u64::from(shards) * extents([1, 4, 16, 1000]);
        let capacity_bytes = u64::from(shards) * extents([2, 5, 20, 60]);
        let capacity_bytes = universe.chance(500).then_some(capacity_bytes);
        SpillPlan { shape, limit_bytes, capacity_bytes }
    }
}

impl Plan {
    /// Every subscription that may exist.
    pub fn feeds(&self) -> impl Iterator<Item = Feed> + '_ {
        let of = |(queue, plan): (usize, &QueuePlan)| {
            (0..plan.subscriptions.len()).map(move |nth| Feed { queue, nth })
        };
        self.queues.iter().enumerate().flat_map(of)
    }

    /// A subscription of any queue.
    pub fn any_feed(&self, universe: &Universe) -> Feed {
        let queue = universe.index(self.queues.len());
        Feed { queue, nth: universe.index(self.queues[queue].subscriptions.len()) }
    }

    /// Name of a subscription.
    pub fn subscription(&self, feed: Feed) -> &SubscriptionPlan {
        &self.queues[feed.queue].subscriptions[feed.nth]
    }

    /// Whether a message published to `from` may come to `to`, as a dead letter of a dead letter.
    pub fn may_reach(&self, from: usize, to: usize) -> bool {
        let mut at = from;
        for _ in 0..=self.queues.len() {
            if at == to {
                return true;
            }
            at = self.queues[at].rules.graveyard;
        }
        false
    }
}

impl QueuePlan {
    fn draw(universe: &Universe, nth: usize, config: &ShardConfig) -> QueuePlan {
        let lossy = universe.chance(400);
        let on_full = match universe.range(0, 5) {
            0 | 1 => OnFull::Block,
            2 => OnFull::Reject,
            3 if lossy => OnFull::DropOldest,
            4 if lossy => OnFull::DropNewest,
            _ => OnFull::Block,
        };
        let messages_max = [0, 5, 40, 300][universe.index(4)];
        let bytes_max = [0, 0, config.memory_limit_bytes / 16][universe.index(3)];
        let message_bytes_max = match universe.chance(200) {
            true => 300,
            false => 0,
        };
        QueuePlan {
            name: format!("queue-{nth}"),
            options: QueueOptionsT {
                durable: false,
                messages_max,
                bytes_max,
                on_full,
                message_bytes_max,
                confirm: ConfirmAt::Synced,
            },
            purged: lossy && universe.chance(400),
            deleted: lossy && universe.chance(300),
            updated: lossy && universe.chance(300),
            auto_acks: lossy && universe.chance(500),
            role: Role::Work,
            subscriptions: SubscriptionPlan::draw(universe, lossy),
            rules: RulesPlan {
                options: rules::draw_options(universe, None),
                updated: lossy && universe.chance(200),
                graveyard: 0,
            },
        }
    }

    /// Whether nothing but its consumers takes messages out of it, and it is there from beginning
    /// to end.
    pub fn is_stable(&self) -> bool {
        let expires = self.rules.options.expires_after_ms > 0;
        let deleted = self.deleted || self.subscriptions.iter().any(|one| one.deleted);
        !(deleted || expires || self.rules.updated)
    }
}

/// A pool with small slabs and classes; of what can be spilled none is smaller than a page.
fn draw_pool(universe: &Universe, spills: bool) -> (PoolShape, usize) {
    let class_bytes = match universe.index(3) {
        0 | 1 if spills => vec![4 * KIB, 16 * KIB],
        0 => vec![4 * KIB, 16 * KIB],
        1 => vec![KIB, 4 * KIB, 16 * KIB],
        _ => vec![4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB],
    };
    let largest = class_bytes[class_bytes.len() - 1];
    let header_bytes = crate::limits::CHUNK_HEADER_BYTES;
    let slab_bytes = largest.max(64 * KIB);
    let batch_bytes_max = largest - header_bytes - crate::limits::BATCH_PREFIX_BYTES;
    (PoolShape { slab_bytes, class_bytes, header_bytes }, batch_bytes_max)
}
