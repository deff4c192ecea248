//! A redis-server on mu beside what Redis itself offers, all in one run.
//!
//! Contestants: a server alone; a primary with two asynchronous replicas, also with `WAIT 2` behind each write; three
//! nodes on mu. All run all the time and take turns of a few thousand operations, so that whatever else the machine
//! does meets all of them. One blocking client, written here, so that nothing of a library is measured.

pub(crate) mod fault;
mod rate;
mod servers;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::bench::stats::{Clock, Percentiles, Random, Recorder};
use crate::local::cluster::{Cluster, Kind, PATIENCE};
use crate::redis::client::{Client, Reply};
use servers::Servers;

/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 32;
/// Keys that are written and read.
pub(crate) const KEYS: u64 = 1000;

/// Lines for a cluster of redis-servers: turns are proposed whole where they can be, datasets may be large, and a node
/// that the scheduler keeps waiting is not replaced, for a process that dies is seen at once anyhow.
pub(crate) const SETTINGS: &str = "max_command_bytes = 1048576\nsnapshot_max_bytes = 1073741824\n\
                                   heartbeat_us = 1000\ndetect_us = 500000\n";

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u64,
    pub(crate) operations: u64,
    pub(crate) rate: Duration,
    pub(crate) seed: u64,
    /// Further lines of the configuration.
    pub(crate) settings: String,
}

/// Latencies in nanoseconds, rates in commands a second.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) plain: Percentiles,
    pub(crate) async2: Percentiles,
    pub(crate) wait2: Percentiles,
    pub(crate) mu: Percentiles,
    pub(crate) get_plain: Percentiles,
    pub(crate) get_mu: Percentiles,
    pub(crate) rate_plain: u64,
    pub(crate) rate_async2: u64,
    pub(crate) rate_mu: u64,
    /// Until the followers had everything after the last stretch at full rate.
    pub(crate) followers_caught_up_ns: u64,
    pub(crate) set_to_async2: f64,
    pub(crate) set_to_wait2: f64,
    pub(crate) set_to_plain: f64,
    pub(crate) get_to_plain: f64,
    pub(crate) rate_to_async2: f64,
}

/// Three nodes on mu.
pub(crate) fn cluster(settings: &str, bug: Option<&str>) -> Result<Cluster> {
    let arguments = ["--", "redis-server", "--enable-debug-command", "yes"];
    let bug = bug.map(|bug| ["--fault".to_owned(), bug.to_owned()]);
    let mut cluster = Cluster::new(Kind {
        replicas: 3,
        settings: format!("{SETTINGS}{settings}"),
        command: std::iter::once("redis".to_owned())
            .chain(bug.into_iter().flatten())
            .collect(),
        arguments: arguments.map(str::to_owned).into(),
    })?;
    for id in cluster.ids() {
        cluster.start(id, true)?;
    }
    cluster.wait_for_all()?;
    Ok(cluster)
}

