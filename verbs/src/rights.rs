//! One peer's right to a range of one memory: granted, and taken away by a method the device offers.
//!
//! # Mechanism
//!
//! A right is made of two locks, and the peer can write only while both are open: the access flags of the queue pair
//! it writes through, and a registration (or window) of the memory that belongs to this peer alone, with its own key.
//! Each [`RevokeMethod`] closes one of them. A right that has its own registration can be taken away without touching
//! any other peer's right to the same bytes.
//!
//! # Ordering
//!
//! The contract is: **once [`PeerRight::revoke_fully`] has returned `Ok`, no byte from that peer lands in the range
//! until [`PeerRight::grant`] is called again.** It rests on the device's word for the method used
//! ([`Capabilities::revoke`](crate::Capabilities::revoke)): a method marked [`Barrier::Yes`] returns only after every
//! access it forbids is over. A method that is no barrier is still worth calling first, since it is fast and cuts the
//! stream; the barrier that follows then has little left to wait for.
//!
//! A method that fails half-way leaves the right in [`RightState::Unknown`]: the peer may or may not be able to
//! write. A further revocation, by another method, leads out of it. A grant that fails half-way does the same, so a
//! caller that gets an error always revokes. A bind or invalidation whose completion was not seen may still run, so
//! the window it names is not trusted any more: the next step takes it away.
//!
//! # Connecting again
//!
//! The flags of a queue pair are set by its change to INIT as well, and that is its owner's, not seen here. The
//! contract holds only if the owner brings it to INIT with [`PeerRight::init_access`], always; rights come by
//! [`PeerRight::grant`] alone. Where the flags are the barrier, a revocation leaves the registration and its key
//! alive (that is what makes the next grant fast): a queue pair that is brought to INIT with more than that, or given
//! flags by anybody else, gives the right back without a grant, and [`PeerRight::state`] does not know. Where that
//! cannot be excluded, revoke by [`RevokeMethod::Reregister`], after which no flags open anything.
//!
//! There is no clock here: what a method takes is measured by the caller, and how long to wait for a completion is the
//! caller's answer ([`Local::keep_waiting`]).

use std::io;
use std::ops::Range;

use crate::{
    Access, Barrier, Completion, CompletionQueue, Context, Error, Memory, MemoryRegion,
    MemoryWindow, Modify, PostError, QpControl, QpState, QueuePair, RecvWr, RemoteAddr,
    RevokeMethod, SendFlags, SendOp, SendWr, WcStatus, next_rkey,
};

/// Every right a peer can have.
const REMOTE: Access =
    Access(Access::REMOTE_WRITE.0 | Access::REMOTE_READ.0 | Access::REMOTE_ATOMIC.0);
/// The bits of a request's number by which an own request is known.
const OWN: u64 = !(u32::MAX as u64);
/// The rights by which a peer changes bytes.
const CHANGING: Access = Access(Access::REMOTE_WRITE.0 | Access::REMOTE_ATOMIC.0);

/// What carries the key that the peer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// A registration of its own (`ibv_reg_mr(3)`).
    Region,
    /// A type-2 window on a registration of its own (`ibv_alloc_mw(3)`), bound through the queue pair the peer uses.
    Window,
}

/// What a right allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RightAttr {
    /// What the peer may do while the right is granted. [`Access::LOCAL_WRITE`] is added where the registration needs
    /// it.
    pub access: Access,
    /// The queue pair's flags that stay when the right is gone. None by which a peer changes bytes.
    pub qp_kept: Access,
    /// What carries the key.
    pub through: Through,
}

impl RightAttr {
    /// To write and read, through a registration; nothing stays after a revocation.
    pub const LOG: Self = Self {
        access: Access(Access::REMOTE_WRITE.0 | Access::REMOTE_READ.0),
        qp_kept: Access::NONE,
        through: Through::Region,
    };
}

/// What the peer must use to reach the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Address of the first byte, and the key.
    pub remote: RemoteAddr,
    /// Bytes.
    pub len: usize,
}

/// Where a right stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RightState {
    /// The peer may use it.
    Granted,
    /// Taken away by a barrier, or never granted: nothing lands.
    Fenced,
    /// Taken away by a method that is no barrier: what was under way may still land.
    Leaking,
    /// A change failed half-way: the peer may or may not get through.
    Unknown,
}

