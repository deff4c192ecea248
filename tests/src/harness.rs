//! What a case stands on: fresh contexts, two connected ends, memory with known contents, and waits that end.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::rights::Local;
use mu_verbs::{
    Access, AsyncEvent, Atomicity, Capabilities, Completion, CompletionQueue, Context, Memory,
    MemoryRegion, Modify, Mtu, Payload, PostError, QpCap, QpControl, QpState, QueuePair, RecvWr,
    RemoteAddr, RtrAttr, RtsAttr, SendFlags, SendOp, SendWr, Sge, WORD, WcOpcode, WcStatus,
};

/// A completion is asked for.
pub const SIGNALED: SendFlags = SendFlags::SIGNALED;
/// No completion is asked for.
pub const UNSIGNALED: SendFlags = SendFlags::NONE;
/// Every right a region or queue pair can give a peer, but for binding windows.
pub const REMOTE: Access =
    Access(Access::REMOTE_WRITE.0 | Access::REMOTE_READ.0 | Access::REMOTE_ATOMIC.0);
/// Where data goes in the usual test: off the page's start, and not a multiple of any packet size.
pub const AT: usize = 4096 + 8;
/// The number of the requests that the harness posts itself.
const MARK: u64 = 0x006d_6172_6b00_0000;

/// Why a case did not run: the backend lacks something.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// Ends the case as skipped.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

/// What a backend needs of the suite, beyond its capabilities.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// The longest any one wait lasts.
    pub limit: Duration,
    /// The longest a whole case lasts.
    pub case_limit: Duration,
    /// How long to look for what must not come.
    pub quiet: Duration,
    /// How long to look for late words after a revocation.
    pub watch: Duration,
    /// Revocations in a storm.
    pub rounds: u32,
    /// Packet size of connections that do not ask for another.
    pub mtu: Mtu,
    /// Time-outs that give up as soon as is safe on a busy machine.
    pub impatient: RtsAttr,
    /// Requests to a peer that is not ready wait for it. The fake provider waits for nothing.
    pub waits: bool,
    /// Any range of bytes can be registered, as with `ibv_reg_mr(3)`. The fake provider wants whole words.
    pub byte_ranges: bool,
    /// A queue takes exactly what its capacities say, and a request holds its slot until its completion was polled.
    /// Devices may have more room than they say, and free a slot before that.
    pub exact_queues: bool,
}

impl Traits {
    /// For backends that live in this process or on this host.
    pub const SOFT: Self = Self {
        limit: Duration::from_secs(5),
        case_limit: Duration::from_secs(60),
        quiet: Duration::from_millis(2),
        watch: Duration::from_millis(5),
        rounds: 30,
        mtu: Mtu::B1024,
        impatient: RtsAttr {
            timeout: 8,
            retry_cnt: 2,
            rnr_retry: 1,
            max_rd_atomic: 16,
        },
        waits: true,
        byte_ranges: true,
        exact_queues: true,
    };
    /// For broken backends, where waits that end in vain are the rule.
    pub const BROKEN: Self = Self {
        limit: Duration::from_secs(1),
        case_limit: Duration::from_secs(20),
        ..Self::SOFT
    };
    /// For devices, emulated machines included.
    pub const NIC: Self = Self {
        limit: Duration::from_secs(20),
        case_limit: Duration::from_secs(180),
        quiet: Duration::from_millis(50),
        watch: Duration::from_millis(20),
        rounds: 30,
        mtu: Mtu::B1024,
        impatient: RtsAttr {
            timeout: 13,
            retry_cnt: 3,
            rnr_retry: 1,
            max_rd_atomic: 16,
        },
        waits: true,
        byte_ranges: true,
        exact_queues: false,
    };
}

/// Opens two contexts that can reach each other.
pub type Open<C> = Arc<dyn Fn() -> Result<(C, C)> + Send + Sync>;

/// One case's surroundings.
pub struct Setup<C: Context> {
    /// The context that mostly asks.
    pub a: C,
    /// The context that mostly answers.
    pub b: C,
    /// What the backend needs.
    pub traits: Traits,
    open: Open<C>,
    rng: Cell<u64>,
    notes: RefCell<Vec<String>>,
}

