//! The conformance suite: one source of cases, written against the traits of `mu-verbs` only, run on every backend.
//!
//! - [`cases`]: what a backend must do, one function a case, each with fresh contexts.
//! - [`harness`]: two connected ends, bounded waits, memory with known contents around every target.
//! - [`run`]: runs the table, prints, and holds the skips against those each backend is expected to have.
//! - [`backends`]: how to open each backend, and its expected skips.
//! - [`broken`]: a wrapper that breaks one rule at a time: the suite's own negative control.

pub mod backends;
pub mod broken;
pub mod cases;
pub mod harness;
pub mod run;
