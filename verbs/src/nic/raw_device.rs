//! The device list, opened contexts and what is asked of them: owned pointers behind safe functions.
//!
//! # Safety argument of the `raw_*` files
//!
//! - A pointer is made by the verb that creates the object, is owned by exactly one value of these files, and is given
//!   to the verb that destroys it exactly once. It is never handed out.
//! - Every object holds what it was made from (`Arc` of context, domain, queue), so that nothing dies under it. Where
//!   destroying fails, the object and all it was made from are leaked and counted: the device may still use them.
//! - libibverbs and its providers lock for themselves: any verb may be called on an object from any thread. Two things
//!   are nevertheless kept to one owner by `&mut`: posting on a queue pair and polling a completion queue (providers
//!   can be told by an environment variable to run without locks).
//! - The function table is `'static` and belongs to the library that made the objects.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use mu_sys::{
    Lib, ibv_context, ibv_device, ibv_device_attr, ibv_event_type as what, ibv_gid, ibv_gid_entry,
};
use mu_sys::{ibv_async_event, ibv_port_attr};

use crate::AsyncEvent;

/// Objects that could not be destroyed, in the life of this process.
static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Objects of libibverbs that could not be destroyed when their owner was dropped or closed, in the life of this
/// process. They, and what they were made from, stay for ever. Anything but 0 is worth a line in a log.
pub fn leaked() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

pub(super) fn count_leak() {
    LEAKED.fetch_add(1, Ordering::Relaxed);
}

/// Result of a verb that returns 0 or an errno value; some providers give it negated.
pub(super) fn check(code: c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_abs())),
    }
}

/// Result of a verb that returns a pointer, or null with errno set.
pub(super) fn check_ptr<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// The devices of the machine, as libibverbs lists them.
pub(super) struct RawDevices {
    lib: &'static Lib,
    list: NonNull<*mut ibv_device>,
    count: usize,
}

/// What the list says of a device without opening it.
pub(super) struct RawDeviceInfo {
    pub(super) name: String,
    /// Name of its character device in `/dev/infiniband`.
    pub(super) node: String,
    /// Its folder in sysfs, if it has one.
    pub(super) sysfs: Option<PathBuf>,
    /// Its GUID, if the library can tell.
    pub(super) guid: Option<u64>,
}

