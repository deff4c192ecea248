//! Requests under way: posted, transmitted, admitted at the target or refused. What is admitted takes effect in
//! `place`, and its answer travels in `answer`.

use mu_verbs::{Access, AsyncEvent, WcStatus};

use crate::faults::Fault;
use crate::flow::{Action, Chunk, Flow, Piece, Request};
use crate::profile::{Leak, MAX_SGE};
use crate::queue::Event;
use crate::state::State;

/// Why a piece does not take effect now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such queue pair.
    Gone,
    /// The target's queue pair does not answer, or is connected to somebody else.
    NotReady,
    /// Its flags forbid it.
    Flags,
    /// No such registration, or another range or domain.
    Region,
    /// The registration's rights forbid it.
    Rights,
}

/// What came of one try at the target.
pub(crate) enum Step {
    /// Go on at this time.
    Again(u64),
    /// Nothing is left of a ghost that gets no further.
    Lost,
    /// Done at the target: how, and whether that is known to the sender without an answer.
    Done { status: WcStatus, known: bool },
    /// Refused: the target's queue pair fails too.
    Refused(Refusal),
}

/// The shortest and longest time between posting and the first bit on the wire.
const SEND_NS: (u64, u64) = (30, 150);
/// A packet to a peer that never gives up is sent again after this.
pub(crate) const PATIENT_NS: u64 = 1_000_000;

impl State {
    /// Puts a request into the flow of its queue pair. A synchronous device carries it out here and now, unless what
    /// came before is not through yet, or it takes unusually long, or is acknowledged before it is visible.
    pub(crate) fn enqueue(&mut self, flow_at: u32, mut request: Request) {
        let (from, to) = (
            self.flows[flow_at as usize].from,
            self.flows[flow_at as usize].to,
        );
        let wire = self.now + self.rng.range(SEND_NS.0, SEND_NS.1);
        let latency = self.latency(from, to);
        let gathers = request.gathers();
        let (now, usual) = (self.now, self.is_at_once(latency));
        let flow = &mut self.flows[flow_at as usize];
        let at_once = usual && flow.requests.is_empty() && !flow.moving;
        request.sent_at = flow.last_sent.max(if at_once { now } else { wire });
        request.arrives_at = match at_once {
            true => request.sent_at,
            false => flow.last_arrival.max(request.sent_at + latency),
        };
        (flow.last_sent, flow.last_arrival) = (request.sent_at, request.arrives_at);
        let (sent_at, arrives_at) = (request.sent_at, request.arrives_at);
        let serial = flow.first + flow.requests.len() as u64;
        let (generation, idle) = (flow.generation, !flow.moving);
        flow.requests.push_back(request);
        flow.moving = true;
        if at_once {
            if gathers {
                self.transmit(flow_at, serial);
            }
            return self.execute(flow_at);
        }
        if gathers {
            self.queue.push(
                sent_at,
                Event::Transmit {
                    flow: flow_at,
                    generation,
                    serial,
                },
            );
        }
        if idle {
            self.queue.push(
                arrives_at,
                Event::Execute {
                    flow: flow_at,
                    generation,
                },
            );
        }
    }

    /// Whether what takes so long goes at once, since it is the caller of a synchronous device who carries it out.
    pub(crate) fn is_at_once(&self, takes_ns: u64) -> bool {
        self.profile.synchronous && takes_ns < 2 * self.profile.latency_ns
    }

    /// The bytes of a WRITE from regions leave: as they are now, not as they were when it was posted.
    pub(crate) fn transmit(&mut self, flow_at: u32, serial: u64) {
        let mut data = self.take_bytes();
        let flow = &mut self.flows[flow_at as usize];
        let qp = flow.qp;
        let Some(request) = flow.request(serial) else {
            return self.bytes.push(data);
        };
        let pieces = request.pieces;
        let whole = self.gather(qp, pieces, &mut data);
        let request = self.flows[flow_at as usize]
            .request(serial)
            .expect("it was there");
        std::mem::swap(&mut request.data, &mut data);
        if !whole {
            request.result = Some(WcStatus::LOC_PROT_ERR);
        }
        self.bytes.push(data);
    }