/// One method that was tried.
#[derive(Debug)]
pub struct Step {
    /// Which.
    pub method: RevokeMethod,
    /// What it was worth, or why it failed.
    pub outcome: Result<Barrier, RightError>,
}

/// A revocation that is done.
#[derive(Debug)]
pub struct Revoked {
    /// The method that counts: the last one tried.
    pub method: RevokeMethod,
    /// Whether it was a barrier.
    pub barrier: Barrier,
    /// Everything that was tried, in order, `method` included.
    pub steps: Vec<Step>,
}

/// Why a right could not be granted or taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RightError {
    /// A verb failed.
    #[error(transparent)]
    Verb(#[from] Error),
    /// The queue pair is not in RTS: connect it first (after a revocation by [`RevokeMethod::QpCycle`] always), to INIT
    /// with [`PeerRight::init_access`]. Flags cannot be changed in RTR on a NIC.
    #[error("grant on QP {qp_num}: it is in {state:?}; bring it to RTS first")]
    NotConnected {
        /// The queue pair.
        qp_num: u32,
        /// Its state.
        state: QpState,
    },
    /// The method posts requests, and no queue pair was lent for them.
    #[error("{what} posts on the local queue pair, and none was lent")]
    NeedsQueuePair {
        /// The method, or `a window's grant`.
        what: &'static str,
    },
    /// The method does not fit this right or this device.
    #[error("revocation by {method} is not offered: {why}")]
    Unsupported {
        /// The method.
        method: RevokeMethod,
        /// Why not.
        why: &'static str,
    },
    /// The completion of an own request did not come before the caller stopped waiting.
    #[error("{verb}: its completion did not come in time")]
    NoCompletion {
        /// What was waited for.
        verb: &'static str,
    },
    /// An earlier registration or window could not be taken away, and its key works as long as the flags of the queue
    /// pair let it.
    #[error(
        "a registration or window lives on, open to the peer of QP {qp_num}: destroy that queue pair"
    )]
    Leaked {
        /// The queue pair.
        qp_num: u32,
    },
    /// Every method was tried and none was a barrier: what was under way may still land.
    #[error("not revoked for certain, no barrier among: {}", list(.steps))]
    NoBarrier {
        /// What was tried.
        steps: Vec<Step>,
    },
}

impl From<PostError> for RightError {
    fn from(e: PostError) -> Self {
        Self::Verb(e.into())
    }
}

fn list(steps: &[Step]) -> String {
    let one = |s: &Step| match &s.outcome {
        Ok(worth) => format!("{} (done, barrier: {worth:?})", s.method),
        Err(e) => format!("{} ({e})", s.method),
    };
    steps.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The local end of the connection, lent to the methods that post requests of their own on it.
pub struct Local<'a, C: Context> {
    /// The queue pair the peer writes through.
    pub qp: &'a mut C::Qp,
    /// Its send completion queue.
    pub send_cq: &'a mut C::Cq,
    /// Its receive completion queue, if it is another one.
    pub recv_cq: Option<&'a mut C::Cq>,
    /// The upper 32 bits of the own requests' numbers; the lower ones are counted by the right. Nothing else
    /// outstanding on the queue pair may have these upper bits.
    pub wr_id: u64,
    /// Gets the completions of other requests that turn up meanwhile.
    pub other: &'a mut dyn FnMut(Completion),
    /// Asked after every poll without the own completion, however many others came: whether to go on waiting. The
    /// caller's clock, and its yielding, are in it.
    pub keep_waiting: &'a mut dyn FnMut() -> bool,
}

/// Counts own requests, so that none is taken for a later one whose completion came late.
#[derive(Default)]
struct Requests(u32);

