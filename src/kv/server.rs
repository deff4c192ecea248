//! The server: one thread that polls its sockets and the replication engine in turn.
//!
//! A turn takes what clients have sent, submits it, polls the engine once (so all of it is one entry of the log) and
//! sends what ended. When nothing happens it sleeps on the poller, which any client's bytes end. Nothing that a
//! client does makes it hold more than its bound, and a client that sends nonsense loses its connection.
//!
//! While nobody is known to lead, clients are kept waiting for a moment instead of being sent on: a take-over is
//! over before a client that goes from one replica to the next would be back, and needs the processors itself.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mu_protocol::ids::ReplicaId;
use mu_protocol::layout::Role;
use mu_protocol::replication::{Event, Outcome, ReadOutcome};
use mu_verbs::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signalfd::SignalFd;

use super::conn::{Conn, Over};
use super::store::Store;
use super::wire::{REQUEST_OVERHEAD, Request, Response};
use crate::host::{Direct, Halted, ProposeError};

/// Clients that are connected at the same time; more are turned away.
pub const CONNECTIONS_MAX: usize = 1024;
/// A frame may be longer than the longest command by so much, so that it is answered as too large.
const FRAME_SLACK: usize = 64 << 10;
/// Bytes read from one client before another one has its turn.
const READ_BYTES: usize = 64 << 10;
/// Events of one look at the poller.
const EVENTS: usize = 64;
/// Where nobody is known to lead, requests wait so long for somebody.
pub(super) const LEADERLESS: Duration = Duration::from_millis(5);
/// Connections accepted before other work has its turn.
const ACCEPTS: usize = 16;
/// Descriptors that are left to the replica itself, whatever clients there are.
const DESCRIPTORS_KEPT: usize = 256;
/// After a connection that could not be accepted, none is for so long.
const ACCEPT_REST: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const FIRST_CLIENT: u64 = 2;

/// A replica of the key-value service with its clients.
pub struct Server<C: Context> {
    direct: Direct<C, Store>,
    clients: Clients,
    listener: TcpListener,
    signals: Option<SignalFd>,
    poller: Epoll,
    /// Who waits, in the order of the tickets.
    commands: VecDeque<Asker>,
    reads: VecDeque<(Asker, Box<[u8]>)>,
    /// Clients with something to be sent, or to be taken up again.
    dirty: Vec<u64>,
    /// Nothing is taken from clients before somebody leads.
    waits: bool,
    /// Since when one of them waits for it.
    leaderless: Option<Instant>,
    /// Clients that wait for it.
    kept: Vec<u64>,
    max_command_bytes: usize,
    buffer: Vec<u8>,
    pub(super) connections_max: usize,
    /// No connection is accepted before then: there was no descriptor left.
    deaf_until: Option<Instant>,
}

/// Whose request it is, and its number there.
type Asker = (u64, u64);

/// Why a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A signal came.
    Signal,
    /// The replica stopped.
    Replica(Halted),
}

#[derive(Default)]
struct Clients {
    map: HashMap<u64, Conn>,
    next: u64,
}

