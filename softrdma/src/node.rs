//! A software context: what one opened device is. It owns a control segment, numbers and keys, and knows its peers.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool as StdBool, AtomicU64 as StdU64};
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::cq::Cq;
use crate::error::Error;
use crate::fault::Placement;
use crate::gate;
use crate::limits::{MAX_ASYNC_EVENTS, MAX_MEMORIES, MAX_QPS, MAX_REGIONS};
use crate::map::Map;
use crate::memory::Memory;
use crate::qp::{Qp, QpShared};
use crate::region::{Mr, Mw, Window};
use crate::sync::{Mutex, MutexGuard, Ordering, Word};
use crate::table::{self, LAYOUT};
use crate::types::{Access, AsyncEvent, QpCap};

/// Locks a control-path mutex. A panic elsewhere does not make its data wrong: every holder leaves it consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number from the operating system's random source.
pub(crate) fn random() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| Error::System {
        verb: "ibv_open_device",
        call: "getrandom",
        source: nix::errno::Errno::last(),
        hint: "",
    })?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The way to other contexts: threads of this process (`inproc`) or other processes (`shm`). Control path only.
pub(crate) trait Fabric: Send + Sync {
    /// Memory that peers of this fabric can reach.
    fn alloc(&self, bytes: usize) -> Result<Map, Error>;
    /// Whether memory of this fabric can be given new pages.
    fn check_exchange(&self) -> Result<(), Error>;
    /// New pages under `memory`, with the same contents, that no peer has. Nobody may store into it meanwhile.
    fn exchange(&self, memory: &Memory) -> Result<(), Error>;
    /// Tells the peers about new memory of `me`.
    fn announce(&self, me: &NodeShared, memory: &Memory);
    /// The way to write into `target`, made now if there is none that works.
    fn attach(&self, me: &Arc<NodeShared>, target: u64) -> Result<Arc<View>, Error>;
    /// The lane for `peer`'s writes, made now if neither side asked before.
    fn lane(&self, me: &NodeShared, peer: u64) -> Result<Arc<Lane>, Error>;
    /// Called when a request names memory that `view` has not: takes in announcements that have already been sent.
    fn catch_up(&self, view: &View);
    /// Waits for or fences the writer behind writer row `slot` of `lane`, which is in the middle of a copy. Called
    /// again and again while it is, with how long it was so.
    fn stalled(&self, lane: &Lane, slot: usize, waited: Duration) -> Stalled;
    /// Makes writes visible that the initiator already completed (late visibility of the placement modes).
    fn settle(&self, initiator: u64, qp_num: u32);
    /// `me` is going away.
    fn close(&self, me: &NodeShared);
}

/// What became of a writer that sits in the middle of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stalled {
    /// Keep waiting.
    Wait,
    /// It cannot store any more: its process is gone, or its mapping is protected.
    Over,
    /// Nothing helped within the bound.
    GiveUp,
}

/// The memories of a context, by number. A slot is filled once.
pub(crate) struct MemoryTable([OnceLock<Memory>; MAX_MEMORIES]);

impl MemoryTable {
    pub(crate) fn new() -> Self {
        Self([const { OnceLock::new() }; MAX_MEMORIES])
    }
    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&Memory> {
        self.0.get(id as usize)?.get()
    }
    /// Those there are.
    #[cfg_attr(
        any(loom, miri),
        expect(dead_code, reason = "the shared-memory backend is not built there")
    )]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Memory> {
        self.0.iter().filter_map(OnceLock::get)
    }
    /// Fills slot `id`; says whether it was free.
    pub(crate) fn set(&self, id: u32, memory: Memory) -> bool {
        self.0
            .get(id as usize)
            .is_some_and(|slot| slot.set(memory).is_ok())
    }
}

/// What an initiator holds of a target: everything the responder core needs.
pub(crate) struct View {
    pub(crate) target: u64,
    pub(crate) ctl: Memory,
    pub(crate) lane: Memory,
    /// The lane's number, which the target's queue pair must name.
    pub(crate) lane_id: u64,
    pub(crate) memories: Arc<MemoryTable>,
    /// The target is dead, or this view was fenced: nothing done through it counts any more.
    pub(crate) gone: Arc<StdBool>,
    /// The target's process has ended, or is about to. Set before `gone`.
    pub(crate) ended: Arc<StdBool>,
    /// Whom to ask about memory that is not in the table yet.
    pub(crate) fabric: Weak<dyn Fabric>,
}

