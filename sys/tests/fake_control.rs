//! The control path of the fake provider: queries, limits, states, windows, options, teardown.

#![cfg(feature = "fake")]

mod rig;

use std::ffi::CStr;
use std::ptr;

use mu_sys::fake::{self, FakeOptions};
use mu_sys::*;
use rig::*;

#[test]
fn two_devices_with_one_port() {
    let lib = fake::lib(FakeOptions::default());
    assert!(ptr::eq(lib, fake::lib(FakeOptions::default())));
    let mut count = 0;
    // SAFETY: live objects, writable structs.
    unsafe {
        let list = (lib.ibv_get_device_list)(&mut count);
        assert_eq!(count, 2);
        assert!((*list.add(2)).is_null());
        let names = [0, 1].map(|index| CStr::from_ptr((lib.ibv_get_device_name)(*list.add(index))));
        assert_eq!(names, [c"fake0", c"fake1"]);
        let context = (lib.ibv_open_device)(*list);
        (lib.ibv_free_device_list)(list);

        let mut device = ibv_device_attr::default();
        assert_eq!((lib.ibv_query_device)(context, &mut device), 0);
        assert_eq!(device.phys_port_cnt, 1);
        let mut port = ibv_port_attr {
            port_cap_flags2: 7,
            ..Default::default()
        };
        assert_eq!(lib.query_port(context, 1, &mut port), 0);
        assert_eq!(
            (port.state, port.active_mtu),
            (ibv_port_state::IBV_PORT_ACTIVE, ibv_mtu::IBV_MTU_4096)
        );
        assert_eq!(u32::from(port.link_layer), IBV_LINK_LAYER_ETHERNET);
        assert_eq!(
            port.port_cap_flags2, 0,
            "what the symbol does not fill in is zero"
        );
        assert_eq!(lib.query_port(context, 2, &mut port), libc::EINVAL);

        let mut gid = ibv_gid::default();
        assert_eq!((lib.ibv_query_gid)(context, 1, 1, &mut gid), 0);
        assert_eq!(gid.raw[10..13], [0xff, 0xff, 10]);
        assert_eq!((lib.ibv_query_gid)(context, 1, 2, &mut gid), -1);
        let mut entry = ibv_gid_entry::default();
        let query_gid_ex = lib._ibv_query_gid_ex.expect("the fake has it");
        assert_eq!(
            query_gid_ex(context, 1, 1, &mut entry, 0, size_of::<ibv_gid_entry>()),
            0
        );
        assert_eq!(entry.gid_type, ibv_gid_type::IBV_GID_TYPE_ROCE_V2.0);
        let mut pkey = 0;
        assert_eq!((lib.ibv_query_pkey)(context, 1, 0, &mut pkey), 0);
        assert_eq!(pkey, 0xffff);
        assert_eq!((lib.ibv_close_device)(context), 0);
    }
}

#[test]
fn regions_are_checked() {
    let a = Side::new(FakeOptions::default(), 0);
    let reg = |offset: usize, len: usize, access: ibv_access_flags| {
        let addr = a.words.as_ptr().cast_mut().wrapping_byte_add(offset).cast();
        // SAFETY: a live domain; what is registered lies in the words.
        let mr = unsafe { (a.lib.ibv_reg_mr)(a.pd, addr, len, access.0 as i32) };
        if mr.is_null() {
            return std::io::Error::last_os_error().raw_os_error();
        }
        // SAFETY: the region is live, and ends here.
        unsafe {
            assert_ne!((*mr).rkey, (*mr).lkey);
            assert_ne!((*mr).rkey, a.rkey());
            assert_eq!((a.lib.ibv_dereg_mr)(mr), 0);
        }
        None
    };
    assert_eq!(reg(8, 16, ALL), None);
    assert_eq!(reg(0, 8, ibv_access_flags(0)), None);
    assert_eq!(reg(0, 0, ALL), Some(libc::EINVAL));
    assert_eq!(reg(4, 8, ALL), Some(libc::EINVAL));
    assert_eq!(reg(0, 12, ALL), Some(libc::EINVAL));
    assert_eq!(
        reg(0, 8, ibv_access_flags::IBV_ACCESS_REMOTE_WRITE),
        Some(libc::EINVAL)
    );
    assert_eq!(
        reg(0, 8, ALL | ibv_access_flags::IBV_ACCESS_ZERO_BASED),
        Some(libc::EINVAL)
    );
    a.close();
}

