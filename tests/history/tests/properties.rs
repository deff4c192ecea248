//! Histories of a store that keeps the rules pass every judge, whatever the clients do; what breaks a rule does not.

mod common;

use common::{Shape, brute_force, lawful};
use mu_history::{
    DEFAULT_BUDGET_STEPS, History, Kv, KvOp, KvOutput, OpId, Outcome, Place, check, check_order,
    lost_in_log, lost_in_state, stale_reads,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn shapes() -> impl Strategy<Value = Shape> {
    let times = (
        prop_oneof![Just(0), 1..2000u64],
        prop_oneof![Just(1), 2..1000u64],
    );
    (
        1..10u64,
        1..40u64,
        1..4u64,
        2..1000u64,
        any::<bool>(),
        0..30u64,
        times,
    )
        .prop_map(
            |(
                clients,
                ops_per_client,
                keys,
                values,
                plain,
                unknown_per_mille,
                (pause_ns, way_ns),
            )| {
                Shape {
                    clients,
                    ops_per_client,
                    keys,
                    values,
                    plain,
                    unknown_per_mille,
                    pause_ns,
                    way_ns,
                }
            },
        )
}

fn is_linearizable(history: &History<Kv>) -> bool {
    let verdict = check(&Kv, history, DEFAULT_BUDGET_STEPS).expect("well formed");
    verdict.is_linearizable()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_lawful_history_passes(shape in shapes(), seed: u64) {
        let (history, places) = lawful(&mut ChaCha8Rng::seed_from_u64(seed), shape);
        prop_assert!(is_linearizable(&history));
        prop_assert_eq!(check_order(&Kv, &history, &places), Ok(()));
        prop_assert_eq!(stale_reads(&history), Ok(vec![]));
        let last = final_state(&history, &places);
        prop_assert_eq!(lost_in_state(&history, |key| last.get(&key).copied().flatten()), Ok(vec![]));
        let in_log = |op| places.iter().any(|&(placed, _)| placed == op);
        prop_assert_eq!(lost_in_log(&Kv, &history, in_log), Vec::<OpId>::new());
    }

    /// The judge by the log is the stricter one.
    #[test]
    fn what_the_log_explains_is_linearizable(shape in shapes(), seed: u64, spoils in 1..4usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (history, mut places) = lawful(&mut rng, shape);
        prop_assume!(places.len() > 1);
        let history = (0..spoils).fold(history, |history, _| spoil_answer(&mut rng, &history));
        for _ in 0..spoils {
            let (a, b) = (rng.random_range(0..places.len()), rng.random_range(0..places.len()));
            let (first, second) = (places[a].0, places[b].0);
            (places[a].0, places[b].0) = (second, first);
        }
        if check_order(&Kv, &history, &places).is_ok() {
            prop_assert!(is_linearizable(&history));
        }
    }

    /// A value from nowhere, in a run too long to try every order of.
    #[test]
    fn a_phantom_is_found(shape in shapes(), seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let shape = Shape { plain: true, ..shape };
        let (history, places) = lawful(&mut rng, shape);
        let reads = |&op: &OpId| matches!(history.operations()[op].output(), Some(KvOutput::Value(_)));
        let reads: Vec<OpId> = (0..history.operations().len()).filter(reads).collect();
        prop_assume!(!reads.is_empty());
        let read = reads[rng.random_range(0..reads.len())];
        let history = with_answer(&history, read, KvOutput::Value(Some(u64::MAX)));
        prop_assert!(!is_linearizable(&history));
        prop_assert!(check_order(&Kv, &history, &places).is_err());
    }

    /// Small enough for every order to be tried, and nearer to real runs than lawless ones.
    #[test]
    fn a_spoilt_answer_is_judged_as_by_trying_every_order(seed: u64, spoils in 0..3usize) {
        let shape = Shape {
            clients: 3, ops_per_client: 3, keys: 1, values: 3, plain: false, unknown_per_mille: 200, pause_ns: 5,
            way_ns: 10,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (history, _) = lawful(&mut rng, shape);
        let history = (0..spoils).fold(history, |history, _| spoil_answer(&mut rng, &history));
        let expected = brute_force(&history, |op| history.operations()[op].output().is_some());
        prop_assert_eq!(is_linearizable(&history), expected, "{:#?}", history);
    }
}

/// What the store holds after the operations in the order of the log.
fn final_state(
    history: &History<Kv>,
    places: &[(OpId, Place)],
) -> std::collections::BTreeMap<u64, Option<u64>> {
    use mu_history::Model;
    let mut states = std::collections::BTreeMap::new();
    for &(op, _) in places {
        let op = &history.operations()[op].op;
        let state = states.entry(Kv.key(op)).or_insert(None);
        *state = Kv.apply(state, op).0;
    }
    states
}

fn spoil_answer(rng: &mut ChaCha8Rng, history: &History<Kv>) -> History<Kv> {
    let op = rng.random_range(0..history.operations().len());
    let some = rng.random_range(0..4);
    let output = match history.operations()[op].op {
        KvOp::Put { .. } => KvOutput::Done,
        KvOp::Get { .. } => KvOutput::Value((some < 3).then_some(some)),
        KvOp::Cas { .. } => KvOutput::Swapped(rng.random()),
        KvOp::Add { .. } => KvOutput::Sum(some),
    };
    with_answer(history, op, output)
}

fn with_answer(history: &History<Kv>, op: OpId, answer: KvOutput) -> History<Kv> {
    let mut spoilt = History::new();
    for (at, operation) in history.operations().iter().enumerate() {
        let mut operation = operation.clone();
        if let Outcome::Returned { output, .. } = &mut operation.outcome
            && at == op
        {
            *output = answer;
        }
        spoilt.push(operation);
    }
    spoilt
}
