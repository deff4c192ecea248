//! What redis-server calls instead of the C library's functions, for this object is preloaded.
//!
//! Each one makes the system call itself and keeps the [table of descriptors](crate::descriptors) right. Three do more:
//!
//! - `write` and `writev` to the append-only file collect the turn's bytes and write nothing; to a client, they first
//!   see to it that this turn has proved its leadership.
//! - `fdatasync` and `fsync` of the append-only file return when the turn's bytes are decided.
//! - `epoll_wait` begins a turn.
//!
//! They are called by any thread, in forked children, and in signal handlers, so outside of the main thread's path they
//! touch nothing but atomics. A panic here ends the process, as it leaves a C function.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::raw::{c_char, c_int, c_long, c_void};
use std::sync::Once;

use libc::{epoll_event, iovec, mode_t, size_t, sockaddr, socklen_t, ssize_t};

use crate::descriptors::{self, Kind};
use crate::turn;

/// Makes a system call; the C library's `syscall` sets `errno`.
macro_rules! call {
    ($number:expr, $($arg:expr),*) => {
        // SAFETY: the arguments are the caller's own, of the function that this system call is.
        unsafe { libc::syscall($number as c_long, $($arg),*) }
    };
}

/// Called in a child after each fork: it has no threads of the node, writes no log, and must not outlive its parent,
/// whose addresses it holds.
extern "C" fn forked() {
    turn::leave();
    let signal = libc::SIGKILL as libc::c_ulong;
    // SAFETY: a plain number; allowed between fork and exec.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
}

/// Watches for forks, from the first time on.
pub(crate) fn watch_forks() {
    static ONCE: Once = Once::new();
    // SAFETY: the function stays where it is for the life of the process, as the preloaded object does.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(forked));
    });
}

/// Ends the process at once: no handler runs, nothing buffered is sent.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: has no precondition.
    unsafe { libc::_exit(status) }
}

/// A number that tells this thread from the others.
pub(crate) fn this_thread() -> u64 {
    // SAFETY: has no precondition.
    (unsafe { libc::pthread_self() }) as u64
}

/// The bytes at a place; none if it is null or there are none.
///
/// # Safety
/// `len` bytes can be read there, for as long as the result is used.
unsafe fn slice<'a, T>(at: *const T, len: usize) -> &'a [T] {
    match at.is_null() || len == 0 {
        true => &[],
        // SAFETY: as the caller promises.
        false => unsafe { std::slice::from_raw_parts(at, len) },
    }
}

fn opened(path: *const c_char, descriptor: c_long) -> c_int {
    if descriptor >= 0 && !path.is_null() {
        // SAFETY: the kernel has just read this path as a text that ends with a zero.
        let path = unsafe { CStr::from_ptr(path) };
        descriptors::set(descriptor as c_int, descriptors::kind_of(path.to_bytes()));
    }
    descriptor as c_int
}

/// `open(2)`. The mode is a variable argument in C; where there is none the kernel ignores what stands here.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let call = call!(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode);
    opened(path, call)
}

/// `open(2)` of large files.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let call = call!(
        libc::SYS_openat,
        libc::AT_FDCWD,
        path,
        flags | libc::O_LARGEFILE,
        mode
    );
    opened(path, call)
}

/// `openat(2)`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn openat(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    let call = call!(libc::SYS_openat, dir, path, flags, mode);
    opened(path, call)
}

/// `openat(2)` of large files.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn openat64(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    let call = call!(libc::SYS_openat, dir, path, flags | libc::O_LARGEFILE, mode);
    opened(path, call)
}

/// `rename(2)`: a file that is open may get the name of the append-only file.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let at = libc::AT_FDCWD;
    let renamed = call!(libc::SYS_renameat2, at, from, at, to, 0) as c_int;
    if renamed == 0 && turn::is_main() {
        // SAFETY: the kernel has just read this path as a text that ends with a zero.
        descriptors::renamed(unsafe { CStr::from_ptr(to) }.to_bytes());
    }
    renamed
}

