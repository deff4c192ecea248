//! Queue pairs as the traits of `mu-verbs` have them: posting, and the control side.

use std::sync::Arc;

use mu_verbs::{
    Endpoint, Error, Modify, Payload, PostError, QpCap, QpControl, QpState, QueuePair, RecvWr,
    RemoteAddr, SendFlags, SendOp, Sge, WcStatus, Wr,
};

use crate::context::{Shared, SimContext, SimMr, lock};
use crate::faults::Fault;
use crate::flow::{Action, Piece, Request};
use crate::hook::{self, Verb};
use crate::profile::{MAX_MSG, MAX_SGE};
use crate::queue::Event;
use crate::state::State;

const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// A queue pair's control side.
#[derive(Clone)]
pub struct SimControl {
    pub(crate) world: Shared,
    pub(crate) qp: u32,
    pub(crate) qp_num: u32,
    pub(crate) node: u64,
}

/// A queue pair.
pub struct SimQp {
    pub(crate) control: SimControl,
    pub(crate) cap: QpCap,
}

impl QpControl for SimControl {
    fn qp_num(&self) -> u32 {
        self.qp_num
    }
    fn endpoint(&self) -> Endpoint {
        let psn = lock(&self.world).qps[self.qp as usize].psn;
        Endpoint {
            node: self.node,
            qp_num: self.qp_num,
            psn,
            ..Endpoint::default()
        }
    }
    fn state(&self) -> Result<QpState, Error> {
        Ok(lock(&self.world).qps[self.qp as usize].state)
    }
    fn modify(&self, change: &Modify) -> Result<(), Error> {
        hook::verb(self.node, Verb::Modify);
        let done = lock(&self.world).modify(self.qp, change);
        hook::verb(self.node, Verb::Changed);
        done
    }
}

impl QueuePair<SimContext> for SimQp {
    fn control(&self) -> &SimControl {
        &self.control
    }
    fn cap(&self) -> QpCap {
        self.cap
    }

    fn post_send(&mut self, wr: &Wr<'_, SimContext>) -> Result<(), PostError> {
        let (action, pieces, inline, len) = self.check(wr)?;
        hook::verb(self.control.node, Verb::Post);
        let mut world = lock(&self.control.world);
        let depth = self.cap.max_send_wr;
        let table = &world.qps[self.control.qp as usize];
        if world.ctxs[table.ctx as usize].frozen {
            return Ok(());
        }
        let (state, node, serial) = (table.state, table.node, table.posted);
        if !matches!(state, QpState::Rts | QpState::Err) {
            return Err(PostError::WrongState {
                qp_num: self.control.qp_num,
                state,
            });
        }
        if table.posted - table.finished >= u64::from(depth) {
            world.hit(Fault::QueueFull);
            return Err(PostError::QueueFull {
                qp_num: self.control.qp_num,
                depth,
            });
        }
        let mut data = world.take_bytes();
        data.extend_from_slice(inline);
        let remote = remote(&wr.op);
        let request = Request {
            wr_id: wr.wr_id,
            signaled: wr.flags.contains(SendFlags::SIGNALED),
            action,
            remote,
            len,
            pieces,
            data,
            chunks: Vec::new(),
            next_chunk: 0,
            sent_at: 0,
            arrives_at: 0,
            target: (0, 0),
            hidden: false,
            told: false,
            tries: 0,
            again: false,
            result: None,
            answered: false,
        };
        self.trace(&mut world, &request);
        world.qps[self.control.qp as usize].posted += 1;
        match world.qps[self.control.qp as usize].flow {
            Some(flow) => {
                world.enqueue(flow, request);
                let breaks = world.nodes[node].rates.qp_breaks;
                if world.rng.chance(breaks) {
                    let at = world.now + world.rng.spread(100, 20_000);
                    let incarnation = world.qps[self.control.qp as usize].incarnation;
                    world.queue.push(
                        at,
                        Event::Break {
                            qp: self.control.qp,
                            incarnation,
                        },
                    );
                }
            }
            None => {
                world.complete(self.control.qp, &request, serial, WcStatus::WR_FLUSH_ERR);
                world.recycle(request);
            }
        }
        Ok(())
    }

