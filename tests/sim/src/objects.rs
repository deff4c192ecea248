//! The tables: memories, registrations, completion queues, queue pairs, opened devices, nodes and links.

use std::collections::VecDeque;

use mu_verbs::{Access, AsyncEvent, Completion, Endpoint, Memory, QpState, RtsAttr};

use crate::faults::{Nic, Rates};

/// Memory of a device. Its address is the simulator's, so that a run does not depend on where the system put it.
pub(crate) struct Mem {
    pub(crate) ctx: u32,
    pub(crate) memory: Memory,
    pub(crate) base: u64,
}

/// A registration.
pub(crate) struct Region {
    pub(crate) ctx: u32,
    pub(crate) pd: u32,
    pub(crate) mem: u32,
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) access: Access,
    pub(crate) key: u32,
    pub(crate) alive: bool,
}

impl Region {
    /// Where in its memory `len` bytes from `addr` are, if they lie inside.
    pub(crate) fn offset(&self, base: u64, addr: u64, len: usize) -> Option<usize> {
        let offset = addr.checked_sub(base + self.start as u64)?;
        let end = offset.checked_add(len as u64)?;
        (end <= self.len as u64).then_some(self.start + offset as usize)
    }
}

/// A completion with what polling has to know of it.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub(crate) completion: Completion,
    pub(crate) qp: u32,
    pub(crate) incarnation: u32,
    /// Requests of the queue pair and direction that are finished with it.
    pub(crate) finished: u64,
    pub(crate) receive: bool,
}

/// A completion queue.
pub(crate) struct CqTable {
    pub(crate) ctx: u32,
    pub(crate) depth: usize,
    pub(crate) ready: VecDeque<Record>,
    pub(crate) overrun: bool,
}

/// A queue pair.
pub(crate) struct QpTable {
    pub(crate) ctx: u32,
    pub(crate) node: usize,
    pub(crate) pd: u32,
    /// Of sends and of receives.
    pub(crate) cqs: [u32; 2],
    pub(crate) qp_num: u32,
    pub(crate) state: QpState,
    pub(crate) access: Access,
    pub(crate) psn: u32,
    pub(crate) mtu: usize,
    pub(crate) remote: Endpoint,
    pub(crate) rts: RtsAttr,
    /// Counts RESETs.
    pub(crate) incarnation: u32,
    /// Send requests posted, and known by polling to be finished.
    pub(crate) posted: u64,
    pub(crate) finished: u64,
    /// Numbers of receives that are posted, and how many were taken or flushed, and known to be.
    pub(crate) receives: VecDeque<u64>,
    pub(crate) received: u64,
    pub(crate) receives_finished: u64,
    /// No completion comes before this.
    pub(crate) deliver_from: u64,
    pub(crate) flow: Option<u32>,
    pub(crate) alive: bool,
}

impl QpTable {
    /// Whether it answers peers.
    pub(crate) fn answers(&self) -> bool {
        self.alive && matches!(self.state, QpState::Rtr | QpState::Rts)
    }
}

/// An opened device: what dies with a process.
pub(crate) struct CtxTable {
    pub(crate) node: usize,
    /// Its number in endpoints.
    pub(crate) id: u64,
    pub(crate) pds: u32,
    pub(crate) alive: bool,
    /// Nothing that its process calls does anything any more.
    pub(crate) frozen: bool,
    pub(crate) events: VecDeque<AsyncEvent>,
}

/// A node's fault domains, its CPU left to whoever drives the world.
pub(crate) struct NodeTable {
    pub(crate) nic: Nic,
    pub(crate) rates: Rates,
    pub(crate) clock: Clock,
    /// Flows towards it whose current request is acknowledged and not yet visible.
    pub(crate) hidden: u32,
}

/// What a node takes for the time.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    /// World time and local time at the last change.
    pub(crate) since: u64,
    pub(crate) base: u64,
    /// Local nanoseconds for a million of the world.
    pub(crate) rate: u64,
}

impl Clock {
    pub(crate) const TRUE_RATE: u64 = 1_000_000;

    pub(crate) fn at(&self, now: u64) -> u64 {
        let gone = u128::from(now - self.since) * u128::from(self.rate);
        self.base + (gone / u128::from(Self::TRUE_RATE)) as u64
    }
}

/// One direction between two nodes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    /// Until when each message takes this much longer.
    pub(crate) clog_until: u64,
    pub(crate) clog_ns: u64,
}
