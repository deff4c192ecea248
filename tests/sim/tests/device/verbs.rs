//! Simulated verbs do what verbs do.

use crate::pair::{End, IMPATIENT, Pair, REMOTE, SOON_NS};
use mu_sim::{Fault, Leak, Nic, NodeId, Profile};
use mu_verbs::{
    Access, Context, MemoryRegion, Modify, Placement, PostError, QpControl, QpState, QueuePair,
    SendFlags, SendOp, SendWr, Sge, WcStatus,
};

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);

fn statuses(done: &[mu_verbs::Completion]) -> Vec<(u64, WcStatus)> {
    done.iter().map(|c| (c.wr_id, c.status)).collect()
}

fn state(end: &End) -> QpState {
    end.qp.control().state().expect("it can always be asked")
}

#[test]
fn writes_and_reads_move_their_bytes_in_order() {
    let mut pair = Pair::calm(1);
    pair.a.write(1, &[7; 20], pair.there(4));
    pair.a.write(2, &[8; 4], pair.there(8));
    pair.a.read(3, 104, 24, pair.there(0));
    let done = statuses(&pair.settle());
    let ok = WcStatus::SUCCESS;
    assert_eq!(done, [(1, ok), (2, ok), (3, ok)]);
    let mut bytes = [0; 24];
    pair.b.memory.read_bytes(0, &mut bytes);
    let want = [&[0; 4][..], &[7; 4], &[8; 4], &[7; 12]].concat();
    assert_eq!(bytes[..], want);
    pair.a.memory.read_bytes(104, &mut bytes);
    assert_eq!(bytes[..], want, "a READ sees the WRITEs before it");
}

#[test]
fn atomics_return_the_old_value() {
    let mut pair = Pair::calm(1);
    pair.b.memory.store(1, 40);
    let remote = pair.there(8);
    let End { mr, qp, .. } = &mut pair.a;
    let mut post = |wr_id, op| {
        let wr = SendWr {
            wr_id,
            op,
            flags: SendFlags::SIGNALED,
        };
        qp.post_send(&wr).expect("room");
    };
    post(
        1,
        SendOp::FetchAdd {
            local: Sge::new(mr, 0, 8),
            remote,
            add: 2,
        },
    );
    post(
        2,
        SendOp::CompareSwap {
            local: Sge::new(mr, 8, 8),
            remote,
            compare: 42,
            swap: 9,
        },
    );
    post(
        3,
        SendOp::CompareSwap {
            local: Sge::new(mr, 16, 8),
            remote,
            compare: 42,
            swap: 1,
        },
    );
    assert_eq!(pair.settle().len(), 3);
    let old = [0, 1, 2].map(|word| pair.a.memory.load(word));
    assert_eq!((old, pair.b.memory.load(1)), ([40, 42, 9], 9));
}

#[test]
fn inline_bytes_are_taken_at_once_and_others_when_they_are_sent() {
    let mut pair = Pair::calm(1);
    pair.a.memory.store(0, 1);
    pair.a.write_from(1, 0, 8, pair.there(0));
    pair.a.memory.store(0, 2);
    let mut bytes = [3; 8];
    pair.a.write(2, &bytes, pair.there(8));
    bytes.fill(4);
    pair.settle();
    assert_eq!(
        pair.b.memory.load(0),
        2,
        "the buffer was used again too early, and it shows"
    );
    assert_eq!(pair.b.memory.load(1), u64::from_le_bytes([3; 8]));
}

#[test]
fn a_refusal_fails_both_ends_and_flushes_the_rest() {
    type Break = fn(&Pair) -> mu_verbs::RemoteAddr;
    let key: Break = |pair| {
        let mut wrong = pair.there(0);
        wrong.rkey ^= 1;
        wrong
    };
    let range: Break = |pair| pair.there(4090);
    let flags: Break = |pair| {
        pair.b.modify(Modify::Access(Access::REMOTE_READ));
        pair.there(0)
    };
    let (access, request) = (WcStatus::REM_ACCESS_ERR, WcStatus::REM_INV_REQ_ERR);
    for (break_it, status) in [(key, access), (range, access), (flags, request)] {
        let mut pair = Pair::calm(2);
        let place = break_it(&pair);
        pair.a.write(1, &[1; 16], place);
        pair.a.write(2, &[1; 16], pair.there(64));
        let done = statuses(&pair.settle());
        assert_eq!(done, [(1, status), (2, WcStatus::WR_FLUSH_ERR)]);
        assert_eq!(
            (state(&pair.a), state(&pair.b)),
            (QpState::Err, QpState::Err)
        );
        assert!(
            pair.b
                .memory
                .words()
                .iter()
                .all(|w| w.load(std::sync::atomic::Ordering::Relaxed) == 0)
        );
        assert!(
            pair.b
                .ctx
                .poll_async_event()
                .expect("never fails")
                .is_some()
        );
        pair.a.write(3, &[1; 16], pair.there(0));
        assert_eq!(statuses(&pair.settle()), [(3, WcStatus::WR_FLUSH_ERR)]);
    }
}

