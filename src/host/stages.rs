//! Where a command's time goes, in histograms that are always on.
//!
//! One of [`SAMPLE`] commands is timed, so that the clock is not what is measured; what is timed goes into histograms
//! of fixed size, so nothing is allocated.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One of so many commands is timed.
pub const SAMPLE: u64 = 32;
/// Longer times count as this.
const LONGEST_NS: u64 = 60_000_000_000;
/// Values are kept to two digits.
const DIGITS: u8 = 2;

/// A stage of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the caller to the replication thread (handover mode only).
    Submit = 0,
    /// The turn in which it was submitted: until the entry is in the own log and its writes are posted. Where posting
    /// carries them out, that is all.
    Post = 1,
    /// From there until a majority has it and it is applied.
    Quorum = 2,
    /// The application's part of that.
    Apply = 3,
    /// From where the replication thread takes it to the end of the turn that answers it.
    Total = 4,
}

impl Stage {
    /// All of them, with their names in metrics.
    pub const ALL: [(Self, &str); 5] = [
        (Self::Submit, "submit"),
        (Self::Post, "post"),
        (Self::Quorum, "quorum"),
        (Self::Apply, "apply"),
        (Self::Total, "total"),
    ];
}

/// The histograms.
#[derive(Debug)]
pub(crate) struct Stages([Histogram<u64>; Stage::ALL.len()]);

impl Stages {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| {
            Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("bounds that fit")
        }))
    }

    pub(crate) fn record(&mut self, stage: Stage, ns: u64) {
        self.0[stage as usize].saturating_record(ns.max(1));
    }

    pub(crate) fn summary(&self, stage: Stage) -> Percentiles {
        let histogram = &self.0[stage as usize];
        let at = |quantile| histogram.value_at_quantile(quantile);
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
            count: histogram.len(),
        }
    }
}

/// Percentiles of a time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half are at most so long.
    pub p50: u64,
    /// Nine of ten.
    pub p90: u64,
    /// 99 of a hundred.
    pub p99: u64,
    /// 999 of a thousand.
    pub p999: u64,
    /// All.
    pub max: u64,
    /// How many were timed.
    pub count: u64,
}
