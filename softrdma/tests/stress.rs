//! Real threads against each other: revocation under a write storm by every method and in every placement mode, posting
//! and polling apart, states changed by a third thread, atomics, receives, queue pairs that come and go, deaths.
//!
//! `MU_STRESS_ROUNDS` sets how often each is done. The lanes of the sanitizers run this with `--cfg mu_sanitize`, which
//! makes copies of whole words take the plain loop, and Miri runs it with few rounds. What a test waits for is
//! bounded by `pair::LIMIT`; nothing depends on how fast it comes.
#![cfg(not(loom))]

mod pair;

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;

use mu_softrdma::fault::{Fault, Placement};
use mu_softrdma::gate;
use mu_softrdma::sync::Word;
use mu_softrdma::types::*;
use mu_softrdma::{Control, Cq, Fabric, Memory, Mr, Mw, Qp};
use pair::{BYTES, End, Pair, connect, poll, signalled, until, wait};

/// Rounds of a test, unless `MU_STRESS_ROUNDS` says otherwise.
const ROUNDS: u64 = if cfg!(miri) {
    2
} else if cfg!(mu_sanitize) {
    30
} else {
    100
};

fn rounds() -> u64 {
    std::env::var("MU_STRESS_ROUNDS")
        .map_or(ROUNDS, |n| n.parse().expect("MU_STRESS_ROUNDS is a number"))
}

/// What the owner writes over memory that it has taken back. Writers never write it.
const OWN: u64 = u64::MAX;
/// Words that a storm writes: two chunks and a bit, or more, at the path MTU of a storm.
const STORM_WORDS: usize = if cfg!(miri) { 2 * 32 + 3 } else { 8 * 32 + 3 };

/// Marks memory as taken back.
fn take_back(words: &[Word]) {
    words
        .iter()
        .for_each(|word| word.store(OWN, Ordering::Release));
}

/// How many words landed in memory that was taken back. Gives writers time to do it.
fn late_words(words: &[Word]) -> usize {
    for _ in 0..20 {
        thread::yield_now();
    }
    words
        .iter()
        .filter(|word| word.load(Ordering::Acquire) != OWN)
        .count()
}

/// How a right is taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Method {
    Flags,
    Err,
    Reset,
    Destroy,
    Deregister,
    Reregister,
    Window,
}

const METHODS: [Method; 7] = [
    Method::Flags,
    Method::Err,
    Method::Reset,
    Method::Destroy,
    Method::Deregister,
    Method::Reregister,
    Method::Window,
];

/// The writer's side of a storm: one thread posts without end, another polls.
struct Storm {
    control: Control,
    /// Where to write: address and key.
    addr: Arc<AtomicU64>,
    rkey: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    poster: thread::JoinHandle<End>,
    poller: thread::JoinHandle<()>,
}

impl Storm {
    fn start(x: End, target: RemoteAddr) -> Self {
        let control = x.qp.control().clone();
        let addr = Arc::new(AtomicU64::new(target.addr));
        let rkey = Arc::new(AtomicU32::new(target.rkey));
        let stop = Arc::new(AtomicBool::new(false));
        let spare = x.node.create_cq(1).expect("a completion queue");
        let End {
            qp,
            mut cq,
            mr,
            pd,
            node,
        } = x;
        let mut x = End {
            qp,
            cq: spare,
            mr,
            pd,
            node,
        };
        let poster = {
            let (addr, rkey, stop) = (Arc::clone(&addr), Arc::clone(&rkey), Arc::clone(&stop));
            thread::spawn(move || {
                let mut id = 0;
                while !stop.load(Ordering::Acquire) {
                    let remote = RemoteAddr {
                        addr: addr.load(Ordering::Acquire),
                        rkey: rkey.load(Ordering::Acquire),
                    };
                    id += 1;
                    x.mr.memory().store(0, id);
                    let place = [Sge::new(&x.mr, 0, STORM_WORDS * 8)];
                    let payload = Payload::Regions(&place);
                    // It is refused while the queue pair is reset or full; that is part of the storm.
                    if x.qp
                        .post_send(&signalled(
                            id,
                            SendOp::Write {
                                payload,
                                remote,
                                imm: None,
                            },
                        ))
                        .is_err()
                    {
                        thread::yield_now();
                    }
                }
                x
            })
        };
        let poller = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut last = 0;
                while !stop.load(Ordering::Acquire) {
                    let Some(done) = poll(&mut cq) else {
                        thread::yield_now();
                        continue;
                    };
                    assert!(done.wr_id > last, "completion {} after {last}", done.wr_id);
                    last = done.wr_id;
                    let known = done.status.is_success() || done.status.may_be_lost_right();
                    assert!(known, "{:?}", done.status);
                }
            })
        };
        Self {
            control,
            addr,
            rkey,
            stop,
            poster,
            poller,
        }
    }

    fn aim(&self, target: RemoteAddr) {
        self.addr.store(target.addr, Ordering::Release);
        self.rkey.store(target.rkey, Ordering::Release);
    }

    fn end(self) {
        self.stop.store(true, Ordering::Release);
        self.poller.join().expect("the poller ends");
        drop(self.poster.join().expect("the poster ends"));
    }
}

