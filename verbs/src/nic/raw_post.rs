//! The post and poll paths: requests go to the provider's functions, completions come back. Nothing here allocates,
//! locks, calls a `dyn` or enters the kernel (a provider in software may).
//!
//! # Safety argument
//!
//! Beside that of `raw_device`: a [`Batch`] is made, filled and posted inside one call, and holds only what it took
//! from requests that are borrowed during that call. So regions and windows in it are alive while the provider reads
//! the list, and inline bytes are readable: the provider copies them before it returns. What happens after the post is
//! the device's business under the keys it checks: memory behind a local key that was deregistered meanwhile is not
//! touched.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;

use mu_sys::{ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_wc, ibv_wc_flags};

use super::batch::{Batch, LIST_SGES, LIST_WRS, Limits, MAX_SGE};
use super::raw_queues::{QpOwner, RawCq};
use super::{Nic, NicMr};
use crate::{Completion, PostError, RecvWr, WcOpcode, WcStatus, Wr};

/// Completions fetched by one call of the provider.
const POLL_BATCH: usize = 16;

/// A request that was not posted: an error of the checks, or what the provider returned.
pub(super) enum Refused {
    Check(PostError),
    Provider(i32),
}

impl From<PostError> for Refused {
    fn from(error: PostError) -> Self {
        Self::Check(error)
    }
}
impl<const WRS: usize, const SGES: usize> Batch<'_, WRS, SGES> {
    /// Posts what was pushed and empties the batch. On an error: how many were posted, and the provider's errno.
    #[inline]
    fn post(&mut self, qp: &mut QpOwner) -> Result<(), (usize, i32)> {
        let count = self.wrs_len;
        if count == 0 {
            return Ok(());
        }
        let head = self.wrs.as_mut_ptr().cast::<ibv_send_wr>();
        let mut sges = self.sges.as_mut_ptr().cast::<ibv_sge>();
        let mut bad = head;
        // SAFETY: the first `count` requests and their pieces are initialised and lie one after the other in the two
        // arrays, which nothing else refers to until the provider has returned; the counts of pieces sum up to
        // `sges_len`. For the rest see the module header. The queue pair is live as its owner is.
        let code = unsafe {
            for index in 0..count {
                let wr = head.add(index);
                (*wr).sg_list = sges;
                (*wr).next = if index + 1 < count {
                    wr.add(1)
                } else {
                    ptr::null_mut()
                };
                sges = sges.add((*wr).num_sge as usize);
            }
            mu_sys::inline::post_send(qp.ptr(), head, &raw mut bad)
        };
        let posted = match code {
            0 => count,
            _ => (0..count)
                .find(|index| head.wrapping_add(*index) == bad)
                .unwrap_or(0),
        };
        self.wrs_len = 0;
        self.sges_len = 0;
        if let Some((window, key)) = self.bind.take() {
            window.raw().finish_bind((posted == count).then_some(key));
        }
        if code == 0 {
            Ok(())
        } else {
            Err((posted, code.saturating_abs()))
        }
    }
}
/// Posts one request.
#[inline]
pub(super) fn send(qp: &mut QpOwner, wr: &Wr<'_, Nic>, limits: &Limits) -> Result<(), Refused> {
    let mut batch = Batch::<1, MAX_SGE>::new();
    batch.push(qp, wr, limits)?;
    batch
        .post(qp)
        .map_err(|(_, errno)| Refused::Provider(errno))
}

