//! The server: one thread that polls its sockets and the replication engine in turn.
//!
//! A turn takes what clients have sent, submits it, polls the engine once (so all of it is one entry of the log) and
//! sends what the replicated sessions say. A client that sends more than is carried out waits in its socket; one that
//! reads too little gets no more prepared for it; one that dies in the middle of a message loses that message.

mod conn;
mod dirty;
mod feed;
mod session;
mod speak;
mod text;

pub use text::{Picture, books_hash, picture};

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;

use mu::host::{Direct, Halted, monotonic_ns};
use mu::protocol::replication::{Event, Outcome, Pace};
use mu::{ProposeError, ReplicaId};
use mu_verbs::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;

use crate::engine::Engine;
use crate::exchange::{Done, Exchange, Taken, Verdict};
use conn::{After, Close, Conn, Fix, Logon, State};
use dirty::Dirty;
use feed::Publisher;
use session::{Desk, Step};

/// Clients that are connected at the same time; more are turned away.
pub const CONNECTIONS_MAX: usize = 1024;
/// Bytes read from one client before another one has its turn.
const READ_BYTES: usize = 16 << 10;
/// Events of one look at the poller.
const EVENTS: usize = 64;
/// Connections accepted before other work has its turn.
const ACCEPTS: usize = 16;
/// Between two looks at who has been silent.
const TICK_NS: u64 = 100_000_000;
/// Clients are served for about so long before the replication engine has its turn.
const SERVE_NS: u64 = 1_000_000;
/// A connection that has not logged on ends after so long.
const LOGON_NS: u64 = 10_000_000_000;

/// One that speaks lines ends when it said nothing for so long.
const TEXT_NS: u64 = 600_000_000_000;

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const FIRST_CLIENT: u64 = 2;

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name in FIX, which clients address.
    pub comp: String,
    /// The replicas' addresses for clients, by id.
    pub clients: Vec<(u8, SocketAddr)>,
    /// The name of the stream of market data.
    pub stream: String,
    /// A file for market data.
    pub itch: Option<PathBuf>,
    /// Where packets of market data go.
    pub feed: Option<SocketAddr>,
}

/// Why a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A signal came.
    Signal,
    /// The replica stopped.
    Replica(Halted),
}

/// A replica of the exchange with its clients.
pub struct Server<C: Context, E: Engine> {
    direct: Direct<C, Exchange<E>>,
    options: Options,
    conns: HashMap<u64, Conn>,
    next_token: u64,
    /// Which connection has a session.
    on: HashMap<u64, u64>,
    listener: TcpListener,
    signals: Option<SignalFd>,
    poller: Epoll,
    /// Who waits, in the order of the tickets.
    commands: VecDeque<(u64, After)>,
    /// Connections to be looked at.
    dirty: Dirty,
    publisher: Publisher,
    buffer: Vec<u8>,
    tick_ns: u64,
    role: Option<String>,
}