/// The owner's side: takes rights away and gives them back.
struct Owner {
    y: End,
    memory: Memory,
    window: Option<(Mw, u32)>,
}

impl Owner {
    fn new(y: End) -> Self {
        let memory = y.mr.memory().clone();
        Self {
            y,
            memory,
            window: None,
        }
    }

    fn words(&self) -> &[Word] {
        &self.memory.words()[..STORM_WORDS]
    }

    fn revoke(&mut self, method: Method) {
        let y = &mut self.y;
        match method {
            Method::Flags => y.modify(Modify::Access(Access::REMOTE_READ)),
            Method::Err => y.modify(Modify::Err),
            Method::Reset => y.modify(Modify::Reset),
            Method::Destroy => {
                let fresh = y
                    .node
                    .create_qp(&y.pd, &y.cq, &y.cq, &QpCap::default())
                    .expect("a queue pair");
                std::mem::replace(&mut y.qp, fresh)
                    .close()
                    .expect("nobody is stalled");
            }
            Method::Deregister => {
                let spare = y
                    .node
                    .reg_mr(&y.pd, &self.memory, 0..8, Access::NONE)
                    .expect("a region");
                std::mem::replace(&mut y.mr, spare)
                    .close()
                    .expect("nobody is stalled");
            }
            Method::Reregister => {
                y.mr.reregister(Access::REMOTE_READ)
                    .expect("nobody is stalled")
            }
            Method::Window => {
                let (_, rkey) = self.window.as_ref().expect("a window is bound");
                y.post(0, SendOp::LocalInv { rkey: *rkey })
                    .expect("there is room");
                assert_eq!(y.wait().status, WcStatus::SUCCESS);
            }
        }
    }

    /// Gives the right, and waits until the storm is on again.
    fn grant(&mut self, method: Method, storm: &Storm) {
        match method {
            Method::Deregister => {
                self.y.mr = self
                    .y
                    .node
                    .reg_mr(&self.y.pd, &self.memory, 0..BYTES, Access::ALL)
                    .expect("a region");
            }
            Method::Reregister => self
                .y
                .mr
                .reregister(Access::ALL)
                .expect("nobody is stalled"),
            _ => {}
        }
        // A write that is on its way with the old key fails the new connection; then it is made again.
        let target = until("a bound window", || {
            self.connect(storm);
            match method {
                Method::Window => self.bind(),
                _ => Some(self.y.mr.remote(0)),
            }
        });
        storm.aim(target);
        until("the storm", || {
            let landed = self.words()[0].load(Ordering::Acquire) != OWN;
            let failed = |control: &Control| control.state() == QpState::Err;
            if !landed && (failed(&storm.control) || failed(self.y.qp.control())) {
                self.connect(storm);
            }
            landed.then_some(())
        });
    }

    /// Both ends anew; nothing of the connection before gets into this one.
    fn connect(&self, storm: &Storm) {
        let (x, y) = (&storm.control, self.y.qp.control());
        let modify =
            |end: &Control, change| end.modify(&change).expect("a change that the state allows");
        for end in [x, y] {
            modify(end, Modify::Reset);
            modify(end, Modify::Init(Access::LOG));
        }
        for (end, peer) in [(y, x), (x, y)] {
            let remote = peer.endpoint();
            modify(
                end,
                Modify::Rtr(RtrAttr {
                    path_mtu: Mtu::B256,
                    ..RtrAttr::new(remote)
                }),
            );
            modify(
                end,
                Modify::Rts(RtsAttr {
                    timeout: 8,
                    retry_cnt: 1,
                    ..RtsAttr::default()
                }),
            );
        }
    }