/// `close(2)`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    // Before the call: afterwards another thread may have the number again.
    descriptors::set(descriptor, Kind::Other);
    call!(libc::SYS_close, descriptor) as c_int
}

/// `dup(2)`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn dup(from: c_int) -> c_int {
    let to = call!(libc::SYS_dup, from) as c_int;
    if to >= 0 {
        descriptors::set(to, descriptors::get(from));
    }
    to
}

/// `dup2(2)`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from == to {
        return match call!(libc::SYS_fcntl, from, libc::F_GETFD) {
            -1 => -1,
            _ => to,
        };
    }
    // SAFETY: the caller's arguments.
    unsafe { dup3(from, to, 0) }
}

/// `dup3(2)`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    let done = call!(libc::SYS_dup3, from, to, flags) as c_int;
    if done >= 0 {
        descriptors::set(done, descriptors::get(from));
    }
    done
}

/// `accept(2)`: on the main thread it is a client.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn accept(
    listener: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { accept4(listener, address, len, 0) }
}

/// `accept4(2)`: on the main thread it is a client.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn accept4(
    listener: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    let client = call!(libc::SYS_accept4, listener, address, len, flags) as c_int;
    let kind = match turn::is_main() {
        true => Kind::Client,
        false => Kind::Other,
    };
    if client >= 0 {
        descriptors::set(client, kind);
    }
    client
}

/// `epoll_wait(2)`: a turn of the event loop begins when it returns.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn epoll_wait(
    poller: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout_ms: c_int,
) -> c_int {
    let null = std::ptr::null::<c_void>();
    let n = call!(
        libc::SYS_epoll_pwait,
        poller,
        events,
        most,
        timeout_ms,
        null,
        8
    ) as c_int;
    turn::begin();
    n
}

/// `write(2)`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn write(
    descriptor: c_int,
    bytes: *const c_void,
    len: size_t,
) -> ssize_t {
    match descriptors::get(descriptor) {
        Kind::Log if turn::is_main() => {
            // SAFETY: the caller gives `len` bytes to be read.
            let bytes = unsafe { slice(bytes.cast(), len) };
            turn::collect(bytes);
            return bytes.len() as ssize_t;
        }
        Kind::Client if turn::is_main() => turn::before_reply(),
        _ => {}
    }
    call!(libc::SYS_write, descriptor, bytes, len) as ssize_t
}

/// `writev(2)`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn writev(
    descriptor: c_int,
    pieces: *const iovec,
    count: c_int,
) -> ssize_t {
    match descriptors::get(descriptor) {
        Kind::Log if turn::is_main() => {
            // SAFETY: the caller gives `count` pieces.
            let pieces = unsafe { slice(pieces, usize::try_from(count).unwrap_or(0)) };
            let mut len = 0;
            for piece in pieces {
                // SAFETY: each piece is bytes to be read.
                let bytes = unsafe { slice(piece.iov_base.cast(), piece.iov_len) };
                turn::collect(bytes);
                len += bytes.len();
            }
            return len as ssize_t;
        }
        Kind::Client if turn::is_main() => turn::before_reply(),
        _ => {}
    }
    call!(libc::SYS_writev, descriptor, pieces, count) as ssize_t
}

/// `fdatasync(2)`: of the append-only file it returns when the turn is decided.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    if descriptors::get(descriptor) == Kind::Log && turn::is_main() {
        turn::decide();
        return 0;
    }
    call!(libc::SYS_fdatasync, descriptor) as c_int
}

/// `fsync(2)`: as `fdatasync`.
///
/// # Safety
/// As of the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    if descriptors::get(descriptor) == Kind::Log && turn::is_main() {
        turn::decide();
        return 0;
    }
    call!(libc::SYS_fsync, descriptor) as c_int
}

/// A descriptor that this process was started with.
///
/// # Errors
/// There is none of this number.
pub(crate) fn inherited(descriptor: c_int) -> io::Result<OwnedFd> {
    // SAFETY: `fcntl` only looks; the number is told to this process as its own, and is taken once.
    match unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it is open, as the call above says, and nothing else owns it.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}