#[test]
fn posting_needs_the_right_state_and_room() {
    let mut pair = Pair::calm(1);
    for wr_id in 0..16 {
        pair.a.write(wr_id, &[1; 8], pair.there(0));
    }
    let op = SendOp::Read {
        local: &[],
        remote: pair.there(0),
    };
    let wr = SendWr {
        wr_id: 99,
        op,
        flags: SendFlags::NONE,
    };
    assert!(matches!(
        pair.a.qp.post_send(&wr),
        Err(PostError::QueueFull { depth: 16, .. })
    ));
    pair.run(SOON_NS);
    assert!(
        pair.a.qp.post_send(&wr).is_err(),
        "a slot is free when its completion was polled"
    );
    assert_eq!(pair.a.poll().len(), 16);
    pair.a.qp.post_send(&wr).expect("room again");
    pair.a.modify(Modify::Reset);
    assert!(matches!(
        pair.a.qp.post_send(&wr),
        Err(PostError::WrongState { .. })
    ));
    assert_eq!(pair.settle(), [], "RESET forgets");
    assert!(
        pair.a.qp.control().modify(&Modify::Rts(IMPATIENT)).is_err(),
        "RESET to RTS"
    );
}

#[test]
fn a_peer_that_is_gone_costs_the_retries() {
    for nic in [Nic::PortDown, Nic::Dead] {
        let mut pair = Pair::calm(3);
        pair.connect(REMOTE, IMPATIENT);
        pair.world.set_nic(B, nic);
        pair.a.write(1, &[1; 8], pair.there(0));
        pair.run(40_000);
        assert_eq!(pair.a.poll(), [], "not before the retries are used up");
        assert_eq!(statuses(&pair.settle()), [(1, WcStatus::RETRY_EXC_ERR)]);
        assert_eq!(pair.world.coverage().of(Fault::RetriesExhausted), 1);
    }
}

#[test]
fn a_link_that_comes_back_in_time_costs_only_time() {
    let mut pair = Pair::calm(3);
    pair.world.cut(A, B, true);
    pair.a.write(1, &[1; 8], pair.there(0));
    pair.run(1_000_000);
    pair.world.cut(A, B, false);
    pair.run(1_000_000_000);
    assert_eq!(statuses(&pair.a.poll()), [(1, WcStatus::SUCCESS)]);
}

#[test]
fn what_is_sent_again_is_taken_from_memory_again_and_that_is_noted() {
    for changes in [false, true] {
        let mut pair = Pair::calm(3);
        pair.a.memory.write_bytes(200, &[5; 40]);
        pair.world.cut(A, B, true);
        pair.a.write_from(1, 200, 40, pair.there(0));
        pair.a.write(2, &[6; 8], pair.there(40));
        pair.run(1_000_000);
        if changes {
            pair.a.memory.write_bytes(200, &[7; 40]);
        }
        assert_eq!(pair.world.disturbed(), None, "nothing was sent since");
        pair.world.cut(A, B, false);
        pair.run(1_000_000_000);
        let ok = WcStatus::SUCCESS;
        assert_eq!(statuses(&pair.a.poll()), [(1, ok), (2, ok)]);
        let mut bytes = [0; 48];
        pair.b.memory.read_bytes(0, &mut bytes);
        let first = if changes { 7 } else { 5 };
        assert_eq!(bytes[..], [&[first; 40][..], &[6; 8]].concat());
        assert_eq!(pair.world.disturbed(), changes.then_some((A.0, 1)));
        assert_eq!(pair.world.coverage().of(Fault::GatheredAgain), 1);
    }
}

