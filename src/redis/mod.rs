//! A replicated redis-server from outside: the process of one node, what it must not be told,
//! and clients for measurements.

pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod node;
pub(crate) mod sentinel;
