//! What clients saw, before the checks of `mu-history`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mu_history::{
    DEFAULT_BUDGET_STEPS, History, Kv, KvOp, KvOutput, Operation, Outcome, Verdict, check,
    lost_in_state, stale_reads,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::caller::{Ask, Called, Caller, Told};
use super::load::{Calls, Record};

/// Patience of one read at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What [`Judgement::linearizable`] has to be.
pub(crate) const YES: &str = "yes";

/// What the checks say.
#[derive(Clone, Debug)]
pub(crate) struct Judgement {
    /// Operations looked at.
    pub(crate) operations: usize,
    /// Commands that were acknowledged.
    pub(crate) acked: u64,
    /// Operations whose outcome the client does not know.
    pub(crate) unknown: usize,
    /// Acknowledged writes that are gone.
    pub(crate) lost: usize,
    /// Reads of what was overwritten before.
    pub(crate) stale_reads: usize,
    /// Is there an order that explains every answer? `yes`, `no`, or `unknown` if it would take too long to find out.
    pub(crate) linearizable: &'static str,
    /// Why not.
    pub(crate) why: Option<String>,
}

impl Judgement {
    /// Nothing lost, nothing stale, nothing applied twice.
    pub(crate) fn holds(&self) -> bool {
        self.lost == 0 && self.stale_reads == 0 && self.linearizable == YES
    }
}

/// One call as the checks see it.
pub(crate) fn operation(client: u64, ask: Ask, called: Called) -> Operation<Kv> {
    let op = match ask {
        Ask::Put { key, value } => KvOp::Put { key, value },
        Ask::Add { key, delta } => KvOp::Add {
            key,
            delta: delta as u64,
        },
        Ask::Get { key } => KvOp::Get { key },
    };
    let outcome = match called.answer {
        None => Outcome::Unknown,
        Some((told, _, at_ns)) => Outcome::Returned {
            at_ns,
            output: match told {
                Told::Done => KvOutput::Done,
                Told::Sum(sum) => KvOutput::Sum(sum),
                Told::Value(value) => KvOutput::Value(value),
            },
        },
    };
    Operation {
        client,
        op,
        invoked_ns: called.invoked_ns,
        outcome,
    }
}

/// Reads every key once more, and looks at everything. What a read at the end finds is part of the history, so a write
/// that is gone also makes it impossible.
pub(crate) fn judge(addresses: &[SocketAddr], records: &[Record]) -> Result<Judgement> {
    judge_with(Caller::new(addresses)?, records)
}

/// The same with another caller.
pub(crate) fn judge_with(mut caller: impl Calls, records: &[Record]) -> Result<Judgement> {
    let mut history = History::<Kv>::new();
    for record in records {
        history.push(operation(record.client, record.ask, record.called));
    }
    let mut keys: Vec<u64> = history
        .operations()
        .iter()
        .map(|operation| match operation.op {
            KvOp::Put { key, .. }
            | KvOp::Get { key }
            | KvOp::Cas { key, .. }
            | KvOp::Add { key, .. } => key,
        })
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let mut values = BTreeMap::new();
    for key in keys {
        let ask = Ask::Get { key };
        let called = caller.call(ask, PATIENCE);
        let (told, ..) = called
            .answer
            .with_context(|| format!("key {key} cannot be read at the end"))?;
        if let Told::Value(Some(value)) = told {
            values.insert(key, value);
        }
        history.push(operation(u64::MAX, ask, called));
    }
    look(&history, &values)
}

/// The checks alone, with the values that stand in the end.
fn look(history: &History<Kv>, values: &BTreeMap<u64, u64>) -> Result<Judgement> {
    let lost = lost_in_state(history, |key| values.get(&key).copied())?.len();
    let stale_reads = stale_reads(history)?.len();
    let verdict = check(&Kv, history, DEFAULT_BUDGET_STEPS)?;
    let operations = history.operations();
    let is_command = |operation: &&Operation<Kv>| !matches!(operation.op, KvOp::Get { .. });
    let acked = operations
        .iter()
        .filter(is_command)
        .filter(|operation| operation.output().is_some())
        .count();
    let why = (!verdict.is_linearizable()).then(|| verdict.to_string());
    Ok(Judgement {
        operations: operations.len(),
        acked: acked as u64,
        unknown: operations.len() - history.answered(),
        lost,
        stale_reads,
        linearizable: match verdict {
            Verdict::Linearizable => YES,
            Verdict::Violation(_) => "no",
            Verdict::Unknown { .. } => "unknown",
        },
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: u64, times: (u64, u64)) -> Operation<Kv> {
        let called = Called {
            invoked_ns: times.0,
            answer: Some((Told::Done, 0, times.1)),
        };
        operation(1, Ask::Put { key: 1, value }, called)
    }

    fn told(ask: Ask, told: Told, times: (u64, u64)) -> Operation<Kv> {
        let called = Called {
            invoked_ns: times.0,
            answer: Some((told, 0, times.1)),
        };
        operation(2, ask, called)
    }

    fn judged(operations: Vec<Operation<Kv>>, last: u64) -> Judgement {
        let mut history = History::new();
        operations.into_iter().for_each(|operation| {
            history.push(operation);
        });
        look(&history, &BTreeMap::from([(1, last)])).expect("a history")
    }

    #[test]
    fn what_is_right_holds_and_each_wrong_is_found() {
        let get = |value, times| told(Ask::Get { key: 1 }, Told::Value(Some(value)), times);
        let good = judged(vec![put(7, (1, 2)), put(8, (3, 4)), get(8, (5, 6))], 8);
        assert!(good.holds(), "{good:?}");
        assert_eq!((good.acked, good.operations, good.unknown), (2, 3, 0));
        let lost = judged(vec![put(7, (1, 2)), put(8, (3, 4)), get(7, (5, 6))], 7);
        assert!(
            lost.lost > 0 && lost.linearizable == "no" && !lost.holds(),
            "{lost:?}"
        );
        let stale = judged(vec![put(7, (1, 2)), put(8, (3, 4)), get(7, (5, 6))], 8);
        assert!(stale.stale_reads == 1 && !stale.holds(), "{stale:?}");
        let add = Ask::Add { key: 1, delta: 1 };
        let twice = judged(
            vec![
                told(add, Told::Sum(1), (1, 2)),
                told(add, Told::Sum(3), (3, 4)),
            ],
            3,
        );
        assert!(twice.linearizable == "no" && !twice.holds(), "{twice:?}");
    }
}
