//! Requests become the C structs of libibverbs, in arrays on the stack. Nothing here is unsafe; `raw_post` posts the
//! result and relies on what [`Batch`] says of itself.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;

use mu_sys::{
    ibv_mw_bind_info, ibv_send_flags, ibv_send_wr, ibv_send_wr__bindgen_ty_1 as Immediate,
    ibv_send_wr__bindgen_ty_2 as Remote, ibv_send_wr__bindgen_ty_2__bindgen_ty_1 as Rdma,
    ibv_send_wr__bindgen_ty_2__bindgen_ty_2 as Atomic, ibv_send_wr__bindgen_ty_3 as Xrc,
    ibv_send_wr__bindgen_ty_3__bindgen_ty_1 as XrcNumber, ibv_send_wr__bindgen_ty_4 as Bind,
    ibv_send_wr__bindgen_ty_4__bindgen_ty_1 as BindMw,
    ibv_send_wr__bindgen_ty_4__bindgen_ty_2 as Tso, ibv_sge, ibv_wr_opcode as opcode,
};

use super::raw_queues::QpOwner;
use super::{Nic, NicMr, NicMw};
use crate::{Access, MemoryRegion, Payload, PostError, RemoteAddr, SendFlags, SendOp, Sge, Wr};

/// Most pieces of one request; the device's own limit counts where it is lower.
pub(super) const MAX_SGE: usize = 16;
/// Requests that one doorbell covers.
pub(super) const LIST_WRS: usize = 32;
/// Pieces that one doorbell covers.
pub(super) const LIST_SGES: usize = 64;

const _: () = assert!(MAX_SGE <= LIST_SGES, "any request fits an empty batch");

/// What a request of one queue pair is checked against before it is posted.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// The device, by the number that its regions have too.
    pub(super) device: u64,
    pub(super) max_send_sge: usize,
    pub(super) max_recv_sge: usize,
    pub(super) max_inline: usize,
    pub(super) max_msg: u64,
}
const fn invalid(what: &'static str, errno: i32) -> PostError {
    PostError::Invalid { what, errno }
}

/// A list of requests under construction, for one call.
///
/// The first `wrs_len` requests and the first `sges_len` pieces are initialised. The pieces lie in the order of their
/// requests, and each request's `num_sge` says how many are its own; its pointers are null, for they are set from the
/// final addresses. Regions and windows named by pointer, and inline bytes named by address, are borrowed for `'a`.
pub(super) struct Batch<'a, const WRS: usize, const SGES: usize> {
    pub(super) wrs: [MaybeUninit<ibv_send_wr>; WRS],
    pub(super) sges: [MaybeUninit<ibv_sge>; SGES],
    pub(super) wrs_len: usize,
    pub(super) sges_len: usize,
    /// The window that the last request binds.
    pub(super) bind: Option<(&'a NicMw, u32)>,
    borrowed: PhantomData<&'a ()>,
}

impl<'a, const WRS: usize, const SGES: usize> Batch<'a, WRS, SGES> {
    pub(super) const fn new() -> Self {
        Self {
            wrs: [const { MaybeUninit::uninit() }; WRS],
            sges: [const { MaybeUninit::uninit() }; SGES],
            wrs_len: 0,
            sges_len: 0,
            bind: None,
            borrowed: PhantomData,
        }
    }

    /// Whether one more request fits, whatever it is. A bind ends a batch, since the provider takes the window's
    /// present key from a struct that is brought up to date after the post.
    pub(super) fn has_room(&self) -> bool {
        self.wrs_len < WRS && self.sges_len + MAX_SGE <= SGES && self.bind.is_none()
    }

    #[inline]
    fn sge(&mut self, addr: u64, length: u32, lkey: u32) {
        self.sges[self.sges_len].write(ibv_sge { addr, length, lkey });
        self.sges_len += 1;
    }