impl<C: Context> Local<'_, C> {
    /// The number of the next own request.
    fn number(&self, requests: &mut Requests) -> u64 {
        requests.0 = requests.0.wrapping_add(1);
        self.wr_id & OWN | u64::from(requests.0)
    }

    /// Posts `op` as the own request `wr_id` and waits for its completion.
    fn request(
        &mut self,
        verb: &'static str,
        wr_id: u64,
        op: SendOp<'_, C::Mr, C::Mw>,
    ) -> Result<(), RightError> {
        self.qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SendFlags::SIGNALED,
        })?;
        match self.completion(verb, wr_id, false)? {
            WcStatus::SUCCESS => Ok(()),
            status => Err(Error::Request { verb, status }.into()),
        }
    }

    /// Takes the queue pair to ERR and waits until its receive queue has been flushed up to a marker. The responder
    /// flushes after its last access, so a responder that was in the middle of a packet is through then. The marker
    /// is posted before, since Soft-RoCE does not look at what is posted in ERR; without one (the queue is full, or
    /// the queue pair has failed already) there is nothing to wait for but the change itself.
    fn drain(&mut self, wr_id: u64) -> Result<(), RightError> {
        let failed = self.qp.control().state()? == QpState::Err;
        let marked = !failed && self.qp.post_recv(&RecvWr { wr_id, local: &[] }).is_ok();
        self.qp.control().modify(&Modify::Err)?;
        if marked {
            self.completion("drain of a queue pair in ERR", wr_id, true)?;
        }
        Ok(())
    }

    /// Waits for the completion of the own request `wr_id`.
    fn completion(
        &mut self,
        verb: &'static str,
        wr_id: u64,
        receive: bool,
    ) -> Result<WcStatus, RightError> {
        loop {
            match self.poll(wr_id, receive) {
                (Some(status), _) => return Ok(status),
                (None, Some(errno)) => {
                    return Err(RightError::Verb(Error::Verb {
                        verb: "ibv_poll_cq",
                        source: io::Error::from_raw_os_error(errno),
                        detail: format!(", while the completion of {verb} was waited for"),
                    }));
                }
                (None, None) if !(self.keep_waiting)() => {
                    return Err(RightError::NoCompletion { verb });
                }
                (None, None) => {}
            }
        }
    }

    /// Polls once: the status of the own request `wr_id` if it is there, and the queue's error if it has failed. Own
    /// requests that were given up before are passed over.
    fn poll(&mut self, wr_id: u64, receive: bool) -> (Option<WcStatus>, Option<i32>) {
        let mut polled = [Completion::EMPTY; 16];
        let qp_num = self.qp.control().qp_num();
        let cq = match &mut self.recv_cq {
            Some(cq) if receive => &mut **cq,
            _ => &mut *self.send_cq,
        };
        let n = cq.poll(&mut polled);
        let mut own = None;
        for c in &polled[..n] {
            if c.qp_num != qp_num || c.wr_id & OWN != wr_id & OWN {
                (self.other)(*c);
            } else if c.wr_id == wr_id {
                own = Some(c.status);
            }
        }
        (own, cq.error())
    }
}

/// One peer's right to a range of one memory (see the module).
pub struct PeerRight<C: Context> {
    // Windows go before the registration they are bound to.
    mw: Option<C::Mw>,
    mr: Option<C::Mr>,
    /// Whether `mw` is bound.
    bound: bool,
    /// Whether `mr` carries the peer's rights now (it does not after `ibv_rereg_mr`).
    open: bool,
    /// Whether `mw` is bound, or will be by a request that is still queued, is not known: its queue pair went through
    /// RESET, or a bind or invalidation was posted and has not been seen to succeed.
    stale: bool,
    /// A registration or window could not be taken away and may live on: its key works as long as the flags let it.
    leaked: bool,
    state: RightState,
    requests: Requests,
    attr: RightAttr,
    range: Range<usize>,
    memory: Memory,
    control: C::Control,
    pd: C::Pd,
    ctx: C,
}

