//! `mu bench write`: the raw one-sided write of a backend.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, ValueEnum};
use mu_verbs::{Capabilities, Context, RevokeMethod, WORD};
use serde::Serialize;

use super::{Status, misuse, print, print_json, row, table};
use crate::bench::backend::{self, Name, Pair};
use crate::bench::host::{self, Host, check_pins};
use crate::bench::stats::Percentiles;
use crate::bench::{ping_pong, revoke, storm, write};

/// Bytes of a write by default, by what is measured: a write, a round trip, a revocation, one with a stopped writer.
const SIZES: [usize; 4] = [64, 8, revoke::SIZE, 256 << 10];
/// Rounds with a stopped writer by default.
const STOP_ROUNDS: &str = "200";

#[derive(clap::Args)]
#[command(group = ArgGroup::new("kind").args(["ping_pong", "revoke_stress", "stop_writer"]))]
pub(crate) struct Args {
    /// Where to write
    #[arg(long, value_enum, default_value = "inproc")]
    backend: Name,
    /// With nic: the RDMA device that writes [default: the first usable one]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// With nic: the RDMA device that is written to [default: the same one]
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Bytes of a write [default: 64; with --ping-pong 8, --revoke-stress 1024, --stop-writer 262144]
    #[arg(long, value_name = "BYTES")]
    size: Option<usize>,
    /// Writes, or round trips, for each figure [default: as many as take about half a second]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Bytes of the target that are written in turn [default: 64 writes' worth, 256 MiB at most but one write at
    /// least]
    #[arg(long, value_name = "BYTES")]
    span: Option<usize>,
    /// Takes the payload from private memory while posting, instead of from a registered region
    #[arg(long)]
    inline: bool,
    /// Processors to keep the two ends on [default: none; with --ping-pong the first two there are, since two ends on
    /// one processor would measure the scheduler]
    #[arg(long, value_name = "CPU,CPU", value_delimiter = ',')]
    pin: Vec<usize>,
    /// Measures round trips by writes, and by bare words over the same kind of memory
    #[arg(long)]
    ping_pong: bool,
    /// Takes the right away N times in a write storm and looks for words that land afterwards
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    revoke_stress: Option<u64>,
    /// With shm: takes the right away from a writer that is stopped in mid-copy, ROUNDS times
    #[arg(long, value_name = "ROUNDS", num_args = 0..=1, default_missing_value = STOP_ROUNDS,
          value_parser = clap::value_parser!(u64).range(1..))]
    stop_writer: Option<u64>,
    /// How to take the right away [default: the fastest barrier]
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// Seed of the random moments [default: from the system]
    #[arg(long)]
    seed: Option<u64>,
    /// How long to look for late words after each revocation, in microseconds [default: 0; with nic 20000]
    #[arg(long, value_name = "US")]
    watch_us: Option<u64>,
    /// Takes nothing away, to see that late words are found
    #[arg(long, hide = true)]
    broken: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// A revocation method by the name that people choose it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Change the queue pair's access flags
    QpFlags,
    /// Take the queue pair through ERR and RESET
    QpCycle,
    /// Take the registration away
    Reregister,
    /// Invalidate a memory window
    Window,
}

impl From<Method> for RevokeMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::QpFlags => Self::QpFlags,
            Method::QpCycle => Self::QpCycle,
            Method::Reregister => Self::Reregister,
            Method::Window => Self::Window,
        }
    }
}

/// What every report begins with.
#[derive(Serialize)]
struct Report<T> {
    backend: String,
    device: String,
    peer: Option<String>,
    size: usize,
    inline: bool,
    #[serde(flatten)]
    found: T,
    host: Host,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    check(args)?;
    match args.backend {
        Name::Inproc => measure(&backend::inproc()?, args),
        Name::Shm => measure(&backend::shm()?, args),
        Name::Nic => measure(
            &backend::nic(args.device.as_deref(), args.peer.as_deref())?,
            args,
        ),
    }
}

fn check(args: &Args) -> Result<()> {
    check_pins(&args.pin)?;
    let of_nic = [
        ("--device", args.device.is_some()),
        ("--peer", args.peer.is_some()),
    ];
    if let Some((option, _)) = of_nic
        .iter()
        .find(|(_, given)| *given && args.backend != Name::Nic)
    {
        return Err(misuse(format!(
            "{option} is for --backend nic; the other backends have no devices to choose from"
        )));
    }
    if args.stop_writer.is_some() && args.backend != Name::Shm {
        return Err(misuse(
            "--stop-writer needs a writer in a process of its own: --backend shm",
        ));
    }
    let revokes = args.revoke_stress.is_some() || args.stop_writer.is_some();
    let of_revoke = [
        ("--method", args.method.is_some()),
        ("--seed", args.seed.is_some()),
        ("--watch-us", args.watch_us.is_some()),
        ("--broken", args.broken),
    ];
    if let Some((option, _)) = of_revoke.iter().find(|(_, given)| *given && !revokes) {
        return Err(misuse(format!(
            "{option} is for --revoke-stress and --stop-writer"
        )));
    }
    let of_write = [("--span", args.span.is_some()), ("--inline", args.inline)];
    if let Some((option, _)) = of_write
        .iter()
        .find(|(_, given)| *given && (revokes || args.ping_pong))
    {
        return Err(misuse(format!(
            "{option} is for plain writes, without --ping-pong or a revocation"
        )));
    }
    if args.count.is_some() && revokes {
        return Err(misuse(
            "--count is for writes and round trips; revocations are counted by their own option",
        ));
    }
    Ok(())
}

