//! Repeated loss of the primary's redis-server under load, seen by clients that ask Sentinel.
//!
//! A round kills the server, or stops it and lets it go on when another one leads; waits for the first command that
//! another one acknowledges; waits until the node is back as a follower by itself; lets the clients rest, and compares
//! the digests of all datasets at equal places of the stream.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mu::host::monotonic_ns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::bench::stats::{Percentiles, Random, Recorder};
use crate::local::cluster::{Cluster, PATIENCE};
use crate::local::judge::{YES, judge_with};
use crate::local::load::{self, Load};
use crate::redis::client::Client;
use crate::redis::sentinel::{Caller, digest};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// Clients run for so long between a round and the next fault, and for up to as much again.
const CALM_MS: u64 = 100;
/// Statuses are published this often; what happened before a moment is in one asked for so much later.
const PUBLISHED: Duration = Duration::from_millis(60);

/// What happens to the primary's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL
    Kill,
    /// SIGSTOP, and SIGCONT when another one leads
    Stop,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
        }
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u64,
    pub(crate) fault: Fault,
    pub(crate) load: load::Plan,
    /// Bytes of other data in the group, which a node that comes back has to get.
    pub(crate) dataset_bytes: u64,
    pub(crate) settings: String,
    /// A seeded bug of the nodes.
    pub(crate) bug: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    /// From the fault until a replica stands for the leadership.
    pub(crate) detect: Percentiles,
    /// Until it leads.
    pub(crate) switch: Percentiles,
    /// Until a client has the answer to a command from the new primary.
    pub(crate) total: Percentiles,
    /// The share of mu in that: as `switch`. The rest is the server's turning, Sentinel's answer and connecting.
    pub(crate) mu_gap: Percentiles,
    /// From the fault until that node is a follower with the whole dataset.
    pub(crate) rejoin: Percentiles,
    pub(crate) acked: u64,
    pub(crate) unknown: usize,
    pub(crate) lost: usize,
    pub(crate) stale_reads: usize,
    /// Leaderships that began without a fault.
    pub(crate) false_failovers: u64,
    pub(crate) linearizable: &'static str,
    pub(crate) why: Option<String>,
    /// Rounds after which all datasets were the same.
    pub(crate) digests_equal: u64,
    pub(crate) rounds: u64,
    pub(crate) operations: usize,
    pub(crate) dataset_bytes: u64,
    pub(crate) seed: u64,
}

impl Found {
    /// Whether it was safe.
    pub(crate) fn holds(&self) -> bool {
        self.lost == 0
            && self.stale_reads == 0
            && self.linearizable == YES
            && self.digests_equal == self.rounds
    }
}

struct Times {
    detect: Recorder,
    switch: Recorder,
    total: Recorder,
    rejoin: Recorder,
    false_failovers: u64,
}

/// Runs everything. `told` hears how many rounds are over.
pub(crate) fn run(plan: &Plan, told: &mut dyn FnMut(u64)) -> Result<Found> {
    let mut cluster = super::cluster(&plan.settings, plan.bug.as_deref())?;
    let (_, server) = super::primary(&cluster)?;
    fill(server, plan.dataset_bytes)?;
    let servers = cluster.clients();
    let load = Load::start_with(|| Ok(Caller::new(&servers)), plan.load)?;
    let mut random = Random::new(plan.load.seed);
    let mut times = Times {
        detect: Recorder::new()?,
        switch: Recorder::new()?,
        total: Recorder::new()?,
        rejoin: Recorder::new()?,
        false_failovers: 0,
    };
    let mut equal = 0;
    let mut leader = None;
    for round in 0..plan.rounds {
        thread::sleep(Duration::from_millis(CALM_MS + random.below(CALM_MS)));
        let next = one(&mut cluster, &load, plan.fault, &mut times, leader)
            .with_context(|| format!("round {round}"))?;
        leader = Some(next);
        load.rest(true);
        equal += u64::from(same(&cluster)?);
        load.rest(false);
        told(round + 1);
    }
    let judged = judge_with(Caller::new(&servers), &load.end()?)?;
    Ok(Found {
        detect: times.detect.percentiles(),
        switch: times.switch.percentiles(),
        total: times.total.percentiles(),
        mu_gap: times.switch.percentiles(),
        rejoin: times.rejoin.percentiles(),
        acked: judged.acked,
        unknown: judged.unknown,
        lost: judged.lost,
        stale_reads: judged.stale_reads,
        false_failovers: times.false_failovers,
        linearizable: judged.linearizable,
        why: judged.why,
        digests_equal: equal,
        rounds: plan.rounds,
        operations: judged.operations,
        dataset_bytes: plan.dataset_bytes,
        seed: plan.load.seed,
    })
}

