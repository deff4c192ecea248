//! Posting, polling, events.

use std::ffi::c_int;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mu_sys::{
    ibv_async_event, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_event_type, ibv_qp,
    ibv_qp_attr, ibv_qp_state, ibv_send_wr, ibv_wc, ibv_wr_opcode,
};

use super::{broken, inline, loopback, open, real, set_errno};
use crate::nic::SOFT_ROCE_DRAIN;
use crate::rights::{Local, PeerRight, RightAttr, RightError};
use crate::{
    Access, AsyncEvent, Barrier, Completion, CompletionQueue, Context, MemoryRegion, MemoryWindow,
    Modify, Payload, PostError, QpControl, QpState, QueuePair, RevokeMethod, SendFlags, SendOp,
    SendWr, next_rkey,
};

static DOORBELLS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn counting_post(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    DOORBELLS.fetch_add(1, Ordering::Relaxed);
    let mut wr = wr;
    // SAFETY: the list is valid; each request is passed on alone, with a writable place for the one refused.
    unsafe {
        let context = (*qp).context;
        let device = (*context).device;
        let pristine = (real().ibv_open_device)(device);
        let post = (*pristine).ops.post_send.unwrap();
        (real().ibv_close_device)(pristine);
        while !wr.is_null() {
            let next = (*wr).next;
            (*wr).next = ptr::null_mut();
            let code = post(qp, wr, bad);
            (*wr).next = next;
            if code != 0 {
                return code;
            }
            wr = next;
        }
    }
    0
}

unsafe extern "C" fn counting_open(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: passed on as it came; the context is new and known to nobody else.
    unsafe {
        let context = (real().ibv_open_device)(device);
        (*context).ops.post_send = Some(counting_post);
        context
    }
}

#[test]
fn a_list_takes_one_doorbell_for_each_32_requests() {
    let nic = open(broken(|lib| lib.ibv_open_device = counting_open));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let (mut cq, mut qp) = loopback(&nic, &pd);
    let mr = nic.reg_mr(&pd, &memory, 0..4096, Access::LOG).unwrap();
    let wrs = [inline(mr.remote(0)); 100];
    let mut out = [Completion::EMPTY; 128];
    for (count, doorbells) in [(0, 0), (1, 1), (2, 1), (32, 1), (33, 2), (100, 4)] {
        let before = DOORBELLS.load(Ordering::Relaxed);
        qp.post_send_list(&wrs[..count]).unwrap();
        assert_eq!(
            DOORBELLS.load(Ordering::Relaxed) - before,
            doorbells,
            "{count} requests"
        );
        assert_eq!(cq.poll(&mut out), count);
    }
    let long = [0; 4096];
    let op = SendOp::Write {
        payload: Payload::Inline(&long),
        remote: mr.remote(0),
        imm: None,
    };
    let before = DOORBELLS.load(Ordering::Relaxed);
    assert!(
        qp.post_send_list(&[SendWr {
            wr_id: 0,
            op,
            flags: SendFlags::NONE
        }])
        .is_err()
    );
    assert_eq!(
        DOORBELLS.load(Ordering::Relaxed),
        before,
        "an empty batch rings nothing"
    );
}

/// For each bind posted: the key that the window's struct held then.
static KEYS_SEEN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

unsafe extern "C" fn watching_post(
    _: *mut ibv_qp,
    mut wr: *mut ibv_send_wr,
    _: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the list is valid, and the opcode says which member of the union is set.
    unsafe {
        while !wr.is_null() {
            if (*wr).opcode == ibv_wr_opcode::IBV_WR_BIND_MW {
                KEYS_SEEN
                    .lock()
                    .unwrap()
                    .push((*(*wr).__bindgen_anon_2.bind_mw.mw).rkey);
            }
            wr = (*wr).next;
        }
    }
    0
}

unsafe extern "C" fn watching_open(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: as in `counting_open`.
    unsafe {
        let context = (real().ibv_open_device)(device);
        (*context).ops.post_send = Some(watching_post);
        context
    }
}

