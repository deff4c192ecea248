//! `mu bench replicate` and `mu bench throughput`: a leader and its followers at work.

use anyhow::Result;
use mu_verbs::Context;
use serde::Serialize;

use super::{Status, misuse, print, print_json, row, table};
use crate::bench::backend::{self, Name, Pair};
use crate::bench::host::{Host, allowed_cpus};
use crate::bench::stats::Percentiles;
use crate::bench::{group, replicate, throughput};

/// What both commands take.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Where the replicas are: threads, processes, or on an RDMA device
    #[arg(long, value_enum, default_value = "inproc")]
    backend: Name,
    /// With nic: the RDMA device [default: the first usable one]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Replicas of the group
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u8).range(2..=9))]
    replicas: u8,
    /// Bytes of a command
    #[arg(long, value_name = "BYTES", default_value = "64")]
    size: usize,
    /// Bytes of each log's ring, a power of two
    #[arg(long, value_name = "BYTES", default_value = "16777216")]
    ring: usize,
    /// Checksums every entry, also where the device places whole messages in order
    #[arg(long)]
    checksum: bool,
    /// Processors: the leader's, then one for each follower (the last one for all that are left)
    #[arg(long, value_name = "CPU,CPU,...", value_delimiter = ',')]
    pin: Vec<usize>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Replicate {
    #[command(flatten)]
    common: Common,
    /// Commands [default: as many as wrap the ring six times]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Measures half of the commands with one follower dead
    #[arg(long)]
    dead_follower: bool,
}

#[derive(clap::Args)]
pub(crate) struct Throughput {
    #[command(flatten)]
    common: Common,
    /// Commands that share an entry, a point for each
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        default_value = "1,8,32,128,256"
    )]
    batch: Vec<usize>,
    /// Entries in flight, a point for each
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        default_value = "1,4,16"
    )]
    in_flight: Vec<usize>,
    /// Milliseconds for each point
    #[arg(long, value_name = "MS", default_value = "400", value_parser = clap::value_parser!(u64).range(10..=60_000))]
    point_ms: u64,
}

/// What every report begins with.
#[derive(Serialize)]
struct Report<T> {
    backend: String,
    device: String,
    replicas: u8,
    size: usize,
    ring_bytes: usize,
    #[serde(flatten)]
    found: T,
    host: Host,
}

impl Common {
    fn plan(&self, window: usize) -> Result<group::Plan> {
        let cpus = allowed_cpus()?;
        if let Some(cpu) = self.pin.iter().find(|cpu| !cpus.contains(cpu)) {
            return Err(misuse(format!(
                "--pin: no processor {cpu}; this process may use {cpus:?}"
            )));
        }
        if !self.ring.is_power_of_two() || !(1 << 16..=1 << 32).contains(&self.ring) {
            return Err(misuse(format!(
                "--ring {}: expected a power of two, 65536 to 4294967296",
                self.ring
            )));
        }
        let limit = self.ring / 8;
        if self.size == 0 || self.size > limit {
            return Err(misuse(format!(
                "--size {}: expected 1 to {limit} for this ring",
                self.size
            )));
        }
        Ok(group::Plan {
            replicas: self.replicas.into(),
            ring_bytes: self.ring,
            max_command_bytes: self.size.max(64),
            window,
            always_checksum: self.checksum,
            heartbeat_us: match self.backend {
                Name::Inproc | Name::Shm => 100,
                // Each heartbeat is a read of every peer, and on Soft-RoCE all of them share one processor.
                Name::Nic => 10_000,
            },
        })
    }

    fn report<T: Serialize>(&self, device: String, found: T) -> Report<T> {
        Report {
            backend: self.backend.to_string(),
            device,
            replicas: self.replicas,
            size: self.size,
            ring_bytes: self.ring,
            found,
            host: Host::new(&self.pin),
        }
    }
}

/// Runs `work` over the backend that `common` names, with a pair for each follower.
macro_rules! over {
    ($common:expr, $work:expr) => {{
        let followers = usize::from($common.replicas) - 1;
        match $common.backend {
            Name::Inproc => $work(&backend::inproc_group(followers)?),
            Name::Shm => $work(&backend::shm_group(followers)?),
            Name::Nic => $work(&backend::nic_group($common.device.as_deref(), followers)?),
        }
    }};
}

pub(crate) fn replicate(args: &Replicate) -> Result<Status> {
    over!(args.common, |pairs| replicate_over(pairs, args))
}

