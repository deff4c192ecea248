//! The commands of `mu`, one file each, and what they have in common.
//!
//! A command prints a table for people, or with `--json` exactly one JSON object on standard output. Exit status 0
//! is done, 1 means that what was checked does not hold or that the work failed half-way, 2 is wrong usage or
//! configuration. A report is printed once all work is done, so a failure leaves standard output empty.

mod bench_exchange;
mod bench_failover;
mod bench_group;
mod bench_peer;
mod bench_redis;
mod bench_rejoin;
mod bench_replica;
mod bench_write;
mod cluster;
mod demo;
mod devices;
mod doctor;
mod redis;
mod serve;
mod sim;
mod status;

pub(crate) use serve::Around;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// What holds for all commands.
const CONVENTIONS: &str = "\
Exit status:
  0  done, and what was checked holds
  1  what was checked does not hold, or the work failed
  2  wrong usage or configuration

With --json a command that was carried out prints exactly one JSON object on standard output, whether what was
checked holds (0) or not (1). On failure there is nothing on standard output and the reason on standard error.";

/// Microsecond state machine replication over one-sided RDMA writes.
#[derive(Parser)]
#[command(name = "mu", version, propagate_version = true, after_help = CONVENTIONS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Three replicas of this host lose their leader, go on and get it back: shown, and checked
    Demo(demo::Args),
    /// Three nodes of an application on this host, supervised: what ends is started again
    Cluster(cluster::Args),
    /// Lists RDMA devices and software backends with their capabilities
    Devices(devices::Args),
    /// Checks host and RDMA devices; each line is pass, warn or fail with the fix
    Doctor(doctor::Args),
    /// Runs one replica of the key-value service of a cluster
    Serve(serve::Args),
    /// Runs one node of a replicated redis-server: starts the server, and starts it again as a follower when it ends
    Redis(redis::Args),
    /// What running replicas say of themselves and their peers
    Status(status::Args),
    /// Measures
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Runs the protocol in the deterministic simulator: seeds, faults, replay of one seed, the bug zoo
    Sim(sim::Args),
    /// The other end of a measurement between two processes
    #[command(hide = true)]
    BenchPeer(bench_peer::Args),
    /// A replica of a measurement, to which faults are done
    #[command(hide = true)]
    BenchReplica(bench_replica::Args),
}

#[derive(Subcommand)]
enum Bench {
    /// The raw one-sided write of a backend, its round trip, and its revocation
    Write(bench_write::Args),
    /// The latency of one replicated command, beside the bare write to a majority
    Replicate(bench_group::Replicate),
    /// Commands a second, over how many share an entry and how many entries are in flight
    Throughput(bench_group::Throughput),
    /// One order at the engine alone and on mu, and orders a second through three processes
    Exchange(bench_exchange::Args),
    /// Repeated loss of the leader: how long until the next one decides, and whether anything was lost
    Failover(bench_failover::Args),
    /// A follower that comes back with a large state: how long it takes, and what a client notices of it
    Rejoin(bench_rejoin::Args),
    /// A redis-server on mu beside one alone and one with replicas of its own; or its repeated loss
    Redis(bench_redis::Args),
}

/// How a command that was carried out ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Done, and what was checked holds.
    Holds,
    /// What was checked does not hold.
    DoesNotHold,
}

impl Cli {
    /// Runs the command and reports a failure on standard error.
    pub(crate) fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Cluster(args) => cluster::run(&args),
            Command::Demo(args) => demo::run(&args),
            Command::Devices(args) => devices::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Serve(args) => serve::run(&args),
            Command::Redis(args) => redis::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Bench { what } => match what {
                Bench::Write(args) => bench_write::run(&args),
                Bench::Replicate(args) => bench_group::replicate(&args),
                Bench::Throughput(args) => bench_group::throughput(&args),
                Bench::Exchange(args) => bench_exchange::run(&args),
                Bench::Failover(args) => bench_failover::run(&args),
                Bench::Rejoin(args) => bench_rejoin::run(&args),
                Bench::Redis(args) => bench_redis::run(&args),
            },
            Command::Sim(args) => sim::run(&args),
            Command::BenchPeer(args) => bench_peer::run(&args),
            Command::BenchReplica(args) => bench_replica::run(&args),
        };
        match done {
            Ok(Status::Holds) => ExitCode::SUCCESS,
            Ok(Status::DoesNotHold) => ExitCode::from(1),
            Err(error) => {
                eprintln!("mu: {}", told(&error));
                ExitCode::from(if error.is::<Misuse>() { 2 } else { 1 })
            }
        }
    }
}

/// An error and its causes in one line, without those that the message above them tells already.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if !parts.last().is_some_and(|above| above.contains(&cause)) {
            parts.push(cause);
        }
    }
    parts.join(": ")
}

/// Wrong usage or configuration: exit status 2. As the context of an error it keeps the cause readable.
#[derive(Debug)]
pub(crate) struct Misuse(String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// The error of a wrong option or setting.
pub(crate) fn misuse(what: impl Into<String>) -> anyhow::Error {
    Misuse(what.into()).into()
}

/// Marks what failed as a matter of usage or configuration.
pub(crate) trait Configured<T> {
    fn configured(self, what: &str) -> Result<T>;
}

impl<T, E> Configured<T> for Result<T, E>
where
    Self: anyhow::Context<T, E>,
{
    fn configured(self, what: &str) -> Result<T> {
        self.with_context(|| Misuse(what.into()))
    }
}

/// A program that lies beside this one.
fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of this program")?;
    let path = own.with_file_name(name);
    match path.exists() {
        true => Ok(path),
        false => Err(misuse(format!(
            "{} is not there: cargo build --release makes it, beside mu",
            path.display()
        ))),
    }
}

/// Prints to standard output. A reader that went away is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(e).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// Prints the one JSON object.
fn print_json(report: &impl Serialize) -> Result<()> {
    print(&format!(
        "{}\n",
        serde_json::to_string(report).context("building the JSON")?
    ))
}

/// Rows of cells as a table with aligned columns; all columns but the first `left` are aligned to the right.
fn table(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|r| r.get(c))
                .map(|s| s.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (cell, &width))| {
                if c < left {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A row of a table.
fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let text = table(&[row(["a", "1"]), row(["long", "234"])], 1);
        assert_eq!(text, "a       1\nlong  234\n");
    }

    #[test]
    fn a_cause_is_told_once() {
        let errno = std::io::Error::from_raw_os_error(12);
        let text = errno.to_string();
        let error = anyhow::Error::new(errno)
            .context(format!("mmap of 8 bytes: {text} (see ulimit -v)"))
            .context("memory");
        assert_eq!(
            told(&error),
            format!("memory: mmap of 8 bytes: {text} (see ulimit -v)")
        );
    }

    #[test]
    fn a_misuse_is_known_below_other_causes() {
        let cause: Result<()> = Err(anyhow::anyhow!("no such device"));
        let error = cause.configured("--device").unwrap_err();
        assert!(error.is::<Misuse>());
        assert_eq!(told(&error), "--device: no such device");
        assert!(!anyhow::anyhow!("other").is::<Misuse>());
    }
}