#[test]
fn each_bind_shows_the_provider_the_key_of_the_bind_before() {
    let nic = open(broken(|lib| lib.ibv_open_device = watching_open));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let (_cq, mut qp) = loopback(&nic, &pd);
    let mr = nic.reg_mr(&pd, &memory, 0..64, Access::ALL).unwrap();
    let mw = nic.alloc_mw(&pd).unwrap();
    let first = mw.rkey();
    let bind = |rkey| {
        let op = SendOp::BindMw {
            mw: &mw,
            rkey,
            mr: &mr,
            offset: 0,
            len: 64,
            access: Access::LOG,
        };
        SendWr {
            wr_id: 0,
            op,
            flags: SendFlags::NONE,
        }
    };
    let second = next_rkey(first);
    let third = next_rkey(second);
    qp.post_send_list(&[bind(second), bind(third)]).unwrap();
    // A key of another window is not taken.
    qp.post_send(&bind(third ^ 0x100)).unwrap();
    qp.post_send(&bind(first)).unwrap();
    assert_eq!(*KEYS_SEEN.lock().unwrap(), [first, second, third, third]);
    assert_eq!(mw.rkey(), first);
}

unsafe extern "C" fn silent_refusal(
    _: *mut ibv_qp,
    _: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller gives a writable pointer.
    unsafe { *bad = ptr::null_mut() };
    libc::EIO
}

unsafe extern "C" fn silent_open(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: as in `counting_open`.
    unsafe {
        let context = (real().ibv_open_device)(device);
        (*context).ops.post_send = Some(silent_refusal);
        context
    }
}

#[test]
fn a_provider_that_does_not_say_which_request_it_refused_refused_the_first() {
    let nic = open(broken(|lib| lib.ibv_open_device = silent_open));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let (_cq, mut qp) = loopback(&nic, &pd);
    let mr = nic.reg_mr(&pd, &memory, 0..64, Access::LOG).unwrap();
    let (posted, why) = qp.post_send_list(&[inline(mr.remote(0)); 3]).unwrap_err();
    assert_eq!(
        (posted, why),
        (
            0,
            PostError::Device {
                qp_num: qp.control().qp_num(),
                errno: libc::EIO
            }
        )
    );
}

