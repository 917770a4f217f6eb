//! The simulated clocks: virtual time that only the world moves, and a wall clock that jumps.

use crate::base::time::{Now, Wall};
use crate::io::Clock;
use crate::sim::world::Universe;
use std::rc::Rc;

/// The clocks of the world.
pub struct SimClock {
    universe: Rc<Universe>,
}

impl SimClock {
    /// Reads `universe`'s time.
    pub fn new(universe: Rc<Universe>) -> Self {
        SimClock { universe }
    }
}

impl Clock for SimClock {
    fn now(&mut self) -> Now {
        Now { mono: self.universe.mono(), wall: Wall(self.universe.wall_us()) }
    }
}
