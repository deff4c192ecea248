//! Two connected queue pairs on the fake fabric, each with a region of words.

#![allow(dead_code, reason = "each test file uses its part")]

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use mu_sys::fake::{self, FakeOptions};
use mu_sys::*;

/// Words of a side's region.
pub(crate) const WORDS: usize = 64;
pub(crate) const DEPTH: u32 = 4;

pub(crate) const ALL: ibv_access_flags = ibv_access_flags(
    ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0
        | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
        | ibv_access_flags::IBV_ACCESS_REMOTE_READ.0
        | ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC.0
        | ibv_access_flags::IBV_ACCESS_MW_BIND.0,
);
pub(crate) const SIGNALED: u32 = ibv_send_flags::IBV_SEND_SIGNALED.0;
pub(crate) const INLINE: u32 = ibv_send_flags::IBV_SEND_INLINE.0;

pub(crate) struct Side {
    pub(crate) lib: &'static Lib,
    pub(crate) device: usize,
    pub(crate) context: *mut ibv_context,
    pub(crate) pd: *mut ibv_pd,
    pub(crate) cq: *mut ibv_cq,
    pub(crate) qp: *mut ibv_qp,
    pub(crate) mr: *mut ibv_mr,
    /// Owned by the side, and behind a raw pointer until `close`: moving a `Box` would end the region's right to it.
    pub(crate) memory: *mut [AtomicU64],
    pub(crate) words: &'static [AtomicU64],
}

// SAFETY: the fake locks inside; the words are atomics.
unsafe impl Send for Side {}

impl Side {
    pub(crate) fn new(options: FakeOptions, device: usize) -> Self {
        let lib = fake::lib(options);
        let words: Box<[AtomicU64]> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let memory = Box::into_raw(words);
        // SAFETY: just leaked; freed by `close`, the last use.
        let words = unsafe { &*memory };
        // SAFETY: every object is live when it is used, and the words are as long as the region: `close` ends in order.
        unsafe {
            let list = (lib.ibv_get_device_list)(ptr::null_mut());
            let context = (lib.ibv_open_device)(*list.add(device));
            (lib.ibv_free_device_list)(list);
            let pd = (lib.ibv_alloc_pd)(context);
            let cq = (lib.ibv_create_cq)(context, 64, ptr::null_mut(), ptr::null_mut(), 0);
            let addr = words.as_ptr().cast_mut().cast();
            let mr = (lib.ibv_reg_mr)(pd, addr, WORDS * 8, ALL.0 as i32);
            assert!(!mr.is_null());
            let mut init = ibv_qp_init_attr {
                send_cq: cq,
                recv_cq: cq,
                qp_type: ibv_qp_type::IBV_QPT_RC,
                cap: ibv_qp_cap {
                    max_send_wr: DEPTH,
                    max_recv_wr: DEPTH,
                    max_send_sge: 2,
                    max_recv_sge: 2,
                    max_inline_data: 64,
                },
                ..Default::default()
            };
            let qp = (lib.ibv_create_qp)(pd, &mut init);
            assert!(!qp.is_null());
            Self {
                lib,
                device,
                context,
                pd,
                cq,
                qp,
                mr,
                memory,
                words,
            }
        }
    }

    /// Two sides on the two devices, ready to send.
    pub(crate) fn pair(options: FakeOptions) -> (Self, Self) {
        let (a, b) = (Self::new(options, 0), Self::new(options, 1));
        a.connect(&b);
        b.connect(&a);
        (a, b)
    }

    pub(crate) fn number(&self) -> u32 {
        // SAFETY: the queue pair is live.
        unsafe { (*self.qp).qp_num }
    }

    pub(crate) fn gid(&self) -> ibv_gid {
        let mut gid = ibv_gid::default();
        // SAFETY: a live context and a writable GID.
        let result = unsafe { (self.lib.ibv_query_gid)(self.context, 1, 1, &mut gid) };
        assert_eq!(result, 0);
        gid
    }

    pub(crate) fn modify(&self, mut attr: ibv_qp_attr, mask: ibv_qp_attr_mask) -> i32 {
        // SAFETY: a live queue pair.
        unsafe { (self.lib.ibv_modify_qp)(self.qp, &mut attr, mask.0 as i32) }
    }