impl<C: Context> Server<C> {
    /// Serves clients of `listener`. A signal that can be read from `signals` ends it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(
        direct: Direct<C, Store>,
        listener: TcpListener,
        signals: Option<SignalFd>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let poller = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        poller.add(&listener, readable(LISTENER))?;
        if let Some(signals) = &signals {
            poller.add(signals, readable(SIGNALS))?;
        }
        let max_command_bytes = direct.max_command_bytes();
        Ok(Self {
            direct,
            clients: Clients {
                map: HashMap::new(),
                next: FIRST_CLIENT,
            },
            listener,
            signals,
            poller,
            commands: VecDeque::new(),
            reads: VecDeque::new(),
            dirty: Vec::new(),
            waits: false,
            leaderless: None,
            kept: Vec::new(),
            max_command_bytes,
            buffer: vec![0; READ_BYTES],
            connections_max: connections_max(),
            deaf_until: None,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The replica.
    pub fn direct(&self) -> &Direct<C, Store> {
        &self.direct
    }

    /// Begins to hand the leadership over; see [`Direct::transfer`].
    ///
    /// # Errors
    /// This replica does not lead, or no such follower is up to date.
    pub fn transfer(&mut self, to: Option<ReplicaId>) -> Result<ReplicaId, ProposeError> {
        self.direct.transfer(to)
    }

    /// One turn, at the end of which it may sleep for a moment. Says when it is to end; turns can go on after a signal.
    pub fn turn(&mut self) -> Option<Ended> {
        self.look_for_leader();
        self.listen_again();
        let mut events = [EpollEvent::empty(); EVENTS];
        // An error could only be an interruption, and the next turn looks again.
        let n = self
            .poller
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        let mut listens = false;
        for event in &events[..n] {
            match event.data() {
                LISTENER => listens = true,
                SIGNALS => {
                    // Taken, so that turns go on after it until the next one.
                    let taken = self.signals.as_ref().map(SignalFd::read_signal);
                    if !matches!(taken, Some(Ok(None))) {
                        return Some(Ended::Signal);
                    }
                }
                token => self.take(token, event.events()),
            }
        }
        // After the others: a greeting that waits is heard before its client is taken for a stranger.
        if listens {
            self.accept();
        }
        let pace = self.advance();
        if let Some(why) = self.direct.stopped() {
            self.flush();
            return Some(Ended::Replica(why));
        }
        let busy = self.flush() || n > 0;
        let pace = mu_protocol::replication::Pace {
            worked: pace.worked || busy,
            ..pace
        };
        self.direct.rest(pace, Some(self.poller.0.as_fd()));
        None
    }

    /// Stops the replica and closes all connections.
    pub fn stop(self) {
        drop(self.signals);
        self.direct.stop(|_| {});
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let (stream, from) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => return self.rest_from_accepting(&error),
            };
            if self.clients.map.len() >= self.connections_max && !self.clients.end_a_stranger() {
                tracing::warn!(%from, "turned away: {} clients are connected", self.connections_max);
                continue;
            }
            let token = self.clients.next;
            let limit = self.max_command_bytes + REQUEST_OVERHEAD + FRAME_SLACK;
            let added = Conn::new(stream, limit, self.max_command_bytes).and_then(|conn| {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
                self.poller.add(&conn.stream, event)?;
                Ok(conn)
            });
            match added {
                Ok(conn) => {
                    self.clients.next += 1;
                    self.clients.map.insert(token, conn);
                }
                Err(error) => tracing::warn!(%from, %error, "a client could not be taken on"),
            }
        }
    }