/// What a target holds of an initiator: the words that one writes.
pub(crate) struct Lane {
    /// Its number, unique in the target's process.
    pub(crate) id: u64,
    pub(crate) memory: Memory,
    /// The initiator is dead: it stores nothing any more.
    pub(crate) peer_gone: Arc<StdBool>,
    /// A writer of it was fenced or given up in mid-copy: nothing is ever granted over this lane again.
    pub(crate) fenced: StdBool,
    /// The sequence value of each writer at which its pages were protected: while it has that value it cannot store.
    pub(crate) fenced_at: [StdU64; MAX_QPS],
    /// The initiator has it. Each connection of a peer gets a lane that nobody had before.
    pub(crate) handed_over: StdBool,
}

impl Lane {
    pub(crate) fn new(memory: Memory, peer_gone: Arc<StdBool>) -> Self {
        static NEXT: StdU64 = StdU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            memory,
            peer_gone,
            fenced: StdBool::new(false),
            fenced_at: [const { StdU64::new(0) }; MAX_QPS],
            handed_over: StdBool::new(false),
        }
    }

    /// The sequence word of writer `slot`.
    pub(crate) fn seq(&self, slot: usize) -> &Word {
        table::writer_row(self.memory.words(), slot).seq()
    }

    /// Whether writer `slot` sits in a copy that was fenced: it cannot store any more.
    pub(crate) fn is_fenced(&self, slot: usize) -> bool {
        let seq = self.seq(slot).load(Ordering::Acquire);
        seq & 1 == 1 && seq == self.fenced_at[slot].load(Ordering::Acquire)
    }

    /// Whether writer `slot` has left its copy, or can store no more.
    pub(crate) fn is_quiet(&self, slot: usize) -> bool {
        let gone = self.peer_gone.load(Ordering::Acquire);
        gone || !gate::is_busy(self.seq(slot)) || self.is_fenced(slot)
    }

    /// Whether a new connection may be made over it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.fenced.load(Ordering::Acquire) && !self.peer_gone.load(Ordering::Acquire)
    }
}

/// An opened software device (`struct ibv_context`). Cheap to clone; its objects keep it open.
#[derive(Clone)]
pub struct Node(pub(crate) Arc<NodeShared>);

pub(crate) struct NodeShared {
    pub(crate) id: u64,
    pub(crate) ctl: Memory,
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) memories: Arc<MemoryTable>,
    pub(crate) gone: Arc<StdBool>,
    pub(crate) placement: Placement,
    tables: Mutex<Tables>,
    pub(crate) lanes: Mutex<HashMap<u64, Arc<Lane>>>,
    pub(crate) views: Mutex<HashMap<u64, Arc<View>>>,
    events: Mutex<VecDeque<AsyncEvent>>,
}

struct Tables {
    qps: [Option<Weak<QpShared>>; MAX_QPS],
    /// Destroyed while their writer was stalled in mid-copy: whoever takes memory away has to wait for it still.
    stuck: Vec<Arc<QpShared>>,
    regions: [bool; MAX_REGIONS],
    windows: [Option<Weak<Window>>; MAX_REGIONS],
    next_memory: u32,
    next_pd: u32,
}

/// A protection domain (`struct ibv_pd`).
#[derive(Clone)]
pub struct Pd {
    pub(crate) node: Arc<NodeShared>,
    pub(crate) id: u32,
}

impl Node {
    pub(crate) fn new(id: u64, ctl: Memory, fabric: Arc<dyn Fabric>, placement: Placement) -> Self {
        ctl.store(0, LAYOUT);
        ctl.store(1, id);
        Self(Arc::new(NodeShared {
            id,
            ctl,
            fabric,
            memories: Arc::new(MemoryTable::new()),
            gone: Arc::new(StdBool::new(false)),
            placement,
            tables: Mutex::new(Tables {
                qps: [const { None }; MAX_QPS],
                stuck: Vec::new(),
                regions: [false; MAX_REGIONS],
                windows: [const { None }; MAX_REGIONS],
                next_memory: 0,
                next_pd: 1,
            }),
            lanes: Mutex::default(),
            views: Mutex::default(),
            events: Mutex::default(),
        }))
    }

