//! Posting: what is checked before a work request is taken, the accounting of queue slots, and completions.

use core::ffi::c_int;
use core::slice;

use super::device::MAX_MESSAGE;
use super::memory::MAX_SGE;
use super::state::{Completion, Qp, Receive, State, world};
use crate::bindings::{
    ibv_qp, ibv_qp_state, ibv_recv_wr, ibv_send_flags as flags, ibv_send_wr, ibv_sge, ibv_wc,
    ibv_wc_opcode, ibv_wc_status, ibv_wr_opcode as op,
};

pub(super) unsafe extern "C" fn post_send(
    qp: *mut ibv_qp,
    mut wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller gives a live queue pair, and with it a live context.
    let (world, handle) = unsafe { (world((*qp).context), (*qp).handle) };
    let mut state = world.lock();
    // SAFETY: the caller gives a list of valid requests that ends in null.
    while let Some(request) = unsafe { wr.as_ref() } {
        // SAFETY: a valid request's list holds as many elements as it says.
        let list = unsafe { elements(request.sg_list, request.num_sge) };
        if let Err(errno) = check_send(state.qp(handle), request, list) {
            // SAFETY: the caller gives a writable pointer.
            unsafe { *bad_wr = wr };
            return errno;
        }
        state.qp_mut(handle).send_used += 1;
        // SAFETY: a valid request; its memory is live until it completes, which is before this returns.
        unsafe { state.send(handle, request, list) };
        wr = request.next;
    }
    0
}

pub(super) unsafe extern "C" fn post_recv(
    qp: *mut ibv_qp,
    mut wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller gives a live queue pair, and with it a live context.
    let (world, handle) = unsafe { (world((*qp).context), (*qp).handle) };
    let mut state = world.lock();
    // SAFETY: the caller gives a list of valid requests that ends in null.
    while let Some(request) = unsafe { wr.as_ref() } {
        // SAFETY: a valid request's list holds as many elements as it says.
        let list = unsafe { elements(request.sg_list, request.num_sge) };
        let qp = state.qp_mut(handle);
        let errno = if qp.state() == ibv_qp_state::IBV_QPS_RESET
            || list.len() > qp.cap.max_recv_sge as usize
        {
            libc::EINVAL
        } else if qp.recv_used == qp.cap.max_recv_wr {
            libc::ENOMEM
        } else {
            0
        };
        if errno != 0 {
            // SAFETY: the caller gives a writable pointer.
            unsafe { *bad_wr = wr };
            return errno;
        }
        qp.recv_used += 1;
        if qp.state() == ibv_qp_state::IBV_QPS_ERR {
            state.flush_receive(handle, request.wr_id);
        } else {
            let mut receive = Receive {
                wr_id: request.wr_id,
                list: [ibv_sge::default(); MAX_SGE],
                count: list.len(),
            };
            receive.list[..list.len()].copy_from_slice(list);
            qp.receives.push_back(receive);
        }
        wr = request.next;
    }
    0
}

/// # Safety
/// `list` points to `count` elements, unless `count` is not positive.
unsafe fn elements<'a>(list: *const ibv_sge, count: c_int) -> &'a [ibv_sge] {
    match usize::try_from(count) {
        Ok(count) if count > 0 => {
            // SAFETY: the caller's promise.
            unsafe { slice::from_raw_parts(list, count) }
        }
        _ => &[],
    }
}

