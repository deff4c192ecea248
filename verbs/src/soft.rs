//! The software backends: threads of one process (`inproc`) and processes of one host (`shm`).
//!
//! A thin layer: `mu-softrdma` already speaks verbs, and this gives its objects the traits.

use std::ops::Range;
use std::sync::Arc;

use mu_softrdma::{Control, Cq, Fabric, Memory, Mr, Mw, Node, Pd, Qp, limits};

use crate::{
    Access, AsyncEvent, Atomicity, BackendKind, Barrier, Capabilities, Completion, CompletionQueue,
    Context, Endpoint, Error, MemoryRegion, MemoryWindow, Modify, Mtu, Placement, PostError, QpCap,
    QpControl, QpState, QueuePair, RecvWr, RevokeCaps, Wr,
};

/// An opened software device.
#[derive(Clone)]
pub struct Soft {
    node: Node,
    caps: Arc<Capabilities>,
}

impl Soft {
    /// A context for the threads of this process.
    ///
    /// # Errors
    /// No memory.
    pub fn inproc(fabric: &Fabric) -> Result<Self, Error> {
        Ok(Self::over(
            fabric.open()?,
            BackendKind::Inproc,
            Placement::WholeMessage,
        ))
    }

    /// A context for the processes of this host.
    ///
    /// # Errors
    /// No memory, or what [`mu_softrdma::shm::open`] says.
    #[cfg(not(any(loom, miri)))]
    pub fn shm(options: &mu_softrdma::shm::Options) -> Result<Self, Error> {
        let soft = Self::over(
            mu_softrdma::shm::open(options)?,
            BackendKind::Shm,
            Placement::WholeMessage,
        );
        let mut caps = Capabilities::clone(&soft.caps);
        caps.bounded_revoke = mu_softrdma::shm::can_fence().is_ok();
        Ok(Self {
            caps: Arc::new(caps),
            ..soft
        })
    }

    /// A context over a node that was opened with its own options (placement orders for tests). `placement` is what it
    /// promises.
    pub fn over(node: Node, backend: BackendKind, placement: Placement) -> Self {
        Self {
            node,
            caps: Arc::new(capabilities(backend, placement)),
        }
    }

    /// The context of the software layer, for what verbs do not have: faults and crashes.
    pub fn node(&self) -> &Node {
        &self.node
    }
}

/// What the software backends can do.
fn capabilities(backend: BackendKind, placement: Placement) -> Capabilities {
    Capabilities {
        backend,
        device: backend.to_string(),
        driver: "mu-softrdma".into(),
        max_inline_data: limits::MAX_INLINE as u32,
        max_qp_wr: limits::MAX_SEND_WR as u32,
        max_sge: limits::MAX_SGE as u32,
        max_recv_sge: limits::MAX_RECV_SGE as u32,
        max_cqe: limits::MAX_CQE as u32,
        max_qp_rd_atom: 255,
        max_msg: limits::MAX_MSG as u64,
        max_mtu: Mtu::B4096,
        placement,
        atomicity: Atomicity::Global,
        qp_kinds: crate::QpKinds::RC,
        // The gate makes each of them a barrier: see `mu_softrdma::gate`.
        revoke: RevokeCaps {
            qp_flags: Barrier::Yes,
            qp_cycle: Barrier::Yes,
            reregister: Barrier::Yes,
            window: Barrier::Yes,
        },
        rereg_mr: true,
        rereg_is_barrier: true,
        memory_windows: true,
        // A thread of this process can be preempted in mid-copy for as long as the scheduler likes.
        bounded_revoke: false,
        target_cpu_free: true,
        tells_peer_ended: true,
        runs_when_posted: true,
        hostile_safe: false,
    }
}

impl Context for Soft {
    type Pd = Pd;
    type Mr = Mr;
    type Mw = Mw;
    type Cq = Cq;
    type Qp = Qp;
    type Control = Control;

    fn caps(&self) -> &Capabilities {
        &self.caps
    }
    fn alloc_memory(&self, bytes: usize) -> Result<Memory, Error> {
        Ok(self.node.alloc_memory(bytes)?)
    }
    fn alloc_pd(&self) -> Result<Pd, Error> {
        Ok(self.node.alloc_pd())
    }
    fn reg_mr(
        &self,
        pd: &Pd,
        memory: &Memory,
        range: Range<usize>,
        access: Access,
    ) -> Result<Mr, Error> {
        Ok(self.node.reg_mr(pd, memory, range, access)?)
    }
    fn alloc_mw(&self, pd: &Pd) -> Result<Mw, Error> {
        Ok(self.node.alloc_mw(pd)?)
    }
    fn create_cq(&self, depth: u32) -> Result<Cq, Error> {
        Ok(self.node.create_cq(depth)?)
    }
    fn create_qp(&self, pd: &Pd, send_cq: &Cq, recv_cq: &Cq, cap: &QpCap) -> Result<Qp, Error> {
        Ok(self.node.create_qp(pd, send_cq, recv_cq, cap)?)
    }
    fn poll_async_event(&self) -> Result<Option<AsyncEvent>, Error> {
        Ok(self.node.poll_async_event())
    }
}

impl MemoryRegion for Mr {
    fn memory(&self) -> &Memory {
        Mr::memory(self)
    }
    fn range(&self) -> Range<usize> {
        Mr::range(self)
    }
    fn addr(&self) -> u64 {
        Mr::addr(self)
    }
    fn lkey(&self) -> u32 {
        self.key()
    }
    fn rkey(&self) -> u32 {
        self.key()
    }
    fn access(&self) -> Access {
        Mr::access(self)
    }
    fn reregister(&mut self, access: Access) -> Result<(), Error> {
        Ok(Mr::reregister(self, access)?)
    }
    fn close(self) -> Result<(), Error> {
        Ok(Mr::close(self)?)
    }
}

impl MemoryWindow for Mw {
    fn rkey(&self) -> u32 {
        Mw::rkey(self)
    }
    fn close(self) -> Result<(), Error> {
        Ok(Mw::close(self)?)
    }
}

impl CompletionQueue for Cq {
    #[inline]
    fn poll(&mut self, out: &mut [Completion]) -> usize {
        Cq::poll(self, out)
    }
}

impl QpControl for Control {
    fn qp_num(&self) -> u32 {
        Control::qp_num(self)
    }
    fn endpoint(&self) -> Endpoint {
        Control::endpoint(self)
    }
    fn state(&self) -> Result<QpState, Error> {
        Ok(Control::state(self))
    }
    fn modify(&self, change: &Modify) -> Result<(), Error> {
        Ok(Control::modify(self, change)?)
    }
}

impl QueuePair<Soft> for Qp {
    fn control(&self) -> &Control {
        Qp::control(self)
    }
    fn cap(&self) -> QpCap {
        Qp::cap(self)
    }
    #[inline]
    fn post_send(&mut self, wr: &Wr<'_, Soft>) -> Result<(), PostError> {
        Qp::post_send(self, wr)
    }
    fn post_send_list(&mut self, wrs: &[Wr<'_, Soft>]) -> Result<(), (usize, PostError)> {
        Qp::post_send_list(self, wrs)
    }
    fn post_recv(&mut self, wr: &RecvWr<'_, Mr>) -> Result<(), PostError> {
        Qp::post_recv(self, wr)
    }
    fn close(self) -> Result<(), Error> {
        Ok(Qp::close(self)?)
    }
}
