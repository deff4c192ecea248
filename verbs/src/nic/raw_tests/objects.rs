//! Regions and queue pairs: registering, re-registering, destroying.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use mu_sys::{ibv_mr, ibv_pd, ibv_qp, ibv_rereg_mr_err_code as rereg};

use super::{broken, inline, loopback, open, real, set_errno};
use crate::nic::leaked;
use crate::rights::{PeerRight, RightAttr, RightError, RightState};
use crate::{
    Access, Barrier, Completion, CompletionQueue, Context, Error, MemoryRegion, PostError,
    QpControl, QueuePair, RevokeMethod, SendFlags, SendOp, SendWr, WcStatus,
};

static REGISTRATIONS_LEFT: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn scarce(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    access: c_int,
) -> *mut ibv_mr {
    if REGISTRATIONS_LEFT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .is_err()
    {
        set_errno(libc::ENOMEM);
        return ptr::null_mut();
    }
    // SAFETY: passed on as it came.
    unsafe { (real().ibv_reg_mr)(pd, addr, len, access) }
}

#[test]
fn too_little_lockable_memory_is_said_with_the_limit() {
    REGISTRATIONS_LEFT.store(1, Ordering::Relaxed);
    let nic = open(broken(|lib| lib.ibv_reg_mr = scarce));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let error = nic
        .reg_mr(&pd, &memory, 0..4096, Access::LOG)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.errno(), libc::ENOMEM);
    assert!(
        error.to_string().contains("4096 bytes") && error.to_string().contains("RLIMIT_MEMLOCK"),
        "{error}"
    );
}

const NEW_KEY: u32 = 0x1234_5678;

/// What the next re-registrations return, and with which errno. 0 is the fake's own.
static REREG: Mutex<(c_int, c_int)> = Mutex::new((0, 0));

unsafe extern "C" fn odd_rereg(
    mr: *mut ibv_mr,
    flags: c_int,
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    access: c_int,
) -> c_int {
    let (code, errno) = *REREG.lock().unwrap();
    if code == rereg::IBV_REREG_MR_ERR_DO_FORK_OLD.0 {
        // The registration is a new one then, and a kernel may give it other keys.
        // SAFETY: the caller gives a live region, which is its alone during this call.
        unsafe { (*mr).rkey = NEW_KEY };
    }
    if code != 0 {
        if errno != 0 {
            set_errno(errno);
        }
        return code;
    }
    // SAFETY: passed on as it came.
    unsafe { real().ibv_rereg_mr.unwrap()(mr, flags, pd, addr, len, access) }
}