/// Posts requests with one doorbell for each [`LIST_WRS`] of them. On an error: how many were posted.
pub(super) fn send_list(
    qp: &mut QpOwner,
    wrs: &[Wr<'_, Nic>],
    limits: &Limits,
) -> Result<(), (usize, Refused)> {
    let mut batch = Batch::<LIST_WRS, LIST_SGES>::new();
    let mut posted = 0;
    while posted < wrs.len() {
        let mut refused = None;
        for wr in &wrs[posted..] {
            if !batch.has_room() {
                break;
            }
            if let Err(error) = batch.push(qp, wr, limits) {
                refused = Some(Refused::Check(error));
                break;
            }
        }
        let count = batch.wrs_len;
        batch
            .post(qp)
            .map_err(|(done, errno)| (posted + done, Refused::Provider(errno)))?;
        posted += count;
        if let Some(refused) = refused {
            return Err((posted, refused));
        }
    }
    Ok(())
}

/// Posts one receive request.
#[inline]
pub(super) fn recv(
    qp: &mut QpOwner,
    wr: &RecvWr<'_, NicMr>,
    limits: &Limits,
) -> Result<(), Refused> {
    let mut pieces = Batch::<0, MAX_SGE>::new();
    pieces.regions(limits, wr.local, limits.max_recv_sge)?;
    let sg_list = pieces.sges.as_mut_ptr().cast::<ibv_sge>();
    let num_sge = pieces.sges_len as c_int;
    let mut raw = ibv_recv_wr {
        wr_id: wr.wr_id,
        next: ptr::null_mut(),
        sg_list,
        num_sge,
    };
    let mut bad = ptr::null_mut();
    // SAFETY: a list of one with `num_sge` initialised pieces; for the rest see the module header.
    match unsafe { mu_sys::inline::post_recv(qp.ptr(), &raw mut raw, &raw mut bad) } {
        0 => Ok(()),
        code => Err(Refused::Provider(code.saturating_abs())),
    }
}

/// The one owner of a completion queue, with the array that the provider fills. Queue pairs share the queue itself.
pub(super) struct CqOwner {
    cq: Arc<RawCq>,
    /// Initialised once: for a failed request the provider fills in only some members.
    wcs: Box<[ibv_wc; POLL_BATCH]>,
}

impl CqOwner {
    pub(super) fn new(cq: RawCq) -> Self {
        Self {
            cq: Arc::new(cq),
            wcs: Box::new([ibv_wc::default(); POLL_BATCH]),
        }
    }

    pub(super) fn shared(&self) -> &Arc<RawCq> {
        &self.cq
    }

    /// Moves completions into `out`; how many, and the errno of the provider if it failed.
    #[inline]
    pub(super) fn poll(&mut self, out: &mut [Completion]) -> (usize, Option<i32>) {
        let mut filled = 0;
        while filled < out.len() {
            let want = (out.len() - filled).min(POLL_BATCH);
            // SAFETY: the queue is live as `self.cq` is, this is its one poller, and `want` entries can be written.
            let got = unsafe {
                mu_sys::inline::poll_cq(self.cq.ptr(), want as c_int, self.wcs.as_mut_ptr())
            };
            if got < 0 {
                return (filled, Some(got.saturating_abs()));
            }
            let got = (got as usize).min(want);
            for (to, from) in out[filled..].iter_mut().zip(&self.wcs[..got]) {
                *to = completion(from);
            }
            filled += got;
            if got < want {
                break;
            }
        }
        (filled, None)
    }
}

/// The safe form of a completion: what the provider does not fill in for a failed request is not looked at.
#[inline]
fn completion(wc: &ibv_wc) -> Completion {
    let failed = Completion {
        wr_id: wc.wr_id,
        status: WcStatus(wc.status.0),
        qp_num: wc.qp_num,
        vendor_err: wc.vendor_err,
        ..Completion::EMPTY
    };
    if !failed.status.is_success() {
        return failed;
    }
    let with_imm = wc.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
    // SAFETY: both members of the union are 32 bits wide, and the array was initialised.
    let imm_data = with_imm.then(|| u32::from_be(unsafe { wc.__bindgen_anon_1.imm_data }));
    Completion {
        opcode: WcOpcode(wc.opcode.0),
        byte_len: wc.byte_len,
        imm_data,
        vendor_err: 0,
        ..failed
    }
}
