//! Side by side: the same work on mu, OmniPaxos, raft-rs and openraft, in one run, interleaved. See README.md.

mod core;
mod host;
#[cfg(feature = "mu")]
mod mu;
mod omni_paxos;
mod open_raft;
mod raft_rs;
mod report;
mod rounds;
mod stats;

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::core::Core;
use crate::host::Host;
use crate::report::Report;
use crate::rounds::Plan;

/// Makes a contestant; it is given the processors of `--pin`.
type Make = fn(&[usize]) -> Result<Box<dyn Core>>;

/// The contestants, in the order of the output.
const CONTESTANTS: &[(&str, Make)] = &[
    #[cfg(feature = "mu")]
    ("mu", |pins| Ok(Box::new(mu::Mu::new(pins)?))),
    ("omnipaxos", |_| Ok(Box::new(omni_paxos::Omni::new()?))),
    ("raft-rs", |_| Ok(Box::new(raft_rs::RaftRs::new()?))),
    ("openraft", |_| Ok(Box::new(open_raft::OpenRaft::new()?))),
];

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
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(CONTESTANTS.iter().map(|c| c.0)))]
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

    /// The contestants that were asked for; all, if none was named.
    fn contestants(&self) -> Result<Vec<Box<dyn Core>>> {
        let asked = |name: &str| self.peer.is_empty() || self.peer.iter().any(|peer| peer == name);
        let chosen = CONTESTANTS.iter().filter(|(name, _)| asked(name));
        chosen
            .map(|(name, make)| make(&self.pin).with_context(|| format!("starting {name}")))
            .collect()
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let host = Host::new();
    // Before anything is made, so that every contestant's memory and threads start out there.
    if let Some(&cpu) = args.pin.first() {
        host::pin(cpu)?;
    }
    let mut contestants = args.contestants()?;
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
        for in_flight in [1, 7, 64, 1000] {
            let plan = Plan {
                rounds: 3,
                warm_up: 3,
                singles: 50,
                pipelined: 500,
                in_flight,
            };
            let args = Args::parse_from(["mu-peers"]);
            let figures = rounds::run(&mut args.contestants().unwrap(), &plan, |_| ()).unwrap();
            assert_eq!(figures.len(), CONTESTANTS.len());
            for (figures, (name, _)) in figures.iter().zip(CONTESTANTS) {
                assert_eq!((figures.name, figures.decided), (*name, 3 * 553));
            }
        }
    }
}
