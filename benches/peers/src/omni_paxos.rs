//! OmniPaxos: the bare core of the crate, with the crate's own in-memory storage.

use anyhow::{Context as _, Result, anyhow};
use omnipaxos::messages::Message;
use omnipaxos::storage::{Entry, NoSnapshot};
use omnipaxos::util::LogEntry;
use omnipaxos::{ClusterConfig, OmniPaxos, ServerConfig};
use omnipaxos_storage::memory_storage::MemoryStorage;

use crate::contestant::{Applied, Command, REPLICAS};
use crate::node::{LEADER, Node, id, position};

impl Entry for Command {
    type Snapshot = NoSnapshot;
}

/// A replica.
pub struct Omni {
    node: OmniPaxos<Command, MemoryStorage<Command>>,
    applied: Applied,
}

impl Node for Omni {
    type Message = Message<Command>;

    const NAMES: [&'static str; 3] = ["omnipaxos", "omnipaxos-2-threads", "omnipaxos-all-logs"];
    const OPTIONS: &'static str = "";

    fn new(at: usize) -> Result<Self> {
        let cluster = ClusterConfig {
            configuration_id: 1,
            nodes: (0..REPLICAS).map(id).collect(),
            flexible_quorum: None,
        };
        let server = ServerConfig {
            pid: id(at),
            ..ServerConfig::default()
        };
        let node = cluster.build_for_server(server, MemoryStorage::default());
        Ok(Self {
            node: node.map_err(|e| anyhow!("configuration of replica {at}: {e:?}"))?,
            applied: Applied::default(),
        })
    }

    fn campaign(&mut self) -> Result<()> {
        self.node.try_become_leader();
        Ok(())
    }

    fn in_office(&self) -> bool {
        self.node.get_current_leader() == Some((id(LEADER), true))
    }

    fn propose(&mut self, command: &Command) -> Result<()> {
        let appended = self.node.append(*command);
        appended.map_err(|e| anyhow!("append: {e:?}"))
    }

    fn receive(&mut self, message: Message<Command>) -> Result<()> {
        self.node.handle_incoming(message);
        Ok(())
    }

    fn begin(&mut self, out: &mut Vec<Message<Command>>) {
        self.node.take_outgoing_messages(out);
    }

    fn end(&mut self, _out: &mut Vec<Message<Command>>) {}

    fn work(&mut self, out: &mut Vec<Message<Command>>) {
        self.begin(out);
    }

    fn destination(message: &Message<Command>) -> usize {
        position(message.get_receiver())
    }

    fn decided(&self) -> u64 {
        self.node.get_decided_idx() as u64
    }

    /// It does so by itself.
    fn announce(&mut self) {}

    fn apply(&mut self) -> Result<()> {
        let from = self.applied.count() as usize;
        for entry in self.node.read_decided_suffix(from).unwrap_or_default() {
            let LogEntry::Decided(command) = entry else {
                return Err(anyhow!("an entry of the decided log that is no command"));
            };
            self.applied.apply(command.bytes());
        }
        Ok(())
    }

    /// The leader trims for all.
    fn compact(&mut self) -> Result<()> {
        if self.node.get_pid() == id(LEADER) {
            self.node
                .trim(None)
                .map_err(|e| anyhow!("{e:?}"))
                .context("trimming the logs")?;
        }
        Ok(())
    }

    fn applied(&self) -> &Applied {
        &self.applied
    }
}