impl RawDevices {
    /// The list, or the errno: `ENOSYS` where the kernel has no RDMA.
    pub(super) fn get(lib: &'static Lib) -> io::Result<Self> {
        let mut count: c_int = 0;
        // SAFETY: the count is a local; the array is owned by the value made here.
        let list = check_ptr(unsafe { (lib.ibv_get_device_list)(&raw mut count) })?;
        Ok(Self {
            lib,
            list,
            count: usize::try_from(count).unwrap_or(0),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn device(&self, index: usize) -> NonNull<ibv_device> {
        assert!(index < self.count);
        // SAFETY: the array has `count` entries, none of them null, until it is freed with `self`.
        unsafe { NonNull::new_unchecked(self.list.add(index).read()) }
    }

    pub(super) fn info(&self, index: usize) -> RawDeviceInfo {
        let device = self.device(index).as_ptr();
        // SAFETY: the device is live as long as the list, and its name is a C string of the same life. The arrays are
        // fixed fields of the public struct, filled before the list was made and never written again.
        let (name, node, path) = unsafe {
            (
                CStr::from_ptr((self.lib.ibv_get_device_name)(device))
                    .to_string_lossy()
                    .into_owned(),
                text(&raw const (*device).dev_name),
                text(&raw const (*device).ibdev_path),
            )
        };
        // SAFETY: as above.
        let guid = self
            .lib
            .ibv_get_device_guid
            .map(|f| u64::from_be(unsafe { f(device) }));
        let sysfs = (!path.is_empty()).then(|| PathBuf::from(path));
        RawDeviceInfo {
            name,
            node,
            sysfs,
            guid,
        }
    }

    pub(super) fn open(&self, index: usize) -> io::Result<RawContext> {
        // SAFETY: a live device of this library; opening keeps it alive beyond the list.
        let ptr = check_ptr(unsafe { (self.lib.ibv_open_device)(self.device(index).as_ptr()) })?;
        Ok(RawContext { lib: self.lib, ptr })
    }
}

impl Drop for RawDevices {
    fn drop(&mut self) {
        // SAFETY: the array of `get`, freed once; opened devices stay valid.
        unsafe { (self.lib.ibv_free_device_list)(self.list.as_ptr()) };
    }
}

/// The text in a fixed array of a C struct.
///
/// # Safety
/// `field` points to a live array that nobody writes.
unsafe fn text<const N: usize>(field: *const [c_char; N]) -> String {
    // SAFETY: the caller's promise.
    let bytes: Vec<u8> = unsafe { *field }
        .iter()
        .map(|c| *c as u8)
        .take_while(|b| *b != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An opened device (`struct ibv_context`), closed with its last user.
pub(super) struct RawContext {
    lib: &'static Lib,
    ptr: NonNull<ibv_context>,
}

// SAFETY: see the module header: verbs lock for themselves, and the pointer is owned.
unsafe impl Send for RawContext {}
// SAFETY: as above.
unsafe impl Sync for RawContext {}

/// An entry of a GID table.
pub(super) struct RawGid {
    pub(super) gid: [u8; 16],
    /// Its type (`enum ibv_gid_type`), if the library can tell.
    pub(super) kind: Option<u32>,
}

impl RawContext {
    pub(super) fn lib(&self) -> &'static Lib {
        self.lib
    }

    /// For the other `raw_*` files: live as long as `self`.
    pub(super) fn ptr(&self) -> *mut ibv_context {
        self.ptr.as_ptr()
    }

    pub(super) fn query_device(&self) -> io::Result<ibv_device_attr> {
        let mut attr = ibv_device_attr::default();
        // SAFETY: a live context of this library and a writable struct.
        check(unsafe { (self.lib.ibv_query_device)(self.ptr(), &raw mut attr) })?;
        Ok(attr)
    }

    pub(super) fn query_port(&self, port: u8) -> io::Result<ibv_port_attr> {
        let mut attr = ibv_port_attr::default();
        // SAFETY: as above.
        check(unsafe { self.lib.query_port(self.ptr(), port, &raw mut attr) })?;
        Ok(attr)
    }

    /// An entry of the GID table; `None` if it is empty.
    pub(super) fn query_gid(&self, port: u8, index: u32) -> io::Result<Option<RawGid>> {
        if let Some(query) = self.lib._ibv_query_gid_ex {
            let mut entry = ibv_gid_entry::default();
            let size = size_of::<ibv_gid_entry>();
            // SAFETY: as above; the size is that of the struct.
            let code =
                unsafe { query(self.ptr(), u32::from(port), index, &raw mut entry, 0, size) };
            match code {
                // SAFETY: both members of the union are sixteen initialised bytes.
                0 => return Ok(nonzero(unsafe { entry.gid.raw }, Some(entry.gid_type))),
                libc::ENODATA => return Ok(None),
                // An old kernel: the plain query may still know.
                _ => {}
            }
        }
        let mut gid = ibv_gid::default();
        // SAFETY: a live context of this library and a writable struct.
        if unsafe { (self.lib.ibv_query_gid)(self.ptr(), port, index as c_int, &raw mut gid) } != 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Ok(nonzero(unsafe { gid.raw }, None))
    }

    /// Makes fetching asynchronous events non-blocking.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        if cfg!(miri) {
            // Miri runs only over the fake provider, whose descriptor never blocks.
            return Ok(());
        }
        // SAFETY: a field of a live context that is not written after opening.
        let fd = unsafe { (*self.ptr()).async_fd };
        // SAFETY: no pointers; the descriptor belongs to the context, which is live.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        // SAFETY: as above.
        if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Fetches and acknowledges one asynchronous event.
    pub(super) fn next_event(&self) -> io::Result<Option<AsyncEvent>> {
        let mut raw = ibv_async_event::default();
        // SAFETY: a live context of this library and a writable struct.
        if unsafe { (self.lib.ibv_get_async_event)(self.ptr(), &raw mut raw) } != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: an event that was fetched and is not acknowledged yet.
        let event = unsafe { translate(&raw) };
        // SAFETY: the event fetched above, acknowledged once.
        unsafe { (self.lib.ibv_ack_async_event)(&raw mut raw) };
        Ok(Some(event))
    }
}

impl Drop for RawContext {
    fn drop(&mut self) {
        // SAFETY: the context of `open`; everything made from it held it and is gone.
        if unsafe { (self.lib.ibv_close_device)(self.ptr()) } != 0 {
            count_leak();
        }
    }
}

fn nonzero(gid: [u8; 16], kind: Option<u32>) -> Option<RawGid> {
    (gid != [0; 16]).then_some(RawGid { gid, kind })
}

/// # Safety
/// `raw` was fetched by `ibv_get_async_event` and is not acknowledged yet: destroying the object it names waits for
/// that, so the object is live.
unsafe fn translate(raw: &ibv_async_event) -> AsyncEvent {
    // SAFETY: for an event about a queue pair `qp` is the valid member, and the object is live by the caller's promise.
    let qp_num = || unsafe { (*raw.element.qp).qp_num };
    match raw.event_type {
        what::IBV_EVENT_CQ_ERR => AsyncEvent::CqError,
        what::IBV_EVENT_QP_FATAL => AsyncEvent::QpFatal { qp_num: qp_num() },
        what::IBV_EVENT_QP_REQ_ERR => AsyncEvent::QpRequestError { qp_num: qp_num() },
        what::IBV_EVENT_QP_ACCESS_ERR => AsyncEvent::QpAccessError { qp_num: qp_num() },
        what::IBV_EVENT_COMM_EST => AsyncEvent::CommunicationEstablished { qp_num: qp_num() },
        what::IBV_EVENT_PORT_ACTIVE => AsyncEvent::Port { active: true },
        what::IBV_EVENT_PORT_ERR => AsyncEvent::Port { active: false },
        what::IBV_EVENT_DEVICE_FATAL => AsyncEvent::DeviceFatal,
        other => AsyncEvent::Other(other.0),
    }
}

/// The most memory this process may lock, in bytes; `None` for no limit or not known.
pub(super) fn memlock_limit() -> Option<u64> {
    if cfg!(miri) {
        return None;
    }
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a writable struct.
    let code = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (code == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
