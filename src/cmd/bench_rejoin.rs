//! `mu bench rejoin`: a follower comes back with a large state.

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Serialize;

use super::{Status, print, print_json, row, table};
use crate::bench::host::{Host, allowed_cpus};
use crate::bench::rejoin::{self, Found, Plan};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Replicas of the group
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u8).range(3..=9))]
    replicas: u8,
    /// MiB of state that each replica has
    #[arg(long, value_name = "MIB", default_value = "64", value_parser = clap::value_parser!(u64).range(1..=16_384))]
    state_mib: u64,
    /// Times that a follower goes and comes back
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// A line of the replicas' cluster.toml, such as "log_bytes = 16777216"
    #[arg(long, value_name = "LINE")]
    set: Vec<String>,
    /// Changes what a replica that came back tells of its state: the command has to fail then
    #[arg(long, hide = true)]
    forge: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    backend: &'static str,
    replicas: u8,
    state_bytes: u64,
    rounds: u64,
    #[serde(flatten)]
    found: Found,
    #[serde(flatten)]
    host: Host,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let plan = Plan {
        replicas: args.replicas,
        state_bytes: args.state_mib << 20,
        rounds: args.rounds,
        cpus: allowed_cpus()?,
        settings: args.set.iter().map(|line| format!("{line}\n")).collect(),
        forge: args.forge,
    };
    // Before the run, which leaves the leader a processor of its own.
    let host = Host::new(plan.own());
    let bar = ProgressBar::new(plan.rounds);
    let found = rejoin::run(&plan, &mut |round| bar.set_position(round));
    bar.finish_and_clear();
    let found = found?;
    let status = match found.holds() {
        true => Status::Holds,
        false => Status::DoesNotHold,
    };
    let report = Report {
        backend: "shm",
        replicas: plan.replicas,
        state_bytes: plan.state_bytes,
        rounds: plan.rounds,
        found,
        host,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(status)
}

fn text(report: &Report) -> String {
    let found = &report.found;
    let us = |ns: u64| format!("{:.1}", ns as f64 / 1000.0);
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let line = |name: &str, p: &rejoin::Percentiles| {
        let figures = [p.p50, p.p90, p.p99, p.max].map(us);
        [name.to_owned()].into_iter().chain(figures).collect()
    };
    let rows = [
        row(["microseconds", "p50", "p90", "p99", "max"]),
        line("a command at the leader, all replicas there", &found.leader),
        line("the same while one comes back", &found.leader_rejoin),
        line("a client's put, all replicas there", &found.latency),
        line("the same while one comes back", &found.latency_rejoin),
        line("from its start until it has its vote", &found.rejoin),
    ];
    format!(
        "{} replica processes over shared memory, {} of state, {} rounds\n\n{}\n\
         ratio of the p50 {:.2} at the leader, {:.2} at the client; it had the leader's state after {} of {} rounds, \
         the leader made {} of the snapshots\n\
         with a log of {}, a replica has {} of memory ({} with the logs of its peers, which it has mapped), and {} \
         with the state\n",
        report.replicas,
        mib(report.state_bytes),
        report.rounds,
        table(&rows, 1),
        found.leader_ratio_p50,
        found.ratio_p50,
        found.states_equal,
        report.rounds,
        found.leader_snapshots,
        mib(found.log_bytes),
        mib(found.memory.proportional_bytes),
        mib(found.memory.resident_bytes),
        mib(found.memory_with_state.proportional_bytes),
    )
}
