//! libmu: the C ABI of mu. `docs/capi.md` is the page for whoever calls it, `include/mu.h` what cbindgen makes of it.
//!
//! ```text
//! C program -> raw/calls_*.rs   the exported functions: pointers become references, panics become codes
//!              table.rs         a handle is a number: slot and generation, so a stale one is found out
//!              instance.rs      what a handle stands for: a replica in one of two modes
//!              threaded.rs, step.rs
//!              app.rs           the application that the engines see; it calls
//!              raw/callbacks.rs the program's functions, inside of
//!              scope.rs         a callback's reach: its sink or source, and that it may not call back in
//! ```
//!
//! Nothing that a caller can pass is trusted further than C makes unavoidable: a pointer that is not NULL and the
//! length that comes with it. Everything else that is wrong has a result code (`code.rs`). Unsafe code is in `raw/`.

mod app;
pub mod code;
mod instance;
pub mod raw;
mod scope;
mod step;
mod table;
#[cfg(test)]
mod tests;
mod threaded;
