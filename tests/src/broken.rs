//! A wrapper around a backend that breaks one rule at a time: the negative control of the suite. Every [`Mutation`]
//! must make some case fail, and none of them, [`Mutation::Nothing`], must make none fail.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mu_verbs::{
    Access, AsyncEvent, Capabilities, Completion, CompletionQueue, Context, Endpoint, Error,
    Memory, MemoryRegion, MemoryWindow, Modify, Payload, PostError, QpCap, QpControl, QpState,
    QueuePair, RecvWr, RemoteAddr, SendFlags, SendOp, SendWr, Sge, WORD, WcOpcode, WcStatus, Wr,
};

use crate::harness::REMOTE;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing: the wrapper itself must not be what fails.
    Nothing,
    /// The queue pair's flags allow everything.
    FlagsNotChecked,
    /// Every region allows everything.
    RegionRightsNotChecked,
    /// Every region reaches over its whole memory.
    BoundsNotChecked,
    /// There is but one protection domain.
    DomainsNotChecked,
    /// Atomics at odd addresses are rounded down.
    MisalignedAtomics,
    /// A WRITE completes without placing a byte.
    NothingPlaced,
    /// The last byte of a WRITE is not placed.
    LastByteLost,
    /// A WRITE of part of a word writes all of it.
    WholeWords,
    /// An unsignalled inline WRITE is carried out after the request behind it.
    WriteOvertaken,
    /// A compare-and-swap swaps whatever it finds: it is done as a WRITE.
    CompareIgnored,
    /// Every request makes a completion.
    UnsignalledCompletes,
    /// Flushed requests complete last first.
    FlushReversed,
    /// Flushed requests do not complete, but for the first.
    FlushLost,
    /// Flushed requests complete as if they had been carried out.
    FlushSucceeds,
    /// A refused key and a refused operation look alike.
    StatusMixedUp,
    /// Every request is reported as carried out.
    AllSucceeds,
    /// Silence of the peer is never reported.
    SilenceKept,
    /// Immediate data does not arrive.
    ImmLost,
    /// The length of a receive is one too many.
    ByteLenWrong,
    /// Only 32 bits of the request's number come back.
    WrIdTruncated,
    /// A receive that is too short is reported as good.
    ShortReceiveSucceeds,
    /// A request posted in the wrong state vanishes.
    WrongStateIgnored,
    /// A request beyond the queue's depth vanishes.
    QueueFullIgnored,
    /// The queue is said to be deeper than it is.
    DepthOverstated,
    /// Inline data beyond the limit vanishes.
    InlineLimitIgnored,
    /// A list that fails says that nothing was queued.
    ListCountWrong,
    /// A change of state that is not allowed is reported as made.
    TransitionsAccepted,
    /// A queue pair that has failed says that it is well.
    FailureHidden,
    /// Each connection starts with the same sequence number.
    PsnConstant,
    /// Asynchronous events are lost.
    EventsLost,
    /// Deregistration leaves the key alive.
    KeyOutlivesRegion,
    /// Re-registration does nothing.
    ReregisterIgnored,
    /// Invalidation of a window does nothing.
    InvalidationIgnored,
    /// A window allows everything.
    WindowRightsNotChecked,
    /// A bind that failed is reported as good.
    FailedBindSucceeds,
    /// A change of the flags is reported before it is made: late words.
    FlagsLate,
    /// Deregistration is reported before it is made: late words.
    DeregistrationLate,
}

