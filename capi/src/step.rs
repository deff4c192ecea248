//! The mode without a replication thread: whoever calls replicates, one thread at a time.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use smr::config::Config;
use smr::host::{Direct, Halted, Handle, pin, sleep_precisely};
use smr::protocol::layout::Role;
use smr::protocol::replication::{Event, Outcome, Pace, ReadOutcome};
use smr::verbs::Context;
use smr::{ProposeError, ReplicaId};

use crate::app::{App, Situation};
use crate::code::{Fault, MU_TIMED_OUT};
use crate::instance::{Deadline, Done, Take, no_ticket, stopped};
use crate::scope;

/// What is needed of a replica, whatever its device.
trait Engine: Send {
    fn submit(&mut self, client: u64, sequence: u64, command: &[u8]) -> Result<u64, ProposeError>;
    fn submit_read(&mut self) -> Result<u64, ProposeError>;
    fn poll(&mut self, each: &mut dyn FnMut(Event<'_>)) -> Pace;
    fn rest(&mut self, pace: Pace, fd: Option<BorrowedFd<'_>>, ns: u64);
    fn transfer(&mut self, to: Option<ReplicaId>) -> Result<ReplicaId, ProposeError>;
    /// Whether it takes commands, and whether it has the leader's role.
    fn leads(&self) -> (bool, bool);
    fn stopped(&self) -> Option<Halted>;
}

impl<C: Context> Engine for Direct<C, App> {
    fn submit(&mut self, client: u64, sequence: u64, command: &[u8]) -> Result<u64, ProposeError> {
        self.submit(client, sequence, command)
    }

    fn submit_read(&mut self) -> Result<u64, ProposeError> {
        self.submit_read()
    }

    fn poll(&mut self, each: &mut dyn FnMut(Event<'_>)) -> Pace {
        self.poll(each)
    }

    fn rest(&mut self, pace: Pace, fd: Option<BorrowedFd<'_>>, ns: u64) {
        self.rest_at_most(pace, fd, ns);
    }

    fn transfer(&mut self, to: Option<ReplicaId>) -> Result<ReplicaId, ProposeError> {
        self.transfer(to)
    }

    fn leads(&self) -> (bool, bool) {
        (self.leads(), self.standing().role == Role::Leader)
    }

    fn stopped(&self) -> Option<Halted> {
        self.stopped()
    }
}

pub(crate) struct Step {
    situation: Arc<Situation>,
    state: Mutex<State>,
}

struct State {
    /// Gone when it was stopped or panicked.
    engine: Option<Box<dyn Engine>>,
    /// Tickets whose outcome nobody has taken.
    tickets: BTreeMap<u64, Option<Result<Done, Fault>>>,
}

/// The engine counts commands and reads apart.
fn ticket_of(number: u64, is_read: bool) -> u64 {
    number << 1 | u64::from(is_read)
}

/// How a ticket ended: the entry's index and the reply.
type Ended<'a> = Result<(u64, &'a [u8]), Fault>;

fn ended(event: Event<'_>) -> Option<(u64, Ended<'_>)> {
    match event {
        Event::Command { ticket, outcome } => {
            let ended = match outcome {
                Outcome::Decided { index, reply } => Ok((index, reply)),
                Outcome::DecidedReplyGone { index } => {
                    Err(ProposeError::ReplyGone { index }.into())
                }
                Outcome::Superseded { .. } => Err(ProposeError::Superseded.into()),
                Outcome::Unknown => Err(ProposeError::Unknown.into()),
                Outcome::NotLeader(hint) => Err(ProposeError::NotLeader { hint }.into()),
            };
            Some((ticket_of(ticket, false), ended))
        }
        Event::Read { ticket, outcome } => {
            let ended = match outcome {
                ReadOutcome::Ready { .. } => Ok((0, &[][..])),
                ReadOutcome::NotLeader(hint) => Err(ProposeError::NotLeader { hint }.into()),
            };
            Some((ticket_of(ticket, true), ended))
        }
        Event::Role { .. } => None,
    }
}

impl Step {
    pub(crate) fn start<C: Context>(
        ctx: &C,
        config: &Config,
        id: u8,
        form: bool,
        app: App,
    ) -> Result<(Handle, Self), Fault> {
        let situation = Arc::clone(&app.0);
        let mut direct = Direct::member(ctx, config, id, form, app)?;
        direct.watch(situation.watch());
        sleep_precisely();
        // Here and not before, since threads inherit it.
        let member = config.member(id).map_err(smr::StartError::from)?;
        pin(member.replication_cpu)?;
        let handle = direct.handle();
        let state = Mutex::new(State {
            engine: Some(Box::new(direct)),
            tickets: BTreeMap::new(),
        });
        Ok((handle, Self { situation, state }))
    }

    /// The replica, to be turned.
    fn enter(&self) -> Result<MutexGuard<'_, State>, Fault> {
        match scope::is_there() {
            true => self.vacant(),
            false => Err(Fault::misuse(
                "this thread ends: callbacks cannot run on it any more",
            )),
        }
    }

    /// The replica, unless another thread is in it.
    fn vacant(&self) -> Result<MutexGuard<'_, State>, Fault> {
        match self.state.try_lock() {
            Ok(state) => Ok(state),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Fault::misuse(
                "another thread is inside of this replica, which is stepped by one at a time",
            )),
        }
    }

