//! Microsecond state machine replication over one-sided RDMA writes.
//!
//! What is here so far is the verbs layer that everything above stands on: one interface over real NICs and over
//! memory; and the [`config`] of a cluster.

pub mod config;

pub use mu_verbs as verbs;
