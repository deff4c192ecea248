//! `ibv_modify_qp`: the state table of the InfiniBand specification for RC queue pairs, with the attributes that each
//! transition requires and allows.

use core::ffi::c_int;

use super::device::{GIDS, MAX_RD_ATOMIC, PORT, device_of};
use super::qp::fresh_attr;
use super::state::{Qp, State, world};
use crate::bindings::{
    ibv_access_flags as access, ibv_ah_attr, ibv_mtu, ibv_qp, ibv_qp_attr,
    ibv_qp_attr_mask as mask, ibv_qp_state,
};

/// Largest value of a 24-bit field: packet sequence and queue pair numbers.
const MAX_24_BITS: u32 = 0xff_ffff;

/// The attributes besides the state that a transition requires, and those that it allows; `None` if there is no such
/// transition.
fn transition(from: ibv_qp_state, to: ibv_qp_state) -> Option<(mask, mask)> {
    const NONE: mask = mask(0);
    let init = mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS;
    match (from, to) {
        (_, ibv_qp_state::IBV_QPS_RESET | ibv_qp_state::IBV_QPS_ERR) => Some((NONE, NONE)),
        (ibv_qp_state::IBV_QPS_RESET, ibv_qp_state::IBV_QPS_INIT) => Some((init, NONE)),
        (ibv_qp_state::IBV_QPS_INIT, ibv_qp_state::IBV_QPS_INIT) => Some((NONE, init)),
        (ibv_qp_state::IBV_QPS_INIT, ibv_qp_state::IBV_QPS_RTR) => Some((
            mask::IBV_QP_AV
                | mask::IBV_QP_PATH_MTU
                | mask::IBV_QP_DEST_QPN
                | mask::IBV_QP_RQ_PSN
                | mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | mask::IBV_QP_MIN_RNR_TIMER,
            mask::IBV_QP_ACCESS_FLAGS | mask::IBV_QP_PKEY_INDEX,
        )),
        (ibv_qp_state::IBV_QPS_RTR, ibv_qp_state::IBV_QPS_RTS) => Some((
            mask::IBV_QP_TIMEOUT
                | mask::IBV_QP_RETRY_CNT
                | mask::IBV_QP_RNR_RETRY
                | mask::IBV_QP_SQ_PSN
                | mask::IBV_QP_MAX_QP_RD_ATOMIC,
            mask::IBV_QP_CUR_STATE | mask::IBV_QP_ACCESS_FLAGS | mask::IBV_QP_MIN_RNR_TIMER,
        )),
        (ibv_qp_state::IBV_QPS_RTS, ibv_qp_state::IBV_QPS_RTS) => Some((
            NONE,
            mask::IBV_QP_CUR_STATE | mask::IBV_QP_ACCESS_FLAGS | mask::IBV_QP_MIN_RNR_TIMER,
        )),
        _ => None,
    }
}

pub(super) unsafe extern "C" fn modify_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    attr_mask: c_int,
) -> c_int {
    // SAFETY: the caller gives a live queue pair and a valid struct.
    let (world, handle, attr) = unsafe { (world((*qp).context), (*qp).handle, &*attr) };
    let given = mask(attr_mask as u32);
    let mut state = world.lock();
    let Some(new) = check(
        state.qp(handle),
        attr,
        given,
        world.options.access_flags_in_rts,
    ) else {
        return libc::EINVAL;
    };
    match new {
        ibv_qp_state::IBV_QPS_RESET => state.reset(handle),
        ibv_qp_state::IBV_QPS_ERR => state.enter_error(handle),
        _ => apply(state.qp_mut(handle), attr, given, new),
    }
    if has(given, mask::IBV_QP_STATE) {
        // SAFETY: the queue pair is live, and the caller's alone during this call.
        unsafe { (*qp).state = new };
    }
    0
}

/// The state that the queue pair goes to, or `None` if the request is not allowed.
fn check(
    qp: &Qp,
    attr: &ibv_qp_attr,
    given: mask,
    access_flags_in_rts: bool,
) -> Option<ibv_qp_state> {
    let from = qp.state();
    if has(given, mask::IBV_QP_CUR_STATE) && attr.cur_qp_state != from {
        return None;
    }
    let to = if has(given, mask::IBV_QP_STATE) {
        attr.qp_state
    } else {
        from
    };
    let (required, optional) = transition(from, to)?;
    let allowed = required | optional | mask::IBV_QP_STATE;
    if !has(given, required) || !has(allowed, given) {
        return None;
    }
    if from == ibv_qp_state::IBV_QPS_RTS
        && has(given, mask::IBV_QP_ACCESS_FLAGS)
        && !access_flags_in_rts
    {
        return None;
    }
    values_are_valid(attr, given).then_some(to)
}

