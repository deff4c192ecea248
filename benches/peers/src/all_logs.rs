//! A contestant whose single commands are over only when every replica's log has them and the leader is through.
//!
//! On the clock is then also what the proposer does not wait for: that the far follower's log has the command, and
//! every message that this brings about. A program that serves all three replicas pays this before it takes the next
//! command.

use std::ops::Range;
use std::time::Duration;

use anyhow::Result;

use crate::contestant::{Applied, Command, Core, REPLICAS};

/// The contestant.
pub struct AllLogs<C> {
    core: C,
    name: &'static str,
    setup: &'static str,
    /// The other log has a command after the messages of settling only.
    settles: bool,
}

impl<C: Core> AllLogs<C> {
    /// For a core whose other messages come after the decision.
    pub fn new(core: C, name: &'static str, setup: &'static str) -> Self {
        Self {
            core,
            name,
            setup,
            settles: true,
        }
    }

    /// For a core that writes both logs, and brings its turn to an end, in [`decide`](Core::decide).
    pub fn at_once(core: C, name: &'static str, setup: &'static str) -> Self {
        Self {
            settles: false,
            ..Self::new(core, name, setup)
        }
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

    fn decide(&mut self, command: &Command) -> Result<()> {
        self.core.decide(command)?;
        match self.settles {
            true => self.core.settle(),
            false => Ok(()),
        }
    }

    fn settle(&mut self) -> Result<()> {
        match self.settles {
            true => Ok(()),
            false => self.core.settle(),
        }
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
