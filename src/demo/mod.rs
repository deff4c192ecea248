//! What `mu demo` does: a group of processes under load loses its leader, goes on, gets the old one back, and what the
//! clients saw is judged.

mod page;

use std::time::Duration;
use std::{fmt, thread};

use anyhow::{Context as _, Result};
use mu::host::monotonic_ns;
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::local::cluster::{Cluster, Kind, PATIENCE};
use crate::local::judge::{Judgement, judge};
use crate::local::load::{Load, Plan, Record};

pub(crate) use page::page;

/// The replicas.
const REPLICAS: u8 = 3;

/// When what happened, in nanoseconds of the host's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) begin_ns: u64,
    pub(crate) loaded_ns: u64,
    pub(crate) killed_ns: u64,
    pub(crate) detected_ns: u64,
    pub(crate) switched_ns: u64,
    pub(crate) decided_ns: u64,
    pub(crate) restarted_ns: u64,
    pub(crate) rejoined_ns: u64,
    pub(crate) ended_ns: u64,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) times: Times,
    pub(crate) old_leader: u8,
    pub(crate) new_leader: u8,
    pub(crate) records: Vec<Record>,
    pub(crate) judgement: Judgement,
    pub(crate) clients: u64,
}

/// The same in figures.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) replicas: u8,
    pub(crate) old_leader: u8,
    pub(crate) new_leader: u8,
    pub(crate) detect_ns: u64,
    pub(crate) switch_ns: u64,
    pub(crate) total_ns: u64,
    pub(crate) rejoin_ns: u64,
    pub(crate) acked: u64,
    pub(crate) operations: usize,
    pub(crate) unknown: usize,
    pub(crate) lost: usize,
    pub(crate) stale_reads: usize,
    pub(crate) linearizable: &'static str,
    pub(crate) seconds: f64,
}

impl Shown {
    pub(crate) fn figures(&self) -> Figures {
        let (t, j) = (&self.times, &self.judgement);
        Figures {
            replicas: REPLICAS,
            old_leader: self.old_leader,
            new_leader: self.new_leader,
            detect_ns: t.detected_ns - t.killed_ns,
            switch_ns: t.switched_ns - t.killed_ns,
            total_ns: t.decided_ns - t.killed_ns,
            rejoin_ns: t.rejoined_ns - t.restarted_ns,
            acked: j.acked,
            operations: j.operations,
            unknown: j.unknown,
            lost: j.lost,
            stale_reads: j.stale_reads,
            linearizable: j.linearizable,
            seconds: (t.ended_ns - t.begin_ns) as f64 / 1e9,
        }
    }

    /// The sentence at the end.
    pub(crate) fn closing(&self) -> String {
        let j = &self.judgement;
        if j.holds() {
            return format!(
                "Nothing acknowledged was lost: all {} acknowledged commands are there, none was applied twice and no \
                 read was stale, checked over {} operations of {} clients.",
                j.acked, j.operations, self.clients
            );
        }
        format!(
            "SOMETHING IS WRONG: {} acknowledged commands lost, {} stale reads, the history is {}.",
            j.lost,
            j.stale_reads,
            j.why.as_deref().unwrap_or("linearizable")
        )
    }
}

/// Runs it, and says what happens as it happens.
pub(crate) fn run(
    phase: Duration,
    plan: Plan,
    say: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Result<Shown> {
    let mut times = Times {
        begin_ns: monotonic_ns(),
        ..Times::default()
    };
    let mut cluster = Cluster::new(Kind {
        replicas: REPLICAS,
        settings: String::new(),
        command: vec!["serve".into()],
        arguments: Vec::new(),
    })?;
    for id in cluster.ids() {
        cluster.start(id, true)?;
        let pid = cluster.pid(id)?;
        say(format_args!("replica {id} starts as process {pid}"));
    }
    let old_leader = cluster.wait_for_all()?;
    say(format_args!(
        "replica {old_leader} leads: the others let it write their logs, and nobody else"
    ));
    let load = Load::start(&cluster.clients(), plan)?;
    times.loaded_ns = monotonic_ns();
    say(format_args!(
        "{} clients write and read {} keys",
        plan.clients,
        2 * plan.keys
    ));
    thread::sleep(phase);
    // On a busy host another one may lead by now.
    let old_leader = cluster.wait_for_all()?;
    let acked = load.acked();
    say(format_args!(
        "{acked} commands are acknowledged; now kill -9 of replica {old_leader}"
    ));

    times.killed_ns = load.watch(old_leader);
    cluster.signal(old_leader, Signal::SIGKILL)?;
    times.decided_ns = load.regained(PATIENCE)?;
    cluster.reap(old_leader)?;
    let takeover = cluster.takeover(old_leader, times.killed_ns)?;
    let takeover =
        takeover.context("the leader had lost its office before it was killed; try again")?;
    let new_leader = takeover.leader;
    (times.detected_ns, times.switched_ns) = (takeover.stood_ns, takeover.led_ns);
    let ms = |at_ns: u64| (at_ns - times.killed_ns) as f64 / 1e6;
    say(format_args!(
        "{:8.3} ms after the kill replica {new_leader} found its leader dead and stood",
        ms(times.detected_ns)
    ));
    say(format_args!(
        "{:8.3} ms it led, with the permission of a majority, the old leader's taken away",
        ms(times.switched_ns)
    ));
    say(format_args!(
        "{:8.3} ms a client had the first answer from it",
        ms(times.decided_ns)
    ));
    thread::sleep(phase / 2);

    cluster.start(old_leader, false)?;
    times.restarted_ns = monotonic_ns();
    say(format_args!(
        "replica {old_leader} starts again, as process {}, with empty memory and no vote",
        cluster.pid(old_leader)?
    ));
    cluster.wait_for(old_leader, "a voter", |status| status.voter)?;
    times.rejoined_ns = monotonic_ns();
    say(format_args!(
        "{:8.3} ms later it has pulled the state from the others and has a vote again",
        (times.rejoined_ns - times.restarted_ns) as f64 / 1e6
    ));
    thread::sleep(phase / 2);
    let records = load.end()?;
    say(format_args!(
        "the clients stop; every key is read once more, and all they saw is checked"
    ));
    let judgement = judge(&cluster.clients(), &records)?;
    times.ended_ns = monotonic_ns();
    Ok(Shown {
        times,
        old_leader,
        new_leader,
        records,
        judgement,
        clients: plan.clients,
    })
}
