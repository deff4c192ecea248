//! The control side of a queue pair: states, rights, and the target's part of the gate.
//!
//! The state and the rights live twice: in [`Ctl`] under a mutex, which is the truth, and in the permission word of the
//! control segment, which is what peers check. Every change raises `epoch`; the posting and the polling thread keep
//! copies of what they need and take new ones when the epoch they saw is old, so that neither locks while nothing
//! changes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool as StdBool;
use std::time::Instant;

use crate::cq::{Cq, CqShared};
use crate::engine::Path;
use crate::error::Error;
use crate::gate;
use crate::limits::{MAX_INLINE, MAX_QPS, MAX_RECV_SGE, MAX_RECV_WR, MAX_SEND_WR, MAX_SGE};
use crate::node::{Lane, NodeShared, Pd, Stalled, View, lock, random};
use crate::post::Poster;
use crate::ring::Ring;
use crate::slow::{Late, Slow};
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, Word, spin_hint};
use crate::table::{Nak, Permission, lane_row, qp_row, qp_slot, writer_row};
use crate::types::{Access, AsyncEvent, Endpoint, Modify, QpCap, QpState, RtrAttr, RtsAttr};

/// A queue pair (`struct ibv_qp`): the end that posts. Its rights and states are changed through [`Control`].
pub struct Qp {
    pub(crate) control: Control,
    pub(crate) poster: Poster,
}

/// The control side of a queue pair, usable from any thread.
#[derive(Clone)]
pub struct Control(pub(crate) Arc<QpShared>);

pub(crate) struct QpShared {
    pub(crate) node: Arc<NodeShared>,
    pub(crate) slot: usize,
    pub(crate) qp_num: u32,
    pub(crate) pd: u32,
    pub(crate) cap: QpCap,
    /// Raised by every change; the posting and polling threads re-read then.
    pub(crate) epoch: AtomicU64,
    ctl: Mutex<Ctl>,
    /// Completions of send requests. Pushed to by the posting thread, or under the lock of `slow` while `is_slow`.
    pub(crate) ring: Ring,
    /// Send requests known to be finished, by number: written by the polling thread.
    pub(crate) reclaimed: Word,
    /// Requests wait in `slow`: all posting goes through its lock.
    pub(crate) is_slow: AtomicBool,
    pub(crate) slow: Mutex<Slow>,
    /// Something in `slow` takes polling to go on. Stored under its lock only. `is_slow` is no sign of that: only the
    /// posting thread clears it, when it posts again, and where it never does every poll would take the lock.
    pub(crate) waits: AtomicBool,
    /// Writes that the placement mode holds back; shared with `slow`.
    pub(crate) late: Arc<Mutex<Late>>,
    /// The caller's numbers of posted receives.
    pub(crate) recv_ids: Box<[Word]>,
    /// Receives delivered by polling: written by the polling thread.
    pub(crate) recv_delivered: Word,
    cqs: [Arc<CqShared>; 2],
    closed: StdBool,
}

/// The truth about a queue pair.
pub(crate) struct Ctl {
    pub(crate) state: QpState,
    pub(crate) access: Access,
    pub(crate) generation: u32,
    psn: u32,
    pub(crate) rts: RtsAttr,
    /// What the peer writes to me, from RTR on.
    pub(crate) lane: Option<Arc<Lane>>,
    /// The peer's queue pair, as slot of its row in the lane.
    pub(crate) writer: usize,
    /// The way to the peer, from RTR on.
    pub(crate) path: Option<Arc<Path>>,
    /// Counts RESETs: requests and completions of earlier incarnations are forgotten.
    pub(crate) incarnation: u32,
}

impl Ctl {
    /// The peer's context and queue pair, while connected.
    fn initiator(&self) -> Option<(u64, u32)> {
        self.path
            .as_ref()
            .map(|path| (path.view.target, path.target_qp))
    }
}

