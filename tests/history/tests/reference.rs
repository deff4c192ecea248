//! The checker against trying every order, on thousands of tiny histories.

mod common;

use common::{brute_force, each_seed, lawless};
use mu_history::{DEFAULT_BUDGET_STEPS, History, Kv, Model, OpId, Outcome, Verdict, check};

const SEEDS: u64 = 30_000;

fn by_checker(history: &History<Kv>) -> bool {
    match check(&Kv, history, DEFAULT_BUDGET_STEPS).expect("well formed") {
        Verdict::Linearizable => true,
        Verdict::Violation(_) => false,
        Verdict::Unknown { .. } => panic!("seven operations took too many steps: {history:?}"),
    }
}

fn by_reference(history: &History<Kv>) -> bool {
    brute_force(history, |op| history.operations()[op].output().is_some())
}

#[test]
fn the_checker_agrees_with_trying_every_order() {
    let (mut good, mut bad) = (0, 0);
    each_seed("agrees_with_trying", SEEDS, |seed, rng| {
        let history = lawless(rng);
        let expected = by_reference(&history);
        assert_eq!(by_checker(&history), expected, "seed {seed}: {history:#?}");
        *(if expected { &mut good } else { &mut bad }) += 1;
    });
    let least = if good + bad == SEEDS { SEEDS / 10 } else { 0 };
    assert!(
        good >= least && bad >= least,
        "one-sided histories: {good} good, {bad} bad"
    );
}

/// The control: checkers that are wrong in one thing are found by the same comparison.
#[test]
fn a_wrong_checker_disagrees_with_trying_every_order() {
    let never_takes_effect = |history: &History<Kv>| {
        let answered = history.operations().iter().filter(|o| o.output().is_some());
        rebuilt(answered.cloned())
    };
    let no_real_time = |history: &History<Kv>| {
        rebuilt(history.operations().iter().cloned().map(|mut operation| {
            operation.invoked_ns = 0;
            if let Outcome::Returned { at_ns, .. } = &mut operation.outcome {
                *at_ns = u64::MAX;
            }
            operation
        }))
    };
    let equal_times_are_ordered = |history: &History<Kv>| {
        rebuilt(history.operations().iter().cloned().map(|mut operation| {
            operation.invoked_ns = operation.invoked_ns * 2 + 1;
            if let Outcome::Returned { at_ns, .. } = &mut operation.outcome {
                *at_ns = (*at_ns * 2).max(operation.invoked_ns);
            }
            operation
        }))
    };
    type Wrong = dyn Fn(&History<Kv>) -> History<Kv>;
    let wrong: [(&str, &Wrong); 3] = [
        ("never takes effect", &never_takes_effect),
        ("no real time", &no_real_time),
        ("equal times are ordered", &equal_times_are_ordered),
    ];
    for (name, seen_as) in wrong {
        let mut differ = 0;
        each_seed("a_wrong_checker", SEEDS / 10, |_, rng| {
            let history = lawless(rng);
            differ += u64::from(by_checker(&seen_as(&history)) != by_reference(&history));
        });
        assert!(
            differ > 0 || std::env::var("MU_HISTORY_SEED").is_ok(),
            "{name}: not found"
        );
    }
}

fn rebuilt(operations: impl Iterator<Item = mu_history::Operation<Kv>>) -> History<Kv> {
    let mut history = History::new();
    operations.for_each(|operation| {
        history.push(operation);
    });
    history
}

/// A witness is what it says: its order keeps real time and explains the answers, up to the operation before the
/// culprit there is an order, and with the culprit there is none.
#[test]
fn witnesses_hold() {
    let mut witnesses = 0;
    each_seed("witnesses_hold", SEEDS / 3, |seed, rng| {
        let history = lawless(rng);
        let Ok(Verdict::Violation(violation)) = check(&Kv, &history, DEFAULT_BUDGET_STEPS) else {
            return;
        };
        witnesses += 1;
        let ops = history.operations();
        let of_key = |op: OpId| Kv.key(&ops[op].op) == violation.key;
        let rank = |op: OpId| (ops[op].returned_ns(), ops[op].invoked_ns, op);
        let culprit = violation.culprit;
        let answered = |op: OpId| of_key(op) && ops[op].output().is_some();
        assert!(
            brute_force(&history, |op| answered(op) && rank(op) < rank(culprit)),
            "seed {seed}: {violation}\n{history:#?}"
        );
        assert!(
            !brute_force(&history, |op| answered(op) && rank(op) <= rank(culprit)),
            "seed {seed}: {violation}\n{history:#?}"
        );

        let mut state = None;
        for (at, placed) in violation.prefix.iter().enumerate() {
            let (after, output) = Kv.apply(&state, &placed.operation.op);
            assert_eq!(after, placed.after, "seed {seed}");
            assert!(
                placed.operation.output().is_none_or(|saw| *saw == output),
                "seed {seed}"
            );
            let later = violation.prefix[at..].iter().map(|placed| placed.op);
            let before = later.filter_map(|op| ops[op].returned_ns()).min();
            assert!(before.is_none_or(|before| before >= placed.operation.invoked_ns));
            state = after;
        }
        assert_eq!(state, violation.state, "seed {seed}");
        assert!(
            violation.misfits.iter().any(|misfit| misfit.op == culprit),
            "seed {seed}"
        );
    });
    assert!(witnesses > 0 || std::env::var("MU_HISTORY_SEED").is_ok());
}
