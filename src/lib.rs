//! Forebay: a lock-free, thread-per-core, in-memory message broker that spills to disk when a
//! spike outgrows memory. docs/ARCHITECTURE.md is the map; this is the table of contents.
//!
//! | layer | module | what |
//! |---|---|---|
//! | L0 | `base`, [`mod@format`] | chunks, time, checksums; the one byte layout |
//! | L1 | [`protocol`] | frames, commands and error codes, sans-IO |
//! | L1 | `queue`, `storage`, `io` | the pure queue; what goes to disk; the seam to the system |
//! | L2 | `shard` | one thread's event loop: where queue, protocol and io meet |
//! | L3 | `server`, [`client`] | boot and shutdown; session and blocking driver |
//! | L4 | `cli`, `store_tool` | the command line; what works on the files of a stopped broker |
//! | | `sim` | the deterministic world |

#![deny(unsafe_code)]
#![warn(missing_docs)]

#[allow(unsafe_code)]
pub mod base;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
pub mod format;
#[cfg(feature = "server")]
#[allow(unsafe_code)]
pub mod io;
pub mod limits;
#[allow(unsafe_code)]
pub mod protocol;
#[cfg(feature = "server")]
pub mod queue;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod shard;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "server")]
pub mod storage;
#[cfg(all(feature = "server", feature = "cli"))]
pub mod store_tool;

/// The Rust in README.md compiles.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct ReadMe;
