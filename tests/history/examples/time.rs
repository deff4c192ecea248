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
    let plain = Shape {
        plain: true,
        ..ONE_KEY
    };
    let quiet = Shape {
        clients: 4,
        ops_per_client: 25_000,
        pause_ns: 10_000,
        ..ONE_KEY
    };
    let crowd = Shape {
        clients: 64,
        keys: 8,
        ..ONE_KEY
    };
    let long = Shape {
        ops_per_client: 12_500,
        ..ONE_KEY
    };
    let unanswered = |unknown_per_mille, shape| Shape {
        unknown_per_mille,
        ..shape
    };
    let shapes = [
        ("8 clients x 1,000, one key, never quiet", ONE_KEY),
        (
            "  few values",
            Shape {
                values: 3,
                ..ONE_KEY
            },
        ),
        ("  5 of 1,000 unanswered", unanswered(5, ONE_KEY)),
        (
            "  puts and gets, 5 of 1,000 unanswered",
            unanswered(5, plain),
        ),
        (
            "  puts and gets, 50 of 1,000 unanswered",
            unanswered(50, plain),
        ),
        ("64 clients x 1,000, 8 keys, never quiet", crowd),
        ("8 clients x 12,500, one key, never quiet", long),
        ("4 clients x 25,000, one key, mostly quiet", quiet),
    ];
    for (name, shape) in shapes {
        let (history, places) = lawful(&mut ChaCha8Rng::seed_from_u64(1), shape);
        timed(name, &history);
        timed("  with a phantom at the end", &with_phantom(&history));
        let begun = Instant::now();
        check_order(&Kv, &history, &places).expect("lawful");
        let stale = stale_reads(&history).expect("well formed").len();
        println!(
            "  order of the log, and {stale} stale reads: {:?}",
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
        "{name}: {} operations, {took:?}: {verdict}",
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
