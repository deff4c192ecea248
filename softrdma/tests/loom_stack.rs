//! Models of whole queue pairs: contexts, regions, queue pairs and completion queues as they ship, built anew in every
//! execution. Their twins are the same code with weaker fences or stores, which the shim gives out on demand.
#![cfg(loom)]

mod models;

use loom::thread;
use models::{BOUND, caught, holds};
use mu_softrdma::error::PostError;
use mu_softrdma::sync::{Weakness, spin_hint, weaken};
use mu_softrdma::types::*;
use mu_softrdma::{Control, Cq, Fabric, Mr, Mw, Node, Pd, Qp};

const CAP: QpCap = QpCap {
    max_send_wr: 2,
    max_recv_wr: 2,
    max_send_sge: 1,
    max_recv_sge: 1,
    max_inline_data: 16,
};
/// Bytes of every region.
const BYTES: usize = 16;

struct End {
    cq: Cq,
    qp: Qp,
}

struct Side {
    node: Node,
    pd: Pd,
    mr: Mr,
}

impl Side {
    fn new(fabric: &Fabric) -> Self {
        let node = fabric.open().expect("a context");
        let pd = node.alloc_pd();
        let memory = node.alloc_memory(BYTES).expect("memory");
        let mr = node
            .reg_mr(&pd, &memory, 0..BYTES, Access::ALL)
            .expect("a region");
        Self { node, pd, mr }
    }

    fn end(&self) -> End {
        let cq = self.node.create_cq(4).expect("a completion queue");
        let qp = self
            .node
            .create_qp(&self.pd, &cq, &cq, &CAP)
            .expect("a queue pair");
        End { cq, qp }
    }

    fn words(&self) -> [u64; BYTES / 8] {
        std::array::from_fn(|at| self.mr.memory().load(at))
    }
}

fn modify(qp: &Qp, change: Modify) {
    qp.control()
        .modify(&change)
        .expect("a change that the state allows");
}

/// From RESET to RTS. Packet sequence numbers are drawn at INIT, so both get there first.
fn connect(a: &Control, b: &Control) {
    let modify =
        |end: &Control, change| end.modify(&change).expect("a change that the state allows");
    [a, b]
        .iter()
        .for_each(|end| modify(end, Modify::Init(Access::LOG)));
    for (end, peer) in [(a, b), (b, a)] {
        modify(end, Modify::Rtr(RtrAttr::new(peer.endpoint())));
        modify(end, Modify::Rts(RtsAttr::default()));
    }
}

/// Two contexts with a pair of connected queue pairs.
fn pair() -> (Side, End, Side, End) {
    let fabric = Fabric::new();
    let (a, b) = (Side::new(&fabric), Side::new(&fabric));
    let (x, y) = (a.end(), b.end());
    connect(x.qp.control(), y.qp.control());
    (a, x, b, y)
}

impl End {
    fn post(&mut self, wr_id: u64, op: SendOp<'_, Mr, Mw>) -> Result<(), PostError> {
        let flags = SendFlags::SIGNALED;
        self.qp.post_send(&SendWr { wr_id, op, flags })
    }

    fn write(&mut self, wr_id: u64, remote: RemoteAddr) {
        let payload = Payload::Inline(&[wr_id as u8; BYTES]);
        let write = SendOp::Write {
            payload,
            remote,
            imm: None,
        };
        self.post(wr_id, write).expect("there is room");
    }

    fn poll(&mut self) -> Option<Completion> {
        let mut out = [Completion::EMPTY];
        (self.cq.poll(&mut out) == 1).then_some(out[0])
    }

    fn wait(&mut self) -> Completion {
        loop {
            match self.poll() {
                Some(done) => return done,
                None => spin_hint(),
            }
        }
    }
}

const fn filled(byte: u8) -> [u64; BYTES / 8] {
    [u64::from_ne_bytes([byte; 8]); BYTES / 8]
}

