//! Percentiles of latencies, and medians over rounds.

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies in nanoseconds, named as in every output of `mu`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    pub count: u64,
}

/// Collects latencies.
pub struct Recorder {
    histogram: Histogram<u64>,
    /// The largest, exactly: the histogram knows only its bucket.
    max: u64,
}

impl Recorder {
    /// Longest latency told apart, in nanoseconds: a minute.
    const LONGEST_NS: u64 = 60_000_000_000;

    pub fn new() -> Result<Self> {
        let histogram = Histogram::new_with_bounds(1, Self::LONGEST_NS, 3)?;
        Ok(Self { histogram, max: 0 })
    }

    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
        self.max = self.max.max(ns);
    }

    pub fn percentiles(&self) -> Percentiles {
        // The upper end of a bucket may lie above the largest value in it.
        let at = |q| self.histogram.value_at_quantile(q).min(self.max);
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.max,
            count: self.histogram.len(),
        }
    }
}

/// The value in the middle; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_order_and_never_above_the_largest() {
        let mut all = Recorder::new().unwrap();
        for ns in [0, 10, 20, 999_983] {
            all.record(ns);
        }
        let p = all.percentiles();
        assert_eq!((p.count, p.p50, p.max), (4, 10, 999_983));
        assert!(p.p50 <= p.p90 && p.p90 <= p.p99 && p.p99 <= p.p999 && p.p999 <= p.max);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[])), (2.0, 0.0));
    }
}