    /// Takes the bytes of local pieces as they are now. Whether all of them may be read.
    fn gather(&self, qp: u32, pieces: [Option<Piece>; MAX_SGE], data: &mut Vec<u8>) -> bool {
        pieces.into_iter().flatten().all(|piece| {
            self.local(qp, piece, Access::NONE)
                .is_some_and(|(mem, at)| {
                    let from = data.len();
                    data.resize(from + piece.len, 0);
                    self.mems[mem as usize]
                        .memory
                        .read_bytes(at, &mut data[from..]);
                    true
                })
        })
    }

    /// A packet that is sent again takes its bytes again: what has not got through leaves as it is now.
    fn gather_again(&mut self, flow: &mut Flow) {
        let request = flow.current().expect("asked before");
        request.again = false;
        if request.gathers() {
            self.hit(Fault::GatheredAgain);
            self.compare(flow);
        }
    }

    /// The bytes of a WRITE have to stand still until it is done: takes them once more, and notes it if they did not.
    fn compare(&mut self, flow: &mut Flow) {
        let mut data = self.take_bytes();
        let (qp, from) = (flow.qp, flow.from);
        let request = flow.current().expect("asked before");
        let whole = self.gather(qp, request.pieces, &mut data);
        if whole && data != request.data {
            self.disturbed.get_or_insert((from, request.wr_id));
            std::mem::swap(&mut data, &mut request.data);
        }
        data.clear();
        self.bytes.push(data);
    }

    /// Where a local piece is, if its registration is alive and allows it.
    pub(crate) fn local(&self, qp: u32, piece: Piece, need: Access) -> Option<(u32, usize)> {
        let (qp, region) = (&self.qps[qp as usize], &self.regions[piece.region as usize]);
        let inside = piece.offset.checked_add(piece.len)? <= region.len;
        let usable = region.alive && region.pd == qp.pd && region.ctx == qp.ctx;
        (usable && inside && region.access.contains(need))
            .then_some((region.mem, region.start + piece.offset))
    }

    /// The next piece of a flow's current request takes effect, or does not.
    pub(crate) fn execute(&mut self, flow_at: u32) {
        let mut flow = std::mem::take(&mut self.flows[flow_at as usize]);
        flow.moving = false;
        let serial = flow.next;
        let step = loop {
            let step = match flow.current() {
                Some(_) => self.step(flow_at, &mut flow),
                None => Step::Lost,
            };
            // Nothing goes between the pieces of what the caller carries out itself.
            if !matches!(step, Step::Again(at) if self.profile.synchronous && at <= self.now) {
                break step;
            }
        };
        let nothing_left = flow.next - flow.first >= flow.requests.len() as u64;
        self.flows[flow_at as usize] = flow;
        match step {
            Step::Again(at) => self.move_on(flow_at, at),
            Step::Lost if nothing_left && self.flows[flow_at as usize].live => {}
            Step::Lost => self.free_flow(flow_at),
            Step::Done { status, known } => self.executed(flow_at, serial, status, known),
            Step::Refused(refusal) => {
                let status = match refusal {
                    Refusal::Flags => WcStatus::REM_INV_REQ_ERR,
                    _ => WcStatus::REM_ACCESS_ERR,
                };
                let target = self.flows[flow_at as usize].target_qp;
                self.fail_target(target, refusal);
                self.executed(flow_at, serial, status, false);
            }
        }
    }

    fn move_on(&mut self, flow_at: u32, at: u64) {
        let flow = &mut self.flows[flow_at as usize];
        if flow.in_use && !flow.moving {
            flow.moving = true;
            let generation = flow.generation;
            self.queue.push(
                at.max(self.now),
                Event::Execute {
                    flow: flow_at,
                    generation,
                },
            );
        }
    }

