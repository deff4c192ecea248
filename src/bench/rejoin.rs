//! A follower that comes back with a large state: how long it takes, what the leader and a client notice of it, and
//! whether it has the leader's state then.
//!
//! Three replica processes get a state of so many bytes. One client puts small values, one at a time. A follower is
//! killed and started again: it pulls a snapshot and the log behind it by one-sided reads, from another follower if
//! that answers in time, else from the leader, and is done when it has its vote again. The client's times before that
//! and meanwhile are kept apart. They are round trips over TCP, so a change of the leader's own time shows in them less
//! than it is.
//!
//! The leader's own time is the stage `total` of its status. That is kept for the whole life of a process, so each of
//! the two phases gets a leader that has just been started, and the client rests outside of them. The leader's thread
//! has a processor of its own where there are several, for where the scheduler puts it makes more of a difference.

use std::fs;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use mu::host::Status;
use mu::kv::{Client, ClientOptions};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Serialize;

use super::failover::counter;
use super::failover::replica::{AGAIN, Strings};
use super::host;
pub(crate) use super::stats::Percentiles;
use super::stats::Recorder;
use crate::local::cluster::{Cluster, Kind, PATIENCE};

/// Bytes of a value of the state.
const VALUE_BYTES: usize = 4096;
/// How long the client is measured with all replicas there, and how long a follower is gone.
const CALM: Duration = Duration::from_secs(2);
const GONE: Duration = Duration::from_millis(500);
/// Above the state's own bytes, for keys and sessions.
const SPARE_BYTES: u64 = 64 << 20;
/// Between two looks: of a client that rests, for a handover, for two replicas to be at the same entry.
const LOOK: Duration = Duration::from_millis(1);

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: u8,
    pub(crate) state_bytes: u64,
    pub(crate) rounds: u64,
    /// The processors: the first one is the leader's, if there are more.
    pub(crate) cpus: Vec<usize>,
    /// Further lines of the configuration.
    pub(crate) settings: String,
    /// Changes what a replica that came back tells of its state.
    pub(crate) forge: bool,
}

impl Plan {
    /// The leader's processor, if it has one of its own.
    pub(crate) fn own(&self) -> &[usize] {
        match self.cpus.len() {
            0 | 1 => &[],
            _ => &self.cpus[..1],
        }
    }

    /// Those of everybody else.
    fn others(&self) -> &[usize] {
        &self.cpus[self.own().len()..]
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    /// The leader's stage `total`, all replicas being there: from where it takes a command until that is answered.
    pub(crate) leader: Percentiles,
    /// The same while a replica comes back.
    pub(crate) leader_rejoin: Percentiles,
    pub(crate) leader_ratio_p50: f64,
    /// Of the client, all replicas being there.
    pub(crate) latency: Percentiles,
    /// Of the client, while a replica comes back.
    pub(crate) latency_rejoin: Percentiles,
    pub(crate) ratio_p50: f64,
    /// From the start of the process until it has its vote again.
    pub(crate) rejoin: Percentiles,
    /// Rounds after which the replica that came back had the leader's state, by their digests at the same entry.
    pub(crate) states_equal: u64,
    /// Rounds in which the leader made the snapshot: it serves nobody meanwhile.
    pub(crate) leader_snapshots: u64,
    /// Of the largest replica, without state and with it.
    pub(crate) memory: Size,
    pub(crate) memory_with_state: Size,
    pub(crate) log_bytes: u64,
}

impl Found {
    /// Whether every replica that came back has what the leader has.
    pub(crate) fn holds(&self) -> bool {
        self.states_equal == self.rejoin.count
    }
}

/// Which of the client's times are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// The client rests.
    Rest,
    Calm,
    Rejoin,
    Over,
}

/// The group, and the phase that the client is told.
struct Bench<'a> {
    plan: &'a Plan,
    cluster: Cluster,
    strings: Strings,
    phase: &'a AtomicU8,
}

