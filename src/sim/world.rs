//! The deterministic world: one seed, one virtual time, one trace; everything in it shares them.

use crate::base::prng::Prng;
use crate::base::time::Mono;
use crate::io::{Disk, Net, World};
use crate::sim::clock::SimClock;
use crate::sim::device::Device;
use crate::sim::disk::SimDisk;
use crate::sim::net::{Network, SimNet};
use crate::sim::trace::{Cover, Trace};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;

/// Wall clock at the start of a run: 2024-01-01, in microseconds.
const WALL_START_US: i64 = 1_704_067_200_000_000;

/// What a process unwinds with that stops between two operations of its disks.
pub struct Stopped;

/// A world that a run can be made of: it says how its net is made from the simulated one.
pub trait SimulatedWorld: World<Clock = SimClock> {
    /// Wraps the simulated net.
    fn net(net: SimNet) -> Self::Net;
    /// Wraps a simulated disk.
    fn disk(disk: SimDisk) -> Self::Disk;
}

/// A world of a net and a disk that are made of the simulated ones.
pub struct WorldOf<N, D>(PhantomData<(N, D)>);

/// The world without a planted bug.
pub type SimWorld = WorldOf<SimNet, SimDisk>;

impl<N, D> World for WorldOf<N, D>
where
    N: Net + From<SimNet> + 'static,
    D: Disk + From<SimDisk> + 'static,
{
    type Net = N;
    type Disk = D;
    type Clock = SimClock;
}

impl<N, D> SimulatedWorld for WorldOf<N, D>
where
    N: Net + From<SimNet> + 'static,
    D: Disk + From<SimDisk> + 'static,
{
    fn net(net: SimNet) -> N {
        net.into()
    }

    fn disk(disk: SimDisk) -> D {
        disk.into()
    }
}

/// What all parts of one run share.
pub struct Universe {
    prng: RefCell<Prng>,
    trace: RefCell<Trace>,
    mono_ns: Cell<u64>,
    wall_offset_us: Cell<i64>,
    /// When faults have ended: the liveness phase.
    healed: Cell<bool>,
    /// Soonest completion of each disk.
    disks_due_ns: RefCell<Vec<Option<u64>>>,
    /// When a shard that does not run now has something to do.
    others_due_ns: Cell<Option<u64>>,
    /// Operations of disks until the process stops in the middle of it all.
    fuse: Cell<Option<u64>>,
    /// The network; clients and the broker meet in it.
    pub net: RefCell<Network>,
    /// What the disks of all shards stand on.
    pub device: RefCell<Device>,
}

impl Universe {
    /// A world at its start.
    pub fn new(seed: u64, print: bool) -> Rc<Universe> {
        let mut prng = Prng::new(seed);
        let network = Network::draw(&mut prng);
        let device = Device::draw(&mut prng);
        Rc::new(Universe {
            prng: RefCell::new(prng),
            trace: RefCell::new(Trace::new(print)),
            mono_ns: Cell::new(1_000_000_000),
            wall_offset_us: Cell::new(WALL_START_US),
            healed: Cell::new(false),
            disks_due_ns: RefCell::new(Vec::new()),
            others_due_ns: Cell::new(None),
            fuse: Cell::new(None),
            net: RefCell::new(network),
            device: RefCell::new(device),
        })
    }

    /// Monotonic time.
    pub fn mono(&self) -> Mono {
        Mono(self.mono_ns.get())
    }

    /// Lets time pass.
    pub fn advance_ns(&self, ns: u64) {
        self.mono_ns.set(self.mono_ns.get() + ns);
    }

    /// Wall clock, in microseconds since 1970 UTC.
    pub fn wall_us(&self) -> u64 {
        let wall = self.wall_offset_us.get() + (self.mono_ns.get() / 1000) as i64;
        wall.max(0) as u64
    }