    /// One turn; what ended and is not for `each` goes to its ticket.
    fn turn(
        &self,
        state: &mut State,
        each: &mut dyn FnMut(u64, &mut Option<Ended<'_>>),
    ) -> Option<Pace> {
        let State { engine, tickets } = state;
        let mut poll = |engine: &mut Box<dyn Engine>| {
            engine.poll(&mut |event| {
                let Some((ticket, ended)) = ended(event) else {
                    return;
                };
                let mut ended = Some(ended);
                each(ticket, &mut ended);
                if let Some(ended) = ended
                    && let Some(outcome) = tickets.get_mut(&ticket)
                {
                    *outcome = Some(ended.map(|(index, reply)| Done {
                        index,
                        reply: reply.to_vec(),
                    }));
                }
            })
        };
        let polled = catch_unwind(AssertUnwindSafe(|| engine.as_mut().map(&mut poll)));
        let pace = polled.unwrap_or_else(|_| {
            self.broke(state);
            None
        });
        if state.engine.as_ref().is_some_and(|e| e.stopped().is_some()) {
            return None;
        }
        pace
    }

    /// A panic went through the engine: nothing of it is to be trusted.
    fn broke(&self, state: &mut State) {
        state.engine = None;
        for outcome in state.tickets.values_mut().filter(|o| o.is_none()) {
            *outcome = Some(Err(ProposeError::Unknown.into()));
        }
        self.situation.halted(Halted::Panicked);
    }

    /// Turns until `done` says so; false if the deadline comes or the replica stops first.
    fn turns(
        &self,
        state: &mut State,
        deadline: Deadline,
        each: &mut dyn FnMut(u64, &mut Option<Ended<'_>>),
        mut done: impl FnMut(&State) -> bool,
    ) -> bool {
        loop {
            let pace = self.turn(state, each);
            if done(state) {
                return true;
            }
            let Some(pace) = pace else { return false };
            let Some(ns) = left_ns(deadline) else {
                return false;
            };
            if let Some(engine) = &mut state.engine {
                engine.rest(pace, None, ns);
            }
        }
    }

    pub(crate) fn submit(&self, client: u64, sequence: u64, command: &[u8]) -> Result<u64, Fault> {
        let mut state = self.enter()?;
        let engine = state.engine.as_mut().ok_or_else(stopped)?;
        let ticket = ticket_of(engine.submit(client, sequence, command)?, false);
        state.tickets.insert(ticket, None);
        Ok(ticket)
    }

    pub(crate) fn submit_barrier(&self) -> Result<u64, Fault> {
        let mut state = self.enter()?;
        let engine = state.engine.as_mut().ok_or_else(stopped)?;
        let ticket = ticket_of(engine.submit_read()?, true);
        state.tickets.insert(ticket, None);
        Ok(ticket)
    }

    pub(crate) fn wait(&self, ticket: u64, deadline: Deadline) -> Result<Done, Fault> {
        let mut state = self.enter()?;
        if !state.tickets.contains_key(&ticket) {
            return Err(no_ticket(ticket));
        }
        let ended = |state: &State| state.tickets.get(&ticket).is_some_and(Option::is_some);
        if !ended(&state) {
            self.turns(&mut state, deadline, &mut |_, _| {}, ended);
        }
        match state.tickets.get_mut(&ticket).and_then(Option::take) {
            Some(outcome) => {
                state.tickets.remove(&ticket);
                outcome
            }
            None => {
                let text = format!("ticket {ticket} has no outcome yet");
                Err(Fault::new(MU_TIMED_OUT, text))
            }
        }
    }

    /// Straight into the caller's buffer: `None` if there is no outcome in time.
    pub(crate) fn propose(
        &self,
        (client, sequence): (u64, u64),
        command: &[u8],
        deadline: Deadline,
        take: &mut Take<'_>,
    ) -> Result<Option<()>, Fault> {
        let mut state = self.enter()?;
        let engine = state.engine.as_mut().ok_or_else(stopped)?;
        let own = ticket_of(engine.submit(client, sequence, command)?, false);
        let mut outcome = None;
        loop {
            let mut each = |ticket: u64, ended: &mut Option<Ended<'_>>| {
                if ticket == own {
                    let ended = ended.take();
                    outcome = ended.map(|e| e.and_then(|(index, reply)| take(index, reply)));
                }
            };
            let pace = self.turn(&mut state, &mut each);
            if outcome.is_some() {
                break;
            }
            // A replica that broke gave no outcome.
            let Some(pace) = pace else {
                return Err(ProposeError::Unknown.into());
            };
            let Some(ns) = left_ns(deadline) else {
                return Ok(None);
            };
            if let Some(engine) = &mut state.engine {
                engine.rest(pace, None, ns);
            }
        }
        outcome.transpose()
    }

    pub(crate) fn forget(&self, ticket: u64) -> Result<(), Fault> {
        let forgotten = self.enter()?.tickets.remove(&ticket);
        forgotten.map(drop).ok_or_else(|| no_ticket(ticket))
    }

    /// Turns once, and then rests until there is something to do, for at most so long; a descriptor that can be read
    /// and `Handle::wake` end it as well.
    pub(crate) fn step(&self, deadline: Deadline, fd: Option<BorrowedFd<'_>>) -> Result<(), Fault> {
        let mut state = self.enter()?;
        let pace = self.turn(&mut state, &mut |_, _| {});
        let engine = state.engine.as_mut().ok_or_else(stopped)?;
        let pace = pace.ok_or_else(|| match engine.stopped() {
            Some(why) => ProposeError::Stopped(why).into(),
            None => stopped(),
        })?;
        if let Some(ns) = left_ns(deadline)
            && !pace.worked
        {
            engine.rest(pace, fd, ns);
        }
        Ok(())
    }

    pub(crate) fn transfer(&self, to: Option<ReplicaId>) -> Result<ReplicaId, Fault> {
        let mut state = self.enter()?;
        let engine = state.engine.as_mut().ok_or_else(stopped)?;
        let chosen = engine.transfer(to)?;
        let over = |state: &State| match state.engine.as_ref().map(|e| e.leads()) {
            Some((accepts, has_role)) => accepts || !has_role,
            None => true,
        };
        let no_deadline = None;
        self.turns(&mut state, no_deadline, &mut |_, _| {}, over);
        match state.engine.as_ref().map(|e| e.leads()) {
            Some((true, _)) => Err(ProposeError::NotHandedOver.into()),
            _ => Ok(chosen),
        }
    }

    /// Ends the replica, which was asked to; if another thread is in it, that one sees it at its next turn.
    pub(crate) fn stop(&self) {
        if let Ok(mut state) = self.vacant() {
            self.end(&mut state);
        }
    }

    /// The same, after the other thread has left.
    pub(crate) fn close(&self) {
        self.end(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn end(&self, state: &mut State) {
        if scope::is_there() {
            self.turn(state, &mut |_, _| {});
        }
        state.engine = None;
        for outcome in state.tickets.values_mut().filter(|o| o.is_none()) {
            *outcome = Some(Err(ProposeError::Unknown.into()));
        }
    }
}

/// What is left of a deadline; `None` if nothing is.
fn left_ns(deadline: Deadline) -> Option<u64> {
    let Some(deadline) = deadline else {
        return Some(u64::MAX);
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let ns = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    (ns > 0).then_some(ns)
}
