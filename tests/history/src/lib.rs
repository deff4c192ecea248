//! What clients saw, and whether a replicated state machine may show it to them.
//!
//! A [`History`] holds operations of many clients with the times of their invocation and response. Three judges look
//! at it, each knowing nothing of the protocol:
//!
//! - [`check`]: is there any order of the operations that explains every reply and keeps real time? Yes, no with a
//!   witness, or unknown when the budget ran out. It needs the history alone.
//! - [`check_order`]: does the order of the log explain it? It needs the log index of every operation, runs in
//!   O(n log n), and also finds a command that was applied twice or lost.
//! - [`stale_reads`], [`lost_in_log`], [`lost_in_state`]: counts for a report.
//!
//! They stand beside each other because each sees what another cannot: a run may be linearizable though its log was
//! applied wrongly, and a log may be in order though a client read from a leader that had lost its office.
#![forbid(unsafe_code)]

mod history;
mod kv;
mod linear;
mod loss;
mod model;
mod order;
mod placement;
mod search;
mod timeline;

pub use history::{History, Malformed, OpId, Operation, Outcome};
pub use kv::{Kv, KvOp, KvOutput};
pub use linear::{DEFAULT_BUDGET_STEPS, Linearised, Misfit, Verdict, Violation, check};
pub use loss::{lost_in_log, lost_in_state, stale_reads};
pub use model::Model;
pub use order::{OrderViolation, Place, check_order};