impl<C: Context, E: Engine> Server<C, E> {
    /// Serves clients of `listener`. A signal that can be read from `signals` ends it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(
        direct: Direct<C, Exchange<E>>,
        listener: TcpListener,
        signals: Option<SignalFd>,
        options: Options,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let poller = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        poller.add(&listener, readable(LISTENER))?;
        if let Some(signals) = &signals {
            poller.add(signals, readable(SIGNALS))?;
        }
        let mut publisher = Publisher::new(&options.stream, direct.app());
        if let Some(path) = &options.itch {
            publisher.open_file(path, direct.app())?;
        }
        if let Some(to) = options.feed {
            publisher.open_udp(to, listener.local_addr()?)?;
        }
        Ok(Self {
            direct,
            options,
            conns: HashMap::new(),
            next_token: FIRST_CLIENT,
            on: HashMap::new(),
            listener,
            signals,
            poller,
            commands: VecDeque::new(),
            dirty: Dirty::default(),
            publisher,
            buffer: vec![0; READ_BYTES],
            tick_ns: 0,
            role: None,
        })
    }

    /// The replica.
    pub fn direct(&self) -> &Direct<C, Exchange<E>> {
        &self.direct
    }

    /// Its role, if that is another one than at the last call.
    pub fn new_role(&mut self) -> Option<String> {
        self.role.take()
    }

    /// Stops the replica and closes all connections.
    pub fn stop(self) {
        drop(self.signals);
        self.direct.stop(|_| {});
    }

    /// One turn, at the end of which it may sleep for a moment. Says when it is over.
    pub fn turn(&mut self) -> Option<Ended> {
        let mut events = [EpollEvent::empty(); EVENTS];
        // An error could only be an interruption, and the next turn looks again.
        let n = self
            .poller
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        for event in &events[..n] {
            match event.data() {
                LISTENER => self.accept(),
                SIGNALS => return Some(Ended::Signal),
                token => self.take(token),
            }
        }
        let pace = self.advance();
        if let Some(why) = self.direct.stopped() {
            return Some(Ended::Replica(why));
        }
        let now_ns = monotonic_ns();
        if now_ns - self.tick_ns >= TICK_NS {
            self.tick_ns = now_ns;
            self.tick(now_ns);
        }
        for session in self.direct.app().touched() {
            if let Some(token) = self.on.get(&session) {
                self.dirty.insert(*token);
            }
        }
        let busy = self.serve_dirty() || n > 0;
        self.publisher
            .turn(self.direct.app(), self.direct.leads(), now_ns);
        let worked = pace.worked || busy;
        self.direct
            .rest(Pace { worked, ..pace }, Some(self.poller.0.as_fd()));
        None
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let Ok((stream, from)) = self.listener.accept() else {
                return;
            };
            if self.conns.len() >= CONNECTIONS_MAX {
                tracing::warn!(%from, "turned away: {CONNECTIONS_MAX} clients are connected");
                continue;
            }
            let token = self.next_token;
            let added = Conn::new(stream, from.to_string(), monotonic_ns()).and_then(|conn| {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
                self.poller.add(&conn.stream, event)?;
                Ok(conn)
            });
            match added {
                Ok(conn) => {
                    self.next_token += 1;
                    self.conns.insert(token, conn);
                }
                Err(error) => tracing::warn!(%from, %error, "a client could not be taken on"),
            }
        }
    }

    /// Something happened on a client's socket.
    fn take(&mut self, token: u64) {
        let Some(conn) = self.conns.get_mut(&token) else {
            return;
        };
        self.dirty.insert(token);
        // One that has enough in flight is not read from, whatever woke the poller.
        if conn.interest.0 && conn.wants().0 && !conn.fill(&mut self.buffer, monotonic_ns()) {
            self.end(token, None);
            return;
        }
        self.go_on(token);
    }

    /// Takes the messages of a client as far as they may be taken.
    fn go_on(&mut self, token: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else {
                return;
            };
            if let Some((command, after)) = conn.waiting.take() {
                self.submit(token, command, after);
                match self.conns.get(&token) {
                    Some(conn) if conn.waiting.is_none() => continue,
                    _ => return,
                }
            }
            if !conn.may_go_on() {
                return;
            }
            if let State::Fresh = conn.state {
                match conn.frames.waiting().first() {
                    None => return,
                    Some(b'8') => {}
                    Some(_) => conn.state = State::Text,
                }
            }
            // Lines are answered when clients are served, one a turn.
            if let State::Text = conn.state {
                return;
            }
            let app = self.direct.app();
            let desk = Desk {
                comp: &self.options.comp,
                symbol: &|name| app.symbol(name),
            };
            let step = session::step(conn, &desk);
            if !self.carry_out(token, step) {
                return;
            }
        }
    }

    /// Whether another message may follow.
    fn carry_out(&mut self, token: u64, step: Step) -> bool {
        match step {
            Step::Wait => return false,
            Step::Done => {}
            Step::Submit(command, after) => self.submit(token, command, after),
            Step::End(why) => self.end(token, Some(&why)),
        }
        true
    }

    /// Gives a command to the log. The client waits if there is no room.
    fn submit(&mut self, token: u64, command: Vec<u8>, after: After) {
        let submitted = self.direct.submit(0, 0, &command);
        let Some(conn) = self.conns.get_mut(&token) else {
            return;
        };
        match submitted {
            Ok(_) => {
                conn.in_flight += 1;
                if let After::Logon(_) = after {
                    conn.state = State::Opening;
                }
                self.commands.push_back((token, after));
            }
            Err(ProposeError::Overloaded | ProposeError::NotHandedOver) => {
                conn.waiting = Some((command, after));
            }
            Err(ProposeError::NotLeader { hint }) => match after {
                After::Logon(logon) => self.redirect(token, &logon, hint),
                _ => self.end(token, Some("this replica does not lead any more")),
            },
            Err(error) => self.end(token, Some(&error.to_string())),
        }
    }

    /// A logon at a replica that does not lead.
    fn redirect(&mut self, token: u64, logon: &Logon, hint: Option<ReplicaId>) {
        let leader = hint.and_then(|id| {
            let clients = &self.options.clients;
            clients.iter().find(|(other, _)| *other == id.get())
        });
        let text = match leader {
            Some((id, address)) => format!("not the leader: replica {id} is, at {address}"),
            None => "not the leader, and none is known: try again, here or elsewhere".into(),
        };
        if let Some(conn) = self.conns.get_mut(&token) {
            let to = (logon.session, &*logon.comp);
            speak::farewell(conn, self.direct.app(), &self.options.comp, to, &text);
        }
    }

    /// Polls the engine and takes up what ended.
    fn advance(&mut self) -> Pace {
        let mut ended = Vec::new();
        let mut role = false;
        let Self {
            direct, commands, ..
        } = self;
        let pace = direct.poll(|event| match event {
            Event::Command { outcome, .. } => {
                let (token, after) = commands.pop_front().expect("somebody for every ticket");
                let reply = match outcome {
                    Outcome::Decided { reply, .. } => Some(Reply::new(&after, reply)),
                    _ => None,
                };
                ended.push((token, after, reply));
            }
            Event::Read { .. } => {}
            Event::Role { .. } => role = true,
        });
        for (token, after, reply) in ended {
            match reply {
                Some(reply) => self.ended(token, after, reply),
                None => self.end(token, Some("this replica does not lead any more")),
            }
        }
        if role {
            self.role = Some(self.direct.status().role);
            if !self.direct.leads() {
                let all: Vec<u64> = self.on.values().copied().collect();
                for token in all {
                    self.end(token, Some("this replica does not lead any more"));
                }
            }
        }
        pace
    }

    /// A command was decided.
    fn ended(&mut self, token: u64, after: After, reply: Reply) {
        // A client that is gone hears nothing; what it asked for is done all the same.
        let Some(conn) = self.conns.get_mut(&token) else {
            return;
        };
        conn.in_flight -= 1;
        self.dirty.insert(token);
        let (verdict, taken) = match reply {
            Reply::Order(verdict) => (verdict, None),
            Reply::Session(taken) => (taken.verdict, Some(taken)),
        };
        if let After::Logon(logon) = after {
            return self.logged_on(token, &logon, taken);
        }
        let Some(fix) = conn.fix() else { return };
        if let After::Say(..) = after {
            fix.taking -= 1;
        }
        match verdict {
            Verdict::Done | Verdict::Rejected => {}
            // The numbers are another connection's now, or the client's SequenceReset came to nothing.
            Verdict::Again if matches!(after, After::Nothing) => {}
            other => {
                let why = format!("its message was not the session's next one: {other:?}");
                return self.end(token, Some(&why));
            }
        }
        match (after, taken) {
            (After::Say(kind, body, close), Some(taken)) => {
                fix.said.insert(taken.out, (kind, body));
                if close == Close::Yes {
                    fix.close_at = Some(taken.out);
                }
            }
            (After::Resend(from, to), _) => fix.resend = Some((from, to)),
            _ => {}
        }
    }

    /// A logon went through the log.
    fn logged_on(&mut self, token: u64, logon: &Logon, taken: Option<Taken>) {
        let Some(taken) = taken else {
            return self.end(token, Some("a logon without an answer"));
        };
        let refusal = match taken.verdict {
            Verdict::Done | Verdict::Gap => None,
            Verdict::Again => Some(format!(
                "MsgSeqNum too low, expecting {} but received {}",
                taken.in_next, logon.number
            )),
            Verdict::Full => Some("there are as many sessions as there may be".into()),
            other => Some(format!("this SenderCompID cannot be had: {other:?}")),
        };
        let Some(conn) = self.conns.get_mut(&token) else {
            return;
        };
        if let Some(text) = refusal {
            tracing::warn!(
                from = conn.peer,
                comp = logon.comp,
                text,
                "a logon is refused"
            );
            let to = (logon.session, &*logon.comp);
            return speak::farewell(conn, self.direct.app(), &self.options.comp, to, &text);
        }
        tracing::info!(
            from = conn.peer,
            comp = logon.comp,
            next = taken.in_next,
            "a session is on"
        );
        conn.state = State::On(Box::new(Fix::new(logon, taken.in_next, taken.out)));
        let older = self.on.insert(logon.session, token);
        if let Some(older) = older.filter(|older| *older != token) {
            self.end(older, Some("the session is on at another connection now"));
            self.on.insert(logon.session, token);
        }
        if taken.verdict == Verdict::Gap {
            let step = self.fix(token).map(Fix::ask_again);
            if let Some(step) = step {
                self.carry_out(token, step);
            }
        }
    }

    fn fix(&mut self, token: u64) -> Option<&mut Fix> {
        self.conns.get_mut(&token)?.fix()
    }

    /// Looks for who has been silent.
    fn tick(&mut self, now_ns: u64) {
        let tokens: Vec<u64> = self.conns.keys().copied().collect();
        for token in tokens {
            let Some(conn) = self.conns.get_mut(&token) else {
                continue;
            };
            let (heard, spoke) = (
                now_ns.saturating_sub(conn.heard_ns),
                now_ns.saturating_sub(conn.spoke_ns),
            );
            let idle = conn.waiting.is_none();
            let step = match &mut conn.state {
                State::Fresh | State::Opening if heard > LOGON_NS => {
                    Step::End("no logon came".into())
                }
                State::Text if heard > TEXT_NS => Step::End("silent for ten minutes".into()),
                State::On(fix) if fix.heartbeat_ns > 0 => {
                    let interval = fix.heartbeat_ns;
                    if heard > 2 * interval + interval / 2 {
                        Step::End("silent for two and a half heartbeats".into())
                    } else if heard > interval + interval / 4 && !fix.probed && idle {
                        fix.probe()
                    } else if spoke >= interval && fix.taking == 0 && idle {
                        fix.heartbeat()
                    } else {
                        continue;
                    }
                }
                _ => continue,
            };
            self.carry_out(token, step);
        }
    }

    /// Serves clients that have something new, each once, until the time is over. Whether there were any.
    fn serve_dirty(&mut self) -> bool {
        let count = self.dirty.len();
        let begin_ns = monotonic_ns();
        for _ in 0..count {
            let Some(token) = self.dirty.next() else {
                break;
            };
            self.serve(token);
            if monotonic_ns() - begin_ns >= SERVE_NS {
                break;
            }
        }
        count > 0
    }

    /// Prepares and sends what there is for a client, and takes it up if it had enough in flight.
    fn serve(&mut self, token: u64) {
        self.go_on(token);
        let Some(conn) = self.conns.get_mut(&token) else {
            return;
        };
        let answered = matches!(conn.state, State::Text) && text::line(conn, &self.direct);
        speak::speak(conn, self.direct.app(), &self.options.comp);
        let blocked = !conn.may_go_on();
        if !conn.flush() || (conn.closing && conn.is_flushed()) {
            self.end(token, None);
            return;
        }
        // What was read before there was no room is not announced by the poller.
        let freed = blocked && conn.may_go_on();
        let unsaid = match &conn.state {
            State::On(fix) => {
                let next = self.direct.app().session(fix.session).map(|s| s.out_next());
                next.is_some_and(|next| fix.out_next < next) && fix.taking == 0
            }
            _ => false,
        };
        // Or whoever waits for room in the log, or has more to hear than was prepared.
        if answered || freed || conn.waiting.is_some() || (unsaid && conn.has_room()) {
            self.dirty.insert(token);
        }
        let wants = conn.wants();
        if wants != conn.interest {
            conn.interest = wants;
            let mut flags = EpollFlags::empty();
            flags.set(EpollFlags::EPOLLIN, wants.0);
            flags.set(EpollFlags::EPOLLOUT, wants.1);
            let mut event = EpollEvent::new(flags, token);
            if self.poller.modify(&conn.stream, &mut event).is_err() {
                self.end(token, Some("the poller refused it"));
            }
        }
    }

    /// Ends a connection. Dropping the socket also takes it out of the poller.
    fn end(&mut self, token: u64, why: Option<&str>) {
        let Some(mut conn) = self.conns.remove(&token) else {
            return;
        };
        let from = std::mem::take(&mut conn.peer);
        if let Some(fix) = conn.fix() {
            let session = fix.session;
            if self.on.get(&session) == Some(&token) {
                self.on.remove(&session);
            }
        }
        if let Some(why) = why {
            tracing::warn!(from, why, "a connection is closed");
        }
    }
}

/// What a decided command replied.
enum Reply {
    Order(Verdict),
    Session(Taken),
}

impl Reply {
    fn new(after: &After, reply: &[u8]) -> Self {
        let malformed = Verdict::Malformed;
        match after {
            After::Order => Self::Order(Done::decode(reply).map_or(malformed, |done| done.verdict)),
            _ => Self::Session(Taken::decode(reply).unwrap_or(Taken {
                verdict: malformed,
                out: 0,
                in_next: 0,
            })),
        }
    }
}