/// Sizes that this measurement on this device can take.
fn check_size(args: &Args, caps: &Capabilities, size: usize) -> Result<()> {
    let max = caps.max_msg.min(1 << 30);
    if size == 0 || size as u64 > max {
        return Err(misuse(format!(
            "--size {size}: {} takes 1 to {max} bytes",
            caps.device
        )));
    }
    let words = args.ping_pong || args.revoke_stress.is_some() || args.stop_writer.is_some();
    if words && !size.is_multiple_of(WORD) {
        return Err(misuse(format!(
            "--size {size}: a round trip or a revocation needs a multiple of {WORD} bytes"
        )));
    }
    if args.stop_writer.is_some() && size < 2 * WORD {
        return Err(misuse(format!(
            "--size {size}: a copy of one word has no middle to stop in; --stop-writer needs {} bytes at least",
            2 * WORD
        )));
    }
    if args.inline && size > caps.max_inline_data as usize {
        let limit = caps.max_inline_data;
        return Err(misuse(format!(
            "--inline: {size} bytes, {} takes at most {limit} inline",
            caps.device
        )));
    }
    if let Some(span) = args.span
        && span < size
    {
        return Err(misuse(format!(
            "--span {span}: shorter than one write of {size} bytes"
        )));
    }
    Ok(())
}

/// Refuses what this machine has no memory for, which would end in the kernel's killing some process.
fn check_memory(args: &Args, bytes: usize) -> Result<()> {
    let available = host::available_memory().unwrap_or(u64::MAX);
    if bytes as u64 <= available {
        return Ok(());
    }
    let option = match (args.span, args.size) {
        (Some(span), _) => format!("--span {span}"),
        (None, Some(size)) => format!("--size {size}"),
        (None, None) => "the usual size".into(),
    };
    Err(misuse(format!(
        "{option}: the two ends would take {} MiB of memory, {} MiB are available",
        bytes >> 20,
        available >> 20
    )))
}

fn measure<C: Context>(pair: &Pair<C>, args: &Args) -> Result<Status> {
    let caps = pair.near.caps();
    let kind = match (args.ping_pong, args.revoke_stress, args.stop_writer) {
        (true, ..) => 1,
        (_, Some(_), _) => 2,
        (.., Some(_)) => 3,
        _ => 0,
    };
    let size = args.size.unwrap_or(SIZES[kind]);
    check_size(args, caps, size)?;
    let pins = match host::allowed_cpus()?.as_slice() {
        [first, second, ..] if args.ping_pong && args.pin.is_empty() => vec![*first, *second],
        _ => args.pin.clone(),
    };
    let host = Host::new(&pins);
    let inline = args.inline || (args.ping_pong && size <= caps.max_inline_data as usize);
    let report = |host| Report {
        backend: caps.backend.to_string(),
        device: caps.device.clone(),
        peer: pair.far_device(),
        size,
        inline,
        found: (),
        host,
    };
    match kind {
        0 => {
            let plan = write::Plan {
                size,
                span: args.span,
                count: args.count,
                inline,
                pins,
            };
            check_memory(args, plan.memory())?;
            show(
                args,
                report(host).with(write::run(pair, &plan)?),
                write_table,
            )
        }
        1 => {
            let plan = ping_pong::Plan {
                size,
                count: args.count,
                pins,
            };
            check_memory(args, plan.memory())?;
            show(
                args,
                report(host).with(ping_pong::run(pair, &plan)?),
                ping_pong_table,
            )
        }
        _ => {
            let plan = revoke::Plan {
                pins,
                ..revoke_plan(args, caps, size)?
            };
            check_memory(args, storm::memory(size))?;
            let found = revoke::run(pair, &plan)?;
            let status = if found.holds() {
                Status::Holds
            } else {
                Status::DoesNotHold
            };
            let tested_nothing = found.tested_nothing();
            show(args, report(host).with(found), revoke_table)?;
            if tested_nothing {
                eprintln!(
                    "mu: no round stopped the writer in mid-copy, so nothing was tested: \
                     more rounds, or a larger --size"
                );
            }
            Ok(status)
        }
    }
}

fn revoke_plan(args: &Args, caps: &Capabilities, size: usize) -> Result<revoke::Plan> {
    let method = match args.method {
        Some(method) => method.into(),
        None => revoke::default_method(caps)?,
    };
    let rounds = args.revoke_stress.or(args.stop_writer).unwrap_or(1);
    let usual = revoke::Plan::new(caps, method, rounds)?;
    Ok(revoke::Plan {
        size,
        stop: args.stop_writer.is_some(),
        broken: args.broken,
        seed: args.seed.unwrap_or(usual.seed),
        watch: args.watch_us.map_or(usual.watch, Duration::from_micros),
        ..usual
    })
}

