//! Many runs: seeds over all cores, what they covered, and the bug zoo.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mu_protocol::zoo::Bug;

use super::{Options, Outcome, Report, Row, run};
use crate::faults::Fault;

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What went wrong.
    pub what: String,
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Seeds that were run.
    pub seeds: u64,
    /// Those that failed, in ascending order.
    pub failures: Vec<Failure>,
    /// Seeds that were run twice and gave another hash.
    pub not_repeated: Vec<u64>,
    /// How often each row of the fault matrix and each fault of a device was hit.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Runs whose history was not judged to the end by the second opinion.
    pub unknown: u64,
    /// Entries decided, operations answered, events of the worlds.
    pub entries: u64,
    /// Operations answered.
    pub answered: u64,
    /// Events.
    pub events: u64,
}

impl Summary {
    /// Rows and faults that were never hit.
    pub fn missing(&self) -> Vec<&'static str> {
        let zero = self.coverage.iter().filter(|(_, hits)| **hits == 0);
        zero.map(|(name, _)| *name).collect()
    }

    fn add(&mut self, seed: u64, report: &Report) {
        self.seeds += 1;
        if let Some(what) = failed(report) {
            let at = self.failures.partition_point(|failure| failure.seed < seed);
            self.failures.insert(at, Failure { seed, what });
        }
        report.rows.add_to(&mut self.coverage);
        report.faults.add_to(&mut self.coverage);
        self.unknown += u64::from(report.unknown);
        self.entries += report.entries;
        self.answered += report.operations.1 as u64;
        self.events += report.events;
    }
}

fn failed(report: &Report) -> Option<String> {
    match &report.outcome {
        Outcome::Held => None,
        Outcome::Violated(what) => Some(format!("violated: {what}")),
        Outcome::Stuck(what) => Some(format!("stuck: {what}")),
    }
}

/// Runs `seeds` seeds from `first` on `threads` threads; every `repeat`th twice, to compare the hashes (0: none).
/// `bug` is seeded into the protocol, if there is one. `progress` is called after each run.
pub fn many(
    first: u64,
    seeds: u64,
    threads: usize,
    repeat: u64,
    bug: Option<Bug>,
    progress: impl Fn() + Sync,
) -> Summary {
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    for name in Row::ALL
        .iter()
        .map(|row| row.name())
        .chain(Fault::in_groups().map(Fault::name))
    {
        summary
            .lock()
            .expect("no panic yet")
            .coverage
            .insert(name, 0);
    }
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= seeds {
                return;
            }
            let seed = first.wrapping_add(n);
            let once = || {
                run(Options {
                    seed,
                    bug,
                    ..Options::default()
                })
            };
            let report = once();
            let repeats = repeat == 0 || !n.is_multiple_of(repeat) || once().hash == report.hash;
            let mut summary = summary.lock().expect("a run that panics ends all");
            summary.add(seed, &report);
            if !repeats {
                summary.not_repeated.push(seed);
            }
            drop(summary);
            progress();
        }
    };
    std::thread::scope(|scope| {
        (0..threads.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let mut summary = summary.into_inner().expect("all runs are over");
    summary.not_repeated.sort_unstable();
    summary
}

/// Whether a seeded bug was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Which.
    pub bug: Bug,
    /// The lowest seed that catches it, and how; `None` if none does.
    pub by: Option<Failure>,
    /// Seeds that were tried until then.
    pub seeds: u64,
}

/// Runs `bug` with up to `seeds` seeds from `first`, until one catches it.
pub fn hunt(bug: Bug, first: u64, seeds: u64, threads: usize) -> Caught {
    let next = AtomicU64::new(0);
    let found = AtomicBool::new(false);
    let best: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let work = || {
        // Seeds are given out in order, so once one has caught it no lower one is missing but those under way.
        while !found.load(Ordering::Acquire) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= seeds {
                return;
            }
            let seed = first.wrapping_add(n);
            let report = run(Options {
                seed,
                bug: Some(bug),
                ..Options::default()
            });
            // What the sound protocol fails as well is not the bug's doing.
            let sound = || {
                failed(&run(Options {
                    seed,
                    aim: Some(bug),
                    ..Options::default()
                }))
                .is_none()
            };
            if let Some(what) = failed(&report).filter(|_| sound()) {
                found.store(true, Ordering::Release);
                let mut best = best.lock().expect("a run that panics ends all");
                if best.as_ref().is_none_or(|(lowest, _)| n < *lowest) {
                    *best = Some((n, what));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (0..threads.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let best = best.into_inner().expect("all runs are over");
    Caught {
        bug,
        seeds: best.as_ref().map_or(seeds, |(n, _)| n + 1),
        by: best.map(|(n, what)| Failure {
            seed: first.wrapping_add(n),
            what,
        }),
    }
}