impl<C: Context> Setup<C> {
    /// Opens fresh contexts.
    ///
    /// # Errors
    /// Whatever opening says.
    pub fn new(open: Open<C>, traits: Traits, seed: u64) -> Result<Self> {
        let (a, b) = open().context("opening two contexts")?;
        Ok(Self {
            a,
            b,
            traits,
            open,
            rng: Cell::new(seed),
            notes: RefCell::default(),
        })
    }

    /// Another two contexts.
    ///
    /// # Errors
    /// Whatever opening says.
    pub fn open(&self) -> Result<(C, C)> {
        (self.open)()
    }

    /// What the answering device can do.
    pub fn caps(&self) -> &Capabilities {
        self.b.caps()
    }

    /// Skips the case unless the devices have atomics.
    ///
    /// # Errors
    /// The skip.
    pub fn needs_atomics(&self) -> Result<()> {
        match self.caps().atomicity {
            Atomicity::None => skip("no atomics"),
            _ => Ok(()),
        }
    }

    /// Skips the case unless there are memory windows.
    ///
    /// # Errors
    /// The skip.
    pub fn needs_windows(&self) -> Result<()> {
        if self.caps().memory_windows {
            Ok(())
        } else {
            skip("no type-2 memory windows")
        }
    }

    /// Skips the case unless requests to a peer that is not ready wait.
    ///
    /// # Errors
    /// The skip.
    pub fn needs_waiting(&self) -> Result<()> {
        if self.traits.waits {
            Ok(())
        } else {
            skip("a request to a peer that is not ready fails at once")
        }
    }

    /// Something the report shows under the case.
    pub fn note(&self, text: impl Into<String>) {
        self.notes.borrow_mut().push(text.into());
    }