    /// Binds the window anew, if the connection holds until then.
    fn bind(&mut self) -> Option<RemoteAddr> {
        let y = &mut self.y;
        let (window, old) = self.window.take().unwrap_or_else(|| {
            let window = y.node.alloc_mw(&y.pd).expect("a window");
            let rkey = window.rkey();
            (window, rkey)
        });
        let rkey = old & !0xff | old.wrapping_add(1) & 0xff;
        let (offset, len, access) = (0, BYTES, Access::REMOTE_WRITE);
        let bind = SendOp::BindMw {
            mw: &window,
            rkey,
            mr: &y.mr,
            offset,
            len,
            access,
        };
        y.qp.post_send(&signalled(0, bind)).expect("there is room");
        let bound = y.wait().status.is_success();
        self.window = Some((window, if bound { rkey } else { old }));
        bound.then_some(RemoteAddr {
            rkey,
            ..y.mr.remote(0)
        })
    }
}

/// Revokes `rounds` times while the storm goes on, and returns how many words landed afterwards.
fn revoke_under_storm(method: Method, placement: Placement, rounds: u64) -> usize {
    let fabric = Fabric::new();
    let a = fabric.open_with(placement).expect("a context");
    let Pair { x, y } = Pair::between(&a, &fabric.open().expect("a context"));
    // Random bytes are not OWN.
    (0..STORM_WORDS).for_each(|at| x.mr.memory().store(at, at as u64 + 1));
    let mut owner = Owner::new(y);
    // It begins with a key that opens nothing: with the region's own, a write could go on beside a window's.
    let nowhere = RemoteAddr {
        rkey: 0,
        ..owner.y.mr.remote(0)
    };
    let storm = Storm::start(x, nowhere);
    let mut late = 0;
    owner.revoke(Method::Reset);
    take_back(owner.words());
    for _ in 0..rounds {
        owner.grant(method, &storm);
        owner.revoke(method);
        take_back(owner.words());
        late += late_words(owner.words());
    }
    storm.end();
    late
}

#[test]
fn nothing_lands_after_a_revocation_by_any_method() {
    for method in METHODS {
        assert_eq!(
            revoke_under_storm(method, Placement::Ascending, rounds()),
            0,
            "{method:?}"
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "long")]
fn nothing_lands_after_a_revocation_in_any_placement_mode() {
    use Placement::*;
    for placement in [TornAtMtu, Shuffle128, Shuffle64, Late] {
        for method in [Method::Flags, Method::Destroy, Method::Deregister] {
            let late = revoke_under_storm(method, placement, rounds() / 4 + 1);
            assert_eq!(late, 0, "{method:?} {placement:?}");
        }
    }
}

/// The negative control: a revocation that does not wait for the writer is found out by the same check. The writer is
/// held in the middle of its copy, so this does not depend on chance.
#[test]
fn the_check_finds_late_words() {
    let memory = Memory::anonymous(STORM_WORDS * 8).expect("memory");
    let shared = Arc::new((memory, Word::new(1), Word::new(0), AtomicU32::new(0)));
    let writer = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (memory, permission, seq, step) = &*shared;
            let inside = gate::begin(seq);
            assert_eq!(permission.load(Ordering::Acquire), 1);
            for (at, word) in memory.words().iter().enumerate().take(STORM_WORDS) {
                if at == STORM_WORDS / 2 {
                    step.store(1, Ordering::Release);
                    until("the revocation", || {
                        (step.load(Ordering::Acquire) == 2).then_some(())
                    });
                }
                word.store(7, Ordering::Release);
            }
            drop(inside);
            step.store(3, Ordering::Release);
        })
    };
    let (memory, permission, seq, step) = &*shared;
    let words = &memory.words()[..STORM_WORDS];
    until("the copy", || {
        (step.load(Ordering::Acquire) == 1).then_some(())
    });
    // Without `gate::quiesce`, which would say that the writer is inside.
    gate::revoke(permission, 0);
    assert_eq!(gate::quiesce(seq, || Some("inside")), Err("inside"));
    take_back(words);
    step.store(2, Ordering::Release);
    until("the rest of the copy", || {
        (step.load(Ordering::Acquire) == 3).then_some(())
    });
    assert_eq!(late_words(words), STORM_WORDS - STORM_WORDS / 2);
    writer.join().expect("the writer ends");
}

/// A number that is no atomic. What the gate keeps apart may be used without any: that is what Miri and ThreadSanitizer
/// check here, since they see nothing wrong in words that overlap.
#[derive(Default)]
struct Plain(UnsafeCell<u64>);

