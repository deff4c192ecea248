//! A replicated matching engine on mu.
//!
//! - [`order`]: what the log carries; [`flow`]: orders as a market makes them.
//! - [`engine`]: what matches; [`exchange`]: the replicated state around it.
//! - [`fix`]: order entry; [`itch`]: market data; [`server`]: a replica with its clients.

pub mod engine;
pub mod exchange;
pub mod fix;
pub mod flow;
pub mod itch;
pub mod order;
pub mod server;
