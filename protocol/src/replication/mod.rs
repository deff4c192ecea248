//! The replication engine: the thread that proposes, replays and catches up.
//!
//! [`Replication::poll`] does whatever the replica's role asks for and hands outcomes to the caller's closure. A
//! leader's `submit`, `poll`, answer is the whole path of a command: encode into the own log, one one-sided write a
//! follower (a majority's first and the others' later in the turn, where who posts carries them out), completions,
//! count, apply. Nothing on it allocates, locks, enters the kernel or dispatches dynamically
//! (the application's own code apart).

mod chores;
mod election;
mod follower;
mod lane;
mod lead;
mod leader;
mod proof;
mod rejoin;
mod snapshot;

use std::sync::Arc;

use mu_verbs::{Context, Error, Memory, Placement};

pub use lane::PerPeer;

use crate::entry::{Encoder, Frame, OVERHEAD_BYTES, SESSION_FRAME_BYTES};
use crate::ids::{Epoch, ReplicaId};
use crate::layout::{Role, Standing, public};
use crate::limits::MAX_READS;
use crate::log::{Log, Point};
use crate::machine::{Machine, StateMachine};
use crate::settings::{Settings, SettingsError};
use crate::shared::{Board, Halt, Shared};
use crate::zoo::{Sound, Zoo};
use follower::Follow;
use lane::Lane;
use lead::Lead;
use rejoin::{CHUNK, Rejoin};
use snapshot::Donor;

/// What the engine stands on. The queue pairs are in RESET; the background engine connects them.
pub struct Parts<C: Context> {
    /// The device.
    pub ctx: C,
    /// Settings.
    pub settings: Settings,
    /// Words shared with the background engine.
    pub shared: Arc<Shared>,
    /// Board and outbox.
    pub board: Board,
    /// Memory of the own log, [`Log::memory_bytes`] of the ring.
    pub log: Memory,
    /// Protection domain of the log links.
    pub log_pd: C::Pd,
    /// Protection domain of the other links.
    pub board_pd: C::Pd,
    /// Queue pairs of the log links.
    pub log_qps: PerPeer<C::Qp>,
    /// Their completion queue.
    pub log_cq: C::Cq,
    /// Queue pairs of the pull links.
    pub pull_qps: PerPeer<C::Qp>,
    /// Their completion queue.
    pub pull_cq: C::Cq,
    /// A random number of this life of the replica, not 0.
    pub incarnation: u64,
    /// What has to be added to `now_ns` for the time since the Unix epoch, in nanoseconds.
    pub wall_offset_ns: u64,
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A verb failed.
    #[error(transparent)]
    Verb(#[from] Error),
}

/// Why a command or read was not taken. It was not and will not be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another replica leads, or nobody.
    #[error("this replica does not lead; {}", hint(.0))]
    NotLeader(Option<ReplicaId>),
    /// Too much is submitted and not answered, what was submitted since the last poll fills an entry, or the ring is
    /// full: poll, and try again.
    #[error(
        "busy: {pending} commands are in flight, an entry is full, or the log is; poll and try again"
    )]
    Overloaded {
        /// Commands submitted and not answered.
        pending: u64,
    },
    /// Longer than the limit.
    #[error("a command of {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The replica has halted.
    #[error("this replica has halted: {0}")]
    Stopped(Stopped),
}

fn hint(leader: &Option<ReplicaId>) -> String {
    leader.map_or("no leader is known".into(), |id| {
        format!("replica {id} does, as far as known")
    })
}

/// Why a replica halted for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// Its state differs from the majority's at the same index: the application is not deterministic, or memory failed.
    #[error("its state differs from the majority's")]
    Diverged,
    /// A decided entry with a good checksum is no list of commands.
    #[error("a decided entry is no list of commands")]
    BadPayload,
    /// It was asked to.
    #[error("it was asked to stop")]
    Asked,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Decided and applied, now or by an earlier try of the same session number.
    Decided {
        /// Index of the entry that carried this try.
        index: u64,
        /// The application's reply.
        reply: &'a [u8],
    },
    /// Applied by an earlier try; the reply was too long to be kept.
    DecidedReplyGone {
        /// Index of the entry that carried this try.
        index: u64,
    },
    /// The session has gone on to a later command. This one was not applied now.
    Superseded {
        /// Index of the entry that carried this try.
        index: u64,
    },
    /// It may or may not be decided. Try again with the same session number.
    Unknown,
    /// It was not and will not be decided.
    NotLeader(Option<ReplicaId>),
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The application's state is fresh: it holds everything that was decided before the read was asked for.
    Ready {
        /// The last applied entry.
        index: u64,
    },
    /// This replica could not prove that it leads.
    NotLeader(Option<ReplicaId>),
}