// SAFETY: `gate_storm` uses it inside the gate or after a revocation only; a race would be the fault looked for.
unsafe impl Sync for Plain {}

impl Plain {
    fn add(&self) {
        // SAFETY: as above, nobody else uses it meanwhile.
        unsafe { *self.0.get() += 1 };
    }
}

/// The gate alone, small enough for Miri to try many schedules: a writer storms, its target revokes and grants.
#[test]
fn gate_storm() {
    const WORDS: usize = 4;
    let memory = Memory::anonymous(WORDS * 8).expect("memory");
    let (permission, seq) = (Word::new(1), Word::new(0));
    let shared = Arc::new((
        memory,
        permission,
        seq,
        Plain::default(),
        AtomicBool::new(false),
    ));
    let writer = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (memory, permission, seq, plain, stop) = &*shared;
            let mut bytes = [0u8; WORDS * 8];
            while !stop.load(Ordering::Acquire) {
                bytes[0] = bytes[0].wrapping_add(1) & 0x7f;
                let landed = gate::enter(seq, || {
                    let may = permission.load(Ordering::Acquire) == 1;
                    if may {
                        plain.add();
                        memory.write_bytes(0, &bytes);
                    }
                    may
                });
                if !landed {
                    thread::yield_now();
                }
            }
        })
    };
    let (memory, permission, seq, plain, stop) = &*shared;
    let words = &memory.words()[..WORDS];
    let revoke = || {
        gate::revoke(permission, 0);
        let wait = || {
            thread::yield_now();
            None::<()>
        };
        assert!(gate::quiesce(seq, wait).is_ok());
        plain.add();
        take_back(words);
        assert_eq!(late_words(words), 0);
    };
    revoke();
    for _ in 0..rounds() {
        permission.store(1, Ordering::Release);
        until("a write", || (memory.load(0) != OWN).then_some(()));
        revoke();
    }
    stop.store(true, Ordering::Release);
    writer.join().expect("the writer ends");
}

/// Fetch-and-adds and compare-and-swaps of several peers on one word, and plain writes to the bytes beside it.
#[test]
fn atomics_add_up() {
    let fabric = Fabric::new();
    let target = fabric.open().expect("a context");
    let count = 10 * rounds();
    let base = End::new(&target, BYTES);
    let place = base.mr.remote(8);
    let peers = 4;
    let threads: Vec<_> = (0..peers)
        .map(|peer| {
            let mut x = End::new(&fabric.open().expect("a context"), 64);
            let qp = target
                .create_qp(&base.pd, &base.cq, &base.cq, &QpCap::default())
                .expect("a queue pair");
            connect(&x.qp, &qp);
            thread::spawn(move || {
                let mut seen = Vec::new();
                for _ in 0..count {
                    seen.push(if peer % 2 == 0 {
                        add_one(&mut x, place)
                    } else {
                        swap_one(&mut x, place)
                    });
                }
                (seen, qp)
            })
        })
        .collect();
    let ended: Vec<_> = threads
        .into_iter()
        .map(|t| t.join().expect("a peer ends"))
        .collect();
    let mut all: Vec<u64> = ended.into_iter().flat_map(|(seen, _)| seen).collect();
    all.sort_unstable();
    assert_eq!(base.mr.memory().load(1), peers * count);
    assert!(
        all.into_iter().eq(0..peers * count),
        "two peers saw the same value"
    );
}

fn add_one(x: &mut End, remote: RemoteAddr) -> u64 {
    let End { qp, mr, .. } = x;
    let op = SendOp::FetchAdd {
        local: Sge::new(mr, 0, 8),
        remote,
        add: 1,
    };
    qp.post_send(&signalled(1, op)).expect("there is room");
    assert_eq!(x.wait().status, WcStatus::SUCCESS);
    x.mr.memory().load(0)
}

fn swap_one(x: &mut End, remote: RemoteAddr) -> u64 {
    let mut compare = 0;
    loop {
        let End { qp, mr, .. } = x;
        let op = SendOp::CompareSwap {
            local: Sge::new(mr, 0, 8),
            remote,
            compare,
            swap: compare + 1,
        };
        qp.post_send(&signalled(1, op)).expect("there is room");
        assert_eq!(x.wait().status, WcStatus::SUCCESS);
        let found = x.mr.memory().load(0);
        if found == compare {
            return found;
        }
        compare = found;
    }
}

