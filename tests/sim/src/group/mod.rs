//! A group of replicas with their clients in one world: the unchanged engines, and everything that is done to them.
//!
//! # Mechanism
//!
//! Every engine, client, message and planned fault is woken by the world's queue. An engine's poll runs to its end at
//! one instant, unless the plan stops it between two verbs: then the world, and whoever else is due, goes on inside of
//! that call, and the engine finds itself paused when it returns, or dead. So everything here that an engine's poll may
//! meet again is behind a cell, and no cell is borrowed while an engine runs.

mod app;
mod channel;
mod clients;
mod faults;
mod heal;
mod many;
mod oracle;
mod plan;
mod polls;
mod replica;
mod rows;
mod rules;
mod run;
mod strikes;
mod turns;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use mu_protocol::ids::{Members, ReplicaId};
use mu_protocol::settings::Settings;
use mu_protocol::zoo::{Bug, Seeded};

pub use many::{Caught, Failure, Summary, hunt, many};
pub use rows::{Row, Rows};
pub use run::{Options, Outcome, Report, Trace, run};

use crate::rng::Rng;
use crate::world::{NodeId, Wake, World};
use channel::{Letter, Line};
use clients::{Asked, Clients, Reply};
use oracle::Oracle;
use plan::Plan;
use replica::Process;

/// Which engine of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Replication,
    Background,
}

impl Engine {
    pub(crate) const BOTH: [Self; 2] = [Self::Replication, Self::Background];
}

/// Who is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// An engine of a replica; other wake-ups of it than the last one mean nothing.
    Poll { slot: u8, engine: Engine, turn: u32 },
    /// A client; other wake-ups of it than the last one mean nothing.
    Client { at: u8, wake: u32 },
    /// A message on the control connections.
    Letter(u32),
    /// A request of a client on its way to a replica.
    Request(u32),
    /// A reply on its way to a client.
    Reply(u32),
    /// The control connections are looked at.
    Lines,
    /// The plan goes on.
    Plan(u32),
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        let (kind, high, low) = match token {
            Token::Poll { slot, engine, turn } => (engine as u64, slot, turn),
            Token::Client { at, wake } => (2, at, wake),
            Token::Letter(n) => (3, 0, n),
            Token::Request(n) => (4, 0, n),
            Token::Reply(n) => (5, 0, n),
            Token::Lines => (6, 0, 0),
            Token::Plan(n) => (7, 0, n),
        };
        kind << 48 | u64::from(high) << 32 | u64::from(low)
    }
}

impl From<u64> for Token {
    fn from(word: u64) -> Self {
        let (high, low) = ((word >> 32) as u8, word as u32);
        match word >> 48 {
            0 => Self::Poll {
                slot: high,
                engine: Engine::Replication,
                turn: low,
            },
            1 => Self::Poll {
                slot: high,
                engine: Engine::Background,
                turn: low,
            },
            2 => Self::Client {
                at: high,
                wake: low,
            },
            3 => Self::Letter(low),
            4 => Self::Request(low),
            5 => Self::Reply(low),
            6 => Self::Lines,
            _ => Self::Plan(low),
        }
    }
}

/// A stop between two verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) engine: Engine,
    /// Only at a change of rights, queue pairs or registrations, or right after one: seldom, and most is at stake.
    pub(crate) at_change: bool,
    /// Verbs that still go through.
    pub(crate) verbs: u32,
    /// How long, or for ever: then the process is killed.
    pub(crate) pause_ns: Option<u64>,
}

/// What is done to a replica's CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// Until when each engine is not polled.
    pub(crate) hung_until_ns: [u64; 2],
    /// Time between two polls, about.
    pub(crate) pace_ns: u64,
    pub(crate) stop: Option<Stop>,
}

/// A replica's place in the group, whatever process is in it.
pub(crate) struct Slot {
    pub(crate) id: ReplicaId,
    pub(crate) node: NodeId,
    process: RefCell<Option<Rc<Process>>>,
    /// A process whose CPU is dead and whose NIC lives.
    zombie: RefCell<Option<Rc<Process>>>,
    pub(crate) lives: Cell<u32>,
    /// The number that the next wake-up of each engine carries.
    turns: Cell<[u32; 2]>,
    pub(crate) cpu: Cell<Cpu>,
}

/// What the parts share.
pub(crate) struct Core {
    pub(crate) rng: Rng,
    pub(crate) oracle: Oracle,
    pub(crate) clients: Clients,
    pub(crate) rows: Rows,
    pub(crate) plan: Plan,
    lines: Vec<Line>,
    letters: Vec<Letter>,
    requests: Vec<Option<(usize, Asked)>>,
    replies: Vec<Reply>,
    /// Memory of lives that are over, for the oracles: replica, incarnation, log.
    graves: Vec<(ReplicaId, u64, mu_protocol::log::Log)>,
    /// Engines whose poll is running, the innermost last.
    running: Vec<(usize, Engine)>,
    placed: Vec<crate::Placed>,
}

