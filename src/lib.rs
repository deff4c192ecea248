//! Microsecond state machine replication over one-sided RDMA writes.
//!
//! A [`StateMachine`] becomes a [`Replica`], which other threads propose commands to, or a [`Direct`], which the
//! application's own thread drives; [`host`] is how. [`config`] is what a cluster is, [`control`] the authenticated
//! connections between its processes. `examples/first.rs` is a whole replicated program.

pub mod config;
pub mod control;
pub mod host;
pub mod kv;
pub mod picture;

pub use mu_protocol as protocol;
pub use mu_verbs as verbs;

pub use mu_protocol::ids::ReplicaId;
pub use mu_protocol::machine::{Command, RestoreError, StateMachine};

pub use host::{Direct, Group, Inproc, Options, ProposeError, Replica, Reply, StartError};
