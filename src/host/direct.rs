//! Direct mode: the application's own thread replicates, with the background thread beside it.
//!
//! This is the shortest path there is: [`Direct::propose`] encodes the command, posts one write to each follower,
//! looks for their completions, applies and returns, all in the caller; where a post is the caller's own work, the
//! writes that the answer does not need come behind it. It allocates nothing. The price is that the caller has to
//! [`poll`](Direct::poll) when it has nothing to propose, at least every quarter of
//! [`stuck_ns`](mu_protocol::settings::Settings::stuck_ns): peers take a replica that does not for dead.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::Standing;
use mu_protocol::limits::MAX_REPLICAS;
use mu_protocol::machine::StateMachine;
use mu_protocol::replica::{Life, assemble};
use mu_protocol::replication::{Event, Outcome, Pace, ReadOutcome, Replication};
use mu_protocol::settings::Settings;
use mu_protocol::zoo::Sound;
use mu_verbs::Context;

use super::background::BackgroundThread;
use super::clock::Clock;
use super::common::{Common, View, role_name};
use super::control::ControlPlane;
use super::error::{Halted, ProposeError, StartError};
use super::options::Options;
use super::pace::{Pacer, Rest};
use super::stages::{SAMPLE, Stage};
use super::status::Status;
use super::timed::Timed;
use super::watch::{Part, Watch, Watched};

/// Between two publications of the picture for other threads.
const PUBLISH_NS: u64 = 1_000_000;
/// Replies up to this length are handed out without an allocation.
const REPLY_BYTES: usize = 64 << 10;

/// A replica on the caller's thread.
pub struct Direct<C: Context, S: StateMachine> {
    engine: Replication<C, Timed<S>, Sound>,
    background: BackgroundThread,
    common: Arc<Common>,
    pacer: Pacer,
    stuck_ns: u64,
    publish_ns: u64,
    submitted: u64,
    answered: u64,
    reading: u64,
    sample: Sample,
    reply: Vec<u8>,
    watched: Option<Watched>,
}

/// The command that is being timed.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    ticket: Option<u64>,
    start_ns: u64,
    posted_ns: Option<u64>,
    ended: bool,
}

/// The reply to a command, in direct mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyRef<'a> {
    /// Index of the entry that carried the command.
    pub index: u64,
    /// What the application replied.
    pub bytes: &'a [u8],
}

impl<C: Context, S: StateMachine> Direct<C, S> {
    /// Makes a replica on a device and starts its background thread.
    ///
    /// # Errors
    /// A setting, the device, or the operating system.
    pub fn start(
        ctx: &C,
        options: Options,
        plane: impl ControlPlane,
        app: S,
    ) -> Result<Self, StartError> {
        let incarnation = crate::control::new_incarnation()?;
        Self::start_as(ctx, options, incarnation, |_| Ok(plane), app)
    }

    /// The same with a given number of this life, which the control plane may need.
    pub(crate) fn start_as<P: ControlPlane>(
        ctx: &C,
        options: Options,
        incarnation: u64,
        plane: impl FnOnce(u64) -> Result<P, StartError>,
        app: S,
    ) -> Result<Self, StartError> {
        let incarnation = incarnation.max(1);
        let clock = Clock::new();
        let settings: Settings = options.settings;
        let id = settings.id;
        let common = Common::new(options.cluster, id, incarnation, clock);
        let common = Arc::new(common.map_err(|errno| StartError::System {
            what: "making an eventfd".into(),
            source: errno.into(),
        })?);
        let life = Life {
            incarnation,
            wall_offset_ns: common.clock.wall_offset_ns(),
            now_ns: common.clock.now_ns(),
        };
        let stuck_ns = settings.stuck_ns;
        let app = Timed::new(app, Arc::clone(&common));
        let engines = assemble(ctx, settings, life, app, Sound)?;
        let background = BackgroundThread::start(
            engines.background,
            plane(incarnation)?,
            options.background,
            Arc::clone(&common),
        )?;
        let now_ns = common.clock.now_ns();
        let mut direct = Self {
            engine: engines.replication,
            background,
            common,
            pacer: Pacer::new(options.replication.policy, now_ns),
            stuck_ns,
            publish_ns: now_ns,
            submitted: 0,
            answered: 0,
            reading: 0,
            sample: Sample::default(),
            reply: Vec::with_capacity(REPLY_BYTES),
            watched: None,
        };
        direct.publish(now_ns);
        Ok(direct)
    }

