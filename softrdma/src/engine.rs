//! The responder core: carries out one request against the peer's queue pair and regions, chunk by chunk.
//!
//! The initiator's thread does what the target's NIC would do: for every chunk of at most a path MTU it enters the
//! [gate](crate::gate), looks at the target's permission word and region row as they are now, and copies in ascending
//! address order. A message is therefore cut by a revocation at a chunk border and leaves a prefix. The order of the
//! checks is the specification's: queue pair and state, operation rights, posted receive, length, key, domain, region
//! rights, range. A zero-length READ or WRITE does not look at the key.

use std::ops::Range;
use std::sync::Arc;

use crate::copy;
use crate::fault::Shuffle;
use crate::gate;
use crate::memory::Memory;
use crate::node::View;
use crate::qp::QpShared;
use crate::region::{Bind, Registration, invalidate};
use crate::sync::{Ordering, Word, fence};
use crate::table::{
    LaneRow, Nak, Permission, QpRow, RegionState, WriterRow, inbound_record, key_slot, lane_row,
    qp_row, qp_slot, recv_record, region_row, writer_row,
};
use crate::types::{Access, QpState, RemoteAddr, RtrAttr, WcOpcode, WcStatus};

/// The way from a queue pair to its peer's.
pub(crate) struct Path {
    pub(crate) view: Arc<View>,
    /// The initiator's context.
    me: u64,
    pub(crate) target_qp: u32,
    slot: usize,
    /// The initiator's queue pair, as slot.
    own_slot: usize,
    /// What the target's row must say: its own number and this queue pair's.
    numbers: u64,
    /// The same for the packet sequence numbers.
    psns: u64,
    mtu: usize,
}

/// A checked piece of a local region: `at` is in bytes of its memory.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) reg: &'a Arc<Registration>,
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// Where outgoing bytes come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Bytes(&'a [u8]),
    Pieces(&'a [Piece<'a>]),
}

/// What to do to the word of an atomic.
#[derive(Clone, Copy)]
pub(crate) enum Action {
    CompareSwap { compare: u64, swap: u64 },
    FetchAdd(u64),
}

/// A request, ready to run.
pub(crate) enum Op<'a> {
    Write {
        src: Source<'a>,
        len: usize,
        remote: RemoteAddr,
        imm: Option<u32>,
    },
    Read {
        dst: &'a [Piece<'a>],
        len: usize,
        remote: RemoteAddr,
    },
    Send {
        src: Source<'a>,
        len: usize,
        imm: Option<u32>,
    },
    Atomic {
        local: Piece<'a>,
        remote: RemoteAddr,
        action: Action,
    },
    Bind(&'a Bind),
    Invalidate(u32),
}

/// How a request ended, or why it did not yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done {
        byte_len: u32,
    },
    Failed(WcStatus),
    /// The peer's queue pair does not answer: to be tried again until the retry time is over.
    NotReady,
    /// The peer has no receive posted: to be tried again after the time of this RNR code.
    NoReceive {
        timer: u8,
    },
    /// The placement mode ends this step here.
    Paused,
}

/// How bytes are placed; the fast way is the default.
#[derive(Default)]
pub(crate) struct Placing<'a> {
    /// Place blocks of so many bytes in random order.
    pub(crate) shuffle: Option<(usize, &'a mut Shuffle)>,
    /// Stop after one chunk.
    pub(crate) one_chunk: bool,
    /// Hold admitted writes back here.
    pub(crate) late: Option<&'a mut Vec<LateWrite>>,
    /// Die after so many bytes of the first chunk.
    pub(crate) crash_after: Option<usize>,
}

/// A write that was admitted and completed, and is not visible yet.
pub(crate) struct LateWrite {
    memory: Memory,
    at: usize,
    bytes: Vec<u8>,
}

impl LateWrite {
    pub(crate) fn land(self) {
        copy::bytes_to_words(self.memory.words(), self.at, &self.bytes);
    }
}

