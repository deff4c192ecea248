//! Facts about the ABI, and the inline shims over a context made by hand.

use std::mem::{MaybeUninit, offset_of, size_of};
use std::ptr;

use mu_sys::*;

#[test]
#[cfg(target_arch = "x86_64")]
fn sizes_are_those_of_the_c_structs() {
    assert_eq!(size_of::<ibv_context_ops>(), 256);
    assert_eq!(size_of::<ibv_context>(), 328);
    assert_eq!(size_of::<ibv_send_wr>(), 128);
    assert_eq!(size_of::<ibv_wc>(), 48);
    assert_eq!(size_of::<ibv_sge>(), 16);
    assert_eq!(offset_of!(ibv_context, ops), 8);
    assert_eq!(offset_of!(ibv_context_ops, poll_cq), 11 * 8);
    assert_eq!(offset_of!(ibv_context_ops, post_send), 25 * 8);
}

#[test]
fn enumerations_hold_any_number() {
    let status = ibv_wc_status(4711);
    assert_ne!(status, ibv_wc_status::IBV_WC_SUCCESS);
    assert_eq!(format!("{status:?}"), "ibv_wc_status(4711)");
}

#[test]
fn the_consumer_part_of_a_key_wraps_in_its_byte() {
    assert_eq!(inline::inc_rkey(0x1234_5600), 0x1234_5601);
    assert_eq!(inline::inc_rkey(0x1234_56ff), 0x1234_5600);
    assert_eq!(inline::inc_rkey(u32::MAX), 0xffff_ff00);
}

/// Objects whose provider left every op null.
struct Bare {
    qp: ibv_qp,
    cq: ibv_cq,
    pd: ibv_pd,
    mw: ibv_mw,
}

impl Bare {
    fn new(context: *mut ibv_context) -> Self {
        Self {
            qp: ibv_qp {
                context,
                ..Default::default()
            },
            cq: ibv_cq {
                context,
                ..Default::default()
            },
            pd: ibv_pd {
                context,
                ..Default::default()
            },
            mw: ibv_mw {
                context,
                type_: ibv_mw_type::IBV_MW_TYPE_1,
                ..Default::default()
            },
        }
    }
}

#[test]
fn null_ops_are_refused() {
    let mut context = ibv_context::default();
    let mut bare = Bare::new(&raw mut context);
    let mut send = ibv_send_wr::default();
    let mut recv = ibv_recv_wr::default();
    let mut bad_send = ptr::null_mut();
    let mut bad_recv = ptr::null_mut();
    // SAFETY: live objects of one context; lists of one request.
    unsafe {
        assert_eq!(
            inline::post_send(&mut bare.qp, &mut send, &mut bad_send),
            libc::EOPNOTSUPP
        );
        assert_eq!(bad_send, &raw mut send);
        assert_eq!(
            inline::post_recv(&mut bare.qp, &mut recv, &mut bad_recv),
            libc::EOPNOTSUPP
        );
        assert_eq!(bad_recv, &raw mut recv);
        assert_eq!(
            inline::poll_cq(&mut bare.cq, 0, ptr::null_mut()),
            -libc::EOPNOTSUPP
        );
        assert_eq!(inline::req_notify_cq(&mut bare.cq, 0), libc::EOPNOTSUPP);
        assert!(inline::alloc_mw(&mut bare.pd, ibv_mw_type::IBV_MW_TYPE_2).is_null());
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::EOPNOTSUPP)
        );
        assert_eq!(inline::dealloc_mw(&mut bare.mw), libc::EOPNOTSUPP);
        let mut bind = ibv_mw_bind::default();
        assert_eq!(
            inline::bind_mw(&mut bare.qp, &mut bare.mw, &mut bind),
            libc::EOPNOTSUPP
        );
    }
}

#[test]
fn binding_checks_its_arguments_before_the_op() {
    let mut context = ibv_context::default();
    let mut bare = Bare::new(&raw mut context);
    let mut other_pd = ibv_pd::default();
    let mut mr = ibv_mr {
        pd: &raw mut other_pd,
        ..Default::default()
    };
    let mut bind = ibv_mw_bind::default();
    // SAFETY: live objects; the region in the request is null or live.
    unsafe {
        bind.bind_info.length = 8;
        assert_eq!(
            inline::bind_mw(&mut bare.qp, &mut bare.mw, &mut bind),
            libc::EINVAL
        );
        bind.bind_info.mr = &raw mut mr;
        assert_eq!(
            inline::bind_mw(&mut bare.qp, &mut bare.mw, &mut bind),
            libc::EPERM
        );
        bare.mw.type_ = ibv_mw_type::IBV_MW_TYPE_2;
        assert_eq!(
            inline::bind_mw(&mut bare.qp, &mut bare.mw, &mut bind),
            libc::EINVAL
        );
    }
}

#[test]
fn ops_are_called() {
    unsafe extern "C" fn poll_three(_: *mut ibv_cq, entries: i32, _: *mut ibv_wc) -> i32 {
        entries.min(3)
    }
    let mut context = ibv_context::default();
    context.ops.poll_cq = Some(poll_three);
    let mut bare = Bare::new(&raw mut context);
    let mut wc = [ibv_wc::default(); 8];
    // SAFETY: a live queue and room for eight.
    let polled = unsafe { inline::poll_cq(&mut bare.cq, 8, wc.as_mut_ptr()) };
    assert_eq!(polled, 3);
}

#[test]
fn an_extended_context_is_tested_for_size() {
    let query_port = offset_of!(verbs_context, query_port);
    let create_qp_ex = offset_of!(verbs_context, create_qp_ex);
    let mut outer = MaybeUninit::<verbs_context>::zeroed();
    let outer = outer.as_mut_ptr();
    // SAFETY: `outer` is live and zero is a value of all its members; the context pointer is derived from it.
    unsafe {
        let context = &raw mut (*outer).context;
        assert_eq!(
            inline::verbs_get_ctx(context, create_qp_ex),
            None,
            "not marked as extended"
        );

        (*outer).context.abi_compat = ptr::without_provenance_mut(inline::VERBS_ABI_IS_EXTENDED);
        (*outer).sz = size_of::<verbs_context>();
        assert_eq!(inline::verbs_get_ctx(context, query_port), Some(outer));

        // An older library's struct is shorter at its front: up to `create_qp_ex` and no further.
        (*outer).sz = size_of::<verbs_context>() - create_qp_ex;
        assert_eq!(inline::verbs_get_ctx(context, create_qp_ex), Some(outer));
        assert_eq!(inline::verbs_get_ctx(context, query_port), None);
    }
}