/// Rights are taken away while the peer writes: the write lands whole before and is completed, or it is refused and
/// both ends fail. Nothing lands later.
fn flags_against_a_write(weakness: Weakness) {
    weaken(weakness);
    let (_a, mut x, b, mut y) = pair();
    y.qp.post_recv(&RecvWr {
        wr_id: 7,
        local: &[],
    })
    .expect("there is room");
    let remote = b.mr.remote(0);
    let writer = thread::spawn(move || {
        x.write(1, remote);
        (x.wait().status, x)
    });
    modify(&y.qp, Modify::Access(Access::REMOTE_READ));
    let found = b.words();
    let (status, x) = writer.join().expect("the writer ends");
    weaken(Weakness::None);
    let later = b.words();
    let states = (x.qp.control().state(), y.qp.control().state());
    let flushed = y.poll().map(|done| (done.wr_id, done.status));
    assert_eq!(found, later, "words landed after the revocation");
    if status.is_success() {
        assert_eq!(found, filled(1));
        assert_eq!((states, flushed), ((QpState::Rts, QpState::Rts), None));
    } else {
        assert_eq!((found, status), (filled(0), WcStatus::REM_INV_REQ_ERR));
        assert_eq!(
            states,
            (QpState::Err, QpState::Err),
            "a refusal fails both ends"
        );
        assert_eq!(flushed, Some((7, WcStatus::WR_FLUSH_ERR)));
        assert_eq!(y.poll(), None, "a receive is flushed once");
    }
}

#[test]
fn revocation_by_flags() {
    holds(
        "stack: flags against a write, and the refusal at both ends",
        None,
        || flags_against_a_write(Weakness::None),
    );
    caught("stack: flags against a write, NoFences", || {
        flags_against_a_write(Weakness::NoFences)
    });
}

/// A region goes while two queue pairs of its domain write to it.
fn deregistration_against_two_writers(weakness: Weakness) {
    weaken(weakness);
    let fabric = Fabric::new();
    let (a, b) = (Side::new(&fabric), Side::new(&fabric));
    let ends: [(End, End); 2] = std::array::from_fn(|_| (a.end(), b.end()));
    for (x, y) in &ends {
        connect(x.qp.control(), y.qp.control());
    }
    let remote = b.mr.remote(0);
    let memory = b.mr.memory().clone();
    let writers: Vec<_> = (1..)
        .zip(ends)
        .map(|(id, (mut x, y))| {
            thread::spawn(move || {
                let place = RemoteAddr {
                    addr: remote.addr + 8 * (id - 1),
                    ..remote
                };
                let write = SendOp::Write {
                    payload: Payload::Inline(&[id as u8; 8]),
                    remote: place,
                    imm: None,
                };
                x.post(id, write).expect("there is room");
                (x.wait().status, x, y)
            })
        })
        .collect();
    b.mr.close().expect("nobody is stalled");
    let found: [u64; 2] = std::array::from_fn(|at| memory.load(at));
    let ended: Vec<_> = writers
        .into_iter()
        .map(|writer| writer.join().expect("a writer ends"))
        .collect();
    weaken(Weakness::None);
    for (at, (status, ..)) in ended.iter().enumerate() {
        assert_eq!(
            memory.load(at),
            found[at],
            "word {at} landed after the deregistration"
        );
        let want = if found[at] == 0 {
            WcStatus::REM_ACCESS_ERR
        } else {
            WcStatus::SUCCESS
        };
        assert_eq!(*status, want);
    }
}

#[test]
fn revocation_by_deregistration() {
    holds("stack: deregistration against two writers", BOUND, || {
        deregistration_against_two_writers(Weakness::None)
    });
    caught(
        "stack: deregistration against two writers, NoFences",
        || deregistration_against_two_writers(Weakness::NoFences),
    );
}

/// A receive is posted while the peer sends; the message and its completion arrive together.
fn receive(weakness: Weakness) {
    weaken(weakness);
    let (_a, mut x, b, mut y) = pair();
    let sender = thread::spawn(move || {
        let send = SendOp::Send {
            payload: Payload::Inline(&[5; 8]),
            imm: Some(6),
        };
        x.post(1, send).expect("there is room");
        x
    });
    let place = [Sge::new(&b.mr, 8, 8)];
    y.qp.post_recv(&RecvWr {
        wr_id: 7,
        local: &place,
    })
    .expect("there is room");
    let early = y.poll().map(|done| (done, b.words()));
    let mut x = sender.join().expect("the sender ends");
    weaken(Weakness::None);
    // A sender that found no receive tries again when it is polled, and then it finds one.
    let sent = x.wait();
    let (done, words) = early.unwrap_or_else(|| (y.wait(), b.words()));
    assert_eq!(sent.status, WcStatus::SUCCESS);
    assert_eq!(
        (done.wr_id, done.status, done.byte_len),
        (7, WcStatus::SUCCESS, 8)
    );
    assert_eq!((done.opcode, done.imm_data), (WcOpcode::RECV, Some(6)));
    assert_eq!(
        words,
        [0, filled(5)[0]],
        "the completion came before its message"
    );
    assert_eq!(y.poll(), None, "a receive completes once");
}

