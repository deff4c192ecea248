//! Registrations: memory regions and windows, and the rights that their rows in the control segment carry.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::memory::Memory;
use crate::node::{NodeShared, Pd, lock, random};
use crate::qp::QpShared;
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering};
use crate::table::{RegionState, key_slot, region_row};
use crate::types::{Access, RemoteAddr, WcStatus};

/// A memory region (`struct ibv_mr`). Dropping it deregisters; [`close`](Self::close) also reports.
pub struct Mr(pub(crate) Arc<Registration>);

/// What requests under way hold of a region.
pub(crate) struct Registration {
    pub(crate) node: Arc<NodeShared>,
    pub(crate) pd: u32,
    pub(crate) memory: Memory,
    /// First byte in the memory, and length.
    pub(crate) start: usize,
    pub(crate) len: usize,
    access: AtomicU32,
    slot: usize,
    key: u32,
    /// Set under `life`; read without it by requests.
    valid: AtomicBool,
    /// Windows bound to it. The lock also orders binds against what takes rights away: a bind sees the lowered
    /// rights, or whoever lowers them sees the bind.
    life: Mutex<u32>,
}

impl Registration {
    #[inline]
    pub(crate) fn access(&self) -> Access {
        Access(self.access.load(Ordering::Relaxed))
    }
    #[inline]
    pub(crate) fn is_valid(&self) -> bool {
        self.valid.load(Ordering::Acquire)
    }

    fn refuse_windows(&self, verb: &'static str) -> Result<(), Error> {
        self.refuse_bound(*lock(&self.life), verb)
    }

    fn refuse_bound(&self, windows: u32, verb: &'static str) -> Result<(), Error> {
        if windows != 0 {
            return Err(Error::Busy {
                verb,
                what: "the region",
                users: "a bound memory window",
            });
        }
        Ok(())
    }
}

/// Waits for requests that the polling thread is just carrying out: they checked the region when they began. Those that
/// only wait check it when they run.
fn wait_for_slow(qps: &[Arc<QpShared>]) {
    for qp in qps {
        drop(lock(&qp.slow));
    }
}

/// A fresh key for `slot`.
fn new_key(slot: usize) -> Result<u32, Error> {
    let random = random()? as u32;
    Ok(random & 0xffff_00ff | (slot as u32) << 8)
}