/// Why a chunk was not carried out.
enum Stop {
    Nak(Nak, u32),
    NotReady,
    NoReceive(u8),
    /// This context died in mid-copy, on demand: the gate is not left.
    Crashed,
    /// The target died or fenced this context: what was copied may be nowhere.
    Gone,
}

impl Source<'_> {
    /// Copies `n` bytes of the message from byte `from` on to byte `at` of `dst`.
    #[inline(always)]
    fn place(&self, from: usize, n: usize, dst: &[Word], at: usize) {
        match self {
            Source::Bytes(bytes) => copy::bytes_to_words(dst, at, &bytes[from..from + n]),
            Source::Pieces(pieces) => for_each_piece(pieces, from, n, |piece, skip, done, n| {
                copy::words_to_words(dst, at + done, piece.reg.memory.words(), piece.at + skip, n);
            }),
        }
    }

    fn read(&self, from: usize, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        match self {
            Source::Bytes(bytes) => out.copy_from_slice(&bytes[from..from + n]),
            Source::Pieces(pieces) => for_each_piece(pieces, from, n, |piece, skip, done, n| {
                copy::words_to_bytes(
                    &mut out[done..done + n],
                    piece.reg.memory.words(),
                    piece.at + skip,
                );
            }),
        }
        out
    }
}

/// The parts of `pieces` that make up bytes `from..from + n` of the message: `f(piece, bytes to skip in it, bytes done,
/// bytes of it)`.
#[inline]
fn for_each_piece(
    pieces: &[Piece<'_>],
    from: usize,
    n: usize,
    mut f: impl FnMut(&Piece<'_>, usize, usize, usize),
) {
    let (mut skip, mut done) = (from, 0);
    for piece in pieces {
        if skip >= piece.len {
            skip -= piece.len;
            continue;
        }
        let part = (piece.len - skip).min(n - done);
        if part > 0 {
            f(piece, skip, done, part);
        }
        done += part;
        skip = 0;
    }
}

impl Path {
    /// The way to `attr.remote`, over `view`, for a connection that begins with `psn` here.
    pub(crate) fn new(qp: &QpShared, psn: u32, attr: &RtrAttr, view: Arc<View>) -> Self {
        let remote = attr.remote;
        Self {
            view,
            me: qp.node.id,
            target_qp: remote.qp_num,
            slot: qp_slot(remote.qp_num),
            own_slot: qp.slot,
            numbers: u64::from(remote.qp_num) << 32 | u64::from(qp.qp_num),
            psns: u64::from(remote.psn) << 32 | u64::from(psn),
            mtu: attr.path_mtu.bytes(),
        }
    }

    /// Carries `op` on from byte `done`.
    #[inline]
    pub(crate) fn run(
        &self,
        qp: &Arc<QpShared>,
        op: &Op<'_>,
        done: &mut usize,
        how: &mut Placing<'_>,
    ) -> Outcome {
        // What concerns only this side works without the peer.
        match *op {
            Op::Bind(bind) => return local(bind.run(qp)),
            Op::Invalidate(rkey) => return local(invalidate(qp, rkey)),
            _ => {}
        }
        let Some(run) = self.begin() else {
            return Outcome::Failed(WcStatus::RETRY_EXC_ERR);
        };
        let outcome = match *op {
            Op::Write {
                src,
                len,
                remote,
                imm,
            } => run.write(src, len, remote, imm, done, how),
            Op::Read { dst, len, remote } => run.read(dst, len, remote, done),
            Op::Send { src, len, imm } => run.send(src, len, imm, done),
            Op::Atomic {
                local,
                remote,
                action,
            } => run.atomic(local, remote, action),
            Op::Bind(_) | Op::Invalidate(_) => unreachable!("handled above"),
        };
        run.confirm(outcome)
    }

    /// [`run`](Self::run) for what is posted most: a WRITE of the caller's bytes that makes one chunk and is placed as
    /// usual. What it is not is known to the compiler here, and left out. `None` if the bytes are no such chunk.
    #[inline]
    pub(crate) fn write_bytes(&self, bytes: &[u8], remote: RemoteAddr) -> Option<Outcome> {
        let len = bytes.len();
        if len == 0 || len > self.mtu {
            return None;
        }
        let Some(run) = self.begin() else {
            return Some(Outcome::Failed(WcStatus::RETRY_EXC_ERR));
        };
        let (src, how) = (Source::Bytes(bytes), &mut Placing::default());
        Some(match run.write_chunk(src, 0..len, len, remote, None, how) {
            Ok(()) => run.confirm(Outcome::Done {
                byte_len: len as u32,
            }),
            Err(outcome) => outcome,
        })
    }

    /// A request begins, unless the target is known to be gone.
    #[inline(always)]
    fn begin(&self) -> Option<Run<'_>> {
        if self.view.gone.load(Ordering::Acquire) {
            return None;
        }
        let (ctl, lane) = (self.view.ctl.words(), self.view.lane.words());
        Some(Run {
            path: self,
            ctl,
            row: qp_row(ctl, self.slot),
            lane: lane_row(lane, self.slot),
            writer: writer_row(lane, self.own_slot),
        })
    }
}

/// One request under way: the rows that all its chunks look at, found once.
struct Run<'a> {
    path: &'a Path,
    ctl: &'a [Word],
    row: QpRow<'a>,
    lane: LaneRow<'a>,
    writer: WriterRow<'a>,
}

