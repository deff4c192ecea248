//! What one work request does: the requester's checks, the responder's checks in the order of the specification, the
//! transfer.
//!
//! A refusal by the responder puts both queue pairs into ERR and gives the responder's context an asynchronous event;
//! the requester's completion says why. The requester itself is put into ERR by the caller.

use core::sync::atomic::Ordering;

use super::memory::{Segment, Segments, copy};
use super::post::inline;
use super::state::{Binding, Receive, RemoteKey, State, has};
use crate::bindings::{
    ibv_access_flags as access, ibv_event_type, ibv_send_flags as flags, ibv_send_wr, ibv_sge,
    ibv_wc, ibv_wc_flags, ibv_wc_opcode, ibv_wc_status as status, ibv_wr_opcode as op,
};

/// Bytes moved, or the status of a completion that failed.
type Outcome = Result<u32, status>;

/// Bits of a window's key that are its index; the others are the consumer's.
const KEY_INDEX: u32 = !0xff;

impl State {
    /// Executes one request of a queue pair in RTS.
    ///
    /// # Safety
    /// `wr` is valid, `list` its elements, and the memory they name is live: registered memory as words, inline data as
    /// exposed bytes.
    pub(super) unsafe fn execute(
        &mut self,
        handle: u32,
        wr: &ibv_send_wr,
        list: &[ibv_sge],
    ) -> Outcome {
        match wr.opcode {
            op::IBV_WR_LOCAL_INV => {
                // SAFETY: the opcode says which member of the union is set.
                return self.invalidate(handle, unsafe { wr.__bindgen_anon_1.invalidate_rkey });
            }
            // SAFETY: the caller gives a valid request of this kind.
            op::IBV_WR_BIND_MW => return unsafe { self.bind(handle, wr) },
            _ => {}
        }
        // SAFETY: the caller's promise.
        let local =
            unsafe { self.local_side(handle, wr, list) }.ok_or(status::IBV_WC_LOC_PROT_ERR)?;
        let len = local.len();
        let peer = self.peer(handle).ok_or(status::IBV_WC_RETRY_EXC_ERR)?;
        let outcome = match wr.opcode {
            op::IBV_WR_SEND | op::IBV_WR_SEND_WITH_IMM => {
                self.send_message(handle, peer, wr, &local)
            }
            // SAFETY: the opcode says which member of the union is set.
            op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD => unsafe {
                self.atomic(peer, wr, &local)
            },
            // SAFETY: as above.
            op::IBV_WR_RDMA_READ => unsafe { self.read(peer, wr, &local) },
            // SAFETY: as above; only writes are left.
            _ => unsafe { self.write(handle, peer, wr, &local) },
        };
        if outcome.is_ok() {
            self.advance_psn(handle, peer, len);
        }
        outcome
    }

    /// The local buffers, checked; `None` is a protection error.
    ///
    /// # Safety
    /// As for [`State::execute`].
    unsafe fn local_side(
        &self,
        handle: u32,
        wr: &ibv_send_wr,
        list: &[ibv_sge],
    ) -> Option<Segments> {
        if inline(wr) {
            let mut segments = Segments::new();
            for sge in list {
                // SAFETY: the caller keeps inline data live and exposed.
                segments.push(unsafe { Segment::private(sge.addr, sge.length as usize) });
            }
            return Some(segments);
        }
        let receives_data = !matches!(
            wr.opcode,
            op::IBV_WR_RDMA_WRITE
                | op::IBV_WR_RDMA_WRITE_WITH_IMM
                | op::IBV_WR_SEND
                | op::IBV_WR_SEND_WITH_IMM
        );
        self.local(self.qp(handle).pd, list, receives_data)
    }

    /// RDMA WRITE. With immediate data it also takes a receive request.
    ///
    /// # Safety
    /// The request is a write.
    unsafe fn write(
        &mut self,
        handle: u32,
        peer: u32,
        wr: &ibv_send_wr,
        local: &Segments,
    ) -> Outcome {
        // SAFETY: the caller's promise.
        let target = unsafe { wr.wr.rdma };
        self.check_right(peer, access::IBV_ACCESS_REMOTE_WRITE)?;
        let immediate = wr.opcode == op::IBV_WR_RDMA_WRITE_WITH_IMM;
        if immediate && self.qp(peer).receives.is_empty() {
            return Err(status::IBV_WC_RNR_RETRY_EXC_ERR);
        }
        let len = local.len();
        if len > 0 {
            let right = access::IBV_ACCESS_REMOTE_WRITE;
            let remote = self.check_range(peer, target.rkey, target.remote_addr, len, right)?;
            copy(local, &Segments::one(remote));
        }
        if immediate {
            let receive = self.take_receive(peer);
            let arrived = ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM;
            self.arrive(handle, peer, wr, receive.wr_id, arrived, len);
        }
        Ok(len as u32)
    }

