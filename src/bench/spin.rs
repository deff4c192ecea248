//! Waiting for another thread or process by looking again and again, with an end.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::bench::peer::Lost;

/// Longest wait for the other end before it counts as lost.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Looks between two that give the processor away: about 10 to 50 microseconds.
const SPINS: u32 = 1024;

/// Whether there is but one processor: then whoever waits must give it away at once. Asked before anything is pinned.
pub(crate) fn is_alone() -> bool {
    static ALONE: LazyLock<bool> =
        LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|n| n.get() == 1));
    *ALONE
}

/// One wait.
pub(crate) struct Spin {
    spins: u32,
    period: u32,
    since: Option<Instant>,
}

impl Spin {
    pub(crate) fn new() -> Self {
        Self {
            spins: 0,
            period: if is_alone() { 1 } else { SPINS },
            since: None,
        }
    }

    /// To be called between two looks; fails when the wait took longer than [`LIMIT`].
    #[inline]
    pub(crate) fn step(&mut self) -> Result<()> {
        self.spins += 1;
        if self.spins < self.period {
            std::hint::spin_loop();
            return Ok(());
        }
        self.give_way()
    }

    #[cold]
    fn give_way(&mut self) -> Result<()> {
        self.spins = 0;
        if self.since.get_or_insert_with(Instant::now).elapsed() > LIMIT {
            bail!(Lost(format!(
                "the other end did not answer within {} s",
                LIMIT.as_secs()
            )));
        }
        std::thread::yield_now();
        Ok(())
    }
}

/// Waits until `done`.
#[inline]
pub(crate) fn until(mut done: impl FnMut() -> bool) -> Result<()> {
    let mut spin = Spin::new();
    while !done() {
        spin.step()?;
    }
    Ok(())
}
