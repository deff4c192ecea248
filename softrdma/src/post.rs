//! The posting side of a queue pair. The fast way runs a request at once, in the caller's thread, and pushes its
//! completion: no lock, no allocation, no system call. Requests that cannot run now, and everything posted behind them,
//! take the [slow](crate::slow) way.

use std::sync::Arc;

use crate::engine::{Action, Op, Outcome, Path, Piece, Placing, Source};
use crate::error::PostError;
use crate::fault::Fault;
use crate::limits::{MAX_MSG, MAX_RECV_WR, MAX_SGE};
use crate::node::lock;
use crate::qp::{Qp, QpShared};
use crate::region::{Bind, Mr, Mw};
use crate::slow::Waiting;
use crate::sync::Ordering;
use crate::table::{qp_row, recv_record};
use crate::types::{
    Access, Payload, QpState, RecvWr, SendFlags, SendOp, SendWr, Sge, WcOpcode, WcStatus,
};

/// What the posting thread keeps to itself.
pub(crate) struct Poster {
    epoch: u64,
    state: QpState,
    incarnation: u32,
    path: Option<Arc<Path>>,
    /// Send requests posted since the queue pair was made.
    posted: u64,
    /// Send requests known to be finished or forgotten.
    floor: u64,
    recv_posted: u64,
    recv_floor: u64,
}

/// How a finished request is put into the ring; the polling side takes it apart.
pub(crate) struct Record {
    pub(crate) wr_id: u64,
    pub(crate) status: WcStatus,
    pub(crate) opcode: WcOpcode,
    pub(crate) byte_len: u32,
    pub(crate) incarnation: u32,
    pub(crate) index: u64,
}

impl Record {
    #[inline]
    pub(crate) fn to_words(&self) -> [u64; 4] {
        let what = u64::from(self.incarnation) << 32
            | u64::from(self.opcode.0 & 0xffff) << 8
            | u64::from(self.status.0);
        [self.wr_id, what, u64::from(self.byte_len), self.index]
    }

    #[inline]
    pub(crate) fn from_words([wr_id, what, byte_len, index]: [u64; 4]) -> Self {
        Self {
            wr_id,
            status: WcStatus((what & 0xff) as u32),
            opcode: WcOpcode((what >> 8 & 0xffff) as u32),
            byte_len: byte_len as u32,
            incarnation: (what >> 32) as u32,
            index,
        }
    }
}

impl Poster {
    pub(crate) fn new(shared: &QpShared) -> Self {
        let recv_posted = qp_row(shared.node.ctl.words(), shared.slot)
            .recv_posted()
            .load(Ordering::Relaxed);
        Self {
            epoch: 0,
            state: QpState::Reset,
            incarnation: 0,
            path: None,
            posted: 0,
            floor: 0,
            recv_posted,
            recv_floor: recv_posted,
        }
    }

    /// Takes over what changed since the last post.
    #[cold]
    fn refresh(&mut self, shared: &QpShared) {
        let ctl = shared.lock();
        // Read under the lock, where changes are made: no change is missed and none is seen half.
        self.epoch = shared.epoch.load(Ordering::Acquire);
        self.state = ctl.state;
        self.path.clone_from(&ctl.path);
        if ctl.incarnation != self.incarnation {
            self.incarnation = ctl.incarnation;
            self.floor = self.posted;
            // Not what was posted: a receive that was posted while RESET was under way may have come after it.
            self.recv_floor = qp_row(shared.node.ctl.words(), shared.slot)
                .recv_base()
                .load(Ordering::Relaxed);
        }
    }

    #[inline]
    fn current(&mut self, shared: &QpShared) {
        if shared.epoch.load(Ordering::Acquire) != self.epoch {
            self.refresh(shared);
        }
    }

    /// Whether another send request fits.
    #[inline]
    fn has_room(&mut self, shared: &QpShared) -> bool {
        let depth = u64::from(shared.cap.max_send_wr);
        if self.posted - self.floor >= depth {
            self.floor = self.floor.max(shared.reclaimed.load(Ordering::Acquire));
        }
        // The ring holds two depths: it has room for all of this incarnation unless completions that a RESET forgot
        // have not been polled away yet.
        self.posted - self.floor < depth && shared.ring.free() >= depth
    }
}

