//! How many commands a second: a sweep over how many share an entry and how many entries are in flight, beside bare
//! batched writes of the same bytes.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};
use mu_protocol::entry;
use mu_protocol::replication::{Event, Outcome, Refused};
use mu_verbs::Context;
use serde::Serialize;

use crate::bench::backend::Pair;
use crate::bench::group::{self, Leading, with_group};
use crate::bench::stats::{Clock, Percentiles, Recorder};

/// What to measure.
pub(crate) struct Plan {
    pub(crate) group: group::Plan,
    pub(crate) size: usize,
    pub(crate) batches: Vec<usize>,
    pub(crate) in_flight: Vec<usize>,
    /// Nanoseconds for each point.
    pub(crate) point_ns: u64,
    pub(crate) pins: Vec<usize>,
}

/// One point of the sweep.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Point {
    /// Commands of an entry.
    pub(crate) batch: usize,
    /// Entries in flight.
    pub(crate) in_flight: usize,
    /// Commands a second, from the first handed over to the last applied by every follower.
    pub(crate) ops_per_s: f64,
    /// Bare writes of the same bytes, as commands a second.
    pub(crate) raw_ops_per_s: f64,
    /// Of one command, from handing it over to its reply.
    pub(crate) latency: Percentiles,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) points: Vec<Point>,
    pub(crate) peak_ops_per_s: f64,
    /// The most that bare batched writes of the same bytes reached, as commands a second.
    pub(crate) raw_peak_ops_per_s: f64,
    /// Of the two peaks.
    pub(crate) ratio_peak: f64,
    pub(crate) log_wraps: u64,
    pub(crate) decided: u64,
    pub(crate) applied: u64,
}

impl Found {
    /// Whether everything that was decided was applied, by everybody.
    pub(crate) fn holds(&self) -> bool {
        self.applied == self.decided
    }
}

pub(crate) fn run<C: Context>(pairs: &[Pair<C>], plan: &Plan) -> Result<Found> {
    with_group(pairs, &plan.group, &plan.pins, |leading| {
        let clock = Clock::new();
        let mut points = Vec::new();
        for batch in &plan.batches {
            for in_flight in &plan.in_flight {
                points.push(point(leading, &clock, plan, *batch, *in_flight)?);
            }
        }
        let applied = leading.engine.applied();
        let rests = leading.rest()?;
        let peak = |of: fn(&Point) -> f64| points.iter().map(of).fold(0.0, f64::max);
        let (peak_ops_per_s, raw_peak_ops_per_s) =
            (peak(|p| p.ops_per_s), peak(|p| p.raw_ops_per_s));
        Ok(Found {
            peak_ops_per_s,
            raw_peak_ops_per_s,
            ratio_peak: (peak_ops_per_s / raw_peak_ops_per_s * 1000.0).round() / 1000.0,
            points,
            log_wraps: applied.at / plan.group.ring_bytes as u64,
            decided: leading.engine.commit(),
            applied: rests
                .iter()
                .map(|rest| rest.applied)
                .min()
                .unwrap_or(applied.index),
        })
    })
}

/// A quarter of the time for bare writes, half for commands, and a quarter for bare writes again.
fn point<C: Context>(
    leading: &mut Leading<'_, '_, C>,
    clock: &Clock,
    plan: &Plan,
    batch: usize,
    in_flight: usize,
) -> Result<Point> {
    let frame = entry::FRAME_BYTES + plan.size.next_multiple_of(8);
    let bytes = entry::size(frame * batch);
    let before = bare(leading, clock, bytes, in_flight, plan.point_ns / 4)?;
    let (ops_per_s, latency) = commands(leading, clock, plan, batch, in_flight)?;
    let after = bare(leading, clock, bytes, in_flight, plan.point_ns / 4)?;
    let raw_ops_per_s = (before + after) / 2.0 * batch as f64;
    Ok(Point {
        batch,
        in_flight,
        ops_per_s,
        raw_ops_per_s,
        latency,
    })
}

/// Bare writes a second, each to all peers.
fn bare<C: Context>(
    leading: &mut Leading<'_, '_, C>,
    clock: &Clock,
    bytes: usize,
    in_flight: usize,
    for_ns: u64,
) -> Result<f64> {
    const PER_LOOK: u64 = 256;
    let start = clock.now();
    let mut writes = 0;
    while clock.since(start) < for_ns {
        leading.raw.stream(bytes, in_flight, PER_LOOK)?;
        writes += PER_LOOK;
        // The leader's engine must not look stuck.
        leading.engine.poll(leading.now_ns(), |_| {});
    }
    Ok(writes as f64 * 1e9 / clock.since(start) as f64)
}

fn commands<C: Context>(
    leading: &mut Leading<'_, '_, C>,
    clock: &Clock,
    plan: &Plan,
    batch: usize,
    in_flight: usize,
) -> Result<(f64, Percentiles)> {
    let command = vec![7; plan.size];
    let mut latency = Recorder::new()?;
    // When each outstanding entry's commands were handed over, and how many of them are left.
    let mut outstanding: VecDeque<(u64, usize)> = VecDeque::with_capacity(in_flight + 1);
    let (start, mut decided, mut lost) = (clock.now(), 0u64, 0u64);
    let mut last = start;
    let mut ended: Vec<u64> = Vec::with_capacity(in_flight);
    let mut refused = 0u32;
    while clock.ns(start, last) < plan.point_ns / 2 || !outstanding.is_empty() {
        let goes_on = clock.ns(start, last) < plan.point_ns / 2;
        if goes_on && outstanding.len() < in_flight {
            let handed = clock.now();
            let mut taken = 0;
            while taken < batch {
                match leading.engine.submit(0, 0, &command) {
                    Ok(_) => taken += 1,
                    Err(Refused::Overloaded { .. }) => break,
                    Err(other) => bail!("a command was not taken: {other}"),
                }
            }
            if taken != 0 {
                outstanding.push_back((handed, taken));
            } else {
                refused += 1;
                if refused.is_multiple_of(64) {
                    std::thread::yield_now();
                }
            }
        }
        let now_ns = leading.now_ns();
        leading.engine.poll(now_ns, |event| {
            let Event::Command { outcome, .. } = event else {
                return;
            };
            match outcome {
                Outcome::Decided { .. } => decided += 1,
                _ => lost += 1,
            }
            if let Some((_, left)) = outstanding.front_mut() {
                *left -= 1;
                if *left == 0 {
                    ended.extend(outstanding.pop_front().map(|(handed, _)| handed));
                }
            }
        });
        last = clock.now();
        // Of an entry's commands the last reply is taken: all were handed over together.
        for handed in ended.drain(..) {
            latency.record(clock.ns(handed, last));
        }
    }
    ensure!(
        lost == 0,
        "{lost} commands were not decided: the leadership was lost"
    );
    // Followers that lag must not make the figure better.
    leading.wait_applied()?;
    let seconds = clock.since(start) as f64 / 1e9;
    Ok((decided as f64 / seconds, latency.percentiles()))
}
