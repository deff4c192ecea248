//! Protection domains and what is made in them: memory regions, memory windows, address handles.

use core::ffi::{c_int, c_void};

use super::device::{count_user, fail, free, leak};
use super::state::{Mr, Mw, Pd, RemoteKey, State, fake_context, has, world};
use crate::bindings::{
    ibv_access_flags as access, ibv_ah, ibv_ah_attr, ibv_context, ibv_mr, ibv_mw, ibv_mw_type,
    ibv_pd, ibv_rereg_mr_err_code as rereg_error, ibv_rereg_mr_flags as rereg,
};
use crate::inline::set_errno;

pub(super) unsafe extern "C" fn alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    // SAFETY: the caller gives a live context.
    let fake = unsafe { fake_context(context) };
    let mut state = fake.world.lock();
    let handle = state.new_handle();
    state.pds.insert(handle, Pd { users: 0 });
    count_user(&mut state, fake.handle, 1);
    leak(ibv_pd { context, handle })
}

pub(super) unsafe extern "C" fn dealloc_pd(pd: *mut ibv_pd) -> c_int {
    // SAFETY: the caller gives a live protection domain.
    let (fake, handle) = unsafe { (fake_context((*pd).context), (*pd).handle) };
    let mut state = fake.world.lock();
    if state.pds[&handle].users > 0 {
        return libc::EBUSY;
    }
    state.pds.remove(&handle);
    count_user(&mut state, fake.handle, -1);
    // SAFETY: made by `alloc_pd`, and the caller gives it up.
    unsafe { free(pd) };
    0
}

/// Counts an object in or out of its protection domain.
pub(super) fn count_pd_user(state: &mut State, pd: u32, change: i32) {
    let pd = state
        .pds
        .get_mut(&pd)
        .expect("a protection domain outlives its objects");
    pd.users = pd.users.checked_add_signed(change).expect("balanced");
}

