//! Completion queues. Each queue pair has a ring of its own, with one producer and one consumer; polling looks at the
//! rings of all queue pairs that are attached, starting at another one each time. So no producer waits for another,
//! and a peer's process never writes into this one's memory except into its lane.

use std::sync::Arc;

use crate::error::Error;
use crate::limits::{MAX_CQE, MAX_MSG, MAX_RECV_WR};
use crate::node::{Lane, NodeShared, lock};
use crate::post::Record;
use crate::qp::QpShared;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::table::{Nak, inbound_record, lane_row, qp_row, recv_record};
use crate::types::{Completion, QpState, WcOpcode, WcStatus};

/// A completion queue (`struct ibv_cq`): the end that polls.
pub struct Cq {
    pub(crate) shared: Arc<CqShared>,
    version: u64,
    sources: Vec<Source>,
    next: usize,
}

pub(crate) struct CqShared {
    pub(crate) node_id: u64,
    /// Raised when a queue pair is attached or detached.
    version: AtomicU64,
    attached: Mutex<Vec<(Arc<QpShared>, bool, bool)>>,
}

/// One queue pair as the polling thread sees it.
struct Source {
    qp: Arc<QpShared>,
    sends: bool,
    receives: bool,
    epoch: u64,
    incarnation: u32,
    generation: u32,
    failed: bool,
    lane: Option<Arc<Lane>>,
    /// The peer's queue pair, as slot of its row in the lane.
    writer: usize,
    /// Receives delivered.
    delivered: u64,
}

impl Cq {
    pub(crate) fn new(node: &Arc<NodeShared>, depth: u32) -> Result<Self, Error> {
        if depth == 0 || depth as usize > MAX_CQE {
            return Err(Error::Limit {
                verb: "ibv_create_cq",
                what: "entries of a completion queue",
                asked: depth as usize,
                limit: MAX_CQE,
            });
        }
        let shared = CqShared {
            node_id: node.id,
            version: AtomicU64::new(0),
            attached: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            version: 0,
            sources: Vec::new(),
            next: 0,
        })
    }

    /// Moves completions into `out` and returns how many.
    #[inline]
    pub fn poll(&mut self, out: &mut [Completion]) -> usize {
        if self.shared.version.load(Ordering::Acquire) != self.version {
            self.reload();
        }
        let count = self.sources.len();
        let mut n = 0;
        for _ in 0..count {
            self.next = if self.next + 1 >= count {
                0
            } else {
                self.next + 1
            };
            n += self.sources[self.next].poll(&mut out[n..]);
            if n == out.len() {
                break;
            }
        }
        n
    }

    /// Takes over the list of attached queue pairs, keeping what is known of those that stay.
    #[cold]
    fn reload(&mut self) {
        let attached = lock(&self.shared.attached);
        self.version = self.shared.version.load(Ordering::Acquire);
        let mut old = std::mem::take(&mut self.sources);
        self.sources = attached
            .iter()
            .map(
                |(qp, sends, receives)| match old.iter().position(|s| Arc::ptr_eq(&s.qp, qp)) {
                    Some(at) => old.swap_remove(at),
                    None => Source::new(qp, *sends, *receives),
                },
            )
            .collect();
    }
}