impl<C: Context> PeerRight<C> {
    /// A right that is not granted yet, to the bytes `range` of `memory`, for the peer that `control`'s queue pair is
    /// connected to. The queue pair belongs to this right: its flags are set by it, and its owner brings it to INIT
    /// with [`init_access`](Self::init_access) and nothing more, now and whenever it connects again.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `attr.qp_kept` holds a right by which a peer changes bytes, `attr.access` holds no right
    /// of a peer, or `range` is empty or not inside the memory; [`Error::Unsupported`] for a window where the device
    /// has none.
    pub fn new(
        ctx: &C,
        pd: &C::Pd,
        control: &C::Control,
        memory: &Memory,
        range: Range<usize>,
        attr: RightAttr,
    ) -> Result<Self, Error> {
        let invalid = |what: String| {
            Err(Error::Invalid {
                verb: "PeerRight::new",
                what,
            })
        };
        if attr.qp_kept & CHANGING != Access::NONE {
            return invalid(format!(
                "{:?} would stay with the peer after a revocation",
                attr.qp_kept
            ));
        }
        if !attr.access.any_remote() {
            return invalid(format!("{:?} gives a peer no right", attr.access));
        }
        let Range { start, end } = range;
        if start >= end || end > memory.len() {
            let len = memory.len();
            return invalid(format!("bytes {start}..{end} of a memory of {len} bytes"));
        }
        if attr.through == Through::Window && !ctx.caps().memory_windows {
            let device = ctx.caps().device.clone();
            return Err(Error::Unsupported {
                verb: "ibv_alloc_mw",
                device,
                what: "type-2 memory windows",
            });
        }
        Ok(Self {
            mw: None,
            mr: None,
            bound: false,
            open: false,
            stale: false,
            leaked: false,
            state: RightState::Fenced,
            requests: Requests::default(),
            attr,
            range,
            memory: memory.clone(),
            control: control.clone(),
            pd: pd.clone(),
            ctx: ctx.clone(),
        })
    }

    /// Where the right stands, as far as this right did it: changes of the queue pair's flags by others (a change to
    /// INIT with more than [`init_access`](Self::init_access)) are not seen.
    pub fn state(&self) -> RightState {
        self.state
    }

    /// The flags with which the queue pair is to be brought to INIT ([`Modify::Init`]) while the right is not granted.
    pub fn init_access(&self) -> Access {
        self.attr.qp_kept
    }

    /// Grants the right and returns what the peer must use. The key is the old one where the device could keep it.
    /// `local` is needed for a right through a window only.
    ///
    /// # Errors
    /// [`RightError::NotConnected`] (the queue pair is not in RTS), [`RightError::NeedsQueuePair`] and a state that
    /// could not be queried, before anything was changed. After any other error the right is [`RightState::Unknown`]:
    /// revoke it.
    pub fn grant(&mut self, local: Option<&mut Local<'_, C>>) -> Result<Grant, RightError> {
        let state = self.control.state()?;
        if state != QpState::Rts {
            return Err(RightError::NotConnected {
                qp_num: self.control.qp_num(),
                state,
            });
        }
        if self.attr.through == Through::Window && local.is_none() {
            return Err(RightError::NeedsQueuePair {
                what: "a window's grant",
            });
        }
        self.state = RightState::Unknown;
        self.open_region()?;
        if let (Through::Window, Some(local)) = (self.attr.through, local) {
            self.bind(local)?;
        }
        // The flags come last, so that nothing gets in through a right that is half made.
        self.control.modify(&Modify::Access(
            self.attr.qp_kept | (self.attr.access & REMOTE),
        ))?;
        self.state = RightState::Granted;
        Ok(Grant {
            remote: self.remote(),
            len: self.range.len(),
        })
    }

    /// Takes the right away by one method. The result says whether that was a barrier; if not, what was under way may
    /// still land. [`RevokeMethod::QpCycle`] and [`RevokeMethod::Window`] need `local`. Doing it again does no harm.
    ///
    /// # Errors
    /// The method is not offered, or failed; the right is not granted any more, but [`RightState::Unknown`] unless it
    /// was already taken away before.
    pub fn revoke(
        &mut self,
        method: RevokeMethod,
        local: Option<&mut Local<'_, C>>,
    ) -> Result<Revoked, RightError> {
        let barrier = self.apply(method, local)?;
        Ok(Revoked {
            method,
            barrier,
            steps: vec![Step {
                method,
                outcome: Ok(barrier),
            }],
        })
    }

