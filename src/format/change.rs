//! Stub.

/// See later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MoveName {
    /// Store.
    pub store: u32,
    /// Queue.
    pub queue: u64,
    /// Subscription.
    pub subscription: u64,
    /// Sequence.
    pub sequence: u64,
}

/// See later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentOf {
    /// Message.
    pub sequence: u64,
    /// Which.
    pub nth: u32,
    /// Of how many.
    pub count: u32,
}

/// See later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// First.
    pub first: u64,
    /// Count.
    pub count: u32,
    /// Attempts.
    pub attempts: u16,
    /// Failures.
    pub failures: u16,
    /// First failed.
    pub first_failed_us: u64,
    /// Last failed.
    pub last_failed_us: u64,
    /// Due.
    pub due_us: u64,
    /// Rejected.
    pub rejected: bool,
}