    /// A connection that waits and cannot be taken makes the listener readable all the time, so it is not looked at for
    /// a while.
    fn rest_from_accepting(&mut self, error: &io::Error) {
        if matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
        ) {
            return;
        }
        tracing::warn!(%error, "no client can be taken on for {ACCEPT_REST:?}");
        if self.listen(EpollFlags::empty()) {
            self.deaf_until = Some(Instant::now() + ACCEPT_REST);
        }
    }

    fn listen_again(&mut self) {
        let due = |until| Instant::now() >= until;
        // Where it cannot be, the next turn tries again.
        if self.deaf_until.is_some_and(due) && self.listen(EpollFlags::EPOLLIN) {
            self.deaf_until = None;
        }
    }

    /// What the poller looks for at the listener from now on, if the kernel has room to note it.
    fn listen(&self, flags: EpollFlags) -> bool {
        let mut event = EpollEvent::new(flags, LISTENER);
        self.poller.modify(&self.listener, &mut event).is_ok()
    }

    /// Whether clients are to wait for a leader, and if not any more, takes up those that did.
    fn look_for_leader(&mut self) {
        let known = self.direct.leads() || self.direct.leader().is_some();
        // One that hands over knows more than it is asked for here, and one that recovers may know nothing for long.
        let able = matches!(
            self.direct.standing().role,
            Role::Follower | Role::Candidate
        );
        let over = || {
            self.leaderless
                .is_some_and(|since| since.elapsed() >= LEADERLESS)
        };
        self.waits = !known && able && !over();
        if !self.waits {
            self.leaderless = None;
            for token in std::mem::take(&mut self.kept) {
                if let Some(conn) = self.clients.map.get_mut(&token) {
                    conn.waits = false;
                }
                self.dirty.push(token);
                self.submit(token);
            }
        }
    }

    /// Something happened on a client's socket.
    fn take(&mut self, token: u64, what: EpollFlags) {
        let Some(conn) = self.clients.map.get_mut(&token) else {
            return;
        };
        if what.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            // Nothing can be answered any more, and this would be told again and again.
            self.clients.end(token, &Over::Gone);
            return;
        }
        self.dirty.push(token);
        // One that has enough in flight is not read from, whatever woke the poller.
        if conn.interest.0
            && let Err(over) = conn.fill(&mut self.buffer)
        {
            self.clients.end(token, &over);
            return;
        }
        self.submit(token);
    }

    /// Submits what a client has sent, unless it has to wait for a leader.
    fn submit(&mut self, token: u64) {
        if self.waits {
            if let Some(conn) = self.clients.map.get_mut(&token)
                && !std::mem::replace(&mut conn.waits, true)
            {
                self.kept.push(token);
                self.leaderless.get_or_insert_with(Instant::now);
            }
            return;
        }
        let Self {
            direct,
            clients,
            commands,
            reads,
            ..
        } = self;
        let Some(conn) = clients.map.get_mut(&token) else {
            return;
        };
        loop {
            let (number, refused, reads_it) = match conn.next() {
                Ok(None) => return,
                Err(over) => {
                    clients.end(token, &over);
                    return;
                }
                Ok(Some((number, request))) => match request {
                    Request::Command {
                        client,
                        sequence,
                        command,
                    } => match direct.submit(client, sequence, command) {
                        Ok(_) => {
                            commands.push_back((token, number));
                            continue;
                        }
                        Err(error) => (number, error, false),
                    },
                    Request::Get { key } => match direct.submit_read() {
                        Ok(_) => {
                            reads.push_back(((token, number), key.into()));
                            continue;
                        }
                        Err(error) => (number, error, true),
                    },
                },
            };
            conn.answer(number, response_to(&refused), reads_it);
        }
    }

    /// Polls the engine and answers what ended.
    fn advance(&mut self) -> mu_protocol::replication::Pace {
        let Self {
            direct,
            clients,
            commands,
            reads,
            dirty,
            ..
        } = self;
        let mut ready = 0;
        let pace = direct.poll(|event| {
            let (asker, response, reads_it) = match event {
                Event::Command { outcome, .. } => {
                    let asker = commands.pop_front().expect("somebody for every ticket");
                    (asker, outcome_response(outcome), false)
                }
                Event::Read {
                    outcome: ReadOutcome::Ready { .. },
                    ..
                } => {
                    ready += 1;
                    return;
                }
                Event::Read {
                    outcome: ReadOutcome::NotLeader(hint),
                    ..
                } => {
                    // Those that are ready come before it, and are still in the queue.
                    let read = reads.remove(ready).expect("somebody for every ticket");
                    let hint = hint.map(|id| id.get());
                    (read.0, Response::NotLeader { hint }, true)
                }
                Event::Role { .. } => return,
            };
            clients.answer(asker, response, reads_it, dirty);
        });
        for (asker, key) in reads.drain(..ready) {
            let value = Response::Value(direct.app().get(&key));
            clients.answer(asker, value, true, dirty);
        }
        pace
    }

    /// Sends what was answered, and takes up clients that had enough in flight. Whether there was any.
    fn flush(&mut self) -> bool {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let any = !dirty.is_empty();
        for token in dirty.drain(..) {
            if !self.submit_and_send(token) {
                continue;
            }
            let Some(conn) = self.clients.map.get_mut(&token) else {
                continue;
            };
            let wants = conn.wants();
            if wants != conn.interest {
                conn.interest = wants;
                let mut flags = EpollFlags::empty();
                flags.set(EpollFlags::EPOLLIN, wants.0);
                flags.set(EpollFlags::EPOLLOUT, wants.1);
                let mut event = EpollEvent::new(flags, token);
                if self.poller.modify(&conn.stream, &mut event).is_err() {
                    self.clients.end(token, &Over::Gone);
                }
            }
        }
        // Empty, and used again.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
        any
    }

    /// Takes up what a client has sent and sends what was answered, as long as that makes room for more: what it has
    /// sent lies here, and nothing else would wake this thread for it. Whether the client is still there.
    fn submit_and_send(&mut self, token: u64) -> bool {
        loop {
            self.submit(token);
            let Some(conn) = self.clients.map.get_mut(&token) else {
                return false;
            };
            let was_full = conn.is_full();
            if let Err(over) = conn.flush() {
                self.clients.end(token, &over);
                return false;
            }
            if !was_full || conn.is_full() {
                return true;
            }
        }
    }
}

