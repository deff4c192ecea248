//! Does the order of the log explain what the clients saw?
//!
//! The log is the order that the protocol claims, so nothing has to be searched: each write has its index, each read
//! the index that it read at. Checked in O(n log n):
//!
//! - every answered operation has a place, no operation has two, and no two writes have the same index;
//! - the operations answered in the order of the log give just the answers that the clients had;
//! - an operation that was answered before another was invoked comes before it.
//!
//! That implies linearizability, and more: a command that was applied twice shows even if no client could see it.

use std::collections::BTreeMap;

use crate::history::{History, Malformed, OpId};
use crate::model::Model;

/// Where the log says that an operation took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the entry with this index.
    Applied {
        /// The index.
        index: u64,
    },
    /// It read the state after the entry with this index, and is no entry itself. Zero: before the first one.
    ReadAt {
        /// The index.
        index: u64,
    },
}

impl Place {
    /// Entries and the reads behind them, in one order.
    fn position(self) -> (u64, bool) {
        match self {
            Self::Applied { index } => (index, false),
            Self::ReadAt { index } => (index, true),
        }
    }
}

/// Why the order of the log does not explain the history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderViolation {
    /// No clients can have had the history.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// An operation stands in the log more than once.
    #[error("operation {op} was applied twice, at {first:?} and at {second:?}")]
    AppliedTwice {
        /// Which.
        op: OpId,
        /// The one place.
        first: Place,
        /// The other.
        second: Place,
    },
    /// Two operations claim one index.
    #[error("operations {first} and {second} both stand at index {index}")]
    SameIndex {
        /// The one.
        first: OpId,
        /// The other.
        second: OpId,
        /// The index.
        index: u64,
    },
    /// An operation that changes the state has the place of a read.
    #[error("operation {op} is no read, but has a place only as one, at index {index}")]
    NotARead {
        /// Which.
        op: OpId,
        /// The index.
        index: u64,
    },
    /// A client was answered, but the operation is nowhere.
    #[error("operation {op} was answered and stands nowhere in the log: it is lost")]
    Lost {
        /// Which.
        op: OpId,
    },
    /// The log gives another answer than the client had.
    #[error("operation {op} at {place:?} answered {answered}, but by the log it is {by_the_log}")]
    WrongAnswer {
        /// Which.
        op: OpId,
        /// Where.
        place: Place,
        /// What the client had.
        answered: String,
        /// What follows from the log.
        by_the_log: String,
    },
    /// The log contradicts real time.
    #[error(
        "operation {earlier} was answered before operation {later} was invoked, but stands behind it in the log: \
         {earlier_place:?}, {later_place:?}"
    )]
    AgainstTime {
        /// The one that was answered first.
        earlier: OpId,
        /// The one that was invoked afterwards.
        later: OpId,
        /// Where the log has the first.
        earlier_place: Place,
        /// Where the log has the second.
        later_place: Place,
    },
}

/// Checks a history against the log. `places` holds an [`Place::Applied`] for every entry of the log that comes from
/// an operation of the history, also for those whose client never had an answer, and a [`Place::ReadAt`] for every
/// answered operation that is no entry. Their order does not matter; entries of other origin are left out.
pub fn check_order<M: Model>(
    model: &M,
    history: &History<M>,
    places: &[(OpId, Place)],
) -> Result<(), OrderViolation> {
    history.validate()?;
    let placed = one_place_each(model, history, places)?;
    let mut in_order: Vec<(OpId, Place)> = places.to_vec();
    in_order.sort_by_key(|&(op, place)| (place.position(), op));
    one_entry_an_index(&in_order)?;
    answers_follow(model, history, &in_order)?;
    time_agrees(history, &placed)
}

/// The place of each operation; `None` for one without an answer that never took effect.
fn one_place_each<M: Model>(
    model: &M,
    history: &History<M>,
    places: &[(OpId, Place)],
) -> Result<Vec<Option<Place>>, OrderViolation> {
    let operations = history.operations();
    let len = operations.len();
    let mut placed: Vec<Option<Place>> = vec![None; len];
    for &(op, second) in places {
        let place = placed
            .get_mut(op)
            .ok_or(Malformed::NoSuchOperation { op, len })?;
        if let Some(first) = place.replace(second) {
            return Err(OrderViolation::AppliedTwice { op, first, second });
        }
        if let Place::ReadAt { index } = second
            && !model.read_only(&operations[op].op)
        {
            return Err(OrderViolation::NotARead { op, index });
        }
    }
    let lost = |&op: &OpId| operations[op].output().is_some() && placed[op].is_none();
    match (0..len).find(lost) {
        Some(op) => Err(OrderViolation::Lost { op }),
        None => Ok(placed),
    }
}

fn one_entry_an_index(in_order: &[(OpId, Place)]) -> Result<(), OrderViolation> {
    for pair in in_order.windows(2) {
        if let [
            (first, Place::Applied { index }),
            (second, Place::Applied { index: other }),
        ] = *pair
            && index == other
        {
            return Err(OrderViolation::SameIndex {
                first,
                second,
                index,
            });
        }
    }
    Ok(())
}

/// Replays the log.
fn answers_follow<M: Model>(
    model: &M,
    history: &History<M>,
    in_order: &[(OpId, Place)],
) -> Result<(), OrderViolation> {
    let mut states = BTreeMap::new();
    for &(op, place) in in_order {
        let operation = &history.operations()[op];
        let key = model.key(&operation.op);
        let state = states
            .entry(key.clone())
            .or_insert_with(|| model.initial(&key));
        let (after, by_the_log) = model.apply(state, &operation.op);
        *state = after;
        if let Some(answered) = operation.output()
            && *answered != by_the_log
        {
            return Err(OrderViolation::WrongAnswer {
                op,
                place,
                answered: format!("{answered:?}"),
                by_the_log: format!("{by_the_log:?}"),
            });
        }
    }
    Ok(())
}

/// Sweeps over time with the highest place that was answered so far: nothing invoked later may stand before it.
fn time_agrees<M: Model>(
    history: &History<M>,
    placed: &[Option<Place>],
) -> Result<(), OrderViolation> {
    let mut events = Vec::new();
    for (op, operation) in history.operations().iter().enumerate() {
        if let Some(place) = placed[op] {
            // At the same time, invocations come first: equal times leave the order open.
            events.push((operation.invoked_ns, false, op, place));
            events.extend(
                operation
                    .returned_ns()
                    .map(|at_ns| (at_ns, true, op, place)),
            );
        }
    }
    events.sort_by_key(|&(at_ns, is_response, op, _)| (at_ns, is_response, op));
    let mut highest: Option<(OpId, Place)> = None;
    for (_, is_response, op, place) in events {
        match highest {
            Some((_, of)) if is_response && place.position() <= of.position() => {}
            _ if is_response => highest = Some((op, place)),
            Some((earlier, earlier_place)) if place.position() < earlier_place.position() => {
                return Err(OrderViolation::AgainstTime {
                    earlier,
                    later: op,
                    earlier_place,
                    later_place: place,
                });
            }
            _ => {}
        }
    }
    Ok(())
}
