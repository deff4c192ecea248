//! The slow way of send requests: those that cannot run at once, and all behind them, wait here in order.
//!
//! A request waits because the peer's queue pair does not answer (yet), because no receive is posted there, or
//! because a test asked for a placement mode or a fault. Posting and polling let the queue go on. While `is_slow` is
//! set, everything about the send side, the sequence word included, happens under this queue's lock, so that there is
//! one writer at any time; the posting thread alone sets and clears the flag, the latter under the lock with the
//! queue empty.
//!
//! All slots are allocated when the queue pair is made.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Action, LateWrite, Op, Outcome, Piece, Placing, Source};
use crate::fault::{Fault, LATE_POLLS, Placement, Shuffle};
use crate::limits::MAX_SGE;
use crate::node::lock;
use crate::post::{Record, opcode, with_pieces};
use crate::qp::QpShared;
use crate::region::{Bind, Mr, Mw, Registration};
use crate::sync::{Mutex, Ordering};
use crate::types::{
    Access, Payload, QpCap, QpState, RemoteAddr, SendFlags, SendOp, SendWr, Sge, WcOpcode, WcStatus,
};

/// Requests that wait, and what tests asked for.
pub(crate) struct Slow {
    slots: Box<[Slot]>,
    first: usize,
    count: usize,
    placement: Placement,
    shuffle: Shuffle,
    faults: VecDeque<Fault>,
    late: Arc<Mutex<Late>>,
}

/// Writes held back, with a lock of its own: the target's revocation lets them land.
#[derive(Default)]
pub(crate) struct Late {
    writes: Vec<LateWrite>,
    polls: u32,
}

impl Late {
    pub(crate) fn land(&mut self) {
        self.writes.drain(..).for_each(LateWrite::land);
        self.polls = 0;
    }
}

/// The numbers of a waiting request.
pub(crate) struct Waiting {
    pub(crate) wr_id: u64,
    pub(crate) flags: SendFlags,
    pub(crate) index: u64,
    pub(crate) incarnation: u32,
    /// Bytes already carried out.
    pub(crate) done: usize,
}

/// Room for one request, its inline payload included.
struct Slot {
    request: Waiting,
    opcode: WcOpcode,
    kind: Kind,
    pieces: [Option<(Arc<Registration>, usize, usize)>; MAX_SGE],
    inline: Box<[u8]>,
    inline_len: Option<usize>,
    fault: Option<Fault>,
    wait: RetryTimer,
}

/// What a waiting request does; where its bytes are stands in the slot.
enum Kind {
    None,
    Write {
        remote: RemoteAddr,
        imm: Option<u32>,
    },
    Read {
        remote: RemoteAddr,
    },
    Send {
        imm: Option<u32>,
    },
    Atomic {
        remote: RemoteAddr,
        action: Action,
    },
    Bind(Bind),
    Invalidate(u32),
}

/// How long a request has been refused for, and how often.
#[derive(Default)]
struct RetryTimer {
    since: Option<Instant>,
    rnr: Option<Instant>,
    rnr_tries: u8,
}

impl Slow {
    pub(crate) fn new(cap: &QpCap, placement: Placement) -> Self {
        let slot = |_| Slot {
            request: Waiting {
                wr_id: 0,
                flags: SendFlags::NONE,
                index: 0,
                incarnation: 0,
                done: 0,
            },
            opcode: WcOpcode::SEND,
            kind: Kind::None,
            pieces: [const { None }; MAX_SGE],
            inline: vec![0; cap.max_inline_data as usize].into(),
            inline_len: None,
            fault: None,
            wait: RetryTimer::default(),
        };
        Self {
            slots: (0..cap.max_send_wr.max(1)).map(slot).collect(),
            first: 0,
            count: 0,
            placement,
            shuffle: Shuffle::new(1),
            faults: VecDeque::new(),
            late: Arc::default(),
        }
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        self.faults.push_back(fault);
    }

    pub(crate) fn late(&self) -> Arc<Mutex<Late>> {
        Arc::clone(&self.late)
    }

    /// Nothing waits, and nothing unusual is asked for.
    pub(crate) fn is_idle(&self) -> bool {
        self.count == 0 && self.faults.is_empty() && self.placement == Placement::Ascending
    }

    pub(crate) fn clear(&mut self) {
        while self.count > 0 {
            self.pop();
        }
    }

