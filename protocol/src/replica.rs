//! Puts one replica together: its memories, queue pairs and both engines.

use std::sync::Arc;

use mu_verbs::{Context, Error, QpCap, QueuePair};

use crate::background::{self, Background, BackgroundError};
use crate::ids::Members;
use crate::layout::{BOARD_BYTES, OUTBOX_BYTES};
use crate::limits::{BOARD_QP_DEPTH, LOG_QP_DEPTH, MAX_INLINE_ENTRY, MAX_REPLICAS, PULL_QP_DEPTH};
use crate::log::Log;
use crate::machine::StateMachine;
use crate::replication::{self, PerPeer, Replication, StartError};
use crate::settings::Settings;
use crate::shared::{Board, Shared};
use crate::zoo::Zoo;

/// What is particular to one life of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// A random number that no other life of this replica has, not 0.
    pub incarnation: u64,
    /// What has to be added to `now_ns` for the time since the Unix epoch, in nanoseconds.
    pub wall_offset_ns: u64,
    /// The caller's monotonic clock.
    pub now_ns: u64,
}

/// The two engines of one replica, each to be polled by one thread (or both by one).
pub struct Replica<C: Context, S: StateMachine, Z: Zoo> {
    /// Proposes, replays, catches up.
    pub replication: Replication<C, S, Z>,
    /// Connections, heartbeats, permissions.
    pub background: Background<C, Z>,
}

/// Makes a replica on the device `ctx`.
///
/// # Errors
/// A setting that cannot be, or a verb's error.
pub fn assemble<C: Context, S: StateMachine, Z: Zoo>(
    ctx: &C,
    settings: Settings,
    life: Life,
    app: S,
    zoo: Z,
) -> Result<Replica<C, S, Z>, StartError> {
    assert!(life.incarnation != 0, "an incarnation of 0 means none");
    settings.check()?;
    let shared = Arc::new(Shared::new());
    let board = Board {
        memory: ctx.alloc_memory(BOARD_BYTES)?,
        outbox: ctx.alloc_memory(OUTBOX_BYTES)?,
    };
    let log = ctx.alloc_memory(Log::memory_bytes(settings.ring_bytes))?;
    let (log_pd, board_pd) = (ctx.alloc_pd()?, ctx.alloc_pd()?);
    let peers = settings.peers();
    let inline = MAX_INLINE_ENTRY as u32;
    let log_plane = Plane::new(ctx, &log_pd, peers, LOG_QP_DEPTH, inline)?;
    let pull_plane = Plane::new(ctx, &board_pd, peers, PULL_QP_DEPTH, 0)?;
    let board_plane = Plane::new(ctx, &board_pd, peers, BOARD_QP_DEPTH, 0)?;
    let background = Background::new(
        background::Parts {
            ctx: ctx.clone(),
            settings: settings.clone(),
            shared: Arc::clone(&shared),
            board: board.clone(),
            log: log.clone(),
            log_pd: log_pd.clone(),
            board_pd: board_pd.clone(),
            log_controls: log_plane.controls::<C>(),
            pull_controls: pull_plane.controls::<C>(),
            board_qps: board_plane.qps,
            board_cq: board_plane.cq,
        },
        zoo,
        life.now_ns,
    )
    .map_err(|error| match error {
        BackgroundError::Settings(error) => StartError::Settings(error),
        BackgroundError::Verbs(error) => StartError::Verb(error),
    })?;
    let replication = Replication::new(
        replication::Parts {
            ctx: ctx.clone(),
            settings,
            shared,
            board,
            log,
            log_pd,
            board_pd,
            log_qps: log_plane.qps,
            log_cq: log_plane.cq,
            pull_qps: pull_plane.qps,
            pull_cq: pull_plane.cq,
            incarnation: life.incarnation,
            wall_offset_ns: life.wall_offset_ns,
        },
        app,
        zoo,
        life.now_ns,
    )?;
    Ok(Replica {
        replication,
        background,
    })
}

/// The queue pairs of one kind of link, with their completion queue.
struct Plane<Q, Cq> {
    qps: PerPeer<Q>,
    cq: Cq,
}

impl<Q, Cq> Plane<Q, Cq> {
    fn new<C: Context<Qp = Q, Cq = Cq>>(
        ctx: &C,
        pd: &C::Pd,
        peers: Members,
        depth: u32,
        inline: u32,
    ) -> Result<Self, Error> {
        let caps = ctx.caps();
        let depth = depth.min(caps.max_qp_wr);
        // Every request of every queue pair may have a completion here at once.
        let cq = ctx.create_cq((depth * (peers.len() as u32 + 1)).min(caps.max_cqe))?;
        let cap = QpCap {
            max_send_wr: depth,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: inline.max(64).min(caps.max_inline_data),
        };
        let mut qps: PerPeer<Q> = [const { None }; MAX_REPLICAS];
        for peer in peers.iter() {
            qps[peer.index()] = Some(ctx.create_qp(pd, &cq, &cq, &cap)?);
        }
        Ok(Self { qps, cq })
    }

    fn controls<C: Context<Qp = Q>>(&self) -> PerPeer<C::Control>
    where
        Q: QueuePair<C>,
    {
        std::array::from_fn(|peer| self.qps[peer].as_ref().map(|qp| qp.control().clone()))
    }
}
