//! What a test can make the backend do: other placement orders, and faults on demand.
//!
//! A queue pair with either takes the slow way (see the module `slow`); the fast one knows nothing of this.

/// In which order the bytes of a WRITE become visible at the target. Rights are checked at every chunk in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Placement {
    /// Ascending, visible before the completion: what common NICs do.
    #[default]
    Ascending,
    /// Ascending, but only one chunk of path MTU size per poll: readers see messages torn at the MTU.
    TornAtMtu,
    /// Blocks of 128 bytes in a random order within a chunk.
    Shuffle128,
    /// Blocks of 64 bytes in a random order within a chunk.
    Shuffle64,
    /// Visible only after the completion: at the next READ or atomic of the queue pair, at a revocation, or after
    /// [`LATE_POLLS`] polls. In one process only, since a revocation has to reach into the initiator.
    Late,
}

impl Placement {
    /// Bytes of a block that is placed whole, if the order is random.
    pub(crate) const fn shuffled(self) -> Option<usize> {
        match self {
            Self::Shuffle128 => Some(128),
            Self::Shuffle64 => Some(64),
            _ => None,
        }
    }
}

/// Polls until a late write becomes visible by itself.
pub const LATE_POLLS: u32 = 64;

/// Something that goes wrong with the next send request that is posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It starts only after this many polls.
    Delay {
        /// Polls.
        polls: u32,
    },
    /// It is carried out, but its completion is lost.
    DropCompletion,
    /// It is carried out, but completes with this status, and the queue pair fails.
    ErrorAfterLanding(crate::types::WcStatus),
    /// The queue pair goes to ERR before it.
    ToErr,
    /// This context dies after so many bytes of its first chunk, in the middle of the copy.
    CrashInCopy {
        /// Bytes, rounded down to words.
        bytes: usize,
    },
}

/// A small generator for shuffles (splitmix64): the same seed gives the same order.
#[derive(Clone, Debug)]
pub(crate) struct Shuffle(u64);

impl Shuffle {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0. Near enough to even for tests.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Puts the items in a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