#[test]
fn limits_are_written_back_or_refused() {
    let a = Side::new(
        FakeOptions {
            max_inline: 100,
            ..FakeOptions::default()
        },
        0,
    );
    let create = |inline, wr, qp_type| {
        let mut init = ibv_qp_init_attr {
            send_cq: a.cq,
            recv_cq: a.cq,
            qp_type,
            ..Default::default()
        };
        init.cap.max_inline_data = inline;
        init.cap.max_send_wr = wr;
        // SAFETY: live objects; the queue pair ends at once.
        unsafe {
            let qp = (a.lib.ibv_create_qp)(a.pd, &mut init);
            if qp.is_null() {
                return Err(std::io::Error::last_os_error()
                    .raw_os_error()
                    .expect("an errno"));
            }
            assert_eq!((a.lib.ibv_destroy_qp)(qp), 0);
        }
        Ok((init.cap.max_inline_data, init.cap.max_send_wr))
    };
    let rc = ibv_qp_type::IBV_QPT_RC;
    assert_eq!(create(33, 5, rc), Ok((48, 8)));
    assert_eq!(create(100, 0, rc), Ok((100, 0)));
    assert_eq!(create(101, 1, rc), Err(libc::EINVAL));
    assert_eq!(create(0, u32::MAX, rc), Err(libc::EINVAL));
    assert_eq!(create(0, 1, ibv_qp_type::IBV_QPT_UD), Err(libc::EOPNOTSUPP));
    a.close();
}

#[test]
fn states_follow_the_table() {
    use ibv_qp_attr_mask as m;
    let (a, b) = (
        Side::new(FakeOptions::default(), 0),
        Side::new(FakeOptions::default(), 1),
    );
    assert_eq!(a.state(), ibv_qp_state::IBV_QPS_RESET);
    assert_eq!(a.to_rtr(&b), libc::EINVAL, "not from RESET");
    assert_eq!(
        a.set_state(ibv_qp_state::IBV_QPS_INIT),
        libc::EINVAL,
        "required attributes are missing"
    );
    assert_eq!(a.to_init(), 0);
    assert_eq!(a.to_init(), 0, "INIT to INIT is allowed");
    assert_eq!(a.to_rts(), libc::EINVAL, "not from INIT");
    assert_eq!(a.to_rtr(&b), 0);
    assert_eq!(
        a.set_access(ibv_access_flags(0)),
        libc::EINVAL,
        "no RTR to RTR"
    );
    assert_eq!(a.to_rts(), 0);
    assert_eq!(a.set_access(ibv_access_flags(0)), 0);
    assert_eq!(
        a.set_access(ibv_access_flags(1 << 9)),
        libc::EINVAL,
        "no such right"
    );
    let attr = ibv_qp_attr {
        pkey_index: 0,
        ..Default::default()
    };
    assert_eq!(
        a.modify(attr, m::IBV_QP_PKEY_INDEX),
        libc::EINVAL,
        "not allowed in RTS"
    );
    let attr = ibv_qp_attr {
        cur_qp_state: ibv_qp_state::IBV_QPS_SQE,
        ..Default::default()
    };
    assert_eq!(
        a.modify(attr, m::IBV_QP_CUR_STATE),
        libc::EINVAL,
        "it is in another state"
    );
    assert_eq!(a.set_state(ibv_qp_state::IBV_QPS_ERR), 0);
    assert_eq!(a.set_access(ALL), libc::EINVAL, "ERR takes no attributes");
    a.close();
    b.close();
}

#[test]
fn access_flags_can_be_refused_in_rts() {
    let options = FakeOptions {
        access_flags_in_rts: false,
        ..FakeOptions::default()
    };
    let (a, b) = Side::pair(options);
    assert_eq!(b.set_access(ibv_access_flags(0)), libc::EINVAL);
    assert_eq!(
        a.run(write(1, &b, 0), &mut [a.sge(0, 8)]).status,
        ibv_wc_status::IBV_WC_SUCCESS
    );
    a.close();
    b.close();
}

