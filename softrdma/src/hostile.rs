//! A peer that writes nonsense: whatever stands in a control segment or a lane, this side neither panics nor reads or
//! writes outside a region, and each call comes back.

use std::sync::Arc;

use crate::fault::Shuffle;
use crate::node::{View, lock};
use crate::sync::{Ordering, Word};
use crate::table::{ROW, key_slot, region_row, writer_row};
use crate::types::*;
use crate::{Cq, Fabric, Memory, Mr, Mw, Node, Qp, limits};

const BYTES: usize = 4096;

struct End {
    node: Node,
    mr: Mr,
    cq: Cq,
    qp: Qp,
}

fn end(fabric: &Fabric) -> End {
    let node = fabric.open().unwrap();
    let pd = node.alloc_pd();
    let memory = node.alloc_memory(BYTES).unwrap();
    let mr = node.reg_mr(&pd, &memory, 0..BYTES, Access::ALL).unwrap();
    let cq = node.create_cq(64).unwrap();
    let qp = node.create_qp(&pd, &cq, &cq, &QpCap::default()).unwrap();
    End { node, mr, cq, qp }
}

/// Connects both ends as far as it goes: a refusal that the peer invents takes a queue pair to ERR at any moment.
fn connect(a: &End, b: &End) {
    for end in [a, b] {
        end.qp.control().modify(&Modify::Reset).unwrap();
        let all = Access::LOG | Access::REMOTE_ATOMIC;
        end.qp.control().modify(&Modify::Init(all)).unwrap();
    }
    for (end, peer) in [(a, b), (b, a)] {
        let remote = peer.qp.control().endpoint();
        let rtr = RtrAttr {
            min_rnr_timer: 1,
            ..RtrAttr::new(remote)
        };
        let rts = RtsAttr {
            timeout: 1,
            retry_cnt: 0,
            rnr_retry: 0,
            ..RtsAttr::default()
        };
        let _ = end.qp.control().modify(&Modify::Rtr(rtr));
        let _ = end.qp.control().modify(&Modify::Rts(rts));
    }
}

fn view(of: &End, target: &End) -> Arc<View> {
    Arc::clone(&lock(&of.node.0.views)[&target.node.id()])
}

/// Puts random values, near-valid ones and extremes, into some of the words.
fn scribble(words: &[Word], random: &mut Shuffle, how_many: usize) {
    for _ in 0..how_many {
        let at = random.below(words.len() as u64) as usize;
        let old = words[at].load(Ordering::Relaxed);
        let value = match random.below(6) {
            0 => u64::MAX,
            1 => 0,
            2 => old ^ 1 << random.below(64),
            3 => old.wrapping_add(random.below(5)).wrapping_sub(2),
            4 => old | 0xffff_ffff_0000_0000,
            _ => random.below(u64::MAX),
        };
        words[at].store(value, Ordering::Relaxed);
    }
}

/// Everything an initiator can ask for, at places inside and outside; returns how many were done and how many not.
fn use_everything(end: &mut End, peer: RemoteAddr, random: &mut Shuffle) -> (u32, u32) {
    let beyond = if random.below(4) == 0 {
        2 * BYTES
    } else {
        BYTES - 256
    };
    let remote = RemoteAddr {
        addr: peer.addr.wrapping_add(random.below(beyond as u64)),
        ..peer
    };
    let len = random.below(256) as usize;
    let sges = [Sge::new(&end.mr, 0, len)];
    let word = Sge::new(&end.mr, 0, 8);
    let inline = [7; 64];
    let ops: [SendOp<'_, Mr, Mw>; 6] = [
        SendOp::Write {
            payload: Payload::Regions(&sges),
            remote,
            imm: None,
        },
        SendOp::Write {
            payload: Payload::Inline(&inline),
            remote,
            imm: Some(1),
        },
        SendOp::Read {
            local: &sges,
            remote,
        },
        SendOp::Send {
            payload: Payload::Regions(&sges),
            imm: None,
        },
        SendOp::CompareSwap {
            local: word,
            remote,
            compare: 0,
            swap: 1,
        },
        SendOp::FetchAdd {
            local: word,
            remote,
            add: 1,
        },
    ];
    let op = ops[random.below(ops.len() as u64) as usize];
    // Either may be refused: the queue pair can be in any state by now.
    let _ = end.qp.post_recv(&RecvWr {
        wr_id: 1,
        local: &sges,
    });
    let _ = end.qp.post_send(&SendWr {
        wr_id: 2,
        op,
        flags: SendFlags::SIGNALED,
    });
    let mut out = [Completion::EMPTY; 32];
    let (mut done, mut refused) = (0, 0);
    for _ in 0..4 {
        let n = end.cq.poll(&mut out);
        for completion in &out[..n] {
            if completion.status.is_success() {
                done += 1
            } else {
                refused += 1
            }
        }
    }
    (done, refused)
}

