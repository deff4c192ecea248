//! Every fault strikes when it is asked for and is counted, and every run repeats.

use crate::pair::Pair;
use mu_sim::{Fault, Leak, NodeId, Profile, Rates, Rng, World};
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, MemoryRegion, Modify, Placement, QpControl,
    QpState, QueuePair, SendFlags, SendOp, SendWr, WcStatus,
};

const ALWAYS: u32 = 1_000_000;
const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);

fn with(rates: Rates) -> Pair {
    let pair = Pair::calm(1);
    pair.world.set_rates(A, rates);
    pair
}

#[track_caller]
fn struck(world: &World, fault: Fault) {
    assert!(world.coverage().of(fault) > 0, "{fault:?} never struck");
}

#[test]
fn a_completion_is_lost() {
    let mut pair = with(Rates {
        completion_lost: ALWAYS,
        ..Rates::NONE
    });
    pair.a.write(1, &[1; 8], pair.there(0));
    assert_eq!(pair.settle(), []);
    assert_ne!(pair.b.memory.load(0), 0);
    struck(&pair.world, Fault::CompletionLost);
}

#[test]
fn a_completion_is_late_and_those_behind_it_wait() {
    let mut pair = with(Rates {
        completion_late: ALWAYS,
        ..Rates::NONE
    });
    pair.a.write(1, &[1; 8], pair.there(0));
    pair.run(5_000);
    pair.world.set_rates(A, Rates::NONE);
    pair.a.write(2, &[2; 8], pair.there(0));
    pair.run(5_000);
    assert_eq!(pair.b.memory.load(0), u64::from_le_bytes([2; 8]));
    assert_eq!(pair.a.poll(), []);
    let done: Vec<u64> = pair.settle().iter().map(|c| c.wr_id).collect();
    assert_eq!(done, [1, 2]);
    struck(&pair.world, Fault::CompletionLate);
}

#[test]
fn a_completion_comes_twice() {
    let mut pair = with(Rates {
        completion_twice: ALWAYS,
        ..Rates::NONE
    });
    pair.a.write(1, &[1; 8], pair.there(0));
    let done: Vec<u64> = pair.settle().iter().map(|c| c.wr_id).collect();
    assert_eq!(done, [1, 1]);
    struck(&pair.world, Fault::CompletionTwice);
}

#[test]
fn a_completion_lies() {
    let mut pair = with(Rates {
        completion_lies: ALWAYS,
        ..Rates::NONE
    });
    pair.a.write(1, &[1; 8], pair.there(0));
    assert!(!pair.settle()[0].status.is_success());
    assert_ne!(pair.b.memory.load(0), 0);
    assert_eq!(pair.a.qp.control().state().expect("a state"), QpState::Err);
    struck(&pair.world, Fault::CompletionLies);
}

#[test]
fn a_queue_pair_breaks_by_itself() {
    let mut pair = with(Rates {
        qp_breaks: ALWAYS,
        ..Rates::NONE
    });
    pair.a.write(1, &[1; 8], pair.there(0));
    pair.settle();
    assert_eq!(pair.a.qp.control().state().expect("a state"), QpState::Err);
    struck(&pair.world, Fault::QpBreaks);
}

#[test]
fn changes_of_queue_pairs_and_registrations_fail() {
    let mut pair = with(Rates {
        flags_fail: ALWAYS,
        modify_fails: ALWAYS,
        reregister_fails: ALWAYS,
        deregister_fails: ALWAYS,
        ..Rates::NONE
    });
    let control = pair.a.qp.control().clone();
    assert!(control.modify(&Modify::Access(Access::NONE)).is_err());
    control
        .modify(&Modify::Reset)
        .expect("RESET is the way out");
    assert!(control.modify(&Modify::Init(Access::NONE)).is_err());
    assert!(pair.a.mr.reregister(Access::NONE).is_err());
    let spare = pair
        .a
        .ctx
        .reg_mr(&pair.a.pd, &pair.a.memory, 0..8, Access::NONE);
    assert!(spare.expect("a registration").close().is_err());
    let faults = [
        Fault::FlagsFail,
        Fault::ModifyFails,
        Fault::ReregisterFails,
        Fault::DeregisterFails,
    ];
    faults
        .into_iter()
        .for_each(|fault| struck(&pair.world, fault));
}

