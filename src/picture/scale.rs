//! Which numbers an axis shows, and how times are written.

use std::ops::Range;

use plotters::coord::ranged1d::{
    KeyPointHint, KeyPointWeight, NoDefaultFormatting, Ranged, ValueFormatter,
};

/// Nanoseconds in a unit, and its name.
const UNITS: [(f64, &str); 4] = [(1e9, "s"), (1e6, "ms"), (1e3, "\u{b5}s"), (1.0, "ns")];

/// The smallest share of a distribution that is shown, in per cent.
const LEAST_SHARE: f64 = 1e-4;

/// The most decades that all have a number.
const MOST_DECADES: usize = 7;

/// A time with three digits and its unit.
pub(super) fn duration(ns: u64) -> String {
    time(ns as f64)
}

/// The same for a position on an axis, in nanoseconds.
pub(super) fn time(ns: f64) -> String {
    // Half a unit of the last digit below the next unit is written as that unit.
    let unit = UNITS.iter().find(|(size, _)| ns.abs() >= size * 0.9995);
    let &(size, name) = unit.unwrap_or(&UNITS[3]);
    let value = ns / size;
    let digits = match value.abs() {
        v if size == 1.0 || v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = match text.split_once('.') {
        Some((whole, fraction)) if fraction.trim_end_matches('0').is_empty() => whole,
        Some(_) => text.trim_end_matches('0'),
        None => &text,
    };
    format!("{} {name}", text.replace('-', "\u{2212}"))
}

/// The unit for an axis of this length: the largest that has a few in it.
pub(super) fn unit(length_ns: u64) -> (f64, &'static str) {
    let fits = |(size, _): &(f64, &str)| length_ns as f64 >= 2.0 * size;
    UNITS.into_iter().find(fits).unwrap_or(UNITS[3])
}

/// An axis: what it reaches over, and where it has numbers.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) from: f64,
    pub(super) to: f64,
    ticks: Vec<f64>,
    /// Where it has lines without numbers.
    minor: Vec<f64>,
    label: fn(f64) -> String,
}

impl Axis {
    /// A linear one from `from` to `to`, with round numbers at about `wanted` places.
    pub(super) fn linear(from: f64, to: f64, wanted: usize) -> Self {
        let to = if to > from { to } else { from + 1.0 };
        let step = round_up((to - from) / wanted as f64);
        let first = (from / step).ceil();
        let last = (to / step).floor();
        let ticks = (0..=(last - first) as usize).map(|at| (first + at as f64) * step);
        Self {
            from,
            to,
            ticks: ticks.collect(),
            minor: Vec::new(),
            label: number,
        }
    }

    /// A logarithmic one of whole decades around the values. Its positions are decimal logarithms.
    pub(super) fn decades(values: impl Iterator<Item = u64>) -> Self {
        let (low, high) = values.fold((u64::MAX, 0), |(low, high), v| (low.min(v), high.max(v)));
        Self::logarithmic(log(low.min(high)), log(high), |log| time(10f64.powf(log)))
    }

    /// A logarithmic one of whole decades up to 100 %. Its positions are decimal logarithms of per cent.
    pub(super) fn shares(lowest: f64) -> Self {
        let label = |log: f64| format!("{} %", number(10f64.powf(log)));
        Self::logarithmic(lowest.max(LEAST_SHARE).log10(), 2.0, label)
    }

    fn logarithmic(low: f64, high: f64, label: fn(f64) -> String) -> Self {
        let from = low.floor();
        let to = high.ceil().max(from + 1.0);
        let decades = (to - from) as usize;
        let decade = |at: usize| from + at as f64;
        // With many decades every second or third has a number, and the others are the lines between.
        let every = decades.div_ceil(MOST_DECADES);
        let minor = match every {
            1 => (0..decades)
                .flat_map(|at| (2..10).map(move |n| from + at as f64 + f64::from(n).log10()))
                .collect(),
            _ => (0..decades).map(decade).collect(),
        };
        Self {
            from,
            to,
            ticks: (0..=decades).step_by(every).map(decade).collect(),
            minor,
            label,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let share = (value - self.from) / (self.to - self.from);
        low + (share * f64::from(high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight() {
            KeyPointWeight::Bold => self.ticks.clone(),
            KeyPointWeight::Any => self.minor.clone(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        number(*value)
    }

    fn format_ext(&self, value: &f64) -> String {
        (self.label)(*value)
    }
}

/// A round number without the dust of floating point.
fn number(value: f64) -> String {
    let text = format!("{}", (value * 1e6).round() / 1e6);
    text.replace('-', "\u{2212}")
}

/// The decimal logarithm of a time; nothing counts as one nanosecond.
pub(super) fn log(ns: u64) -> f64 {
    (ns.max(1) as f64).log10()
}

/// The next of 1, 2 and 5 times a power of ten.
fn round_up(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|factor| factor * power >= step * 0.999);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let written = [
            0,
            7,
            999,
            1000,
            1234,
            99_960,
            999_600,
            1_000_000,
            612_345,
            2_000_000_000,
        ];
        let expected = [
            "0 ns", "7 ns", "999 ns", "1 µs", "1.23 µs", "100 µs", "1 ms", "1 ms", "612 µs", "2 s",
        ];
        assert_eq!(written.map(duration), expected);
        assert_eq!(time(-1500.0), "\u{2212}1.5 µs");
        assert_eq!(duration(u64::MAX), "18446744074 s");
    }

    #[test]
    fn a_linear_axis_has_round_numbers_within() {
        assert_eq!(Axis::linear(-30.0, 101.0, 5).ticks, [0.0, 50.0, 100.0]);
        assert_eq!(Axis::linear(0.0, 4.0, 8).ticks.len(), 9);
        assert_eq!(Axis::linear(3.0, 3.0, 4).to, 4.0);
    }

    #[test]
    fn a_logarithmic_axis_reaches_over_all_values() {
        let axis = Axis::decades([250, 612_000].into_iter());
        assert_eq!((axis.from, axis.to), (2.0, 6.0));
        assert_eq!(axis.ticks, [2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(axis.minor.len(), 32);
        let one = Axis::decades([1000].into_iter());
        assert_eq!((one.from, one.to), (3.0, 4.0));
        let all = Axis::decades([0, u64::MAX].into_iter());
        assert!(all.to >= 19.0 && all.ticks.len() <= 8, "{all:?}");
        let none = Axis::decades(std::iter::empty());
        assert_eq!((none.from, none.to), (0.0, 1.0));
    }
}
