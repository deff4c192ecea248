//! Protection domains, regions and windows as owned pointers behind safe functions. The safety argument is in
//! `raw_device`.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use mu_softrdma::Memory;
use mu_sys::inline::{alloc_mw, dealloc_mw};
use mu_sys::{
    ibv_mr, ibv_mw, ibv_mw_type, ibv_pd, ibv_rereg_mr_err_code as rereg_err, ibv_rereg_mr_flags,
};

use super::raw_device::{RawContext, check, check_ptr, count_leak};
use crate::Access;

/// Ends an object: gives up what it was made from, or leaks that if the verb failed.
pub(super) fn end<T>(
    made_from: &mut Option<T>,
    destroy: impl FnOnce(&T) -> c_int,
) -> io::Result<()> {
    let Some(parts) = made_from.take() else {
        return Ok(());
    };
    let result = check(destroy(&parts));
    if result.is_err() {
        count_leak();
        mem::forget(parts);
    }
    result
}

/// A protection domain.
pub(super) struct RawPd {
    ptr: NonNull<ibv_pd>,
    context: Option<Arc<RawContext>>,
}

// SAFETY: see `raw_device`.
unsafe impl Send for RawPd {}
// SAFETY: see `raw_device`.
unsafe impl Sync for RawPd {}

impl RawPd {
    pub(super) fn alloc(context: &Arc<RawContext>) -> io::Result<Self> {
        // SAFETY: a live context of this library.
        let ptr = check_ptr(unsafe { (context.lib().ibv_alloc_pd)(context.ptr()) })?;
        Ok(Self {
            ptr,
            context: Some(context.clone()),
        })
    }

    /// For `raw_queues`: live as long as `self`.
    pub(super) fn ptr(&self) -> *mut ibv_pd {
        self.ptr.as_ptr()
    }

    pub(super) fn context(&self) -> &Arc<RawContext> {
        self.context.as_ref().expect("taken by drop only")
    }
}

impl Drop for RawPd {
    fn drop(&mut self) {
        // SAFETY: allocated by `alloc`; everything made from it held it and is gone. A failure is counted by `end`.
        let _ = end(&mut self.context, |context| unsafe {
            (context.lib().ibv_dealloc_pd)(self.ptr.as_ptr())
        });
    }
}

/// A registration. Alive until [`end`](Self::end): after that only its numbers remain.
pub(super) struct RawMr {
    ptr: NonNull<ibv_mr>,
    parts: Option<(Arc<RawPd>, Memory)>,
    /// The errno with which it could not be deregistered: the device may hold it for ever.
    stuck: Option<i32>,
}

// SAFETY: see `raw_device`.
unsafe impl Send for RawMr {}
// SAFETY: see `raw_device`.
unsafe impl Sync for RawMr {}

/// What a failed re-registration left.
pub(super) enum RawReregError {
    /// The old registration, unchanged.
    Unchanged(io::Error),
    /// A registration that must not be used any more.
    Broken(io::Error),
}

impl RawMr {
    /// Registers `len` bytes of `memory` from byte `start`, which lie inside.
    pub(super) fn register(
        pd: &Arc<RawPd>,
        memory: &Memory,
        start: usize,
        len: usize,
        access: Access,
    ) -> io::Result<Self> {
        assert!(start <= memory.len() && len <= memory.len() - start);
        let addr = memory
            .words()
            .as_ptr()
            .cast::<u8>()
            .wrapping_add(start)
            .cast_mut()
            .cast::<c_void>();
        // SAFETY: the bytes are inside the memory, which the value made here holds until the device has given it up.
        // They are atomics for everybody, so what the device does to them is no data race.
        let ptr = unsafe {
            (pd.context().lib().ibv_reg_mr)(pd.ptr.as_ptr(), addr, len, access.0 as c_int)
        };
        Ok(Self {
            ptr: check_ptr(ptr)?,
            parts: Some((pd.clone(), memory.clone())),
            stuck: None,
        })
    }

    /// Local and remote key, while it is alive.
    pub(super) fn keys(&self) -> (u32, u32) {
        assert!(self.parts.is_some());
        // SAFETY: alive; only `reregister`, which has `&mut`, lets the library write these fields.
        unsafe { ((*self.ptr.as_ptr()).lkey, (*self.ptr.as_ptr()).rkey) }
    }

    /// The pointer, while it is alive.
    pub(super) fn live(&self) -> Option<*mut ibv_mr> {
        self.parts.as_ref().map(|_| self.ptr.as_ptr())
    }