/// What came of all requests together; the test would be worth nothing if every request failed, or none did.
#[derive(Default)]
struct Tally {
    done: u32,
    refused: u32,
}

impl Tally {
    fn add(&mut self, (done, refused): (u32, u32)) {
        self.done += done;
        self.refused += refused;
    }

    fn check(&self, seed: u64, rounds: u32) {
        let Self { done, refused } = self;
        let some = rounds / 20;
        // Miri does too few rounds, and is too slow for the time-outs here, for every seed to have both.
        assert!(
            cfg!(miri) || *done > some && *refused > some,
            "seed {seed}: {done} done, {refused} refused"
        );
    }
}

fn assert_untouched(guard: &Memory, seed: u64) {
    let clean = (0..BYTES / limits::WORD).all(|i| guard.load(i) == 0);
    assert!(clean, "seed {seed}: something landed beside the region");
}

/// A target whose control segment says anything: wrong states, regions outside of its memory, memories that do not
/// exist. The segment is the liar's own, so only the initiator is tried, and each round has a new liar.
#[test]
fn a_control_segment_of_nonsense() {
    const ROUNDS: u32 = if cfg!(miri) { 2 } else { 1000 };
    for seed in 1..=4 {
        let random = &mut Shuffle::new(seed);
        let mut tally = Tally::default();
        for _ in 0..ROUNDS {
            let fabric = Fabric::new();
            let (mut a, b) = (end(&fabric), end(&fabric));
            // Registered with nobody: nothing may ever land there.
            let guard = b.node.alloc_memory(BYTES).unwrap();
            connect(&a, &b);
            let view = view(&a, &b);
            let row = region_row(view.ctl.words(), key_slot(b.mr.key()));
            // Some in the row of the queue pair, some where the region says its bytes are, some anywhere.
            match random.below(4) {
                0 => scribble(&view.ctl.words()[ROW..][..ROW], random, 1),
                1 => scribble(view.ctl.words(), random, 5000),
                _ => {
                    for word in [row.addr(), row.len(), row.start()] {
                        let times = random.below(2) as usize;
                        scribble(std::slice::from_ref(word), random, times);
                    }
                }
            }
            // The memory is the registered one, so that the guard is out of reach however the region lies.
            row.memory().store(
                row.memory().load(Ordering::Relaxed) & 0xffff_ffff,
                Ordering::Relaxed,
            );
            for _ in 0..3 {
                tally.add(use_everything(&mut a, b.mr.remote(0), random));
            }
            assert_untouched(&guard, seed);
        }
        tally.check(seed, ROUNDS);
    }
}

/// An initiator that writes anything into its lane. Sequence words stay even: an odd one that never changes is a
/// writer in mid-copy, which is waited for up to the limit of the backend.
#[test]
fn a_lane_of_nonsense() {
    const ROUNDS: u32 = if cfg!(miri) { 3 } else { 2000 };
    for seed in 1..=4 {
        let random = &mut Shuffle::new(seed);
        let fabric = Fabric::new();
        let (mut a, mut b) = (end(&fabric), end(&fabric));
        let guard = b.node.alloc_memory(BYTES).unwrap();
        let mut tally = Tally::default();
        for _ in 0..ROUNDS {
            connect(&a, &b);
            for _ in 0..4 {
                tally.add(use_everything(&mut a, b.mr.remote(0), random));
                tally.add(use_everything(&mut b, a.mr.remote(0), random));
                let view = view(&a, &b);
                scribble(view.lane.words(), random, 400);
                // Aim at the few rows that are in use as well.
                scribble(
                    &view.lane.words()[limits::MAX_QPS * ROW..][..ROW],
                    random,
                    1,
                );
                for slot in 0..limits::MAX_QPS {
                    let seq = writer_row(view.lane.words(), slot).seq();
                    seq.store(seq.load(Ordering::Relaxed) & !1, Ordering::Relaxed);
                }
                while b.node.poll_async_event().is_some() {}
            }
            assert_untouched(&guard, seed);
        }
        tally.check(seed, ROUNDS);
    }
}
