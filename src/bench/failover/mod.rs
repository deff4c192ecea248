//! Repeated loss of the leader of a group of processes: how long until the next one decides, and whether anything was
//! lost.
//!
//! Clients call without end. A round takes the leader away, waits until a client has a command decided by another one,
//! brings the old one back and waits until it has its vote again, so all rounds run on one group. Times are of the
//! host's monotonic clock, which all processes share:
//!
//! - `detect`: from the fault until a replica stands for the leadership;
//! - `switch`: from the fault until it leads, with the permission and the logs of a majority;
//! - `total`: from the fault until a client has the answer to a command from the new leader.
//!
//! A leader that was stopped or hung is asked directly when it wakes: it must not acknowledge or serve anything.
//!
//! With a victim, rounds are not at any moment: each takes the next of the named [`steps`], and the replica itself
//! raises the signal there. Before the rounds comes a quiet time, idle and then under load, in which nobody may take
//! over.

pub(crate) mod replica;
mod rounds;
pub(crate) mod steps;
mod woken;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::bench::stats::Percentiles;
use crate::local::cluster::{Cluster, Kind};
use crate::local::judge::YES;
use crate::local::load::{self, Load};
use replica::Strings;
use rounds::Bench;
pub(crate) use rounds::counter;
use steps::Victim;

/// What happens to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL; it is started again
    Kill,
    /// SIGSTOP, and SIGCONT when another one leads
    Stop,
    /// Only its replication thread hangs, and goes on when another one leads
    Hang,
    /// Only its thread of heartbeats and permissions hangs, and goes on when another one leads
    Heartbeat,
    /// None: it hands its leadership over as planned
    Handover,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Hang => "hang",
            Self::Heartbeat => "heartbeat",
            Self::Handover => "handover",
        })
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: u8,
    pub(crate) fault: Fault,
    /// At the steps of this victim, if one is named.
    pub(crate) at: Option<Victim>,
    pub(crate) rounds: u64,
    /// The idle and the loaded time without faults, each.
    pub(crate) quiet: Duration,
    pub(crate) load: load::Plan,
    /// Further lines of the configuration.
    pub(crate) settings: String,
    /// Brings about what has to be found: an acknowledged write that nobody made, a change of leader in the quiet time,
    /// and answers that are taken for those of a leader without its office.
    pub(crate) forge: bool,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) detect: Percentiles,
    pub(crate) switch: Percentiles,
    pub(crate) total: Percentiles,
    pub(crate) acked: u64,
    pub(crate) unknown: usize,
    pub(crate) lost: usize,
    pub(crate) stale_reads: usize,
    /// Leaderships begun in the quiet time, or just before a fault.
    pub(crate) false_failovers: u64,
    pub(crate) quiet_s: f64,
    /// Leaderships begun, beyond one for each round, while rounds ran; null where they cannot be counted.
    pub(crate) extra_failovers: Option<u64>,
    /// Epochs begun while rounds ran: one for each attempt to lead, with any fault.
    pub(crate) epochs: u64,
    pub(crate) linearizable: &'static str,
    pub(crate) why: Option<String>,
    /// Nanoseconds until the old leader had its vote again.
    pub(crate) rejoin: Percentiles,
    /// Requests that waited for a replica when it woke up, of which only a leader may answer any.
    pub(crate) woken_asked: u64,
    /// Those that one without the office answered.
    pub(crate) woken_answers: u64,
    /// Rounds that came to their step, for each of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) steps: BTreeMap<String, u64>,
    pub(crate) operations: usize,
    pub(crate) seed: u64,
}

impl Found {
    /// Whether it was safe. How fast it was, and whether it was calm, depends on what else the machine does.
    pub(crate) fn holds(&self) -> bool {
        self.lost == 0
            && self.stale_reads == 0
            && self.linearizable == YES
            && self.woken_answers == 0
    }
}

/// Runs everything. `told` hears how many rounds are over.
pub(crate) fn run(plan: &Plan, told: &mut dyn FnMut(u64)) -> Result<Found> {
    let strings = Strings::new()?;
    let mut cluster = Cluster::new(Kind {
        replicas: plan.replicas,
        settings: plan.settings.clone(),
        command: ["bench-replica", "--words", &strings.inherit()?.to_string()]
            .map(str::to_owned)
            .into(),
        arguments: Vec::new(),
    })?;
    for id in cluster.ids() {
        cluster.start(id, true)?;
    }
    cluster.wait_for_all()?;
    let load = Load::start(&cluster.clients(), plan.load)?;
    let mut bench = Bench::new(plan, cluster, strings, load)?;
    bench.wait_until_served(100)?;
    bench.quiet()?;
    let before = bench.leaderships()?;
    for round in 0..plan.rounds {
        let done = match plan.at {
            None => bench.round(),
            Some(victim) => bench.round_at(victim, round),
        };
        done.with_context(|| format!("round {round} of fault {}", plan.fault))?;
        told(round + 1);
    }
    bench.found(before)
}
