//! The board links: reads of the peers' public lines, and writes of the outbox rows.
//!
//! Owns the queue pairs, the registrations that peers use to read the public line and the log and to write their rows,
//! and private scratch memory: a public line is read into it, and a row is copied into it before it is written, so that
//! the bytes of a write under way stand still.

use mu_verbs::{
    Access, Capabilities, Completion, CompletionQueue, Context, Memory, MemoryRegion, Payload,
    PostError, QpCap, QueuePair, RemoteAddr, SendFlags, SendOp, SendWr, Sge, WORD, WcStatus,
};

use super::mailbox::Outgoing;
use super::score::{Score, Thresholds};
use super::{BackgroundError, PerPeer};
use crate::ids::{Members, ReplicaId};
use crate::layout::{board_row, outbox_row};
use crate::limits::{MAX_REPLICAS, PUBLIC_WORDS, ROW_WORDS};
use crate::shared::Board;

/// What a request on a board link was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A read of the peer's public line.
    Read,
    /// A write of this replica's row there.
    Write,
}

/// A request that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) peer: ReplicaId,
    pub(crate) generation: u32,
    pub(crate) request: Request,
    pub(crate) status: WcStatus,
    /// The device says that the peer's process has ended.
    pub(crate) peer_ended: bool,
}

/// A read under way.
#[derive(Clone, Copy)]
struct Reading {
    posted_ns: u64,
    /// This replica has not stalled since.
    on_time: bool,
    /// What it brings is a sample for the score.
    sample: bool,
}

/// One peer's part.
struct BoardPeer<C: Context> {
    qp: C::Qp,
    /// Its row in the own board, which it writes.
    row: C::Mr,
    /// Its public line and the own row there.
    remote: Option<(RemoteAddr, RemoteAddr)>,
    reading: Option<Reading>,
    outgoing: Outgoing,
    score: Score,
}

/// See the module.
pub(crate) struct Boards<C: Context> {
    ctx: C,
    peers: PerPeer<BoardPeer<C>>,
    cq: C::Cq,
    public: C::Mr,
    log: C::Mr,
    scratch: C::Mr,
    thresholds: Thresholds,
}

/// Words of scratch memory for one peer: a public line and a row.
const SCRATCH_WORDS: usize = PUBLIC_WORDS + ROW_WORDS;
/// Completions taken at once.
const BATCH: usize = 16;

/// The sizes that a board queue pair needs.
pub const fn board_qp_cap() -> QpCap {
    QpCap {
        max_send_wr: crate::limits::BOARD_QP_DEPTH,
        max_recv_wr: 1,
        max_send_sge: 1,
        max_recv_sge: 1,
        max_inline_data: 0,
    }
}

impl<C: Context> Boards<C> {
    /// Registers everything in `pd`, in which the queue pairs are.
    pub(crate) fn new(
        ctx: &C,
        pd: &C::Pd,
        board: &Board,
        log: (&Memory, usize),
        qps: PerPeer<C::Qp>,
        cq: C::Cq,
        thresholds: Thresholds,
    ) -> Result<Self, BackgroundError> {
        let mut peers = [const { None }; MAX_REPLICAS];
        for (index, qp) in qps.into_iter().enumerate() {
            let (Some(qp), Some(id)) = (qp, ReplicaId::new(index as u8)) else {
                continue;
            };
            let start = board_row(id) * WORD;
            let access = Access::REMOTE_WRITE | Access::LOCAL_WRITE;
            peers[index] = Some(BoardPeer {
                qp,
                row: ctx.reg_mr(pd, &board.memory, start..start + ROW_WORDS * WORD, access)?,
                remote: None,
                reading: None,
                outgoing: Outgoing::default(),
                score: Score::default(),
            });
        }
        let scratch = ctx.alloc_memory(MAX_REPLICAS * SCRATCH_WORDS * WORD)?;
        let line = 0..PUBLIC_WORDS * WORD;
        Ok(Self {
            ctx: ctx.clone(),
            peers,
            cq,
            public: ctx.reg_mr(pd, &board.memory, line, Access::REMOTE_READ)?,
            log: ctx.reg_mr(pd, log.0, 0..log.1, Access::REMOTE_READ)?,
            scratch: ctx.reg_mr(pd, &scratch, 0..scratch.len(), Access::LOCAL_WRITE)?,
            thresholds,
        })
    }

    /// What `peer` needs to know: the public line, its row, the log.
    pub(crate) fn places(&self, peer: ReplicaId) -> [RemoteAddr; 3] {
        [
            self.public.remote(0),
            self.peer(peer).row.remote(0),
            self.log.remote(0),
        ]
    }