impl Qp {
    /// Posts a send request. On success it has usually been carried out already; its completion says how it ended.
    ///
    /// # Errors
    /// Nothing was posted.
    #[inline]
    pub fn post_send(&mut self, wr: &SendWr<'_, Mr, Mw>) -> Result<(), PostError> {
        let shared = &self.control.0;
        let poster = &mut self.poster;
        poster.current(shared);
        if !matches!(poster.state, QpState::Rts | QpState::Err) {
            return Err(PostError::WrongState {
                qp_num: shared.qp_num,
                state: poster.state,
            });
        }
        check_send(shared, wr)?;
        if !poster.has_room(shared) {
            return Err(PostError::QueueFull {
                qp_num: shared.qp_num,
                depth: shared.cap.max_send_wr,
            });
        }
        let index = poster.posted;
        poster.posted += 1;
        if shared.is_slow.load(Ordering::Relaxed) && !self.back_to_fast() {
            self.wait(wr, index, 0);
            return Ok(());
        }
        self.run_now(wr, index);
        Ok(())
    }

    /// Posts several send requests.
    ///
    /// # Errors
    /// How many were posted before the one that was refused, and why it was.
    pub fn post_send_list(&mut self, wrs: &[SendWr<'_, Mr, Mw>]) -> Result<(), (usize, PostError)> {
        wrs.iter()
            .enumerate()
            .try_for_each(|(i, wr)| self.post_send(wr).map_err(|e| (i, e)))
    }

    /// Posts a receive request.
    ///
    /// # Errors
    /// Nothing was posted.
    pub fn post_recv(&mut self, wr: &RecvWr<'_, Mr>) -> Result<(), PostError> {
        let shared = &self.control.0;
        let poster = &mut self.poster;
        poster.current(shared);
        if poster.state == QpState::Reset {
            return Err(PostError::WrongState {
                qp_num: shared.qp_num,
                state: poster.state,
            });
        }
        let limit = shared.cap.max_recv_sge as usize;
        if wr.local.len() > limit {
            return Err(PostError::TooManySges {
                count: wr.local.len(),
                limit,
            });
        }
        let depth = shared.cap.max_recv_wr;
        if poster.recv_posted - poster.recv_floor >= u64::from(depth) {
            poster.recv_floor = poster
                .recv_floor
                .max(shared.recv_delivered.load(Ordering::Acquire));
            if poster.recv_posted - poster.recv_floor >= u64::from(depth) {
                return Err(PostError::QueueFull {
                    qp_num: shared.qp_num,
                    depth,
                });
            }
        }
        if wr
            .local
            .iter()
            .any(|sge| sge.mr.0.node.id != shared.node.id)
        {
            let what = "a region of another context";
            return Err(PostError::Invalid {
                what,
                errno: libc::EINVAL,
            });
        }
        let (addr, len_key) = match wr.local {
            [] => (0, 0),
            // Whether the piece lies in its region is looked at when a message is placed there.
            [sge, ..] => (
                sge.mr.addr().wrapping_add(sge.offset as u64),
                sge.len.min(MAX_MSG) as u64 | u64::from(sge.mr.key()) << 32,
            ),
        };
        let words = shared.node.ctl.words();
        let [addr_word, len_word, ..] = recv_record(words, shared.slot, poster.recv_posted);
        addr_word.store(addr, Ordering::Relaxed);
        len_word.store(len_key, Ordering::Relaxed);
        shared.recv_ids[poster.recv_posted as usize % MAX_RECV_WR]
            .store(wr.wr_id, Ordering::Relaxed);
        poster.recv_posted += 1;
        qp_row(words, shared.slot)
            .recv_posted()
            .store(poster.recv_posted, Ordering::Release);
        Ok(())
    }

    /// Makes `fault` happen to the next send request that is posted.
    pub fn inject(&mut self, fault: Fault) {
        let shared = &self.control.0;
        lock(&shared.slow).inject(fault);
        shared.is_slow.store(true, Ordering::Release);
    }

    /// The fast way.
    #[inline]
    fn run_now(&mut self, wr: &SendWr<'_, Mr, Mw>, index: u64) {
        let shared = &self.control.0;
        let record = |status, byte_len| Record {
            wr_id: wr.wr_id,
            status,
            opcode: opcode(&wr.op),
            byte_len,
            incarnation: self.poster.incarnation,
            index,
        };
        let path = match (&self.poster.path, self.poster.state) {
            (Some(path), QpState::Rts) => path,
            _ => {
                return shared
                    .ring
                    .push(record(WcStatus::WR_FLUSH_ERR, 0).to_words());
            }
        };
        let mut done = 0;
        let usual = match wr.op {
            SendOp::Write {
                payload: Payload::Inline(bytes),
                remote,
                imm: None,
            } => path.write_bytes(bytes, remote),
            _ => None,
        };
        let outcome = match usual {
            Some(outcome) => outcome,
            None => run_any(shared, path, &wr.op, &mut done),
        };
        match outcome {
            Outcome::Done { byte_len } => {
                if wr.flags.contains(SendFlags::SIGNALED) {
                    shared
                        .ring
                        .push(record(WcStatus::SUCCESS, byte_len).to_words());
                }
            }
            Outcome::Failed(status) => {
                shared.ring.push(record(status, 0).to_words());
                shared.fail(self.poster.incarnation);
            }
            Outcome::NotReady | Outcome::NoReceive { .. } | Outcome::Paused => {
                self.wait(wr, index, done)
            }
        }
    }

    /// Puts a request behind the others that wait.
    #[cold]
    fn wait(&mut self, wr: &SendWr<'_, Mr, Mw>, index: u64, done: usize) {
        let shared = &self.control.0;
        let mut slow = lock(&shared.slow);
        shared.is_slow.store(true, Ordering::Release);
        shared.waits.store(true, Ordering::Release);
        slow.add(
            wr,
            Waiting {
                wr_id: wr.wr_id,
                flags: wr.flags,
                index,
                incarnation: self.poster.incarnation,
                done,
            },
        );
        slow.progress(shared);
    }

    /// Lets what waits go on; says whether nothing waits any more, so that the fast way is free again.
    #[cold]
    fn back_to_fast(&mut self) -> bool {
        let shared = &self.control.0;
        let mut slow = lock(&shared.slow);
        slow.progress(shared);
        let free = slow.is_idle();
        if free {
            shared.is_slow.store(false, Ordering::Release);
        }
        free
    }
}

pub(crate) fn opcode<M, W>(op: &SendOp<'_, M, W>) -> WcOpcode {
    match op {
        SendOp::Write { .. } => WcOpcode::RDMA_WRITE,
        SendOp::Read { .. } => WcOpcode::RDMA_READ,
        SendOp::Send { .. } => WcOpcode::SEND,
        SendOp::CompareSwap { .. } => WcOpcode::COMP_SWAP,
        SendOp::FetchAdd { .. } => WcOpcode::FETCH_ADD,
        SendOp::BindMw { .. } => WcOpcode::BIND_MW,
        SendOp::LocalInv { .. } => WcOpcode::LOCAL_INV,
    }
}

/// The limits of the queue pair: what libibverbs answers with EINVAL.
#[inline]
fn check_send(shared: &QpShared, wr: &SendWr<'_, Mr, Mw>) -> Result<(), PostError> {
    let (payload, sges): (Option<&[u8]>, &[Sge<'_, Mr>]) = match &wr.op {
        SendOp::Write {
            payload: Payload::Inline(bytes),
            ..
        }
        | SendOp::Send {
            payload: Payload::Inline(bytes),
            ..
        } => (Some(bytes), &[]),
        SendOp::Write {
            payload: Payload::Regions(sges),
            ..
        }
        | SendOp::Send {
            payload: Payload::Regions(sges),
            ..
        } => (None, sges),
        SendOp::Read { local, .. } => (None, local),
        SendOp::CompareSwap { local, .. } | SendOp::FetchAdd { local, .. } => {
            if local.len != 8 {
                return Err(PostError::Invalid {
                    what: "an atomic takes 8 bytes",
                    errno: libc::EINVAL,
                });
            }
            return Ok(());
        }
        SendOp::BindMw { .. } | SendOp::LocalInv { .. } => return Ok(()),
    };
    let limit = shared.cap.max_inline_data as usize;
    if let Some(bytes) = payload
        && bytes.len() > limit
    {
        return Err(PostError::InlineTooLong {
            len: bytes.len(),
            limit,
        });
    }
    let limit = shared.cap.max_send_sge as usize;
    if sges.len() > limit {
        return Err(PostError::TooManySges {
            count: sges.len(),
            limit,
        });
    }
    let len = sges
        .iter()
        .fold(0usize, |sum, sge| sum.saturating_add(sge.len));
    if len > MAX_MSG {
        return Err(PostError::TooLong {
            len,
            limit: MAX_MSG,
        });
    }
    Ok(())
}

impl<'a> Piece<'a> {
    /// Own context and domain, still registered, inside the region, with the right `need`: then with its place in
    /// memory.
    #[inline]
    fn checked(self, shared: &QpShared, need: Access) -> Option<Self> {
        let reg = self.reg;
        let inside = self
            .at
            .checked_add(self.len)
            .is_some_and(|end| end <= reg.len);
        let own = reg.pd == shared.pd && reg.node.id == shared.node.id && reg.is_valid();
        let fits = inside && own && reg.access().contains(need);
        fits.then_some(Piece {
            at: reg.start + self.at,
            ..self
        })
    }
}

/// Checks the pieces of a request and runs `f` on them and their length together. One piece is the usual case.
#[inline]
pub(crate) fn with_pieces<'a, R>(
    shared: &QpShared,
    pieces: impl Iterator<Item = Piece<'a>>,
    need: Access,
    f: impl FnOnce(Result<(&[Piece<'a>], usize), WcStatus>) -> R,
) -> R {
    let mut pieces = pieces.map(|piece| piece.checked(shared, need).ok_or(WcStatus::LOC_PROT_ERR));
    let (one, all);
    let checked = match (pieces.next(), pieces.next()) {
        (None, _) => Ok((&[][..], 0)),
        (Some(Ok(first)), None) => {
            one = [first];
            Ok((&one[..], first.len))
        }
        (Some(Ok(first)), Some(Ok(second))) => match gather(first, second, pieces) {
            Ok((array, count, len)) => {
                all = array;
                Ok((&all[..count], len))
            }
            Err(status) => Err(status),
        },
        _ => Err(WcStatus::LOC_PROT_ERR),
    };
    f(checked)
}

/// Two pieces or more; the poster has checked that there are at most [`MAX_SGE`].
#[cold]
fn gather<'a>(
    first: Piece<'a>,
    second: Piece<'a>,
    rest: impl Iterator<Item = Result<Piece<'a>, WcStatus>>,
) -> Result<([Piece<'a>; MAX_SGE], usize, usize), WcStatus> {
    let mut all = [first; MAX_SGE];
    all[1] = second;
    let (mut count, mut len) = (2, first.len + second.len);
    for piece in rest {
        all[count] = piece?;
        len += all[count].len;
        count += 1;
    }
    Ok((all, count, len))
}

/// Carries out a request of any kind.
#[inline(never)]
fn run_any(
    shared: &Arc<QpShared>,
    path: &Path,
    op: &SendOp<'_, Mr, Mw>,
    done: &mut usize,
) -> Outcome {
    with_op(shared, op, |op| match op {
        Ok(op) => path.run(shared, &op, done, &mut Placing::default()),
        Err(status) => Outcome::Failed(status),
    })
}

/// Turns a request into what the responder core runs, or says what is wrong with its local side.
#[inline]
fn with_op<R>(
    shared: &QpShared,
    op: &SendOp<'_, Mr, Mw>,
    f: impl FnOnce(Result<Op<'_>, WcStatus>) -> R,
) -> R {
    let (sges, need): (&[Sge<'_, Mr>], _) = match op {
        SendOp::Write {
            payload: Payload::Regions(sges),
            ..
        }
        | SendOp::Send {
            payload: Payload::Regions(sges),
            ..
        } => (sges, Access::NONE),
        SendOp::Read { local, .. } => (local, Access::LOCAL_WRITE),
        SendOp::CompareSwap { local, .. } | SendOp::FetchAdd { local, .. } => {
            (std::slice::from_ref(local), Access::LOCAL_WRITE)
        }
        _ => (&[], Access::NONE),
    };
    let pieces = sges.iter().map(|sge| Piece {
        reg: &sge.mr.0,
        at: sge.offset,
        len: sge.len,
    });
    with_pieces(shared, pieces, need, |checked| {
        let (pieces, len) = match checked {
            Ok(checked) => checked,
            Err(status) => return f(Err(status)),
        };
        let bind;
        f(Ok(match *op {
            SendOp::Write {
                payload,
                remote,
                imm,
            } => {
                let (src, len) = source(payload, pieces, len);
                Op::Write {
                    src,
                    len,
                    remote,
                    imm,
                }
            }
            SendOp::Send { payload, imm } => {
                let (src, len) = source(payload, pieces, len);
                Op::Send { src, len, imm }
            }
            SendOp::Read { remote, .. } => Op::Read {
                dst: pieces,
                len,
                remote,
            },
            SendOp::CompareSwap {
                remote,
                compare,
                swap,
                ..
            } => Op::Atomic {
                local: pieces[0],
                remote,
                action: Action::CompareSwap { compare, swap },
            },
            SendOp::FetchAdd { remote, add, .. } => Op::Atomic {
                local: pieces[0],
                remote,
                action: Action::FetchAdd(add),
            },
            SendOp::BindMw {
                mw,
                rkey,
                mr,
                offset,
                len,
                access,
            } => {
                let (window, region) = (Arc::clone(&mw.0), Arc::clone(&mr.0));
                bind = Bind {
                    window,
                    region,
                    rkey,
                    offset,
                    len,
                    access,
                };
                Op::Bind(&bind)
            }
            SendOp::LocalInv { rkey } => Op::Invalidate(rkey),
        }))
    })
}

#[inline]
fn source<'a>(
    payload: Payload<'a, Mr>,
    pieces: &'a [Piece<'a>],
    len: usize,
) -> (Source<'a>, usize) {
    match payload {
        Payload::Inline(bytes) => (Source::Bytes(bytes), bytes.len()),
        Payload::Regions(_) => (Source::Pieces(pieces), len),
    }
}
