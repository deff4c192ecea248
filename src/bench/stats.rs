//! Clock, percentiles, and figures taken over rounds.

use anyhow::Result;
use hdrhistogram::Histogram;
use mu::host;
use serde::Serialize;

/// Latencies in nanoseconds, as every command reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
    pub(crate) count: u64,
}

impl From<host::Percentiles> for Percentiles {
    /// What a replica says of itself.
    fn from(said: host::Percentiles) -> Self {
        let host::Percentiles {
            p50,
            p90,
            p99,
            p999,
            max,
            count,
        } = said;
        Self {
            p50,
            p90,
            p99,
            p999,
            max,
            count,
        }
    }
}

/// Collects durations.
pub(crate) struct Recorder(Histogram<u64>);

impl Recorder {
    /// Longest duration told apart, in nanoseconds: a minute.
    const LONGEST_NS: u64 = 60_000_000_000;

    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, Self::LONGEST_NS, 3)?))
    }

    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        // A bucket's upper end may lie above the largest value in it.
        let at = |q| self.0.value_at_quantile(q).min(self.0.max());
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.0.max(),
            count: self.0.len(),
        }
    }
}

/// A clock for short times: the processor's time stamp counter where it is invariant.
pub(crate) struct Clock(quanta::Clock);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(quanta::Clock::new())
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.0.raw()
    }

    /// Nanoseconds between two readings.
    #[inline]
    pub(crate) fn ns(&self, from: u64, to: u64) -> u64 {
        self.0.delta_as_nanos(from, to)
    }

    #[inline]
    pub(crate) fn since(&self, from: u64) -> u64 {
        self.ns(from, self.now())
    }

    /// Nanoseconds that one reading takes.
    pub(crate) fn cost_ns(&self) -> f64 {
        const READINGS: u32 = 1000;
        let start = self.now();
        for _ in 0..READINGS {
            std::hint::black_box(self.now());
        }
        self.since(start) as f64 / f64::from(READINGS)
    }
}

/// Nanoseconds per operation, once for each round.
#[derive(Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    pub(crate) fn add(&mut self, total_ns: u64, operations: u64) {
        self.0.push(total_ns as f64 / operations as f64);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        tenths(sorted.get(sorted.len() / 2).copied().unwrap_or(0.0))
    }

    pub(crate) fn best(&self) -> f64 {
        tenths(self.0.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0))
    }
}

/// Rounded to a tenth: more digits would be noise.
fn tenths(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

/// Random numbers from a seed (splitmix64), for moments and places; not for secrets.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A seed from the operating system, small enough to be exact in any reader of JSON.
pub(crate) fn fresh_seed() -> Result<u64> {
    let seed = getrandom::u64().map_err(|e| anyhow::anyhow!("the system's random source: {e}"))?;
    Ok(seed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_never_exceed_the_largest_value() {
        let mut recorder = Recorder::new().unwrap();
        for ns in [0, 10, 20, 999_983] {
            recorder.record(ns);
        }
        let p = recorder.percentiles();
        assert_eq!(p.count, 4);
        assert!(
            p.p50 >= 1 && p.p50 <= p.p90 && p.p90 <= p.p99 && p.p99 <= p.p999 && p.p999 <= p.max
        );
    }

    #[test]
    fn rounds_have_a_median_and_a_best() {
        let mut rounds = Rounds::default();
        for total in [300, 100, 200] {
            rounds.add(total, 10);
        }
        assert_eq!((rounds.median(), rounds.best()), (20.0, 10.0));
    }
}
