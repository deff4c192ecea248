//! A protocol core without threads or network: it takes messages and hands out messages.
//!
//! raft-rs and OmniPaxos are such cores. How three of them are driven is the same for both, and is in `one_thread.rs`
//! and `two_threads.rs`. Messages are moved, not serialised.

use anyhow::Result;

use crate::contestant::{Applied, Command};

/// Positions of the replicas; the id of a replica is its position plus one.
pub const LEADER: usize = 0;
pub const NEAR: usize = 1;
pub const FAR: usize = 2;

/// One replica.
pub trait Node: Sized + 'static {
    type Message: Send + 'static;

    /// Its name when driven by one thread, by two, and by one until no message is left.
    const NAMES: [&'static str; 3];
    /// The options that matter, for the reader of the figures; begins with a comma unless it is empty.
    const OPTIONS: &'static str;

    fn new(position: usize) -> Result<Self>;

    /// Only on the leader, once: has itself elected. No clock ticks, then or later: nothing is lost here and nobody
    /// fails.
    fn campaign(&mut self) -> Result<()>;

    /// Whether it takes the one at `LEADER` for the leader.
    fn in_office(&self) -> bool;

    /// Only on the leader.
    fn propose(&mut self, command: &Command) -> Result<()>;

    fn receive(&mut self, message: Self::Message) -> Result<()>;

    /// Does what the messages that are due have to wait for, and hands those out.
    fn begin(&mut self, out: &mut Vec<Self::Message>);

    /// Does what `begin` left for later.
    fn end(&mut self, out: &mut Vec<Self::Message>);

    /// Does all there is to do.
    fn work(&mut self, out: &mut Vec<Self::Message>) {
        self.end(out);
        self.begin(out);
        self.end(out);
    }

    /// The position of the replica that a message is for.
    fn destination(message: &Self::Message) -> usize;

    /// How many commands it knows to be decided.
    fn decided(&self) -> u64;

    /// Only on the leader: sees to it that the followers hear of the last decision.
    fn announce(&mut self);

    /// Applies what is decided.
    fn apply(&mut self) -> Result<()>;

    /// Lets go of log that is applied everywhere.
    fn compact(&mut self) -> Result<()>;

    fn applied(&self) -> &Applied;
}

/// The position of the replica with this id.
pub fn position(id: u64) -> usize {
    id as usize - 1
}

/// The id of the replica at this position.
pub fn id(position: usize) -> u64 {
    position as u64 + 1
}