/// As kernels have it: no way from RESET to ERR.
unsafe extern "C" fn strict_modify(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int {
    // SAFETY: the caller gives a live queue pair and a valid struct.
    unsafe {
        let to_err = (*attr).qp_state == ibv_qp_state::IBV_QPS_ERR;
        if (*qp).state == ibv_qp_state::IBV_QPS_RESET && to_err {
            return libc::EINVAL;
        }
        (real().ibv_modify_qp)(qp, attr, mask)
    }
}

#[test]
fn err_can_be_reached_from_reset_although_kernels_have_no_such_change() {
    let nic = open(broken(|lib| lib.ibv_modify_qp = strict_modify));
    let (_cq, qp) = loopback(&nic, &nic.alloc_pd().unwrap());
    qp.control().modify(&Modify::Reset).unwrap();
    qp.control().modify(&Modify::Err).unwrap();
    assert_eq!(qp.control().state().unwrap(), QpState::Err);
}

extern "C" fn failing_poll(_: *mut ibv_cq, _: c_int, _: *mut ibv_wc) -> c_int {
    -libc::EIO
}

unsafe extern "C" fn half_open(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: as in `counting_open`.
    unsafe {
        let context = (real().ibv_open_device)(device);
        (*context).ops.post_send = None;
        (*context).ops.poll_cq = Some(failing_poll);
        context
    }
}

#[test]
fn a_provider_that_fails_to_post_or_poll_is_heard() {
    let nic = open(broken(|lib| lib.ibv_open_device = half_open));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let (mut cq, mut qp) = loopback(&nic, &pd);
    let mr = nic.reg_mr(&pd, &memory, 0..64, Access::LOG).unwrap();
    let refused = qp.post_send(&inline(mr.remote(0)));
    assert!(
        matches!(
            refused,
            Err(PostError::Invalid {
                errno: libc::EOPNOTSUPP,
                ..
            })
        ),
        "{refused:?}"
    );
    let (posted, why) = qp.post_send_list(&[inline(mr.remote(0)); 3]).unwrap_err();
    assert_eq!((posted, why.errno()), (0, libc::EOPNOTSUPP));
    assert_eq!(cq.error(), None);
    assert_eq!(cq.poll(&mut [Completion::EMPTY; 2]), 0);
    assert_eq!(cq.error(), Some(libc::EIO));

    // A right that waits for its own request on such a queue is told, and does not wait for ever.
    let mut qp = qp;
    let control = qp.control().clone();
    let mut right = PeerRight::new(&nic, &pd, &control, &memory, 0..64, RightAttr::LOG).unwrap();
    let result = right.revoke(
        RevokeMethod::QpCycle,
        Some(&mut Local {
            qp: &mut qp,
            send_cq: &mut cq,
            recv_cq: None,
            wr_id: 0,
            other: &mut |_| (),
            keep_waiting: &mut || true,
        }),
    );
    let error = result.map(drop).unwrap_err();
    assert!(
        matches!(&error, RightError::Verb(e) if e.errno() == libc::EIO)
            && error.to_string().contains("ibv_poll_cq"),
        "{error}"
    );
}

unsafe extern "C" fn soft_roce(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int {
    // SAFETY: passed on as it came.
    unsafe {
        let code = (real().ibv_query_device)(context, attr);
        (*attr).vendor_id = 0xff_ffff;
        code
    }
}

#[test]
fn soft_roce_is_drained_between_err_and_reset_and_trusted_with_deregistration_only() {
    let nic = open(broken(|lib| lib.ibv_query_device = soft_roce));
    let caps = nic.caps();
    assert_eq!(
        (caps.driver.as_str(), caps.target_cpu_free),
        ("rdma_rxe", false)
    );
    let all = [
        caps.revoke.qp_flags,
        caps.revoke.qp_cycle,
        caps.revoke.window,
        caps.revoke.reregister,
    ];
    assert_eq!(all, [Barrier::No, Barrier::No, Barrier::No, Barrier::Yes]);
    let (_cq, qp) = loopback(&nic, &nic.alloc_pd().unwrap());
    let start = Instant::now();
    qp.control().modify(&Modify::Reset).unwrap();
    assert!(start.elapsed() >= SOFT_ROCE_DRAIN);
    assert_eq!(qp.control().state().unwrap(), QpState::Reset);
}

/// The next asynchronous event, by number.
static EVENT: Mutex<Option<ibv_event_type>> = Mutex::new(None);

unsafe extern "C" fn made_up_event(context: *mut ibv_context, out: *mut ibv_async_event) -> c_int {
    if let Some(event_type) = EVENT.lock().unwrap().take() {
        // SAFETY: the caller gives a writable event.
        unsafe {
            *out = ibv_async_event {
                event_type,
                ..ibv_async_event::default()
            }
        };
        return 0;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().ibv_get_async_event)(context, out) }
}

extern "C" fn no_ack(_: *mut ibv_async_event) {}

extern "C" fn dead_events(_: *mut ibv_context, _: *mut ibv_async_event) -> c_int {
    set_errno(libc::EIO);
    -1
}

#[test]
fn events_about_the_device_are_translated() {
    let nic = open(broken(|lib| {
        (lib.ibv_get_async_event, lib.ibv_ack_async_event) = (made_up_event, no_ack)
    }));
    for (number, expected) in [
        (
            ibv_event_type::IBV_EVENT_PORT_ACTIVE,
            AsyncEvent::Port { active: true },
        ),
        (
            ibv_event_type::IBV_EVENT_PORT_ERR,
            AsyncEvent::Port { active: false },
        ),
        (
            ibv_event_type::IBV_EVENT_DEVICE_FATAL,
            AsyncEvent::DeviceFatal,
        ),
        (ibv_event_type::IBV_EVENT_GID_CHANGE, AsyncEvent::Other(18)),
        (ibv_event_type(1234), AsyncEvent::Other(1234)),
    ] {
        *EVENT.lock().unwrap() = Some(number);
        assert_eq!(nic.poll_async_event().unwrap(), Some(expected));
        assert_eq!(nic.poll_async_event().unwrap(), None);
    }
    let nic = open(broken(|lib| lib.ibv_get_async_event = dead_events));
    assert_eq!(nic.poll_async_event().unwrap_err().errno(), libc::EIO);
}