    /// Takes the notes.
    pub fn take_notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// The next number of the case's random sequence (SplitMix64).
    pub fn random(&self) -> u64 {
        self.rng
            .set(self.rng.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        mix(self.rng.get())
    }

    /// The sizes every operation is tried with, in bytes: around words, cache lines and packets, and one of many
    /// packets.
    pub fn sizes(&self) -> [usize; 11] {
        let mtu = self.traits.mtu.bytes();
        [0, 1, 3, 8, 63, 64, 65, mtu - 1, mtu, mtu + 1, 1 << 20]
    }

    /// The usual sizes and rights.
    pub fn cfg(&self) -> Cfg {
        let atomic = if self.caps().atomicity == Atomicity::None {
            Access::NONE
        } else {
            Access::REMOTE_ATOMIC
        };
        let remote = Access::REMOTE_WRITE | Access::REMOTE_READ | atomic;
        Cfg {
            cap: QpCap {
                max_send_wr: 64,
                max_recv_wr: 64,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 64,
            },
            cq_depth: 256,
            bytes: 64 << 10,
            mr: remote | Access::LOCAL_WRITE,
            qp: remote,
            mtu: self.traits.mtu,
            min_rnr_timer: 12,
            rts: RtsAttr::default(),
            impatient: self.traits.impatient,
        }
    }

    /// Two connected ends of the usual sizes and rights.
    ///
    /// # Errors
    /// The verb's error.
    pub fn link(&self) -> Result<Link<C>> {
        self.link_with(|_| ())
    }

    /// Two connected ends, the usual sizes and rights changed by `change`.
    ///
    /// # Errors
    /// The verb's error.
    pub fn link_with(&self, change: impl FnOnce(&mut Cfg)) -> Result<Link<C>> {
        let mut cfg = self.cfg();
        change(&mut cfg);
        let mut link = Link {
            a: self.end(&self.a, &cfg)?,
            b: self.end(&self.b, &cfg)?,
            cfg,
        };
        link.connect()?;
        Ok(link)
    }

    /// An end that is not connected, its queue pair in RESET.
    ///
    /// # Errors
    /// The verb's error.
    pub fn end(&self, ctx: &C, cfg: &Cfg) -> Result<End<C>> {
        let pd = ctx.alloc_pd()?;
        let memory = ctx.alloc_memory(cfg.bytes)?;
        self.end_in(ctx, &pd, &memory, cfg)
    }

    /// The same, in a protection domain and on a memory that there already are.
    ///
    /// # Errors
    /// The verb's error.
    pub fn end_in(&self, ctx: &C, pd: &C::Pd, memory: &Memory, cfg: &Cfg) -> Result<End<C>> {
        let mr = ctx.reg_mr(pd, memory, 0..memory.len(), cfg.mr)?;
        let send_cq = ctx.create_cq(cfg.cq_depth)?;
        let recv_cq = ctx.create_cq(cfg.cq_depth)?;
        let qp = ctx.create_qp(pd, &send_cq, &recv_cq, &cfg.cap)?;
        let memory = memory.clone();
        Ok(End {
            qp,
            send_cq,
            recv_cq,
            mr,
            memory,
            pd: pd.clone(),
            ctx: ctx.clone(),
            traits: self.traits,
        })
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `len` bytes that depend on `seed` and place, so that a byte in the wrong place is seen.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(WORD) as u64)
        .flat_map(|i| mix(seed ^ i.wrapping_mul(0x9e37)).to_le_bytes());
    words.take(len).collect()
}

/// Gives the core away after a while of finding nothing: there may be fewer cores than threads.
#[derive(Default)]
pub struct Idle(u32);

impl Idle {
    /// Called after each try that found nothing.
    pub fn wait(&mut self) {
        self.0 += 1;
        if self.0 < 64 {
            std::hint::spin_loop()
        } else {
            std::thread::yield_now()
        }
    }
}

/// Polls until `found` gives something or the limit is over; then `None`.
pub fn until<T>(limit: Duration, mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let (end, mut idle) = (Instant::now() + limit, Idle::default());
    loop {
        if let Some(value) = found() {
            return Some(value);
        }
        if Instant::now() >= end {
            // The other side may have had no core at all until now.
            return found();
        }
        idle.wait();
    }
}

/// Lets `time` go by, giving the core away.
pub fn pause(time: Duration) {
    until::<()>(time, || None);
}

/// What a pair of ends is made with.
#[derive(Clone, Copy, Debug)]
pub struct Cfg {
    /// Queue sizes.
    pub cap: QpCap,
    /// Depth of each completion queue.
    pub cq_depth: u32,
    /// Memory of each end.
    pub bytes: usize,
    /// Rights of the registration of each end's whole memory.
    pub mr: Access,
    /// Rights of each end's queue pair.
    pub qp: Access,
    /// Packet size.
    pub mtu: Mtu,
    /// How long a sender waits for a receive, as a code.
    pub min_rnr_timer: u8,
    /// Time-outs.
    pub rts: RtsAttr,
    /// The time-outs of [`impatient`](Self::impatient).
    pub impatient: RtsAttr,
}

impl Cfg {
    /// Time-outs that give up soon.
    pub fn impatient(&mut self) {
        self.rts = self.impatient;
        self.min_rnr_timer = 1;
    }
}

/// One end: a queue pair with a completion queue for each direction, and registered memory.
pub struct End<C: Context> {
    /// The queue pair.
    pub qp: C::Qp,
    /// Completions of sends.
    pub send_cq: C::Cq,
    /// Completions of receives.
    pub recv_cq: C::Cq,
    /// The whole memory, registered.
    pub mr: C::Mr,
    /// The memory.
    pub memory: Memory,
    /// The domain of all of it.
    pub pd: C::Pd,
    /// The context of all of it.
    pub ctx: C,
    traits: Traits,
}

impl<C: Context> End<C> {
    /// The place of byte `offset` of the memory, for the peer.
    pub fn at(&self, offset: usize) -> RemoteAddr {
        self.mr.remote(offset)
    }

    /// Its state.
    ///
    /// # Errors
    /// The verb's error.
    pub fn state(&self) -> Result<QpState> {
        Ok(self.qp.control().state()?)
    }

    /// A change of its queue pair.
    ///
    /// # Errors
    /// The verb's error.
    pub fn modify(&self, change: &Modify) -> Result<()> {
        self.qp
            .control()
            .modify(change)
            .with_context(|| format!("modify to {}", change.name()))
    }

    /// Another registration of its whole memory.
    ///
    /// # Errors
    /// The verb's error.
    pub fn register(&self, access: Access) -> Result<C::Mr> {
        self.register_range(0..self.memory.len(), access)
    }