#[test]
fn an_answer_that_is_lost_leaves_the_bytes_there() {
    let mut pair = Pair::calm(4);
    pair.connect(REMOTE, IMPATIENT);
    pair.world.cut(B, A, true);
    pair.a.write(1, &[1; 8], pair.there(0));
    assert_eq!(statuses(&pair.settle()), [(1, WcStatus::RETRY_EXC_ERR)]);
    assert_eq!(pair.b.memory.load(0), u64::from_le_bytes([1; 8]));
    assert!(pair.world.coverage().of(Fault::AnswerLost) > 0);
}

#[test]
fn what_was_sent_over_an_old_connection_lands_before_the_new_one_or_never() {
    let mut ghosts = 0;
    for seed in 0..200 {
        let mut pair = Pair::calm(seed);
        pair.a.write(1, &[1; 8], pair.there(0));
        pair.run(seed * 5);
        pair.a.modify(Modify::Err);
        pair.run(seed * 7);
        let before = pair.b.memory.load(0);
        pair.connect(REMOTE, IMPATIENT);
        pair.run(SOON_NS);
        assert_eq!(
            pair.b.memory.load(0),
            before,
            "seed {seed}: a ghost over a new connection"
        );
        ghosts += pair.world.coverage().of(Fault::GhostLands);
    }
    assert!(
        ghosts > 0,
        "no write landed after its sender had given it up"
    );
}

/// Whether a reader can see the last word of a message before the first, and whether it can see it torn at all.
fn seen(placement: Placement, len: usize) -> (bool, bool) {
    let profile = Profile {
        placement,
        torn: 1_000_000,
        gap_ns: 500,
        ..Profile::CALM
    };
    let (mut torn, mut unordered) = (false, false);
    for seed in 0..100 {
        let mut pair = Pair::new(seed, profile);
        pair.a.write(1, &vec![1; len], pair.there(0));
        let full = u64::from_le_bytes([1; 8]);
        for _ in 0..2_000 {
            pair.run(20);
            let (first, last) = (pair.b.memory.load(0), pair.b.memory.load(len / 8 - 1));
            assert!([0, full].contains(&first), "a word is never torn");
            torn |= first != last;
            unordered |= last == full && first == 0;
        }
        assert_eq!(pair.b.memory.load(0), full);
    }
    (torn, unordered)
}

#[test]
fn placement_is_as_stated_and_no_better() {
    assert_eq!(seen(Placement::WholeMessage, 256), (true, false));
    assert_eq!(seen(Placement::Aligned128Bytes, 128), (true, false));
    assert_eq!(seen(Placement::Aligned128Bytes, 256), (true, true));
    assert_eq!(seen(Placement::Unknown, 64), (true, true));
}

#[test]
fn an_acknowledged_write_is_seen_by_every_read_after_it() {
    let profile = Profile {
        visible_late: 1_000_000,
        ..Profile::CALM
    };
    let mut hidden = false;
    for seed in 0..50 {
        let mut pair = Pair::new(seed, profile);
        pair.a.write(1, &[1; 8], pair.there(0));
        let mut done = Vec::new();
        while done.is_empty() {
            pair.run(50);
            done = pair.a.poll();
        }
        hidden |= pair.b.memory.load(0) == 0;
        pair.a.read(2, 64, 8, pair.there(0));
        let done = statuses(&pair.settle());
        assert_eq!(done, [(2, WcStatus::SUCCESS)]);
        assert_eq!(pair.a.memory.load(8), u64::from_le_bytes([1; 8]));
    }
    assert!(hidden, "no write was acknowledged before it was visible");
}

#[test]
fn a_dead_process_with_a_live_nic_is_read_and_written_and_a_killed_one_is_not() {
    let mut pair = Pair::calm(1);
    pair.connect(REMOTE, IMPATIENT);
    // Nobody polls `b` ever: its CPU might as well be dead.
    pair.a.write(1, &[1; 8], pair.there(0));
    assert_eq!(statuses(&pair.settle()), [(1, WcStatus::SUCCESS)]);
    pair.world.kill(&pair.b.ctx);
    pair.a.write(2, &[2; 8], pair.there(0));
    assert_eq!(statuses(&pair.settle()), [(2, WcStatus::RETRY_EXC_ERR)]);
}