    /// Adds local pieces. Empty ones are left out: to some devices a length of 0 means 2 GiB.
    #[inline]
    pub(super) fn regions(
        &mut self,
        limits: &Limits,
        list: &[Sge<'a, NicMr>],
        most: usize,
    ) -> Result<(), PostError> {
        let max_msg = limits.max_msg;
        if list.len() > most {
            return Err(PostError::TooManySges {
                count: list.len(),
                limit: most,
            });
        }
        let mut total = 0_u64;
        for piece in list {
            if piece.mr.device_id() != limits.device {
                return Err(invalid("a region of another device", libc::EINVAL));
            }
            total = total.saturating_add(piece.len as u64);
            if total > max_msg {
                return Err(PostError::TooLong {
                    len: usize::try_from(total).unwrap_or(usize::MAX),
                    limit: usize::try_from(max_msg).unwrap_or(usize::MAX),
                });
            }
            if piece.len > 0 {
                // The device checks the bounds; a piece that lies outside ends with LOC_PROT_ERR. `max_msg` is 32 bits
                // wide.
                self.sge(
                    piece.mr.addr_of(piece.offset),
                    piece.len as u32,
                    piece.mr.lkey(),
                );
            }
        }
        Ok(())
    }

    /// Adds a payload and returns the flag that goes with it.
    #[inline]
    fn payload(&mut self, payload: Payload<'a, NicMr>, limits: &Limits) -> Result<u32, PostError> {
        match payload {
            Payload::Regions(list) => self.regions(limits, list, limits.max_send_sge).map(|()| 0),
            Payload::Inline(bytes) if bytes.len() > limits.max_inline => {
                Err(PostError::InlineTooLong {
                    len: bytes.len(),
                    limit: limits.max_inline,
                })
            }
            Payload::Inline([]) => Ok(0),
            Payload::Inline(bytes) => {
                self.sge(
                    bytes.as_ptr().expose_provenance() as u64,
                    bytes.len() as u32,
                    0,
                );
                Ok(ibv_send_flags::IBV_SEND_INLINE.0)
            }
        }
    }

    /// Adds a request, for which there is room. On an error the batch holds what it held before.
    #[inline]
    pub(super) fn push(
        &mut self,
        qp: &QpOwner,
        wr: &Wr<'a, Nic>,
        limits: &Limits,
    ) -> Result<(), PostError> {
        let first = self.sges_len;
        let built = self.build(qp, wr, limits, first);
        match built {
            Ok(raw) => {
                self.wrs[self.wrs_len].write(raw);
                self.wrs_len += 1;
                Ok(())
            }
            Err(error) => {
                self.sges_len = first;
                Err(error)
            }
        }
    }

    #[inline]
    fn build(
        &mut self,
        qp: &QpOwner,
        wr: &Wr<'a, Nic>,
        limits: &Limits,
        first: usize,
    ) -> Result<ibv_send_wr, PostError> {
        // Only the flags of the vocabulary: whether bytes are inline is decided here.
        let known = SendFlags::FENCE | SendFlags::SIGNALED | SendFlags::SOLICITED;
        let mut raw = ibv_send_wr {
            wr_id: wr.wr_id,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 0,
            opcode: opcode::IBV_WR_RDMA_WRITE,
            send_flags: wr.flags.0 & known.0,
            __bindgen_anon_1: Immediate { imm_data: 0 },
            wr: Remote {
                rdma: Rdma {
                    remote_addr: 0,
                    rkey: 0,
                },
            },
            qp_type: Xrc {
                xrc: XrcNumber { remote_srqn: 0 },
            },
            __bindgen_anon_2: Bind {
                tso: Tso {
                    hdr: ptr::null_mut(),
                    hdr_sz: 0,
                    mss: 0,
                },
            },
        };
        let rdma = |remote: RemoteAddr| Remote {
            rdma: Rdma {
                remote_addr: remote.addr,
                rkey: remote.rkey,
            },
        };
        match wr.op {
            SendOp::Write {
                payload,
                remote,
                imm,
            } => {
                raw.send_flags |= self.payload(payload, limits)?;
                raw.wr = rdma(remote);
                if let Some(imm) = imm {
                    raw.opcode = opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
                    raw.__bindgen_anon_1.imm_data = imm.to_be();
                }
            }
            SendOp::Read { local, remote } => {
                self.regions(limits, local, limits.max_send_sge)?;
                raw.opcode = opcode::IBV_WR_RDMA_READ;
                raw.wr = rdma(remote);
            }
            SendOp::Send { payload, imm } => {
                raw.send_flags |= self.payload(payload, limits)?;
                raw.opcode = opcode::IBV_WR_SEND;
                if let Some(imm) = imm {
                    raw.opcode = opcode::IBV_WR_SEND_WITH_IMM;
                    raw.__bindgen_anon_1.imm_data = imm.to_be();
                }
            }
            SendOp::CompareSwap {
                local,
                remote,
                compare,
                swap,
            } => {
                raw.opcode = opcode::IBV_WR_ATOMIC_CMP_AND_SWP;
                raw.wr = self.atomic(local, remote, compare, swap, limits)?;
            }
            SendOp::FetchAdd { local, remote, add } => {
                raw.opcode = opcode::IBV_WR_ATOMIC_FETCH_AND_ADD;
                raw.wr = self.atomic(local, remote, add, 0, limits)?;
            }
            SendOp::BindMw {
                mw,
                rkey,
                mr,
                offset,
                len,
                access,
            } => {
                raw.opcode = opcode::IBV_WR_BIND_MW;
                raw.__bindgen_anon_2.bind_mw = self.bind(qp, mw, rkey, mr, offset, len, access)?;
            }
            SendOp::LocalInv { rkey } => {
                raw.opcode = opcode::IBV_WR_LOCAL_INV;
                raw.__bindgen_anon_1.invalidate_rkey = rkey;
            }
        }
        raw.num_sge = (self.sges_len - first) as c_int;
        Ok(raw)
    }

    fn atomic(
        &mut self,
        local: Sge<'a, NicMr>,
        remote: RemoteAddr,
        compare_add: u64,
        swap: u64,
        limits: &Limits,
    ) -> Result<Remote, PostError> {
        if local.len != 8 {
            return Err(invalid(
                "an atomic operation takes 8 local bytes",
                libc::EINVAL,
            ));
        }
        self.regions(limits, &[local], limits.max_send_sge)?;
        Ok(Remote {
            atomic: Atomic {
                remote_addr: remote.addr,
                compare_add,
                swap,
                rkey: remote.rkey,
            },
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the members of one request")]
    fn bind(
        &mut self,
        qp: &QpOwner,
        mw: &'a NicMw,
        rkey: u32,
        mr: &'a NicMr,
        offset: usize,
        len: usize,
        access: Access,
    ) -> Result<BindMw, PostError> {
        if !mw.is_of(qp.pd()) || !mr.is_of_pd(qp.pd()) {
            return Err(invalid(
                "a window or region of another protection domain",
                libc::EPERM,
            ));
        }
        if access.without(Access::ALL) != Access::NONE {
            return Err(invalid(
                "a window with rights that are not known here",
                libc::EINVAL,
            ));
        }
        let Some(region) = mr.raw().live() else {
            return Err(invalid(
                "a region that a failed re-registration ended",
                libc::EINVAL,
            ));
        };
        let Some(window) = mw.raw().start_bind() else {
            return Err(invalid("another thread is binding the window", libc::EBUSY));
        };
        self.bind = Some((mw, rkey));
        // A window has remote rights only; the local ones are the region's.
        let remote = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        let addr = mr.addr_of(offset);
        let mw_access_flags = (access & remote).0;
        let bind_info = ibv_mw_bind_info {
            mr: region,
            addr,
            length: len as u64,
            mw_access_flags,
        };
        Ok(BindMw {
            mw: window,
            rkey,
            bind_info,
        })
    }
}
