//! Round trips by writes, and by bare words over the same kind of memory.
//!
//! The near end writes a number into the far end's memory, and the far end, which looks at the last word of it all
//! the time, writes the same number back. In the bare form two words on cache lines of their own are stored with
//! Release and loaded with Acquire. That form is one word long whatever the size of the writes, so the two are set in
//! relation only where the writes are one word long too. Blocks of the two forms take turns. The writes are inline
//! where they may be, and unsignalled but for each 64th, whose completion is polled while the answer is under way.
//!
//! A number tells the far end what comes next: bit 0, that this is the last of its block; bit 1, that it is over.

use std::sync::atomic::Ordering;

use anyhow::Result;
use mu_verbs::{Access, Context, Payload, RemoteAddr, SendFlags, Sge, WORD};
use serde::{Deserialize, Serialize};

use crate::bench::backend::Pair;
use crate::bench::end::{self, End};
use crate::bench::host;
use crate::bench::map_raw::Words;
use crate::bench::peer::{FREE, LINE, Link, Role, with_peer};
use crate::bench::spin;
use crate::bench::stats::{Clock, Percentiles, Recorder, Rounds};

/// Round trips of a block: so few that most blocks are not interrupted by other work on a busy machine.
const BLOCK: u64 = 500;
/// How long all blocks of one form last together if the caller does not say how many round trips to make.
const FORM_NS: u64 = 500_000_000;
const COUNT_MIN: u64 = BLOCK;
const COUNT_MAX: u64 = 2_000_000;
/// Round trips of each form that are not measured.
const WARM_UP: u64 = 1000;
/// One completion for so many writes.
const SIGNAL_EVERY: u64 = 64;

const LAST_OF_BLOCK: u64 = 1;
const LAST_OF_ALL: u64 = 2;
const STEP: u64 = 4;

/// Where the bare words stand.
const PING: usize = FREE;
const PONG: usize = FREE + LINE;

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Bytes of a write, a multiple of 8.
    pub(crate) size: usize,
    /// Round trips of each form.
    pub(crate) count: Option<u64>,
    /// Processors of the two ends.
    pub(crate) pins: Vec<usize>,
}

impl Plan {
    /// Bytes of memory that both ends take together: each has one write going out and one coming in.
    pub(crate) fn memory(&self) -> usize {
        self.size.saturating_mul(4)
    }
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) count: u64,
    pub(crate) round_trip: Percentiles,
    pub(crate) bare_round_trip: Percentiles,
    /// Bytes that the bare form moves each way.
    pub(crate) bare_size: usize,
    /// `round_trip.p50` over `bare_round_trip.p50`, where both move as many bytes.
    pub(crate) ratio_p50: Option<f64>,
    /// A block's time over its round trips, median block: finer than one reading of the clock.
    pub(crate) per_round_trip_ns: f64,
    /// The same of the bare form.
    pub(crate) bare_per_round_trip_ns: f64,
    /// The one over the other.
    pub(crate) ratio_amortised: Option<f64>,
}

/// The far end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Echo {
    size: usize,
}