    /// Changes the rights. `None`: the library has no such verb.
    pub(super) fn reregister(&mut self, access: Access) -> Option<Result<(), RawReregError>> {
        let (pd, _) = self.parts.as_ref()?;
        let rereg = pd.context().lib().ibv_rereg_mr?;
        let flags = ibv_rereg_mr_flags::IBV_REREG_MR_CHANGE_ACCESS.0 as c_int;
        // A code below 0 does not promise an errno, so an old one must not be taken for its reason.
        // SAFETY: the C library's own errno of this thread.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: alive; domain and address are not looked at, as the flags ask for neither.
        let code = unsafe {
            rereg(
                self.ptr.as_ptr(),
                flags,
                ptr::null_mut(),
                ptr::null_mut(),
                0,
                access.0 as c_int,
            )
        };
        let error = if code > 0 {
            io::Error::from_raw_os_error(code)
        } else {
            io::Error::last_os_error()
        };
        // A kernel or provider without the verb has touched nothing, whichever code the library makes of it.
        let absent = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS));
        Some(match rereg_err(code) {
            // The last one is about fork protection of an old address range, which stays the same here.
            rereg_err(0) | rereg_err::IBV_REREG_MR_ERR_DO_FORK_OLD => Ok(()),
            rereg_err::IBV_REREG_MR_ERR_INPUT | rereg_err::IBV_REREG_MR_ERR_DONT_FORK_NEW => {
                Err(RawReregError::Unchanged(error))
            }
            _ if absent => Err(RawReregError::Unchanged(error)),
            _ => Err(RawReregError::Broken(error)),
        })
    }

    /// Deregisters; once only. If that failed, it says so each time: the registration is never reported as gone.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if let Some(errno) = self.stuck {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let ptr = self.ptr.as_ptr();
        // SAFETY: alive until here. A window or request that still names it ends with an error of the device.
        let result = end(&mut self.parts, |(pd, _)| unsafe {
            (pd.context().lib().ibv_dereg_mr)(ptr)
        });
        if let Err(error) = &result {
            self.stuck = Some(error.raw_os_error().unwrap_or(libc::EIO));
        }
        result
    }
}

impl Drop for RawMr {
    fn drop(&mut self) {
        // A failure is counted by `end`.
        let _ = self.end();
    }
}

/// A type-2 memory window.
pub(super) struct RawMw {
    ptr: NonNull<ibv_mw>,
    pd: Option<Arc<RawPd>>,
    rkey: AtomicU32,
    /// Held by the one thread that posts a bind of this window.
    binding: AtomicBool,
}

// SAFETY: see `raw_device`; the struct's key is read and written only while `binding` is held.
unsafe impl Send for RawMw {}
// SAFETY: as above.
unsafe impl Sync for RawMw {}

impl RawMw {
    pub(super) fn alloc(pd: &Arc<RawPd>) -> io::Result<Self> {
        // SAFETY: a live domain.
        let ptr = check_ptr(unsafe { alloc_mw(pd.ptr.as_ptr(), ibv_mw_type::IBV_MW_TYPE_2) })?;
        // SAFETY: just allocated and known to nobody else.
        let rkey = AtomicU32::new(unsafe { (*ptr.as_ptr()).rkey });
        Ok(Self {
            ptr,
            pd: Some(pd.clone()),
            rkey,
            binding: AtomicBool::new(false),
        })
    }

    pub(super) fn rkey(&self) -> u32 {
        self.rkey.load(Ordering::Acquire)
    }

    /// Takes the right to post a bind; `None` if another thread is doing so.
    pub(super) fn start_bind(&self) -> Option<*mut ibv_mw> {
        (!self.binding.swap(true, Ordering::Acquire)).then_some(self.ptr.as_ptr())
    }

    /// Ends a bind; `key` is the new one if it was posted. A key that is not this window's is refused by the device,
    /// and not taken here either. Providers (mlx5, Soft-RoCE) take the window's present key from the public struct when
    /// the next bind is posted, and leave it to the caller to keep it there.
    pub(super) fn finish_bind(&self, key: Option<u32>) {
        if let Some(key) = key.filter(|key| key >> 8 == self.rkey() >> 8) {
            // SAFETY: alive as `self` is; `binding` is held by the caller, so nobody else looks at the field.
            unsafe { (*self.ptr.as_ptr()).rkey = key };
            self.rkey.store(key, Ordering::Release);
        }
        self.binding.store(false, Ordering::Release);
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        let ptr = self.ptr.as_ptr();
        // SAFETY: alive until here.
        end(&mut self.pd, |_| unsafe { dealloc_mw(ptr) })
    }
}

impl Drop for RawMw {
    fn drop(&mut self) {
        // A failure is counted by `end`.
        let _ = self.end();
    }
}
