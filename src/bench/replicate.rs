//! What replicating one command costs, beside the bare write to a majority, round by round.

use std::sync::atomic::{Ordering, fence};

use anyhow::{Result, bail, ensure};
use mu_protocol::entry;
use mu_protocol::replication::{Event, Outcome};
use mu_verbs::Context;
use serde::Serialize;

use crate::bench::backend::Pair;
use crate::bench::group::{self, Leading, with_group};
use crate::bench::raw::Posted;
use crate::bench::spin::LIMIT;
use crate::bench::stats::{Clock, Percentiles, Recorder};

/// What to measure.
pub(crate) struct Plan {
    pub(crate) group: group::Plan,
    pub(crate) size: usize,
    /// Rounds; by default as many as wrap the ring so often.
    pub(crate) count: u64,
    pub(crate) pins: Vec<usize>,
    /// Half of the rounds with all followers, half with one that has fallen silent.
    pub(crate) dead_follower: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    /// From handing a command over to its reply.
    pub(crate) latency: Percentiles,
    /// The bare write of as many bytes as the command has, to a majority.
    pub(crate) raw: Percentiles,
    pub(crate) ratio_p50: f64,
    /// The bare write of the command's bytes, posted to the others only when a majority has it: mu's order where a post
    /// has been carried out when it returns.
    pub(crate) raw_majority_first: Percentiles,
    /// Bytes of the entry that carries a command of this size.
    pub(crate) entry_bytes: usize,
    /// The bare write of as many bytes as the entry has.
    pub(crate) raw_entry: Percentiles,
    pub(crate) log_wraps: u64,
    /// Index of the last decided entry.
    pub(crate) decided: u64,
    /// Lowest index applied by a live follower at the end.
    pub(crate) applied: u64,
    /// The same with one follower dead, and its ratio to `latency`.
    pub(crate) with_dead_follower: Option<Percentiles>,
    pub(crate) dead_ratio_p50: Option<f64>,
}

impl Found {
    /// Whether everything that was decided was applied, by everybody.
    pub(crate) fn holds(&self) -> bool {
        self.applied == self.decided
    }
}

/// Rounds before anything is recorded.
const WARM_UP: u64 = 2_000;
/// Rounds in a row with and without a dead follower cannot alternate; each half has this share of the rounds.
const HALVES: u64 = 2;

pub(crate) fn run<C: Context>(pairs: &[Pair<C>], plan: &Plan) -> Result<Found> {
    with_group(pairs, &plan.group, &plan.pins, |leading| {
        measure(leading, plan)
    })
}

fn measure<C: Context>(leading: &mut Leading<'_, '_, C>, plan: &Plan) -> Result<Found> {
    let clock = Clock::new();
    let command = vec![7; plan.size];
    let entry_bytes = entry::size(entry::FRAME_BYTES + plan.size.next_multiple_of(8));
    let padded = vec![7; entry_bytes];
    let count = if plan.dead_follower {
        plan.count / HALVES
    } else {
        plan.count
    };
    // The same for both halves: what stands between two commands decides what the caches hold.
    let half = |leading: &mut Leading<'_, '_, C>| {
        let mut half = Half::new()?;
        for round in 0..WARM_UP + count {
            let replicated = one(leading, &clock, &command)?;
            let mut bare = |bytes, posted| self::bare(leading, &clock, bytes, entry_bytes, posted);
            let bare_all = bare(&command, Posted::AllFirst)?;
            let bare_entry = bare(&padded, Posted::AllFirst)?;
            let bare_majority = bare(&command, Posted::MajorityFirst)?;
            if round >= WARM_UP {
                half.latency.record(replicated);
                half.raw.record(bare_all);
                half.raw_majority_first.record(bare_majority);
                half.raw_entry.record(bare_entry);
            }
        }
        anyhow::Ok(half)
    };
    let Half {
        latency,
        raw,
        raw_majority_first,
        raw_entry,
    } = half(leading)?;
    let latency = latency.percentiles();
    let mut with_dead_follower = None;
    if plan.dead_follower {
        leading.silence_one(&command)?;
        leading.raw.drop_one();
        let dead = half(leading)?;
        leading.ensure_only_live_followers()?;
        with_dead_follower = Some(dead.latency.percentiles());
    }
    let rests = leading.rest()?;
    let applied = leading.engine.applied();
    ensure!(
        rests
            .iter()
            .all(|rest| rest.applied != applied.index || rest.digest == leading.engine.digest()),
        "a follower's state differs from the leader's"
    );
    let raw = raw.percentiles();
    let ratio = |over: Percentiles, under: Percentiles| {
        (over.p50 as f64 / under.p50 as f64 * 1000.0).round() / 1000.0
    };
    Ok(Found {
        latency,
        raw,
        ratio_p50: ratio(latency, raw),
        entry_bytes,
        raw_entry: raw_entry.percentiles(),
        raw_majority_first: raw_majority_first.percentiles(),
        log_wraps: applied.at / plan.group.ring_bytes as u64,
        decided: leading.engine.commit(),
        applied: rests
            .iter()
            .map(|rest| rest.applied)
            .min()
            .unwrap_or(applied.index),
        with_dead_follower,
        dead_ratio_p50: with_dead_follower.map(|dead| ratio(dead, latency)),
    })
}

