//! The traits of `mu-verbs` over the world.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mu_verbs::{
    Access, AsyncEvent, Capabilities, Completion, CompletionQueue, Context, Endpoint, Error,
    Memory, MemoryRegion, MemoryWindow, QpCap, QpState,
};

use crate::hook::{self, Verb};
use crate::modify::QP_INDEX;
use crate::objects::{CqTable, Mem, QpTable, Region};
use crate::profile::{MAX_CQE, MAX_SGE, MAX_WR};
use crate::qp::{SimControl, SimQp};
use crate::state::State;

/// A completion queue that ran over.
const EOVERFLOW: i32 = 75;
/// Registrations in the life of a world: a key has this much room for their number.
const MAX_REGIONS: usize = 1 << 16;

/// The world, shared by its objects. One thread uses it; the lock is there because the traits want it to be shareable.
pub(crate) type Shared = Arc<Mutex<State>>;

pub(crate) fn lock(world: &Mutex<State>) -> MutexGuard<'_, State> {
    // A check that failed while it was held ends the run; what is dropped then must not fail again.
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node's opened device.
#[derive(Clone)]
pub struct SimContext {
    pub(crate) world: Shared,
    pub(crate) ctx: u32,
    pub(crate) id: u64,
    pub(crate) caps: Arc<Capabilities>,
}

impl SimContext {
    /// Its number in endpoints, and in [`Placed`](crate::Placed).
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// A protection domain.
#[derive(Clone, Debug)]
pub struct SimPd {
    ctx: u32,
    pd: u32,
}

/// A registration.
pub struct SimMr {
    pub(crate) world: Shared,
    device: u64,
    pub(crate) region: u32,
    memory: Memory,
    range: Range<usize>,
    addr: u64,
    key: u32,
    access: Access,
    open: bool,
}

/// Memory windows are not offered; there is no value of this type.
pub enum SimMw {}

/// A completion queue.
pub struct SimCq {
    world: Shared,
    device: u64,
    cq: u32,
}

fn limit(verb: &'static str, what: &'static str, asked: u64, limit: u64) -> Result<(), Error> {
    if asked > limit {
        return Err(Error::Limit {
            verb,
            what,
            asked,
            limit,
        });
    }
    Ok(())
}

impl Context for SimContext {
    type Pd = SimPd;
    type Mr = SimMr;
    type Mw = SimMw;
    type Cq = SimCq;
    type Qp = SimQp;
    type Control = SimControl;

    fn caps(&self) -> &Capabilities {
        &self.caps
    }

    fn alloc_memory(&self, bytes: usize) -> Result<Memory, Error> {
        let memory = Memory::anonymous(bytes)?;
        let mut world = lock(&self.world);
        let base = (world.mems.len() as u64 + 1) << 32;
        world.mems.push(Mem {
            ctx: self.ctx,
            memory: memory.clone(),
            base,
        });
        Ok(memory)
    }

    fn alloc_pd(&self) -> Result<SimPd, Error> {
        let mut world = lock(&self.world);
        let pds = &mut world.ctxs[self.ctx as usize].pds;
        *pds += 1;
        Ok(SimPd {
            ctx: self.ctx,
            pd: *pds,
        })
    }

