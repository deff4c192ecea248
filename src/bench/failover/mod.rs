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
//! Before the rounds comes a quiet time, idle and then under load, in which nobody may take over.

pub(crate) mod replica;

use std::time::Duration;
use std::{fmt, thread};

use anyhow::{Context as _, Result, bail};
use mu::host::{RoleEvent, Status};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::bench::stats::{Percentiles, Random, Recorder};
use crate::local::cluster::{Cluster, Kind, PATIENCE};
use crate::local::judge::{Judgement, judge};
use crate::local::load::{self, Load};
use replica::Strings;

/// What happens to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL; it is started again
    Kill,
    /// SIGSTOP, and SIGCONT when another one leads
    Stop,
    /// Only its replication thread hangs, and goes on when another one leads
    Hang,
    /// None: it hands its leadership over as planned
    Handover,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Hang => "hang",
            Self::Handover => "handover",
        })
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: u8,
    pub(crate) fault: Fault,
    pub(crate) rounds: u64,
    /// The idle and the loaded time without faults, each.
    pub(crate) quiet: Duration,
    pub(crate) load: load::Plan,
    /// Further lines of the configuration.
    pub(crate) settings: String,
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
    /// Leaderships begun in the quiet time.
    pub(crate) false_failovers: u64,
    pub(crate) quiet_s: f64,
    /// Leaderships begun, beyond one for each round, while rounds ran.
    pub(crate) extra_failovers: u64,
    pub(crate) linearizable: bool,
    pub(crate) why: Option<String>,
    /// Nanoseconds until the old leader had its vote again.
    pub(crate) rejoin: Percentiles,
    pub(crate) operations: usize,
    pub(crate) seed: u64,
}

impl Found {
    pub(crate) fn holds(&self) -> bool {
        self.lost == 0 && self.stale_reads == 0 && self.linearizable && self.false_failovers == 0
    }
}

/// Between a takeover that is over and the next fault: at least so long, and up to twice.
const CALM_MS: u64 = 40;
/// Statuses are published this often; what happened before a moment is in one asked for so much later.
const PUBLISHED: Duration = Duration::from_millis(60);

/// Runs everything.
pub(crate) fn run(plan: &Plan, told: &mut dyn FnMut(u64)) -> Result<Found> {
    let strings = Strings::new()?;
    let mut cluster = Cluster::new(Kind {
        replicas: plan.replicas,
        settings: plan.settings.clone(),
        command: ["bench-replica", "--words", &strings.inherit()?.to_string()]
            .map(str::to_owned)
            .into(),
    })?;
    for id in cluster.ids() {
        cluster.start(id, true)?;
    }
    cluster.wait_for_all()?;
    let load = Load::start(&cluster.clients(), plan.load)?;
    let mut bench = Bench {
        plan,
        cluster,
        strings,
        load,
        random: Random::new(plan.load.seed),
        detect: Recorder::new()?,
        switch: Recorder::new()?,
        total: Recorder::new()?,
        rejoin: Recorder::new()?,
    };
    bench.wait_until_served()?;
    let false_failovers = bench.quiet()?;
    let led_before = bench.led()?;
    for round in 0..plan.rounds {
        bench
            .round()
            .with_context(|| format!("round {round} of fault {}", plan.fault))?;
        told(round + 1);
    }
    bench.found(false_failovers, led_before)
}

struct Bench<'a> {
    plan: &'a Plan,
    cluster: Cluster,
    strings: Strings,
    load: Load,
    random: Random,
    detect: Recorder,
    switch: Recorder,
    total: Recorder,
    rejoin: Recorder,
}

