//! The one verbs interface over real NICs and over memory.
//!
//! Words and meaning follow libibverbs: device, context, protection domain, memory region, completion queue, queue
//! pair, work request, completion, access flags. A program is generic over one [`Context`]; the backends are `nic`
//! (any ibverbs device, Soft-RoCE included) and `soft` (threads of one process, or processes of one host), behind
//! features of these names. Without features there are only the traits and the vocabulary, which is all that
//! `protocol` sees.

mod caps;
mod context;
mod error;
#[cfg(feature = "nic")]
pub mod nic;
pub mod rights;

#[cfg(feature = "soft")]
pub mod soft;

pub use caps::{
    Atomicity, BackendKind, Barrier, Capabilities, Placement, QpKinds, RevokeCaps, RevokeMethod,
};
pub use context::{
    CompletionQueue, Context, MemoryRegion, MemoryWindow, QpControl, QueuePair, Wr, next_rkey,
};
pub use error::{Error, PostError};
pub use mu_softrdma::types::*;
pub use mu_softrdma::{Memory, limits::WORD, sync};