    /// A request is through at the target: its answer travels, and the next one's turn comes.
    fn executed(&mut self, flow_at: u32, serial: u64, status: WcStatus, known: bool) {
        let flow = &mut self.flows[flow_at as usize];
        // A flow to itself may have been cut off by its own refusal.
        if !flow.in_use || flow.next != serial {
            return;
        }
        flow.next += 1;
        let live = flow.live;
        let next_at = flow.current().map(|request| request.arrives_at);
        let request = flow.request(serial).expect("it was just carried out");
        let hidden = request.hidden;
        request.result.get_or_insert(status);
        // Before the answer, which may fail the queue pair: what is on its way goes on all the same.
        let goes_on = next_at.filter(|_| status.is_success());
        if let Some(at) = goes_on {
            self.move_on(flow_at, at);
        }
        if live && hidden {
            self.finish(flow_at);
        } else if live {
            self.send_answer(flow_at, serial, known);
        } else if goes_on.is_none() {
            self.free_flow(flow_at);
        }
    }

    /// One try at the target.
    fn step(&mut self, flow_at: u32, flow: &mut Flow) -> Step {
        let (from, to) = (flow.from, flow.to);
        let serial = flow.next;
        let request = flow.current().expect("asked before");
        if let Some(status) = request.result.filter(|status| !status.is_success()) {
            return Step::Done {
                status,
                known: true,
            };
        }
        if request.chunks.is_empty() && request.next_chunk == 0 {
            self.plan(flow);
        }
        let request = flow.current().expect("asked before");
        let Some(chunk) = request.chunks.get(request.next_chunk).copied() else {
            if request.gathers() && !request.hidden && flow.live {
                self.compare(flow);
            }
            return Step::Done {
                status: WcStatus::SUCCESS,
                known: false,
            };
        };
        if request.hidden {
            return self.take_effect(flow, chunk);
        }
        if chunk.first && !self.reaches(from, to) {
            return self.try_again(flow, chunk);
        }
        if flow.live && self.knows_ended(flow.qp) {
            self.hit(Fault::PeerEnded);
            return Step::Done {
                status: WcStatus::RETRY_EXC_ERR,
                known: true,
            };
        }
        if flow.live && flow.current().expect("asked before").again {
            self.gather_again(flow);
        }
        match self.admit(flow, !chunk.first) {
            Ok(target) => flow.current().expect("asked before").target = target,
            Err(refusal) => {
                if !chunk.first {
                    self.hit(Fault::RefusedInFlight);
                }
                return match refusal {
                    Refusal::Gone | Refusal::NotReady => self.try_again(flow, chunk),
                    _ if flow.live => Step::Refused(refusal),
                    _ => self.refuse_ghost(flow, refusal),
                };
            }
        }
        if self.hides(flow) {
            let request = flow.current().expect("asked before");
            request.hidden = true;
            request.result = Some(WcStatus::SUCCESS);
            self.nodes[to].hidden += 1;
            self.hit(Fault::VisibleLate);
            let answer = self.now + self.latency(to, from);
            flow.last_answer = flow.last_answer.max(answer);
            let (at, generation) = (flow.last_answer, flow.generation);
            self.queue.push(
                at,
                Event::Answer {
                    flow: flow_at,
                    generation,
                    serial,
                },
            );
            return Step::Again(self.now + self.rng.spread(500, 200_000));
        }
        self.take_effect(flow, chunk)
    }

    /// Whether this is a device that knows when a peer's process has ended, and the one at the other end has.
    pub(crate) fn knows_ended(&self, qp: u32) -> bool {
        let peer = self.qps[qp as usize].remote.node;
        let peer = self.ctxs.iter().find(|ctx| ctx.id == peer);
        self.profile.tells_peer_ended && peer.is_some_and(|peer| !peer.alive)
    }

    /// A ghost's refusal fails the target's queue pair as any other.
    fn refuse_ghost(&mut self, flow: &Flow, refusal: Refusal) -> Step {
        self.fail_target(flow.target_qp, refusal);
        Step::Lost
    }