    /// Moves the wall clock against the monotonic one.
    pub fn jump_wall_us(&self, by: i64) {
        self.wall_offset_us.set((self.wall_offset_us.get() + by).max(0));
        self.cover(if by < 0 { Cover::WallBack } else { Cover::WallAhead });
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.prng.borrow_mut().chance(per_mille)
    }

    /// As [`Universe::chance`], but never once the world is healed: for faults.
    pub fn fault(&self, per_mille: u64) -> bool {
        !self.healed.get() && self.chance(per_mille)
    }

    /// A number in `low..=high`.
    pub fn range(&self, low: u64, high: u64) -> u64 {
        self.prng.borrow_mut().range(low, high)
    }

    /// A number in `0..bound`.
    pub fn below(&self, bound: u64) -> u64 {
        self.prng.borrow_mut().below(bound)
    }

    /// An index below `len`.
    pub fn index(&self, len: usize) -> usize {
        self.prng.borrow_mut().below(len as u64) as usize
    }

    /// Any 64 bits.
    pub fn bits(&self) -> u64 {
        self.prng.borrow_mut().next_u64()
    }

    /// A number that is mostly small: below `bound`, each power of two equally likely.
    pub fn skewed(&self, bound: u64) -> u64 {
        let bits = u64::from(64 - bound.leading_zeros());
        let shift = self.range(0, bits);
        self.range(0, bound >> shift.min(63)).min(bound.saturating_sub(1))
    }

    /// Takes an event into the trace.
    pub fn event(&self, what: &str, first: u64, second: u64) {
        self.trace.borrow_mut().event(what, first, second);
    }

    /// See [`Trace::note`].
    pub fn note(&self, text: impl FnOnce() -> String) {
        self.trace.borrow().note(text);
    }

    /// Counts a happening.
    pub fn cover(&self, what: Cover) {
        self.trace.borrow_mut().cover(what);
    }

    /// Hash and counters so far.
    pub fn report(&self) -> (u64, Vec<u64>) {
        let trace = self.trace.borrow();
        (trace.hash(), trace.counts().to_vec())
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.healed.set(true);
        self.net.borrow_mut().heal();
    }

    /// Whether faults have ended.
    pub fn healed(&self) -> bool {
        self.healed.get()
    }

    /// A number for a disk.
    pub fn add_disk(&self) -> usize {
        let mut disks = self.disks_due_ns.borrow_mut();
        disks.push(None);
        disks.len() - 1
    }

    /// The process has ended, and with it what its disks had under way.
    pub fn forget_disks(&self) {
        self.disks_due_ns.borrow_mut().clear();
    }

    /// A disk says when it will have something.
    pub fn disk_due(&self, disk: usize, due_ns: Option<u64>) {
        self.disks_due_ns.borrow_mut()[disk] = due_ns;
    }

    /// When a shard that does not run now has something to do: the one that runs waits no longer.
    pub fn others_due_ns(&self) -> Option<u64> {
        self.others_due_ns.get()
    }

    /// See [`Universe::others_due_ns`].
    pub fn others_due(&self, due_ns: Option<u64>) {
        self.others_due_ns.set(due_ns);
    }

    /// The process stops when its disks have been asked so often: [`Stopped`] unwinds it.
    pub fn light_fuse(&self, operations: Option<u64>) {
        self.fuse.set(operations);
    }

    /// A disk is asked for something.
    pub fn burn_fuse(&self) {
        match self.fuse.get() {
            Some(0) => {
                self.fuse.set(None);
                std::panic::resume_unwind(Box::new(Stopped));
            }
            left => self.fuse.set(left.map(|left| left - 1)),
        }
    }

    /// When the disk of a shard will have something.
    pub fn disk_due_of(&self, disk: usize) -> Option<u64> {
        self.disks_due_ns.borrow()[disk]
    }

    /// When the first disk will have something.
    pub fn disk_due_ns(&self) -> Option<u64> {
        self.disks_due_ns.borrow().iter().flatten().min().copied()
    }
}