/// What a provider refuses before it takes a request.
fn check_send(qp: &Qp, wr: &ibv_send_wr, list: &[ibv_sge]) -> Result<(), c_int> {
    let ready = matches!(
        qp.state(),
        ibv_qp_state::IBV_QPS_RTS | ibv_qp_state::IBV_QPS_ERR
    );
    let len: u64 = list.iter().map(|sge| u64::from(sge.length)).sum();
    let writes = matches!(
        wr.opcode,
        op::IBV_WR_RDMA_WRITE | op::IBV_WR_RDMA_WRITE_WITH_IMM
    );
    let sends = matches!(wr.opcode, op::IBV_WR_SEND | op::IBV_WR_SEND_WITH_IMM);
    let atomic = matches!(
        wr.opcode,
        op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD
    );
    let local = matches!(wr.opcode, op::IBV_WR_LOCAL_INV | op::IBV_WR_BIND_MW);
    let known = writes || sends || atomic || local || wr.opcode == op::IBV_WR_RDMA_READ;
    let inline_ok = !inline(wr) || ((writes || sends) && len <= u64::from(qp.cap.max_inline_data));
    let fits = list.len() <= qp.cap.max_send_sge as usize && len <= u64::from(MAX_MESSAGE);
    if !ready || wr.num_sge < 0 || !known || !inline_ok || !fits || (atomic && len != 8) {
        return Err(libc::EINVAL);
    }
    if qp.send_used >= qp.cap.max_send_wr {
        return Err(libc::ENOMEM);
    }
    Ok(())
}

/// The data is copied out of private memory when the request is posted.
pub(super) fn inline(wr: &ibv_send_wr) -> bool {
    wr.send_flags & flags::IBV_SEND_INLINE.0 != 0
}

impl State {
    /// Executes a request that was taken, and completes it.
    ///
    /// # Safety
    /// As for [`State::execute`].
    unsafe fn send(&mut self, handle: u32, wr: &ibv_send_wr, list: &[ibv_sge]) {
        let result = if self.qp(handle).state() == ibv_qp_state::IBV_QPS_ERR {
            Err(ibv_wc_status::IBV_WC_WR_FLUSH_ERR)
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.execute(handle, wr, list) }
        };
        let qp = self.qp_mut(handle);
        let signalled = qp.signal_all || wr.send_flags & flags::IBV_SEND_SIGNALED.0 != 0;
        if result.is_ok() && !signalled {
            qp.send_silent += 1;
            return;
        }
        let completion = Completion {
            wc: ibv_wc {
                wr_id: wr.wr_id,
                status: result.err().unwrap_or(ibv_wc_status::IBV_WC_SUCCESS),
                opcode: completion_opcode(wr.opcode),
                byte_len: result.unwrap_or(0),
                qp_num: qp.number,
                ..Default::default()
            },
            qp: handle,
            send_slots: core::mem::take(&mut qp.send_silent) + 1,
            recv_slots: 0,
            solicited: false,
        };
        let cq = qp.send_cq;
        self.complete(cq, completion);
        if result.is_err() {
            self.enter_error(handle);
        }
    }

    /// Completes a receive request that nothing arrived for.
    pub(super) fn flush_receive(&mut self, handle: u32, wr_id: u64) {
        let wc = ibv_wc {
            wr_id,
            status: ibv_wc_status::IBV_WC_WR_FLUSH_ERR,
            ..Default::default()
        };
        self.complete_receive(handle, wc, false);
    }

    /// Completes a receive request.
    pub(super) fn complete_receive(&mut self, handle: u32, mut wc: ibv_wc, solicited: bool) {
        let qp = self.qp(handle);
        wc.qp_num = qp.number;
        let cq = qp.recv_cq;
        self.complete(
            cq,
            Completion {
                wc,
                qp: handle,
                send_slots: 0,
                recv_slots: 1,
                solicited,
            },
        );
    }
}

fn completion_opcode(opcode: op) -> ibv_wc_opcode {
    match opcode {
        op::IBV_WR_RDMA_WRITE | op::IBV_WR_RDMA_WRITE_WITH_IMM => ibv_wc_opcode::IBV_WC_RDMA_WRITE,
        op::IBV_WR_RDMA_READ => ibv_wc_opcode::IBV_WC_RDMA_READ,
        op::IBV_WR_ATOMIC_CMP_AND_SWP => ibv_wc_opcode::IBV_WC_COMP_SWAP,
        op::IBV_WR_ATOMIC_FETCH_AND_ADD => ibv_wc_opcode::IBV_WC_FETCH_ADD,
        op::IBV_WR_LOCAL_INV => ibv_wc_opcode::IBV_WC_LOCAL_INV,
        op::IBV_WR_BIND_MW => ibv_wc_opcode::IBV_WC_BIND_MW,
        _ => ibv_wc_opcode::IBV_WC_SEND,
    }
}
