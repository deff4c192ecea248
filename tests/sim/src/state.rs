//! The world's state, and what all parts of it use: time, events, completions.

use std::collections::VecDeque;
use std::fmt;

use mu_verbs::{AsyncEvent, Completion, QpState, WcOpcode, WcStatus};

use crate::faults::{Coverage, Fault, Nic};
use crate::flow::{Chunk, Flow, Request};
use crate::objects::{CqTable, CtxTable, Link, Mem, NodeTable, QpTable, Record, Region};
use crate::profile::Profile;
use crate::queue::{Event, Queue};
use crate::rng::Rng;
use crate::trace::Trace;

/// Bytes that were placed in a memory, for whoever checks who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// World time.
    pub at_ns: u64,
    /// The node that wrote.
    pub from: usize,
    /// Its queue pair.
    pub qp_num: u32,
    /// The device that was written to, by its number in endpoints.
    pub to: u64,
    /// Address of the first byte, as peers use it.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// The key that was shown.
    pub rkey: u32,
    /// The number of the request.
    pub wr_id: u64,
    /// The connection over which it came is still the one of its queue pair.
    pub live: bool,
}

/// See [`State::way`].
#[derive(Clone, Copy)]
pub(crate) struct Way(usize, Option<usize>);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(to) => write!(f, "{}->{to}", self.0),
            None => write!(f, "{}->?", self.0),
        }
    }
}

/// Asynchronous events kept until they are read.
const MAX_EVENTS: usize = 256;

/// Everything.
pub(crate) struct State {
    pub(crate) now: u64,
    pub(crate) queue: Queue,
    pub(crate) rng: Rng,
    pub(crate) trace: Trace,
    pub(crate) coverage: Coverage,
    pub(crate) profile: Profile,
    pub(crate) nodes: Vec<NodeTable>,
    /// From `a` to `b` at `a * nodes + b`.
    pub(crate) links: Vec<Link>,
    pub(crate) ctxs: Vec<CtxTable>,
    pub(crate) mems: Vec<Mem>,
    pub(crate) regions: Vec<Region>,
    pub(crate) cqs: Vec<CqTable>,
    pub(crate) qps: Vec<QpTable>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) free_flows: Vec<u32>,
    /// Completions that come later.
    pub(crate) held: Vec<Record>,
    pub(crate) free_held: Vec<u32>,
    /// Buffers to use again.
    pub(crate) bytes: Vec<Vec<u8>>,
    pub(crate) chunks: Vec<Vec<Chunk>>,
    /// What was placed, if anybody wants to know.
    pub(crate) placed: Option<Vec<Placed>>,
    /// The first write whose bytes changed while it was under way: who wrote, and the number of the request.
    pub(crate) disturbed: Option<(usize, u64)>,
}

impl State {
    /// Runs one event. A wake-up is returned, everything else is done.
    pub(crate) fn dispatch(&mut self, at: u64, event: Event) -> Option<u64> {
        self.now = self.now.max(at);
        match event {
            Event::Transmit {
                flow,
                generation,
                serial,
            } => {
                if self.is_current(flow, generation) {
                    self.transmit(flow, serial);
                }
            }
            Event::Execute { flow, generation } => {
                if self.is_current(flow, generation) {
                    self.execute(flow);
                }
            }
            Event::Answer {
                flow,
                generation,
                serial,
            } => {
                if self.is_current(flow, generation) {
                    self.answer(flow, serial);
                }
            }
            Event::Deliver { held } => {
                let record = self.held[held as usize];
                self.free_held.push(held);
                self.push(record);
            }
            Event::Break { qp, incarnation } => self.break_qp(qp, incarnation),
            Event::Wake { token } => return Some(token),
        }
        None
    }

    /// Lets `time_ns` go by inside a call: nobody's code runs meanwhile, but the network does.
    pub(crate) fn stall(&mut self, time_ns: u64) {
        let until = self.now + time_ns;
        let mut wakes = Vec::new();
        while self.queue.next_at().is_some_and(|at| at <= until) {
            let (at, event) = self.queue.pop().expect("an event is there");
            wakes.extend(self.dispatch(at, event));
        }
        self.now = until;
        for token in wakes {
            self.queue.push(until, Event::Wake { token });
        }
    }

