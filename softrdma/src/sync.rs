//! The synchronisation shim: `std` types, or loom's under `--cfg loom`.
//!
//! Everything whose ordering matters goes through here, so that loom and Miri see the very code that ships. House rule:
//! an ordering between a store and a later load is an explicit [`fence`]`(SeqCst)`. Loom models that fence, and treats
//! `SeqCst` accesses as acquire-release, so an ordering that rests on `SeqCst` accesses alone would raise false alarms.

#[cfg(loom)]
pub use explored::{AtomicU64, Weakness, fence, weaken};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
#[cfg(loom)]
pub use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::{Mutex, MutexGuard};

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

/// Loom's 64-bit atomic and fence, which a model can weaken: the same code must then be caught at failing, or the model
/// would not have noticed what the orderings are for.
#[cfg(loom)]
mod explored {
    use std::cell::Cell;
    use std::ops::Deref;

    use super::Ordering;

    /// What the code that runs on this thread of the system is deprived of. Loom runs a model on one such thread.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Weakness {
        /// Nothing.
        None,
        /// Fences do nothing.
        NoFences,
        /// Stores are Relaxed.
        RelaxedStores,
    }

    thread_local! {
        static WEAKNESS: Cell<Weakness> = const { Cell::new(Weakness::None) };
    }

    /// From here on, until it is called again.
    pub fn weaken(how: Weakness) {
        WEAKNESS.set(how);
    }

    /// `std::sync::atomic::fence`.
    pub fn fence(order: Ordering) {
        if WEAKNESS.get() != Weakness::NoFences {
            loom::sync::atomic::fence(order);
        }
    }

    /// `std::sync::atomic::AtomicU64`.
    #[derive(Debug)]
    pub struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        /// A new one.
        #[track_caller]
        pub fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        /// `std::sync::atomic::AtomicU64::store`.
        #[track_caller]
        pub fn store(&self, value: u64, order: Ordering) {
            let relaxed = WEAKNESS.get() == Weakness::RelaxedStores;
            self.0
                .store(value, if relaxed { Ordering::Relaxed } else { order });
        }
    }

    /// Everything else is as it is.
    impl Deref for AtomicU64 {
        type Target = loom::sync::atomic::AtomicU64;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }
}
