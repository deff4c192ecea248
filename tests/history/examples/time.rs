//! How long the checks take: `cargo run --release -p mu-history --example time`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Shape, lawful};
use mu_history::{
    DEFAULT_BUDGET_STEPS, History, Kv, KvOp, KvOutput, Outcome, Verdict, check, check_order,
    stale_reads,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const ONE_KEY: Shape = Shape {
    clients: 8,
    ops_per_client: 1000,
    keys: 1,
    values: 1_000_000,
    plain: false,
    unknown_per_mille: 0,
    pause_ns: 10,
    way_ns: 1000,
};

fn main() {
    let shapes = [
        ("8 clients x 1,000, one key, never quiet", ONE_KEY),
        (
            "the same, few values",
            Shape {
                values: 3,
                ..ONE_KEY
            },
        ),
        (
            "the same, 5 of 1,000 unanswered",
            Shape {
                unknown_per_mille: 5,
                ..ONE_KEY
            },
        ),
        (
            "the same, 50 of 1,000 unanswered",
            Shape {
                unknown_per_mille: 50,
                ..ONE_KEY
            },
        ),
        (
            "puts and gets",
            Shape {
                plain: true,
                ..ONE_KEY
            },
        ),
        (
            "puts and gets, 5 of 1,000 unanswered",
            Shape {
                plain: true,
                unknown_per_mille: 5,
                ..ONE_KEY
            },
        ),
        (
            "puts and gets, 50 of 1,000 unanswered",
            Shape {
                plain: true,
                unknown_per_mille: 50,
                ..ONE_KEY
            },
        ),
        (
            "few values, 50 of 1,000 unanswered",
            Shape {
                values: 3,
                unknown_per_mille: 50,
                ..ONE_KEY
            },
        ),
        (
            "64 clients x 1,000, one key",
            Shape {
                clients: 64,
                ..ONE_KEY
            },
        ),
        (
            "64 clients x 1,000, 8 keys",
            Shape {
                clients: 64,
                keys: 8,
                ..ONE_KEY
            },
        ),
        (
            "4 clients x 25,000, one key, mostly quiet",
            Shape {
                clients: 4,
                ops_per_client: 25_000,
                pause_ns: 10_000,
                ..ONE_KEY
            },
        ),
        (
            "8 clients x 125,000, one key, never quiet",
            Shape {
                ops_per_client: 125_000,
                ..ONE_KEY
            },
        ),
    ];
    for (name, shape) in shapes {
        let (history, places) = lawful(&mut ChaCha8Rng::seed_from_u64(1), shape);
        timed(name, &history);
        timed("  with a phantom at the end", &with_phantom(&history));
        let begun = Instant::now();
        check_order(&Kv, &history, &places).expect("lawful");
        let stale = stale_reads(&history).expect("well formed").len();
        println!(
            "  order of the log and {stale} stale reads: {:?}",
            begun.elapsed()
        );
    }
}

fn timed(name: &str, history: &History<Kv>) {
    let begun = Instant::now();
    let verdict = check(&Kv, history, DEFAULT_BUDGET_STEPS).expect("well formed");
    let took = begun.elapsed();
    let verdict = match verdict {
        Verdict::Linearizable => "yes".to_owned(),
        Verdict::Violation(violation) => format!("no, at operation {}", violation.culprit),
        unknown => unknown.to_string(),
    };
    println!(
        "{name}: {} operations, {verdict}: {took:?}",
        history.operations().len()
    );
}

/// The last answered read returns what nobody wrote.
fn with_phantom(history: &History<Kv>) -> History<Kv> {
    let mut operations = history.operations().to_vec();
    let reads = operations
        .iter_mut()
        .filter(|o| matches!(o.op, KvOp::Get { .. }));
    if let Some(Outcome::Returned { output, .. }) = reads
        .map(|operation| &mut operation.outcome)
        .filter(|outcome| matches!(outcome, Outcome::Returned { .. }))
        .last()
    {
        *output = KvOutput::Value(Some(u64::MAX));
    }
    let mut spoilt = History::new();
    operations.into_iter().for_each(|operation| {
        spoilt.push(operation);
    });
    spoilt
}
