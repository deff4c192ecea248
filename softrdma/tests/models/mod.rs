//! Runs one model: explores it, prints what was explored, and checks that a broken twin is caught.
//!
//! Loom is given no limit of time or executions, so an exploration that returns is complete within its bound on
//! preemptions; a limit set from outside (`LOOM_MAX_DURATION`, `LOOM_MAX_PERMUTATIONS`) makes it say so.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Instant;

use loom::model::Builder;

/// The bound on preemptions of most models; `MU_LOOM_BOUND` replaces every model's bound, 0 meaning none.
pub(crate) const BOUND: Option<usize> = Some(3);

fn builder(preemptions: Option<usize>) -> (Builder, Option<usize>) {
    let asked = std::env::var("MU_LOOM_BOUND").ok();
    let bound = match asked.map(|n| n.parse().expect("MU_LOOM_BOUND is a number")) {
        Some(0) => None,
        Some(n) => Some(n),
        None => preemptions,
    };
    let mut builder = Builder::new();
    // Loom's default fits a few words; building a whole context takes several hundred steps.
    builder.max_branches = 20_000;
    builder.preemption_bound = bound;
    (builder, bound)
}

/// The model must hold in every interleaving with at most so many preemptions, or in every one at all.
pub(crate) fn holds(
    name: &str,
    preemptions: Option<usize>,
    model: impl Fn() + Send + Sync + 'static,
) {
    let (builder, bound) = builder(preemptions);
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let start = Instant::now();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let cut = builder.max_duration.is_some() || builder.max_permutations.is_some();
    let exhausted = if cut {
        "unknown (a limit was set)"
    } else {
        "yes"
    };
    let bound = bound.map_or("none".into(), |n| n.to_string());
    let (runs, ms) = (runs.load(Ordering::Relaxed), start.elapsed().as_millis());
    println!(
        "model {name}: {runs} executions, exhausted {exhausted}, preemption bound {bound}, {ms} ms"
    );
    assert!(runs > 1, "model {name} explored nothing");
}

/// The twin must fail in some interleaving.
///
/// # Panics
/// If it does not.
pub(crate) fn caught(name: &str, twin: impl Fn() + Send + Sync + 'static) {
    let (builder, _) = builder(BOUND);
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let failed = quietly(|| {
        panic::catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                count.fetch_add(1, Ordering::Relaxed);
                twin();
            });
        }))
    });
    let runs = runs.load(Ordering::Relaxed);
    let Err(why) = failed else {
        panic!("twin {name}: NOT caught in {runs} executions");
    };
    let why = why
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| why.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    let line = why
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("");
    println!("twin {name}: caught in execution {runs}: {line}");
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panics that a twin is there for out of the output. Loom runs a model on one thread of the system.
fn quietly<R>(f: impl FnOnce() -> R) -> R {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = f();
    QUIET.set(false);
    result
}
