//! Clients with sessions: each has one operation under way, asks whichever replica it believes to lead, and tries again
//! with the same number until it knows how it ended, or gives up.

use mu_history::{History, Kv, KvOp, KvOutput, OpId};
use mu_protocol::ids::ReplicaId;

use super::app::{REQUEST_BYTES, Request};
use super::oracle::{Attempt, Told};
use super::{Core, Group};
use crate::rng::Rng;

/// Keys that clients share. Few, so that they meet.
const KEYS: u64 = 3;
/// A client that is not answered for so long asks elsewhere, in units of the detection time.
const PATIENCE: (u64, u64) = (1, 8);

/// A try on its way to a replica.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) client: usize,
    /// Number of the try.
    pub(crate) attempt: u32,
    pub(crate) session: u64,
    pub(crate) sequence: u64,
    pub(crate) read_key: Option<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// What a replica answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    pub(crate) client: usize,
    pub(crate) attempt: u32,
    pub(crate) answer: Answer,
}

/// How a try ended, as the replica says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// Done. Reads say at which place of the order.
    Done {
        output: KvOutput,
        read_at: Option<u64>,
    },
    /// Not here.
    Elsewhere(Option<ReplicaId>),
    /// Not now.
    Busy,
    /// Nobody knows.
    Unknown,
    /// It cannot be answered any more, whatever is tried.
    Hopeless,
}

/// One operation under way.
#[derive(Clone, Debug)]
struct Pending {
    op: OpId,
    kv: KvOp,
    attempt: u32,
    padding: usize,
    deadline_ns: u64,
    tries: u32,
}

/// A client.
pub(crate) struct Client {
    session: u64,
    sequence: u64,
    target: usize,
    pending: Option<Pending>,
    /// Time between two operations.
    think_ns: u64,
    max_padding: usize,
    wakes: u32,
    /// It asks once and goes.
    brief: bool,
}

/// All clients and what they saw.
#[derive(Default)]
pub(crate) struct Clients {
    pub(crate) all: Vec<Client>,
    pub(crate) history: History<Kv>,
    /// Places of the reads that were answered.
    pub(crate) reads: Vec<(OpId, u64)>,
    sessions: u64,
    values: u64,
    /// No new operations.
    pub(crate) quiet: bool,
    /// Operations at most.
    pub(crate) budget: usize,
}

impl Clients {
    pub(crate) fn add(&mut self, think_ns: u64, max_padding: usize) {
        self.sessions += 1;
        self.all.push(Client {
            session: self.sessions,
            sequence: 0,
            target: 0,
            pending: None,
            think_ns,
            max_padding,
            wakes: 0,
            brief: false,
        });
    }

    /// A client with one operation, for whoever it takes for the leader.
    pub(crate) fn add_brief(&mut self, target: usize) {
        self.add(0, 0);
        let client = self.all.last_mut().expect("just added");
        (client.brief, client.target) = (true, target);
    }

    /// Answered operations that were invoked at `since_ns` or later.
    pub(crate) fn answered_since(&self, since_ns: u64) -> usize {
        let late = self
            .history
            .operations()
            .iter()
            .filter(|op| op.invoked_ns >= since_ns);
        late.filter(|op| op.output().is_some()).count()
    }

    /// Nobody waits for anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.all.iter().all(|client| client.pending.is_none())
    }

    fn operation(&mut self, rng: &mut Rng) -> KvOp {
        self.values += 1;
        let (key, value) = (rng.below(KEYS), self.values);
        match rng.below(10) {
            0..3 => KvOp::Get { key },
            3..5 => KvOp::Put { key, value },
            5 => {
                let expect = (!rng.one_in(3)).then(|| rng.below(value));
                KvOp::Cas {
                    key,
                    expect,
                    new: value,
                }
            }
            _ => KvOp::Add {
                key,
                delta: 1 + rng.below(5),
            },
        }
    }
}

