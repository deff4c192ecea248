//! `mu sim`: the protocol in the deterministic simulator, one seed or many, and the bug zoo.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use clap::ArgGroup;
use indicatif::{ProgressBar, ProgressStyle};
use mu_protocol::zoo::Bug;
use mu_sim::group::{self, Caught, Options, Outcome, Summary};
use serde::Serialize;

use super::{Status, misuse, print, print_json, table};

/// Every so many seeds are run twice, and the hashes of both runs compared.
const REPEAT_EVERY: u64 = 50;
/// From so many seeds on, a row of the fault matrix that was never hit counts as a failure.
const COVERED_SEEDS: u64 = 2000;
/// Seeds that a bug of the zoo is given by default.
const ZOO_SEEDS: u64 = 4_000;
const SEEDS: u64 = 1000;
/// Failures that the table shows.
const SHOWN: usize = 20;

#[derive(clap::Args)]
#[command(group = ArgGroup::new("kind").args(["seed", "zoo"]))]
pub(crate) struct Args {
    /// How many seeds to run [default: 1000; with --zoo, 4000 at most for each bug]
    #[arg(long, value_name = "N", conflicts_with = "seed", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// The first seed
    #[arg(
        long,
        value_name = "SEED",
        default_value_t = 0,
        conflicts_with = "seed"
    )]
    first: u64,
    /// Runs this seed alone, twice, and compares the hashes of both runs
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// With --seed: shows everything that happens, on standard error
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Seeds this bug of the zoo into the protocol; with --zoo, tries it alone
    #[arg(long, value_name = "NAME")]
    bug: Option<String>,
    /// Tries every bug of the zoo until a seed catches it
    #[arg(long)]
    zoo: bool,
    /// Threads to run on [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    threads: Option<u64>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    seeds: u64,
    failed: u64,
    first_failing_seed: Option<u64>,
    seeds_per_s: f64,
    coverage: BTreeMap<&'static str, u64>,
    /// Rows that were never hit.
    missing: Vec<&'static str>,
    /// Seeds whose second run was another one.
    not_repeated: Vec<u64>,
    /// Histories that the search for a linearization gave up.
    unknown: u64,
    entries: u64,
    operations: u64,
    events: u64,
    /// What went wrong, and the command that shows it again.
    failures: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    seed: u64,
    what: String,
    replay: String,
}

#[derive(Serialize)]
struct Zoo {
    bugs: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    what: &'static str,
    caught: bool,
    /// What catches it.
    tool: &'static str,
    /// Seeds until it was caught.
    seeds: u64,
    seed: Option<u64>,
    by: Option<String>,
}

#[derive(Serialize)]
struct One {
    seeds: u64,
    failed: u64,
    first_failing_seed: Option<u64>,
    seeds_per_s: f64,
    coverage: BTreeMap<&'static str, u64>,
    hash: String,
    repeated: bool,
    outcome: String,
    run: String,
    entries: u64,
    operations: u64,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let bug = args.bug.as_deref().map(named).transpose()?;
    match (args.seed, args.zoo) {
        (Some(seed), _) => one(args, seed, bug),
        (None, true) => zoo(args, bug),
        (None, false) => many(args, bug),
    }
}

fn named(name: &str) -> Result<Bug> {
    let found = Bug::ALL.iter().find(|bug| bug.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        misuse(format!(
            "--bug '{name}': expected one of {}",
            names.join(", ")
        ))
    })
}

fn threads(args: &Args) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, Into::into);
    args.threads.map_or_else(all, |n| n as usize)
}

fn bar(len: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    let bar = ProgressBar::new(len).with_message(what.to_owned());
    bar.with_style(style.expect("a fixed template"))
}

