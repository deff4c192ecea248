//! A replicated redis-server from outside: the process of one node, and what it must not be told.

pub(crate) mod check;
pub(crate) mod node;
