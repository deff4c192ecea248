//! Handover mode: a replication thread of its own, and callers on any number of threads.
//!
//! A command goes into a bounded queue without a lock; the replication thread takes what is there, proposes it as one
//! batch and answers each caller. A full queue is [`ProposeError::Overloaded`], at once. Nothing is forwarded: a
//! replica that does not lead says who does, and [`ProposeError`] says what a retry needs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread::JoinHandle;

use crossbeam_queue::ArrayQueue;
use mu_protocol::ids::ReplicaId;
use mu_protocol::machine::StateMachine;
use mu_protocol::replication::{Event, ReadOutcome};
use mu_verbs::Context;

use super::background::spawn;
use super::call::{Answer, Pending, call};
use super::common::Common;
use super::control::ControlPlane;
use super::direct::{Direct, Handle, outcome_of};
use super::error::{Halted, ProposeError, StartError};
use super::options::{Options, pin};
use super::stages::Stage;
use super::status::Status;
use super::wake::sleep_precisely;
use super::watch::Watch;

/// The reply to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Index of the entry that carried the command: its place in the total order.
    pub index: u64,
    /// What the application replied.
    pub bytes: Vec<u8>,
}

/// A replica with threads of its own. Dropping it stops it.
pub struct Replica<S: StateMachine> {
    queue: Arc<ArrayQueue<Request<S>>>,
    common: Arc<Common>,
    max_command_bytes: usize,
    thread: Option<JoinHandle<()>>,
}

/// Runs on the replication thread, with the application or why not.
type Look<S> = Box<dyn FnOnce(Result<&S, ProposeError>) + Send>;

enum Request<S> {
    Command {
        client: u64,
        sequence: u64,
        bytes: Box<[u8]>,
        answer: Answer<Reply>,
        asked_ns: u64,
    },
    Read(Look<S>),
    LocalRead(Look<S>),
    Transfer(Option<ReplicaId>, Answer<ReplicaId>),
}

impl<S> Request<S> {
    /// Answers that it was not taken.
    fn refuse(self, error: ProposeError) {
        match self {
            Self::Command { answer, .. } => answer.give(Err(error)),
            Self::Read(look) | Self::LocalRead(look) => look(Err(error)),
            Self::Transfer(_, answer) => answer.give(Err(error)),
        }
    }
}

impl<S: StateMachine> Replica<S> {
    /// Starts a replica on a device.
    ///
    /// # Errors
    /// A setting, the device, or the operating system.
    pub fn start_on<C: Context>(
        ctx: &C,
        options: Options,
        plane: impl ControlPlane,
        app: S,
    ) -> Result<Self, StartError> {
        let thread = options.replication;
        let (window, max_command_bytes) =
            (options.settings.window, options.settings.max_command_bytes);
        let direct = Direct::start(ctx, options, plane, app)?;
        Self::around(direct, thread.cpu, window, max_command_bytes, None)
    }

    pub(crate) fn around<C: Context>(
        mut direct: Direct<C, S>,
        cpu: Option<u16>,
        window: usize,
        max_command_bytes: usize,
        watch: Option<Watch>,
    ) -> Result<Self, StartError> {
        if let Some(watch) = &watch {
            direct.watch(watch.clone());
        }
        let queue = Arc::new(ArrayQueue::new(window));
        let common = Arc::clone(direct.common());
        let body = {
            let (queue, common) = (Arc::clone(&queue), Arc::clone(&common));
            move || {
                common.guarded("replication", || {
                    if let Err(error) = pin(cpu) {
                        tracing::warn!(%error, "not pinned");
                    }
                    sleep_precisely();
                    Worker::new(direct, Arc::clone(&queue)).run();
                });
                // Whatever ended the thread, the others end with it, and nobody waits for an answer any more.
                common.end(Halted::Asked);
                let why = common.ending().unwrap_or(Halted::Asked);
                drain(&queue, why);
                if let Some(watch) = watch {
                    watch.ended(why);
                }
            }
        };
        let thread = spawn(format!("mu-repl-{}", common.id), body)?;
        Ok(Self {
            queue,
            common,
            max_command_bytes,
            thread: Some(thread),
        })
    }

