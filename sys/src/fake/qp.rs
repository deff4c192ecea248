//! Making, reading and destroying queue pairs.

use core::ffi::{c_int, c_uint};
use std::collections::VecDeque;

use super::device::{MAX_QP_WR, count_user, fail, free, leak};
use super::memory::MAX_SGE;
use super::mr::count_pd_user;
use super::state::{Qp, fake_context, world};
use crate::bindings::{
    ibv_event_type, ibv_mtu, ibv_pd, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_cap,
    ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_wr_opcode,
};

pub(super) unsafe extern "C" fn create_qp(
    pd: *mut ibv_pd,
    init: *mut ibv_qp_init_attr,
) -> *mut ibv_qp {
    // SAFETY: the caller gives a live protection domain and a valid attribute struct.
    let (fake, pd_handle, init) =
        unsafe { (fake_context((*pd).context), (*pd).handle, &mut *init) };
    if init.qp_type != ibv_qp_type::IBV_QPT_RC || !init.srq.is_null() {
        return fail(libc::EOPNOTSUPP);
    }
    if init.send_cq.is_null() || init.recv_cq.is_null() {
        return fail(libc::EINVAL);
    }
    let Some(cap) = granted(&init.cap, fake.world.options.max_inline) else {
        return fail(libc::EINVAL);
    };
    init.cap = cap;
    // SAFETY: not null, so the caller gives live queues.
    let (send_cq, recv_cq) = unsafe { ((*init.send_cq).handle, (*init.recv_cq).handle) };
    let mut state = fake.world.lock();
    let handle = state.new_handle();
    let number = loop {
        let number = state.new_random() >> 8;
        if number > 1 && !state.qpns.contains_key(&number) {
            break number;
        }
    };
    let ibv = leak(ibv_qp {
        // SAFETY: the protection domain is live.
        context: unsafe { (*pd).context },
        qp_context: init.qp_context,
        pd,
        send_cq: init.send_cq,
        recv_cq: init.recv_cq,
        handle,
        qp_num: number,
        state: ibv_qp_state::IBV_QPS_RESET,
        qp_type: init.qp_type,
        ..Default::default()
    });
    let qp = Qp {
        ibv,
        context: fake.handle,
        device: fake.device,
        pd: pd_handle,
        send_cq,
        recv_cq,
        number,
        cap,
        signal_all: init.sq_sig_all != 0,
        attr: fresh_attr(cap),
        send_used: 0,
        send_silent: 0,
        recv_used: 0,
        receives: VecDeque::with_capacity(cap.max_recv_wr as usize),
        send_psn: 0,
        recv_psn: 0,
        unacked: 0,
    };
    state.qps.insert(handle, qp);
    state.qpns.insert(number, handle);
    for cq in [send_cq, recv_cq] {
        state.cqs.get_mut(&cq).expect("a live queue").users += 1;
    }
    count_user(&mut state, fake.handle, 1);
    count_pd_user(&mut state, pd_handle, 1);
    ibv
}

/// The limits given for those asked for: never less, as on real devices often more.
fn granted(asked: &ibv_qp_cap, max_inline: u32) -> Option<ibv_qp_cap> {
    let fits = asked.max_send_wr <= MAX_QP_WR
        && asked.max_recv_wr <= MAX_QP_WR
        && asked.max_send_sge <= MAX_SGE as u32
        && asked.max_recv_sge <= MAX_SGE as u32
        && asked.max_inline_data <= max_inline;
    let depth = |asked: u32| {
        if asked == 0 {
            0
        } else {
            asked.next_power_of_two()
        }
    };
    fits.then(|| ibv_qp_cap {
        max_send_wr: depth(asked.max_send_wr),
        max_recv_wr: depth(asked.max_recv_wr),
        max_send_sge: asked.max_send_sge.max(1),
        max_recv_sge: asked.max_recv_sge.max(1),
        max_inline_data: asked.max_inline_data.next_multiple_of(16).min(max_inline),
    })
}

/// The attributes of a queue pair in RESET.
pub(super) fn fresh_attr(cap: ibv_qp_cap) -> ibv_qp_attr {
    ibv_qp_attr {
        qp_state: ibv_qp_state::IBV_QPS_RESET,
        cur_qp_state: ibv_qp_state::IBV_QPS_RESET,
        path_mtu: ibv_mtu::IBV_MTU_256,
        cap,
        ..Default::default()
    }
}

pub(super) unsafe extern "C" fn query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    mask: c_int,
    init: *mut ibv_qp_init_attr,
) -> c_int {
    // SAFETY: the caller gives a live queue pair and writable structs.
    unsafe {
        let state = world((*qp).context).lock();
        let entry = state.qp((*qp).handle);
        attr.write(entry.attr);
        (*attr).cur_qp_state = entry.state();
        init.write(ibv_qp_init_attr {
            qp_context: (*qp).qp_context,
            send_cq: (*qp).send_cq,
            recv_cq: (*qp).recv_cq,
            srq: (*qp).srq,
            cap: entry.cap,
            qp_type: (*qp).qp_type,
            sq_sig_all: c_int::from(entry.signal_all),
        });
        if mask as c_uint & ibv_qp_attr_mask::IBV_QP_STATE.0 != 0 {
            (*qp).state = entry.state();
        }
    }
    0
}

pub(super) unsafe extern "C" fn destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: the caller gives a live queue pair, and with it a live context.
    let (fake, handle) = unsafe { (fake_context((*qp).context), (*qp).handle) };
    let mut state = fake.world.lock();
    let &Qp {
        unacked,
        number,
        pd,
        send_cq,
        recv_cq,
        ..
    } = state.qp(handle);
    if unacked > 0 {
        return libc::EBUSY;
    }
    state.forget_events(fake.handle, |event| {
        // SAFETY: the type says which member of the union is set.
        event.event_type != ibv_event_type::IBV_EVENT_CQ_ERR && unsafe { event.element.qp } == qp
    });
    for mw in state.mws.values_mut() {
        mw.bound = mw.bound.filter(|bound| bound.qp != handle);
    }
    for cq in [send_cq, recv_cq] {
        state.forget_completions(cq, handle);
        state.cqs.get_mut(&cq).expect("a live queue").users -= 1;
    }
    state.qps.remove(&handle);
    state.qpns.remove(&number);
    count_user(&mut state, fake.handle, -1);
    count_pd_user(&mut state, pd, -1);
    // SAFETY: made by `create_qp`, and the caller gives it up.
    unsafe { free(qp) };
    0
}

pub(super) unsafe extern "C" fn query_qp_data_in_order(
    qp: *mut ibv_qp,
    _op: ibv_wr_opcode,
    flags: u32,
) -> c_int {
    // SAFETY: the caller gives a live queue pair, and with it a live context.
    let options = unsafe { world((*qp).context) }.options;
    c_int::from(flags == 0 && options.data_in_order == Some(true))
}