impl Qp {
    pub(crate) fn create(
        node: &Arc<NodeShared>,
        pd: &Pd,
        send_cq: &Cq,
        recv_cq: &Cq,
        cap: &QpCap,
    ) -> Result<Self, Error> {
        check_sizes(cap)?;
        if [pd.node.id, send_cq.shared.node_id, recv_cq.shared.node_id]
            .iter()
            .any(|id| *id != node.id)
        {
            let what = "the domain or a completion queue belongs to another context".into();
            return Err(Error::Invalid {
                verb: "ibv_create_qp",
                what,
            });
        }
        let noise = random()? as u32;
        let slow = Slow::new(cap, node.placement);
        let shared = node.add_qp(|slot| {
            Arc::new(QpShared {
                node: Arc::clone(node),
                slot,
                // Never 0 or 1, which InfiniBand keeps for management: bit 23 is always set.
                qp_num: (noise & 0x7f_ffff & !(MAX_QPS as u32 - 1)) | slot as u32 | 0x80_0000,
                pd: pd.id,
                cap: *cap,
                epoch: AtomicU64::new(1),
                ctl: Mutex::new(Ctl {
                    state: QpState::Reset,
                    access: Access::NONE,
                    // Goes on where the slot's last owner stopped, so that a refusal of its peer is never taken for
                    // one of this queue pair's.
                    generation: Permission::load(qp_row(node.ctl.words(), slot).permission())
                        .generation,
                    psn: 0,
                    rts: RtsAttr::default(),
                    lane: None,
                    writer: 0,
                    path: None,
                    incarnation: 0,
                }),
                ring: Ring::new(2 * cap.max_send_wr as usize),
                reclaimed: Word::new(0),
                is_slow: AtomicBool::new(!slow.is_idle()),
                waits: AtomicBool::new(!slow.is_idle()),
                late: slow.late(),
                slow: Mutex::new(slow),
                recv_ids: (0..MAX_RECV_WR).map(|_| Word::new(0)).collect(),
                recv_delivered: Word::new(0),
                cqs: [Arc::clone(&send_cq.shared), Arc::clone(&recv_cq.shared)],
                closed: StdBool::new(false),
            })
        })?;
        let row = qp_row(node.ctl.words(), shared.slot);
        shared
            .recv_delivered
            .store(row.recv_posted().load(Ordering::Relaxed), Ordering::Relaxed);
        row.recv_base()
            .store(row.recv_posted().load(Ordering::Relaxed), Ordering::Relaxed);
        let same = Arc::ptr_eq(&shared.cqs[0], &shared.cqs[1]);
        shared.cqs[0].attach(&shared, true, same);
        if !same {
            shared.cqs[1].attach(&shared, false, true);
        }
        Ok(Self {
            poster: Poster::new(&shared),
            control: Control(shared),
        })
    }

    /// Its control side.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Its sizes.
    pub fn cap(&self) -> QpCap {
        self.control.0.cap
    }

    /// Destroys it. When it returns, nothing lands through it.
    ///
    /// # Errors
    /// A writer is stalled in mid-copy; the slot is not used again then.
    pub fn close(self) -> Result<(), Error> {
        self.control.0.destroy()
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        // A stall would have been reported by `close`; the right is withdrawn and the slot leaked in that case.
        let _ = self.control.0.destroy();
    }
}

fn check_sizes(cap: &QpCap) -> Result<(), Error> {
    let sizes = [
        (
            "send requests of a queue pair",
            cap.max_send_wr,
            MAX_SEND_WR,
        ),
        (
            "receive requests of a queue pair",
            cap.max_recv_wr,
            MAX_RECV_WR,
        ),
        ("pieces of a send request", cap.max_send_sge, MAX_SGE),
        (
            "pieces of a receive request",
            cap.max_recv_sge,
            MAX_RECV_SGE,
        ),
        ("bytes of inline payload", cap.max_inline_data, MAX_INLINE),
    ];
    for (what, asked, limit) in sizes {
        if asked as usize > limit {
            return Err(Error::Limit {
                verb: "ibv_create_qp",
                what,
                asked: asked as usize,
                limit,
            });
        }
    }
    Ok(())
}

impl Control {
    /// Its number.
    pub fn qp_num(&self) -> u32 {
        self.0.qp_num
    }