impl CqShared {
    pub(crate) fn attach(&self, qp: &Arc<QpShared>, sends: bool, receives: bool) {
        lock(&self.attached).push((Arc::clone(qp), sends, receives));
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn detach(&self, qp: &QpShared) {
        lock(&self.attached).retain(|(other, ..)| !std::ptr::eq(Arc::as_ptr(other), qp));
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl Source {
    fn new(qp: &Arc<QpShared>, sends: bool, receives: bool) -> Self {
        let delivered = qp.recv_delivered.load(Ordering::Relaxed);
        let qp = Arc::clone(qp);
        Self {
            qp,
            sends,
            receives,
            epoch: 0,
            incarnation: 0,
            generation: 0,
            failed: false,
            lane: None,
            writer: 0,
            delivered,
        }
    }

    #[inline]
    fn poll(&mut self, out: &mut [Completion]) -> usize {
        // There is no lane before RTR: what was posted then can only be flushed.
        let (nak, done) = self.lane.as_ref().map_or((0, 0), |lane| {
            let row = lane_row(lane.memory.words(), self.qp.slot);
            (
                row.nak().load(Ordering::Acquire),
                row.recv_done().load(Ordering::Acquire),
            )
        });
        if !self.failed && Nak::is_of(nak, self.generation) {
            // Takes the refusal in, which raises the epoch.
            drop(self.qp.lock());
        }
        let mut received = done > self.delivered;
        if self.qp.epoch.load(Ordering::Acquire) != self.epoch {
            self.refresh();
            received = true;
        }
        let mut n = 0;
        if self.sends {
            if self.qp.waits.load(Ordering::Acquire) {
                self.progress();
            }
            n += self.poll_sends(out);
        }
        if self.receives && (received || self.failed) && n < out.len() {
            n += self.poll_receives(&mut out[n..]);
        }
        n
    }

    #[cold]
    fn refresh(&mut self) {
        let ctl = self.qp.lock();
        self.epoch = self.qp.epoch.load(Ordering::Acquire);
        self.failed = ctl.state == QpState::Err;
        self.incarnation = ctl.incarnation;
        self.generation = ctl.generation;
        self.lane.clone_from(&ctl.lane);
        self.writer = ctl.writer;
        let base = qp_row(self.qp.node.ctl.words(), self.qp.slot)
            .recv_base()
            .load(Ordering::Acquire);
        self.delivered = self.delivered.max(base);
    }

    /// Lets waiting requests go on, unless the posting thread is at it.
    #[cold]
    fn progress(&self) {
        if let Ok(mut slow) = self.qp.slow.try_lock() {
            slow.progress(&self.qp);
        }
    }

    #[inline]
    fn poll_sends(&mut self, out: &mut [Completion]) -> usize {
        let mut n = 0;
        while n < out.len() {
            let Some(words) = self.qp.ring.pop() else {
                break;
            };
            let record = Record::from_words(words);
            if record.incarnation != self.incarnation {
                // A RESET forgot it, or made it after this thread looked: look again once before dropping it.
                self.refresh();
                if record.incarnation != self.incarnation {
                    continue;
                }
            }
            self.qp.reclaimed.store(record.index + 1, Ordering::Release);
            out[n] = Completion {
                wr_id: record.wr_id,
                status: record.status,
                opcode: record.opcode,
                byte_len: record.byte_len,
                imm_data: None,
                qp_num: self.qp.qp_num,
                vendor_err: match record.status {
                    WcStatus::RETRY_EXC_ERR => self.why_gone(),
                    _ => 0,
                },
            };
            n += 1;
        }
        n
    }

    /// What the layer knows of a peer that does not answer.
    #[cold]
    fn why_gone(&self) -> u32 {
        let ctl = self.qp.lock();
        let ended = ctl
            .path
            .as_ref()
            .is_some_and(|path| path.view.ended.load(Ordering::Acquire));
        if ended { Completion::PEER_ENDED } else { 0 }
    }

    /// There are receives that were completed, or may be flushed.
    #[inline(never)]
    fn poll_receives(&mut self, out: &mut [Completion]) -> usize {
        let lane = self.lane.as_ref().map(|lane| lane.memory.words());
        // A receive is flushed, and its buffer the caller's again, only when the peer is not in the middle of filling
        // it. That comes before the look at how many it has filled: one that ended in between is not flushed.
        let writer = self.writer;
        let flush = self.failed && self.lane.as_ref().is_none_or(|lane| lane.is_quiet(writer));
        let done = lane.map_or(0, |words| {
            lane_row(words, self.qp.slot)
                .recv_done()
                .load(Ordering::Acquire)
        });
        if done <= self.delivered && !flush {
            return 0;
        }
        let posted = qp_row(self.qp.node.ctl.words(), self.qp.slot)
            .recv_posted()
            .load(Ordering::Acquire);
        let mut n = 0;
        while n < out.len() && self.delivered < posted {
            let index = self.delivered;
            let wr_id = self.qp.recv_ids[index as usize % MAX_RECV_WR].load(Ordering::Relaxed);
            out[n] = Completion {
                wr_id,
                qp_num: self.qp.qp_num,
                ..Completion::EMPTY
            };
            if let Some(words) = lane.filter(|_| index < done) {
                let [head, tail, ..] = inbound_record(words, self.qp.slot, index);
                let (head, tail) = (head.load(Ordering::Relaxed), tail.load(Ordering::Relaxed));
                out[n].status = WcStatus((head & 0xff) as u32);
                out[n].opcode = WcOpcode((head >> 8 & 0xffff) as u32);
                out[n].byte_len = tail as u32;
                out[n].imm_data = (head >> 32 & 1 == 1).then_some((tail >> 32) as u32);
                if !self.is_plausible(index, &out[n]) {
                    out[n].status = WcStatus::GENERAL_ERR;
                    out[n].byte_len = 0;
                }
            } else if flush {
                out[n].status = WcStatus::WR_FLUSH_ERR;
                out[n].opcode = WcOpcode::RECV;
            } else {
                break;
            }
            self.delivered += 1;
            n += 1;
        }
        self.qp
            .recv_delivered
            .store(self.delivered, Ordering::Release);
        n
    }

    /// What a peer says of a receive is checked against what was posted: a length beyond the buffer must not reach a
    /// caller who slices by it.
    fn is_plausible(&self, index: u64, completion: &Completion) -> bool {
        let [_, len_key, ..] = recv_record(self.qp.node.ctl.words(), self.qp.slot, index);
        let posted = len_key.load(Ordering::Relaxed) as u32;
        match completion.opcode {
            WcOpcode::RECV => completion.byte_len <= posted,
            WcOpcode::RECV_RDMA_WITH_IMM => completion.byte_len as usize <= MAX_MSG,
            _ => false,
        }
    }
}