impl<'a> Run<'a> {
    /// What a request came to, after a last look. A target that died, or fenced this view, or gave its memory up
    /// meanwhile: what was copied may be nowhere. A connection that is not the one any more: what was copied may be
    /// overwritten already.
    #[inline(always)]
    fn confirm(&self, outcome: Outcome) -> Outcome {
        let known =
            || !self.path.view.gone.load(Ordering::Acquire) && self.admit(Access::NONE).is_ok();
        if matches!(outcome, Outcome::Done { .. }) && !known() {
            return Outcome::Failed(WcStatus::RETRY_EXC_ERR);
        }
        outcome
    }

    /// Runs one chunk inside the gate, reports a refusal to the target, and turns it into an outcome.
    #[inline(always)]
    fn chunk(
        &self,
        need: Access,
        f: impl FnOnce(Permission) -> Result<(), Stop>,
    ) -> Result<(), Outcome> {
        let inside = gate::begin(self.writer.seq());
        let result = self.admit(need).and_then(f);
        match result {
            Err(Stop::Nak(nak, generation)) => self
                .lane
                .nak()
                .store(nak.to_word(generation), Ordering::Release),
            Err(Stop::Crashed) => std::mem::forget(inside),
            _ => {}
        }
        result.map_err(|stop| match stop {
            Stop::Crashed | Stop::Gone => Outcome::Failed(WcStatus::RETRY_EXC_ERR),
            Stop::NotReady => Outcome::NotReady,
            Stop::NoReceive(timer) => Outcome::NoReceive { timer },
            Stop::Nak(Nak::InvalidRequest, _) => Outcome::Failed(WcStatus::REM_INV_REQ_ERR),
            Stop::Nak(Nak::Access, _) => Outcome::Failed(WcStatus::REM_ACCESS_ERR),
            Stop::Nak(Nak::Operation, _) => Outcome::Failed(WcStatus::REM_OP_ERR),
        })
    }

    /// W3: the target's queue pair as it is now.
    #[inline(always)]
    fn admit(&self, need: Access) -> Result<Permission, Stop> {
        let row = self.row;
        let permission = Permission::load(row.permission());
        let ready = matches!(permission.state, QpState::Rtr | QpState::Rts)
            && row.peer_node().load(Ordering::Relaxed) == self.path.me
            && row.numbers().load(Ordering::Relaxed) == self.path.numbers
            && row.psns().load(Ordering::Relaxed) == self.path.psns
            && row.lane().load(Ordering::Relaxed) == self.path.view.lane_id;
        if !ready {
            return Err(Stop::NotReady);
        }
        if !permission.access.contains(need) {
            return Err(Stop::Nak(Nak::InvalidRequest, permission.generation));
        }
        Ok(permission)
    }

