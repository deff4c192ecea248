//! Completion queues and queue pairs as owned pointers behind safe functions. The safety argument is in `raw_device`.

use std::ffi::c_int;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mu_sys::{
    ibv_cq, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_type,
    ibv_wr_opcode,
};

use super::raw_device::{RawContext, check, check_ptr};
use super::raw_objects::{RawPd, end};

/// A completion queue. Polling it is in `raw_post`, behind its one owner.
pub(super) struct RawCq {
    ptr: NonNull<ibv_cq>,
    context: Option<Arc<RawContext>>,
}

// SAFETY: see `raw_device`.
unsafe impl Send for RawCq {}
// SAFETY: see `raw_device`.
unsafe impl Sync for RawCq {}

impl RawCq {
    pub(super) fn create(context: &Arc<RawContext>, depth: c_int) -> io::Result<Self> {
        let create = context.lib().ibv_create_cq;
        // SAFETY: a live context of this library; no cookie, no channel, the first vector.
        let ptr = check_ptr(unsafe {
            create(context.ptr(), depth, ptr::null_mut(), ptr::null_mut(), 0)
        })?;
        Ok(Self {
            ptr,
            context: Some(context.clone()),
        })
    }

    /// For `raw_post`: live as long as `self`.
    pub(super) fn ptr(&self) -> *mut ibv_cq {
        self.ptr.as_ptr()
    }

    pub(super) fn context(&self) -> &Arc<RawContext> {
        self.context.as_ref().expect("taken by drop only")
    }
}

impl Drop for RawCq {
    fn drop(&mut self) {
        // SAFETY: made by `create`; every queue pair that used it held it and is gone. A failure is counted by `end`.
        let _ = end(&mut self.context, |context| unsafe {
            (context.lib().ibv_destroy_cq)(self.ptr.as_ptr())
        });
    }
}

type QpParts = (Arc<RawPd>, Arc<RawCq>, Arc<RawCq>);

/// A queue pair as its control handles see it: it may be destroyed already.
pub(super) struct RawQp {
    ptr: NonNull<ibv_qp>,
    qp_num: u32,
    /// What it was made from; `None` once it is destroyed. The lock keeps it alive during a control verb.
    parts: Mutex<Option<QpParts>>,
}

// SAFETY: see `raw_device`.
unsafe impl Send for RawQp {}
// SAFETY: see `raw_device`.
unsafe impl Sync for RawQp {}

/// The one owner of a queue pair: it exists exactly as long as the queue pair may be posted on.
pub(super) struct QpOwner {
    qp: Arc<RawQp>,
    pd: Arc<RawPd>,
}

impl QpOwner {
    /// A reliably connected queue pair, and the sizes it got.
    pub(super) fn create(
        pd: &Arc<RawPd>,
        send_cq: &Arc<RawCq>,
        recv_cq: &Arc<RawCq>,
        cap: ibv_qp_cap,
    ) -> io::Result<(Self, ibv_qp_cap)> {
        let mut init = ibv_qp_init_attr {
            send_cq: send_cq.ptr(),
            recv_cq: recv_cq.ptr(),
            cap,
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
            ..ibv_qp_init_attr::default()
        };
        // SAFETY: domain and queues are live, of one context (checked by the caller; the kernel checks too), and held
        // by the value made here.
        let ptr =
            check_ptr(unsafe { (pd.context().lib().ibv_create_qp)(pd.ptr(), &raw mut init) })?;
        // SAFETY: just created; the number is never written again.
        let qp_num = unsafe { (*ptr.as_ptr()).qp_num };
        let parts = Mutex::new(Some((pd.clone(), send_cq.clone(), recv_cq.clone())));
        Ok((
            Self {
                qp: Arc::new(RawQp { ptr, qp_num, parts }),
                pd: pd.clone(),
            },
            init.cap,
        ))
    }

    pub(super) fn shared(&self) -> &Arc<RawQp> {
        &self.qp
    }

    pub(super) fn pd(&self) -> &Arc<RawPd> {
        &self.pd
    }

    /// For `raw_post`: live as long as `self`, which is what ends it.
    pub(super) fn ptr(&self) -> *mut ibv_qp {
        self.qp.ptr.as_ptr()
    }

    /// Destroys it; once only.
    pub(super) fn end(self) -> io::Result<()> {
        self.qp.destroy()
    }
}

impl Drop for QpOwner {
    fn drop(&mut self) {
        // Nothing is left to do after `end`. A failure is counted there.
        let _ = self.qp.destroy();
    }
}

impl RawQp {
    pub(super) fn qp_num(&self) -> u32 {
        self.qp_num
    }

    fn lock(&self) -> MutexGuard<'_, Option<QpParts>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn destroy(&self) -> io::Result<()> {
        // SAFETY: called by its one owner as its last act, and the lock keeps control verbs out; `end` runs it once.
        end(&mut self.lock(), |(pd, ..)| unsafe {
            (pd.context().lib().ibv_destroy_qp)(self.ptr.as_ptr())
        })
    }

    /// Runs a verb on the live queue pair; `None` if it is destroyed.
    fn with<R>(&self, verb: impl FnOnce(&'static mu_sys::Lib, *mut ibv_qp) -> R) -> Option<R> {
        let parts = self.lock();
        let (pd, ..) = parts.as_ref()?;
        Some(verb(pd.context().lib(), self.ptr.as_ptr()))
    }

    /// `ibv_modify_qp`; `None` if it is destroyed.
    pub(super) fn modify(
        &self,
        attr: &ibv_qp_attr,
        mask: ibv_qp_attr_mask,
    ) -> Option<io::Result<()>> {
        let mut attr = *attr;
        self.with(|lib, qp| {
            // SAFETY: live under the lock; the attributes are plain numbers in a local.
            check(unsafe { (lib.ibv_modify_qp)(qp, &raw mut attr, mask.0 as c_int) })
        })
    }

    /// `ibv_query_qp` for the members of `mask`; `None` if it is destroyed.
    pub(super) fn query(&self, mask: ibv_qp_attr_mask) -> Option<io::Result<ibv_qp_attr>> {
        self.with(|lib, qp| {
            let mut attr = ibv_qp_attr::default();
            let mut init = ibv_qp_init_attr::default();
            // SAFETY: live under the lock; both structs are writable locals.
            check(unsafe {
                (lib.ibv_query_qp)(qp, &raw mut attr, mask.0 as c_int, &raw mut init)
            })?;
            Ok(attr)
        })
    }

    /// `ibv_query_qp_data_in_order` for RDMA WRITE; `None` if it is destroyed or the library has no such verb.
    pub(super) fn data_in_order(&self, flags: u32) -> Option<c_int> {
        self.with(|lib, qp| {
            // SAFETY: live under the lock; no other pointers.
            lib.ibv_query_qp_data_in_order
                .map(|query| unsafe { query(qp, ibv_wr_opcode::IBV_WR_RDMA_WRITE, flags) })
        })
        .flatten()
    }
}