impl Report<()> {
    fn with<T>(self, found: T) -> Report<T> {
        let Self {
            backend,
            device,
            peer,
            size,
            inline,
            host,
            ..
        } = self;
        Report {
            backend,
            device,
            peer,
            size,
            inline,
            found,
            host,
        }
    }
}

fn show<T: Serialize>(
    args: &Args,
    report: Report<T>,
    rows: impl FnOnce(&T) -> String,
) -> Result<Status> {
    if args.json {
        print_json(&report)?;
        return Ok(Status::Holds);
    }
    let Report {
        backend,
        device,
        size,
        host,
        found,
        ..
    } = &report;
    let name = if backend == device {
        backend.clone()
    } else {
        format!("{backend} {device}")
    };
    let pinned = if host.pinning.is_empty() {
        "not pinned".into()
    } else {
        format!("pinned to {:?}", host.pinning)
    };
    print(&format!(
        "{name}, {size} B\n{}\n{}, {} processors, {pinned}, waiting: {}\n",
        rows(found),
        host.cpu,
        host.cpus,
        host.waiting
    ))?;
    Ok(Status::Holds)
}

/// Rows of percentiles, in nanoseconds.
pub(crate) fn percentile_table(named: &[(&str, &Percentiles)]) -> String {
    let mut rows = vec![row(["ns", "p50", "p90", "p99", "p99.9", "max", "count"])];
    rows.extend(named.iter().map(|(name, p)| {
        let mut cells = vec![(*name).to_owned()];
        cells.extend([p.p50, p.p90, p.p99, p.p999, p.max, p.count].map(|n| n.to_string()));
        cells
    }));
    table(&rows, 1)
}

fn write_table(found: &write::Report) -> String {
    let b = &found.breakdown_ns;
    let lines: [(&str, String); 9] = [
        (
            "signalled write, completion polled",
            format!("{} (best {})", found.per_write_ns, found.per_write_best_ns),
        ),
        (
            "plain copy of the same bytes",
            format!("{} (best {})", found.memcpy_ns, found.memcpy_best_ns),
        ),
        ("  bare word stores", b.word_stores.to_string()),
        ("  word stores inside a gate", b.gated_stores.to_string()),
        ("  write without completion", b.post_unsignalled.to_string()),
        ("  post, in batches of 32", b.post_in_batch.to_string()),
        ("  poll, in batches of 32", b.poll_in_batch.to_string()),
        ("  poll that finds nothing", b.empty_poll.to_string()),
        ("  reading the clock", b.clock.to_string()),
    ];
    let mut rows = vec![row(["ns each, median of rounds", ""])];
    rows.extend(lines.map(|(what, ns)| vec![what.to_owned(), ns]));
    let title = format!(
        "{} rounds, {} writes for each figure, {} B written in turn",
        found.rounds, found.count, found.span
    );
    format!(
        "{title}\n{}\n{}",
        percentile_table(&[("latency", &found.latency)]),
        table(&rows, 2)
    )
}

fn ping_pong_table(found: &ping_pong::Report) -> String {
    let both = [
        ("round trip by writes", &found.round_trip),
        ("bare words", &found.bare_round_trip),
    ];
    let ratios = match (found.ratio_p50, found.ratio_amortised) {
        (Some(p50), Some(amortised)) => {
            format!("ratio of the medians: {p50}, amortised {amortised}")
        }
        _ => format!(
            "no ratio: the bare words are {} B whatever the size of the writes",
            found.bare_size
        ),
    };
    format!(
        "{}amortised over blocks: {} and {} ns\n{ratios}\n",
        percentile_table(&both),
        found.per_round_trip_ns,
        found.bare_per_round_trip_ns,
    )
}

fn revoke_table(found: &revoke::Report) -> String {
    let mut out = format!(
        "{} revocations by {} (barrier: {}) against {} writes, seed {}\nlate words: {} in {} revocations\n{}",
        found.revocations,
        if found.broken {
            "doing nothing"
        } else {
            found.method.as_str()
        },
        found.barrier,
        found.writes,
        found.seed,
        found.late_words,
        found.late_revocations,
        percentile_table(&[("revoke", &found.revoke)])
    );
    if let Some(s) = &found.stopped {
        out += &format!(
            "writer stopped {} times, certainly in mid-copy {} times; {} revocations took over 1 ms\n",
            s.stopped_rounds, s.in_mid_copy, s.over_1ms
        );
    }
    let list = |counts: &BTreeMap<String, u64>| {
        counts
            .iter()
            .map(|(status, n)| format!("{status} {n}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    out += &format!("the writer saw: {}\n", list(&found.refusals));
    if !found.lost_connections.is_empty() {
        out += &format!(
            "connections lost before anything was written: {}\n",
            list(&found.lost_connections)
        );
    }
    out
}
