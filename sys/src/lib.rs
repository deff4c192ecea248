//! Raw ABI of libibverbs: what a safe layer needs to drive an RDMA NIC, and nothing more.
//!
//! - [`bindings`]: types and constants, generated once from rdma-core 44 and committed. Everything in it is
//!   re-exported at the root. C enumerations are newtypes over integers, so that a value that a newer library invents
//!   is a number and not undefined behaviour.
//! - [`loader`]: libibverbs opened at run time as a table of function pointers, [`Lib`].
//! - [`inline`]: the verbs that are inline functions in C, dispatched through the context's ops table.
//! - `fake` (feature `fake`): a provider in Rust that gives a [`Lib`] without any library, so that everything above
//!   can be tested on any machine, and under Miri.
//!
//! Nothing here is safe beyond what C is: lifetimes, threads and rights are the business of the layer above.
//!
//! Features: `fake`; `link` links libibverbs when the program is built; `bindgen` regenerates the bindings (see
//! `build.rs`).

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("mu-sys describes the 64-bit Linux ABI of libibverbs");

#[allow(
    missing_docs,
    reason = "generated from the header; the manual pages document them"
)]
pub mod bindings;
#[cfg(feature = "fake")]
pub mod fake;
pub mod inline;
pub mod loader;

pub use bindings::*;
pub use loader::{Lib, LoadError};
