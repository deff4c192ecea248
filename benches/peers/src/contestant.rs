//! What a contestant is, and what is asked of all of them.
//!
//! A contestant holds a group of three replicas in this process. The harness numbers the commands from 0, hands them
//! over in order, and times. Two things are kept off the clock in every contestant's favour: what a client does not
//! wait for (`settle`), and the housekeeping of a slice (`wake`, `rest`). After each slice the harness asks what was
//! decided and what each replica has applied, and does not go on unless both are exactly what it submitted.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, bail};
use quanta::Clock;

/// Replicas in a group.
pub const REPLICAS: usize = 3;

/// Bytes of a command.
pub const COMMAND_SIZE: usize = 64;

/// Bytes of a word of a command.
const WORD: usize = size_of::<u64>();

/// One command: its number, and words that follow from the number, so that a wrong byte shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command([u8; COMMAND_SIZE]);

impl Command {
    /// Command number `number`.
    #[inline]
    pub fn new(number: u64) -> Self {
        let mut bytes = [0; COMMAND_SIZE];
        for (at, word) in bytes.chunks_exact_mut(WORD).enumerate() {
            word.copy_from_slice(&number.rotate_left(8 * at as u32).to_le_bytes());
        }
        Self(bytes)
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The replicated application: it counts, and holds every command against the one that is due.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    count: u64,
    wrong: Option<u64>,
}

impl Applied {
    /// Applies the next command.
    #[inline]
    pub fn apply(&mut self, command: &[u8]) {
        if command != Command::new(self.count).bytes() {
            self.wrong.get_or_insert(self.count);
        }
        self.count += 1;
    }

    /// How many commands were applied.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Fails unless exactly the commands below `submitted` were applied, in order.
    pub fn check(&self, submitted: u64) -> Result<()> {
        if let Some(number) = self.wrong {
            bail!("what was applied as command {number} is not that command");
        }
        if self.count != submitted {
            bail!("applied {} commands of {submitted}", self.count);
        }
        Ok(())
    }
}

/// A group of three replicas that decides commands.
pub trait Core {
    /// Its name in the output: such as `omnipaxos`.
    fn name(&self) -> &'static str;

    /// How it was set up, for the reader of the figures.
    fn setup(&self) -> String;

    /// Before a slice: what sleeps while others are measured wakes up.
    fn wake(&mut self) -> Result<()> {
        Ok(())
    }

    /// Decides one command and returns when its proposer knows so.
    fn decide(&mut self, command: &Command) -> Result<()>;

    /// The same; returns the reading of `clock` at the moment when the proposer knew. Until then it is timed.
    #[inline]
    fn one(&mut self, command: &Command, clock: &Clock) -> Result<u64> {
        self.decide(command)?;
        Ok(clock.raw())
    }

    /// After each `one`, off the clock: the work that the proposer did not wait for.
    fn settle(&mut self) -> Result<()>;

    /// Decides the commands of these numbers with at most `in_flight` of them proposed and not yet known to be
    /// decided. Returns how long it took until all were decided and the logs of both followers had them.
    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration>;

    /// After a slice, off the clock: every replica applies all that is decided, and old log is let go.
    fn rest(&mut self) -> Result<()>;

    /// How many commands the proposer was told were decided.
    fn decided(&self) -> u64;

    /// What each replica has applied.
    fn applied(&self) -> [Applied; REPLICAS];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(numbers: &[u64]) -> Applied {
        let mut applied = Applied::default();
        for &number in numbers {
            applied.apply(Command::new(number).bytes());
        }
        applied
    }

    #[test]
    fn what_was_submitted_passes() {
        after(&[0, 1, 2]).check(3).unwrap();
    }

    #[test]
    fn a_lost_doubled_or_reordered_command_is_found() {
        for (numbers, submitted) in [
            (&[0, 1][..], 3),
            (&[0, 1, 1], 3),
            (&[0, 1, 2, 2], 3),
            (&[1, 0, 2], 3),
            (&[0, 2], 3),
        ] {
            assert!(after(numbers).check(submitted).is_err(), "{numbers:?}");
        }
    }

    #[test]
    fn a_wrong_byte_is_found_wherever_it_is() {
        for at in 0..COMMAND_SIZE {
            let mut bytes = Command::new(0).bytes().to_vec();
            bytes[at] ^= 1;
            let mut applied = Applied::default();
            applied.apply(&bytes);
            assert!(applied.check(1).is_err(), "byte {at}");
        }
    }
}