impl Echo {
    pub(crate) fn play<C: Context>(&self, ctx: &C, link: &mut Link, words: &Words) -> Result<()> {
        let mut player = Player::new(ctx, self.size, link, false)?;
        // The last number of each form that was answered.
        let (mut written, mut bare) = (0, 0);
        while bare & LAST_OF_ALL == 0 {
            loop {
                spin::until(|| player.last() != written)?;
                written = player.last();
                player.hit(written)?;
                if written & LAST_OF_BLOCK != 0 {
                    break;
                }
            }
            loop {
                spin::until(|| words[PING].load(Ordering::Acquire) != bare)?;
                bare = words[PING].load(Ordering::Acquire);
                words[PONG].store(bare, Ordering::Release);
                if bare & LAST_OF_BLOCK != 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// One end of the game by writes.
struct Player<C: Context> {
    end: End<C>,
    remote: RemoteAddr,
    bytes: Vec<u8>,
    inline: bool,
    writes: u64,
}

impl<C: Context> Player<C> {
    fn new(ctx: &C, size: usize, link: &mut Link, first: bool) -> Result<Self> {
        // The other end writes into the first half, the second holds what goes out.
        let inline = size <= ctx.caps().max_inline_data as usize;
        let end = End::open(ctx, 2 * size, Access::LOG, if inline { size } else { 0 })?;
        let remote = end.meet(link, first)?;
        Ok(Self {
            end,
            remote,
            bytes: vec![0; size],
            inline,
            writes: 0,
        })
    }

    /// The last word of what came in.
    #[inline]
    fn last(&self) -> u64 {
        u64::from_le(self.end.memory.load(self.bytes.len() / WORD - 1))
    }

    /// Writes `number`, in the last word, to the other end.
    #[inline]
    fn hit(&mut self, number: u64) -> Result<()> {
        self.writes += 1;
        let flags = if self.writes.is_multiple_of(SIGNAL_EVERY) {
            SendFlags::SIGNALED
        } else {
            SendFlags::NONE
        };
        let size = self.bytes.len();
        if self.inline {
            self.bytes[size - WORD..].copy_from_slice(&number.to_le_bytes());
            end::write::<C>(
                &mut self.end.qp,
                0,
                Payload::Inline(&self.bytes),
                self.remote,
                flags,
            )?;
        } else {
            self.end.memory.store((2 * size) / WORD - 1, number.to_le());
            let sge = [Sge::new(&self.end.mr, size, size)];
            end::write::<C>(
                &mut self.end.qp,
                0,
                Payload::Regions(&sge),
                self.remote,
                flags,
            )?;
        }
        if flags == SendFlags::SIGNALED {
            self.end.reap()
        } else {
            Ok(())
        }
    }

    /// One round trip from here.
    #[inline]
    fn serve(&mut self, number: u64) -> Result<()> {
        self.hit(number)?;
        spin::until(|| self.last() == number)
    }
}

/// One bare round trip.
#[inline]
fn serve_bare(words: &Words, number: u64) -> Result<()> {
    words[PING].store(number, Ordering::Release);
    spin::until(|| words[PONG].load(Ordering::Acquire) == number)
}

/// Measures round trips from the near end to the far one and back.
pub(crate) fn run<C: Context>(pair: &Pair<C>, plan: &Plan) -> Result<Report> {
    let role = Role::Echo(Echo { size: plan.size });
    with_peer(pair, role, plan.pins.get(1).copied(), |peer| {
        host::pin(plan.pins.first().copied())?;
        let mut player = Player::new(&pair.near, plan.size, &mut peer.link, true)?;
        let words = peer.words;
        let clock = Clock::new();
        let mut number = 0;
        let mut unused = Times::new()?;
        block(WARM_UP, &mut number, 0, &clock, &mut unused, |n| {
            player.serve(n)
        })?;
        let usual_ns = unused.each.percentiles().p50;
        block(WARM_UP, &mut number, 0, &clock, &mut unused, |n| {
            serve_bare(words, n)
        })?;

        let count = plan
            .count
            .unwrap_or((FORM_NS / usual_ns).clamp(COUNT_MIN, COUNT_MAX));
        let n = count.min(BLOCK);
        let blocks = count.div_ceil(n);
        let (mut writes, mut bare) = (Times::new()?, Times::new()?);
        for turn in 1..=blocks {
            block(n, &mut number, 0, &clock, &mut writes, |n| player.serve(n))?;
            let over = if turn == blocks { LAST_OF_ALL } else { 0 };
            block(n, &mut number, over, &clock, &mut bare, |n| {
                serve_bare(words, n)
            })?;
        }
        let (round_trip, bare_round_trip) = (writes.each.percentiles(), bare.each.percentiles());
        let (per_round_trip_ns, bare_per_round_trip_ns) =
            (writes.blocks.median(), bare.blocks.median());
        let is_alike = plan.size == WORD;
        Ok(Report {
            count: n * blocks,
            round_trip,
            bare_round_trip,
            bare_size: WORD,
            ratio_p50: is_alike.then(|| ratio(round_trip.p50 as f64, bare_round_trip.p50 as f64)),
            per_round_trip_ns,
            bare_per_round_trip_ns,
            ratio_amortised: is_alike.then(|| ratio(per_round_trip_ns, bare_per_round_trip_ns)),
        })
    })
}

/// Rounded to a thousandth.
fn ratio(above: f64, below: f64) -> f64 {
    (above / below * 1000.0).round() / 1000.0
}

/// Times of one form.
struct Times {
    each: Recorder,
    blocks: Rounds,
}

impl Times {
    fn new() -> Result<Self> {
        Ok(Self {
            each: Recorder::new()?,
            blocks: Rounds::default(),
        })
    }
}

/// `n` round trips, each from the end of the one before to its own end.
fn block(
    n: u64,
    number: &mut u64,
    over: u64,
    clock: &Clock,
    times: &mut Times,
    mut serve: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let begin = clock.now();
    let mut start = begin;
    for left in (0..n).rev() {
        *number += STEP;
        let flags = if left == 0 { LAST_OF_BLOCK | over } else { 0 };
        serve(*number | flags)?;
        let end = clock.now();
        times.each.record(clock.ns(start, end));
        start = end;
    }
    times.blocks.add(clock.ns(begin, start), n);
    Ok(())
}