#[test]
fn receives_and_their_counters() {
    holds("stack: a receive against a send", None, || {
        receive(Weakness::None)
    });
    caught("stack: a receive against a send, RelaxedStores", || {
        receive(Weakness::RelaxedStores)
    });
}

/// One thread posts a READ and another polls: a completion that was polled means that the data is there.
fn read_completed_elsewhere(weakness: Weakness) {
    weaken(weakness);
    let (a, x, b, y) = pair();
    b.mr.memory().store(0, 9);
    let remote = b.mr.remote(0);
    let End { mut cq, mut qp } = x;
    let memory = a.mr.memory().clone();
    let poster = thread::spawn(move || {
        let place = [Sge::new(&a.mr, 8, 8)];
        let op = SendOp::Read {
            local: &place,
            remote,
        };
        qp.post_send(&SendWr {
            wr_id: 1,
            op,
            flags: SendFlags::SIGNALED,
        })
        .expect("there is room");
        (a, qp)
    });
    let mut out = [Completion::EMPTY];
    while cq.poll(&mut out) == 0 {
        spin_hint();
    }
    let found = memory.load(1);
    let kept = poster.join().expect("the poster ends");
    weaken(Weakness::None);
    assert_eq!((out[0].wr_id, out[0].status), (1, WcStatus::SUCCESS));
    assert_eq!(found, 9, "the completion came before its data");
    drop((kept, b, y));
}

#[test]
fn completions_and_what_they_stand_for() {
    holds("stack: a READ polled by another thread", None, || {
        read_completed_elsewhere(Weakness::None)
    });
    caught(
        "stack: a READ polled by another thread, RelaxedStores",
        || read_completed_elsewhere(Weakness::RelaxedStores),
    );
}

/// A pair of queue pairs is reset and connected again by another thread while its owner polls: what was
/// completed before RESET is not seen after it, what is posted after it is carried out and completed once.
fn reset_under_way(forgets: bool) {
    let (_a, mut x, b, y) = pair();
    x.write(1, b.mr.remote(0));
    x.write(3, b.mr.remote(0));
    let End { mut cq, mut qp } = x;
    let controls = [qp.control().clone(), y.qp.control().clone()];
    let changes = thread::spawn(move || {
        if forgets {
            for control in &controls {
                control.modify(&Modify::Reset).expect("RESET");
            }
            connect(&controls[0], &controls[1]);
        }
    });
    let poll = |cq: &mut Cq| {
        let mut out = [Completion::EMPTY];
        (cq.poll(&mut out) == 1).then_some((out[0].wr_id, out[0].status))
    };
    let before = poll(&mut cq);
    changes.join().expect("the control thread ends");
    let between = poll(&mut cq);
    let op = SendOp::Write {
        payload: Payload::Inline(&[2; BYTES]),
        remote: b.mr.remote(0),
        imm: None,
    };
    qp.post_send(&SendWr {
        wr_id: 2,
        op,
        flags: SendFlags::SIGNALED,
    })
    .expect("RESET gave the room back");
    let after = poll(&mut cq);
    assert!(before.is_none_or(|done| done == (1, WcStatus::SUCCESS)));
    assert_eq!(
        between, None,
        "a completion from before RESET was delivered after it"
    );
    assert_eq!(after, Some((2, WcStatus::SUCCESS)));
    assert_eq!(poll(&mut cq), None);
    assert_eq!(b.words(), filled(2));
}

#[test]
fn a_reset_forgets() {
    holds("stack: RESET against polling", BOUND, || {
        reset_under_way(true)
    });
    // The negative control: where nothing was reset, the old completion is delivered.
    caught("stack: RESET against polling, left out", || {
        reset_under_way(false)
    });
}

