//! Histories made from a seed, and a second opinion on them.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;

use mu_history::{History, Kv, KvOp, KvOutput, Model, OpId, Operation, Outcome, Place};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Replays one seed instead of the whole range.
const SEED: &str = "MU_HISTORY_SEED";

/// Runs `case` on each seed; a panic in it is preceded by the command that replays it.
pub fn each_seed(test: &str, seeds: u64, mut case: impl FnMut(u64, &mut ChaCha8Rng)) {
    let only = std::env::var(SEED)
        .ok()
        .map(|seed| seed.parse().expect("a number"));
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        let replay = OnPanic(format!(
            "replay: {SEED}={seed} cargo test -p mu-history {test}"
        ));
        case(seed, &mut ChaCha8Rng::seed_from_u64(seed));
        drop(replay);
    }
}

struct OnPanic(String);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

pub fn put(key: u64, value: u64) -> KvOp {
    KvOp::Put { key, value }
}

pub fn get(key: u64) -> KvOp {
    KvOp::Get { key }
}

pub fn add(key: u64, delta: u64) -> KvOp {
    KvOp::Add { key, delta }
}

pub fn cas(key: u64, expect: Option<u64>, new: u64) -> KvOp {
    KvOp::Cas { key, expect, new }
}

pub fn value(value: u64) -> KvOutput {
    KvOutput::Value(Some(value))
}

pub const NOTHING: KvOutput = KvOutput::Value(None);
pub const DONE: KvOutput = KvOutput::Done;

/// An operation with its times; each gets a client of its own.
pub fn answered(invoked_ns: u64, at_ns: u64, op: KvOp, output: KvOutput) -> Operation<Kv> {
    Operation {
        client: 0,
        op,
        invoked_ns,
        outcome: Outcome::Returned { at_ns, output },
    }
}

/// An operation whose answer never came.
pub fn unanswered(invoked_ns: u64, op: KvOp) -> Operation<Kv> {
    Operation {
        client: 0,
        op,
        invoked_ns,
        outcome: Outcome::Unknown,
    }
}

pub fn history(ops: impl IntoIterator<Item = Operation<Kv>>) -> History<Kv> {
    let mut history = History::new();
    for (client, operation) in ops.into_iter().enumerate() {
        let client = client as u64;
        history.push(Operation {
            client,
            ..operation
        });
    }
    history
}

/// What a run of made-up clients is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub clients: u64,
    pub ops_per_client: u64,
    pub keys: u64,
    /// Values are drawn below this.
    pub values: u64,
    /// Only puts and gets.
    pub plain: bool,
    /// Operations of a thousand that have no answer.
    pub unknown_per_mille: u64,
    /// The longest pause of a client.
    pub pause_ns: u64,
    /// The longest that a way to the store or back takes.
    pub way_ns: u64,
}

/// Clients of a store that keeps the rules: each operation takes effect at one instant. Also says where.
pub fn lawful(rng: &mut ChaCha8Rng, shape: Shape) -> (History<Kv>, Vec<(OpId, Place)>) {
    let mut calls = Vec::new();
    for client in 0..shape.clients {
        let mut now_ns = rng.random_range(0..=shape.pause_ns);
        for _ in 0..shape.ops_per_client {
            let effect_ns = now_ns + rng.random_range(0..=shape.way_ns);
            let at_ns = effect_ns + rng.random_range(0..=shape.way_ns);
            let op = loop {
                let op = any_op(rng, shape.keys, shape.values);
                if !shape.plain || matches!(op, KvOp::Put { .. } | KvOp::Get { .. }) {
                    break op;
                }
            };
            calls.push((client, op, now_ns, effect_ns, at_ns));
            now_ns = at_ns + rng.random_range(0..=shape.pause_ns);
        }
    }
    calls.sort_by_key(|&(_, _, _, effect_ns, _)| effect_ns);
    let (mut history, mut places) = (History::new(), Vec::new());
    let (mut states, mut index) = (BTreeMap::new(), 0);
    for (client, op, invoked_ns, _, at_ns) in calls {
        let id = history.invoked(client, op, invoked_ns);
        let unknown = rng.random_range(0..1000) < shape.unknown_per_mille;
        if unknown && rng.random() {
            continue;
        }
        let state = states.entry(Kv.key(&op)).or_insert(None);
        let (after, output) = Kv.apply(state, &op);
        *state = after;
        if Kv.read_only(&op) {
            places.push((id, Place::ReadAt { index }));
        } else {
            index += 1;
            places.push((id, Place::Applied { index }));
        }
        if !unknown {
            history
                .returned(id, output, at_ns)
                .expect("answered after it was invoked");
        }
    }
    (history, places)
}

