//! The one-sided write: latency of one, cost of many, and where the cost goes.
//!
//! Every figure is taken in the same rounds: one round of each kind after the other, so that whatever else the
//! machine does falls on all of them alike. The latencies are timed one by one in rounds of their own, since
//! reading the clock costs as much as a good part of a write in software.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::Result;
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Memory, Payload, RemoteAddr, SendFlags, Sge, WORD,
};
use serde::{Deserialize, Serialize};

use crate::bench::backend::Pair;
use crate::bench::end::{self, End};
use crate::bench::host;
use crate::bench::map_raw::PrivateBytes;
use crate::bench::peer::{Link, Role, with_peer};
use crate::bench::stats::{Clock, Percentiles, Recorder, Rounds};

/// Rounds of each kind, at least and at most.
const ROUNDS_MIN: u64 = 21;
const ROUNDS_MAX: u64 = 2001;
/// Writes in a round where the number of rounds allows it: so few that most rounds are not interrupted by other work on
/// a busy machine.
const ROUND: u64 = 1000;
/// Signalled writes posted before the completions of all are polled, in the round that tells posting from polling.
const BATCH: u64 = 32;
/// How long the writes of one kind last together if the caller does not say how many.
const KIND_NS: f64 = 300e6;
/// Bounds of the number chosen then.
const COUNT_MIN: u64 = ROUNDS_MIN;
const COUNT_MAX: u64 = 2_000_000;
/// Writes that are not measured.
const WARM_UP: u64 = 200;
/// Distance of slots: a cache line.
const SLOT: usize = 64;
/// Places written in turn unless the caller says how much to write, and the most bytes that they take together then.
const SLOTS: usize = 64;
const SPAN_MAX: usize = 256 << 20;
/// How long the guess at the time of a write takes: the writes of a megabyte take longer each than all of a word's.
const GUESS_NS: u64 = 100_000_000;
/// Writes of which that guess is made at a time.
const GUESS: u64 = 20;

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Bytes of a write.
    pub(crate) size: usize,
    /// Bytes of the target that are written in turn; `None` for 64 writes' worth, within limits.
    pub(crate) span: Option<usize>,
    /// Writes for each figure; `None` for about a third of a second.
    pub(crate) count: Option<u64>,
    /// Payload from private bytes instead of a registered region.
    pub(crate) inline: bool,
    /// Processors of the two ends.
    pub(crate) pins: Vec<usize>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Bytes of the target that were written in turn.
    pub(crate) span: usize,
    /// Writes for each figure.
    pub(crate) count: u64,
    pub(crate) rounds: u64,
    /// From before the post to after the poll that brought the completion, each timed; a reading of the clock
    /// included.
    pub(crate) latency: Percentiles,
    /// Post and poll of one signalled write after the other: median round.
    pub(crate) per_write_ns: f64,
    /// The same, best round.
    pub(crate) per_write_best_ns: f64,
    /// A plain copy of the same bytes to the same kind of memory: median round.
    pub(crate) memcpy_ns: f64,
    pub(crate) memcpy_best_ns: f64,
    pub(crate) breakdown_ns: Breakdown,
}

/// Where the time goes: median rounds, each part measured by itself.
#[derive(Debug, Serialize)]
pub(crate) struct Breakdown {
    /// The same bytes stored as 64-bit words with Release, no checks.
    pub(crate) word_stores: f64,
    /// The same between the two stores of a gate, with its fence and one load of a permission.
    pub(crate) gated_stores: f64,
    /// A write without completion.
    pub(crate) post_unsignalled: f64,
    /// Posting a signalled write, when 32 are posted before any is polled.
    pub(crate) post_in_batch: f64,
    /// Polling its completion then.
    pub(crate) poll_in_batch: f64,
    /// A poll that finds nothing.
    pub(crate) empty_poll: f64,
    /// One reading of the clock.
    pub(crate) clock: f64,
}

/// The far end: memory that is written to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    bytes: usize,
}

impl Target {
    /// A target's CPU has nothing to do.
    pub(crate) fn play<C: Context>(&self, ctx: &C, link: &mut Link) -> Result<()> {
        let end = End::open(ctx, self.bytes, Access::LOG, 0)?;
        end.meet(link, false)?;
        link.closed()
    }
}

impl Plan {
    /// Bytes from one place to the next.
    fn slot(&self) -> usize {
        self.size.next_multiple_of(SLOT)
    }

    /// Bytes of the target that are written in turn: whole slots, one at least.
    pub(crate) fn span(&self) -> usize {
        let slot = self.slot();
        let wanted = self
            .span
            .unwrap_or_else(|| slot.saturating_mul(SLOTS).min(SPAN_MAX));
        wanted.max(slot) / slot * slot
    }