    fn post_send_list(&mut self, wrs: &[Wr<'_, SimContext>]) -> Result<(), (usize, PostError)> {
        wrs.iter()
            .enumerate()
            .try_for_each(|(i, wr)| self.post_send(wr).map_err(|e| (i, e)))
    }

    fn post_recv(&mut self, wr: &RecvWr<'_, SimMr>) -> Result<(), PostError> {
        let limit = self.cap.max_recv_sge as usize;
        if wr.local.len() > limit {
            return Err(PostError::TooManySges {
                count: wr.local.len(),
                limit,
            });
        }
        let mut world = lock(&self.control.world);
        let depth = self.cap.max_recv_wr;
        let table = &mut world.qps[self.control.qp as usize];
        let qp_num = self.control.qp_num;
        if table.state == QpState::Reset {
            return Err(PostError::WrongState {
                qp_num,
                state: table.state,
            });
        }
        let outstanding = table.received - table.receives_finished + table.receives.len() as u64;
        if outstanding >= u64::from(depth) {
            return Err(PostError::QueueFull { qp_num, depth });
        }
        if table.state == QpState::Err {
            world.flush_receive(self.control.qp, wr.wr_id);
        } else {
            table.receives.push_back(wr.wr_id);
        }
        Ok(())
    }

    fn close(self) -> Result<(), Error> {
        Ok(())
    }
}

impl Drop for SimQp {
    fn drop(&mut self) {
        lock(&self.control.world).destroy_qp(self.control.qp);
    }
}

/// What a request does, with its local pieces, its inline bytes and its length.
type Parts<'a> = (Action, [Option<Piece>; MAX_SGE], &'a [u8], usize);

impl SimQp {
    /// The limits of the queue pair, and the request taken apart.
    fn check<'a>(&self, wr: &Wr<'a, SimContext>) -> Result<Parts<'a>, PostError> {
        let (action, inline, sges): (_, &[u8], &[Sge<'_, SimMr>]) = match &wr.op {
            SendOp::Write {
                imm: None,
                payload: Payload::Inline(bytes),
                ..
            } => (Action::Write, bytes, &[]),
            SendOp::Write {
                imm: None,
                payload: Payload::Regions(sges),
                ..
            } => (Action::Write, &[], sges),
            SendOp::Read { local, .. } => (Action::Read, &[], local),
            SendOp::CompareSwap {
                local,
                compare,
                swap,
                ..
            } => {
                let (compare, swap) = (*compare, *swap);
                let action = Action::CompareSwap { compare, swap };
                (action, &[], std::slice::from_ref(local))
            }
            SendOp::FetchAdd { local, add, .. } => {
                (Action::FetchAdd(*add), &[], std::slice::from_ref(local))
            }
            _ => {
                let what = "the simulator has no SEND, immediate data or windows";
                return Err(PostError::Invalid {
                    what,
                    errno: EOPNOTSUPP,
                });
            }
        };
        let limit = self.cap.max_inline_data as usize;
        if inline.len() > limit {
            return Err(PostError::InlineTooLong {
                len: inline.len(),
                limit,
            });
        }
        let limit = self.cap.max_send_sge as usize;
        if sges.len() > limit {
            return Err(PostError::TooManySges {
                count: sges.len(),
                limit,
            });
        }
        let mut pieces = [None; MAX_SGE];
        for (piece, sge) in pieces.iter_mut().zip(sges) {
            if !Arc::ptr_eq(&sge.mr.world, &self.control.world) {
                return Err(PostError::Invalid {
                    what: "a region of another world",
                    errno: EINVAL,
                });
            }
            *piece = Some(Piece {
                region: sge.mr.region,
                offset: sge.offset,
                len: sge.len,
            });
        }
        let len = inline.len() + sges.iter().map(|sge| sge.len).sum::<usize>();
        if len > MAX_MSG {
            return Err(PostError::TooLong {
                len,
                limit: MAX_MSG,
            });
        }
        let atomic = !matches!(action, Action::Write | Action::Read);
        if atomic && len != 8 {
            return Err(PostError::Invalid {
                what: "an atomic's result is 8 bytes",
                errno: EINVAL,
            });
        }
        Ok((action, pieces, inline, len))
    }

    fn trace(&self, world: &mut State, request: &Request) {
        let (qp_num, now) = (self.control.qp_num, world.now);
        let way = world.way(self.control.qp);
        world.trace.bytes(&request.data);
        let words = [
            6,
            request.wr_id,
            request.remote.addr,
            u64::from(qp_num) << 32 | request.len as u64,
        ];
        world.trace.event(now, words, || {
            let (wr_id, addr, len) = (request.wr_id, request.remote.addr, request.len);
            format!(
                "post {way} {:?} {addr:#x} +{len} wr {wr_id:#x}",
                request.action
            )
        });
    }
}

fn remote<M, W>(op: &SendOp<'_, M, W>) -> RemoteAddr {
    match op {
        SendOp::Write { remote, .. }
        | SendOp::Read { remote, .. }
        | SendOp::CompareSwap { remote, .. }
        | SendOp::FetchAdd { remote, .. } => *remote,
        SendOp::Send { .. } | SendOp::BindMw { .. } | SendOp::LocalInv { .. } => {
            unreachable!("refused before")
        }
    }
}
