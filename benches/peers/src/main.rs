//! Side by side: the same work on mu, OmniPaxos, raft-rs and openraft, in one run, interleaved. See README.md.

mod all_logs;
mod contestant;
mod host;
#[cfg(feature = "mu")]
mod mu;
mod node;
mod omni_paxos;
mod one_thread;
mod open_raft;
mod raft_rs;
mod report;
mod rounds;
mod stats;
mod two_threads;

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::all_logs::AllLogs;
use crate::contestant::Core;
use crate::host::Host;
use crate::node::Node;
use crate::omni_paxos::Omni;
use crate::one_thread::OneThread;
use crate::open_raft::OpenRaft;
use crate::raft_rs::RaftRs;
use crate::report::Report;
use crate::rounds::Plan;
use crate::two_threads::TwoThreads;

/// A contestant that can be run.
struct Contestant {
    name: &'static str,
    /// Processors that it must have for itself.
    cpus: usize,
    /// Makes it; is given the processors of `--pin`.
    make: fn(&[usize]) -> Result<Box<dyn Core>>,
}

impl Contestant {
    const fn new(
        name: &'static str,
        cpus: usize,
        make: fn(&[usize]) -> Result<Box<dyn Core>>,
    ) -> Self {
        Self { name, cpus, make }
    }
}

/// The contestants, in the order of the output.
const CONTESTANTS: &[Contestant] = &[
    #[cfg(feature = "mu")]
    Contestant::new(mu::OneThread::NAME, 1, |_| {
        Ok(Box::new(mu::OneThread::new()?))
    }),
    Contestant::new(Omni::NAMES[0], 1, |_| {
        Ok(Box::new(OneThread::<Omni>::new()?))
    }),
    Contestant::new(RaftRs::NAMES[0], 1, |_| {
        Ok(Box::new(OneThread::<RaftRs>::new()?))
    }),
    Contestant::new("openraft", 1, |_| Ok(Box::new(OpenRaft::new()?))),
    #[cfg(feature = "mu")]
    Contestant::new(mu::OneThread::ALL_LOGS_NAME, 1, |_| {
        let (core, name) = (mu::OneThread::new()?, mu::OneThread::ALL_LOGS_NAME);
        let setup =
            "1 thread; both logs, the leader's applying and the end of its turn on the clock";
        Ok(Box::new(AllLogs::at_once(core, name, setup)))
    }),
    Contestant::new(Omni::NAMES[2], 1, |_| all_logs::<Omni>()),
    Contestant::new(RaftRs::NAMES[2], 1, |_| all_logs::<RaftRs>()),
    #[cfg(feature = "mu")]
    Contestant::new(mu::TwoThreads::NAME, 2, |pins| {
        Ok(Box::new(mu::TwoThreads::new(pins)?))
    }),
    Contestant::new(Omni::NAMES[1], 2, |pins| {
        Ok(Box::new(TwoThreads::<Omni>::new(pins)?))
    }),
    Contestant::new(RaftRs::NAMES[1], 2, |pins| {
        Ok(Box::new(TwoThreads::<RaftRs>::new(pins)?))
    }),
];

fn all_logs<N: Node>() -> Result<Box<dyn Core>> {
    let core = OneThread::<N>::new()?;
    Ok(Box::new(AllLogs::new(
        core,
        N::NAMES[2],
        "1 thread, until no message is left",
    )))
}

/// Three replicas in one process and 64-byte commands: mu beside other replication libraries.
#[derive(Debug, Parser)]
#[command(name = "mu-peers")]
struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Processor of the measuring thread; a second one for threads that a contestant starts.
    #[arg(long, value_name = "CPU[,CPU]", value_delimiter = ',')]
    pin: Vec<usize>,
    /// Only these contestants.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(CONTESTANTS.iter().map(|c| c.name)))]
    peer: Vec<String>,
    /// Rounds; every contestant has a slice of each.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: u64,
    /// Commands of a slice that are decided one at a time.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    singles: u64,
    /// Commands of a slice that are pipelined.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pipelined: u64,
    /// Commands in flight when pipelined.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    in_flight: u64,
}

impl Args {
    fn plan(&self) -> Plan {
        Plan {
            rounds: self.rounds as usize,
            warm_up: self.singles.div_ceil(10),
            singles: self.singles,
            pipelined: self.pipelined,
            in_flight: self.in_flight as usize,
        }
    }

    /// The contestants that were named; if none was, all that there are processors for.
    fn contestants(&self, host: &Host) -> Result<Vec<Box<dyn Core>>> {
        let cpus = if self.pin.is_empty() {
            host.cpus
        } else {
            self.pin.len()
        };
        let mut made = Vec::new();
        for contestant in CONTESTANTS {
            let (name, room) = (contestant.name, contestant.cpus <= cpus);
            let named = self.peer.iter().any(|peer| peer == name);
            ensure!(
                room || !named,
                "{name} needs {} processors: name as many with --pin",
                contestant.cpus
            );
            if named || (self.peer.is_empty() && room) {
                let core = (contestant.make)(&self.pin);
                made.push(core.with_context(|| format!("starting {name}"))?);
            }
        }
        Ok(made)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let host = Host::new();
    // Before anything is made, so that every contestant's memory and threads start out there.
    if let Some(&cpu) = args.pin.first() {
        host::pin(cpu)?;
    }
    let mut contestants = args.contestants(&host)?;
    let plan = args.plan();
    let shown = std::io::stderr().is_terminal();
    let figures = rounds::run(&mut contestants, &plan, |done| {
        if shown {
            eprint!("\rround {done} of {} ", plan.rounds);
        }
    })?;
    if shown {
        eprintln!();
    }
    let report = Report::new(host, &figures, &plan, &args.pin);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a measurement: every real contestant decides and applies everything, windows of odd sizes included.
    #[test]
    fn every_contestant_passes_the_check() {
        let (args, host) = (Args::parse_from(["mu-peers"]), Host::new());
        for in_flight in [1, 7, 64, 1000] {
            let plan = Plan {
                rounds: 3,
                warm_up: 3,
                singles: 50,
                pipelined: 500,
                in_flight,
            };
            let figures =
                rounds::run(&mut args.contestants(&host).unwrap(), &plan, |_| ()).unwrap();
            let expected: Vec<_> = CONTESTANTS
                .iter()
                .filter(|c| c.cpus <= host.cpus)
                .map(|c| (c.name, 3 * 553))
                .collect();
            let found: Vec<_> = figures.iter().map(|f| (f.name, f.decided)).collect();
            assert_eq!(found, expected);
        }
    }
}