#[test]
fn options_take_abilities_away() {
    let options = FakeOptions {
        rereg_mr: false,
        memory_windows: false,
        data_in_order: None,
        ..FakeOptions::default()
    };
    let a = Side::new(options, 0);
    assert!(a.lib.ibv_query_qp_data_in_order.is_none());
    let rereg_mr = a.lib.ibv_rereg_mr.expect("the symbol is there");
    let flags = ibv_rereg_mr_flags::IBV_REREG_MR_CHANGE_ACCESS.0 as i32;
    let mut attr = ibv_device_attr::default();
    // SAFETY: live objects and a writable struct.
    unsafe {
        let refused = rereg_mr(a.mr, flags, ptr::null_mut(), ptr::null_mut(), 0, 0);
        assert_eq!(refused, ibv_rereg_mr_err_code::IBV_REREG_MR_ERR_INPUT.0);
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::EOPNOTSUPP)
        );
        assert!(inline::alloc_mw(a.pd, ibv_mw_type::IBV_MW_TYPE_2).is_null());
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::EOPNOTSUPP)
        );
        assert_eq!((a.lib.ibv_query_device)(a.context, &mut attr), 0);
    }
    assert_eq!(attr.max_mw, 0);
    a.close();

    for answer in [false, true] {
        let a = Side::new(
            FakeOptions {
                data_in_order: Some(answer),
                ..FakeOptions::default()
            },
            0,
        );
        let query = a
            .lib
            .ibv_query_qp_data_in_order
            .expect("the symbol is there");
        // SAFETY: a live queue pair.
        let result = unsafe { query(a.qp, ibv_wr_opcode::IBV_WR_RDMA_WRITE, 0) };
        assert_eq!(result, i32::from(answer));
        a.close();
    }
}

fn bind(
    wr_id: u64,
    side: &Side,
    mw: *mut ibv_mw,
    rkey: u32,
    offset: usize,
    len: u64,
) -> ibv_send_wr {
    let mut wr = request(wr_id, ibv_wr_opcode::IBV_WR_BIND_MW);
    let access = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
    let info = ibv_mw_bind_info {
        mr: side.mr,
        addr: side.addr(offset),
        length: len,
        mw_access_flags: access,
    };
    wr.__bindgen_anon_2.bind_mw = ibv_send_wr__bindgen_ty_4__bindgen_ty_1 {
        mw,
        rkey,
        bind_info: info,
    };
    wr
}

#[test]
fn a_window_gives_access_until_it_is_invalidated() {
    let (a, b) = Side::pair(FakeOptions::default());
    a.set_word(0, 3);
    // SAFETY: live objects.
    let (mw, key) = unsafe {
        let mw = inline::alloc_mw(b.pd, ibv_mw_type::IBV_MW_TYPE_2);
        (mw, inline::inc_rkey((*mw).rkey))
    };
    assert_eq!(
        b.run(bind(1, &b, mw, key, 64, 64), &mut []).status,
        ibv_wc_status::IBV_WC_SUCCESS
    );

    let through = |offset| {
        let mut wr = write(2, &b, offset);
        wr.wr.rdma.rkey = key;
        wr
    };
    assert_eq!(
        a.run(through(120), &mut [a.sge(0, 8)]).status,
        ibv_wc_status::IBV_WC_SUCCESS
    );
    assert_eq!(b.word(15), 3);
    // SAFETY: a live region.
    let result = unsafe { (b.lib.ibv_dereg_mr)(b.mr) };
    assert_eq!(result, libc::EINVAL, "a window is bound to it");

    let mut invalidate = request(3, ibv_wr_opcode::IBV_WR_LOCAL_INV);
    invalidate.__bindgen_anon_1.invalidate_rkey = key;
    assert_eq!(
        b.run(invalidate, &mut []).status,
        ibv_wc_status::IBV_WC_SUCCESS
    );
    assert_eq!(
        a.run(through(64), &mut [a.sge(0, 8)]).status,
        ibv_wc_status::IBV_WC_REM_ACCESS_ERR
    );
    assert_eq!(b.word(8), 0);
    // SAFETY: a live window.
    let result = unsafe { inline::dealloc_mw(mw) };
    assert_eq!(result, 0);
    assert_eq!(b.event(), Some(ibv_event_type::IBV_EVENT_QP_ACCESS_ERR));
    a.close();
    b.close();
}

