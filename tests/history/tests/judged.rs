//! Histories written by hand, good and bad, and what each judge must say of them.

mod common;

use common::{DONE, NOTHING, add, answered, cas, get, history, put, unanswered, value};
use mu_history::{
    DEFAULT_BUDGET_STEPS, History, Kv, KvOp, KvOutput, Malformed, Operation, OrderViolation,
    Outcome, Place, Verdict, check, check_order, lost_in_log, lost_in_state, stale_reads,
};

const OLD: u64 = 1;
const NEW: u64 = 2;

fn verdict(ops: &[Operation<Kv>]) -> Verdict<Kv> {
    check(&Kv, &history(ops.to_vec()), DEFAULT_BUDGET_STEPS).expect("well formed")
}

fn must_hold(ops: &[Operation<Kv>]) {
    let verdict = verdict(ops);
    assert!(verdict.is_linearizable(), "{verdict}");
}

/// The operation that the verdict must blame.
fn must_fail(ops: &[Operation<Kv>], culprit: usize) {
    match verdict(ops) {
        Verdict::Violation(violation) => assert_eq!(violation.culprit, culprit, "{violation}"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_read_after_an_answered_write_must_see_it() {
    let read = |output| {
        [
            answered(0, 10, put(1, OLD), DONE),
            answered(20, 30, put(1, NEW), DONE),
            answered(40, 50, get(1), output),
        ]
    };
    must_hold(&read(value(NEW)));
    must_fail(&read(value(OLD)), 2);
    must_fail(&read(NOTHING), 2);
}

#[test]
fn what_overlaps_may_go_either_way_but_not_back() {
    let reads = |first, second| {
        [
            answered(0, 10, put(1, OLD), DONE),
            answered(20, 90, put(1, NEW), DONE),
            answered(30, 40, get(1), first),
            answered(50, 60, get(1), second),
        ]
    };
    must_hold(&reads(value(OLD), value(OLD)));
    must_hold(&reads(value(OLD), value(NEW)));
    must_hold(&reads(value(NEW), value(NEW)));
    must_fail(&reads(value(NEW), value(OLD)), 3);
}

#[test]
fn an_answer_at_the_time_of_an_invocation_leaves_the_order_open() {
    let read_at = |at_ns| {
        [
            answered(0, 10, put(1, NEW), DONE),
            answered(at_ns, 30, get(1), NOTHING),
        ]
    };
    must_hold(&read_at(10));
    must_fail(&read_at(11), 1);
}

#[test]
fn an_unanswered_write_may_take_effect_late_or_never_but_once() {
    let reads = |values: [KvOutput; 3]| {
        let [first, second, third] = values;
        [
            unanswered(0, put(1, NEW)),
            answered(10, 20, get(1), first),
            answered(30, 40, put(1, OLD), DONE),
            answered(50, 60, get(1), second),
            answered(70, 80, get(1), third),
        ]
    };
    must_hold(&reads([NOTHING, value(OLD), value(OLD)]));
    must_hold(&reads([NOTHING, value(OLD), value(NEW)]));
    must_hold(&reads([value(NEW), value(OLD), value(OLD)]));
    must_fail(&reads([value(NEW), value(OLD), value(NEW)]), 4);
    // Not before it was invoked either.
    must_fail(
        &[
            answered(0, 10, get(1), value(NEW)),
            unanswered(20, put(1, NEW)),
        ],
        0,
    );
}

#[test]
fn an_addition_applied_twice_shows() {
    let sums = |second| {
        [
            answered(0, 10, add(1, 5), KvOutput::Sum(5)),
            answered(20, 30, add(1, 1), KvOutput::Sum(second)),
        ]
    };
    must_hold(&sums(6));
    must_fail(&sums(11), 1);
    // Two that were not answered explain it.
    must_hold(&[
        unanswered(0, add(1, 5)),
        sums(11)[0].clone(),
        sums(11)[1].clone(),
    ]);
}

/// Either of the two lets another operation happen as well, so the search is tempted to go that way.
#[test]
fn two_unanswered_ones_explain_together_what_neither_does() {
    let ops = [
        unanswered(0, add(1, 1)),
        unanswered(0, add(1, 2)),
        answered(0, 10, get(1), value(3)),
        answered(0, 100, cas(1, Some(1), 50), KvOutput::Swapped(true)),
        answered(0, 100, cas(1, Some(2), 60), KvOutput::Swapped(true)),
        answered(20, 30, put(1, 1), DONE),
        answered(40, 50, put(1, 2), DONE),
    ];
    must_hold(&ops);
    must_fail(&ops[1..], 1);
}

#[test]
fn of_two_exchanges_for_one_value_one_wins() {
    let both = |second| {
        [
            answered(0, 90, cas(1, None, OLD), KvOutput::Swapped(true)),
            answered(0, 90, cas(1, None, NEW), KvOutput::Swapped(second)),
        ]
    };
    must_hold(&both(false));
    must_fail(&both(true), 1);
}

#[test]
fn a_value_that_nobody_wrote_is_found_and_shown() {
    let ops = [
        answered(0, 10, put(1, OLD), DONE),
        answered(20, 30, get(1), value(77)),
    ];
    must_fail(&ops, 1);
    let message = verdict(&ops).to_string();
    assert!(
        message.starts_with("not linearizable: no order of the operations on key 1"),
        "{message}"
    );
    assert!(
        message.contains("client 1: Get { key: 1 } -> Value(Some(77)) in [20, 30] ns"),
        "{message}"
    );
    assert!(
        message.contains("here it answers Value(Some(1))"),
        "{message}"
    );
}

#[test]
fn keys_do_not_influence_each_other() {
    must_hold(&[
        answered(0, 10, put(1, OLD), DONE),
        answered(20, 30, get(2), NOTHING),
        answered(40, 50, get(1), value(OLD)),
    ]);
}

/// Many at once, every answer wrong: out of steps is neither yes nor no, and a violation elsewhere still counts.
#[test]
fn out_of_steps_is_unknown_and_a_violation_elsewhere_counts() {
    let mut ops: Vec<_> = (0..12)
        .map(|v| answered(0, 100, add(1, 1 << v), KvOutput::Sum(0)))
        .collect();
    ops.extend((0..12).map(|v| answered(0, 100, put(1, v), DONE)));
    let few =
        |ops: &[Operation<Kv>]| check(&Kv, &history(ops.to_vec()), 1000).expect("well formed");
    match few(&ops) {
        Verdict::Unknown { key: 1, steps } => assert!(steps >= 1000),
        other => panic!("{other}"),
    }
    assert!(!few(&ops).is_linearizable());
    ops.push(answered(200, 210, get(9), value(7)));
    assert!(matches!(few(&ops), Verdict::Violation(violation) if violation.key == 9));
}

#[test]
fn histories_that_nobody_can_have_are_refused() {
    let backwards = Malformed::AnsweredBeforeInvoked {
        op: 1,
        invoked_ns: 9,
        returned_ns: 8,
    };
    let bad = history([
        answered(0, 1, put(1, OLD), DONE),
        answered(9, 8, get(1), NOTHING),
    ]);
    assert_eq!(check(&Kv, &bad, 1).err(), Some(backwards));
    assert_eq!(
        check_order(&Kv, &bad, &[]),
        Err(OrderViolation::Malformed(backwards))
    );
    assert_eq!(stale_reads(&bad), Err(backwards));
    assert_eq!(lost_in_state(&bad, |_| None), Err(backwards));

    let mut recorded = History::<Kv>::new();
    let op = recorded.invoked(3, get(1), 9);
    let missing = Malformed::NoSuchOperation { op: 1, len: 1 };
    assert_eq!(recorded.returned(1, NOTHING, 20), Err(missing));
    assert_eq!(
        recorded.returned(op, NOTHING, 8),
        Err(Malformed::AnsweredBeforeInvoked {
            op,
            invoked_ns: 9,
            returned_ns: 8
        })
    );
    assert_eq!(recorded.answered(), 0);
    assert_eq!(recorded.returned(op, NOTHING, 9), Ok(()));
    assert_eq!(
        recorded.returned(op, NOTHING, 10),
        Err(Malformed::AnsweredTwice { op })
    );
    assert_eq!(
        recorded.operations()[op].outcome,
        Outcome::Returned {
            at_ns: 9,
            output: NOTHING
        }
    );
}

fn applied(index: u64) -> Place {
    Place::Applied { index }
}

fn read_at(index: u64) -> Place {
    Place::ReadAt { index }
}

#[test]
fn the_order_of_the_log_is_held_against_answers_and_time() {
    let ops = history([
        answered(0, 10, put(1, OLD), DONE),
        answered(20, 30, add(1, 4), KvOutput::Sum(OLD + 4)),
        answered(40, 50, get(1), value(OLD + 4)),
        unanswered(60, put(1, NEW)),
        answered(70, 80, get(1), value(NEW)),
    ]);
    let good = [
        (0, applied(1)),
        (1, applied(3)),
        (2, read_at(4)),
        (3, applied(7)),
        (4, read_at(7)),
    ];
    assert_eq!(check_order(&Kv, &ops, &good), Ok(()));
    let with = |changes: &[(usize, Place)]| {
        let mut places = good;
        for &(op, place) in changes {
            places[op].1 = place;
        }
        check_order(&Kv, &ops, &places)
    };
    let without = |op| {
        let places: Vec<_> = good.into_iter().filter(|&(other, _)| other != op).collect();
        check_order(&Kv, &ops, &places)
    };

    // Lost: answered, and nowhere. An unanswered one may be nowhere, but then nobody can have read it.
    assert_eq!(without(1), Err(OrderViolation::Lost { op: 1 }));
    assert!(matches!(
        without(3),
        Err(OrderViolation::WrongAnswer { op: 4, .. })
    ));
    // Applied twice.
    let twice = [&good[..], &[(1, applied(9))]].concat();
    assert_eq!(
        check_order(&Kv, &ops, &twice),
        Err(OrderViolation::AppliedTwice {
            op: 1,
            first: applied(3),
            second: applied(9)
        })
    );
    // Two entries at one index.
    assert_eq!(
        with(&[(3, applied(3))]),
        Err(OrderViolation::SameIndex {
            first: 1,
            second: 3,
            index: 3
        })
    );
    // A write that claims to be a read, and an operation that does not exist.
    assert_eq!(
        with(&[(1, read_at(3))]),
        Err(OrderViolation::NotARead { op: 1, index: 3 })
    );
    let phantom = [&good[..], &[(5, applied(9))]].concat();
    assert_eq!(
        check_order(&Kv, &ops, &phantom),
        Err(OrderViolation::Malformed(Malformed::NoSuchOperation {
            op: 5,
            len: 5
        }))
    );
    // Read from an old state: the answer is wrong for the index, and right for another that real time forbids.
    assert!(matches!(
        with(&[(2, read_at(2))]),
        Err(OrderViolation::WrongAnswer { op: 2, .. })
    ));
    assert!(matches!(
        with(&[(4, read_at(6))]),
        Err(OrderViolation::WrongAnswer { op: 4, .. })
    ));
}

#[test]
fn an_index_against_real_time_is_found_where_no_answer_shows_it() {
    let ops = history([
        answered(0, 10, put(1, OLD), DONE),
        answered(20, 30, put(2, NEW), DONE),
        answered(20, 30, put(3, NEW), DONE),
    ]);
    let places = |one, two, three| [(0, applied(one)), (1, applied(two)), (2, applied(three))];
    assert_eq!(check_order(&Kv, &ops, &places(1, 3, 2)), Ok(()));
    assert_eq!(
        check_order(&Kv, &ops, &places(2, 3, 1)),
        Err(OrderViolation::AgainstTime {
            earlier: 0,
            later: 2,
            earlier_place: applied(2),
            later_place: applied(1)
        })
    );
    // The other checker cannot see it: no client could.
    assert!(
        check(&Kv, &ops, 1000)
            .expect("well formed")
            .is_linearizable()
    );
}

/// A leader that lost its office serves a read: right for its own index, and an earlier one than time allows.
#[test]
fn a_read_at_an_old_index_is_against_real_time() {
    let ops = history([
        answered(0, 10, put(1, OLD), DONE),
        answered(20, 30, put(1, NEW), DONE),
        answered(40, 50, get(1), value(OLD)),
    ]);
    let places = [(0, applied(1)), (1, applied(2)), (2, read_at(1))];
    assert!(matches!(
        check_order(&Kv, &ops, &places),
        Err(OrderViolation::AgainstTime {
            earlier: 1,
            later: 2,
            ..
        })
    ));
    assert_eq!(stale_reads(&ops), Ok(vec![2]));
}

#[test]
fn stale_reads_are_counted_and_fresh_ones_are_not() {
    let mut ops = vec![
        answered(0, 10, put(1, 10), DONE),
        answered(20, 30, put(1, 20), DONE),
        answered(40, 50, cas(1, Some(20), 30), KvOutput::Swapped(true)),
        answered(60, 90, add(1, 1), KvOutput::Sum(31)),
        // Stale: nothing, the first and the second.
        answered(55, 56, get(1), NOTHING),
        answered(55, 56, get(1), value(10)),
        answered(70, 80, get(1), value(20)),
        // Fresh, or overlapping with what overwrote it, or no matter of age.
        answered(55, 56, get(1), value(30)),
        answered(70, 80, get(1), value(30)),
        answered(91, 92, get(1), value(31)),
        answered(25, 26, get(1), value(10)),
        answered(91, 92, get(1), value(99)),
        answered(91, 92, get(2), NOTHING),
    ];
    assert_eq!(stale_reads(&history(ops.clone())), Ok(vec![4, 5, 6]));
    // Who wrote the first value again, without an answer, may have done so at any time.
    ops.push(unanswered(0, put(1, 10)));
    assert_eq!(stale_reads(&history(ops.clone())), Ok(vec![4, 6]));
    ops.push(unanswered(0, add(1, 1)));
    assert_eq!(stale_reads(&history(ops)), Ok(vec![4]));
}

#[test]
fn lost_writes_are_counted() {
    let ops = history([
        answered(0, 10, put(1, 10), DONE),
        answered(20, 30, put(1, 20), DONE),
        answered(40, 50, put(1, 30), DONE),
        answered(45, 55, put(1, 40), DONE),
        unanswered(60, put(1, 50)),
        answered(70, 80, get(1), value(40)),
        answered(0, 10, KvOp::Put { key: 2, value: 1 }, DONE),
    ]);
    let lost = |one, two| lost_in_state(&ops, |key| if key == 1 { one } else { two });
    assert_eq!(lost(Some(50), Some(1)), Ok(vec![]));
    assert_eq!(lost(Some(40), Some(1)), Ok(vec![]));
    assert_eq!(lost(Some(30), Some(1)), Ok(vec![]));
    assert_eq!(lost(Some(20), Some(1)), Ok(vec![2, 3]));
    assert_eq!(lost(Some(10), None), Ok(vec![1, 2, 3, 6]));
    assert_eq!(lost(None, Some(1)), Ok(vec![0, 1, 2, 3]));

    assert_eq!(lost_in_log(&Kv, &ops, |_| true), Vec::<usize>::new());
    assert_eq!(lost_in_log(&Kv, &ops, |op| op != 2 && op < 4), vec![2, 6]);
}