pub(crate) fn run(plan: &Plan, told: &mut dyn FnMut(u64)) -> Result<Found> {
    let limit = plan.state_bytes + SPARE_BYTES;
    let strings = Strings::new()?;
    // Whatever is started from here on keeps to these, too.
    host::keep_to(Pid::from_raw(0), plan.others())?;
    let mut cluster = Cluster::new(Kind {
        replicas: plan.replicas,
        settings: format!("snapshot_max_bytes = {limit}\n{}", plan.settings),
        command: ["bench-replica", "--words", &strings.inherit()?.to_string()]
            .map(str::to_owned)
            .into(),
        arguments: Vec::new(),
    })?;
    for id in cluster.ids() {
        cluster.start(id, true)?;
    }
    cluster.wait_for_all()?;
    let mut client = client(&cluster)?;
    client.put(b"first", b"")?;
    let memory = size(&cluster)?;
    fill(&mut client, plan.state_bytes)?;
    let memory_with_state = size(&cluster)?;
    let phase = AtomicU8::new(Phase::Rest as u8);
    let mut bench = Bench {
        plan,
        cluster,
        strings,
        phase: &phase,
    };
    let (found, latency) = thread::scope(|scope| {
        let caller = scope.spawn(|| call(client, &phase));
        let found = bench.phases(told);
        bench.enter(Phase::Over);
        let latency = caller.join().map_err(|_| anyhow!("the client panicked"))?;
        anyhow::Ok((found?, latency?))
    })?;
    let (leader, leader_rejoin) = (found.calm, found.during);
    let (calm, during) = (latency.0.percentiles(), latency.1.percentiles());
    let ratio = |over: Percentiles, under: Percentiles| over.p50 as f64 / under.p50.max(1) as f64;
    Ok(Found {
        leader,
        leader_rejoin,
        leader_ratio_p50: ratio(leader_rejoin, leader),
        latency: calm,
        latency_rejoin: during,
        ratio_p50: ratio(during, calm),
        rejoin: found.rejoin.percentiles(),
        states_equal: found.states_equal,
        leader_snapshots: found.leader_snapshots,
        memory,
        memory_with_state,
        log_bytes: bench.cluster.log_bytes(),
    })
}

fn client(cluster: &Cluster) -> Result<Client> {
    let replicas = cluster.ids().zip(cluster.clients()).collect();
    Ok(Client::new(replicas, ClientOptions::default())?)
}

/// Values until the state has so many bytes.
fn fill(client: &mut Client, bytes: u64) -> Result<()> {
    let value = [0x5a; VALUE_BYTES];
    for n in 0..bytes / VALUE_BYTES as u64 {
        client.put(&n.to_le_bytes(), &value)?;
    }
    Ok(())
}

/// What both phases came to.
struct Phases {
    /// Of the leader.
    calm: Percentiles,
    during: Percentiles,
    rejoin: Recorder,
    states_equal: u64,
    leader_snapshots: u64,
}