    fn reg_mr(
        &self,
        pd: &SimPd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<SimMr, Error> {
        const VERB: &str = "ibv_reg_mr";
        let invalid = |what: String| Err(Error::Invalid { verb: VERB, what });
        hook::verb(self.id, Verb::Register);
        let mut world = lock(&self.world);
        let place = memory.addr();
        let mem = world
            .mems
            .iter()
            .position(|m| m.ctx == self.ctx && m.memory.addr() == place);
        let Some(mem) = mem.filter(|_| pd.ctx == self.ctx) else {
            return invalid("the memory or the domain belongs to another context".into());
        };
        if range.start >= range.end || range.end > memory.len() {
            return invalid(format!(
                "range {range:?} of a memory of {} bytes",
                memory.len()
            ));
        }
        if !access.is_registrable() {
            return invalid(format!("{access:?} cannot be registered"));
        }
        limit(
            VERB,
            "registrations of a world",
            world.regions.len() as u64 + 1,
            MAX_REGIONS as u64,
        )?;
        let region = world.regions.len() as u32;
        let noise = world.rng.next_u64() as u32;
        let key = noise & 0xff00_00ff | region << 8;
        let (addr, mem) = (world.mems[mem].base + range.start as u64, mem as u32);
        let (start, len) = (range.start, range.len());
        let ctx = self.ctx;
        let alive = !world.ctxs[ctx as usize].frozen;
        world.regions.push(Region {
            ctx,
            pd: pd.pd,
            mem,
            start,
            len,
            access,
            key,
            alive,
        });
        let memory = memory.clone();
        let world = Arc::clone(&self.world);
        Ok(SimMr {
            world,
            device: self.id,
            region,
            memory,
            range,
            addr,
            key,
            access,
            open: true,
        })
    }

    fn alloc_mw(&self, _pd: &SimPd) -> Result<SimMw, Error> {
        Err(Error::Unsupported {
            verb: "ibv_alloc_mw",
            device: self.caps.device.clone(),
            what: "type-2 memory windows",
        })
    }

    fn create_cq(&self, depth: u32) -> Result<SimCq, Error> {
        const VERB: &str = "ibv_create_cq";
        if depth == 0 {
            return Err(Error::Invalid {
                verb: VERB,
                what: "a depth of 0".into(),
            });
        }
        limit(
            VERB,
            "entries of a completion queue",
            depth.into(),
            MAX_CQE.into(),
        )?;
        let mut world = lock(&self.world);
        let cq = world.cqs.len() as u32;
        world.cqs.push(CqTable {
            ctx: self.ctx,
            depth: depth as usize,
            ready: Default::default(),
            overrun: false,
        });
        Ok(SimCq {
            world: Arc::clone(&self.world),
            device: self.id,
            cq,
        })
    }

    fn create_qp(
        &self,
        pd: &SimPd,
        send_cq: &SimCq,
        recv_cq: &SimCq,
        cap: &QpCap,
    ) -> Result<SimQp, Error> {
        const VERB: &str = "ibv_create_qp";
        limit(
            VERB,
            "send requests",
            cap.max_send_wr.into(),
            self.caps.max_qp_wr.into(),
        )?;
        limit(
            VERB,
            "receive requests",
            cap.max_recv_wr.into(),
            MAX_WR.into(),
        )?;
        limit(
            VERB,
            "pieces of a send request",
            cap.max_send_sge.into(),
            MAX_SGE as u64,
        )?;
        limit(
            VERB,
            "pieces of a receive request",
            cap.max_recv_sge.into(),
            1,
        )?;
        let inline = self.caps.max_inline_data;
        limit(
            VERB,
            "bytes of inline payload",
            cap.max_inline_data.into(),
            inline.into(),
        )?;
        let mut world = lock(&self.world);
        let own = |cq: &SimCq| world.cqs[cq.cq as usize].ctx == self.ctx;
        if pd.ctx != self.ctx || !own(send_cq) || !own(recv_cq) {
            let what = "the domain or a completion queue belongs to another context".into();
            return Err(Error::Invalid { verb: VERB, what });
        }
        let qp = world.qps.len() as u32;
        limit(
            VERB,
            "queue pairs of a world",
            u64::from(qp) + 1,
            u64::from(QP_INDEX),
        )?;
        let qp_num = world.rng.next_u64() as u32 & 0x7f_ffff & !QP_INDEX | qp | 0x80_0000;
        let node = world.ctxs[self.ctx as usize].node;
        world.qps.push(QpTable {
            ctx: self.ctx,
            node,
            pd: pd.pd,
            cqs: [send_cq.cq, recv_cq.cq],
            qp_num,
            state: QpState::Reset,
            access: Access::NONE,
            psn: 0,
            mtu: 0,
            remote: Endpoint::default(),
            rts: Default::default(),
            incarnation: 0,
            posted: 0,
            finished: 0,
            receives: Default::default(),
            received: 0,
            receives_finished: 0,
            deliver_from: 0,
            flow: None,
            alive: true,
        });
        let control = SimControl {
            world: Arc::clone(&self.world),
            qp,
            qp_num,
            node: self.id,
        };
        Ok(SimQp { control, cap: *cap })
    }

    fn poll_async_event(&self) -> Result<Option<AsyncEvent>, Error> {
        Ok(lock(&self.world).ctxs[self.ctx as usize].events.pop_front())
    }
}

impl MemoryRegion for SimMr {
    fn memory(&self) -> &Memory {
        &self.memory
    }
    fn range(&self) -> Range<usize> {
        self.range.clone()
    }
    fn addr(&self) -> u64 {
        self.addr
    }
    fn lkey(&self) -> u32 {
        self.key
    }
    fn rkey(&self) -> u32 {
        self.key
    }
    fn access(&self) -> Access {
        self.access
    }
    fn reregister(&mut self, access: Access) -> Result<(), Error> {
        hook::verb(self.device, Verb::Register);
        let done = lock(&self.world).reregister(self.region, access);
        hook::verb(self.device, Verb::Changed);
        self.access = if done.is_ok() { access } else { self.access };
        done
    }
    fn close(mut self) -> Result<(), Error> {
        self.open = false;
        hook::verb(self.device, Verb::Register);
        let done = lock(&self.world).deregister(self.region);
        hook::verb(self.device, Verb::Changed);
        done
    }
}

impl Drop for SimMr {
    fn drop(&mut self) {
        if self.open {
            hook::verb(self.device, Verb::Register);
            // A failure leaves the registration alive, as it would a real one; `close` is who reports.
            let _ = lock(&self.world).deregister(self.region);
        }
    }
}

impl MemoryWindow for SimMw {
    fn rkey(&self) -> u32 {
        match *self {}
    }
    fn close(self) -> Result<(), Error> {
        match self {}
    }
}

impl CompletionQueue for SimCq {
    fn poll(&mut self, out: &mut [Completion]) -> usize {
        hook::verb(self.device, Verb::Poll);
        lock(&self.world).poll(self.cq, out)
    }
    fn error(&self) -> Option<i32> {
        lock(&self.world).cqs[self.cq as usize]
            .overrun
            .then_some(EOVERFLOW)
    }
}