    /// Bytes of memory that both ends take together: the target, two of its size to compare with, and the payload.
    pub(crate) fn memory(&self) -> usize {
        self.span()
            .saturating_mul(3)
            .saturating_add(2 * self.slot())
    }
}

/// Measures writes from the near end to the far one.
pub(crate) fn run<C: Context>(pair: &Pair<C>, plan: &Plan) -> Result<Report> {
    let (slot, span) = (plan.slot(), plan.span());
    let role = Role::Target(Target { bytes: span });
    with_peer(pair, role, plan.pins.get(1).copied(), |peer| {
        host::pin(plan.pins.first().copied())?;
        let inline = if plan.inline { plan.size } else { 0 };
        let mut end = End::open(&pair.near, slot, Access::NONE, inline)?;
        let remote = end.meet(&mut peer.link, true)?;
        let bytes: Vec<u8> = (0..plan.size).map(|i| i as u8 | 1).collect();
        end.memory.write_bytes(0, &bytes);
        let mut target = Plain {
            words: pair.near.alloc_memory(span)?,
            bytes: PrivateBytes::new(pair.memory_kind(), span)?,
            gate: [const { AtomicU64::new(0) }; 2],
        };
        let mut writer = Writer {
            end: &mut end,
            remote,
            bytes: &bytes,
            inline: plan.inline,
            slots: Slots::new(slot, span),
        };
        measure(&mut writer, &mut target, plan.count)
    })
}

/// The places written in turn.
#[derive(Clone)]
struct Slots {
    slot: usize,
    span: usize,
    at: usize,
}

impl Slots {
    fn new(slot: usize, span: usize) -> Self {
        Self { slot, span, at: 0 }
    }

    /// The byte at which the next write starts.
    #[inline]
    fn next(&mut self) -> usize {
        let at = self.at;
        self.at += self.slot;
        if self.at == self.span {
            self.at = 0;
        }
        at
    }
}

/// The near end at work.
struct Writer<'a, C: Context> {
    end: &'a mut End<C>,
    remote: RemoteAddr,
    bytes: &'a [u8],
    inline: bool,
    slots: Slots,
}

impl<C: Context> Writer<'_, C> {
    #[inline]
    fn post(&mut self, flags: SendFlags) -> Result<()> {
        let remote = RemoteAddr {
            addr: self.remote.addr + self.slots.next() as u64,
            rkey: self.remote.rkey,
        };
        let sge = [Sge::new(&self.end.mr, 0, self.bytes.len())];
        let payload = if self.inline {
            Payload::Inline(self.bytes)
        } else {
            Payload::Regions(&sge)
        };
        end::write::<C>(&mut self.end.qp, 0, payload, remote, flags)
    }

    #[inline]
    fn post_and_poll(&mut self) -> Result<()> {
        self.post(SendFlags::SIGNALED)?;
        self.end.reap()
    }

    fn each(&mut self, n: u64) -> Result<()> {
        (0..n).try_for_each(|_| self.post_and_poll())
    }

    fn latencies(&mut self, n: u64, clock: &Clock, latency: &mut Recorder) -> Result<()> {
        for _ in 0..n {
            let start = clock.now();
            self.post_and_poll()?;
            latency.record(clock.since(start));
        }
        Ok(())
    }

    /// Only the last of each 32 makes a completion, so that the queue never fills.
    fn unsignalled(&mut self, n: u64) -> Result<()> {
        let mut left = n;
        while left > 0 {
            let batch = left.min(BATCH);
            for _ in 1..batch {
                self.post(SendFlags::NONE)?;
            }
            self.post_and_poll()?;
            left -= batch;
        }
        Ok(())
    }

    /// Posts in batches: nanoseconds spent posting, and polling.
    fn batches(&mut self, n: u64, clock: &Clock) -> Result<(u64, u64)> {
        let (mut posting, mut polling) = (0, 0);
        let mut left = n;
        while left > 0 {
            let batch = left.min(BATCH);
            let start = clock.now();
            for _ in 0..batch {
                self.post(SendFlags::SIGNALED)?;
            }
            let posted = clock.now();
            for _ in 0..batch {
                self.end.reap()?;
            }
            polling += clock.since(posted);
            posting += clock.ns(start, posted);
            left -= batch;
        }
        Ok((posting, polling))
    }

    fn empty_polls(&mut self, n: u64) {
        let mut polled = [Completion::EMPTY];
        for _ in 0..n {
            black_box(self.end.cq.poll(&mut polled));
        }
    }
}

/// Plain memory of the backend's kind, for comparison.
struct Plain {
    words: Memory,
    bytes: PrivateBytes,
    /// Sequence and permission of a gate that nobody else uses.
    gate: [AtomicU64; 2],
}