impl Bench<'_> {
    fn phases(&mut self, told: &mut dyn FnMut(u64)) -> Result<Phases> {
        let replicas = self.plan.replicas;
        let leader = self.fresh_leader()?;
        self.enter(Phase::Calm);
        thread::sleep(CALM);
        self.enter(Phase::Rest);
        let calm = self.total(leader)?;
        let leader = self.fresh_leader()?;
        let (mut rejoin, mut states_equal) = (Recorder::new()?, 0);
        for round in 0..self.plan.rounds {
            let id = (leader + 1 + (round % u64::from(replicas - 1)) as u8) % replicas;
            rejoin.record(self.round(id, leader)?);
            states_equal += u64::from(self.states_equal(id, leader)?);
            told(round + 1);
        }
        Ok(Phases {
            calm,
            during: self.total(leader)?,
            rejoin,
            states_equal,
            leader_snapshots: counter(&self.cluster.status(leader)?, "snapshots")?,
        })
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Starts a follower anew and gives it the lead.
    fn fresh_leader(&mut self) -> Result<u8> {
        let leader = self.cluster.wait_for_leader(None)?;
        let id = (leader + 1) % self.plan.replicas;
        self.take_away(id)?;
        self.bring_back(id, leader)?;
        self.lead(id)?;
        if !self.plan.own().is_empty() {
            host::keep_to(self.cluster.pid(leader)?, self.plan.others())?;
            host::keep_to(self.cluster.pid(id)?, self.plan.own())?;
        }
        let timed = total(&self.cluster.status(id)?)?.count;
        ensure!(
            timed == 0,
            "replica {id} has just been started and timed {timed} commands"
        );
        Ok(id)
    }

    /// Sees to it that a replica leads.
    fn lead(&mut self, id: u8) -> Result<()> {
        let begin = Instant::now();
        loop {
            let leader = self.cluster.wait_for_leader(None)?;
            if leader == id {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                bail!("replica {leader} does not hand over to replica {id}");
            }
            self.strings.hand_over(leader, id);
            let asked = Instant::now();
            while asked.elapsed() < AGAIN && self.cluster.status(id)?.role != "leader" {
                thread::sleep(LOOK);
            }
        }
    }

    fn take_away(&mut self, id: u8) -> Result<()> {
        self.cluster.signal(id, Signal::SIGKILL)?;
        self.cluster.reap(id)
    }

    /// Starts a replica and waits until it has its vote and what was decided before.
    fn bring_back(&mut self, id: u8, leader: u8) -> Result<()> {
        let least = self.cluster.status(leader)?.commit;
        self.cluster.start(id, false)?;
        self.cluster.wait_for(id, "a voter again", |status| {
            status.voter && status.applied >= least
        })?;
        Ok(())
    }

    /// One follower goes and comes back; nanoseconds from its start until it has its vote.
    fn round(&mut self, id: u8, leader: u8) -> Result<u64> {
        // On a busy host another one may lead by now.
        self.lead(leader)?;
        self.take_away(id)?;
        thread::sleep(GONE);
        self.enter(Phase::Rejoin);
        let since = Instant::now();
        self.bring_back(id, leader)?;
        let ns = since.elapsed().as_nanos() as u64;
        self.enter(Phase::Rest);
        Ok(ns)
    }

    /// Whether a replica has the state of another one, once both are at the same entry.
    fn states_equal(&self, id: u8, leader: u8) -> Result<bool> {
        let begin = Instant::now();
        loop {
            let (theirs, mut own) = (self.strings.state(leader)?, self.strings.state(id)?);
            own.digest ^= u64::from(self.plan.forge);
            if own.applied == theirs.applied {
                return Ok(own.digest == theirs.digest);
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "replica {id} stays at entry {}, and the leader is at {}",
                own.applied,
                theirs.applied
            );
            thread::sleep(LOOK);
        }
    }

    /// What a leader's commands took since it was started.
    fn total(&self, leader: u8) -> Result<Percentiles> {
        let timed = total(&self.cluster.status(leader)?)?;
        ensure!(timed.count != 0, "replica {leader} timed no command");
        Ok(timed)
    }
}

fn total(status: &Status) -> Result<Percentiles> {
    let total = status.stages.iter().find(|(stage, _)| stage == "total");
    let (_, timed) = total.context("a status without the stage total")?;
    Ok((*timed).into())
}

/// Puts small values until it is over; the times of both phases.
fn call(mut client: Client, phase: &AtomicU8) -> Result<(Recorder, Recorder)> {
    let (mut calm, mut rejoin) = (Recorder::new()?, Recorder::new()?);
    let mut n = 0u64;
    loop {
        let before = phase.load(Ordering::Acquire);
        if before == Phase::Over as u8 {
            return Ok((calm, rejoin));
        }
        if before == Phase::Rest as u8 {
            thread::sleep(LOOK);
            continue;
        }
        let since = Instant::now();
        n += 1;
        client.put(b"small", &n.to_le_bytes())?;
        let ns = since.elapsed().as_nanos() as u64;
        if before != phase.load(Ordering::Acquire) {
            continue;
        }
        let times = match before == Phase::Calm as u8 {
            true => &mut calm,
            false => &mut rejoin,
        };
        times.record(ns);
    }
}

/// The memory of a process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Size {
    /// Resident: with shared memory, the logs of the peers are among it, which each process has mapped.
    pub(crate) resident_bytes: u64,
    /// Resident, pages that several processes have mapped being shared out among them.
    pub(crate) proportional_bytes: u64,
}

/// The largest of the replicas.
fn size(cluster: &Cluster) -> Result<Size> {
    let mut largest = Size::default();
    for id in cluster.ids() {
        let path = format!("/proc/{}/smaps_rollup", cluster.pid(id)?);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib =
                line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            kib.map(|kib| 1024 * kib)
                .with_context(|| format!("{name} in {path}"))
        };
        largest.resident_bytes = largest.resident_bytes.max(bytes("Rss:")?);
        largest.proportional_bytes = largest.proportional_bytes.max(bytes("Pss:")?);
    }
    Ok(largest)
}