    /// Adds a request at the end. There is a slot for every request the queue pair can hold.
    pub(crate) fn add(&mut self, wr: &SendWr<'_, Mr, Mw>, request: Waiting) {
        assert!(
            self.count < self.slots.len(),
            "the poster counts its outstanding requests"
        );
        let fault = self.faults.pop_front();
        let at = (self.first + self.count) % self.slots.len();
        self.count += 1;
        let slot = &mut self.slots[at];
        slot.request = request;
        slot.opcode = opcode(&wr.op);
        slot.fault = fault;
        slot.wait = RetryTimer::default();
        slot.kind = match wr.op {
            SendOp::Write {
                payload,
                remote,
                imm,
            } => {
                slot.keep(payload);
                Kind::Write { remote, imm }
            }
            SendOp::Send { payload, imm } => {
                slot.keep(payload);
                Kind::Send { imm }
            }
            SendOp::Read { local, remote } => {
                slot.keep(Payload::Regions(local));
                Kind::Read { remote }
            }
            SendOp::CompareSwap {
                local,
                remote,
                compare,
                swap,
            } => {
                slot.keep(Payload::Regions(&[local]));
                Kind::Atomic {
                    remote,
                    action: Action::CompareSwap { compare, swap },
                }
            }
            SendOp::FetchAdd { local, remote, add } => {
                slot.keep(Payload::Regions(&[local]));
                Kind::Atomic {
                    remote,
                    action: Action::FetchAdd(add),
                }
            }
            SendOp::BindMw {
                mw,
                rkey,
                mr,
                offset,
                len,
                access,
            } => Kind::Bind(Bind {
                window: Arc::clone(&mw.0),
                region: Arc::clone(&mr.0),
                rkey,
                offset,
                len,
                access,
            }),
            SendOp::LocalInv { rkey } => Kind::Invalidate(rkey),
        };
    }

    fn pop(&mut self) {
        let slot = &mut self.slots[self.first];
        slot.kind = Kind::None;
        slot.pieces = [const { None }; MAX_SGE];
        self.first = (self.first + 1) % self.slots.len();
        self.count -= 1;
    }

    /// Carries on with what waits, in order, as far as it goes now.
    pub(crate) fn progress(&mut self, shared: &Arc<QpShared>) {
        self.age_late();
        while self.count > 0 {
            let ctl = shared.lock();
            let (state, incarnation, rts, path) =
                (ctl.state, ctl.incarnation, ctl.rts, ctl.path.clone());
            drop(ctl);
            let slot = &mut self.slots[self.first];
            if slot.request.incarnation != incarnation {
                self.pop();
                continue;
            }
            let outcome = match (state, path) {
                (QpState::Rts, Some(path)) => {
                    if matches!(
                        slot.kind,
                        Kind::Read { .. } | Kind::Atomic { .. } | Kind::Send { .. }
                    ) {
                        lock(&self.late).land();
                    }
                    // Held only where writes are held back: other requests may have to settle both directions.
                    let holds_back = self.placement == Placement::Late
                        && matches!(slot.kind, Kind::Write { .. });
                    let mut late = holds_back.then(|| lock(&self.late));
                    let mut how = Placing {
                        shuffle: self
                            .placement
                            .shuffled()
                            .map(|block| (block, &mut self.shuffle)),
                        one_chunk: self.placement == Placement::TornAtMtu,
                        late: late.as_mut().map(|late| &mut late.writes),
                        crash_after: None,
                    };
                    slot.step(shared, &path, &rts, &mut how)
                }
                (QpState::Reset, _) => return,
                _ => Step::Finished(WcStatus::WR_FLUSH_ERR, 0, false),
            };
            let Step::Finished(status, byte_len, silent) = outcome else {
                return;
            };
            let request = &slot.request;
            if !silent && (!status.is_success() || request.flags.contains(SendFlags::SIGNALED)) {
                let (wr_id, index) = (request.wr_id, request.index);
                shared.ring.push(
                    Record {
                        wr_id,
                        status,
                        opcode: slot.opcode,
                        byte_len,
                        incarnation,
                        index,
                    }
                    .to_words(),
                );
            }
            self.pop();
            if !status.is_success() {
                shared.fail(incarnation);
            }
        }
        // Late writes age by polls.
        if self.placement != Placement::Late {
            shared.waits.store(false, Ordering::Release);
        }
    }

    /// Late writes do become visible by themselves after some time.
    fn age_late(&mut self) {
        if self.placement == Placement::Late {
            let mut late = lock(&self.late);
            late.polls += 1;
            if late.polls > LATE_POLLS {
                late.land();
            }
        }
    }
}

/// What one try came to.
enum Step {
    /// Not finished.
    Waits,
    /// Finished: status, bytes, and whether its completion is lost.
    Finished(WcStatus, u32, bool),
}

impl Slot {
    /// Keeps the payload: inline bytes by copy, regions by reference count.
    fn keep(&mut self, payload: Payload<'_, Mr>) {
        match payload {
            Payload::Inline(bytes) => {
                self.inline[..bytes.len()].copy_from_slice(bytes);
                self.inline_len = Some(bytes.len());
            }
            Payload::Regions(sges) => {
                self.inline_len = None;
                for (slot, Sge { mr, offset, len }) in self.pieces.iter_mut().zip(sges) {
                    *slot = Some((Arc::clone(&mr.0), *offset, *len));
                }
            }
        }
    }