    /// Whether this WRITE is acknowledged before it is visible.
    fn hides(&mut self, flow: &mut Flow) -> bool {
        let (live, mtu, rate) = (flow.live, flow.mtu, self.profile.visible_late);
        let request = flow.current().expect("asked before");
        let fits = request.action == Action::Write && request.len <= mtu && request.next_chunk == 0;
        live && fits && request.len > 0 && self.rng.chance(rate)
    }

    /// A packet that did not get through: again after the time-out, until the retries are used up.
    fn try_again(&mut self, flow: &mut Flow, chunk: Chunk) -> Step {
        if !flow.live {
            return Step::Lost;
        }
        let (timeout, retries) = (flow.timeout_ns(), flow.rts.retry_cnt);
        let request = flow.current().expect("asked before");
        // What is sent again begins a packet: rights are looked at anew, and its bytes taken.
        request.again = true;
        request.chunks[request.next_chunk] = Chunk {
            first: true,
            ..chunk
        };
        let Some(timeout) = timeout else {
            return Step::Again(self.now + PATIENT_NS);
        };
        request.tries += 1;
        if request.tries > retries {
            self.hit(Fault::RetriesExhausted);
            return Step::Done {
                status: WcStatus::RETRY_EXC_ERR,
                known: true,
            };
        }
        self.hit(Fault::Retransmit);
        Step::Again(self.now + timeout + self.rng.below(timeout))
    }

    /// Rights as they are now: the target's queue pair, its flags, its registration. A packet that is `under_way` was
    /// admitted before, and goes on past what leaks on this device.
    fn admit(&mut self, flow: &mut Flow, under_way: bool) -> Result<(u32, usize), Refusal> {
        let leak = if under_way {
            self.profile.leak
        } else {
            Leak::NONE
        };
        let mut leaked = false;
        let target = self.qps.get(flow.target_qp as usize).filter(|qp| qp.alive);
        let target = target
            .filter(|qp| qp.qp_num == flow.target_qp_num)
            .ok_or(Refusal::Gone)?;
        let connected = target.psn == flow.target_psn
            && target.remote.node == flow.own_ctx
            && target.remote.qp_num == flow.own_qp_num
            && target.remote.psn == flow.own_psn;
        if !target.answers() || !connected {
            leaked |= pass(leak.cycle, Refusal::NotReady)?;
        }
        let request = flow.current().expect("asked before");
        let need = request.action.need();
        let whole_words = need != Access::REMOTE_ATOMIC || request.remote.addr.is_multiple_of(8);
        if !target.access.contains(need) || !whole_words {
            leaked |= pass(leak.flags, Refusal::Flags)?;
        }
        if request.len == 0 {
            return Ok((0, 0));
        }
        let region = self
            .regions
            .get((request.remote.rkey >> 8 & 0xffff) as usize);
        let region = region.filter(|region| region.alive && region.key == request.remote.rkey);
        let region = region.filter(|region| region.ctx == target.ctx && region.pd == target.pd);
        let region = region.ok_or(Refusal::Region)?;
        let base = self.mems[region.mem as usize].base;
        let at = region
            .offset(base, request.remote.addr, request.len)
            .ok_or(Refusal::Region)?;
        if !region.access.contains(need) {
            leaked |= pass(leak.reregister, Refusal::Rights)?;
        }
        let place = (region.mem, at);
        if leaked {
            self.hit(Fault::LeakAfterRevoke);
        }
        Ok(place)
    }

    /// The target's queue pair of a refused request fails.
    fn fail_target(&mut self, qp: u32, refusal: Refusal) {
        let table = &self.qps[qp as usize];
        let (ctx, qp_num) = (table.ctx, table.qp_num);
        self.fail(qp);
        let event = match refusal {
            Refusal::Flags => AsyncEvent::QpRequestError { qp_num },
            _ => AsyncEvent::QpAccessError { qp_num },
        };
        self.event(ctx, event);
    }
}

/// A refusal, unless it leaks.
fn pass(leaks: bool, refusal: Refusal) -> Result<bool, Refusal> {
    if leaks { Ok(true) } else { Err(refusal) }
}