impl Mutation {
    /// All that break something.
    pub const ALL: [Self; 37] = [
        Self::FlagsNotChecked,
        Self::RegionRightsNotChecked,
        Self::BoundsNotChecked,
        Self::DomainsNotChecked,
        Self::MisalignedAtomics,
        Self::NothingPlaced,
        Self::LastByteLost,
        Self::WholeWords,
        Self::WriteOvertaken,
        Self::CompareIgnored,
        Self::UnsignalledCompletes,
        Self::FlushReversed,
        Self::FlushLost,
        Self::FlushSucceeds,
        Self::StatusMixedUp,
        Self::AllSucceeds,
        Self::SilenceKept,
        Self::ImmLost,
        Self::ByteLenWrong,
        Self::WrIdTruncated,
        Self::ShortReceiveSucceeds,
        Self::WrongStateIgnored,
        Self::QueueFullIgnored,
        Self::DepthOverstated,
        Self::InlineLimitIgnored,
        Self::ListCountWrong,
        Self::TransitionsAccepted,
        Self::FailureHidden,
        Self::PsnConstant,
        Self::EventsLost,
        Self::KeyOutlivesRegion,
        Self::ReregisterIgnored,
        Self::InvalidationIgnored,
        Self::WindowRightsNotChecked,
        Self::FailedBindSucceeds,
        Self::FlagsLate,
        Self::DeregistrationLate,
    ];
}

/// How late what is late comes.
const LATE: Duration = Duration::from_millis(2);

/// A context with one thing broken.
#[derive(Clone)]
pub struct Broken<C: Context> {
    inner: C,
    how: Mutation,
    caps: Arc<Capabilities>,
    only_pd: Arc<OnceLock<C::Pd>>,
}

impl<C: Context> Broken<C> {
    /// Breaks `how` in `inner`.
    pub fn new(inner: C, how: Mutation) -> Self {
        let mut caps = inner.caps().clone();
        // Re-registration changes a region in place and cannot be put off; without it, regions are closed.
        caps.rereg_mr &= how != Mutation::DeregistrationLate;
        Self {
            inner,
            how,
            caps: Arc::new(caps),
            only_pd: Arc::default(),
        }
    }
}

/// A region with something broken.
pub struct BrokenMr<C: Context> {
    /// There until it is closed or dropped.
    inner: Option<C::Mr>,
    how: Mutation,
    /// As asked for, not as registered.
    range: Range<usize>,
    access: Access,
}

/// A window with something broken.
pub struct BrokenMw<C: Context> {
    inner: C::Mw,
}

/// Completions that the wrapper makes up.
type MadeUp = Arc<Mutex<VecDeque<Completion>>>;

/// A completion queue with something broken.
pub struct BrokenCq<C: Context> {
    inner: C::Cq,
    how: Mutation,
    made_up: MadeUp,
    /// Polled and not handed out yet.
    held: VecDeque<Completion>,
    /// A flushed request was seen.
    flushed: bool,
}

/// A queue pair with something broken.
pub struct BrokenQp<C: Context> {
    inner: C::Qp,
    control: BrokenControl<C>,
    how: Mutation,
    made_up: MadeUp,
    /// An inline WRITE that waits for the request behind it.
    overtaken: Option<(u64, Vec<u8>, RemoteAddr)>,
}

/// A control side with something broken.
pub struct BrokenControl<C: Context> {
    inner: C::Control,
    how: Mutation,
}

impl<C: Context> Clone for BrokenControl<C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            how: self.how,
        }
    }
}

fn open_wide(access: Access) -> Access {
    if access.is_registrable() {
        access | REMOTE | Access::LOCAL_WRITE
    } else {
        access
    }
}