    /// Proposes a command without a session and waits for its end: after [`ProposeError::Unknown`] there is no way to
    /// find out, so use [`propose_as`](Self::propose_as) for whatever must not be applied twice.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub fn propose(&self, command: &[u8]) -> Result<Reply, ProposeError> {
        self.propose_as(0, 0, command)
    }

    /// Proposes command number `sequence` of client `client` and waits for its end. A retry with the same numbers, here
    /// or at another replica, is applied once.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub fn propose_as(
        &self,
        client: u64,
        sequence: u64,
        command: &[u8],
    ) -> Result<Reply, ProposeError> {
        self.submit(client, sequence, command)?.wait()
    }

    /// Submits a command without waiting; the outcome is polled or waited for.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`], [`ProposeError::TooLarge`] or [`ProposeError::Stopped`] at once; the rest comes
    /// with the outcome.
    pub fn submit(
        &self,
        client: u64,
        sequence: u64,
        command: &[u8],
    ) -> Result<Pending<Reply>, ProposeError> {
        let (bytes, limit) = (command.len(), self.max_command_bytes);
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let (pending, answer) = call(ProposeError::Unknown);
        self.ask(Request::Command {
            client,
            sequence,
            bytes: command.into(),
            answer,
            asked_ns: self.common.clock.now_ns(),
        })?;
        Ok(pending)
    }

    /// Reads the state, linearizably, on the replication thread: it holds everything that was decided before the call.
    /// Only the leader can. Keep it short: nothing is replicated meanwhile.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::Overloaded`] or [`ProposeError::Stopped`].
    pub fn read<R: Send + 'static>(
        &self,
        read: impl FnOnce(&S) -> R + Send + 'static,
    ) -> Result<R, ProposeError> {
        self.submit_read(read)?.wait()
    }

    /// [`read`](Self::read) without waiting; the outcome is polled or waited for.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`] or [`ProposeError::Stopped`] at once; the rest comes with the outcome.
    pub fn submit_read<R: Send + 'static>(
        &self,
        read: impl FnOnce(&S) -> R + Send + 'static,
    ) -> Result<Pending<R>, ProposeError> {
        self.look(read, Request::Read)
    }

    /// Reads the state as it is here, at any replica: it may be **stale**, by as much as this replica is behind.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`] or [`ProposeError::Stopped`].
    pub fn local_read<R: Send + 'static>(
        &self,
        read: impl FnOnce(&S) -> R + Send + 'static,
    ) -> Result<R, ProposeError> {
        self.look(read, Request::LocalRead)?.wait()
    }

    fn look<R: Send + 'static>(
        &self,
        read: impl FnOnce(&S) -> R + Send + 'static,
        request: fn(Look<S>) -> Request<S>,
    ) -> Result<Pending<R>, ProposeError> {
        let (pending, answer) = call(ProposeError::Stopped(Halted::Panicked));
        self.ask(request(Box::new(move |app| answer.give(app.map(read)))))?;
        Ok(pending)
    }

    /// Hands the leadership to `to`, or to the most advanced follower, and waits until this replica does not lead any
    /// more. Gives the chosen one, which may take a moment longer to begin; if it is held up, or this replica was
    /// replaced meanwhile, another one leads.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`]; [`ProposeError::Overloaded`] if no such follower is up to date, or the queue is
    /// full; [`ProposeError::NotHandedOver`] if nothing came of it; [`ProposeError::Stopped`].
    pub fn transfer(&self, to: Option<ReplicaId>) -> Result<ReplicaId, ProposeError> {
        self.submit_transfer(to)?.wait()
    }

    /// The same without waiting: the end is polled or waited for.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`] or [`ProposeError::Stopped`] at once; the rest comes with the end.
    pub fn submit_transfer(
        &self,
        to: Option<ReplicaId>,
    ) -> Result<Pending<ReplicaId>, ProposeError> {
        let (pending, answer) = call(ProposeError::Unknown);
        self.ask(Request::Transfer(to, answer))?;
        Ok(pending)
    }

    fn ask(&self, request: Request<S>) -> Result<(), ProposeError> {
        if let Some(why) = self.common.ending() {
            return Err(ProposeError::Stopped(why));
        }
        if let Err(request) = self.queue.push(request) {
            // The caller gets it as an error; nobody waits for the answer.
            drop(request);
            return Err(ProposeError::Overloaded);
        }
        self.common.waker.wake();
        // The thread may have looked for the last time before this request came.
        fence(Ordering::SeqCst);
        if let Some(why) = self.common.ending() {
            drain(&self.queue, why);
        }
        Ok(())
    }

    /// Who leads, as far as this replica knows.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        self.handle().leader()
    }

    /// What it says of itself and its peers.
    #[must_use]
    pub fn status(&self) -> Status {
        self.handle().status()
    }

    /// This replica's number.
    #[must_use]
    pub fn id(&self) -> ReplicaId {
        self.common.id
    }

    /// A way to ask and stop it from other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.common))
    }

    /// Stops it and waits for its threads. What is in flight ends as unknown, or as not taken.
    pub fn stop(self) {
        drop(self);
    }
}

impl<S: StateMachine> Drop for Replica<S> {
    fn drop(&mut self) {
        self.common.end(Halted::Asked);
        if let Some(thread) = self.thread.take() {
            // A panic of it was caught and said inside.
            let _ = thread.join();
        }
    }
}

fn drain<S>(queue: &ArrayQueue<Request<S>>, why: Halted) {
    while let Some(request) = queue.pop() {
        request.refuse(ProposeError::Stopped(why));
    }
}