pub fn any_op(rng: &mut ChaCha8Rng, keys: u64, values: u64) -> KvOp {
    let key = rng.random_range(0..keys);
    let value = rng.random_range(0..values);
    match rng.random_range(0..6) {
        0 | 1 => put(key, value),
        2 | 3 => get(key),
        4 => add(key, value),
        _ => cas(
            key,
            rng.random::<bool>().then_some(value),
            rng.random_range(0..values),
        ),
    }
}

/// A few operations with answers that may or may not be explained.
pub fn lawless(rng: &mut ChaCha8Rng) -> History<Kv> {
    let len = rng.random_range(1..=7);
    let unanswered_of_8 = rng.random_range(0..6);
    let operations = (0..len).map(|_| {
        let op = any_op(rng, 2, 3);
        let invoked_ns = rng.random_range(0..10);
        if rng.random_range(0..8) < unanswered_of_8 {
            return unanswered(invoked_ns, op);
        }
        let some = rng.random_range(0..4);
        let output = match op {
            KvOp::Put { .. } => DONE,
            KvOp::Get { .. } => KvOutput::Value((some < 3).then_some(some)),
            KvOp::Cas { .. } => KvOutput::Swapped(rng.random()),
            KvOp::Add { .. } => KvOutput::Sum(some),
        };
        answered(invoked_ns, invoked_ns + rng.random_range(0..6), op, output)
    });
    history(operations.collect::<Vec<_>>())
}

/// The second opinion: tries every order of every subset of the operations, on the whole store at once, and shares no
/// code with the checker. Operations that `must` not be there may be left out.
pub fn brute_force(history: &History<Kv>, must: impl Fn(OpId) -> bool) -> bool {
    let ops = history.operations();
    let must: Vec<bool> = (0..ops.len()).map(must).collect();
    let left: Vec<OpId> = (0..ops.len()).collect();
    try_orders(ops, &must, &left, &BTreeMap::new())
}

fn try_orders(
    ops: &[Operation<Kv>],
    must: &[bool],
    left: &[OpId],
    store: &BTreeMap<u64, u64>,
) -> bool {
    if left.iter().all(|&op| !must[op]) {
        return true;
    }
    left.iter().any(|&op| {
        let before = |&other: &OpId| {
            must[other]
                && ops[other]
                    .returned_ns()
                    .is_some_and(|at_ns| at_ns < ops[op].invoked_ns)
        };
        if left.iter().any(before) {
            return false;
        }
        let mut store = store.clone();
        let output = do_to(&mut store, ops[op].op);
        if ops[op].output().is_some_and(|saw| *saw != output) {
            return false;
        }
        let rest: Vec<OpId> = left.iter().copied().filter(|&other| other != op).collect();
        try_orders(ops, must, &rest, &store)
    })
}

fn do_to(store: &mut BTreeMap<u64, u64>, op: KvOp) -> KvOutput {
    match op {
        KvOp::Put { key, value } => {
            store.insert(key, value);
            KvOutput::Done
        }
        KvOp::Get { key } => KvOutput::Value(store.get(&key).copied()),
        KvOp::Cas { key, expect, new } => {
            let swap = store.get(&key).copied() == expect;
            if swap {
                store.insert(key, new);
            }
            KvOutput::Swapped(swap)
        }
        KvOp::Add { key, delta } => {
            let sum = store.entry(key).or_insert(0);
            *sum = sum.wrapping_add(delta);
            KvOutput::Sum(*sum)
        }
    }
}
