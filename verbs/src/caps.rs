//! What a device can do: queried once into a plain struct. Code branches on this, never on a device's name.

use std::fmt;

use crate::{Completion, WcStatus};

/// Which kind of memory and transport a context works on. For printing and for choosing a backend by name; no code may
/// decide by it what the device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// Threads of one process over shared words.
    Inproc,
    /// Processes of one host over sealed memory files.
    Shm,
    /// Any ibverbs device, Soft-RoCE included.
    Nic,
    /// The simulator.
    Sim,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inproc => "inproc",
            Self::Shm => "shm",
            Self::Nic => "nic",
            Self::Sim => "sim",
        })
    }
}

/// In which order the bytes of one WRITE become visible (`ibv_query_qp_data_in_order(3)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Ascending over the whole message: a reader that sees the last word sees all before it.
    WholeMessage,
    /// Ascending within aligned blocks of 128 bytes only.
    Aligned128Bytes,
    /// Nothing is promised: entries need a checksum.
    Unknown,
}

/// What atomics are atomic against (`enum ibv_atomic_cap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomicity {
    /// No atomics.
    None,
    /// Against other atomics of the same device.
    Hca,
    /// Against everything, the CPU included.
    Global,
}

/// Which kinds of queue pairs this interface offers on a device (`enum ibv_qp_type`). Reliable connections only so far;
/// unreliable connections and datagrams come with the application that needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpKinds {
    /// Reliable connection.
    pub rc: bool,
    /// Unreliable connection: WRITE and SEND without acknowledgement.
    pub uc: bool,
    /// Unreliable datagram: SEND to an address.
    pub ud: bool,
}

impl QpKinds {
    /// Reliable connections only.
    pub const RC: Self = Self {
        rc: true,
        uc: false,
        ud: false,
    };
}

/// A way to take a peer's right away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RevokeMethod {
    /// Change the queue pair's access flags, connection kept (the paper's fast path).
    QpFlags,
    /// Take the queue pair to ERR, let it drain, and to RESET (the paper's slow path).
    QpCycle,
    /// Take the registration away: by `ibv_rereg_mr` where that is a barrier
    /// ([`Capabilities::rereg_is_barrier`]), else by deregistering; the next grant registers anew.
    Reregister,
    /// Invalidate a type-2 memory window.
    Window,
}

impl RevokeMethod {
    /// All of them, fastest first.
    pub const ALL: [Self; 4] = [Self::QpFlags, Self::Window, Self::Reregister, Self::QpCycle];
}

impl fmt::Display for RevokeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QpFlags => "qp-flags",
            Self::QpCycle => "qp-cycle",
            Self::Reregister => "reregister",
            Self::Window => "window",
        })
    }
}

/// Whether a completed revocation by a method means that no byte lands any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// It does.
    Yes,
    /// It does not: known to leak.
    No,
    /// Not known for this device; `mu doctor --revoke-stress` tries it on yours.
    Unknown,
    /// The device does not offer the method.
    Unsupported,
}

/// Each method's worth on this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokeCaps {
    /// [`RevokeMethod::QpFlags`].
    pub qp_flags: Barrier,
    /// [`RevokeMethod::QpCycle`].
    pub qp_cycle: Barrier,
    /// [`RevokeMethod::Reregister`].
    pub reregister: Barrier,
    /// [`RevokeMethod::Window`].
    pub window: Barrier,
}

impl RevokeCaps {
    /// What `method` is worth.
    pub const fn of(&self, method: RevokeMethod) -> Barrier {
        match method {
            RevokeMethod::QpFlags => self.qp_flags,
            RevokeMethod::QpCycle => self.qp_cycle,
            RevokeMethod::Reregister => self.reregister,
            RevokeMethod::Window => self.window,
        }
    }

    /// The fastest method that is a barrier, if any.
    pub fn fastest_barrier(&self) -> Option<RevokeMethod> {
        RevokeMethod::ALL
            .into_iter()
            .find(|m| self.of(*m) == Barrier::Yes)
    }
}

/// What a device can do (`struct ibv_device_attr` and the answers of other queries).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The kind of backend.
    pub backend: BackendKind,
    /// The device's name, such as `rxe0` or `inproc`.
    pub device: String,
    /// The kernel driver or library behind it, as far as known.
    pub driver: String,
    /// Largest inline payload a queue pair can be asked for, in bytes; on a NIC what a trial queue pair took.
    pub max_inline_data: u32,
    /// Largest number of outstanding requests of a queue pair.
    pub max_qp_wr: u32,
    /// Largest number of pieces of a send request.
    pub max_sge: u32,
    /// Largest number of pieces of a receive request.
    pub max_recv_sge: u32,
    /// Largest number of entries of a completion queue.
    pub max_cqe: u32,
    /// READs and atomics in flight towards one queue pair.
    pub max_qp_rd_atom: u32,
    /// Largest message in bytes.
    pub max_msg: u64,
    /// Largest path MTU.
    pub max_mtu: crate::Mtu,
    /// Visibility order within one WRITE.
    pub placement: Placement,
    /// Atomics.
    pub atomicity: Atomicity,
    /// Kinds of queue pairs.
    pub qp_kinds: QpKinds,
    /// Revocation methods.
    pub revoke: RevokeCaps,
    /// `ibv_rereg_mr` keeps the keys while the rights change.
    pub rereg_mr: bool,
    /// Once `ibv_rereg_mr` has returned, nothing lands under a right that it removed. No specification says so of a
    /// NIC: there only deregistration is known to be a barrier.
    pub rereg_is_barrier: bool,
    /// Type-2 memory windows.
    pub memory_windows: bool,
    /// A revocation ends within a bound even if the writer is stopped in mid-copy.
    pub bounded_revoke: bool,
    /// The target's CPU does nothing for an operation of a peer.
    pub target_cpu_free: bool,
    /// The device knows when a peer's process has ended, and tells: see [`says_peer_ended`](Self::says_peer_ended). A
    /// NIC does not: to it a dead peer, a broken path and a slow one look alike.
    pub tells_peer_ended: bool,
    /// Who posts a request carries it out, itself or in the kernel: what it costs is the caller's time, and unless
    /// something is in the way its completion is there when the post returns, or soon after. So requests run one after
    /// the other, and whoever waits for one should post it first. A NIC takes requests and works on many at a time.
    pub runs_when_posted: bool,
    /// A peer that lies about its own addresses, keys or counters is contained.
    pub hostile_safe: bool,
}

impl Capabilities {
    /// Whether a completion says that the peer's process has ended, or is about to and does not come back from it. Some
    /// of its threads may run for microseconds more, so this is word of the peer's future and no barrier.
    pub fn says_peer_ended(&self, completion: &Completion) -> bool {
        self.tells_peer_ended
            && completion.status == WcStatus::RETRY_EXC_ERR
            && completion.vendor_err == Completion::PEER_ENDED
    }
}