    /// Its number: random, and part of every [`Endpoint`](crate::types::Endpoint) it gives out.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Memory that peers can be given rights to.
    ///
    /// # Errors
    /// No memory, or [`MAX_MEMORIES`] were allocated.
    pub fn alloc_memory(&self, bytes: usize) -> Result<Memory, Error> {
        let map = self.0.fabric.alloc(bytes)?;
        let id = self.0.next_memory()?;
        let memory = Memory::new(map, self.0.id, id);
        let fresh = self.0.memories.set(id, memory.clone());
        assert!(fresh, "memory numbers are given out once");
        self.0.fabric.announce(&self.0, &memory);
        Ok(memory)
    }

    /// Takes `memory` out of every peer's reach for good: the last resort against a writer that a revocation found
    /// stalled in mid-copy and could not fence ([`Error::WriterStalled`]). The memory keeps its address and contents,
    /// but its pages are new; what the stalled writer still stores goes to the old ones.
    ///
    /// Afterwards no registration of the memory gives a peer any right until it is
    /// [re-registered](Mr::reregister), and queue pairs whose writer is stalled are in ERR.
    ///
    /// The caller sees to it that no thread of this process stores into the memory meanwhile: such a store may be lost.
    ///
    /// # Errors
    /// The memory is another context's, there is no memory for the copy, or the context is not of the shared-memory
    /// backend: threads of one process share their pages.
    pub fn orphan(&self, memory: &Memory) -> Result<(), Error> {
        let node = &self.0;
        if memory.owner() != node.id {
            let what = "the memory belongs to another context".into();
            return Err(Error::Invalid {
                verb: "orphan",
                what,
            });
        }
        node.fabric.check_exchange()?;
        let id = node.next_memory()?;
        let words = node.ctl.words();
        for slot in 0..MAX_REGIONS {
            let row = table::region_row(words, slot);
            if row.memory().load(Ordering::Relaxed) >> 32 == u64::from(memory.id()) {
                gate::revoke(row.state(), 0);
            }
        }
        for qp in node.qps(None) {
            if qp.quiesce("orphan").is_err() {
                qp.abandon_writer();
            }
        }
        node.fabric.exchange(memory)?;
        memory.renumber(id);
        let fresh = node.memories.set(id, memory.clone());
        assert!(fresh, "memory numbers are given out once");
        node.fabric.announce(node, memory);
        Ok(())
    }

    /// A protection domain.
    pub fn alloc_pd(&self) -> Pd {
        let mut tables = lock(&self.0.tables);
        let id = tables.next_pd;
        tables.next_pd += 1;
        Pd {
            node: Arc::clone(&self.0),
            id,
        }
    }

    /// Registers the bytes `range` of `memory`, which this context allocated.
    ///
    /// # Errors
    /// Foreign memory, a wrong range or rights, or [`MAX_REGIONS`] are alive.
    pub fn reg_mr(
        &self,
        pd: &Pd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<Mr, Error> {
        Mr::register(&self.0, pd, memory, range, access)
    }

    /// A type-2 memory window.
    ///
    /// # Errors
    /// [`MAX_REGIONS`] are alive, or the domain is another context's.
    pub fn alloc_mw(&self, pd: &Pd) -> Result<Mw, Error> {
        Mw::alloc(&self.0, pd)
    }

    /// A completion queue.
    ///
    /// # Errors
    /// The depth is over the limit.
    pub fn create_cq(&self, depth: u32) -> Result<Cq, Error> {
        Cq::new(&self.0, depth)
    }

    /// A reliably connected queue pair in RESET.
    ///
    /// # Errors
    /// A size is over its limit, [`MAX_QPS`] exist, or an object is another context's.
    pub fn create_qp(&self, pd: &Pd, send_cq: &Cq, recv_cq: &Cq, cap: &QpCap) -> Result<Qp, Error> {
        Qp::create(&self.0, pd, send_cq, recv_cq, cap)
    }

    /// The oldest asynchronous event not yet read.
    pub fn poll_async_event(&self) -> Option<AsyncEvent> {
        lock(&self.0.events).pop_front()
    }

    /// Dies as a process would, for tests: nothing it has under way goes on, and peers find it gone. Its threads must
    /// not post any more.
    pub fn crash(&self) {
        self.0.gone.store(true, Ordering::SeqCst);
    }
}

impl NodeShared {
    fn next_memory(&self) -> Result<u32, Error> {
        let mut tables = lock(&self.tables);
        let id = tables.next_memory;
        if id as usize == MAX_MEMORIES {
            return Err(Error::Limit {
                verb: "alloc_memory",
                what: "memories in the life of one context",
                asked: MAX_MEMORIES + 1,
                limit: MAX_MEMORIES,
            });
        }
        tables.next_memory += 1;
        Ok(id)
    }

