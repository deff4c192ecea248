//! OmniPaxos on one thread, quorum first.
//!
//! The bare core of the crate: three `OmniPaxos` values whose messages are moved, not serialised. On the clock is the
//! way of one command from `append` on the leader over the near follower back to the leader's decided index; the far
//! follower and the news of the decision come after. In a window, all of it is on the clock but for the applying.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use omnipaxos::messages::Message;
use omnipaxos::storage::{Entry, NoSnapshot};
use omnipaxos::util::LogEntry;
use omnipaxos::{ClusterConfig, OmniPaxos, ServerConfig};
use omnipaxos_storage::memory_storage::MemoryStorage;

use crate::core::{Applied, Command, Core, REPLICAS};

/// Positions in `replicas`; the id of a replica is one more.
const LEADER: usize = 0;
const NEAR: usize = 1;

/// Ticks within which the first election must be over.
const ELECTION_TICKS_MAX: usize = 1000;

impl Entry for Command {
    type Snapshot = NoSnapshot;
}

struct Replica {
    node: OmniPaxos<Command, MemoryStorage<Command>>,
    applied: Applied,
}

impl Replica {
    fn new(id: u64) -> Result<Self> {
        let cluster = ClusterConfig {
            configuration_id: 1,
            nodes: (1..=REPLICAS as u64).collect(),
            flexible_quorum: None,
        };
        let server = ServerConfig {
            pid: id,
            leader_priority: u32::from(position(id) == LEADER),
            ..ServerConfig::default()
        };
        let node = cluster.build_for_server(server, MemoryStorage::default());
        Ok(Self {
            node: node.map_err(|e| anyhow!("configuration of replica {id}: {e:?}"))?,
            applied: Applied::default(),
        })
    }

    /// Applies what is decided and not yet applied.
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
}

/// The contestant.
pub struct Omni {
    replicas: [Replica; REPLICAS],
    /// Messages on their way; kept, so that nothing is allocated for them.
    messages: Vec<Message<Command>>,
    /// Messages to the far follower, put off until after the clock.
    late: Vec<Message<Command>>,
}

impl Omni {
    /// A group that has elected its leader.
    pub fn new() -> Result<Self> {
        let mut omni = Self {
            replicas: [Replica::new(1)?, Replica::new(2)?, Replica::new(3)?],
            messages: Vec::new(),
            late: Vec::new(),
        };
        omni.elect()?;
        Ok(omni)
    }

    /// Ticks until all follow the leader. No clock ticks afterwards: nothing is lost here and nobody fails.
    fn elect(&mut self) -> Result<()> {
        let leader = Some((LEADER as u64 + 1, true));
        for _ in 0..ELECTION_TICKS_MAX {
            for replica in &mut self.replicas {
                replica.node.tick();
            }
            self.deliver_all();
            if self
                .replicas
                .iter()
                .all(|r| r.node.get_current_leader() == leader)
            {
                return Ok(());
            }
        }
        Err(anyhow!("no leader after {ELECTION_TICKS_MAX} ticks"))
    }

    /// Carries messages until there are none.
    fn deliver_all(&mut self) {
        loop {
            for from in 0..REPLICAS {
                self.replicas[from]
                    .node
                    .take_outgoing_messages(&mut self.messages);
                self.late.append(&mut self.messages);
            }
            if self.late.is_empty() {
                return;
            }
            for message in self.late.drain(..) {
                let to = position(message.get_receiver());
                self.replicas[to].node.handle_incoming(message);
            }
        }
    }

    /// Takes the replica's messages; those between leader and near follower arrive, the others are put off.
    fn deliver_near(&mut self, from: usize) {
        self.replicas[from]
            .node
            .take_outgoing_messages(&mut self.messages);
        for message in self.messages.drain(..) {
            let to = position(message.get_receiver());
            if to == LEADER || to == NEAR {
                self.replicas[to].node.handle_incoming(message);
            } else {
                self.late.push(message);
            }
        }
    }

    fn append(&mut self, command: Command) -> Result<()> {
        let appended = self.replicas[LEADER].node.append(command);
        appended.map_err(|e| anyhow!("append: {e:?}"))
    }

    fn decided_idx(&self) -> usize {
        self.replicas[LEADER].node.get_decided_idx()
    }
}

fn position(id: u64) -> usize {
    id as usize - 1
}

impl Core for Omni {
    fn name(&self) -> &'static str {
        "omnipaxos"
    }

    fn setup(&self) -> &'static str {
        "1 thread, quorum first"
    }

    fn one(&mut self, command: &Command) -> Result<()> {
        let before = self.decided_idx();
        self.append(*command)?;
        self.deliver_near(LEADER);
        self.deliver_near(NEAR);
        ensure!(
            self.decided_idx() == before + 1,
            "a command was not decided by leader and near follower"
        );
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.deliver_all();
        Ok(())
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        let mut next = numbers.start;
        while next < numbers.end {
            let window_end = numbers.end.min(next + in_flight as u64);
            for number in next..window_end {
                self.append(Command::new(number))?;
            }
            self.deliver_all();
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
        self.deliver_all();
        for replica in &mut self.replicas {
            replica.apply()?;
        }
        let trimmed = self.replicas[LEADER].node.trim(None);
        trimmed
            .map_err(|e| anyhow!("{e:?}"))
            .context("trimming the logs")?;
        self.deliver_all();
        Ok(())
    }

    fn decided(&self) -> u64 {
        self.decided_idx() as u64
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        [0, 1, 2].map(|at: usize| self.replicas[at].applied.clone())
    }
}