impl Group {
    /// A client's turn: something new, or another try. Returns when it wants its next one.
    pub(crate) fn client_acts(&self, at: usize) -> Option<u64> {
        let now = self.world.now_ns();
        let mut core = self.core.borrow_mut();
        let Core {
            clients,
            rng,
            oracle,
            ..
        } = &mut *core;
        let quiet = clients.quiet || clients.history.operations().len() >= clients.budget;
        let detect = self.settings.detect_ns;
        match &clients.all[at].pending {
            None if quiet || (clients.all[at].brief && clients.all[at].sequence > 0) => {
                return None;
            }
            None => {
                let kv = clients.operation(rng);
                let session = clients.all[at].session;
                let op = clients.history.invoked(session, kv, now);
                let client = &mut clients.all[at];
                client.sequence += 1;
                // Mostly odd sizes, so that entries lie at every alignment and wrap everywhere.
                let padding = rng.below(client.max_padding as u64 + 1) as usize;
                let padding = if rng.one_in(50) {
                    client.max_padding
                } else {
                    padding
                };
                let (attempt, deadline_ns) = (0, 0);
                client.pending = Some(Pending {
                    op,
                    kv,
                    attempt,
                    padding,
                    deadline_ns,
                    tries: 0,
                });
            }
            Some(pending) if now < pending.deadline_ns => return Some(pending.deadline_ns),
            Some(_) => clients.all[at].target = rng.below(self.slots.len() as u64) as usize,
        }
        let client = &mut clients.all[at];
        let pending = client.pending.as_mut().expect("set above");
        pending.tries += 1;
        pending.attempt = oracle.attempts.len() as u32;
        pending.deadline_ns = now + detect * rng.range(PATIENCE.0, PATIENCE.1);
        oracle.attempts.push(Attempt {
            op: pending.op,
            told: Told::Nothing,
            seen: false,
        });
        let request = Request {
            op: pending.op as u32,
            attempt: pending.attempt,
            kv: pending.kv,
        };
        let mut bytes = Vec::with_capacity(REQUEST_BYTES + pending.padding);
        request.encode(pending.padding, &mut bytes);
        // Most reads go around the log; some through it.
        let read_key = match pending.kv {
            KvOp::Get { key } if pending.op % 4 != 0 => Some(key),
            _ => None,
        };
        let asked = Asked {
            client: at,
            attempt: pending.attempt,
            session: client.session,
            sequence: client.sequence,
            read_key,
            bytes,
        };
        let (target, deadline) = (client.target, pending.deadline_ns);
        let arrives = now + rng.range(200, 3_000);
        drop(core);
        self.send_request(target, asked, arrives);
        Some(deadline)
    }

    /// A reply reaches its client, who may not wait for it any more. Returns when it wants its next turn.
    pub(crate) fn client_hears(&self, reply: Reply) -> Option<u64> {
        let now = self.world.now_ns();
        let mut core = self.core.borrow_mut();
        let Core { clients, rng, .. } = &mut *core;
        let replicas = self.slots.len() as u64;
        let client = &mut clients.all[reply.client];
        let pending = client
            .pending
            .as_mut()
            .filter(|p| p.attempt == reply.attempt)?;
        match reply.answer {
            Answer::Done { output, read_at } => {
                let op = pending.op;
                client.pending = None;
                let think = rng.below(2 * client.think_ns + 1);
                clients
                    .history
                    .returned(op, output, now)
                    .expect("asked before, answered once");
                clients.reads.extend(read_at.map(|place| (op, place)));
                Some(now + think)
            }
            Answer::Hopeless => {
                // It can never learn; it goes on under a new name, as a client that lost its state would.
                client.pending = None;
                clients.sessions += 1;
                (client.session, client.sequence) = (clients.sessions, 0);
                Some(now + client.think_ns)
            }
            Answer::Elsewhere(hint) => {
                client.target = hint.map_or_else(|| rng.below(replicas) as usize, ReplicaId::index);
                pending.deadline_ns = now + rng.range(1_000, 1 + self.settings.detect_ns / 8);
                Some(pending.deadline_ns)
            }
            Answer::Busy => {
                pending.deadline_ns = now + rng.range(2_000, 40_000);
                Some(pending.deadline_ns)
            }
            Answer::Unknown => {
                pending.deadline_ns = now;
                Some(now)
            }
        }
    }

    /// The number that the next wake-up of a client carries: older ones mean nothing.
    pub(crate) fn client_wake(&self, at: usize) -> u32 {
        let client = &mut self.core.borrow_mut().clients.all[at];
        client.wakes += 1;
        client.wakes
    }

    pub(crate) fn is_client_wake(&self, at: usize, wake: u32) -> bool {
        self.core.borrow().clients.all[at].wakes == wake
    }
}