fn values_are_valid(attr: &ibv_qp_attr, given: mask) -> bool {
    let rights = access::IBV_ACCESS_LOCAL_WRITE
        | access::IBV_ACCESS_REMOTE_WRITE
        | access::IBV_ACCESS_REMOTE_READ
        | access::IBV_ACCESS_REMOTE_ATOMIC
        | access::IBV_ACCESS_MW_BIND;
    let mtus = ibv_mtu::IBV_MTU_256.0..=ibv_mtu::IBV_MTU_4096.0;
    let checks = [
        (mask::IBV_QP_PKEY_INDEX, attr.pkey_index == 0),
        (mask::IBV_QP_PORT, attr.port_num == PORT),
        (
            mask::IBV_QP_ACCESS_FLAGS,
            attr.qp_access_flags & !rights.0 == 0,
        ),
        (mask::IBV_QP_AV, address_is_valid(&attr.ah_attr)),
        (mask::IBV_QP_PATH_MTU, mtus.contains(&attr.path_mtu.0)),
        (mask::IBV_QP_DEST_QPN, attr.dest_qp_num <= MAX_24_BITS),
        (mask::IBV_QP_RQ_PSN, attr.rq_psn <= MAX_24_BITS),
        (mask::IBV_QP_SQ_PSN, attr.sq_psn <= MAX_24_BITS),
        (
            mask::IBV_QP_MAX_DEST_RD_ATOMIC,
            attr.max_dest_rd_atomic <= MAX_RD_ATOMIC,
        ),
        (
            mask::IBV_QP_MAX_QP_RD_ATOMIC,
            attr.max_rd_atomic <= MAX_RD_ATOMIC,
        ),
        (mask::IBV_QP_MIN_RNR_TIMER, attr.min_rnr_timer < 32),
        (mask::IBV_QP_TIMEOUT, attr.timeout < 32),
        (mask::IBV_QP_RETRY_CNT, attr.retry_cnt < 8),
        (mask::IBV_QP_RNR_RETRY, attr.rnr_retry < 8),
    ];
    checks
        .iter()
        .all(|(attribute, valid)| *valid || !has(given, *attribute))
}

/// On Ethernet an address needs a global route; hop limit 0 would be taken literally.
pub(super) fn address_is_valid(address: &ibv_ah_attr) -> bool {
    address.port_num == PORT
        && address.is_global == 1
        && u32::from(address.grh.sgid_index) < GIDS
        && address.grh.hop_limit > 0
}

fn apply(qp: &mut Qp, new: &ibv_qp_attr, given: mask, state: ibv_qp_state) {
    let now = &mut qp.attr;
    macro_rules! take {
        ($($flag:ident: $($field:ident),+;)*) => {
            $(if has(given, mask::$flag) { $(now.$field = new.$field;)+ })*
        };
    }
    take! {
        IBV_QP_PKEY_INDEX: pkey_index;
        IBV_QP_PORT: port_num;
        IBV_QP_ACCESS_FLAGS: qp_access_flags;
        IBV_QP_AV: ah_attr;
        IBV_QP_PATH_MTU: path_mtu;
        IBV_QP_DEST_QPN: dest_qp_num;
        IBV_QP_RQ_PSN: rq_psn;
        IBV_QP_SQ_PSN: sq_psn;
        IBV_QP_MAX_DEST_RD_ATOMIC: max_dest_rd_atomic;
        IBV_QP_MAX_QP_RD_ATOMIC: max_rd_atomic;
        IBV_QP_MIN_RNR_TIMER: min_rnr_timer;
        IBV_QP_TIMEOUT: timeout;
        IBV_QP_RETRY_CNT: retry_cnt;
        IBV_QP_RNR_RETRY: rnr_retry;
    }
    now.qp_state = state;
    if has(given, mask::IBV_QP_RQ_PSN) {
        qp.recv_psn = new.rq_psn;
    }
    if has(given, mask::IBV_QP_SQ_PSN) {
        qp.send_psn = new.sq_psn;
    }
}

fn has(set: mask, wanted: mask) -> bool {
    set & wanted == wanted
}

impl State {
    /// To RESET: everything queued is forgotten, without completions.
    fn reset(&mut self, handle: u32) {
        let qp = self.qp_mut(handle);
        qp.attr = fresh_attr(qp.cap);
        qp.receives.clear();
        (qp.send_used, qp.send_silent, qp.recv_used) = (0, 0, 0);
        let (send_cq, recv_cq) = (qp.send_cq, qp.recv_cq);
        self.forget_completions(send_cq, handle);
        self.forget_completions(recv_cq, handle);
    }

    /// To ERR: receive requests are flushed, in order. (Send requests never wait here.)
    pub(super) fn enter_error(&mut self, handle: u32) {
        self.qp_mut(handle).attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
        while let Some(receive) = self.qp_mut(handle).receives.pop_front() {
            self.flush_receive(handle, receive.wr_id);
        }
    }

    /// The queue pair that `handle` is connected to, if that one would answer: it is ready to receive, connected back,
    /// and expects the next packet sequence number.
    pub(super) fn peer(&self, handle: u32) -> Option<u32> {
        let qp = self.qp(handle);
        let peer_handle = *self.qpns.get(&qp.attr.dest_qp_num)?;
        let peer = self.qp(peer_handle);
        let ready = matches!(
            peer.state(),
            ibv_qp_state::IBV_QPS_RTR | ibv_qp_state::IBV_QPS_RTS
        );
        let at = |address: &ibv_ah_attr| {
            // SAFETY: both members of a GID are plain bytes.
            device_of(unsafe { &address.grh.dgid.raw })
        };
        let connected = peer.attr.dest_qp_num == qp.number
            && at(&qp.attr.ah_attr) == Some(peer.device)
            && at(&peer.attr.ah_attr) == Some(qp.device);
        (ready && connected && peer.recv_psn == qp.send_psn).then_some(peer_handle)
    }

    /// Counts the packets of a request that the peer took.
    pub(super) fn advance_psn(&mut self, sender: u32, receiver: u32, len: usize) {
        let mtu = 128_usize << self.qp(sender).attr.path_mtu.0;
        let packets = len.div_ceil(mtu).max(1) as u32;
        let qp = self.qp_mut(sender);
        qp.send_psn = qp.send_psn.wrapping_add(packets) & MAX_24_BITS;
        let next = qp.send_psn;
        self.qp_mut(receiver).recv_psn = next;
    }
}