    pub(crate) fn event(&self, event: AsyncEvent) {
        let mut events = lock(&self.events);
        if events.len() == MAX_ASYNC_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// The lane for `peer`, made now if it is the first time that either side asks.
    pub(crate) fn lane(
        &self,
        peer: u64,
        make: impl FnOnce() -> Result<Lane, Error>,
    ) -> Result<Arc<Lane>, Error> {
        let mut lanes = lock(&self.lanes);
        if let Some(lane) = lanes.get(&peer)
            && lane.is_usable()
        {
            return Ok(Arc::clone(lane));
        }
        let lane = Arc::new(make()?);
        lanes.insert(peer, Arc::clone(&lane));
        Ok(lane)
    }

    /// A lane for `peer` that nobody has been handed yet; from now on this peer has it.
    #[cfg_attr(
        any(loom, miri),
        expect(dead_code, reason = "the shared-memory backend is not built there")
    )]
    pub(crate) fn fresh_lane(
        &self,
        peer: u64,
        make: impl FnOnce() -> Result<Lane, Error>,
    ) -> Result<Arc<Lane>, Error> {
        let mut lanes = lock(&self.lanes);
        if let Some(lane) = lanes.get(&peer)
            && lane.is_usable()
            && !lane.handed_over.swap(true, Ordering::AcqRel)
        {
            return Ok(Arc::clone(lane));
        }
        let lane = Arc::new(make()?);
        lane.handed_over.store(true, Ordering::Release);
        lanes.insert(peer, Arc::clone(&lane));
        Ok(lane)
    }

    /// Takes a free slot for a queue pair.
    pub(crate) fn add_qp(
        &self,
        make: impl FnOnce(usize) -> Arc<QpShared>,
    ) -> Result<Arc<QpShared>, Error> {
        let mut tables = lock(&self.tables);
        let slot = tables
            .qps
            .iter()
            .position(Option::is_none)
            .ok_or(Error::Limit {
                verb: "ibv_create_qp",
                what: "queue pairs of one context",
                asked: MAX_QPS + 1,
                limit: MAX_QPS,
            })?;
        let qp = make(slot);
        tables.qps[slot] = Some(Arc::downgrade(&qp));
        Ok(qp)
    }

    /// Keeps a queue pair whose writer could not be waited for when it was destroyed.
    pub(crate) fn keep_qp(&self, qp: &Arc<QpShared>) {
        lock(&self.tables).stuck.push(Arc::clone(qp));
    }

    pub(crate) fn remove_qp(&self, slot: usize) {
        lock(&self.tables).qps[slot] = None;
    }

    /// The queue pairs alive, of one domain or of all.
    pub(crate) fn qps(&self, pd: Option<u32>) -> Vec<Arc<QpShared>> {
        let tables = lock(&self.tables);
        let alive = tables.qps.iter().flatten().filter_map(Weak::upgrade);
        alive.filter(|qp| pd.is_none_or(|pd| qp.pd == pd)).collect()
    }

    pub(crate) fn add_region(&self, verb: &'static str) -> Result<usize, Error> {
        let mut tables = lock(&self.tables);
        let slot = tables
            .regions
            .iter()
            .position(|used| !used)
            .ok_or(Error::Limit {
                verb,
                what: "regions and windows of one context",
                asked: MAX_REGIONS + 1,
                limit: MAX_REGIONS,
            })?;
        tables.regions[slot] = true;
        Ok(slot)
    }

    pub(crate) fn remove_region(&self, slot: usize) {
        lock(&self.tables).regions[slot] = false;
    }

    pub(crate) fn set_window(&self, slot: usize, window: Option<Weak<Window>>) {
        lock(&self.tables).windows[slot] = window;
    }

    pub(crate) fn window(&self, slot: usize) -> Option<Arc<Window>> {
        lock(&self.tables).windows[slot].as_ref()?.upgrade()
    }

    /// Takes the state of region `slot` down to `word` and waits until no peer of `qps` works under the old one.
    pub(crate) fn lower_region(
        &self,
        verb: &'static str,
        slot: usize,
        word: u64,
        qps: &[Arc<QpShared>],
    ) -> Result<(), Error> {
        gate::revoke(table::region_row(self.ctl.words(), slot).state(), word);
        qps.iter().try_for_each(|qp| qp.quiesce(verb))
    }
}

impl Drop for NodeShared {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        let fabric = Arc::clone(&self.fabric);
        fabric.close(self);
    }
}