/// What [`Replication::poll`] tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A command ended. Tickets end in the order in which they were given.
    Command {
        /// The ticket [`Replication::submit`] gave.
        ticket: u64,
        /// How.
        outcome: Outcome<'a>,
    },
    /// A read ended. Tickets end in the order in which they were given.
    Read {
        /// The ticket [`Replication::read`] gave.
        ticket: u64,
        /// How.
        outcome: ReadOutcome,
    },
    /// This replica's role changed.
    Role {
        /// What it is now.
        standing: Standing,
        /// Its epoch, if it leads or wants to.
        epoch: Epoch,
    },
}

/// How soon the engine wants to be polled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Something was done: poll again at once.
    pub worked: bool,
    /// Completions are outstanding or commands wait for them: somebody waits for this engine.
    pub waiting: bool,
}

/// What happened so far; all count up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Entries decided as a leader.
    pub decided: u64,
    /// Entries applied.
    pub applied: u64,
    /// Leaderships won.
    pub led: u64,
    /// Leaderships given up or lost.
    pub stepped_down: u64,
    /// Commands that ended as unknown.
    pub unknown: u64,
    /// Followers that were confirmed (again).
    pub confirmed: u64,
    /// Followers lost to a failed or late request.
    pub followers_lost: u64,
    /// Followers cut off because they held the recycling up.
    pub cut_off: u64,
    /// Writes postponed because a send queue was full.
    pub queue_full: u64,
    /// Flushes postponed because the ring was full.
    pub ring_full: u64,
    /// Times this replica had to start anew from a snapshot.
    pub rejoins: u64,
    /// Snapshots taken for others.
    pub snapshots: u64,
    /// Entries found damaged.
    pub damaged: u64,
    /// Those that another one's copy mended.
    pub mended: u64,
    /// Replicas admitted, as applied here.
    pub admitted: u64,
    /// Completions of earlier connections, dropped.
    pub stale: u64,
}

/// The engine. `Z` is [`Sound`] outside of the simulator.
pub struct Replication<C: Context, S: StateMachine, Z: Zoo = Sound> {
    settings: Settings,
    zoo: Z,
    shared: Arc<Shared>,
    board: Board,
    log: Log,
    lane: Lane<C>,
    machine: Machine<S>,
    /// The payload that is being applied, in private memory.
    payload: Vec<u8>,
    incarnation: u64,
    wall_offset_ns: u64,
    /// Entries get a checksum.
    checksum: bool,
    /// What is posted first becomes visible first.
    in_order: bool,
    max_entry: usize,
    /// A majority of the members.
    quorum: usize,
    standing: Standing,
    stopped: Option<Stopped>,
    /// The commit index: everything up to it is decided.
    commit: u64,
    lead: Lead,
    follow: Follow,
    rejoin: Rejoin<C>,
    donor: Donor<C>,
    /// When housekeeping is due.
    chores_ns: u64,
    counters: Counters,
}