/// The replication thread.
struct Worker<C: Context, S: StateMachine> {
    direct: Direct<C, S>,
    queue: Arc<ArrayQueue<Request<S>>>,
    /// A request that did not fit; those behind it wait too, so that order is kept.
    held: Option<Request<S>>,
    /// In the order of their tickets.
    commands: VecDeque<Answer<Reply>>,
    reads: VecDeque<Look<S>>,
    /// A handover on its way.
    transfer: Option<(ReplicaId, Answer<ReplicaId>)>,
}

impl<C: Context, S: StateMachine> Worker<C, S> {
    fn new(direct: Direct<C, S>, queue: Arc<ArrayQueue<Request<S>>>) -> Self {
        Self {
            direct,
            held: None,
            commands: VecDeque::with_capacity(queue.capacity()),
            reads: VecDeque::new(),
            transfer: None,
            queue,
        }
    }

    fn run(&mut self) {
        let common = Arc::clone(self.direct.common());
        loop {
            let ending = common.ending().is_some();
            let took = self.take();
            let mut ready = 0;
            let Self {
                direct,
                commands,
                reads,
                ..
            } = self;
            let pace = direct.poll(|event| match event {
                Event::Command { outcome, .. } => {
                    let answer = commands.pop_front().expect("a command for every ticket");
                    answer.give(outcome_of(outcome).map(|(index, bytes)| Reply {
                        index,
                        bytes: bytes.to_vec(),
                    }));
                }
                Event::Read { outcome, .. } => match outcome {
                    ReadOutcome::Ready { .. } => ready += 1,
                    ReadOutcome::NotLeader(hint) => {
                        // Those that are ready come before it, and are still in the queue.
                        let look = reads.remove(ready).expect("a read for every ticket");
                        look(Err(ProposeError::NotLeader { hint }));
                    }
                },
                Event::Role { .. } => {}
            });
            for look in reads.drain(..ready) {
                look(Ok(direct.app()));
            }
            self.watch_transfer();
            if ending {
                break;
            }
            let queue = &self.queue;
            self.direct.rest_unless(pace, took, || !queue.is_empty());
        }
        if let Some(request) = self.held.take() {
            let why = common.ending().unwrap_or(Halted::Asked);
            request.refuse(ProposeError::Stopped(why));
        }
    }

    /// Takes requests until the queue is empty or the engine has enough. Whether it took any.
    fn take(&mut self) -> bool {
        let mut took = false;
        // A burst that never ends must not keep the engine from being polled.
        for _ in 0..self.queue.capacity() {
            let Some(request) = self.held.take().or_else(|| self.queue.pop()) else {
                break;
            };
            if let Some(request) = self.start(request) {
                self.held = Some(request);
                break;
            }
            took = true;
        }
        took
    }

    /// Starts a request; gives it back if it has to wait.
    fn start(&mut self, request: Request<S>) -> Option<Request<S>> {
        let (error, request) = match request {
            Request::Command {
                client,
                sequence,
                bytes,
                answer,
                asked_ns,
            } => match self.direct.submit(client, sequence, &bytes) {
                Ok(ticket) => {
                    if ticket.is_multiple_of(super::stages::SAMPLE) {
                        let now_ns = self.direct.now_ns();
                        let common = self.direct.common();
                        common.record(Stage::Submit, now_ns.saturating_sub(asked_ns));
                    }
                    self.commands.push_back(answer);
                    return None;
                }
                Err(error) => {
                    let request = Request::Command {
                        client,
                        sequence,
                        bytes,
                        answer,
                        asked_ns,
                    };
                    (error, request)
                }
            },
            Request::Read(look) => match self.direct.submit_read() {
                Ok(_) => {
                    self.reads.push_back(look);
                    return None;
                }
                Err(error) => (error, Request::Read(look)),
            },
            Request::LocalRead(look) => {
                look(Ok(self.direct.app()));
                return None;
            }
            Request::Transfer(to, answer) => {
                match self.direct.transfer(to) {
                    Ok(chosen) => self.transfer = Some((chosen, answer)),
                    Err(error) => answer.give(Err(error)),
                }
                return None;
            }
        };
        // What is in flight makes room when it ends.
        let waits = error == ProposeError::Overloaded
            && !(self.commands.is_empty() && self.reads.is_empty());
        if waits {
            return Some(request);
        }
        request.refuse(error);
        None
    }

    /// Answers a handover when it is over.
    fn watch_transfer(&mut self) {
        use mu_protocol::layout::Role;
        if self.transfer.is_none() {
            return;
        }
        let leads_on = self.direct.leads();
        let led = self.direct.standing().role == Role::Leader;
        if !leads_on && led {
            return;
        }
        if let Some((chosen, answer)) = self.transfer.take() {
            answer.give(match leads_on {
                true => Err(ProposeError::NotHandedOver),
                false => Ok(chosen),
            });
        }
    }
}