impl Mr {
    pub(crate) fn register(
        node: &Arc<NodeShared>,
        pd: &Pd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<Self, Error> {
        const VERB: &str = "ibv_reg_mr";
        let invalid = |what: String| Err(Error::Invalid { verb: VERB, what });
        if memory.owner() != node.id || pd.node.id != node.id {
            return invalid("the memory or the domain belongs to another context".into());
        }
        if range.start >= range.end || range.end > memory.len() {
            return invalid(format!(
                "range {range:?} does not lie in a memory of {} bytes",
                memory.len()
            ));
        }
        if !access.is_registrable() {
            return invalid(format!(
                "{access:?}: remote write and atomics need local write, and no other flags exist"
            ));
        }
        let slot = node.add_region(VERB)?;
        let key = new_key(slot)?;
        let reg = Registration {
            node: Arc::clone(node),
            pd: pd.id,
            memory: memory.clone(),
            start: range.start,
            len: range.len(),
            access: AtomicU32::new(access.0),
            slot,
            key,
            valid: AtomicBool::new(true),
            life: Mutex::new(0),
        };
        let row = region_row(node.ctl.words(), slot);
        row.addr()
            .store(memory.addr() + range.start as u64, Ordering::Relaxed);
        row.len().store(range.len() as u64, Ordering::Relaxed);
        row.memory().store(
            u64::from(memory.id()) << 32 | u64::from(pd.id),
            Ordering::Relaxed,
        );
        row.start().store(range.start as u64, Ordering::Relaxed);
        row.bound_to().store(0, Ordering::Relaxed);
        row.state()
            .store(RegionState { key, access }.to_word(), Ordering::Release);
        Ok(Self(Arc::new(reg)))
    }

    /// The memory it registers.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// The part of the memory it covers, in bytes.
    pub fn range(&self) -> Range<usize> {
        self.0.start..self.0.start + self.0.len
    }

    /// Address of its first byte, as peers use it.
    pub fn addr(&self) -> u64 {
        self.0.memory.addr() + self.0.start as u64
    }

    /// Its key, local and remote.
    pub fn key(&self) -> u32 {
        self.0.key
    }

    /// The place of byte `offset`, for a peer.
    pub fn remote(&self, offset: usize) -> RemoteAddr {
        RemoteAddr {
            addr: self.addr() + offset as u64,
            rkey: self.key(),
        }
    }

    /// Its rights.
    pub fn access(&self) -> Access {
        self.0.access()
    }

    /// Changes the rights, key kept. When it returns, nothing lands under a right that was removed.
    ///
    /// # Errors
    /// Rights that cannot be registered, a bound window (it has rights of its own), or a stalled writer: only what
    /// both the old and the new rights allow holds then, and the writer's copy may go on.
    pub fn reregister(&mut self, access: Access) -> Result<(), Error> {
        const VERB: &str = "ibv_rereg_mr";
        if !access.is_registrable() {
            return Err(Error::Invalid {
                verb: VERB,
                what: format!("{access:?} cannot be registered"),
            });
        }
        let reg = &self.0;
        let row = region_row(reg.node.ctl.words(), reg.slot);
        let word = |access| {
            RegionState {
                key: reg.key,
                access,
            }
            .to_word()
        };
        // First what is taken away, with the wait; only then what is added.
        let common = reg.access() & access;
        {
            let windows = lock(&reg.life);
            reg.refuse_bound(*windows, VERB)?;
            reg.access.store(common.0, Ordering::Relaxed);
        }
        let qps = reg.node.qps(Some(reg.pd));
        wait_for_slow(&qps);
        reg.node.lower_region(VERB, reg.slot, word(common), &qps)?;
        reg.access.store(access.0, Ordering::Relaxed);
        // The memory's number changes if it was orphaned.
        let memory = u64::from(reg.memory.id()) << 32 | u64::from(reg.pd);
        row.memory().store(memory, Ordering::Relaxed);
        row.state().store(word(access), Ordering::Release);
        Ok(())
    }

    /// Deregisters. When it returns, nothing lands through this region.
    ///
    /// # Errors
    /// A window is bound to it, or a writer is stalled; the registration's number is not used again then.
    pub fn close(self) -> Result<(), Error> {
        // Dropping `self` deregisters in either case: the caller has given the rights up. Its windows stay until they
        // are closed.
        self.0.refuse_windows("ibv_dereg_mr")?;
        self.deregister()
    }

    fn deregister(&self) -> Result<(), Error> {
        const VERB: &str = "ibv_dereg_mr";
        let reg = &self.0;
        {
            let _life = lock(&reg.life);
            if !reg.valid.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
        }
        let qps = reg.node.qps(Some(reg.pd));
        wait_for_slow(&qps);
        reg.node.lower_region(VERB, reg.slot, 0, &qps)?;
        reg.node.remove_region(reg.slot);
        Ok(())
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // A failure leaves the slot taken for good, which `close` would have reported; the rights are withdrawn
        // already, and the memory lives on as long as a peer or a window holds it.
        let _ = self.deregister();
    }
}

/// A type-2 memory window (`struct ibv_mw`).
pub struct Mw(pub(crate) Arc<Window>);

pub(crate) struct Window {
    pub(crate) node: Arc<NodeShared>,
    pd: u32,
    slot: usize,
    key: AtomicU32,
    bound: Mutex<Bound>,
}

/// Where a window stands.
#[derive(Default)]
struct Bound {
    /// The region it is bound to, and through which queue pair.
    to: Option<(Arc<Registration>, Arc<QpShared>)>,
    /// Deallocated: a bind that still waits in a queue must not revive it.
    closed: bool,
}

/// What a bind asks for.
#[derive(Clone)]
pub(crate) struct Bind {
    pub(crate) window: Arc<Window>,
    pub(crate) region: Arc<Registration>,
    pub(crate) rkey: u32,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) access: Access,
}

impl Mw {
    pub(crate) fn alloc(node: &Arc<NodeShared>, pd: &Pd) -> Result<Self, Error> {
        const VERB: &str = "ibv_alloc_mw";
        if pd.node.id != node.id {
            return Err(Error::Invalid {
                verb: VERB,
                what: "the domain belongs to another context".into(),
            });
        }
        let slot = node.add_region(VERB)?;
        let key = AtomicU32::new(new_key(slot)?);
        let window = Arc::new(Window {
            node: Arc::clone(node),
            pd: pd.id,
            slot,
            key,
            bound: Mutex::default(),
        });
        node.set_window(slot, Some(Arc::downgrade(&window)));
        Ok(Self(window))
    }

