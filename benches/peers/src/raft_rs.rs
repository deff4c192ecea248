//! raft-rs on one thread, quorum first.
//!
//! Three `RawNode`s whose messages are moved, not serialised. On the clock is what the answer to one command waits
//! for: the leader proposes, persists and advances; the near follower takes the entries into its log and acknowledges;
//! the leader's next `Ready` hands the command over as committed. The rest of the two passes, and the far follower,
//! come after. In a window everything is on the clock, but for the heartbeat at the end that tells the followers the
//! last commit index.

mod log;

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use raft::prelude::{Config, Entry, Message, RawNode, Ready};
use raft::{NO_LIMIT, StateRole};
use slog::{Discard, Logger, o};

use crate::core::{Applied, Command, Core, REPLICAS};
use log::Log;

/// Positions in `replicas`; the id of a replica is one more.
const LEADER: usize = 0;
const NEAR: usize = 1;

struct Replica {
    node: RawNode<Log>,
    log: Log,
    applied: Applied,
    /// Commands that the node handed over as committed.
    committed: u64,
    /// A pass that is begun: entries are in the log and messages are out, but the node was not told.
    begun: Option<Ready>,
}

impl Replica {
    fn new(id: u64) -> Result<Self> {
        let config = Config {
            id,
            max_size_per_msg: NO_LIMIT,
            batch_append: true,
            skip_bcast_commit: true,
            ..Config::default()
        };
        let log = Log::new((1..=REPLICAS as u64).collect());
        Ok(Self {
            node: RawNode::new(&config, log.clone(), &Logger::root(Discard, o!()))?,
            log,
            applied: Applied::default(),
            committed: 0,
            begun: None,
        })
    }

    /// Begins a pass over what the node has to do.
    fn begin(&mut self, out: &mut Vec<Message>) {
        let mut ready = self.node.ready();
        out.append(&mut ready.take_messages());
        self.log.append(ready.take_entries());
        if let Some(state) = ready.hs() {
            self.log.set_hard_state(state.clone());
        }
        out.append(&mut ready.take_persisted_messages());
        self.apply(&ready.take_committed_entries());
        self.begun = Some(ready);
    }

    /// Ends the pass that was begun, if one was.
    fn end(&mut self, out: &mut Vec<Message>) {
        let Some(ready) = self.begun.take() else {
            return;
        };
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.log.set_commit(commit);
        }
        out.append(&mut light.take_messages());
        self.apply(&light.take_committed_entries());
        self.node.advance_apply();
    }

    fn apply(&mut self, entries: &[Entry]) {
        // A new leader's first entry is empty and no command.
        for entry in entries.iter().filter(|entry| !entry.data.is_empty()) {
            self.committed += 1;
            self.applied.apply(&entry.data);
        }
    }
}

/// The contestant.
pub struct RaftRs {
    replicas: [Replica; REPLICAS],
    /// Messages on their way; kept, so that nothing is allocated for them.
    messages: Vec<Message>,
    /// Messages to the far follower, put off until after the clock.
    late: Vec<Message>,
}

impl RaftRs {
    /// A group that has elected its leader. No clock ticks afterwards: nothing is lost here and nobody fails.
    pub fn new() -> Result<Self> {
        let mut raft = Self {
            replicas: [Replica::new(1)?, Replica::new(2)?, Replica::new(3)?],
            messages: Vec::new(),
            late: Vec::new(),
        };
        raft.replicas[LEADER].node.campaign()?;
        raft.deliver_all()?;
        let role = raft.replicas[LEADER].node.raft.state;
        ensure!(role == StateRole::Leader, "the candidate became {role:?}");
        Ok(raft)
    }

    /// Carries messages until there are none and no node has anything left to do.
    fn deliver_all(&mut self) -> Result<()> {
        loop {
            for replica in &mut self.replicas {
                replica.end(&mut self.late);
                while replica.node.has_ready() {
                    replica.begin(&mut self.late);
                    replica.end(&mut self.late);
                }
            }
            if self.late.is_empty() {
                return Ok(());
            }
            for message in self.late.drain(..) {
                self.replicas[position(message.to)].node.step(message)?;
            }
        }
    }

    /// Messages to this replica arrive; the others are put off.
    fn deliver_to(&mut self, replica: usize) -> Result<()> {
        for message in self.messages.drain(..) {
            if position(message.to) == replica {
                self.replicas[replica].node.step(message)?;
            } else {
                self.late.push(message);
            }
        }
        Ok(())
    }

    fn propose(&mut self, command: &Command) -> Result<()> {
        let leader = &mut self.replicas[LEADER].node;
        Ok(leader.propose(Vec::new(), command.bytes().to_vec())?)
    }
}

fn position(id: u64) -> usize {
    id as usize - 1
}

impl Core for RaftRs {
    fn name(&self) -> &'static str {
        "raft-rs"
    }

    fn setup(&self) -> &'static str {
        "1 thread, quorum first, batch_append, skip_bcast_commit"
    }

    fn one(&mut self, command: &Command) -> Result<()> {
        let before = self.decided();
        self.propose(command)?;
        self.replicas[LEADER].begin(&mut self.messages);
        self.replicas[LEADER].end(&mut self.messages);
        self.deliver_to(NEAR)?;
        self.replicas[NEAR].begin(&mut self.messages);
        self.deliver_to(LEADER)?;
        self.replicas[LEADER].begin(&mut self.messages);
        ensure!(
            self.decided() == before + 1,
            "a command was not committed by leader and near follower"
        );
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.late.append(&mut self.messages);
        self.deliver_all()
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        let mut next = numbers.start;
        while next < numbers.end {
            let window_end = numbers.end.min(next + in_flight as u64);
            for number in next..window_end {
                self.propose(&Command::new(number))?;
            }
            self.deliver_all()?;
            next = window_end;
            ensure!(
                self.decided() == next,
                "decided {} of {next}",
                self.decided()
            );
        }
        Ok(clock.delta(start, clock.raw()))
    }

    fn rest(&mut self) -> Result<()> {
        // A heartbeat carries the commit index.
        self.replicas[LEADER].node.ping();
        self.deliver_all()?;
        for replica in &mut self.replicas {
            replica.log.compact(replica.node.raft.raft_log.applied())?;
        }
        Ok(())
    }

    fn decided(&self) -> u64 {
        self.replicas[LEADER].committed
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        [0, 1, 2].map(|at: usize| self.replicas[at].applied.clone())
    }
}