#[test]
fn a_change_of_flags_breaks_the_queue_pair() {
    let pair = with(Rates {
        flags_break_qp: ALWAYS,
        ..Rates::NONE
    });
    pair.a.modify(Modify::Access(Access::NONE));
    assert_eq!(pair.a.qp.control().state().expect("a state"), QpState::Err);
    struck(&pair.world, Fault::FlagsBreakQp);
}

#[test]
fn a_slow_change_takes_time_in_which_the_network_goes_on_and_nobody_is_woken() {
    let mut pair = with(Rates {
        modify_slow: ALWAYS,
        ..Rates::NONE
    });
    pair.b.write(1, &[1; 8], pair.a.mr.remote(0));
    pair.world.wake_at(1, 77);
    pair.world.set_rates(
        B,
        Rates {
            modify_slow: ALWAYS,
            ..Rates::NONE
        },
    );
    let before = pair.world.now_ns();
    for _ in 0..4 {
        pair.a.modify(Modify::Access(crate::pair::REMOTE));
    }
    assert!(pair.world.now_ns() > before + 2_000);
    assert_ne!(pair.a.memory.load(0), 0);
    assert_eq!(pair.world.advance(u64::MAX), mu_sim::Wake::Token(77));
    struck(&pair.world, Fault::ModifySlow);
}

#[test]
fn a_completion_queue_runs_over() {
    let mut pair = Pair::calm(1);
    let cq = pair.a.ctx.create_cq(1).expect("a queue");
    let mut qp = pair
        .a
        .ctx
        .create_qp(&pair.a.pd, &cq, &cq, &Default::default())
        .expect("a queue pair");
    qp.control().modify(&Modify::Err).expect("to ERR");
    for wr_id in 0..2 {
        let op = SendOp::Read {
            local: &[],
            remote: pair.there(0),
        };
        qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SendFlags::NONE,
        })
        .expect("flushed at once");
    }
    assert!(cq.error().is_some());
    struck(&pair.world, Fault::CqOverrun);
    assert_eq!(pair.settle(), []);
}

#[test]
fn clocks_jump_drift_and_stop() {
    let pair = Pair::calm(1);
    pair.world.jump_clock(A, 1_000_000);
    pair.world.set_clock_rate(B, 2_000_000);
    pair.run(1_000);
    assert_eq!(
        (pair.world.clock_ns(A), pair.world.clock_ns(B)),
        (1_001_000, 2_000)
    );
    pair.world.set_clock_rate(B, 0);
    pair.run(1_000);
    assert_eq!(
        (pair.world.clock_ns(A), pair.world.clock_ns(B)),
        (1_002_000, 2_000)
    );
    let faults = [Fault::ClockJump, Fault::ClockDrift, Fault::ClockStop];
    faults
        .into_iter()
        .for_each(|fault| struck(&pair.world, fault));
}

#[test]
fn memory_flips_and_is_lost() {
    let pair = Pair::calm(1);
    pair.a.memory.store(3, 8);
    pair.world.flip_bit(&pair.a.memory, 25, 2);
    assert_eq!(pair.a.memory.load(3), 8 | 1 << 10);
    pair.world.lose_memory(&pair.a.ctx);
    assert_eq!(pair.a.memory.load(3), 0);
    struck(&pair.world, Fault::BitFlip);
    struck(&pair.world, Fault::MemoryLost);
}