/// What the rounds of one half took.
struct Half {
    latency: Recorder,
    raw: Recorder,
    raw_majority_first: Recorder,
    raw_entry: Recorder,
}

impl Half {
    fn new() -> Result<Self> {
        Ok(Self {
            latency: Recorder::new()?,
            raw: Recorder::new()?,
            raw_majority_first: Recorder::new()?,
            raw_entry: Recorder::new()?,
        })
    }
}

/// Replicates one command; nanoseconds.
#[inline]
fn one<C: Context>(leading: &mut Leading<'_, '_, C>, clock: &Clock, command: &[u8]) -> Result<u64> {
    let mut now_ns = leading.now_ns();
    settle();
    let start = clock.now();
    // A full ring is the follower's doing: waiting for it is part of the command's time.
    let mut polls = 0u32;
    while let Err(refused) = leading.engine.submit(0, 0, command) {
        leading.engine.poll(leading.now_ns(), |_| {});
        polls += 1;
        if polls > 1 << 24 {
            bail!("a command is not taken: {refused}");
        }
    }
    let (mut decided, mut ns) = (None, 0);
    let mut spins = 0u32;
    loop {
        leading.engine.poll(now_ns, |event| {
            // As for the bare write, what is left when the majority has been reached is not part of it.
            if let Event::Command { outcome, .. } = event {
                ns = clock.since(start);
                decided = Some(matches!(outcome, Outcome::Decided { .. }));
            }
        });
        if decided.is_some() {
            break;
        }
        spins += 1;
        if spins.is_multiple_of(8) {
            now_ns = leading.now_ns();
        }
        if spins.is_multiple_of(1 << 16) {
            ensure!(
                clock.since(start) < LIMIT.as_nanos() as u64,
                "a command was not decided in time"
            );
            std::thread::yield_now();
        }
    }
    ensure!(
        decided == Some(true),
        "a command was not decided: the leadership was lost"
    );
    Ok(ns)
}

/// Lets the stores of the round before drain, so that every round pays for its own only.
#[inline]
fn settle() {
    fence(Ordering::SeqCst);
}

/// Writes `bytes` to a majority; nanoseconds.
#[inline]
fn bare<C: Context>(
    leading: &mut Leading<'_, '_, C>,
    clock: &Clock,
    bytes: &[u8],
    stride: usize,
    posted: Posted,
) -> Result<u64> {
    settle();
    let start = clock.now();
    let mut ns = 0;
    leading
        .raw
        .write(bytes, stride, posted, || ns = clock.since(start))?;
    Ok(ns)
}
