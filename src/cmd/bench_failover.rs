//! `mu bench failover`: repeated loss of the leader, processes for real.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Status, misuse, print, print_json, row, table};
use crate::bench::failover::steps::{CASES, Victim};
use crate::bench::failover::{self, Fault, Found, Plan};
use crate::bench::host::Host;
use crate::bench::stats::{Percentiles, fresh_seed};
use crate::local::load;

/// The one backend that there is for processes which are killed.
const SHM: &str = "shm";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the replicas are: processes of one host over shared memory
    #[arg(long, value_parser = [SHM], default_value = SHM)]
    backend: String,
    /// Replicas of the group
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u8).range(3..=9))]
    replicas: u8,
    /// What happens to the leader
    #[arg(long, value_enum, default_value = "kill")]
    fault: Fault,
    /// With kill and stop: not at any moment, but at each of the named steps of this replica in turn
    #[arg(long, value_enum, value_name = "WHO")]
    steps: Option<Victim>,
    /// Leaders lost [default: 50, or as many as there are steps]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: Option<u64>,
    /// Seconds without a fault before the rounds, idle, and as many under load; nobody may take over then
    #[arg(long, value_name = "SECONDS", default_value = "3")]
    quiet_s: f64,
    /// Clients that call all the time
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=64))]
    clients: u64,
    /// Microseconds between two calls of a client
    #[arg(long, value_name = "US", default_value = "300")]
    pause_us: u64,
    /// A line of the replicas' cluster.toml, such as "detect_us = 1000"
    #[arg(long, value_name = "LINE")]
    set: Vec<String>,
    /// Adds an acknowledged write that nobody made to what is judged, and changes the leader in the quiet time, whose
    /// successor's answers count as those of one without its office: the command has to fail then
    #[arg(long, hide = true)]
    forge: bool,
    /// Repeats the choices of a run: keys, commands, moments
    #[arg(long)]
    seed: Option<u64>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    backend: &'a str,
    replicas: u8,
    fault: String,
    rounds: u64,
    #[serde(flatten)]
    found: &'a Found,
    #[serde(flatten)]
    host: Host,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    if !(0.0..=86_400.0).contains(&args.quiet_s) {
        return Err(misuse("--quiet-s: expected 0 to 86400 seconds"));
    }
    if args.steps.is_some() && !matches!(args.fault, Fault::Kill | Fault::Stop) {
        return Err(misuse("--steps: expected --fault kill or --fault stop"));
    }
    let cases = |victim| CASES.iter().filter(|case| case.victim == victim).count();
    let default = args.steps.map_or(50, |victim| cases(victim) as u64);
    let rounds = args.rounds.unwrap_or(default);
    let seed = match args.seed {
        Some(seed) => seed,
        None => fresh_seed()?,
    };
    let plan = Plan {
        replicas: args.replicas,
        fault: args.fault,
        at: args.steps,
        rounds,
        quiet: Duration::from_secs_f64(args.quiet_s),
        load: load::Plan {
            clients: args.clients,
            keys: 16,
            pause: Duration::from_micros(args.pause_us),
            seed,
        },
        forge: args.forge,
        settings: args.set.iter().map(|line| format!("{line}\n")).collect(),
    };
    let bar = ProgressBar::new(rounds);
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message("leaders lost");
    let found = failover::run(&plan, &mut |round| bar.set_position(round));
    bar.finish_and_clear();
    let found = found?;
    let status = match found.holds() {
        true => Status::Holds,
        false => Status::DoesNotHold,
    };
    if args.json {
        print_json(&Report {
            backend: &args.backend,
            replicas: args.replicas,
            fault: args.fault.to_string(),
            rounds,
            found: &found,
            host: Host::new(&[]),
        })?;
    } else {
        print(&text(args, rounds, &found))?;
    }
    Ok(status)
}

fn text(args: &Args, rounds: u64, found: &Found) -> String {
    let us = |ns: u64| format!("{:.0}", ns as f64 / 1000.0);
    let line = |name: &str, p: &Percentiles| {
        let figures = [p.p50, p.p90, p.p99, p.max].map(us);
        let mut cells = vec![name.to_owned()];
        cells.extend(figures);
        cells
    };
    let rows = [
        row([
            "microseconds from the fault until",
            "p50",
            "p90",
            "p99",
            "max",
        ]),
        line("a replica stands", &found.detect),
        line("it leads", &found.switch),
        line("a client has its answer", &found.total),
    ];
    let mut text = format!(
        "{} replica processes over shared memory, fault {}, {} rounds\n\n{}\n",
        args.replicas,
        args.fault,
        rounds,
        table(&rows, 1)
    );
    text += &format!(
        "{} commands acknowledged, {} lost, {} stale reads, history {}\n\
         {} false failovers in {} s idle and as many loaded; the old leader counted again after {} ms (p50)\n",
        found.acked,
        found.lost,
        found.stale_reads,
        found.why.as_deref().unwrap_or("linearizable"),
        found.false_failovers,
        found.quiet_s,
        found.rejoin.p50 / 1_000_000,
    );
    if found.rejoin.count > 0 && !matches!(args.fault, Fault::Kill | Fault::Handover) {
        text += &format!(
            "requests that a leader without its office answered when it woke up: {} of {}\n",
            found.woken_answers, found.woken_asked
        );
    }
    for (step, rounds) in &found.steps {
        text += &format!("{step}: {rounds}\n");
    }
    text += &format!("seed {}\n", found.seed);
    text
}
