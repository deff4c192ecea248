//! The background engine: connections, heartbeats, permissions and the election (`docs/protocol.md`, sections 3, 6, 8).
//!
//! # Mechanism
//!
//! What decides is separate from what does. [`score`], [`arbiter`], [`election`], [`link`], [`pulse`], [`digest`] and
//! `mailbox` know words and times and are tested alone; `boards`, `granter` and `wire` turn their decisions into verbs.
//! [`Background::poll`] goes through them in an order that makes one poll enough from the completion that shows a dead
//! leader to the request that is on its way to the others:
//!
//! 1. completions of the board links: public lines, scores, failures;
//! 2. with a heartbeat: the own counter, the next reads, faults of links, digests; after a death reads in between;
//! 3. links: close, open, connect;
//! 4. the mailbox: promise, revoke, grant, acknowledge;
//! 5. the election: stand, or give up;
//! 6. outbox rows that changed are written.
//!
//! Time comes as an argument and every back-off from ids and counters, so a run repeats exactly. The steady state takes
//! no lock, allocates nothing and enters no kernel; revoking and connecting may.

pub mod arbiter;
mod beat;
mod boards;
mod connect;
mod decide;
pub mod digest;
pub mod election;
mod granter;
pub mod link;
mod mailbox;
pub mod pulse;
pub mod score;
mod view;
mod wire;

use std::sync::Arc;

use mu_verbs::{Access, Context, Memory, QueuePair};

use crate::ids::{Epoch, ReplicaId};
use crate::layout::{BOARD_BYTES, OUTBOX_BYTES, board_row};
use crate::limits::{LOG_HEADER_BYTES, MAX_REPLICAS, ROW_WORDS};
use crate::message::Link;
use crate::settings::{Settings, SettingsError};
use crate::shared::{Board, Shared};
use crate::zoo::{Sound, Zoo};

use boards::Boards;
pub use boards::board_qp_cap;
pub use connect::ControlRefused;
use digest::Guard;
use election::Election;
use granter::Granter;
use pulse::Pulse;
use score::Thresholds;
pub use view::{Counters, PeerView, View};
use wire::Wire;

/// Something for each peer; `None` for this replica and for ids that are no members.
pub type PerPeer<T> = [Option<T>; MAX_REPLICAS];

/// What the engine is made of. All objects are of one context.
pub struct Parts<C: Context> {
    /// The context.
    pub ctx: C,
    /// The settings, which must be valid.
    pub settings: Settings,
    /// The words that the two engines share.
    pub shared: Arc<Shared>,
    /// Board and outbox.
    pub board: Board,
    /// The log: header and ring.
    pub log: Memory,
    /// The domain of the log links, in which the rights to the log are registered.
    pub log_pd: C::Pd,
    /// The domain of the board and pull links.
    pub board_pd: C::Pd,
    /// The log links' queue pairs, in RESET, which the replication engine owns.
    pub log_controls: PerPeer<C::Control>,
    /// The same of the pull links.
    pub pull_controls: PerPeer<C::Control>,
    /// The board links' queue pairs, in RESET, with at least [`board_qp_cap`].
    pub board_qps: PerPeer<C::Qp>,
    /// Their completion queue, for both directions, with room for two completions of each.
    pub board_cq: C::Cq,
}

/// Why the engine could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackgroundError {
    /// A setting cannot be.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A verb failed.
    #[error(transparent)]
    Verbs(#[from] mu_verbs::Error),
}

/// How the engine wants to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Something other than a heartbeat was done, or one is under way: more may be to do at once.
    pub worked: bool,
    /// The latest time of the next poll. Requests of peers come at any time; they wait as long.
    pub next_ns: u64,
}

/// What the engine knows of a peer besides its links.
#[derive(Clone, Copy, Debug, Default)]
struct PeerState {
    /// There is a control connection.
    control: bool,
    /// Of the last hello.
    incarnation: u64,
    /// Its mailbox row holds words of an earlier life and is cleared as soon as nobody can write it.
    stale_row: bool,
    /// Counted as alive when last looked.
    alive: bool,
    /// When the device said that the life that said hello last has ended, if it did.
    ended_ns: Option<u64>,
}

/// See the module.
pub struct Background<C: Context, Z: Zoo = Sound> {
    settings: Settings,
    shared: Arc<Shared>,
    board: Board,
    zoo: Z,
    pulse: Pulse,
    /// Entries carry a checksum.
    checksum: bool,
    boards: Boards<C>,
    wires: [PerPeer<Wire<C>>; Link::ALL.len()],
    peers: [PeerState; MAX_REPLICAS],
    granter: Granter<C, Z>,
    election: Election,
    guard: Guard,
    counters: Counters,
    /// Links have to be looked at.
    attention: bool,
    /// ... and at this time in any case.
    links_ns: u64,
    /// Extra looks at the peers that are still to come, and when the next one is due.
    looks: u32,
    look_ns: u64,
    /// Something may be to be said.
    talk: bool,
    /// Which link's state is asked for next.
    inspect: usize,
    /// The own request was written to the outbox, and the replication engine told.
    announced: bool,
    /// The word that stands in the outbox: whom this replica asks to take over, from which epoch.
    handing: Option<(ReplicaId, Epoch)>,
}

