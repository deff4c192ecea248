//! Runs one exploration and says what came of it.

use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::config::Config;
use crate::model::Step;
use crate::state::{State, Violation};

/// What an exploration found.
#[derive(Debug)]
pub struct Outcome {
    /// Different states.
    pub unique: usize,
    /// States, repetitions counted.
    pub generated: usize,
    /// The longest of the shortest ways to a state, in steps.
    pub depth: usize,
    /// Time that it took.
    pub took: Duration,
    /// Whether it came to an end by itself: nothing within the bounds is left.
    pub exhausted: bool,
    /// The way to a violation of safety, and which one.
    pub violation: Option<(Violation, Vec<(State, Step)>)>,
    /// Whether a log had two writers at some time.
    pub two_writers: bool,
    /// What had to come up and did not.
    pub missing: Vec<&'static str>,
    /// How many situations had to come up.
    pub wanted: usize,
}

impl Outcome {
    /// Whether the configuration holds, entirely explored, having come by all that it is for.
    pub fn holds(&self) -> bool {
        self.exhausted && self.violation.is_none() && !self.two_writers && self.missing.is_empty()
    }
}

/// Explores `config` breadth first until nothing is left or safety is violated.
pub fn explore(config: &Config, threads: usize) -> Outcome {
    let start = Instant::now();
    let checker = config
        .clone()
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AllOf(["safe"].into()))
        .spawn_bfs()
        .join();
    let took = start.elapsed();
    let violation = checker.discovery("safe").map(|path| {
        let violation = path
            .last_state()
            .violation
            .expect("what is not safe says why");
        let steps = path.into_vec();
        let taken = steps
            .into_iter()
            .filter_map(|(state, step)| Some((state, step?)));
        (violation, taken.collect())
    });
    let wanted: Vec<_> = config
        .properties()
        .into_iter()
        .filter(|property| matches!(property.expectation, Expectation::Sometimes))
        .map(|property| property.name)
        .collect();
    let missing = wanted
        .iter()
        .filter(|name| checker.discovery(name).is_none());
    Outcome {
        unique: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        took,
        exhausted: violation.is_none() && checker.is_done(),
        two_writers: checker.discovery("one writer").is_some(),
        missing: missing.copied().collect(),
        wanted: wanted.len(),
        violation,
    }
}