    /// One try, with the fault that was asked for.
    fn step(
        &mut self,
        shared: &Arc<QpShared>,
        path: &crate::engine::Path,
        rts: &crate::types::RtsAttr,
        how: &mut Placing<'_>,
    ) -> Step {
        match self.fault {
            Some(Fault::Delay { polls }) if polls > 0 => {
                self.fault = Some(Fault::Delay { polls: polls - 1 });
                return Step::Waits;
            }
            Some(Fault::ToErr) => return Step::Finished(WcStatus::WR_FLUSH_ERR, 0, false),
            Some(Fault::CrashInCopy { bytes }) => how.crash_after = Some(bytes),
            _ => {}
        }
        match self.run(shared, path, how) {
            Outcome::Done { byte_len } => match self.fault {
                Some(Fault::DropCompletion) => Step::Finished(WcStatus::SUCCESS, byte_len, true),
                Some(Fault::ErrorAfterLanding(status)) => Step::Finished(status, 0, false),
                _ => Step::Finished(WcStatus::SUCCESS, byte_len, false),
            },
            Outcome::Failed(status) => Step::Finished(status, 0, false),
            Outcome::Paused => Step::Waits,
            Outcome::NotReady => self.wait.not_ready(rts.timeout, rts.retry_cnt),
            Outcome::NoReceive { timer } => self.wait.no_receive(timer, rts.rnr_retry),
        }
    }

    fn run(
        &mut self,
        shared: &Arc<QpShared>,
        path: &crate::engine::Path,
        how: &mut Placing<'_>,
    ) -> Outcome {
        if !self.wait.is_due() {
            return Outcome::Paused;
        }
        let need = match self.kind {
            Kind::Read { .. } | Kind::Atomic { .. } => Access::LOCAL_WRITE,
            _ => Access::NONE,
        };
        let pieces = self.pieces.iter().flatten().map(|(reg, at, len)| Piece {
            reg,
            at: *at,
            len: *len,
        });
        let inline = self.inline_len.map(|len| &self.inline[..len]);
        let (kind, done) = (&self.kind, &mut self.request.done);
        with_pieces(shared, pieces, need, |checked| {
            let (pieces, len) = match checked {
                Ok(checked) => checked,
                Err(status) => return Outcome::Failed(status),
            };
            let (src, len) = inline.map_or((Source::Pieces(pieces), len), |bytes| {
                (Source::Bytes(bytes), bytes.len())
            });
            let op = match *kind {
                Kind::Write { remote, imm } => Op::Write {
                    src,
                    len,
                    remote,
                    imm,
                },
                Kind::Send { imm } => Op::Send { src, len, imm },
                Kind::Read { remote } => Op::Read {
                    dst: pieces,
                    len,
                    remote,
                },
                Kind::Atomic { remote, action } => Op::Atomic {
                    local: pieces[0],
                    remote,
                    action,
                },
                Kind::Bind(ref bind) => Op::Bind(bind),
                Kind::Invalidate(rkey) => Op::Invalidate(rkey),
                Kind::None => unreachable!("a waiting slot has a request"),
            };
            path.run(shared, &op, done, how)
        })
    }
}

impl RetryTimer {
    /// The peer's queue pair drops what it gets: sent again until the time is over (`timeout`, `retry_cnt`).
    fn not_ready(&mut self, timeout: u8, retry_cnt: u8) -> Step {
        let since = *self.since.get_or_insert_with(Instant::now);
        let one = Duration::from_nanos(4096u64 << (timeout & 31));
        if timeout != 0 && since.elapsed() >= one * (u32::from(retry_cnt) + 1) {
            return Step::Finished(WcStatus::RETRY_EXC_ERR, 0, false);
        }
        Step::Waits
    }

    /// The peer has no receive: asked again after its time, `rnr_retry` times, 7 meaning for ever.
    fn no_receive(&mut self, timer: u8, rnr_retry: u8) -> Step {
        if rnr_retry < 7 && self.rnr_tries >= rnr_retry {
            return Step::Finished(WcStatus::RNR_RETRY_EXC_ERR, 0, false);
        }
        self.rnr_tries = self.rnr_tries.saturating_add(1);
        self.rnr = Some(Instant::now() + rnr_delay(timer));
        Step::Waits
    }

    /// Whether the time of the last RNR answer is over.
    fn is_due(&mut self) -> bool {
        match self.rnr {
            Some(at) if Instant::now() < at => false,
            _ => {
                self.rnr = None;
                true
            }
        }
    }
}

/// The wait that an RNR timer code stands for, from 10 µs to 655.36 ms.
fn rnr_delay(code: u8) -> Duration {
    const HUNDREDTHS_MS: [u32; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
        1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    Duration::from_micros(u64::from(HUNDREDTHS_MS[usize::from(code & 31)]) * 10)
}