#[test]
fn windows_have_bounds() {
    for (offset, status) in [
        (64, ibv_wc_status::IBV_WC_SUCCESS),
        (56, ibv_wc_status::IBV_WC_REM_ACCESS_ERR),
    ] {
        let (a, b) = Side::pair(FakeOptions::default());
        // SAFETY: live objects.
        let (mw, key) = unsafe {
            let mw = inline::alloc_mw(b.pd, ibv_mw_type::IBV_MW_TYPE_2);
            (mw, inline::inc_rkey((*mw).rkey))
        };
        let wrong_index = key ^ 0x100;
        b.run(bind(1, &b, mw, key, 64, 64), &mut []);
        let mut wr = write(2, &b, offset);
        wr.wr.rdma.rkey = key;
        assert_eq!(a.run(wr, &mut [a.sge(0, 8)]).status, status);
        // SAFETY: a live window.
        let result = unsafe { inline::dealloc_mw(mw) };
        assert_eq!(result, 0);
        // SAFETY: live objects.
        let mw = unsafe { inline::alloc_mw(b.pd, ibv_mw_type::IBV_MW_TYPE_2) };
        if status == ibv_wc_status::IBV_WC_SUCCESS {
            let refused = b.run(bind(3, &b, mw, wrong_index, 64, 64), &mut []);
            assert_eq!(refused.status, ibv_wc_status::IBV_WC_MW_BIND_ERR);
        }
        // SAFETY: a live window.
        let result = unsafe { inline::dealloc_mw(mw) };
        assert_eq!(result, 0);
        a.close();
        b.close();
    }
}

#[test]
fn what_is_used_cannot_be_destroyed() {
    let (a, b) = Side::pair(FakeOptions::default());
    // SAFETY: live objects; each refusal leaves the object alive.
    unsafe {
        assert_eq!((a.lib.ibv_close_device)(a.context), libc::EBUSY);
        assert_eq!((a.lib.ibv_dealloc_pd)(a.pd), libc::EBUSY);
        assert_eq!((a.lib.ibv_destroy_cq)(a.cq), libc::EBUSY);

        let mut wr = write(1, &b, 0);
        wr.wr.rdma.rkey = b.rkey() ^ 1;
        a.run(wr, &mut [a.sge(0, 8)]);
        let mut event: ibv_async_event = std::mem::zeroed();
        assert_eq!((b.lib.ibv_get_async_event)(b.context, &mut event), 0);
        assert_eq!(event.element.qp, b.qp);
        assert_eq!(
            (b.lib.ibv_destroy_qp)(b.qp),
            libc::EBUSY,
            "its event is not acknowledged"
        );
        (b.lib.ibv_ack_async_event)(&mut event);
    }
    a.close();
    b.close();
}

#[test]
fn a_readable_descriptor_tells_of_events() {
    let (a, b) = Side::pair(FakeOptions::default());
    let readable = || {
        // SAFETY: the context is live; the descriptor is only looked at.
        let fd = unsafe { (*b.context).async_fd };
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    };
    if cfg!(miri) {
        println!("SKIP: Miri has no poll for event descriptors");
    } else {
        assert!(!readable());
    }
    let mut wr = write(1, &b, 0);
    wr.wr.rdma.rkey = b.rkey() ^ 1;
    a.run(wr, &mut [a.sge(0, 8)]);
    assert!(cfg!(miri) || readable());
    assert_eq!(b.event(), Some(ibv_event_type::IBV_EVENT_QP_ACCESS_ERR));
    assert!(cfg!(miri) || !readable());
    a.close();
    b.close();
}

#[test]
fn names_are_static_texts() {
    let lib = fake::lib(FakeOptions::default());
    // SAFETY: the answers are static C strings for any value.
    unsafe {
        let status = |value| {
            CStr::from_ptr((lib.ibv_wc_status_str)(value))
                .to_str()
                .expect("ASCII")
        };
        assert_eq!(status(ibv_wc_status::IBV_WC_SUCCESS), "success");
        assert_eq!(status(ibv_wc_status(999)), "unknown");
        let event = CStr::from_ptr((lib.ibv_event_type_str)(
            ibv_event_type::IBV_EVENT_QP_ACCESS_ERR,
        ));
        assert_eq!(event, c"QP access error");
    }
}