pub(super) unsafe extern "C" fn reg_mr(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    flags: c_int,
) -> *mut ibv_mr {
    let Some(flags) = region_access(flags) else {
        return fail(libc::EINVAL);
    };
    if !whole_words(addr, len) {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller gives a live protection domain.
    let (context, pd_handle) = unsafe { ((*pd).context, (*pd).handle) };
    // SAFETY: and with it a live context.
    let mut state = unsafe { world(context) }.lock();
    let handle = state.new_handle();
    let lkey = new_key(&mut state);
    let rkey = new_key(&mut state);
    state.lkeys.insert(lkey, handle);
    state.rkeys.insert(rkey, RemoteKey::Mr(handle));
    state.mrs.insert(
        handle,
        Mr {
            pd: pd_handle,
            base: addr.cast(),
            len,
            access: flags,
            lkey,
            rkey,
        },
    );
    count_pd_user(&mut state, pd_handle, 1);
    leak(ibv_mr {
        context,
        pd,
        addr,
        length: len,
        handle,
        lkey,
        rkey,
    })
}

pub(super) unsafe extern "C" fn dereg_mr(mr: *mut ibv_mr) -> c_int {
    // SAFETY: the caller gives a live region.
    let (context, handle) = unsafe { ((*mr).context, (*mr).handle) };
    // SAFETY: and with it a live context.
    let mut state = unsafe { world(context) }.lock();
    if has_windows(&state, handle) {
        return libc::EINVAL;
    }
    let Mr { pd, lkey, rkey, .. } = state.mrs.remove(&handle).expect("a live region");
    state.lkeys.remove(&lkey);
    state.rkeys.remove(&rkey);
    count_pd_user(&mut state, pd, -1);
    // SAFETY: made by `reg_mr`, and the caller gives it up.
    unsafe { free(mr) };
    0
}

pub(super) unsafe extern "C" fn rereg_mr(
    mr: *mut ibv_mr,
    flags: c_int,
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    new_access: c_int,
) -> c_int {
    let refuse = |errno| {
        set_errno(errno);
        rereg_error::IBV_REREG_MR_ERR_INPUT.0
    };
    // SAFETY: the caller gives a live region.
    let (context, handle) = unsafe { ((*mr).context, (*mr).handle) };
    // SAFETY: and with it a live context.
    let world = unsafe { world(context) };
    if !world.options.rereg_mr {
        return refuse(libc::EOPNOTSUPP);
    }
    let mut state = world.lock();
    let mut new = state.mrs[&handle];
    let change = |flag: rereg| flags as u32 & flag.0 != 0;
    if flags as u32 & !rereg::IBV_REREG_MR_FLAGS_SUPPORTED.0 != 0
        || flags == 0
        || has_windows(&state, handle)
    {
        return refuse(libc::EINVAL);
    }
    if change(rereg::IBV_REREG_MR_CHANGE_ACCESS) {
        let Some(checked) = region_access(new_access) else {
            return refuse(libc::EINVAL);
        };
        new.access = checked;
    }
    if change(rereg::IBV_REREG_MR_CHANGE_TRANSLATION) {
        if !whole_words(addr, len) {
            return refuse(libc::EINVAL);
        }
        (new.base, new.len) = (addr.cast(), len);
    }
    if change(rereg::IBV_REREG_MR_CHANGE_PD) {
        if pd.is_null() {
            return refuse(libc::EINVAL);
        }
        let old_pd = new.pd;
        // SAFETY: not null, so the caller gives a live protection domain.
        new.pd = unsafe { (*pd).handle };
        count_pd_user(&mut state, old_pd, -1);
        count_pd_user(&mut state, new.pd, 1);
        // SAFETY: the region is live and the caller's alone during this call.
        unsafe { (*mr).pd = pd };
    }
    // SAFETY: as above.
    unsafe { ((*mr).addr, (*mr).length) = (new.base.cast(), new.len) };
    state.mrs.insert(handle, new);
    0
}

pub(super) unsafe extern "C" fn alloc_mw(pd: *mut ibv_pd, type_: ibv_mw_type) -> *mut ibv_mw {
    if type_ != ibv_mw_type::IBV_MW_TYPE_2 {
        return fail(libc::EOPNOTSUPP);
    }
    // SAFETY: the caller gives a live protection domain.
    let (context, pd_handle) = unsafe { ((*pd).context, (*pd).handle) };
    // SAFETY: and with it a live context.
    let mut state = unsafe { world(context) }.lock();
    let handle = state.new_handle();
    let rkey = new_key(&mut state);
    state.rkeys.insert(rkey, RemoteKey::Mw(handle));
    state.mws.insert(
        handle,
        Mw {
            pd: pd_handle,
            rkey,
            bound: None,
        },
    );
    count_pd_user(&mut state, pd_handle, 1);
    leak(ibv_mw {
        context,
        pd,
        rkey,
        handle,
        type_,
    })
}

pub(super) unsafe extern "C" fn dealloc_mw(mw: *mut ibv_mw) -> c_int {
    // SAFETY: the caller gives a live window.
    let (context, handle) = unsafe { ((*mw).context, (*mw).handle) };
    // SAFETY: and with it a live context.
    let mut state = unsafe { world(context) }.lock();
    let Mw { pd, rkey, .. } = state.mws.remove(&handle).expect("a live window");
    state.rkeys.remove(&rkey);
    count_pd_user(&mut state, pd, -1);
    // SAFETY: made by `alloc_mw`, and the caller gives it up.
    unsafe { free(mw) };
    0
}

pub(super) unsafe extern "C" fn create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    // SAFETY: the caller gives a valid attribute struct.
    if !super::modify::address_is_valid(unsafe { &*attr }) {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller gives a live protection domain.
    let (context, pd_handle) = unsafe { ((*pd).context, (*pd).handle) };
    // SAFETY: and with it a live context.
    let mut state = unsafe { world(context) }.lock();
    count_pd_user(&mut state, pd_handle, 1);
    leak(ibv_ah {
        context,
        pd,
        handle: state.new_handle(),
    })
}

pub(super) unsafe extern "C" fn destroy_ah(ah: *mut ibv_ah) -> c_int {
    // SAFETY: the caller gives a live address handle, and with it a live domain and context.
    unsafe {
        count_pd_user(&mut world((*ah).context).lock(), (*(*ah).pd).handle, -1);
        free(ah);
    }
    0
}

/// The access flags, if a region can have them. Optional ones are dropped, as the kernel drops those it does not know.
fn region_access(flags: c_int) -> Option<access> {
    const OPTIONAL: u32 = 0x3ff0_0000;
    let known = access::IBV_ACCESS_LOCAL_WRITE
        | access::IBV_ACCESS_REMOTE_WRITE
        | access::IBV_ACCESS_REMOTE_READ
        | access::IBV_ACCESS_REMOTE_ATOMIC
        | access::IBV_ACCESS_MW_BIND
        | access::IBV_ACCESS_HUGETLB;
    let flags = access(flags as u32 & !OPTIONAL);
    let remote_change = access::IBV_ACCESS_REMOTE_WRITE | access::IBV_ACCESS_REMOTE_ATOMIC;
    let needs_local_write = flags & remote_change != access(0);
    let allowed = !needs_local_write || has(flags, access::IBV_ACCESS_LOCAL_WRITE);
    (flags | known == known && allowed).then_some(flags)
}

fn whole_words(addr: *mut c_void, len: usize) -> bool {
    len > 0
        && len.is_multiple_of(8)
        && addr.addr().is_multiple_of(8)
        && !addr.is_null()
        && addr.addr().checked_add(len).is_some()
}

fn has_windows(state: &State, mr: u32) -> bool {
    state
        .mws
        .values()
        .any(|mw| mw.bound.is_some_and(|bound| bound.mr == mr))
}

/// A key that nothing has. The 8 low bits, a consumer's to change, are left out of the comparison.
fn new_key(state: &mut State) -> u32 {
    loop {
        let key = state.new_random();
        let taken = |other: &u32| other >> 8 == key >> 8;
        if key >> 8 != 0 && !state.lkeys.keys().any(taken) && !state.rkeys.keys().any(taken) {
            return key;
        }
    }
}
