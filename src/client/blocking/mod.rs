//! The blocking drivers: the caller's thread reads and writes the socket, so that a round trip
//! costs no hand-over between threads.

pub mod connection;
pub mod consumer;
pub mod delivery;
mod link;
pub mod publisher;
mod socket;
pub(super) mod subscriptions;
