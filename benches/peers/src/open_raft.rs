//! openraft on a current-thread tokio runtime.
//!
//! Every replica is a handful of tasks; all of them and the client share one thread, and remote calls are calls. On
//! the clock is `client_write`, whose answer comes after the leader has applied the command. What the followers do
//! afterwards is off the clock for single commands. No timer runs but the time-out of each remote call, which is
//! openraft's own.

mod log;
mod machine;
mod network;

use std::collections::{BTreeMap, VecDeque};
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use openraft::{Config, EmptyNode, Raft, SnapshotPolicy};
use quanta::Clock;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use crate::contestant::{Applied, Command, Core, REPLICAS};
use log::Log;
use machine::Machine;
use network::Network;

/// Turns of the runtime within which everything that is awaited off the clock must come about.
const TURNS_MAX: usize = 10_000_000;

openraft::declare_raft_types!(
    /// The types of the group.
    pub Types:
        D = Command,
        R = (),
        Node = EmptyNode,
);

struct Replica {
    raft: Raft<Types>,
    log: Log,
    machine: Machine,
}

/// The contestant.
pub struct OpenRaft {
    runtime: Runtime,
    replicas: Vec<Replica>,
    decided: u64,
}

impl OpenRaft {
    /// A group that has elected its leader.
    pub fn new() -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .context("tokio's runtime")?;
        let replicas = runtime.block_on(Self::start())?;
        Ok(Self {
            runtime,
            replicas,
            decided: 0,
        })
    }

    async fn start() -> Result<Vec<Replica>> {
        let config = Config {
            enable_tick: false,
            enable_heartbeat: false,
            enable_elect: false,
            // Log goes when `rest` asks for a snapshot, and then all of it that the snapshot is of.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            ..Config::default()
        };
        let config = Arc::new(config.validate()?);
        let network = Network::default();
        let mut replicas = Vec::new();
        for id in 1..=REPLICAS as u64 {
            let (log, machine) = (Log::default(), Machine::default());
            let raft = Raft::new(
                id,
                config.clone(),
                network.clone(),
                log.clone(),
                machine.clone(),
            );
            replicas.push(Replica {
                raft: raft.await?,
                log,
                machine,
            });
        }
        network.connect(
            replicas
                .iter()
                .map(|replica| replica.raft.clone())
                .collect(),
        );
        let members: BTreeMap<u64, EmptyNode> =
            (1..=REPLICAS as u64).map(|id| (id, EmptyNode {})).collect();
        let leader = &replicas[0].raft;
        leader.initialize(members).await?;
        let elected = || leader.metrics().borrow().current_leader == Some(1);
        until("the first replica leads", elected).await?;
        Ok(replicas)
    }
}

/// Lets the runtime run until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    for _ in 0..TURNS_MAX {
        if condition() {
            return Ok(());
        }
        yield_now().await;
    }
    bail!("openraft: waited in vain until {what}")
}

/// Lets the runtime run until all replicas have applied all that was decided.
async fn all_applied(replicas: &[Replica], decided: u64) -> Result<()> {
    let applied = || {
        replicas
            .iter()
            .all(|replica| replica.machine.applied().count() >= decided)
    };
    until("all replicas have applied what is decided", applied).await
}

impl Core for OpenRaft {
    fn name(&self) -> &'static str {
        "openraft"
    }

    fn setup(&self) -> String {
        "1 thread, tokio current-thread, client_write".into()
    }

    fn decide(&mut self, command: &Command) -> Result<()> {
        self.runtime
            .block_on(self.replicas[0].raft.client_write(*command))?;
        self.decided += 1;
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.runtime
            .block_on(all_applied(&self.replicas, self.decided))
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        let clock = Clock::new();
        let leader = &self.replicas[0].raft;
        let replicas = &self.replicas;
        let last = numbers.end;
        let (decided, elapsed) = self.runtime.block_on(async {
            let mut decided = self.decided;
            let start = clock.raw();
            let mut numbers = numbers.into_iter();
            let mut waiting = VecDeque::with_capacity(in_flight);
            loop {
                while waiting.len() < in_flight
                    && let Some(number) = numbers.next()
                {
                    waiting.push_back(leader.client_write_ff(Command::new(number)).await?);
                }
                let Some(oldest) = waiting.pop_front() else {
                    break;
                };
                oldest
                    .await
                    .context("the answer to a command was dropped")??;
                decided += 1;
            }
            all_applied(replicas, last).await?;
            anyhow::Ok((decided, clock.delta(start, clock.raw())))
        })?;
        ensure!(decided == last, "decided {decided} of {last}");
        self.decided = decided;
        Ok(elapsed)
    }

    fn rest(&mut self) -> Result<()> {
        self.runtime.block_on(async {
            all_applied(&self.replicas, self.decided).await?;
            for replica in &self.replicas {
                replica.raft.trigger().snapshot().await?;
            }
            let gone = || self.replicas.iter().all(|replica| replica.log.len() == 0);
            until("the old log is gone", gone).await
        })
    }

    fn decided(&self) -> u64 {
        self.decided
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        [0, 1, 2].map(|at: usize| self.replicas[at].machine.applied())
    }
}