#[test]
fn links_clog_and_messages_have_tails() {
    let profile = Profile {
        tail: ALWAYS,
        tail_max_ns: 100_000,
        ..Profile::CALM
    };
    let mut pair = Pair::new(1, profile);
    pair.world.clog(A, B, 2_000_000, 1_000_000);
    pair.a.write(1, &[1; 8], pair.there(0));
    pair.run(900_000);
    assert_eq!(pair.a.poll(), []);
    assert_eq!(pair.settle().len(), 1);
    struck(&pair.world, Fault::Clog);
    struck(&pair.world, Fault::LatencyTail);
}

#[test]
fn a_process_that_stops_between_two_verbs_does_nothing_more() {
    let mut pair = Pair::calm(1);
    let (world, device) = (pair.world.clone(), pair.a.ctx.id());
    let ctx = pair.a.ctx.clone();
    let posts = std::cell::Cell::new(0);
    let hooked = mu_sim::before_verbs(move |of, verb| {
        assert_eq!(of, device);
        if verb == mu_sim::Verb::Post {
            posts.set(posts.get() + 1);
            if posts.get() == 2 {
                // Others go on in the midst of its call, and it never finds out.
                world.advance(world.now_ns() + 10_000);
                world.freeze(&ctx);
            }
        }
    });
    pair.a.write(1, &[1; 8], pair.there(0));
    pair.a.write(2, &[2; 8], pair.there(0));
    assert_eq!(pair.b.memory.load(0), u64::from_le_bytes([1; 8]));
    assert_eq!(pair.settle(), [], "it polls nothing either");
    drop(hooked);
    assert_eq!(pair.b.memory.load(0), u64::from_le_bytes([1; 8]));
    pair.b.write(3, &[3; 8], pair.a.mr.remote(0));
    pair.run(crate::pair::SOON_NS);
    assert!(
        pair.b.poll()[0].status.is_success(),
        "its NIC serves peers until it is killed"
    );
    pair.world.kill(&pair.a.ctx);
}

/// A busy run with everything in it; its hash and what completed.
fn busy(seed: u64) -> (u64, Vec<(u64, WcStatus)>) {
    let rates = Rates {
        completion_lost: 20_000,
        completion_late: 20_000,
        completion_twice: 20_000,
        completion_lies: 20_000,
        qp_breaks: 20_000,
        ..Rates::NONE
    };
    let profile = Profile {
        placement: Placement::Unknown,
        leak: Leak::SOFT_ROCE,
        torn: 500_000,
        visible_late: 100_000,
        tail: 50_000,
        tail_max_ns: 50_000,
        ..Profile::CALM
    };
    let mut pair = Pair::new(seed, profile);
    pair.world.set_rates(A, rates);
    let mut rng = Rng::new(!seed);
    let mut all = Vec::new();
    for round in 0..200 {
        let place = pair.there(rng.below(2_000) as usize);
        let bytes = vec![round as u8; rng.range(1, 200) as usize];
        let write = SendWr {
            wr_id: round,
            op: SendOp::Write {
                payload: mu_verbs::Payload::Inline(&bytes),
                remote: place,
                imm: None,
            },
            flags: SendFlags::SIGNALED,
        };
        if pair.a.qp.post_send(&write).is_err() || rng.one_in(20) {
            pair.connect(crate::pair::REMOTE, crate::pair::IMPATIENT);
        }
        pair.run(rng.below(3_000));
        let mut out = [Completion::EMPTY; 8];
        let n = pair.a.cq.poll(&mut out);
        all.extend(out[..n].iter().map(|c| (c.wr_id, c.status)));
    }
    (pair.world.trace_hash(), all)
}

#[test]
fn one_seed_is_one_run() {
    let mut hashes = std::collections::HashSet::new();
    for seed in 0..50 {
        let run = busy(seed);
        assert_eq!(run, busy(seed), "seed {seed} did not repeat");
        assert!(hashes.insert(run.0), "seed {seed} is another one's run");
    }
}
