//! FIX 4.4 order entry.
//!
//! - [`message`]: bytes to messages and back. [`time`]: how FIX spells a moment.
//! - [`order`]: messages to orders. [`report`]: reports to messages.

pub mod message;
pub mod order;
pub mod report;
pub mod time;