    /// Another registration of part of its memory.
    ///
    /// # Errors
    /// The verb's error.
    pub fn register_range(&self, range: Range<usize>, access: Access) -> Result<C::Mr> {
        Ok(self.ctx.reg_mr(&self.pd, &self.memory, range, access)?)
    }

    /// To INIT with these rights.
    ///
    /// # Errors
    /// The verb's error.
    pub fn init(&self, access: Access) -> Result<()> {
        self.modify(&Modify::Init(access))
    }

    /// From INIT to RTR towards `peer`.
    ///
    /// # Errors
    /// The verb's error.
    pub fn rtr(&self, peer: &Self, cfg: &Cfg) -> Result<()> {
        let remote = peer.qp.control().endpoint();
        let attr = RtrAttr {
            path_mtu: cfg.mtu,
            min_rnr_timer: cfg.min_rnr_timer,
            ..RtrAttr::new(remote)
        };
        self.modify(&Modify::Rtr(attr))
    }

    /// From RTR to RTS.
    ///
    /// # Errors
    /// The verb's error.
    pub fn rts(&self, cfg: &Cfg) -> Result<()> {
        self.modify(&Modify::Rts(cfg.rts))
    }

    /// Posts `op`.
    ///
    /// # Errors
    /// The post's error.
    pub fn post(
        &mut self,
        wr_id: u64,
        op: SendOp<'_, C::Mr, C::Mw>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.qp.post_send(&SendWr { wr_id, op, flags })
    }

    /// Posts a WRITE of `len` bytes from byte `from` of the memory.
    ///
    /// # Errors
    /// The post's error.
    pub fn write(
        &mut self,
        wr_id: u64,
        from: usize,
        len: usize,
        remote: RemoteAddr,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let local = [Sge::new(&self.mr, from, len)];
        let op = SendOp::Write {
            payload: Payload::Regions(&local),
            remote,
            imm: None,
        };
        self.qp.post_send(&SendWr { wr_id, op, flags })
    }

