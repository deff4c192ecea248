//! A replicated matching engine on mu.
//!
//! - [`order`]: what the log carries.

pub mod order;
