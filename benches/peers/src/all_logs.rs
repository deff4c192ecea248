//! A contestant whose single commands are over only when it has come to rest.
//!
//! On the clock is then also what the proposer does not wait for: that the far follower's log has the command, and
//! every message that this brings about. A program that serves all three replicas pays this before it takes the next
//! command.

use std::ops::Range;
use std::time::Duration;

use anyhow::Result;
use quanta::Clock;

use crate::contestant::{Applied, Command, Core, REPLICAS};

/// The contestant.
pub struct AllLogs<C> {
    core: C,
    name: &'static str,
    setup: &'static str,
}

impl<C: Core> AllLogs<C> {
    pub fn new(core: C, name: &'static str, setup: &'static str) -> Self {
        Self { core, name, setup }
    }
}

impl<C: Core> Core for AllLogs<C> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn setup(&self) -> String {
        self.setup.into()
    }

    fn wake(&mut self) -> Result<()> {
        self.core.wake()
    }

    fn one(&mut self, command: &Command, clock: &Clock) -> Result<u64> {
        self.core.one(command, clock)?;
        self.core.settle()?;
        Ok(clock.raw())
    }

    /// Nothing is left.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        self.core.pipelined(in_flight, numbers)
    }

    fn rest(&mut self) -> Result<()> {
        self.core.rest()
    }

    fn decided(&self) -> u64 {
        self.core.decided()
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        self.core.applied()
    }
}
