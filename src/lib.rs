//! Microsecond state machine replication over one-sided RDMA writes.
//!
//! What is here so far is the verbs layer that everything above stands on: one interface over real NICs and over
//! memory; the [`config`] of a cluster; and the [`control`] connections between its members.

pub mod config;
pub mod control;

pub use mu_verbs as verbs;

pub mod picture;