    pub(crate) fn set_state(&self, state: ibv_qp_state) -> i32 {
        self.modify(
            ibv_qp_attr {
                qp_state: state,
                ..Default::default()
            },
            ibv_qp_attr_mask::IBV_QP_STATE,
        )
    }

    pub(crate) fn set_access(&self, access: ibv_access_flags) -> i32 {
        let attr = ibv_qp_attr {
            qp_access_flags: access.0,
            ..Default::default()
        };
        self.modify(attr, ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS)
    }

    pub(crate) fn state(&self) -> ibv_qp_state {
        let (mut attr, mut init) = (ibv_qp_attr::default(), ibv_qp_init_attr::default());
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0 as i32;
        // SAFETY: a live queue pair and writable structs.
        let result = unsafe { (self.lib.ibv_query_qp)(self.qp, &mut attr, mask, &mut init) };
        assert_eq!(result, 0);
        attr.qp_state
    }

    /// RESET to INIT to RTR to RTS.
    pub(crate) fn connect(&self, peer: &Self) {
        assert_eq!(self.to_init(), 0);
        assert_eq!(self.to_rtr(peer), 0);
        assert_eq!(self.to_rts(), 0);
    }

    pub(crate) fn to_init(&self) -> i32 {
        use ibv_qp_attr_mask as m;
        let attr = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_INIT,
            port_num: 1,
            qp_access_flags: (ALL.0) & !ibv_access_flags::IBV_ACCESS_MW_BIND.0,
            ..Default::default()
        };
        self.modify(
            attr,
            m::IBV_QP_STATE | m::IBV_QP_PKEY_INDEX | m::IBV_QP_PORT | m::IBV_QP_ACCESS_FLAGS,
        )
    }

    pub(crate) fn to_rtr(&self, peer: &Self) -> i32 {
        use ibv_qp_attr_mask as m;
        let mut attr = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTR,
            path_mtu: ibv_mtu::IBV_MTU_1024,
            dest_qp_num: peer.number(),
            rq_psn: peer.psn(),
            max_dest_rd_atomic: 1,
            min_rnr_timer: 12,
            ..Default::default()
        };
        attr.ah_attr.is_global = 1;
        attr.ah_attr.port_num = 1;
        attr.ah_attr.grh.dgid = peer.gid();
        attr.ah_attr.grh.sgid_index = 1;
        attr.ah_attr.grh.hop_limit = 1;
        let mask = m::IBV_QP_STATE
            | m::IBV_QP_AV
            | m::IBV_QP_PATH_MTU
            | m::IBV_QP_DEST_QPN
            | m::IBV_QP_RQ_PSN
            | m::IBV_QP_MAX_DEST_RD_ATOMIC
            | m::IBV_QP_MIN_RNR_TIMER;
        self.modify(attr, mask)
    }

    pub(crate) fn to_rts(&self) -> i32 {
        use ibv_qp_attr_mask as m;
        let attr = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTS,
            sq_psn: self.psn(),
            timeout: 14,
            retry_cnt: 6,
            rnr_retry: 6,
            max_rd_atomic: 1,
            ..Default::default()
        };
        let mask = m::IBV_QP_STATE
            | m::IBV_QP_TIMEOUT
            | m::IBV_QP_RETRY_CNT
            | m::IBV_QP_RNR_RETRY
            | m::IBV_QP_SQ_PSN
            | m::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(attr, mask)
    }

    /// Near the end of the 24 bits, so that the tests go over it.
    fn psn(&self) -> u32 {
        0xff_fffe - self.device as u32
    }

    /// Address of the byte at `offset` of the region.
    pub(crate) fn addr(&self, offset: usize) -> u64 {
        (self.words.as_ptr().addr() + offset) as u64
    }

    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: the region is live.
        unsafe { (*self.mr).rkey }
    }

    pub(crate) fn sge(&self, offset: usize, length: u32) -> ibv_sge {
        // SAFETY: the region is live.
        let lkey = unsafe { (*self.mr).lkey };
        ibv_sge {
            addr: self.addr(offset),
            length,
            lkey,
        }
    }

    pub(crate) fn post(&self, wr: &mut ibv_send_wr, list: &mut [ibv_sge]) -> i32 {
        wr.sg_list = list.as_mut_ptr();
        wr.num_sge = list.len() as i32;
        let mut bad = ptr::null_mut();
        // SAFETY: a live queue pair, one request, and memory that outlives the call, in which the fake is done with it.
        let errno = unsafe { inline::post_send(self.qp, wr, &mut bad) };
        assert_eq!(errno != 0, bad == ptr::from_mut(wr));
        errno
    }

    /// Posts a request and returns its completion.
    pub(crate) fn run(&self, mut wr: ibv_send_wr, list: &mut [ibv_sge]) -> ibv_wc {
        wr.send_flags |= SIGNALED;
        assert_eq!(self.post(&mut wr, list), 0);
        let wc = self.poll().expect("executed by now");
        assert_eq!((wc.wr_id, wc.qp_num), (wr.wr_id, self.number()));
        wc
    }

    pub(crate) fn post_recv(&self, wr_id: u64, list: &mut [ibv_sge]) -> i32 {
        let sg_list = list.as_mut_ptr();
        let mut wr = ibv_recv_wr {
            wr_id,
            sg_list,
            num_sge: list.len() as i32,
            next: ptr::null_mut(),
        };
        let mut bad = ptr::null_mut();
        // SAFETY: a live queue pair and one request.
        unsafe { inline::post_recv(self.qp, &mut wr, &mut bad) }
    }

    pub(crate) fn poll(&self) -> Option<ibv_wc> {
        let mut wc = ibv_wc::default();
        // SAFETY: a live queue and room for one.
        let polled = unsafe { inline::poll_cq(self.cq, 1, &mut wc) };
        assert!(polled >= 0);
        (polled == 1).then_some(wc)
    }

    /// Takes the oldest event and acknowledges it.
    pub(crate) fn event(&self) -> Option<ibv_event_type> {
        let mut event = ibv_async_event {
            element: ibv_async_event__bindgen_ty_1 { port_num: 0 },
            event_type: ibv_event_type(0),
        };
        // SAFETY: a live context and a writable event, acknowledged once.
        unsafe {
            if (self.lib.ibv_get_async_event)(self.context, &mut event) != 0 {
                assert_eq!(
                    std::io::Error::last_os_error().raw_os_error(),
                    Some(libc::EAGAIN)
                );
                return None;
            }
            (self.lib.ibv_ack_async_event)(&mut event);
        }
        Some(event.event_type)
    }

    pub(crate) fn word(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Acquire)
    }

    pub(crate) fn set_word(&self, index: usize, value: u64) {
        self.words[index].store(value, Ordering::Release);
    }

    /// Tears everything down in order; each step has to work.
    pub(crate) fn close(self) {
        // SAFETY: nothing is used after its end.
        unsafe {
            assert_eq!((self.lib.ibv_destroy_qp)(self.qp), 0);
            assert_eq!((self.lib.ibv_dereg_mr)(self.mr), 0);
            assert_eq!((self.lib.ibv_destroy_cq)(self.cq), 0);
            assert_eq!((self.lib.ibv_dealloc_pd)(self.pd), 0);
            assert_eq!((self.lib.ibv_close_device)(self.context), 0);
            drop(Box::from_raw(self.memory));
        }
    }
}

pub(crate) fn request(wr_id: u64, opcode: ibv_wr_opcode) -> ibv_send_wr {
    ibv_send_wr {
        wr_id,
        opcode,
        ..Default::default()
    }
}

/// A write to, or a read from, a byte range of `peer`.
pub(crate) fn rdma(wr_id: u64, opcode: ibv_wr_opcode, peer: &Side, offset: usize) -> ibv_send_wr {
    let mut wr = request(wr_id, opcode);
    wr.wr.rdma.remote_addr = peer.addr(offset);
    wr.wr.rdma.rkey = peer.rkey();
    wr
}

pub(crate) fn write(wr_id: u64, peer: &Side, offset: usize) -> ibv_send_wr {
    rdma(wr_id, ibv_wr_opcode::IBV_WR_RDMA_WRITE, peer, offset)
}