    /// Proposes a command without a session and waits for its end.
    ///
    /// # Errors
    /// [`ProposeError`]; see there for what a retry needs.
    ///
    /// # Panics
    /// If commands or reads that were submitted have no outcome yet.
    #[inline]
    pub fn propose(&mut self, command: &[u8]) -> Result<ReplyRef<'_>, ProposeError> {
        self.propose_as(0, 0, command)
    }

    /// Proposes command number `sequence` of client `client` and waits for its end. A retry with the same numbers is
    /// applied once.
    ///
    /// # Errors
    /// [`ProposeError`]; see there for what a retry needs.
    ///
    /// # Panics
    /// If commands or reads that were submitted have no outcome yet.
    pub fn propose_as(
        &mut self,
        client: u64,
        sequence: u64,
        command: &[u8],
    ) -> Result<ReplyRef<'_>, ProposeError> {
        self.assert_idle("propose");
        let ticket = self.submit(client, sequence, command)?;
        let mut reply = std::mem::take(&mut self.reply);
        let mut ended = None;
        while ended.is_none() {
            let pace = self.poll(|event| {
                if let Event::Command { ticket: t, outcome } = event {
                    debug_assert_eq!(t, ticket);
                    ended = Some(outcome_of(outcome).map(|(index, bytes)| {
                        reply.clear();
                        reply.extend_from_slice(bytes);
                        index
                    }));
                }
            });
            if ended.is_none() {
                self.rest(pace, None);
            }
        }
        self.reply = reply;
        let index = ended.expect("the loop ended")?;
        Ok(ReplyRef {
            index,
            bytes: &self.reply,
        })
    }

    /// Reads the state, linearizably: it holds everything that was decided before the call.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::Overloaded`] or [`ProposeError::Stopped`].
    ///
    /// # Panics
    /// If commands or reads that were submitted have no outcome yet.
    pub fn read<R>(&mut self, read: impl FnOnce(&S) -> R) -> Result<R, ProposeError> {
        self.assert_idle("read");
        self.submit_read()?;
        let mut ended = None;
        while ended.is_none() {
            let pace = self.poll(|event| {
                if let Event::Read { outcome, .. } = event {
                    ended = Some(outcome);
                }
            });
            if ended.is_none() {
                self.rest(pace, None);
            }
        }
        match ended {
            Some(ReadOutcome::NotLeader(hint)) => Err(ProposeError::NotLeader { hint }),
            _ => Ok(read(self.app())),
        }
    }

    fn assert_idle(&self, what: &str) {
        assert!(
            self.submitted == self.answered && self.reading == 0,
            "{what} while submitted commands or reads are in flight: poll for them first, or submit this one too"
        );
    }

    /// Takes a command; its end comes from [`poll`](Self::poll) with the ticket given here. `client` 0 has no session.
    ///
    /// # Errors
    /// [`ProposeError`], never [`Unknown`](ProposeError::Unknown).
    #[inline]
    pub fn submit(
        &mut self,
        client: u64,
        sequence: u64,
        command: &[u8],
    ) -> Result<u64, ProposeError> {
        let ticket = match self.engine.submit(client, sequence, command) {
            Ok(ticket) => ticket,
            Err(refused) => return Err(self.refusal(refused.into())),
        };
        self.submitted += 1;
        if ticket.is_multiple_of(SAMPLE) && self.sample.ticket.is_none() {
            self.sample = Sample {
                ticket: Some(ticket),
                start_ns: self.common.clock.now_ns(),
                ..Sample::default()
            };
        }
        Ok(ticket)
    }

    /// Asks for a linearizable read; its end comes from [`poll`](Self::poll), and when it does [`app`](Self::app) is
    /// fresh.
    ///
    /// # Errors
    /// [`ProposeError`], never [`Unknown`](ProposeError::Unknown).
    pub fn submit_read(&mut self) -> Result<u64, ProposeError> {
        match self.engine.read() {
            Ok(ticket) => {
                self.reading += 1;
                Ok(ticket)
            }
            Err(refused) => Err(self.refusal(refused.into())),
        }
    }

    /// Why it stopped knows this side better than the engine.
    #[cold]
    fn refusal(&self, error: ProposeError) -> ProposeError {
        match (error, self.common.ending()) {
            (ProposeError::Stopped(Halted::Asked), Some(why)) => ProposeError::Stopped(why),
            (error, _) => error,
        }
    }

    /// Does what there is to do, and hands out what ended.
    #[inline]
    pub fn poll(&mut self, mut each: impl FnMut(Event<'_>)) -> Pace {
        let now_ns = self.common.clock.now_ns();
        let mut changed = false;
        let Self {
            engine,
            sample,
            answered,
            reading,
            common,
            watched,
            ..
        } = self;
        let mut each = |event: Event<'_>| {
            match event {
                Event::Command { ticket, .. } => {
                    *answered += 1;
                    sample.ended |= sample.ticket == Some(ticket);
                }
                Event::Read { .. } => *reading -= 1,
                Event::Role { standing, epoch } => {
                    changed = true;
                    common.note(role_name(standing.role), epoch);
                    tell(common.id, standing, epoch);
                    if let Some(watched) = watched {
                        watched.role(common.id, standing, epoch);
                    }
                }
            }
            each(event);
        };
        if common.ending().is_some() && engine.stopped().is_none() {
            engine.stop(&mut each);
        }
        let pace = engine.poll(now_ns, each);
        if self.sample.ticket.is_some() {
            self.time();
        }
        if changed || now_ns >= self.publish_ns {
            self.publish(now_ns);
        }
        pace
    }

    /// Notes how far the timed command is.
    #[inline(never)]
    fn time(&mut self) {
        let now_ns = self.common.clock.now_ns();
        let Sample {
            start_ns,
            posted_ns,
            ended,
            ..
        } = self.sample;
        let posted_ns = *self.sample.posted_ns.get_or_insert_with(|| {
            if posted_ns.is_none() {
                self.common.record(Stage::Post, now_ns - start_ns);
            }
            now_ns
        });
        if ended {
            self.common.record(Stage::Quorum, now_ns - posted_ns);
            self.common.record(Stage::Total, now_ns - start_ns);
            self.sample = Sample::default();
        }
    }

    /// Waits as the policy says after a poll; also ends when `others` can be read or [`Handle::wake`] is called.
    pub fn rest(&mut self, pace: Pace, others: Option<BorrowedFd<'_>>) {
        let now_ns = self.common.clock.now_ns();
        let due_ns = now_ns + self.stuck_ns / 4;
        let rest = self.pacer.rest(now_ns, pace.worked, pace.waiting, due_ns);
        self.carry_out(rest, others, || false);
    }

    /// [`rest`](Self::rest) for at most `ns`.
    pub fn rest_at_most(&mut self, pace: Pace, others: Option<BorrowedFd<'_>>, ns: u64) {
        let now_ns = self.common.clock.now_ns();
        let due_ns = now_ns + ns.min(self.stuck_ns / 4);
        let rest = self.pacer.rest(now_ns, pace.worked, pace.waiting, due_ns);
        self.carry_out(rest, others, || false);
    }

    /// [`rest`](Self::rest) with the caller's own sign of work.
    pub(crate) fn rest_unless(
        &mut self,
        pace: Pace,
        worked: bool,
        has_work: impl FnOnce() -> bool,
    ) {
        let now_ns = self.common.clock.now_ns();
        let due_ns = now_ns + self.stuck_ns / 4;
        let worked = worked || pace.worked;
        let rest = self.pacer.rest(now_ns, worked, pace.waiting, due_ns);
        self.carry_out(rest, None, has_work);
    }

    fn carry_out(
        &self,
        rest: Rest,
        others: Option<BorrowedFd<'_>>,
        has_work: impl FnOnce() -> bool,
    ) {
        match rest {
            Rest::Spin => std::hint::spin_loop(),
            Rest::Yield => std::thread::yield_now(),
            Rest::Sleep { ns } => {
                let ending = || self.engine.stopped().is_none() && self.common.ending().is_some();
                self.common
                    .waker
                    .sleep(ns, others, || ending() || has_work());
            }
        }
    }

    /// Publishes the picture for other threads.
    #[inline(never)]
    fn publish(&mut self, now_ns: u64) {
        self.publish_ns = now_ns + PUBLISH_NS;
        let view = self.view();
        self.common.publish(view);
        if let Some(watched) = &mut self.watched {
            watched.look(view.leader, view.stopped);
        }
    }

    fn view(&self) -> View {
        let mut matched = [None; MAX_REPLICAS];
        for (id, index) in self.engine.followers() {
            matched[id.index()] = Some(index);
        }
        View {
            standing: self.engine.standing(),
            epoch: self.engine.leads().unwrap_or(Epoch::NONE),
            leader: self.engine.leader(),
            commit: self.engine.commit(),
            applied: self.engine.applied().index,
            in_flight: self.submitted - self.answered,
            stopped: self.stopped(),
            counters: self.engine.counters(),
            matched,
        }
    }

    /// The application. On its own this is a **stale** read: what was decided elsewhere may not be here yet. It is
    /// fresh when the end of a [`submit_read`](Self::submit_read) has just come.
    pub fn app(&self) -> &S {
        &self.engine.app().app
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<ReplicaId> {
        self.engine.leader()
    }

    /// Whether this replica leads and takes commands.
    pub fn leads(&self) -> bool {
        self.engine.leads().is_some()
    }

    /// Role and vote.
    pub fn standing(&self) -> Standing {
        self.engine.standing()
    }

    /// Why it stopped, if it did.
    pub fn stopped(&self) -> Option<Halted> {
        let why = self.engine.stopped()?;
        Some(self.common.ending().unwrap_or(why.into()))
    }

    /// Bytes of the longest command.
    pub fn max_command_bytes(&self) -> usize {
        self.engine.settings().max_command_bytes
    }

    /// The last entry applied here.
    pub fn applied(&self) -> u64 {
        self.engine.applied().index
    }

    /// What it says of itself and its peers.
    pub fn status(&self) -> Status {
        self.common.status(&self.view())
    }

    /// The replication engine itself, for measurements and checks.
    pub fn engine(&self) -> &Replication<C, impl StateMachine + use<C, S>, Sound> {
        &self.engine
    }

    /// Has somebody told of every change from now on.
    pub fn watch(&mut self, watch: Watch) {
        let View {
            standing,
            epoch,
            leader,
            stopped,
            ..
        } = self.view();
        self.watched = Some(Watched::new(
            watch,
            Part {
                standing,
                epoch,
                leader,
                stopped,
            },
        ));
    }

    /// A way to wake, ask and stop it from other threads.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.common))
    }

    /// Begins to hand the leadership to `to`, or to the most advanced follower; poll until this replica does not lead
    /// any more, or [`leads`](Self::leads) again because nothing came of it. Gives the chosen one.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`]; [`ProposeError::Overloaded`] if no such follower is up to date.
    pub fn transfer(&mut self, to: Option<ReplicaId>) -> Result<ReplicaId, ProposeError> {
        let now_ns = self.common.clock.now_ns();
        let chosen = self.engine.transfer(to, now_ns);
        chosen.map_err(|refused| self.refusal(refused.into()))
    }

    /// Stops this replica: commands in flight end, the others go on. The outcomes go to `each`.
    pub fn stop(mut self, mut each: impl FnMut(Event<'_>)) {
        self.common.end(Halted::Asked);
        self.poll(&mut each);
        self.background.end(Halted::Asked);
    }

    pub(crate) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.common.clock.now_ns()
    }
}

