//! The verbs that `verbs.h` defines as static inline functions, so that no library exports them.
//!
//! Each one jumps through a function pointer that the provider (the NIC's user-space driver) put into the context's ops
//! table. A pointer that the provider left null gives `EOPNOTSUPP` here, where most of the C originals would jump to
//! null. Nothing here allocates, locks or makes a system call: these are the post and poll paths.

use core::ffi::{c_int, c_void};
use core::mem::offset_of;
use core::ptr;

use crate::bindings::{
    ibv_context, ibv_cq, ibv_mw, ibv_mw_bind, ibv_mw_type, ibv_pd, ibv_qp, ibv_recv_wr,
    ibv_send_wr, ibv_wc, verbs_context,
};

/// What `ibv_context::abi_compat` holds when the context is the tail of a [`verbs_context`]
/// (`__VERBS_ABI_IS_EXTENDED` in the header).
pub const VERBS_ABI_IS_EXTENDED: usize = usize::MAX;

/// Posts a list of work requests to the send queue: `ibv_post_send(3)`.
///
/// Returns 0, or an errno value with `*bad_wr` set to the first request that was not posted. A pointer that the
/// provider left null gives `EOPNOTSUPP` and the head of the list.
///
/// # Safety
/// - `qp` is a live queue pair, used by nobody else during the call unless the provider locks.
/// - `wr` heads a proper list; its SGEs name memory that stays valid and registered until the work completes (inline
///   data: until this returns).
/// - `bad_wr` can be written.
#[inline]
pub unsafe fn post_send(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller keeps `qp` live, and a live queue pair points to its live context.
    let op = unsafe { (*(*qp).context).ops.post_send };
    match op {
        // SAFETY: the op is the provider's own for this queue pair; the caller keeps the rest of its contract.
        Some(op) => unsafe { op(qp, wr, bad_wr) },
        None => {
            // SAFETY: the caller gives a writable `bad_wr`.
            unsafe { *bad_wr = wr };
            libc::EOPNOTSUPP
        }
    }
}

/// Posts a list of receive requests: `ibv_post_recv(3)`. Returns as [`post_send`] does.
///
/// # Safety
/// As for [`post_send`]; the buffers belong to the NIC until their completion is polled.
#[inline]
pub unsafe fn post_recv(
    qp: *mut ibv_qp,
    wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller keeps `qp` live, and a live queue pair points to its live context.
    let op = unsafe { (*(*qp).context).ops.post_recv };
    match op {
        // SAFETY: the op is the provider's own for this queue pair; the caller keeps the rest of its contract.
        Some(op) => unsafe { op(qp, wr, bad_wr) },
        None => {
            // SAFETY: the caller gives a writable `bad_wr`.
            unsafe { *bad_wr = wr };
            libc::EOPNOTSUPP
        }
    }
}

/// Takes up to `num_entries` completions off the queue: `ibv_poll_cq(3)`.
///
/// Returns how many entries of `wc` were filled, or a negative number on failure (`-EOPNOTSUPP` if the provider left
/// the pointer null). A filled entry with a status other than success has only `wr_id`, `status`, `qp_num` and
/// `vendor_err`.
///
/// # Safety
/// - `cq` is a live completion queue, polled by nobody else during the call unless the provider locks.
/// - `wc` points to `num_entries` entries that can be written.
#[inline]
pub unsafe fn poll_cq(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: the caller keeps `cq` live, and a live completion queue points to its live context.
    let op = unsafe { (*(*cq).context).ops.poll_cq };
    match op {
        // SAFETY: the op is the provider's own for this queue; the caller keeps the rest of its contract.
        Some(op) => unsafe { op(cq, num_entries, wc) },
        None => -libc::EOPNOTSUPP,
    }
}

/// Asks for one event on the queue's completion channel: `ibv_req_notify_cq(3)`. Returns 0 or an errno value.
///
/// # Safety
/// `cq` is a live completion queue.
#[inline]
pub unsafe fn req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    // SAFETY: the caller keeps `cq` live, and a live completion queue points to its live context.
    let op = unsafe { (*(*cq).context).ops.req_notify_cq };
    match op {
        // SAFETY: the op is the provider's own for this queue.
        Some(op) => unsafe { op(cq, solicited_only) },
        None => libc::EOPNOTSUPP,
    }
}