    /// Where `peer`'s public line is, and this replica's row there.
    pub(crate) fn set_remote(&mut self, peer: ReplicaId, public: RemoteAddr, row: RemoteAddr) {
        self.peer_mut(peer).remote = Some((public, row));
    }

    /// Another life of `peer` begins.
    pub(crate) fn forget(&mut self, peer: ReplicaId) {
        let peer = self.peer_mut(peer);
        peer.remote = None;
        peer.score.forget();
    }

    /// The queue pair is reset: nothing is under way.
    pub(crate) fn reconnect(&mut self, peer: ReplicaId) {
        let peer = self.peer_mut(peer);
        peer.reading = None;
        peer.outgoing.reconnect();
    }

    /// The own row at `peer` changed.
    pub(crate) fn touch(&mut self, peer: ReplicaId) {
        self.peer_mut(peer).outgoing.touch();
    }

    /// The pull-score of `peer`.
    pub(crate) fn score(&self, peer: ReplicaId) -> &Score {
        &self.peer(peer).score
    }

    /// The peers that live.
    pub(crate) fn alive(&self) -> Members {
        let ids = (0..MAX_REPLICAS as u8).filter_map(ReplicaId::new);
        let alive = |id: &ReplicaId| {
            self.peers[id.index()]
                .as_ref()
                .is_some_and(|peer| peer.score.is_alive())
        };
        ids.filter(alive).collect()
    }

    /// This replica was paused: reads under way say nothing bad about anybody.
    pub(crate) fn stalled(&mut self) {
        for reading in self
            .peers
            .iter_mut()
            .flatten()
            .filter_map(|peer| peer.reading.as_mut())
        {
            reading.on_time = false;
        }
    }

    /// A heartbeat without a link to `peer`.
    pub(crate) fn miss(&mut self, peer: ReplicaId, on_time: bool) {
        let thresholds = self.thresholds;
        self.peer_mut(peer).score.missed(thresholds, on_time);
    }

    /// Reads the public line of `peer` with this heartbeat. A read still under way counts as one that brought nothing,
    /// and none is posted then. Says how long the one under way has been so.
    pub(crate) fn read(
        &mut self,
        peer: ReplicaId,
        generation: u32,
        now_ns: u64,
        on_time: bool,
    ) -> Result<Option<u64>, PostError> {
        let thresholds = self.thresholds;
        let BoardPeer { reading, score, .. } = self.peer_mut(peer);
        if let Some(reading) = reading {
            score.missed(thresholds, on_time && reading.on_time);
            return Ok(Some(now_ns.saturating_sub(reading.posted_ns)));
        }
        let reading = Reading {
            posted_ns: now_ns,
            on_time,
            sample: true,
        };
        self.post_read(peer, generation, reading).map(|()| None)
    }

    /// Reads the public line of `peer` between two heartbeats, unless a read is under way: for what it says, and not as
    /// a sample.
    pub(crate) fn look(
        &mut self,
        peer: ReplicaId,
        generation: u32,
        now_ns: u64,
    ) -> Result<(), PostError> {
        if self.peer(peer).reading.is_some() {
            return Ok(());
        }
        let reading = Reading {
            posted_ns: now_ns,
            on_time: true,
            sample: false,
        };
        self.post_read(peer, generation, reading)
    }

    /// Whether a read is under way.
    pub(crate) fn is_reading(&self) -> bool {
        self.peers
            .iter()
            .flatten()
            .any(|peer| peer.reading.is_some())
    }

    fn post_read(
        &mut self,
        peer: ReplicaId,
        generation: u32,
        new: Reading,
    ) -> Result<(), PostError> {
        let (at, scratch) = (scratch_at(peer), &self.scratch);
        let Some(BoardPeer {
            qp,
            remote: Some((public, _)),
            reading,
            ..
        }) = &mut self.peers[peer.index()]
        else {
            return Ok(());
        };
        qp.post_send(&SendWr {
            wr_id: number(peer, generation, Request::Read),
            op: SendOp::Read {
                local: &[Sge::new(scratch, at * WORD, PUBLIC_WORDS * WORD)],
                remote: *public,
            },
            flags: SendFlags::SIGNALED,
        })?;
        *reading = Some(new);
        Ok(())
    }

