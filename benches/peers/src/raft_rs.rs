//! raft-rs: `RawNode` over a log of our own, driven as its documentation says.
//!
//! A pass over a `Ready` is split where the protocol allows it. `begin` persists the entries and hands out the
//! messages and the committed commands; `end` tells the node. So a follower acknowledges, and a leader answers, before
//! the bookkeeping of its pass. With `skip_bcast_commit` a commit index travels with the next entries, and in the end
//! with a heartbeat.

mod log;

use anyhow::Result;
use raft::NO_LIMIT;
use raft::prelude::{Config, Entry, Message, RawNode, Ready};
use slog::{Discard, Logger, o};

use crate::contestant::{Applied, Command, REPLICAS};
use crate::node::{LEADER, Node, id, position};
use log::Log;

/// A replica.
pub struct RaftRs {
    node: RawNode<Log>,
    log: Log,
    applied: Applied,
    /// Commands that the node handed over as committed.
    committed: u64,
    /// A pass that is begun and not ended.
    begun: Option<Ready>,
}

impl RaftRs {
    fn apply_entries(&mut self, entries: &[Entry]) {
        // A new leader's first entry is empty and no command.
        for entry in entries.iter().filter(|entry| !entry.data.is_empty()) {
            self.committed += 1;
            self.applied.apply(&entry.data);
        }
    }
}

impl Node for RaftRs {
    type Message = Message;

    const NAMES: [&'static str; 3] = ["raft-rs", "raft-rs-2-threads", "raft-rs-all-logs"];
    const OPTIONS: &'static str = ", batch_append, skip_bcast_commit";

    fn new(at: usize) -> Result<Self> {
        let config = Config {
            id: id(at),
            max_size_per_msg: NO_LIMIT,
            batch_append: true,
            skip_bcast_commit: true,
            ..Config::default()
        };
        let log = Log::new((0..REPLICAS).map(id).collect());
        Ok(Self {
            node: RawNode::new(&config, log.clone(), &Logger::root(Discard, o!()))?,
            log,
            applied: Applied::default(),
            committed: 0,
            begun: None,
        })
    }

    fn campaign(&mut self) -> Result<()> {
        Ok(self.node.campaign()?)
    }

    fn in_office(&self) -> bool {
        self.node.raft.leader_id == id(LEADER)
    }

    fn propose(&mut self, command: &Command) -> Result<()> {
        Ok(self.node.propose(Vec::new(), command.bytes().to_vec())?)
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        Ok(self.node.step(message)?)
    }

    fn begin(&mut self, out: &mut Vec<Message>) {
        let mut ready = self.node.ready();
        out.append(&mut ready.take_messages());
        self.log.append(ready.take_entries());
        if let Some(state) = ready.hs() {
            self.log.set_hard_state(state.clone());
        }
        out.append(&mut ready.take_persisted_messages());
        self.apply_entries(&ready.take_committed_entries());
        self.begun = Some(ready);
    }

    fn end(&mut self, out: &mut Vec<Message>) {
        let Some(ready) = self.begun.take() else {
            return;
        };
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.log.set_commit(commit);
        }
        out.append(&mut light.take_messages());
        self.apply_entries(&light.take_committed_entries());
        self.node.advance_apply();
    }

    fn work(&mut self, out: &mut Vec<Message>) {
        self.end(out);
        while self.node.has_ready() {
            self.begin(out);
            self.end(out);
        }
    }

    fn destination(message: &Message) -> usize {
        position(message.to)
    }

    fn decided(&self) -> u64 {
        self.committed
    }

    fn announce(&mut self) {
        self.node.ping();
    }

    /// It was done as the commands were handed over.
    fn apply(&mut self) -> Result<()> {
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        Ok(self.log.compact(self.node.raft.raft_log.applied())?)
    }

    fn applied(&self) -> &Applied {
        &self.applied
    }
}
