//! Two connected nodes.

use mu_sim::{NodeId, Profile, SimContext, SimCq, SimMr, SimPd, SimQp, Wake, World};
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Memory, MemoryRegion, Modify, Payload, QpCap,
    QpControl, QueuePair, RemoteAddr, RtrAttr, RtsAttr, SendFlags, SendOp, SendWr, Sge,
};

/// Everything a peer can be allowed.
pub(crate) const REMOTE: Access = Access(14);
/// Bytes of each end's memory.
pub(crate) const BYTES: usize = 4096;
/// Long enough for everything that is not a time-out.
pub(crate) const SOON_NS: u64 = 20_000_000;
/// 16 µs, three times.
pub(crate) const IMPATIENT: RtsAttr = RtsAttr {
    timeout: 2,
    retry_cnt: 2,
    rnr_retry: 0,
    max_rd_atomic: 16,
};

/// One node's end.
pub(crate) struct End {
    pub(crate) ctx: SimContext,
    pub(crate) pd: SimPd,
    pub(crate) memory: Memory,
    pub(crate) mr: SimMr,
    pub(crate) cq: SimCq,
    pub(crate) qp: SimQp,
}

/// Node 0 and node 1.
pub(crate) struct Pair {
    pub(crate) world: World,
    pub(crate) a: End,
    pub(crate) b: End,
}

impl End {
    pub(crate) fn open(world: &World, node: usize) -> Self {
        let ctx = world.open(NodeId(node));
        let pd = ctx.alloc_pd().expect("a domain");
        let memory = ctx.alloc_memory(BYTES).expect("memory");
        let all = REMOTE | Access::LOCAL_WRITE;
        let mr = ctx
            .reg_mr(&pd, &memory, 0..BYTES, all)
            .expect("a registration");
        let cq = ctx.create_cq(64).expect("a completion queue");
        let max_inline_data = ctx.caps().max_inline_data;
        let cap = QpCap {
            max_send_wr: 16,
            max_recv_wr: 16,
            max_inline_data,
            ..QpCap::default()
        };
        let qp = ctx.create_qp(&pd, &cq, &cq, &cap).expect("a queue pair");
        Self {
            ctx,
            pd,
            memory,
            mr,
            cq,
            qp,
        }
    }

    pub(crate) fn modify(&self, change: Modify) {
        self.qp
            .control()
            .modify(&change)
            .unwrap_or_else(|e| panic!("{}: {e}", change.name()));
    }

    pub(crate) fn post(&mut self, wr_id: u64, op: SendOp<'_, SimMr, mu_sim::SimMw>) {
        let flags = SendFlags::SIGNALED;
        self.qp
            .post_send(&SendWr { wr_id, op, flags })
            .expect("room in the queue");
    }

    /// WRITE of private bytes.
    pub(crate) fn write(&mut self, wr_id: u64, bytes: &[u8], remote: RemoteAddr) {
        self.post(
            wr_id,
            SendOp::Write {
                payload: Payload::Inline(bytes),
                remote,
                imm: None,
            },
        );
    }

    /// WRITE of the own memory's bytes from `offset`.
    pub(crate) fn write_from(&mut self, wr_id: u64, offset: usize, len: usize, remote: RemoteAddr) {
        let Self { mr, qp, .. } = self;
        let sges = [Sge::new(mr, offset, len)];
        let op = SendOp::Write {
            payload: Payload::Regions(&sges),
            remote,
            imm: None,
        };
        qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SendFlags::SIGNALED,
        })
        .expect("room");
    }

    pub(crate) fn read(&mut self, wr_id: u64, offset: usize, len: usize, remote: RemoteAddr) {
        let Self { mr, qp, .. } = self;
        let local = [Sge::new(mr, offset, len)];
        let op = SendOp::Read {
            local: &local,
            remote,
        };
        qp.post_send(&SendWr {
            wr_id,
            op,
            flags: SendFlags::SIGNALED,
        })
        .expect("room");
    }

    /// What completed so far.
    pub(crate) fn poll(&mut self) -> Vec<Completion> {
        let mut out = [Completion::EMPTY; 32];
        let n = self.cq.poll(&mut out);
        out[..n].to_vec()
    }
}

impl Pair {
    pub(crate) fn new(seed: u64, profile: Profile) -> Self {
        let world = World::new(2, seed, profile);
        let (a, b) = (End::open(&world, 0), End::open(&world, 1));
        let pair = Self { world, a, b };
        pair.connect(REMOTE, RtsAttr::default());
        pair
    }

    pub(crate) fn calm(seed: u64) -> Self {
        Self::new(seed, Profile::CALM)
    }

    /// Connects both ends, anew if they were.
    pub(crate) fn connect(&self, access: Access, rts: RtsAttr) {
        let ends = [&self.a, &self.b];
        ends.iter().for_each(|end| end.modify(Modify::Reset));
        ends.iter().for_each(|end| end.modify(Modify::Init(access)));
        for (end, peer) in [(&self.a, &self.b), (&self.b, &self.a)] {
            end.modify(Modify::Rtr(RtrAttr::new(peer.qp.control().endpoint())));
            end.modify(Modify::Rts(rts));
        }
    }

    pub(crate) fn run(&self, time_ns: u64) {
        let until = self.world.now_ns() + time_ns;
        while self.world.advance(until) != Wake::Limit {}
    }

    /// Lets everything settle; what `a` has completed.
    pub(crate) fn settle(&mut self) -> Vec<Completion> {
        self.run(SOON_NS);
        self.a.poll()
    }

    /// The place of byte `offset` at `b`.
    pub(crate) fn there(&self, offset: usize) -> RemoteAddr {
        self.b.mr.remote(offset)
    }
}