fn replicate_over<C: Context>(pairs: &[Pair<C>], args: &Replicate) -> Result<Status> {
    let common = &args.common;
    if args.dead_follower && common.replicas < 3 {
        return Err(misuse(
            "--dead-follower: expected --replicas 3 or more, for a majority without it",
        ));
    }
    let group = common.plan(64)?;
    let entry =
        mu_protocol::entry::size(mu_protocol::entry::FRAME_BYTES + common.size.next_multiple_of(8));
    let wraps = (6 * common.ring / entry) as u64;
    let plan = replicate::Plan {
        group,
        size: common.size,
        count: args.count.unwrap_or(wraps),
        pins: common.pin.clone(),
        dead_follower: args.dead_follower,
    };
    let found = replicate::run(pairs, &plan)?;
    let status = if found.holds() {
        Status::Holds
    } else {
        Status::DoesNotHold
    };
    let device = pairs
        .first()
        .map_or_else(String::new, |pair| pair.near.caps().device.clone());
    if common.json {
        print_json(&common.report(device, &found))?;
        return Ok(status);
    }
    let mut rows = vec![row(["", "p50", "p90", "p99", "p99.9", "max", "count"])];
    rows.push(percentiles("replicated command", found.latency));
    rows.push(percentiles(
        &format!("bare write of {} B to a majority", common.size),
        found.raw,
    ));
    rows.push(percentiles(
        &format!("bare write of {} B, the entry's size", found.entry_bytes),
        found.raw_entry,
    ));
    rows.push(percentiles(
        &format!("bare write of {} B, the others behind it", common.size),
        found.raw_majority_first,
    ));
    if let Some(dead) = found.with_dead_follower {
        rows.push(percentiles("replicated, one follower dead", dead));
    }
    let mut text = format!(
        "{} replicas on {} ({device}), commands of {} B; nanoseconds\n\n{}\n",
        common.replicas,
        common.backend,
        common.size,
        table(&rows, 1)
    );
    text += &format!(
        "ratio of the medians to the bare write: {}\n",
        found.ratio_p50
    );
    if let Some(ratio) = found.dead_ratio_p50 {
        text += &format!("ratio of the medians with and without a dead follower: {ratio}\n");
    }
    text += &format!(
        "the log wrapped {} times; decided {}, applied by every live follower {}\n",
        found.log_wraps, found.decided, found.applied
    );
    print(&text)?;
    Ok(status)
}

pub(crate) fn throughput(args: &Throughput) -> Result<Status> {
    over!(args.common, |pairs| throughput_over(pairs, args))
}

fn throughput_over<C: Context>(pairs: &[Pair<C>], args: &Throughput) -> Result<Status> {
    let common = &args.common;
    let most = args.batch.iter().max().copied().unwrap_or(1)
        * args.in_flight.iter().max().copied().unwrap_or(1);
    if args.batch.contains(&0)
        || args.in_flight.contains(&0)
        || most > mu_protocol::limits::MAX_PENDING
    {
        let limit = mu_protocol::limits::MAX_PENDING;
        return Err(misuse(format!(
            "--batch and --in-flight: expected 1 or more, and a product of at most {limit}"
        )));
    }
    let plan = throughput::Plan {
        group: common.plan(most)?,
        size: common.size,
        batches: args.batch.clone(),
        in_flight: args.in_flight.clone(),
        point_ns: args.point_ms * 1_000_000,
        pins: common.pin.clone(),
    };
    let found = throughput::run(pairs, &plan)?;
    let status = if found.holds() {
        Status::Holds
    } else {
        Status::DoesNotHold
    };
    let device = pairs
        .first()
        .map_or_else(String::new, |pair| pair.near.caps().device.clone());
    if common.json {
        print_json(&common.report(device, &found))?;
        return Ok(status);
    }
    let mut rows = vec![row([
        "batch",
        "in flight",
        "commands/s",
        "bare/s",
        "ratio",
        "p50 ns",
        "p99 ns",
    ])];
    for point in &found.points {
        rows.push(vec![
            point.batch.to_string(),
            point.in_flight.to_string(),
            format!("{:.2} M", point.ops_per_s / 1e6),
            format!("{:.2} M", point.raw_ops_per_s / 1e6),
            format!("{:.2}", point.ops_per_s / point.raw_ops_per_s),
            point.latency.p50.to_string(),
            point.latency.p99.to_string(),
        ]);
    }
    print(&format!(
        "{} replicas on {} ({device}), commands of {} B\n\n{}\n\
         peak {:.2} M commands/s; bare writes of the same bytes {:.2} M; ratio {}\n\
         the log wrapped {} times; decided {} entries, applied by every follower {}\n",
        common.replicas,
        common.backend,
        common.size,
        table(&rows, 0),
        found.peak_ops_per_s / 1e6,
        found.raw_peak_ops_per_s / 1e6,
        found.ratio_peak,
        found.log_wraps,
        found.decided,
        found.applied
    ))?;
    Ok(status)
}

fn percentiles(name: &str, p: Percentiles) -> Vec<String> {
    let figures = [p.p50, p.p90, p.p99, p.p999, p.max, p.count].map(|figure| figure.to_string());
    std::iter::once(name.to_owned()).chain(figures).collect()
}