/// A queue pair is reset and connected to another one of the same peer, and the former one goes on posting. Its
/// attempts must not hide the copy of the one that is connected now from a revocation.
fn former_peer_goes_on(weakness: Weakness) {
    weaken(weakness);
    let (a, former, b, y) = pair();
    let now = a.end();
    modify(&y.qp, Modify::Reset);
    connect(now.qp.control(), y.qp.control());
    let remote = b.mr.remote(0);
    let writers = [former, now].map(|mut x| {
        thread::spawn(move || {
            x.write(1, remote);
            x
        })
    });
    modify(&y.qp, Modify::Access(Access::REMOTE_READ));
    let found = b.words();
    let kept = writers.map(|writer| writer.join().expect("a writer ends"));
    weaken(Weakness::None);
    assert_eq!(found, b.words(), "words landed after the revocation");
    drop((kept, y));
}

#[test]
fn revocation_with_a_former_peer() {
    holds(
        "stack: flags against a write, and a former peer",
        BOUND,
        || former_peer_goes_on(Weakness::None),
    );
    caught(
        "stack: flags against a write, and a former peer, NoFences",
        || former_peer_goes_on(Weakness::NoFences),
    );
}

/// Receives are posted while another thread resets the queue pair: whatever was accepted is flushed once each, under
/// its own number, and no more are accepted than there is room for. It found a fault: the room was once counted from
/// what had been posted and not from what RESET had forgotten.
fn receives_across_reset(weakness: Weakness) {
    weaken(weakness);
    let (_a, x, _b, mut y) = pair();
    let control = y.qp.control().clone();
    let changes = thread::spawn(move || {
        control.modify(&Modify::Reset).expect("RESET");
        control.modify(&Modify::Init(Access::LOG)).expect("INIT");
    });
    let mut accepted = Vec::new();
    let mut post = |y: &mut End, wr_id| {
        if y.qp.post_recv(&RecvWr { wr_id, local: &[] }).is_ok() {
            accepted.push(wr_id);
        }
    };
    post(&mut y, 1);
    changes.join().expect("the control thread ends");
    (2..=4).for_each(|wr_id| post(&mut y, wr_id));
    weaken(Weakness::None);
    modify(&y.qp, Modify::Err);
    let mut flushed = Vec::new();
    while let Some(done) = y.poll() {
        assert_eq!(done.status, WcStatus::WR_FLUSH_ERR);
        flushed.push(done.wr_id);
    }
    assert_eq!(
        flushed.len(),
        CAP.max_recv_wr as usize,
        "of {accepted:?} were flushed {flushed:?}"
    );
    assert!(
        accepted.ends_with(&flushed),
        "of {accepted:?} were flushed {flushed:?}"
    );
    drop(x);
}

#[test]
fn receives_and_reset() {
    holds("stack: receives posted during RESET", None, || {
        receives_across_reset(Weakness::None)
    });
}

/// A control thread fails the queue pair while its owner posts: each request is carried out or flushed, never lost,
/// and what is posted after the change is flushed.
fn error_under_way(changes: bool) {
    let (_a, mut x, b, y) = pair();
    let control = x.qp.control().clone();
    let fails = thread::spawn(move || {
        if changes {
            control.modify(&Modify::Err).expect("ERR");
        }
    });
    x.write(1, b.mr.remote(0));
    let first = x.wait();
    fails.join().expect("the control thread ends");
    x.write(2, b.mr.remote(0));
    let second = x.wait();
    let landed = if first.status.is_success() {
        filled(1)
    } else {
        filled(0)
    };
    assert!(first.status.is_success() || first.status == WcStatus::WR_FLUSH_ERR);
    assert_eq!((second.wr_id, second.status), (2, WcStatus::WR_FLUSH_ERR));
    assert_eq!(b.words(), landed);
    assert_eq!(y.qp.control().state(), QpState::Rts);
}

#[test]
fn the_posting_thread_sees_changes() {
    holds("stack: ERR against posting", None, || error_under_way(true));
    // The negative control: without the change the second write is carried out.
    caught("stack: ERR against posting, left out", || {
        error_under_way(false)
    });
}
