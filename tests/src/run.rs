//! Runs the table of cases on a backend, and judges: failures, and skips that were not expected or did not come.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use anyhow::Result;
use mu_verbs::Context;
use serde_json::{Value, json};

use crate::backends::{Answer, deviation, expected, skip_count};
use crate::cases::{self, Case};
use crate::harness::{Open, Setup, Skip, Traits};

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// It did not run, for this reason.
    Skipped(String),
    /// It did not hold, for this reason.
    Failed(String),
}

/// What is known of a case after it ran.
#[derive(Clone, Debug)]
pub struct CaseReport {
    /// Group and name.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What it has to say besides.
    pub notes: Vec<String>,
}

impl CaseReport {
    /// One line, and one for each note.
    pub fn text(&self) -> String {
        let mut text = match &self.outcome {
            Outcome::Passed => format!("ok {}", self.name),
            Outcome::Skipped(reason) => format!("SKIP {}: {reason}", self.name),
            Outcome::Failed(message) => format!("FAILED {}: {message}", self.name),
        };
        for note in &self.notes {
            text += &format!("\n   note: {note}");
        }
        text
    }

    fn json(&self) -> Value {
        let (outcome, message) = match &self.outcome {
            Outcome::Passed => ("ok", None),
            Outcome::Skipped(reason) => ("skip", Some(reason)),
            Outcome::Failed(message) => ("failed", Some(message)),
        };
        json!({ "name": self.name, "outcome": outcome, "message": message, "notes": self.notes })
    }
}

/// What is known of a backend after the cases ran.
#[derive(Clone, Debug)]
pub struct Report {
    /// The backend.
    pub backend: String,
    /// The seed of all random choices.
    pub seed: u64,
    /// The cases that ran.
    pub cases: Vec<CaseReport>,
    /// What is wrong with the skips; empty if they are as expected.
    pub skip_errors: Vec<String>,
    /// The fewest and the most skips that were expected.
    pub expected_skips: (usize, usize),
}

impl Report {
    /// How many passed, failed and were skipped.
    pub fn counts(&self) -> (usize, usize, usize) {
        let of =
            |wanted: fn(&Outcome) -> bool| self.cases.iter().filter(|c| wanted(&c.outcome)).count();
        (
            of(|o| *o == Outcome::Passed),
            of(|o| matches!(o, Outcome::Failed(_))),
            of(|o| matches!(o, Outcome::Skipped(_))),
        )
    }

    /// Whether the backend keeps the contract: something ran, nothing failed, and the skips are those expected.
    pub fn holds(&self) -> bool {
        let (passed, failed, _) = self.counts();
        passed > 0 && failed == 0 && self.skip_errors.is_empty()
    }

    /// One JSON object.
    pub fn json(&self) -> Value {
        let (passed, failed, skipped) = self.counts();
        let cases: Vec<_> = self.cases.iter().map(CaseReport::json).collect();
        json!({
            "backend": self.backend,
            "seed": self.seed,
            "passed": passed,
            "failed": failed,
            "skipped": skipped,
            "expected_skips": [self.expected_skips.0, self.expected_skips.1],
            "skip_errors": self.skip_errors,
            "holds": self.holds(),
            "cases": cases,
        })
    }
}

/// Which cases to run and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only cases whose name contains one of these; all if there is none.
    pub filter: Vec<String>,
    /// The seed of all random choices.
    pub seed: u64,
    /// Stop at the first case that fails.
    pub first_failure: bool,
}

impl Options {
    /// Whether a case of this name runs.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|part| name.contains(part))
    }
}

/// Runs the cases; `each` hears of every one as it ends.
///
/// # Errors
/// The backend cannot be opened at all.
pub fn run<C: Context>(
    backend: &str,
    open: &Open<C>,
    traits: Traits,
    options: &Options,
    mut each: impl FnMut(&CaseReport),
) -> Result<Report> {
    let caps = open()?.1.caps().clone();
    let mut report = Report {
        backend: backend.into(),
        seed: options.seed,
        cases: Vec::new(),
        skip_errors: Vec::new(),
        expected_skips: (0, 0),
    };
    let cases: Vec<_> = cases::all::<C>()
        .into_iter()
        .filter(|c| options.wants(c.name))
        .collect();
    report.expected_skips = skip_count(&caps, &traits, cases.iter().map(|c| c.name));
    for case in cases {
        let mut done = run_one(case, open, traits, options.seed);
        if let Outcome::Failed(message) = &done.outcome
            && let Some(known) = deviation(done.name, &caps, message)
        {
            done.outcome = Outcome::Skipped(format!(
                "known deviation of {}: {} ({message})",
                known.driver, known.why
            ));
        }
        each(&done);
        let skipped = matches!(done.outcome, Outcome::Skipped(_));
        match expected(done.name, &caps, &traits) {
            Answer::Runs if skipped => report
                .skip_errors
                .push(format!("{} was skipped and should run", done.name)),
            Answer::Skips if !skipped => report
                .skip_errors
                .push(format!("{} ran and should be skipped", done.name)),
            _ => {}
        }
        let stop = options.first_failure && matches!(done.outcome, Outcome::Failed(_));
        report.cases.push(done);
        if stop {
            return Ok(report);
        }
    }
    let (_, _, skipped) = report.counts();
    let (fewest, most) = report.expected_skips;
    if !(fewest..=most).contains(&skipped) {
        report.skip_errors.push(format!(
            "{skipped} cases were skipped, {fewest} to {most} expected"
        ));
    }
    Ok(report)
}

/// Runs one case in a thread of its own, so that a panic or a call that never returns ends the case and not the run.
fn run_one<C: Context>(case: Case<C>, open: &Open<C>, traits: Traits, seed: u64) -> CaseReport {
    let (tell, told) = channel();
    let open = open.clone();
    let name = case.name;
    let seed = name.bytes().fold(seed, |seed, b| {
        (seed ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let worker = move || {
        let result = catch_unwind(AssertUnwindSafe(|| -> (Result<()>, Vec<String>) {
            match Setup::new(open, traits, seed) {
                Ok(setup) => ((case.run)(&setup), setup.take_notes()),
                Err(e) => (Err(e), Vec::new()),
            }
        }));
        // The receiver is gone only if the time was over.
        let _ = tell.send(match result {
            Ok((result, notes)) => (judge(result), notes),
            Err(panic) => (
                Outcome::Failed(format!("panicked: {}", panic_text(&*panic))),
                Vec::new(),
            ),
        });
    };
    let spawned = thread::Builder::new().name(name.into()).spawn(worker);
    let (outcome, notes) = match spawned {
        Err(e) => (
            Outcome::Failed(format!("no thread for it: {e}")),
            Vec::new(),
        ),
        Ok(handle) => match told.recv_timeout(traits.case_limit) {
            Ok(result) => {
                let _ = handle.join();
                result
            }
            Err(RecvTimeoutError::Timeout) => (
                Outcome::Failed(format!(
                    "still running after {:?}; left behind",
                    traits.case_limit
                )),
                Vec::new(),
            ),
            Err(RecvTimeoutError::Disconnected) => {
                (Outcome::Failed("its thread died".into()), Vec::new())
            }
        },
    };
    CaseReport {
        name,
        outcome,
        notes,
    }
}

fn judge(result: Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Passed,
        Err(e) => match e.downcast_ref::<Skip>() {
            Some(skip) => Outcome::Skipped(skip.0.clone()),
            None => Outcome::Failed(format!("{e:#}")),
        },
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "something".into())
}
