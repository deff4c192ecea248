//! Counts for a report: writes that were answered and are gone, reads of what was already overwritten.
//!
//! The two that look at values count only what is certain, so they are lower bounds. They are exact enough for a
//! counter if puts have values of their own; whether the whole history holds is for [`check`](crate::check) to say.

use std::collections::{BTreeMap, HashMap};

use crate::history::{History, Malformed, OpId, Outcome};
use crate::kv::{Kv, KvOp, KvOutput};
use crate::model::Model;

/// The answered writes that the log does not have. `has` says of an operation whether the log has it.
pub fn lost_in_log<M: Model>(
    model: &M,
    history: &History<M>,
    mut has: impl FnMut(OpId) -> bool,
) -> Vec<OpId> {
    let mut lost = Vec::new();
    for (op, operation) in history.operations().iter().enumerate() {
        if operation.output().is_some() && !model.read_only(&operation.op) && !has(op) {
            lost.push(op);
        }
    }
    lost
}

/// The answered writes that the final state cannot have seen: each began when every operation that may have left the
/// final value of its key had ended. `value` says what the store holds in the end.
pub fn lost_in_state(
    history: &History<Kv>,
    mut value: impl FnMut(u64) -> Option<u64>,
) -> Result<Vec<OpId>, Malformed> {
    history.validate()?;
    let mut lost = Vec::new();
    for (key, writes) in writes_by_key(history) {
        let over_ns = writes.over_ns(value(key));
        let late = |write: &&Write| over_ns.is_none_or(|over_ns| over_ns < write.invoked_ns);
        lost.extend(writes.acked.iter().filter(late).map(|write| write.op));
    }
    lost.sort_unstable();
    Ok(lost)
}

/// The reads that returned a value which was overwritten before they began: a write was answered before the read was
/// invoked, and itself began when every operation that may have left the value had ended.
pub fn stale_reads(history: &History<Kv>) -> Result<Vec<OpId>, Malformed> {
    history.validate()?;
    let keys = writes_by_key(history);
    let mut stale = Vec::new();
    for (op, operation) in history.operations().iter().enumerate() {
        let (KvOp::Get { key }, Some(KvOutput::Value(value))) = (operation.op, operation.output())
        else {
            continue;
        };
        let Some(writes) = keys.get(&key) else {
            continue;
        };
        let Some(newest_ns) = writes.newest_begun_ns(operation.invoked_ns) else {
            continue;
        };
        if writes
            .over_ns(*value)
            .is_none_or(|over_ns| over_ns < newest_ns)
        {
            stale.push(op);
        }
    }
    Ok(stale)
}

/// An answered operation that stored something.
struct Write {
    op: OpId,
    invoked_ns: u64,
    returned_ns: u64,
}

/// The writes of one key.
#[derive(Default)]
struct Writes {
    /// By response.
    acked: Vec<Write>,
    /// The latest invocation of `acked` up to each position.
    newest_ns: Vec<u64>,
    /// When the last operation ended that stored a value.
    stored: HashMap<u64, u64>,
    /// An addition was not answered: it may have stored any value.
    any_value: bool,
}

impl Writes {
    /// When the last operation ended that may have left `value`: `None` before everything, the end of time if one may
    /// still be under way. A value that nobody stored is no matter of age.
    fn over_ns(&self, value: Option<u64>) -> Option<u64> {
        let value = value?;
        if self.any_value {
            return Some(u64::MAX);
        }
        Some(self.stored.get(&value).copied().unwrap_or(u64::MAX))
    }

    /// The latest invocation among the writes answered before `at_ns`.
    fn newest_begun_ns(&self, at_ns: u64) -> Option<u64> {
        let answered = self
            .acked
            .partition_point(|write| write.returned_ns < at_ns);
        self.newest_ns.get(answered.checked_sub(1)?).copied()
    }

    fn add(&mut self, value: u64, over_ns: u64) {
        let latest = self.stored.entry(value).or_insert(over_ns);
        *latest = over_ns.max(*latest);
    }
}

fn writes_by_key(history: &History<Kv>) -> BTreeMap<u64, Writes> {
    let mut keys: BTreeMap<u64, Writes> = BTreeMap::new();
    for (op, operation) in history.operations().iter().enumerate() {
        let writes = keys.entry(Kv.key(&operation.op)).or_default();
        match operation.outcome {
            Outcome::Unknown => match operation.op {
                KvOp::Put { value, .. } | KvOp::Cas { new: value, .. } => {
                    writes.add(value, u64::MAX);
                }
                KvOp::Add { .. } => writes.any_value = true,
                KvOp::Get { .. } => {}
            },
            Outcome::Returned { at_ns, output } => {
                let value = match (operation.op, output) {
                    (KvOp::Put { value, .. }, _) => value,
                    (KvOp::Cas { new, .. }, KvOutput::Swapped(true)) => new,
                    (KvOp::Add { .. }, KvOutput::Sum(sum)) => sum,
                    _ => continue,
                };
                writes.add(value, at_ns);
                writes.acked.push(Write {
                    op,
                    invoked_ns: operation.invoked_ns,
                    returned_ns: at_ns,
                });
            }
        }
    }
    for writes in keys.values_mut() {
        writes.acked.sort_by_key(|write| write.returned_ns);
        let mut newest_ns = 0;
        writes.newest_ns.extend(writes.acked.iter().map(|write| {
            newest_ns = write.invoked_ns.max(newest_ns);
            newest_ns
        }));
    }
    keys
}