/// A peer that answers nothing is gone for the transport after so many detection times, but not before the least time.
const SILENCE: u64 = 8;
const MIN_SILENCE_NS: u64 = 10_000_000;
/// Heartbeats that a queue pair stays in ERR before it is reset.
const DRAIN_BEATS: u64 = 2;

impl<C: Context, Z: Zoo> Background<C, Z> {
    /// Registers the memory and prepares the links; nothing is connected before [`control_up`](Self::control_up).
    ///
    /// # Errors
    /// A setting that cannot be, or a verb that failed.
    ///
    /// # Panics
    /// If a peer's queue pair is missing, or a memory is too small for what it holds.
    pub fn new(parts: Parts<C>, zoo: Z, now_ns: u64) -> Result<Self, BackgroundError> {
        let Parts {
            ctx,
            settings,
            shared,
            board,
            log,
            log_pd,
            board_pd,
            log_controls,
            pull_controls,
            board_qps,
            board_cq,
        } = parts;
        settings.check()?;
        let log_bytes = LOG_HEADER_BYTES + settings.ring_bytes;
        assert!(
            board.memory.len() >= BOARD_BYTES
                && board.outbox.len() >= OUTBOX_BYTES
                && log.len() >= log_bytes
        );
        let log = (&log, log_bytes);
        let beat_ns = settings.heartbeat_ns;
        let granter = Granter::new(&ctx, &log_pd, log, &log_controls, beat_ns, zoo)?;
        let silence_ns = (SILENCE * settings.detect_ns).max(MIN_SILENCE_NS);
        let controls = [
            (Link::Log, log_controls, settings.completion_timeout_ns),
            (
                Link::Board,
                board_qps
                    .each_ref()
                    .map(|qp| qp.as_ref().map(|qp| qp.control().clone())),
                silence_ns,
            ),
            (Link::Pull, pull_controls, settings.completion_timeout_ns),
        ];
        let wires = controls.map(|(link, controls, silence_ns)| {
            let mut wires = [const { None }; MAX_REPLICAS];
            for peer in settings.peers().iter() {
                let control = controls[peer.index()]
                    .clone()
                    .expect("every peer has a queue pair for each link");
                let access = match link {
                    Link::Log => granter.init_access(peer),
                    Link::Board => Access::REMOTE_READ | Access::REMOTE_WRITE,
                    Link::Pull => Access::REMOTE_READ,
                };
                let drain_ns = DRAIN_BEATS * beat_ns;
                wires[peer.index()] = Some(Wire::new(
                    link,
                    control,
                    access,
                    ctx.caps(),
                    silence_ns,
                    drain_ns,
                ));
            }
            wires
        });
        let thresholds = Thresholds::new(beat_ns, settings.detect_ns);
        Ok(Self {
            boards: Boards::new(
                &ctx, &board_pd, &board, log, board_qps, board_cq, thresholds,
            )?,
            checksum: settings.wants_checksum(ctx.caps().placement),
            pulse: Pulse::new(beat_ns, settings.stuck_ns, now_ns),
            election: Election::new(&settings),
            granter,
            wires,
            settings,
            shared,
            board,
            zoo,
            peers: [PeerState::default(); MAX_REPLICAS],
            guard: Guard::default(),
            counters: Counters::default(),
            attention: true,
            links_ns: now_ns,
            looks: 0,
            look_ns: now_ns,
            talk: false,
            inspect: 0,
            announced: false,
            handing: None,
        })
    }

    /// Does what is to be done at `now_ns`, which never goes back.
    pub fn poll(&mut self, now_ns: u64) -> Pace {
        let turn = self
            .pulse
            .poll(now_ns, self.shared.progress(), self.shared.is_busy());
        if turn.stalled {
            self.counters.stalls += 1;
            self.boards.stalled();
        }
        self.completions(now_ns);
        let mut worked = false;
        if turn.beat {
            self.beat(now_ns, !turn.stalled);
            self.completions(now_ns);
            // What a heartbeat brings is no reason to poll again; that it is still to come is one.
            worked |= self.boards.is_reading();
        }
        if self.look(now_ns) {
            self.completions(now_ns);
            worked = true;
        }
        worked |= self.serve_links(now_ns);
        worked |= self.decide(now_ns);
        worked |= self.write_rows(now_ns);
        let mut next_ns = self.pulse.next_ns().min(self.links_ns);
        if self.looks > 0 {
            next_ns = next_ns.min(self.look_ns);
        }
        Pace { worked, next_ns }
    }

    fn wire(&self, link: Link, peer: ReplicaId) -> &Wire<C> {
        self.wires[link as usize][peer.index()]
            .as_ref()
            .expect("a peer has every link")
    }

    fn wire_mut(&mut self, link: Link, peer: ReplicaId) -> &mut Wire<C> {
        self.wires[link as usize][peer.index()]
            .as_mut()
            .expect("a peer has every link")
    }

    /// Whether `id` is another member.
    fn is_peer(&self, id: ReplicaId) -> bool {
        self.settings.peers().contains(id)
    }

    /// Clears the mailbox row of `peer`, which nobody can write now.
    fn clear_row(&mut self, peer: ReplicaId) {
        self.peers[peer.index()].stale_row = false;
        let start = board_row(peer);
        for word in start..start + ROW_WORDS {
            self.board.memory.store(word, 0);
        }
    }
}