    /// RDMA READ.
    ///
    /// # Safety
    /// The request is a read.
    unsafe fn read(&mut self, peer: u32, wr: &ibv_send_wr, local: &Segments) -> Outcome {
        // SAFETY: the caller's promise.
        let source = unsafe { wr.wr.rdma };
        self.check_right(peer, access::IBV_ACCESS_REMOTE_READ)?;
        self.check_resources(peer)?;
        let len = local.len();
        if len > 0 {
            let right = access::IBV_ACCESS_REMOTE_READ;
            let remote = self.check_range(peer, source.rkey, source.remote_addr, len, right)?;
            copy(&Segments::one(remote), local);
        }
        Ok(len as u32)
    }

    /// Compare-and-swap or fetch-and-add on a remote word; the old value comes back.
    ///
    /// # Safety
    /// The request is an atomic.
    unsafe fn atomic(&mut self, peer: u32, wr: &ibv_send_wr, local: &Segments) -> Outcome {
        // SAFETY: the caller's promise.
        let target = unsafe { wr.wr.atomic };
        let right = access::IBV_ACCESS_REMOTE_ATOMIC;
        self.check_right(peer, right)?;
        self.check_resources(peer)?;
        if !target.remote_addr.is_multiple_of(8) {
            return Err(self.refuse(peer, status::IBV_WC_REM_INV_REQ_ERR));
        }
        let remote = self.check_range(peer, target.rkey, target.remote_addr, 8, right)?;
        let word = remote.atomic();
        let old = if wr.opcode == op::IBV_WR_ATOMIC_FETCH_AND_ADD {
            word.fetch_add(target.compare_add, Ordering::AcqRel)
        } else {
            let swapped = word.compare_exchange(
                target.compare_add,
                target.swap,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            swapped.unwrap_or_else(|found| found)
        };
        local.store(old);
        Ok(8)
    }

    /// SEND into the oldest receive request.
    fn send_message(
        &mut self,
        handle: u32,
        peer: u32,
        wr: &ibv_send_wr,
        local: &Segments,
    ) -> Outcome {
        if self.qp(peer).receives.is_empty() {
            return Err(status::IBV_WC_RNR_RETRY_EXC_ERR);
        }
        let receive = self.take_receive(peer);
        let len = local.len();
        let list = &receive.list[..receive.count];
        let Some(buffers) = self.local(self.qp(peer).pd, list, true) else {
            self.fail_receive(peer, receive.wr_id, status::IBV_WC_LOC_PROT_ERR);
            return Err(status::IBV_WC_REM_OP_ERR);
        };
        if buffers.len() < len {
            self.fail_receive(peer, receive.wr_id, status::IBV_WC_LOC_LEN_ERR);
            return Err(status::IBV_WC_REM_INV_REQ_ERR);
        }
        copy(local, &buffers);
        self.arrive(
            handle,
            peer,
            wr,
            receive.wr_id,
            ibv_wc_opcode::IBV_WC_RECV,
            len,
        );
        Ok(len as u32)
    }

    fn take_receive(&mut self, peer: u32) -> Receive {
        self.qp_mut(peer)
            .receives
            .pop_front()
            .expect("tested by the caller")
    }

    /// Completes a receive request with what came in.
    fn arrive(
        &mut self,
        from: u32,
        at: u32,
        wr: &ibv_send_wr,
        wr_id: u64,
        opcode: ibv_wc_opcode,
        len: usize,
    ) {
        let mut wc = ibv_wc {
            wr_id,
            opcode,
            byte_len: len as u32,
            src_qp: self.qp(from).number,
            ..Default::default()
        };
        if matches!(
            wr.opcode,
            op::IBV_WR_SEND_WITH_IMM | op::IBV_WR_RDMA_WRITE_WITH_IMM
        ) {
            // SAFETY: the opcode says which member of the union is set.
            wc.__bindgen_anon_1.imm_data = unsafe { wr.__bindgen_anon_1.imm_data };
            wc.wc_flags = ibv_wc_flags::IBV_WC_WITH_IMM.0;
        }
        let solicited = wr.send_flags & flags::IBV_SEND_SOLICITED.0 != 0;
        self.complete_receive(at, wc, solicited);
    }

    /// Fails a receive request: the responder learns by its completion, and goes to ERR.
    fn fail_receive(&mut self, peer: u32, wr_id: u64, why: status) {
        self.complete_receive(
            peer,
            ibv_wc {
                wr_id,
                status: why,
                ..Default::default()
            },
            false,
        );
        self.enter_error(peer);
    }

    /// The queue pair's own access flags; the specification has them tested before the key.
    fn check_right(&mut self, peer: u32, right: access) -> Result<(), status> {
        if has(access(self.qp(peer).attr.qp_access_flags), right) {
            return Ok(());
        }
        Err(self.refuse(peer, status::IBV_WC_REM_INV_REQ_ERR))
    }

    /// Reads and atomics need a responder resource.
    fn check_resources(&mut self, peer: u32) -> Result<(), status> {
        if self.qp(peer).attr.max_dest_rd_atomic > 0 {
            return Ok(());
        }
        Err(self.refuse(peer, status::IBV_WC_REM_INV_REQ_ERR))
    }

    fn check_range(
        &mut self,
        peer: u32,
        rkey: u32,
        addr: u64,
        len: usize,
        right: access,
    ) -> Result<Segment, status> {
        let found = self.remote(peer, rkey, addr, len, right);
        found.ok_or_else(|| self.refuse(peer, status::IBV_WC_REM_ACCESS_ERR))
    }

    /// The responder refuses: it goes to ERR and its owner is told. Returns what the requester sees.
    fn refuse(&mut self, peer: u32, why: status) -> status {
        let event = match why {
            status::IBV_WC_REM_ACCESS_ERR => ibv_event_type::IBV_EVENT_QP_ACCESS_ERR,
            _ => ibv_event_type::IBV_EVENT_QP_REQ_ERR,
        };
        self.raise(peer, event);
        self.enter_error(peer);
        why
    }

    /// LOCAL_INV of a window: from the completion on, its key gives access to nothing.
    fn invalidate(&mut self, handle: u32, rkey: u32) -> Outcome {
        let Some(&RemoteKey::Mw(window)) = self.rkeys.get(&rkey) else {
            return Err(status::IBV_WC_LOC_QP_OP_ERR);
        };
        let window = self
            .mws
            .get_mut(&window)
            .expect("a key names a live window");
        if window.bound.is_none_or(|bound| bound.qp != handle) {
            return Err(status::IBV_WC_LOC_QP_OP_ERR);
        }
        window.bound = None;
        Ok(0)
    }

    /// BIND_MW of a type 2 window. The caller's `ibv_mw::rkey` is left alone: the new key is the caller's choice, so
    /// the caller knows it.
    ///
    /// # Safety
    /// The request is a bind, with a live window and a live region.
    unsafe fn bind(&mut self, handle: u32, wr: &ibv_send_wr) -> Outcome {
        const REFUSED: status = status::IBV_WC_MW_BIND_ERR;
        // SAFETY: the caller's promise.
        let bind = unsafe { wr.__bindgen_anon_2.bind_mw };
        let info = bind.bind_info;
        // SAFETY: the caller gives a live window and region.
        let (window_handle, mr_handle) = unsafe { ((*bind.mw).handle, (*info.mr).handle) };
        let pd = self.qp(handle).pd;
        let window = *self.mws.get(&window_handle).ok_or(REFUSED)?;
        let mr = *self.mrs.get(&mr_handle).ok_or(REFUSED)?;
        let asked = access(info.mw_access_flags);
        let changes = asked & (access::IBV_ACCESS_REMOTE_WRITE | access::IBV_ACCESS_REMOTE_ATOMIC)
            != access(0);
        let allowed = window.pd == pd
            && mr.pd == pd
            && window.bound.is_none()
            && window.rkey & KEY_INDEX == bind.rkey & KEY_INDEX
            && has(mr.access, access::IBV_ACCESS_MW_BIND)
            && (!changes || has(mr.access, access::IBV_ACCESS_LOCAL_WRITE))
            && info.length > 0
            && mr.segment(info.addr, info.length as usize).is_some();
        if !allowed {
            return Err(REFUSED);
        }
        self.rkeys.remove(&window.rkey);
        self.rkeys.insert(bind.rkey, RemoteKey::Mw(window_handle));
        let window = self.mws.get_mut(&window_handle).expect("just found");
        window.rkey = bind.rkey;
        window.bound = Some(Binding {
            mr: mr_handle,
            qp: handle,
            addr: info.addr,
            len: info.length,
            access: asked,
        });
        Ok(0)
    }
}
