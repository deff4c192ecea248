//! Explores the model of the protocol and prints what was explored.
//!
//! ```text
//! mu-model ci          every configuration of CI, then every negative control
//! mu-model deep [NAME] the larger bounds, or those of this name: tens of millions of states, several GiB
//! mu-model trace BUG   the steps from the beginning to the violation that a seeded bug leads to
//! ```
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mu_model::bugs::Bug;
use mu_model::config::Config;
use mu_model::run::{Outcome, explore};
use mu_model::sets;

#[derive(Parser)]
#[command(about = "Explores the model of the protocol")]
struct Args {
    /// Threads that explore.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The configurations of CI and the negative controls.
    Ci,
    /// The configurations with larger bounds.
    Deep {
        /// Only those whose name contains this.
        #[arg(default_value = "")]
        only: String,
    },
    /// How a seeded bug leads to a violation.
    Trace {
        /// Its name.
        bug: String,
    },
}

fn main() -> ExitCode {
    let Args { threads, what } = Args::parse();
    let sound = match what {
        What::Ci => run(sets::CI, threads) & controls(threads),
        What::Deep { only } => {
            let chosen = sets::DEEP
                .iter()
                .filter(|config| config.name.contains(&only));
            run(&chosen.cloned().collect::<Vec<_>>(), threads)
        }
        What::Trace { bug } => trace(&bug),
    };
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Explores configurations that must hold.
fn run(configs: &[Config], threads: usize) -> bool {
    println!(
        "{:<34} {:>11} {:>12} {:>6} {:>8}  {:<9} result",
        "configuration", "unique", "generated", "depth", "seconds", "exhausted"
    );
    let mut sound = true;
    let mut states = 0;
    for config in configs {
        let outcome = explore(config, threads);
        println!(
            "{:<34} {:>11} {:>12} {:>6} {:>8.1}  {:<9} {}",
            config.name,
            outcome.unique,
            outcome.generated,
            outcome.depth,
            outcome.took.as_secs_f64(),
            if outcome.exhausted { "yes" } else { "no" },
            result(&outcome),
        );
        sound &= outcome.holds();
        states += outcome.unique;
    }
    println!("{} configurations, {states} states\n", configs.len());
    sound && !configs.is_empty()
}

fn result(outcome: &Outcome) -> String {
    match &outcome.violation {
        Some((violation, steps)) => format!("{violation:?} after {} steps", steps.len()),
        None if outcome.two_writers => "a log had two writers".into(),
        None if !outcome.missing.is_empty() => format!("never came by: {:?}", outcome.missing),
        None => format!("holds, came by all {} situations", outcome.wanted),
    }
}

/// Explores configurations with a seeded bug, which must be found.
fn controls(threads: usize) -> bool {
    println!(
        "{:<20} {:<14} {:>9} {:>6} {:>8}  found as",
        "seeded bug", "configuration", "states", "steps", "seconds"
    );
    let mut found = 0;
    for &bug in Bug::ALL {
        let config = sets::control(bug);
        let outcome = explore(&config, threads);
        let (steps, verdict) = match &outcome.violation {
            Some((violation, steps)) => (steps.len(), format!("{violation:?}")),
            None => (0, "NOT FOUND".into()),
        };
        let writers = if outcome.two_writers {
            ", two writers"
        } else {
            ""
        };
        println!(
            "{:<20} {:<14} {:>9} {steps:>6} {:>8.2}  {verdict}{writers}",
            bug.name(),
            config.name,
            outcome.unique,
            outcome.took.as_secs_f64(),
        );
        found += usize::from(outcome.violation.is_some());
    }
    println!("{found} of {} seeded bugs found", Bug::ALL.len());
    found == Bug::ALL.len()
}

/// One thread, so that the way is a shortest one and the same each time.
fn trace(name: &str) -> bool {
    let Some(&bug) = Bug::ALL.iter().find(|bug| bug.name() == name) else {
        eprintln!("no seeded bug '{name}'; there are:");
        Bug::ALL
            .iter()
            .for_each(|bug| eprintln!("  {:<20}{}", bug.name(), bug.what()));
        return false;
    };
    println!("{}:{}", bug.name(), bug.what());
    let outcome = explore(&sets::control(bug), 1);
    let Some((violation, steps)) = outcome.violation else {
        println!("not found in {} states", outcome.unique);
        return false;
    };
    for (number, (_, step)) in steps.iter().enumerate() {
        println!("{:>3}  {step:?}", number + 1);
    }
    println!("{violation:?}");
    true
}