impl Bench<'_> {
    /// Waits until commands are acknowledged.
    fn wait_until_served(&self) -> Result<()> {
        let before = self.load.acked();
        for _ in 0..PATIENCE.as_millis() {
            if self.load.acked() > before + 100 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("no command is acknowledged")
    }

    /// How often a replica that runs has become leader, summed. A killed replica's count goes with it.
    fn led(&mut self) -> Result<u64> {
        let mut led = 0;
        for id in self.cluster.ids() {
            led += counter(&self.cluster.status(id)?, "led")?;
        }
        Ok(led)
    }

    /// An idle and a loaded time in which nobody may take over. How many did.
    fn quiet(&mut self) -> Result<u64> {
        let before = self.led()?;
        for rests in [true, false] {
            self.load.rest(rests);
            thread::sleep(self.plan.quiet);
        }
        self.load.rest(false);
        thread::sleep(PUBLISHED);
        Ok(self.led()? - before)
    }

    /// Takes the leader away, waits for the next one, brings the old one back.
    fn round(&mut self) -> Result<()> {
        thread::sleep(Duration::from_millis(CALM_MS + self.random.below(CALM_MS)));
        let leader = self.cluster.wait_for_leader(None)?;
        let fault_ns = self.fault(leader)?;
        let regained_ns = self.load.regained(PATIENCE)?;
        self.total.record(regained_ns - fault_ns);
        self.undo(leader)?;
        let back = self.cluster.wait_for(leader, "a voter again", |status| {
            status.voter && status.role != "leader"
        })?;
        self.rejoin.record(mu::host::monotonic_ns() - regained_ns);
        drop(back);
        thread::sleep(PUBLISHED);
        self.phases(leader, fault_ns)
    }

    /// Does the fault; when.
    fn fault(&mut self, leader: u8) -> Result<u64> {
        let to = (leader + 1) % self.plan.replicas;
        let fault_ns = self.load.watch(leader);
        match self.plan.fault {
            Fault::Kill => self.cluster.signal(leader, Signal::SIGKILL)?,
            Fault::Stop => self.cluster.signal(leader, Signal::SIGSTOP)?,
            Fault::Hang => self.strings.hang(leader, true),
            Fault::Handover => self.strings.hand_over(leader, to),
        }
        Ok(fault_ns)
    }

    /// Brings the old leader back.
    fn undo(&mut self, leader: u8) -> Result<()> {
        match self.plan.fault {
            Fault::Kill => {
                self.cluster.reap(leader)?;
                self.cluster.start(leader, false)
            }
            Fault::Stop => self.cluster.signal(leader, Signal::SIGCONT),
            Fault::Hang => {
                self.strings.hang(leader, false);
                Ok(())
            }
            Fault::Handover => Ok(()),
        }
    }

    /// What the replicas say of the takeover after `fault_ns`.
    fn phases(&mut self, leader: u8, fault_ns: u64) -> Result<()> {
        let others = self.cluster.ids().filter(|id| *id != leader);
        let mut events: Vec<RoleEvent> = Vec::new();
        for id in others.collect::<Vec<_>>() {
            events.extend(self.cluster.status(id)?.events);
        }
        let first = |role: &str| {
            let at = events.iter().filter(|event| event.role == role);
            at.map(|event| event.at_ns)
                .filter(|at_ns| *at_ns > fault_ns)
                .min()
        };
        let (stood, led) = first("stands")
            .zip(first("leader"))
            .context("no replica says that it stood and led")?;
        self.detect.record(stood - fault_ns);
        self.switch.record(led - fault_ns);
        Ok(())
    }

    fn found(mut self, false_failovers: u64, led_before: u64) -> Result<Found> {
        let extra_failovers = match self.plan.fault {
            // The counts of killed replicas are gone.
            Fault::Kill => 0,
            _ => (self.led()? - led_before).saturating_sub(self.plan.rounds),
        };
        let records = self.load.end()?;
        let judgement = judge(&self.cluster.clients(), &records)?;
        let Judgement {
            operations,
            acked,
            unknown,
            lost,
            stale_reads,
            linearizable,
            why,
        } = judgement;
        Ok(Found {
            detect: self.detect.percentiles(),
            switch: self.switch.percentiles(),
            total: self.total.percentiles(),
            acked,
            unknown,
            lost,
            stale_reads,
            false_failovers,
            quiet_s: self.plan.quiet.as_secs_f64(),
            extra_failovers,
            linearizable,
            why,
            rejoin: self.rejoin.percentiles(),
            operations,
            seed: self.plan.load.seed,
        })
    }
}

fn counter(status: &Status, name: &str) -> Result<u64> {
    let found = status.counters.iter().find(|(known, _)| known == name);
    found
        .map(|(_, count)| *count)
        .with_context(|| format!("a status without the counter {name}"))
}
