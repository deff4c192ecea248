//! Contexts of one process: their segments are ordinary memory that all threads share.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::error::Error;
use crate::fault::Placement;
use crate::map::Map;
use crate::memory::Memory;
use crate::node::{Fabric as Ways, Lane, Node, NodeShared, Stalled, View, lock, random};
use crate::sync::{Mutex, Ordering, yield_now};
use crate::table::{CTL_BYTES, LANE_BYTES, qp_slot};

/// How long a revocation waits for a writer of the same process that is in mid-copy. It is only preempted, so this is
/// far beyond what a busy machine needs.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// A network inside this process. Contexts of one fabric reach each other.
#[derive(Clone, Default)]
pub struct Fabric(Arc<Inner>);

#[derive(Default)]
struct Inner {
    nodes: Mutex<HashMap<u64, Weak<NodeShared>>>,
}

impl Fabric {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a context in it.
    ///
    /// # Errors
    /// No memory for its segments.
    pub fn open(&self) -> Result<Node, Error> {
        self.open_with(Placement::Ascending)
    }

    /// Opens a context whose writes are placed in another order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(&self, placement: Placement) -> Result<Node, Error> {
        let ways: Arc<dyn Ways> = Arc::clone(&self.0) as _;
        let ctl = Memory::new(Map::anonymous(CTL_BYTES)?, 0, 0);
        let node = Node::new(random()?, ctl, ways, placement);
        lock(&self.0.nodes).insert(node.id(), Arc::downgrade(&node.0));
        Ok(node)
    }
}

impl Inner {
    fn node(&self, id: u64) -> Option<Arc<NodeShared>> {
        lock(&self.nodes).get(&id)?.upgrade()
    }

    fn find(&self, id: u64) -> Result<Arc<NodeShared>, Error> {
        let why = || "no context of this number is open in this process".to_owned();
        self.node(id).ok_or_else(|| Error::NoPeer {
            node: id,
            why: why(),
        })
    }
}

impl Ways for Inner {
    fn alloc(&self, bytes: usize) -> Result<Map, Error> {
        Map::anonymous(bytes)
    }

    fn exchange(&self, _: &Memory) -> Result<(), Error> {
        self.check_exchange()
    }

    fn check_exchange(&self) -> Result<(), Error> {
        let what = "threads of one process share their pages; wait for the writer instead".into();
        Err(Error::Invalid {
            verb: "orphan",
            what,
        })
    }

    fn announce(&self, _: &NodeShared, _: &Memory) {
        // Peers share the table itself.
    }

    fn attach(&self, me: &Arc<NodeShared>, target: u64) -> Result<Arc<View>, Error> {
        let node = self.find(target)?;
        let lane = self.lane(&node, me.id)?;
        if let Some(view) = lock(&me.views).get(&target)
            && view.lane.addr() == lane.memory.addr()
        {
            return Ok(Arc::clone(view));
        }
        let fabric: Weak<dyn Ways> = Arc::downgrade(&node.fabric);
        let view = Arc::new(View {
            target,
            ctl: node.ctl.clone(),
            lane: lane.memory.clone(),
            lane_id: lane.id,
            memories: Arc::clone(&node.memories),
            gone: Arc::clone(&node.gone),
            ended: Arc::clone(&node.gone),
            fabric,
        });
        lock(&me.views).insert(target, Arc::clone(&view));
        Ok(view)
    }

    fn lane(&self, me: &NodeShared, peer: u64) -> Result<Arc<Lane>, Error> {
        let peer_gone = if peer == me.id {
            Arc::clone(&me.gone)
        } else {
            Arc::clone(&self.find(peer)?.gone)
        };
        me.lane(peer, || {
            let memory = Memory::new(Map::anonymous(LANE_BYTES)?, 0, 0);
            Ok(Lane::new(memory, peer_gone))
        })
    }

    fn catch_up(&self, _: &View) {
        // The table is shared: what is not in it does not exist.
    }

    fn stalled(&self, lane: &Lane, _: usize, waited: Duration) -> Stalled {
        if lane.peer_gone.load(Ordering::Acquire) {
            return Stalled::Over;
        }
        if waited > STALL_LIMIT {
            return Stalled::GiveUp;
        }
        // The writer is preempted: let it run.
        yield_now();
        Stalled::Wait
    }

    fn settle(&self, initiator: u64, qp_num: u32) {
        let Some(node) = self.node(initiator) else {
            return;
        };
        if node.placement != Placement::Late {
            return;
        }
        for qp in node
            .qps(None)
            .iter()
            .filter(|qp| qp_slot(qp.qp_num) == qp_slot(qp_num) && qp.qp_num == qp_num)
        {
            lock(&qp.late).land();
        }
    }

    fn close(&self, me: &NodeShared) {
        lock(&self.nodes).remove(&me.id);
    }
}
