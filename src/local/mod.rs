//! A group of replica processes on this host with its clients and its judge, for commands that show or measure one.
//!
//! - [`cluster`]: the processes: a configuration of their own, start, signals, what they say of themselves.
//! - [`caller`]: a client that holds a connection to every replica and loses no time when one of them is gone.
//! - [`load`]: threads that call without end and keep what they saw.
//! - [`judge`]: what was seen, before the checks of `mu-history`.

pub(crate) mod caller;
pub(crate) mod cluster;
pub(crate) mod judge;
pub(crate) mod load;
