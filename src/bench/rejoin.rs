//! A follower that comes back with a large state: how long it takes, and what a client of the leader notices of it.
//!
//! Three replica processes get a state of so many bytes. One client puts small values, one at a time, all the time. A
//! follower is killed and started again: it pulls a snapshot and the log behind it from another follower, by one-sided
//! reads, and is done when it has its vote again. The client's times before that and meanwhile are kept apart. They are
//! round trips over TCP, so a change of the leader's own time shows in them less than it is.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use mu::kv::{Client, ClientOptions};
use nix::sys::signal::Signal;
use serde::Serialize;

pub(crate) use super::stats::Percentiles;
use super::stats::Recorder;
use crate::local::cluster::{Cluster, Kind};

/// Bytes of a value of the state.
const VALUE_BYTES: usize = 4096;
/// How long the client is measured with all replicas there, and how long a follower is gone.
const CALM: Duration = Duration::from_secs(2);
const GONE: Duration = Duration::from_millis(500);
/// Above the state's own bytes, for keys and sessions.
const SPARE_BYTES: u64 = 64 << 20;

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: u8,
    pub(crate) state_bytes: u64,
    pub(crate) rounds: u64,
    /// Further lines of the configuration.
    pub(crate) settings: String,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    /// Of the client, all replicas being there.
    pub(crate) latency: Percentiles,
    /// Of the client, while a replica comes back.
    pub(crate) latency_rejoin: Percentiles,
    pub(crate) ratio_p50: f64,
    /// From the start of the process until it has its vote again.
    pub(crate) rejoin: Percentiles,
    /// Of the largest replica, without state and with it.
    pub(crate) memory: Size,
    pub(crate) memory_with_state: Size,
    pub(crate) log_bytes: u64,
}

/// Which of the client's times are meant.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Phase {
    Calm,
    /// Kept out of both: a follower is gone, or nothing is measured yet.
    Between,
    Rejoin,
    Over,
}

pub(crate) fn run(plan: &Plan, told: &mut dyn FnMut(u64)) -> Result<Found> {
    let limit = plan.state_bytes + SPARE_BYTES;
    let mut cluster = Cluster::new(Kind {
        replicas: plan.replicas,
        settings: format!("snapshot_max_bytes = {limit}\n{}", plan.settings),
        command: vec!["serve".into()],
        arguments: Vec::new(),
    })?;
    for id in cluster.ids() {
        cluster.start(id, true)?;
    }
    let leader = cluster.wait_for_all()?;
    let mut client = client(&cluster)?;
    client.put(b"first", b"")?;
    let memory = size(&cluster)?;
    fill(&mut client, plan.state_bytes)?;
    let memory_with_state = size(&cluster)?;
    let phase = AtomicU8::new(Phase::Calm as u8);
    let over = AtomicBool::new(false);
    let (rejoin, latency) = thread::scope(|scope| {
        let caller = scope.spawn(|| call(client, &phase, &over));
        thread::sleep(CALM);
        let mut rejoin = Recorder::new()?;
        let done = (0..plan.rounds).try_for_each(|round| {
            let id = (leader + 1 + (round % u64::from(plan.replicas - 1)) as u8) % plan.replicas;
            rejoin.record(one(&mut cluster, id, leader, &phase)?);
            told(round + 1);
            anyhow::Ok(())
        });
        phase.store(Phase::Over as u8, Ordering::Release);
        over.store(true, Ordering::Release);
        let latency = caller
            .join()
            .map_err(|_| anyhow!("the client panicked"))??;
        done.map(|()| (rejoin, latency))
    })?;
    let (calm, during) = (latency.0.percentiles(), latency.1.percentiles());
    Ok(Found {
        latency: calm,
        latency_rejoin: during,
        ratio_p50: during.p50 as f64 / calm.p50.max(1) as f64,
        rejoin: rejoin.percentiles(),
        memory,
        memory_with_state,
        log_bytes: cluster.log_bytes(),
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

/// One follower goes and comes back; nanoseconds from its start until it has its vote.
fn one(cluster: &mut Cluster, id: u8, leader: u8, phase: &AtomicU8) -> Result<u64> {
    phase.store(Phase::Between as u8, Ordering::Release);
    cluster.signal(id, Signal::SIGKILL)?;
    cluster.reap(id)?;
    thread::sleep(GONE);
    let least = cluster.status(leader)?.commit;
    phase.store(Phase::Rejoin as u8, Ordering::Release);
    let since = Instant::now();
    cluster.start(id, false)?;
    cluster.wait_for(id, "a voter again", |status| {
        status.voter && status.applied >= least
    })?;
    let ns = since.elapsed().as_nanos() as u64;
    phase.store(Phase::Between as u8, Ordering::Release);
    Ok(ns)
}

/// Puts small values until told to stop; the times of both phases.
fn call(mut client: Client, phase: &AtomicU8, over: &AtomicBool) -> Result<(Recorder, Recorder)> {
    let (mut calm, mut rejoin) = (Recorder::new()?, Recorder::new()?);
    let mut n = 0u64;
    while !over.load(Ordering::Acquire) {
        let before = phase.load(Ordering::Acquire);
        let since = Instant::now();
        n += 1;
        client.put(b"small", &n.to_le_bytes())?;
        let ns = since.elapsed().as_nanos() as u64;
        if before != phase.load(Ordering::Acquire) {
            continue;
        }
        if before == Phase::Calm as u8 {
            calm.record(ns);
        } else if before == Phase::Rejoin as u8 {
            rejoin.record(ns);
        }
    }
    Ok((calm, rejoin))
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