/// Messages with their numbers, sent while receives run out and come again: each is received once, in order, whole.
#[test]
fn receives_under_load() {
    let Pair { mut x, y } = Pair::new();
    let count = (20 * rounds()) as u32;
    let End {
        qp: mut receiver,
        cq: mut received,
        mr,
        pd: _pd,
        node: _node,
    } = y;
    let mr = Arc::new(mr);
    // Receives that are posted and not yet taken out, at most; their buffers are used in turn.
    const AHEAD: u64 = 8;
    let taken = Arc::new(AtomicU64::new(0));
    let poster = {
        let (mr, taken) = (Arc::clone(&mr), Arc::clone(&taken));
        thread::spawn(move || {
            for wr_id in 0..u64::from(count) {
                until("room", || {
                    (wr_id < taken.load(Ordering::Acquire) + AHEAD).then_some(())
                });
                let place = [Sge::new(&*mr, (wr_id % AHEAD) as usize * 16, 16)];
                receiver
                    .post_recv(&RecvWr {
                        wr_id,
                        local: &place,
                    })
                    .expect("there is room");
            }
            receiver
        })
    };
    let sender = thread::spawn(move || {
        for number in 0..count {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            bytes[12..].copy_from_slice(&number.to_le_bytes());
            let send = SendOp::Send {
                payload: Payload::Inline(&bytes),
                imm: Some(number),
            };
            x.post(number.into(), send).expect("there is room");
            let done = x.wait();
            assert_eq!(
                (done.wr_id, done.status),
                (number.into(), WcStatus::SUCCESS)
            );
        }
        x
    });
    for number in 0..count {
        let done = wait(&mut received);
        assert_eq!(
            (done.wr_id, done.status),
            (number.into(), WcStatus::SUCCESS)
        );
        assert_eq!((done.imm_data, done.byte_len), (Some(number), 16));
        let mut bytes = [0; 16];
        mr.memory()
            .read_bytes((u64::from(number) % AHEAD) as usize * 16, &mut bytes);
        assert_eq!([&bytes[..4], &bytes[12..]], [number.to_le_bytes(); 2]);
        taken.store(u64::from(number) + 1, Ordering::Release);
    }
    drop((
        poster.join().expect("the poster ends"),
        sender.join().expect("the sender ends"),
    ));
    assert_eq!(poll(&mut received), None);
}

/// One completion queue and many queue pairs, which their threads destroy while it is polled. What completes belongs to
/// its queue pair and comes in order; a queue pair that is closed after its last completion has lost none.
#[test]
fn queue_pairs_come_and_go_under_a_polled_queue() {
    let fabric = Fabric::new();
    let (a, b) = (
        fabric.open().expect("a context"),
        fabric.open().expect("a context"),
    );
    let pd = a.alloc_pd();
    let mut cq = a.create_cq(256).expect("a completion queue");
    let base = End::new(&b, BYTES);
    let writes = 5;
    let alive = if cfg!(miri) { 2 } else { 16 };
    let make = |cq: &Cq| {
        let qp = a
            .create_qp(&pd, cq, cq, &QpCap::default())
            .expect("a queue pair");
        let peer = b
            .create_qp(&base.pd, &base.cq, &base.cq, &QpCap::default())
            .expect("a queue pair");
        connect(&qp, &peer);
        (qp, peer)
    };
    for round in 0..rounds() / 10 + 1 {
        let seen: Vec<_> = (0..alive).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let mut numbers = Vec::new();
        let threads: Vec<_> = seen
            .iter()
            .enumerate()
            .map(|(at, seen)| {
                let ((qp, peer), seen) = (make(&cq), Arc::clone(seen));
                numbers.push(qp.control().qp_num());
                let remote = base.mr.remote(at * 64);
                thread::spawn(move || write_and_close(qp, peer, remote, writes, &seen))
            })
            .collect();
        until("the last completion", || {
            while let Some(done) = poll(&mut cq) {
                assert_eq!(done.status, WcStatus::SUCCESS);
                let at = numbers
                    .iter()
                    .position(|n| *n == done.qp_num)
                    .expect("a queue pair of this round");
                let before = seen[at].fetch_add(1, Ordering::AcqRel);
                assert_eq!(
                    done.wr_id, before,
                    "round {round}: queue pair {at} out of order"
                );
            }
            seen.iter()
                .all(|seen| seen.load(Ordering::Acquire) == writes)
                .then_some(())
        });
        threads
            .into_iter()
            .for_each(|t| t.join().expect("a queue pair ends"));
        assert_eq!(poll(&mut cq), None);
    }
}