    /// What the peer needs to connect; its packet sequence number changes with every change to INIT.
    pub fn endpoint(&self) -> Endpoint {
        let psn = self.0.lock().psn;
        Endpoint {
            node: self.0.node.id,
            qp_num: self.0.qp_num,
            psn,
            gid: [0; 16],
            lid: 0,
        }
    }

    /// Its state, with what a refused peer did to it.
    pub fn state(&self) -> QpState {
        self.0.lock().state
    }

    /// Changes its state or rights. A change that removes a right returns when nothing lands under it any more.
    ///
    /// # Errors
    /// A change that the state table forbids, an endpoint that cannot be reached, or a writer that is stalled in
    /// mid-copy and cannot be fenced; the right is withdrawn then, but one chunk may still land.
    pub fn modify(&self, change: &Modify) -> Result<(), Error> {
        self.0.modify(change)
    }
}

impl QpShared {
    /// The truth, brought up to date with what a refused peer reported.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Ctl> {
        let mut ctl = lock(&self.ctl);
        self.absorb_nak(&mut ctl);
        ctl
    }

    fn modify(&self, change: &Modify) -> Result<(), Error> {
        // Reaching the peer can take as long as it likes to answer; nobody who needs the lock waits for that.
        let reached = match change {
            Modify::Rtr(attr) if self.lock().state == QpState::Init => {
                let view = self.node.fabric.attach(&self.node, attr.remote.node)?;
                let lane = self.node.fabric.lane(&self.node, attr.remote.node)?;
                Some((view, lane))
            }
            _ => None,
        };
        let mut ctl = self.lock();
        // Whoever destroys it says so before it takes the lock; then its row may be another one's.
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Invalid {
                verb: "ibv_modify_qp",
                what: format!("queue pair {:#x} was destroyed", self.qp_num),
            });
        }
        let initiator = ctl.initiator();
        let done = match (change, reached) {
            (Modify::Rtr(attr), Some((view, lane))) if ctl.state == QpState::Init => {
                self.to_rtr(&mut ctl, attr, view, lane)
            }
            _ => self.change(&mut ctl, change),
        };
        drop(ctl);
        self.settle_late(initiator);
        done
    }

    fn change(&self, ctl: &mut Ctl, change: &Modify) -> Result<(), Error> {
        use QpState::{Err as Failed, Init, Reset, Rtr, Rts};
        match (ctl.state, *change) {
            (Reset, Modify::Init(access)) => self.to_init(ctl, access),
            (Rtr, Modify::Rts(attr)) => {
                ctl.rts = attr;
                self.publish(ctl, Rts);
                Ok(())
            }
            (Init | Rtr | Rts, Modify::Access(access)) => self.set_access(ctl, access),
            (_, Modify::Err) => self.withdraw(ctl, Failed),
            (_, Modify::Reset) => {
                self.withdraw(ctl, Reset)?;
                self.forget(ctl);
                Ok(())
            }
            (from, _) => Err(Error::Transition {
                qp_num: self.qp_num,
                from,
                change: change.name(),
            }),
        }
    }

    fn to_init(&self, ctl: &mut Ctl, access: Access) -> Result<(), Error> {
        self.check_access(access)?;
        // A RESET that could not wait for the writer left the connection in place: first it has to be over.
        if ctl.lane.is_some() {
            self.settle_writer(ctl, "ibv_modify_qp")?;
            self.forget(ctl);
        }
        ctl.psn = random()? as u32 & 0xff_ffff;
        ctl.generation = ctl.generation.wrapping_add(1);
        ctl.access = access;
        self.publish(ctl, QpState::Init);
        Ok(())
    }

    fn to_rtr(
        &self,
        ctl: &mut Ctl,
        attr: &RtrAttr,
        view: Arc<View>,
        lane: Arc<Lane>,
    ) -> Result<(), Error> {
        let remote = attr.remote;
        let lane_id = lane.id;
        ctl.lane = Some(lane);
        ctl.writer = qp_slot(remote.qp_num);
        // The re-grant rule: a writer of an earlier connection must not be in the middle of a copy. If this fails, the
        // lane stays: nothing was granted over it, and the next try, or a RESET, looks at it again.
        self.settle_writer(ctl, "ibv_modify_qp")?;
        self.refuse_fenced(ctl)?;
        let row = qp_row(self.node.ctl.words(), self.slot);
        row.peer_node().store(remote.node, Ordering::Relaxed);
        row.lane().store(lane_id, Ordering::Relaxed);
        let psns = u64::from(ctl.psn) << 32 | u64::from(remote.psn);
        row.psns().store(psns, Ordering::Relaxed);
        row.numbers().store(
            u64::from(self.qp_num) << 32 | u64::from(remote.qp_num),
            Ordering::Relaxed,
        );
        row.domain().store(
            u64::from(self.pd) | u64::from(attr.min_rnr_timer & 31) << 32,
            Ordering::Relaxed,
        );
        ctl.path = Some(Arc::new(Path::new(self, ctl.psn, attr, view)));
        self.publish(ctl, QpState::Rtr);
        Ok(())
    }

    fn set_access(&self, ctl: &mut Ctl, access: Access) -> Result<(), Error> {
        self.check_access(access)?;
        let grown = access.without(ctl.access);
        // First what is taken away, with the wait; only then what is added (never re-grant while a writer is inside).
        ctl.access = ctl.access & access;
        self.publish(ctl, ctl.state);
        self.settle_writer(ctl, "ibv_modify_qp")?;
        if grown.any_remote() {
            self.refuse_fenced(ctl)?;
        }
        ctl.access = access;
        self.publish(ctl, ctl.state);
        Ok(())
    }

    fn check_access(&self, access: Access) -> Result<(), Error> {
        if access.without(Access::ALL) != Access::NONE {
            let what = format!("{access:?} on QP {} has unknown flags", self.qp_num);
            return Err(Error::Invalid {
                verb: "ibv_modify_qp",
                what,
            });
        }
        Ok(())
    }

    /// Takes everything away and waits until nothing lands any more. The state counts as changed even if that fails.
    fn withdraw(&self, ctl: &mut Ctl, state: QpState) -> Result<(), Error> {
        self.publish(ctl, state);
        self.settle_writer(ctl, "ibv_modify_qp")
    }

    /// What RESET forgets: the connection, posted requests and completions not yet polled.
    fn forget(&self, ctl: &mut Ctl) {
        ctl.lane = None;
        ctl.path = None;
        ctl.incarnation = ctl.incarnation.wrapping_add(1);
        let row = qp_row(self.node.ctl.words(), self.slot);
        row.recv_base()
            .store(row.recv_posted().load(Ordering::Relaxed), Ordering::Release);
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Makes a state visible: to peers by the permission word, to own threads by the epoch.
    fn publish(&self, ctl: &mut Ctl, state: QpState) {
        ctl.state = state;
        let word = Permission {
            generation: ctl.generation,
            state,
            access: ctl.access,
        }
        .to_word();
        gate::revoke(qp_row(self.node.ctl.words(), self.slot).permission(), word);
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Waits until the peer's copy under way, if any, is over. Call after the permission or a region was lowered.
    pub(crate) fn quiesce(&self, verb: &'static str) -> Result<(), Error> {
        let ctl = lock(&self.ctl);
        let initiator = ctl.initiator();
        let done = self.settle_writer(&ctl, verb);
        drop(ctl);
        self.settle_late(initiator);
        done
    }

    /// Writes that the peer's placement mode holds back were admitted before the right went: they land now. The lock of
    /// this queue pair is not held meanwhile, since the peer may be settling the other direction.
    fn settle_late(&self, initiator: Option<(u64, u32)>) {
        if let Some((node, qp_num)) = initiator {
            self.node.fabric.settle(node, qp_num);
        }
    }

    fn settle_writer(&self, ctl: &Ctl, verb: &'static str) -> Result<(), Error> {
        let Some(lane) = &ctl.lane else { return Ok(()) };
        let mut wait = Wait::default();
        let stalled = gate::quiesce(
            writer_row(lane.memory.words(), ctl.writer).seq(),
            || match wait.step(|waited| self.node.fabric.stalled(lane, ctl.writer, waited)) {
                Stalled::Wait => None,
                other => Some(other),
            },
        );
        if stalled == Err(Stalled::GiveUp) {
            let waited_us = wait.elapsed().as_micros() as u64;
            return Err(Error::WriterStalled {
                verb,
                qp_num: self.qp_num,
                waited_us,
            });
        }
        Ok(())
    }

    /// Gives a writer up that could not be fenced, before the memory is taken away from under it: the queue pair goes
    /// to ERR, so that the writer sees after its copy that it may not count it, and its lane is never granted
    /// anything. Whether it is in that memory is not known here, so whoever takes other memory away still waits for
    /// it.
    pub(crate) fn abandon_writer(&self) {
        let mut ctl = lock(&self.ctl);
        if self.withdraw(&mut ctl, QpState::Err).is_err()
            && let Some(lane) = &ctl.lane
        {
            lane.fenced.store(true, Ordering::Release);
        }
    }

    /// A lane whose writer was fenced in mid-copy is dead for good: its peer has to connect anew.
    fn refuse_fenced(&self, ctl: &Ctl) -> Result<(), Error> {
        match &ctl.lane {
            Some(lane) if lane.fenced.load(Ordering::Acquire) => Err(Error::Fenced {
                verb: "ibv_modify_qp",
                qp_num: self.qp_num,
            }),
            _ => Ok(()),
        }
    }

    /// A peer that was refused says so in its lane; the specification wants both ends in ERR. A refusal of an earlier
    /// generation stays there and means nothing.
    fn absorb_nak(&self, ctl: &mut Ctl) {
        if !matches!(ctl.state, QpState::Rtr | QpState::Rts) {
            return;
        }
        let Some(lane) = &ctl.lane else { return };
        let word = lane_row(lane.memory.words(), self.slot)
            .nak()
            .load(Ordering::Acquire);
        let Some((generation, nak)) = Nak::from_word(word) else {
            return;
        };
        if generation != ctl.generation {
            return;
        }
        // No wait: this may be the thread that polls. Whoever takes rights or memory away waits for himself.
        self.publish(ctl, QpState::Err);
        let qp_num = self.qp_num;
        self.node.event(match nak {
            Nak::Access => AsyncEvent::QpAccessError { qp_num },
            Nak::InvalidRequest => AsyncEvent::QpRequestError { qp_num },
            Nak::Operation => AsyncEvent::QpFatal { qp_num },
        });
    }

    /// A request of this end failed: the queue pair goes to ERR. Called by the thread that posts or polls.
    pub(crate) fn fail(&self, incarnation: u32) {
        let mut ctl = lock(&self.ctl);
        if ctl.incarnation == incarnation && matches!(ctl.state, QpState::Rtr | QpState::Rts) {
            self.publish(&mut ctl, QpState::Err);
        }
    }

    fn destroy(self: &Arc<Self>) -> Result<(), Error> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        for cq in &self.cqs {
            cq.detach(self);
        }
        let mut ctl = lock(&self.ctl);
        let initiator = ctl.initiator();
        if let Err(stalled) = self.withdraw(&mut ctl, QpState::Reset) {
            drop(ctl);
            self.node.keep_qp(self);
            return Err(stalled);
        }
        self.forget(&mut ctl);
        drop(ctl);
        self.settle_late(initiator);
        lock(&self.slow).clear();
        self.node.remove_qp(self.slot);
        Ok(())
    }
}

/// Waiting for a writer: spin first, for it is usually on another core and done in nanoseconds; then ask the fabric.
#[derive(Default)]
struct Wait {
    spins: u32,
    since: Option<Instant>,
}

impl Wait {
    /// Spins before the clock is looked at: a chunk of 4 KiB takes a few hundred nanoseconds.
    const SPINS: u32 = 200;

    fn step(&mut self, ask: impl FnOnce(std::time::Duration) -> Stalled) -> Stalled {
        self.spins += 1;
        if self.spins < Self::SPINS {
            spin_hint();
            return Stalled::Wait;
        }
        ask(self.since.get_or_insert_with(Instant::now).elapsed())
    }

    fn elapsed(&self) -> std::time::Duration {
        self.since
            .map_or(std::time::Duration::ZERO, |since| since.elapsed())
    }
}
