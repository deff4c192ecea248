//! The protocol as an explicit-state model: every order of steps, within bounds.
//!
//! Three replicas with all that safety rests on: promises, one holder of the right to write each log, writes in flight
//! that land at any time before a revocation is done, adoption of the best log, the chain of entries, update of
//! followers, deciding by majority, the commit index that entries carry. Modules that a [`config::Config`] switches
//! on: recycling (a ring shorter than the log), growth of the confirmed set, lost connections, cut writes, crash and
//! restart with lost memory up to admission. `docs/protocol.md` is what is modelled; `steps.rs` says what is left out
//! and why.
//!
//! The model is stricter than that page in three places, each of which an exploration showed to matter:
//!
//! - A replica's own engine is a holder of the right to its log like any peer, and is stopped before another one is
//!   granted the right. Without that it can write over an entry that the new leader has counted
//!   ([`bugs::Bug::OwnEngineNotStopped`]).
//! - A leader counts an admitted replica only if it has itself applied that admission, and looks at its promise
//!   whenever it counts. A replica's word alone, with a look at the promise when the entry was written, lets a deposed
//!   leader count what a replica acknowledged to it as a learner.
//! - What others write into a leader's header does not become its commit index: they lead another log.
//!
//! Entries land whole here. How their words become visible is the business of the loom models in `protocol/tests`.
#![forbid(unsafe_code)]

pub mod bugs;
pub mod config;
mod coverage;
mod judge;
pub mod model;
mod parse;
pub mod run;
pub mod sets;
pub mod state;
mod steps;