    fn is_current(&self, flow: u32, generation: u32) -> bool {
        let flow = &self.flows[flow as usize];
        flow.in_use && flow.generation == generation
    }

    /// From which node to which a queue pair leads, for people.
    pub(crate) fn way(&self, qp: u32) -> Way {
        let table = &self.qps[qp as usize];
        let to = self.ctxs.iter().find(|ctx| ctx.id == table.remote.node);
        Way(table.node, to.map(|ctx| ctx.node))
    }

    pub(crate) fn hit(&mut self, fault: Fault) {
        self.coverage.hit(fault);
        self.trace
            .line(self.now, || format!("fault {}", fault.name()));
    }

    pub(crate) fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let nodes = self.nodes.len();
        &mut self.links[from * nodes + to]
    }

    /// Whether a packet from one node gets to another now.
    pub(crate) fn reaches(&mut self, from: usize, to: usize) -> bool {
        self.nodes[from].nic == Nic::Up && self.nodes[to].nic == Nic::Up && !self.link(from, to).cut
    }

    /// How long the next message takes from one node to another.
    pub(crate) fn latency(&mut self, from: usize, to: usize) -> u64 {
        let usual = self.profile.latency_ns;
        let mut time = usual + self.rng.below(usual);
        if self.rng.chance(self.profile.tail) {
            self.hit(Fault::LatencyTail);
            time += self.rng.spread(usual, self.profile.tail_max_ns);
        }
        let now = self.now;
        let link = self.link(from, to);
        let clog = if now < link.clog_until {
            link.clog_ns
        } else {
            0
        };
        if clog > 0 {
            self.hit(Fault::Clog);
            time += self.rng.range(clog / 2, clog);
        }
        time
    }

    pub(crate) fn event(&mut self, ctx: u32, event: AsyncEvent) {
        let events = &mut self.ctxs[ctx as usize].events;
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// A finished send request's completion, with the faults that can strike it.
    pub(crate) fn complete(&mut self, qp: u32, request: &Request, serial: u64, status: WcStatus) {
        if status.is_success() && !request.signaled {
            return;
        }
        let table = &self.qps[qp as usize];
        let rates = self.nodes[table.node].rates;
        let completion = Completion {
            wr_id: request.wr_id,
            status,
            opcode: request.action.opcode(),
            byte_len: if status.is_success() {
                request.len as u32
            } else {
                0
            },
            imm_data: None,
            qp_num: table.qp_num,
            vendor_err: match status {
                WcStatus::RETRY_EXC_ERR if self.knows_ended(qp) => Completion::PEER_ENDED,
                _ => 0,
            },
        };
        let record = Record {
            completion,
            qp,
            incarnation: table.incarnation,
            finished: serial + 1,
            receive: false,
        };
        if self.rng.chance(rates.completion_lost) {
            return self.hit(Fault::CompletionLost);
        }
        if self.rng.chance(rates.completion_late) {
            self.hit(Fault::CompletionLate);
            let late = self.now + self.rng.spread(10_000, 5_000_000);
            let table = &mut self.qps[qp as usize];
            table.deliver_from = table.deliver_from.max(late);
        }
        self.deliver(record);
        if self.rng.chance(rates.completion_twice) {
            self.hit(Fault::CompletionTwice);
            let again = self.now.max(self.qps[qp as usize].deliver_from);
            let again = again + self.rng.spread(100, 1_000_000);
            self.hold(record, again);
        }
    }

    /// A receive that is flushed.
    pub(crate) fn flush_receive(&mut self, qp: u32, wr_id: u64) {
        let table = &mut self.qps[qp as usize];
        table.received += 1;
        let completion = Completion {
            wr_id,
            status: WcStatus::WR_FLUSH_ERR,
            opcode: WcOpcode::RECV,
            qp_num: table.qp_num,
            ..Completion::EMPTY
        };
        let record = Record {
            completion,
            qp,
            incarnation: table.incarnation,
            finished: table.received,
            receive: true,
        };
        self.deliver(record);
    }

    /// In order per queue pair, at once if nothing is held back.
    fn deliver(&mut self, record: Record) {
        let from = self.qps[record.qp as usize].deliver_from;
        if from <= self.now {
            self.push(record);
        } else {
            self.hold(record, from);
        }
    }

    fn hold(&mut self, record: Record, until: u64) {
        let held = self.free_held.pop().unwrap_or(self.held.len() as u32);
        match self.held.get_mut(held as usize) {
            Some(place) => *place = record,
            None => self.held.push(record),
        }
        self.queue.push(until, Event::Deliver { held });
    }

    /// Into the completion queue.
    fn push(&mut self, record: Record) {
        let table = &self.qps[record.qp as usize];
        let forgotten =
            record.incarnation != table.incarnation && !self.profile.reset_keeps_completions;
        if forgotten || !table.alive || self.nodes[table.node].nic == Nic::Dead {
            return;
        }
        let (ctx, cq) = (table.ctx, table.cqs[usize::from(record.receive)]);
        let (completion, way) = (record.completion, self.way(record.qp));
        self.trace.event(
            self.now,
            [
                2,
                completion.wr_id,
                u64::from(completion.status.0),
                u64::from(completion.qp_num),
            ],
            || {
                let (wr_id, status) = (completion.wr_id, completion.status);
                format!("complete {way} wr {wr_id:#x} {status}")
            },
        );
        let cq = &mut self.cqs[cq as usize];
        if cq.overrun {
            return;
        }
        if cq.ready.len() == cq.depth {
            cq.overrun = true;
            self.hit(Fault::CqOverrun);
            return self.event(ctx, AsyncEvent::CqError);
        }
        cq.ready.push_back(record);
    }

    /// Moves completions out of a queue.
    pub(crate) fn poll(&mut self, cq: u32, out: &mut [Completion]) -> usize {
        let mut n = 0;
        if self.ctxs[self.cqs[cq as usize].ctx as usize].frozen {
            return 0;
        }
        while n < out.len() {
            let Some(record) = self.cqs[cq as usize].ready.pop_front() else {
                break;
            };
            let table = &mut self.qps[record.qp as usize];
            if record.incarnation == table.incarnation {
                let finished = if record.receive {
                    &mut table.receives_finished
                } else {
                    &mut table.finished
                };
                *finished = (*finished).max(record.finished);
            } else if !self.profile.reset_keeps_completions {
                continue;
            }
            out[n] = record.completion;
            n += 1;
        }
        if n > 0 {
            self.trace.word(u64::from(cq) << 32 | n as u64);
        }
        n
    }

    fn break_qp(&mut self, qp: u32, incarnation: u32) {
        let table = &self.qps[qp as usize];
        if table.alive && table.incarnation == incarnation && table.state == QpState::Rts {
            let (ctx, qp_num) = (table.ctx, table.qp_num);
            self.hit(Fault::QpBreaks);
            self.fail(qp);
            self.event(ctx, AsyncEvent::QpFatal { qp_num });
        }
    }

    pub(crate) fn take_bytes(&mut self) -> Vec<u8> {
        self.bytes.pop().unwrap_or_default()
    }

    pub(crate) fn recycle(&mut self, request: Request) {
        let Request {
            mut data,
            mut chunks,
            ..
        } = request;
        data.clear();
        chunks.clear();
        self.bytes.push(data);
        self.chunks.push(chunks);
    }

    /// A flow slot that nothing uses.
    pub(crate) fn new_flow(&mut self, flow: Flow) -> u32 {
        let at = self.free_flows.pop().unwrap_or_else(|| {
            self.flows.push(Flow::default());
            self.flows.len() as u32 - 1
        });
        let slot = &mut self.flows[at as usize];
        let (generation, mut requests) = (slot.generation + 1, std::mem::take(&mut slot.requests));
        requests.clear();
        *slot = Flow {
            generation,
            requests,
            in_use: true,
            live: true,
            ..flow
        };
        at
    }

    pub(crate) fn free_flow(&mut self, flow: u32) {
        let slot = &mut self.flows[flow as usize];
        slot.in_use = false;
        let requests: VecDeque<Request> = std::mem::take(&mut slot.requests);
        requests
            .into_iter()
            .for_each(|request| self.recycle(request));
        self.free_flows.push(flow);
    }
}
