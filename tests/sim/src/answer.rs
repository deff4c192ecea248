//! What comes back: answers, completions in order, and the end of a queue pair that failed.

use mu_verbs::{Access, QpState, WcStatus};

use crate::exec::PATIENT_NS;
use crate::faults::{Fault, Nic};
use crate::flow::{Action, Request};
use crate::queue::Event;
use crate::state::State;

impl State {
    /// The answer to a request that is through sets out.
    pub(crate) fn send_answer(&mut self, flow_at: u32, serial: u64, known: bool) {
        let (from, to) = (
            self.flows[flow_at as usize].from,
            self.flows[flow_at as usize].to,
        );
        let travel = if known { 0 } else { self.latency(to, from) };
        let at_once = self.is_at_once(travel);
        let travel = if at_once { 0 } else { travel };
        let now = self.now;
        let flow = &mut self.flows[flow_at as usize];
        flow.last_answer = flow.last_answer.max(now + travel);
        let (at, generation) = (flow.last_answer, flow.generation);
        if known {
            flow.request(serial).expect("it is under way").answered = true;
        }
        if at_once && at <= now {
            return self.answer(flow_at, serial);
        }
        self.queue.push(
            at,
            Event::Answer {
                flow: flow_at,
                generation,
                serial,
            },
        );
    }

    /// An answer arrives, unless it does not get through.
    pub(crate) fn answer(&mut self, flow_at: u32, serial: u64) {
        let flow = &mut self.flows[flow_at as usize];
        let (live, from, to) = (flow.live, flow.from, flow.to);
        let (timeout, retries) = (flow.timeout_ns(), flow.rts.retry_cnt);
        if !live || self.nodes[from].nic == Nic::Dead {
            return;
        }
        let reaches = self.reaches(to, from);
        let Some(request) = self.flows[flow_at as usize].request(serial) else {
            return;
        };
        if !request.answered && !reaches {
            request.tries += 1;
            let given_up = timeout.is_some() && request.tries > retries;
            if given_up {
                request.result = Some(WcStatus::RETRY_EXC_ERR);
                request.answered = true;
                self.hit(Fault::RetriesExhausted);
            } else {
                let generation = self.flows[flow_at as usize].generation;
                let again = self.now + timeout.unwrap_or(PATIENT_NS);
                self.queue.push(
                    again,
                    Event::Answer {
                        flow: flow_at,
                        generation,
                        serial,
                    },
                );
            }
            self.hit(Fault::AnswerLost);
        }
        if let Some(request) = self.flows[flow_at as usize].request(serial) {
            request.answered |= reaches;
        }
        self.finish(flow_at);
    }

    /// Completes, in order, what is answered.
    pub(crate) fn finish(&mut self, flow_at: u32) {
        loop {
            let flow = &mut self.flows[flow_at as usize];
            if !flow.in_use || !flow.live || !flow.requests.front().is_some_and(|r| r.answered) {
                return;
            }
            let (qp, serial, through) = (flow.qp, flow.first, flow.next > flow.first);
            // One that is acknowledged and still on its way into memory stays at the front until it is through.
            let stays = !through && flow.requests[0].hidden;
            let mut request = flow.requests.pop_front().expect("asked before");
            flow.first += 1;
            flow.next = flow.next.max(flow.first);
            let mut status = request.result.expect("an answered request has a result");
            if !std::mem::replace(&mut request.told, true) {
                status = self.bring_home(qp, &request, status);
                self.complete(qp, &request, serial, status);
            }
            if stays {
                let flow = &mut self.flows[flow_at as usize];
                flow.requests.push_front(request);
                flow.first -= 1;
                flow.next = flow.first;
            } else {
                self.recycle(request);
            }
            if !status.is_success() {
                return self.fail(qp);
            }
            if stays {
                return;
            }
        }
    }

    /// What a READ or atomic got goes into local memory. Returns how the request ended, as its completion says.
    fn bring_home(&mut self, qp: u32, request: &Request, status: WcStatus) -> WcStatus {
        if !status.is_success() {
            return status;
        }
        if request.action != Action::Write {
            let mut done = 0;
            for piece in request.pieces.into_iter().flatten() {
                let Some((mem, at)) = self.local(qp, piece, Access::LOCAL_WRITE) else {
                    return WcStatus::LOC_PROT_ERR;
                };
                let bytes = &request.data[done..done + piece.len];
                self.mems[mem as usize].memory.write_bytes(at, bytes);
                done += piece.len;
            }
        }
        let node = self.qps[qp as usize].node;
        if self.rng.chance(self.nodes[node].rates.completion_lies) {
            self.hit(Fault::CompletionLies);
            return *self.rng.pick(&[
                WcStatus::RETRY_EXC_ERR,
                WcStatus::REM_OP_ERR,
                WcStatus::GENERAL_ERR,
            ]);
        }
        status
    }

    /// A queue pair goes to ERR: what it waits for is flushed, what is on the wire goes on as a ghost.
    pub(crate) fn fail(&mut self, qp: u32) {
        let table = &mut self.qps[qp as usize];
        if table.state == QpState::Err || !table.alive {
            return;
        }
        table.state = QpState::Err;
        let receives = std::mem::take(&mut table.receives);
        if let Some(flow_at) = self.qps[qp as usize].flow.take() {
            let waiting = std::mem::take(&mut self.flows[flow_at as usize].requests);
            let first = self.flows[flow_at as usize].first;
            for (serial, request) in (first..).zip(&waiting) {
                if !request.told {
                    self.complete(qp, request, serial, WcStatus::WR_FLUSH_ERR);
                }
            }
            self.flows[flow_at as usize].requests = waiting;
            self.orphan(flow_at);
        }
        receives
            .into_iter()
            .for_each(|wr_id| self.flush_receive(qp, wr_id));
    }

    /// As [`fail`](Self::fail), for a device that was gone: only queue pairs that were in use can fail.
    pub(crate) fn fail_connected(&mut self, qp: u32) {
        if self.qps[qp as usize].answers() {
            self.fail(qp);
        }
    }

    /// Nobody waits for this flow's answers any more. What was transmitted and is not through yet may still land.
    pub(crate) fn orphan(&mut self, flow_at: u32) {
        let now = self.now;
        let flow = &mut self.flows[flow_at as usize];
        flow.live = false;
        let done = (flow.next - flow.first) as usize;
        let gone: Vec<Request> = flow
            .requests
            .drain(..done.min(flow.requests.len()))
            .collect();
        flow.first = flow.next;
        let on_wire = flow
            .requests
            .iter()
            .take_while(|r| r.sent_at <= now)
            .count();
        let unsent: Vec<Request> = flow.requests.drain(on_wire..).collect();
        let (empty, moving) = (flow.requests.is_empty(), flow.moving);
        gone.into_iter()
            .chain(unsent)
            .for_each(|request| self.recycle(request));
        if empty || !moving {
            self.free_flow(flow_at);
        }
    }
}