/// Allocates a memory window: `ibv_alloc_mw(3)`. Null with errno set on failure.
///
/// # Safety
/// `pd` is a live protection domain.
pub unsafe fn alloc_mw(pd: *mut ibv_pd, mw_type: ibv_mw_type) -> *mut ibv_mw {
    // SAFETY: the caller keeps `pd` live, and a live protection domain points to its live context.
    let op = unsafe { (*(*pd).context).ops.alloc_mw };
    match op {
        // SAFETY: the op is the provider's own for this protection domain.
        Some(op) => unsafe { op(pd, mw_type) },
        None => {
            set_errno(libc::EOPNOTSUPP);
            ptr::null_mut()
        }
    }
}

/// Frees a memory window: `ibv_dealloc_mw(3)`. Returns 0 or an errno value.
///
/// # Safety
/// `mw` is a live memory window that nobody uses afterwards.
pub unsafe fn dealloc_mw(mw: *mut ibv_mw) -> c_int {
    // SAFETY: the caller keeps `mw` live, and a live window points to its live context.
    let op = unsafe { (*(*mw).context).ops.dealloc_mw };
    match op {
        // SAFETY: the op is the provider's own for this window, given up by the caller.
        Some(op) => unsafe { op(mw) },
        None => libc::EOPNOTSUPP,
    }
}

/// Binds a type 1 memory window: `ibv_bind_mw(3)`. Type 2 windows are bound by a work request instead.
///
/// Returns 0 or an errno value: `EINVAL` for a window of another type, or an address or length without a region;
/// `EPERM` if window and region are of different protection domains.
///
/// # Safety
/// `qp` and `mw` are live; `mw_bind` is valid, and the region in it is null or live.
pub unsafe fn bind_mw(qp: *mut ibv_qp, mw: *mut ibv_mw, mw_bind: *mut ibv_mw_bind) -> c_int {
    // SAFETY: the caller gives a live window, a valid bind request and a null or live region.
    unsafe {
        let info = &(*mw_bind).bind_info;
        if (*mw).type_ != ibv_mw_type::IBV_MW_TYPE_1 {
            return libc::EINVAL;
        }
        if info.mr.is_null() && (info.addr != 0 || info.length != 0) {
            return libc::EINVAL;
        }
        if !info.mr.is_null() && (*mw).pd != (*info.mr).pd {
            return libc::EPERM;
        }
        match (*(*mw).context).ops.bind_mw {
            Some(op) => op(qp, mw, mw_bind),
            None => libc::EOPNOTSUPP,
        }
    }
}

/// The next key of a type 2 window: the low 8 bits, which are the consumer's, incremented (`ibv_inc_rkey(3)`).
#[must_use]
pub const fn inc_rkey(rkey: u32) -> u32 {
    (rkey & !0xff) | (rkey.wrapping_add(1) & 0xff)
}

/// The `verbs_context` that `context` is the tail of, if it holds the member at `offset` (`verbs_get_ctx_op` in the
/// header, without its test that the member is not null).
///
/// The struct grows at its front, so an older library made a shorter one: a member is there only if the recorded size
/// reaches up to it.
///
/// # Safety
/// `context` is live, was made by a libibverbs, and its pointer may be used for the whole `verbs_context` around it.
#[must_use]
pub unsafe fn verbs_get_ctx(
    context: *mut ibv_context,
    offset: usize,
) -> Option<*mut verbs_context> {
    // SAFETY: the caller keeps `context` live.
    let abi: *mut c_void = unsafe { (*context).abi_compat };
    if abi.addr() != VERBS_ABI_IS_EXTENDED {
        return None;
    }
    // SAFETY: the mark says that the context is the last member of a `verbs_context`; the caller lets us reach all of
    // it.
    let outer: *mut verbs_context =
        unsafe { context.byte_sub(offset_of!(verbs_context, context)).cast() };
    // SAFETY: `sz` stands right before the context in every version. The read goes through a raw place, since the
    // front of the struct may not exist.
    let size = unsafe { ptr::addr_of!((*outer).sz).read() };
    (size >= size_of::<verbs_context>() - offset).then_some(outer)
}

/// Sets this thread's errno, as a verb that returns a pointer reports its failures.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: the C library returns a valid pointer to this thread's own errno.
    unsafe { *libc::__errno_location() = errno };
}
