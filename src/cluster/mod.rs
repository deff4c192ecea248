//! A supervisor of the nodes of a local cluster, whatever they are.
//!
//! A node is a process that is started with `--config FILE --id N [--form] --json --parent PID`, says
//! `{"ready":true,"id":_,"pid":_,"role":_,"host":_,"port":_}` on standard output when it serves and `{"role":_}`
//! whenever its role changes, ends cleanly on SIGTERM, and dies with its parent. Whatever else ends it, it is started
//! again, as one that comes back.

mod node;
mod supervisor;
#[cfg(test)]
mod tests;

pub(crate) use node::{Address, Plan};
pub(crate) use supervisor::{Happened, Laggard, Supervisor};