    /// Posts a signalled WRITE with immediate data.
    ///
    /// # Errors
    /// The post's error.
    pub fn write_imm(
        &mut self,
        wr_id: u64,
        from: usize,
        len: usize,
        remote: RemoteAddr,
        imm: u32,
    ) -> Result<(), PostError> {
        let local = [Sge::new(&self.mr, from, len)];
        let op = SendOp::Write {
            payload: Payload::Regions(&local),
            remote,
            imm: Some(imm),
        };
        self.qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SIGNALED,
        })
    }

    /// Posts an inline WRITE.
    ///
    /// # Errors
    /// The post's error.
    pub fn write_inline(
        &mut self,
        wr_id: u64,
        bytes: &[u8],
        remote: RemoteAddr,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(
            wr_id,
            SendOp::Write {
                payload: Payload::Inline(bytes),
                remote,
                imm: None,
            },
            flags,
        )
    }

    /// Posts a signalled READ of `len` bytes to byte `to` of the memory.
    ///
    /// # Errors
    /// The post's error.
    pub fn read(
        &mut self,
        wr_id: u64,
        to: usize,
        len: usize,
        remote: RemoteAddr,
    ) -> Result<(), PostError> {
        let local = [Sge::new(&self.mr, to, len)];
        self.qp.post_send(&SendWr {
            wr_id,
            op: SendOp::Read {
                local: &local,
                remote,
            },
            flags: SIGNALED,
        })
    }

    /// Posts a SEND of `len` bytes from byte `from` of the memory.
    ///
    /// # Errors
    /// The post's error.
    pub fn send(
        &mut self,
        wr_id: u64,
        from: usize,
        len: usize,
        imm: Option<u32>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let local = [Sge::new(&self.mr, from, len)];
        self.qp.post_send(&SendWr {
            wr_id,
            op: SendOp::Send {
                payload: Payload::Regions(&local),
                imm,
            },
            flags,
        })
    }

    /// Posts a signalled compare-and-swap; the old value goes to byte `to` of the memory.
    ///
    /// # Errors
    /// The post's error.
    pub fn compare_swap(
        &mut self,
        wr_id: u64,
        to: usize,
        remote: RemoteAddr,
        compare: u64,
        swap: u64,
    ) -> Result<(), PostError> {
        let op = SendOp::CompareSwap {
            local: Sge::new(&self.mr, to, WORD),
            remote,
            compare,
            swap,
        };
        self.qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SIGNALED,
        })
    }

    /// Posts a signalled fetch-and-add; the old value goes to byte `to` of the memory.
    ///
    /// # Errors
    /// The post's error.
    pub fn fetch_add(
        &mut self,
        wr_id: u64,
        to: usize,
        remote: RemoteAddr,
        add: u64,
    ) -> Result<(), PostError> {
        let op = SendOp::FetchAdd {
            local: Sge::new(&self.mr, to, WORD),
            remote,
            add,
        };
        self.qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SIGNALED,
        })
    }

    /// Posts a receive of `len` bytes to byte `to` of the memory; with no bytes at all, one without pieces.
    ///
    /// # Errors
    /// The post's error.
    pub fn recv(&mut self, wr_id: u64, to: usize, len: usize) -> Result<(), PostError> {
        let local = [Sge::new(&self.mr, to, len)];
        let local = if len == 0 { &local[..0] } else { &local[..] };
        self.qp.post_recv(&RecvWr { wr_id, local })
    }

    /// The next `n` completions of sends.
    ///
    /// # Errors
    /// They did not come in time.
    pub fn sent(&mut self, n: usize) -> Result<Vec<Completion>> {
        let Self { send_cq, qp, .. } = self;
        take(send_cq, qp.control(), n, self.traits.limit).context("waiting for send completions")
    }

    /// The next `n` completions of receives.
    ///
    /// # Errors
    /// They did not come in time.
    pub fn received(&mut self, n: usize) -> Result<Vec<Completion>> {
        let Self { recv_cq, qp, .. } = self;
        take(recv_cq, qp.control(), n, self.traits.limit).context("waiting for receive completions")
    }

    /// The next send completion, which must be `wr_id`'s success.
    ///
    /// # Errors
    /// It is not, or did not come.
    pub fn done(&mut self, wr_id: u64) -> Result<Completion> {
        self.ends(wr_id, WcStatus::SUCCESS)
    }

    /// The next send completion, which must be `wr_id`'s, with this status.
    ///
    /// # Errors
    /// It is not, or did not come.
    pub fn ends(&mut self, wr_id: u64, status: WcStatus) -> Result<Completion> {
        let c = self.sent(1)?[0];
        expect(&c, wr_id, status)?;
        ensure!(
            c.qp_num == self.qp.control().qp_num(),
            "the completion names QP {}",
            c.qp_num
        );
        Ok(c)
    }

    /// The next receive completion, which must be `wr_id`'s, with this status.
    ///
    /// # Errors
    /// It is not, or did not come.
    pub fn receives(&mut self, wr_id: u64, status: WcStatus) -> Result<Completion> {
        let c = self.received(1)?[0];
        expect(&c, wr_id, status)?;
        ensure!(
            c.qp_num == self.qp.control().qp_num(),
            "the completion names QP {}",
            c.qp_num
        );
        Ok(c)
    }

    /// Fails if a completion comes within a while.
    ///
    /// # Errors
    /// One came.
    pub fn quiet(&mut self) -> Result<()> {
        let mut one = [Completion::EMPTY];
        let Self {
            send_cq, recv_cq, ..
        } = self;
        let extra = until(self.traits.quiet, || {
            (send_cq.poll(&mut one) + recv_cq.poll(&mut one) > 0).then_some(one[0])
        });
        match extra {
            None => Ok(()),
            Some(c) => bail!("a completion that nobody asked for: {c:?}"),
        }
    }

    /// Waits until the queue pair is in `state`.
    ///
    /// # Errors
    /// It does not get there.
    pub fn reaches(&self, state: QpState) -> Result<()> {
        let there = until(self.traits.limit, || {
            (self.state().ok()? == state).then_some(())
        });
        ensure!(
            there.is_some(),
            "QP {} should get to {state:?}, is in {:?}",
            self.qp.control().qp_num(),
            self.state()
        );
        Ok(())
    }

    /// To ERR and to RESET, since a queue pair that may be receiving should not be reset. Completions that a device
    /// leaves behind are thrown away.
    ///
    /// # Errors
    /// The verb's error.
    pub fn reset(&mut self) -> Result<()> {
        if self.state()? == QpState::Reset {
            return Ok(());
        }
        self.modify(&Modify::Err)?;
        self.modify(&Modify::Reset)?;
        let mut polled = [Completion::EMPTY; 16];
        while self.send_cq.poll(&mut polled) + self.recv_cq.poll(&mut polled) > 0 {}
        Ok(())
    }

    /// Fills the whole memory with a pattern and returns what it holds then.
    pub fn scribble(&self, seed: u64) -> Vec<u8> {
        let image = pattern(seed, self.memory.len());
        self.memory.write_bytes(0, &image);
        image
    }

    /// What the memory holds.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; self.memory.len()];
        self.memory.read_bytes(0, &mut image);
        image
    }

    /// The memory must hold exactly this, now.
    ///
    /// # Errors
    /// Where it does not.
    pub fn holds(&self, want: &[u8]) -> Result<()> {
        difference(want, &self.image())
    }

    /// The memory must hold exactly this, soon: the word of a peer's NIC may become visible after its completion.
    ///
    /// # Errors
    /// Where it does not.
    pub fn comes_to_hold(&self, want: &[u8]) -> Result<()> {
        match until(self.traits.limit.min(Duration::from_secs(1)), || {
            self.holds(want).ok()
        }) {
            Some(()) => Ok(()),
            None => self.holds(want),
        }
    }

    /// A word of the memory, by its byte offset.
    pub fn word(&self, at: usize) -> u64 {
        self.memory.load(at / WORD)
    }

    /// Sets a word of the memory, by its byte offset.
    pub fn set_word(&self, at: usize, value: u64) {
        self.memory.store(at / WORD, value);
    }

    /// Waits for an asynchronous event of this queue pair that `wanted` knows.
    pub fn event(&self, wanted: impl Fn(AsyncEvent) -> bool) -> Result<Option<AsyncEvent>> {
        let mut failed = None;
        let event = until(self.traits.limit.min(Duration::from_secs(1)), || match self
            .ctx
            .poll_async_event()
        {
            Ok(event) => event.filter(|e| wanted(*e)).map(Some),
            Err(e) => {
                failed = Some(e);
                Some(None)
            }
        });
        match failed {
            Some(e) => Err(e.into()),
            None => Ok(event.flatten()),
        }
    }

    /// Lends the end to a method of a peer's right.
    pub fn lend<T>(&mut self, work: impl FnOnce(&mut Local<'_, C>) -> T) -> T {
        let (deadline, mut idle) = (Instant::now() + self.traits.limit, Idle::default());
        let mut keep_waiting = || {
            idle.wait();
            Instant::now() < deadline
        };
        work(&mut Local {
            qp: &mut self.qp,
            send_cq: &mut self.send_cq,
            recv_cq: Some(&mut self.recv_cq),
            wr_id: MARK,
            other: &mut |_| (),
            keep_waiting: &mut keep_waiting,
        })
    }
}

