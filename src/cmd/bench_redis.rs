//! `mu bench redis`: a redis-server on mu beside what Redis itself offers, and its repeated loss.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Status, misuse, print, print_json, row, table};
use crate::bench::host::Host;
use crate::bench::redis;
use crate::bench::redis::fault::{self, Fault};
use crate::bench::stats::{Percentiles, fresh_seed};
use crate::local::load;
use crate::redis::check;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Takes the primary away again and again, instead of measuring latency and rate
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    /// Turns of each contestant, or primaries lost [default: 9, or 30 with --fault]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: Option<u64>,
    /// Operations of one turn
    #[arg(long, value_name = "N", default_value = "3000", value_parser = clap::value_parser!(u64).range(10..))]
    operations: u64,
    /// Milliseconds of one turn at full rate
    #[arg(long, value_name = "MS", default_value = "500", value_parser = clap::value_parser!(u64).range(10..))]
    rate_ms: u64,
    /// With --fault: clients that call all the time
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=64))]
    clients: u64,
    /// With --fault: microseconds between two calls of a client
    #[arg(long, value_name = "US", default_value = "300")]
    pause_us: u64,
    /// With --fault: MiB of other data, which a node that comes back has to get
    #[arg(long, value_name = "MIB", default_value = "0")]
    dataset_mib: u64,
    /// A line of the nodes' cluster.toml, such as "detect_us = 1000"
    #[arg(long, value_name = "LINE")]
    set: Vec<String>,
    /// A seeded bug of the nodes, with --fault: the command has to fail then
    #[arg(long, hide = true)]
    bug: Option<String>,
    /// Repeats the choices of a run
    #[arg(long)]
    seed: Option<u64>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a, F> {
    backend: &'static str,
    replicas: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    #[serde(flatten)]
    found: &'a F,
    #[serde(flatten)]
    host: Host,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    check::server("redis-server").map_err(|error| misuse(error.to_string()))?;
    check::object().map_err(|error| misuse(error.to_string()))?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => fresh_seed()?,
    };
    let settings = args.set.iter().map(|line| format!("{line}\n")).collect();
    match args.fault {
        None => latency(args, seed, settings),
        Some(fault) => faults(args, fault, seed, settings),
    }
}

fn bar(rounds: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(rounds);
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar
}

fn latency(args: &Args, seed: u64, settings: String) -> Result<Status> {
    let plan = redis::Plan {
        rounds: args.rounds.unwrap_or(9),
        operations: args.operations,
        rate: Duration::from_millis(args.rate_ms),
        seed,
        settings,
    };
    let bar = bar(plan.rounds, "turns");
    let found = redis::run(&plan, &mut |round| bar.set_position(round));
    bar.finish_and_clear();
    let found = found?;
    if args.json {
        print_json(&Report {
            backend: "shm",
            replicas: 3,
            fault: None,
            found: &found,
            host: Host::new(&[]),
        })?;
    } else {
        print(&latency_text(&found, seed))?;
    }
    Ok(Status::Holds)
}

fn us(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1000.0)
}

fn line(name: &str, p: &Percentiles) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    cells.extend([p.p50, p.p90, p.p99, p.max].map(us));
    cells
}

fn latency_text(found: &redis::Found, seed: u64) -> String {
    let rows = [
        row(["microseconds", "p50", "p90", "p99", "max"]),
        line("SET, a server alone", &found.plain),
        line("SET, two asynchronous replicas", &found.async2),
        line("SET, the same and WAIT 2", &found.wait2),
        line("SET, three nodes on mu", &found.mu),
        line("GET, a server alone", &found.get_plain),
        line("GET, three nodes on mu", &found.get_mu),
    ];
    format!(
        "{}\nSET p50 on mu: {} times the asynchronous primary, {} times WAIT 2, {} times a server alone; GET {} times\n\
         SET a second, 50 clients 16 deep: {} alone, {} with two asynchronous replicas, {} on mu ({} of the latter);\n\
         mu's followers had everything {} us after the last of them\nseed {seed}\n",
        table(&rows, 1),
        found.set_to_async2,
        found.set_to_wait2,
        found.set_to_plain,
        found.get_to_plain,
        found.rate_plain,
        found.rate_async2,
        found.rate_mu,
        found.rate_to_async2,
        us(found.followers_caught_up_ns),
    )
}

fn faults(args: &Args, fault: Fault, seed: u64, settings: String) -> Result<Status> {
    let plan = fault::Plan {
        rounds: args.rounds.unwrap_or(30),
        fault,
        load: load::Plan {
            clients: args.clients,
            keys: 16,
            pause: Duration::from_micros(args.pause_us),
            seed,
        },
        dataset_bytes: args.dataset_mib << 20,
        settings,
        bug: args.bug.clone(),
    };
    let bar = bar(plan.rounds, "primaries lost");
    let found = fault::run(&plan, &mut |round| bar.set_position(round));
    bar.finish_and_clear();
    let found = found?;
    if args.json {
        print_json(&Report {
            backend: "shm",
            replicas: 3,
            fault: Some(fault.name()),
            found: &found,
            host: Host::new(&[]),
        })?;
    } else {
        print(&faults_text(&found))?;
    }
    Ok(match found.holds() {
        true => Status::Holds,
        false => Status::DoesNotHold,
    })
}

fn faults_text(found: &fault::Found) -> String {
    let rows = [
        row([
            "microseconds from the fault until",
            "p50",
            "p90",
            "p99",
            "max",
        ]),
        line("a replica stands", &found.detect),
        line("it leads (the share of mu)", &found.mu_gap),
        line("a client has its answer", &found.total),
        line("the node is back as a follower", &found.rejoin),
    ];
    format!(
        "{}\n{} commands acknowledged, {} lost, {} stale reads, history {}\n\
         digests equal after {} of {} rounds; {} primaries changed without a fault\nseed {}\n",
        table(&rows, 1),
        found.acked,
        found.lost,
        found.stale_reads,
        found.why.as_deref().unwrap_or("linearizable"),
        found.digests_equal,
        found.rounds,
        found.false_failovers,
        found.seed,
    )
}
