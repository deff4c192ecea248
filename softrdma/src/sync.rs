//! The synchronisation shim: `std` types, or loom's under `--cfg loom`.
//!
//! Everything whose ordering matters goes through here, so that loom and Miri see the very code that ships. House rule:
//! an ordering between a store and a later load is an explicit [`fence`]`(SeqCst)`. Loom models that fence, and treats
//! `SeqCst` accesses as acquire-release, so an ordering that rests on `SeqCst` accesses alone would raise false alarms.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// One word of memory that more than one party may access: 64 bits, always accessed whole.
pub type Word = AtomicU64;

/// Tells the processor (or loom's scheduler) that this is a spin loop.
#[inline]
pub fn spin_hint() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}

/// Gives the core away: the other side may need it to make progress.
pub fn yield_now() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}