/// One round; gives who leads after it.
fn one(
    cluster: &mut Cluster,
    load: &Load,
    fault: Fault,
    times: &mut Times,
    expected: Option<u8>,
) -> Result<u8> {
    let (leader, _) = super::primary(cluster)?;
    times.false_failovers += u64::from(expected.is_some_and(|expected| expected != leader));
    let pid = cluster.status(leader)?.pid;
    let pid = Pid::from_raw(i32::try_from(pid).context("a process number")?);
    let fault_ns = load.watch(leader);
    let signal = match fault {
        Fault::Kill => Signal::SIGKILL,
        Fault::Stop => Signal::SIGSTOP,
    };
    kill(pid, signal).context("a signal to the server")?;
    let regained_ns = load.regained(PATIENCE)?;
    times.total.record(regained_ns.saturating_sub(fault_ns));
    if fault == Fault::Stop {
        kill(pid, Signal::SIGCONT).context("SIGCONT to the server")?;
    }
    let was = pid.as_raw().unsigned_abs();
    cluster.wait_for(leader, "back as a follower with a vote", |status| {
        status.voter && status.pid != was
    })?;
    wait_until_fed(cluster, leader)?;
    times.rejoin.record(monotonic_ns() - fault_ns);
    thread::sleep(PUBLISHED);
    let takeover = cluster
        .takeover(leader, fault_ns)?
        .context("another one led since before")?;
    times.detect.record(takeover.stood_ns - fault_ns);
    times.switch.record(takeover.led_ns - fault_ns);
    Ok(takeover.leader)
}

/// Until a node's server has a dataset.
fn wait_until_fed(cluster: &Cluster, id: u8) -> Result<()> {
    let server = cluster.clients()[usize::from(id)];
    let begin = Instant::now();
    loop {
        let up = Client::connect(server, PATIENCE)
            .map_err(anyhow::Error::from)
            .and_then(|mut client| client.info("replication", "master_link_status"));
        if up.is_ok_and(|up| up.as_deref() == Some("up")) {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "the server of node {id} gets no dataset"
        );
        thread::sleep(LOOK);
    }
}

/// Waits until all servers are at the same place of the stream; whether they have the same dataset then.
fn same(cluster: &Cluster) -> Result<bool> {
    let begin = Instant::now();
    super::rate::catch_up(cluster)?;
    loop {
        let digests = cluster
            .clients()
            .into_iter()
            .map(|server| digest(server, PATIENCE));
        let digests = digests.collect::<Result<Vec<_>>>()?;
        let places_agree = digests.iter().all(|(place, _)| *place == digests[0].0);
        if places_agree && digests.iter().all(|(_, digest)| *digest == digests[0].1) {
            return Ok(true);
        }
        // A command that was under way when the clients began to rest moves the place once more.
        if begin.elapsed() > PATIENCE / 10 {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
}

/// Other data, in values of this size.
const FILLED: usize = 4096;

fn fill(server: std::net::SocketAddr, bytes: u64) -> Result<()> {
    let mut client = Client::connect(server, PATIENCE)?;
    let value = vec![b'f'; FILLED];
    let count = bytes / FILLED as u64;
    for first in (0..count).step_by(100) {
        let batch = first..(first + 100).min(count);
        for n in batch.clone() {
            client.push(&[b"SET", format!("fill:{n}").as_bytes(), &value]);
        }
        client.flush()?;
        for _ in batch {
            client.reply()?;
        }
    }
    Ok(())
}