    /// Its current key.
    pub fn rkey(&self) -> u32 {
        self.0.key.load(Ordering::Acquire)
    }

    /// Deallocates it, invalidating it first. When it returns, nothing lands through it.
    ///
    /// # Errors
    /// A writer is stalled in mid-copy.
    pub fn close(self) -> Result<(), Error> {
        self.0.end()
    }
}

impl Drop for Mw {
    fn drop(&mut self) {
        // As with a region: the right is withdrawn in any case, and `close` would have reported a stall.
        self.0.node.set_window(self.0.slot, None);
        if self.0.end().is_ok() {
            self.0.node.remove_region(self.0.slot);
        }
    }
}

impl Window {
    /// Ends it for good: binds that still wait in a queue fail when they run.
    fn end(&self) -> Result<(), Error> {
        let mut bound = lock(&self.bound);
        bound.closed = true;
        self.unbind(&mut bound, "ibv_dealloc_mw")
    }

    fn unbind(&self, bound: &mut Bound, verb: &'static str) -> Result<(), Error> {
        let Some((_, qp)) = &bound.to else {
            return Ok(());
        };
        self.node
            .lower_region(verb, self.slot, 0, std::slice::from_ref(qp))?;
        if let Some((region, _)) = bound.to.take() {
            *lock(&region.life) -= 1;
        }
        Ok(())
    }
}

impl Bind {
    /// Carries the bind out on queue pair `qp`.
    pub(crate) fn run(&self, qp: &Arc<QpShared>) -> WcStatus {
        let (window, region) = (&self.window, &self.region);
        let mut bound = lock(&window.bound);
        // Held until the window stands: from now on nobody takes the region or its rights away.
        let mut windows = lock(&region.life);
        let key_fits = self.rkey >> 8 == window.key.load(Ordering::Acquire) >> 8;
        let range_fits = self.len > 0
            && self
                .offset
                .checked_add(self.len)
                .is_some_and(|end| end <= region.len);
        let own = window.node.id == qp.node.id && region.node.id == qp.node.id;
        let domain_fits = window.pd == qp.pd && region.pd == qp.pd;
        let writes = self.access.0 & (Access::REMOTE_WRITE.0 | Access::REMOTE_ATOMIC.0) != 0;
        let rights_fit = region.access().contains(Access::MW_BIND)
            && (!writes || region.access().contains(Access::LOCAL_WRITE))
            && self.access.without(Access::LOG | Access::REMOTE_ATOMIC) == Access::NONE;
        let fits = key_fits && range_fits && own && domain_fits && rights_fit && region.is_valid();
        if !fits || bound.closed || bound.to.is_some() {
            return WcStatus::MW_BIND_ERR;
        }
        window.key.store(self.rkey, Ordering::Release);
        let row = region_row(qp.node.ctl.words(), window.slot);
        let start = region.start + self.offset;
        row.addr()
            .store(region.memory.addr() + start as u64, Ordering::Relaxed);
        row.len().store(self.len as u64, Ordering::Relaxed);
        row.memory().store(
            u64::from(region.memory.id()) << 32 | u64::from(window.pd),
            Ordering::Relaxed,
        );
        row.start().store(start as u64, Ordering::Relaxed);
        row.bound_to()
            .store(u64::from(qp.qp_num) + 1, Ordering::Relaxed);
        row.state().store(
            RegionState {
                key: self.rkey,
                access: self.access,
            }
            .to_word(),
            Ordering::Release,
        );
        *windows += 1;
        bound.to = Some((Arc::clone(region), Arc::clone(qp)));
        WcStatus::SUCCESS
    }
}

/// Invalidates the window bound under `rkey` on `qp` (`IBV_WR_LOCAL_INV`).
pub(crate) fn invalidate(qp: &Arc<QpShared>, rkey: u32) -> WcStatus {
    let Some(window) = qp.node.window(key_slot(rkey)) else {
        return WcStatus::LOC_PROT_ERR;
    };
    let mut bound = lock(&window.bound);
    let own = bound
        .to
        .as_ref()
        .is_some_and(|(_, owner)| Arc::ptr_eq(owner, qp));
    if !own || window.key.load(Ordering::Acquire) != rkey {
        return WcStatus::LOC_PROT_ERR;
    }
    match window.unbind(&mut bound, "IBV_WR_LOCAL_INV") {
        Ok(()) => WcStatus::SUCCESS,
        // The right is withdrawn, but a stalled writer may go on: not known to be done.
        Err(_) => WcStatus::GENERAL_ERR,
    }
}