    /// Takes the right away for certain: the queue pair's flags first, since they are fast, and then, unless they are
    /// a barrier, the fastest method that is one; a method that fails is followed by the next. With no `local`, the
    /// methods that post requests are left out.
    ///
    /// Where the flags were the barrier, they alone keep the peer out afterwards, so it lasts as long as nobody else
    /// opens them (see the module, "Connecting again").
    ///
    /// # Errors
    /// [`RightError::NoBarrier`], with what was tried: the peer's bytes may still land. Destroying the queue pair is
    /// what is left then.
    pub fn revoke_fully(
        &mut self,
        mut local: Option<&mut Local<'_, C>>,
    ) -> Result<Revoked, RightError> {
        let mut steps = Vec::with_capacity(RevokeMethod::ALL.len());
        for method in RevokeMethod::ALL {
            let worth = self.worth(method);
            let first = method == RevokeMethod::QpFlags && worth != Barrier::Unsupported;
            let posts = matches!(method, RevokeMethod::QpCycle | RevokeMethod::Window);
            if !(first || worth == Barrier::Yes) || (posts && local.is_none()) {
                continue;
            }
            let outcome = self.apply(method, local.as_deref_mut());
            let done = matches!(outcome, Ok(Barrier::Yes));
            steps.push(Step { method, outcome });
            if done {
                return Ok(Revoked {
                    method,
                    barrier: Barrier::Yes,
                    steps,
                });
            }
        }
        Err(RightError::NoBarrier { steps })
    }

    /// Takes the right away by deregistering, and reports.
    ///
    /// # Errors
    /// The verb's error, the registration is leaked then; [`RightError::Leaked`] if that happened to an earlier one.
    /// Either way the peer is kept out by the queue pair only.
    pub fn close(mut self) -> Result<(), RightError> {
        self.close_region()?;
        if self.leaked {
            return Err(RightError::Leaked {
                qp_num: self.control.qp_num(),
            });
        }
        Ok(())
    }

    /// What `method` is worth on this device, for this right.
    fn worth(&self, method: RevokeMethod) -> Barrier {
        let fits = match method {
            RevokeMethod::Window => self.attr.through == Through::Window && !self.leaked,
            RevokeMethod::Reregister => !self.leaked,
            RevokeMethod::QpFlags | RevokeMethod::QpCycle => true,
        };
        if fits {
            self.ctx.caps().revoke.of(method)
        } else {
            Barrier::Unsupported
        }
    }

    /// One method, with the state kept true whatever happens.
    fn apply(
        &mut self,
        method: RevokeMethod,
        local: Option<&mut Local<'_, C>>,
    ) -> Result<Barrier, RightError> {
        let worth = self.worth(method);
        if worth == Barrier::Unsupported {
            let why = match (self.ctx.caps().revoke.of(method), self.leaked) {
                (Barrier::Unsupported, _) => "the device has it not",
                (_, true) => "an earlier registration could not be taken away and may live on",
                _ => "the right goes through a region, not a window",
            };
            return Err(RightError::Unsupported { method, why });
        }
        let before = self.state;
        // No method adds a right, so what was taken away before stays away even if this one fails.
        if before == RightState::Granted {
            self.state = RightState::Unknown;
        }
        match method {
            RevokeMethod::QpFlags => self.control.modify(&Modify::Access(self.attr.qp_kept))?,
            RevokeMethod::Reregister => self.withdraw()?,
            RevokeMethod::QpCycle => {
                self.cycle(local.ok_or(RightError::NeedsQueuePair {
                    what: "a queue pair's cycle",
                })?)?;
            }
            RevokeMethod::Window => {
                self.invalidate(local.ok_or(RightError::NeedsQueuePair {
                    what: "a window's invalidation",
                })?)?;
            }
        }
        let fenced = worth == Barrier::Yes || before == RightState::Fenced;
        self.state = if fenced {
            RightState::Fenced
        } else {
            RightState::Leaking
        };
        Ok(worth)
    }

    /// Takes the peer's registration away, its window with it.
    fn withdraw(&mut self) -> Result<(), RightError> {
        let local_only = self.registered().without(REMOTE);
        let in_place = self.ctx.caps().rereg_mr && self.ctx.caps().rereg_is_barrier;
        if let (Through::Region, true, Some(mr)) = (self.attr.through, in_place, &mut self.mr)
            && mr.reregister(local_only).is_ok()
        {
            self.open = false;
            return Ok(());
        }
        self.close_region()
    }