/// The group.
pub(crate) struct Group {
    pub(crate) world: World,
    pub(crate) settings: Settings,
    pub(crate) members: Members,
    pub(crate) zoo: Seeded,
    pub(crate) slots: Vec<Slot>,
    pub(crate) core: RefCell<Core>,
}

impl Group {
    /// `n` founding replicas that have not started yet.
    pub(crate) fn new(
        world: World,
        n: usize,
        settings: Settings,
        bug: Option<Bug>,
        rng: Rng,
    ) -> Rc<Self> {
        let slot = |n: usize| Slot {
            id: ReplicaId::new(n as u8).expect("few replicas"),
            node: NodeId(n),
            process: RefCell::default(),
            zombie: RefCell::default(),
            lives: Cell::new(0),
            turns: Cell::default(),
            cpu: Cell::new(Cpu {
                hung_until_ns: [0; 2],
                pace_ns: 1_000,
                stop: None,
            }),
        };
        let core = Core {
            rng,
            oracle: Oracle::default(),
            clients: Clients::default(),
            rows: Rows::default(),
            plan: Plan::default(),
            lines: vec![Line::default(); n * n],
            letters: Vec::new(),
            requests: Vec::new(),
            replies: Vec::new(),
            graves: Vec::new(),
            running: Vec::new(),
            placed: Vec::new(),
        };
        Rc::new(Self {
            world,
            members: settings.members,
            settings,
            zoo: Seeded(bug),
            slots: (0..n).map(slot).collect(),
            core: RefCell::new(core),
        })
    }

    pub(crate) fn hit(&self, row: Row) {
        self.core.borrow_mut().rows.hit(row);
    }

    pub(crate) fn fail(&self, what: String) {
        self.world.note(0xbad, || format!("VIOLATION {what}"));
        self.core.borrow_mut().oracle.fail(what);
    }

    pub(crate) fn failed(&self) -> bool {
        self.core.borrow().oracle.violation().is_some()
    }

    /// The process of a replica, if its CPU lives.
    pub(crate) fn process(&self, slot: usize) -> Option<Rc<Process>> {
        self.slots[slot].process.borrow().clone()
    }

    pub(crate) fn is_running(&self, slot: usize) -> bool {
        self.slots[slot].process.borrow().is_some()
    }

    /// Whoever leads at the moment, as the replicas say themselves; the one with the highest epoch.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |slot: &usize| self.process(*slot).and_then(|process| process.leads.get());
        (0..self.slots.len())
            .filter(|slot| leads(slot).is_some())
            .max_by_key(leads)
    }

    /// Lets the world go on until a time, or until something is wrong.
    pub(crate) fn run_until(&self, until_ns: u64) {
        while !self.failed() {
            match self.world.advance(until_ns) {
                Wake::Limit => return,
                Wake::Token(token) => self.wake(token.into()),
            }
        }
    }

    fn wake(&self, token: Token) {
        self.look_at_placements();
        match token {
            Token::Poll { slot, engine, turn } => self.poll(slot.into(), engine, turn),
            Token::Client { at, wake } => {
                if self.is_client_wake(at.into(), wake) {
                    let next = self.client_acts(at.into());
                    self.wake_client(at.into(), next);
                }
            }
            Token::Letter(n) => self.deliver(n as usize),
            Token::Request(n) => self.request_arrives(n as usize),
            Token::Reply(n) => {
                let reply = self.core.borrow().replies[n as usize];
                let next = self.client_hears(reply);
                if next.is_some() {
                    self.wake_client(reply.client, next);
                }
            }
            Token::Lines => {
                self.look_at_lines();
                self.world
                    .wake_at(self.world.now_ns() + channel::LOOK_NS, Token::Lines.into());
            }
            Token::Plan(n) => self.plan_goes_on(n),
        }
    }

    pub(crate) fn wake_client(&self, at: usize, next_ns: Option<u64>) {
        let wake = self.client_wake(at);
        if let Some(next_ns) = next_ns {
            self.world
                .wake_at(next_ns, Token::Client { at: at as u8, wake }.into());
        }
    }

    fn send_request(&self, to: usize, asked: Asked, arrives_ns: u64) {
        let mut core = self.core.borrow_mut();
        let n = core.requests.len() as u32;
        core.requests.push(Some((to, asked)));
        self.world.wake_at(arrives_ns, Token::Request(n).into());
    }

    fn request_arrives(&self, n: usize) {
        let Some((to, asked)) = self.core.borrow_mut().requests[n].take() else {
            return;
        };
        // Nobody is there: the client waits in vain and asks elsewhere.
        if let Some(process) = self.process(to) {
            process.inbox.borrow_mut().push_back(asked);
        }
    }

    pub(crate) fn send_reply(&self, reply: Reply) {
        let mut core = self.core.borrow_mut();
        // Some are lost on the way.
        if core.rng.one_in(60) {
            return;
        }
        let arrives = self.world.now_ns() + core.rng.range(200, 3_000);
        let n = core.replies.len() as u32;
        core.replies.push(reply);
        self.world.wake_at(arrives, Token::Reply(n).into());
    }
}

/// Requests and tickets of one process.
pub(crate) type Tickets = RefCell<VecDeque<(u64, Asked)>>;