/// Waits until the server of one of them is a primary.
pub(crate) fn primary(cluster: &Cluster) -> Result<(u8, SocketAddr)> {
    let begin = std::time::Instant::now();
    loop {
        for (id, server) in cluster.clients().into_iter().enumerate() {
            let role =
                Client::connect(server, PATIENCE).and_then(|mut client| client.call(&[b"ROLE"]));
            if let Ok(Reply::Array(parts)) = role
                && parts.first().and_then(Reply::text).as_deref() == Some("master")
            {
                return Ok((id as u8, server));
            }
        }
        ensure!(begin.elapsed() < PATIENCE, "no node's server is a primary");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a primary is as it is most of the time: after some seconds it drops the backlog from when it followed.
fn settle(leader: SocketAddr) -> Result<()> {
    let begin = std::time::Instant::now();
    let mut client = Client::connect(leader, PATIENCE)?;
    while client
        .info("replication", "repl_backlog_active")?
        .as_deref()
        != Some("0")
    {
        ensure!(
            begin.elapsed() < PATIENCE,
            "the primary on mu keeps a backlog for nobody"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// One of the things that take turns.
struct Contestant {
    client: Client,
    waits: bool,
    recorder: Recorder,
    reads: Recorder,
}

impl Contestant {
    fn new(server: SocketAddr, waits: bool) -> Result<Self> {
        let client =
            Client::connect(server, PATIENCE).with_context(|| format!("connecting to {server}"))?;
        Ok(Self {
            client,
            waits,
            recorder: Recorder::new()?,
            reads: Recorder::new()?,
        })
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.client.push(&[b"SET", key, value]);
        if self.waits {
            // In one go, which is the least that a client can wait.
            self.client.push(&[b"WAIT", b"2", b"0"]);
        }
        self.client.flush()?;
        let reply = self.client.reply()?;
        ensure!(reply == Reply::Text(b"OK".to_vec()), "SET: {reply:?}");
        if self.waits {
            let reply = self.client.reply()?;
            ensure!(reply == Reply::Integer(2), "WAIT: {reply:?}");
        }
        Ok(())
    }

    /// One turn. The first operations of it warm up.
    fn turn(&mut self, plan: &Plan, clock: &Clock, random: &mut Random, reads: bool) -> Result<()> {
        let warm = plan.operations / 10;
        let value = [b'v'; VALUE_BYTES];
        for n in 0..plan.operations + warm {
            let key = format!("key:{}", random.below(KEYS));
            let begin = clock.now();
            match reads {
                false => self.write(key.as_bytes(), &value)?,
                true => {
                    let reply = self.client.call(&[b"GET", key.as_bytes()])?;
                    ensure!(!matches!(reply, Reply::Error(_)), "GET: {reply:?}");
                }
            }
            if n >= warm {
                let recorder = if reads {
                    &mut self.reads
                } else {
                    &mut self.recorder
                };
                recorder.record(clock.since(begin));
            }
        }
        Ok(())
    }
}

/// Runs everything. `told` hears how many rounds are over.
pub(crate) fn run(plan: &Plan, told: &mut dyn FnMut(u64)) -> Result<Found> {
    let servers = Servers::start()?;
    let cluster = cluster(&plan.settings, None)?;
    let (_, leader) = primary(&cluster)?;
    settle(leader)?;
    let clock = Clock::new();
    let mut random = Random::new(plan.seed);
    let mut all = [
        Contestant::new(servers.plain(), false)?,
        Contestant::new(servers.primary(), false)?,
        Contestant::new(servers.primary(), true)?,
        Contestant::new(leader, false)?,
    ];
    let mut rates: [Vec<u64>; 3] = Default::default();
    let mut caught_up_ns = 0;
    for round in 0..plan.rounds {
        for contestant in &mut all {
            contestant.turn(plan, &clock, &mut random, false)?;
        }
        for n in [0, 3] {
            all[n].turn(plan, &clock, &mut random, true)?;
        }
        let contestants = [servers.plain(), servers.primary(), leader];
        for (server, rates) in contestants.into_iter().zip(&mut rates) {
            rates.push(rate::run(server, plan.rate, &mut random)?);
        }
        caught_up_ns = rate::catch_up(&cluster)?;
        told(round + 1);
    }
    let [plain, async2, wait2, mu] = all
        .each_ref()
        .map(|contestant| contestant.recorder.percentiles());
    let [get_plain, get_mu] = [0, 3].map(|n: usize| all[n].reads.percentiles());
    let [rate_plain, rate_async2, rate_mu] = rates.map(median);
    let ratio = |a: u64, b: u64| (a as f64 / b.max(1) as f64 * 1000.0).round() / 1000.0;
    Ok(Found {
        rate_plain,
        rate_async2,
        rate_mu,
        followers_caught_up_ns: caught_up_ns,
        set_to_async2: ratio(mu.p50, async2.p50),
        set_to_wait2: ratio(mu.p50, wait2.p50),
        set_to_plain: ratio(mu.p50, plain.p50),
        get_to_plain: ratio(get_mu.p50, get_plain.p50),
        rate_to_async2: ratio(rate_mu, rate_async2),
        plain,
        async2,
        wait2,
        mu,
        get_plain,
        get_mu,
    })
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
