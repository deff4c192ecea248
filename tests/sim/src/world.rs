//! The world as its driver sees it: time, nodes, links, what is broken, and what happened.

use std::sync::{Arc, Mutex};

use mu_verbs::Memory;

use crate::context::{Shared, SimContext, lock};
use crate::faults::{Coverage, Fault, Nic, Rates};
use crate::objects::{Clock, CtxTable, Link, NodeTable};
use crate::profile::Profile;
use crate::queue::{Event, Queue};
use crate::rng::Rng;
use crate::state::{Placed, State};
use crate::trace::Trace;

/// A node by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// Why [`World::advance`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// What [`World::wake_at`] asked for.
    Token(u64),
    /// The limit was reached; it is that time now.
    Limit,
}

/// A simulated world. Cloning shares it.
#[derive(Clone)]
pub struct World(Shared);

impl World {
    /// A world of `nodes` nodes in which everything works. All that happens is decided by `seed` and the calls made.
    pub fn new(nodes: usize, seed: u64, profile: Profile) -> Self {
        let node = || NodeTable {
            nic: Nic::Up,
            rates: Rates::NONE,
            clock: Clock {
                since: 0,
                base: 0,
                rate: Clock::TRUE_RATE,
            },
            hidden: 0,
        };
        let mut trace = Trace::new();
        trace.word(seed);
        Self(Arc::new(Mutex::new(State {
            now: 0,
            queue: Queue::default(),
            rng: Rng::new(seed),
            trace,
            coverage: Coverage::default(),
            profile,
            nodes: (0..nodes).map(|_| node()).collect(),
            links: vec![Link::default(); nodes * nodes],
            ctxs: Vec::new(),
            mems: Vec::new(),
            regions: Vec::new(),
            cqs: Vec::new(),
            qps: Vec::new(),
            flows: Vec::new(),
            free_flows: Vec::new(),
            held: Vec::new(),
            free_held: Vec::new(),
            bytes: Vec::new(),
            chunks: Vec::new(),
            placed: None,
            disturbed: None,
        })))
    }

    /// Opens a node's device: for a process that starts.
    pub fn open(&self, node: NodeId) -> SimContext {
        let mut world = lock(&self.0);
        let ctx = world.ctxs.len() as u32;
        let id = (node.0 as u64 + 1) << 32 | u64::from(ctx);
        world.ctxs.push(CtxTable {
            node: node.0,
            id,
            pds: 0,
            alive: true,
            frozen: false,
            events: Default::default(),
        });
        let caps = Arc::new(world.profile.capabilities());
        SimContext {
            world: Arc::clone(&self.0),
            ctx,
            id,
            caps,
        }
    }

    /// The process that opened `context` ends: its queue pairs and registrations are gone at once. What it had sent may
    /// still land elsewhere.
    pub fn kill(&self, context: &SimContext) {
        lock(&self.0).close_ctx(context.ctx);
    }

    /// The process that opened `context` stops between two verbs: what its code still calls does nothing. Its NIC goes
    /// on serving peers until [`kill`](Self::kill).
    pub fn freeze(&self, context: &SimContext) {
        lock(&self.0).ctxs[context.ctx as usize].frozen = true;
    }

