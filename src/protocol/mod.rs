//! L1: the wire protocol, version 1, sans-IO; broker and client share it. docs/PROTOCOL.md is the
//! specification and golden tests tie it to this code.
//!
//! - `frame`: preamble, frame header, opcodes
//! - `hot`: the fixed layouts of confirm, deliver, credit, ack, pull
//! - `control`: FlatBuffers bodies (open, queue options, stats, errors) as enums
//! - `error`: error codes

pub mod control;
pub mod error;
pub mod frame;
pub mod hot;
#[rustfmt::skip]
#[allow(warnings, clippy::all, clippy::pedantic, missing_docs)]
mod schema_generated;

/// The control-plane tables, generated from `schema.fbs`. The types ending in `T` own their parts.
pub mod wire {
    pub use super::schema_generated::forebay::wire::*;
}

#[cfg(test)]
mod tests;