fn write_and_close(mut qp: Qp, peer: Qp, remote: RemoteAddr, writes: u64, seen: &AtomicU64) {
    for id in 0..writes {
        let payload = Payload::<Mr>::Inline(&[1; 64]);
        qp.post_send(&signalled(
            id,
            SendOp::Write {
                payload,
                remote,
                imm: None,
            },
        ))
        .expect("there is room");
    }
    until("all completions", || {
        (seen.load(Ordering::Acquire) == writes).then_some(())
    });
    qp.close().expect("nobody is stalled");
    peer.close().expect("nobody is stalled");
}

/// Faults at random (the seed is printed) under a sequence of writes: completions come in order, only the dropped
/// ones are missing, and what was completed without an error is there.
#[test]
fn faults_in_a_stream_of_writes() {
    let seed = 0x6d75;
    println!("seed {seed}");
    let mut random = Random(seed);
    let Pair { mut x, y } = Pair::new();
    for id in 1..=10 * rounds() {
        let fault = match random.below(8) {
            0 => Some(Fault::Delay {
                polls: random.below(5) as u32,
            }),
            1 => Some(Fault::DropCompletion),
            2 => Some(Fault::ErrorAfterLanding(WcStatus::RETRY_EXC_ERR)),
            3 => Some(Fault::ToErr),
            _ => None,
        };
        fault.into_iter().for_each(|fault| x.qp.inject(fault));
        let write = |bytes| SendOp::Write {
            payload: Payload::Inline(bytes),
            remote: y.mr.remote(0),
            imm: None,
        };
        let bytes = id.to_ne_bytes();
        x.post(id, write(&bytes)).expect("there is room");
        // A READ of nothing follows, whose completion shows that a missing one does not come.
        x.read(0, y.mr.remote(0), 0);
        let first = x.wait();
        let second = (fault != Some(Fault::DropCompletion)).then(|| x.wait());
        let landed = y.mr.memory().load(0) == id;
        let want = match fault {
            Some(Fault::ErrorAfterLanding(status)) => (id, status, true),
            Some(Fault::ToErr) => (id, WcStatus::WR_FLUSH_ERR, false),
            Some(Fault::DropCompletion) => (0, WcStatus::SUCCESS, true),
            _ => (id, WcStatus::SUCCESS, true),
        };
        assert_eq!(
            (first.wr_id, first.status, landed),
            want,
            "request {id} with {fault:?}"
        );
        assert!(second.is_none_or(
            |done| done.wr_id == 0 && done.status.is_success() == first.status.is_success()
        ));
        assert_eq!(x.poll(), None);
        if !first.status.is_success() {
            [&x, &y].iter().for_each(|end| end.modify(Modify::Reset));
            connect(&x.qp, &y.qp);
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 31)) % end
    }
}

/// A target that dies under a storm: the writer is told, and nothing hangs.
#[test]
fn a_target_dies_under_a_storm() {
    for _ in 0..rounds() / 10 + 1 {
        let Pair { x, y } = Pair::new();
        (0..STORM_WORDS).for_each(|at| x.mr.memory().store(at, 1));
        let storm = Storm::start(x, y.mr.remote(0));
        until("the storm", || (y.mr.memory().load(0) != 0).then_some(()));
        y.node.crash();
        until("the writer to know", || {
            (storm.control.state() == QpState::Err).then_some(())
        });
        storm.end();
    }
}

/// A writer that dies in mid-copy, again and again: the owner takes the memory back and finds nothing later, and the
/// next writer gets in.
#[test]
fn writers_die_in_the_middle_of_a_copy() {
    let fabric = Fabric::new();
    let y = End::new(&fabric.open().expect("a context"), BYTES);
    let words = &y.mr.memory().words()[..STORM_WORDS];
    let mut random = Random(1);
    for round in 0..rounds() / 4 + 1 {
        let mut x = End::new(&fabric.open().expect("a context"), BYTES);
        connect(&x.qp, &y.qp);
        let bytes = 8 * random.below(128) as usize;
        x.qp.inject(Fault::CrashInCopy { bytes });
        x.write_region(1, y.mr.remote(0), STORM_WORDS * 8);
        let ended = x.wait();
        assert_eq!(ended.status, WcStatus::RETRY_EXC_ERR, "round {round}");
        assert_eq!(ended.vendor_err, 0, "the target lives");
        x.node.crash();
        y.modify(Modify::Err);
        y.modify(Modify::Reset);
        take_back(words);
        drop(x);
        assert_eq!(late_words(words), 0, "round {round}");
    }
}