fn pair(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn replay(seed: u64, bug: Option<Bug>) -> String {
    let bug = bug.map_or(String::new(), |bug| format!(" --bug {}", bug.name()));
    format!("mu sim --seed {seed}{bug} --trace")
}

fn many(args: &Args, bug: Option<Bug>) -> Result<Status> {
    let seeds = args.seeds.unwrap_or(SEEDS);
    let bar = bar(seeds, "seeds");
    let start = Instant::now();
    let summary = group::many(args.first, seeds, threads(args), REPEAT_EVERY, bug, || {
        bar.inc(1)
    });
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let missing = if seeds < COVERED_SEEDS {
        Vec::new()
    } else {
        summary.missing()
    };
    let holds =
        summary.failures.is_empty() && summary.not_repeated.is_empty() && missing.is_empty();
    let report = report(summary, bug, missing, seconds);
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(if holds {
        Status::Holds
    } else {
        Status::DoesNotHold
    })
}

fn report(summary: Summary, bug: Option<Bug>, missing: Vec<&'static str>, seconds: f64) -> Report {
    let failures = summary.failures.iter().map(|failure| Shown {
        seed: failure.seed,
        what: failure.what.clone(),
        replay: replay(failure.seed, bug),
    });
    Report {
        seeds: summary.seeds,
        failed: summary.failures.len() as u64,
        first_failing_seed: summary.failures.first().map(|failure| failure.seed),
        seeds_per_s: summary.seeds as f64 / seconds,
        failures: failures.collect(),
        coverage: summary.coverage,
        missing,
        not_repeated: summary.not_repeated,
        unknown: summary.unknown,
        entries: summary.entries,
        operations: summary.answered,
        events: summary.events,
    }
}

fn text(report: &Report) -> String {
    let mut rows = vec![
        pair("seeds", report.seeds.to_string()),
        pair("failed", report.failed.to_string()),
        pair("seeds a second", format!("{:.1}", report.seeds_per_s)),
        pair("entries decided", report.entries.to_string()),
        pair("operations answered", report.operations.to_string()),
        pair(
            "histories not judged to the end",
            report.unknown.to_string(),
        ),
    ];
    rows.extend(
        report
            .coverage
            .iter()
            .map(|(name, hits)| pair(name, hits.to_string())),
    );
    let mut text = table(&rows, 1);
    for failure in report.failures.iter().take(SHOWN) {
        text += &format!(
            "\nseed {} {}\n  {}\n",
            failure.seed, failure.what, failure.replay
        );
    }
    if report.failures.len() > SHOWN {
        text += &format!("\nand {} more\n", report.failures.len() - SHOWN);
    }
    for seed in &report.not_repeated {
        text += &format!("\nseed {seed} gave another run the second time\n");
    }
    if !report.missing.is_empty() {
        text += &format!("\nnever hit: {}\n", report.missing.join(", "));
    }
    text
}

fn one(args: &Args, seed: u64, bug: Option<Bug>) -> Result<Status> {
    let trace: Option<group::Trace> = if args.trace {
        let mut out = std::io::BufWriter::new(std::io::stderr());
        // A reader that went away is no error.
        Some(Box::new(move |line| drop(writeln!(out, "{line}"))))
    } else {
        None
    };
    let start = Instant::now();
    let first = group::run(Options {
        seed,
        bug,
        trace,
        ..Options::default()
    });
    let seconds = start.elapsed().as_secs_f64();
    let second = group::run(Options {
        seed,
        bug,
        ..Options::default()
    });
    let mut coverage = BTreeMap::new();
    first.rows.add_to(&mut coverage);
    first.faults.add_to(&mut coverage);
    let (failed, outcome) = match &first.outcome {
        Outcome::Held => (false, "held".to_owned()),
        Outcome::Violated(what) => (true, format!("violated: {what}")),
        Outcome::Stuck(what) => (true, format!("stuck: {what}")),
    };
    let repeated = first.hash == second.hash;
    let report = One {
        seeds: 1,
        failed: failed.into(),
        first_failing_seed: failed.then_some(seed),
        seeds_per_s: 1.0 / seconds,
        coverage,
        hash: format!("{:016x}", first.hash),
        repeated,
        outcome,
        run: first.what,
        entries: first.entries,
        operations: first.operations.1 as u64,
    };
    if args.json {
        print_json(&report)?;
    } else {
        let mut rows = vec![
            pair("hash", report.hash.clone()),
            pair(
                "second run the same",
                if repeated { "yes" } else { "NO" }.to_owned(),
            ),
            pair("entries decided", report.entries.to_string()),
            pair("operations answered", report.operations.to_string()),
        ];
        let hit = report.coverage.iter().filter(|(_, hits)| **hits > 0);
        rows.extend(hit.map(|(name, hits)| pair(name, hits.to_string())));
        let (outcome, run) = (&report.outcome, &report.run);
        let again = if repeated {
            ""
        } else {
            "NOT REPEATED: the second run was another one\n"
        };
        print(&format!("{again}{outcome}\n\n{run}\n\n{}", table(&rows, 1)))?;
    }
    Ok(if failed || !repeated {
        Status::DoesNotHold
    } else {
        Status::Holds
    })
}

fn zoo(args: &Args, bug: Option<Bug>) -> Result<Status> {
    let chosen: Vec<Bug> = bug.map_or_else(|| Bug::ALL.to_vec(), |bug| vec![bug]);
    let bar = bar(chosen.len() as u64, "bugs");
    let bugs: Vec<Row> = chosen
        .into_iter()
        .map(|bug| {
            let caught = group::hunt(
                bug,
                args.first,
                args.seeds.unwrap_or(ZOO_SEEDS),
                threads(args),
            );
            bar.inc(1);
            entry(caught)
        })
        .collect();
    bar.finish_and_clear();
    let caught = bugs.iter().filter(|bug| bug.caught).count();
    let all = caught == bugs.len();
    if args.json {
        print_json(&Zoo { bugs })?;
    } else {
        let mut text = format!(
            "{caught} of {} bugs caught by the simulator, by the seed that is named (mu sim --seed S --bug NAME)\n\n",
            bugs.len()
        );
        for bug in &bugs {
            let by = match &bug.by {
                Some(by) => format!("seed {}: {by}", bug.seed.unwrap_or(0)),
                None => "NOT CAUGHT".into(),
            };
            let by: String = by.chars().take(100).collect();
            text += &format!("{:<24} {:>6} seeds  {by}\n", bug.name, bug.seeds);
        }
        print(&text)?;
    }
    Ok(if all {
        Status::Holds
    } else {
        Status::DoesNotHold
    })
}

fn entry(caught: Caught) -> Row {
    Row {
        name: caught.bug.name(),
        what: caught.bug.what().trim(),
        caught: caught.by.is_some(),
        tool: "mu sim",
        seeds: caught.seeds,
        seed: caught.by.as_ref().map(|failure| failure.seed),
        by: caught.by.map(|failure| failure.what),
    }
}