    /// The memory behind `addr..addr + len` under `key`, if the target's region allows `need`.
    #[inline(always)]
    fn translate(
        &self,
        p: Permission,
        place: RemoteAddr,
        len: usize,
        need: Access,
    ) -> Result<(&'a Memory, usize), Stop> {
        let refused = Stop::Nak(Nak::Access, p.generation);
        let row = region_row(self.ctl, key_slot(place.rkey));
        let Some(state) = RegionState::from_word(row.state().load(Ordering::Acquire)) else {
            return Err(refused);
        };
        let memory = row.memory().load(Ordering::Relaxed);
        let bound_to = row.bound_to().load(Ordering::Relaxed);
        let same_domain = memory as u32 == self.row.domain().load(Ordering::Relaxed) as u32;
        let bound_here = bound_to == 0 || bound_to == u64::from(self.path.target_qp) + 1;
        let range = place
            .addr
            .checked_sub(row.addr().load(Ordering::Relaxed))
            .filter(|offset| {
                offset
                    .checked_add(len as u64)
                    .is_some_and(|end| end <= row.len().load(Ordering::Relaxed))
            });
        let Some(offset) = range else {
            return Err(refused);
        };
        if state.key != place.rkey || !state.access.contains(need) || !same_domain || !bound_here {
            return Err(refused);
        }
        let at = row.start().load(Ordering::Relaxed).saturating_add(offset) as usize;
        // The row may have been given to another region while it was read: a dereg waits only for the queue pairs of
        // its own domain. Then the state has changed as well.
        fence(Ordering::Acquire);
        if row.state().load(Ordering::Relaxed) != state.to_word() {
            return Err(refused);
        }
        // From here on the target itself would be wrong: memory it never announced, or a region outside its memory.
        let broken = Stop::Nak(Nak::Operation, p.generation);
        let Some(memory) = self.memory((memory >> 32) as u32) else {
            return Err(broken);
        };
        if at.checked_add(len).is_none_or(|end| end > memory.len()) {
            return Err(broken);
        }
        Ok((memory, at))
    }