fn lock(made_up: &MadeUp) -> MutexGuard<'_, VecDeque<Completion>> {
    made_up.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` in a while.
fn later(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        std::thread::sleep(LATE);
        work();
    });
}

impl<C: Context> BrokenMr<C> {
    fn inner(&self) -> &C::Mr {
        self.inner
            .as_ref()
            .expect("a region is there until it is closed")
    }

    /// Bytes from the start of what is registered to the start of what was asked for.
    fn shift(&self) -> usize {
        self.range.start - self.inner().range().start
    }

    fn end(&mut self) -> Result<(), Error> {
        match (self.how, self.inner.take()) {
            (Mutation::KeyOutlivesRegion, Some(inner)) => std::mem::forget(inner),
            (Mutation::DeregistrationLate, Some(inner)) => later(move || drop(inner)),
            (_, Some(inner)) => return inner.close(),
            (_, None) => {}
        }
        Ok(())
    }
}

impl<C: Context> Drop for BrokenMr<C> {
    fn drop(&mut self) {
        // As with any region, an error on the way out has nowhere to go.
        let _ = self.end();
    }
}

impl<C: Context> MemoryRegion for BrokenMr<C> {
    fn memory(&self) -> &Memory {
        self.inner().memory()
    }
    fn range(&self) -> Range<usize> {
        self.range.clone()
    }
    fn addr(&self) -> u64 {
        self.inner().addr() + self.shift() as u64
    }
    fn lkey(&self) -> u32 {
        self.inner().lkey()
    }
    fn rkey(&self) -> u32 {
        self.inner().rkey()
    }
    fn access(&self) -> Access {
        self.access
    }
    fn reregister(&mut self, access: Access) -> Result<(), Error> {
        let inner = self
            .inner
            .as_mut()
            .expect("a region is there until it is closed");
        match self.how {
            Mutation::ReregisterIgnored if access.is_registrable() => {}
            Mutation::RegionRightsNotChecked => inner.reregister(open_wide(access))?,
            Mutation::DeregistrationLate => {
                let device = String::from("broken");
                return Err(Error::Unsupported {
                    verb: "ibv_rereg_mr",
                    device,
                    what: "re-registration",
                });
            }
            _ => inner.reregister(access)?,
        }
        self.access = access;
        Ok(())
    }
    fn close(mut self) -> Result<(), Error> {
        self.end()
    }
}

impl<C: Context> MemoryWindow for BrokenMw<C> {
    fn rkey(&self) -> u32 {
        self.inner.rkey()
    }
    fn close(self) -> Result<(), Error> {
        self.inner.close()
    }
}

impl<C: Context> BrokenCq<C> {
    /// Takes all there is from the queue below and breaks it.
    fn fetch(&mut self) {
        let mut polled = [Completion::EMPTY; 64];
        let mut fetched: Vec<_> = lock(&self.made_up).drain(..).collect();
        loop {
            let n = self.inner.poll(&mut polled);
            fetched.extend_from_slice(&polled[..n]);
            if n == 0 {
                break;
            }
        }
        if self.how == Mutation::FlushReversed {
            let first = fetched
                .iter()
                .position(|c| c.status == WcStatus::WR_FLUSH_ERR)
                .unwrap_or(fetched.len());
            fetched[first..].reverse();
        }
        for c in fetched {
            let broken = self.broken(c);
            self.held.extend(broken);
        }
    }

    fn broken(&mut self, mut c: Completion) -> Option<Completion> {
        let flush = c.status == WcStatus::WR_FLUSH_ERR;
        let again = self.flushed;
        self.flushed |= flush;
        match self.how {
            Mutation::FlushLost if flush && again => return None,
            Mutation::SilenceKept if c.status == WcStatus::RETRY_EXC_ERR => return None,
            Mutation::FlushSucceeds if flush => c.status = WcStatus::SUCCESS,
            Mutation::StatusMixedUp if c.status == WcStatus::REM_INV_REQ_ERR => {
                c.status = WcStatus::REM_ACCESS_ERR
            }
            Mutation::AllSucceeds => c.status = WcStatus::SUCCESS,
            Mutation::ShortReceiveSucceeds if c.status == WcStatus::LOC_LEN_ERR => {
                c.status = WcStatus::SUCCESS
            }
            Mutation::FailedBindSucceeds if c.status == WcStatus::MW_BIND_ERR => {
                (c.status, c.opcode) = (WcStatus::SUCCESS, WcOpcode::BIND_MW);
            }
            Mutation::ImmLost => c.imm_data = None,
            Mutation::ByteLenWrong => c.byte_len += 1,
            Mutation::WrIdTruncated => c.wr_id &= u64::from(u32::MAX),
            _ => {}
        }
        Some(c)
    }
}

impl<C: Context> CompletionQueue for BrokenCq<C> {
    fn poll(&mut self, out: &mut [Completion]) -> usize {
        self.fetch();
        let n = out.len().min(self.held.len());
        for (slot, c) in out.iter_mut().zip(self.held.drain(..n)) {
            *slot = c;
        }
        n
    }
    fn error(&self) -> Option<i32> {
        self.inner.error()
    }
}

impl<C: Context> QpControl for BrokenControl<C> {
    fn qp_num(&self) -> u32 {
        self.inner.qp_num()
    }
    fn endpoint(&self) -> Endpoint {
        let endpoint = self.inner.endpoint();
        if self.how == Mutation::PsnConstant {
            Endpoint { psn: 1, ..endpoint }
        } else {
            endpoint
        }
    }
    fn state(&self) -> Result<QpState, Error> {
        match self.inner.state()? {
            QpState::Err if self.how == Mutation::FailureHidden => Ok(QpState::Rts),
            state => Ok(state),
        }
    }
    fn modify(&self, change: &Modify) -> Result<(), Error> {
        let wide = match *change {
            Modify::Init(access) => Modify::Init(access | REMOTE),
            Modify::Access(access) => Modify::Access(access | REMOTE),
            other => other,
        };
        match (self.how, *change) {
            (Mutation::FlagsNotChecked, _) => self.inner.modify(&wide),
            (Mutation::TransitionsAccepted, _) => match self.inner.modify(change) {
                Err(e) if e.errno() == 22 => Ok(()),
                other => other,
            },
            (Mutation::FlagsLate, Modify::Access(access)) if access & REMOTE == Access::NONE => {
                let (control, change) = (self.inner.clone(), *change);
                later(move || drop(control.modify(&change)));
                Ok(())
            }
            _ => self.inner.modify(change),
        }
    }
}

/// A request for the queue pair below, with its pieces kept where it can borrow them.
fn below<'x, 'a: 'x, C: Context>(
    how: Mutation,
    wr: &Wr<'a, Broken<C>>,
    pieces: &'x mut Vec<Sge<'a, C::Mr>>,
) -> Wr<'x, C> {
    let map = |s: &Sge<'a, BrokenMr<C>>| {
        Sge::new(s.mr.inner(), s.offset.saturating_add(s.mr.shift()), s.len)
    };
    match wr.op {
        SendOp::Write {
            payload: Payload::Regions(list),
            ..
        }
        | SendOp::Send {
            payload: Payload::Regions(list),
            ..
        } => {
            pieces.extend(list.iter().map(map));
        }
        SendOp::Read { local, .. } => pieces.extend(local.iter().map(map)),
        SendOp::CompareSwap { local, .. } | SendOp::FetchAdd { local, .. } => {
            pieces.push(map(&local))
        }
        _ => {}
    }
    if let (SendOp::Write { .. }, [.., last]) = (&wr.op, &mut pieces[..]) {
        match how {
            Mutation::NothingPlaced => pieces.clear(),
            Mutation::LastByteLost => last.len = last.len.saturating_sub(1),
            Mutation::WholeWords => last.len = last.len.next_multiple_of(WORD),
            _ => {}
        }
    }
    let pieces = &pieces[..];
    let payload_of = |payload| match payload {
        Payload::Inline(bytes) => Payload::Inline(bytes),
        Payload::Regions(_) => Payload::Regions(pieces),
    };
    let aligned = |remote: RemoteAddr| match how {
        Mutation::MisalignedAtomics => RemoteAddr {
            addr: remote.addr & !7,
            ..remote
        },
        _ => remote,
    };
    let op = match wr.op {
        SendOp::Write {
            payload,
            remote,
            imm,
        } => SendOp::Write {
            payload: payload_of(payload),
            remote,
            imm,
        },
        SendOp::Send { payload, imm } => SendOp::Send {
            payload: payload_of(payload),
            imm,
        },
        SendOp::Read { remote, .. } => SendOp::Read {
            local: pieces,
            remote,
        },
        SendOp::CompareSwap {
            remote,
            compare,
            swap,
            ..
        } => SendOp::CompareSwap {
            local: pieces[0],
            remote: aligned(remote),
            compare,
            swap,
        },
        SendOp::FetchAdd { remote, add, .. } => SendOp::FetchAdd {
            local: pieces[0],
            remote: aligned(remote),
            add,
        },
        SendOp::BindMw {
            mw,
            rkey,
            mr,
            offset,
            len,
            access,
        } => {
            let wide = if how == Mutation::WindowRightsNotChecked {
                access | REMOTE
            } else {
                access
            };
            let offset = offset + mr.shift();
            SendOp::BindMw {
                mw: &mw.inner,
                rkey,
                mr: mr.inner(),
                offset,
                len,
                access: wide,
            }
        }
        SendOp::LocalInv { rkey } => SendOp::LocalInv { rkey },
    };
    let flags = if how == Mutation::UnsignalledCompletes {
        wr.flags | SendFlags::SIGNALED
    } else {
        wr.flags
    };
    SendWr {
        wr_id: wr.wr_id,
        op,
        flags,
    }
}

/// The errors that a mutation hides.
fn hidden(how: Mutation, result: Result<(), PostError>) -> Result<(), PostError> {
    match (how, &result) {
        (Mutation::WrongStateIgnored, Err(PostError::WrongState { .. }))
        | (Mutation::QueueFullIgnored, Err(PostError::QueueFull { .. }))
        | (Mutation::InlineLimitIgnored, Err(PostError::InlineTooLong { .. })) => Ok(()),
        _ => result,
    }
}

impl<C: Context> BrokenQp<C> {
    fn make_up(&self, wr_id: u64, opcode: WcOpcode) {
        let c = Completion {
            wr_id,
            opcode,
            qp_num: self.inner.control().qp_num(),
            ..Completion::EMPTY
        };
        lock(&self.made_up).push_back(c);
    }

    /// What is done otherwise than by passing a changed request on.
    fn instead(&mut self, wr: &Wr<'_, Broken<C>>) -> Option<Result<(), PostError>> {
        match (self.how, wr.op) {
            (Mutation::InvalidationIgnored, SendOp::LocalInv { .. }) => {
                self.make_up(wr.wr_id, WcOpcode::LOCAL_INV);
                Some(Ok(()))
            }
            (Mutation::CompareIgnored, SendOp::CompareSwap { remote, swap, .. }) => {
                let bytes = swap.to_le_bytes();
                let op = SendOp::Write {
                    payload: Payload::Inline(&bytes),
                    remote,
                    imm: None,
                };
                Some(self.inner.post_send(&SendWr {
                    wr_id: wr.wr_id,
                    op,
                    flags: wr.flags,
                }))
            }
            (
                Mutation::WriteOvertaken,
                SendOp::Write {
                    payload: Payload::Inline(bytes),
                    remote,
                    imm: None,
                },
            ) if !wr.flags.contains(SendFlags::SIGNALED) && self.overtaken.is_none() => {
                self.overtaken = Some((wr.wr_id, bytes.to_vec(), remote));
                Some(Ok(()))
            }
            _ => None,
        }
    }
}

impl<C: Context> QueuePair<Broken<C>> for BrokenQp<C> {
    fn control(&self) -> &BrokenControl<C> {
        &self.control
    }
    fn cap(&self) -> QpCap {
        let mut cap = self.inner.cap();
        cap.max_send_wr += u32::from(self.how == Mutation::DepthOverstated);
        cap
    }
    fn post_send(&mut self, wr: &Wr<'_, Broken<C>>) -> Result<(), PostError> {
        if let Some(done) = self.instead(wr) {
            return done;
        }
        let mut pieces = Vec::new();
        let result = self.inner.post_send(&below(self.how, wr, &mut pieces));
        if let Some((wr_id, bytes, remote)) = self.overtaken.take() {
            let op = SendOp::Write {
                payload: Payload::Inline(&bytes),
                remote,
                imm: None,
            };
            self.inner.post_send(&SendWr {
                wr_id,
                op,
                flags: SendFlags::NONE,
            })?;
        }
        hidden(self.how, result)
    }
    fn post_send_list(&mut self, wrs: &[Wr<'_, Broken<C>>]) -> Result<(), (usize, PostError)> {
        let mut pieces: Vec<_> = wrs.iter().map(|_| Vec::new()).collect();
        let list: Vec<_> = wrs
            .iter()
            .zip(&mut pieces)
            .map(|(wr, pieces)| below(self.how, wr, pieces))
            .collect();
        match self.inner.post_send_list(&list) {
            Err((_, e)) if self.how == Mutation::ListCountWrong => Err((0, e)),
            other => other,
        }
    }
    fn post_recv(&mut self, wr: &RecvWr<'_, BrokenMr<C>>) -> Result<(), PostError> {
        let local: Vec<_> = wr
            .local
            .iter()
            .map(|s| Sge::new(s.mr.inner(), s.offset.saturating_add(s.mr.shift()), s.len))
            .collect();
        hidden(
            self.how,
            self.inner.post_recv(&RecvWr {
                wr_id: wr.wr_id,
                local: &local,
            }),
        )
    }
    fn close(self) -> Result<(), Error> {
        self.inner.close()
    }
}

impl<C: Context> Context for Broken<C> {
    type Pd = C::Pd;
    type Mr = BrokenMr<C>;
    type Mw = BrokenMw<C>;
    type Cq = BrokenCq<C>;
    type Qp = BrokenQp<C>;
    type Control = BrokenControl<C>;

    fn caps(&self) -> &Capabilities {
        &self.caps
    }
    fn alloc_memory(&self, bytes: usize) -> Result<Memory, Error> {
        self.inner.alloc_memory(bytes)
    }
    fn alloc_pd(&self) -> Result<C::Pd, Error> {
        let pd = self.inner.alloc_pd()?;
        Ok(if self.how == Mutation::DomainsNotChecked {
            self.only_pd.get_or_init(|| pd).clone()
        } else {
            pd
        })
    }
    fn reg_mr(
        &self,
        pd: &C::Pd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<BrokenMr<C>, Error> {
        let inside = range.start <= range.end && range.end <= memory.len();
        let registered = match self.how {
            Mutation::BoundsNotChecked if inside => 0..memory.len(),
            _ => range.clone(),
        };
        let wide = if self.how == Mutation::RegionRightsNotChecked {
            open_wide(access)
        } else {
            access
        };
        let inner = Some(self.inner.reg_mr(pd, memory, registered, wide)?);
        Ok(BrokenMr {
            inner,
            how: self.how,
            range,
            access,
        })
    }
    fn alloc_mw(&self, pd: &C::Pd) -> Result<BrokenMw<C>, Error> {
        Ok(BrokenMw {
            inner: self.inner.alloc_mw(pd)?,
        })
    }
    fn create_cq(&self, depth: u32) -> Result<BrokenCq<C>, Error> {
        let inner = self.inner.create_cq(depth)?;
        Ok(BrokenCq {
            inner,
            how: self.how,
            made_up: MadeUp::default(),
            held: VecDeque::new(),
            flushed: false,
        })
    }
    fn create_qp(
        &self,
        pd: &C::Pd,
        send_cq: &BrokenCq<C>,
        recv_cq: &BrokenCq<C>,
        cap: &QpCap,
    ) -> Result<BrokenQp<C>, Error> {
        let inner = self
            .inner
            .create_qp(pd, &send_cq.inner, &recv_cq.inner, cap)?;
        let control = BrokenControl {
            inner: inner.control().clone(),
            how: self.how,
        };
        Ok(BrokenQp {
            inner,
            control,
            how: self.how,
            made_up: send_cq.made_up.clone(),
            overtaken: None,
        })
    }
    fn poll_async_event(&self) -> Result<Option<AsyncEvent>, Error> {
        let event = self.inner.poll_async_event()?;
        Ok(event.filter(|_| self.how != Mutation::EventsLost))
    }
}
