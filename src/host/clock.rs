//! The clock of a replica: monotonic, in nanoseconds, cheap enough to be read at every poll.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Where the clock begins: times near 0 would make "long ago" a special case.
const START_NS: u64 = 1_000_000_000;

/// A clock of this process. Clones agree.
#[derive(Clone, Debug)]
pub struct Clock {
    inner: quanta::Clock,
    base: u64,
}

impl Clock {
    /// Calibrates at the first call in a process.
    #[must_use]
    pub fn new() -> Self {
        let inner = quanta::Clock::new();
        let base = inner.raw();
        Self { inner, base }
    }

    /// Nanoseconds since a moment before this clock was made.
    #[inline]
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        START_NS + self.inner.delta_as_nanos(self.base, self.inner.raw())
    }

    /// What to add to [`now_ns`](Self::now_ns) for the time since the Unix epoch.
    #[must_use]
    pub fn wall_offset_ns(&self) -> u64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall_ns = wall.map_or(0, |since| since.as_nanos() as u64);
        wall_ns.saturating_sub(self.now_ns())
    }
}

/// The system's monotonic clock, which all processes of a host share.
///
/// # Panics
/// If the system has none, which Linux always has.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a monotonic clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