/// Between two rounds of housekeeping.
const CHORES_NS: u64 = 20_000;
/// Bytes that replies get without an allocation.
const REPLY_BYTES: usize = 64 << 10;
/// Bytes an entry may have although each command is short, so that batches are worth their name.
const BATCH_BYTES: usize = 64 << 10;

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// An engine around a fresh application. It is a founding voter if the settings say so, else it has to catch up.
    ///
    /// # Errors
    /// A setting that cannot be, or a verb's error.
    pub fn new(parts: Parts<C>, app: S, zoo: Z, now_ns: u64) -> Result<Self, StartError> {
        let Parts {
            ctx,
            settings,
            shared,
            board,
            log_pd,
            board_pd,
            ..
        } = parts;
        settings.check()?;
        let max_entry = max_entry(&settings);
        let peers = settings.peers();
        let log = Log::new(parts.log, settings.ring_bytes);
        let lane = Lane::new(
            &ctx,
            &log_pd,
            log.memory(),
            parts.log_qps,
            parts.log_cq,
            max_entry,
        )?;
        // A stretch of log that holds any entry, and leaves the ring alone in which it is put.
        let stretch = max_entry
            .next_multiple_of(64)
            .max(CHUNK.min(settings.ring_bytes / 2));
        let rejoin = Rejoin::new(&ctx, &board_pd, stretch, parts.pull_qps, parts.pull_cq)?;
        let placement = ctx.caps().placement;
        let checksum = settings.wants_checksum(placement);
        let in_order = placement == Placement::WholeMessage;
        let role = if settings.form {
            Role::Follower
        } else {
            Role::Recovering
        };
        let mut engine = Self {
            machine: Machine::new(app, settings.sessions, REPLY_BYTES),
            payload: Vec::with_capacity(max_entry),
            incarnation: parts.incarnation,
            wall_offset_ns: parts.wall_offset_ns,
            checksum,
            in_order,
            max_entry,
            quorum: settings.members.quorum(),
            standing: Standing::default(),
            stopped: None,
            commit: 0,
            lead: Lead::new(Encoder::new(max_entry), peers),
            follow: Follow::default(),
            rejoin,
            donor: Donor::new(ctx, board_pd),
            chores_ns: now_ns,
            counters: Counters::default(),
            settings,
            zoo,
            shared,
            board,
            log,
            lane,
        };
        engine
            .board
            .set_public(public::INCARNATION, engine.incarnation);
        engine.stand(
            Standing {
                role,
                voter: engine.settings.form,
            },
            Epoch::NONE,
        );
        Ok(engine)
    }

    /// Takes a command; its end comes as an [`Event::Command`] with the ticket given here. It goes out with the next
    /// [`poll`](Self::poll), in one entry with whatever else was submitted since the last one. `client` 0 has no
    /// session, and its `sequence` is not kept; any other numbers its commands upwards and repeats the number when it
    /// tries again.
    ///
    /// # Errors
    /// [`Refused`]: it is not in the log and never will be.
    #[inline]
    pub fn submit(&mut self, client: u64, sequence: u64, command: &[u8]) -> Result<u64, Refused> {
        if !self.lead.accepts() {
            return Err(self.refusal());
        }
        let limit = self.settings.max_command_bytes;
        if command.len() > limit {
            return Err(Refused::TooLarge {
                bytes: command.len(),
                limit,
            });
        }
        let pending = self.lead.pending();
        let frame = Frame {
            client,
            sequence,
            bytes: command,
        };
        if pending >= self.settings.window as u64 || !self.lead.encoder.push(frame) {
            return Err(Refused::Overloaded { pending });
        }
        Ok(self.lead.tickets.submit())
    }

    /// Asks for a linearizable read; its end comes as an [`Event::Read`]. Reads asked for together share one proof.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn read(&mut self) -> Result<u64, Refused> {
        if !self.lead.accepts() {
            return Err(self.refusal());
        }
        let waiting = self.lead.proof.waiting();
        if waiting >= MAX_READS as u64 {
            return Err(Refused::Overloaded { pending: waiting });
        }
        Ok(self.lead.proof.ticket())
    }

    /// Does what there is to do. `now_ns` is the caller's monotonic clock. Outcomes go to `each`.
    #[inline]
    pub fn poll(&mut self, now_ns: u64, mut each: impl FnMut(Event<'_>)) -> Pace {
        self.shared.advance();
        // The promise is read before the candidacy: see `Shared::leave`.
        let promised = self.shared.promised();
        let candidate = self.shared.candidate();
        let mut worked = false;
        if self.lead.is_on() || (candidate != Epoch::NONE && candidate != self.lead.epoch()) {
            worked |= self.poll_leader(now_ns, &mut each);
        }
        if !self.lead.is_on() {
            if candidate == Epoch::NONE && self.shared.left() != promised && self.is_still() {
                self.shared.leave(promised);
            }
            worked |= self.poll_follower(now_ns, &mut each);
        }
        if now_ns >= self.chores_ns {
            self.chores_ns = now_ns + CHORES_NS;
            worked |= self.chores(now_ns, &mut each);
        }
        Pace {
            worked,
            waiting: self.lead.is_waiting(),
        }
    }

    /// Hands the leadership to `to`, or to the most advanced follower: nothing more is accepted, what is in flight is
    /// finished, and the successor is told to stand. Taken back if it does not come to it.
    ///
    /// # Errors
    /// [`Refused::NotLeader`]; [`Refused::Overloaded`] if no such follower is confirmed.
    pub fn transfer(&mut self, to: Option<ReplicaId>, now_ns: u64) -> Result<ReplicaId, Refused> {
        if !self.lead.accepts() {
            return Err(self.refusal());
        }
        let successor = self.lead.successor(to);
        let successor = successor.ok_or(Refused::Overloaded {
            pending: self.lead.pending(),
        })?;
        self.lead
            .begin_handover(successor, now_ns + 4 * self.settings.election_ns);
        Ok(successor)
    }

    /// Stops this replica for good: it neither leads, applies nor grants any more. The others go on.
    pub fn stop(&mut self, mut each: impl FnMut(Event<'_>)) {
        self.halt(Stopped::Asked, &mut each);
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<ReplicaId> {
        if self.lead.accepts() {
            return Some(self.settings.id);
        }
        self.shared.leading_peer(self.settings.id)
    }

    /// Role and vote.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Why it halted, if it did.
    pub fn stopped(&self) -> Option<Stopped> {
        self.stopped
    }

    /// The epoch in which it leads.
    pub fn leads(&self) -> Option<Epoch> {
        self.lead.accepts().then(|| self.lead.epoch())
    }

    /// The commit index it knows.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// The last entry applied.
    pub fn applied(&self) -> Point {
        self.machine.applied()
    }

    /// Whether entries that are known to be decided wait to be applied.
    #[inline]
    pub fn is_behind(&self) -> bool {
        self.machine.applied().index < self.commit
    }

    /// Digest of the state after the last applied entry.
    pub fn digest(&self) -> u64 {
        self.machine.digest()
    }

    /// The application. What it says is fresh only after a read has been proven, or on its own terms.
    pub fn app(&self) -> &S {
        &self.machine.app
    }

    /// The application, to be changed from outside of the log: for what is no replicated state, such as its handles.
    pub fn app_mut(&mut self) -> &mut S {
        &mut self.machine.app
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The words shared with the background engine, for checks.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Board and outbox, for checks.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The own log, for checks.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Settings it runs with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// This life's number.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// A word of a peer's public line ([`public`]), as last read by the background engine.
    pub fn peer_public(&self, peer: ReplicaId, word: usize) -> u64 {
        self.shared.peer(peer).public(word)
    }

    /// The confirmed followers with the last index each has acknowledged.
    pub fn followers(&self) -> impl Iterator<Item = (ReplicaId, u64)> {
        self.lead.confirmed()
    }

    /// The life of `peer` whose grant a candidate or leader has taken, for checks; 0 if it has none.
    pub fn granting_life(&self, peer: ReplicaId) -> u64 {
        let mut followers = self.lead.followers.iter();
        let follower = followers.find(|follower| follower.id == peer);
        follower.map_or(0, |follower| follower.incarnation())
    }

    fn refusal(&self) -> Refused {
        match self.stopped {
            Some(why) => Refused::Stopped(why),
            None if self.lead.is_handing_over() => Refused::NotLeader(self.lead.handover()),
            None => Refused::NotLeader(self.leader()),
        }
    }

    /// Takes a role and says so to the peers.
    fn stand(&mut self, standing: Standing, epoch: Epoch) {
        self.standing = standing;
        self.board.set_public(public::LEADS, epoch.0);
        self.board.set_public(public::STANDING, standing.to_word());
    }

    /// [`stand`](Self::stand), and says so to the caller.
    fn take_role(&mut self, role: Role, epoch: Epoch, each: &mut impl FnMut(Event<'_>)) {
        let standing = Standing {
            role,
            ..self.standing
        };
        self.stand(standing, epoch);
        each(Event::Role { standing, epoch });
    }

    /// Halts for good.
    fn halt(&mut self, why: Stopped, each: &mut impl FnMut(Event<'_>)) {
        if self.stopped.is_some() {
            return;
        }
        self.stopped = Some(why);
        self.end_leadership(each);
        self.standing.voter = false;
        self.take_role(Role::Stopped, Epoch::NONE, each);
    }

    /// What need not happen at every poll.
    #[inline(never)]
    fn chores(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        if let Some(Halt::Diverged) = self.shared.halted() {
            self.halt(Stopped::Diverged, each);
        }
        if self.stopped.is_some() {
            return false;
        }
        let mut worked = self.give_snapshots();
        if self.lead.is_on() {
            worked |= self.lead_chores(now_ns, each);
        } else if self.standing.role == Role::Recovering {
            worked |= self.rejoin_chores(now_ns, each);
        } else {
            worked |= self.follow_chores(now_ns, each);
        }
        worked
    }
}

/// Largest entry: one command of the largest size, or a batch.
fn max_entry(settings: &Settings) -> usize {
    let command = settings.max_command_bytes.next_multiple_of(8);
    let one = OVERHEAD_BYTES + SESSION_FRAME_BYTES + command;
    one.max(BATCH_BYTES).min(settings.max_entry_bytes())
}