    /// Deregisters. A region that cannot be closed is leaked with its key alive, so from then on only the queue pair
    /// can keep the peer out.
    fn close_region(&mut self) -> Result<(), RightError> {
        (self.bound, self.open, self.stale) = (false, false, false);
        let window = self.mw.take().map_or(Ok(()), MemoryWindow::close);
        let region = self.mr.take().map_or(Ok(()), MemoryRegion::close);
        self.leaked |= window.is_err() || region.is_err();
        Ok(window.and(region)?)
    }

    /// ERR, drained, and RESET: a queue pair that is receiving should not be reset (kernel Soft-RoCE breaks it). One
    /// that is in RESET is reset again: whoever brought it there may not have waited as this does.
    fn cycle(&mut self, local: &mut Local<'_, C>) -> Result<(), RightError> {
        self.stale = true;
        if self.control.state()? != QpState::Reset {
            let wr_id = local.number(&mut self.requests);
            local.drain(wr_id)?;
        }
        Ok(self.control.modify(&Modify::Reset)?)
    }

    /// Invalidates the window. One that may yet be bound by a request that is still queued is taken away, and its
    /// region: a bind that runs later fails then.
    fn invalidate(&mut self, local: &mut Local<'_, C>) -> Result<(), RightError> {
        if self.stale {
            return self.close_region();
        }
        let Some(mw) = self.mw.as_ref().filter(|_| self.bound) else {
            return Ok(());
        };
        self.stale = true;
        let wr_id = local.number(&mut self.requests);
        local.request(
            "IBV_WR_LOCAL_INV",
            wr_id,
            SendOp::LocalInv { rkey: mw.rkey() },
        )?;
        (self.bound, self.stale) = (false, false);
        Ok(())
    }

    /// The rights of the registration itself.
    fn registered(&self) -> Access {
        let local = if self.attr.access & CHANGING == Access::NONE {
            Access::NONE
        } else {
            Access::LOCAL_WRITE
        };
        match self.attr.through {
            Through::Region => self.attr.access | local,
            Through::Window => self.attr.access.without(REMOTE) | local | Access::MW_BIND,
        }
    }

    fn open_region(&mut self) -> Result<(), RightError> {
        let access = self.registered();
        match &mut self.mr {
            Some(_) if self.open => {}
            Some(mr) => mr.reregister(access)?,
            None => {
                self.mr =
                    Some(
                        self.ctx
                            .reg_mr(&self.pd, &self.memory, self.range.clone(), access)?,
                    )
            }
        }
        self.open = true;
        Ok(())
    }

    fn bind(&mut self, local: &mut Local<'_, C>) -> Result<(), RightError> {
        // Whether a window stays bound over RESET differs between devices, and whether a bind that was given up runs
        // is not known; a new window is unbound on all.
        if std::mem::take(&mut self.stale) {
            self.bound = false;
            self.leaked |= self.mw.take().is_some_and(|mw| mw.close().is_err());
        }
        if self.bound {
            return Ok(());
        }
        if self.mw.is_none() {
            self.mw = Some(self.ctx.alloc_mw(&self.pd)?);
        }
        let (Some(mw), Some(mr)) = (&self.mw, &self.mr) else {
            unreachable!("both were made above")
        };
        let (rkey, access) = (next_rkey(mw.rkey()), self.attr.access & REMOTE);
        self.stale = true;
        let wr_id = local.number(&mut self.requests);
        local.request(
            "IBV_WR_BIND_MW",
            wr_id,
            SendOp::BindMw {
                mw,
                rkey,
                mr,
                offset: 0,
                len: self.range.len(),
                access,
            },
        )?;
        (self.bound, self.stale) = (true, false);
        Ok(())
    }

    /// The place as the peer uses it, while granted.
    fn remote(&self) -> RemoteAddr {
        let mr = self.mr.as_ref().expect("a granted right is registered");
        let key = match self.attr.through {
            Through::Region => mr.rkey(),
            Through::Window => self.mw.as_ref().expect("a granted window exists").rkey(),
        };
        RemoteAddr {
            addr: mr.addr(),
            rkey: key,
        }
    }
}