#[test]
fn every_outcome_of_a_re_registration_is_told_apart() {
    let nic = open(broken(|lib| lib.ibv_rereg_mr = Some(odd_rereg)));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let outcome = |code: c_int, errno| {
        let mut mr = nic.reg_mr(&pd, &memory, 0..64, Access::LOG).unwrap();
        *REREG.lock().unwrap() = (code, errno);
        // One that is left over from before, and must not be believed.
        set_errno(libc::EOPNOTSUPP);
        let result = mr.reregister(Access::REMOTE_READ);
        *REREG.lock().unwrap() = (0, 0);
        (mr, result)
    };
    for (code, errno) in [
        (rereg::IBV_REREG_MR_ERR_INPUT.0, libc::EOPNOTSUPP),
        (rereg::IBV_REREG_MR_ERR_CMD.0, libc::EOPNOTSUPP),
        (rereg::IBV_REREG_MR_ERR_CMD.0, libc::ENOSYS),
        (libc::EOPNOTSUPP, 0),
    ] {
        let (mr, result) = outcome(code, errno);
        assert!(
            matches!(result, Err(Error::Unsupported { .. })),
            "{code}: {result:?}"
        );
        assert_eq!(mr.access(), Access::LOG);
        mr.close().unwrap();
    }
    for code in [
        rereg::IBV_REREG_MR_ERR_INPUT.0,
        rereg::IBV_REREG_MR_ERR_DONT_FORK_NEW.0,
    ] {
        let (mut mr, result) = outcome(code, libc::EBUSY);
        let error = result.unwrap_err();
        assert!(
            error.errno() == libc::EBUSY && error.to_string().contains("unchanged"),
            "{error}"
        );
        assert_eq!(mr.access(), Access::LOG);
        mr.reregister(Access::REMOTE_READ).unwrap();
    }
    let (mr, result) = outcome(rereg::IBV_REREG_MR_ERR_DO_FORK_OLD.0, libc::EINVAL);
    result.unwrap();
    assert_eq!((mr.access(), mr.rkey()), (Access::REMOTE_READ, NEW_KEY));

    let codes = [
        rereg::IBV_REREG_MR_ERR_CMD.0,
        rereg::IBV_REREG_MR_ERR_CMD_AND_DO_FORK_NEW.0,
        libc::EIO,
    ];
    for code in codes {
        // No errno is promised with these.
        let (mut cq, mut qp) = loopback(&nic, &pd);
        let (mut mr, result) = outcome(code, 0);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("was deregistered"), "{error}");
        assert_eq!(mr.access(), Access::NONE);
        assert_eq!(
            mr.reregister(Access::LOG).unwrap_err().errno(),
            libc::EINVAL,
            "it is gone"
        );
        // Its key is dead: a write to it is refused by the device, a bind to it before that.
        let wr = inline(mr.remote(0));
        qp.post_send(&wr).unwrap();
        let mut out = [Completion::EMPTY; 2];
        assert_eq!(cq.poll(&mut out), 1);
        assert_eq!(out[0].status, WcStatus::REM_ACCESS_ERR);
        let mw = nic.alloc_mw(&pd).unwrap();
        let op = SendOp::BindMw {
            mw: &mw,
            rkey: 1,
            mr: &mr,
            offset: 0,
            len: 8,
            access: Access::LOG,
        };
        let refused = qp.post_send(&SendWr {
            wr_id: 0,
            op,
            flags: SendFlags::NONE,
        });
        assert!(
            matches!(
                refused,
                Err(PostError::Invalid {
                    errno: libc::EINVAL,
                    ..
                })
            ),
            "{refused:?}"
        );
        mr.close().unwrap();
    }
    let without = open(broken(|lib| lib.ibv_rereg_mr = None));
    assert!(!without.caps().rereg_mr);
}

unsafe extern "C" fn rekeying_rereg(
    mr: *mut ibv_mr,
    flags: c_int,
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    access: c_int,
) -> c_int {
    // SAFETY: passed on as it came; the region is the caller's alone during this call.
    unsafe {
        let code = real().ibv_rereg_mr.unwrap()(mr, flags, pd, addr, len, access);
        (*mr).rkey = NEW_KEY;
        code
    }
}

#[test]
fn a_re_registration_that_changes_the_keys_does_not_count() {
    let nic = open(broken(|lib| lib.ibv_rereg_mr = Some(rekeying_rereg)));
    assert!(!nic.caps().rereg_mr);
}

/// Set while re-registering fails half-way, and deregistering with it.
static HOPELESS: AtomicU32 = AtomicU32::new(0);
static REREGISTERED: AtomicU32 = AtomicU32::new(0);
static DEREGISTERED: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn hopeless_rereg(
    mr: *mut ibv_mr,
    flags: c_int,
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    access: c_int,
) -> c_int {
    REREGISTERED.fetch_add(1, Ordering::Relaxed);
    if HOPELESS.load(Ordering::Relaxed) != 0 {
        set_errno(libc::EIO);
        return rereg::IBV_REREG_MR_ERR_CMD.0;
    }
    // SAFETY: passed on as it came.
    unsafe { real().ibv_rereg_mr.unwrap()(mr, flags, pd, addr, len, access) }
}

unsafe extern "C" fn hopeless_dereg(mr: *mut ibv_mr) -> c_int {
    DEREGISTERED.fetch_add(1, Ordering::Relaxed);
    if HOPELESS.load(Ordering::Relaxed) != 0 {
        return libc::EBUSY;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().ibv_dereg_mr)(mr) }
}

