//! What the devices of a run are like.

use mu_verbs::{
    Atomicity, BackendKind, Barrier, Capabilities, Mtu, Placement, QpKinds, RevokeCaps,
};

use crate::rng::Rng;

/// Which revocations let a packet that was already admitted go on. Deregistering and destroying a queue pair never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The flags of a queue pair (Soft-RoCE).
    pub flags: bool,
    /// ERR and RESET of a queue pair (Soft-RoCE).
    pub cycle: bool,
    /// The rights of a registration; there is no `ibv_rereg_mr` that is a barrier then.
    pub reregister: bool,
}

impl Leak {
    /// Everything is a barrier, as in software.
    pub const NONE: Self = Self {
        flags: false,
        cycle: false,
        reregister: false,
    };
    /// Only deregistering is, as measured on kernel Soft-RoCE.
    pub const SOFT_ROCE: Self = Self {
        flags: true,
        cycle: true,
        reregister: true,
    };
}

/// The devices and the network of a run. Times in nanoseconds, rates in a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What is promised of the order of placement, and kept to, no better.
    pub placement: Placement,
    /// Which revocations leak.
    pub leak: Leak,
    /// Whether `ibv_rereg_mr` is offered.
    pub rereg_mr: bool,
    /// Whether completions made before a RESET may still be polled after it.
    pub reset_keeps_completions: bool,
    /// Inline payload.
    pub max_inline_data: u32,
    /// Requests that a queue pair holds.
    pub max_qp_wr: u32,
    /// The usual time of one way; each message takes between this and twice this.
    pub latency_ns: u64,
    /// Messages that take much longer.
    pub tail: u32,
    /// How long those take at most.
    pub tail_max_ns: u64,
    /// Time between two pieces of a message, at most, usually.
    pub gap_ns: u64,
    /// Writes that are acknowledged before they are visible.
    pub visible_late: u32,
    /// Messages that are torn into pieces.
    pub torn: u32,
    /// Whether a request to a process that has ended ends at once and says so, as in software.
    pub tells_peer_ended: bool,
    /// Whether the caller carries its requests out itself while it posts, as in software: most completions are there
    /// when it polls next, in the same turn.
    pub synchronous: bool,
    /// Whether posting is said to cost the caller's time, as on Soft-RoCE too, whose completions may take longer.
    pub runs_when_posted: bool,
}

impl Profile {
    /// Quick, ordered, with barriers, nothing unusual.
    pub const CALM: Self = Self {
        placement: Placement::WholeMessage,
        leak: Leak::NONE,
        rereg_mr: true,
        reset_keeps_completions: false,
        max_inline_data: 256,
        max_qp_wr: MAX_WR,
        latency_ns: 600,
        tail: 0,
        tail_max_ns: 0,
        gap_ns: 50,
        visible_late: 0,
        torn: 0,
        tells_peer_ended: false,
        synchronous: false,
        runs_when_posted: false,
    };

    /// Some device, from the seed.
    pub fn draw(rng: &mut Rng) -> Self {
        let leak = *rng.pick(&[
            Leak::NONE,
            Leak::NONE,
            Leak::SOFT_ROCE,
            Leak {
                flags: true,
                cycle: false,
                reregister: false,
            },
            Leak {
                flags: true,
                cycle: false,
                reregister: true,
            },
        ]);
        let placements = [
            Placement::WholeMessage,
            Placement::Aligned128Bytes,
            Placement::Unknown,
        ];
        let latency_ns = *rng.pick(&[300, 600, 1_500, 5_000]);
        // What is quick and leaks nothing may be memory of the same host.
        let same_host = leak == Leak::NONE && latency_ns <= SAME_HOST_NS;
        let synchronous = same_host && rng.one_in(2);
        Self {
            placement: *rng.pick(&placements),
            leak,
            rereg_mr: !rng.one_in(4),
            reset_keeps_completions: rng.one_in(3),
            max_inline_data: *rng.pick(&[16, 64, 220, 256, 1024]),
            max_qp_wr: *rng.pick(&[16, 64, MAX_WR]),
            latency_ns,
            tail: *rng.pick(&[0, 1_000, 10_000, 50_000]),
            tail_max_ns: *rng.pick(&[20_000, 200_000, 2_000_000]),
            gap_ns: *rng.pick(&[20, 200, 2_000]),
            visible_late: *rng.pick(&[0, 20_000, 200_000]),
            torn: *rng.pick(&[50_000, 300_000, 900_000]),
            tells_peer_ended: same_host,
            synchronous,
            runs_when_posted: synchronous || rng.one_in(4),
        }
    }

    /// A device that is memory of the same host, whose caller carries its requests out.
    pub(crate) fn synchronous(self) -> Self {
        Self {
            leak: Leak::NONE,
            latency_ns: self.latency_ns.min(SAME_HOST_NS),
            tells_peer_ended: true,
            synchronous: true,
            runs_when_posted: true,
            ..self
        }
    }

    /// The device says that posting takes the caller's time.
    pub(crate) fn said_to_run(self) -> Self {
        Self {
            runs_when_posted: true,
            ..self
        }
    }

    /// A device on which much is under way for long.
    pub(crate) fn sluggish(self) -> Self {
        Self {
            latency_ns: 5_000,
            tail: 50_000,
            tail_max_ns: 2_000_000,
            synchronous: false,
            tells_peer_ended: false,
            ..self
        }
    }

    /// A sluggish device that takes nearly everything from memory when it sends it, and not when it is posted.
    pub(crate) fn sluggish_and_gathering(self) -> Self {
        Self {
            max_inline_data: 16,
            ..self.sluggish()
        }
    }

    /// As the device states it.
    pub(crate) fn capabilities(&self) -> Capabilities {
        let worth = |leaks: bool| if leaks { Barrier::No } else { Barrier::Yes };
        Capabilities {
            backend: BackendKind::Sim,
            device: "sim".into(),
            driver: "mu-sim".into(),
            max_inline_data: self.max_inline_data,
            max_qp_wr: self.max_qp_wr,
            max_sge: MAX_SGE as u32,
            max_recv_sge: 1,
            max_cqe: MAX_CQE,
            max_qp_rd_atom: 16,
            max_msg: MAX_MSG as u64,
            max_mtu: Mtu::B4096,
            placement: self.placement,
            atomicity: Atomicity::Hca,
            qp_kinds: QpKinds::RC,
            revoke: RevokeCaps {
                qp_flags: worth(self.leak.flags),
                qp_cycle: worth(self.leak.cycle),
                reregister: Barrier::Yes,
                window: Barrier::Unsupported,
            },
            rereg_mr: self.rereg_mr,
            rereg_is_barrier: self.rereg_mr && !self.leak.reregister,
            memory_windows: false,
            bounded_revoke: true,
            target_cpu_free: true,
            tells_peer_ended: self.tells_peer_ended,
            runs_when_posted: self.runs_when_posted,
            hostile_safe: true,
        }
    }
}

/// Messages between processes of a host take no longer.
const SAME_HOST_NS: u64 = 600;
/// Requests of one queue and direction.
pub(crate) const MAX_WR: u32 = 8192;
/// Pieces of a send request.
pub(crate) const MAX_SGE: usize = 4;
/// Entries of a completion queue.
pub(crate) const MAX_CQE: u32 = 1 << 20;
/// Bytes of a message.
pub(crate) const MAX_MSG: usize = 1 << 30;
