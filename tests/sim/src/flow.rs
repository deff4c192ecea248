//! Flows: what a connected queue pair has under way. A flow outlives its queue pair's connection: what was transmitted
//! already is a ghost that may still take effect at the target.

use std::collections::VecDeque;

use mu_verbs::{Access, RemoteAddr, RtsAttr, WcOpcode, WcStatus};

use crate::profile::MAX_SGE;

/// A piece of local memory.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) region: u32,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// What a request does at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Write,
    Read,
    CompareSwap { compare: u64, swap: u64 },
    FetchAdd(u64),
}

impl Action {
    pub(crate) fn opcode(self) -> WcOpcode {
        match self {
            Self::Write => WcOpcode::RDMA_WRITE,
            Self::Read => WcOpcode::RDMA_READ,
            Self::CompareSwap { .. } => WcOpcode::COMP_SWAP,
            Self::FetchAdd(_) => WcOpcode::FETCH_ADD,
        }
    }

    /// The right it needs at the target.
    pub(crate) fn need(self) -> Access {
        match self {
            Self::Write => Access::REMOTE_WRITE,
            Self::Read => Access::REMOTE_READ,
            Self::CompareSwap { .. } | Self::FetchAdd(_) => Access::REMOTE_ATOMIC,
        }
    }
}

/// A part of a message that takes effect at once.
#[derive(Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) offset: u32,
    pub(crate) len: u32,
    /// It is the first of its packet: rights are looked at for certain.
    pub(crate) first: bool,
}

/// A request under way.
pub(crate) struct Request {
    pub(crate) wr_id: u64,
    pub(crate) signaled: bool,
    pub(crate) action: Action,
    pub(crate) remote: RemoteAddr,
    pub(crate) len: usize,
    pub(crate) pieces: [Option<Piece>; MAX_SGE],
    /// The bytes of a WRITE as they left, or those a READ has got so far.
    pub(crate) data: Vec<u8>,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) next_chunk: usize,
    pub(crate) sent_at: u64,
    pub(crate) arrives_at: u64,
    /// Memory and byte where its first byte goes, once admitted.
    pub(crate) target: (u32, usize),
    /// Acknowledged, though not yet visible; and whether its completion went out.
    pub(crate) hidden: bool,
    pub(crate) told: bool,
    pub(crate) tries: u8,
    /// It is sent again: a device takes the bytes anew.
    pub(crate) again: bool,
    pub(crate) result: Option<WcStatus>,
    pub(crate) answered: bool,
}

impl Request {
    /// Whether its bytes come from regions, and when they leave.
    pub(crate) fn gathers(&self) -> bool {
        self.action == Action::Write && self.pieces[0].is_some()
    }
}

/// Requests from one queue pair to another, in order.
#[derive(Default)]
pub(crate) struct Flow {
    /// Raised when the slot is given to another flow, so that old events find nothing.
    pub(crate) generation: u32,
    pub(crate) qp: u32,
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// The target as it was connected to.
    pub(crate) target_qp: u32,
    pub(crate) target_qp_num: u32,
    pub(crate) target_psn: u32,
    pub(crate) own_qp_num: u32,
    pub(crate) own_psn: u32,
    pub(crate) own_ctx: u64,
    pub(crate) mtu: usize,
    pub(crate) rts: RtsAttr,
    /// Its queue pair still waits for answers.
    pub(crate) live: bool,
    pub(crate) in_use: bool,
    /// Serial number of the first of `requests`, and of the one that is next at the target.
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) requests: VecDeque<Request>,
    /// An event to go on at the target is in the queue.
    pub(crate) moving: bool,
    pub(crate) last_sent: u64,
    pub(crate) last_arrival: u64,
    pub(crate) last_answer: u64,
}

impl Flow {
    /// The request that is next at the target.
    pub(crate) fn current(&mut self) -> Option<&mut Request> {
        let at = self.next - self.first;
        self.requests.get_mut(at as usize)
    }

    /// A request by its number, if it is still under way.
    pub(crate) fn request(&mut self, serial: u64) -> Option<&mut Request> {
        let at = serial.checked_sub(self.first)?;
        self.requests.get_mut(at as usize)
    }

    /// Time-out of a packet in nanoseconds; `None` waits for ever.
    pub(crate) fn timeout_ns(&self) -> Option<u64> {
        (self.rts.timeout != 0).then(|| 4_096 << (self.rts.timeout & 31))
    }
}