#[test]
fn a_device_that_knows_says_at_once_that_the_peer_has_ended_and_only_then() {
    for tells in [false, true] {
        let profile = Profile {
            tells_peer_ended: tells,
            ..Profile::CALM
        };
        let mut pair = Pair::new(1, profile);
        pair.connect(REMOTE, IMPATIENT);
        pair.world.set_nic(B, Nic::PortDown);
        pair.a.write(1, &[1; 8], pair.there(0));
        let cut_off = pair.settle();
        assert_eq!(statuses(&cut_off), [(1, WcStatus::RETRY_EXC_ERR)]);
        assert!(!pair.a.ctx.caps().says_peer_ended(&cut_off[0]));
        pair.world.set_nic(B, Nic::Up);
        pair.connect(REMOTE, IMPATIENT);
        pair.world.kill(&pair.b.ctx);
        pair.a.write(2, &[2; 8], pair.there(0));
        pair.run(10_000);
        let ended = pair.a.poll();
        assert_eq!(!ended.is_empty(), tells, "at once, or after the retries");
        let ended = if tells { ended } else { pair.settle() };
        assert_eq!(statuses(&ended), [(2, WcStatus::RETRY_EXC_ERR)]);
        assert_eq!(pair.a.ctx.caps().says_peer_ended(&ended[0]), tells);
        assert_eq!(pair.world.coverage().of(Fault::PeerEnded), u64::from(tells));
    }
}

#[test]
fn a_synchronous_device_is_through_before_the_caller_goes_on_unless_something_is_in_the_way() {
    let profile = Profile {
        synchronous: true,
        torn: 1_000_000,
        ..Profile::CALM
    };
    let mut pair = Pair::new(1, profile);
    let ok = WcStatus::SUCCESS;
    pair.a.memory.write_bytes(200, &[5; 40]);
    pair.a.write(1, &[7; 24], pair.there(0));
    pair.a.write_from(2, 200, 40, pair.there(24));
    pair.a.read(3, 104, 64, pair.there(0));
    let done = statuses(&pair.a.poll());
    assert_eq!(done, [(1, ok), (2, ok), (3, ok)]);
    let mut bytes = [0; 64];
    pair.a.memory.read_bytes(104, &mut bytes);
    assert_eq!(bytes[..], [&[7; 24][..], &[5; 40]].concat());
    // The link is cut: that one is tried again, and what comes behind it waits.
    pair.connect(REMOTE, IMPATIENT);
    pair.world.cut(A, B, true);
    pair.a.write(4, &[8; 8], pair.there(0));
    pair.world.cut(A, B, false);
    pair.a.write(5, &[9; 8], pair.there(8));
    assert_eq!(pair.a.poll(), []);
    let done = statuses(&pair.settle());
    assert_eq!(done, [(4, ok), (5, ok)]);
    // A refusal is there at once as well.
    pair.b.modify(Modify::Access(Access::NONE));
    pair.a.write(6, &[1; 8], pair.there(0));
    let done = statuses(&pair.a.poll());
    assert_eq!(done, [(6, WcStatus::REM_INV_REQ_ERR)]);
    assert_eq!(
        (state(&pair.a), state(&pair.b)),
        (QpState::Err, QpState::Err)
    );
    assert_eq!(
        pair.b.memory.load(0),
        u64::from_le_bytes([8; 8]),
        "nothing landed"
    );
}

#[test]
fn reading_into_a_closed_region_is_refused_at_home() {
    let mut pair = Pair::calm(1);
    let spare = pair
        .a
        .ctx
        .reg_mr(&pair.a.pd, &pair.a.memory, 0..64, Access::LOCAL_WRITE);
    let spare = spare.expect("a registration");
    let local = [Sge::new(&spare, 0, 8)];
    let op = SendOp::Read {
        local: &local,
        remote: pair.there(0),
    };
    pair.a
        .qp
        .post_send(&SendWr {
            wr_id: 1,
            op,
            flags: SendFlags::NONE,
        })
        .expect("room");
    spare.close().expect("closes");
    assert_eq!(statuses(&pair.settle()), [(1, WcStatus::LOC_PROT_ERR)]);
}

#[test]
fn a_device_that_leaks_says_so() {
    let leaky = Profile {
        leak: Leak::SOFT_ROCE,
        ..Profile::CALM
    };
    let pair = Pair::new(1, leaky);
    let caps = pair.a.ctx.caps();
    assert_eq!(caps.revoke.qp_flags, mu_verbs::Barrier::No);
    assert_eq!(caps.revoke.reregister, mu_verbs::Barrier::Yes);
    assert!(!caps.rereg_is_barrier);
}