    #[inline]
    fn memory(&self, id: u32) -> Option<&'a Memory> {
        self.path
            .view
            .memories
            .get(id)
            .or_else(|| self.new_memory(id))
    }

    /// The first request to memory that was announced after the view was made.
    #[cold]
    fn new_memory(&self, id: u32) -> Option<&'a Memory> {
        self.path.view.fabric.upgrade()?.catch_up(&self.path.view);
        if self.path.view.gone.load(Ordering::Acquire) {
            return None;
        }
        self.path.view.memories.get(id)
    }

    #[inline]
    fn write(
        &self,
        src: Source<'_>,
        len: usize,
        remote: RemoteAddr,
        imm: Option<u32>,
        done: &mut usize,
        how: &mut Placing<'_>,
    ) -> Outcome {
        loop {
            let (from, n) = (*done, (len - *done).min(self.path.mtu));
            let last = from + n == len;
            if let Err(outcome) = self.write_chunk(src, from..from + n, len, remote, imm, how) {
                return outcome;
            }
            *done += n;
            if last {
                return Outcome::Done {
                    byte_len: len as u32,
                };
            }
            if how.one_chunk {
                return Outcome::Paused;
            }
        }
    }

    /// Bytes `chunk` of a WRITE of `len` bytes.
    #[inline(always)]
    fn write_chunk(
        &self,
        src: Source<'_>,
        chunk: Range<usize>,
        len: usize,
        remote: RemoteAddr,
        imm: Option<u32>,
        how: &mut Placing<'_>,
    ) -> Result<(), Outcome> {
        let (from, n) = (chunk.start, chunk.end - chunk.start);
        self.chunk(Access::REMOTE_WRITE, |p| {
            let receive = if chunk.end == len && imm.is_some() {
                Some(self.next_receive(p)?)
            } else {
                None
            };
            if len > 0 {
                let (memory, at) = self.translate(p, remote, len, Access::REMOTE_WRITE)?;
                self.writer.mark(memory.id(), at + from, n, true);
                self.place(src, from, n, (memory, at + from), how)?;
            }
            if let Some(index) = receive {
                self.still_there()?;
                self.complete_receive(
                    index,
                    WcStatus::SUCCESS,
                    WcOpcode::RECV_RDMA_WITH_IMM,
                    len,
                    imm,
                );
            }
            Ok(())
        })
    }

    /// Places one chunk in the order that `how` says.
    #[inline(always)]
    fn place(
        &self,
        src: Source<'_>,
        from: usize,
        n: usize,
        to: (&Memory, usize),
        how: &mut Placing<'_>,
    ) -> Result<(), Stop> {
        let (memory, at) = to;
        if let Some(bytes) = how.crash_after.take() {
            src.place(from, n.min(bytes & !7), memory.words(), at);
            return Err(Stop::Crashed);
        }
        if let Some(late) = &mut how.late {
            late.push(LateWrite {
                memory: memory.clone(),
                at,
                bytes: src.read(from, n),
            });
            return Ok(());
        }
        match &mut how.shuffle {
            None => src.place(from, n, memory.words(), at),
            Some((block, shuffle)) => {
                // Blocks are aligned in the target's memory, as a NIC's writes to the host are.
                let mut blocks: Vec<usize> = (at / *block..(at + n).div_ceil(*block)).collect();
                shuffle.shuffle(&mut blocks);
                for b in blocks {
                    let (start, end) = ((b * *block).max(at), ((b + 1) * *block).min(at + n));
                    src.place(from + start - at, end - start, memory.words(), start);
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn read(&self, dst: &[Piece<'_>], len: usize, remote: RemoteAddr, done: &mut usize) -> Outcome {
        loop {
            let (from, n) = (*done, (len - *done).min(self.path.mtu));
            let step = self.chunk(Access::REMOTE_READ, |p| {
                if len > 0 {
                    let (memory, at) = self.translate(p, remote, len, Access::REMOTE_READ)?;
                    self.writer.mark(memory.id(), at + from, n, false);
                    for_each_piece(dst, from, n, |piece, skip, part, n| {
                        let target = piece.reg.memory.words();
                        copy::words_to_words(
                            target,
                            piece.at + skip,
                            memory.words(),
                            at + from + part,
                            n,
                        );
                    });
                }
                Ok(())
            });
            if let Err(outcome) = step {
                return outcome;
            }
            *done += n;
            if *done == len {
                return Outcome::Done {
                    byte_len: len as u32,
                };
            }
        }
    }

    fn send(&self, src: Source<'_>, len: usize, imm: Option<u32>, done: &mut usize) -> Outcome {
        loop {
            let (from, n) = (*done, (len - *done).min(self.path.mtu));
            let last = from + n == len;
            let step = self.chunk(Access::NONE, |p| {
                let index = self.next_receive(p)?;
                self.receive(p, index, src, len, from, n)?;
                if last {
                    self.still_there()?;
                    self.complete_receive(index, WcStatus::SUCCESS, WcOpcode::RECV, len, imm);
                }
                Ok(())
            });
            if let Err(outcome) = step {
                return outcome;
            }
            *done += n;
            if last {
                return Outcome::Done {
                    byte_len: len as u32,
                };
            }
        }
    }

    /// The number of the receive that comes next, if one is posted.
    fn next_receive(&self, p: Permission) -> Result<u64, Stop> {
        let row = self.row;
        let next = self
            .lane
            .recv_done()
            .load(Ordering::Relaxed)
            .max(row.recv_base().load(Ordering::Acquire));
        if row.recv_posted().load(Ordering::Acquire) <= next {
            return Err(Stop::NoReceive(
                (row.domain().load(Ordering::Relaxed) >> 32) as u8 & 31,
            ));
        }
        debug_assert!(matches!(p.state, QpState::Rtr | QpState::Rts));
        Ok(next)
    }

    /// Places a chunk of a SEND into the buffer of receive `index`.
    fn receive(
        &self,
        p: Permission,
        index: u64,
        src: Source<'_>,
        len: usize,
        from: usize,
        n: usize,
    ) -> Result<(), Stop> {
        let [addr, len_key, ..] = recv_record(self.ctl, self.path.slot, index);
        let (addr, len_key) = (
            addr.load(Ordering::Relaxed),
            len_key.load(Ordering::Relaxed),
        );
        let refuse = |status, nak| {
            self.complete_receive(index, status, WcOpcode::RECV, 0, None);
            Err(Stop::Nak(nak, p.generation))
        };
        if len > (len_key as u32) as usize {
            return refuse(WcStatus::LOC_LEN_ERR, Nak::InvalidRequest);
        }
        if len == 0 {
            return Ok(());
        }
        let place = RemoteAddr {
            addr,
            rkey: (len_key >> 32) as u32,
        };
        match self.translate(p, place, len, Access::LOCAL_WRITE) {
            Ok((memory, at)) => {
                self.writer.mark(memory.id(), at + from, n, true);
                src.place(from, n, memory.words(), at + from);
                Ok(())
            }
            Err(_) => refuse(WcStatus::LOC_PROT_ERR, Nak::Operation),
        }
    }

    /// Before the target is told that bytes are there: they went to its memory and not to the pages that a fence put in
    /// its place.
    fn still_there(&self) -> Result<(), Stop> {
        if self.path.view.gone.load(Ordering::Acquire) {
            return Err(Stop::Gone);
        }
        Ok(())
    }

    /// Tells the target that receive `index` is complete.
    fn complete_receive(
        &self,
        index: u64,
        status: WcStatus,
        opcode: WcOpcode,
        len: usize,
        imm: Option<u32>,
    ) {
        let [head, tail, ..] = inbound_record(self.path.view.lane.words(), self.path.slot, index);
        let flags = u64::from(imm.is_some()) << 32;
        head.store(
            flags | u64::from(opcode.0 & 0xffff) << 8 | u64::from(status.0 & 0xff),
            Ordering::Relaxed,
        );
        tail.store(
            u64::from(imm.unwrap_or(0)) << 32 | len as u64,
            Ordering::Relaxed,
        );
        self.lane.recv_done().store(index + 1, Ordering::Release);
    }

    fn atomic(&self, local: Piece<'_>, remote: RemoteAddr, action: Action) -> Outcome {
        let mut old = 0;
        let step = self.chunk(Access::REMOTE_ATOMIC, |p| {
            if !remote.addr.is_multiple_of(8) {
                return Err(Stop::Nak(Nak::InvalidRequest, p.generation));
            }
            let (memory, at) = self.translate(p, remote, 8, Access::REMOTE_ATOMIC)?;
            self.writer.mark(memory.id(), at, 8, true);
            let word = &memory.words()[at / 8];
            old = match action {
                Action::FetchAdd(add) => word.fetch_add(add, Ordering::SeqCst),
                Action::CompareSwap { compare, swap } => word
                    .compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst)
                    .unwrap_or_else(|now| now),
            };
            Ok(())
        });
        if let Err(outcome) = step {
            return outcome;
        }
        copy::bytes_to_words(local.reg.memory.words(), local.at, &old.to_ne_bytes());
        Outcome::Done { byte_len: 8 }
    }
}

fn local(status: WcStatus) -> Outcome {
    if status.is_success() {
        Outcome::Done { byte_len: 0 }
    } else {
        Outcome::Failed(status)
    }
}