    /// Writes the outbox row to `peer` if that is due. Whether it was.
    pub(crate) fn write(
        &mut self,
        peer: ReplicaId,
        generation: u32,
        changes: u64,
        board: &Board,
        now_ns: u64,
    ) -> Result<bool, PostError> {
        let (at, scratch) = (scratch_at(peer) + PUBLIC_WORDS, &self.scratch);
        let Some(BoardPeer {
            qp,
            remote: Some((_, row)),
            outgoing,
            ..
        }) = &mut self.peers[peer.index()]
        else {
            return Ok(false);
        };
        if !outgoing.begin(changes, now_ns) {
            return Ok(false);
        }
        for word in 0..ROW_WORDS {
            scratch
                .memory()
                .store(at + word, board.outbox.load(outbox_row(peer) + word));
        }
        qp.post_send(&SendWr {
            wr_id: number(peer, generation, Request::Write),
            op: SendOp::Write {
                payload: Payload::Regions(&[Sge::new(scratch, at * WORD, ROW_WORDS * WORD)]),
                remote: *row,
                imm: None,
            },
            flags: SendFlags::SIGNALED,
        })?;
        Ok(true)
    }

    /// How long the write of the row to `peer` that is under way has been: its completion may be lost.
    pub(crate) fn write_age_ns(&self, peer: ReplicaId, now_ns: u64) -> Option<u64> {
        self.peers[peer.index()].as_ref()?.outgoing.age_ns(now_ns)
    }

    /// Takes completions into `ended`. How many there were; one that is no request of this engine leaves `None`.
    pub(crate) fn poll(&mut self, ended: &mut [Option<Ended>; BATCH]) -> usize {
        let mut completions = [Completion::EMPTY; BATCH];
        let n = self.cq.poll(&mut completions);
        for (ended, completion) in ended.iter_mut().zip(&completions[..n]) {
            *ended = ended_request(completion, self.ctx.caps());
        }
        n
    }

    /// The read from `peer` that was under way has brought its public line: judges it and gives the words, the last one
    /// first, to `store`.
    pub(crate) fn was_read(&mut self, peer: ReplicaId, mut store: impl FnMut(usize, u64)) {
        let (at, thresholds) = (scratch_at(peer), self.thresholds);
        let memory = self.scratch.memory();
        // From the last to the first: a word that stands before another in the line is then never newer than it, for
        // whoever reads them in the order of the line.
        for word in (0..PUBLIC_WORDS).rev() {
            store(word, memory.load(at + word));
        }
        let counter = memory.load(at + crate::layout::public::HEARTBEAT);
        let peer = self.peer_mut(peer);
        let reading = peer.reading.take();
        if reading.is_none_or(|reading| reading.sample) {
            let on_time = reading.is_none_or(|reading| reading.on_time);
            peer.score.saw(thresholds, counter, on_time);
        }
    }

    /// The write to `peer` that was under way is done.
    pub(crate) fn was_written(&mut self, peer: ReplicaId) {
        self.peer_mut(peer).outgoing.end();
    }

    /// A request to `peer` failed. `gone`: since the peer never answered.
    pub(crate) fn failed(&mut self, peer: ReplicaId, gone: bool) {
        let thresholds = self.thresholds;
        let score = &mut self.peer_mut(peer).score;
        if gone {
            score.gone();
        } else {
            score.missed(thresholds, true);
        }
    }

    /// The bug: a failed read is a sign of life.
    pub(crate) fn failure_is_life(&mut self, peer: ReplicaId) {
        let thresholds = self.thresholds;
        self.peer_mut(peer).score.sign_of_life(thresholds);
    }

    fn peer(&self, id: ReplicaId) -> &BoardPeer<C> {
        self.peers[id.index()]
            .as_ref()
            .expect("a member has a board link")
    }

    fn peer_mut(&mut self, id: ReplicaId) -> &mut BoardPeer<C> {
        self.peers[id.index()]
            .as_mut()
            .expect("a member has a board link")
    }
}

/// Room for what one poll of the completion queue brings.
pub(crate) const EMPTY_BATCH: [Option<Ended>; BATCH] = [None; BATCH];

/// First word of the scratch memory for `peer`.
fn scratch_at(peer: ReplicaId) -> usize {
    peer.index() * SCRATCH_WORDS
}

/// The number of a request: generation, peer, kind.
fn number(peer: ReplicaId, generation: u32, request: Request) -> u64 {
    u64::from(generation) << 32 | u64::from(peer.get()) << 1 | u64::from(request == Request::Write)
}

fn ended_request(completion: &Completion, caps: &Capabilities) -> Option<Ended> {
    let number = completion.wr_id;
    Some(Ended {
        peer: ReplicaId::new((number as u32 >> 1) as u8)?,
        generation: (number >> 32) as u32,
        request: if number & 1 == 1 {
            Request::Write
        } else {
            Request::Read
        },
        status: completion.status,
        peer_ended: caps.says_peer_ended(completion),
    })
}