/// How many clients there may be at the same time, by the descriptors that this process may have.
fn connections_max() -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let left = usize::try_from(descriptors).unwrap_or(usize::MAX);
    left.saturating_sub(DESCRIPTORS_KEPT)
        .clamp(1, CONNECTIONS_MAX)
}

impl Clients {
    fn answer(
        &mut self,
        (token, number): Asker,
        response: Response<'_>,
        reads_it: bool,
        dirty: &mut Vec<u64>,
    ) {
        // A client that is gone gets no answer; what it asked for is done all the same.
        if let Some(conn) = self.map.get_mut(&token) {
            conn.answer(number, response, reads_it);
            dirty.push(token);
        }
    }

    /// Makes room by ending the client that has been silent for longest instead of greeting, if there is one.
    fn end_a_stranger(&mut self) -> bool {
        let strangers = self.map.iter();
        let strangers = strangers.filter_map(|(token, conn)| Some((conn.is_stranger()?, *token)));
        let oldest = strangers.min();
        oldest.is_some_and(|(_, token)| self.map.remove(&token).is_some())
    }

    /// Dropping the socket also takes it out of the poller.
    fn end(&mut self, token: u64, over: &Over) {
        if let Some(conn) = self.map.remove(&token)
            && let Over::Malformed(what) = over
        {
            let from = conn
                .stream
                .peer_addr()
                .map_or("?".into(), |a| a.to_string());
            tracing::warn!(from, what, "a client's connection is closed");
        }
    }
}

fn outcome_response(outcome: Outcome<'_>) -> Response<'_> {
    match outcome {
        Outcome::Decided { reply, .. } => Response::Decided(reply),
        Outcome::DecidedReplyGone { .. } => Response::ReplyGone,
        Outcome::Superseded { .. } => Response::Superseded,
        Outcome::Unknown => Response::Unknown,
        Outcome::NotLeader(hint) => Response::NotLeader {
            hint: hint.map(|id| id.get()),
        },
    }
}

fn response_to(error: &ProposeError) -> Response<'static> {
    match error {
        ProposeError::NotLeader { hint } => Response::NotLeader {
            hint: hint.map(|id| id.get()),
        },
        ProposeError::Overloaded | ProposeError::NotHandedOver => Response::Overloaded,
        ProposeError::TooLarge { limit, .. } => Response::TooLarge {
            limit: *limit as u64,
        },
        ProposeError::Stopped(_) => Response::Stopped,
        ProposeError::Superseded => Response::Superseded,
        ProposeError::ReplyGone { .. } => Response::ReplyGone,
        ProposeError::Unknown => Response::Unknown,
    }
}