    /// World time in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        lock(&self.0).now
    }

    /// Asks to be woken at a world time.
    pub fn wake_at(&self, at_ns: u64, token: u64) {
        let mut world = lock(&self.0);
        let at = at_ns.max(world.now);
        world.queue.push(at, Event::Wake { token });
    }

    /// Lets the world go on until somebody is to be woken, or the limit.
    pub fn advance(&self, limit_ns: u64) -> Wake {
        let mut world = lock(&self.0);
        while world.queue.next_at().is_some_and(|at| at <= limit_ns) {
            let (at, event) = world.queue.pop().expect("an event is there");
            if let Some(token) = world.dispatch(at, event) {
                return Wake::Token(token);
            }
        }
        world.now = world.now.max(limit_ns);
        Wake::Limit
    }

    /// What `node` takes for the time: it never goes backwards.
    pub fn clock_ns(&self, node: NodeId) -> u64 {
        let world = lock(&self.0);
        world.nodes[node.0].clock.at(world.now)
    }

    /// A node's clock jumps ahead.
    pub fn jump_clock(&self, node: NodeId, ahead_ns: u64) {
        self.set_clock(node, Fault::ClockJump, |clock| clock.base += ahead_ns);
    }

    /// A node's clock runs at this rate from now on, in a million; 0 stops it.
    pub fn set_clock_rate(&self, node: NodeId, rate_per_million: u64) {
        let fault = if rate_per_million == 0 {
            Fault::ClockStop
        } else {
            Fault::ClockDrift
        };
        self.set_clock(node, fault, |clock| clock.rate = rate_per_million);
    }

    fn set_clock(&self, node: NodeId, fault: Fault, change: impl FnOnce(&mut Clock)) {
        let mut world = lock(&self.0);
        let now = world.now;
        let clock = &mut world.nodes[node.0].clock;
        (clock.base, clock.since) = (clock.at(now), now);
        change(clock);
        if clock.rate != Clock::TRUE_RATE || fault == Fault::ClockJump {
            world.hit(fault);
        }
    }

    /// What goes wrong by itself on a node's device from now on.
    pub fn set_rates(&self, node: NodeId, rates: Rates) {
        lock(&self.0).nodes[node.0].rates = rates;
    }

    /// A node's NIC works or does not from now on. What it has acknowledged is visible before it stops. One that was
    /// dead comes back with all its queue pairs in ERR.
    pub fn set_nic(&self, node: NodeId, nic: Nic) {
        let mut world = lock(&self.0);
        let was = std::mem::replace(&mut world.nodes[node.0].nic, nic);
        if nic != Nic::Up {
            world.reveal(node.0);
            world.hit(Fault::NicDown);
        }
        if was == Nic::Dead && nic == Nic::Up {
            for qp in 0..world.qps.len() as u32 {
                if world.qps[qp as usize].node == node.0 {
                    world.fail_connected(qp);
                }
            }
        }
    }

    /// A node's NIC now.
    pub fn nic(&self, node: NodeId) -> Nic {
        lock(&self.0).nodes[node.0].nic
    }

    /// Packets from `from` to `to` get through, or do not, from now on.
    pub fn cut(&self, from: NodeId, to: NodeId, cut: bool) {
        let mut world = lock(&self.0);
        world.link(from.0, to.0).cut = cut;
        if cut {
            let both = world.link(to.0, from.0).cut;
            world.hit(if both {
                Fault::TwoWayCut
            } else {
                Fault::OneWayCut
            });
        }
    }

    /// Whether packets from `from` get to `to` now.
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        lock(&self.0).reaches(from.0, to.0)
    }

    /// No message takes much longer than usual any more.
    pub fn calm(&self) {
        lock(&self.0).profile.tail = 0;
    }

    /// Messages from `from` to `to` take up to `extra_ns` longer, for `time_ns`.
    pub fn clog(&self, from: NodeId, to: NodeId, extra_ns: u64, time_ns: u64) {
        let mut world = lock(&self.0);
        let clog_until = world.now + time_ns;
        let link = world.link(from.0, to.0);
        (link.clog_until, link.clog_ns) = (clog_until, extra_ns);
    }

    /// How long a message that is no verb takes from one node to another now, or `None` if it does not get there.
    pub fn message_ns(&self, from: NodeId, to: NodeId) -> Option<u64> {
        let mut world = lock(&self.0);
        world
            .reaches(from.0, to.0)
            .then(|| world.latency(from.0, to.0))
    }

    /// Address of a memory's first byte as peers use it, and its device, if it is of this world.
    pub fn place_of(&self, memory: &Memory) -> Option<(u64, u64)> {
        let world = lock(&self.0);
        let mem = world
            .mems
            .iter()
            .find(|mem| mem.memory.addr() == memory.addr())?;
        Some((mem.base, world.ctxs[mem.ctx as usize].id))
    }

    /// Everything that devices have acknowledged becomes visible now.
    pub fn reveal(&self) {
        let mut world = lock(&self.0);
        (0..world.nodes.len()).for_each(|node| world.reveal(node));
    }

    /// The connected queue pairs of a process that belong to its `nth` protection domain break.
    pub fn break_domain(&self, context: &SimContext, nth: u32) {
        let mut world = lock(&self.0);
        for qp in 0..world.qps.len() as u32 {
            let table = &world.qps[qp as usize];
            if table.ctx == context.ctx && table.pd == nth + 1 && table.answers() {
                world.hit(Fault::QpBreaks);
                world.fail(qp);
            }
        }
    }

    /// A bit of a memory flips.
    pub fn flip_bit(&self, memory: &Memory, byte: usize, bit: u32) {
        let mut world = lock(&self.0);
        world.hit(Fault::BitFlip);
        memory.store(
            byte / 8,
            memory.load(byte / 8) ^ 1 << (byte % 8 * 8 + bit as usize % 8),
        );
    }

    /// The memories of a process lose what was in them.
    pub fn lose_memory(&self, context: &SimContext) {
        let mut world = lock(&self.0);
        world.hit(Fault::MemoryLost);
        for mem in world.mems.iter().filter(|mem| mem.ctx == context.ctx) {
            (0..mem.memory.words().len()).for_each(|word| mem.memory.store(word, 0));
        }
    }

    /// Keeps what is placed from now on, for [`take_placed`](Self::take_placed).
    pub fn watch_placements(&self) {
        lock(&self.0).placed = Some(Vec::new());
    }

    /// The first WRITE of a live queue pair whose bytes did not stand still until it was done: the node that posted it,
    /// and its number.
    pub fn disturbed(&self) -> Option<(usize, u64)> {
        lock(&self.0).disturbed
    }

    /// Moves what was placed since the last call to the end of `out`.
    pub fn take_placed(&self, out: &mut Vec<Placed>) {
        if let Some(placed) = &mut lock(&self.0).placed {
            out.append(placed);
        }
    }

    /// The devices' profile.
    pub fn profile(&self) -> Profile {
        lock(&self.0).profile
    }

    /// Which faults struck, and how often.
    pub fn coverage(&self) -> Coverage {
        lock(&self.0).coverage.clone()
    }

    /// The hash over all that happened.
    pub fn trace_hash(&self) -> u64 {
        lock(&self.0).trace.hash()
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        lock(&self.0).trace.events()
    }

    /// Puts something that the driver did into the trace: a number into the hash, a line for people.
    pub fn note(&self, word: u64, line: impl FnOnce() -> String) {
        let mut world = lock(&self.0);
        let now = world.now;
        world.trace.word(word);
        world.trace.line(now, line);
    }

    /// Shows every event as a line.
    pub fn trace_to(&self, sink: impl FnMut(&str) + Send + 'static) {
        lock(&self.0).trace.set_sink(Box::new(sink));
    }
}
