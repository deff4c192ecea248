//! Two connected ends in one process, for tests.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::time::{Duration, Instant};

use mu_softrdma::error::PostError;
use mu_softrdma::types::*;
use mu_softrdma::{Cq, Fabric, Mr, Mw, Node, Pd, Qp};

/// Bytes of an end's region.
pub(crate) const BYTES: usize = 4096;
/// What is long for anything here, even on a slow machine: a hang is a failure.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A queue pair with everything it needs. The fields are dropped in this order.
pub(crate) struct End {
    pub(crate) qp: Qp,
    pub(crate) cq: Cq,
    pub(crate) mr: Mr,
    pub(crate) pd: Pd,
    pub(crate) node: Node,
}

impl End {
    pub(crate) fn new(node: &Node, bytes: usize) -> Self {
        let pd = node.alloc_pd();
        let memory = node.alloc_memory(bytes).expect("memory");
        let mr = node
            .reg_mr(&pd, &memory, 0..bytes, Access::ALL)
            .expect("a region");
        let cq = node.create_cq(64).expect("a completion queue");
        let qp = node
            .create_qp(&pd, &cq, &cq, &QpCap::default())
            .expect("a queue pair");
        let node = node.clone();
        Self {
            qp,
            cq,
            mr,
            pd,
            node,
        }
    }

    pub(crate) fn modify(&self, change: Modify) {
        self.qp
            .control()
            .modify(&change)
            .expect("a change that the state allows");
    }

    pub(crate) fn post(&mut self, wr_id: u64, op: SendOp<'_, Mr, Mw>) -> Result<(), PostError> {
        self.qp.post_send(&signalled(wr_id, op))
    }

    /// Posts a WRITE of `len` bytes from the start of the own region.
    pub(crate) fn write_region(&mut self, wr_id: u64, remote: RemoteAddr, len: usize) {
        let place = [Sge::new(&self.mr, 0, len)];
        let payload = Payload::Regions(&place);
        let write = SendOp::Write {
            payload,
            remote,
            imm: None,
        };
        self.qp
            .post_send(&signalled(wr_id, write))
            .expect("there is room");
    }

    /// Posts a READ of `len` bytes to the start of the own region.
    pub(crate) fn read(&mut self, wr_id: u64, remote: RemoteAddr, len: usize) {
        let local = [Sge::new(&self.mr, 0, len)];
        self.qp
            .post_send(&signalled(
                wr_id,
                SendOp::Read {
                    local: &local,
                    remote,
                },
            ))
            .expect("there is room");
    }

    pub(crate) fn poll(&mut self) -> Option<Completion> {
        poll(&mut self.cq)
    }

    pub(crate) fn wait(&mut self) -> Completion {
        wait(&mut self.cq)
    }
}

pub(crate) fn signalled<'a>(wr_id: u64, op: SendOp<'a, Mr, Mw>) -> SendWr<'a, Mr, Mw> {
    let flags = SendFlags::SIGNALED;
    SendWr { wr_id, op, flags }
}

pub(crate) fn poll(cq: &mut Cq) -> Option<Completion> {
    let mut out = [Completion::EMPTY];
    (cq.poll(&mut out) == 1).then_some(out[0])
}

pub(crate) fn wait(cq: &mut Cq) -> Completion {
    until("a completion", || poll(cq))
}

/// Calls `ask` until it gives something.
///
/// # Panics
/// If it takes longer than [`LIMIT`].
pub(crate) fn until<R>(what: &str, mut ask: impl FnMut() -> Option<R>) -> R {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < LIMIT, "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// Takes both ends from RESET to RTS. They may be the same one.
pub(crate) fn connect(a: &Qp, b: &Qp) {
    let ends = if std::ptr::eq(a, b) {
        vec![(a, a)]
    } else {
        vec![(a, b), (b, a)]
    };
    let modify = |qp: &Qp, change| {
        qp.control()
            .modify(&change)
            .expect("a change that the state allows")
    };
    for (qp, _) in &ends {
        modify(qp, Modify::Init(Access::LOG | Access::REMOTE_ATOMIC));
    }
    for (qp, peer) in ends {
        // Without a receive it is asked again every 10 µs.
        let remote = peer.control().endpoint();
        modify(
            qp,
            Modify::Rtr(RtrAttr {
                min_rnr_timer: 1,
                ..RtrAttr::new(remote)
            }),
        );
        // A peer that is gone is given up after 2 ms; one without a receive never is.
        modify(
            qp,
            Modify::Rts(RtsAttr {
                timeout: 8,
                retry_cnt: 1,
                rnr_retry: 7,
                ..RtsAttr::default()
            }),
        );
    }
}

/// Two ends, connected.
pub(crate) struct Pair {
    pub(crate) x: End,
    pub(crate) y: End,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let fabric = Fabric::new();
        let open = || fabric.open().expect("a context");
        Self::between(&open(), &open())
    }

    pub(crate) fn between(a: &Node, b: &Node) -> Self {
        let (x, y) = (End::new(a, BYTES), End::new(b, BYTES));
        connect(&x.qp, &y.qp);
        Self { x, y }
    }
}