/// Takes `n` completions from `cq`.
///
/// # Errors
/// They did not come in time; the message has those that did and the state of the queue pair.
pub fn take<Q: CompletionQueue>(
    cq: &mut Q,
    control: &impl QpControl,
    n: usize,
    limit: Duration,
) -> Result<Vec<Completion>> {
    let mut got = Vec::with_capacity(n);
    let mut one = [Completion::EMPTY];
    let all = until(limit, || {
        while got.len() < n && cq.poll(&mut one) == 1 {
            got.push(one[0]);
        }
        (got.len() == n).then_some(())
    });
    if all.is_none() {
        bail!(
            "{} of {n} came in {limit:?}, QP {} is in {:?}; they are {got:?}",
            got.len(),
            control.qp_num(),
            control.state()
        );
    }
    Ok(got)
}

/// The completion must be `wr_id`'s, with this status.
///
/// # Errors
/// It is not.
pub fn expect(c: &Completion, wr_id: u64, status: WcStatus) -> Result<()> {
    ensure!(
        c.wr_id == wr_id && c.status == status,
        "expected request {wr_id} to end with {status}, got {c:?}"
    );
    Ok(())
}

/// The completions must be the flush of these requests, in this order.
///
/// # Errors
/// They are not.
pub fn flushed(completions: &[Completion], ids: impl IntoIterator<Item = u64>) -> Result<()> {
    let ids: Vec<u64> = ids.into_iter().collect();
    let got: Vec<u64> = completions.iter().map(|c| c.wr_id).collect();
    ensure!(
        got == ids,
        "flushed in the order {got:?}, posted in the order {ids:?}"
    );
    for c in completions {
        expect(c, c.wr_id, WcStatus::WR_FLUSH_ERR)?;
    }
    Ok(())
}