fn tell(id: ReplicaId, standing: Standing, epoch: Epoch) {
    let role = role_name(standing.role);
    tracing::info!(replica = %id, role, voter = standing.voter, %epoch, "role");
}

/// A command's end as the callers of this crate see it.
#[inline]
pub(crate) fn outcome_of(outcome: Outcome<'_>) -> Result<(u64, &[u8]), ProposeError> {
    match outcome {
        Outcome::Decided { index, reply } => Ok((index, reply)),
        Outcome::DecidedReplyGone { index } => Err(ProposeError::ReplyGone { index }),
        Outcome::Superseded { .. } => Err(ProposeError::Superseded),
        Outcome::Unknown => Err(ProposeError::Unknown),
        Outcome::NotLeader(hint) => Err(ProposeError::NotLeader { hint }),
    }
}

/// A replica as other threads see it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Common>);

impl Handle {
    pub(crate) fn new(common: Arc<Common>) -> Self {
        Self(common)
    }

    /// Who leads, as far as the replica knew at most a millisecond of polling ago.
    pub fn leader(&self) -> Option<ReplicaId> {
        self.0.view().leader
    }

    /// What it says of itself and its peers.
    pub fn status(&self) -> Status {
        self.0.status(&self.0.view())
    }

    /// Ends a sleep in [`Direct::rest`].
    pub fn wake(&self) {
        self.0.waker.wake();
    }

    /// Sleeps as [`Direct::rest`] would, for at most `ns`, where the replica itself is behind a lock that is not to be
    /// held meanwhile: ends when there is something to be polled, or [`wake`](Self::wake) is called. Only one thread
    /// at a time is woken, so another one that sleeps here may sleep for all of `ns`.
    pub fn sleep(&self, ns: u64, has_work: impl FnOnce() -> bool) {
        let ending = || self.0.ending().is_some();
        self.0.waker.sleep(ns, None, || ending() || has_work());
    }

    /// Asks the replica to stop; its thread does at the next poll.
    pub fn stop(&self) {
        self.0.end(Halted::Asked);
    }
}