#[test]
#[cfg_attr(miri, ignore = "leaks on purpose")]
fn a_registration_that_could_not_be_taken_away_is_never_called_gone() {
    let nic = open(broken(|lib| {
        lib.ibv_rereg_mr = Some(hopeless_rereg);
        lib.ibv_dereg_mr = hopeless_dereg;
    }));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let (_cq, qp) = loopback(&nic, &pd);

    let mut right =
        PeerRight::new(&nic, &pd, qp.control(), &memory, 0..64, RightAttr::LOG).unwrap();
    right.grant(None).unwrap();
    let before = [&REREGISTERED, &DEREGISTERED].map(|n| n.load(Ordering::Relaxed));
    let done = right.revoke(RevokeMethod::Reregister, None).unwrap();
    assert_eq!(done.barrier, Barrier::Yes);
    let after = [&REREGISTERED, &DEREGISTERED].map(|n| n.load(Ordering::Relaxed));
    assert_eq!(
        after,
        [before[0], before[1] + 1],
        "only deregistration is a barrier"
    );
    right.grant(None).unwrap();

    let mut mr = nic.reg_mr(&pd, &memory, 0..64, Access::LOG).unwrap();
    HOPELESS.store(1, Ordering::Relaxed);
    let error = mr.reregister(Access::REMOTE_READ).unwrap_err();
    assert!(
        error.to_string().contains("deregistering failed too"),
        "{error}"
    );
    assert_eq!(mr.close().unwrap_err().errno(), libc::EBUSY);

    let failed = right.revoke_fully(None);
    assert!(
        matches!(failed, Err(RightError::NoBarrier { .. })),
        "{failed:?}"
    );
    HOPELESS.store(0, Ordering::Relaxed);
    let again = right.revoke(RevokeMethod::Reregister, None);
    assert!(
        matches!(again, Err(RightError::Unsupported { .. })),
        "{again:?}"
    );
    assert_ne!(right.state(), RightState::Fenced);
    let closed = right.close();
    assert!(
        matches!(closed, Err(RightError::Leaked { .. })),
        "{closed:?}"
    );
}

/// Set while destroying is to fail.
static STUCK: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn stuck_dereg(mr: *mut ibv_mr) -> c_int {
    if STUCK.load(Ordering::Relaxed) != 0 {
        return libc::EBUSY;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().ibv_dereg_mr)(mr) }
}

unsafe extern "C" fn stuck_destroy_qp(qp: *mut ibv_qp) -> c_int {
    if STUCK.load(Ordering::Relaxed) != 0 {
        return -libc::EBUSY;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().ibv_destroy_qp)(qp) }
}

#[test]
#[cfg_attr(miri, ignore = "leaks on purpose")]
fn what_cannot_be_destroyed_is_reported_counted_and_kept_alive() {
    let nic = open(broken(|lib| {
        (lib.ibv_dereg_mr, lib.ibv_destroy_qp) = (stuck_dereg, stuck_destroy_qp)
    }));
    let pd = nic.alloc_pd().unwrap();
    let memory = nic.alloc_memory(4096).unwrap();
    let (_cq, qp) = loopback(&nic, &pd);
    let first = nic.reg_mr(&pd, &memory, 0..64, Access::LOG).unwrap();
    let second = nic.reg_mr(&pd, &memory, 0..64, Access::LOG).unwrap();
    let before = leaked();
    STUCK.store(1, Ordering::Relaxed);
    let error = first.close().unwrap_err();
    assert_eq!((error.errno(), leaked()), (libc::EBUSY, before + 1));
    assert!(error.to_string().contains("memory window"), "{error}");
    drop(second);
    assert_eq!(leaked(), before + 2);
    let control = qp.control().clone();
    assert_eq!(qp.close().unwrap_err().errno(), libc::EBUSY);
    assert_eq!(leaked(), before + 3);
    assert_eq!(control.state().unwrap_err().errno(), libc::EINVAL);
    STUCK.store(0, Ordering::Relaxed);
    // All that they stand on stays: nothing fails later.
    drop((pd, memory, nic));
    assert_eq!(leaked(), before + 3);
}