/// The completion must be of this kind.
///
/// # Errors
/// It is not.
pub fn kind(c: &Completion, opcode: WcOpcode) -> Result<()> {
    ensure!(
        c.opcode == opcode,
        "expected a completion of {opcode:?}, got {c:?}"
    );
    Ok(())
}

fn difference(want: &[u8], got: &[u8]) -> Result<()> {
    let Some(first) = want.iter().zip(got).position(|(w, g)| w != g) else {
        return Ok(());
    };
    let count = want.iter().zip(got).filter(|(w, g)| w != g).count();
    bail!(
        "{count} bytes differ, the first at {first}: {:#04x} instead of {:#04x}",
        got[first],
        want[first]
    )
}

/// Two connected ends.
pub struct Link<C: Context> {
    /// The one that mostly asks.
    pub a: End<C>,
    /// The one that mostly answers.
    pub b: End<C>,
    /// What both were made with.
    pub cfg: Cfg,
}

impl<C: Context> Link<C> {
    /// Connects both ends, from RESET.
    ///
    /// # Errors
    /// The verb's error.
    pub fn connect(&mut self) -> Result<()> {
        self.connect_with(self.cfg.qp)
    }

    /// Connects both ends, from RESET, with these rights on the answering queue pair.
    ///
    /// # Errors
    /// The verb's error.
    pub fn connect_with(&mut self, rights: Access) -> Result<()> {
        let Self { a, b, cfg } = self;
        a.init(cfg.qp)?;
        b.init(rights)?;
        a.rtr(b, cfg)?;
        b.rtr(a, cfg)?;
        a.rts(cfg)?;
        b.rts(cfg)
    }

    /// Takes both ends through ERR and RESET and connects them anew.
    ///
    /// # Errors
    /// The verb's error.
    pub fn reconnect(&mut self) -> Result<()> {
        self.a.reset()?;
        self.b.reset()?;
        self.connect()
    }

    /// One WRITE each way must work.
    ///
    /// # Errors
    /// What went wrong.
    pub fn works(&mut self) -> Result<()> {
        let Self { a, b, .. } = self;
        one_write(a, b).context("a WRITE of the asking end")?;
        one_write(b, a).context("a WRITE of the answering end")
    }

    /// Both ends must be in ERR.
    ///
    /// # Errors
    /// They are not.
    pub fn both_failed(&self) -> Result<()> {
        self.a.reaches(QpState::Err).context("the asking end")?;
        self.b.reaches(QpState::Err).context("the answering end")
    }

    /// Posts one request on `a` that must end with `status`, leave `b`'s memory as it is and both ends in ERR.
    ///
    /// # Errors
    /// What is not so.
    pub fn refused(
        &mut self,
        status: WcStatus,
        post: impl FnOnce(&mut End<C>, &End<C>) -> Result<(), PostError>,
    ) -> Result<()> {
        let before = self.b.image();
        post(&mut self.a, &self.b)?;
        let c = self.a.sent(1)?[0];
        ensure!(c.status == status, "expected {status}, got {c:?}");
        self.b
            .holds(&before)
            .context("memory changed by a refused request")?;
        self.both_failed()
    }
}

/// One WRITE of a fresh word from one end to the other.
///
/// # Errors
/// What went wrong.
pub fn one_write<C: Context>(from: &mut End<C>, to: &End<C>) -> Result<()> {
    const PLACE: usize = 2048;
    let value = mix(to.word(PLACE) ^ 0x55);
    from.set_word(PLACE, value);
    from.write(MARK, PLACE, WORD, to.at(PLACE), SIGNALED)?;
    from.done(MARK)?;
    let there = until(Duration::from_secs(1), || {
        (to.word(PLACE) == value).then_some(())
    });
    ensure!(there.is_some(), "a completed write is not there");
    Ok(())
}
