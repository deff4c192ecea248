//! A replicated matching engine on mu.
//!
//! - [`order`]: what the log carries; [`flow`]: orders as a market makes them.
//! - [`engine`]: what matches; [`exchange`]: the replicated state around it.
//! - [`itch`]: market data.

pub mod engine;
pub mod exchange;
pub mod flow;
pub mod itch;
pub mod order;