impl Plain {
    fn copies(&mut self, n: u64, bytes: &[u8], mut slots: Slots) {
        for _ in 0..n {
            let at = slots.next();
            self.bytes[at..at + bytes.len()].copy_from_slice(black_box(bytes));
            black_box(&mut *self.bytes);
        }
    }

    fn stores(&self, n: u64, source: &[u64], mut slots: Slots) {
        for _ in 0..n {
            self.store(slots.next(), black_box(source));
        }
    }

    fn gated_stores(&self, n: u64, source: &[u64], mut slots: Slots) {
        let [sequence, permission] = &self.gate;
        for turn in 0..n {
            sequence.store(2 * turn + 1, Ordering::Release);
            fence(Ordering::SeqCst);
            if permission.load(Ordering::Acquire) == 0 {
                self.store(slots.next(), black_box(source));
            }
            sequence.store(2 * turn + 2, Ordering::Release);
        }
    }

    #[inline]
    fn store(&self, at: usize, source: &[u64]) {
        for (word, value) in self.words.words()[at / WORD..].iter().zip(source) {
            word.store(*value, Ordering::Release);
        }
    }
}

fn measure<C: Context>(
    writer: &mut Writer<'_, C>,
    plain: &mut Plain,
    count: Option<u64>,
) -> Result<Report> {
    let clock = Clock::new();
    let count = match count {
        Some(count) => count,
        None => choose_count(writer, &clock)?,
    };
    let rounds = (count / ROUND).clamp(ROUNDS_MIN, ROUNDS_MAX);
    let n = count.div_ceil(rounds);
    let bytes = writer.bytes;
    let source: Vec<u64> = bytes.chunks(WORD).map(|_| 0x0101_0101_0101_0101).collect();
    let mut latency = Recorder::new()?;
    let [
        mut write,
        mut copy,
        mut store,
        mut gated,
        mut unsignalled,
        mut post,
        mut poll,
        mut empty,
        mut reading,
    ] = std::array::from_fn(|_| Rounds::default());
    writer.each(WARM_UP.min(count))?;
    for _ in 0..rounds {
        let start = clock.now();
        writer.each(n)?;
        write.add(clock.since(start), n);

        let start = clock.now();
        plain.copies(n, bytes, writer.slots.clone());
        copy.add(clock.since(start), n);

        let start = clock.now();
        plain.stores(n, &source, writer.slots.clone());
        store.add(clock.since(start), n);

        let start = clock.now();
        plain.gated_stores(n, &source, writer.slots.clone());
        gated.add(clock.since(start), n);

        let start = clock.now();
        writer.unsignalled(n)?;
        unsignalled.add(clock.since(start), n);

        let (posting, polling) = writer.batches(n, &clock)?;
        post.add(posting, n);
        poll.add(polling, n);

        let start = clock.now();
        writer.empty_polls(n);
        empty.add(clock.since(start), n);

        reading.add((clock.cost_ns() * 1000.0) as u64, 1000);
        writer.latencies(n, &clock, &mut latency)?;
    }
    Ok(Report {
        span: writer.slots.span,
        count: n * rounds,
        rounds,
        latency: latency.percentiles(),
        per_write_ns: write.median(),
        per_write_best_ns: write.best(),
        memcpy_ns: copy.median(),
        memcpy_best_ns: copy.best(),
        breakdown_ns: Breakdown {
            word_stores: store.median(),
            gated_stores: gated.median(),
            post_unsignalled: unsignalled.median(),
            post_in_batch: post.median(),
            poll_in_batch: poll.median(),
            empty_poll: empty.median(),
            clock: reading.median(),
        },
    })
}

/// As many writes as take about [`KIND_NS`], judged by the warm-up.
fn choose_count<C: Context>(writer: &mut Writer<'_, C>, clock: &Clock) -> Result<u64> {
    let mut rounds = Rounds::default();
    let begin = clock.now();
    for n in std::iter::once(1).chain([GUESS; 9]) {
        let start = clock.now();
        writer.each(n)?;
        rounds.add(clock.since(start), n);
        if clock.since(begin) > GUESS_NS / GUESS {
            break;
        }
    }
    Ok(((KIND_NS / rounds.best().max(1.0)) as u64).clamp(COUNT_MIN, COUNT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_span_is_bounded_and_holds_one_write_at_least() {
        let plan = |size, span| Plan {
            size,
            span,
            count: None,
            inline: false,
            pins: vec![],
        };
        assert_eq!(plan(64, None).span(), 64 * 64);
        assert_eq!(plan(65, None).span(), 64 * 128);
        assert_eq!(plan(1 << 30, None).span(), 1 << 30);
        let span = plan(100 << 20, None).span();
        assert!(span <= SPAN_MAX && span == 2 * (100 << 20), "{span}");
        assert_eq!(plan(64, Some(200)).span(), 192);
        assert_eq!(plan(64, Some(usize::MAX)).memory(), usize::MAX);
    }
}
